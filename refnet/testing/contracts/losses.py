"""Losses with their derivatives, and softmax: bounds of first order from the error of exponentials and logarithms.

These functions are taken to be within 2 units in the last place, 4 u, as in CUDA's and every common C library. A
logit's distance d from the greatest of its row is rounded, which changes exp(-d) by d u of itself; so a sum of K
exponentials is off by (d̄ + K + 4) u of itself, with d̄ the mean distance by softmax, and

.. math:: |\\Delta y| \\le (d + \\bar d + K + 12)\\, u\\, y, \\qquad
          |\\Delta L| \\le (\\bar d + K + 8 + 3 |\\ln \\textstyle\\sum| + 3 d)\\, u
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from refnet.arrays import Array
from refnet.ops import binary_cross_entropy_forward, cross_entropy_forward, smooth_l1_forward, softmax_forward
from refnet.testing.bounds import DOUBLE, Expected, Rounding, near
from refnet.testing.calls import Call, Kind, Shape, Values
from refnet.testing.contract import Contract
from refnet.testing.strategies.drawing import Draw, kinds, seeds, shapes

betas = st.sampled_from([1.0, 1 / 9, 0.0, 0.25])


def _enlarged(values: Values, times: float) -> Values | Array:
    """`times` the values; an array of no axis stays an array."""
    return values if times == 1 else np.asarray(values.array() * times)


def _binary(shape: Shape, kind: Kind, seed: int, times: float = 1.0) -> Call:
    targets = np.asarray(np.random.default_rng(seed).choice([0.0, 1.0, 0.5, 0.3], shape))
    return Call.of({"logits": _enlarged(Values(shape, kind, seed), times), "targets": targets}, exact=False)


def _classes(rows: int, classes: int, kind: Kind, seed: int, times: float = 1.0) -> Call:
    own = np.random.default_rng(seed).integers(0, classes, rows)
    logits = _enlarged(Values((rows, classes), kind, seed), times)
    return Call.of({"logits": logits, "classes": own}, exact=False)


def _distance(shape: Shape, kind: Kind, seed: int, beta: float) -> Call:
    arrays = {"prediction": Values(shape, kind, seed), "target": Values(shape, kind, seed + 1)}
    return Call.of(arrays, {"beta": beta}, exact=False)


def _softmax(shape: Shape, kind: Kind, seed: int, axis: int = -1, times: float = 1.0) -> Call:
    return Call.of({"x": _enlarged(Values(shape, kind, seed), times)}, {"axis": axis}, exact=False)


@st.composite
def _softmax_calls(draw: Draw) -> Call:
    shape = draw(shapes(least_axes=1))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    if shape[axis] == 0:
        axis = len(shape) - 1
    return _softmax(shape, draw(kinds), draw(seeds), axis, draw(st.sampled_from([1.0, 20.0])))


def _binary_bound(specification: Callable[..., Any], call: Call, rounding: Rounding) -> tuple[Expected, ...]:
    wide = call.astype(np.float64)
    losses, derivative = wide.results(specification)
    x, t = wide["logits"], wide["targets"]
    small, u = np.exp(-abs(x)), rounding.unit + DOUBLE
    sigmoid = np.where(x >= 0, 1, small) / (1 + small)
    off = 6 * u * (abs(x) + abs(x * t) + np.log1p(small) + small) + _tiny(call)
    return near(losses, off), near(derivative, 10 * u * (sigmoid + t) + _tiny(call))


def _softmax_bound(specification: Callable[..., Any], call: Call, rounding: Rounding) -> tuple[Expected, ...]:
    wide = call.astype(np.float64)
    (y,) = wide.results(specification)
    off, _, _ = _of_rows(wide["x"], call["axis"], rounding)
    return (near(y, off + _tiny(call)),)


def _classes_bound(specification: Callable[..., Any], call: Call, rounding: Rounding) -> tuple[Expected, ...]:
    wide = call.astype(np.float64)
    losses, derivative = wide.results(specification)
    x, u = wide["logits"], rounding.unit + DOUBLE
    off, distance, mean = _of_rows(x, 1, rounding)
    logarithm = np.log(np.exp(-distance).sum(axis=1))
    own = distance[np.arange(len(x)), call["classes"]]
    loss_off = (mean[:, 0] + x.shape[1] + 8 + 3 * abs(logarithm) + 3 * own) * u
    return near(losses, loss_off), near(derivative, off + 2 * u * abs(derivative) + _tiny(call))


def _of_rows(x: Array, axis: int, rounding: Rounding) -> tuple[Array, Array, Array]:
    """How far softmax may be off; the distance d of each logit from the greatest; d̄."""
    if not x.size:
        return x, x, x.sum(axis=axis, keepdims=True)
    distance: Array = x.max(axis=axis, keepdims=True) - x
    y = np.exp(-distance)
    y /= y.sum(axis=axis, keepdims=True)
    mean: Array = (y * distance).sum(axis=axis, keepdims=True)
    off: Array = (distance + mean + x.shape[axis] + 12) * (rounding.unit + DOUBLE) * y
    return off, distance, mean


def _distance_bound(specification: Callable[..., Any], call: Call, rounding: Rounding) -> tuple[Expected, ...]:
    """A difference, beta itself, and three operations on either branch are rounded; the slope is at most 1."""
    wide = call.astype(np.float64)
    losses, derivative = wide.results(specification)
    distance, u = abs(wide["prediction"] - wide["target"]), rounding.unit + DOUBLE
    return near(losses, 8 * u * (losses + distance)), near(derivative, 8 * u * abs(derivative))


def _tiny(call: Call) -> float:
    """Below this numbers may count as 0."""
    dtype = next(array.dtype for array in call.arrays.values() if array.dtype.kind == "f")
    return float(np.finfo(dtype).smallest_normal)


SHAPES: dict[str, Shape] = {
    "no axis": (),
    "nothing": (0, 4),
    "one number": (1,),
    **{f"{count} numbers": (count,) for count in (31, 32, 33, 64, 65, 1025)},
    "four axes": (2, 3, 5, 7),
}
ROWS = {
    "no row": (0, 3),
    "one class": (4, 1),
    "two classes": (5, 2),
    **{f"{count} classes": (3, count) for count in (31, 32, 33, 64, 65, 81)},
    "a keypoint's places": (2, 3136),
    "many rows": (130, 5),
}

CONTRACTS = (
    Contract(
        operation=binary_cross_entropy_forward,
        inputs=st.builds(_binary, shapes(least_axes=0), kinds, seeds, st.sampled_from([1.0, 30.0])),
        edges={
            **{title: _binary(shape, "normal", 21) for title, shape in SHAPES.items()},
            "logits without a doubt": _binary((64,), "normal", 21, 200.0),
            "a logit of 0": _binary((4,), "integers", 21, 0.0),
        },
        bound=_binary_bound,
        why="rounding of exp and log1p, carried on to first order",
    ),
    Contract(
        operation=cross_entropy_forward,
        inputs=st.builds(_classes, st.integers(0, 9), st.integers(1, 70), kinds, seeds, st.sampled_from([1.0, 30.0])),
        edges={
            **{title: _classes(*shape, "normal", 23) for title, shape in ROWS.items()},
            "logits without a doubt": _classes(9, 7, "normal", 23, 100.0),
            "equal logits": _classes(9, 7, "ones", 23),
        },
        bound=_classes_bound,
        why="rounding of exp, log and a sum over the classes, at the head of refnet.testing.contracts.losses",
    ),
    Contract(
        operation=smooth_l1_forward,
        inputs=st.builds(_distance, shapes(least_axes=0), kinds, seeds, betas),
        edges={
            **{title: _distance(shape, "normal", 25, 1 / 9) for title, shape in SHAPES.items()},
            "differences of exactly beta": _distance((64,), "integers", 25, 1.0),
            "the absolute value": _distance((64,), "integers", 25, 0.0),
        },
        bound=_distance_bound,
        why="a difference and at most five more roundings; the derivative is at most 1",
    ),
    Contract(
        operation=softmax_forward,
        inputs=_softmax_calls(),
        edges={
            **{title: _softmax(shape, "normal", 27) for title, shape in ROWS.items()},
            "the first axis": _softmax((5, 3, 4), "normal", 27, 0),
            "an axis in the middle": _softmax((2, 33, 4), "normal", 27, 1),
            "logits without a doubt": _softmax((9, 7), "normal", 27, -1, 100.0),
            "equal numbers": _softmax((3, 8), "ones", 27),
        },
        bound=_softmax_bound,
        why="rounding of exp and a sum over the axis, at the head of refnet.testing.contracts.losses",
    ),
)
