"""The kernels of little arithmetic on many numbers against their specifications.

Where a kernel does the specification's own arithmetic the bits must be equal. Where it sums in another order, the
inputs are dyadic numbers so small that nothing is rounded, or the difference is bounded as stated.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from refnet import ops
from refnet.kernels.cpu import KERNELS, dense
from refnet.testing.strategies.geometry import seeds
from tests.same_threads import same_threads

UNIT = {np.float32: 2.0**-24, np.float64: 2.0**-53}
dtypes = st.sampled_from([np.float32, np.float64])
shapes = array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=6)
blocks = st.sampled_from([1, 4, 16, dense.BLOCK])  # numbers: powers of two, so that means of blocks are exact


@pytest.fixture(autouse=True)
def _share_all_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "LEAST_BLOCKS", 2)


def both(name: str, block: int, *arrays: np.ndarray, **parameters: object) -> tuple:
    """What the kernel gives with blocks of so many numbers, and what the specification gives; as tuples."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "BLOCK", block)
        actual = KERNELS[name](*arrays, **parameters)
    expected = getattr(ops, name).specification(*arrays, **parameters)
    return (actual, expected) if isinstance(actual, tuple) else ((actual,), (expected,))


def assert_equal(actual: tuple, expected: tuple) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


# the same arithmetic


@given(shape=array_shapes(min_dims=0, min_side=0, max_side=6), seed=seeds, dtype=dtypes, block=blocks)
@same_threads
def test_relu(thread_count, shape, seed, dtype, block):
    rng = np.random.default_rng(seed)
    x, g = (np.asarray(rng.standard_normal(shape), dtype) for _ in range(2))
    y, _ = both("relu_forward", block, x)
    assert_equal(*both("relu_forward", block, x))
    assert_equal(*both("relu_grad", block, g, y[0]))


def test_relu_of_special_numbers(thread_count):
    x = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1e-45], np.float32)
    assert_equal(*both("relu_forward", 2, x))
    assert_equal(*both("relu_grad", 2, np.ones_like(x), x))


@given(shape=shapes, seed=seeds, dtype=dtypes, block=blocks)
@same_threads
def test_affine(thread_count, shape, seed, dtype, block):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(dtype)
    scale, shift = rng.standard_normal((2, shape[-1])).astype(dtype)
    assert_equal(*both("affine_forward", block, x, scale, shift))
    assert_equal(*both("affine_grad_input", block, x, scale))


def test_inputs_need_not_be_contiguous(thread_count):
    x = np.arange(-30.0, 30).reshape(3, 5, 4).transpose(1, 0, 2)[::-1]
    g = np.broadcast_to(np.array([1.0, -2, 3, 4]), x.shape)
    row = np.array([1.0, 2, 3, 4])
    assert_equal(*both("relu_forward", 8, x))
    assert_equal(*both("relu_grad", 8, g, x))
    assert_equal(*both("affine_forward", 8, x, row, row))
    assert_equal(*both("affine_grad_input", 8, g, row))
    assert_equal(*both("affine_grad_parameters", 8, g, x))


# sums in another order


def dyadic(shape: tuple[int, ...], rng: np.random.Generator, dtype: type) -> np.ndarray:
    """Quarters from -4 to 4."""
    return (rng.integers(-16, 17, shape) / 4).astype(dtype)


@given(shape=shapes, seed=seeds, dtype=dtypes, block=blocks)
@same_threads
def test_affine_gradients_of_parameters(thread_count, shape, seed, dtype, block):
    rng = np.random.default_rng(seed)
    assert_equal(*both("affine_grad_parameters", block, dyadic(shape, rng, dtype), dyadic(shape, rng, dtype)))


@given(
    log_rows=st.integers(0, 7),
    channels=st.integers(1, 4),
    seed=seeds,
    dtype=dtypes,
    block_rows=st.sampled_from([1, 4, 16]),
)
@same_threads
def test_batch_norm_on_exact_moments(thread_count, log_rows, channels, seed, dtype, block_rows):
    """All sums are exact, so the statistics are equal, and y is rounded a few times only.

    The mean of a block of 2^b quarters has b + 2 binary places, so the sum of a block's squared distances, each below
    64, has at most 6 + b binary digits before the point and 2 (b + 2) behind it: float32's 24 hold it up to b = 4.
    """
    rng = np.random.default_rng(seed)
    x = dyadic((2**log_rows, channels), rng, dtype)
    gamma, beta = dyadic((channels,), rng, dtype), dyadic((channels,), rng, dtype)
    (y, mean, variance), (_, mean_expected, variance_expected) = both(
        "batch_norm_forward", block_rows * channels, x, gamma, beta, epsilon=0.125
    )
    assert_equal((mean, variance), (mean_expected, variance_expected))
    # y = s x + t: s and t, a product and a sum are rounded
    scale, shift = abs(gamma) / np.sqrt(variance + 0.125), abs(beta)
    exact = ops.batch_norm_forward.specification(*(a.astype(np.float64) for a in (x, gamma, beta)), epsilon=0.125)[0]
    bound = 4 * UNIT[dtype] * (scale * (abs(x) + abs(mean)) + shift)
    assert y.dtype == dtype
    assert (abs(y - exact) <= bound + 4 * UNIT[np.float64] * abs(exact)).all()


@given(log_rows=st.integers(0, 7), channels=st.integers(1, 4), seed=seeds, dtype=dtypes, block=blocks)
@same_threads
def test_batch_norm_gradient_on_exact_sums(thread_count, log_rows, channels, seed, dtype, block):
    rng = np.random.default_rng(seed)
    g, x = dyadic((2**log_rows, channels), rng, dtype), dyadic((2**log_rows, channels), rng, dtype)
    gamma, mean = dyadic((channels,), rng, dtype), dyadic((channels,), rng, dtype)
    variance = (rng.integers(1, 16, channels) / 4).astype(dtype)
    (grad_x, grad_gamma, grad_beta), _ = both(
        "batch_norm_grad", block * channels, g, x, gamma, mean, variance, epsilon=0.125
    )
    inputs = [a.astype(np.float64) for a in (g, x, gamma, mean, variance)]
    exact_x, exact_gamma, exact_beta = ops.batch_norm_grad.specification(*inputs, epsilon=0.125)
    assert {grad_x.dtype, grad_gamma.dtype, grad_beta.dtype} == {np.dtype(dtype)}
    np.testing.assert_array_equal(grad_beta, exact_beta)
    unit = UNIT[dtype] + UNIT[np.float64]
    rate = 1 / np.sqrt(inputs[4] + 0.125)
    sizes = abs(g * (x - inputs[3])).sum(axis=0) * rate
    assert (abs(grad_gamma - exact_gamma) <= (len(x) + 4) * unit * sizes).all()
    # grad_x = a g + b x + c: three constants, two products and two sums are rounded
    a = abs(gamma) * rate
    b, c = a * rate * sizes / len(x), a * abs(exact_beta) / len(x)
    bound = a * abs(g) + b * (abs(x) + abs(mean)) + c
    assert (abs(grad_x - exact_x) <= (8 * UNIT[dtype] + (len(x) + 16) * UNIT[np.float64]) * bound).all()


@given(shape=shapes, seed=seeds, block=blocks)
@same_threads
def test_batch_norm_on_any_numbers(thread_count, shape, seed, block):
    rng = np.random.default_rng(seed)
    x, g = rng.standard_normal((2, *shape))
    gamma, beta = rng.standard_normal((2, shape[-1]))
    forward = both("batch_norm_forward", block, x, gamma, beta, epsilon=1e-3)
    backward = both("batch_norm_grad", block, g, x, gamma, forward[1][1], forward[1][2], epsilon=1e-3)
    for actual, expected in (*zip(*forward, strict=True), *zip(*backward, strict=True)):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-10 * max(1, abs(expected).max()))


def test_the_variance_of_numbers_far_from_0(thread_count):
    """The relative error is at most (M + B) u, not times mean² / variance, here a million, as of E[x²] - E[x]²."""
    rows, block = 4096, 256
    x = (1000 + np.random.default_rng(0).standard_normal((rows, 4))).astype(np.float32)
    ones = np.ones(4, np.float32)
    (_, mean, variance), _ = both("batch_norm_forward", block * 4, x, ones, ones, epsilon=0)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(variance, exact.var(axis=0), rtol=(rows + block) * 2.0**-24)
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=2.0**-23)


@pytest.mark.parametrize("name", ["relu_forward", "affine_forward", "affine_grad_input", "affine_grad_parameters"])
def test_a_batch_may_be_empty(thread_count, name):
    x, row = np.ones((0, 3, 2), np.float32), np.ones(2, np.float32)
    arrays = {"relu_forward": (x,), "affine_forward": (x, row, row), "affine_grad_input": (x, row)}.get(name, (x, x))
    assert_equal(*both(name, 4, *arrays))


def test_the_same_inputs_give_the_same_bits(thread_count):
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((2, 5000, 8)).astype(np.float32)
    ones = np.ones(8, np.float32)
    first = [both("batch_norm_forward", 1 << 10, x, ones, ones, epsilon=0)[0]]
    first.append(both("batch_norm_grad", 1 << 10, g, x, ones, *first[0][1:], epsilon=0.1)[0])
    for _ in range(5):
        assert_equal(both("batch_norm_forward", 1 << 10, x, ones, ones, epsilon=0)[0], first[0])
        again = both("batch_norm_grad", 1 << 10, g, x, ones, *first[0][1:], epsilon=0.1)[0]
        assert_equal(again, first[1])
