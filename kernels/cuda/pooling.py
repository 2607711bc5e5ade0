"""Launchers of ``pooling.cu``: max pooling and its adjoint, which gathers and so gives the same bits every time."""

import ctypes

import numpy as np

from refnet.arrays import Array, namespace
from refnet.errors import DTypeError, ShapeError
from refnet.kernels.cuda.program import Program, ready
from refnet.kernels.cuda.vectors import TYPES, check_count, check_floats, check_shape, cover, width
from refnet.ops.conv2d import Padding, Pair, output_extent

PROGRAM = Program(
    "pooling.cu",
    [f"refnet::{kernel}<{T}>" for T in TYPES.values() for kernel in ("max_pool_forward", "max_pool_grad")],
    contraction=False,
)


class Pooling(ctypes.Structure):
    """pooling.cu's Pooling."""

    _fields_ = tuple(
        (name, ctypes.c_int32)
        for name in (
            "channels", "height", "width", "out_height", "out_width",
            "kernel_height", "kernel_width", "stride_y", "stride_x", "top", "left",
        )
    )  # fmt: skip


def max_pool2d_forward(x: Array, *, kernel_size: Pair, stride: Pair, padding: Padding) -> tuple[Array, Array]:
    """See :func:`refnet.ops.max_pool2d_forward`."""
    what = "max_pool2d_forward"
    check_floats(what, x=x)
    if x.ndim != 4:
        raise ShapeError(f"{what}: expected x (N, H, W, C), got {x.shape}")
    size = output_extent(x.shape[1:3], kernel_size, stride, padding, what=what)
    xp = namespace(x)
    x = ready(x)
    shape = (x.shape[0], *size, x.shape[3])
    y, place = xp.empty(shape, x.dtype), xp.empty(shape, np.int32)
    _launch("max_pool_forward", what, x.shape, size, y, (x, y, place), (kernel_size, stride, padding), outputs=(4, 5))
    return y, place


def max_pool2d_grad(
    grad_output: Array, place: Array, *, input_size: Pair, kernel_size: Pair, stride: Pair, padding: Padding
) -> Array:
    """See :func:`refnet.ops.max_pool2d_grad`."""
    what = "max_pool2d_grad"
    check_floats(what, grad_output=grad_output)
    if place.dtype != np.int32:
        raise DTypeError(f"{what}: place must be int32, got {place.dtype}")
    if grad_output.ndim != 4:
        raise ShapeError(f"{what}: expected grad_output (N, Ho, Wo, C), got {grad_output.shape}")
    size = output_extent(input_size, kernel_size, stride, padding, what=what)
    n, _, _, channels = grad_output.shape
    check_shape(f"{what}: grad_output", grad_output, (n, *size, channels))
    check_shape(f"{what}: place", place, grad_output.shape)
    xp = namespace(grad_output, place)
    grad: Array = xp.empty((n, *input_size, channels), grad_output.dtype)
    arrays = (ready(grad_output), ready(place), grad)
    _launch("max_pool_grad", what, grad.shape, size, grad, arrays, (kernel_size, stride, padding), outputs=(5,))
    return grad


def _launch(
    kernel: str,
    what: str,
    input_shape: tuple[int, ...],
    size: Pair,
    result: Array,
    arrays: tuple[Array, ...],
    geometry: tuple[Pair, Pair, Padding],
    *,
    outputs: tuple[int, ...],
) -> None:
    """Give a thread to each vector of channels of each pixel of `result`."""
    pixels, channels = int(np.prod(result.shape[:3], dtype=np.int64)), result.shape[3]
    for name, count in (("pixels", pixels), ("channels", channels)):
        check_count(f"{what}: {name}", count)
    kernel_size, stride, ((top, _), (left, _)) = geometry
    pooling = Pooling(channels, *input_shape[1:3], *size, *kernel_size, *stride, top, left)
    wide = width(channels, *arrays)
    grid, block = cover(pixels, channels // wide)
    arguments = (pooling, np.int32(pixels), np.int32(wide), *arrays)
    name = f"refnet::{kernel}<{TYPES[result.dtype]}>"
    PROGRAM.launch(namespace(result), name, grid, block, arguments, outputs=outputs)
