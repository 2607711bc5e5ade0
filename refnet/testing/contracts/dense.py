"""relu and the affine layer, which do little arithmetic on many numbers, and the product of two matrices."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from refnet.ops import (
    affine_forward,
    affine_grad_input,
    affine_grad_parameters,
    matrix_product,
    relu_forward,
    relu_grad,
    sum_rows,
)
from refnet.testing.bounds import sums
from refnet.testing.calls import Call, Kind, Shape, Values
from refnet.testing.contract import Adjoint, Contract
from refnet.testing.strategies.drawing import Draw, kinds, seeds, shapes

COUNTS = (31, 32, 33, 63, 64, 65, 1023, 1025, 4099)
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 2.0**-140, -(2.0**-140), 3.0])


def _relu_grad(shape: Shape, kind: Kind, seed: int) -> Call:
    y = np.asarray(np.maximum(Values(shape, kind, seed).array(), 0))
    return Call.of({"grad_output": Values(shape, kind, seed + 1), "y": y})


def _channels(names: tuple[str, ...], shape: Shape, kind: Kind, seed: int) -> Call:
    """The first arrays are as large as the batch, `scale` and `shift` are rows."""
    rows = ("scale", "shift")
    recipes = {
        name: Values(shape[-1:] if name in rows else shape, kind, seed + position)
        for position, name in enumerate(names)
    }
    return Call.of(recipes)


FORWARD, GRAD_INPUT, GRAD_PARAMETERS = ("x", "scale", "shift"), ("grad_output", "scale"), ("grad_output", "x")


@st.composite
def _relu_calls(draw: Draw, gradient: bool) -> Call:
    shape, kind, seed = draw(shapes(least_axes=0)), draw(kinds), draw(seeds)
    return _relu_grad(shape, kind, seed) if gradient else Call.of({"x": Values(shape, kind, seed)})


@st.composite
def _affine_calls(draw: Draw, names: tuple[str, ...]) -> Call:
    return _channels(names, draw(shapes(least_axes=2)), draw(kinds), draw(seeds))


def _product(rows: int, inner: int, columns: int, kind: Kind, seed: int) -> Call:
    return Call.of({"a": Values((rows, inner), kind, seed), "b": Values((inner, columns), kind, seed + 1)})


@st.composite
def _products(draw: Draw) -> Call:
    rows, inner, columns = (draw(st.integers(0, 40)) for _ in range(3))
    return _product(rows, inner, columns, draw(kinds), draw(seeds))


PRODUCTS = {
    "no row": (0, 3, 2),
    "no column": (3, 2, 0),
    "sums of nothing": (3, 0, 2),
    "one number": (1, 1, 1),
    "one row": (1, 65, 33),
    "one column": (65, 33, 1),
    "more rows than columns": (129, 70, 65),
    "more columns than rows": (65, 70, 129),
    "large enough to be shared among threads": (131, 257, 129),
}


RELU_SHAPES: dict[str, Shape] = {
    "no axis": (),
    "no number": (0, 3),
    "one number": (1,),
    **{f"{count} numbers": (count,) for count in COUNTS},
    "four axes": (2, 3, 5, 7),
}
BATCHES: dict[str, Shape] = {
    "no row": (0, 3, 2),
    "one number": (1, 1),
    "one row": (1, 65),
    "one channel": (1025, 1),
    **{f"{count} rows and channels": (count, count) for count in (31, 32, 33, 63, 64, 65)},
    "channels that vectors of four don't divide": (3, 5, 7),
    "many rows": (4099, 3),
    "channels of a layer": (2, 3, 3, 256),
}


def _affine_edges(names: tuple[str, ...]) -> dict[str, Call]:
    edges = {title: _channels(names, shape, "integers", 3) for title, shape in BATCHES.items()}
    edges["any numbers"] = _channels(names, (70, 33), "normal", 3)
    return edges


def _rows(call: Call, name: str = "x") -> int:
    x: Any = call[name]
    return int(x.size // x.shape[-1])


CONTRACTS = (
    Contract(
        operation=relu_forward,
        inputs=_relu_calls(False),
        edges={
            **{title: Call.of({"x": Values(shape, "normal", 1)}) for title, shape in RELU_SHAPES.items()},
            "special numbers": Call.of({"x": SPECIAL}),
        },
        why="a comparison rounds nothing",
    ),
    Contract(
        operation=relu_grad,
        inputs=_relu_calls(True),
        edges={
            **{title: _relu_grad(shape, "normal", 1) for title, shape in RELU_SHAPES.items()},
            "special results": Call.of({"grad_output": np.ones(8), "y": np.maximum(SPECIAL, 0)}),
        },
        why="a choice rounds nothing",
    ),
    Contract(
        operation=affine_forward,
        inputs=_affine_calls(FORWARD),
        edges=_affine_edges(FORWARD),
        bound=sums(lambda call: 2),
        why="a sum of two: a product and the shift, fused or not",
        adjoints=(Adjoint(of="x", transposed=lambda u, call: u * call["scale"]),),
    ),
    Contract(
        operation=affine_grad_input,
        inputs=_affine_calls(GRAD_INPUT),
        edges=_affine_edges(GRAD_INPUT),
        why="one product is rounded once, in the same way everywhere",
    ),
    Contract(
        operation=affine_grad_parameters,
        inputs=_affine_calls(GRAD_PARAMETERS),
        edges=_affine_edges(GRAD_PARAMETERS),
        bound=sums(_rows),
        why="sums over the rows of the batch",
        adjoints=(Adjoint(of="grad_output", transposed=lambda u, call: call["x"].astype(np.float64) * u),),
    ),
    Contract(
        operation=matrix_product,
        inputs=_products(),
        edges={
            **{title: _product(*shape, "integers", 3) for title, shape in PRODUCTS.items()},
            "any numbers": _product(70, 33, 65, "normal", 3),
        },
        bound=sums(lambda call: call["a"].shape[1]),
        why="sums over the rows of b",
        adjoints=(
            Adjoint(of="a", transposed=lambda u, call: u @ call["b"].T),
            Adjoint(of="b", transposed=lambda u, call: call["a"].T @ u),
        ),
    ),
    Contract(
        operation=sum_rows,
        inputs=_affine_calls(("g",)),
        edges=_affine_edges(("g",)),
        bound=sums(lambda call: _rows(call, "g")),
        why="a sum over the rows of the batch",
        adjoints=(Adjoint(of="g", transposed=lambda u, call: np.broadcast_to(u, call["g"].shape)),),
    ),
)
