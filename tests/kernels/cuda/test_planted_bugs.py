"""The bench bites: it finds every one of the planted bugs, each in ten seconds with what it takes to compile.

That it never accuses a right kernel is what test_specifications.py checks.
"""

import os
import shutil
from pathlib import Path

import pytest

from refnet.kernel_op import operations
from refnet.kernels.cuda import KERNELS
from refnet.kernels.cuda.program import FOLDER, sources_in
from refnet.kernels.emulator import available
from refnet.testing import KernelMismatch, check_kernel
from tests.kernels.cuda.planted_bugs import BUGS, Bug

pytestmark = pytest.mark.skipif(not available(), reason="the emulator needs g++")

SECONDS = 10  # of processors


def seconds_worked() -> float:
    """By this process and by the compilers that it ran: the machine may be busy with others."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.operation}: {bug.title}")
def test_a_planted_bug_is_found(bug: Bug, tmp_path: Path) -> None:
    folder = tmp_path / "cuda"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    source = folder / bug.source
    text = source.read_text()
    assert text.count(bug.right) == 1
    source.write_text(text.replace(bug.right, bug.wrong))

    start = seconds_worked()
    with sources_in(folder), pytest.raises(KernelMismatch) as found:
        check_kernel(
            operations()[bug.operation], KERNELS[bug.operation], device="emulated", dtypes=["float32"],
            max_examples=30, refusals=False, shrink=False,
        )  # fmt: skip
    assert seconds_worked() - start < SECONDS
    assert found.value.reproduction


def test_there_are_enough_of_many_kinds() -> None:
    assert len(BUGS) >= 40
    assert len({bug.source for bug in BUGS}) >= 4
    assert len({(bug.operation, bug.title) for bug in BUGS}) == len(BUGS)
