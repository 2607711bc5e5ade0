"""Reads hostile files in a process of its own, as a user's program would: without the test suite's type checks, which
take many times as long as an instruction of a pickle. ``python -m tests.weights.judge`` is told what to do by

- ``files FOLDER``: one line of JSON for each file: which error, what it says, seconds, and bytes at the peak;
- ``mutations FILE COUNT``: reads COUNT mutations of the file; fails on anything but tensors or a WeightsError.
"""

import json
import sys
import time
import tracemalloc
from pathlib import Path

from hypothesis import HealthCheck, given, settings

from refnet.errors import WeightsError
from refnet.weights.files import read_tensors
from tests.weights.damage import mutated, read_or_refuse


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


def _mutations(path: Path, count: int) -> None:
    data = path.read_bytes()
    scratch = path.with_suffix(".mutated")

    @settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
    @given(mutated(data))
    def tensors_or_an_error(mutation: bytes) -> None:
        read_or_refuse(scratch, mutation)

    tensors_or_an_error()


if __name__ == "__main__":
    if sys.argv[1] == "files":
        modules = set(sys.modules)
        for path in sorted(Path(sys.argv[2]).iterdir()):
            print(json.dumps({"name": path.name} | _verdict(path)), flush=True)
        print(json.dumps({"name": "modules", "imported": sorted(set(sys.modules) - modules)}))
    else:
        _mutations(Path(sys.argv[2]), int(sys.argv[3]))
