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
centres is a convention: a sample more than `margin` pixels outside weighs nothing, and one that lies within the
margin moves to the outermost centre. TensorFlow's crop_and_resize has no margin, ROIAlign one of 1 pixel.
"""

from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from refnet.arrays import Array
from refnet.autograd import Tensor
from refnet.errors import ArgumentError, DTypeError, ShapeError

Shape4: TypeAlias = tuple[int, int, int, int]


def hat_weights(coordinates: Float[Array, "*S"], length: int, *, margin: int) -> Float[Array, "*S L"]:
    """The weight of each of `length` pixels in a sample at each coordinate."""
    positions = coordinates.clip(0, length - 1)[..., None]
    pixels = np.arange(length, dtype=coordinates.dtype)
    hat = np.maximum(1 - abs(positions - pixels), 0)
    weights: Array = hat * inside(coordinates, length, margin=margin)[..., None]
    return weights


def hat_derivative(coordinates: Float[Array, "*S"], length: int, *, margin: int) -> Float[Array, "*S L"]:
    """The derivative of :func:`hat_weights` with respect to each coordinate: 1 for the pixel above, -1 for that below.

    Choice: the hat has kinks at the integers, and there the derivative is 0, as in TensorFlow's crop_and_resize;
    any value between those of both sides would do. A sample that weighs nothing, or moved to the outermost centre,
    has derivative 0 too.
    """
    positions = coordinates.clip(0, length - 1)[..., None]
    pixels = np.arange(length, dtype=coordinates.dtype)
    slope = (pixels == np.ceil(positions)).astype(coordinates.dtype) - (pixels == np.floor(positions))
    derivative: Array = slope * inside(coordinates, length, margin=margin)[..., None]
    return derivative


def inside(coordinates: Float[Array, "*S"], length: int, *, margin: int) -> Bool[Array, "*S"]:
    """Whether each sample weighs anything."""
    return (coordinates >= -margin) & (coordinates <= length - 1 + margin)


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
        DTypeError: images and boxes aren't of one floating-point type, or `image_index` isn't of integers.
        ArgumentError: an image index is out of range, or a coordinate isn't finite. In arrays on a device nobody looks:
            the host would have to wait.
    """
    if images.ndim != 4 or 0 in images.shape[1:3]:
        raise ShapeError(f"{what}: expected images (N, H, W, C) with at least one pixel, got {images.shape}")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ShapeError(f"{what}: boxes must have shape (R, 4), got {boxes.shape}")
    if image_index.shape != (len(boxes),):
        raise ShapeError(
            f"{what}: image_index must have one entry per box, expected ({len(boxes)},), got {image_index.shape}"
        )
    if images.dtype.kind != "f" or boxes.dtype != images.dtype:
        raise DTypeError(
            f"{what}: expected images and boxes of one floating-point type, got {images.dtype} and {boxes.dtype}"
        )
    if image_index.dtype.kind not in "iu":
        raise DTypeError(f"{what}: image_index must hold integers, got {image_index.dtype}")
    if (
        isinstance(image_index, np.ndarray)
        and image_index.size
        and not 0 <= int(image_index.min()) <= int(image_index.max()) < images.shape[0]
    ):
        raise ArgumentError(
            f"{what}: image_index must be from 0 to {images.shape[0] - 1}, "
            f"got values from {int(image_index.min())} to {int(image_index.max())}"
        )
    coordinates = boxes.data if isinstance(boxes, Tensor) else boxes
    if isinstance(coordinates, np.ndarray) and not np.isfinite(coordinates).all():
        index = int((~np.isfinite(coordinates).all(axis=1)).argmax())
        raise ArgumentError(f"{what}: boxes must be finite, got {coordinates[index].tolist()} for box {index}")
