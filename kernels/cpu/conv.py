"""Convolution by plain matrix products, tile by tile.

The windows of a tile of output pixels are copied side by side into a matrix, a row a pixel (im2col), and multiplied
with the weights in one product. A tile's matrix is so small that it stays in cache between the copy and the product,
which makes the copy cheap, and so large that reading the weights doesn't dominate. Tiles are shared among threads.

The gradient to the input needs no scatter. Pixel i reads output j through tap a when i + p = s j + d a. So the
pixels of one residue (i + p) mod s see only the taps with the same residue of d a, and among them the sum over taps
is a correlation of stride 1 with every q-th tap in reverse order, where q = s / gcd(s, d): s_y s_x small convolutions,
of which each writes every s-th pixel. For stride 1 this is the well-known convolution with the flipped kernel.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided

from refnet.arrays import Array
from refnet.kernels.cpu.threads import count, runs, split, spread
from refnet.ops.conv2d import Padding, Pair

TILE_BYTES = 2 << 20  # the best of 256 KiB to 8 MiB on layers of 3 to 512 channels

Tile: TypeAlias = tuple[slice, slice]  # of images, and of output rows; several images only with all of their rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Where the windows of a correlation lie.

    Attributes:
        kernel_size: taps of a window.
        size: how many windows there are.
        origin: the pixel of the image that the first window starts at; negative within the padding.
        stride: pixels from one window to the next.
        dilation: pixels from one tap to the next.
    """

    kernel_size: Pair
    size: Pair
    origin: Pair
    stride: Pair
    dilation: Pair

    def extent(self, windows: int, axis: int) -> int:
        """Pixels from the start of the first to the end of the last of so many windows."""
        return (windows - 1) * self.stride[axis] + (self.kernel_size[axis] - 1) * self.dilation[axis] + 1

    def are_the_pixels(self, image_size: Sequence[int]) -> bool:
        """Whether the windows are the image's pixels, one by one."""
        return (*self.kernel_size, *self.origin, *self.stride) == (1, 1, 0, 0, 1, 1) and self.size == tuple(image_size)


def conv2d_forward(x: Array, w: Array, *, stride: Pair, padding: Padding, dilation: Pair, groups: int) -> Array:
    """See :func:`refnet.ops.conv2d_forward`."""
    kh, kw, cg, outputs = w.shape
    rows, columns = (
        (size + sum(pads) - (k - 1) * d - 1) // s + 1
        for size, k, s, pads, d in zip(x.shape[1:3], (kh, kw), stride, padding, dilation, strict=True)
    )
    windows = Windows(
        kernel_size=(kh, kw),
        size=(rows, columns),
        origin=(-padding[0][0], -padding[1][0]),
        stride=stride,
        dilation=dilation,
    )
    y = np.empty((len(x), rows, columns, outputs), x.dtype)
    og = outputs // groups
    for g in range(groups):
        weights = np.ascontiguousarray(w[..., g * og : (g + 1) * og]).reshape(-1, og)
        _correlate(x[..., g * cg : (g + 1) * cg], weights, y[..., g * og : (g + 1) * og], windows)
    return y


def conv2d_fused_forward(
    x: Array,
    w: Array,
    scale: Array | None,
    shift: Array | None,
    residual: Array | None,
    *,
    relu: bool,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    """See :func:`refnet.ops.conv2d_fused_forward`."""
    y = conv2d_forward(x, w, stride=stride, padding=padding, dilation=dilation, groups=groups)
    rows = y.reshape(-1, y.shape[3])
    added = None if residual is None else residual.reshape(rows.shape)

    def finish(some: Sequence[slice]) -> None:
        for block in some:
            part = rows[block]
            if scale is not None:
                part *= scale
            if shift is not None:
                part += shift
            if added is not None:
                part += added[block]
            if relu:
                np.maximum(part, 0, out=part)

    if rows.size and (relu or any(array is not None for array in (scale, shift, residual))):
        spread(finish, split(runs(len(rows), -(-y.nbytes // TILE_BYTES))))
    return y


def conv2d_grad_input(
    grad_output: Array, w: Array, *, input_size: Pair, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Array:
    """See :func:`refnet.ops.conv2d_grad_input`."""
    kh, kw, cg, outputs = w.shape
    if math.prod(input_size) > 2 * math.prod(stride) * math.prod(grad_output.shape[1:3]):
        return _scatter(grad_output, w, input_size, stride, padding, dilation, groups)
    og = outputs // groups
    grad = np.empty((len(grad_output), *input_size, groups * cg), grad_output.dtype)
    horizontal = _residues(input_size[1], kw, stride[1], padding[1][0], dilation[1])
    for row in _residues(input_size[0], kh, stride[0], padding[0][0], dilation[0]):
        for column in horizontal:
            pixels = grad[:, row.first :: stride[0], column.first :: stride[1]]
            taps = w[row.taps, column.taps]
            if taps.size == 0:
                pixels[...] = 0
                continue
            windows = Windows(
                kernel_size=taps.shape[:2],
                size=pixels.shape[1:3],
                origin=(row.origin, column.origin),
                stride=(1, 1),
                dilation=(row.dilation, column.dilation),
            )
            for g in range(groups):
                weights = taps[..., g * og : (g + 1) * og].transpose(2, 0, 1, 3)  # Cg kh kw Og
                weights = np.ascontiguousarray(weights).reshape(cg, -1).T
                _correlate(
                    grad_output[..., g * og : (g + 1) * og], weights, pixels[..., g * cg : (g + 1) * cg], windows
                )
    return grad


def conv2d_grad_weight(
    x: Array,
    grad_output: Array,
    *,
    kernel_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    """See :func:`refnet.ops.conv2d_grad_weight`."""
    windows = Windows(
        kernel_size=kernel_size,
        size=grad_output.shape[1:3],
        origin=(-padding[0][0], -padding[1][0]),
        stride=stride,
        dilation=dilation,
    )
    cg, outputs = x.shape[3] // groups, grad_output.shape[3]
    og = outputs // groups
    grad = np.empty((*kernel_size, cg, outputs), x.dtype)
    for g in range(groups):
        total = _outer(x[..., g * cg : (g + 1) * cg], grad_output[..., g * og : (g + 1) * og], windows)
        grad[..., g * og : (g + 1) * og] = total.reshape(*kernel_size, cg, og)
    return grad


@dataclass(frozen=True, slots=True, kw_only=True)
class Residue:
    """Along one axis, the pixels first, first + s, first + 2s... and what they see of the output.

    Attributes:
        first: the first pixel.
        taps: the taps through which they see it, in reverse order.
        origin: the output that `first` sees through the first of these taps.
        dilation: outputs from one of these taps to the next.
    """

    first: int
    taps: slice
    origin: int
    dilation: int


def _residues(size: int, k: int, s: int, before: int, d: int) -> list[Residue]:
    """The residues of `size` pixels for k taps, stride s, padding `before` and dilation d.

    Pixel first + s t sees tap a = a0 + q m in output t + (first + p - d a0) / s - (d q / s) m.
    """
    q = s // math.gcd(s, d)
    found = []
    for first in range(min(s, size)):
        a0 = next((a for a in range(min(q, k)) if (first + before - d * a) % s == 0), k)
        last = max(range(a0, k, q), default=None)
        if last is None:
            found.append(Residue(first=first, taps=slice(0, 0), origin=0, dilation=1))
        else:
            taps = slice(last, a0 - 1 if a0 else None, -q)
            found.append(Residue(first=first, taps=taps, origin=(first + before - d * last) // s, dilation=d * q // s))
    return found


def _scatter(
    grad_output: Array, w: Array, input_size: Pair, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Array:
    """The gradient to the input tap by tap: for an output so small that most windows of it would hold only padding."""
    n, ho, wo, _ = grad_output.shape
    kh, kw, cg, outputs = w.shape
    og = outputs // groups
    (top, bottom), (left, right) = padding
    padded = np.zeros((n, input_size[0] + top + bottom, input_size[1] + left + right, groups * cg), grad_output.dtype)
    for a in range(kh):
        rows = slice(a * dilation[0], a * dilation[0] + (ho - 1) * stride[0] + 1, stride[0])
        for b in range(kw):
            columns = slice(b * dilation[1], b * dilation[1] + (wo - 1) * stride[1] + 1, stride[1])
            for g in range(groups):
                part = grad_output[..., g * og : (g + 1) * og].reshape(-1, og)
                tap = part @ w[a, b, :, g * og : (g + 1) * og].T
                padded[:, rows, columns, g * cg : (g + 1) * cg] += tap.reshape(n, ho, wo, cg)
    return padded[:, top : top + input_size[0], left : left + input_size[1]]


def _correlate(x: Array, weights: Array, y: Array, windows: Windows) -> None:
    """Fill y, a view of any strides: windows of x times weights (kh · kw · C, O)."""
    x, y, windows = _one_tall_image(x, y, windows)
    tiles = _tiles(x, windows, max(TILE_BYTES, weights.nbytes), least=count())

    def fill(some: Sequence[Tile]) -> None:
        for tile, matrix in _matrices(x, windows, some):
            out = y[tile]
            if out.flags.c_contiguous:
                np.matmul(matrix, weights, out=out.reshape(-1, y.shape[3]))
            else:
                out[...] = (matrix @ weights).reshape(out.shape)

    spread(fill, split(tiles))


def _outer(x: Array, g: Array, windows: Windows) -> Array:
    """The sum over windows of the outer product with g's pixel: (kh · kw · C, O)."""
    x, g, windows = _one_tall_image(x, g, windows)
    shape = (math.prod(windows.kernel_size) * x.shape[3], g.shape[3])
    # every tile has its own product of that shape, which is added to the others: a tile must be larger
    tiles = _tiles(x, windows, max(TILE_BYTES, 4 * math.prod(shape) * x.itemsize), least=1)

    def add_up(some: Sequence[Tile]) -> Array:
        total, product = np.empty(shape, x.dtype), None
        for tile, matrix in _matrices(x, windows, some):
            part = g[tile].reshape(-1, g.shape[3])
            if product is None:
                np.matmul(matrix.T, part, out=total)
                product = np.empty(shape if len(some) > 1 else 0, x.dtype)
            else:
                total += np.matmul(matrix.T, part, out=product)
        return total

    first, *others = spread(add_up, split(tiles)) or [np.zeros(shape, x.dtype)]
    for other in others:
        first += other
    return first


def _one_tall_image(x: Array, y: Array, windows: Windows) -> tuple[Array, Array, Windows]:
    """Where windows are single pixels the borders between images don't matter: a batch is an image of many rows."""
    if len(x) < 2 or not windows.are_the_pixels(x.shape[1:3]) or not x.flags.c_contiguous or not y.flags.c_contiguous:
        return x, y, windows
    rows, columns = len(x) * x.shape[1], x.shape[2]
    return (
        x.reshape(1, rows, columns, x.shape[3]),
        y.reshape(1, rows, columns, y.shape[3]),
        replace(windows, size=(rows, columns)),
    )


def _tiles(x: Array, windows: Windows, tile_bytes: int, least: int) -> list[Tile]:
    """Tiles of nearly equal size whose matrices have at most about so many bytes; `least` of them, if they aren't tiny.

    Where the windows are the pixels nothing is copied, and so nothing has to stay in cache: a tile a thread will do.
    """
    n, (rows, columns) = len(x), windows.size
    if n == 0 or rows == 0 or columns == 0:
        return []
    all_bytes = n * rows * columns * math.prod(windows.kernel_size) * x.shape[3] * x.itemsize
    wanted = -(-all_bytes // tile_bytes)
    if windows.are_the_pixels(x.shape[1:3]):
        wanted = min(wanted, count())
    wanted = max(wanted, min(least, 1 + 16 * all_bytes // TILE_BYTES))
    if n >= wanted:
        return [(some, slice(0, rows)) for some in runs(n, wanted)]
    return [(slice(k, k + 1), some) for k in range(n) for some in runs(rows, min(rows, -(-wanted // n)))]


def _matrices(x: Array, windows: Windows, tiles: Sequence[Tile]) -> Iterator[tuple[Tile, Array]]:
    """Each tile with its windows, one a row: (pixels, kh · kw · C). A matrix is overwritten by the next one."""
    height, width, channels = x.shape[1:]
    if windows.are_the_pixels((height, width)):
        for tile in tiles:
            yield tile, x[tile].reshape(-1, channels)
        return

    # a piece of the image with its padding, which the windows are views of
    images = max(some.stop - some.start for some, _ in tiles)
    rows = max(some.stop - some.start for _, some in tiles)
    padded = np.empty((images, windows.extent(rows, 0), windows.extent(windows.size[1], 1), channels), x.dtype)
    sn, sy, sx, sc = padded.strides
    views = as_strided(
        padded,
        (images, rows, windows.size[1], *windows.kernel_size, channels),
        (
            sn,
            sy * windows.stride[0],
            sx * windows.stride[1],
            sy * windows.dilation[0],
            sx * windows.dilation[1],
            sc,
        ),
        writeable=False,
    )
    copies = np.empty(views.shape, x.dtype)
    start_x = windows.origin[1]
    stop_x = start_x + padded.shape[2]
    left, right = min(max(start_x, 0), stop_x), max(min(stop_x, width), start_x)
    padded[:, :, : left - start_x] = 0
    padded[:, :, right - start_x :] = 0
    for some, these in tiles:
        n, r = some.stop - some.start, these.stop - these.start
        start_y = windows.origin[0] + these.start * windows.stride[0]
        stop_y = start_y + windows.extent(r, 0)
        top, bottom = min(max(start_y, 0), stop_y), max(min(stop_y, height), start_y)
        padded[:n, : top - start_y] = 0
        padded[:n, bottom - start_y :] = 0
        if top < bottom and left < right:
            inside = padded[:n, top - start_y : bottom - start_y, left - start_x : right - start_x]
            inside[...] = x[some, top:bottom, left:right]
        matrix = copies[:n, :r]
        matrix[...] = views[:n, :r]
        yield (some, these), matrix.reshape(n * r * windows.size[1], -1)
