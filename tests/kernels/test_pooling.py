"""The CPU kernels of max pooling against their specifications: equal bit for bit, whatever the size of a block."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet import ops
from refnet.kernels.cpu import pooling
from refnet.testing.strategies.geometry import Pooling, poolings
from tests.same_threads import same_threads

blocks = st.sampled_from([1, 16, pooling.BLOCK])  # numbers


def assert_equal(actual: tuple, expected: tuple) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def check(x: np.ndarray, block: int, **geometry: object) -> None:
    """Both kernels on `x`, with gradients of few digits, so that no sum is rounded."""
    expected = ops.max_pool2d_forward.specification(x, **geometry)
    g = np.random.default_rng(0).integers(-9, 10, expected[0].shape).astype(x.dtype)
    arguments = {"input_size": x.shape[1:3], **geometry}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooling, "BLOCK", block)
        assert_equal(pooling.max_pool2d_forward(x, **geometry), expected)
        grad = pooling.max_pool2d_grad(g, expected[1], **arguments)
    assert_equal((grad,), (ops.max_pool2d_grad.specification(g, expected[1], **arguments),))


STEM = {"kernel_size": (3, 3), "stride": (2, 2), "padding": ((1, 1), (1, 1))}


@given(
    case=poolings(),
    dtype=st.sampled_from([np.float32, np.float64]),
    numbers=st.sampled_from(["any", "ties", "mostly minus infinity"]),
    block=blocks,
)
@same_threads
def test_max_pool(thread_count, case: Pooling, dtype: type, numbers: str, block: int):
    x = case.rng.standard_normal(case.x_shape) if numbers == "any" else case.rng.integers(-2, 3, case.x_shape)
    x = x.astype(dtype)
    if numbers == "mostly minus infinity":
        x[case.rng.random(x.shape) < 0.8] = -np.inf
    check(x, block, **case.parameters)


@pytest.mark.parametrize("size", [15, 16, 17])
def test_windows_that_outgrow_a_byte(thread_count, size):
    x = np.random.default_rng(0).integers(0, 9, (2, size, size, 2)).astype(np.float32)
    x[:, -1, -1] = 9
    check(x, pooling.BLOCK, kernel_size=(size, size), stride=(1, 1), padding=((0, 0), (0, 0)))


@pytest.mark.parametrize("block", [1, pooling.BLOCK])
def test_nan(thread_count, block):
    x = np.arange(2 * 36.0).reshape(2, 6, 6, 1)
    x[1, 2, 3] = np.nan
    check(x, block, **STEM)


def test_a_window_in_which_nothing_is_above_minus_infinity_gives_its_gradient_to_the_padding():
    x = np.full((1, 3, 3, 1), -np.inf)
    y, place = pooling.max_pool2d_forward(x, **STEM)
    assert (place == 0).all()
    grad = pooling.max_pool2d_grad(np.ones_like(y), place, input_size=(3, 3), **STEM)
    np.testing.assert_array_equal(grad[0, :, :, 0], [[0, 0, 0], [0, 1, 0], [0, 0, 0]])


def test_inputs_need_not_be_contiguous(thread_count):
    x = np.random.default_rng(0).integers(-9, 9, (4, 9, 7, 2)).astype(np.float64).transpose(3, 2, 1, 0)[::-1, ::-1]
    check(x, 16, **STEM)


def test_an_empty_batch(thread_count):
    check(np.ones((0, 4, 4, 3)), pooling.BLOCK, kernel_size=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)))
