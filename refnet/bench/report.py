"""Results in words: a table for the terminal and for the README, and a file of all numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from refnet.bench.contestants import CPU, Field
from refnet.bench.run import Failure, Report, Result
from refnet.bench.stopwatch import Spread
from refnet.draw.machine import machine_facts

RESULTS, TABLE = "results.json", "table.md"


def line(done: Result | Failure) -> str:
    """One subject for the terminal."""
    threads = f"{done.threads} thread{'' if done.threads == 1 else 's'}"
    if isinstance(done, Failure):
        return f"FAILED {done.subject}, {threads}: {done.reason}"
    figures = ", ".join(f"{name} {amount(spread, done.unit)}" for name, spread in done.spreads.items())
    ratios = "".join(f"; {ratio.value:.2f} of {ratio.peer}{_verdict(ratio)}" for ratio in done.ratios)
    return f"{done.subject}, {threads}: {figures}{ratios} ({done.check})"


def _verdict(ratio: Any) -> str:
    if ratio.bar is None:
        return ""
    return f", asked {ratio.bar.at_most:g}{'' if ratio.kept else ': MISSED'}"


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


def markdown(report: Report, field: Field, facts: Mapping[str, str]) -> str:
    """The results as a table, with what they were measured on; a row for each comparison, a column for each number of
    threads."""
    counts = sorted({result.threads for result in report.results})
    head = ["what", "against", "asked", "aim", *(f"ratio, {n} thread{'' if n == 1 else 's'}" for n in counts)]
    lines = ["| " + " | ".join([*head, "refnet", "peer"]) + " |", "|" + "---|" * (len(head) + 2)]
    for subject in dict.fromkeys(result.subject for result in report.results):
        mine = {result.threads: result for result in report.results if result.subject == subject}
        lines += [_row(subject, peer, mine, counts) for peer in _peers(mine.values())]
    text = "\n".join(lines) + "\n\n" + sentence(report, facts, field) + "\n"
    for failure in report.failures:
        text += f"\nFailed: {failure.subject}, {failure.threads} threads: {failure.reason.strip().splitlines()[-1]}\n"
    return text


def _peers(results: Iterable[Result]) -> list[str]:
    return list(dict.fromkeys(p for r in results for p in (*(ratio.peer for ratio in r.ratios), *r.absent)))


def _row(subject: str, peer: str, results: Mapping[int, Result], counts: Sequence[int]) -> str:
    cells, bar = [], None
    for count in counts:
        ratio = next((r for r in results[count].ratios if r.peer == peer), None) if count in results else None
        if ratio is None:
            cells.append("not measured")
            bar = bar or (results[count].absent.get(peer) if count in results else None)
            continue
        bar = ratio.bar
        cells.append(f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f}){'' if ratio.kept else ', missed'}")
    first = results[min(results)]
    spreads = [amount(first.spreads[name], first.unit) if name in first.spreads else "" for name in (CPU, peer)]
    asked = ["reported", ""] if bar is None else [f"{bar.at_most:g}", f"{bar.aim:g}"]
    return "| " + " | ".join([subject, peer, *asked, *cells, *spreads]) + " |"


def sentence(report: Report, facts: Mapping[str, str], field: Field) -> str:
    """When, on what and with what, and who was left out."""
    dates = sorted({result.date[:10] for result in report.results})
    libraries = ", ".join(f"{name} {version}" for name, version in field.versions.items())
    text = (
        f"Ratios are refnet's median over the peer's, with the quartiles of the rounds; the times are those of "
        f"{min((r.threads for r in report.results), default=1)} thread. Measured {' and '.join(dates)} on "
        f"{facts['cores']} cores of {facts['processor']}, {facts['BLAS']}, Python {facts['Python']}, {libraries}."
    )
    return text + "".join(f" {name} was left out: {reason}." for name, reason in field.missing.items())


def write(report: Report, field: Field, folder: Path, *, rounds: int) -> None:
    """Write the file of all numbers and the table."""
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
