"""Launchers of ``resize.cu``: nearest neighbour and bilinear resizing, and the pyramid's upsampling with its sum."""

import ctypes
from typing import Any

import numpy as np

from refnet.arrays import Array, namespace
from refnet.errors import ShapeError
from refnet.kernels.cuda.program import LARGEST_GRID, Program, blocks, ready
from refnet.kernels.cuda.vectors import THREADS, TYPES, check_count, check_floats, check_shape, width
from refnet.ops.conv2d import Pair

PROGRAM = Program(
    "resize.cu",
    [f"refnet::{kernel}<{T}>" for T in TYPES.values() for kernel in ("resample", "resample_grad")],
    contraction=False,
)


class Axis(ctypes.Structure):
    """resize.cu's Axis: sample p lies at (step p + offset) / denominator of `source` pixels."""

    _fields_ = tuple((name, ctypes.c_int32) for name in ("source", "size", "step", "offset", "denominator"))


def _nearest(source: int, size: int) -> Axis:
    """Sample p is pixel floor(p source / size)."""
    return Axis(source, size, source, 0, size)


def _bilinear(source: int, size: int, align_corners: bool) -> Axis:
    """Sample p lies at (p + 1/2) source / size - 1/2, or at p (source - 1) / (size - 1)."""
    if align_corners:
        return Axis(source, size, source - 1, 0, max(size - 1, 1))
    return Axis(source, size, 2 * source, source - size, 2 * size)


def resize_nearest_forward(x: Array, *, size: Pair) -> Array:
    """See :func:`refnet.ops.resize_nearest_forward`."""
    _check_images("resize_nearest_forward", x, size)
    return _resample("resize_nearest_forward", x, _axes(x, size), interpolate=False)


def upsample_add_forward(coarse: Array, fine: Array) -> Array:
    """See :func:`refnet.ops.upsample_add_forward`. One launch: the upsampled image is never in memory."""
    what = "upsample_add_forward"
    check_floats(what, coarse=coarse, fine=fine)
    _check_images(what, coarse, fine.shape[1:3])
    _check_images(what, fine, coarse.shape[1:3])
    check_shape(f"{what}: fine", fine, (coarse.shape[0], *fine.shape[1:3], coarse.shape[3]))
    return _resample(what, coarse, _axes(coarse, fine.shape[1:3]), interpolate=False, other=fine)


def resize_nearest_grad(grad_output: Array, *, source: Pair) -> Array:
    """See :func:`refnet.ops.resize_nearest_grad`."""
    _check_images("resize_nearest_grad", grad_output, source)
    rows, columns = (_nearest(s, t) for s, t in zip(source, grad_output.shape[1:3], strict=True))
    return _gather("resize_nearest_grad", grad_output, (rows, columns), interpolate=False)


def resize_bilinear_forward(x: Array, *, size: Pair, align_corners: bool) -> Array:
    """See :func:`refnet.ops.resize_bilinear_forward`. Two products a pixel instead of a matrix's row."""
    _check_images("resize_bilinear_forward", x, size)
    rows, columns = (_bilinear(s, t, align_corners) for s, t in zip(x.shape[1:3], size, strict=True))
    return _resample("resize_bilinear_forward", x, (rows, columns), interpolate=True)


def resize_bilinear_grad(grad_output: Array, *, source: Pair, align_corners: bool) -> Array:
    """See :func:`refnet.ops.resize_bilinear_grad`."""
    _check_images("resize_bilinear_grad", grad_output, source)
    rows, columns = (_bilinear(s, t, align_corners) for s, t in zip(source, grad_output.shape[1:3], strict=True))
    return _gather("resize_bilinear_grad", grad_output, (rows, columns), interpolate=True)


def _axes(x: Array, size: Pair) -> tuple[Axis, Axis]:
    rows, columns = (_nearest(s, t) for s, t in zip(x.shape[1:3], size, strict=True))
    return rows, columns


def _resample(what: str, x: Array, axes: tuple[Axis, Axis], *, interpolate: bool, other: Array | None = None) -> Array:
    xp = namespace(x)
    x = ready(x)
    y: Array = xp.empty((x.shape[0], axes[0].size, axes[1].size, x.shape[3]), x.dtype)
    inputs = (x, x if other is None else ready(other))
    flags = (np.bool_(interpolate), np.bool_(other is not None))
    _launch("resample", what, axes, (axes[0].size, axes[1].size), (*flags, *inputs, y))
    return y


def _gather(what: str, grad_output: Array, axes: tuple[Axis, Axis], *, interpolate: bool) -> Array:
    xp = namespace(grad_output)
    n, _, _, channels = grad_output.shape
    grad: Array = xp.empty((n, axes[0].source, axes[1].source, channels), grad_output.dtype)
    extents = (axes[0].source, axes[1].source)
    _launch("resample_grad", what, axes, extents, (np.bool_(interpolate), ready(grad_output), grad))
    return grad


def _launch(kernel: str, what: str, axes: tuple[Axis, Axis], extents: Pair, arguments: tuple[Any, ...]) -> None:
    """Give a thread to each vector of channels of each column; rows and images follow along the grid's y and z."""
    arrays = [value for value in arguments if not isinstance(value, np.bool_)]
    result: Array = arrays[-1]
    images, channels = result.shape[0], result.shape[3]
    wide = width(channels, *arrays)
    check_count(f"{what}: numbers in a row", extents[1] * channels)
    columns = blocks(extents[1] * channels // wide, THREADS)
    grid = (columns, min(extents[0], LARGEST_GRID[1]), min(images, LARGEST_GRID[2]))
    arguments = (*axes, np.int32(images), np.int32(channels), np.int32(wide), *arguments)
    name = f"refnet::{kernel}<{TYPES[result.dtype]}>"
    PROGRAM.launch(namespace(result), name, grid, (THREADS,), arguments, outputs=(len(arguments) - 1,))


def _check_images(what: str, x: Array, other: Pair) -> None:
    """Check images, and the size that they are to have or had, so that all coordinates are ints."""
    check_floats(what, x=x)
    if x.ndim != 4 or len(other) != 2 or 0 in x.shape[1:3] or 0 in other:
        raise ShapeError(f"{what}: expected (N, H, W, C) with at least one pixel, got {x.shape} and {tuple(other)}")
    for a, b in zip(x.shape[1:3], other, strict=True):
        check_count(f"{what}: twice the product of {a} + 1 and {b} + 1 pixels", 2 * (a + 1) * (b + 1))
