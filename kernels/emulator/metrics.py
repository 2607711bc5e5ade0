"""What a kernel's accesses to memory cost, by source line: sectors of global memory, bank conflicts of shared memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from refnet.kernels.emulator.settings import running

KINDS = ("global load", "global store", "global atomic", "shared load", "shared store", "shared atomic")
COUNTERS = ("requests", "sectors", "ideal_sectors", "phases", "ways", "worst_ways")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kind of access of one source line; a request is what the lanes of a warp access at one time.

    Attributes:
        source, line: where it stands.
        kind: global or shared; load, store or atomic.
        requests: how many.
        sectors: of 32 bytes, a request to global memory; 0 for shared memory.
        ideal_sectors: that the bytes of a request would fill if they lay together.
        bank_ways: how many times in a row a phase of a request to shared memory asks one bank, on average; 1 is free of
            conflicts, 0 for global memory.
        worst_bank_ways: in the worst phase, averaged over its request's place in the code.
    """

    source: str
    line: int
    kind: str
    requests: int
    sectors: float
    ideal_sectors: float
    bank_ways: float
    worst_bank_ways: int


class Metrics:
    """Counts, added up over launches."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int, str], dict[str, int]] = {}

    def add(self, source: str, line: int, kind: int, counters: tuple[int, ...]) -> None:
        """Add the counters of one place, in the order of :data:`COUNTERS`."""
        own = self._counts.setdefault((source, line, KINDS[kind]), dict.fromkeys(COUNTERS, 0))
        for name, value in zip(COUNTERS, counters, strict=True):
            own[name] = max(own[name], value) if name == "worst_ways" else own[name] + value

    @property
    def rows(self) -> list[Row]:
        """One row for each source line and kind of access, in the source's order."""
        return [
            Row(
                source=source,
                line=line,
                kind=kind,
                requests=c["requests"],
                sectors=c["sectors"] / c["requests"],
                ideal_sectors=c["ideal_sectors"] / c["requests"],
                bank_ways=c["ways"] / c["phases"] if c["phases"] else 0.0,
                worst_bank_ways=c["worst_ways"],
            )
            for (source, line, kind), c in sorted(self._counts.items())
        ]

    def __str__(self) -> str:
        """The rows as a table."""
        text = [f"{'line':24} {'kind':14} {'requests':>9} {'sectors':>8} {'ideal':>6} {'ways':>6} {'worst':>6}"]
        for row in self.rows:
            place = f"{row.source}:{row.line}"
            head = f"{place:24} {row.kind:14} {row.requests:9}"
            if row.kind.startswith("global"):
                text.append(f"{head} {row.sectors:8.2f} {row.ideal_sectors:6.2f}")
            else:
                text.append(f"{head} {'':8} {'':6} {row.bank_ways:6.2f} {row.worst_bank_ways:6}")
        return "\n".join(text)


collected: ContextVar[Metrics | None] = ContextVar("metrics", default=None)


@contextmanager
def measuring(**changes: Any) -> Iterator[Metrics]:
    """Check and measure the kernels that run within the block; `changes` are those of :func:`running`."""
    metrics = Metrics()
    token = collected.set(metrics)
    try:
        with running(mode="metrics", **changes):
            yield metrics
    finally:
        collected.reset(token)
