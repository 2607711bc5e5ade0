"""Geometry of masks: their boxes, Matterport's ways of resampling, and its mini-masks.

A mask is (H, W), a set of them (G, H, W). torchvision resamples masks and images by the operations of
:mod:`refnet.ops`; here is what Matterport takes from scikit-image and SciPy instead.
"""

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from refnet.arrays import Array
from refnet.errors import DataError

Size = tuple[int, int]


def tight_box(mask: Shaped[Array, "H W"]) -> tuple[int, int, int, int]:
    """The smallest (x1, y1, x2, y2) around the set pixels of a mask; all 0 if none is set.

    Pixel i covers [i, i + 1), so x2 is the last column plus 1.
    """
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def tight_boxes(masks: Bool[Array, "G H W"]) -> Float[Array, "G 4"]:
    """The :func:`tight_box` of each mask (Matterport's extract_bboxes)."""
    return np.array([tight_box(mask) for mask in masks], np.float64).reshape(-1, 4)


def pairwise_overlaps(
    a: Bool[Array, "A H W"], b: Bool[Array, "B H W"]
) -> tuple[Float[Array, "A B"], Float[Array, "A B"]]:
    """Each mask of `a` with each of `b`: intersection over union, and intersection over the area of `a`."""
    if not len(a) or not len(b):
        return np.zeros((len(a), len(b))), np.zeros((len(a), len(b)))
    rows, columns = a.reshape(len(a), -1), b.reshape(len(b), -1)
    common = (rows.astype(np.float32) @ columns.T.astype(np.float32)).astype(np.float64)  # exact up to 2**24 pixels
    own, other = rows.sum(axis=1)[:, None], columns.sum(axis=1)
    union = own + other - common
    iou: Array = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    coverage: Array = np.divide(common, own, out=np.zeros_like(common), where=own > 0)
    return iou, coverage


def resize_bounded(image: Shaped[Array, "H W *C"], size: Size) -> Float[Array, "h w *C"]:
    """Resize an image or a mask to `size` (rows, columns) as Matterport does, through scikit-image.

    .. math:: y_{ij} = \\sum_{h,w} k(s_i - h)\\, k(t_j - w)\\, x_{hw}, \\quad
        s_i = (i + \\tfrac12) \\frac{H}{h} - \\tfrac12, \\quad k(d) = \\max(0, 1 - |d|)

    Choice: samples lie as in :func:`~refnet.ops.resize_bilinear`, but everything outside counts as 0, so the
    outermost pixels of what is enlarged darken: a 1 becomes 0.75 at twice the size. No value then leaves the range of
    the image's own, so an image that is 1 throughout stays so up to its edge. Nothing is averaged when it shrinks.

    Floating-point images keep their type, others become float64. Each sample is the sum of four products in one
    order, in float64, because whoever cuts off fractions sees the last bit.
    """
    rows, row_weights = _taps(image.shape[0], size[0])
    columns, column_weights = _taps(image.shape[1], size[1])
    trailing = (1,) * (image.ndim - 2)
    ringed = np.pad(image.astype(np.float64), ((1, 1), (1, 1), *((0, 0),) * len(trailing)))
    resized = np.zeros((*size, *image.shape[2:]))
    for a in (0, 1):
        lines = ringed[rows + a] * row_weights[a].reshape(-1, 1, *trailing)  # h W+2 *C
        for b in (0, 1):
            resized += lines.take(columns + b, axis=1) * column_weights[b].reshape(-1, *trailing)
    bounded: Array = resized.clip(image.min(), image.max())
    return bounded.astype(image.dtype) if image.dtype.kind == "f" else bounded


def _taps(source: int, size: int) -> tuple[Int[Array, " P"], tuple[Float[Array, " P"], Float[Array, " P"]]]:
    """The first of the two pixels that each sample lies between, counted from the ring outside, and both weights."""
    at = (np.arange(size) + 0.5) * (source / size) - 0.5
    first = np.floor(at)
    weight = 1 - (at - first)
    return first.astype(np.int64) + 1, (weight, 1 - weight)


def resize_corner_aligned(masks: Bool[Array, "G H W"], size: Size) -> Bool[Array, "G h w"]:
    """Resize masks to `size` by the nearest pixel, centres of the corners on centres of the corners.

    Row i copies row floor(i (H - 1) / (h - 1) + 1/2).

    Choice: this is SciPy's ``zoom`` of order 0, Matterport's way, bit for bit: where i (H - 1) / (h - 1) comes out
    above H - 1 by a rounding, the last row counts as outside, and is empty.
    """
    rows, within_rows = _corner_aligned(masks.shape[1], size[0])
    columns, within_columns = _corner_aligned(masks.shape[2], size[1])
    resized: Array = masks[:, rows[:, None], columns] & within_rows[:, None] & within_columns
    return resized


def _corner_aligned(source: int, size: int) -> tuple[Int[Array, " P"], Bool[Array, " P"]]:
    """Which pixel each sample copies, and whether it lies inside."""
    at = np.arange(size) * ((source - 1) / (size - 1) if size > 1 else 1.0)
    nearest = np.floor(at + 0.5).astype(np.int64)
    return nearest.clip(0, source - 1), at <= source - 1


def minimize_masks(masks: Bool[Array, "G H W"], boxes: Float[Array, "G 4"], size: Size) -> Bool[Array, "G h w"]:
    """Matterport's mini-masks: the part of each mask inside its box, resized to `size` (rows, columns).

    Choice: boxes are rounded to whole pixels, half to even, and cut off at the image; a resized value of 0.5 is
    rounded to 0.

    Raises:
        DataError: nothing is left of a box.
    """
    small = np.zeros((len(masks), *size), bool)
    for index, mask in enumerate(masks):
        left, top, right, bottom = _whole_box(boxes, index, mask.shape)
        small[index] = resize_bounded(mask[top:bottom, left:right], size) > 0.5
    return small


def expand_masks(minimized: Bool[Array, "G h w"], boxes: Float[Array, "G 4"], size: Size) -> Bool[Array, "G H W"]:
    """The masks of images of `size` (H, W) from mini-masks: :func:`minimize_masks` backwards, but for what it lost.

    Raises:
        DataError: nothing is left of a box.
    """
    masks = np.zeros((len(minimized), *size), bool)
    for index, small in enumerate(minimized):
        left, top, right, bottom = _whole_box(boxes, index, size)
        masks[index, top:bottom, left:right] = resize_bounded(small, (bottom - top, right - left)) > 0.5
    return masks


def _whole_box(boxes: Array, index: int, size: Size) -> tuple[int, int, int, int]:
    height, width = size
    corners = np.round(boxes[index]).clip(0, [width, height, width, height])
    left, top, right, bottom = (int(v) for v in corners)
    if right <= left or bottom <= top:
        raise DataError(
            f"mini-masks: box {index} must cover a pixel of the image of {height} x {width}, "
            f"got {boxes[index].tolist()}"
        )
    return left, top, right, bottom
