"""Geometry of boxes: area, overlap, offsets, and the conversions from other conventions.

Boxes are (x1, y1, x2, y2) in continuous pixels; pixel i covers [i, i + 1), so a box is x2 - x1 wide. Arrays in
another convention are converted where they enter, by the function of that name.
"""

from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Real

from refnet.arrays import Array, on_device_of
from refnet.autograd import Tensor, no_grad
from refnet.ops import concatenate, exp, log, maximum, minimum
from refnet.ops.matching import areas as areas
from refnet.ops.matching import pairwise_intersection as pairwise_intersection
from refnet.ops.matching import pairwise_iou as pairwise_iou

Extent: TypeAlias = Literal["continuous", "inclusive", "normalized"]
_ADDED = {"continuous": 0, "inclusive": 1, "normalized": -1}  # to the width and height of a box


def pairwise_coverage(a: Float[Array, "A 4"], crowds: Float[Array, "B 4"]) -> Float[Array, "A B"]:
    """Which part of each box of `a` each crowd covers: COCO's overlap with a crowd."""
    common = pairwise_intersection(a, crowds)
    own = areas(a)[:, None]
    ratio: Array = np.divide(common, own, out=np.zeros_like(common), where=own > 0)
    return ratio


def encode(boxes: Float[Array, "B 4"], anchors: Float[Array, "B 4"], std: tuple[float, ...]) -> Float[Array, "B 4"]:
    """The offsets that lead from `anchors` to `boxes`, in units of `std` (Girshick et al. 2014, eqs. 6-9).

    .. math::
        t_x = (x - x_a) / w_a, \\quad t_y = (y - y_a) / h_a, \\quad t_w = \\log (w / w_a), \\quad t_h = \\log (h / h_a)

    with x, y the centre, w, h the size of the box, and subscript a for the anchor.
    """
    with no_grad():
        return encode_tensor(Tensor(boxes), Tensor(anchors), std).data


def encode_tensor(
    boxes: Float[Tensor, "B 4"], anchors: Float[Tensor, "B 4"], std: tuple[float, ...]
) -> Float[Tensor, "B 4"]:
    """:func:`encode` with gradients."""
    center, size = _center_and_size(boxes)
    anchor_center, anchor_size = _center_and_size(anchors)
    deltas = concatenate([(center - anchor_center) / anchor_size, log(size / anchor_size)], axis=1)
    return deltas / np.asarray(std, deltas.dtype)


def decode(
    deltas: Float[Array, "*B 4"], anchors: Float[Array, "*B 4"], std: tuple[float, ...], clamp: float | None
) -> Float[Array, "*B 4"]:
    """The boxes at `deltas` from `anchors`: the inverse of :func:`encode`.

    With `clamp`, dw and dh are limited to it before the exponential, so that no box is infinite.
    """
    with no_grad():
        return decode_tensor(Tensor(deltas), Tensor(anchors), std, clamp).data


def decode_tensor(
    deltas: Float[Tensor, "*B 4"], anchors: Float[Tensor, "*B 4"], std: tuple[float, ...], clamp: float | None
) -> Float[Tensor, "*B 4"]:
    """:func:`decode` with gradients."""
    deltas = deltas * np.asarray(std, deltas.dtype)
    center, size = _center_and_size(anchors)
    log_size = deltas[..., 2:] if clamp is None else minimum(deltas[..., 2:], clamp)
    new_center = deltas[..., :2] * size + center
    half = 0.5 * (exp(log_size) * size)
    return concatenate([new_center - half, new_center + half], axis=-1)


def _center_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def clip(boxes: Float[Array, "*B 4"], window: Real[Array, "*#B 4"]) -> Float[Array, "*B 4"]:
    """`boxes` cut off at `window`, (x1, y1, x2, y2): one for all, or one for each."""
    with no_grad():
        return clip_tensor(Tensor(boxes), window).data


def clip_tensor(boxes: Float[Tensor, "*B 4"], window: Real[Array, "*#B 4"]) -> Float[Tensor, "*B 4"]:
    """:func:`clip` with gradients: none reaches an edge that was cut off."""
    window = window.astype(boxes.dtype)
    return minimum(maximum(boxes, window[..., [0, 1, 0, 1]]), window[..., [2, 3, 2, 3]])


def is_at_least(boxes: Float[Array, "*B 4"], size: float) -> Bool[Array, "*B"]:
    """Which boxes are at least `size` wide and high."""
    wide: Array = (boxes[..., 2:] - boxes[..., :2] >= size).all(axis=-1)
    return wide


def widen(boxes: Float[Array, "*B 4"], extent: Extent) -> Float[Array, "*B 4"]:
    """Boxes whose x2 - x1 is their width under `extent`.

    With "inclusive", x2 and y2 are the last pixels covered, so a box is x2 - x1 + 1 wide. With "normalized" it is
    x2 - x1 - 1 wide: that is what is left of it in Matterport's coordinates (:func:`to_normalized`), whose scale
    cancels in overlaps and offsets.
    """
    if extent == "continuous":
        return boxes
    added = _ADDED[extent]
    widened: Array = boxes + on_device_of(np.asarray([0, 0, added, added], boxes.dtype), boxes)
    return widened


def narrow(boxes: Float[Array, "*B 4"], extent: Extent) -> Float[Array, "*B 4"]:
    """The inverse of :func:`widen`."""
    if extent == "continuous":
        return boxes
    added = _ADDED[extent]
    narrowed: Array = boxes - on_device_of(np.asarray([0, 0, added, added], boxes.dtype), boxes)
    return narrowed


def clip_widened(boxes: Float[Array, "*B 4"], window: Float[Array, "*#B 4"], extent: Extent) -> Float[Array, "*B 4"]:
    """Boxes from :func:`widen` cut off at :func:`widened_window`."""
    return clip(boxes, widened_window(window, extent))


def widened_window(window: Float[Array, "*B 4"], extent: Extent) -> Float[Array, "*B 4"]:
    """Where boxes from :func:`widen` are cut off so that, made narrow again, they end at `window`.

    Inclusive, they end at its last pixel.
    """
    return widen(window, "normalized") if extent == "normalized" else window


def from_yxyx(boxes: Real[Array, "*B 4"]) -> Real[Array, "*B 4"]:
    """(y1, x1, y2, x2), Matterport's and ChainerCV's order, as (x1, y1, x2, y2); it is its own inverse."""
    result: Array = boxes[..., [1, 0, 3, 2]]
    return result


def from_xywh(boxes: Real[Array, "*B 4"]) -> Real[Array, "*B 4"]:
    """COCO's (x, y, width, height) as (x1, y1, x2, y2)."""
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def to_xywh(boxes: Real[Array, "*B 4"]) -> Real[Array, "*B 4"]:
    """(x1, y1, x2, y2) as COCO's (x, y, width, height)."""
    return np.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], axis=-1)


def to_normalized(boxes: Float[Array, "*B 4"], size: tuple[int, int]) -> Float[Array, "*B 4"]:
    """Pixels as Matterport's normalised coordinates, still as (x1, y1, x2, y2), for an image of `size` (H, W).

    .. math:: \\hat b = (b - [0, 0, 1, 1]) / [W - 1, H - 1, W - 1, H - 1]

    0 is then the centre of the first pixel and 1 that of the last; a box loses a pixel of its width.
    """
    height, width = size
    scale = np.asarray([width - 1, height - 1] * 2, boxes.dtype)
    result: Array = (boxes - np.asarray([0, 0, 1, 1], boxes.dtype)) / scale
    return result


def from_normalized(boxes: Float[Array, "*B 4"], size: tuple[int, int]) -> Float[Array, "*B 4"]:
    """The inverse of :func:`to_normalized`, without Matterport's rounding to whole pixels."""
    height, width = size
    scale = np.asarray([width - 1, height - 1] * 2, boxes.dtype)
    result: Array = boxes * scale + np.asarray([0, 0, 1, 1], boxes.dtype)
    return result
