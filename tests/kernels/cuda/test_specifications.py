"""Every CUDA kernel, in the emulator with all its checks, keeps the contract of its operation."""

import hypothesis
import pytest

from refnet.kernel_op import operations
from refnet.kernels.cuda import KERNELS
from refnet.kernels.emulator import available
from refnet.testing import check_kernel, contract_of

pytestmark = pytest.mark.skipif(not available(), reason="the emulator needs g++")

SHARE = 5  # emulated calls take milliseconds, so there are fewer of them


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_keeps_its_contract(name):
    examples = hypothesis.settings().max_examples // SHARE
    report = check_kernel(operations()[name], KERNELS[name], device="emulated", max_examples=examples)
    assert report.edges == len(contract_of(operations()[name]).edges)
    assert report.examples == examples
