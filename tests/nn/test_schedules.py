"""Schedules: literal values, and PyTorch's schedulers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refnet.errors import ArgumentError
from refnet.nn import Schedule
from refnet.nn.schedules import constant, cosine, multi_step, product, warmup


def at(schedule: Schedule, *steps: int) -> list[float]:
    return [schedule(step) for step in steps]


def test_constant() -> None:
    assert at(constant(), 0, 1000) == [1, 1]
    assert at(constant(0.25), 0, 1000) == [0.25, 0.25]


def test_warmup_is_a_straight_line_that_reaches_1() -> None:
    assert at(warmup(4, start=0.5), 0, 1, 2, 3, 4, 5) == [0.5, 0.625, 0.75, 0.875, 1, 1]
    assert at(warmup(0), 0, 1) == [1, 1]
    assert at(warmup(10, start=0.0), 0, 5, 10) == [0, 0.5, 1]


def test_multi_step_drops_at_the_milestone() -> None:
    assert at(multi_step((3, 5), gamma=0.5), 0, 2, 3, 4, 5, 100) == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert at(multi_step(()), 0, 9) == [1, 1]
    np.testing.assert_allclose(at(multi_step((60_000, 80_000)), 59_999, 60_000, 80_000), [1, 0.1, 0.01], rtol=1e-15)


def test_cosine_falls_from_1_to_the_final_factor_and_stays() -> None:
    np.testing.assert_allclose(
        at(cosine(6, final=0.5), 0, 2, 3, 4, 6, 7), [1, 0.875, 0.75, 0.625, 0.5, 0.5], rtol=1e-15
    )
    assert cosine(3)(3) == 0


def test_product_multiplies() -> None:
    schedule = product(warmup(4, start=0.5), multi_step((2, 6), gamma=0.5))
    assert at(schedule, 0, 1, 2, 4, 6) == [0.5, 0.625, 0.375, 0.5, 0.25]
    assert product()(3) == 1


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (warmup(7, start=0.001), lambda s, o: [s.LinearLR(o, 0.001, 1.0, 7)]),
        (multi_step((5, 9), 0.3), lambda s, o: [s.MultiStepLR(o, [5, 9], 0.3)]),
        (cosine(19, final=0.1), lambda s, o: [s.CosineAnnealingLR(o, 19, 0.1)]),
        (
            product(warmup(7, start=0.001), multi_step((5, 9), 0.3)),
            lambda s, o: [s.LinearLR(o, 0.001, 1.0, 7), s.MultiStepLR(o, [5, 9], 0.3)],
        ),
    ],
)
def test_schedules_are_pytorchs(schedule: Schedule, make: Callable[[Any, Any], list[Any]]) -> None:
    torch = pytest.importorskip("torch", reason="schedules are compared with PyTorch's")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedulers = make(torch.optim.lr_scheduler, optimizer)
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    np.testing.assert_allclose(at(schedule, *range(20)), rates, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: warmup(-1), "steps"),
        (lambda: warmup(10, start=1.5), "start"),
        (lambda: multi_step((5, 5)), "increase"),
        (lambda: cosine(0), "at least 1"),
    ],
)
def test_schedules_reject(make: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()
