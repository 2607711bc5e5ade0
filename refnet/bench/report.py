"""Results in words: a line for the terminal, tables for the README, and a file of all numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from refnet.bench.bars import Bar
from refnet.bench.contestants import CPU, Field
from refnet.bench.run import Failure, Growth, Ratio, Report, Result, with_threads
from refnet.bench.stopwatch import Spread
from refnet.draw.machine import machine_facts
from refnet.errors import ConfigError

RESULTS, TABLE = "results.json", "table.md"


def line(done: Result | Growth | Failure) -> str:
    """One subject for the terminal."""
    threads = with_threads(done.threads)
    if isinstance(done, Failure):
        return f"FAILED {done.subject}, {threads}: {done.reason}"
    if isinstance(done, Growth):
        fitted = ", ".join(f"{name} {done.along}^{b:.2f}" for name, b in done.exponents.items())
        return f"{done.curve}, {threads}: {fitted}{_verdict(done.bar, done.kept)}"
    figures = ", ".join(f"{name} {amount(spread, done.unit)}" for name, spread in done.spreads.items())
    ratios = "".join(f"; {r.value:.2f} of {r.peer}{_verdict(r.bar, r.kept)}" for r in done.ratios)
    return f"{done.subject}, {threads}: {figures}{ratios} ({done.check})"


def _verdict(bar: Bar | None, kept: bool) -> str:
    return "" if bar is None else f", asked {bar.at_most:g}{'' if kept else ': MISSED'}"


def amount(spread: Spread, unit: str) -> str:
    """A median with its quartiles, in seconds or milliseconds or MiB."""
    if unit == "s" and spread.median < 1:
        scale, unit = 1e3, "ms"
    else:
        scale = 1.0
    middle, low, high = (_rounded(scale * value) for value in (spread.median, spread.low, spread.high))
    return f"{middle} {unit}" if spread.rounds == 1 else f"{middle} ({low} to {high}) {unit}"


def _rounded(value: float) -> str:
    """Three digits, and no more zeros behind them than needed."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


# ---- the tables ----------------------------------------------------------------------------------------------------


def markdown(report: Report, field: Field, facts: Mapping[str, str]) -> str:
    """The tables of ratios and of exponents, what they were measured on, and what failed."""
    texts = [_ratios(report.results), _exponents(report.growths), sentence(report, facts, field)]
    for failure in report.failures:
        reason = failure.reason.strip().splitlines()[-1]
        texts.append(f"Failed: {failure.subject}, {with_threads(failure.threads)}: {reason}")
    return "\n\n".join(text for text in texts if text) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def _ratios(results: Sequence[Result]) -> str:
    """A row for each comparison, a column for each number of threads."""
    if not results:
        return ""
    counts = sorted({result.threads for result in results})
    columns = [f"ratio, {with_threads(count)}" for count in counts]
    times = [f"refnet, {with_threads(counts[0])}", f"peer, {with_threads(counts[0])}"]
    rows = []
    for subject in dict.fromkeys(result.subject for result in results):
        mine = {result.threads: result for result in results if result.subject == subject}
        rows += [_row(subject, peer, mine, counts) for peer in _peers(mine.values())]
    return _table(["what", "against", "asked", "aim", *columns, *times], rows)


def _peers(results: Iterable[Result]) -> list[str]:
    return list(dict.fromkeys(p for r in results for p in (*(ratio.peer for ratio in r.ratios), *r.absent)))


def _row(subject: str, peer: str, results: Mapping[int, Result], counts: Sequence[int]) -> list[str]:
    ratios: dict[int, Ratio] = {n: r for n, found in results.items() for r in found.ratios if r.peer == peer}
    bars = [ratio.bar for ratio in ratios.values()] or [found.absent.get(peer) for found in results.values()]
    cells = [_measured(ratios.get(count)) for count in counts]
    first = results[min(results)]
    spreads = [amount(first.spreads[name], first.unit) if name in first.spreads else "" for name in (CPU, peer)]
    return [subject, peer, *_asked(bars[0]), *cells, *spreads]


def _measured(ratio: Ratio | None) -> str:
    if ratio is None:
        return "not measured"
    spread = "" if ratio.low == ratio.high else f" ({ratio.low:.2f} to {ratio.high:.2f})"
    return f"{ratio.value:.2f}{spread}{'' if ratio.kept else ', missed'}"


def _asked(bar: Bar | None) -> list[str]:
    return ["reported", ""] if bar is None else [f"{bar.at_most:g}", f"{bar.aim:g}"]


def _exponents(growths: Sequence[Growth]) -> str:
    """A row for each curve and number of threads."""
    if not growths:
        return ""
    rows = []
    for growth in growths:
        others = ", ".join(f"{name} {b:.2f}" for name, b in growth.exponents.items() if name != CPU)
        mine = f"{growth.exponents[CPU]:.2f}{'' if growth.kept else ', missed'}"
        sizes = f"{growth.sizes[0]:,} to {growth.sizes[-1]:,} {growth.along}"
        rows.append([growth.curve, sizes, str(growth.threads), *_asked(growth.bar)[:1], mine, others])
    return _table(["growth", "from, to", "threads", "exponent asked", "refnet", "others"], rows)


def sentence(report: Report, facts: Mapping[str, str], field: Field) -> str:
    """When, on what and with what, and who was left out."""
    dates = sorted({date[:10] for date in (*(r.date for r in report.results), *(g.date for g in report.growths))})
    libraries = ", ".join(f"{name} {version}" for name, version in field.versions.items())
    text = (
        "Ratios are refnet's median over the peer's, with the quartiles of the rounds' ratios. "
        f"Measured {' and '.join(dates)} on {facts['cores']} cores, {facts['processor']}, with {facts['BLAS']}, "
        f"Python {facts['Python'].split()[-1]}, {libraries}."
    )
    return text + "".join(f" {name} was left out: {reason}." for name, reason in field.missing.items())


# ---- the files -----------------------------------------------------------------------------------------------------


def write(report: Report, field: Field, folder: Path, *, rounds: int) -> None:
    """Write the file of all numbers, the tables and the charts."""
    from refnet.bench.charts import write_charts

    facts = machine_facts()
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": facts,
        "versions": field.versions,
        "left_out": field.missing,
        "rounds": rounds,
        **report.to_json(),
    }
    (folder / RESULTS).write_text(json.dumps(document, indent=1) + "\n")
    (folder / TABLE).write_text(markdown(report, field, facts))
    write_charts(report, folder)


def read(folder: Path, field: Field) -> Report:
    """The report of an earlier run in `folder`, empty if there was none; its failures are forgotten.

    Raises:
        ConfigError: it was measured on another machine, or with other versions.
    """
    path = folder / RESULTS
    if not path.is_file():
        return Report()
    document = json.loads(path.read_text())
    then = {"machine": {**document["machine"], "cores": ""}, "versions": document["versions"]}
    now = {"machine": {**machine_facts(), "cores": ""}, "versions": field.versions}
    if then != now:
        raise ConfigError(f"{path}: expected figures of this machine and these versions, {now}, got those of {then}")
    return Report(
        results=[_result(row) for row in document["results"]],
        growths=[_growth(row) for row in document["growths"]],
    )


def _result(row: dict[str, Any]) -> Result:
    spreads = {name: Spread(**spread) for name, spread in row["spreads"].items()}
    ratios = [Ratio(**{**ratio, "bar": _bar(ratio["bar"])}) for ratio in row["ratios"]]
    absent = {name: _bar(bar) for name, bar in row["absent"].items()}
    return Result(**{**row, "spreads": spreads, "ratios": ratios, "absent": absent})


def _growth(row: dict[str, Any]) -> Growth:
    spreads = {name: [Spread(**spread) for spread in each] for name, each in row["spreads"].items()}
    return Growth(**{**row, "spreads": spreads, "bar": _bar(row["bar"])})


def _bar(bar: dict[str, float] | None) -> Bar | None:
    return None if bar is None else Bar(**bar)


def merged(earlier: Report, new: Report, order: Sequence[str]) -> Report:
    """`new`, and of `earlier` what it hasn't measured again; in the order of these names."""
    measured = {(r.subject, r.threads) for r in new.results} | {(f.subject, f.threads) for f in new.failures}
    traced = {(g.curve, g.threads) for g in new.growths} | {(f.subject, f.threads) for f in new.failures}
    results = [r for r in earlier.results if (r.subject, r.threads) not in measured] + new.results
    growths = [g for g in earlier.growths if (g.curve, g.threads) not in traced] + new.growths
    place = {name: index for index, name in enumerate(order)}
    return Report(
        results=sorted(results, key=lambda r: (place.get(r.subject, len(place)), r.threads)),
        growths=sorted(growths, key=lambda g: (place.get(g.curve, len(place)), g.threads)),
        failures=new.failures,
    )
