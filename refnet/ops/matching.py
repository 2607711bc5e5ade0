"""Matching boxes with objects: which object each box overlaps most, and which box each object overlaps most.

Overlap is intersection over union (IoU). Its order of operations is part of the specification, in the floating-point
type of the boxes, so that kernels can be equal bit for bit; boxes are (x1, y1, x2, y2).
"""

import numpy as np
from jaxtyping import Float, Int

from refnet.arrays import Array
from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.kernel_op import kernel_op

LONGEST = 2**31 - 1  # boxes or objects of an image: results are int32


def areas(boxes: Float[Array, "*B 4"]) -> Float[Array, "*B"]:
    """Width times height."""
    result: Array = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return result


def pairwise_intersection(a: Float[Array, "A 4"], b: Float[Array, "B 4"]) -> Float[Array, "A B"]:
    """The common area of each box of `a` with each of `b`."""
    width = np.minimum(a[:, None, 2], b[:, 2]) - np.maximum(a[:, None, 0], b[:, 0])
    height = np.minimum(a[:, None, 3], b[:, 3]) - np.maximum(a[:, None, 1], b[:, 1])
    common: Array = np.maximum(width, 0) * np.maximum(height, 0)
    return common


def pairwise_iou(a: Float[Array, "A 4"], b: Float[Array, "B 4"]) -> Float[Array, "A B"]:
    """Intersection over union of each box of `a` with each of `b`; 0 where both are empty.

    .. math:: \\mathrm{IoU}(a, b) = \\frac{|a \\cap b|}{(|a| + |b|) - |a \\cap b|}

    A box with a coordinate that isn't a number overlaps nothing: its IoU is 0.
    """
    common = pairwise_intersection(a, b)
    union = areas(a)[:, None] + areas(b) - common
    ratio: Array = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return ratio


@kernel_op
def match_boxes(
    boxes: Array, objects: Array, *, force: str = "none"
) -> tuple[Float[Array, "N B"], Int[Array, "N B"], Int[Array, "N B"]]:
    """The object of its image that each box overlaps most, and the object whose best box it is.

    Args:
        boxes: (N, B, 4), or (1, B, 4) where all images have the same.
        objects: (N, G, 4). Boxes of zeros, or of NaN, overlap nothing, so they may fill up images with fewer objects.
        force: which boxes are the best of an object: "ties", all that no other betters; "first", the first of these;
            "none", nobody asks. A box that doesn't overlap the object is never its best.

    Returns:
        The largest IoU of each box (N, B), 0 without objects; the first object with which it has that (N, B), 0 where
        the IoU is 0; the last object whose best box it is (N, B), -1 if there is none. Objects are int32.

    Raises:
        ShapeError: boxes or objects have another shape, or more than 2^31 - 1 rows.
        DTypeError: they aren't of one floating-point type.
        ArgumentError: `force` is something else.
    """
    check_match(boxes, objects, force)
    images, rows = objects.shape[0], boxes.shape[1]
    iou = np.zeros((images, rows), boxes.dtype)
    matched, forcing = np.zeros((images, rows), np.int32), np.full((images, rows), -1, np.int32)
    if objects.shape[1] == 0 or rows == 0:
        return iou, matched, forcing
    for n, own in enumerate(np.broadcast_to(boxes, (images, rows, 4))):
        overlaps = pairwise_iou(objects[n], own)  # G B
        iou[n], matched[n] = overlaps.max(axis=0), overlaps.argmax(axis=0)
        for g, overlap in enumerate(overlaps):
            best = np.flatnonzero((overlap == overlap.max()) & (overlap > 0))
            if force != "none":
                forcing[n, best if force == "ties" else best[:1]] = g
    return iou, matched, forcing


def check_match(boxes: Array, objects: Array, force: str) -> None:
    """Check the arguments of :func:`match_boxes`, for the specification and for kernels.

    Raises:
        ShapeError, DTypeError, ArgumentError: see there.
    """
    if objects.ndim != 3 or objects.shape[2] != 4:
        raise ShapeError(f"match_boxes: objects must have shape (N, G, 4), got {objects.shape}")
    if boxes.ndim != 3 or boxes.shape[2] != 4 or boxes.shape[0] not in (1, len(objects)):
        raise ShapeError(f"match_boxes: boxes must have shape ({len(objects)}, B, 4) or (1, B, 4), got {boxes.shape}")
    if max(boxes.shape[1], objects.shape[1]) > LONGEST:
        raise ShapeError(f"match_boxes: expected at most {LONGEST} rows, got {boxes.shape} and {objects.shape}")
    if boxes.dtype.kind != "f" or objects.dtype != boxes.dtype:
        raise DTypeError(
            f"match_boxes: expected boxes and objects of one floating-point type, got {boxes.dtype} and {objects.dtype}"
        )
    if force not in ("none", "first", "ties"):
        raise ArgumentError(f'match_boxes: force must be "none", "first" or "ties", got {force!r}')
