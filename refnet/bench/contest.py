"""A call that every contestant can make, and what is measured by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from refnet.bench.bars import Bar
from refnet.bench.contestants import Field


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


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A row of the table: parts whose times are added up.

    Attributes:
        name: what ``--only`` looks for.
        parts: each with how often it occurs.
        against: whom refnet's kernels are compared with, each with what is asked; None where it is only reported.
    """

    name: str
    parts: tuple[tuple[int, Part], ...]
    against: Mapping[str, Bar | None] = field(default_factory=dict)
