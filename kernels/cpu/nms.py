"""Non-maximum suppression in blocks: a few large comparisons in the place of one small one a box.

Boxes are sorted once. A block of the best is resolved within itself, then its survivors remove what they overlap
from the rest. Arithmetic is that of the specification, operation by operation, so results are equal bit for bit.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from refnet.arrays import Array
from refnet.ops.nms import by_score, check_nms

BLOCK = 128  # boxes that are resolved together
CHUNK = 32  # survivors compared with the rest at once: few enough for the cache, and the rest shrinks in between


def nms(boxes: Array, scores: Array, *, iou_threshold: float, limit: int | None = None) -> Int[Array, " K"]:
    """See :func:`refnet.ops.nms`."""
    check_nms("nms", boxes, scores, iou_threshold=iou_threshold, limit=limit)
    order = by_score(scores)
    kept: Array = order[_survivors(_corners(boxes, order), boxes.dtype.type(iou_threshold), limit)]
    return kept


def batched_nms(
    boxes: Array, scores: Array, groups: Array, *, iou_threshold: float, limit: int | None = None
) -> Int[Array, " K"]:
    """See :func:`refnet.ops.batched_nms`: every group by itself, survivors merged by rank."""
    check_nms("batched_nms", boxes, scores, groups, iou_threshold=iou_threshold, limit=limit)
    order = by_score(scores)
    corners, threshold = _corners(boxes, order), boxes.dtype.type(iou_threshold)
    by_group = np.argsort(groups[order], kind="stable")  # ranks, group by group, best first within each
    ends = np.flatnonzero(np.diff(groups[order][by_group])) + 1
    ranks = [own[_survivors(corners[:, own], threshold, limit)] for own in np.split(by_group, ends)]
    kept: Array = order[np.sort(np.concatenate(ranks))[:limit]]
    return kept


def _corners(boxes: Float[Array, "B 4"], order: Int[Array, " B"]) -> Float[Array, "5 B"]:
    """x1, y1, x2, y2 and the area of each box, best first."""
    x1, y1, x2, y2 = boxes[order].T
    return np.stack([x1, y1, x2, y2, (x2 - x1) * (y2 - y1)])


def _survivors(corners: Float[Array, "5 B"], threshold: np.floating, limit: int | None) -> Int[Array, " K"]:
    """The positions of the boxes that are kept among boxes sorted best first."""
    remaining = np.arange(corners.shape[1])
    wanted = len(remaining) if limit is None else limit
    kept: list[Array] = [remaining[:0]]
    while remaining.size and wanted > 0:
        block, remaining = remaining[:BLOCK], remaining[BLOCK:]
        survivors = block[_resolve(_overlaps(corners[:, block], corners[:, block], threshold))][:wanted]
        kept.append(survivors)
        wanted -= len(survivors)
        for start in range(0, len(survivors), CHUNK):
            if not remaining.size or wanted <= 0:
                break
            chunk = survivors[start : start + CHUNK]
            remaining = remaining[~_overlaps(corners[:, chunk], corners[:, remaining], threshold).any(axis=0)]
    return np.concatenate(kept)


def _resolve(overlaps: Bool[Array, "B B"]) -> Bool[Array, " B"]:
    """Which boxes of a block are kept: those that overlap none before them that is kept.

    Whether box j is kept depends on boxes before it only, so the equation has one solution; repeated insertion gets
    the first k boxes right after k rounds at the latest, in practice all of them after a few.
    """
    before = np.triu(overlaps, 1)
    kept: Array = np.ones(len(before), dtype=bool)
    while True:
        again: Array = ~before[kept].any(axis=0)
        if (again == kept).all():
            return kept
        kept = again


def _overlaps(a: Float[Array, "5 A"], b: Float[Array, "5 B"], threshold: np.floating) -> Bool[Array, "A B"]:
    """Whether the IoU of each pair exceeds the threshold."""
    x1, y1, x2, y2, area = a[:, :, None]
    width = np.minimum(x2, b[2])
    width -= np.maximum(x1, b[0])
    np.maximum(width, 0, out=width)
    height = np.minimum(y2, b[3])
    height -= np.maximum(y1, b[1])
    np.maximum(height, 0, out=height)
    intersection = np.multiply(width, height, out=width)
    union = area + b[4]
    union -= intersection
    with np.errstate(invalid="ignore"):  # 0 / 0 of boxes without area is no overlap
        intersection /= union
    overlaps: Array = intersection > threshold
    return overlaps
