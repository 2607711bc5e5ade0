"""Bilinear sampling of regions, as two small matrices a region.

A feature at the real coordinates (s, t) is interpolated between the pixels around it by the hat function
:math:`k(d) = \\max(0, 1 - |d|)`, along rows and columns independently:

.. math:: f(s, t) = \\sum_{h,w} k(s - h)\\, f_{h,w}\\, k(t - w)

Many samples on a grid, and means over the samples of a bin, are therefore

.. math:: y = Y f X^{\\top}

with weights Y (P, H) for the rows of the result and X (Q, W) for its columns. Everything else follows:

.. math::
    \\bar f = Y^{\\top} \\bar y X, \\qquad
    \\bar Y_{p,h} = \\sum_{q,c} \\bar y_{p,q,c}\\, (f X^{\\top})_{h,q,c}, \\qquad
    \\bar X_{q,w} = \\sum_{p,c} \\bar y_{p,q,c}\\, (Y f)_{p,w,c}

and by the derivative of k gradients reach the coordinates and the box that they came from.

Coordinates are in units of pixels, with pixel centres at the integers 0 to L - 1. What lies beyond the outermost
centres is a convention of its own, the border rule:

==========  ====================================================================================================
"zero"      a sample outside [0, L - 1] weighs nothing (TensorFlow's crop_and_resize)
"margin"    a sample outside [-1, L] weighs nothing; within, it moves to the nearest centre (ROIAlign)
"repeat"    every sample outside moves to the nearest centre: the border pixels repeat for ever
"fade"      beyond the border all pixels are 0, so a sample fades out over the distance of one pixel
==========  ====================================================================================================
"""

from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from refnet.arrays import Array, namespace
from refnet.autograd import Tensor
from refnet.errors import ArgumentError, DTypeError, ShapeError

Border: TypeAlias = Literal["zero", "margin", "repeat", "fade"]
Shape4: TypeAlias = tuple[int, int, int, int]


def hat_weights(coordinates: Float[Array, "*S"], length: int, border: Border) -> Float[Array, "*S L"]:
    """The weight of each of `length` pixels in a sample at each coordinate."""
    positions = _settle(coordinates, length, border)[..., None]
    pixels = np.arange(length, dtype=coordinates.dtype)
    hat = np.maximum(1 - abs(positions - pixels), 0)
    weights: Array = np.where(inside(coordinates, length, border)[..., None], hat, 0)
    return weights


def hat_derivative(coordinates: Float[Array, "*S"], length: int, border: Border) -> Float[Array, "*S L"]:
    """The derivative of :func:`hat_weights` with respect to each coordinate: 1 above it, -1 below it.

    Choice: the hat has kinks at the integers, and there the derivative is 0, as in TensorFlow's crop_and_resize:
    the mean of both sides would do as well. A sample that weighs nothing, or was moved to the nearest centre,
    has derivative 0 too.
    """
    positions = _settle(coordinates, length, border)[..., None]
    pixels = np.arange(length, dtype=coordinates.dtype)
    slope = (pixels == np.ceil(positions)).astype(coordinates.dtype) - (pixels == np.floor(positions))
    derivative: Array = np.where(inside(coordinates, length, border)[..., None], slope, 0)
    return derivative


def _settle(coordinates: Float[Array, "*S"], length: int, border: Border) -> Float[Array, "*S"]:
    """Where the samples are taken: the nearest pixel centre for those outside, under the rules that move them."""
    if border in ("margin", "repeat"):
        return coordinates.clip(0, length - 1)
    return coordinates


def inside(coordinates: Float[Array, "*S"], length: int, border: Border) -> Bool[Array, "*S"]:
    """Whether each sample weighs anything."""
    if border == "zero":
        return (coordinates >= 0) & (coordinates <= length - 1)
    if border == "margin":
        return (coordinates >= -1) & (coordinates <= length)
    return np.ones(coordinates.shape, dtype=bool)


def sample_regions(
    images: Float[Array, "N H W C"],
    image_index: Int[Array, " R"],
    rows: Float[Array, "R P H"],
    columns: Float[Array, "R Q W"],
) -> Float[Array, "R P Q C"]:
    """Y f X^T for every region, each from its image."""
    output = np.empty((len(rows), rows.shape[1], columns.shape[1], images.shape[3]), images.dtype)
    for r, image in enumerate(image_index):
        output[r] = _sample(rows[r], images[image], columns[r])
    return output


def scatter_regions(
    grad_output: Float[Array, "R P Q C"],
    image_index: Int[Array, " R"],
    rows: Float[Array, "R P H"],
    columns: Float[Array, "R Q W"],
    input_shape: Shape4,
) -> Float[Array, "N H W C"]:
    """The adjoint of :func:`sample_regions` in the images: Y^T g X, added up over the regions of each image."""
    grad = np.zeros(input_shape, grad_output.dtype)
    for r, image in enumerate(image_index):
        grad[image] += _sample(rows[r].T, grad_output[r], columns[r].T)
    return grad


def grad_matrices(
    grad_output: Float[Array, "R P Q C"],
    images: Float[Array, "N H W C"],
    image_index: Int[Array, " R"],
    rows: Float[Array, "R P H"],
    columns: Float[Array, "R Q W"],
) -> tuple[Float[Array, "R P H"], Float[Array, "R Q W"]]:
    """The adjoint of :func:`sample_regions` in the matrices: the gradients of `rows` and of `columns`."""
    grad_rows, grad_columns = np.empty_like(rows), np.empty_like(columns)
    for r, image in enumerate(image_index):
        grad_rows[r] = np.tensordot(grad_output[r], columns[r] @ images[image], axes=((1, 2), (1, 2)))
        grad_columns[r] = np.tensordot(
            grad_output[r], np.tensordot(rows[r], images[image], axes=1), axes=((0, 2), (0, 2))
        )
    return grad_rows, grad_columns


def _sample(
    rows: Float[Array, "P H"], image: Float[Array, "H W C"], columns: Float[Array, "Q W"]
) -> Float[Array, "P Q C"]:
    sampled: Array = columns @ np.tensordot(rows, image, axes=1)
    return sampled


def check_regions(what: str, images: Tensor, boxes: Tensor | Array, image_index: Array) -> None:
    """Check the arguments that all operations on regions share; `what` names the operation.

    Raises:
        ShapeError: `images` isn't (N, H, W, C) with at least one pixel, `boxes` isn't (R, 4), or there isn't one
            image index a box.
        DTypeError: `image_index` isn't of integers.
        ArgumentError: an image index is out of range, or a coordinate isn't finite.
    """
    if images.ndim != 4 or 0 in images.shape[1:3]:
        raise ShapeError(f"{what}: expected images (N, H, W, C) with at least one pixel, got {images.shape}")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ShapeError(f"{what}: boxes must have shape (R, 4), got {boxes.shape}")
    if image_index.shape != (len(boxes),):
        raise ShapeError(
            f"{what}: image_index must have one entry per box, expected ({len(boxes)},), got {image_index.shape}"
        )
    if image_index.dtype.kind not in "iu":
        raise DTypeError(f"{what}: image_index must hold integers, got {image_index.dtype}")
    if image_index.size and not 0 <= int(image_index.min()) <= int(image_index.max()) < images.shape[0]:
        raise ArgumentError(
            f"{what}: image_index must be from 0 to {images.shape[0] - 1}, "
            f"got values from {int(image_index.min())} to {int(image_index.max())}"
        )
    coordinates = boxes.data if isinstance(boxes, Tensor) else boxes
    finite = namespace(coordinates).isfinite(coordinates).all(axis=1)
    if not bool(finite.all()):
        index = int((~finite).argmax())
        raise ArgumentError(f"{what}: boxes must be finite, got {coordinates[index].tolist()} for box {index}")
