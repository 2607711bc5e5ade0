"""Launchers of ``roi_pool.cu``: the maximum of every bin, where it was, and the gradient that goes there.

All sums are in the specification's order: results equal its own bit for bit. An image index that is out of range gives
NaN, and no gradient.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from refnet.arrays import Array, namespace
from refnet.errors import DTypeError, ShapeError
from refnet.kernels.cuda.program import Program, blocks, ready
from refnet.kernels.cuda.vectors import TYPES, check_count, check_floats, check_shape
from refnet.ops.conv2d import Pair
from refnet.ops.sampling import Shape4

WARPS = 8  # of a block, a bin each
TILE = 8  # pixels along a side of what a block of the gradient owns
GROUPS = {np.dtype(np.float32): 4, np.dtype(np.float64): 2}  # of 32 channels, in 32 KB of shared memory
PROGRAM = Program(
    "roi_pool.cu",
    [
        *(f"roi_pool_forward<{name}>" for name in TYPES.values()),
        "source_bounds",
        *(f"roi_pool_grad<{TYPES[dtype]}, {TILE}, {groups}>" for dtype, groups in GROUPS.items()),
    ],
    contraction=False,  # bins equal NumPy's
)


def roi_pool_forward(
    features: Float[Array, "N H W C"],
    boxes: Float[Array, "R 4"],
    image_index: Int[Array, " R"],
    *,
    size: Pair,
    spatial_scale: float,
) -> tuple[Float[Array, "R P Q C"], Int[Array, "R P Q C"]]:
    """See :func:`refnet.ops.roi_pool_forward`."""
    what = "roi_pool_forward"
    check_floats(what, features=features, boxes=boxes)
    _check_map(what, features.shape)
    check_shape(f"{what}: boxes", boxes, (len(boxes), 4))
    _check_index(what, image_index, len(boxes))
    xp = namespace(features, boxes, image_index)
    n, h, w, c = features.shape
    output: Array = xp.empty((len(boxes), *size, c), features.dtype)
    source: Array = xp.empty(output.shape, np.int64)
    bins = len(boxes) * size[0] * size[1]
    check_count(f"{what}: bins", bins)
    arguments = (
        ready(features), ready(boxes), ready(image_index, np.int64), *_ints(n, h, w, c, len(boxes), *size),
        features.dtype.type(spatial_scale), output, source,
    )  # fmt: skip
    grid = blocks(bins, WARPS), blocks(c, 32)
    PROGRAM.launch(xp, f"roi_pool_forward<{TYPES[features.dtype]}>", grid, (32, WARPS), arguments, outputs=(11, 12))
    return output, source


def roi_pool_grad(
    grad_output: Float[Array, "R P Q C"],
    source: Int[Array, "R P Q C"],
    image_index: Int[Array, " R"],
    *,
    input_shape: Shape4,
) -> Float[Array, "N H W C"]:
    """See :func:`refnet.ops.roi_pool_grad`. Two launches: where each bin's sources lie, then their gradients."""
    what = "roi_pool_grad"
    check_floats(what, grad_output=grad_output)
    _check_map(what, input_shape)
    n, h, w, c = input_shape
    if grad_output.ndim != 4 or grad_output.shape[3] != c:
        raise ShapeError(f"{what}: grad_output must have shape (R, P, Q, {c}), got {grad_output.shape}")
    check_shape(f"{what}: source", source, grad_output.shape)
    if source.dtype.kind not in "iu":
        raise DTypeError(f"{what}: source must hold integers, got {source.dtype}")
    regions, rows, columns, _ = grad_output.shape
    _check_index(what, image_index, regions)
    xp = namespace(grad_output, source, image_index)
    bins = regions * rows * columns
    check_count(f"{what}: bins", bins)
    grad_output, source = ready(grad_output), ready(source, np.int64)
    bounds = xp.empty((bins, 4), np.int32)
    grid: tuple[int, ...] = (blocks(bins, WARPS),)
    PROGRAM.launch(xp, "source_bounds", grid, (32, WARPS), (source, *_ints(bins, w, c), bounds), outputs=(4,))
    grad: Array = xp.empty(input_shape, grad_output.dtype)
    groups = GROUPS[grad.dtype]
    arguments = (
        grad_output, source, bounds, ready(image_index, np.int64), *_ints(bins, rows * columns, h, w, c), grad
    )  # fmt: skip
    grid = blocks(w, TILE), blocks(h, TILE), n * blocks(c, 32 * groups)
    name = f"roi_pool_grad<{TYPES[grad.dtype]}, {TILE}, {groups}>"
    PROGRAM.launch(xp, name, grid, (32, groups), arguments, outputs=(9,))
    return grad


def _ints(*values: int) -> tuple[Any, ...]:
    return tuple(np.int32(value) for value in values)


def _check_map(what: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 4 or 0 in shape[1:3]:
        raise ShapeError(f"{what}: expected features (N, H, W, C) with at least one pixel, got {shape}")
    check_count(f"{what}: pixels of a map", shape[1] * shape[2])


def _check_index(what: str, image_index: Array, regions: int) -> None:
    check_shape(f"{what}: image_index", image_index, (regions,))
    if image_index.dtype.kind not in "iu":
        raise DTypeError(f"{what}: image_index must hold integers, got {image_index.dtype}")
