"""A call that every contestant can make, and what is measured by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from refnet.arrays import to_host
from refnet.bench.bars import Bar
from refnet.bench.contestants import Field
from refnet.kernel_op import operations
from refnet.testing import Call, Rounding, contract_of
from refnet.testing.bounds import Precision


class WrongResult(AssertionError):
    """A contestant computes something else; its time means nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """The same work by every contestant that is there.

    Attributes:
        runs: by the contestant's name, what does the work and returns the result.
        check: from the results by name, what was found equal, in words.

            Raises WrongResult if something isn't.
    """

    runs: Mapping[str, Callable[[], Any]]
    check: Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Something that is timed.

    Attributes:
        name: what it is; equal names are timed once.
        prepare: makes its arguments, when it is its turn.
    """

    name: str
    prepare: Callable[[Field], Contest]


Measurement: TypeAlias = tuple[Mapping[str, Sequence[float]], str]
"""The values of each contestant, round by round, and what was checked."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A row of the table: parts whose times are added up, or something else than time.

    Attributes:
        name: what ``--only`` looks for.
        parts: each with how often it occurs.
        against: whom refnet's kernels are compared with, each with what is asked; None where it is only reported.
        unit: of what is measured.
        measure: instead of parts, what measures it with those contestants that are there and so many threads.
    """

    name: str
    parts: tuple[tuple[int, Part], ...] = ()
    against: Mapping[str, Bar | None] = field(default_factory=dict)
    unit: str = "s"
    measure: Callable[[Field, int], Measurement] | None = None

    @classmethod
    def of(cls, part: Part, against: Mapping[str, Bar | None]) -> Subject:
        """A subject of one part, by its name."""
        return cls(name=part.name, parts=((1, part),), against=against)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """How a subject grows.

    Attributes:
        name: what ``--only`` looks for.
        along: what grows.
        points: how large it is, and the subject of that size.
        bar: what is asked of the exponent of refnet's kernels.
    """

    name: str
    along: str
    points: tuple[tuple[int, Subject], ...]
    bar: Bar | None


def within_contract(
    operation: str,
    call: Call,
    results: Sequence[Any],
    reference: Callable[..., Any],
    *,
    precision: Precision = "full",
) -> float:
    """The largest error of results as a share of what the operation's contract allows.

    Args:
        reference: the operation in float64.
        precision: what products are made of.

    Raises:
        WrongResult: an error is larger than allowed, or a shape is wrong.
        DependencyError: hypothesis, which contracts need, isn't installed.
    """
    expected = contract_of(operations()[operation]).bound(reference, call, Rounding.of(np.float32, precision))
    worst = 0.0
    for result, entry in zip(results, expected, strict=True):
        got = to_host(result)
        if got.shape != entry.value.shape:
            raise WrongResult(f"expected shape {entry.value.shape}, got {got.shape}")
        allowed = np.broadcast_to(0.0 if entry.allowed is None else entry.allowed, got.shape)
        error = abs(got.astype(np.float64) - entry.value)
        if not (error <= allowed).all():
            most, least = error.max(initial=0), allowed.max(initial=0)
            raise WrongResult(f"error {most:.3g}, largest allowed {least:.3g}")
        share = np.divide(error, allowed, out=np.zeros(error.shape), where=allowed > 0)
        worst = max(worst, float(share.max(initial=0)))
    return worst
