"""Sectors and bank conflicts of textbook patterns, by source line."""

from pathlib import Path

import numpy as np
import pytest

from refnet.kernels import emulator
from refnet.kernels.cuda.program import Program
from refnet.kernels.emulator import Metrics, Row, measuring, running

pytestmark = pytest.mark.skipif(not emulator.available(), reason="no g++: nothing can be emulated")

SOURCE = Path(__file__).with_name("accesses.cu")
LINES = SOURCE.read_text().splitlines()
ACCESSES = Program(SOURCE, ["global_patterns", "shared_patterns", "loop"])


def rows_at(metrics: Metrics, start: str, comment: str) -> list[Row]:
    """The rows of the line with this comment, in the kernel that begins at `start`."""
    first = next(i for i, line in enumerate(LINES) if f"void {start}(" in line)
    line = next(i for i, line in enumerate(LINES) if i > first and line.endswith("// " + comment)) + 1
    return [row for row in metrics.rows if row.line == line and row.source == "accesses.cu"]


@pytest.fixture(scope="module")
def global_memory() -> Metrics:
    x, y = np.zeros(4096, np.float32), np.zeros(33, np.float32)
    with measuring() as metrics:
        ACCESSES.launch(np, "global_patterns", (1,), (32,), (aligned(x), aligned(y)))
    return metrics


def aligned(x: np.ndarray) -> np.ndarray:
    """A copy that starts where a sector does."""
    room = np.empty(x.nbytes + 128, np.uint8)
    start = -room.ctypes.data % 128
    copy = room[start : start + x.nbytes].view(x.dtype)
    copy[...] = x
    return copy


@pytest.mark.parametrize(
    ("pattern", "kind", "sectors", "ideal"),
    [
        ("coalesced", "global load", 4, 4),
        ("stride 2", "global load", 8, 4),
        ("stride 32", "global load", 32, 4),
        ("broadcast", "global load", 1, 1),
        ("shifted", "global load", 5, 4),
        ("vector", "global load", 16, 16),
        ("eight lanes", "global load", 1, 1),
        ("store", "global store", 4, 4),
        ("one address", "global atomic", 1, 1),
    ],
)
def test_sectors(global_memory: Metrics, pattern: str, kind: str, sectors: int, ideal: int) -> None:
    (row,) = rows_at(global_memory, "global_patterns", pattern)
    assert (row.kind, row.requests, row.sectors, row.ideal_sectors) == (kind, 1, sectors, ideal)
    assert row.bank_ways == 0


@pytest.fixture(scope="module")
def shared_memory() -> Metrics:
    with measuring() as metrics:
        ACCESSES.launch(np, "shared_patterns", (1,), (32,), (np.empty(32, np.float32),), outputs=(0,))
    return metrics


@pytest.mark.parametrize(
    ("pattern", "kind", "requests", "ways"),
    [
        ("rows", "shared store", 33, 1),
        ("two ways", "shared load", 1, 2),
        ("column", "shared load", 1, 32),
        ("padded column", "shared load", 1, 1),
        ("one word", "shared load", 1, 1),
        ("vector", "shared load", 1, 1),
    ],
)
def test_bank_conflicts(shared_memory: Metrics, pattern: str, kind: str, requests: int, ways: int) -> None:
    (row,) = rows_at(shared_memory, "shared_patterns", pattern)
    assert (row.kind, row.requests, row.bank_ways, row.worst_bank_ways) == (kind, requests, ways, ways)
    assert row.sectors == row.ideal_sectors == 0


def test_the_same_visit_of_a_line_is_one_request() -> None:
    """Of two warps in two launches, each lane loads one to four times."""
    x, y = aligned(np.zeros(160, np.float32)), np.empty(64, np.float32)
    with measuring() as metrics:
        for _ in range(2):
            ACCESSES.launch(np, "loop", (1,), (64,), (x, y), outputs=(1,))
    (row,) = rows_at(metrics, "loop", "load")
    assert row.requests == 2 * 2 * 4
    assert row.sectors == 4.0  # every fourth lane is in each of four sectors


def test_the_table_has_a_line_for_each_row(shared_memory: Metrics) -> None:
    table = str(shared_memory).splitlines()
    assert len(table) == 1 + len(shared_memory.rows)
    column = next(i for i, line in enumerate(LINES) if line.endswith("// column")) + 1
    assert any(line.startswith(f"accesses.cu:{column}") and line.split()[-2:] == ["32.00", "32"] for line in table)


def test_who_doesnt_measure_gets_nothing() -> None:
    y = np.empty(32, np.float32)
    with measuring() as metrics, running(mode="check"):
        ACCESSES.launch(np, "shared_patterns", (1,), (32,), (y,), outputs=(0,))
    with running(mode="metrics"):
        ACCESSES.launch(np, "shared_patterns", (1,), (32,), (y,), outputs=(0,))
    assert metrics.rows == []
