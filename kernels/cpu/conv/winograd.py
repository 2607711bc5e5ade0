"""Winograd's minimal filtering: correlations of 3 x 3 taps and stride 1 with fewer products.

Four outputs of three taps take six products instead of twelve, in each direction: F(4 x 4, 3 x 3) takes 36 for a tile
of 16 outputs instead of 144 (Lavin & Gray 2016, Fast Algorithms for Convolutional Neural Networks, equations 12-15):

.. math:: Y = A^T [(G w G^T) \\odot (B^T x B)] A

where x is a tile of 6 x 6 pixels, w the taps, and the products of all tiles and channels with the same place in the
bracket are one matrix product.

Both transforms are made of small products, too: first of whole lines of the image, down its rows, then of each tile,
across its columns, of which the channels are the lines. Blocks of tiles are worked on one row of t products at a time,
so that what a row needs stays in cache.

The matrices evaluate polynomials at points. Lavin's, 0, ±1 and ±2, spare multiplications, which cost nothing in a
product; 0, ±5/8 and ±3/2 are more exact: absolute values grow 63 times at most in the place of 256, and what is typical
of an error is halved (how to choose points: Barabasz, Anderson, Soodhalter & Gregg 2018). B and A are still exact floats.

The gradient to the input is the same with flipped, transposed weights; that to the weights is in winograd_gradient.py.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided

from refnet.arrays import Array
from refnet.kernels.cpu.blas import UNPACKED
from refnet.kernels.cpu.scratch import scratch
from refnet.kernels.cpu.threads import count, runs
from refnet.ops.conv2d import Pair


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Minimal:
    """F(m, 3) of one dimension, with t = m + 2 products.

    Attributes:
        name: of the algorithm in two dimensions.
        outputs: m, the outputs of a tile along one axis.
        data: :math:`B^T`, (t, t).
        taps: G, (t, 3).
        result: :math:`A^T`, (m, t).
    """

    name: str
    outputs: int
    data: Array
    taps: Array
    result: Array

    @property
    def size(self) -> int:
        """t, the pixels of a tile along one axis, and its products."""
        return self.outputs + 2


F2 = Minimal(
    name="F(2x2,3x3)",
    outputs=2,
    data=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float64),
    taps=np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]], np.float64),
    result=np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float64),
)

P, Q = 5 / 8, 3 / 2  # the points of F4 are 0, ±P, ±Q and infinity

F4 = Minimal(
    name="F(4x4,3x3)",
    outputs=4,
    data=np.array(
        [
            [P**2 * Q**2, 0, -(P**2) - Q**2, 0, 1, 0],
            [0, -P * Q**2, -(Q**2), P, 1, 0],
            [0, P * Q**2, -(Q**2), -P, 1, 0],
            [0, -Q * P**2, -(P**2), Q, 1, 0],
            [0, Q * P**2, -(P**2), -Q, 1, 0],
            [0, P**2 * Q**2, 0, -(P**2) - Q**2, 0, 1],
        ],
        np.float64,
    ),
    taps=np.array(
        [
            np.array([1, 0, 0]) / (P**2 * Q**2),
            np.array([1, P, P**2]) / (2 * P**2 * (P**2 - Q**2)),
            np.array([1, -P, P**2]) / (2 * P**2 * (P**2 - Q**2)),
            np.array([1, Q, Q**2]) / (2 * Q**2 * (Q**2 - P**2)),
            np.array([1, -Q, Q**2]) / (2 * Q**2 * (Q**2 - P**2)),
            [0, 0, 1],
        ],
        np.float64,
    ),
    result=np.array(
        [
            [1, 1, 1, 1, 1, 0],
            [0, P, -P, Q, -Q, 0],
            [0, P**2, P**2, Q**2, Q**2, 0],
            [0, P**3, -(P**3), Q**3, -(Q**3), 1],
        ],
        np.float64,
    ),
)


def products_down(matrix: Array, lines: Array, out: Array) -> None:
    """out = matrix · lines for (..., k, L) long lines, in pieces that need no packing: less than half of the time."""
    length = lines.shape[-1]
    for piece in runs(length, max(1, -(-length * matrix.size // UNPACKED))):
        np.matmul(matrix, lines[..., piece], out=out[..., piece])


def transform_weights(w: Array, minimal: Minimal) -> Array:
    """:math:`G w G^T` of (3, 3, C, O) as (t · t, C, O), in scratch memory."""
    square = np.kron(minimal.taps, minimal.taps).astype(w.dtype)  # t·t 9
    transformed = scratch("winograd.weights", (len(square), *w.shape[2:]), w.dtype)
    products_down(square, np.ascontiguousarray(w).reshape(9, -1), transformed.reshape(len(square), -1))
    return transformed


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Tiles that are worked on together: some rows of tiles of some images.

    Attributes:
        images, rows: which; several images only with all their rows.
        columns: tiles of a row.
    """

    images: slice
    rows: slice
    columns: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Images, rows and columns of tiles."""
        return self.images.stop - self.images.start, self.rows.stop - self.rows.start, self.columns

    @property
    def tiles(self) -> int:
        """How many they are."""
        return math.prod(self.shape)


def blocks_of(images: int, size: Pair, outputs: int, tiles: int) -> list[Block]:
    """Blocks of about so many tiles, of `outputs` squared, that cover images of that size; one for each thread at least."""
    rows, columns = (-(-extent // outputs) for extent in size)
    if images * rows * columns == 0:
        return []
    wanted = max(-(-images * rows * columns // tiles), min(count(), images * rows))
    if images >= wanted:
        return [Block(images=some, rows=slice(0, rows), columns=columns) for some in runs(images, wanted)]
    some = runs(rows, min(rows, -(-wanted // images)))
    return [Block(images=slice(n, n + 1), rows=r, columns=columns) for n in range(images) for r in some]


def transform_tiles(x: Array, matrix: Array, block: Block, *, origin: Pair, step: int, name: str) -> Iterator[Array]:
    """:math:`M x M^T` of the tiles of a block, the i-th row of each after the other: t arrays (t, tiles, C).

    The next row overwrites the present one.

    Args:
        x: (N, H, W, C), contiguous; outside the image it is 0.
        matrix: M, (t, k), for tiles of k x k pixels.
        block: which tiles.
        origin: the pixel that the first tile of an image starts at; negative within the padding.
        step: pixels from one tile to the next.
        name: of the scratch memory.
    """
    (n, rows, columns), (t, k) = block.shape, matrix.shape
    height, width, channels = x.shape[1:]
    extent = (columns - 1) * step + k
    down = scratch(f"{name}.down", (t, n, rows, extent, channels), x.dtype)
    start, stop = np.clip((-origin[1], width - origin[1]), 0, extent)  # what of a line is in the image
    down[..., :start, :] = 0
    down[..., stop:, :] = 0
    lines = down.reshape(t, n, rows, -1)[..., start * channels : stop * channels].transpose(2, 1, 0, 3)  # rows n t L
    pixels = x[block.images, :, start + origin[1] : stop + origin[1]].reshape(n, height, -1)
    for row, line in zip(range(block.rows.start, block.rows.stop), lines, strict=True):
        top = row * step + origin[0]
        first, last = np.clip((-top, height - top), 0, k)  # what of a tile is in the image
        products_down(matrix[:, first:last], pixels[:, top + first : top + last], line)

    across = scratch(f"{name}.across", (t, n, rows, columns, channels), x.dtype)
    sn, sy, sx, sc = down.strides[1:]
    for line in down:
        windows = as_strided(line, (n, rows, columns, k, channels), (sn, sy, sx * step, sx, sc), writeable=False)
        np.matmul(matrix, windows, out=across.transpose(1, 2, 3, 0, 4))
        yield across.reshape(t, -1, channels)


class Results:
    """:math:`A^T M A` of the tiles of a block, given row by row."""

    def __init__(self, matrix: Array, block: Block, channels: int, name: str) -> None:
        m, t = matrix.shape
        self.matrix, self.block = matrix, block
        self.across = scratch(f"{name}.result", (t, *block.shape, m, channels), matrix.dtype)

    def put(self, i: int, products: Array) -> None:
        """Take the i-th row, (t, tiles, O)."""
        tiles = products.reshape(products.shape[0], *self.block.shape, -1)
        np.matmul(self.matrix, tiles.transpose(1, 2, 3, 0, 4), out=self.across[i])

    def write(self, y: Array) -> Iterator[tuple[slice, slice]]:
        """Fill what of y, (N, Ho, Wo, O), the block covers; yields where, as soon as what is there lies together."""
        (n, rows, _), (m, t) = self.block.shape, self.matrix.shape
        length = y.shape[2] * y.shape[3]
        lines = self.across.reshape(t, n, rows, -1)[..., :length].transpose(2, 1, 0, 3)  # rows n t L
        for row, line in zip(range(self.block.rows.start, self.block.rows.stop), lines, strict=True):
            some = slice(row * m, min(row * m + m, y.shape[1]))
            out = y[self.block.images, some].reshape(n, -1, length)
            products_down(self.matrix[: out.shape[1]], line, out)
            if n == 1:
                yield self.block.images, some
        if n > 1:
            yield self.block.images, slice(0, y.shape[1])


def correlate_blocks(
    x: Array, transformed: Array, y: Array, minimal: Minimal, *, origin: Pair, blocks: Sequence[Block]
) -> Iterator[tuple[slice, slice]]:
    """Fill the blocks of y, contiguous, with correlations of x and weights by :func:`transform_weights`; yields where."""
    data, result = minimal.data.astype(x.dtype), minimal.result.astype(x.dtype)
    weights = transformed.reshape(minimal.size, minimal.size, *transformed.shape[1:])
    for block in blocks:
        results = Results(result, block, y.shape[3], "winograd")
        products = scratch("winograd.products", (minimal.size, block.tiles, y.shape[3]), x.dtype)
        rows = transform_tiles(x, data, block, origin=origin, step=minimal.outputs, name="winograd")
        for i, row in enumerate(rows):
            np.matmul(row, weights[i], out=products)
            results.put(i, products)
        yield from results.write(y)
