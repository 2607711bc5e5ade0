"""Which algorithm a convolution takes, and why.

:func:`plan` predicts the time of every algorithm that can serve, from a handful of measured costs, and takes the
shortest that :mod:`refnet.kernels.cpu.precision` allows. ``print(plan(...))`` is one line that says why; another choice
is forced within ``with using_plan("winograd_f2"):`` or, for a whole process, by the environment variable
REFNET_CONV_PLAN, wherever that algorithm can serve; elsewhere the planner goes on to choose.

The algorithms, each with what its tile counts:

* "product": windows that are the pixels, so the image is the matrix; rows of a product.
* "patches": windows copied side by side (im2col); bytes of such a matrix.
* "winograd_f2", "winograd_f4": F(2x2,3x3) and F(4x4,3x3); tiles that are worked on together.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from refnet.errors import ArgumentError
from refnet.kernels.cpu.conv import patches
from refnet.kernels.cpu.conv.patches import Windows
from refnet.kernels.cpu.conv.winograd import F2, F4, UNPACKED, Minimal
from refnet.kernels.cpu.precision import Precision, present_precision
from refnet.ops.conv2d import Padding, Pair

Algorithm: TypeAlias = Literal["product", "patches", "winograd_f2", "winograd_f4"]
Operation: TypeAlias = Literal["conv2d_forward"]

WINOGRAD: dict[str, Minimal] = {"winograd_f2": F2, "winograd_f4": F4}

# Costs in nanoseconds, of float32 on one core with AVX-512 (Sapphire Rapids, OpenBLAS 0.3.31). Only their ratios matter.
# Choices were compared with measurements of ResNet-50-FPN's layers, 256 x 256 to 512 x 512 pixels, of the heads on 100
# to 1,000 regions, and of the half-width ResNet-18 of presets.shapes().
MULTIPLY = 2 / 180  # a multiplication and its addition, in a large product
READ_WEIGHT = 0.3  # an element of the weights, packed for each product anew
COPY_PATCH = 0.5  # an element of a matrix of patches, copied and packed
TRANSFORM_WEIGHT = 0.4  # an element of transformed weights
TRANSFORM_PIXEL: dict[str, float] = {"winograd_f2": 8.0, "winograd_f4": 22.0}  # a tile of a channel, in or out
CALL = 1500.0  # a call of NumPy for a piece of work

TILES = 192  # of Winograd: 128 to 512 are as quick; less reads the weights too often, more leaves the cache
ROWS = 2048  # of a product: more than leave its result in cache, for what follows
LARGEST_ERROR = 2.0**-6  # of a plan, in units of the sum of absolute products: F(4x4,3x3) has it at 990 channels


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
        algorithm, tile: the choice; what a tile counts depends on the algorithm.
        seconds: predicted, on one core of the machine that the costs are of.
        error: derived: how far a result may lie from the exact one, in units of the sum of absolute products, if all
            numbers are equally large.
        why: this one.
        alternatives: all others.
    """

    operation: str
    shape: str
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
        tuple(x_shape),
        tuple(w_shape),
        stride,
        padding,
        dilation,
        groups,
        np.dtype(dtype).name,
        precision or present_precision(),
        forced,
        patches.TILE_BYTES,
    )


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
    """What is computed."""

    images: int
    windows: Windows
    image_size: Pair
    channels: int
    outputs: int
    groups: int

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
        """Products of a sum."""
        return math.prod(self.windows.kernel_size) * self.channels


@lru_cache(maxsize=1024)
def _plan(
    operation: str,
    x_shape: tuple[int, int, int, int],
    w_shape: tuple[int, int, int, int],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    dtype: str,
    precision: Precision,
    forced: str | None,
    tile_bytes: int,
) -> Plan:
    size = (x_shape[1], x_shape[2])
    shape = _Shape(
        images=x_shape[0],
        windows=Windows.of_convolution(size, w_shape[:2], stride, padding, dilation),
        image_size=size,
        channels=w_shape[2],
        outputs=w_shape[3] // groups,
        groups=groups,
    )
    item = np.dtype(dtype).itemsize
    tiles = {name: tile for name, tile in _tiles(shape, tile_bytes, item).items() if _serves(name, shape)}
    seconds = {name: groups * _nanoseconds(name, shape, tile, item) * 1e-9 * item / 4 for name, tile in tiles.items()}
    errors = {name: _error(name, shape, dtype) for name in tiles}
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
        algorithm=_checked(chosen),
        tile=tiles[chosen],
        seconds=seconds[chosen],
        error=errors[chosen],
        why=why if len(tiles) > 1 else "nothing else can serve",
        alternatives=tuple(Alternative(n, seconds[n], refused[n]) for n in tiles if n != chosen),
    )


def _serves(name: str, shape: _Shape) -> bool:
    """Whether an algorithm can compute this."""
    windows = shape.windows
    pixels = windows.are_the_pixels(shape.image_size)
    if name in WINOGRAD:
        plain = (*windows.stride, *windows.dilation, shape.groups) == (1, 1, 1, 1, 1)
        return windows.kernel_size == (3, 3) and plain
    return pixels if name == "product" else not pixels


def _refusal(name: str, dtype: str, precision: Precision) -> str:
    """Why an algorithm that could serve mustn't; empty if it may."""
    if name not in WINOGRAD:
        return ""
    if dtype != "float32":
        return f"(not for {dtype})"
    return "(not in exact order)" if precision == "exact-order" else ""


def _too_rough(name: str, error: float) -> str:
    return f"(error up to {error:.1e})" if name in WINOGRAD and error > LARGEST_ERROR else ""


def _error(name: str, shape: _Shape, dtype: str) -> float:
    if name in WINOGRAD:
        return winograd_error(WINOGRAD[name], shape.channels)
    return (shape.depth + 1) * float(np.finfo(dtype).eps) / 2


def _tiles(shape: _Shape, tile_bytes: int, item: int) -> dict[str, int]:
    return {
        "product": _rows(shape),
        "patches": max(tile_bytes, shape.depth * shape.outputs * item),
        **dict.fromkeys(WINOGRAD, TILES),
    }


def _rows(shape: _Shape) -> int:
    """Of one product: as many as OpenBLAS takes without packing, if these aren't too few, else all that stay in cache."""
    unpacked = UNPACKED // max(1, shape.depth * shape.outputs)
    return min(unpacked, ROWS) if unpacked >= 128 else ROWS


def _nanoseconds(name: str, shape: _Shape, tile: int, item: int) -> float:
    """Predicted, for one group."""
    weights = shape.depth * shape.outputs
    if name == "product":
        return shape.pixels * weights * MULTIPLY + -(-shape.pixels // tile) * (weights * READ_WEIGHT + CALL)
    if name == "patches":
        matrix = shape.pixels * shape.depth
        tiles = -(-matrix * item // tile)
        return shape.pixels * weights * MULTIPLY + matrix * COPY_PATCH + tiles * (weights * READ_WEIGHT + 5 * CALL)
    minimal = WINOGRAD[name]
    places = minimal.size**2
    tiles = shape.images * math.prod(-(-extent // minimal.outputs) for extent in shape.windows.size)
    blocks = -(-tiles // tile)
    elements = places * shape.channels * shape.outputs
    return (
        tiles * elements * MULTIPLY
        + blocks * (elements * READ_WEIGHT + 10 * minimal.size * CALL)
        + elements * TRANSFORM_WEIGHT
        + tiles * (shape.channels + shape.outputs) * TRANSFORM_PIXEL[name]
    )


def _checked(name: str) -> Algorithm:
    known: tuple[Algorithm, ...] = get_args(Algorithm)
    if name not in known:
        raise ArgumentError(f"plan: expected one of {', '.join(known)}, got {name!r}")
    return known[known.index(name)]
