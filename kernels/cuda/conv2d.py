"""Convolution on a GPU: launchers of conv2d.cu, and the plan of each call.

A call is planned from its shape alone: which tile multiplies, into how many parts the reduction is split so that a
small layer still fills the machine, and how many bytes of workspace that needs (:func:`workspace_size`). The
workspace is the caller's namespace's (``xp.empty``), taken in one place; nothing is kept between calls.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from refnet.arrays import Array, namespace
from refnet.errors import ArgumentError, DTypeError, LaunchError, ShapeError
from refnet.kernels.cuda.program import Program, blocks, ready
from refnet.ops.conv2d import Padding, Pair, output_extent

Operation: TypeAlias = Literal["forward", "grad_input", "grad_weight"]
LIMIT = 2**31 - 2**16  # of pixels and of weights: their indices, and those of a tile that hangs over, are int32
GRID_LIMIT = 2**16 - 1  # blocks along y and along z
VECTOR = 16  # bytes of a copy
MULTIPROCESSORS = 132  # an H200's; on another GPU the plan is only less good
SCALE, SHIFT, RESIDUAL, RELU = 1, 2, 4, 8  # the steps of conv2d.cu's Epilogue


# ---- the convolution, as numbers -----------------------------------------------------------------------------------


class _Axis(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("input", "output", "taps", "stride", "padding", "dilation", "period")]


class _Convolution(ctypes.Structure):
    _fields_ = [
        ("y", _Axis),
        ("x", _Axis),
        *((name, ctypes.c_int) for name in ("images", "channels", "outputs", "groups")),
    ]


class _Task(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("backward", "splits", "slices", "columns", "epilogue")]


class _Packing(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int)
        for name in (
            "all_channels", "all_outputs", "tap_stride", "group_stride", "channel_stride", "output_stride", "backward",
        )
    ]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The extents of a convolution.

    Attributes:
        images: N.
        size, output_size: of x, and of y: (rows, columns).
        kernel_size, stride, padding, dilation, groups: as in :func:`refnet.ops.conv2d_forward`.
        channels, outputs: those of one group.
    """

    images: int
    size: Pair
    output_size: Pair
    kernel_size: Pair
    stride: Pair
    padding: Padding
    dilation: Pair
    groups: int
    channels: int
    outputs: int

    @property
    def pixels(self) -> int:
        """Pixels of y."""
        return self.images * math.prod(self.output_size)

    @property
    def taps(self) -> int:
        """Pixels of a window."""
        return math.prod(self.kernel_size)

    @property
    def residues(self) -> int:
        """Classes of x's pixels that see different taps: of them is the grid of the gradient to x made."""
        return math.prod(min(s, size) for s, size in zip(self.stride, self.size, strict=True))

    def product(self, operation: Operation) -> tuple[int, int, int]:
        """Rows, columns and reduction of the matrix product of each group (for grad_input: of each residue)."""
        if operation == "forward":
            return self.pixels, self.outputs, self.taps * self.channels
        if operation == "grad_weight":
            return self.taps * self.channels, self.outputs, self.pixels
        seen = math.prod(
            blocks(k, s // math.gcd(s, d)) for k, s, d in zip(self.kernel_size, self.stride, self.dilation, strict=True)
        )
        rows = math.prod(blocks(size, s) for size, s in zip(self.size, self.stride, strict=True))
        return self.images * rows, self.channels, seen * self.outputs

    def result_size(self, operation: Operation) -> int:
        """Elements of the result."""
        if operation == "forward":
            return self.pixels * self.groups * self.outputs
        if operation == "grad_input":
            return self.images * math.prod(self.size) * self.groups * self.channels
        return self.taps * self.channels * self.groups * self.outputs

    def structure(self) -> _Convolution:
        """As conv2d.cu's Convolution."""
        y, x = (
            _Axis(size, out, k, s, before, d, s // math.gcd(s, d))
            for size, out, k, s, (before, _), d in zip(
                self.size, self.output_size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return _Convolution(y, x, self.images, self.channels, self.outputs, self.groups)


def shape_of(
    what: str,
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Shape:
    """The Shape of a convolution of x with w.

    Raises:
        ShapeError: x and w don't fit each other, or the window is larger than the padded image.
        LaunchError: there are more pixels or weights than an int32 counts, or more groups than a grid has.
    """
    if len(x_shape) != 4 or len(w_shape) != 4 or groups < 1:
        raise ShapeError(f"{what}: expected four axes and a group at least, got {x_shape}, {w_shape}, {groups} groups")
    kernel_size, (channels, outputs) = (w_shape[0], w_shape[1]), w_shape[2:]
    if x_shape[3] != channels * groups or outputs % groups:
        raise ShapeError(f"{what}: {groups} groups don't fit x {tuple(x_shape)} and w {tuple(w_shape)}")
    size = (x_shape[1], x_shape[2])
    shape = Shape(
        images=x_shape[0],
        size=size,
        output_size=output_extent(size, kernel_size, stride, padding, dilation, what=what),
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        channels=channels,
        outputs=outputs // groups,
    )
    counts = {
        "pixels of x": math.prod(x_shape[:3]),
        "pixels of y": shape.pixels,
        "weights": math.prod(w_shape) + w_shape[0] * w_shape[1] * groups * VECTOR * (channels + outputs // groups),
    }
    for name, count in counts.items():
        if count > LIMIT:
            raise LaunchError(f"{what}: expected at most {LIMIT} {name} (with padding to whole vectors), got {count}")
    if groups > GRID_LIMIT or shape.residues > GRID_LIMIT:
        raise LaunchError(f"{what}: expected at most {GRID_LIMIT} groups, and residues of the stride, got {shape}")
    return shape


# ---- tiles ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """What a block of threads works on: rows x columns of the result, `depth` of the reduction at a time.

    Attributes:
        dtype: of operands and result.
        rows, columns, depth: of the tile.
        thread: rows and columns of the sums of one thread.
        stages: slices in shared memory, of which all but one are being copied.
        rate: products a clock on one multiprocessor, as far as it is known: for choosing only.
    """

    dtype: str
    rows: int
    columns: int
    depth: int
    thread: Pair
    stages: int
    rate: float

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.rows * self.columns // math.prod(self.thread)

    def pads(self, operation: Operation) -> Pair:
        """Elements between the lines of either operand, so that a warp's reads fall into different banks.

        Lines along the reduction are read by four rows at a time, 16 bytes each: 16 more bytes a line part them.
        Lines along the result are read side by side and need none.
        """
        return (0 if operation == "grad_weight" else VECTOR // self.itemsize), 0

    @property
    def itemsize(self) -> int:
        """Bytes of an operand's element."""
        return np.dtype(self.dtype).itemsize

    def shared(self, operation: Operation) -> int:
        """Bytes of shared memory."""
        a_pad, b_pad = self.pads(operation)
        lines, length = (self.depth, self.rows) if operation == "grad_weight" else (self.rows, self.depth)
        return self.stages * self.itemsize * (lines * (length + a_pad) + self.depth * (self.columns + b_pad))

    def kernel(self, operation: Operation, vector: int) -> str:
        """The name expression of its kernel, which copies the gathered operand in vectors of so many elements."""
        c_type = {"float32": "float", "float64": "double"}[self.dtype]
        major, kernel = ("ALONG_RESULT", "outer") if operation == "grad_weight" else ("ALONG_REDUCTION", "correlate")
        numbers = (self.rows, self.columns, self.depth, *self.thread, *self.pads(operation))
        return f"{kernel}<Simt<{c_type}, {major}, {', '.join(map(str, numbers))}>, {vector}, {self.stages}>"


LARGE = Tile(dtype="float32", rows=128, columns=128, depth=8, thread=(8, 8), stages=4, rate=108)
SMALL = Tile(dtype="float32", rows=64, columns=64, depth=16, thread=(8, 4), stages=3, rate=88)
DOUBLE = Tile(dtype="float64", rows=32, columns=32, depth=16, thread=(4, 4), stages=2, rate=40)
TILES = (LARGE, SMALL, DOUBLE)


def vectors(tile: Tile) -> tuple[int, ...]:
    """The widths, in elements, of the gathering copies that `tile` is compiled for."""
    return {LARGE: (4,), SMALL: (4, 1), DOUBLE: (1,)}[tile]


PROGRAM = Program(
    "conv2d.cu",
    [
        *(tile.kernel(kind, v) for tile in TILES for v in vectors(tile) for kind in ("forward", "grad_weight")),
        *(f"add_splits<{t}>" for t in ("float", "double")),
        *(f"pack_weights<{t}, {t}>" for t in ("float", "double")),
    ],
)


# ---- plans ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a convolution is computed.

    Attributes:
        tile: of the result, a block's work.
        vector: elements of a gathering copy.
        splits: parts of the reduction; more than one take a second launch that adds them.
        slices: of the reduction, of the tile's depth, in each part.
        columns: of the weights as the kernel reads them, of one group.
        packs: whether the weights are laid out anew.
    """

    tile: Tile
    vector: int
    splits: int
    slices: int
    columns: int
    packs: bool

    def pieces(self, operation: Operation, shape: Shape) -> tuple[int, int]:
        """Bytes of workspace for the weights laid out anew, and for the parts' sums; each in whole 256 bytes."""
        reduced = shape.outputs if operation == "grad_input" else shape.channels
        weights = shape.taps * reduced * shape.groups * self.columns * self.packs
        sums = shape.result_size(operation) * self.splits * (self.splits > 1)
        return tuple(blocks(count * self.tile.itemsize, 256) * 256 for count in (weights, sums))  # type: ignore[return-value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forced:
    """Choices taken from the planner: for tests and measurements. None leaves one to it."""

    tile: Tile | None = None
    vector: int | None = None
    splits: int | None = None


FREE = Forced()
_forced: ContextVar[Forced] = ContextVar("forced", default=FREE)


@contextmanager
def forcing(**choices: Any) -> Iterator[None]:
    """Within the block, plans have these :class:`Forced` choices, where the shape allows them."""
    token = _forced.set(Forced(**choices))
    try:
        yield
    finally:
        _forced.reset(token)


def plan(operation: Operation, shape: Shape, dtype: str) -> Plan:
    """The plan for a convolution whose arrays start at multiples of 16 bytes."""
    return _plan(operation, shape, dtype, _forced.get())


@functools.lru_cache(maxsize=1024)
def _plan(operation: Operation, shape: Shape, dtype: str, forced: Forced) -> Plan:
    rows, columns, products = shape.product(operation)
    multiple = VECTOR // np.dtype(dtype).itemsize
    gathered = shape.outputs if operation == "grad_input" else shape.channels
    wide = gathered % multiple == 0 and (operation != "grad_weight" or shape.outputs % multiple == 0)
    candidates = []
    for tile in (forced.tile,) if forced.tile else TILES:
        for vector in vectors(tile):
            if tile.dtype != dtype or (vector > 1 and not wide) or forced.vector not in (None, vector):
                continue
            grid = blocks(rows, tile.rows) * blocks(columns, tile.columns) * shape.groups
            grid *= shape.residues if operation == "grad_input" else 1
            depth = blocks(products, tile.depth)
            for splits in (forced.splits,) if forced.splits else _splits(operation, shape, depth):
                slices = max(1, blocks(depth, splits))
                clocks: float = blocks(grid * splits, MULTIPROCESSORS) * tile.rows * tile.columns
                clocks *= (slices * tile.depth + PROLOGUE) / tile.rate
                clocks *= 1 if vector > 1 else SCALAR
                if splits > 1:
                    clocks += LAUNCH + 2 * splits * shape.result_size(operation) * tile.itemsize / BYTES_A_CLOCK
                candidates.append(
                    (
                        clocks,
                        splits,
                        Plan(tile=tile, vector=vector, splits=splits, slices=slices, columns=0, packs=False),
                    )
                )
    if not candidates:
        raise ArgumentError(f"conv2d: no plan for {operation} of {shape} in {dtype} with {forced}")
    best = min(candidates, key=lambda candidate: candidate[:2])[2]
    whole = blocks(columns, multiple) * multiple
    packs = operation == "grad_input" or (operation == "forward" and whole != columns)
    return replace(best, columns=whole, packs=packs)


PROLOGUE = 48  # products' worth of time for a tile's first copies and its stores
SCALAR = 1.25  # copies of 4 bytes cost instructions that the products want
LAUNCH = 4000  # clocks of a second launch
BYTES_A_CLOCK = 2300  # of memory, 4.2 TB/s at 1.8 GHz


def _splits(operation: Operation, shape: Shape, depth: int) -> list[int]:
    """Numbers of parts worth a thought: none of under four slices, and no more than a grid, or 32 bits, have room for."""
    if shape.result_size(operation) >= 2**31:
        return [1]
    most = min(depth // 4, GRID_LIMIT // (shape.residues if operation == "grad_input" else 1), 64)
    return [1, *(n for n in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64) if n <= most)]


def workspace_size(
    operation: Operation,
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
    dtype: Any = np.float32,
) -> int:
    """Bytes that a call takes from its namespace's ``xp.empty`` beside its result, and gives back on return."""
    shape = shape_of(
        "workspace_size", x_shape, w_shape, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    return sum(plan(operation, shape, np.dtype(dtype).name).pieces(operation, shape))


# ---- launchers -----------------------------------------------------------------------------------------------------


def conv2d_forward(x: Array, w: Array, *, stride: Pair, padding: Padding, dilation: Pair, groups: int) -> Array:
    """See :func:`refnet.ops.conv2d_forward`."""
    shape = shape_of(
        "conv2d_forward", x.shape, w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    y_shape = (shape.images, *shape.output_size, shape.groups * shape.outputs)
    return _correlate("conv2d_forward", "forward", shape, x, w, y_shape)


def conv2d_fused_forward(
    x: Array,
    w: Array,
    scale: Array | None,
    shift: Array | None,
    residual: Array | None,
    *,
    relu: bool,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    """See :func:`refnet.ops.conv2d_fused_forward`."""
    what = "conv2d_fused_forward"
    shape = shape_of(what, x.shape, w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups)
    y_shape = (shape.images, *shape.output_size, shape.groups * shape.outputs)
    expected = {"scale": (scale, y_shape[3:]), "shift": (shift, y_shape[3:]), "residual": (residual, y_shape)}
    for name, (array, wanted) in expected.items():
        if array is not None and array.shape != wanted:
            raise ShapeError(f"{what}: {name} must have shape {wanted}, got {array.shape}")
    return _correlate(what, "forward", shape, x, w, y_shape, scale=scale, shift=shift, residual=residual, relu=relu)


def conv2d_grad_input(
    grad_output: Array, w: Array, *, input_size: Pair, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Array:
    """See :func:`refnet.ops.conv2d_grad_input`."""
    what = "conv2d_grad_input"
    x_shape = (len(grad_output), *input_size, groups * w.shape[2])
    shape = shape_of(what, x_shape, w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups)
    _check_gradient(what, shape, grad_output)
    return _correlate(what, "grad_input", shape, grad_output, w, x_shape)


def conv2d_grad_weight(
    x: Array,
    grad_output: Array,
    *,
    kernel_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Array:
    """See :func:`refnet.ops.conv2d_grad_weight`."""
    what = "conv2d_grad_weight"
    w_shape = (*kernel_size, x.shape[3] // groups, grad_output.shape[3])
    shape = shape_of(what, x.shape, w_shape, stride=stride, padding=padding, dilation=dilation, groups=groups)
    _check_gradient(what, shape, grad_output)
    xp = namespace(x, grad_output)
    dtype = _dtype(what, x, grad_output)
    grad: Array = xp.empty(w_shape, dtype)
    if grad.size == 0:
        return grad
    chosen = plan("grad_weight", shape, dtype)
    tile = chosen.tile
    _, sums = _workspace(xp, chosen, "grad_weight", shape)
    result = grad if chosen.splits == 1 else sums.view(dtype)[: chosen.splits * grad.size]
    grid = (_tiles("grad_weight", shape, tile), groups, chosen.splits)
    task = _Task(splits=chosen.splits, slices=chosen.slices)
    arguments = (shape.structure(), task, _aligned(x), _aligned(grad_output), result)
    name = tile.kernel("grad_weight", chosen.vector)
    PROGRAM.launch(xp, name, grid, (tile.threads,), arguments, shared=tile.shared("grad_weight"), outputs=(4,))
    if chosen.splits > 1:
        _add_splits(xp, chosen, result, grad, 0, (result, result, result))
    return grad


def _correlate(
    what: str,
    operation: Operation,
    shape: Shape,
    image: Array,
    w: Array,
    y_shape: tuple[int, ...],
    *,
    scale: Array | None = None,
    shift: Array | None = None,
    residual: Array | None = None,
    relu: bool = False,
) -> Array:
    """The forward pass, or the gradient to the input, and the epilogue's steps."""
    steps = SCALE * (scale is not None) + SHIFT * (shift is not None) + RESIDUAL * (residual is not None) + RELU * relu
    given = [array for array in (scale, shift, residual) if array is not None]
    xp = namespace(image, w, *given)
    dtype = _dtype(what, image, w, *given)
    y: Array = xp.empty(y_shape, dtype)
    if y.size == 0:
        return y
    chosen = plan(operation, shape, dtype)
    tile = chosen.tile
    image, w = _aligned(image), _aligned(w)
    extras = tuple(w if array is None else ready(array) for array in (scale, shift, residual))  # w: never looked at
    weights, sums = _workspace(xp, chosen, operation, shape)
    if chosen.packs:
        w = _pack(xp, operation, shape, chosen, w, weights.view(dtype))
    result = y if chosen.splits == 1 else sums.view(dtype)[: chosen.splits * y.size]
    task = _Task(
        backward=operation == "grad_input",
        splits=chosen.splits,
        slices=chosen.slices,
        columns=chosen.columns,
        epilogue=steps if chosen.splits == 1 else 0,
    )
    residues = shape.residues if operation == "grad_input" else 1
    grid = (_tiles(operation, shape, tile), shape.groups, residues * chosen.splits)
    arguments = (shape.structure(), task, image, w, *extras, result)
    name = tile.kernel(operation, chosen.vector)
    PROGRAM.launch(xp, name, grid, (tile.threads,), arguments, shared=tile.shared(operation), outputs=(7,))
    if chosen.splits > 1:
        _add_splits(xp, chosen, result, y, steps, extras)
    return y


def _tiles(operation: Operation, shape: Shape, tile: Tile) -> int:
    rows, columns, _ = shape.product(operation)
    return blocks(rows, tile.rows) * blocks(columns, tile.columns)


def _workspace(xp: Any, chosen: Plan, operation: Operation, shape: Shape) -> tuple[Array, Array]:
    """The call's workspace: bytes for the weights laid out anew, and for the parts' sums."""
    first, second = chosen.pieces(operation, shape)
    everything = xp.empty(first + second, np.uint8)
    return everything[:first], everything[first:]


def _pack(xp: Any, operation: Operation, shape: Shape, chosen: Plan, w: Array, packed: Array) -> Array:
    """Weights as MatrixLines reads them: (taps, channels of the source, groups of columns of the result)."""
    kind = {"float32": "float", "float64": "double"}[chosen.tile.dtype]
    pitch = shape.groups * chosen.columns
    backward = operation == "grad_input"
    reduced = shape.outputs if backward else shape.channels
    packing = _Packing(
        all_channels=chosen.columns if backward else shape.channels,
        all_outputs=shape.outputs if backward else chosen.columns,
        tap_stride=reduced * pitch,
        group_stride=chosen.columns,
        channel_stride=1 if backward else pitch,
        output_stride=pitch if backward else 1,
        backward=backward,
    )
    grid = (blocks(packing.all_channels, 32), blocks(packing.all_outputs, 32), shape.taps * shape.groups)
    packed = packed[: shape.taps * reduced * pitch]
    arguments = (shape.structure(), packing, w, packed)
    PROGRAM.launch(xp, f"pack_weights<{kind}, {kind}>", grid, (32, 8), arguments, outputs=(3,))
    return packed


def _add_splits(xp: Any, chosen: Plan, parts: Array, y: Array, steps: int, extras: Sequence[Array]) -> None:
    kind = {"float32": "float", "float64": "double"}[chosen.tile.dtype]
    numbers = (np.int32(chosen.splits), np.uint32(y.size), np.int32(y.shape[-1]), np.int32(steps))
    grid = (blocks(y.size, 256),)
    PROGRAM.launch(xp, f"add_splits<{kind}>", grid, (256,), (*numbers, parts, *extras, y), outputs=(8,))


def _dtype(what: str, *arrays: Array) -> str:
    """The common type of the arrays.

    Raises:
        DTypeError: it isn't float32 or float64, or there is none.
    """
    names = sorted({array.dtype.name for array in arrays})
    if names not in (["float32"], ["float64"]):
        raise DTypeError(f"{what}: expected arrays that are all float32 or all float64, got {', '.join(names)}")
    return names[0]


def _aligned(array: Array) -> Array:
    """`array` in C order, from a multiple of 16 bytes on: a copy, if it isn't so already."""
    array = ready(array)
    pointer = array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr
    return array if pointer % VECTOR == 0 else array.copy()


def _check_gradient(what: str, shape: Shape, grad_output: Array) -> None:
    expected = (shape.images, *shape.output_size, shape.groups * shape.outputs)
    if grad_output.shape != expected:
        raise ShapeError(f"{what}: grad_output must have shape {expected}, got {grad_output.shape}")
