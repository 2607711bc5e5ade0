"""Launchers of ``roi.cu``: crop_and_resize and ROIAlign on a GPU, and their gradients.

Coordinates and weights are the specification's bit for bit, sums are taken in another order. Nothing waits for the
host: with an adaptive sampling ratio the device counts each region's samples.

The gradient of features is summed in one of two ways. :func:`deterministic` (the default) gathers: a block owns a tile
of the result and adds what regions send to it in their order, so the same arrays give the same bits. The other
scatters by atomic additions, in whatever order they come.

An image index that is out of range reads and writes nothing: the region's result and its box's gradient are NaN, and
features get no gradient from it. (:func:`refnet.ops.roi_align` and :func:`refnet.ops.crop_and_resize` refuse it.)
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from refnet.arrays import Array, namespace
from refnet.errors import DTypeError, ShapeError
from refnet.kernels.cuda.program import Program, blocks, ready
from refnet.kernels.cuda.vectors import TYPES, check_count, check_floats, check_shape, width
from refnet.ops.conv2d import Pair
from refnet.ops.sampling import Shape4

HELD = 2  # vectors of channels that a lane holds
WARPS = 8  # of a block
LONGEST, ENOUGH = 4, 8192  # bins that a warp takes in turn, which share what is computed once a row; warps for a GPU
TILE, STRIP = 8, 4  # pixels along a side of what a block owns when it gathers, and in a row of what a warp does
BATCH, STAGED = 16, 40 << 10  # at most so many regions at a time, in about so many bytes of shared memory

PROGRAM = Program(
    "roi.cu",
    [
        f"{kernel}<{kind}, {constants}>"
        for kernel, constants in (
            ("pool_regions", HELD),
            ("scatter_gradient", HELD),
            ("gather_gradient", f"{TILE}, {STRIP}"),
            ("box_gradient", f"{HELD}, {WARPS}"),
        )
        for kind in ("float, 4", "float, 1", "double, 1")
    ],
)

_deterministic: ContextVar[bool] = ContextVar("deterministic", default=True)


@contextmanager
def deterministic(always: bool) -> Iterator[None]:
    """Within the block, gradients of features have the same bits for the same arrays, or may vary by roundings."""
    token = _deterministic.set(always)
    try:
        yield
    finally:
        _deterministic.reset(token)


RULES = (
    *((name, ctypes.c_int) for name in ("images", "height", "width", "channels")),
    *((name, ctypes.c_int) for name in ("regions", "rows", "columns")),
    *((name, ctypes.c_int) for name in ("normalized", "sampling_ratio", "aligned")),
)


class Sampling32(ctypes.Structure):
    """What a launch is told about features, result and rules; laid out as Sampling in sampling.cuh."""

    _fields_ = (*RULES, ("spatial_scale", ctypes.c_float))


class Sampling64(ctypes.Structure):
    """The same for arrays of float64."""

    _fields_ = (*RULES, ("spatial_scale", ctypes.c_double))


def crop_and_resize_forward(
    images: Float[Array, "N H W C"],
    boxes: Float[Array, "R 4"],
    image_index: Int[Array, " R"],
    *,
    size: Pair,
    extrapolation_value: float,
) -> Float[Array, "R P Q C"]:
    """See :func:`refnet.ops.crop_and_resize_forward`."""
    return _pool("crop_and_resize_forward", images, boxes, image_index, size, extrapolation_value, normalized=1)


def crop_and_resize_grad_images(
    grad_output: Float[Array, "R P Q C"],
    boxes: Float[Array, "R 4"],
    image_index: Int[Array, " R"],
    *,
    input_shape: Shape4,
) -> Float[Array, "N H W C"]:
    """See :func:`refnet.ops.crop_and_resize_grad_images` and :func:`deterministic`."""
    return _grad_features("crop_and_resize_grad_images", grad_output, boxes, image_index, input_shape, normalized=1)


def crop_and_resize_grad_boxes(
    grad_output: Float[Array, "R P Q C"],
    images: Float[Array, "N H W C"],
    boxes: Float[Array, "R 4"],
    image_index: Int[Array, " R"],
) -> Float[Array, "R 4"]:
    """See :func:`refnet.ops.crop_and_resize_grad_boxes`."""
    return _grad_boxes("crop_and_resize_grad_boxes", grad_output, images, boxes, image_index, normalized=1)


def roi_align_forward(
    features: Float[Array, "N H W C"],
    boxes: Float[Array, "R 4"],
    image_index: Int[Array, " R"],
    *,
    size: Pair,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Float[Array, "R P Q C"]:
    """See :func:`refnet.ops.roi_align_forward`."""
    rules = {"spatial_scale": spatial_scale, "sampling_ratio": sampling_ratio, "aligned": aligned}
    return _pool("roi_align_forward", features, boxes, image_index, size, 0.0, **rules)


def roi_align_grad_features(
    grad_output: Float[Array, "R P Q C"],
    boxes: Float[Array, "R 4"],
    image_index: Int[Array, " R"],
    *,
    input_shape: Shape4,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Float[Array, "N H W C"]:
    """See :func:`refnet.ops.roi_align_grad_features` and :func:`deterministic`."""
    rules = {"spatial_scale": spatial_scale, "sampling_ratio": sampling_ratio, "aligned": aligned}
    return _grad_features("roi_align_grad_features", grad_output, boxes, image_index, input_shape, **rules)


def roi_align_grad_boxes(
    grad_output: Float[Array, "R P Q C"],
    features: Float[Array, "N H W C"],
    boxes: Float[Array, "R 4"],
    image_index: Int[Array, " R"],
    *,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Float[Array, "R 4"]:
    """See :func:`refnet.ops.roi_align_grad_boxes`."""
    rules = {"spatial_scale": spatial_scale, "sampling_ratio": sampling_ratio, "aligned": aligned}
    return _grad_boxes("roi_align_grad_boxes", grad_output, features, boxes, image_index, **rules)


def _pool(
    what: str, features: Array, boxes: Array, image_index: Array, size: Pair, outside: float, **rules: Any
) -> Array:
    xp = namespace(features, boxes, image_index)
    output: Array = xp.empty((len(boxes), *size, features.shape[-1]), features.dtype)
    check_floats(what, features=features, boxes=boxes)
    sampling = _sampling(what, features.shape, boxes, image_index, size, rules)
    features, boxes, image_index = ready(features), ready(boxes), ready(image_index, np.int64)
    kind, vectors = _kind(features, output)
    name = f"pool_regions<{kind}, {HELD}>"
    runs, length = _runs(sampling)
    arguments = (
        features, boxes, image_index, sampling, runs, length, features.dtype.type(outside), output,
    )  # fmt: skip
    grid = blocks(int(runs), WARPS), blocks(vectors, 32 * HELD)
    PROGRAM.launch(xp, name, grid, (32, WARPS), arguments, outputs=(7,))
    return output


def _grad_features(
    what: str, grad_output: Array, boxes: Array, image_index: Array, input_shape: Shape4, **rules: Any
) -> Array:
    xp = namespace(grad_output, boxes, image_index)
    gathers = _deterministic.get()
    grad: Array = (xp.empty if gathers else xp.zeros)(input_shape, grad_output.dtype)
    check_floats(what, grad_output=grad_output, boxes=boxes)
    _check_grad_output(what, grad_output, boxes, input_shape)
    sampling = _sampling(what, input_shape, boxes, image_index, grad_output.shape[1:3], rules)
    grad_output, boxes, image_index = ready(grad_output), ready(boxes), ready(image_index, np.int64)
    kind, vectors = _kind(grad_output, grad)
    if not gathers:
        name = f"scatter_gradient<{kind}, {HELD}>"
        runs, length = _runs(sampling)
        grid: tuple[int, ...] = blocks(int(runs), WARPS), blocks(vectors, 32 * HELD)
        PROGRAM.launch(xp, name, grid, (32, WARPS), (grad_output, boxes, image_index, sampling, runs, length, grad))
        return grad
    n, h, w, _ = input_shape
    weights = 2 * (TILE // STRIP) * max(sampling.rows, sampling.columns) * STRIP * grad.itemsize  # of a region
    batch = min(BATCH, max(1, STAGED // max(weights, 1)))
    shared = batch * (weights + 2 * (TILE // STRIP) * 8)  # and a Range for every strip
    name = f"gather_gradient<{kind}, {TILE}, {STRIP}>"
    grid = (blocks(w, TILE), blocks(h, TILE), n * blocks(vectors, 32))
    arguments = (grad_output, boxes, image_index, sampling, np.int32(batch), grad)
    PROGRAM.launch(xp, name, grid, (32, TILE * TILE // STRIP), arguments, shared=shared, outputs=(5,))
    return grad


def _grad_boxes(
    what: str, grad_output: Array, features: Array, boxes: Array, image_index: Array, **rules: Any
) -> Array:
    xp = namespace(grad_output, features, boxes, image_index)
    grad: Array = xp.empty(boxes.shape, boxes.dtype)
    check_floats(what, grad_output=grad_output, features=features, boxes=boxes)
    _check_grad_output(what, grad_output, boxes, features.shape)
    sampling = _sampling(what, features.shape, boxes, image_index, grad_output.shape[1:3], rules)
    grad_output, features, boxes = ready(grad_output), ready(features), ready(boxes)
    kind, _ = _kind(grad_output, features)
    arguments = (grad_output, features, boxes, ready(image_index, np.int64), sampling, grad)
    name = f"box_gradient<{kind}, {HELD}, {WARPS}>"
    PROGRAM.launch(xp, name, (len(boxes),), (32, WARPS), arguments, outputs=(5,))
    return grad


def _sampling(
    what: str, shape: tuple[int, ...], boxes: Array, image_index: Array, size: tuple[int, ...], rules: dict[str, Any]
) -> Sampling32 | Sampling64:
    """The arguments' sizes and rules, checked.

    Raises:
        ShapeError: features aren't (N, H, W, C) with at least one pixel, boxes not (R, 4), or there isn't an image
            index a box.
        DTypeError: `image_index` isn't of integers.
        ArgumentError: there are more bins than a launch can have, or a row has more elements than an int can count.
    """
    if len(shape) != 4 or 0 in shape[1:3]:
        raise ShapeError(f"{what}: expected features (N, H, W, C) with at least one pixel, got {shape}")
    check_shape(f"{what}: boxes", boxes, (len(boxes), 4))
    check_shape(f"{what}: image_index", image_index, (len(boxes),))
    if image_index.dtype.kind not in "iu":
        raise DTypeError(f"{what}: image_index must hold integers, got {image_index.dtype}")
    n, h, w, c = shape
    check_count(f"{what}: bins", len(boxes) * size[0] * size[1])
    check_count(f"{what}: elements of a row", max(w, size[1]) * c)
    kind = Sampling32 if boxes.dtype == np.float32 else Sampling64
    return kind(n, h, w, c, len(boxes), *size, **rules)


def _check_grad_output(what: str, grad_output: Array, boxes: Array, features: tuple[int, ...]) -> None:
    if grad_output.ndim != 4 or grad_output.shape[::3] != (len(boxes), features[-1]):
        raise ShapeError(
            f"{what}: grad_output must have shape (R, P, Q, C) with R = {len(boxes)} and C = {features[-1]}, "
            f"got {grad_output.shape}"
        )


def _kind(*arrays: Array) -> tuple[str, int]:
    """The kernels' type and width for these arrays' channels, and how many such vectors make a pixel.

    float64 isn't tuned: its channels are taken one by one.
    """
    channels, dtype = arrays[0].shape[-1], arrays[0].dtype
    wide = width(channels, *arrays) if dtype == np.float32 else 1
    return f"{TYPES[dtype]}, {wide}", channels // wide


def _runs(sampling: Sampling32 | Sampling64) -> tuple[Any, Any]:
    """How many runs of neighbouring bins there are, a warp each, and how long they are: longer if there are many bins."""
    rows = sampling.regions * sampling.rows
    length = min(LONGEST, max(1, rows * sampling.columns // ENOUGH))
    return np.int32(rows * blocks(sampling.columns, length)), np.int32(length)
