"""Convolution by plain matrix products, tile by tile.

The windows of a tile of output pixels are copied side by side into a matrix, a row a pixel (im2col), and multiplied
with the weights in one product. A tile's matrix is so small that it stays in cache between the copy and the product,
which makes the copy cheap, and so large that reading the weights doesn't dominate. Tiles are shared among threads.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.lib.stride_tricks import as_strided

from refnet.arrays import Array
from refnet.kernels.cpu.blas import UNPACKED
from refnet.kernels.cpu.scratch import scratch
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

    @classmethod
    def of_convolution(
        cls, image_size: Sequence[int], kernel_size: Sequence[int], stride: Pair, padding: Padding, dilation: Pair
    ) -> "Windows":
        """Those of a convolution's outputs."""
        (top, bottom), (left, right) = padding
        kh, kw = kernel_size
        return cls(
            kernel_size=(kh, kw),
            size=(
                (image_size[0] + top + bottom - (kh - 1) * dilation[0] - 1) // stride[0] + 1,
                (image_size[1] + left + right - (kw - 1) * dilation[1] - 1) // stride[1] + 1,
            ),
            origin=(-top, -left),
            stride=stride,
            dilation=dilation,
        )

    def adjoint(self, image_size: Pair) -> "Windows":
        """Those of the outputs that the pixels of an image are read by, if the stride is 1, the last tap first."""
        (kh, kw), (top, left), (down, right) = self.kernel_size, self.origin, self.dilation
        return replace(self, size=image_size, origin=(-(kh - 1) * down - top, -(kw - 1) * right - left))

    def extent(self, windows: int, axis: int) -> int:
        """Pixels from the start of the first to the end of the last of so many windows."""
        return (windows - 1) * self.stride[axis] + (self.kernel_size[axis] - 1) * self.dilation[axis] + 1

    def are_the_pixels(self, image_size: Sequence[int]) -> bool:
        """Whether the windows are the image's pixels, one by one."""
        return (*self.kernel_size, *self.origin, *self.stride) == (1, 1, 0, 0, 1, 1) and self.size == tuple(image_size)


def correlate(
    x: Array, weights: Array, y: Array, windows: Windows, finish: Callable[[Tile], None] | None = None
) -> None:
    """Fill y, a view of any strides: windows of x times weights (kh · kw · C, O).

    `finish` is called with each tile as soon as it is filled; the windows mustn't be the image's pixels then.
    """
    assert finish is None or not windows.are_the_pixels(x.shape[1:3])
    x, y, windows = one_tall_image(x, y, windows)
    tiles = tiles_of(x, windows, max(TILE_BYTES, weights.nbytes), least=count())

    def fill(some: Sequence[Tile]) -> None:
        for tile, matrix in matrices(x, windows, some):
            out = y[tile]
            if out.flags.c_contiguous:
                multiply_rows(matrix, weights, out.reshape(-1, y.shape[3]))
            else:
                out[...] = (matrix @ weights).reshape(out.shape)
            if finish is not None:
                finish(tile)

    spread(fill, split(tiles))


def rows_at_once(depth: int, outputs: int) -> int | None:
    """How many rows a product with weights of that shape should have; None if it doesn't matter.

    Without packing, few columns take as little as half of the time; but of less than 90 rows the beginnings and ends
    take too long.
    """
    rows = UNPACKED // max(1, depth * outputs)
    return rows if rows >= 90 else None


def multiply_rows(matrix: Array, weights: Array, out: Array) -> None:
    """out = matrix · weights, in pieces of :func:`rows_at_once`."""
    rows = rows_at_once(*weights.shape)
    for piece in runs(len(matrix), 1 if rows is None else -(-len(matrix) // rows)):
        np.matmul(matrix[piece], weights, out=out[piece])


def one_tall_image(x: Array, y: Array, windows: Windows) -> tuple[Array, Array, Windows]:
    """Where windows are single pixels the borders between images don't matter: a batch is an image of many rows."""
    if len(x) < 2 or not windows.are_the_pixels(x.shape[1:3]) or not x.flags.c_contiguous or not y.flags.c_contiguous:
        return x, y, windows
    rows, columns = len(x) * x.shape[1], x.shape[2]
    return (
        x.reshape(1, rows, columns, x.shape[3]),
        y.reshape(1, rows, columns, y.shape[3]),
        replace(windows, size=(rows, columns)),
    )


def tiles_of(x: Array, windows: Windows, tile_bytes: int, least: int) -> list[Tile]:
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


def matrices(x: Array, windows: Windows, tiles: Sequence[Tile]) -> Iterator[tuple[Tile, Array]]:
    """Each tile with its windows, one a row: (pixels, kh · kw · C). A matrix is overwritten by the next one."""
    height, width, channels = x.shape[1:]
    if windows.are_the_pixels((height, width)):
        for tile in tiles:
            yield tile, x[tile].reshape(-1, channels)
        return

    # a piece of the image with its padding, which the windows are views of
    images = max(some.stop - some.start for some, _ in tiles)
    rows = max(some.stop - some.start for _, some in tiles)
    copies = scratch("patches.copies", (images, rows, windows.size[1], *windows.kernel_size, channels), x.dtype)
    start_x, length = windows.origin[1], windows.extent(windows.size[1], 1)
    padded = scratch("patches.padded", (images, windows.extent(rows, 0), length, channels), x.dtype)
    for some, these in tiles:
        n, r = some.stop - some.start, these.stop - these.start
        start_y = windows.origin[0] + these.start * windows.stride[0]
        stop_y = start_y + windows.extent(r, 0)
        if min(start_y, start_x) >= 0 and stop_y <= height and start_x + length <= width:
            source = x[some, start_y:stop_y, start_x : start_x + length]  # no padding: nothing to copy twice
        else:
            source = padded[:n, : stop_y - start_y]
            fill_padded(source, x[some], (start_y, start_x))
        matrix = copies[:n, :r]
        matrix[...] = _views(source, r, windows)
        yield (some, these), matrix.reshape(n * r * windows.size[1], -1)


def fill_padded(piece: Array, x: Array, start: Pair) -> None:
    """Fill `piece`, (n, h, w, C), with the images' pixels from `start` on, and with 0 outside of the images."""
    (top, bottom), (left, right) = (
        (min(max(-first, 0), extent), max(min(size - first, extent), 0))
        for first, extent, size in zip(start, piece.shape[1:3], x.shape[1:3], strict=True)
    )
    piece[:, :top] = 0
    piece[:, bottom:] = 0
    piece[:, top:bottom, :left] = 0
    piece[:, top:bottom, right:] = 0
    if top < bottom and left < right:
        piece[:, top:bottom, left:right] = x[:, start[0] + top : start[0] + bottom, start[1] + left : start[1] + right]


def _views(source: Array, rows: int, windows: Windows) -> Array:
    """The windows that start in so many rows, as views: (n, rows, columns, kh, kw, C)."""
    sn, sy, sx, sc = source.strides
    (down, right), (below, beside) = windows.stride, windows.dilation
    return as_strided(
        source,
        (len(source), rows, windows.size[1], *windows.kernel_size, source.shape[3]),
        (sn, sy * down, sx * right, sy * below, sx * beside, sc),
        writeable=False,
    )
