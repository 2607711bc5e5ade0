"""Every CUDA kernel, in the emulator with all its checks, keeps the contract of its operation."""

import hypothesis
import pytest

from refnet.kernel_op import operations
from refnet.kernels.cuda import KERNELS, roi
from refnet.kernels.emulator import available
from refnet.testing import check_kernel, contract_of

pytestmark = pytest.mark.skipif(not available(), reason="the emulator needs g++")

SHARE = 10  # emulated calls take milliseconds, so there are fewer of them


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_keeps_its_contract(name):
    examples = hypothesis.settings().max_examples // SHARE
    report = check_kernel(operations()[name], KERNELS[name], device="emulated", max_examples=examples)
    assert report.edges == len(contract_of(operations()[name]).edges)
    assert report.examples == examples


SCATTERED = ["crop_and_resize_grad_images", "roi_align_grad_features"]


@pytest.mark.parametrize("name", [*SCATTERED, "roi_pool_grad"])
def test_gradients_of_features_have_the_same_bits_every_time(name):
    """The contract lets the order of sums vary; these kernels promise more."""
    report = check_kernel(operations()[name], KERNELS[name], device="emulated", max_examples=5, repeatable=True)
    assert report.checks["repeated"] == report.checks["values"]


@pytest.mark.parametrize("name", SCATTERED)
def test_gradients_by_atomics_keep_their_contract(name):
    with roi.deterministic(False):
        report = check_kernel(operations()[name], KERNELS[name], device="emulated", max_examples=5)
    assert report.checks["repeated"] == 0
