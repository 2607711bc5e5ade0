"""What refnet's kernels are registered for, and the table that says so."""

from collections.abc import Iterator

import pytest

import refnet.kernels
from refnet.kernel_op import operations
from refnet.kernels import cpu, cuda


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    refnet.kernels.uninstall()


def test_every_kernel_is_registered_for_its_device() -> None:
    refnet.kernels.install()
    for device, kernels in (("cpu", cpu.KERNELS), ("cuda", cuda.KERNELS)):
        for name, kernel in kernels.items():
            assert operations()[name].resolve(device) is kernel


def test_the_table_says_what_runs_where() -> None:
    def row() -> list[str]:
        return next(line.split() for line in refnet.kernels.installed().splitlines() if line.startswith("nms "))

    assert row() == ["nms", "cpu:", "specification", "cuda:", "no", "kernel"]
    refnet.kernels.install()
    assert row() == ["nms", "cpu:", "refnet.kernels.cpu.nms.nms", "cuda:", "refnet.kernels.cuda.nms.nms"]
    assert len(refnet.kernels.installed().splitlines()) == len(operations())
