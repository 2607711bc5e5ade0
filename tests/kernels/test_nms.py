"""The CPU kernels of nms, batched_nms and batched_nms_padded: equal to their specifications bit for bit."""

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


def in_small_portions(box_count: int, pair_count: int, cells: int):
    """The kernel with so many boxes in its first round, pairs at once, and cells for a box."""
    return patch.multiple(kernel, ROUND=box_count, PAIRS=pair_count, CELLS=cells)


portions = st.builds(in_small_portions, st.integers(1, 5), st.integers(1, 3), st.sampled_from([1, 4, 100]))


@given(scored_boxes(most=20), thresholds, st.one_of(st.none(), st.integers(0, 20)), dtypes, portions)
def test_equals_the_specification_with_ties_in_small_portions(case: ScoredBoxes, threshold, limit, dtype, portion):
    with portion:
        assert_equal_to_specification(
            case.boxes.astype(dtype), case.scores.astype(dtype), case.groups, threshold, limit
        )


@given(st.lists(scored_boxes(most=8), min_size=1, max_size=4), thresholds, st.integers(0, 8), dtypes, portions)
def test_images_are_padded_to_one_size(cases: list[ScoredBoxes], threshold, limit, dtype, portion):
    most = max(len(case) for case in cases) + 1
    boxes, scores = np.full((len(cases), most, 4), np.nan, dtype), np.full((len(cases), most), np.nan, dtype)
    groups, valid = np.full((len(cases), most), -1), np.zeros((len(cases), most), bool)
    for n, case in enumerate(cases):
        rows = slice(n % 2 if len(case) < most else 0, None)
        for whole, own in ((boxes, case.boxes), (scores, case.scores), (groups, case.groups), (valid, True)):
            whole[n][rows][: len(case)] = own
    arguments = (boxes, scores, groups, valid)
    with portion:
        actual = kernel.batched_nms_padded(*arguments, iou_threshold=threshold, limit=limit)
    expected = ops.batched_nms_padded.specification(*arguments, iou_threshold=threshold, limit=limit)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


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


@given(dtypes, seeds, st.floats(0.05, 0.95), st.sampled_from([0, 1]), st.booleans())
def test_centres_may_be_as_far_apart_as_the_threshold_lets_them(dtype, seed, threshold, axis, at_the_end):
    """A box within another, at an end of it, and hardly more of it than the threshold: the bound's extreme case.

    A crowd of small boxes elsewhere makes small cells.
    """
    rng = np.random.default_rng(seed)
    low = rng.uniform(-100, 100, (200, 2))
    crowd = np.concatenate([low, low + rng.uniform(0.001, 0.002, (200, 2))], axis=1)
    outer = np.array([200, 300, *rng.uniform(400, 500, 2)])
    inner = outer.copy()
    inner[axis if at_the_end else axis + 2] = np.interp(
        threshold + 1e-5, [0, 1], outer[[axis, axis + 2]][:: -1 if at_the_end else 1]
    )
    boxes = np.concatenate([[outer, inner], crowd]).astype(dtype)
    assert iou(boxes[0], boxes[1:2])[0] > dtype(threshold)
    with patch.object(kernel, "CELLS", 1000):
        for scores in (np.arange(202.0), -np.arange(202.0)):
            kept = kernel.nms(boxes, scores, iou_threshold=threshold)
            assert (0 in kept) + (1 in kept) == 1


@given(dtypes, st.sampled_from([0.0, 1e-12, 0.5, 1.0]), seeds)
def test_numbers_of_every_size(dtype, threshold, seed):
    """Sizes from the smallest numbers to the largest, and infinite and undefined ones: areas vanish and overflow."""
    rng, info = np.random.default_rng(seed), np.finfo(dtype)
    powers = rng.integers(np.log2(info.smallest_subnormal), np.log2(info.max), (30, 4))
    boxes = np.ldexp(rng.uniform(0.5, 1, (30, 4)), rng.permutation(powers, axis=0)).astype(dtype)
    boxes[10:20] = boxes[0, :2].repeat(2)[[0, 2, 1, 3]] * rng.uniform(0.5, 2, (10, 4)).astype(dtype)
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
    boxes[rng.integers(20, 30, 3), rng.integers(0, 4, 3)] = [-np.inf, np.inf, np.nan]
    with np.errstate(all="ignore"):
        assert_equal_to_specification(boxes, rng.uniform(size=30).astype(dtype), np.zeros(30, int), threshold, None)


def test_boxes_of_the_smallest_numbers():
    """Where a number has one bit, an intersection of half an area may be rounded up to all of it."""
    unit = np.float32(2.0**-75)  # the area, 2^-149, is float32's smallest number but 0
    boxes = np.array([[0, 0, 2, 1], [1, 0, 3, 1], [1.25, 0, 3.25, 1], [2, 0, 4, 1]], np.float32) * unit
    assert (boxes[:, 2] - boxes[:, 0]).all()
    for threshold in (0.25, 0.5, 0.75):
        assert_equal_to_specification(boxes, np.arange(4, dtype=np.float32), np.zeros(4, int), threshold, None)


def test_few_pairs_are_compared_of_boxes_that_lie_apart():
    """10,000 boxes on a lattice, half overlapping their neighbours: some dozen pairs each, not 10,000."""
    places = np.stack(np.meshgrid(np.arange(100.0), np.arange(100.0)), axis=-1).reshape(-1, 2)
    boxes = np.concatenate([places, places + 2], axis=1)
    compared = 0
    pairs = kernel._Grid.pairs

    def counted(*arguments):
        nonlocal compared
        for a, b in pairs(*arguments):
            compared += len(a)
            yield a, b

    with patch.object(kernel._Grid, "pairs", counted):
        kept = kernel.nms(boxes, np.random.default_rng(0).uniform(size=10_000), iou_threshold=0.5)
    assert len(kept) == 10_000
    assert compared < 50 * 10_000


@given(st.integers(0, 40), seeds)
def test_a_round_is_resolved_as_if_box_by_box(count, seed):
    rng = np.random.default_rng(seed)
    overlaps = np.triu(rng.uniform(size=(count, count)) < rng.uniform(0, 0.5), 1)
    kept = np.ones(count, dtype=bool)
    for i in range(count):
        if kept[i]:
            kept[i + 1 :] &= ~overlaps[i, i + 1 :]
    resolved = np.ones(count, dtype=bool)
    kernel._resolve(resolved, *np.nonzero(overlaps))
    np.testing.assert_array_equal(resolved, kept)


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


@pytest.mark.parametrize("name", ["nms", "batched_nms", "batched_nms_padded"])
def test_the_kernels_are_listed(name):
    assert KERNELS[name] is getattr(kernel, name)
