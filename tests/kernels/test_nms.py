"""The CPU kernels of nms and batched_nms: equal to their specifications bit for bit, whatever the size of a block."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refnet.ops as ops
from refnet.errors import ArgumentError, ShapeError
from refnet.kernels.cpu import KERNELS
from refnet.kernels.cpu import nms as kernel
from refnet.ops.nms import iou
from refnet.testing.strategies.boxes import ScoredBoxes, dyadic_thresholds, scored_boxes
from refnet.testing.strategies.geometry import seeds

dtypes = st.sampled_from([np.float32, np.float64])
thresholds = st.one_of(dyadic_thresholds, st.floats(0, 1))


def assert_equal_to_specification(
    boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, threshold: float, limit: int | None
) -> None:
    arguments = {"iou_threshold": threshold, "limit": limit}
    for actual, expected in (
        (kernel.nms(boxes, scores, **arguments), ops.nms.specification(boxes, scores, **arguments)),
        (
            kernel.batched_nms(boxes, scores, groups, **arguments),
            ops.batched_nms.specification(boxes, scores, groups, **arguments),
        ),
    ):
        assert actual.dtype == np.int64
        np.testing.assert_array_equal(actual, expected)


@given(
    scored_boxes(most=20),
    thresholds,
    st.one_of(st.none(), st.integers(0, 20)),
    dtypes,
    st.integers(1, 5),
    st.integers(1, 3),
)
def test_equals_the_specification_with_ties_in_small_blocks(case: ScoredBoxes, threshold, limit, dtype, block, chunk):
    with patch.object(kernel, "BLOCK", block), patch.object(kernel, "CHUNK", chunk):
        assert_equal_to_specification(
            case.boxes.astype(dtype), case.scores.astype(dtype), case.groups, threshold, limit
        )


def clustered(count: int, seed: int, dtype: type) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes around a few objects, as a detector gives them, scores with ties, and 5 groups."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 400, (12, 2))[rng.integers(0, 12, count)] + rng.normal(0, 8, (count, 2))
    sides = abs(rng.normal(60, 20, (count, 2)))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).astype(dtype)
    return boxes, np.round(rng.uniform(size=count), 2).astype(dtype), rng.integers(0, 5, count)


@given(st.integers(100, 400), st.sampled_from([0.3, 0.5, 0.7]), st.sampled_from([None, 1, 50, 200]), dtypes, seeds)
def test_equals_the_specification_on_clusters(count, threshold, limit, dtype, seed):
    assert_equal_to_specification(*clustered(count, seed, dtype), threshold, limit)


@given(dtypes, seeds)
def test_iou_has_every_bit_of_the_specification(dtype, seed):
    """At the IoU itself as threshold both boxes stay, and one goes at the next number below."""
    rng = np.random.default_rng(seed)
    for _ in range(10):
        low = rng.uniform(0, 1, (2, 2))
        boxes = np.concatenate([low, low + rng.uniform(1.1, 3, (2, 2))], axis=1).astype(dtype)
        overlap = iou(boxes[0], boxes[1:])[0]
        scores = np.array([1, 0], dtype)
        for threshold, count in ((overlap, 2), (np.nextafter(overlap, dtype(0)), 1)):
            assert len(kernel.nms(boxes, scores, iou_threshold=float(threshold))) == count


@given(st.integers(0, 40), seeds)
def test_a_block_is_resolved_as_if_box_by_box(count, seed):
    rng = np.random.default_rng(seed)
    overlaps = rng.uniform(size=(count, count)) < rng.uniform(0, 0.5)
    kept = np.ones(count, dtype=bool)
    for i in range(count):
        if kept[i]:
            kept[i + 1 :] &= ~overlaps[i, i + 1 :]
    np.testing.assert_array_equal(kernel._resolve(overlaps), kept)


def test_the_longest_chain_keeps_every_other_box():
    """Each box overlaps its neighbours by more than the threshold: deciding on the last takes all before it."""
    count = 300
    left = np.arange(count) * 10.0
    boxes = np.stack([left, np.zeros(count), left + 19, np.ones(count)], axis=1)  # IoU of neighbours 9 / 29
    kept = kernel.nms(boxes, -np.arange(count) / count, iou_threshold=0.25)
    np.testing.assert_array_equal(kept, np.arange(0, count, 2))


def test_arguments_are_checked_as_by_the_specification():
    with pytest.raises(ShapeError, match="nms: scores must have one entry per box"):
        kernel.nms(np.ones((3, 4)), np.ones(2), iou_threshold=0.5)
    with pytest.raises(ArgumentError, match="batched_nms: iou_threshold must be within"):
        kernel.batched_nms(np.ones((3, 4)), np.ones(3), np.zeros(3, int), iou_threshold=2.0)


@pytest.mark.parametrize("name", ["nms", "batched_nms"])
def test_the_kernels_are_listed(name):
    assert KERNELS[name] is getattr(kernel, name)
