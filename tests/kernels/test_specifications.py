"""Every CPU kernel keeps the contract of its operation."""

import hypothesis
import pytest

from refnet.kernel_op import operations
from refnet.kernels.cpu import KERNELS
from refnet.testing import check_kernel, contract_of

SHARE = 5  # of the examples: a contract makes each call in several ways, beside its edge cases


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_keeps_its_contract(name):
    examples = hypothesis.settings().max_examples // SHARE
    report = check_kernel(operations()[name], KERNELS[name], device="cpu", max_examples=examples)
    assert report.edges == len(contract_of(operations()[name]).edges)
    assert report.examples == examples


def test_the_kernels_are_listed_in_order():
    assert list(KERNELS) == sorted(KERNELS)
