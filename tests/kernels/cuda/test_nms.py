"""NMS for a GPU, in the emulator: equal to its specification bit for bit, and the host waits where it must only."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refnet import ops
from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.kernels.cuda import nms as kernel
from refnet.kernels.emulator import available, running, standin
from refnet.ops.nms import iou
from refnet.testing.strategies.boxes import ScoredBoxes, dyadic_thresholds, scored_boxes
from tests.kernels.test_nms import clustered

pytestmark = pytest.mark.skipif(not available(), reason="the emulator compiles with g++, and there is none")

dtypes = st.sampled_from([np.float32, np.float64])
seeds = st.integers(0, 3)


def assert_padded_equals_the_specification(*arrays: np.ndarray, iou_threshold: float, limit: int) -> None:
    expected = ops.batched_nms_padded.specification(*arrays, iou_threshold=iou_threshold, limit=limit)
    actual = kernel.batched_nms_padded(*arrays, iou_threshold=iou_threshold, limit=limit)
    for name, a, e in zip(("kept", "count"), actual, expected, strict=True):
        assert (a.dtype, a.shape) == (e.dtype, e.shape)
        np.testing.assert_array_equal(a, e, err_msg=name)


@given(scored_boxes(), dyadic_thresholds, st.integers(0, 13), dtypes, st.integers(0, 3), seeds)
@settings(max_examples=25)
def test_padded_equals_the_specification(case: ScoredBoxes, threshold, limit, dtype, images, seed) -> None:
    """Of images with other boxes, other rows that are there, and scores that aren't numbers where they aren't."""
    rng = np.random.default_rng(seed)
    rows = np.array([rng.permutation(len(case)) for _ in range(images)], np.int64).reshape(images, len(case))
    valid = rng.random(rows.shape) < 0.7
    scores = np.where(valid, case.scores[rows], np.nan).astype(dtype)
    with running(mode="check", seed=seed):
        assert_padded_equals_the_specification(
            case.boxes[rows].astype(dtype), scores, case.groups[rows], valid, iou_threshold=threshold, limit=limit
        )


@pytest.mark.parametrize("count", [63, 64, 65, 127, 128, 129, 200, 321])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_padded_at_the_ends_of_tiles(count: int, share: float) -> None:
    """Clusters, so that boxes suppress each other over all distances; rows that aren't there reach over whole tiles."""
    boxes, scores, groups = clustered(count, seed=count, dtype=np.float32)
    valid = np.random.default_rng(count).random(count) < share
    for limit in (7, count + 3):
        with running(mode="check", seed=count):
            assert_padded_equals_the_specification(boxes, scores, groups, valid, iou_threshold=0.5, limit=limit)


def test_the_longest_chain_keeps_every_other_box() -> None:
    """Each box overlaps its neighbours: a decision depends on all before it, within a tile and from tile to tile."""
    count = 300
    left = np.arange(count, dtype=np.float32) * 10
    boxes = np.stack([left, np.zeros_like(left), left + 19, np.ones_like(left)], axis=1)  # IoU of neighbours 9 / 29
    with running(mode="check"):
        kept = kernel.nms(boxes, -left, iou_threshold=0.25)
    np.testing.assert_array_equal(kept, np.arange(0, count, 2))


@given(dtypes, seeds)
@settings(max_examples=8)
def test_iou_has_every_bit_of_the_specification(dtype, seed) -> None:
    """At the IoU itself as threshold both boxes stay, and one goes at the next number below; so within 20 units of it."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 1, (2, 2))
    boxes = np.concatenate([low, low + rng.uniform(1.1, 3, (2, 2))], axis=1).astype(dtype)
    overlap = iou(boxes[0], boxes[1:])[0]
    scores = np.array([1, 0], dtype)
    with running(mode="check"):
        for steps in (-20, -9, -8, -7, -1, 0, 1, 7, 8, 9, 20):
            threshold = dtype(overlap + steps * np.spacing(overlap))
            assert len(kernel.nms(boxes, scores, iou_threshold=float(threshold))) == 1 + (overlap <= threshold)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threshold", [0.0, 1e-8, 1e-4, 0.5, 1.0])
def test_extreme_boxes_are_compared_as_numpy_compares_them(dtype, threshold: float) -> None:
    """Denormal, huge and infinite areas, corners in the wrong order, coordinates that aren't numbers."""
    tiny, huge = float(np.finfo(dtype).smallest_subnormal), float(np.finfo(dtype).max)
    side = float(np.sqrt(np.finfo(dtype).smallest_subnormal)) * 3
    corners = [
        [0, 0, 1, 1], [0, 0, tiny, 1], [0, 0, side, side], [0, 0, side, 2 * side], [0, 0, huge, 1], [0, 0, huge, huge],
        [0, 0, np.inf, 1], [-np.inf, 0, np.inf, 1], [2, 2, 1, 1], [2, 0, 1, 3], [0, 3, 3, 0], [np.nan, 0, 1, 1],
        [0, 0, 1, np.nan], [0, 0, 3, 3], [-0.0, -0.0, 1, 1], [1, 1, 1, 1], [0, 0, 1e-12, 1e-12], [0, 0, 2e-12, 1e-12],
    ]  # fmt: skip
    boxes = np.array(corners, dtype)
    for first in range(len(boxes)):  # each the best once
        scores = -np.roll(np.arange(len(boxes)), first).astype(dtype)
        with np.errstate(all="ignore"):
            expected = ops.nms.specification(boxes, scores, iou_threshold=threshold)
        with running(mode="check"):
            np.testing.assert_array_equal(kernel.nms(boxes, scores, iou_threshold=threshold), expected)


# what the host does


def on_device(count: int, seed: int = 0) -> tuple[Any, ...]:
    boxes, scores, groups = clustered(count, seed, np.float32)
    return tuple(standin.asarray(array) for array in (boxes, scores, groups, scores > 0.2))


def test_padded_takes_three_launches_and_the_host_does_not_wait() -> None:
    arrays = tuple(standin.asarray(np.stack([array.get()] * 2)) for array in on_device(70))
    with standin.counting() as counts:
        kernel.batched_nms_padded(*arrays, iou_threshold=0.5, limit=20)
    assert counts.synchronizations == 0
    assert counts.launches == {"nms_order<float>": 1, "nms_overlaps<float>": 1, "nms_scan": 1}


def test_the_host_waits_once_for_the_number_of_boxes() -> None:
    boxes, scores, groups, _ = on_device(70)
    with standin.counting() as counts:
        kept = kernel.batched_nms(boxes, scores, groups, iou_threshold=0.5)
    assert counts.synchronizations == 1
    np.testing.assert_array_equal(
        kept.get(), ops.batched_nms.specification(boxes.get(), scores.get(), groups.get(), iou_threshold=0.5)
    )


def test_padded_leaves_a_score_that_is_no_number_out() -> None:
    boxes = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]], np.float32)
    arrays = boxes, np.array([0.5, np.nan, 0.25], np.float32), np.zeros(3, int), np.array([True, True, True])
    kept, count = kernel.batched_nms_padded(*arrays, iou_threshold=0.5, limit=4)
    assert (kept.tolist(), count) == ([0, 2, -1, -1], 2)


def test_boxes_and_scores_may_differ_in_precision() -> None:
    boxes, scores, _ = clustered(40, 1, np.float32)
    close = np.float64(scores) + np.arange(40) * 1e-12  # an order that float32 doesn't see
    np.testing.assert_array_equal(
        kernel.nms(boxes, close, iou_threshold=0.5), ops.nms.specification(boxes, close, iou_threshold=0.5)
    )


# errors


def test_the_first_score_that_is_no_number_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"^nms: scores must be numbers, got NaN for box 1"):
        kernel.nms(np.ones((4, 4)), np.array([0.5, np.nan, 0.1, np.nan]), iou_threshold=0.5, limit=0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"boxes": np.ones((3, 4), np.float16)}, DTypeError, "expected float32 or float64, got float16 and float64"),
        ({"boxes": np.ones((2, 3, 4))}, ShapeError, r"boxes must have shape \(B, 4\), got \(2, 3, 4\)"),
        (
            {"boxes": np.broadcast_to(np.ones(4), (2**18 + 1, 4)), "scores": np.broadcast_to(1.0, 2**18 + 1)},
            ShapeError,
            "expected at most 262144 boxes of an image, got 262145",
        ),
    ],
)
def test_what_the_kernel_cannot_take_is_refused(changes, error, message) -> None:
    arguments = {"boxes": np.ones((3, 4)), "scores": np.ones(3), "iou_threshold": 0.5, **changes}
    with pytest.raises(error, match=f"^nms: {message}"):
        kernel.nms(**arguments)
