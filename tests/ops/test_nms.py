"""nms and batched_nms: literal cases, the definition in fractions, TensorFlow, properties, errors."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.ops import batched_nms, batched_nms_padded, nms
from refnet.ops.nms import iou
from refnet.testing.strategies.boxes import ScoredBoxes, dyadic_thresholds, scored_boxes
from refnet.testing.strategies.geometry import seeds
from tests.golden import matterport_rules

dtypes = st.sampled_from([np.float32, np.float64])
limits = st.one_of(st.none(), st.integers(0, 13))


def keep(boxes: list[list[float]], scores: list[float], iou_threshold: float, limit: int | None = None) -> list[int]:
    return nms(
        np.array(boxes, dtype=np.float32), np.array(scores, dtype=np.float32), iou_threshold=iou_threshold, limit=limit
    ).tolist()


# literal cases


def test_the_best_box_suppresses_what_overlaps_it():
    boxes = [[0, 0, 4, 4], [0, 1, 4, 5], [8, 8, 9, 9]]  # IoU 12 / 20
    assert keep(boxes, [0.5, 0.9, 0.1], 0.5) == [1, 2]


def test_a_suppressed_box_suppresses_nothing():
    boxes = [[0, 0, 4, 1], [2, 0, 6, 1], [4, 0, 8, 1]]  # IoU of neighbours 2 / 6, of the first and last 0
    assert keep(boxes, [0.9, 0.8, 0.7], 0.25) == [0, 2]


def test_an_iou_of_exactly_the_threshold_stays():
    assert keep([[0, 0, 2, 1], [0, 0, 1, 1]], [1, 0], 0.5) == [0, 1]
    assert keep([[0, 0, 2, 1], [0, 0, 1, 1]], [1, 0], 0.49) == [0]


def test_the_threshold_has_the_precision_of_the_boxes():
    """The IoU is 0.3: in float32 a little more than in float64, and equal to the threshold in either."""
    boxes = [[0, 0, 10, 1], [0, 0, 3, 1]]
    assert float(np.float32(0.3)) > 0.3
    assert keep(boxes, [1, 0], 0.3) == [0, 1]


def test_of_equal_scores_the_lower_index_wins():
    assert keep([[0, 0, 1, 1]] * 3, [0.5, 0.5, 0.5], 0.5) == [0]
    assert keep([[0, 0, 1, 1], [5, 5, 6, 6], [0, 0, 1, 1]], [0.0, -0.0, 0.5], 0.5) == [2, 1]


def test_boxes_without_area_suppress_nothing():
    assert keep([[1, 1, 1, 1]] * 2 + [[0, 0, 2, 2]], [0.3, 0.2, 0.1], 0.0) == [0, 1, 2]


def test_identical_boxes_stay_at_threshold_one():
    assert keep([[0, 0, 1, 1]] * 2, [0.5, 0.4], 1.0) == [0, 1]


def test_the_limit_counts_kept_boxes():
    boxes = [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]]
    assert keep(boxes, [0.9, 0.8, 0.7, 0.6], 0.5, limit=2) == [0, 2]
    assert keep(boxes, [0.9, 0.8, 0.7, 0.6], 0.5, limit=0) == []


def test_no_boxes():
    kept = nms(np.zeros((0, 4)), np.zeros(0), iou_threshold=0.5)
    assert kept.shape == (0,)
    assert kept.dtype == np.int64
    assert batched_nms(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), iou_threshold=0.5).dtype == np.int64


def test_infinite_scores_are_scores():
    assert keep([[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]], [0.0, np.inf, -np.inf], 0.5) == [1, 0, 2]


def test_groups_suppress_only_their_own():
    boxes, scores = np.array([[0.0, 0, 1, 1]] * 4), np.array([0.1, 0.4, 0.3, 0.2])
    kept = batched_nms(boxes, scores, np.array([7, -1, 7, -1]), iou_threshold=0.5)
    np.testing.assert_array_equal(kept, [1, 2])


# the definition


def exact_iou(a: np.ndarray, b: np.ndarray) -> Fraction:
    """IoU of boxes with whole coordinates; 0 where neither has an area."""
    ax1, ay1, ax2, ay2 = (int(edge) for edge in a)
    bx1, by1, bx2, by2 = (int(edge) for edge in b)
    width, height = max(min(ax2, bx2) - max(ax1, bx1), 0), max(min(ay2, by2) - max(ay1, by1), 0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - width * height
    return Fraction(width * height, union) if union else Fraction(0)


def by_definition(case: ScoredBoxes, threshold: float, limit: int | None, groups: np.ndarray) -> list[int]:
    """A box is kept unless one kept before it overlaps it by more than the threshold."""
    kept: list[int] = []
    for index in sorted(range(len(case)), key=lambda i: (-case.scores[i], i)):
        if limit is not None and len(kept) >= limit:
            break
        rivals = [other for other in kept if groups[other] == groups[index]]
        if all(exact_iou(case.boxes[index], case.boxes[other]) <= Fraction(threshold) for other in rivals):
            kept.append(index)
    return kept


@given(scored_boxes(), dyadic_thresholds, limits, dtypes)
def test_equals_the_definition(case: ScoredBoxes, threshold, limit, dtype):
    boxes, scores = case.boxes.astype(dtype), case.scores.astype(dtype)
    kept = nms(boxes, scores, iou_threshold=threshold, limit=limit)
    assert kept.tolist() == by_definition(case, threshold, limit, np.zeros(len(case)))
    kept = batched_nms(boxes, scores, case.groups, iou_threshold=threshold, limit=limit)
    assert kept.tolist() == by_definition(case, threshold, limit, case.groups)


@given(scored_boxes(), dtypes)
def test_iou_is_the_nearest_floating_point_number(case: ScoredBoxes, dtype):
    """On whole numbers only the division rounds."""
    boxes = case.boxes.astype(dtype)
    for a in boxes:
        for b, value in zip(boxes, iou(a, boxes), strict=True):
            assert value.dtype == dtype
            union = exact_iou(a, b)
            if np.isnan(value):
                assert union == 0
                assert (a[:2] == a[2:]).any()
                assert (b[:2] == b[2:]).any()
            else:
                assert value == dtype(union.numerator) / dtype(union.denominator)


# TensorFlow


@pytest.mark.parametrize("name", ["plain", "ties", "all_equal", "flipped", "zero_area", "dups", "exact", "neg_scores"])
def test_equals_tensorflow(name):
    """TensorFlow takes corners in any order, so they are sorted here; the order of axes doesn't matter."""
    golden = matterport_rules.load("tf_nms")
    corners, scores = golden[f"{name}.boxes"], golden[f"{name}.scores"]
    low, high = np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])
    boxes = np.concatenate([low, high], axis=1)
    for threshold in (0.0, 0.25, 0.3, 0.5, 0.7, 1.0):
        for limit in (1000, 10):
            kept = nms(boxes, scores, iou_threshold=threshold, limit=limit)
            np.testing.assert_array_equal(kept, golden[f"{name}.t{threshold:.2f}.k{limit}"])


@pytest.mark.parametrize("key", ["0.0", "0.3", "0.5", "0.7", "1.0", "int_0.3"])
def test_equals_matterports(key):
    """Matterport's own, in NumPy, which puts the higher index first of equal scores: there are none here."""
    golden = matterport_rules.load("boxes")
    name, threshold = ("nms.int_boxes", key[4:]) if key.startswith("int_") else ("nms.boxes", key)
    boxes, scores = golden[name].astype(np.float64), golden["nms.scores"]
    kept = nms(boxes, scores, iou_threshold=float(threshold))
    np.testing.assert_array_equal(kept, golden[f"nms.{key}"])


# properties


@given(scored_boxes(), dyadic_thresholds)
def test_kept_boxes_come_best_first_and_stay_when_asked_again(case: ScoredBoxes, threshold):
    kept = nms(case.boxes, case.scores, iou_threshold=threshold)
    assert len(set(kept.tolist())) == len(kept)
    assert (np.diff(case.scores[kept]) <= 0).all()
    again = nms(case.boxes[kept], case.scores[kept], iou_threshold=threshold)
    np.testing.assert_array_equal(again, np.arange(len(kept)))


@given(scored_boxes(), dyadic_thresholds, st.integers(0, 12))
def test_a_limit_cuts_the_end_off(case: ScoredBoxes, threshold, limit):
    everything = batched_nms(case.boxes, case.scores, case.groups, iou_threshold=threshold)
    limited = batched_nms(case.boxes, case.scores, case.groups, iou_threshold=threshold, limit=limit)
    np.testing.assert_array_equal(limited, everything[:limit])


@given(scored_boxes(distinct_scores=True), dyadic_thresholds, st.randoms(use_true_random=False))
def test_the_order_of_the_boxes_does_not_matter(case: ScoredBoxes, threshold, random):
    order = np.array(random.sample(range(len(case)), len(case)), dtype=np.int64)
    kept = nms(case.boxes, case.scores, iou_threshold=threshold)
    kept_shuffled = nms(case.boxes[order], case.scores[order], iou_threshold=threshold)
    np.testing.assert_array_equal(order[kept_shuffled], kept)


@given(scored_boxes(), dyadic_thresholds, st.integers(-50, 50), st.sampled_from([0.25, 2.0, 8.0]))
def test_moving_and_scaling_changes_nothing(case: ScoredBoxes, threshold, shift, scale):
    kept = nms(case.boxes, case.scores, iou_threshold=threshold)
    np.testing.assert_array_equal(nms((case.boxes + shift) * scale, case.scores, iou_threshold=threshold), kept)


@given(scored_boxes(), dyadic_thresholds)
def test_groups_are_as_many_runs_of_nms(case: ScoredBoxes, threshold):
    kept = batched_nms(case.boxes, case.scores, case.groups, iou_threshold=threshold)
    for group in range(3):
        own = np.flatnonzero(case.groups == group)
        alone = own[nms(case.boxes[own], case.scores[own], iou_threshold=threshold)]
        np.testing.assert_array_equal(kept[case.groups[kept] == group], alone)


@given(scored_boxes(), dyadic_thresholds, limits)
def test_one_group_is_nms(case: ScoredBoxes, threshold, limit):
    together = np.full(len(case), 5)
    np.testing.assert_array_equal(
        batched_nms(case.boxes, case.scores, together, iou_threshold=threshold, limit=limit),
        nms(case.boxes, case.scores, iou_threshold=threshold, limit=limit),
    )


# a result of fixed size


@given(scored_boxes(), dyadic_thresholds, st.integers(0, 13), seeds)
def test_padded_keeps_what_batched_nms_keeps_of_the_valid_rows(case: ScoredBoxes, threshold, limit, seed):
    valid = np.random.default_rng(seed).random(len(case)) < 0.7
    scores = np.where(valid, case.scores, np.nan)  # nobody looks at them
    kept, count = batched_nms_padded(case.boxes, scores, case.groups, valid, iou_threshold=threshold, limit=limit)
    rows = np.flatnonzero(valid)
    expected = rows[
        batched_nms(case.boxes[rows], scores[rows], case.groups[rows], iou_threshold=threshold, limit=limit)
    ]
    assert kept.shape == (limit,)
    assert count.shape == ()
    np.testing.assert_array_equal(kept, np.pad(expected, (0, limit - len(expected)), constant_values=-1))
    assert count == len(expected)


@given(scored_boxes(), dyadic_thresholds, st.integers(0, 13), st.integers(0, 3))
def test_padded_takes_each_image_by_itself(case: ScoredBoxes, threshold, limit, images):
    arrays = [
        np.stack([np.roll(array, n, axis=0) for n in range(images)])
        if images
        else np.zeros((0, *array.shape), array.dtype)
        for array in (case.boxes, case.scores, case.groups, case.scores > -0.5)
    ]
    kept, count = batched_nms_padded(*arrays, iou_threshold=threshold, limit=limit)
    assert (kept.shape, count.shape) == ((images, limit), (images,))
    for n in range(images):
        own = batched_nms_padded(*(array[n] for array in arrays), iou_threshold=threshold, limit=limit)
        np.testing.assert_array_equal(kept[n], own[0])
        assert count[n] == own[1]


def test_padded_rejects_a_valid_score_that_is_no_number():
    with pytest.raises(ArgumentError, match="scores must be numbers, got NaN for box 1"):
        batched_nms_padded(
            np.ones((2, 4)), np.array([0.5, np.nan]), np.zeros(2, int), np.ones(2, bool), iou_threshold=0.5, limit=2
        )


def test_padded_checks_its_mask():
    arguments = np.ones((2, 4)), np.ones(2), np.zeros(2, int)
    with pytest.raises(DTypeError, match="batched_nms_padded: valid must hold booleans, got float64"):
        batched_nms_padded(*arguments, np.ones(2), iou_threshold=0.5, limit=2)
    with pytest.raises(ShapeError, match=r"valid must have one entry per box, expected \(2,\), got \(3,\)"):
        batched_nms_padded(*arguments, np.ones(3, bool), iou_threshold=0.5, limit=2)


# errors


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"boxes": np.ones((3, 5))}, ShapeError, r"boxes must have shape \(B, 4\), got \(3, 5\)"),
        ({"scores": np.ones(2)}, ShapeError, r"scores must have one entry per box, expected \(3,\), got \(2,\)"),
        ({"boxes": np.ones((3, 4), int)}, DTypeError, "boxes and scores must be floating point, got int64 and float64"),
        ({"scores": np.array([0.5, np.nan, 0.1])}, ArgumentError, "scores must be numbers, got NaN for box 1"),
        ({"iou_threshold": 1.5}, ArgumentError, r"iou_threshold must be within \[0, 1\], got 1.5"),
        ({"iou_threshold": float("nan")}, ArgumentError, r"iou_threshold must be within \[0, 1\], got nan"),
        ({"limit": -1}, ArgumentError, "limit must not be negative, got -1"),
    ],
)
def test_errors_say_what_was_expected(changes, error, message):
    arguments = {"boxes": np.ones((3, 4)), "scores": np.ones(3), "iou_threshold": 0.5, "limit": None, **changes}
    with pytest.raises(error, match=f"^nms: {message}"):
        nms(**arguments)
    with pytest.raises(error, match=f"^batched_nms: {message}"):
        batched_nms(groups=np.zeros(3, int), **arguments)


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (np.zeros(2, int), ShapeError, r"groups must have one entry per box, expected \(3,\), got \(2,\)"),
        (np.zeros(3), DTypeError, "groups must hold integers, got float64"),
    ],
)
def test_groups_are_checked(groups, error, message):
    with pytest.raises(error, match=message):
        batched_nms(np.ones((3, 4)), np.ones(3), groups, iou_threshold=0.5)
