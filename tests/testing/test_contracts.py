"""Contracts: every operation has one, and every kernel of the CPU keeps it."""

import hypothesis
import numpy as np
import pytest

from refnet.kernel_op import operations
from refnet.kernels.cpu import KERNELS
from refnet.testing import check_kernel, contract_of
from refnet.testing.calls import leaves
from refnet.testing.kernels import contracts_by_name

NAMES = sorted(contracts_by_name())


def test_every_operation_has_a_contract():
    assert sorted(operations()) == NAMES


@pytest.mark.parametrize("name", [name for name in NAMES if name not in KERNELS])
def test_the_specification_keeps_its_contract(name):
    """Of operations without a kernel for a CPU; tests/kernels/test_specifications.py checks those."""
    operation = operations()[name]
    examples = hypothesis.settings().max_examples // 10
    report = check_kernel(operation, operation.specification, max_examples=examples)
    assert report.edges == len(contract_of(operation).edges) >= 6
    assert report.examples > 0
    assert report.worst <= 1


@pytest.mark.parametrize("name", NAMES)
def test_a_contract_is_of_its_specification(name):
    """Edge cases can be called, refusals are refused, adjoints are of arguments; a bound is said to come from somewhere."""
    contract = contract_of(operations()[name])
    specification = contract.operation.specification
    for call in contract.edges.values():
        call.results(specification)
        assert {leaf.dtype for value in call.arrays.values() for leaf in leaves(value) if leaf.dtype.kind == "f"} <= {
            np.dtype(np.float64)
        }
        assert {adjoint.of for adjoint in contract.adjoints} <= call.arrays.keys()
    for refusal in contract.refusals.values():
        with pytest.raises(refusal.error):
            refusal.call.apply(specification)
    assert contract.why
