"""conv2d_forward, its two gradients and its fused form: sums of products.

Over the taps of a window and the channels of a group; over taps and a group's outputs; over all pixels of the output.
"""

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from refnet.arrays import Array
from refnet.ops import conv2d_forward, conv2d_fused_forward, conv2d_grad_input, conv2d_grad_weight
from refnet.testing.bounds import sums
from refnet.testing.calls import Call, Kind, Values
from refnet.testing.contract import Adjoint, Contract
from refnet.testing.strategies.drawing import Draw, kinds
from refnet.testing.strategies.geometry import Convolution, convolutions
from refnet.testing.winograd import of_grad_input, of_grad_weight, or_plain


def _call(name: str, case: Convolution, kind: Kind) -> Call:
    x, w = Values(case.x_shape, kind, case.seed), Values(case.w_shape, kind, case.seed + 1)
    u = Values(case.y_shape, kind, case.seed + 2)
    if name == "conv2d_forward":
        return Call.of({"x": x, "w": w}, case.parameters)
    if name == "conv2d_grad_input":
        return Call.of({"grad_output": u, "w": w}, {"input_size": case.x_shape[1:3], **case.parameters})
    return Call.of({"x": x, "grad_output": u}, {"kernel_size": case.w_shape[:2], **case.parameters})


@st.composite
def _calls(draw: Draw, name: str) -> Call:
    return _call(name, draw(convolutions(least_images=0, largest_channels=6)), draw(kinds))


def _case(
    x_shape: tuple[int, int, int, int],
    w_shape: tuple[int, int, int, int],
    *,
    stride: int | tuple[int, int] = 1,
    padding: Any = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Convolution:
    def pair(value: Any) -> Any:
        return value if isinstance(value, tuple) else (value, value)

    pads = padding if isinstance(padding, tuple) else ((padding, padding), (padding, padding))
    return Convolution(
        x_shape=x_shape,
        w_shape=w_shape,
        stride=pair(stride),
        padding=pads,
        dilation=pair(dilation),
        groups=groups,
        seed=5,
    )


GEOMETRIES: dict[str, Convolution] = {
    "no image": _case((0, 3, 3, 2), (3, 3, 2, 4)),
    "one number": _case((1, 1, 1, 1), (1, 1, 1, 1)),
    "a window larger than the image": _case((1, 2, 2, 2), (5, 5, 2, 3), padding=2),
    "a window that sees padding only": _case((1, 1, 1, 1), (3, 3, 1, 1), stride=2, padding=((3, 3), (3, 3))),
    "four paddings": _case((1, 5, 4, 2), (3, 2, 2, 3), padding=((1, 3), (0, 2))),
    "pixels that no window reaches": _case((1, 8, 9, 2), (2, 2, 2, 3), stride=(3, 4)),
    "a stride beyond the window": _case((2, 7, 7, 3), (1, 1, 3, 2), stride=3),
    "strides of two axes": _case((1, 9, 7, 2), (3, 3, 2, 2), stride=(2, 1), padding=1),
    "dilations of two axes": _case((1, 9, 8, 2), (3, 2, 2, 2), dilation=(2, 3)),
    "dilation and stride": _case((1, 10, 9, 2), (3, 3, 2, 2), dilation=2, stride=2, padding=2),
    "depth-wise": _case((2, 6, 5, 8), (3, 3, 1, 8), padding=1, groups=8),
    "depth-wise, two outputs a channel": _case((1, 6, 5, 5), (3, 3, 1, 10), padding=1, groups=5),
    "groups": _case((1, 5, 6, 6), (3, 3, 2, 9), padding=1, groups=3),
    "groups wider than a warp": _case((1, 3, 3, 70), (1, 1, 35, 66), groups=2),
    "a stem": _case((1, 13, 12, 3), (7, 7, 3, 8), stride=2, padding=3),
    "a fully connected layer": _case((33, 1, 1, 65), (1, 1, 65, 31)),
    "a column of pixels": _case((1, 40, 1, 4), (3, 1, 4, 4), padding=((1, 1), (0, 0))),
    "a row of pixels": _case((1, 1, 40, 4), (1, 3, 4, 4), padding=((0, 0), (1, 1))),
    **{f"{n} pixels, channels and outputs": _case((1, 1, n, n), (1, 1, n, n)) for n in (31, 32, 33, 63, 64, 65)},
    "many pixels of few channels": _case((4, 24, 24, 2), (3, 3, 2, 3), padding=1),
    "129 outputs of a 3x3 window": _case((1, 5, 5, 16), (3, 3, 16, 129), padding=1),
}


def _edges(name: str) -> dict[str, Call]:
    edges = {title: _call(name, case, "integers") for title, case in GEOMETRIES.items()}
    for title in ("four paddings", "groups", "65 pixels, channels and outputs"):
        edges[f"{title}, any numbers"] = _call(name, GEOMETRIES[title], "normal")
    return edges


STEPS = ("scale", "shift", "residual")


def _fused(case: Convolution, kind: Kind, steps: tuple[str, ...], relu: bool) -> Call:
    """The forward call, with those of STEPS that are named."""
    channels = case.y_shape[3:]
    arrays = _call("conv2d_forward", case, kind).recipes | {
        name: Values(case.y_shape if name == "residual" else channels, kind, case.seed + 3 + position)
        if name in steps
        else None
        for position, name in enumerate(STEPS)
    }
    return Call.of(arrays, {"relu": relu, **case.parameters})


@st.composite
def _fused_calls(draw: Draw) -> Call:
    case = draw(convolutions(least_images=0, largest_channels=6))
    steps = draw(st.lists(st.sampled_from(STEPS), unique=True))
    return _fused(case, draw(kinds), tuple(steps), draw(st.booleans()))


def _fused_edges() -> dict[str, Call]:
    edges = {title: _fused(case, "integers", STEPS, True) for title, case in GEOMETRIES.items()}
    for step in ((), *((name,) for name in STEPS)):
        for relu in (False, True):
            title = f"{step[0] if step else 'nothing'} only{', relu' if relu else ''}"
            edges[title] = _fused(GEOMETRIES["four paddings"], "normal", step, relu)
    return edges


def _geometry(call: Call) -> dict[str, Any]:
    return {name: call[name] for name in ("stride", "padding", "dilation", "groups")}


def _grad_input(u: Array, w: Array, call: Call, size: tuple[int, int]) -> Array:
    return conv2d_grad_input.specification(u, w.astype(np.float64), input_size=size, **_geometry(call))


def _grad_weight(x: Array, u: Array, call: Call, size: tuple[int, int]) -> Array:
    return conv2d_grad_weight.specification(x.astype(np.float64), u, kernel_size=size, **_geometry(call))


def _forward(x: Array, w: Array, call: Call) -> Array:
    return conv2d_forward.specification(x.astype(np.float64), w.astype(np.float64), **_geometry(call))


CONTRACTS = (
    Contract(
        operation=conv2d_forward,
        inputs=_calls("conv2d_forward"),
        edges=_edges("conv2d_forward"),
        bound=or_plain(sums(lambda call: math.prod(call["w"].shape[:3]))),
        why="a sum over kh kw taps of C / groups channels, or Winograd's",
        adjoints=(
            Adjoint(of="x", transposed=lambda u, call: _grad_input(u, call["w"], call, call["x"].shape[1:3])),
            Adjoint(of="w", transposed=lambda u, call: _grad_weight(call["x"], u, call, call["w"].shape[:2])),
        ),
    ),
    Contract(
        operation=conv2d_fused_forward,
        inputs=_fused_calls(),
        edges=_fused_edges(),
        bound=or_plain(sums(lambda call: math.prod(call["w"].shape[:3]) + len(STEPS), relu=False), steps=len(STEPS)),
        why="the sum of conv2d_forward, and a rounding for each step; relu carries an error on as it is",
    ),
    Contract(
        operation=conv2d_grad_input,
        inputs=_calls("conv2d_grad_input"),
        edges=_edges("conv2d_grad_input"),
        bound=or_plain(
            sums(lambda call: math.prod(call["w"].shape[:2]) * call["w"].shape[3] // call["groups"]), of_grad_input
        ),
        why="a sum over kh kw taps of O / groups outputs, at most, or Winograd's",
        adjoints=(Adjoint(of="grad_output", transposed=lambda u, call: _forward(u, call["w"], call)),),
    ),
    Contract(
        operation=conv2d_grad_weight,
        inputs=_calls("conv2d_grad_weight"),
        edges=_edges("conv2d_grad_weight"),
        bound=or_plain(sums(lambda call: call["grad_output"][..., 0].size), of_grad_weight),
        why="a sum over N Ho Wo pixels of the output, or Winograd's over their tiles",
        adjoints=(Adjoint(of="grad_output", transposed=lambda u, call: _forward(call["x"], u, call)),),
    ),
)
