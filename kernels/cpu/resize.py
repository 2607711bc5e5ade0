"""Resizing by products of narrow bands.

A pixel of the result is made of two pixels along each axis, so the specification's matrices are zero but for a narrow
band. Rows of the result are made in tiles, each from the source's rows that it needs; while these are in cache, tiles
of columns are made of them. Where an image has few channels, these don't make a product of their own: columns and
channels, which lie side by side, are resampled together, by a matrix that has every weight once for each channel.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from refnet.arrays import Array
from refnet.kernels.cpu.scratch import scratch
from refnet.kernels.cpu.threads import split, spread
from refnet.ops.conv2d import Pair
from refnet.ops.resize import nearest

TILE = 64  # rows, and columns, of the result
FEW = 4  # channels that are resampled together with the columns
LEAST = 1 << 16  # numbers in a result that another thread is worth its start for

Band: TypeAlias = tuple[slice, slice]  # a tile of the result, and the pixels of the source that it is made of


def resize_bilinear_forward(x: Float[Array, "N H W C"], *, size: Pair, align_corners: bool) -> Float[Array, "N P Q C"]:
    """See :func:`refnet.ops.resize_bilinear_forward`."""
    rows, columns = (_hats(s, t, align_corners, x.dtype) for s, t in zip(x.shape[1:3], size, strict=True))
    return _resample(x, rows, columns)


def resize_bilinear_grad(
    grad_output: Float[Array, "N P Q C"], *, source: Pair, align_corners: bool
) -> Float[Array, "N H W C"]:
    """See :func:`refnet.ops.resize_bilinear_grad`."""
    rows, columns = (
        _hats(s, t, align_corners, grad_output.dtype) for s, t in zip(source, grad_output.shape[1:3], strict=True)
    )
    return _resample(grad_output, rows.T, columns.T)


def resize_nearest_forward(x: Float[Array, "N H W C"], *, size: Pair) -> Float[Array, "N P Q C"]:
    """See :func:`refnet.ops.resize_nearest_forward`. Where both extents grow by whole factors, pixels are spread."""
    n, h, w, c = x.shape
    if size[0] % h or size[1] % w:
        return x.take(nearest(h, size[0]), axis=1).take(nearest(w, size[1]), axis=2)
    y = np.empty((n, *size, c), x.dtype)
    _in_blocks(y, (h, w))[...] = x[:, :, None, :, None]
    return y


def resize_nearest_grad(grad_output: Float[Array, "N P Q C"], *, source: Pair) -> Float[Array, "N H W C"]:
    """See :func:`refnet.ops.resize_nearest_grad`."""
    _, p, q, _ = grad_output.shape
    if p % source[0] or q % source[1]:
        rows, columns = (np.eye(s, dtype=grad_output.dtype)[nearest(s, t)] for s, t in zip(source, (p, q), strict=True))
        return _resample(grad_output, rows.T, columns.T)
    blocks = _in_blocks(grad_output, source)
    grad: Array = blocks[:, :, 0, :, 0].copy()
    for a, b in list(np.ndindex(blocks.shape[2], blocks.shape[4]))[1:]:
        grad += blocks[:, :, a, :, b]
    return grad


def upsample_add_forward(coarse: Float[Array, "N H W C"], fine: Float[Array, "N P Q C"]) -> Float[Array, "N P Q C"]:
    """See :func:`refnet.ops.upsample_add_forward`. Coarse pixels are added where they belong, and not repeated first."""
    _, h, w, _ = coarse.shape
    _, p, q, _ = fine.shape
    if p % h or q % w:
        total: Array = fine + resize_nearest_forward(coarse, size=(p, q))
        return total
    y = np.empty(fine.shape, fine.dtype)
    target, source = _in_blocks(y, (h, w)), _in_blocks(fine, (h, w))

    def work(run: Sequence[int]) -> None:
        rows = slice(run[0], run[-1] + 1)
        np.add(source[:, rows], coarse[:, rows, None, :, None], out=target[:, rows])

    spread(work, split(range(h), worthwhile=y.size >= LEAST))
    return y


def _in_blocks(x: Float[Array, "N P Q C"], blocks: Pair) -> Float[Array, "N H A W B C"]:
    """The pixels in so many blocks of equal size along each axis; where a view can't be had, of a copy."""
    n, p, q, c = x.shape
    return x.reshape(n, blocks[0], p // blocks[0], blocks[1], q // blocks[1], c)


def _hats(source: int, size: int, align_corners: bool, dtype: Any) -> Float[Array, "P S"]:
    """:func:`refnet.ops.resize.bilinear`, of which only the two numbers in each row are computed that aren't zero."""
    if align_corners:
        at = np.arange(size) * (source - 1) / max(size - 1, 1)
    else:
        at = (np.arange(size) + 0.5) * source / size - 0.5
    at = at.clip(0, source - 1)
    below = at.astype(np.int64)  # positive numbers are rounded down
    share = at - below
    hats = np.zeros((size, source), dtype)
    pixels = np.arange(size)
    hats[pixels, np.minimum(below + 1, source - 1)] = share  # on the last pixel this is 0, and overwritten
    hats[pixels, below] = 1 - share
    return hats


def _resample(
    x: Float[Array, "N H W C"], rows: Float[Array, "P H"], columns: Float[Array, "Q W"]
) -> Float[Array, "N P Q C"]:
    """Y x X^T, of matrices that are zero but for a band."""
    n, h, w, c = x.shape
    source = np.ascontiguousarray(x).reshape(n, h, w * c)
    y = np.empty((n, len(rows), len(columns), c), x.dtype)
    lines = y.reshape(n, len(rows), len(columns) * c)
    column_bands = [
        (tile, pixels, _for_each_channel(columns[tile, pixels], c) if c <= FEW else columns[tile, pixels])
        for tile, pixels in _bands(columns)
    ]

    def work(tiles: Sequence[tuple[int, Band]]) -> None:
        for image, (tile, pixels) in tiles:
            height = tile.stop - tile.start
            flat = scratch("resampled rows", (height, w * c), x.dtype)
            np.matmul(rows[tile, pixels], source[image, pixels], out=flat)
            for across, beside, weights in column_bands:
                if c <= FEW:
                    near, target = slice(beside.start * c, beside.stop * c), slice(across.start * c, across.stop * c)
                    np.matmul(flat[:, near], weights, out=lines[image, tile, target])
                else:
                    np.matmul(weights, flat.reshape(height, w, c)[:, beside], out=y[image, tile, across])

    tiles = list(product(range(n), _bands(rows)))
    spread(work, split(tiles, worthwhile=y.size >= LEAST))
    return y


def _bands(matrix: Float[Array, "P S"]) -> list[Band]:
    """The matrix in tiles of rows, each with the columns between its outermost numbers that aren't zero.

    With few columns it stays whole: what narrower bands save is less than what more products cost.
    """
    if matrix.shape[1] <= TILE:
        return [(slice(0, len(matrix)), slice(0, matrix.shape[1]))]
    bands = []
    for start in range(0, len(matrix), TILE):
        tile = slice(start, min(start + TILE, len(matrix)))
        used = np.flatnonzero(matrix[tile].any(axis=0)).tolist() or [0]
        bands.append((tile, slice(used[0], used[-1] + 1)))
    return bands


def _for_each_channel(weights: Float[Array, "T K"], channels: int) -> Float[Array, "KC TC"]:
    """The transposed matrix, for columns of so many channels: the weights stand between equal channels, else zeros."""
    if channels == 1:
        return weights.T
    (tile, pixels), every = weights.shape, np.arange(channels)
    spaced = np.zeros((pixels, channels, tile, channels), weights.dtype)
    spaced[:, every, :, every] = weights.T
    return spaced.reshape(pixels * channels, tile * channels)
