"""ROI pooling: the maximum of every bin of a region (Girshick 2015, Fast R-CNN, section 2.1).

A box is rounded to whole pixels of the feature map, both ends included, and divided into P x Q bins whose ends are
rounded outwards, so that neighbours can overlap by a pixel. For the vertical axis, with scale r,

.. math:: a = \\lfloor r y_1 \\rceil, \\quad b = \\max(\\lfloor r y_2 \\rceil - a + 1,\\, 1) / P, \\qquad
          \\text{bin } p = \\{\\, h : a + \\lfloor p b \\rfloor \\le h < a + \\lceil (p + 1) b \\rceil \\,\\}

cut off at the feature map's border. The result is the maximum over a bin's pixels, and 0 where it has none.
"""

import numpy as np
from jaxtyping import Float, Int

from refnet.arrays import Array, on_device_of
from refnet.autograd import Function, Gradients, Tensor
from refnet.kernel_op import kernel_op
from refnet.ops.conv2d import Pair, as_pair
from refnet.ops.roi_align import checked_scale
from refnet.ops.sampling import Shape4, check_regions

NOWHERE = -1  # the source of a bin without pixels


def bin_ends(
    low: Float[Array, " R"], high: Float[Array, " R"], length: int, bins: int, spatial_scale: float
) -> tuple[Int[Array, "R P"], Int[Array, "R P"]]:
    """The first pixel of every bin and the one behind its last."""
    start, last = round_half_away(low * spatial_scale)[:, None], round_half_away(high * spatial_scale)[:, None]
    bin_size = np.maximum(last - start + 1, 1) / bins
    p = np.arange(bins, dtype=low.dtype)
    first, behind = start + np.floor(p * bin_size), start + np.ceil((p + 1) * bin_size)
    return first.clip(0, length).astype(np.int64), behind.clip(0, length).astype(np.int64)


def round_half_away(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """`x` rounded to the nearest integer, halves away from zero: the ``round`` of C, not that of NumPy."""
    whole = np.trunc(x)
    rounded: Array = whole + np.copysign(abs(x - whole) >= 0.5, x).astype(x.dtype)
    return rounded


@kernel_op
def roi_pool_forward(
    features: Float[Array, "N H W C"],
    boxes: Float[Array, "R 4"],
    image_index: Int[Array, " R"],
    *,
    size: Pair,
    spatial_scale: float,
) -> tuple[Float[Array, "R P Q C"], Int[Array, "R P Q C"]]:
    """The maximum of every bin, and where it was: h · W + w, the first in reading order; -1 in a bin without pixels."""
    _, h, w, c = features.shape
    x1, y1, x2, y2 = boxes.T
    tops, bottoms = bin_ends(y1, y2, h, size[0], spatial_scale)
    lefts, rights = bin_ends(x1, x2, w, size[1], spatial_scale)
    output = np.zeros((len(boxes), *size, c), features.dtype)
    source = np.full(output.shape, NOWHERE, dtype=np.int64)
    for r, p, q in np.ndindex(output.shape[:3]):
        top, left, right = tops[r, p], lefts[r, q], rights[r, q]
        pixels = features[image_index[r], top : bottoms[r, p], left:right].reshape(-1, c)
        if len(pixels):
            place = pixels.argmax(axis=0)
            output[r, p, q] = pixels.max(axis=0)
            source[r, p, q] = (top + place // (right - left)) * w + left + place % (right - left)
    return output, source


@kernel_op
def roi_pool_grad(
    grad_output: Float[Array, "R P Q C"],
    source: Int[Array, "R P Q C"],
    image_index: Int[Array, " R"],
    *,
    input_shape: Shape4,
) -> Float[Array, "N H W C"]:
    """The adjoint of roi_pool_forward in the features: every bin's gradient goes to where its maximum was."""
    n, h, w, c = input_shape
    grad = np.zeros((n, h * w, c), grad_output.dtype)
    r, _, _, channel = (source != NOWHERE).nonzero()
    np.add.at(grad, (image_index[r], source[source != NOWHERE], channel), grad_output[source != NOWHERE])
    return grad.reshape(input_shape)


class RoiPool(Function):
    """roi_pool_forward with its gradient."""

    def forward(self, features: Array, *, boxes: Array, image_index: Array, size: Pair, spatial_scale: float) -> Array:
        boxes, image_index = on_device_of(boxes, features), on_device_of(image_index, features)
        self.input_shape, self.image_index = features.shape, image_index
        output, self.source = roi_pool_forward(features, boxes, image_index, size=size, spatial_scale=spatial_scale)
        return output

    def backward(self, grad_output: Array) -> Gradients:
        return (roi_pool_grad(grad_output, self.source, self.image_index, input_shape=self.input_shape),)


def roi_pool(features: Tensor, boxes: Array, image_index: Array, *, size: int | Pair, spatial_scale: float) -> Tensor:
    """Pool regions of a feature map to a fixed size by the maximum of each bin.

    Args:
        features: (N, H, W, C).
        boxes: (R, 4), (x1, y1, x2, y2) in continuous pixels of the network's input. Plain numbers: boxes are rounded,
            so no gradient reaches them.
        image_index: (R,), the image that each box belongs to.
        size: (P, Q), rows and columns of bins, or one number for both.
        spatial_scale: pixels of the feature map per pixel of the input: 1 / stride.

    Returns:
        (R, P, Q, C). Gradients flow to the features: each to its bin's maximum, the first in reading order.

    Choice: halves are rounded away from zero, as in the original and torchvision; x2 is taken as the last pixel,
    which belongs to the region, so a box is one pixel wider than x2 - x1.

    Raises:
        ShapeError: an argument has the wrong shape, or the features have no pixels.
        DTypeError: features and boxes aren't of one floating-point type, or image_index isn't of integers.
        ArgumentError: an image index is out of range, a box isn't finite, `size` or `spatial_scale` isn't positive.
    """
    check_regions("roi_pool", features, boxes, image_index)
    return RoiPool()(
        features,
        boxes=boxes,
        image_index=image_index,
        size=as_pair(size, "roi_pool: size"),
        spatial_scale=checked_scale("roi_pool", spatial_scale),
    )
