"""Matterport's figures for one image: average precision of masks at an IoU, its mean over ten, and the recall of boxes.

They go by one image and mix its classes, so they aren't COCO's (:mod:`refnet.evaluate.coco`); Matterport's notebooks
and many reports that follow them average them over images.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from refnet.arrays import Array
from refnet.errors import DataError
from refnet.rcnn.boxes import pairwise_iou
from refnet.rcnn.masks import pairwise_overlaps
from refnet.rcnn.structures import Detections, GroundTruth

IOU_RANGE = tuple(float(v) for v in np.arange(0.5, 1.0, 0.05))  # 0.5, 0.55 to 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """Which detections found which objects; the detections best first, the objects without the crowds.

    Attributes:
        objects: (G,), the detection that found each object, -1 for none.
        detections: (D,), the object that each detection found, -1 for none.
        overlaps: (D, G), IoU of their masks.
    """

    objects: Int[Array, " G"]
    detections: Int[Array, " D"]
    overlaps: Float[Array, "D G"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragePrecision:
    """The area under the curve of precision over recall, and the curve.

    Attributes:
        value: from 0 to 1; NaN for an image without objects.
        precisions: (D + 2,), the best precision from each recall on, between 0 and 0 at the ends.
        recalls: (D + 2,), after each detection, between 0 and 1 at the ends.
    """

    value: float
    precisions: Float[Array, " _"]
    recalls: Float[Array, " _"]


def match_masks(
    truth: GroundTruth, found: Detections, *, iou_threshold: float = 0.5, faithful: bool = False
) -> Matches:
    """Give every detection, best first, the object of its class that its mask overlaps most of those still free.

    Objects that overlap by less than `iou_threshold` are out of reach, and crowds are no objects. A soft mask covers
    the pixels above 0.5; detections of equal score keep their order.

    Choice: each object is found once. With `faithful`, an object that the best detection found stays free for one
    more, as in Matterport's releases, which took number 0 for nobody; its later text doesn't. (What it calls
    score_threshold is compared with overlaps, and so is another `iou_threshold`, of which the greater counts.)

    Raises:
        DataError: masks are missing, or those of the two have different sizes.
    """
    objects = truth.select(~truth.crowd)
    if objects.masks is None or found.masks is None:
        raise DataError("match_masks: expected masks of objects and detections, got none")
    if objects.masks.shape[1:] != found.masks.shape[1:]:
        raise DataError(
            f"match_masks: masks must have one size, got {objects.masks.shape[1:]} and {found.masks.shape[1:]}"
        )
    found = found.select(np.argsort(-found.scores, kind="stable"))
    assert found.masks is not None
    overlaps, _ = pairwise_overlaps(found.masks > 0.5, objects.masks)
    owner, object_of = np.full(len(objects), -1), np.full(len(found), -1)
    for number, row in enumerate(overlaps):
        free = owner <= 0 if faithful else owner < 0
        open_to_it = free & (row >= iou_threshold) & (objects.classes == found.classes[number])
        if open_to_it.any():
            best = int(np.where(open_to_it, row, -1.0).argmax())
            owner[best], object_of[number] = number, best
    return Matches(objects=owner, detections=object_of, overlaps=overlaps)


def average_precision(
    truth: GroundTruth, found: Detections, *, iou_threshold: float = 0.5, faithful: bool = False
) -> AveragePrecision:
    """Average precision of the masks found in one image, all classes together.

    .. math:: \\mathrm{AP} = \\sum_k (r_k - r_{k-1}) \\max_{j \\ge k} p_j

    with precision p and recall r after each detection, best first. Matterport's compute_ap; the arguments are those of
    :func:`match_masks`.
    """
    matches = match_masks(truth, found, iou_threshold=iou_threshold, faithful=faithful)
    hits = np.cumsum(matches.detections >= 0)
    precisions = np.concatenate([[0.0], hits / np.arange(1, len(hits) + 1), [0.0]])
    precisions = np.maximum.accumulate(precisions[::-1])[::-1]
    count = len(matches.objects)
    if not count:
        return AveragePrecision(value=float("nan"), precisions=precisions, recalls=np.full(len(hits) + 2, np.nan))
    recalls = np.concatenate([[0.0], hits / count, [1.0]])
    return AveragePrecision(
        value=float((np.diff(recalls) * precisions[1:]).sum()), precisions=precisions, recalls=recalls
    )


def average_precision_range(
    truth: GroundTruth,
    found: Detections,
    *,
    iou_thresholds: tuple[float, ...] = IOU_RANGE,
    faithful: bool = False,
) -> float:
    """The mean of :func:`average_precision` over several IoU thresholds, by default 0.5 to 0.95 in steps of 0.05."""
    values = [
        average_precision(truth, found, iou_threshold=threshold, faithful=faithful).value
        for threshold in iou_thresholds
    ]
    return float(np.mean(values))


def box_recall(
    boxes: Float[Array, "D 4"], objects: Float[Array, "G 4"], *, iou_threshold: float
) -> tuple[float, Int[Array, " _"]]:
    """Which part of the objects is the best match of some box by `iou_threshold` at least, and which boxes match so.

    Of all objects a box stands for the one that it overlaps most only. NaN without objects.
    """
    if not len(objects):
        return float("nan"), np.zeros(0, np.int64)
    iou = pairwise_iou(boxes, objects)
    positive = np.flatnonzero(iou.max(axis=1) >= iou_threshold)
    return len(np.unique(iou.argmax(axis=1)[positive])) / len(objects), positive
