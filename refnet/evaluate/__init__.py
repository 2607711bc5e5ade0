"""How good are the detections? COCO's figures for a dataset, Matterport's and one number for an image.

coco.py        average precision and recall of boxes, masks and keypoints, curves, COCO's results format
matterport.py  average precision of one image as Matterport computes it
quality.py     panoptic quality of one image
"""

from refnet.evaluate.coco import (
    ClassMetrics,
    CocoEvaluator,
    Evaluation,
    KeypointMetrics,
    Metrics,
    coco_results,
    evaluate,
    image_results,
)
from refnet.evaluate.matterport import average_precision, average_precision_range, box_recall, match_masks
from refnet.evaluate.quality import panoptic_quality

__all__ = [
    "ClassMetrics",
    "CocoEvaluator",
    "Evaluation",
    "KeypointMetrics",
    "Metrics",
    "average_precision",
    "average_precision_range",
    "box_recall",
    "coco_results",
    "evaluate",
    "image_results",
    "match_masks",
    "panoptic_quality",
]
