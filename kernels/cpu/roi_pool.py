"""ROI pooling by the maximum of whole numbers that hold a value and where it lies.

Of float32 features, a key in 64 bits is made of each: above, the value's bits in an order that integers share, below,
how many pixels come after it. The greatest key of a bin so is its maximum, of equal ones the first, and its position
comes along. Maxima of maxima are maxima: columns come first, then rows of what is left.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from refnet import ops
from refnet.arrays import Array
from refnet.kernels.cpu.best_first import LOW, in_order
from refnet.kernels.cpu.scratch import scratch
from refnet.kernels.cpu.threads import split, spread
from refnet.ops.conv2d import Pair
from refnet.ops.roi_pool import NOWHERE, bin_ends
from refnet.ops.sampling import Shape4

LEAST = np.iinfo(np.int64).min  # below all keys


def roi_pool_forward(
    features: Float[Array, "N H W C"],
    boxes: Float[Array, "R 4"],
    image_index: Int[Array, " R"],
    *,
    size: Pair,
    spatial_scale: float,
) -> tuple[Float[Array, "R P Q C"], Int[Array, "R P Q C"]]:
    """See :func:`refnet.ops.roi_pool_forward`, which takes features of float64: their keys would be too long."""
    if features.dtype != np.float32:
        return ops.roi_pool_forward.specification(features, boxes, image_index, size=size, spatial_scale=spatial_scale)
    _, h, w, c = features.shape
    x1, y1, x2, y2 = boxes.T
    tops, bottoms = bin_ends(y1, y2, h, size[0], spatial_scale)
    lefts, rights = bin_ends(x1, x2, w, size[1], spatial_scale)
    rows, columns = _ranges(tops, bottoms), _ranges(lefts, rights)
    found = np.empty((len(boxes), *size, c), np.int64)

    for image in np.unique(image_index).tolist():
        keys = _keys(features[image])

        def work(regions: Sequence[int], keys: Int[Array, "H W C"] = keys) -> None:
            narrowed = scratch("narrowed", (h, size[1], c), np.int64)
            for r in regions:
                first, behind = rows[r][0][0], rows[r][-1][1]
                for q, (left, right) in enumerate(columns[r]):
                    _maximum(keys[first:behind, left:right], 1, narrowed[first:behind, q])
                for p, (top, bottom) in enumerate(rows[r]):
                    _maximum(narrowed[top:bottom], 0, found[r, p])

        spread(work, split(np.flatnonzero(image_index == image).tolist()))
    output = _values(found)
    source = LOW - (found & LOW)
    empty = (tops >= bottoms)[:, :, None] | (lefts >= rights)[:, None, :]  # R P Q
    output[empty], source[empty] = 0, NOWHERE
    return output, source


def _ranges(first: Int[Array, "R P"], behind: Int[Array, "R P"]) -> list[list[tuple[int, int]]]:
    """The pixels of every bin of every region."""
    return [list(zip(a, b, strict=True)) for a, b in zip(first.tolist(), behind.tolist(), strict=True)]


def _maximum(keys: Int[Array, "*K"], axis: int, out: Int[Array, "*L"]) -> None:
    np.maximum.reduce(keys, axis=axis, out=out, initial=LEAST)


def _keys(features: Float[Array, "H W C"]) -> Int[Array, "H W C"]:
    """The keys of an image. All NaN are one, above all numbers, and -0 is 0."""
    h, w, _ = features.shape
    values = np.where(np.isnan(features), np.float32(np.nan), features + np.float32(0))
    bits = in_order(np.ascontiguousarray(values).view(np.int32))
    later = LOW - np.arange(h * w).reshape(h, w, 1)
    keys: Array = (bits.astype(np.int64) << 32) | later
    return keys


def _values(keys: Int[Array, "*K"]) -> Float[Array, "*K"]:
    values: Array = in_order((keys >> 32).astype(np.int32)).view(np.float32)
    return values


def roi_pool_grad(
    grad_output: Float[Array, "R P Q C"],
    source: Int[Array, "R P Q C"],
    image_index: Int[Array, " R"],
    *,
    input_shape: Shape4,
) -> Float[Array, "N H W C"]:
    """See :func:`refnet.ops.roi_pool_grad`. What comes from nowhere, -1, goes to a row before the image's first."""
    n, h, w, c = input_shape
    grad = np.zeros((n, (h * w + 1) * c), grad_output.dtype)
    first = np.arange(c) + c
    for image, places, values in zip(image_index.tolist(), source, grad_output, strict=True):
        np.add.at(grad[image], (places * c + first).ravel(), values.ravel())
    return grad[:, c:].reshape(input_shape)
