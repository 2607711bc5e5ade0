"""kernels/gpu.sh: every step runs whatever became of the others, and the exit status tells."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash isn't installed: gpu.sh isn't run")

PYTHON = """#!/usr/bin/env bash
# notes what it is asked for; fails where FAIL says; only programs on its standard input are really run
[ "$1" = - ] && exec {python} "$@"
echo "asked: $*"
case "$*" in *"$FAIL"*) exit 3 ;; esac
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A python that notes its arguments."""
    path = tmp_path / "python"
    path.write_text(PYTHON.replace("{python}", sys.executable))
    path.chmod(0o755)
    return path


def run(out: Path, python: Path, *arguments: str, fail: str = "nothing") -> tuple[int, str]:
    environment = {**os.environ, "PYTHON": str(python), "FAIL": fail}
    command = ["bash", str(ROOT / "kernels" / "gpu.sh"), str(out), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout + done.stderr


def statuses(out: Path) -> dict[str, int]:
    return {entry["step"]: entry["status"] for entry in json.loads((out / "summary.json").read_text())}


def test_a_failed_step_is_reported_and_the_others_run(tmp_path: Path, python: Path) -> None:
    out = tmp_path / "out"
    status, text = run(out, python, "--dry-run", fail="conformance record")
    assert status == 1
    found = statuses(out)
    assert found.pop("conformance") == 3
    assert set(found) >= {"versions", "tests", "every-kernel", "replay", "benchmark", "train-shapes"}
    assert not any(found[step] for step in found if step != "versions")
    assert "FAILED (3)" in text
    assert "some steps failed" in text
    log = (out / "log.txt").read_text()
    assert "asked: -m refnet.kernels.cuda.benchmark" in log
    assert "asked: -m pytest -m gpu" in log


def test_steps_can_be_chosen(tmp_path: Path, python: Path) -> None:
    status, text = run(tmp_path / "out", python, "--dry-run", "--only", "benchmark,tests")
    assert (status, statuses(tmp_path / "out")) == (0, {"tests": 0, "benchmark": 0})
    assert "all steps ok" in text


def test_a_step_that_does_not_exist(tmp_path: Path, python: Path) -> None:
    status, text = run(tmp_path / "out", python, "--dry-run", "--only", "benchmarks")
    assert status == 2
    assert "no step is called benchmarks" in text


def test_with_a_gpu_the_sanitizer_and_the_training_run_too(tmp_path: Path, python: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("nvidia-smi", "compute-sanitizer"):
        (tools / tool).write_text('#!/bin/sh\necho "$0 $*"\ncase "$*" in *racecheck*) exit 9 ;; esac\n')
        (tools / tool).chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
        status, _ = run(tmp_path / "out", python, "--wheels", str(tmp_path))
    found = statuses(tmp_path / "out")
    assert status == 1
    assert found["racecheck"] == 9
    assert {"install", "nvidia-smi", "tests", "training", "memcheck", "initcheck", "synccheck"} <= set(found)


@pytest.mark.parametrize("arguments", [("--nonsense",), ("second",), ("--only",)])
def test_wrong_usage(tmp_path: Path, python: Path, arguments: tuple[str, ...]) -> None:
    status, text = run(tmp_path / "out", python, *arguments)
    assert status == 2
    assert "usage: " in text
