"""Which algorithm a convolution takes, and why.

:func:`plan` predicts the time of every algorithm that can serve, from a handful of measured costs, and takes the
shortest that :mod:`refnet.kernels.cpu.precision` allows. ``print(plan(...))`` is one line that says why; another choice
is forced within ``with using_plan("winograd_f2"):`` or, for a whole process, by the environment variable
REFNET_CONV_PLAN, wherever that algorithm can serve; elsewhere the planner goes on to choose.

The algorithms, each with what its tile counts:

* "product": windows that are the pixels, so the image is the matrix; rows of a product.
* "patches": windows copied side by side (im2col); bytes of such a matrix.
* "shifted": taps of stride 1 added one by one, which takes OpenBLAS; bytes of the matrix of patches that isn't made.
* "winograd_f2", "winograd_f4": F(2x2,3x3) and F(4x4,3x3); tiles that are worked on together.

The gradient to the input is, for stride 1, a convolution of the output's gradient, and is planned as such. Otherwise there
is no choice: where the windows tile the image, "side_by_side", one product for all taps; where the output is far smaller
than the image, "taps", added one by one; else "residues", a convolution of stride 1 for each, see
:mod:`refnet.kernels.cpu.conv.grads`. The gradient to the weights takes the algorithms of the forward pass, transposed.
"""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from refnet.arrays import Array
from refnet.errors import ArgumentError
from refnet.kernels.cpu import blas
from refnet.kernels.cpu.conv import patches, shifted, winograd_gradient
from refnet.kernels.cpu.conv.patches import Windows, rows_at_once
from refnet.kernels.cpu.conv.winograd import F2, F4, Minimal, blocks_of
from refnet.kernels.cpu.precision import Precision, present_precision
from refnet.kernels.cpu.threads import shared_if_worthwhile
from refnet.ops.conv2d import Padding, Pair

Algorithm: TypeAlias = Literal[
    "product", "patches", "shifted", "winograd_f2", "winograd_f4", "side_by_side", "taps", "residues"
]
Operation: TypeAlias = Literal["conv2d_forward", "conv2d_grad_input", "conv2d_grad_weight"]

WINOGRAD: dict[str, Minimal] = {"winograd_f2": F2, "winograd_f4": F4}

# Costs in nanoseconds, of float32 on one core with AVX-512 (Sapphire Rapids, OpenBLAS 0.3.31). Only their ratios matter.
# Choices were compared with measurements of ResNet-50-FPN's layers, 256 x 256 to 512 x 512 pixels, of the heads on 100
# to 1,000 regions, and of the half-width ResNet-18 of presets.shapes().
MULTIPLY = 2 / 180  # a multiplication and its addition, in a large product
READ_WEIGHT = 0.3  # an element of the weights, packed for each product anew
COPY_PATCH = 0.5  # an element of a matrix of patches, copied and packed
ADD_TAP = 0.35  # an element of the sums, read and written again for each tap
TRANSFORM_WEIGHT = 0.4  # an element of transformed weights
TRANSPOSE_WEIGHT = 1.0  # an element of weights that are transposed first, for the gradient to the input
TRANSFORM_PIXEL: dict[str, float] = {"winograd_f2": 8.0, "winograd_f4": 22.0}  # a tile of a channel, in or out
TRANSFORM_TILE: dict[str, float] = {"winograd_f2": 300.0, "winograd_f4": 400.0}  # a tile, in or out, of any channels
SHORT_CALLS = 2.5  # how much longer Winograd must take until two threads gain what they lose at its many short calls
PIECE: dict[str, float] = {  # calls of NumPy
    "product": 2e3,
    "patches": 2e4,
    "shifted": 4e4,
    "winograd_f2": 6e4,
    "winograd_f4": 9e4,
}
MULTIPLY_TILES = 2 / 130  # a multiplication in the sums over tiles that are the gradient to the weights
TRANSFORM_SUM = 0.3  # an element of the sums that become the gradient

TILES = 256  # of Winograd: fewer read the weights too often, more leave the cache
LARGEST_TILES = 1024  # of few channels
ROWS = 1024  # of a product: more leave the cache before what follows, fewer read the weights too often
LARGEST_ERROR = 2.0**-8  # of a plan, in units of the sum of absolute products: F(4x4,3x3) has it at 1,011 channels


@dataclass(frozen=True, slots=True)
class Alternative:
    """An algorithm that was thought of: its predicted time in seconds, or why it can't serve."""

    algorithm: str
    seconds: float
    refused: str = ""

    def __str__(self) -> str:
        return f"{self.algorithm} {self.refused or f'{self.seconds * 1e3:.2f} ms'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a convolution is computed.

    Attributes:
        operation: its name.
        shape: what is computed, in words.
        windows: whose products with the weights are the result; of the gradient to the input of stride 1, those of
            the convolution that it is.
        algorithm, tile: the choice; what a tile counts depends on the algorithm.
        seconds: predicted, on one core of the machine that the costs are of.
        error: derived: how far a result may lie from the exact one, in units of the sum of absolute products, if all
            numbers are equally large.
        why: this one.
        alternatives: all others.
    """

    operation: str
    shape: str
    windows: Windows
    algorithm: Algorithm
    tile: int
    seconds: float
    error: float
    why: str
    alternatives: tuple[Alternative, ...]

    def __str__(self) -> str:
        others = ", ".join(str(other) for other in self.alternatives) or "none"
        return (
            f"{self.operation} {self.shape}: {self.algorithm}, tile {self.tile}, about {self.seconds * 1e3:.2f} ms, "
            f"error at most {self.error:.1e} of the sum of absolute products; {self.why}; alternatives: {others}"
        )


_forced: ContextVar[str | None] = ContextVar("conv_plan", default=None)


@contextmanager
def using_plan(algorithm: str) -> Iterator[None]:
    """Within the block, and in the present thread or task only, take this algorithm wherever it can serve.

    It is taken whatever its predicted time and error are, but not for float64, nor against "exact-order".

    Raises:
        ArgumentError: there is no such algorithm.
    """
    token = _forced.set(_checked(algorithm))
    try:
        yield
    finally:
        _forced.reset(token)


def plan(
    operation: Operation,
    x_shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    *,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    dtype: Any = np.float32,
    precision: Precision | None = None,
) -> Plan:
    """What a convolution of x (N, H, W, C) and w (kh, kw, Cg, O) is computed by.

    Args:
        operation: which of a convolution's operations.
        x_shape, w_shape, stride, padding, dilation, groups: of the convolution.
        dtype: of its numbers.
        precision: by default the present one.

    Raises:
        ArgumentError: REFNET_CONV_PLAN names no algorithm.
    """
    forced = _forced.get()
    if forced is None and (named := os.environ.get("REFNET_CONV_PLAN")):
        forced = _checked(named)
    return _plan(
        operation,
        x_shape,
        w_shape,
        stride,
        padding,
        dilation,
        groups,
        np.dtype(dtype),
        precision or present_precision(),
        forced,
        patches.TILE_BYTES,
        winograd_gradient.BLOCK_BYTES,
    )


@contextmanager
def planned(
    operation: Operation, x_shape: tuple[int, ...], w_shape: tuple[int, ...], **geometry: Any
) -> Iterator[Plan]:
    """The plan, arguments as :func:`plan` takes them; within the block threads share what takes long enough by it."""
    chosen = plan(operation, x_shape, w_shape, **geometry)
    with shared_if_worthwhile(chosen.seconds / (SHORT_CALLS if chosen.algorithm in WINOGRAD else 1)):
        yield chosen


def algorithm_of(operation: Operation) -> Callable[..., str]:
    """What says, from a kernel's arguments, how sums are computed: by its bound :func:`refnet.testing.check_kernel`
    judges the result."""

    def algorithm(a: Array, b: Array, *_: Array | None, relu: bool = False, **geometry: Any) -> str:
        x_shape, w_shape = a.shape, b.shape
        if operation == "conv2d_grad_input":
            x_shape = (len(a), *geometry.pop("input_size"), geometry["groups"] * b.shape[2])
        elif operation == "conv2d_grad_weight":
            w_shape = (*geometry.pop("kernel_size"), a.shape[3] // geometry["groups"], b.shape[3])
        chosen = plan(operation, x_shape, w_shape, dtype=a.dtype, **geometry).algorithm
        return chosen if chosen in WINOGRAD and a.size and b.size else "plain"

    return algorithm


def explain(operation: Operation, x_shape: tuple[int, ...], w_shape: tuple[int, ...], **geometry: Any) -> str:
    """The plan in one line, for people; arguments as :func:`plan` takes them."""
    return str(plan(operation, x_shape, w_shape, **geometry))


def winograd_error(minimal: Minimal, channels: int) -> float:
    """The derived error of a plan by Winograd, in units of the sum of absolute products, if all are equally large.

    With K = C + 4 t + 10 roundings on the way of a number (:mod:`refnet.testing.winograd`) it is K u times how much
    absolute values grow: the largest entry of :math:`|A|^T (|G| 1 \\odot |B|^T 1)`, a third for the three taps, squared
    for the two axes.
    """
    ones = abs(minimal.taps).sum(axis=1) * abs(minimal.data).sum(axis=1)
    growth = float((abs(minimal.result) @ ones).max()) / 3
    return (channels + 4 * minimal.size + 10) * growth**2 * 2.0**-24


@dataclass(frozen=True, slots=True)
class _Shape:
    """What is computed; of the gradient to the input, if it is one, the convolution of the output's gradient.

    `only` names the algorithm where there is no choice.
    """

    operation: Operation
    images: int
    windows: Windows
    image_size: Pair
    channels: int
    outputs: int
    groups: int
    only: str

    def __str__(self) -> str:
        kh, kw = self.windows.kernel_size
        text = f"{self.images} x {self.image_size[0]}x{self.image_size[1]}x{self.channels * self.groups}"
        text += f" -> {self.outputs * self.groups}, {kh}x{kw}"
        text += "" if self.windows.stride == (1, 1) else f" / {self.windows.stride[0]}x{self.windows.stride[1]}"
        return text + ("" if self.groups == 1 else f", {self.groups} groups")

    @property
    def pixels(self) -> int:
        """Of the result."""
        return self.images * math.prod(self.windows.size)

    @property
    def depth(self) -> int:
        """Numbers of a window."""
        return math.prod(self.windows.kernel_size) * self.channels

    @property
    def sum_length(self) -> int:
        """Products of a sum, at most."""
        return self.pixels if self.operation == "conv2d_grad_weight" else self.depth


def _shape_of(
    operation: Operation,
    x_shape: tuple[int, int, int, int],
    w_shape: tuple[int, int, int, int],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> _Shape:
    size, channels, outputs = (x_shape[1], x_shape[2]), w_shape[2], w_shape[3] // groups
    windows = Windows.of_convolution(size, w_shape[:2], stride, padding, dilation)
    only = _way_of_grad_input(windows, size, groups) if operation == "conv2d_grad_input" else ""
    if operation == "conv2d_grad_input" and not only:
        size, windows = windows.size, windows.adjoint(size)
        channels, outputs = outputs, channels
    return _Shape(
        operation=operation,
        images=x_shape[0],
        windows=windows,
        image_size=size,
        channels=channels,
        outputs=outputs,
        groups=groups,
        only=only,
    )


@lru_cache(maxsize=1024)
def _plan(
    operation: Operation,
    x_shape: tuple[int, int, int, int],
    w_shape: tuple[int, int, int, int],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    dtype: np.dtype[Any],
    precision: Precision,
    forced: str | None,
    tile_bytes: int,
    block_bytes: int,
) -> Plan:
    shape = _shape_of(operation, x_shape, w_shape, stride, padding, dilation, groups)
    item = dtype.itemsize
    tiles = {
        name: tile for name, tile in _tiles(shape, tile_bytes, block_bytes, item).items() if name in _serving(shape)
    }
    seconds = {name: groups * _nanoseconds(name, shape, tile, item) * 1e-9 * item / 4 for name, tile in tiles.items()}
    errors = {name: _error(name, shape, tile, dtype) for name, tile in tiles.items()}
    refused = {name: _refusal(name, dtype, precision) for name in tiles}
    if forced in tiles and not refused[forced]:
        chosen, why = forced, "it was asked for"
    else:
        refused = {name: text or _too_rough(name, errors[name]) for name, text in refused.items()}
        chosen = min((name for name in tiles if not refused[name]), key=seconds.__getitem__)
        why = "the quickest"
    return Plan(
        operation=operation,
        shape=str(shape),
        windows=shape.windows,
        algorithm=_checked(chosen),
        tile=tiles[chosen],
        seconds=seconds[chosen],
        error=errors[chosen],
        why=why if len(tiles) > 1 else "nothing else can serve",
        alternatives=tuple(Alternative(n, seconds[n], refused[n]) for n in tiles if n != chosen),
    )


def _serving(shape: _Shape) -> tuple[str, ...]:
    """The algorithms that can compute this."""
    windows = shape.windows
    if shape.only:
        return (shape.only,)
    if windows.are_the_pixels(shape.image_size):
        return ("product",)
    if windows.stride != (1, 1):
        return ("patches",)
    others = ("patches",) if shape.operation == "conv2d_grad_weight" else ("patches", "shifted")
    plain = (*windows.kernel_size, *windows.dilation, shape.groups) == (3, 3, 1, 1, 1)
    return (*others, *WINOGRAD) if plain else others


def _way_of_grad_input(windows: Windows, size: Pair, groups: int) -> str:
    """The algorithm of the gradient to the input, but for a convolution of the output's gradient: empty."""
    along = list(zip(windows.kernel_size, windows.size, windows.stride, size, strict=True))
    tiled = all((k == s or n == 1) and k * n == extent for k, n, s, extent in along)
    plain = (*windows.origin, *windows.dilation, groups) == (0, 0, 1, 1, 1)
    if tiled and plain and windows.kernel_size != (1, 1):
        return "side_by_side"
    if math.prod(size) > 2 * math.prod(n * s for _, n, s, _ in along):
        return "taps"
    return "" if windows.stride == (1, 1) else "residues"


def _refusal(name: str, dtype: np.dtype[Any], precision: Precision) -> str:
    """Why an algorithm that could serve mustn't; empty if it may."""
    if name == "shifted" and not blas.available():
        return "(needs OpenBLAS)"
    if name not in WINOGRAD:
        return ""
    if dtype != np.float32:
        return f"(not for {dtype})"
    return "(not in exact order)" if precision == "exact-order" else ""


def _too_rough(name: str, error: float) -> str:
    return f"(error up to {error:.1e})" if name in WINOGRAD and error > LARGEST_ERROR else ""


def _error(name: str, shape: _Shape, tile: int, dtype: np.dtype[Any]) -> float:
    if name not in WINOGRAD:
        return (shape.sum_length + 1) * float(np.finfo(dtype).eps) / 2
    if shape.operation == "conv2d_grad_weight":
        blocks = blocks_of(shape.images, shape.windows.size, WINOGRAD[name].outputs, tile)
        return winograd_gradient.error(WINOGRAD[name], [block.tiles for block in blocks])
    return winograd_error(WINOGRAD[name], shape.channels)


def _tiles(shape: _Shape, tile_bytes: int, block_bytes: int, item: int) -> dict[str, int]:
    weights, unpacked = shape.depth * shape.outputs * item, rows_at_once(shape.channels, shape.outputs)
    if shape.operation == "conv2d_grad_weight":
        blocks = {
            name: winograd_gradient.tiles_of_block(minimal, shape.channels, shape.outputs, item, block_bytes)
            for name, minimal in WINOGRAD.items()
        }
        return {
            "product": shape.pixels,
            "patches": max(tile_bytes, 4 * weights),  # every tile adds a product as large as the weights
            **{name: min(block, unpacked or block, LARGEST_TILES) for name, block in blocks.items()},
        }
    return {
        "product": min(rows_at_once(shape.depth, shape.outputs) or ROWS, ROWS),
        "patches": max(tile_bytes, weights),
        "shifted": max(1, shifted.TILE_BYTES * shape.depth // max(1, shape.channels + shape.outputs)),
        **dict.fromkeys(WINOGRAD, min(unpacked or TILES, LARGEST_TILES)),
        **dict.fromkeys(("side_by_side", "taps", "residues"), tile_bytes),
    }


def _winograd_tiles(name: str, shape: _Shape) -> int:
    """The tiles of all images."""
    return shape.images * math.prod(-(-extent // WINOGRAD[name].outputs) for extent in shape.windows.size)


def _nanoseconds(name: str, shape: _Shape, tile: int, item: int) -> float:
    """Predicted, for one group."""
    if shape.operation == "conv2d_grad_weight":
        return _gradient_nanoseconds(name, shape, tile, item)
    weights, matrix = shape.depth * shape.outputs, shape.pixels * shape.depth
    if name in WINOGRAD:
        pieces = -(-_winograd_tiles(name, shape) // tile)
        elements = WINOGRAD[name].size ** 2 * shape.channels * shape.outputs
        time = elements * (_winograd_tiles(name, shape) * MULTIPLY + TRANSFORM_WEIGHT) + _transforms(name, shape)
        time += pieces * (elements * READ_WEIGHT + PIECE[name])
        return time + (weights * TRANSPOSE_WEIGHT if shape.operation == "conv2d_grad_input" else 0)
    time = matrix * shape.outputs * MULTIPLY
    if name == "patches":
        return time + matrix * COPY_PATCH + -(-matrix * item // tile) * (weights * READ_WEIGHT + PIECE[name])
    if name == "shifted":
        taps = math.prod(shape.windows.kernel_size)
        time = _hanging_over(shape) * shape.outputs * (shape.depth * MULTIPLY + taps * ADD_TAP)
        return time + -(-matrix * item // tile) * (weights * READ_WEIGHT + PIECE[name])
    if name == "product":
        return time + -(-shape.pixels // tile) * (weights * READ_WEIGHT + PIECE[name])
    return time


def _hanging_over(shape: _Shape) -> int:
    """The result's pixels, and those computed along between its rows, and between small images."""
    windows = shape.windows
    (rows, columns), (below, beside) = windows.size, (windows.extent(1, axis) - 1 for axis in (0, 1))
    return shape.images * (rows + (below if shape.images > 1 else 0)) * (columns + beside)


def _gradient_nanoseconds(name: str, shape: _Shape, tile: int, item: int) -> float:
    """Predicted for one group of the gradient to the weights."""
    weights, matrix = shape.depth * shape.outputs, shape.pixels * shape.depth
    if name in WINOGRAD:
        pieces = -(-_winograd_tiles(name, shape) // tile)
        elements = WINOGRAD[name].size ** 2 * shape.channels * shape.outputs
        time = elements * (_winograd_tiles(name, shape) * MULTIPLY_TILES + TRANSFORM_SUM) + _transforms(name, shape)
        return time + pieces * (elements * READ_WEIGHT + PIECE[name])
    time = matrix * shape.outputs * MULTIPLY
    if name == "product":
        return time + PIECE[name]
    return time + matrix * COPY_PATCH + -(-matrix * item // tile) * (weights * READ_WEIGHT + PIECE[name])


def _transforms(name: str, shape: _Shape) -> float:
    """Of all tiles, in and out."""
    channels = shape.channels + shape.outputs
    return _winograd_tiles(name, shape) * (channels * TRANSFORM_PIXEL[name] + 2 * TRANSFORM_TILE[name])


def _checked(name: str) -> Algorithm:
    known: tuple[Algorithm, ...] = get_args(Algorithm)
    if name not in known:
        raise ArgumentError(f"plan: expected one of {', '.join(known)}, got {name!r}")
    return known[known.index(name)]
