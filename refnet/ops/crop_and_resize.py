"""Crop regions out of images and resize them, bilinearly: TensorFlow's crop_and_resize, channels last.

The box is spanned by the outermost samples of the result. For H rows of the image and P of the result they lie at

.. math:: s_p = y_1 (H - 1) + p\\, \\frac{(y_2 - y_1)(H - 1)}{P - 1}, \\qquad
          s_0 = \\tfrac12 (y_1 + y_2) (H - 1) \\quad \\text{if } P = 1

in normalised coordinates: 0 is the centre of the first pixel and 1 that of the last. With the hat weights Y and X
of these coordinates (:mod:`refnet.ops.sampling`) and e for samples outside the image, which weigh nothing,

.. math:: y = Y f X^{\\top} + e\\, (1 - [Y \\ne 0][X \\ne 0]^{\\top})
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from refnet.arrays import Array, on_device_of
from refnet.autograd import Function, Gradients, Tensor
from refnet.kernel_op import kernel_op
from refnet.ops.conv2d import Pair, as_pair
from refnet.ops.sampling import (
    Shape4,
    check_regions,
    grad_matrices,
    hat_derivative,
    hat_weights,
    inside,
    sample_regions,
    scatter_regions,
)


def crop_coordinates(low: Float[Array, " R"], high: Float[Array, " R"], length: int, count: int) -> Float[Array, "R P"]:
    """Where `count` samples from edge `low` to edge `high` lie along an axis of `length` pixels.

    The order of operations is part of the specification: a sample past the last centre weighs nothing even if it
    got there by rounding, and after clipping many boxes end exactly at 1.
    """
    if count == 1:
        return _row(0.5 * (low + high) * (length - 1), np.zeros_like(low), count)
    return _row(low * (length - 1), (high - low) * (length - 1) / (count - 1), count)


def crop_coordinates_for_gradient(
    low: Float[Array, " R"], high: Float[Array, " R"], length: int, count: int
) -> Float[Array, "R P"]:
    """The same coordinates, rounded in the other order that TensorFlow uses for the gradient of the boxes."""
    if count == 1:
        return crop_coordinates(low, high, length, count)
    ratio = low.dtype.type(length - 1) / low.dtype.type(count - 1)
    return _row(low * (length - 1), (high - low) * ratio, count)


def _row(first: Float[Array, " R"], step: Float[Array, " R"], count: int) -> Float[Array, "R P"]:
    coordinates: Array = first[:, None] + np.arange(count, dtype=first.dtype) * step[:, None]
    return coordinates


@kernel_op
def crop_and_resize_forward(
    images: Float[Array, "N H W C"],
    boxes: Float[Array, "R 4"],
    image_index: Int[Array, " R"],
    *,
    size: Pair,
    extrapolation_value: float,
) -> Float[Array, "R P Q C"]:
    """Sample every box on a grid of `size`: the equations at the head of this file."""
    _, h, w, _ = images.shape
    x1, y1, x2, y2 = boxes.T
    s, t = crop_coordinates(y1, y2, h, size[0]), crop_coordinates(x1, x2, w, size[1])
    output = sample_regions(images, image_index, hat_weights(s, h, margin=0), hat_weights(t, w, margin=0))
    known = inside(s, h, margin=0)[:, :, None] & inside(t, w, margin=0)[:, None, :]  # R P Q
    output[~known] = extrapolation_value
    return output


@kernel_op
def crop_and_resize_grad_images(
    grad_output: Float[Array, "R P Q C"],
    boxes: Float[Array, "R 4"],
    image_index: Int[Array, " R"],
    *,
    input_shape: Shape4,
) -> Float[Array, "N H W C"]:
    """The adjoint of crop_and_resize_forward in the images: Y^T g X, added up over the boxes of an image."""
    _, h, w, _ = input_shape
    _, p, q, _ = grad_output.shape
    x1, y1, x2, y2 = boxes.T
    rows = hat_weights(crop_coordinates(y1, y2, h, p), h, margin=0)
    columns = hat_weights(crop_coordinates(x1, x2, w, q), w, margin=0)
    return scatter_regions(grad_output, image_index, rows, columns, input_shape)


@kernel_op
def crop_and_resize_grad_boxes(
    grad_output: Float[Array, "R P Q C"],
    images: Float[Array, "N H W C"],
    boxes: Float[Array, "R 4"],
    image_index: Int[Array, " R"],
) -> Float[Array, "R 4"]:
    """The gradient of the boxes, through the derivative of the hat at every sample's coordinate.

    Kinks: where a coordinate is an integer the derivative of the hat is taken as 0, and a sample that enters or
    leaves the image makes the result jump, of which the derivative knows nothing.

    Choice: TensorFlow rounds the coordinates in another order here than in the forward pass, so that a sample on the
    very edge can count in one and not in the other. That is followed, and can only be seen on such samples.
    """
    _, h, w, _ = images.shape
    _, p, q, _ = grad_output.shape
    x1, y1, x2, y2 = boxes.T
    s, t = crop_coordinates_for_gradient(y1, y2, h, p), crop_coordinates_for_gradient(x1, x2, w, q)
    rows, columns = hat_weights(s, h, margin=0), hat_weights(t, w, margin=0)
    grad_rows, grad_columns = grad_matrices(grad_output, images, image_index, rows, columns)
    grad_s = (grad_rows * hat_derivative(s, h, margin=0)).sum(axis=-1)
    grad_t = (grad_columns * hat_derivative(t, w, margin=0)).sum(axis=-1)
    grad_y1, grad_y2 = grad_edges(grad_s, h)
    grad_x1, grad_x2 = grad_edges(grad_t, w)
    return np.stack([grad_x1, grad_y1, grad_x2, grad_y2], axis=1)


def grad_edges(grad_coordinates: Float[Array, "R P"], length: int) -> tuple[Float[Array, " R"], Float[Array, " R"]]:
    """The gradients of the lower and the upper edge of each box, from those of its samples' coordinates."""
    count = grad_coordinates.shape[1]
    share = np.arange(count) / (count - 1) if count > 1 else np.array([0.5])  # of the upper edge
    share = share.astype(grad_coordinates.dtype)
    return (length - 1) * (grad_coordinates @ (1 - share)), (length - 1) * (grad_coordinates @ share)


class CropAndResize(Function):
    """crop_and_resize_forward with its two gradients."""

    def forward(self, images: Array, boxes: Array, *, image_index: Array, **geometry: Any) -> Array:
        image_index = on_device_of(image_index, images)
        self.images, self.boxes, self.image_index = images, boxes, image_index
        return crop_and_resize_forward(images, boxes, image_index, **geometry)

    def backward(self, grad_output: Array) -> Gradients:
        grads: list[Array | None] = [None, None]
        if self.needs_grad[0]:
            grads[0] = crop_and_resize_grad_images(
                grad_output, self.boxes, self.image_index, input_shape=self.images.shape
            )
        if self.needs_grad[1]:
            grads[1] = crop_and_resize_grad_boxes(grad_output, self.images, self.boxes, self.image_index)
        return tuple(grads)


def crop_and_resize(
    images: Tensor,
    boxes: Tensor | Array,
    image_index: Array,
    *,
    size: int | Pair,
    extrapolation_value: float = 0.0,
) -> Tensor:
    """Crop boxes out of images and resize each to `size` by bilinear interpolation.

    Args:
        images: (N, H, W, C).
        boxes: (R, 4), (x1, y1, x2, y2), normalised: 0 is the centre of the first pixel and 1 that of the last. They
            may reach beyond the image, and run backwards, which mirrors the crop.
        image_index: (R,), the image that each box belongs to.
        size: (P, Q), rows and columns of the result, or one number for both.
        extrapolation_value: what samples outside the image get.

    Returns:
        (R, P, Q, C). Gradients flow to the images, and to the boxes if they are a Tensor.

    Choice: one sample a pixel of the result, and the centres of the outermost ones lie on the box's edges
    (TensorFlow, Matterport). ROIAlign averages samples that lie within the bins instead.

    Raises:
        ShapeError: an argument has the wrong shape, or the images have no pixels.
        DTypeError: images and boxes aren't of one floating-point type, or image_index isn't of integers.
        ArgumentError: an image index is out of range, a box isn't finite or `size` isn't positive.
    """
    check_regions("crop_and_resize", images, boxes, image_index)
    return CropAndResize()(
        images,
        boxes,
        image_index=image_index,
        size=as_pair(size, "crop_and_resize: size"),
        extrapolation_value=float(extrapolation_value),
    )
