"""The gradient to 3 x 3 weights of stride 1 by Winograd's minimal filtering.

A tile of the image (6 x 6 pixels for F(4 x 4, 3 x 3)) meets a tile of the output's gradient (4 x 4), and their
correlation is what the tile adds to the gradient of the nine taps. The forward pass gives

.. math:: \\sum_{tiles} \\bigl\\langle A^T [(G w G^T) \\odot (B^T x B)] A,\\; g \\bigr\\rangle

which is linear in w, so its derivative needs no other matrices (Winograd 1980, Arithmetic Complexity of Computations,
calls this the transpose of an algorithm; the result is F(3 x 3, 4 x 4)):

.. math:: \\mathrm{d}w = G^T \\Bigl[ \\sum_{tiles} (B^T x B) \\odot (A\\, g\\, A^T) \\Bigr] G

The sum over tiles is, for each of the t · t places in the bracket, one matrix product (C, tiles) (tiles, O), and G is
applied once, at the end: 36 products a tile, channel and output, where plain products are 144.
"""

from collections.abc import Sequence

import numpy as np

from refnet.arrays import Array
from refnet.kernels.cpu import blas
from refnet.kernels.cpu.conv.winograd import Minimal, blocks_of, transform_tiles
from refnet.kernels.cpu.scratch import scratch
from refnet.kernels.cpu.threads import split, spread
from refnet.ops.conv2d import Pair

BLOCK_BYTES = 20 << 20  # of the transformed tiles that are added up at once; with half or twice as many no faster


def grad_weight(x: Array, g: Array, minimal: Minimal, origin: Pair) -> Array:
    """The gradient to the weights of a correlation of stride 1, (3, 3, C, O).

    Args:
        x: the image, (N, H, W, C).
        g: the gradient of the output, (N, Ho, Wo, O).
        minimal: the algorithm.
        origin: the pixel of the image that the first window starts at; negative within the padding.
    """
    x, g = np.ascontiguousarray(x), np.ascontiguousarray(g)
    channels, outputs, m, t = x.shape[3], g.shape[3], minimal.outputs, minimal.size
    tiles = BLOCK_BYTES // (t * t * max(channels + outputs, 1) * x.itemsize)
    pieces = split(blocks_of(len(x), g.shape[1:3], m, max(tiles, 1)))
    totals = scratch("winograd_gradient.totals", (max(len(pieces), 1), t * t, channels, outputs), x.dtype)
    if not pieces:
        totals[...] = 0
    data, scatter = minimal.data.astype(x.dtype), np.ascontiguousarray(minimal.result.T, x.dtype)

    def add_up(piece: int) -> None:
        total = totals[piece].reshape(t, t, channels, outputs)
        for position, block in enumerate(pieces[piece]):
            of_x = transform_tiles(x, data, block, origin=origin, step=m, name="winograd_gradient.image")
            of_g = transform_tiles(g, scatter, block, origin=(0, 0), step=m, name="winograd_gradient.output")
            for row_x, row_g, row in zip(of_x, of_g, total, strict=True):
                _add_products(row_x, row_g, row, first=position == 0)

    spread(add_up, range(len(pieces)))
    total = totals[0]
    for other in totals[1:]:
        total += other
    grad = np.empty((3, 3, channels, outputs), x.dtype)
    square = np.ascontiguousarray(np.kron(minimal.taps, minimal.taps).T, x.dtype)  # 9 t·t
    # a product for each channel, small enough for BLAS to leave its matrices where they are
    np.matmul(square, total.swapaxes(0, 1), out=grad.reshape(9, channels, outputs).swapaxes(0, 1))
    return grad


def _add_products(row_x: Array, row_g: Array, total: Array, *, first: bool) -> None:
    """Add the sums over tiles of products of (t, tiles, C) and (t, tiles, O) to `total`, or write the first ones."""
    if first:
        np.matmul(row_x.swapaxes(1, 2), row_g, out=total)
    elif blas.available():
        for a, b, c in zip(row_x, row_g, total, strict=True):
            blas.multiply(a.T, b, c, beta=1)
    else:
        total += row_x.swapaxes(1, 2) @ row_g


def roundings(images: int, size: Sequence[int], minimal: Minimal) -> int:
    """How often a number is rounded on its way into the gradient, at most.

    Of a row of B or A at most four numbers aren't 0, and all are integers: four roundings in each of two directions,
    for the image and for the gradient, 16 together. The products and their sum are one for each tile. A row of the
    Kronecker square of G has t · t numbers, rounded themselves: one rounding more than products.
    """
    tiles = sum(block.tiles for block in blocks_of(images, (size[0], size[1]), minimal.outputs, 1))
    return 16 + tiles + minimal.size**2 + 1
