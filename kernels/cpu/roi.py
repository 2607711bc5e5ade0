"""ROIAlign and crop_and_resize by matrix products over each region's support.

The specification multiplies whole images by weights that are nearly all zero. Here every region gets the few rows
and columns that its samples touch, a window of the image that needs no copy. What the products are was measured:

* Forward, columns come first: (Q, w) by (w, C) for each row of the window, whose pixels lie side by side in memory; the
  result stays in cache, and its rows are combined by one product, (P, h) by (h, Q C).
* Backward, columns come first as well, (w, Q) by (Q, C) for each row of bins, and the second product is added to the
  window where it lies, by BLAS if that can be reached, so that the image's gradient is read and written once.
* A bin touches few of its region's pixels. From some size on, the bins are cut into groups, each with its own pixels.
* A mask has one channel, too few for a product of each row: two products, of the whole window, are all.
* OpenBLAS multiplies small matrices as they lie and copies larger ones first, which costs more than it gains here.
* Regions are visited by position, so that the next one finds pixels in cache.

Coordinates are rounded as in the specification; sums may be taken in another order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from refnet.arrays import Array
from refnet.kernels.cpu import blas
from refnet.kernels.cpu.scratch import scratch
from refnet.kernels.cpu.threads import count, split, spread
from refnet.ops.conv2d import Pair
from refnet.ops.crop_and_resize import crop_coordinates, crop_coordinates_for_gradient, grad_edges
from refnet.ops.roi_align import sample_counts, spans
from refnet.ops.sampling import Shape4, inside

GROUP = 160  # bins times pixels in a product of one axis, from which on two groups are faster
BAND = 16  # rows of an image whose regions are visited together
LEAST = 1 << 21  # numbers in the regions: of fewer, in many small products, two threads make more slowly than one

Group: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Along one axis, the pixels that each region's samples touch, and their weights.

    Attributes:
        first: the first pixel touched.
        stop: the one behind the last.
        weights: of pixel first + e in bin p; E is the largest number of pixels that a region touches.
        groups: of each region, runs of bins and of the pixels they touch, as (first bin, the one behind the last,
            the pixel of the first weight that isn't zero, the one behind the last), pixels counted from `first`.
        below, above: the pixels around each sample, counted from `first`; both the same at an integer.
        share: what a sample counts for in its bin: 1 / S, or 0 if it lies outside.
    """

    first: Int[Array, " R"]
    stop: Int[Array, " R"]
    weights: Float[Array, "R P E"]
    groups: list[list[Group]]
    below: Int[Array, "R P S"]
    above: Int[Array, "R P S"]
    share: Float[Array, "R P S"]

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The pixels of each region."""
        return list(zip(self.first.tolist(), self.stop.tolist(), strict=True))

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
        groups = [[(0, bins, 0, 0)]] * regions
        return Axis(
            first=nothing, stop=nothing, weights=weights, groups=groups, below=none, above=none,
            share=none.astype(dtype),
        )  # fmt: skip
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
    extents = stop - first
    below = low - first[:, None, None]
    at_low, at_next = (1 - (positions - floor)) * share, (1 - ((floor + 1) - positions)) * share
    weights = _weights(below, high - low, at_low, at_next, int(extents.max()))
    return Axis(
        first=first,
        stop=stop,
        weights=weights,
        groups=_groups(below, high - first[:, None, None], extents),
        below=below,
        above=below + (positions > floor),
        share=share,
    )


def _weights(
    below: Int[Array, "R P S"],
    step: Int[Array, "R P S"],
    at_low: Float[Array, "R P S"],
    at_next: Float[Array, "R P S"],
    extent: int,
) -> Float[Array, "R P E"]:
    """Each bin's weights: what its samples give to the pixel below each and to the one `step` further, added up."""
    regions, bins, samples = below.shape
    weights = np.zeros(regions * bins * extent, at_low.dtype)
    first = (np.arange(regions * bins) * extent).reshape(regions, bins)
    for j in range(samples):
        place = first + below[..., j]
        weights[place] += at_low[..., j]
        weights[place + step[..., j]] += at_next[..., j]
    return weights.reshape(regions, bins, extent)


def _groups(below: Int[Array, "R P S"], above: Int[Array, "R P S"], extents: Int[Array, " R"]) -> list[list[Group]]:
    """The bins of each region in groups, from the pixels around each sample."""
    bins = below.shape[1]
    groups = [[(0, bins, 0, extent)] for extent in extents.tolist()]
    wanted = np.minimum(-(-bins * extents // GROUP), bins)
    for number in np.unique(wanted[wanted > 1]).tolist():
        chosen = np.flatnonzero(wanted == number)
        edges = [bins * g // number for g in range(number + 1)]
        starts = np.minimum.reduceat(below[chosen].min(axis=2), edges[:-1], axis=1).tolist()
        stops = (np.maximum.reduceat(above[chosen].max(axis=2), edges[:-1], axis=1) + 1).tolist()
        for r, start, stop in zip(chosen.tolist(), starts, stops, strict=True):
            groups[r] = list(zip(edges[:-1], edges[1:], start, stop, strict=True))
    return groups


def _by_position(image_index: Int[Array, " R"], rows: Axis, columns: Axis) -> list[int]:
    """The regions in the order in which they are visited: image by image, band by band, from left to right."""
    order: list[int] = np.lexsort((columns.first, rows.first // BAND, image_index)).tolist()
    return order


def _pool(
    images: Float[Array, "N H W C"], image_index: Int[Array, " R"], rows: Axis, columns: Axis
) -> Float[Array, "R P Q C"]:
    """Y f X^T for every region."""
    images = np.ascontiguousarray(images)
    c = images.shape[3]
    (regions, p, height), q = rows.weights.shape, columns.weights.shape[1]
    output = np.empty((regions, p, q, c), images.dtype)
    lines = output.reshape(regions, p, q * c)
    image, down, across = image_index.tolist(), rows.ranges, columns.ranges

    def work(mine: Sequence[int]) -> None:
        narrowed = scratch("regions", (height, q, c), images.dtype)
        flattened = narrowed.reshape(height, q * c)
        for r in mine:
            (top, bottom), (left, right) = down[r], across[r]
            window = images[image[r], top:bottom, left:right]  # h w C
            here, flat = narrowed[: bottom - top], flattened[: bottom - top]  # h Q C
            for a, b, start, stop in columns.groups[r]:
                np.matmul(columns.weights[r, a:b, start:stop], window[:, start:stop], out=here[:, a:b])
            for a, b, start, stop in rows.groups[r]:
                np.matmul(rows.weights[r, a:b, start:stop], flat[start:stop], out=lines[r, a:b])

    def work_without_channels(mine: Sequence[int]) -> None:
        for r in mine:
            (top, bottom), (left, right) = down[r], across[r]
            narrowed = rows.weights[r, :, : bottom - top] @ images[image[r], top:bottom, left:right, 0]  # P w
            np.matmul(narrowed, columns.weights[r, :, : right - left].T, out=output[r, :, :, 0])

    regions_of_threads = split(_by_position(image_index, rows, columns), worthwhile=output.size >= LEAST)
    spread(work_without_channels if c == 1 else work, regions_of_threads)
    return output


def _scatter(
    grad_output: Float[Array, "R P Q C"], image_index: Int[Array, " R"], rows: Axis, columns: Axis, input_shape: Shape4
) -> Float[Array, "N H W C"]:
    """Y^T g X, added up over the regions of each image, in the order of their positions.

    Threads share the rows of all images: each adds what the regions that reach into its band leave there.
    """
    n, h, w, c = input_shape
    grad_output = np.ascontiguousarray(grad_output)
    p, width = rows.weights.shape[1], columns.weights.shape[2]
    lines = np.zeros((n * h, w * c), grad_output.dtype)
    if not rows.weights.size or not columns.weights.size:  # no region, or none with a sample
        return lines.reshape(input_shape)
    above = image_index.astype(np.int64) * h  # lines of the images before; bytes would be too small for them
    tops = (above + rows.first).tolist()
    across = columns.ranges
    order = _by_position(image_index, rows, columns)

    def work(band: slice) -> None:
        whole = band == slice(0, n * h)
        widened = scratch("regions", (p, width, c), grad_output.dtype)
        add = _adder(rows.weights, widened.reshape(p, width * c), lines)
        for r in order:
            top, (left, right) = tops[r], across[r]
            groups = rows.groups[r] if whole else _within(rows.groups[r], band.start - top, band.stop - top)
            if groups:
                x = columns.weights[r, :, : right - left].T
                np.matmul(x, grad_output[r], out=widened[:, : right - left])  # P w C
                for group in groups:
                    add(r, group, top, left * c, right * c)

    spread(work, _bands(above + rows.first, above + rows.stop, n * h, grad_output.size))
    return lines.reshape(input_shape)


def _adder(
    weights: Float[Array, "R P E"], across: Float[Array, "P V"], lines: Float[Array, "L U"]
) -> Callable[[int, Group, int, int, int], None]:
    """What adds the product of a region's rows, for one group, to the window that starts at line `top`.

    It gets the region, its group, and `top`, `left` and `right` of the window in `lines`, in numbers of these.
    """
    product = blas.function(lines.dtype)
    if product is None:

        def add_copied(r: int, group: Group, top: int, left: int, right: int) -> None:
            a, b, start, stop = group
            lines[top + start : top + stop, left:right] += weights[r, a:b, start:stop].T @ across[a:b, : right - left]

        return add_copied

    assert weights.flags.c_contiguous
    assert across.flags.c_contiguous
    assert lines.flags.c_contiguous
    (_, bins, extent), wide, pitch, item = weights.shape, across.shape[1], lines.shape[1], lines.itemsize
    weights_at, across_at, lines_at = (array.ctypes.data for array in (weights, across, lines))

    def add(r: int, group: Group, top: int, left: int, right: int) -> None:
        a, b, start, stop = group
        step = max(blas.UNPACKED // ((b - a) * (stop - start)) & -64, 64)
        y = weights_at + ((r * bins + a) * extent + start) * item
        for column in range(left, right, step):
            product(
                blas.ROW_MAJOR, blas.TRANSPOSE, blas.NO_TRANSPOSE,
                stop - start, min(step, right - column), b - a,
                1.0, y, extent, across_at + (a * wide + column - left) * item, wide,
                1.0, lines_at + ((top + start) * pitch + column) * item, pitch,
            )  # fmt: skip

    return add


def _within(groups: list[Group], low: int, high: int) -> list[Group]:
    """What of a region's groups has pixels from `low` to `high`."""
    cut = ((a, b, max(start, low), min(stop, high)) for a, b, start, stop in groups)
    return [group for group in cut if group[2] < group[3]]


def _bands(tops: Int[Array, " R"], bottoms: Int[Array, " R"], lines: int, numbers: int) -> list[slice]:
    """`lines` in a band for each thread, which the windows from `tops` to `bottoms` keep equally busy."""
    if count() == 1 or numbers < LEAST:
        return [slice(0, lines)]
    windows = np.bincount(tops, minlength=lines + 1) - np.bincount(bottoms, minlength=lines + 1)
    busy = windows.cumsum().cumsum()  # windows over each line and those before it
    ends = np.searchsorted(busy, busy[-1] * np.arange(1, count()) / count()).tolist()
    return [slice(a, b) for a, b in pairwise([0, *ends, lines]) if a < b]


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
    (regions, p, height), q = rows.weights.shape, columns.weights.shape[1]
    grad_rows, grad_columns = np.zeros_like(rows.weights), np.zeros_like(columns.weights)
    lines = grad_output.reshape(regions, p, q * c)
    image, down, across = image_index.tolist(), rows.ranges, columns.ranges

    def work(mine: Sequence[int]) -> None:
        buffer = scratch("regions", (height, q, c), images.dtype)
        for r in mine:
            (top, bottom), (left, right) = down[r], across[r]
            window = images[image[r], top:bottom, left:right]  # h w C
            here = buffer[: bottom - top]
            flat = here.reshape(bottom - top, q * c)
            np.matmul(columns.weights[r, :, : right - left], window, out=here)  # h Q C
            np.matmul(lines[r], flat.T, out=grad_rows[r, :, : bottom - top])
            np.matmul(rows.weights[r, :, : bottom - top].T, lines[r], out=flat)  # h Q·C
            (here @ window.swapaxes(1, 2)).sum(axis=0, out=grad_columns[r, :, : right - left])

    spread(work, split(_by_position(image_index, rows, columns), worthwhile=grad_output.size >= LEAST))
    return grad_rows, grad_columns


# ROIAlign


def _align_axis(
    start: Float[Array, " R"], extent: Float[Array, " R"], length: int, bins: int, sampling_ratio: int
) -> tuple[Axis, Float[Array, "R P S"]]:
    """The axis, and of each sample the share of the extent that it lies behind the start."""
    counts = sample_counts(extent, bins, sampling_ratio)
    samples = int(counts.max(initial=0))
    divisor = np.maximum(counts, 1).astype(start.dtype)
    p = np.arange(bins, dtype=start.dtype)[:, None]
    j = (np.arange(samples, dtype=start.dtype) + 0.5)[:, None, None]
    bin_size = extent / bins
    coordinates = start + p * bin_size + j * bin_size / divisor  # S P R: arithmetic is fast along many regions
    axis = make_axis(coordinates.T, length, margin=1, counts=counts)
    return axis, ((p + j / divisor) / bins).T


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
