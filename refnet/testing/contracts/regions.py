"""crop_and_resize, roi_align and roi_pool: coordinates and decisions bit for bit, sums within rounding.

The order of operations within a coordinate is part of the specification, so a kernel has the same coordinates, in the
arrays' type, and the same samples inside and outside. From a coordinate s on, the weights 1 - |s - h| of a sample are
off by at most u each (the difference can be rounded where s is close to 0), and a bin's weights add up to 1. With S
samples a bin and axis, a bin is a mean of 4 S² products at most, and

.. math:: |\\Delta y| \\le (4 S^2 + 2 J)\\, u \\max |f|

with J roundings in a weight, on both sides. Where no sample lies inside, the result is exact.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from refnet.arrays import Array
from refnet.ops import (
    crop_and_resize_forward,
    crop_and_resize_grad_boxes,
    crop_and_resize_grad_images,
    roi_align_forward,
    roi_align_grad_boxes,
    roi_align_grad_features,
    roi_pool_forward,
    roi_pool_grad,
)
from refnet.ops.roi_align import sample_counts, spans
from refnet.testing.bounds import DOUBLE, Expected, Rounding, sums
from refnet.testing.calls import Call, Kind, Values
from refnet.testing.contract import Adjoint, Contract
from refnet.testing.strategies.drawing import Draw, kinds
from refnet.testing.strategies.regions import Regions, regions

WEIGHT = 4  # roundings in a weight, from the coordinate on, and its product with that of the other axis

extrapolations = st.sampled_from([0.0, 100.0, -1.5])  # exact in every type


def _call(name: str, case: Regions, kind: Kind, extrapolation: float = 0.0, rough: bool = False) -> Call:
    """A call of one of the eight operations."""
    crops = name.startswith("crop")
    boxes = case.normalized_boxes if crops else case.boxes
    if rough:
        boxes = boxes + np.random.default_rng([case.seed, 2]).uniform(-0.1, 0.1, boxes.shape)
    features, grad = Values(case.features_shape, kind, case.seed), Values(case.output_shape, kind, case.seed + 1)
    where = {"boxes": boxes, "image_index": case.image_index}
    first = "images" if crops else "features"
    shape, sampling = {"input_shape": case.features_shape}, {} if crops else case.sampling
    if name.startswith("roi_pool"):
        sampling = {"spatial_scale": case.spatial_scale}
    forward = {"size": case.size, **sampling}
    if name == "crop_and_resize_forward":
        forward["extrapolation_value"] = extrapolation
    if name.endswith("forward"):
        return Call.of({first: features, **where}, forward, exact=False)
    if name == "roi_pool_grad":
        _, source = roi_pool_forward.specification(features.array(), boxes, case.image_index, **forward)
        return Call.of({"grad_output": grad, "source": source, "image_index": case.image_index}, shape)
    if name.endswith("grad_boxes"):
        return Call.of({"grad_output": grad, first: features, **where}, sampling, exact=False)
    return Call.of({"grad_output": grad, **where}, {**shape, **sampling}, exact=False)


@st.composite
def _calls(draw: Draw, name: str) -> Call:
    case: Regions = draw(regions())
    return _call(name, case, draw(kinds), draw(extrapolations), rough=draw(st.booleans()))


def _case(
    shape: tuple[int, int, int, int],
    boxes: Any,
    *,
    size: tuple[int, int] = (2, 3),
    index: Any = None,
    scale: float = 1.0,
    ratio: int = 2,
    aligned: bool = True,
) -> Regions:
    array = np.array(boxes, np.float64).reshape(-1, 4)
    indices = np.zeros(len(array), np.int64) if index is None else np.array(index, np.int64)
    return Regions(
        features_shape=shape, boxes=array, image_index=indices, size=size, spatial_scale=scale,
        sampling_ratio=ratio, aligned=aligned, seed=13,
    )  # fmt: skip


MAP = (2, 7, 9, 3)
INSIDE = [[1.25, 0.5, 6.0, 5.75], [0, 0, 9, 7], [2, 3, 4, 4.5]]
EDGES: Mapping[str, Regions] = {
    "no box": _case(MAP, []),
    "no image and no box": _case((0, 4, 4, 2), []),
    "boxes inside": _case(MAP, INSIDE, index=[0, 1, 1]),
    "one bin": _case(MAP, INSIDE, size=(1, 1)),
    "one bin high": _case(MAP, INSIDE, size=(1, 4)),
    "seven bins": _case(MAP, INSIDE, size=(7, 7), index=[1, 0, 1]),
    "one pixel": _case((1, 1, 1, 1), [[0, 0, 1, 1], [-1, -1, 2, 2]]),
    "a row of pixels": _case((1, 1, 9, 2), [[1, 0, 8, 1]]),
    "boxes without extent": _case(MAP, [[3, 2, 3, 2], [0, 0, 0, 5], [4, 4, 4, 4]]),
    "boxes without extent, adaptive": _case(MAP, [[3, 2, 3, 2], [1, 1, 4, 3], [0, 2, 5, 2]], ratio=0),
    "boxes that run backwards": _case(MAP, [[6, 5, 1, 1.5], [4.5, 1, 2, 6]]),
    "a larger map": _case((1, 18, 20, 2), [[17, 15, 12, 10], [1, 1, 19, 17], [6.5, 7, 9.5, 9.25]], size=(3, 3)),
    "boxes across the border": _case(MAP, [[-2, -2, 3, 3], [6, 4, 12, 10], [-3, -3, 14, 14]], index=[0, 1, 0]),
    "boxes far outside": _case(MAP, [[-50, -50, -40, -40], [100, 100, 120, 130], [2.0**20, 0, 2.0**20 + 8, 4]]),
    "huge boxes": _case(MAP, [[-(2.0**16), -(2.0**16), 2.0**16, 2.0**16]], ratio=2),
    "samples on the last pixel": _case(MAP, [[0, 0, 8, 6], [8, 6, 8, 6], [4, 3, 8, 6]], aligned=False),
    "samples a pixel outside": _case(MAP, [[-2, -2, 0, 0], [8, 6, 10, 8]], ratio=1, size=(2, 2), aligned=False),
    "boxes below a pixel, not aligned": _case(MAP, [[2, 2, 2.25, 2.5], [2, 2, 3, 3]], aligned=False),
    "an adaptive ratio": _case(MAP, [*INSIDE, [0, 0, 8.25, 6.5]], ratio=0, size=(2, 2)),
    "a quarter of the input's size": _case(MAP, np.array(INSIDE) * 4, scale=0.25),
    "extents that 32 isn't": _case(MAP, np.array(INSIDE) * 10, scale=0.1),
    "many boxes of one image": _case(MAP, np.array(INSIDE * 12) + 0.125, index=[1, 0, 1] * 12),
    **{f"{c} channels": _case((1, 5, 6, c), INSIDE[2:], size=(2, 2)) for c in (31, 32, 33, 64, 65, 129)},
}


def _edges(name: str) -> dict[str, Call]:
    edges = {title: _call(name, case, "normal", 100.0) for title, case in EDGES.items()}
    edges["integers"] = _call(name, EDGES["boxes inside"], "integers")
    if "roi_pool" not in name and "forward" in name:
        edges["equal numbers stay"] = _call(name, EDGES["seven bins"], "ones")
    return edges


def _samples(call: Call) -> int:
    """S: samples of a bin along an axis, of the box that has most; 1 for crop_and_resize."""
    if "sampling_ratio" not in call.parameters or not len(call["boxes"]):
        return 1
    size = call["grad_output"].shape[1:3] if "grad_output" in call.arrays else call["size"]
    _, extent, _ = spans(call["boxes"], call["spatial_scale"], call["aligned"])
    counts = sample_counts(extent / np.array(size[::-1], extent.dtype), 1, call["sampling_ratio"])
    return max(1, int(counts.max()))


def _roundings(call: Call) -> int:
    """J, twice: that of the kernel and that of the specification."""
    return 2 * (_samples(call) + WEIGHT)


def _forward_bound(name: str) -> Callable[..., tuple[Expected, ...]]:
    def bound(specification: Callable[..., Any], call: Call, rounding: Rounding) -> tuple[Expected, ...]:
        wide = call.astype(np.float64, keep=("boxes",))
        (value,) = wide.results(specification)
        images = wide[name]
        ones = wide.changed(**{name: np.ones_like(images), "extrapolation_value": 0.0})
        (inside,) = ones.results(specification)
        largest = abs(images).max(axis=(1, 2), initial=0)[call["image_index"]][:, None, None]  # R 1 1 C
        count = 4 * _samples(call) ** 2 + _roundings(call)
        return (Expected(value, count * (rounding.unit + DOUBLE) * largest * (inside > 0)),)

    return bound


def _grad_map_bound(specification: Callable[..., Any], call: Call, rounding: Rounding) -> tuple[Expected, ...]:
    """A weight is off by u absolutely, so a pixel also by u of all gradients of its image, if one of them is near."""
    wide = call.astype(np.float64, keep=("boxes",))
    (value,) = wide.results(specification)
    (sizes,) = wide.absolute(keep=("boxes",)).results(specification)
    (touched,) = wide.changed(grad_output=np.ones_like(wide["grad_output"])).results(specification)
    shape = call["input_shape"]
    totals = np.zeros((shape[0], 1, 1, shape[3]))
    np.add.at(totals[:, 0, 0], call["image_index"], abs(wide["grad_output"]).sum(axis=(1, 2)))
    near = touched > 0
    for axis in (1, 2):
        near = near | _shifted(near, 1, axis) | _shifted(near, -1, axis)
    products = call["grad_output"][..., 0].size * _samples(call) ** 2
    unit = rounding.unit + DOUBLE
    return (Expected(value, (products + _roundings(call) + 1) * unit * sizes + 2 * unit * totals * near),)


def _shifted(mask: Array, by: int, axis: int) -> Array:
    moved = np.roll(mask, by, axis=axis)
    edge = [slice(None)] * mask.ndim
    edge[axis] = slice(0, 1) if by > 0 else slice(-1, None)
    moved[tuple(edge)] = False
    return moved


def _grad_boxes_bound(name: str) -> Callable[..., tuple[Expected, ...]]:
    """A bin's gradient is at most |g| times the difference of two pixels; the edges of a box share it."""

    def bound(specification: Callable[..., Any], call: Call, rounding: Rounding) -> tuple[Expected, ...]:
        (value,) = call.results(specification)
        images, g = call[name], abs(call["grad_output"].astype(np.float64))
        scale = 2 * call["spatial_scale"] if "spatial_scale" in call.parameters else max(images.shape[1:3])
        sizes = g.sum(axis=(1, 2, 3)) * 2 * abs(images).max(initial=0) * scale
        count = g[:1].size * _samples(call) ** 2 + sum(images.shape[1:3]) + 2 * _roundings(call) * max(g.shape[1:3])
        return (Expected(value, 2 * count * (rounding.unit + DOUBLE) * np.tile(sizes[:, None], 4)),)

    return bound


def _parameters(call: Call, *names: str) -> dict[str, Any]:
    return {name: call[name] for name in names if name in call.parameters}


SAMPLING = ("spatial_scale", "sampling_ratio", "aligned")


def _crop_grad(u: Array, call: Call) -> Array:
    shape = call["images"].shape
    return crop_and_resize_grad_images.specification(u, call["boxes"], call["image_index"], input_shape=shape)


def _crop(u: Array, call: Call) -> Array:
    size = call["grad_output"].shape[1:3]
    return crop_and_resize_forward.specification(
        u, call["boxes"], call["image_index"], size=size, extrapolation_value=0.0
    )


def _align_grad(u: Array, call: Call) -> Array:
    shape, sampling = call["features"].shape, _parameters(call, *SAMPLING)
    return roi_align_grad_features.specification(u, call["boxes"], call["image_index"], input_shape=shape, **sampling)


def _align(u: Array, call: Call) -> Array:
    size, sampling = call["grad_output"].shape[1:3], _parameters(call, *SAMPLING)
    return roi_align_forward.specification(u, call["boxes"], call["image_index"], size=size, **sampling)


def _contract(operation: Any, bound: Any, why: str, **more: Any) -> Contract:
    return Contract(
        operation=operation, inputs=_calls(operation.name), edges=_edges(operation.name), bound=bound, why=why, **more
    )


MEAN = "a mean of samples; at the head of refnet.testing.contracts.regions"
SCATTER = "a sum over all samples of an image"
SLOPES = "a sum over all samples of a box"

CONTRACTS = (
    _contract(
        crop_and_resize_forward,
        _forward_bound("images"),
        MEAN,
        adjoints=(Adjoint(of="images", transposed=_crop_grad),),
    ),
    _contract(
        crop_and_resize_grad_images,
        _grad_map_bound,
        SCATTER,
        adjoints=(Adjoint(of="grad_output", transposed=_crop),),
        order_may_vary=True,
    ),
    _contract(crop_and_resize_grad_boxes, _grad_boxes_bound("images"), SLOPES),
    _contract(
        roi_align_forward,
        _forward_bound("features"),
        MEAN,
        adjoints=(Adjoint(of="features", transposed=_align_grad),),
    ),
    _contract(
        roi_align_grad_features,
        _grad_map_bound,
        SCATTER,
        adjoints=(Adjoint(of="grad_output", transposed=_align),),
        order_may_vary=True,
    ),
    _contract(roi_align_grad_boxes, _grad_boxes_bound("features"), SLOPES),
    Contract(
        operation=roi_pool_forward,
        inputs=_calls("roi_pool_forward"),
        edges=_edges("roi_pool_forward"),
        why="bins are decisions, and a maximum is one of the numbers",
    ),
    _contract(
        roi_pool_grad,
        sums(lambda call: call["grad_output"][..., 0].size),
        "a sum over the bins that have their maximum in a pixel, at most all",
        order_may_vary=True,
    ),
)
