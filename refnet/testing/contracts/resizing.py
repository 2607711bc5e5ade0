"""Resizing: nearest neighbours are copies, bilinear ones are means of four pixels.

Coordinates are float64 whatever the images are, in any order of operations: along an axis of L pixels they are known
within 4 L 2⁻⁵³, and weights within v = u + 4 L 2⁻⁵³. A bilinear pixel is off by the errors of two weights, their
product and a sum of four: at most 12 v max |x|. In its adjoint a pixel is off by 2 v of all gradients of its image, for
the weights, and by the rounding of its own sum.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from refnet.ops import (
    resize_bilinear_forward,
    resize_bilinear_grad,
    resize_nearest_forward,
    resize_nearest_grad,
    upsample_add_forward,
)
from refnet.testing.bounds import DOUBLE, Expected, Rounding, sums
from refnet.testing.calls import Call, Kind, Shape, Values
from refnet.testing.contract import Adjoint, Contract
from refnet.testing.strategies.drawing import Draw, kinds, seeds

WEIGHTED = 12
Pair = tuple[int, int]


def _call(name: str, source: Pair, size: Pair, kind: Kind, seed: int, corners: bool, rest: Pair = (2, 3)) -> Call:
    """A call of one of the five operations, for `rest` images and channels."""
    n, c = rest
    x, y = Values((n, *source, c), kind, seed), Values((n, *size, c), kind, seed + 1)
    align = {"align_corners": corners}
    calls: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "resize_bilinear_forward": ({"x": x}, {"size": size, **align}),
        "resize_bilinear_grad": ({"grad_output": y}, {"source": source, **align}),
        "resize_nearest_forward": ({"x": x}, {"size": size}),
        "resize_nearest_grad": ({"grad_output": y}, {"source": source}),
        "upsample_add_forward": ({"coarse": x, "fine": y}, {}),
    }
    arrays, parameters = calls[name]
    return Call.of(arrays, parameters)


@st.composite
def _calls(draw: Draw, name: str) -> Call:
    extents = st.tuples(st.integers(1, 8), st.integers(1, 8))
    source, size = draw(extents), draw(extents)
    if draw(st.booleans()):
        size = (source[0] * draw(st.integers(1, 3)), source[1] * draw(st.integers(1, 3)))
    rest = draw(st.tuples(st.integers(0, 2), st.integers(1, 9)))
    return _call(name, source, size, draw(kinds), draw(seeds), draw(st.booleans()), rest)


SIZES: dict[str, tuple[Pair, Pair]] = {
    "one pixel": ((1, 1), (1, 1)),
    "one pixel to many": ((1, 1), (3, 4)),
    "many pixels to one": ((5, 4), (1, 1)),
    "the same size": ((4, 5), (4, 5)),
    "twice": ((4, 5), (8, 10)),
    "twice and thrice": ((3, 2), (6, 6)),
    "half": ((8, 6), (4, 3)),
    "a pyramid's odd level": ((13, 7), (25, 13)),
    "no whole factor": ((5, 7), (8, 3)),
    "a row": ((1, 33), (1, 65)),
}


def _edges(name: str) -> dict[str, Call]:
    edges = {title: _call(name, *sizes, "normal", 17, False) for title, sizes in SIZES.items()}
    edges["corners on corners"] = _call(name, (3, 5), (7, 9), "normal", 17, True)
    edges["one pixel, corners on corners"] = _call(name, (3, 5), (1, 1), "normal", 17, True)
    edges["no image"] = _call(name, (2, 2), (4, 4), "normal", 17, False, (0, 3))
    edges |= {f"{c} channels": _call(name, (3, 3), (6, 6), "normal", 17, False, (1, c)) for c in (31, 32, 33, 64, 65)}
    return edges


def _bilinear(specification: Callable[..., Any], call: Call, rounding: Rounding) -> tuple[Expected, ...]:
    wide = call.astype(np.float64)
    (value,) = wide.results(specification)
    largest = abs(wide["x"]).max(axis=(1, 2), initial=0, keepdims=True)
    off = _weight(call["x"].shape, rounding)
    return (Expected(value, np.broadcast_to(WEIGHTED * off * largest, value.shape)),)


def _weight(shape: Shape, rounding: Rounding) -> float:
    """v, for images of a shape (N, H, W, C)."""
    return rounding.unit + DOUBLE + 4 * max(shape[1:3]) * DOUBLE


def _bilinear_grad(specification: Callable[..., Any], call: Call, rounding: Rounding) -> tuple[Expected, ...]:
    wide = call.astype(np.float64)
    (value,), (sizes,) = wide.results(specification), wide.absolute().results(specification)
    g = abs(wide["grad_output"])
    totals, pixels = g.sum(axis=(1, 2), keepdims=True), g[0, :, :, 0].size if len(g) else 0
    off = _weight(value.shape, rounding)
    return (Expected(value, (pixels + WEIGHTED) * off * sizes + 2 * off * totals),)


def _contract(operation: Any, why: str, **more: Any) -> Contract:
    return Contract(operation=operation, inputs=_calls(operation.name), edges=_edges(operation.name), why=why, **more)


CONTRACTS = (
    _contract(
        resize_bilinear_forward,
        "a mean of four pixels; at the head of refnet.testing.contracts.resizing",
        bound=_bilinear,
        adjoints=(
            Adjoint(
                of="x",
                transposed=lambda u, call: resize_bilinear_grad.specification(
                    u, source=call["x"].shape[1:3], align_corners=call["align_corners"]
                ),
            ),
        ),
    ),
    _contract(
        resize_bilinear_grad,
        "a sum over at most all pixels of the result, with weights known within u",
        bound=_bilinear_grad,
        adjoints=(
            Adjoint(
                of="grad_output",
                transposed=lambda u, call: resize_bilinear_forward.specification(
                    u, size=call["grad_output"].shape[1:3], align_corners=call["align_corners"]
                ),
            ),
        ),
    ),
    _contract(resize_nearest_forward, "copies"),
    _contract(
        resize_nearest_grad,
        "a sum over the copies of a pixel, at most all pixels of the result",
        bound=sums(lambda call: call["grad_output"][0, :, :, 0].size if len(call["grad_output"]) else 1),
        adjoints=(
            Adjoint(
                of="grad_output",
                transposed=lambda u, call: resize_nearest_forward.specification(u, size=call["grad_output"].shape[1:3]),
            ),
        ),
    ),
    _contract(upsample_add_forward, "one sum is rounded once, in the same way everywhere"),
)
