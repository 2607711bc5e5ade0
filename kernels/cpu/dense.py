"""Operations that do little arithmetic on many numbers, arranged for the fewest passes over memory.

All work goes block by block: a block stays in cache through all the steps that it takes, so main memory is read and
written once a pass, not once a step. Three facts about NumPy, measured, shape the steps. Arithmetic between two arrays
of one shape is up to five times as fast as between an array and a row, or the maximum of an array and a number; so
rows and zeros are repeated into a block once. A sum over rows is fastest as a product with ones. To choose by an
irregular mask is slow, to multiply by it isn't. Blocks are shared among threads.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from refnet.arrays import Array
from refnet.kernels.cpu.threads import split, spread

R = TypeVar("R")

BLOCK = 1 << 16  # numbers
LEAST_BLOCKS = 16  # fewer aren't worth another thread


def relu_forward(x: Array) -> Array:
    """See :func:`refnet.ops.relu_forward`."""
    flat = x.reshape(-1)
    y = np.empty_like(flat)
    zeros = np.zeros(min(BLOCK, flat.size), x.dtype)

    def work(blocks: Sequence[slice]) -> None:
        for block in blocks:
            part = flat[block]
            np.maximum(part, zeros[: part.size], out=y[block])

    _by_blocks(work, flat.size, BLOCK)
    return y.reshape(x.shape)


def relu_grad(grad_output: Array, y: Array) -> Array:
    """See :func:`refnet.ops.relu_grad`."""
    g, values = grad_output.reshape(-1), y.reshape(-1)
    grad = np.empty_like(g)

    def work(blocks: Sequence[slice]) -> None:
        for block in blocks:
            np.multiply(g[block], values[block] > 0, out=grad[block])

    _by_blocks(work, g.size, 4 * BLOCK)  # the mask is small
    return grad.reshape(y.shape)


def affine_forward(x: Array, scale: Array, shift: Array) -> Array:
    """See :func:`refnet.ops.affine_forward`."""
    rows = x.reshape(-1, x.shape[-1])
    y = np.empty_like(rows)
    scales, shifts = _repeat(scale, rows), _repeat(shift, rows)

    def work(blocks: Sequence[slice]) -> None:
        for block in blocks:
            out, n = y[block], block.stop - block.start
            np.multiply(rows[block], scales[:n], out=out)
            out += shifts[:n]

    _by_blocks(work, len(rows), len(scales))
    return y.reshape(x.shape)


def affine_grad_input(grad_output: Array, scale: Array) -> Array:
    """See :func:`refnet.ops.affine_grad_input`."""
    rows = grad_output.reshape(-1, grad_output.shape[-1])
    grad = np.empty_like(rows)
    scales = _repeat(scale, rows)

    def work(blocks: Sequence[slice]) -> None:
        for block in blocks:
            np.multiply(rows[block], scales[: block.stop - block.start], out=grad[block])

    _by_blocks(work, len(rows), len(scales))
    return grad.reshape(grad_output.shape)


def affine_grad_parameters(grad_output: Array, x: Array) -> tuple[Array, Array]:
    """See :func:`refnet.ops.affine_grad_parameters`."""
    grad_scale, grad_shift = _sums_with(grad_output, x, np.zeros(x.shape[-1], x.dtype))
    return grad_scale.astype(x.dtype), grad_shift.astype(x.dtype)


def batch_norm_forward(x: Array, gamma: Array, beta: Array, *, epsilon: float) -> tuple[Array, Array, Array]:
    """See :func:`refnet.ops.batch_norm_forward`. Two passes: the moments, then y as an affine function of x."""
    mean, variance = _moments(x.reshape(-1, x.shape[-1]))
    scale = gamma / np.sqrt(variance + epsilon)
    y = affine_forward(x, scale.astype(x.dtype), (beta - scale * mean).astype(x.dtype))
    return y, mean.astype(x.dtype), variance.astype(x.dtype)


def batch_norm_grad(
    grad_output: Array, x: Array, gamma: Array, mean: Array, variance: Array, *, epsilon: float
) -> tuple[Array, Array, Array]:
    """See :func:`refnet.ops.batch_norm_grad`. Two passes: the sums, then grad_x = a g + b x + c with constants."""
    dtype = x.dtype
    rate = 1 / np.sqrt(variance.astype(np.float64) + epsilon)
    centred, grad_beta = _sums_with(grad_output, x, mean)
    grad_gamma = centred * rate

    g, rows = grad_output.reshape(-1, x.shape[-1]), x.reshape(-1, x.shape[-1])
    grad = np.empty_like(rows)
    a = gamma * rate
    b = -a * rate * grad_gamma / len(rows)
    c = -a * grad_beta / len(rows) - b * mean
    a, b, c = (_repeat(constant.astype(dtype), rows) for constant in (a, b, c))

    def work(blocks: Sequence[slice]) -> None:
        term = np.empty(a.shape, dtype)
        for block in blocks:
            out, n = grad[block], block.stop - block.start
            np.multiply(g[block], a[:n], out=out)
            np.multiply(rows[block], b[:n], out=term[:n])
            out += term[:n]
            out += c[:n]

    _by_blocks(work, len(rows), len(a))
    return grad.reshape(x.shape), grad_gamma.astype(dtype), grad_beta.astype(dtype)


def _moments(rows: Array) -> tuple[Array, Array]:
    """The mean and the biased variance of each column, in float64.

    With a pilot p, the mean of the first B of M rows, and d = x - p, the variance is mean(d²) - mean(d)². Since p
    departs from the mean by at most sqrt(M / B) standard deviations, little can cancel.
    """
    block = _block_rows(rows)
    pilot = np.ones(min(block, len(rows)), rows.dtype) @ rows[:block] / min(block, len(rows))
    pilots = _repeat(pilot, rows)
    ones = np.ones(len(pilots), rows.dtype)

    def work(blocks: Sequence[slice]) -> Array:
        sums = np.zeros((2, rows.shape[1]))
        d = np.empty(pilots.shape, rows.dtype)
        for one in blocks:
            n = one.stop - one.start
            np.subtract(rows[one], pilots[:n], out=d[:n])
            sums[0] += ones[:n] @ d[:n]
            np.multiply(d[:n], d[:n], out=d[:n])
            sums[1] += ones[:n] @ d[:n]
        return sums

    first, second = _total(_by_blocks(work, len(rows), block)) / len(rows)
    return pilot + first, second - first * first


def _sums_with(grad_output: Array, x: Array, centre: Array) -> tuple[Array, Array]:
    """The sums of g (x - centre) and of g over each channel, in float64 from block to block."""
    g, rows = grad_output.reshape(-1, x.shape[-1]), x.reshape(-1, x.shape[-1])
    centres = _repeat(centre, rows)
    ones = np.ones(len(centres), x.dtype)

    def work(blocks: Sequence[slice]) -> Array:
        sums = np.zeros((2, x.shape[-1]))
        d = np.empty(centres.shape, x.dtype)
        for block in blocks:
            n = block.stop - block.start
            np.subtract(rows[block], centres[:n], out=d[:n])
            np.multiply(d[:n], g[block], out=d[:n])
            sums[0] += ones[:n] @ d[:n]
            sums[1] += ones[:n] @ g[block]
        return sums

    first, second = _total(_by_blocks(work, len(rows), len(centres)))
    return first, second


def _by_blocks(work: Callable[[Sequence[slice]], R], length: int, step: int) -> list[R]:
    """What `work` gives for the blocks of `length` rows, `step` rows each: once, or once a thread."""
    blocks = [slice(start, min(start + step, length)) for start in range(0, length, max(step, 1))]
    return spread(work, split(blocks, worthwhile=len(blocks) >= LEAST_BLOCKS))


def _block_rows(rows: Array) -> int:
    channels: int = rows.shape[1]
    return max(1, BLOCK // max(channels, 1))


def _repeat(row: Array, rows: Array) -> Array:
    """`row` as often as a block of `rows` needs it."""
    return np.repeat(row[None], min(_block_rows(rows), len(rows)), axis=0)


def _total(parts: list[Array]) -> Array:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
