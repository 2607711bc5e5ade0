"""Metrics, signals and memory."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from refnet.errors import DataError
from refnet.train import peak_memory_mib, read_metrics
from refnet.train.interrupt import stop_on_signals
from refnet.train.metrics import MetricsLog


def test_metrics_are_appended_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in (1, 2, 3):
            log.write({"step": step, "loss": 1 / 3})
            assert len(read_metrics(path)) == step  # readable at once
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    with pytest.raises(DataError, match=r"metrics\.jsonl can't be read"):
        read_metrics(path)
    with MetricsLog(path, after=2) as log:
        log.write({"step": 3, "loss": 2.0})
        log.sync()
    assert [line["loss"] for line in read_metrics(path)] == [1 / 3, 1 / 3, 2.0]
    with MetricsLog(path):
        pass
    assert read_metrics(path) == []


def test_a_metric_that_json_does_not_know_is_refused(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "m") as log, pytest.raises(ValueError, match="not JSON compliant"):
        log.write({"loss": float("nan")})


def test_a_second_signal_interrupts_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        assert not stop
        signal.raise_signal(signal.SIGINT)
        assert stop
        assert stop.signal is signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_leave_signals_alone() -> None:
    seen = []

    def work() -> None:
        with stop_on_signals() as stop:
            seen.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


REUSE = """
import resource, sys
import numpy as np
from refnet.train import keep_freed_memory

if sys.argv[1] == "keep":
    print(keep_freed_memory())
x = np.ones(2**24, np.float32)  # 64 MiB: above the largest threshold that glibc has
for _ in range(2):
    x + x
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    x + x
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is on Linux only")
def test_freed_memory_is_used_again() -> None:
    def faults(mode: str) -> list[str]:
        command = [sys.executable, "-c", REUSE, mode]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    (returned,) = faults("return")
    done, kept = faults("keep")
    if done == "False":
        pytest.skip("the C library isn't glibc")
    assert int(returned) > 100
    assert int(kept) < 10


def test_the_peak_is_at_least_what_numpy_takes() -> None:
    peak = peak_memory_mib()
    assert peak is not None
    assert 10 < peak < 2**20
