"""Times of several contestants, taken in turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEAST_SECONDS = 0.02
"""Of one measurement: quicker calls are repeated, so that the clock and the caller's loop don't count."""
PATIENCE = 0.2
"""Seconds. A contestant that is only there for reference, and whose first call takes longer, isn't called again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Where the values of several rounds lie.

    Attributes:
        median, low, high: the median, and the lower and the upper quartile.
        least: the least.
        rounds: how many values there were.
    """

    median: float
    low: float
    high: float
    least: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """That of `values`, at least one."""
        low, median, high = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
        return cls(median=median, low=low, high=high, least=float(min(values)), rounds=len(values))


def in_turns(
    contestants: Mapping[str, Callable[[], object]], *, rounds: int, once: Sequence[str] = ()
) -> dict[str, list[float]]:
    """Seconds of a call by each contestant, `rounds` times, in turns; all have been called once before.

    Args:
        once: who is called only once if that takes longer than :data:`PATIENCE`.
    """
    first = {name: _seconds(call, 1) for name, call in contestants.items()}
    repeats = {name: max(1, math.ceil(LEAST_SECONDS / max(each, 1e-6))) for name, each in first.items()}
    slow = {name for name in once if first.get(name, 0.0) > PATIENCE}
    times: dict[str, list[float]] = {name: [first[name]] if name in slow else [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            if name not in slow:
                times[name].append(_seconds(call, repeats[name]))
    return times


def _seconds(call: Callable[[], object], repeats: int) -> float:
    """The seconds of one call, on average of so many in a row."""
    started = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - started) / repeats
