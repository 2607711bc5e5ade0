"""Losses with their derivatives, and softmax, in the emulator, against their specifications.

u is the unit roundoff of the type, and 2^-53 that of the reference. exp, log and log1p are within 2 units in the last
place, 4 u (CUDA C++ Programming Guide, mathematical functions).
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from refnet import ops
from refnet.autograd import Tensor
from refnet.errors import DTypeError, ShapeError
from refnet.kernels.cuda import KERNELS
from refnet.kernels.cuda.losses import PER_THREAD, THREADS
from refnet.kernels.emulator import available, standin
from refnet.testing.strategies.geometry import seeds
from tests.kernels.cuda.comparison import UNIT, assert_same, assert_within, dtypes, emulated, exact, layouts, schedules

pytestmark = pytest.mark.skipif(not available(), reason="the emulator needs g++")


def unit(dtype: type) -> float:
    """The roundings of the kernel and of the reference."""
    return UNIT[dtype] + 2.0**-53


def drawn(shape: tuple[int, ...], dtype: type, seed: int) -> np.ndarray:
    """Numbers of many magnitudes."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.standard_normal(shape) * 4.0 ** rng.integers(-3, 4, shape), dtype)


# ---- element by element ----


@given(array_shapes(min_dims=0, min_side=0, max_side=6), st.sampled_from([0.0, 1 / 9, 1.0]), seeds, dtypes, layouts)
@settings(max_examples=25)
def test_smooth_l1_equals_the_specification(shape, beta, seed, dtype, layout) -> None:
    prediction, target = drawn(shape, dtype, seed), drawn(shape, dtype, seed + 1)
    target[prediction > 1] = prediction[prediction > 1]  # differences of 0
    assert_same("smooth_l1_forward", layout(prediction), layout(target), schedule=seed % 4, beta=beta)


def test_smooth_l1_at_the_ends_of_its_round_part_and_beyond_all_numbers() -> None:
    tiny = np.finfo(np.float32).smallest_subnormal
    one = np.nextafter(np.float32(1), np.float32([0, 2]))
    difference = np.array([0, -0.0, tiny, -1, 1, *one, *-one, 1e38, np.inf, -np.inf, np.nan], np.float32)
    for beta in (0.0, float(tiny), 1.0, 1e38):
        assert_same("smooth_l1_forward", difference, np.zeros_like(difference), beta=beta)


def assert_binary_cross_entropy(logits: np.ndarray, targets: np.ndarray, dtype: type, schedule: int) -> None:
    """Derived from the specification's own steps, each of which rounds once, exp and log1p up to 4 u.

    Behind exp(-|z|) (1 + 4 u), log1p moves by 4 u of it; a sigmoid's numerator and denominator by 4 u each, and by the
    roundings of the sum and the quotient.
    """
    losses, derivative = emulated("binary_cross_entropy_forward", logits, targets, schedule=schedule)
    expected, slope = exact("binary_cross_entropy_forward", logits, targets)
    z, t = logits.astype(np.float64), targets.astype(np.float64)
    small, product = np.exp(-abs(z)), abs(z * t)
    linear = np.maximum(z, 0) - z * t
    tiny = float(np.finfo(dtype).smallest_subnormal)
    bound = unit(dtype) * (product + abs(linear) + 4 * small + 4 * np.log1p(small) + abs(expected)) + tiny
    assert_within(losses, expected, bound, dtype)
    assert_within(derivative, slope, unit(dtype) * (10 * (slope + t) + abs(slope)) + tiny, dtype)


@given(array_shapes(min_dims=0, min_side=0, max_side=6), seeds, dtypes, layouts, schedules)
@settings(max_examples=25)
def test_binary_cross_entropy_within_its_rounding(shape, seed, dtype, layout, schedule) -> None:
    rng = np.random.default_rng(seed)
    targets = np.asarray(rng.choice([0, 1, rng.random()], shape), dtype)
    assert_binary_cross_entropy(layout(drawn(shape, dtype, seed)), layout(targets), dtype, schedule)


def test_binary_cross_entropy_of_several_blocks() -> None:
    count = 2 * THREADS * PER_THREAD + 5
    logits = drawn((count,), np.float32, 0)
    assert_binary_cross_entropy(logits, (logits > 0.5).astype(np.float32), np.float32, 1)


def test_large_logits_neither_overflow_nor_vanish() -> None:
    logits, targets = np.array([1e4, -1e4, 1e4, -1e4], np.float32), np.array([1, 0, 0, 1], np.float32)
    losses, derivative = emulated("binary_cross_entropy_forward", logits, targets)
    np.testing.assert_array_equal(losses, [0, 0, 1e4, 1e4])
    np.testing.assert_array_equal(derivative, [0, 0, 1, -1])


# ---- row by row ----


def assert_cross_entropy(logits: np.ndarray, classes: np.ndarray, dtype: type, schedule: int) -> None:
    """With s = z - max z, exp(s) is known up to (4 + |s|) u of it, and so their sum over K up to (K + 4) u of it and
    each term's |s| u, weighed by its probability p."""
    losses, derivative = emulated("cross_entropy_forward", logits, classes, schedule=schedule)
    expected, slope = exact("cross_entropy_forward", logits, classes)
    rows = np.arange(len(logits))
    s = logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-np.inf)
    p = slope.copy()
    p[rows, classes] += 1
    total = (logits.shape[1] + 4 + (p * abs(s)).sum(axis=1)) * unit(dtype)
    tiny = float(np.finfo(dtype).tiny)
    steps = 4 * np.log(np.exp(s).sum(axis=1)) + abs(s[rows, classes]) + abs(expected)
    assert_within(losses, expected, total + unit(dtype) * steps, dtype)
    of_p = p * (total[:, None] + unit(dtype) * (5 + abs(s)))
    assert_within(derivative, slope, of_p + unit(dtype) * abs(slope) + tiny, dtype)


@given(st.integers(0, 9), st.sampled_from([1, 2, 5, 31, 32, 33, 91]), seeds, dtypes, layouts, schedules)
@settings(max_examples=25)
def test_cross_entropy_within_its_rounding(rows, length, seed, dtype, layout, schedule) -> None:
    classes = np.random.default_rng(seed).integers(0, length, rows)
    assert_cross_entropy(layout(drawn((rows, length), dtype, seed)), layout(classes), dtype, schedule)


def test_cross_entropy_over_the_places_of_keypoints() -> None:
    classes = np.array([0, 3135, 77], np.int32)
    assert_cross_entropy(drawn((3, 56 * 56), np.float32, 3), classes, np.float32, 2)


def test_a_class_that_there_is_not_and_a_logit_that_is_no_number_show_in_the_loss() -> None:
    logits = np.zeros((5, 3), np.float32)
    logits[4, 1] = np.nan
    losses, derivative = emulated("cross_entropy_forward", logits, np.array([0, -1, 3, 2**32, 0]))
    np.testing.assert_array_equal(np.isnan(losses), [False, True, True, True, True])
    assert np.isnan(derivative[4]).all()


@given(array_shapes(max_dims=3, max_side=5), st.integers(-3, 2), seeds, dtypes, layouts)
@settings(max_examples=25)
def test_softmax_within_its_rounding(shape, axis, seed, dtype, layout) -> None:
    axis = axis % len(shape) - (axis < 0) * len(shape)
    x = drawn(shape, dtype, seed)
    (y,), (expected,) = emulated("softmax_forward", layout(x), axis=axis), exact("softmax_forward", x, axis=axis)
    s = abs(x.astype(np.float64) - x.max(axis=axis, keepdims=True))
    total = shape[axis] + 4 + (expected * s).sum(axis=axis, keepdims=True)
    tiny = float(np.finfo(dtype).tiny)
    assert_within(y, expected, unit(dtype) * expected * (5 + s + total) + tiny, dtype)


# ---- on a device ----


def test_a_loss_is_one_launch_and_the_host_does_not_wait() -> None:
    """Beside the reduction and the adjoint, which are CuPy's; classes that lie on the host are copied."""
    logits = Tensor(standin.asarray(drawn((6, 4), np.float32, 0)), requires_grad=True)
    ours = ops.cross_entropy_forward.using(KERNELS["cross_entropy_forward"], device="cuda")
    with standin.counting() as counts, ours:
        ops.cross_entropy(logits, np.array([0, 1, 2, 3, 2, 1])).backward()
    assert (counts.synchronizations, counts.uploads) == (0, 1)
    assert counts.launches == {"refnet::cross_entropy<float>": 1}


# ---- errors ----


@pytest.mark.parametrize(
    ("name", "arrays", "parameters", "error", "message"),
    [
        ("smooth_l1_forward", (np.ones(3), np.ones(4)), {"beta": 1.0}, ShapeError, r"target must have shape \(3,\)"),
        ("smooth_l1_forward", (np.ones(3), np.ones(3, np.float32)), {"beta": 1.0}, DTypeError, "all float32 or all"),
        ("binary_cross_entropy_forward", (np.ones(3), np.ones(1)), {}, ShapeError, r"targets must have shape \(3,\)"),
        ("cross_entropy_forward", (np.ones(3), np.ones(3, int)), {}, ShapeError, r"logits must be \(R, K\)"),
        ("cross_entropy_forward", (np.ones((3, 0)), np.ones(3, int)), {}, ShapeError, "a row must hold a number"),
        ("cross_entropy_forward", (np.ones((3, 2)), np.ones(3)), {}, DTypeError, "classes must hold integers"),
        ("softmax_forward", (np.ones((3, 2), np.float16),), {"axis": 0}, DTypeError, "all float32 or all float64"),
    ],
)
def test_what_the_kernels_cannot_take_is_refused(name, arrays, parameters, error, message) -> None:
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        KERNELS[name](*arrays, **parameters)
