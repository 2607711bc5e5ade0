"""Updates of all parameters at once, in the emulator: equal to their specifications bit for bit; sums within rounding."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refnet import ops
from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.kernels.cuda import KERNELS, updates
from refnet.kernels.cuda.updates import CHUNK, MOST
from refnet.kernels.emulator import available, running, standin
from refnet.nn import SGD, AdamW, Optimizer, Parameter, clip_gradients, measure_gradients, shorten_gradients
from refnet.testing.strategies.geometry import seeds
from tests.kernels.cuda.comparison import dtypes, layouts, misaligned, plain, schedules

pytestmark = pytest.mark.skipif(not available(), reason="the emulator needs g++")

NAMES = ("adamw_update", "scaled", "sgd_update", "sums_of_squares")
shapes = st.lists(st.sampled_from([(), (1,), (0,), (5,), (3, 4), (2, 3, 4, 1), (1030,)]), max_size=5)


def arrays(
    shapes: list[tuple[int, ...]], dtype: type, seed: int, layout: Callable[..., Any] = plain
) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [layout(np.asarray(rng.standard_normal(shape), dtype)) for shape in shapes]


def numbers(count: int, seed: int, low: float = 0.0) -> list[float]:
    """Some of them `low`."""
    rng = np.random.default_rng(seed)
    return [low if rng.random() < 0.3 else float(rng.uniform(low, 1)) for _ in range(count)]


def assert_same_update(name: str, lists: list[list[np.ndarray]], schedule: int, **parameters: Any) -> None:
    """Both change the same arrays, but for the gradients, to the same bits."""
    expected = [[array.copy() for array in entries] for entries in lists]
    getattr(ops, name).specification(*expected, **parameters)
    with running(mode="check", seed=schedule):
        KERNELS[name](*lists, **parameters)
    for found, wanted in zip(lists, expected, strict=True):
        for a, e in zip(found, wanted, strict=True):
            assert a.tobytes() == e.tobytes()


@given(
    shapes, st.sampled_from([0.0, 0.9]), st.booleans(), st.sampled_from([plain, misaligned]), seeds, dtypes, schedules
)
@settings(max_examples=20)
def test_sgd_equals_the_specification(shapes, momentum, nesterov, layout, seed, dtype, schedule) -> None:
    values, gradients, velocities = (arrays(shapes, dtype, seed + k, layout) for k in range(3))
    assert_same_update(
        "sgd_update", [values, gradients, velocities if momentum else []], schedule, rates=numbers(len(shapes), seed),
        decays=numbers(len(shapes), seed + 1), momentum=momentum, nesterov=nesterov and momentum > 0,
    )  # fmt: skip


@given(shapes, st.sampled_from([plain, misaligned]), seeds, dtypes, schedules)
@settings(max_examples=20)
def test_adamw_equals_the_specification(shapes, layout, seed, dtype, schedule) -> None:
    values, gradients, first, second = (arrays(shapes, dtype, seed + k, layout) for k in range(4))
    second = [layout(np.asarray(abs(array))) for array in second]
    assert_same_update(
        "adamw_update", [values, gradients, first, second], schedule,
        keeps=[1 - number for number in numbers(len(shapes), seed)], first_rates=numbers(len(shapes), seed + 1),
        second_rates=numbers(len(shapes), seed + 2, low=1e-3), betas=(0.9, 0.999), epsilon=1e-8,
    )  # fmt: skip


def test_arrays_of_several_chunks_and_more_than_a_launch_takes() -> None:
    """Each has rates of its own, and types change on the way."""
    shapes = [(7,)] * (MOST - 1) + [(2 * CHUNK + 5,), (CHUNK,), (3,)]
    count = len(shapes)
    lists = [arrays(shapes, np.float32, k) + arrays([(6,)], np.float64, k) for k in range(3)]
    assert_same_update(
        "sgd_update", lists, 1, rates=numbers(count + 1, 0), decays=numbers(count + 1, 1), momentum=0.5, nesterov=False
    )


@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("name", ["adamw_update", "sgd_update"])
def test_a_flag_on_the_device_says_whether_anything_changes(name: str, moves: bool) -> None:
    lists = [[abs(array) for array in arrays([(40,), (3,)], np.float32, k)] for k in range(4)]
    parameters: dict[str, Any] = {"only_if": np.array(moves)}
    if name == "sgd_update":
        lists = lists[:3]
        parameters |= {"rates": [0.1] * 2, "decays": [0.5] * 2, "momentum": 0.9, "nesterov": True}
    else:
        parameters |= {"keeps": [0.9] * 2, "first_rates": [0.1] * 2, "second_rates": [0.5] * 2}
        parameters |= {"betas": (0.9, 0.999), "epsilon": 1e-8}
    before = [array.copy() for array in lists[0]]
    assert_same_update(name, lists, 0, **parameters)
    assert all((a != b).all() == moves for a, b in zip(lists[0], before, strict=True))


@given(shapes, layouts, seeds, dtypes, schedules)
@settings(max_examples=15)
def test_scaled_equals_the_specification(shapes, layout, seed, dtype, schedule) -> None:
    given, factors = arrays(shapes, dtype, seed, layout), np.array(numbers(len(shapes), seed, low=1.0))
    with running(mode="check", seed=schedule):
        found = updates.scaled(given, factors)
    for a, e in zip(found, ops.scaled.specification(given, factors), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (e.dtype, e.shape, e.tobytes())


def assert_sums_of_squares(given: list[np.ndarray], schedule: int) -> np.ndarray:
    """A sum of n squares, in any order, obeys |s - s*| <= (n + 1) 2^-53 s; and so does the specification's."""
    with running(mode="check", seed=schedule):
        found = updates.sums_of_squares(given)
    expected = ops.sums_of_squares.specification(given)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert (abs(found - expected) <= 2 * (np.array([array.size for array in given]) + 1) * 2.0**-53 * expected).all()
    return found


@given(shapes, layouts, seeds, dtypes, schedules)
@settings(max_examples=15)
def test_sums_of_squares_within_their_rounding(shapes, layout, seed, dtype, schedule) -> None:
    given = arrays(shapes, dtype, seed)
    found = assert_sums_of_squares([layout(array) for array in given], schedule)
    assert found.tobytes() == assert_sums_of_squares(given, 0).tobytes()  # wherever they lie, whoever comes first


def test_sums_of_squares_of_several_chunks() -> None:
    assert_sums_of_squares(arrays([(3 * CHUNK + 1,), (0,), (CHUNK,), *[(2,)] * MOST], np.float32, 0), 2)


def test_infinite_sums_are_infinite() -> None:
    with running(mode="check"):
        found = updates.sums_of_squares([np.array([1e300, 1]), np.array([np.nan]), np.array([np.inf])])
    np.testing.assert_array_equal(found, [np.inf, np.nan, np.inf])


# ---- a step of an optimiser ----


def parameters_of(xp: Any, seed: int) -> dict[str, Parameter]:
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in {"weight": (3, 3, 4, 5), "bias": (5,), "frozen": (2,)}.items():
        found[name] = Parameter(xp.asarray(rng.standard_normal(shape).astype(np.float32)))
        if name != "frozen":
            found[name].grad = xp.asarray(rng.standard_normal(shape).astype(np.float32))
    return found


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, no_decay=["bias"]),
        lambda parameters: AdamW(parameters, lr=0.1),
    ],
)
def test_a_step_takes_as_many_launches_as_it_has_parts_and_gives_the_same_bits(
    make: Callable[[dict[str, Parameter]], Optimizer],
) -> None:
    on_host, on_device = parameters_of(np, 0), parameters_of(standin, 0)
    reference, optimizer = make(on_host), make(on_device)
    with ExitStack() as kernels:
        for name in NAMES:
            kernels.enter_context(getattr(ops, name).using(KERNELS[name], device="cuda"))
        for _ in range(2):
            clip_gradients(on_host, max_norm=1.0)
            reference.step()
            with standin.counting() as counts:
                norms = measure_gradients(on_device)
                shorten_gradients(on_device, norms, max_norm=1.0)
                optimizer.step(only_if=standin.isfinite(norms.squares).all())
    assert counts.synchronizations == 0
    assert sum(counts.launches.values()) == 4
    for name, parameter in on_device.items():
        assert parameter.data.get().tobytes() == on_host[name].data.tobytes()
    assert {n: a.get().tobytes() for n, a in optimizer.state().items() if not n.endswith("steps")} == {
        n: a.tobytes() for n, a in reference.state().items() if not n.endswith("steps")
    }


# ---- errors ----


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"gradients": [np.ones(3)]}, ShapeError, r"expected lists of one length, got \[2, 2, 1, 2, 2\]"),
        ({"gradients": [np.ones(3), np.ones(5)]}, ShapeError, r"array 1: expected \(5,\), got \(4,\)"),
        ({"velocities": [np.ones(3, np.float32), np.ones(4)]}, DTypeError, "array 0: expected float64, got float32"),
        ({"values": [np.ones(6)[::2], np.ones(4)]}, ArgumentError, "array 0: expected values in C order"),
        ({"rates": [0.1]}, ShapeError, r"expected lists of one length, got \[2, 2, 2, 1, 2\]"),
    ],
)
def test_lists_that_do_not_belong_together_are_refused(changes, error, message) -> None:
    lists = {name: [np.ones(3), np.ones(4)] for name in ("values", "gradients", "velocities")}
    parameters = {"rates": [0.1] * 2, "decays": [0.0] * 2, "momentum": 0.9, "nesterov": False}
    for update in (ops.sgd_update.specification, KERNELS["sgd_update"]):
        with pytest.raises(error, match=f"^sgd_update: {message}"):
            update(**{**lists, **parameters, **changes})


def test_other_types_are_refused() -> None:
    with pytest.raises(DTypeError, match="expected arrays of float32 or float64, got float16"):
        updates.sums_of_squares([np.ones(3, np.float16)])
