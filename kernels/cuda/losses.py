"""Launchers of ``losses.cu``: a loss and its derivative in one launch, and softmax.

Kernels don't look for arguments that would be errors: numbers that aren't any, and classes that there aren't, make the
loss no number.
"""

import math

import numpy as np

from refnet.arrays import Array, namespace
from refnet.errors import DTypeError, ShapeError
from refnet.kernels.cuda.program import Program, blocks, ready
from refnet.kernels.cuda.vectors import TYPES, check_count, check_floats, check_shape

THREADS, PER_THREAD = 256, 4
ROWS = 4  # of a block: a warp each
PROGRAM = Program(
    "losses.cu",
    [
        f"refnet::{name}"
        for T in TYPES.values()
        for name in (
            f"elementwise_loss<refnet::BinaryCrossEntropy, {T}, {PER_THREAD}>",
            f"softmax<{T}>",
            f"cross_entropy<{T}>",
        )
    ],
)
EXACT = Program(
    "losses.cu",
    [f"refnet::elementwise_loss<refnet::SmoothL1, {T}, {PER_THREAD}>" for T in TYPES.values()],
    contraction=False,
)


def binary_cross_entropy_forward(logits: Array, targets: Array) -> tuple[Array, Array]:
    """See :func:`refnet.ops.binary_cross_entropy_forward`."""
    check_floats("binary_cross_entropy_forward", logits=logits, targets=targets)
    check_shape("binary_cross_entropy_forward: targets", targets, logits.shape)
    return _elementwise(PROGRAM, "BinaryCrossEntropy", logits, targets, 0.0)


def smooth_l1_forward(prediction: Array, target: Array, *, beta: float) -> tuple[Array, Array]:
    """See :func:`refnet.ops.smooth_l1_forward`."""
    check_floats("smooth_l1_forward", prediction=prediction, target=target)
    check_shape("smooth_l1_forward: target", target, prediction.shape)
    return _elementwise(EXACT, "SmoothL1", prediction, target, beta)


def _elementwise(program: Program, function: str, a: Array, b: Array, parameter: float) -> tuple[Array, Array]:
    xp = namespace(a, b)
    losses, derivative = xp.empty(a.shape, a.dtype), xp.empty(a.shape, a.dtype)
    name = f"refnet::elementwise_loss<refnet::{function}, {TYPES[a.dtype]}, {PER_THREAD}>"
    flat = losses.reshape(-1), derivative.reshape(-1)
    arguments = np.int64(a.size), ready(a), ready(b), a.dtype.type(parameter), *flat
    program.launch(xp, name, (blocks(a.size, PER_THREAD * THREADS),), (THREADS,), arguments, outputs=(4, 5))
    return losses, derivative


def softmax_forward(x: Array, *, axis: int) -> Array:
    """See :func:`refnet.ops.softmax_forward`."""
    check_floats("softmax_forward", x=x)
    xp = namespace(x)
    rows = ready(xp.moveaxis(x, axis, -1))
    y = xp.empty(rows.shape, x.dtype)
    grid, block, extent = _over_rows("softmax_forward", rows)
    PROGRAM.launch(xp, f"refnet::softmax<{TYPES[x.dtype]}>", grid, block, (*extent, rows, y), outputs=(3,))
    moved: Array = xp.moveaxis(y, -1, axis)
    return moved


def cross_entropy_forward(logits: Array, classes: Array) -> tuple[Array, Array]:
    """See :func:`refnet.ops.cross_entropy_forward`."""
    check_floats("cross_entropy_forward", logits=logits)
    if logits.ndim != 2:
        raise ShapeError(f"cross_entropy_forward: logits must be (R, K), got {logits.shape}")
    check_shape("cross_entropy_forward: classes", classes, logits.shape[:1])
    if classes.dtype.kind not in "iu":
        raise DTypeError(f"cross_entropy_forward: classes must hold integers, got {classes.dtype}")
    xp = namespace(logits, classes)
    losses, derivative = xp.empty(len(logits), logits.dtype), xp.empty(logits.shape, logits.dtype)
    grid, block, extent = _over_rows("cross_entropy_forward", logits)
    PROGRAM.launch(
        xp, f"refnet::cross_entropy<{TYPES[logits.dtype]}>", grid, block,
        (*extent, ready(logits), ready(classes, np.int64), losses, derivative), outputs=(4, 5),
    )  # fmt: skip
    return losses, derivative


def _over_rows(what: str, x: Array) -> tuple[tuple[int], tuple[int], tuple[np.int32, np.int32]]:
    """Grid and block that give a warp to each row of the last axis; the number and length of the rows."""
    *others, length = x.shape
    rows = math.prod(others)
    if length == 0:
        raise ShapeError(f"{what}: a row must hold a number at least, got {x.shape}")
    check_count(f"{what}: rows", rows)
    check_count(f"{what}: the length of a row", length)
    return (blocks(rows, ROWS),), (32 * ROWS,), (np.int32(rows), np.int32(length))
