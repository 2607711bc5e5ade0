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

BLOCK_BYTES = 6 << 20  # of the transformed tiles that are added up at once, at least: more leave the cache
CACHED_BYTES = 1 << 20  # of sums that are still in cache when the next ones are added


def tiles_of_block(minimal: Minimal, channels: int, outputs: int, item: int, block_bytes: int) -> int:
    """Tiles that are added up at once: of so many bytes, of numbers of `item`, and not less than their sums have."""
    place = minimal.size**2 * item
    return max(max(block_bytes, 2 * place * channels * outputs) // (place * max(channels + outputs, 1)), 1)


def grad_weight(x: Array, g: Array, minimal: Minimal, origin: Pair, tiles: int) -> Array:
    """The gradient to the weights of a correlation of stride 1, (3, 3, C, O).

    Args:
        x: the image, (N, H, W, C).
        g: the gradient of the output, (N, Ho, Wo, O).
        minimal: the algorithm.
        origin: the pixel of the image that the first window starts at; negative within the padding.
        tiles: how many are added up at once, about.
    """
    x, g = np.ascontiguousarray(x), np.ascontiguousarray(g)
    channels, outputs, m, t = x.shape[3], g.shape[3], minimal.outputs, minimal.size
    pieces = split(blocks_of(len(x), g.shape[1:3], m, tiles))
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
    elif total.nbytes > CACHED_BYTES and blas.available():
        for a, b, c in zip(row_x, row_g, total, strict=True):
            blas.multiply(a.T, b, c, beta=1)
    else:
        products = scratch("winograd_gradient.products", total.shape, total.dtype)
        total += np.matmul(row_x.swapaxes(1, 2), row_g, out=products)


def error(minimal: Minimal, blocks: Sequence[int]) -> float:
    """The derived error from blocks of so many tiles, in units of the sum of absolute products, if all are equally large.

    A number is rounded for each product of its block, for each block that is added to it, and 4 t + t² + 1 times besides
    (:mod:`refnet.testing.winograd`). That is multiplied by how much absolute values grow: the largest entry of
    :math:`|G|^T (|B|^T 1 \\odot |A| 1)`, divided by the m outputs of a tile, and squared for the two axes.
    """
    ones = abs(minimal.data).sum(axis=1) * abs(minimal.result).sum(axis=0)
    growth = float((abs(minimal.taps).T @ ones).max()) / minimal.outputs
    roundings = max(blocks, default=0) + len(blocks) + 4 * minimal.size + minimal.size**2
    return roundings * growth**2 * 2.0**-24
