"""Matterport's figures for one image, against its golden vectors and by hand."""

import numpy as np
import pytest

from refnet.errors import DataError
from refnet.evaluate.matterport import average_precision, average_precision_range, box_recall, match_masks
from refnet.rcnn.boxes import from_yxyx
from refnet.rcnn.masks import pairwise_overlaps, tight_boxes
from refnet.rcnn.structures import Detections, GroundTruth
from tests.golden.matterport_rules import load, shape_masks
from tests.rcnn.small import truth


def detections(masks: np.ndarray, classes, scores) -> Detections:
    return Detections(
        boxes=tight_boxes(masks > 0.5),
        classes=np.asarray(classes, np.int64),
        scores=np.asarray(scores, np.float64),
        masks=masks,
    )


class TestGolden:
    golden = load("metrics")
    size = tuple(int(v) for v in golden["hw"])
    masks = shape_masks(golden["gt_specs"], size)
    objects = truth(tight_boxes(masks), golden["gt_class"], masks=masks)
    found_masks = shape_masks(golden["pred_specs"], size)
    # in another order, as the scores were drawn up
    found = detections(found_masks, golden["pred_class"], golden["pred_scores"]).select(golden["perm"])

    def test_inputs(self):
        np.testing.assert_array_equal(self.objects.boxes, from_yxyx(self.golden["gt_boxes"]))
        np.testing.assert_array_equal(tight_boxes(self.found_masks), from_yxyx(self.golden["pred_boxes"]))

    def test_overlaps(self):
        iou, _ = pairwise_overlaps(self.found_masks, self.masks)
        np.testing.assert_array_equal(iou.astype(np.float32), self.golden["overlaps_masks"])
        empty, _ = pairwise_overlaps(self.found_masks[:0], self.masks)
        np.testing.assert_array_equal(empty.shape, self.golden["overlaps_masks_empty"])

    @pytest.mark.parametrize(
        ("name", "threshold"), [("@0.30", 0.3), ("@0.50", 0.5), ("@0.75", 0.75), ("@0.30_st0.60", max(0.3, 0.6))]
    )
    def test_matches(self, name, threshold):
        matches = match_masks(self.objects, self.found, iou_threshold=threshold)
        np.testing.assert_array_equal(matches.objects, self.golden[f"match_gt{name}"])
        np.testing.assert_array_equal(matches.detections, self.golden[f"match_pred{name}"])
        np.testing.assert_array_equal(matches.overlaps.astype(np.float32), self.golden["match_overlaps"])

    @pytest.mark.parametrize("threshold", [0.3, 0.5, 0.75])
    def test_average_precision(self, threshold):
        result = average_precision(self.objects, self.found, iou_threshold=threshold)
        assert result.value == pytest.approx(float(self.golden[f"ap@{threshold:.2f}"]), rel=1e-14)
        np.testing.assert_allclose(result.precisions, self.golden[f"prec@{threshold:.2f}"], rtol=1e-15)
        np.testing.assert_allclose(result.recalls, self.golden[f"rec@{threshold:.2f}"], rtol=1e-15)

    def test_mean_over_thresholds(self):
        value = average_precision_range(self.objects, self.found)
        assert value == pytest.approx(float(self.golden["ap_range"]), rel=1e-14)

    def test_nothing_found(self):
        """The only detection lies beside all objects."""
        result = average_precision(self.objects, detections(self.found_masks[6:7], [2], [0.5]))
        assert result.value == self.golden["ap_miss"]
        np.testing.assert_array_equal(result.precisions, self.golden["prec_miss"])
        np.testing.assert_array_equal(result.recalls, self.golden["rec_miss"])

    @pytest.mark.parametrize("threshold", [0.3, 0.5])
    def test_recall(self, threshold):
        boxes = from_yxyx(self.golden["pred_boxes"]).astype(np.float64)
        recall, positive = box_recall(boxes, self.objects.boxes, iou_threshold=threshold)
        assert recall == self.golden[f"recall@{threshold}"]
        np.testing.assert_array_equal(positive, self.golden[f"recall_ids@{threshold}"])


def squares(*places: tuple[int, int]) -> np.ndarray:
    """Masks of 4 x 4 pixels in 8 x 16, by their first row and column."""
    masks = np.zeros((len(places), 8, 16), bool)
    for mask, (y, x) in zip(masks, places, strict=True):
        mask[y : y + 4, x : x + 4] = True
    return masks


def test_the_bug_counts_what_the_best_detection_found_twice():
    masks = squares((0, 0), (0, 8))
    objects = truth(tight_boxes(masks), [1, 1], masks=masks)
    found = detections(squares((0, 0), (0, 1), (0, 8), (0, 9)), [1, 1, 1, 1], [0.9, 0.8, 0.7, 0.6])
    right = match_masks(objects, found)
    np.testing.assert_array_equal(right.objects, [0, 2])
    np.testing.assert_array_equal(right.detections, [0, -1, 1, -1])
    faithful = match_masks(objects, found, faithful=True)
    np.testing.assert_array_equal(faithful.objects, [1, 2])
    np.testing.assert_array_equal(faithful.detections, [0, 0, 1, -1])  # twice, not three times
    assert average_precision(objects, found).value == pytest.approx(0.5 + 0.5 * 2 / 3)
    # recall goes beyond 1, and back at the end of the curve
    assert average_precision(objects, found, faithful=True).value == pytest.approx(1.5)
    assert average_precision_range(objects, found, iou_thresholds=(0.5,), faithful=True) == pytest.approx(1.5)


def test_the_best_of_the_free_objects_of_its_class():
    masks = squares((0, 0), (0, 2), (0, 1))
    objects = truth(tight_boxes(masks), [1, 1, 2], masks=masks)
    found = detections(squares((0, 1), (0, 1), (0, 1)), [1, 1, 2], [0.5, 0.9, 0.5])
    matches = match_masks(objects, found, iou_threshold=0.6)  # 12 / 20 exactly
    np.testing.assert_array_equal(matches.detections, [0, 1, 2])
    assert (match_masks(objects, found, iou_threshold=0.61).detections == [-1, -1, 2]).all()


def test_soft_masks_crowds_and_no_objects():
    masks = squares((0, 0), (0, 8))
    objects = truth(tight_boxes(masks), [1, 1], masks=masks, crowd=[False, True])
    soft = detections(np.where(squares((0, 0), (0, 8)), 0.51, 0.5), [1, 1], [0.9, 0.8])
    matches = match_masks(objects, soft)
    np.testing.assert_array_equal(matches.detections, [0, -1])
    np.testing.assert_array_equal(matches.overlaps, [[1.0], [0.0]])
    nothing = GroundTruth.empty(8, 16)
    assert np.isnan(average_precision(nothing, soft).value)
    assert np.isnan(box_recall(soft.boxes, nothing.boxes.astype(np.float64), iou_threshold=0.5)[0])
    assert average_precision(objects, soft.select(np.zeros(2, bool))).value == 0.0


def test_masks_are_needed_and_of_one_size():
    masks = squares((0, 0))
    objects, found = truth(tight_boxes(masks), [1], masks=masks), detections(masks, [1], [0.5])
    with pytest.raises(DataError, match="expected masks"):
        match_masks(truth(objects.boxes, [1]), found)
    with pytest.raises(DataError, match=r"one size, got \(8, 16\) and \(8, 8\)"):
        match_masks(objects, detections(masks[:, :, :8], [1], [0.5]))
