"""One number for one image, to find the images that a detector does worst on."""

import numpy as np

from refnet.errors import ShapeError
from refnet.evaluate.coco import MASK_THRESHOLD
from refnet.rcnn.boxes import pairwise_coverage, pairwise_iou
from refnet.rcnn.masks import pairwise_overlaps
from refnet.rcnn.structures import Detections, GroundTruth


def panoptic_quality(truth: GroundTruth, detections: Detections, *, min_score: float = 0.5) -> float:
    """How well the detections of one image fit its objects, 0 to 1 (Kirillov et al. 2019, eq. 1, over all classes).

    .. math:: \\mathrm{PQ} = \\frac{\\sum_{(d, g) \\in TP} \\mathrm{IoU}(d, g)}{|TP| + |FP| / 2 + |FN| / 2}

    Detections that score at least `min_score` are matched, best first, each to the object of its class that it
    overlaps most of those left, and by more than 0.5: the pairs TP. FP are the detections left, FN the objects left.
    IoU is that of the masks if both sides have masks, else of the boxes. An image with nothing to find and nothing
    found scores 1. Crowds are no objects, and a detection that matches none but lies in a crowd of its class by more
    than half isn't counted.

    Raises:
        ShapeError: masks of the two have different sizes.
    """
    chosen = np.flatnonzero(detections.scores >= min_score)
    chosen = chosen[np.argsort(-detections.scores[chosen], kind="stable")]
    objects, crowds = truth.select(~truth.crowd), truth.select(truth.crowd)
    boxes, classes = detections.boxes[chosen].astype(np.float64), detections.classes[chosen]
    if truth.masks is None or detections.masks is None:
        iou = pairwise_iou(boxes, objects.boxes.astype(np.float64))
        in_crowd = pairwise_coverage(boxes, crowds.boxes.astype(np.float64))
    else:
        assert objects.masks is not None
        assert crowds.masks is not None
        masks = detections.masks[chosen] >= MASK_THRESHOLD
        if masks.shape[1:] != truth.masks.shape[1:]:
            raise ShapeError(
                f"panoptic_quality: masks must have one size, got {truth.masks.shape[1:]} and {masks.shape[1:]}"
            )
        iou, _ = pairwise_overlaps(masks, objects.masks)
        _, in_crowd = pairwise_overlaps(masks, crowds.masks)

    iou = np.where(classes[:, None] == objects.classes, iou, 0.0)
    in_crowd = np.where(classes[:, None] == crowds.classes, in_crowd, 0.0)
    matched, total, wrong = np.zeros(len(objects), bool), 0.0, 0
    for row, crowd_row in zip(iou, in_crowd, strict=True):
        left = np.where(matched, 0.0, row)
        if left.max(initial=0.0) > 0.5:
            matched[left.argmax()] = True
            total += float(left.max())
        elif not crowd_row.max(initial=0.0) > 0.5:
            wrong += 1
    found = int(matched.sum())
    counted = found + wrong / 2 + (len(objects) - found) / 2
    return total / counted if counted else 1.0
