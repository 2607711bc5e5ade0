"""Batch normalisation: bounds of first order, since its results aren't linear in the numbers.

A mean of M numbers that are added up in any order is off by at most

.. math:: \\delta = (M + 1)\\, u\\, \\tfrac1M \\sum |x|

A variance that is taken as squared distances from a mean, of all numbers or of parts of them, known within that, is off
by (M + 8) u of itself for its own rounding and, since the sum of distances from a mean is small, by at most
4 δ σ + 4 δ² for the mean's. (The difference of E[x²] and E[x]² has no such bound: it loses mean² / variance.) With
r = 1 / sqrt(variance + ε), taken at the smallest variance within its bound,

.. math:: |\\Delta r| \\le \\tfrac12 r^3 |\\Delta \\sigma^2| + 4 u r, \\qquad
          |\\Delta y| \\le |\\gamma| (r \\delta + |x - \\mu|\\, |\\Delta r|) + 6 u\\, (|\\gamma| r (|x| + |\\mu|) + |\\beta|)

which holds for y = γ r (x - μ) + β as for y = s x + t with s = γ r and t = β - s μ.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from refnet.arrays import Array
from refnet.ops import batch_norm_forward, batch_norm_grad, frozen_batch_norm_affine, move_running_statistics
from refnet.testing.bounds import Expected, Rounding, near
from refnet.testing.calls import Call, Kind, Shape, Values
from refnet.testing.contract import Contract
from refnet.testing.strategies.drawing import Draw, kinds, seeds, shapes


def _forward(shape: Shape, kind: Kind, seed: int, *, epsilon: float = 1e-3, mean: float = 0.0) -> Call:
    x: Any = Values(shape, kind, seed)
    if mean:
        x = mean + x.array()
    rows = {"gamma": Values(shape[-1:], kind, seed + 1), "beta": Values(shape[-1:], kind, seed + 2)}
    return Call.of({"x": x, **rows}, {"epsilon": epsilon}, exact=False)


def _grad(shape: Shape, kind: Kind, seed: int, *, epsilon: float = 1e-3) -> Call:
    forward = _forward(shape, kind, seed, epsilon=epsilon)
    x = forward["x"]
    axes = tuple(range(x.ndim - 1))
    arrays = {
        "grad_output": Values(shape, kind, seed + 3),
        "x": forward.recipes["x"],
        "gamma": forward.recipes["gamma"],
        "mean": x.mean(axis=axes),
        "variance": x.var(axis=axes),
    }
    return Call.of(arrays, {"epsilon": epsilon}, exact=False)


@st.composite
def _calls(draw: Draw, make: Callable[..., Call]) -> Call:
    shape = draw(shapes(least_axes=2))
    shape = (max(shape[0], 1), *shape[1:])  # a mean of nothing is none
    kind = draw(st.sampled_from(["ones", "integers", "normal"]))
    return make(shape, kind, draw(seeds), epsilon=draw(st.sampled_from([1e-3, 1e-5])))


def _bound_forward(specification: Callable[..., Any], call: Call, rounding: Rounding) -> tuple[Expected, ...]:
    wide = call.astype(np.float64)
    x, gamma, beta, epsilon = (wide[name] for name in ("x", "gamma", "beta", "epsilon"))
    y, mean, variance = wide.results(specification)
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    u = rounding.unit + 2.0**-53
    delta = (count + 1) * u * abs(x).mean(axis=axes) + u * abs(mean)
    spread = (count + 8) * u * variance + 4 * delta * np.sqrt(variance) + 4 * delta**2
    rate = 1 / np.sqrt(np.maximum(variance - spread, 0) + epsilon)
    rate_off = rate**3 * spread / 2 + 4 * u * rate
    off = abs(gamma) * (rate * delta + (abs(x - mean) + delta) * rate_off)
    off = off + 6 * u * (abs(gamma) * rate * (abs(x) + abs(mean)) + abs(beta))
    return Expected(y, off), Expected(mean, delta), Expected(variance, spread)


def _bound_grad(specification: Callable[..., Any], call: Call, rounding: Rounding) -> tuple[Expected, ...]:
    """x̂ is a product of r, known within 4 u, and a difference; the three sums and products of the equation add theirs."""
    wide = call.astype(np.float64)
    grad_x, grad_gamma, grad_beta = wide.results(specification)
    g, x, gamma, mean, variance = (abs(wide[n]) for n in ("grad_output", "x", "gamma", "mean", "variance"))
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    u = rounding.unit + 2.0**-53
    rate: Array = 1 / np.sqrt(variance + wide["epsilon"])
    x_hat = (x + mean) * rate
    sum_beta, sum_gamma = g.sum(axis=axes), (g * x_hat).sum(axis=axes)
    size_x = gamma * rate * (g + (sum_beta + x_hat * sum_gamma) / count)
    return (
        Expected(grad_x, (2 * count + 24) * u * size_x),
        Expected(grad_gamma, (count + 9) * u * sum_gamma),
        Expected(grad_beta, (count + 1) * u * sum_beta),
    )


def _affine(channels: int, kind: Kind, seed: int, *, epsilon: float = 1e-3) -> Call:
    names = ("gamma", "beta", "mean")
    rows: dict[str, Any] = {name: Values((channels,), kind, seed + i) for i, name in enumerate(names)}
    return Call.of({**rows, "variance": Values((channels,), "positive", seed)}, {"epsilon": epsilon}, exact=False)


@st.composite
def _affine_calls(draw: Draw) -> Call:
    kind = draw(st.sampled_from(["ones", "integers", "normal"]))
    return _affine(draw(st.integers(0, 70)), kind, draw(seeds), epsilon=draw(st.sampled_from([1e-3, 1e-5, 0.0])))


def _bound_affine(specification: Callable[..., Any], call: Call, rounding: Rounding) -> tuple[Expected, ...]:
    """A sum, a root and a reciprocal, or a reciprocal root within 2 units; a product; then a product and a difference."""
    wide = call.astype(np.float64)
    scale, shift = wide.results(specification)
    u = rounding.unit + 2.0**-53
    return (
        Expected(scale, 6 * u * abs(scale)),
        Expected(shift, 8 * u * abs(scale * wide["mean"]) + u * abs(wide["beta"])),
    )


def _moved(channels: int, kind: Kind, seed: int, momentum: float = 0.1, correction: float = 1.25) -> Call:
    names = ("running_mean", "running_variance", "mean", "variance")
    rows = {name: Values((channels,), kind, seed + position) for position, name in enumerate(names)}
    return Call.of(rows, {"momentum": momentum, "correction": correction}, exact=False)


def _bound_moved(specification: Callable[..., Any], call: Call, rounding: Rounding) -> tuple[Expected, ...]:
    """1 - momentum, momentum, the correction, at most three products and a sum are rounded."""
    wide = call.astype(np.float64)
    before = wide.map(lambda _, a: a.copy())
    wide.apply(specification)
    momentum, corrections = call["momentum"], (1.0, call["correction"])
    moved = []
    for statistic, correction in zip(("mean", "variance"), corrections, strict=True):
        running = f"running_{statistic}"
        size = (1 - momentum) * abs(before[running]) + momentum * correction * abs(before[statistic])
        moved.append(near(wide[running], 8 * (rounding.unit + 2.0**-53) * size))
    return tuple(moved)


BATCHES: dict[str, Shape] = {
    "one number": (1, 1),
    "one row": (1, 33),
    "two rows": (2, 5),
    "one channel": (300, 1),
    "four axes": (2, 3, 4, 5),
    "many rows": (1030, 3),
    "channels of a layer": (2, 2, 3, 256),
    **{f"{count} rows and channels": (count, count) for count in (31, 32, 33, 63, 64, 65)},
}
EDGES = {title: (shape, "normal", 11) for title, shape in BATCHES.items()}

CONTRACTS = (
    Contract(
        operation=batch_norm_forward,
        inputs=_calls(_forward),
        edges={
            **{title: _forward(*case) for title, case in EDGES.items()},  # type: ignore[arg-type]
            "all numbers equal": _forward((40, 3), "ones", 0),
            "numbers far from 0": _forward((64, 4), "normal", 0, mean=1000.0),
        },
        bound=_bound_forward,
        why="rounding of the mean, carried on to first order; at the head of refnet.testing.contracts.normalisation",
    ),
    Contract(
        operation=batch_norm_grad,
        inputs=_calls(_grad),
        edges={title: _grad(*case) for title, case in EDGES.items()},  # type: ignore[arg-type]
        bound=_bound_grad,
        why="sums over the rows of the batch, carried on to first order",
    ),
    Contract(
        operation=frozen_batch_norm_affine,
        inputs=_affine_calls(),
        edges={
            **{f"{count} channels": _affine(count, "normal", 19) for count in (0, 1, 31, 32, 33, 64, 65, 257)},
            "no epsilon": _affine(5, "normal", 19, epsilon=0.0),
        },
        bound=_bound_affine,
        why="six roundings at most in the scale, and two more in the shift",
    ),
    Contract(
        operation=move_running_statistics,
        inputs=st.builds(
            _moved,
            st.integers(0, 70),
            kinds,
            seeds,
            st.sampled_from([0.1, 0.01, 1.0, 0.0]),
            st.sampled_from([1.0, 1.25]),
        ),
        edges={
            **{f"{count} channels": _moved(count, "normal", 29) for count in (0, 1, 31, 32, 33, 64, 65, 257)},
            "nothing moves": _moved(5, "normal", 29, momentum=0.0),
            "all is replaced": _moved(5, "normal", 29, momentum=1.0),
        },
        bound=_bound_moved,
        why="seven roundings at most",
        writes=("running_mean", "running_variance"),
    ),
)
