"""Learning-rate schedules: pure functions from the step to a factor of the learning rate.

The first step is 0. Schedules multiply: a warm-up followed by drops is ``product(warmup(500), multi_step((60_000,
80_000)))``. Since nothing is remembered between steps, a resumed run continues where it was by knowing its step.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

from refnet.errors import ArgumentError

Schedule: TypeAlias = Callable[[int], float]


def constant(factor: float = 1.0) -> Schedule:
    """`factor` at every step."""
    return lambda step: factor


def warmup(steps: int, *, start: float = 1e-3) -> Schedule:
    """From `start` at step 0 in a straight line to 1 at step `steps`, and 1 from there on (Goyal et al. 2017, 2.2).

    .. math:: f(t) = s + (1 - s) \\min(t / T, 1)

    Raises:
        ArgumentError: `steps` is negative, or `start` isn't between 0 and 1.
    """
    if steps < 0 or not 0 <= start <= 1:
        raise ArgumentError(f"warmup: expected steps >= 0 and start in [0, 1], got {steps} and {start}")
    return lambda step: start + (1 - start) * step / steps if step < steps else 1.0


def multi_step(milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    """1, multiplied by `gamma` at each milestone: step m is the first with the lower rate.

    Raises:
        ArgumentError: the milestones don't increase.
    """
    steps = tuple(milestones)
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise ArgumentError(f"multi_step: the milestones must increase, got {steps}")
    return lambda step: gamma ** bisect_right(steps, step)


def cosine(total: int, *, final: float = 0.0) -> Schedule:
    """Half a cosine from 1 at step 0 to `final` at step `total`, and `final` from there on.

    .. math:: f(t) = f_T + \\tfrac{1}{2} (1 - f_T) (1 + \\cos(\\pi t / T))

    (Loshchilov and Hutter 2017, SGDR, eq. 5, without restarts.)

    Raises:
        ArgumentError: `total` isn't positive.
    """
    if total < 1:
        raise ArgumentError(f"cosine: the total must be at least 1 step, got {total}")
    return lambda step: final + (1 - final) * (1 + math.cos(math.pi * min(step, total) / total)) / 2


def product(*schedules: Schedule) -> Schedule:
    """The factors of all `schedules`, multiplied."""
    return lambda step: math.prod(schedule(step) for schedule in schedules)
