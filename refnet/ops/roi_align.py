"""ROIAlign: the mean of bilinear samples in every bin of a region (He et al. 2017, Mask R-CNN, section 3).

A box is mapped to the feature map without any rounding, and divided into P x Q bins. Bin p of an axis is sampled
at S evenly spaced points; for the vertical axis, with scale r of the feature map,

.. math:: s_{p,j} = a + p\\,b + (j + \\tfrac12)\\, b / S, \\qquad a = r y_1 - o, \\quad b = (r y_2 - r y_1) / P

and o = 1/2 if `aligned`, else 0. A bin's value is the mean of its samples, which is separable too: with

.. math:: Y_{p,h} = \\frac1S \\sum_j k(s_{p,j} - h)

and X likewise, y = Y f X^T (:mod:`refnet.ops.sampling`). A sample more than one pixel outside the outermost pixel
centres weighs nothing; otherwise it is moved to the nearest of them.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from refnet.arrays import Array, on_device_of
from refnet.autograd import Function, Gradients, Tensor
from refnet.errors import ArgumentError
from refnet.kernel_op import kernel_op
from refnet.ops.conv2d import Pair, as_pair
from refnet.ops.sampling import (
    Shape4,
    check_regions,
    grad_matrices,
    hat_derivative,
    hat_weights,
    sample_regions,
    scatter_regions,
)


def spans(
    boxes: Float[Array, "R 4"], spatial_scale: float, aligned: bool
) -> tuple[Float[Array, "R 2"], Float[Array, "R 2"], Bool[Array, "R 2"]]:
    """Each box on the feature map, as (x, y) of its start, its extent, and whether the extent follows the box.

    If not `aligned`, a box is at least one pixel wide and high.
    """
    offset = 0.5 if aligned else 0.0
    start = boxes[:, :2] * spatial_scale - offset
    extent = (boxes[:, 2:] * spatial_scale - offset) - start
    if aligned:
        return start, extent, np.ones(extent.shape, dtype=bool)
    return start, np.maximum(extent, 1), extent > 1


def sample_counts(extent: Float[Array, "*R"], bins: int, sampling_ratio: int) -> Int[Array, "*R"]:
    """How many samples a bin takes along an axis: `sampling_ratio`, or if that is 0 one for each pixel begun.

    A box without extent has no samples then, and its bins are 0.
    """
    if sampling_ratio:
        return np.full(extent.shape, sampling_ratio)
    return np.maximum(np.ceil(extent / bins), 0).astype(np.int64)


def sample_coordinates(
    start: Float[Array, "*R"], extent: Float[Array, "*R"], bins: int, samples: int
) -> Float[Array, "*R P S"]:
    """The coordinates of the samples of each bin. The order of operations is part of the specification."""
    start, bin_size = start[..., None, None], (extent / bins)[..., None, None]
    p = np.arange(bins, dtype=start.dtype)[:, None]
    j = np.arange(samples, dtype=start.dtype) + 0.5
    coordinates: Array = start + p * bin_size + j * bin_size / samples
    return coordinates


def _bin_weights(
    start: Float[Array, " R"], extent: Float[Array, " R"], length: int, bins: int, sampling_ratio: int
) -> Float[Array, "R P L"]:
    """The matrix Y, or X, of every box: the mean of the hat weights of a bin's samples."""
    weights = np.zeros((len(start), bins, length), start.dtype)
    for r, samples in enumerate(sample_counts(extent, bins, sampling_ratio)):
        coordinates = sample_coordinates(start[r : r + 1], extent[r : r + 1], bins, int(samples))
        weights[r] = hat_weights(coordinates[0], length, margin=1).sum(axis=1) / max(int(samples), 1)
    return weights


def _grad_span(
    grad_weights: Float[Array, "R P L"],
    start: Float[Array, " R"],
    extent: Float[Array, " R"],
    sampling_ratio: int,
) -> tuple[Float[Array, " R"], Float[Array, " R"]]:
    """The gradients of start and extent, from that of :func:`_bin_weights`: s = start + extent · share."""
    _, bins, length = grad_weights.shape
    grad_start, grad_extent = np.zeros_like(start), np.zeros_like(extent)
    for r, samples in enumerate(sample_counts(extent, bins, sampling_ratio)):
        coordinates = sample_coordinates(start[r : r + 1], extent[r : r + 1], bins, int(samples))[0]
        slopes = hat_derivative(coordinates, length, margin=1)  # P S L
        grad_coordinates = (grad_weights[r][:, None] * slopes).sum(axis=-1) / max(int(samples), 1)
        zero, one = np.zeros(1, start.dtype), np.ones(1, start.dtype)
        shares = sample_coordinates(zero, one, bins, int(samples))[0]
        grad_start[r] = grad_coordinates.sum()
        grad_extent[r] = (grad_coordinates * shares).sum()
    return grad_start, grad_extent


@kernel_op
def roi_align_forward(
    features: Float[Array, "N H W C"],
    boxes: Float[Array, "R 4"],
    image_index: Int[Array, " R"],
    *,
    size: Pair,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Float[Array, "R P Q C"]:
    """Pool every box to `size` bins: the equations at the head of this file."""
    _, h, w, _ = features.shape
    start, extent, _ = spans(boxes, spatial_scale, aligned)
    rows = _bin_weights(start[:, 1], extent[:, 1], h, size[0], sampling_ratio)
    columns = _bin_weights(start[:, 0], extent[:, 0], w, size[1], sampling_ratio)
    return sample_regions(features, image_index, rows, columns)


@kernel_op
def roi_align_grad_features(
    grad_output: Float[Array, "R P Q C"],
    boxes: Float[Array, "R 4"],
    image_index: Int[Array, " R"],
    *,
    input_shape: Shape4,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Float[Array, "N H W C"]:
    """The adjoint of roi_align_forward in the features: Y^T g X, added up over the boxes of an image."""
    _, h, w, _ = input_shape
    _, p, q, _ = grad_output.shape
    start, extent, _ = spans(boxes, spatial_scale, aligned)
    rows = _bin_weights(start[:, 1], extent[:, 1], h, p, sampling_ratio)
    columns = _bin_weights(start[:, 0], extent[:, 0], w, q, sampling_ratio)
    return scatter_regions(grad_output, image_index, rows, columns, input_shape)


@kernel_op
def roi_align_grad_boxes(
    grad_output: Float[Array, "R P Q C"],
    features: Float[Array, "N H W C"],
    boxes: Float[Array, "R 4"],
    image_index: Int[Array, " R"],
    *,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Float[Array, "R 4"]:
    """The gradient of the boxes, through the derivative of the hat at every sample's coordinate.

    Kinks, where the derivative of one side, or 0, is taken: a coordinate that is an integer (0); a sample moved to
    the border (0) or dropped, where the result jumps; an extent of exactly 1 if not `aligned`, below which the size
    is clamped and only the position counts; and with an adaptive ratio the extents at which the number of samples
    changes, where the result jumps.
    """
    _, h, w, _ = features.shape
    _, p, q, _ = grad_output.shape
    start, extent, follows = spans(boxes, spatial_scale, aligned)
    rows = _bin_weights(start[:, 1], extent[:, 1], h, p, sampling_ratio)
    columns = _bin_weights(start[:, 0], extent[:, 0], w, q, sampling_ratio)
    grad_rows, grad_columns = grad_matrices(grad_output, features, image_index, rows, columns)
    grads_x = _grad_span(grad_columns, start[:, 0], extent[:, 0], sampling_ratio)
    grads_y = _grad_span(grad_rows, start[:, 1], extent[:, 1], sampling_ratio)
    grad_start, grad_extent = (np.stack(grads, axis=1) for grads in zip(grads_x, grads_y, strict=True))  # R 2
    grad_extent = grad_extent * follows
    grad: Array = np.concatenate([grad_start - grad_extent, grad_extent], axis=1) * spatial_scale
    return grad


class RoiAlign(Function):
    """roi_align_forward with its two gradients."""

    def forward(self, features: Array, boxes: Array, *, image_index: Array, size: Pair, **sampling: Any) -> Array:
        image_index = on_device_of(image_index, features)
        self.features, self.boxes, self.image_index, self.sampling = features, boxes, image_index, sampling
        return roi_align_forward(features, boxes, image_index, size=size, **sampling)

    def backward(self, grad_output: Array) -> Gradients:
        grads: list[Array | None] = [None, None]
        if self.needs_grad[0]:
            grads[0] = roi_align_grad_features(
                grad_output, self.boxes, self.image_index, input_shape=self.features.shape, **self.sampling
            )
        if self.needs_grad[1]:
            grads[1] = roi_align_grad_boxes(grad_output, self.features, self.boxes, self.image_index, **self.sampling)
        return tuple(grads)


def roi_align(
    features: Tensor,
    boxes: Tensor | Array,
    image_index: Array,
    *,
    size: int | Pair,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Pool regions of a feature map to a fixed size by averaging bilinear samples.

    Args:
        features: (N, H, W, C).
        boxes: (R, 4), (x1, y1, x2, y2) in continuous pixels of the network's input.
        image_index: (R,), the image that each box belongs to.
        size: (P, Q), rows and columns of bins, or one number for both.
        spatial_scale: pixels of the feature map per pixel of the input: 1 / stride.
        sampling_ratio: samples along each side of a bin; 0 for ceil(extent / bins), about one a feature pixel.
        aligned: whether to shift by half a pixel.

    Returns:
        (R, P, Q, C). Gradients flow to the features, and to the boxes if they are a Tensor.

    Choice: with `aligned` the centre of feature pixel i has the coordinate i + 1/2, as in the boxes, and boxes keep
    their size (Detectron2's ROIAlignV2). Without, as published and in torchvision's detectors, it has the coordinate
    i, so features are taken half a pixel too far to the bottom right, and a box is at least one pixel wide.

    Raises:
        ShapeError: an argument has the wrong shape, or the features have no pixels.
        DTypeError: features and boxes aren't of one floating-point type, or image_index isn't of integers.
        ArgumentError: an image index is out of range, a box isn't finite, `size` or `spatial_scale` isn't positive,
            or `sampling_ratio` is negative.
    """
    check_regions("roi_align", features, boxes, image_index)
    if sampling_ratio < 0:
        raise ArgumentError(f"roi_align: sampling_ratio must not be negative, got {sampling_ratio}")
    return RoiAlign()(
        features,
        boxes,
        image_index=image_index,
        size=as_pair(size, "roi_align: size"),
        spatial_scale=checked_scale("roi_align", spatial_scale),
        sampling_ratio=int(sampling_ratio),
        aligned=bool(aligned),
    )


def checked_scale(what: str, spatial_scale: float) -> float:
    """`spatial_scale` as a Python number.

    Raises:
        ArgumentError: it isn't positive and finite.
    """
    if not 0 < spatial_scale < float("inf"):
        raise ArgumentError(f"{what}: spatial_scale must be positive and finite, got {spatial_scale}")
    return float(spatial_scale)
