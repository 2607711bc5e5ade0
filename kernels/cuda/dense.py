"""Launchers of ``dense.cu``: ReLU, affine maps of channels, batch normalisation.

Each is as many launches as it has passes over memory, and for sums one more over what the blocks found. Sums don't
depend on the device: the same arrays give the same bits everywhere.
"""

import math
from typing import Any

import numpy as np

from refnet.arrays import Array, namespace
from refnet.errors import ArgumentError, ShapeError
from refnet.kernels.cuda.program import Program, blocks, ready
from refnet.kernels.cuda.vectors import THREADS, TYPES, block_of, check_count, check_floats, check_shape, width

OPERATIONS = {
    "elementwise": ("Relu", "ReluGrad"),
    "per_channel": ("Scale", "Affine", "Combination"),
}
SUMMING = ("channel_sums", "channel_moments")
FINISHING = ("finish_sums", "finish_moments", "finish_gradients")
PROGRAM = Program(
    "dense.cu",
    [
        f"refnet::{name}"
        for T in TYPES.values()
        for name in (
            *(f"{kernel}<refnet::{f}, {T}>" for kernel, functions in OPERATIONS.items() for f in functions),
            f"fold<{T}>",
            f"move_statistics<{T}>",
            *(f"{kernel}<{T}, {THREADS}>" for kernel in SUMMING),
            *(f"{kernel}<{T}>" for kernel in FINISHING),
        )
    ],
    contraction=False,  # relu and affine maps equal NumPy's bit for bit
)
BLOCKS = 1024  # a wave on the largest GPU; from there on a thread has more rows, of which it loads four at a time
SUMMING_BLOCKS = 384  # one wave on a large GPU; each leaves a share that must be summed
LEAST_ROWS = 16  # that a thread sums
FINISHING_BLOCK = (32, 16)  # channels, and threads that share the shares of each
SUMS = 16  # bytes of dense.cu's Sums


def relu_forward(x: Array) -> Array:
    """See :func:`refnet.ops.relu_forward`."""
    check_floats("relu_forward", x=x)
    return _elementwise("Relu", x, x)


def relu_grad(grad_output: Array, y: Array) -> Array:
    """See :func:`refnet.ops.relu_grad`."""
    check_floats("relu_grad", grad_output=grad_output, y=y)
    check_shape("relu_grad: grad_output", grad_output, y.shape)
    return _elementwise("ReluGrad", grad_output, y)


def _elementwise(function: str, a: Array, b: Array) -> Array:
    xp = namespace(a, b)
    y: Array = xp.empty(a.shape, a.dtype)
    a, b = ready(a), ready(b)
    wide = width(0, a, b, y)  # of one row: what isn't a whole vector at its end is done one by one
    grid = (min(blocks(y.size, THREADS * wide), BLOCKS),)
    arguments = (np.int64(y.size), np.int32(wide), a, b, y.reshape(-1))
    name = f"refnet::elementwise<refnet::{function}, {TYPES[y.dtype]}>"
    PROGRAM.launch(xp, name, grid, (THREADS,), arguments, outputs=(4,))
    return y


def affine_forward(x: Array, scale: Array, shift: Array) -> Array:
    """See :func:`refnet.ops.affine_forward`."""
    _check_channels("affine_forward", x, scale=scale, shift=shift)
    return _per_channel("Affine", x, x, scale, scale, shift)


def affine_grad_input(grad_output: Array, scale: Array) -> Array:
    """See :func:`refnet.ops.affine_grad_input`."""
    _check_channels("affine_grad_input", grad_output, scale=scale)
    return _per_channel("Scale", grad_output, grad_output, scale, scale, scale)


def _per_channel(function: str, x: Array, z: Array, scale: Array, rate: Array, shift: Array) -> Array:
    """scale x + rate z + shift, or the part of it that `function` takes; the other arguments are passed over."""
    xp = namespace(x, z, scale, rate, shift)
    inputs = tuple(ready(array) for array in (x, z, scale, rate, shift))
    y: Array = xp.empty(x.shape, x.dtype)
    channels = x.shape[-1]
    rows, wide = _rows(x), width(channels, *inputs, y)
    block = block_of(channels // wide)
    tiles = blocks(channels // wide, block[0])
    grid = (min(blocks(rows, block[1]), blocks(BLOCKS, max(tiles, 1))), tiles)
    arguments = (np.int64(rows), np.int32(channels), np.int32(wide), *inputs, y)
    name = f"refnet::per_channel<refnet::{function}, {TYPES[y.dtype]}>"
    PROGRAM.launch(xp, name, grid, block, arguments, outputs=(8,))
    return y


def affine_grad_parameters(grad_output: Array, x: Array) -> tuple[Array, Array]:
    """See :func:`refnet.ops.affine_grad_parameters`. Two launches: the blocks' sums, then their sum."""
    _check_channels("affine_grad_parameters", grad_output)
    check_floats("affine_grad_parameters", grad_output=grad_output, x=x)
    check_shape("affine_grad_parameters: x", x, grad_output.shape)
    return _finish_sums(_sums(grad_output, x), x)


def frozen_batch_norm_affine(
    gamma: Array, beta: Array, mean: Array, variance: Array, *, epsilon: float
) -> tuple[Array, Array]:
    """See :func:`refnet.ops.frozen_batch_norm_affine`. One launch instead of six for a handful of numbers."""
    what = "frozen_batch_norm_affine"
    _check_alike(what, gamma=gamma, beta=beta, mean=mean, variance=variance)
    xp = namespace(gamma, beta, mean, variance)
    scale, shift = xp.empty(gamma.shape, gamma.dtype), xp.empty(gamma.shape, gamma.dtype)
    inputs = (ready(array) for array in (gamma, beta, mean, variance))
    arguments = (np.int32(gamma.size), gamma.dtype.type(epsilon), *inputs, scale, shift)
    name = f"refnet::fold<{TYPES[gamma.dtype]}>"
    PROGRAM.launch(xp, name, (blocks(gamma.size, THREADS),), (THREADS,), arguments, outputs=(6, 7))
    return scale, shift


def move_running_statistics(
    running_mean: Array,
    running_variance: Array,
    mean: Array,
    variance: Array,
    *,
    momentum: float,
    correction: float,
) -> None:
    """See :func:`refnet.ops.move_running_statistics`. One launch instead of seven.

    Raises:
        ArgumentError: the averages aren't contiguous.
    """
    what = "move_running_statistics"
    arrays = {"running_mean": running_mean, "running_variance": running_variance, "mean": mean, "variance": variance}
    _check_alike(what, **arrays)
    if not (running_mean.flags.c_contiguous and running_variance.flags.c_contiguous):
        raise ArgumentError(f"{what}: the running averages, which are written to, must be contiguous")
    xp, T = namespace(*arrays.values()), mean.dtype.type
    factors = (T(1 - momentum), T(momentum), T(correction))
    arguments = (np.int32(mean.size), *factors, ready(mean), ready(variance), running_mean, running_variance)
    name = f"refnet::move_statistics<{TYPES[mean.dtype]}>"
    PROGRAM.launch(xp, name, (blocks(mean.size, THREADS),), (THREADS,), arguments)


def matrix_product(a: Array, b: Array) -> Array:
    """See :func:`refnet.ops.matrix_product`: cuBLAS's, by CuPy, which takes transposes as they are."""
    check_floats("matrix_product", a=a, b=b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ShapeError(f"matrix_product: expected (M, K) and (K, N), got {a.shape} and {b.shape}")
    product: Array = namespace(a, b).matmul(a, b)
    return product


def sum_rows(g: Array) -> Array:
    """See :func:`refnet.ops.sum_rows`. Two launches: the blocks' sums, then their sum."""
    _check_channels("sum_rows", g)
    return _finish_sums(_sums(g, g), g)[1]


def batch_norm_forward(x: Array, gamma: Array, beta: Array, *, epsilon: float) -> tuple[Array, Array, Array]:
    """See :func:`refnet.ops.batch_norm_forward`. Two passes: both moments, then y as an affine function of x."""
    _check_channels("batch_norm_forward", x, gamma=gamma, beta=beta)
    if x.size == 0:
        raise ShapeError(f"batch_norm_forward: expected at least one value a channel, got x of shape {x.shape}")
    xp = namespace(x, gamma, beta)
    x = ready(x)
    pilot, mean, variance, scale, shift = (xp.empty(gamma.shape, x.dtype) for _ in range(5))
    shares = _shares("channel_moments", x, (x, pilot), (4, 5))
    inputs = (np.float64(_rows(x)), np.float64(epsilon), ready(gamma), ready(beta), pilot)
    _finish("finish_moments", shares, inputs, (mean, variance, scale, shift))
    return _per_channel("Affine", x, x, scale, scale, shift), mean, variance


def batch_norm_grad(
    grad_output: Array, x: Array, gamma: Array, mean: Array, variance: Array, *, epsilon: float
) -> tuple[Array, Array, Array]:
    """See :func:`refnet.ops.batch_norm_grad`. Two passes: the sums, then grad_x = a g + b x + c with constants."""
    what = "batch_norm_grad"
    _check_channels(what, x, gamma=gamma, mean=mean, variance=variance)
    check_floats(what, grad_output=grad_output, x=x)
    check_shape(f"{what}: grad_output", grad_output, x.shape)
    if x.size == 0:
        raise ShapeError(f"{what}: expected at least one value a channel, got x of shape {x.shape}")
    xp = namespace(grad_output, x, gamma, mean, variance)
    grad_output, x, mean = ready(grad_output), ready(x), ready(mean)
    grad_gamma, grad_beta, scale, rate, shift = (xp.empty(gamma.shape, x.dtype) for _ in range(5))
    inputs = (np.float64(_rows(x)), np.float64(epsilon), ready(gamma), mean, ready(variance))
    _finish("finish_gradients", _sums(grad_output, x, mean), inputs, (grad_gamma, grad_beta, scale, rate, shift))
    return _per_channel("Combination", grad_output, x, scale, rate, shift), grad_gamma, grad_beta


def _sums(a: Array, b: Array, centre: Array | None = None) -> Array:
    """The blocks' shares of the sums over rows of a (b - centre) and of a."""
    a, b = ready(a), ready(b)
    centres = a if centre is None else ready(centre)
    return _shares("channel_sums", a, (a, b, centres), (7,), np.bool_(centre is not None))


def _shares(kernel: str, x: Array, arrays: tuple[Array, ...], outputs: tuple[int, ...], *flags: np.bool_) -> Array:
    """What the blocks of `kernel` find in the rows of `x`, and of others of its shape: (blocks, 2, C), float64."""
    xp = namespace(*arrays)
    rows, channels = _rows(x), x.shape[-1]
    wide = width(channels, *arrays)
    block = block_of(channels // wide)
    tiles = blocks(channels // wide, block[0])
    count = max(1, min(rows // (block[1] * LEAST_ROWS), SUMMING_BLOCKS // max(tiles, 1)))
    shares: Array = xp.empty((count, 2, channels), np.float64)
    arguments = (np.int64(rows), np.int32(channels), np.int32(wide), *arrays, *flags, shares)
    name = f"refnet::{kernel}<{TYPES[x.dtype]}, {THREADS}>"
    PROGRAM.launch(xp, name, (count, tiles), block, arguments, outputs=outputs)
    return shares


def _finish_sums(shares: Array, like: Array) -> tuple[Array, Array]:
    """Both sums, in the type of `like`."""
    xp = namespace(shares)
    product, total = (xp.empty(shares.shape[2], like.dtype) for _ in range(2))
    _finish("finish_sums", shares, (), (product, total))
    return product, total


def _finish(kernel: str, shares: Array, inputs: tuple[Any, ...], outputs: tuple[Array, ...]) -> None:
    """Add the blocks' shares up, and write what `kernel` makes of them."""
    xp = namespace(shares)
    count, _, channels = shares.shape
    arguments = (np.int32(count), np.int32(channels), shares, *inputs, *outputs)
    PROGRAM.launch(
        xp,
        f"refnet::{kernel}<{TYPES[outputs[0].dtype]}>",
        (blocks(channels, FINISHING_BLOCK[0]),),
        FINISHING_BLOCK,
        arguments,
        shared=math.prod(FINISHING_BLOCK) * SUMS,
        outputs=range(3 + len(inputs), len(arguments)),
    )


def _rows(x: Array) -> int:
    return math.prod(x.shape[:-1])


def _check_alike(what: str, **arrays: Array) -> None:
    """Check that all arrays have the shape and type of the first, and are no longer than an int counts."""
    check_floats(what, **arrays)
    shape = next(iter(arrays.values())).shape
    for name, array in arrays.items():
        check_shape(f"{what}: {name}", array, shape)
    check_count(f"{what}: channels", math.prod(shape))


def _check_channels(what: str, x: Array, **constants: Array) -> None:
    """Check that each of `constants` has a number for each channel of `x`, of its type."""
    if x.ndim < 1:
        raise ShapeError(f"{what}: expected (..., C), got an array without axes")
    check_floats(what, x=x, **constants)
    for name, constant in constants.items():
        check_shape(f"{what}: {name}", constant, x.shape[-1:])
    check_count(f"{what}: channels", x.shape[-1])
