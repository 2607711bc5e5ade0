"""How far a kernel's result may lie from the specification's: derived from rounding, never tuned.

A sum of K products in precision u, in any order, obeys (Higham 2002, Accuracy and Stability, section 3.1)

.. math:: |y - y^*| \\le (K + 1)\\, u \\sum_k |x_k|\\, |w_k| + O(u^2)

and the sum of absolute values is the specification itself, run in float64 on absolute values. Results that are decisions
(indices, maxima, masks) must be equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from refnet.arrays import Array
from refnet.errors import ArgumentError
from refnet.testing.calls import Call

Precision: TypeAlias = Literal["full", "tf32", "bf16"]
Algorithm: TypeAlias = Literal["plain", "winograd_f2", "winograd_f4"]
OPERANDS: dict[str, float] = {"full": 0.0, "tf32": 2.0**-11, "bf16": 2.0**-8}  # half a unit in the last place
DOUBLE = 2.0**-53


@dataclass(frozen=True, slots=True)
class Rounding:
    """What a kernel's arithmetic rounds to.

    Attributes:
        unit: the largest relative error of one rounded operation: 2**-24 for float32.
        operands: that of the operands of products, if they are rounded first for tensor cores, else 0.
        algorithm: how sums of products are made: as they stand, or from others (:mod:`refnet.testing.winograd`).
    """

    unit: float
    operands: float = 0.0
    algorithm: Algorithm = "plain"

    @classmethod
    def of(cls, dtype: Any, precision: Precision = "full") -> Rounding:
        """That of arithmetic in `dtype`, with operands in `precision`.

        Raises:
            ArgumentError: there is no such precision.
        """
        if precision not in OPERANDS:
            raise ArgumentError(f"precision must be one of {', '.join(OPERANDS)}, got {precision!r}")
        unit = float(np.finfo(dtype).eps) / 2
        return cls(unit, OPERANDS[precision] if unit > DOUBLE else 0.0)

    def of_sum(self, products: int) -> float:
        """The relative error of a sum of so many products; the reference, in float64, is rounded too."""
        return (products + 1) * (self.unit + DOUBLE) + 2 * self.operands + self.operands**2


@dataclass(frozen=True, slots=True)
class Expected:
    """What one result of a call must be.

    Attributes:
        value: the specification's.
        allowed: how far each number may lie from it, infinity if it may be anything, also NaN; None if all must be equal.
        wide: whether the result is float64 whatever the arguments are, as sums of squares are.
    """

    value: Array
    allowed: Array | None = None
    wide: bool = False


def near(value: Array, allowed: Any) -> Expected:
    """A result of which each number may lie so far from `value`; one number for all or one for each."""
    return Expected(np.asarray(value), np.asarray(np.broadcast_to(allowed, np.shape(value))))


# from the specification, a call in the type that the kernel gets, and the kernel's rounding: what every result must be
Bound: TypeAlias = Callable[[Callable[..., Any], Call, Rounding], tuple[Expected, ...]]


def equal(specification: Callable[..., Any], call: Call, rounding: Rounding) -> tuple[Expected, ...]:
    """Every result has the specification's own bits (-0 counts as 0): decisions, and arithmetic of one operation."""
    return tuple(Expected(value) for value in call.results(specification))


def sums(products: Callable[[Call], int | tuple[int, ...]], *, keep: tuple[str, ...] = (), **without: Any) -> Bound:
    """Every result is a sum of so many products of numbers in the arrays; in an exact call none may be rounded.

    Args:
        products: how many, one number for all results or one for each.
        keep: arrays that aren't factors of products.
        without: parameters that are added as they are, and their value that adds nothing.
    """

    def bound(specification: Callable[..., Any], call: Call, rounding: Rounding) -> tuple[Expected, ...]:
        wide = call.astype(np.float64, keep=keep)
        values = wide.results(specification)
        sizes = wide.absolute(keep=keep).changed(**without).results(specification)
        counts = products(call)
        counts = (counts,) * len(values) if isinstance(counts, int) else counts
        return tuple(
            Expected(value, np.asarray((0 if call.exact else rounding.of_sum(count)) * size))
            for value, size, count in zip(values, sizes, counts, strict=True)
        )

    return bound


def mixed(discrete: tuple[int, ...], bound: Bound) -> Bound:
    """The results at the positions `discrete` must be equal, the others lie within `bound`."""

    def both(specification: Callable[..., Any], call: Call, rounding: Rounding) -> tuple[Expected, ...]:
        exact, near = equal(specification, call, rounding), bound(specification, call, rounding)
        return tuple(e if i in discrete else n for i, (e, n) in enumerate(zip(exact, near, strict=True)))

    return both
