"""Launches: what is refused before anything runs, what happens after a fault, threads, and the cache of compiled code."""

import ctypes
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refnet.errors import ArgumentError, CompilerError, KernelFault, LaunchError
from refnet.kernels import emulator
from refnet.kernels.cuda.program import Program
from refnet.kernels.emulator import compiler, running

pytestmark = pytest.mark.skipif(not emulator.available(), reason="no g++: nothing can be emulated")

HERE = Path(__file__).parent
FEATURES = Program(HERE / "features.cu", ["block_sum", "scale_all", "scalars", "tickets", "huge_static_shared"])
FAULTS = Program(HERE / "faults.cu", ["read_past_end", "barrier_missing", "bytes_of_one_word"])


def block_sum(n: Any = None, x: Any = None, y: Any = None, *, threads: int = 32, **options: Any) -> None:
    arguments = (
        np.int32(4) if n is None else n,
        np.ones(4, np.float32) if x is None else x,
        np.zeros(1, np.float32) if y is None else y,
    )
    FEATURES.launch(np, "block_sum", (1,), (threads,), arguments, **options)


def read_only() -> np.ndarray:
    y = np.zeros(1, np.float32)
    y.flags.writeable = False
    return y


both = np.ones(8, np.float32)

REFUSED: dict[str, tuple[Callable[[], None], str]] = {
    "a double instead of floats": (lambda: block_sum(x=np.ones(4)), "argument 1: expected elements of type f4, got f8"),
    "integers instead of floats": (lambda: block_sum(x=np.ones(4, np.int32)), "expected elements of type f4, got i4"),
    "a wide scalar": (lambda: block_sum(n=np.int64(4)), "argument 0: expected a value of type i4, got int64"),
    "an unsigned scalar": (lambda: block_sum(n=np.uint32(4)), "expected a value of type i4, got uint32"),
    "a Python number": (lambda: block_sum(n=4), "typed scalar"),
    "an array for a scalar": (lambda: block_sum(n=np.ones(1, np.int32)), "expected a value of type i4, got ndarray"),
    "a scalar for an array": (lambda: block_sum(x=np.float32(1)), "argument 1: expected an array, got float32"),
    "a read-only result": (lambda: block_sum(y=read_only()), "argument 2: expected an array that may be written"),
    "strides": (lambda: block_sum(x=np.ones(8, np.float32)[::2]), "argument 1: expected an array in C order"),
    "too few": (
        lambda: FEATURES.launch(np, "block_sum", (1,), (32,), (np.int32(4),)),
        "block_sum: expected 3 arguments, got 1",
    ),
    "a small structure": (
        lambda: FEATURES.launch(np, "scale_all", (1,), (32,), (Small(), np.float32(1))),
        "argument 0: expected a value of type V400, got Small",
    ),
    "an output that is a scalar": (lambda: block_sum(outputs=(0,)), "argument 0: an output must be an array"),
    "an output that is read": (lambda: block_sum(x=both, y=both[:1], outputs=(2,)), "shares memory with argument 1"),
    "too wide a block": (lambda: block_sum(threads=1056), "expected a block of at most (1024, 1024, 64), got (1056,)"),
    "too many threads": (
        lambda: FEATURES.launch(np, "tickets", (1,), (33, 32), (np.zeros(1, np.int32), np.zeros(1056, np.int32))),
        "expected at most 1024 threads in a block, got 1056",
    ),
    "too many in depth": (
        lambda: FEATURES.launch(np, "tickets", (1,), (1, 1, 65), (np.zeros(1, np.int32), np.zeros(65, np.int32))),
        "expected a block of at most",
    ),
    "too high a grid": (
        lambda: FEATURES.launch(np, "tickets", (1, 65536), (1,), (np.zeros(1, np.int32), np.zeros(1, np.int32))),
        "expected a grid of at most",
    ),
    "too much shared memory": (lambda: block_sum(shared=228 * 1024), "232448 bytes of shared memory"),
    "too much static shared memory": (
        lambda: FEATURES.launch(np, "huge_static_shared", (1,), (32,), (np.zeros(32, np.float32),)),
        "49152 bytes of static shared memory, got 65536",
    ),
}


class Small(ctypes.Structure):
    """Not the one that the kernel takes."""

    _fields_ = (("n", ctypes.c_int64),)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    launch, message = REFUSED[name]
    with running(mode="check"), pytest.raises(LaunchError) as caught:
        launch()
    assert message in str(caught.value)


@pytest.mark.parametrize("changes", [{"mode": "slow"}, {"seed": -1}, {"workers": 0}])
def test_settings_that_make_no_sense(changes: dict[str, Any]) -> None:
    """The tests' own check of annotations comes before that of the mode."""
    with pytest.raises((ArgumentError, TypeError), match=next(iter(changes))), running(**changes):
        pass


def test_settings_hold_within_their_block() -> None:
    with running(mode="check", seed=3) as outer, running(seed=4) as inner:
        assert (outer.seed, inner.seed, inner.mode) == (3, 4, "check")


@pytest.mark.parametrize("name", ["read_past_end", "barrier_missing", "bytes_of_one_word"])
def test_after_a_fault_everything_goes_on(name: str) -> None:
    x, y = np.ones(64, np.float32), np.zeros(64, np.float32)
    with running(mode="check"):
        for _ in range(30):
            with pytest.raises(KernelFault):
                FAULTS.launch(np, name, (1,), (64,), (np.int32(1), x, y), outputs=(2,))
            FAULTS.launch(np, name, (1,), (64,), (np.int32(0), x, y), outputs=(2,))
            assert np.array_equal(y, x)


def test_a_fault_comes_before_memory_is_changed() -> None:
    room = np.zeros(66, np.float32)
    with running(mode="check"), pytest.raises(KernelFault, match="past the end of argument 2"):
        Program(HERE / "faults.cu", ["write_past_end"]).launch(
            np, "write_past_end", (1,), (64,), (np.int32(1), np.ones(64, np.float32), room[1:65])
        )
    assert room[0] == room[65] == 0


def test_an_output_that_isnt_written_is_nan_even_if_nobody_checks() -> None:
    y = np.zeros(64, np.float32)
    with running(mode="fast"):
        Program(HERE / "faults.cu", ["output_not_written"]).launch(
            np, "output_not_written", (1,), (64,), (np.int32(2), np.ones(64, np.float32), y), outputs=(2,)
        )
    np.testing.assert_array_equal(y, [np.nan, np.nan, *[1] * 62])


def test_python_threads_may_launch_at_once() -> None:
    def one(seed: int) -> bool:
        mode = "check" if seed % 2 else "fast"
        x, y = np.full((40, 100), seed, np.float32), np.empty(40, np.float32)
        with running(mode=mode, seed=seed, workers=3):
            for _ in range(20):
                FEATURES.launch(np, "block_sum", (40,), (128,), (np.int32(100), x, y), outputs=(2,))
        return bool((y == 100 * seed).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(8)))


def test_many_small_launches_are_quick() -> None:
    """Of processor time, so that a busy machine doesn't matter; a tenth of this is usual."""
    x, y = np.ones(64, np.float32), np.zeros(64, np.float32)
    with running(mode="check"):
        FAULTS.launch(np, "barrier_missing", (1,), (64,), (np.int32(0), x, y), outputs=(2,))
        start = time.thread_time()
        for _ in range(100):
            FAULTS.launch(np, "barrier_missing", (1,), (64,), (np.int32(0), x, y), outputs=(2,))
        assert (time.thread_time() - start) / 100 < 1e-3


def test_an_array_far_larger_than_what_is_touched_costs_little() -> None:
    x = np.zeros(1 << 26, np.float32)
    with running(mode="check"):
        block_sum(x=x)  # 2 GB of shadow memory, if it were all touched


# ---- compiled code ----

SCALE = "__global__ void scale(float* x) {{ x[threadIdx.x] = {factor} * x[threadIdx.x]; }}\n"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("REFNET_CACHE", str(folder))
    return folder


def scaled(source: Path, name: str = "scale") -> float:
    x = np.ones(1, np.float32)
    Program(source, [name]).launch(np, name, (1,), (1,), (x,))
    return float(x[0])


@pytest.mark.usefixtures("cache")
def test_a_changed_source_or_header_is_compiled_anew(tmp_path: Path) -> None:
    source, header = tmp_path / "scale.cu", tmp_path / "factor.cuh"
    source.write_text(SCALE.format(factor="3"))
    assert scaled(source) == 3
    source.write_text('#include "factor.cuh"\n' + SCALE.format(factor="FACTOR"))
    header.write_text("#define FACTOR 5\n")
    assert scaled(source) == 5
    header.write_text("#define FACTOR 77\n")
    assert scaled(source) == 77


def test_equal_texts_in_two_folders_are_compiled_once(tmp_path: Path, cache: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        (folder / "scale.cu").write_text(SCALE.format(factor="3"))
        assert scaled(folder / "scale.cu") == 3
    assert len(list((cache / "emulator").glob("scale*"))) == 1


def test_another_compiler_makes_code_of_its_own(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "scale.cu"
    source.write_text(SCALE.format(factor="3"))
    assert scaled(source) == 3
    compiler._compile.cache_clear()
    monkeypatch.setattr(compiler, "_compiler", lambda path: "another version")
    assert scaled(source) == 3
    assert len(list((cache / "emulator").glob("scale*"))) == 2


@pytest.mark.usefixtures("cache")
def test_a_text_that_doesnt_compile_says_where(tmp_path: Path) -> None:
    source = tmp_path / "scale.cu"
    source.write_text(SCALE.format(factor="factor"))
    with pytest.raises(CompilerError, match=r"scale.cu:1:.*‘?factor’? was not declared"):
        scaled(source)


@pytest.mark.usefixtures("cache")
def test_without_a_compiler_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "scale.cu"
    source.write_text(SCALE.format(factor="3"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not emulator.available()
    with pytest.raises(CompilerError, match=r"compiles kernels with g\+\+, and there is none"):
        scaled(source)


@pytest.mark.usefixtures("cache")
def test_on_another_machine_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "scale.cu"
    source.write_text(SCALE.format(factor="3"))
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    compiler._compiler.cache_clear()
    assert not emulator.available()
    with pytest.raises(CompilerError, match=r"runs on x86-64 Linux, got aarch64"):
        scaled(source)


def test_processes_may_compile_the_same_at_once(tmp_path: Path, cache: Path) -> None:
    compiler.runtime()  # which takes seconds to compile, so they find it
    (cache / "emulator").mkdir(parents=True)
    (built,) = {
        Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if "/runtime-" in line
    }
    shutil.copy(built, cache / "emulator")
    source = tmp_path / "scale.cu"
    source.write_text(SCALE.format(factor="3"))
    script = tmp_path / "run.py"
    script.write_text(
        "import numpy as np\nfrom refnet.kernels.cuda.program import Program\nx = np.ones(1, np.float32)\n"
        f"Program({str(source)!r}, ['scale']).launch(np, 'scale', (1,), (1,), (x,))\nassert x[0] == 3\n"
    )
    processes = [subprocess.Popen([sys.executable, str(script)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert {path.suffix for path in (cache / "emulator").iterdir()} == {".so"}
