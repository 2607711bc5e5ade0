"""Matching by its definition: literal cases, ties, and what overlaps nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.ops import match_boxes
from refnet.ops.matching import pairwise_iou


def match(boxes, objects, force="ties", dtype=np.float64) -> tuple[list, list, list]:
    """The results for the boxes of one image."""
    given = np.array(boxes, dtype).reshape(1, -1, 4), np.array(objects, dtype).reshape(1, -1, 4)
    iou, matched, forcing = match_boxes.specification(*given, force=force)
    assert (iou.dtype, matched.dtype, forcing.dtype) == (dtype, np.int32, np.int32)
    return iou[0].tolist(), matched[0].tolist(), forcing[0].tolist()


SQUARE, UPPER, LOWER, FAR = [0, 0, 4, 4], [0, 0, 4, 2], [0, 2, 4, 4], [9, 9, 12, 12]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_literal_case(dtype):
    iou, matched, forcing = match([SQUARE, UPPER, FAR], [LOWER, SQUARE], dtype=dtype)
    assert iou == [1, 0.5, 0]
    assert matched == [1, 1, 0]
    assert forcing == [1, -1, -1]  # the square is the best box of both objects, and the last of them has it


@pytest.mark.parametrize(("force", "expected"), [("none", [-1] * 4), ("first", [0, -1, 1, -1]), ("ties", [0, 0, 1, 1])])
def test_boxes_that_tie_for_best(force, expected):
    assert match([UPPER, UPPER, FAR, FAR], [UPPER, FAR], force)[2] == expected


def test_of_equal_objects_a_box_overlaps_the_first_and_is_forced_by_the_last():
    assert match([UPPER], [SQUARE, SQUARE, FAR])[1:] == ([0], [1])


@pytest.mark.parametrize(
    "nothing", [[0, 0, 0, 0], [1, 1, 1, 3], [np.nan, 0, 4, 4], [0, 0, 4, np.nan], FAR, [4, 0, 8, 4]]
)
@pytest.mark.parametrize("force", ["first", "ties"])
def test_what_overlaps_nothing_is_nobodys_best(nothing, force):
    assert match([nothing], [SQUARE, SQUARE], force) == ([0], [0], [-1])
    assert match([SQUARE], [nothing, nothing], force) == ([0], [0], [-1])


def test_without_objects_or_boxes():
    assert match([SQUARE, FAR], []) == ([0, 0], [0, 0], [-1, -1])
    assert match([], [SQUARE]) == ([], [], [])


@given(st.integers(0, 2**32 - 1), st.sampled_from(["none", "first", "ties"]))
def test_images_and_rows_that_fill_up_change_nothing(seed, force):
    """Each image by itself, without the rows of zeros that make its objects as many as another's."""
    rng = np.random.default_rng(seed)
    boxes, objects = (np.sort(rng.integers(0, 6, (2, n, 2, 2)), axis=2).reshape(2, n, 4).astype(float) for n in (9, 4))
    counts = rng.integers(0, 5, 2)
    objects[np.arange(4) >= counts[:, None]] = 0
    found = match_boxes.specification(boxes, objects, force=force)
    for n, count in enumerate(counts):
        alone = match_boxes.specification(boxes[n : n + 1], objects[n : n + 1, :count], force=force)
        for ours, theirs in zip(found, alone, strict=True):
            np.testing.assert_array_equal(ours[n], theirs[0])
        np.testing.assert_array_equal(found[0][n], pairwise_iou(boxes[n], objects[n]).max(axis=1))


def test_what_is_refused():
    square = np.ones((1, 2, 4))
    with pytest.raises(ShapeError, match=r"boxes must have shape \(1, B, 4\)"):
        match_boxes(square[0], square)
    with pytest.raises(ShapeError, match="objects must have shape"):
        match_boxes(square, square[0])
    with pytest.raises(DTypeError, match="one floating-point type"):
        match_boxes(square, square.astype(np.float32))
    with pytest.raises(ArgumentError, match='force must be "none", "first" or "ties"'):
        match_boxes(square, square, force="best")
