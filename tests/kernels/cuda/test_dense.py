"""ReLU, affine maps and batch normalisation in the emulator, against their specifications.

Where a kernel does the specification's own arithmetic the results must be equal. A kernel's sums add four rows in the
type of x and the fours in float64, so each obeys |s - s*| <= (k u + n 2^-53) sum |terms|, for n rows and the few
roundings k of a term, of a four and of the result.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from refnet import ops
from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.kernels.cuda import KERNELS, vectors
from refnet.kernels.emulator import available
from refnet.testing.strategies.geometry import seeds
from tests.kernels.cuda.comparison import (
    UNIT,
    assert_same,
    assert_within,
    dtypes,
    emulated,
    exact,
    layouts,
    misaligned,
    schedules,
    strided,
)

pytestmark = pytest.mark.skipif(not available(), reason="the emulator needs g++")

U64 = 2.0**-53


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    """Rows and channels: few, or so many of one that several blocks share them."""
    channels = draw(st.integers(1, 9) | st.sampled_from([64, 132, 260]))
    most = 80 if channels > 9 else 700
    return (*draw(array_shapes(min_dims=0, max_dims=1, max_side=3)), draw(st.integers(1, most)), channels)


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.asarray(rng.standard_normal(shape), dtype)


# ---- the same arithmetic -------------------------------------------------------------------------------------------


@given(shape=array_shapes(min_dims=0, min_side=0, max_side=7), seed=seeds, dtype=dtypes, layout=layouts)
def test_relu(shape, seed, dtype, layout):
    rng = np.random.default_rng(seed)
    x, g = (layout(normal(rng, shape, dtype)) for _ in range(2))
    assert_same("relu_forward", x)
    assert_same("relu_grad", g, x)


def test_relu_of_several_blocks():
    x = normal(np.random.default_rng(0), (3 * 4 * 4 * vectors.THREADS + 5,), np.float32)
    assert_same("relu_forward", x, schedule=1)
    assert_same("relu_grad", x[::-1], x, schedule=2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_relu_of_special_numbers(dtype):
    """NaN stays; a gradient that isn't finite gives NaN where y isn't positive, as a product with 0 does."""
    x = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1e-45, -1e-45, 1], dtype)
    assert_same("relu_forward", x)
    for g in (np.ones_like(x), x, x[::-1], np.full_like(x, np.inf), np.full_like(x, -1)):
        assert_same("relu_grad", g, x)


@given(shape=shapes(), seed=seeds, dtype=dtypes, layout=layouts, schedule=schedules)
def test_affine(shape, seed, dtype, layout, schedule):
    rng = np.random.default_rng(seed)
    x = layout(normal(rng, shape, dtype))
    scale, shift = (layout(normal(rng, shape[-1:], dtype)) for _ in range(2))
    assert_same("affine_forward", x, scale, shift, schedule=schedule)
    assert_same("affine_grad_input", x, scale, schedule=schedule)


def test_affine_of_special_numbers():
    x = np.array([[np.nan, np.inf, -np.inf, -0.0]], np.float32).T * np.ones(4, np.float32)
    scale, shift = np.array([[1, -1, 0, np.inf], [0, -0.0, 1, np.nan]], np.float32)
    assert_same("affine_forward", x, scale, shift)
    assert_same("affine_grad_input", x, scale)


@given(channels=st.integers(0, 300), seed=seeds, dtype=dtypes)
def test_frozen_statistics_become_an_affine_map(channels, seed, dtype):
    rng = np.random.default_rng(seed)
    gamma, beta, mean, variance = (normal(rng, (channels,), dtype) for _ in range(4))
    assert_same("frozen_batch_norm_affine", gamma, beta, mean, abs(variance), epsilon=1e-3)


@given(channels=st.integers(0, 300), seed=seeds, dtype=dtypes)
def test_running_statistics_move_in_place(channels, seed, dtype):
    rng = np.random.default_rng(seed)
    running, found = ([normal(np.random.default_rng(seed), (channels,), dtype) for _ in range(2)] for _ in range(2))
    batch = [normal(rng, (channels,), dtype) for _ in range(2)]
    factors = {"momentum": 0.1, "correction": 8 / 7}
    ops.move_running_statistics.specification(*running, *batch, **factors)
    assert emulated("move_running_statistics", *found, *(strided(b) for b in batch), in_place=2, **factors) == (None,)
    for actual, expected in zip(found, running, strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_running_statistics_are_written_where_they_lie():
    row = np.ones(3, np.float32)
    with pytest.raises(ArgumentError, match="the running averages, which are written to, must be contiguous"):
        KERNELS["move_running_statistics"](strided(row), row, row, row, momentum=0.1, correction=1.0)


def test_vectors_where_channels_and_addresses_allow_them():
    x = np.zeros((4, 8), np.float32)
    assert vectors.width(8, x) == 4
    assert vectors.width(8, x, x.astype(np.int32)) == 4
    assert vectors.width(6, x) == 1
    assert vectors.width(6, x.astype(np.float64)) == 2
    assert vectors.width(8, x, misaligned(x)) == 1
    assert vectors.block_of(1) == (1, 256)
    assert vectors.block_of(5) == (8, 32)
    assert vectors.block_of(512) == (32, 8)


# ---- sums ----------------------------------------------------------------------------------------------------------


@given(shape=shapes(), seed=seeds, dtype=dtypes, layout=layouts, schedule=schedules)
def test_affine_gradients_of_parameters(shape, seed, dtype, layout, schedule):
    """A product, three sums and the result are rounded in the type of x."""
    rng = np.random.default_rng(seed)
    g, x = (layout(normal(rng, shape, dtype)) for _ in range(2))
    found = emulated("affine_grad_parameters", g, x, schedule=schedule)
    sizes = exact("affine_grad_parameters", abs(g), abs(x))
    unit = 6 * UNIT[dtype] + (x.size // shape[-1] + 8) * U64
    for actual, expected, size in zip(found, exact("affine_grad_parameters", g, x), sizes, strict=True):
        assert_within(actual, expected, unit * size, dtype)


@given(shape=shapes(), seed=seeds, dtype=dtypes, layout=layouts, schedule=schedules)
def test_sums_of_rows(shape, seed, dtype, layout, schedule):
    """Three sums and the result are rounded in the type of g."""
    g = layout(normal(np.random.default_rng(seed), shape, dtype))
    (total,) = emulated("sum_rows", g, schedule=schedule)
    unit = 4 * UNIT[dtype] + (g.size // shape[-1] + 8) * U64
    assert_within(total, exact("sum_rows", g)[0], unit * exact("sum_rows", abs(g))[0], dtype)


@given(shape=shapes(), seed=seeds, dtype=dtypes, layout=layouts, schedule=schedules, far=st.sampled_from([0, 30]))
def test_batch_norm(shape, seed, dtype, layout, schedule, far):
    """The errors of the mean and the variance, and what they and the last roundings make of y.

    With d = x - p for the pilot p, the mean of the first 16 rows, the mean is p + mean d, with at most 5 u mean |d| from
    d, the sum of four and the result, and the variance mean d² - (mean d)²: at most 8 u mean d² from d, d², the sum of
    four and the result, and twice 5 u mean d² from the mean of d.
    """
    rng = np.random.default_rng(seed)
    x = layout(normal(rng, shape, dtype) + np.asarray(far, dtype))
    gamma, beta = normal(rng, shape[-1:], dtype), normal(rng, shape[-1:], dtype)
    epsilon, unit, rows = 0.125, UNIT[dtype], x.size // shape[-1]
    y, mean, variance = emulated("batch_norm_forward", x, gamma, beta, epsilon=epsilon, schedule=schedule)
    y_exact, mean_exact, variance_exact = exact("batch_norm_forward", x, gamma, beta, epsilon=epsilon)
    flat = x.reshape(-1, shape[-1]).astype(np.float64)
    pilot_error = 17 * unit * abs(flat).max(axis=0)
    difference = abs(flat - flat[:16].mean(axis=0)) + pilot_error
    flat = abs(flat)

    of_mean = 5 * unit * difference.mean(axis=0) + unit * abs(mean_exact)
    of_mean += (rows + 8) * U64 * flat.mean(axis=0)  # of the specification's own sum
    assert_within(mean, mean_exact, 1.01 * of_mean, dtype)  # u² is neglected
    of_variance = (20 * unit + 4 * (rows + 8) * U64) * (difference**2).mean(axis=0)
    assert_within(variance, variance_exact, 1.01 * of_variance, dtype)
    # y = s x + t with s = gamma / sqrt(v + epsilon), t = beta - s m: s is off by half of v's relative error, the mean's
    # error is one of t, and s, t, s x and the sum are rounded
    scale = abs(gamma) / np.sqrt(variance_exact + epsilon)
    of_scale = scale * (of_variance / (variance_exact + epsilon) / 2 + unit)
    terms = scale * (flat + abs(mean_exact)) + abs(beta)
    bound = of_scale * (flat + abs(mean_exact)) + scale * of_mean + (4 * unit + 8 * U64) * terms
    assert_within(y.reshape(flat.shape), y_exact.reshape(flat.shape), 1.01 * bound, dtype)


@given(shape=shapes(), seed=seeds, dtype=dtypes, layout=layouts, schedule=schedules)
def test_batch_norm_gradient(shape, seed, dtype, layout, schedule):
    rng = np.random.default_rng(seed)
    g, x = (layout(normal(rng, shape, dtype)) for _ in range(2))
    gamma, mean, variance = (normal(rng, shape[-1:], dtype) for _ in range(3))
    variance, epsilon, unit, rows = abs(variance), 0.125, UNIT[dtype], x.size // shape[-1]
    arrays = (g, x, gamma, mean, variance)
    grad_x, grad_gamma, grad_beta = emulated("batch_norm_grad", *arrays, epsilon=epsilon, schedule=schedule)
    exact_x, exact_gamma, exact_beta = exact("batch_norm_grad", *arrays, epsilon=epsilon)

    g, x = (array.reshape(-1, shape[-1]).astype(np.float64) for array in (g, x))
    rate = 1 / np.sqrt(variance.astype(np.float64) + epsilon)
    of_beta, of_gamma = abs(g).sum(axis=0), rate * (abs(g) * abs(x - mean)).sum(axis=0)
    sums = 7 * unit + (rows + 16) * U64
    assert_within(grad_beta, exact_beta, sums * of_beta, dtype)
    assert_within(grad_gamma, exact_gamma, sums * of_gamma, dtype)
    # grad_x = a g + b x + c: the sums within b and c, three constants, two products and two sums are rounded
    a = abs(gamma) * rate
    b, c = a * rate * of_gamma / rows, a * of_beta / rows
    bound = (sums + 5 * unit) * (a * abs(g) + b * (abs(x) + abs(mean)) + c)
    assert_within(grad_x.reshape(x.shape), exact_x.reshape(x.shape), 1.01 * bound, dtype)


def test_the_variance_of_numbers_far_from_0():
    """Nothing cancels, as it does in E[x²] - E[x]², whose error here would be a million times u."""
    x = (1000 + np.random.default_rng(0).standard_normal((4096, 4))).astype(np.float32)
    ones = np.ones(4, np.float32)
    _, mean, variance = emulated("batch_norm_forward", x, ones, ones, epsilon=0)
    np.testing.assert_allclose(variance, x.astype(np.float64).var(axis=0), rtol=20 * 2.0**-24)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(axis=0), rtol=6 * 2.0**-24)


def test_a_channel_of_one_value_has_no_variance():
    """Not even less than none, however the pilot is rounded."""
    x = np.full((999, 5), 1000.1, np.float32)
    ones = np.ones(5, np.float32)
    y, _, variance = emulated("batch_norm_forward", x, ones, ones, epsilon=1e-3)
    assert (variance >= 0).all()
    assert (variance <= (17 * 2.0**-24 * 1000.1) ** 2).all()
    assert np.isfinite(y).all()


def test_a_nan_or_an_infinity_spoils_its_channel_alone():
    x = np.ones((40, 4), np.float32)
    x[7, 1], x[9, 2] = np.nan, np.inf
    ones = np.ones(4, np.float32)
    found = emulated("batch_norm_forward", x, ones, ones, epsilon=1e-3)
    for actual, expected in zip(found, exact("batch_norm_forward", x, ones, ones, epsilon=1e-3), strict=True):
        np.testing.assert_array_equal(np.isfinite(actual), np.isfinite(expected))
    found = emulated("affine_grad_parameters", x, x)
    for actual, expected in zip(found, exact("affine_grad_parameters", x, x), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_the_order_of_threads_and_blocks_changes_no_bit():
    rng = np.random.default_rng(0)
    x, g = normal(rng, (2, 3000, 36), np.float32)
    ones = np.ones(36, np.float32)
    first, *others = (
        (
            *emulated("affine_grad_parameters", g, x, schedule=schedule),
            *emulated("batch_norm_forward", x, ones, ones, epsilon=0, schedule=schedule),
            *emulated("batch_norm_grad", g, x, ones, ones, ones, epsilon=0, schedule=schedule),
        )
        for schedule in range(3)
    )
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a, b)


# ---- borders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0), (2, 0, 3)])
def test_nothing_in_nothing_out(shape):
    x, row = np.ones(shape, np.float32), np.ones(shape[-1], np.float32)
    assert_same("relu_forward", x)
    assert_same("relu_grad", x, x)
    assert_same("affine_forward", x, row, row)
    assert_same("affine_grad_input", x, row)
    assert_same("affine_grad_parameters", x, x)
    assert_same("sum_rows", x)


X, ROW = np.ones((2, 3), np.float32), np.ones(3, np.float32)


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("relu_forward", (np.ones(3, np.float16),)),
        ("relu_grad", (np.ones(3), np.ones(3, np.float32))),
        ("affine_forward", (X, ROW, np.ones(3))),
        ("affine_grad_input", (X.astype(int), ROW.astype(int))),
        ("affine_grad_parameters", (X, X.astype(np.float64))),
        ("batch_norm_forward", (X, ROW, np.ones(3))),
        ("batch_norm_grad", (X.astype(np.float64), X, ROW, ROW, ROW)),
        ("frozen_batch_norm_affine", (ROW, ROW, ROW, np.ones(3))),
        ("sum_rows", (X.astype(int),)),
    ],
)
def test_one_floating_point_type(name, arrays):
    parameters = {"epsilon": 0.0} if "batch_norm" in name else {}
    with pytest.raises(DTypeError, match=f"{name}: expected arrays that are all float32 or all float64, got"):
        KERNELS[name](*arrays, **parameters)


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("relu_grad", (X, X.T)),
        ("affine_forward", (X, ROW, ROW[:2])),
        ("affine_grad_input", (X, X)),
        ("affine_grad_input", (np.ones((), np.float32), ROW)),
        ("affine_grad_parameters", (X, X[:1])),
        ("batch_norm_forward", (X, ROW[:1], ROW)),
        ("batch_norm_forward", (X[:0], ROW, ROW)),
        ("batch_norm_grad", (X[:1], X, ROW, ROW, ROW)),
        ("batch_norm_grad", (X[:0], X[:0], ROW, ROW, ROW)),
        ("frozen_batch_norm_affine", (ROW, ROW, ROW[:1], ROW)),
        ("sum_rows", (np.ones((), np.float32),)),
    ],
)
def test_shapes_that_do_not_fit(name, arrays):
    parameters = {"epsilon": 0.0} if "batch_norm" in name else {}
    with pytest.raises(ShapeError, match=name):
        KERNELS[name](*arrays, **parameters)
