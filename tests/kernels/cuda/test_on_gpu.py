"""The properties that the emulator's tests check, on a GPU: pytest -m gpu.

With REFNET_DRY_RUN=1 the same tests run in the emulator, with few examples, to see that nothing stands in the way of
those on a GPU but the GPU.
"""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

from refnet.arrays import to_host
from refnet.errors import DeviceError, LaunchError
from refnet.kernel_op import operations
from refnet.kernels.cuda import KERNELS, conv2d
from refnet.kernels.cuda.cupy_module import import_cupy
from refnet.kernels.emulator import available
from refnet.testing import check_kernel, contract_of
from refnet.testing.calls import as_tuple

pytestmark = pytest.mark.gpu
REPEATS = 250
"""Of one call: a race that shows once in a hundred runs is found with a probability of 92 %."""


@dataclass(frozen=True)
class Gpu:
    """Where the tests run.

    Attributes:
        xp: the namespace of the arrays.
        device: as check_kernel has it.
        examples: random calls of an operation.
        repeats: of one call.
    """

    xp: Any
    device: Literal["cuda", "emulated"]
    examples: int
    repeats: int


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    """The GPU; the tests are skipped where there is none."""
    if os.environ.get("REFNET_DRY_RUN"):
        if not available():
            pytest.skip("REFNET_DRY_RUN, but g++ isn't installed: CUDA kernels aren't emulated")
        return Gpu(np, "emulated", examples=1, repeats=2)
    try:
        return Gpu(import_cupy(), "cuda", examples=100, repeats=REPEATS)
    except DeviceError as error:
        pytest.skip(f"no GPU: {error}")


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_a_kernel_keeps_the_contract_of_its_operation(gpu: Gpu, name: str) -> None:
    print(check_kernel(operations()[name], KERNELS[name], device=gpu.device, max_examples=gpu.examples))


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("name", ["conv2d_forward", "conv2d_grad_input", "conv2d_grad_weight"])
def test_tensor_cores_keep_the_contract_of_their_precision(gpu: Gpu, name: str, precision: Any) -> None:
    def kernel(*arrays: Any, **parameters: Any) -> Any:
        with conv2d.precision(precision):
            return KERNELS[name](*arrays, **parameters)

    print(
        check_kernel(
            operations()[name],
            kernel,
            device=gpu.device,
            max_examples=gpu.examples,
            precision=precision,
            dtypes=("float32",),
        )
    )


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_the_same_call_gives_the_same_bits_however_often(gpu: Gpu, name: str) -> None:
    contract = contract_of(operations()[name])
    if contract.order_may_vary:
        pytest.skip("its contract lets the order of sums vary")
    call = max(contract.edges.values(), key=lambda call: call.size).astype("float32")
    first = None
    for _ in range(gpu.repeats):
        given = call.map(lambda _, array: gpu.xp.array(array))
        results = [to_host(result) for result in as_tuple(given.apply(KERNELS[name]))]
        written = (as_tuple(given.arrays[name]) for name in contract.writes)  # an array, or several
        results += [to_host(array) for arrays in written for array in arrays]
        first = first or results
        for a, b in zip(first, results, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_a_kernel_runs_on_the_current_stream(gpu: Gpu, name: str) -> None:
    """Between what was issued there before and what comes after, without a wait in between."""
    call = max(contract_of(operations()[name]).edges.values(), key=lambda call: call.size).astype("float32")
    contract = contract_of(operations()[name])
    expected = as_tuple(call.map(lambda _, array: gpu.xp.array(array)).apply(KERNELS[name]))
    stream = gpu.xp.cuda.Stream(non_blocking=True) if gpu.device == "cuda" else nullcontext()
    with stream:
        given = call.map(lambda _, array: gpu.xp.array(array))
        results = [gpu.xp.array(result) for result in as_tuple(given.apply(KERNELS[name]))]
    if gpu.device == "cuda":
        stream.synchronize()
    for a, b in zip(expected, results, strict=True):
        if contract.order_may_vary:
            assert a.shape == b.shape
        else:
            np.testing.assert_array_equal(to_host(a), to_host(b))


def test_arrays_of_another_device_and_of_the_host_are_refused(gpu: Gpu) -> None:
    if gpu.device != "cuda":
        pytest.skip("the emulator takes the host's arrays")
    from refnet.kernels.cuda.contracts import programs

    program = programs()[0]
    with pytest.raises(LaunchError, match="expected an array of CuPy, got one of NumPy"):
        program.launch(gpu.xp, program.instantiations[0].name, (1,), (32,), (np.zeros(3, np.float32),))


@pytest.fixture(autouse=True)
def _no_error_is_left(gpu: Gpu) -> Iterator[None]:
    """A kernel's fault shows at the next wait; let it be that of its own test."""
    yield
    if gpu.device == "cuda":
        gpu.xp.cuda.Device().synchronize()
