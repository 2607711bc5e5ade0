"""The CPU kernels of updates against their specifications, whatever the size of a block and the number of threads."""

import numpy as np
import pytest

from refnet import ops
from refnet.kernels.cpu import KERNELS, threads, updates

SHAPES: tuple[tuple[int, ...], ...] = ((3, 5, 7), (), (0, 2), (200,), (1,))


@pytest.fixture(autouse=True)
def _share_all_work_in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "LEAST", 2)
    monkeypatch.setattr(updates, "BLOCK", 16)
    monkeypatch.setattr(updates, "DOT", 8)


def arrays(seed: int) -> list[np.ndarray]:
    """Of both types in one list."""
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(shape), (np.float32, np.float64)[i % 2]) for i, shape in enumerate(SHAPES)]


def both(name: str, *lists: list[np.ndarray], **parameters: object) -> tuple[list, list]:
    """What the kernel leaves in copies of the lists, and what the specification leaves."""
    outcomes = []
    for function in (KERNELS[name], getattr(ops, name).specification):
        copies = [[array.copy() for array in entries] for entries in lists]
        function(*copies, **parameters)
        outcomes.append([array for entries in copies for array in entries])
    return outcomes[0], outcomes[1]


def assert_same(actual: list, expected: list) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("only_if", [None, np.array(True), np.array(False)])
def test_sgd(thread_count, momentum, nesterov, only_if):
    parameters = {"rates": [0.1, 0.2, 0.3, 0.4, 0.0], "decays": [0.0, 0.1, 0.2, 0.3, 0.4]}
    velocities = arrays(3) if momentum else []
    outcome = both(
        "sgd_update", arrays(1), arrays(2), velocities, momentum=momentum, nesterov=nesterov, only_if=only_if,
        **parameters,
    )  # fmt: skip
    assert_same(*outcome)


@pytest.mark.parametrize("only_if", [None, np.array(False)])
def test_adamw(thread_count, only_if):
    squares = [np.asarray(array * array) for array in arrays(4)]
    outcome = both(
        "adamw_update", arrays(1), arrays(2), arrays(3), squares, keeps=[1.0, 0.9, 0.8, 0.7, 1.0],
        first_rates=[0.1, 0.2, 0.3, 0.4, 0.5], second_rates=[1.0, 1.1, 1.2, 1.3, 1.4], betas=(0.9, 0.99),
        epsilon=1e-8, only_if=only_if,
    )  # fmt: skip
    assert_same(*outcome)


def test_gradients_need_not_be_contiguous(thread_count):
    gradients = [np.random.default_rng(0).standard_normal((7, 5, 3)).T]
    values = [np.ones((3, 5, 7))]
    outcome = both("sgd_update", values, gradients, values, rates=[0.1], decays=[0.2], momentum=0.9, nesterov=True)
    assert_same(*outcome)


def test_sums_of_squares_do_not_depend_on_the_threads(monkeypatch):
    entries = arrays(1)
    alone = updates.sums_of_squares(entries)
    np.testing.assert_allclose(alone, ops.sums_of_squares.specification(entries), rtol=1e-13)
    monkeypatch.setenv("REFNET_NUM_THREADS", "3")
    threads.reset()
    try:
        np.testing.assert_array_equal(updates.sums_of_squares(entries), alone)
    finally:
        monkeypatch.undo()
        threads.reset()


def test_an_infinite_sum_of_squares_is_no_error():
    entries = [np.array([1e200, 1.0]), np.array([np.inf, 1.0]), np.array([np.nan])]
    np.testing.assert_array_equal(updates.sums_of_squares(entries), [np.inf, np.inf, np.nan])


def test_float32_is_squared_and_summed_in_float64():
    entries = [np.array([1e30, 1e30], np.float32), np.array([4096, 0.5], np.float32)]
    np.testing.assert_array_equal(updates.sums_of_squares(entries)[1], 2.0**24 + 0.25)
    assert np.isfinite(updates.sums_of_squares(entries)[0])


@pytest.mark.parametrize("count", [0, 3])
def test_no_arrays(count):
    entries = [np.zeros((0, 2), np.float32)] * count
    np.testing.assert_array_equal(updates.sums_of_squares(entries), np.zeros(count))
    updates.sgd_update(entries, entries, [], rates=[0.1] * count, decays=[0.1] * count, momentum=0.0, nesterov=False)
