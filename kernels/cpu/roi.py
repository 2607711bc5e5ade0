"""ROIAlign and crop_and_resize by matrix products over each region's support.

The specification multiplies whole images by weights that are nearly all zero. Here every region gets the few rows
and columns that its samples touch: a window of the image, seen as a matrix of h rows of w · C numbers, needs no copy,
so a region costs one product for its rows and one, over as many small ones as it has bins, for its columns.
Coordinates are rounded as in the specification; sums may be taken in another order.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from refnet.arrays import Array
from refnet.ops.conv2d import Pair
from refnet.ops.crop_and_resize import crop_coordinates, crop_coordinates_for_gradient, grad_edges
from refnet.ops.roi_align import sample_counts, spans
from refnet.ops.sampling import Shape4, inside


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Along one axis, the pixels that each region's samples touch, and their weights.

    Attributes:
        first: the first pixel touched.
        stop: the one behind the last.
        weights: of pixel first + e in bin p; E is the largest number of pixels that a region touches.
        below, above: the pixels around each sample, counted from `first`; both the same at an integer.
        share: what a sample counts for in its bin: 1 / S, or 0 if it lies outside.
    """

    first: Int[Array, " R"]
    stop: Int[Array, " R"]
    weights: Float[Array, "R P E"]
    below: Int[Array, "R P S"]
    above: Int[Array, "R P S"]
    share: Float[Array, "R P S"]

    def ranges(self, pitch: int = 1) -> Iterator[tuple[int, int]]:
        """The pixels of each region as ranges of numbers, `pitch` a pixel."""
        return zip((self.first * pitch).tolist(), (self.stop * pitch).tolist(), strict=True)

    def grad_coordinates(self, grad_weights: Float[Array, "R P E"]) -> Float[Array, "R P S"]:
        """The gradient of every sample's coordinate, from that of the weights: the hat's slope is -1 below, 1 above."""
        rise = np.take_along_axis(grad_weights, self.above, 2) - np.take_along_axis(grad_weights, self.below, 2)
        grad: Array = rise * self.share
        return grad


def make_axis(
    coordinates: Float[Array, "R P S"], length: int, *, margin: int, counts: Int[Array, " R"] | None = None
) -> Axis:
    """The axis on which the means of the samples at `coordinates` are taken; of the first `counts` of each bin, if given."""
    regions, bins, samples = coordinates.shape
    dtype = coordinates.dtype
    if not coordinates.size:
        nothing, none = np.zeros(regions, np.int64), np.zeros((regions, bins, samples), np.int64)
        weights = np.zeros((regions, bins, 0), dtype)
        return Axis(first=nothing, stop=nothing, weights=weights, below=none, above=none, share=none.astype(dtype))
    counted = inside(coordinates, length, margin=margin)
    share = dtype.type(1) / np.full((regions, 1, 1), samples, dtype)
    if counts is not None:
        counted &= np.arange(samples) < counts[:, None, None]
        share = dtype.type(1) / np.maximum(counts, 1).astype(dtype)[:, None, None]
    share = counted * share
    positions = coordinates.clip(0, length - 1)
    floor = np.floor(positions)
    low = floor.astype(np.int64)
    high = np.minimum(low + 1, length - 1)
    first, stop = low.min(axis=(1, 2)), high.max(axis=(1, 2)) + 1
    below = low - first[:, None, None]
    extent = int((stop - first).max())
    cell = (np.arange(regions * bins) * extent).reshape(regions, bins, 1) + below
    places = np.concatenate([cell.ravel(), (cell + (high - low)).ravel()])
    hats = np.concatenate(
        [((1 - (positions - floor)) * share).ravel(), ((1 - ((floor + 1) - positions)) * share).ravel()]
    )
    weights = np.bincount(places, hats, minlength=regions * bins * extent).astype(dtype)
    above = below + (positions > floor)
    return Axis(
        first=first,
        stop=stop,
        weights=weights.reshape(regions, bins, extent),
        below=below,
        above=above,
        share=share,
    )


def _pool(
    images: Float[Array, "N H W C"], image_index: Int[Array, " R"], rows: Axis, columns: Axis
) -> Float[Array, "R P Q C"]:
    """Y f X^T for every region."""
    n, h, w, c = images.shape
    lines = np.ascontiguousarray(images).reshape(n, h, w * c)
    bins = rows.weights.shape[1]
    output = np.empty((len(image_index), bins, columns.weights.shape[1], c), images.dtype)
    regions = zip(image_index.tolist(), rows.ranges(), columns.ranges(c), strict=True)
    for r, (image, (top, bottom), (left, right)) in enumerate(regions):
        across = rows.weights[r, :, : bottom - top] @ lines[image, top:bottom, left:right]  # P w·C
        across = across.reshape(bins, -1, c)
        np.matmul(columns.weights[r, :, : across.shape[1]], across, out=output[r])
    return output


def _scatter(
    grad_output: Float[Array, "R P Q C"], image_index: Int[Array, " R"], rows: Axis, columns: Axis, input_shape: Shape4
) -> Float[Array, "N H W C"]:
    """Y^T g X, added up over the regions of each image, in their order."""
    n, h, w, c = input_shape
    grad_output = np.ascontiguousarray(grad_output)
    lines = np.zeros((n, h, w * c), grad_output.dtype)
    bins = rows.weights.shape[1]
    y_transposed, x_transposed = rows.weights.swapaxes(1, 2), columns.weights.swapaxes(1, 2)
    regions = zip(image_index.tolist(), rows.ranges(), columns.ranges(c), strict=True)
    for r, (image, (top, bottom), (left, right)) in enumerate(regions):
        across = x_transposed[r, : (right - left) // c] @ grad_output[r]  # P w C
        lines[image, top:bottom, left:right] += y_transposed[r, : bottom - top] @ across.reshape(bins, -1)
    return lines.reshape(input_shape)


def _grad_weights(
    grad_output: Float[Array, "R P Q C"],
    images: Float[Array, "N H W C"],
    image_index: Int[Array, " R"],
    rows: Axis,
    columns: Axis,
) -> tuple[Float[Array, "R P E1"], Float[Array, "R Q E2"]]:
    """The gradients of the weights of rows and columns; 0 where a region doesn't reach."""
    images, grad_output = np.ascontiguousarray(images), np.ascontiguousarray(grad_output)
    c = images.shape[3]
    grad_rows, grad_columns = np.zeros_like(rows.weights), np.zeros_like(columns.weights)
    regions = zip(image_index.tolist(), rows.ranges(), columns.ranges(), strict=True)
    for r, (image, (top, bottom), (left, right)) in enumerate(regions):
        window = images[image, top:bottom, left:right]  # h w C
        height, width = bottom - top, right - left
        g = grad_output[r]  # P Q C
        down = columns.weights[r, :, :width] @ window  # h Q C
        grad_rows[r, :, :height] = g.reshape(len(g), -1) @ down.reshape(height, g.shape[1] * c).T  # height may be 0
        across = rows.weights[r, :, :height] @ window.reshape(height, width * c)  # P w·C
        grad_columns[r, :, :width] = (g @ across.reshape(len(g), width, c).swapaxes(1, 2)).sum(axis=0)
    return grad_rows, grad_columns


# ROIAlign


def _align_axis(
    start: Float[Array, " R"], extent: Float[Array, " R"], length: int, bins: int, sampling_ratio: int
) -> tuple[Axis, Float[Array, "R P S"]]:
    """The axis, and of each sample the share of the extent that it lies behind the start."""
    counts = sample_counts(extent, bins, sampling_ratio)
    samples = int(counts.max(initial=0))
    divisor = np.maximum(counts, 1).astype(start.dtype)[:, None, None]
    p = np.arange(bins, dtype=start.dtype)[:, None]
    j = np.arange(samples, dtype=start.dtype) + 0.5
    bin_size = (extent / bins)[:, None, None]
    coordinates = start[:, None, None] + p * bin_size + j * bin_size / divisor
    axis = make_axis(coordinates, length, margin=1, counts=counts)
    return axis, (p + j / divisor) / bins


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
    """See :func:`refnet.ops.roi_align_forward`."""
    _, h, w, _ = features.shape
    start, extent, _ = spans(boxes, spatial_scale, aligned)
    rows, _ = _align_axis(start[:, 1], extent[:, 1], h, size[0], sampling_ratio)
    columns, _ = _align_axis(start[:, 0], extent[:, 0], w, size[1], sampling_ratio)
    return _pool(features, image_index, rows, columns)


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
    """See :func:`refnet.ops.roi_align_grad_features`."""
    _, h, w, _ = input_shape
    _, p, q, _ = grad_output.shape
    start, extent, _ = spans(boxes, spatial_scale, aligned)
    rows, _ = _align_axis(start[:, 1], extent[:, 1], h, p, sampling_ratio)
    columns, _ = _align_axis(start[:, 0], extent[:, 0], w, q, sampling_ratio)
    return _scatter(grad_output, image_index, rows, columns, input_shape)


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
    """See :func:`refnet.ops.roi_align_grad_boxes`."""
    _, h, w, _ = features.shape
    _, p, q, _ = grad_output.shape
    start, extent, follows = spans(boxes, spatial_scale, aligned)
    rows, shares_y = _align_axis(start[:, 1], extent[:, 1], h, p, sampling_ratio)
    columns, shares_x = _align_axis(start[:, 0], extent[:, 0], w, q, sampling_ratio)
    grad_rows, grad_columns = _grad_weights(grad_output, features, image_index, rows, columns)
    grad_s, grad_t = rows.grad_coordinates(grad_rows), columns.grad_coordinates(grad_columns)
    grad_start = np.stack([grad_t.sum(axis=(1, 2)), grad_s.sum(axis=(1, 2))], axis=1)
    grad_extent = np.stack([(grad_t * shares_x).sum(axis=(1, 2)), (grad_s * shares_y).sum(axis=(1, 2))], axis=1)
    grad_extent *= follows
    grad: Array = np.concatenate([grad_start - grad_extent, grad_extent], axis=1) * spatial_scale
    return grad


# crop_and_resize


def crop_and_resize_forward(
    images: Float[Array, "N H W C"],
    boxes: Float[Array, "R 4"],
    image_index: Int[Array, " R"],
    *,
    size: Pair,
    extrapolation_value: float,
) -> Float[Array, "R P Q C"]:
    """See :func:`refnet.ops.crop_and_resize_forward`."""
    _, h, w, _ = images.shape
    x1, y1, x2, y2 = boxes.T
    rows = make_axis(crop_coordinates(y1, y2, h, size[0])[..., None], h, margin=0)
    columns = make_axis(crop_coordinates(x1, x2, w, size[1])[..., None], w, margin=0)
    output = _pool(images, image_index, rows, columns)
    known: Bool[Array, "R P Q"] = (rows.share > 0) & (columns.share > 0).swapaxes(1, 2)
    output[~known] = extrapolation_value
    return output


def crop_and_resize_grad_images(
    grad_output: Float[Array, "R P Q C"],
    boxes: Float[Array, "R 4"],
    image_index: Int[Array, " R"],
    *,
    input_shape: Shape4,
) -> Float[Array, "N H W C"]:
    """See :func:`refnet.ops.crop_and_resize_grad_images`."""
    _, h, w, _ = input_shape
    _, p, q, _ = grad_output.shape
    x1, y1, x2, y2 = boxes.T
    rows = make_axis(crop_coordinates(y1, y2, h, p)[..., None], h, margin=0)
    columns = make_axis(crop_coordinates(x1, x2, w, q)[..., None], w, margin=0)
    return _scatter(grad_output, image_index, rows, columns, input_shape)


def crop_and_resize_grad_boxes(
    grad_output: Float[Array, "R P Q C"],
    images: Float[Array, "N H W C"],
    boxes: Float[Array, "R 4"],
    image_index: Int[Array, " R"],
) -> Float[Array, "R 4"]:
    """See :func:`refnet.ops.crop_and_resize_grad_boxes`."""
    _, h, w, _ = images.shape
    _, p, q, _ = grad_output.shape
    x1, y1, x2, y2 = boxes.T
    rows = make_axis(crop_coordinates_for_gradient(y1, y2, h, p)[..., None], h, margin=0)
    columns = make_axis(crop_coordinates_for_gradient(x1, x2, w, q)[..., None], w, margin=0)
    grad_rows, grad_columns = _grad_weights(grad_output, images, image_index, rows, columns)
    grad_y1, grad_y2 = grad_edges(rows.grad_coordinates(grad_rows)[..., 0], h)
    grad_x1, grad_x2 = grad_edges(columns.grad_coordinates(grad_columns)[..., 0], w)
    return np.stack([grad_x1, grad_y1, grad_x2, grad_y2], axis=1)
