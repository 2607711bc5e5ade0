"""A CUDA kernel in the emulator, watched by its checker, beside its specification."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from refnet import ops
from refnet.kernels.cuda import KERNELS
from refnet.kernels.emulator import running

UNIT = {np.float32: 2.0**-24, np.float64: 2.0**-53}
dtypes = st.sampled_from([np.float32, np.float64])
schedules = st.integers(0, 3)  # seeds of the order in which threads and blocks run


def emulated(
    name: str, *arrays: np.ndarray, schedule: int = 0, in_place: int = 0, **parameters: Any
) -> tuple[np.ndarray, ...]:
    """What the kernel gives, as a tuple; arguments but the first `in_place` must stay as they are."""
    before = [array.copy() for array in arrays]
    with running(mode="check", seed=schedule):
        result = KERNELS[name](*arrays, **parameters)
    for array, copy in zip(arrays[in_place:], before[in_place:], strict=True):
        np.testing.assert_array_equal(array, copy)
    return result if isinstance(result, tuple) else (result,)


def specified(name: str, *arrays: np.ndarray, **parameters: Any) -> tuple[np.ndarray, ...]:
    """What the specification gives, as a tuple."""
    with np.errstate(all="ignore"):
        result = getattr(ops, name).specification(*arrays, **parameters)
    return result if isinstance(result, tuple) else (result,)


def exact(name: str, *arrays: np.ndarray, **parameters: Any) -> tuple[np.ndarray, ...]:
    """What the specification gives in float64."""
    return specified(name, *(a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays), **parameters)


def assert_same(name: str, *arrays: np.ndarray, schedule: int = 0, **parameters: Any) -> None:
    """The kernel's results have the values, types and shapes of the specification's."""
    found = emulated(name, *arrays, schedule=schedule, **parameters)
    for actual, expected in zip(found, specified(name, *arrays, **parameters), strict=True):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(actual, expected)


def assert_within(actual: np.ndarray, expected: np.ndarray, bound: np.ndarray | float, dtype: type) -> None:
    """`actual`, of `dtype`, differs from `expected` by no more than `bound`."""
    assert (actual.dtype, actual.shape) == (np.dtype(dtype), expected.shape)
    assert (abs(actual - expected) <= bound).all()


def plain(array: np.ndarray) -> np.ndarray:
    """The array itself."""
    return array


def strided(array: np.ndarray) -> np.ndarray:
    """The same values in memory that runs the other way, with others between."""
    memory = np.full((*array.shape, 2), 77, array.dtype)
    spread = memory[::-1][..., 0] if array.ndim else memory[:1].reshape(())
    spread[...] = array
    return spread


def misaligned(array: np.ndarray) -> np.ndarray:
    """The same values, contiguous, from an address that is no multiple of 16."""
    memory = np.empty(array.size + 1, array.dtype)[1:].reshape(array.shape)
    memory[...] = array
    assert array.size == 0 or memory.ctypes.data % 16
    return memory


layouts = st.sampled_from([plain, strided, misaligned])
