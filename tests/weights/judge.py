"""Reads hostile files in a process of its own, as a user's program would: without the test suite's type checks, which
take many times as long as an instruction of a pickle. ``python -m tests.weights.judge`` is told what to do by

- ``files FOLDER``: one line of JSON for each file: which error, what it says, seconds, and bytes at the peak;
- ``mutations FILE COUNT``: reads COUNT mutations of the file; how many were read and refused; fails on anything else.
"""

import json
import resource
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, given, settings

from refnet.errors import WeightsError
from refnet.weights.files import read_tensors
from tests.weights.damage import mutated

_GROWTH = 32 << 20  # bytes: a small file's allowance, and some more


def _verdict(path: Path) -> dict[str, object]:
    """Read the file twice: for the time, and for the memory, which takes time to measure."""
    error = "nothing", ""
    start = time.process_time()
    try:
        read_tensors(path)
    except Exception as raised:
        error = type(raised).__name__, str(raised)
    seconds = time.process_time() - start
    tracemalloc.start()
    try:
        read_tensors(path)
    except WeightsError:
        peak = tracemalloc.get_traced_memory()[1]
    else:
        peak = sys.maxsize
    tracemalloc.stop()
    return {"error": error[0], "message": error[1], "seconds": seconds, "peak": peak, "size": path.stat().st_size}


@contextmanager
def _growing_by(size: int) -> Iterator[None]:
    """Beyond `size` bytes more than now, a MemoryError."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _mutations(path: Path, count: int) -> tuple[int, int]:
    """How many mutations were read, and how many refused. None may make the process grow by more than a few MiB."""
    data = path.read_bytes()
    scratch = path.with_suffix(".mutated")
    seen = {"read": 0, "refused": 0}

    @settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
    @given(mutated(data))
    def tensors_or_an_error(mutation: bytes) -> None:
        scratch.write_bytes(mutation)
        try:
            with _growing_by(_GROWTH):
                tensors = read_tensors(scratch)
        except WeightsError:
            seen["refused"] += 1
            return
        seen["read"] += 1
        assert sum(array.nbytes for array in tensors.values()) <= 4 * len(
            mutation
        )  # bfloat16 doubles, and views repeat

    tensors_or_an_error()
    return seen["read"], seen["refused"]


if __name__ == "__main__":
    if sys.argv[1] == "files":
        modules = set(sys.modules)
        for path in sorted(Path(sys.argv[2]).iterdir()):
            print(json.dumps({"name": path.name} | _verdict(path)), flush=True)
        print(json.dumps({"name": "modules", "imported": sorted(set(sys.modules) - modules)}))
    else:
        print(*_mutations(Path(sys.argv[2]), int(sys.argv[3])))
