"""From subjects to results: each is checked, then timed, and what goes wrong doesn't stop the others."""

from __future__ import annotations

import datetime
import statistics
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from refnet.bench.bars import Bar
from refnet.bench.contest import Curve, Part, Subject, WrongResult
from refnet.bench.contestants import CPU, SPECIFICATION, Field
from refnet.bench.stopwatch import Spread, in_turns
from refnet.errors import DependencyError


def with_threads(count: int) -> str:
    """How many, in words."""
    return f"{count} thread{'' if count == 1 else 's'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """refnet's kernels against one contestant.

    Attributes:
        peer: the other one.
        value: our median over theirs.
        low, high: the quartiles of the rounds' ratios.
        bar: what is asked, or None.
    """

    peer: str
    value: float
    low: float
    high: float
    bar: Bar | None

    @property
    def kept(self) -> bool:
        """Whether what is asked is reached."""
        return self.bar is None or self.value <= self.bar.at_most


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was measured of a subject with some number of threads.

    Attributes:
        subject: its name.
        threads: how many each contestant had.
        unit: "s" or "MiB".
        spreads: of each contestant.
        ratios: ours to others.
        absent: whom it should have been compared with, and wasn't: each with what is asked.
        check: what was found equal before.
        date: when, to the minute.
        parts: each contestant's median for each part, once, where there are several.
    """

    subject: str
    threads: int
    unit: str
    spreads: Mapping[str, Spread]
    ratios: Sequence[Ratio]
    absent: Mapping[str, Bar | None]
    check: str
    date: str
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How a subject grew with some number of threads.

    Attributes:
        curve: its name.
        threads: how many each contestant had.
        along: what grew.
        unit: "s" or "MiB".
        sizes: how large it was.
        spreads: of each contestant, one for each size.
        exponents: b of each contestant's fitted power, size^b.
        bar: what is asked of that of refnet's kernels, or None.
        date: when, to the minute.
    """

    curve: str
    threads: int
    along: str
    unit: str
    sizes: Sequence[int]
    spreads: Mapping[str, Sequence[Spread]]
    exponents: Mapping[str, float]
    bar: Bar | None
    date: str

    @property
    def kept(self) -> bool:
        """Whether what is asked is reached."""
        return self.bar is None or self.exponents[CPU] <= self.bar.at_most


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a subject has no result."""

    subject: str
    threads: int
    reason: str


@dataclass(kw_only=True)
class Report:
    """Everything that a run found; see :mod:`refnet.bench.report` for how it is written down."""

    results: list[Result] = field(default_factory=list)
    growths: list[Growth] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """All of it in lists, dictionaries and numbers."""
        return asdict(self)


class Bench:
    """Measures subjects with those contestants that are there.

    Args:
        field: the contestants.
        rounds: how often each is timed.
        threads: how many each has.
    """

    def __init__(self, field: Field, *, rounds: int, threads: int) -> None:
        self.field, self.rounds, self.threads = field, rounds, threads
        self._known: dict[str, tuple[dict[str, list[float]], str]] = {}
        field.set_threads(threads)

    def measure(self, subject: Subject) -> Result:
        """Check and time one subject.

        Raises:
            WrongResult: a contestant computes something else.
        """
        if subject.measure is not None:
            values, check = subject.measure(self.field, self.threads)
            return compare(subject, values, threads=self.threads, check=check)
        parts = [(count, *self._times(part)) for count, part in subject.parts]
        names = [name for name in parts[0][1] if all(name in times for _, times, _ in parts)]
        totals = {name: _added([(count, times[name]) for count, times, _ in parts]) for name in names}
        checks = list(dict.fromkeys(check for *_, check in parts))
        check = checks[0] if len(checks) == 1 else f"{len(parts)} parts, each checked"
        medians = {
            part.name: {name: statistics.median(values) for name, values in times.items()}
            for (_, part), (_, times, _) in zip(subject.parts, parts, strict=True)
        }
        return compare(subject, totals, threads=self.threads, check=check, parts=medians if len(parts) > 1 else {})

    def trace(self, curve: Curve) -> Growth:
        """Measure every point of a curve, and fit a power to it.

        Raises:
            WrongResult: a contestant computes something else.
        """
        results = [self.measure(subject) for _, subject in curve.points]
        sizes = [size for size, _ in curve.points]
        spreads = {name: [result.spreads[name] for result in results] for name in results[0].spreads}
        return Growth(
            curve=curve.name,
            threads=self.threads,
            along=curve.along,
            unit=results[0].unit,
            sizes=sizes,
            spreads=spreads,
            exponents={name: exponent(sizes, [s.median for s in each]) for name, each in spreads.items()},
            bar=curve.bar,
            date=_now(),
        )

    def _times(self, part: Part) -> tuple[dict[str, list[float]], str]:
        """Seconds by contestant, and what was checked; measured once."""
        if part.name not in self._known:
            contest = part.prepare(self.field)
            check = contest.check({name: run() for name, run in contest.runs.items()})
            self._known[part.name] = in_turns(contest.runs, rounds=self.rounds, once=(SPECIFICATION,)), check
        return self._known[part.name]


def _added(parts: Sequence[tuple[int, Sequence[float]]]) -> list[float]:
    """The parts' times, each so often, round by round; of who was timed once somewhere there is one sum of medians."""
    rounds = {len(times) for _, times in parts}
    if len(rounds) > 1:
        return [sum(count * statistics.median(times) for count, times in parts)]
    return [sum(count * times[index] for count, times in parts) for index in range(rounds.pop())]


def compare(
    subject: Subject,
    values: Mapping[str, Sequence[float]],
    *,
    threads: int,
    check: str,
    parts: Mapping[str, Mapping[str, float]] | None = None,
) -> Result:
    """The result of a subject, from the values of each contestant round by round."""
    spreads = {name: Spread.of(each) for name, each in values.items()}
    ratios = []
    for peer, bar in subject.against.items():
        if peer not in values:
            continue
        ours, theirs = values[CPU], values[peer]
        if len(ours) == len(theirs):
            rounds = Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])
        else:
            rounds = Spread.of([a / statistics.median(theirs) for a in ours])
        value = spreads[CPU].median / spreads[peer].median
        ratios.append(Ratio(peer=peer, value=value, low=rounds.low, high=rounds.high, bar=bar))
    return Result(
        subject=subject.name,
        threads=threads,
        unit=subject.unit,
        spreads=spreads,
        ratios=ratios,
        absent={peer: bar for peer, bar in subject.against.items() if peer not in values},
        check=check,
        date=_now(),
        parts=parts or {},
    )


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """b of the power a · size^b that is nearest to the values: the slope of a line through logarithms, least squares."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def _now() -> str:
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")


def run(
    listed: Iterable[Subject | Curve],
    bench: Bench,
    report: Report,
    *,
    tell: Callable[[Result | Growth | Failure], None],
) -> None:
    """Measure all of them into `report`; `tell` hears of each when it is done."""
    for one in listed:
        done: Result | Growth | Failure
        try:
            if isinstance(one, Curve):
                done = bench.trace(one)
                report.growths.append(done)
            else:
                done = bench.measure(one)
                report.results.append(done)
        except Exception as error:
            done = Failure(subject=one.name, threads=bench.threads, reason=_reason(error))
            report.failures.append(done)
        tell(done)


def _reason(error: Exception) -> str:
    match error:
        case WrongResult():
            return f"wrong result: {error}"
        case DependencyError():
            return str(error)
        case _:
            return "".join(traceback.format_exception(error))
