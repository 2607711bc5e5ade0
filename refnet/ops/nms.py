"""Non-maximum suppression: keep the best box, drop all that overlap it too much, and repeat with the rest.

Overlap is intersection over union (IoU). Its order of operations is part of the specification, in the floating-point
type of the boxes, so that kernels can be equal bit for bit:

.. math::
    |a| = (x_2 - x_1)(y_2 - y_1), \\quad
    |a \\cap b| = \\max(0, x_2^{\\min} - x_1^{\\max}) \\max(0, y_2^{\\min} - y_1^{\\max}), \\quad
    \\mathrm{IoU} = \\frac{|a \\cap b|}{(|a| + |b|) - |a \\cap b|}

A box is suppressed if IoU > threshold, the threshold rounded to the type of the boxes. 0 / 0, of two boxes without
area, is no suppression. Boxes of equal score go by their index, the lower first.
"""

import numpy as np
from jaxtyping import Float, Int

from refnet.arrays import Array, namespace
from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.kernel_op import kernel_op


@kernel_op
def nms(boxes: Array, scores: Array, *, iou_threshold: float, limit: int | None = None) -> Int[Array, " K"]:
    """The indices of the boxes that are kept, best first.

    Args:
        boxes: (B, 4), (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2.
        scores: (B,).
        iou_threshold: from 0 to 1; a box goes if its IoU with a better one that is kept is larger.
        limit: stop when so many are kept; None keeps all.

    Choice: a box whose IoU equals the threshold stays, as everywhere; of equal scores the lower index wins, as in
    TensorFlow, where others leave it to the sort. The threshold has the precision of the boxes, as in TensorFlow:
    torchvision compares float32 with float64 on the CPU, so that there 0.3 of float32 exceeds a threshold of 0.3.

    Raises:
        ShapeError: boxes aren't (B, 4), or scores aren't (B,).
        DTypeError: boxes or scores aren't floating point.
        ArgumentError: a score isn't a number, the threshold isn't within [0, 1], or the limit is negative.
    """
    check_nms("nms", boxes, scores, iou_threshold=iou_threshold, limit=limit)
    threshold = boxes.dtype.type(iou_threshold)
    remaining = by_score(scores)
    kept: list[int] = []
    while remaining.size and (limit is None or len(kept) < limit):
        best, remaining = remaining[0], remaining[1:]
        kept.append(int(best))
        remaining = remaining[~(iou(boxes[best], boxes[remaining]) > threshold)]
    return np.array(kept, dtype=np.int64)


@kernel_op
def batched_nms(
    boxes: Array, scores: Array, groups: Array, *, iou_threshold: float, limit: int | None = None
) -> Int[Array, " K"]:
    """:func:`nms` in which only boxes of one group (a class, a level) suppress each other.

    Args:
        boxes: (B, 4), (x1, y1, x2, y2).
        scores: (B,).
        groups: (B,), any integers.
        iou_threshold: as for nms.
        limit: stop when so many are kept over all groups; None keeps all.

    Returns:
        The indices over all groups, best first; of equal scores the lower index comes first.

    Choice: every box is compared as it is. Shifting each group by an offset, so that groups can't touch, and running
    nms once rounds the coordinates, and with them decisions near the threshold.

    Raises:
        ShapeError, DTypeError, ArgumentError: as for nms; groups must be (B,), of integers.
    """
    check_nms("batched_nms", boxes, scores, groups, iou_threshold=iou_threshold, limit=limit)
    threshold = boxes.dtype.type(iou_threshold)
    remaining = by_score(scores)
    kept: list[int] = []
    while remaining.size and (limit is None or len(kept) < limit):
        best, remaining = remaining[0], remaining[1:]
        kept.append(int(best))
        overlaps = iou(boxes[best], boxes[remaining]) > threshold
        remaining = remaining[~(overlaps & (groups[remaining] == groups[best]))]
    return np.array(kept, dtype=np.int64)


@kernel_op
def batched_nms_padded(
    boxes: Array,
    scores: Array,
    groups: Array,
    valid: Array,
    *,
    iou_threshold: float,
    limit: int,
) -> tuple[Int[Array, "*N K"], Int[Array, "*N"]]:
    """:func:`batched_nms` among the valid rows of each image, in arrays whose shapes don't depend on the values.

    A device so needn't tell the host how many boxes are kept, or have it wait.

    Args:
        boxes: (*N, B, 4), (x1, y1, x2, y2): of one image, or of images that are padded to one size.
        scores: (*N, B); those of rows that aren't valid may be anything.
        groups: (*N, B), any integers.
        valid: (*N, B), which rows there are.
        iou_threshold: as for nms.
        limit: K, stop when so many are kept.

    Returns:
        The rows that are kept, (*N, K), best first and -1 behind them, and how many there are, (*N,): int64.

    Raises:
        ShapeError, DTypeError, ArgumentError: as for batched_nms; valid must be (*N, B), of booleans. A kernel that
            doesn't wait for the device leaves a valid row whose score is NaN out, in the place of an error.
    """
    check_nms_arrays("batched_nms_padded", boxes, scores, groups, valid, iou_threshold=iou_threshold, limit=limit)
    images = boxes.shape[:-2]
    kept = np.full((*images, limit), -1, dtype=np.int64)
    count = np.zeros(images, dtype=np.int64)
    for n in np.ndindex(*images):
        rows = np.flatnonzero(valid[n])
        best = batched_nms(boxes[n][rows], scores[n][rows], groups[n][rows], iou_threshold=iou_threshold, limit=limit)
        kept[n][: len(best)] = rows[best]
        count[n] = len(best)
    return kept, count


def by_score(scores: Float[Array, " B"]) -> Int[Array, " B"]:
    """The indices of `scores`, highest first; of equal ones the lower index first."""
    return np.argsort(-scores, kind="stable")


def iou(box: Float[Array, "4"], boxes: Float[Array, "B 4"]) -> Float[Array, " B"]:
    """Intersection over union of `box` with each of `boxes`; not a number where neither has an area."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])  # B 2
    width, height = np.maximum(high - low, 0).T
    intersection = width * height
    union = (area(box[None]) + area(boxes)) - intersection
    with np.errstate(invalid="ignore"):
        ratio: Array = intersection / union
    return ratio


def area(boxes: Float[Array, "B 4"]) -> Float[Array, " B"]:
    """(x2 - x1)(y2 - y1)."""
    x1, y1, x2, y2 = boxes.T
    product: Array = (x2 - x1) * (y2 - y1)
    return product


def check_nms(
    what: str, boxes: Array, scores: Array, groups: Array | None = None, *, iou_threshold: float, limit: int | None
) -> None:
    """Check the arguments of nms and batched_nms, for the specification and for kernels; `what` names the operation.

    Raises:
        ShapeError, DTypeError, ArgumentError: see :func:`nms` and :func:`batched_nms`.
    """
    if boxes.ndim != 2:
        raise ShapeError(f"{what}: boxes must have shape (B, 4), got {boxes.shape}")
    check_nms_arrays(what, boxes, scores, groups, iou_threshold=iou_threshold, limit=limit)
    check_scores(what, scores)


def check_nms_arrays(
    what: str,
    boxes: Array,
    scores: Array,
    groups: Array | None = None,
    valid: Array | None = None,
    *,
    iou_threshold: float,
    limit: int | None,
) -> None:
    """Check all of the arguments but the values in the arrays, which a device would have to send.

    Raises:
        ShapeError, DTypeError, ArgumentError: see :func:`batched_nms_padded`.
    """
    if boxes.ndim < 2 or boxes.shape[-1] != 4:
        raise ShapeError(f"{what}: boxes must have shape (B, 4), got {boxes.shape}")
    expected = boxes.shape[:-1]
    for name, values in (("scores", scores), ("groups", groups), ("valid", valid)):
        if values is not None and values.shape != expected:
            raise ShapeError(f"{what}: {name} must have one entry per box, expected {expected}, got {values.shape}")
    if boxes.dtype.kind != "f" or scores.dtype.kind != "f":
        raise DTypeError(f"{what}: boxes and scores must be floating point, got {boxes.dtype} and {scores.dtype}")
    if groups is not None and groups.dtype.kind not in "iu":
        raise DTypeError(f"{what}: groups must hold integers, got {groups.dtype}")
    if valid is not None and valid.dtype != bool:
        raise DTypeError(f"{what}: valid must hold booleans, got {valid.dtype}")
    if not 0 <= iou_threshold <= 1:
        raise ArgumentError(f"{what}: iou_threshold must be within [0, 1], got {iou_threshold}")
    if limit is not None and limit < 0:
        raise ArgumentError(f"{what}: limit must not be negative, got {limit}")


def check_scores(what: str, scores: Array) -> None:
    """Check that all scores are numbers; a device waits here for its result.

    Raises:
        ArgumentError: one isn't.
    """
    missing = namespace(scores).isnan(scores)
    if bool(missing.any()):
        raise ArgumentError(f"{what}: scores must be numbers, got NaN for box {int(missing.argmax())}")
