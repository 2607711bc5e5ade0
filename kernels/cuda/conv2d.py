"""Convolution on a GPU: launchers of conv2d.cu, and the plan of each call.

A call is planned from its shape alone: which tile multiplies, into how many parts the reduction is split so that a
small layer still fills the machine, and how many bytes of workspace that needs (:func:`workspace_size`). The
workspace is the caller's namespace's (``xp.empty``), taken in one place; nothing is kept between calls.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from refnet.arrays import Array, namespace
from refnet.errors import ArgumentError, DTypeError, LaunchError, ShapeError
from refnet.kernels.cuda.program import LARGEST_GRID, Instantiation, Program, blocks, ready
from refnet.kernels.setting import Setting
from refnet.ops.conv2d import Padding, Pair, output_extent

Operation: TypeAlias = Literal["forward", "grad_input", "grad_weight"]
LIMIT = 2**31 - 2**16  # of pixels and of weights: their indices, and those of a tile that hangs over, are int32
GRID_LIMIT = LARGEST_GRID[1]  # blocks along y and along z
VECTOR = 16  # bytes of a copy
EMULATED = 0  # the compute capability of no device
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

    def image_size(self, *, of_gradient: bool) -> int:
        """Elements of x, or of the gradient to y."""
        return self.result_size("forward" if of_gradient else "grad_input")

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


# ---- precision -----------------------------------------------------------------------------------------------------


Precision: TypeAlias = Literal["float32", "tf32", "bf16"]
"""What products are made of. Arrays are float32 and so are the sums; operands are rounded to 10 or 7 bits after the
leading one for tensor cores. float64 is never rounded.

Where the channels of a group, or what a pixel has of them in memory, aren't whole vectors of eight, bf16 is TF32.
Where Hopper's wgmma reads an image itself, TF32 is the image's numbers cut off, and not rounded; weights are rounded."""

_setting: Setting[Precision] = Setting("precision", get_args(Precision))
set_precision, precision, present_precision = _setting.set, _setting.within, _setting.get


# ---- tiles ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """What a block of threads works on: rows x columns of the result, `depth` of the reduction at a time.

    Attributes:
        atom: what multiplies, of conv2d.cu. Direct isn't a tile: a thread has one number, and no slices are copied.
        dtype: of the arrays.
        rows, columns, depth: of the tile.
        part: rows and columns of the sums of one thread (Simt), one warp, or one warpgroup (Wgmma).
        stages: slices in shared memory, of which all but one are being copied.
        rate: products a clock on one multiprocessor, as far as it is known: for choosing only.
        vectors: the widths, in elements, of the gathering copies that it is compiled for.
        operations: those that it is compiled for; the gradient to the input has the forward pass's kernel.
        only: compute capabilities (times ten) that alone have its instructions; empty: all.
    """

    atom: Literal["Simt", "Tf32", "Bf16", "WgmmaTf32", "WgmmaBf16", "Direct"]
    dtype: str
    rows: int
    columns: int
    depth: int
    part: Pair
    stages: int
    rate: float
    vectors: tuple[int, ...]
    operations: tuple[Operation, ...] = ("forward", "grad_input", "grad_weight")
    only: tuple[int, ...] = ()

    @property
    def threads(self) -> int:
        """Threads of a block."""
        parts = self.rows * self.columns // math.prod(self.part)
        return parts * (1 if self.atom in ("Simt", "Direct") else 128 if self.by_warpgroups else 32)

    @property
    def by_warpgroups(self) -> bool:
        """Whether wgmma multiplies: it reads swizzled lines, and weights whose products lie side by side."""
        return self.atom in ("WgmmaTf32", "WgmmaBf16")

    @property
    def operand(self) -> str:
        """The type of an operand's element in memory; of bfloat16, its bits."""
        return "uint16" if self.atom in ("Bf16", "WgmmaBf16") else self.dtype

    @property
    def packed(self) -> str:
        """The type of a packed weight: an operand's, but bits of TF32 where nothing rounds them after packing."""
        return "uint32" if self.atom == "WgmmaTf32" else self.operand

    @property
    def vector(self) -> int:
        """Elements of an operand in a copy of 16 bytes."""
        return VECTOR // np.dtype(self.operand).itemsize

    def pads(self, operation: Operation) -> Pair:
        """Elements between the lines of either operand, so that a warp's reads fall into different banks.

        Lines along the reduction are read 16 bytes each by several rows at a time: 16 more bytes a line part them.
        Lines along the result are read side by side; a fragment of mma.sync has four or eight lines, parted by 8
        elements. The lines of wgmma are swizzled instead.
        """
        if self.by_warpgroups:
            return 0, 0
        across = 0 if self.atom == "Simt" else 8
        return (across if operation == "grad_weight" else self.vector), across

    def shared(self, operation: Operation) -> int:
        """Bytes of shared memory."""
        a_pad, b_pad = self.pads(operation)
        lines, length = (self.depth, self.rows) if operation == "grad_weight" else (self.rows, self.depth)
        elements = lines * (length + a_pad) + self.depth * (self.columns + b_pad)
        return self.stages * elements * np.dtype(self.operand).itemsize

    def kernel(self, operation: Operation, vector: int) -> str:
        """The name expression of its kernel, which copies the gathered operand in vectors of so many elements."""
        if self.atom == "Direct":
            return f"{'direct_outer' if operation == 'grad_weight' else 'direct'}<{C_TYPES[self.dtype]}>"
        if self.by_warpgroups:
            return f"correlate<{self.atom}<{self.rows}, {self.columns}, {self.depth}>, {vector}, {self.stages}>"
        major, kernel = ("ALONG_RESULT", "outer") if operation == "grad_weight" else ("ALONG_REDUCTION", "correlate")
        kind = [C_TYPES[self.dtype]] if self.atom == "Simt" else []
        numbers = (self.rows, self.columns, self.depth, *self.part, *self.pads(operation))
        return f"{kernel}<{self.atom}<{', '.join([*kind, major, *map(str, numbers)])}>, {vector}, {self.stages}>"


C_TYPES = {"float32": "float", "float64": "double", "uint16": "unsigned short", "uint32": "unsigned int"}
LARGE = Tile(atom="Simt", dtype="float32", rows=128, columns=128, depth=8, part=(8, 8), stages=4, rate=95, vectors=(4,))
SMALL = Tile(
    atom="Simt", dtype="float32", rows=64, columns=64, depth=16, part=(8, 4), stages=3, rate=80, vectors=(4, 1)
)
DOUBLE = Tile(atom="Simt", dtype="float64", rows=32, columns=32, depth=16, part=(4, 4), stages=2, rate=40, vectors=(1,))
LARGE_TF32 = Tile(
    atom="Tf32", dtype="float32", rows=128, columns=128, depth=16, part=(64, 32), stages=4, rate=500, vectors=(4,)
)
SMALL_TF32 = Tile(
    atom="Tf32", dtype="float32", rows=64, columns=64, depth=16, part=(32, 32), stages=4, rate=350, vectors=(4, 1)
)
LARGE_BF16 = Tile(
    atom="Bf16", dtype="float32", rows=128, columns=128, depth=32, part=(64, 32), stages=4, rate=1000, vectors=(8,)
)
SMALL_BF16 = Tile(
    atom="Bf16", dtype="float32", rows=64, columns=64, depth=32, part=(32, 32), stages=4, rate=700, vectors=(8,)
)
HOPPER_TF32 = Tile(
    atom="WgmmaTf32", dtype="float32", rows=128, columns=128, depth=32, part=(64, 128), stages=3, rate=700, vectors=(4,),
    operations=("forward", "grad_input"), only=(90,),
)  # fmt: skip
HOPPER_BF16 = replace(HOPPER_TF32, atom="WgmmaBf16", depth=64, rate=1400, vectors=(8,))
DIRECT, DIRECT_DOUBLE = (
    Tile(atom="Direct", dtype=dtype, rows=8, columns=32, depth=1, part=(1, 1), stages=0, rate=16, vectors=(1,))
    for dtype in ("float32", "float64")
)
TILES: dict[Precision, tuple[Tile, ...]] = {
    "float32": (LARGE, SMALL),
    "tf32": (HOPPER_TF32, LARGE_TF32, SMALL_TF32),
    "bf16": (HOPPER_BF16, LARGE_BF16, SMALL_BF16),
}
ALL_TILES = (DOUBLE, DIRECT, DIRECT_DOUBLE, *itertools.chain(*TILES.values()))


PROGRAM = Program(
    "conv2d.cu",
    [
        *(
            Instantiation(
                tile.kernel(operation, vector), least=75 if tile.atom in ("Simt", "Direct") else 80, only=tile.only
            )
            for tile in ALL_TILES
            for vector in tile.vectors
            for operation in tile.operations
            if operation != "grad_input"
        ),
        *(f"add_splits<{t}>" for t in ("float", "double")),
        *(f"pack_weights<{t}, {t}>" for t in ("float", "double")),
        *(
            Instantiation(name, least=80)
            for name in ("pack_weights<float, unsigned short>", "round_image<float, unsigned short>")
        ),
        Instantiation("pack_weights<float, unsigned int>", only=(90,)),
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

    def pieces(self, operation: Operation, shape: Shape) -> tuple[int, int, int]:
        """Bytes of workspace, each in whole 256: the gathered image as operands, the other operand, the parts' sums."""
        backward = operation == "grad_input"
        gathered = self.rounds * shape.image_size(of_gradient=backward)
        if operation == "grad_weight":
            other = self.rounds * shape.image_size(of_gradient=True)
        else:
            reduced = shape.outputs if backward else shape.channels
            other = self.packs * shape.taps * reduced * shape.groups * self.columns
        sums = (self.splits > 1) * self.splits * shape.result_size(operation)
        size = np.dtype(self.tile.operand).itemsize
        bytes_of = (gathered * size, other * size, sums * np.dtype(self.tile.dtype).itemsize)
        first, second, third = (blocks(count, 256) * 256 for count in bytes_of)
        return first, second, third

    @property
    def rounds(self) -> bool:
        """Whether images are copied as operands of another type: once, where a gather would do it once a tap."""
        return self.tile.operand != self.tile.dtype


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


def plan(operation: Operation, shape: Shape, dtype: str, capability: int = EMULATED) -> Plan:
    """The plan for a convolution whose arrays start at multiples of 16 bytes, in the present precision.

    `capability` is the device's compute capability times ten. The emulator has every instruction, but takes one
    architecture's own only where its tile is forced.
    """
    return _plan(operation, shape, dtype, capability, present_precision(), _forced.get())


def _capability(xp: Any) -> int:
    """That of the current device of CuPy; :data:`EMULATED` for other arrays."""
    return int(xp.cuda.Device().compute_capability) if xp.__name__ == "cupy" else EMULATED


@functools.lru_cache(maxsize=1024)
def _plan(operation: Operation, shape: Shape, dtype: str, capability: int, wanted: Precision, forced: Forced) -> Plan:
    _, columns, products = shape.product(operation)
    options = [
        (tile, vector, splits)
        for tile in _tiles_for(operation, shape, dtype, capability, wanted, forced)
        for vector in tile.vectors
        if (vector == 1 or _whole(operation, shape, vector)) and forced.vector in (None, vector)
        for splits in _splits(operation, shape, tile, forced)
    ]
    if not options:
        raise ArgumentError(f"conv2d: no plan for {operation} of {shape} in {dtype} with {forced}")
    tile, vector, splits = min(options, key=lambda option: _clocks(operation, shape, *option))
    whole = blocks(columns, tile.vector) * tile.vector
    return Plan(
        tile=tile,
        vector=vector,
        splits=splits,
        slices=max(1, blocks(blocks(products, tile.depth), splits)),
        columns=whole,
        packs=operation != "grad_weight"
        and tile.atom != "Direct"
        and (operation == "grad_input" or whole != columns or tile.operand != tile.dtype or tile.by_warpgroups),
    )


def _tiles_for(
    operation: Operation, shape: Shape, dtype: str, capability: int, wanted: Precision, forced: Forced
) -> tuple[Tile, ...]:
    if (tile := forced.tile) is not None:
        suits = capability in (*(tile.only or [capability]), EMULATED)
        return (tile,) if tile.dtype == dtype and operation in tile.operations and suits else ()
    if shape.groups > 1 and shape.channels * shape.outputs <= FEW:
        return (DIRECT if dtype == "float32" else DIRECT_DOUBLE,)
    if dtype == "float64":
        return (DOUBLE,)
    if wanted == "bf16" and not _whole(operation, shape, LARGE_BF16.vector):
        wanted = "tf32"
    return tuple(
        tile for tile in TILES[wanted] if operation in tile.operations and (not tile.only or capability in tile.only)
    )


def _whole(operation: Operation, shape: Shape, vector: int) -> bool:
    """Whether what is gathered (for grad_weight, both operands) consists of whole vectors."""
    if operation == "grad_weight":
        return shape.channels % vector == 0 and shape.outputs % vector == 0
    return (shape.outputs if operation == "grad_input" else shape.channels) % vector == 0


def _clocks(operation: Operation, shape: Shape, tile: Tile, vector: int, splits: int) -> float:
    """About how long it takes: as many rounds of blocks as the multiprocessors need, and the second launch."""
    rows, columns, products = shape.product(operation)
    if tile.atom == "Direct":
        grid = blocks(rows, tile.rows) * blocks(shape.groups * columns, tile.columns) * splits
    else:
        grid = blocks(rows, tile.rows) * blocks(columns, tile.columns) * shape.groups * splits
        grid *= shape.residues if operation == "grad_input" else 1
    depth = max(1, blocks(blocks(products, tile.depth), splits)) * tile.depth + PROLOGUE
    clocks = blocks(grid, MULTIPROCESSORS) * tile.rows * tile.columns * depth / tile.rate
    clocks *= 1 if vector > 1 else SCALAR
    if splits > 1:
        moved = 2 * splits * shape.result_size(operation) * np.dtype(tile.dtype).itemsize
        clocks += LAUNCH + moved / BYTES_A_CLOCK
    return clocks


FEW = 64  # products of a pixel, a tap and a group: of a tile of 64 x 64 for each group, a 64th would be used
PROLOGUE = 48  # products' worth of time for a tile's first copies and its stores
SCALAR = 1.25  # copies of 4 bytes cost instructions that the products want
LAUNCH = 4000  # clocks of a second launch
BYTES_A_CLOCK = 2300  # of memory, 4.2 TB/s at 1.8 GHz


def _splits(operation: Operation, shape: Shape, tile: Tile, forced: Forced) -> list[int]:
    """Numbers of parts worth a thought: none of under four slices, and no more than a grid, or 32 bits, have room for."""
    if tile.atom == "Direct" and operation != "grad_weight":
        return [1]
    if forced.splits:
        return [forced.splits]
    if shape.result_size(operation) >= 2**31:
        return [1]
    slices = blocks(shape.product(operation)[2], tile.depth if tile.atom != "Direct" else tile.rows)
    most = min(slices // 4, GRID_LIMIT // (shape.residues if operation == "grad_input" else 1), 64)
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
    capability: int = EMULATED,
) -> int:
    """Bytes that a call takes from its namespace's ``xp.empty`` beside its result, and gives back on return.

    `capability` is as in :func:`plan`.
    """
    shape = shape_of(
        "workspace_size", x_shape, w_shape, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    return sum(plan(operation, shape, np.dtype(dtype).name, capability).pieces(operation, shape))


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
    chosen = plan("grad_weight", shape, dtype, _capability(xp))
    tile = chosen.tile
    images, gradients, sums = _workspace(xp, chosen, "grad_weight", shape)
    operands = (_operand(xp, chosen, x, images), _operand(xp, chosen, grad_output, gradients))
    result = grad if chosen.splits == 1 else sums.view(dtype)[: chosen.splits * grad.size]
    grid = _grid("grad_weight", shape, chosen)
    arguments = (shape.structure(), _Task(splits=chosen.splits, slices=chosen.slices), *operands, result)
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
    chosen = plan(operation, shape, dtype, _capability(xp))
    tile = chosen.tile
    images, packed, sums = _workspace(xp, chosen, operation, shape)
    w = _aligned(w)
    extras = tuple(w if array is None else ready(array) for array in (scale, shift, residual))  # w: never looked at
    image = _operand(xp, chosen, image, images)
    weights = _pack(xp, operation, shape, chosen, w, packed) if chosen.packs else w
    result = y if chosen.splits == 1 else sums.view(dtype)[: chosen.splits * y.size]
    task = _Task(
        backward=operation == "grad_input",
        splits=chosen.splits,
        slices=chosen.slices,
        columns=chosen.columns,
        epilogue=steps if chosen.splits == 1 else 0,
    )
    grid = _grid(operation, shape, chosen)
    arguments = (shape.structure(), task, image, weights, *extras, result)
    name = tile.kernel(operation, chosen.vector)
    PROGRAM.launch(xp, name, grid, (tile.threads,), arguments, shared=tile.shared(operation), outputs=(7,))
    if chosen.splits > 1:
        _add_splits(xp, chosen, result, y, steps, extras)
    return y


def _grid(operation: Operation, shape: Shape, chosen: Plan) -> tuple[int, int, int]:
    """Blocks along x, y and z, as the kernels' comments have them."""
    tile, (rows, columns, _) = chosen.tile, shape.product(operation)
    if tile.atom == "Direct":
        if operation == "grad_input":
            rows = shape.images * math.prod(shape.size)
        along_x = rows if operation == "grad_weight" else blocks(rows, tile.rows)
        return along_x, blocks(shape.groups * columns, tile.columns), chosen.splits
    residues = shape.residues if operation == "grad_input" else 1
    tiles = blocks(rows, tile.rows) * blocks(columns, tile.columns)
    return tiles, shape.groups, residues * chosen.splits


def _workspace(xp: Any, chosen: Plan, operation: Operation, shape: Shape) -> tuple[Array, Array, Array]:
    """The call's workspace: bytes for the image, for the other operand, and for the parts' sums."""
    first, second, third = chosen.pieces(operation, shape)
    everything = xp.empty(first + second + third, np.uint8)
    return everything[:first], everything[first : first + second], everything[first + second :]


def _operand(xp: Any, chosen: Plan, image: Array, room: Array) -> Array:
    """`image` as the kernel reads it: itself, or rounded into the workspace."""
    image = _aligned(image)
    if not chosen.rounds:
        return image
    operand = room.view(chosen.tile.operand)[: image.size]
    eighths = image.size // 8
    name = f"round_image<{C_TYPES[chosen.tile.dtype]}, {C_TYPES[chosen.tile.operand]}>"
    PROGRAM.launch(xp, name, (blocks(eighths, 256),), (256,), (np.int64(eighths), image, operand), outputs=(2,))
    return operand


def _pack(xp: Any, operation: Operation, shape: Shape, chosen: Plan, w: Array, room: Array) -> Array:
    """Weights as MatrixLines reads them: (taps, channels of the source, groups of columns of the result).

    ColumnLines reads (groups of columns of the result, taps, channels of the source).
    """
    backward = operation == "grad_input"
    reduced = shape.outputs if backward else shape.channels
    if chosen.tile.by_warpgroups:
        tap, source, column = reduced, 1, shape.taps * reduced
        group = chosen.columns * column
    else:
        source, column, group = shape.groups * chosen.columns, 1, chosen.columns
        tap = reduced * source
    packing = _Packing(
        all_channels=chosen.columns if backward else shape.channels,
        all_outputs=shape.outputs if backward else chosen.columns,
        tap_stride=tap,
        group_stride=group,
        channel_stride=column if backward else source,
        output_stride=source if backward else column,
        backward=backward,
    )
    grid = (blocks(packing.all_channels, 32), blocks(packing.all_outputs, 32), shape.taps * shape.groups)
    packed = room.view(chosen.tile.packed)[: shape.taps * reduced * shape.groups * chosen.columns]
    name = f"pack_weights<{C_TYPES[chosen.tile.dtype]}, {C_TYPES[chosen.tile.packed]}>"
    PROGRAM.launch(xp, name, grid, (32, 8), (shape.structure(), packing, w, packed), outputs=(3,))
    return packed.view(chosen.tile.operand)


def _add_splits(xp: Any, chosen: Plan, parts: Array, y: Array, steps: int, extras: Sequence[Array]) -> None:
    kind = C_TYPES[chosen.tile.dtype]
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
