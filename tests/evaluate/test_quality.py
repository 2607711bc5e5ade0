import numpy as np
import pytest

from refnet.errors import ShapeError
from refnet.evaluate import panoptic_quality
from refnet.rcnn.structures import Detections, GroundTruth

A, HALF, B = [0, 0, 8, 8], [0, 0, 8, 6], [10, 10, 14, 14]  # HALF overlaps A by 0.75


def objects(*rows, masks=True):
    """Rows (box, class, crowd)."""
    boxes = np.array([r[0] for r in rows], np.float32).reshape(-1, 4)
    return GroundTruth(
        boxes=boxes,
        classes=np.array([r[1] for r in rows], np.int64),
        masks=fill(boxes) if masks else None,
        crowd=np.array([r[2] for r in rows], bool),
    )


def found(*rows, masks=True):
    """Rows (box, class, score)."""
    boxes = np.array([r[0] for r in rows], np.float32).reshape(-1, 4)
    return Detections(
        boxes=boxes,
        classes=np.array([r[1] for r in rows], np.int64),
        scores=np.array([r[2] for r in rows], np.float32),
        masks=fill(boxes) if masks else None,
    )


def fill(boxes):
    masks = np.zeros((len(boxes), 16, 16), bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
        mask[y1:y2, x1:x2] = True
    return masks


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize(("truth", "detections", "expected"), [
    ([], [], 1.0),                                                        # nothing to find, nothing found
    ([(A, 1, False)], [], 0.0),
    ([], [(A, 1, 0.9)], 0.0),
    ([(A, 1, False)], [(A, 1, 0.9)], 1.0),
    ([(A, 1, False)], [(HALF, 1, 0.9)], 0.75),
    ([(A, 1, False)], [(A, 2, 0.9)], 0.0),                                # the wrong class: one FP, one FN
    ([(A, 1, False)], [(A, 1, 0.4)], 0.0),                                # not sure enough
    ([(A, 1, False)], [(HALF, 1, 0.9), (A, 1, 0.8)], 0.75 / 1.5),           # the better score matches, the other is FP
    ([(A, 1, False)], [(HALF, 1, 0.7), (A, 1, 0.8)], 1 / 1.5),
    ([(A, 1, False), (B, 1, False)], [(A, 1, 0.9)], 1 / 1.5),             # one FN
    ([(A, 1, True)], [([1, 1, 3, 3], 1, 0.9)], 1.0),                      # in a crowd of its class
    ([(A, 1, True)], [([1, 1, 3, 3], 2, 0.9)], 0.0),
    ([(A, 1, True)], [(B, 1, 0.9)], 0.0),
])  # fmt: skip
def test_by_hand(truth, detections, expected, masks):
    assert panoptic_quality(objects(*truth, masks=masks), found(*detections, masks=masks)) == pytest.approx(expected)


def test_overlap_must_exceed_one_half():
    assert panoptic_quality(objects((A, 1, False)), found(([0, 0, 8, 4], 1, 0.9))) == 0.0


def test_masks_decide_where_there_are_some():
    detection = found((A, 1, 0.9))
    masks = detection.masks * np.float32(0.9)
    masks[:, 6:] *= 0.5  # a quarter of the object falls below the threshold
    soft = Detections(boxes=detection.boxes, classes=detection.classes, scores=detection.scores, masks=masks)
    assert panoptic_quality(objects((A, 1, False)), soft) == pytest.approx(0.75)
    assert panoptic_quality(objects((A, 1, False), masks=False), soft) == 1.0
    with pytest.raises(ShapeError, match="one size"):
        panoptic_quality(GroundTruth.empty(3, 4), soft)
