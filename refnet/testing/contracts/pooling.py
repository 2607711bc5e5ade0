"""max_pool2d_forward chooses, so bits are equal, ties included; its gradient adds up what windows share."""

import math

import numpy as np
from hypothesis import strategies as st

from refnet.ops import max_pool2d_forward, max_pool2d_grad
from refnet.testing.bounds import sums
from refnet.testing.calls import Call, Kind, Values
from refnet.testing.contract import Contract
from refnet.testing.strategies.drawing import Draw, kinds
from refnet.testing.strategies.geometry import Pooling, poolings


def _forward(case: Pooling, kind: Kind) -> Call:
    return Call.of({"x": Values(case.x_shape, kind, case.seed)}, case.parameters)


def _grad(case: Pooling, kind: Kind) -> Call:
    x = Values(case.x_shape, kind, case.seed).array()
    y, place = max_pool2d_forward.specification(x, **case.parameters)
    parameters = {"input_size": case.x_shape[1:3], **case.parameters}
    return Call.of({"grad_output": Values(y.shape, kind, case.seed + 1), "place": place}, parameters)


@st.composite
def _calls(draw: Draw, gradient: bool) -> Call:
    return (_grad if gradient else _forward)(draw(poolings()), draw(kinds))


def _case(
    x_shape: tuple[int, int, int, int],
    window: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0)),
) -> Pooling:
    return Pooling(x_shape=x_shape, kernel_size=window, stride=stride, padding=padding, seed=7)


GEOMETRIES = {
    "no image": _case((0, 4, 4, 3), (2, 2), (2, 2)),
    "one pixel": _case((1, 1, 1, 1), (1, 1), (1, 1)),
    "a stem's pooling": _case((2, 9, 8, 5), (3, 3), (2, 2), ((1, 1), (1, 1))),
    "padding at the bottom and right": _case((1, 8, 8, 4), (3, 3), (2, 2), ((0, 1), (0, 1))),
    "four paddings": _case((1, 6, 5, 2), (4, 3), (2, 1), ((1, 3), (0, 2))),
    "a stride beyond the window": _case((1, 9, 9, 2), (2, 2), (4, 3)),
    "a stride that skips": _case((1, 9, 9, 2), (1, 1), (2, 2)),
    "a window of 17 x 17": _case((1, 17, 17, 2), (17, 17), (1, 1)),
    "windows of 16 x 17 pixels that overlap": _case((1, 18, 18, 1), (16, 17), (1, 1)),
    **{f"{c} channels": _case((1, 5, 5, c), (3, 3), (2, 2), ((1, 1), (1, 1))) for c in (31, 32, 33, 64, 65)},
}


def _not_numbers() -> Call:
    case = GEOMETRIES["a stem's pooling"]
    x = Values(case.x_shape, "normal", 2).array()
    x[0, 2, 3], x[1, 4, 4, 1], x[1, 0, 0, 2] = np.nan, np.inf, -np.inf
    return Call.of({"x": x}, case.parameters)


CONTRACTS = (
    Contract(
        operation=max_pool2d_forward,
        inputs=_calls(False),
        edges={
            **{title: _forward(case, "integers") for title, case in GEOMETRIES.items()},
            "all pixels equal": _forward(GEOMETRIES["a stem's pooling"], "ones"),
            "any numbers": _forward(GEOMETRIES["a stem's pooling"], "normal"),
            "NaN and infinity": _not_numbers(),
        },
        why="a maximum is one of the numbers; of equal ones the first counts",
    ),
    Contract(
        operation=max_pool2d_grad,
        inputs=_calls(True),
        edges={
            **{title: _grad(case, "integers") for title, case in GEOMETRIES.items()},
            "any numbers": _grad(GEOMETRIES["a stem's pooling"], "normal"),
        },
        bound=sums(lambda call: math.prod(call["kernel_size"])),
        why="a sum over the windows that a pixel lies in, at most kh kw",
    ),
)
