"""What a training step does to all parameters: updates and scaling are equal bit for bit, sums of squares are rounded."""

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from refnet.arrays import Array
from refnet.errors import DTypeError, ShapeError
from refnet.ops import adamw_update, scaled, sgd_update, sums_of_squares
from refnet.testing.bounds import DOUBLE, Expected, Rounding
from refnet.testing.calls import Call, Shape
from refnet.testing.contract import Contract, Refusal
from refnet.testing.strategies.drawing import Draw, seeds, shapes

NETWORKS: dict[str, tuple[Shape, ...]] = {
    "an array without axes": ((),),
    "an empty array": ((0, 3),),
    "an empty array between others": ((3,), (0,), (2, 2)),
    "a layer": ((3, 3, 4, 5), (5,)),
    **{f"{count} numbers": ((count,),) for count in (31, 32, 33, 1023, 1025)},
    "arrays of more numbers than a block has": ((20_001,), (3,)),
    "many arrays": tuple((1 + index % 3,) for index in range(100)),
}


def _arrays(network: tuple[Shape, ...], seed: int) -> tuple[Array, ...]:
    rng = np.random.default_rng(seed)
    return tuple(np.asarray(rng.standard_normal(shape)) for shape in network)


def _numbers(network: tuple[Shape, ...], seed: int, low: float = 0.0) -> list[float]:
    """One for each array; a few are `low`."""
    rng = np.random.default_rng(seed)
    return [low if rng.random() < 0.3 else float(rng.uniform(low, 1)) for _ in network]


def _sgd(network: tuple[Shape, ...], seed: int, momentum: float = 0.9, nesterov: bool = False) -> Call:
    arrays = {name: _arrays(network, seed + k) for k, name in enumerate(("values", "gradients", "velocities"))}
    if momentum == 0:
        arrays["velocities"] = ()
    parameters = {"rates": _numbers(network, seed), "decays": _numbers(network, seed + 1)}
    return Call.of(arrays, {**parameters, "momentum": momentum, "nesterov": nesterov and momentum > 0}, exact=False)


def _adamw(network: tuple[Shape, ...], seed: int, epsilon: float = 1e-8) -> Call:
    names = ("values", "gradients", "first_moments", "second_moments")
    arrays = {name: _arrays(network, seed + k) for k, name in enumerate(names)}
    arrays["second_moments"] = tuple(np.asarray(abs(array)) for array in arrays["second_moments"])
    parameters = {
        "keeps": [1 - number for number in _numbers(network, seed)],
        "first_rates": _numbers(network, seed + 1),
        "second_rates": [1 + number for number in _numbers(network, seed + 2)],
    }
    return Call.of(arrays, {**parameters, "betas": (0.9, 0.999), "epsilon": epsilon}, exact=False)


def _scaled(network: tuple[Shape, ...], seed: int) -> Call:
    factors = np.array([0.5 + number for number in _numbers(network, seed, low=0.5)])  # some are 1
    return Call.of({"arrays": _arrays(network, seed), "factors": factors}, exact=False)


def _squares(network: tuple[Shape, ...], seed: int) -> Call:
    return Call.of({"arrays": _arrays(network, seed)}, exact=False)


def _written(*names: str) -> Callable[..., tuple[Expected, ...]]:
    """What the specification leaves in these arguments, bit for bit."""

    def bound(specification: Callable[..., Any], call: Call, rounding: Rounding) -> tuple[Expected, ...]:
        changed = call.map(lambda _, array: array.copy())
        changed.apply(specification)
        return tuple(Expected(array) for name in names for array in changed[name])

    return bound


def _bound_scaled(specification: Callable[..., Any], call: Call, rounding: Rounding) -> tuple[Expected, ...]:
    return tuple(Expected(array) for array in call.results(specification))


def _bound_squares(specification: Callable[..., Any], call: Call, rounding: Rounding) -> tuple[Expected, ...]:
    """A square of float32 is exact in float64, and so only the n - 1 sums round; one more of a float64's square."""
    (sums,) = call.results(specification)
    counts = np.array([array.size for array in call["arrays"]])
    return (Expected(sums, 2 * (counts + 1) * DOUBLE * sums, wide=True),)


@st.composite
def networks(draw: Draw) -> tuple[Shape, ...]:
    """The shapes of a few arrays."""
    return tuple(draw(st.lists(shapes(least_axes=0), min_size=1, max_size=5)))


def _refusals(call: Call) -> dict[str, Refusal]:
    """Of an update of two arrays."""
    gradients = call["gradients"]
    return {
        "fewer gradients than values": Refusal(call=call.changed(gradients=gradients[:1]), error=ShapeError),
        "a gradient of another shape": Refusal(
            call=call.changed(gradients=(gradients[0], np.ones(7))), error=ShapeError
        ),
        "a gradient of another type": Refusal(
            call=call.changed(gradients=(gradients[0], gradients[1].astype(np.float32))), error=DTypeError
        ),
    }


WHY = "the specification's own operations, in its order"

CONTRACTS = (
    Contract(
        operation=adamw_update,
        inputs=st.builds(_adamw, networks(), seeds, st.sampled_from([1e-8, 1e-3])),
        edges={name: _adamw(network, 3) for name, network in NETWORKS.items()},
        bound=_written("values", "first_moments", "second_moments"),
        why=WHY,
        refusals=_refusals(_adamw(NETWORKS["a layer"], 3)),
        writes=("values", "first_moments", "second_moments"),
    ),
    Contract(
        operation=scaled,
        inputs=st.builds(_scaled, networks(), seeds),
        edges={name: _scaled(network, 3) for name, network in NETWORKS.items()},
        bound=_bound_scaled,
        why=WHY,
        refusals={
            "fewer factors than arrays": Refusal(
                call=_scaled(NETWORKS["a layer"], 3).changed(factors=np.ones(1)), error=ShapeError
            )
        },
    ),
    Contract(
        operation=sgd_update,
        inputs=st.builds(_sgd, networks(), seeds, st.sampled_from([0.9, 0.5, 0.0]), st.booleans()),
        edges={
            **{name: _sgd(network, 3) for name, network in NETWORKS.items()},
            "without momentum": _sgd(NETWORKS["a layer"], 3, momentum=0.0),
            "looking ahead": _sgd(NETWORKS["a layer"], 3, nesterov=True),
        },
        bound=_written("values", "velocities"),
        why=WHY,
        refusals=_refusals(_sgd(NETWORKS["a layer"], 3)),
        writes=("values", "velocities"),
    ),
    Contract(
        operation=sums_of_squares,
        inputs=st.builds(_squares, networks(), seeds),
        edges={name: _squares(network, 3) for name, network in NETWORKS.items()},
        bound=_bound_squares,
        why="sums in float64 of squares, in any order",
    ),
)
