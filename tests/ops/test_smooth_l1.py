"""smooth_l1: literal cases, gradients, PyTorch, any width, empties, errors."""

from inspect import unwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet.autograd import Tensor
from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.ops import smooth_l1
from refnet.testing import check_gradients
from refnet.testing.strategies.geometry import seeds

reductions = st.sampled_from(["mean", "sum", "none"])
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
betas = st.sampled_from([0.0, 1 / 9, 0.5, 1.0, 3.0])


def drawn(shape: tuple[int, ...], beta: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Prediction and target, whose difference stays 1e-3 away from 0, where L1 has its kink."""
    rng = np.random.default_rng(seed)
    difference = rng.standard_normal(shape) * 2
    target = np.asarray(rng.standard_normal(shape))
    return target + np.where(abs(difference) < 1e-3, 0.5, difference), target, rng


@pytest.mark.parametrize(
    ("beta", "losses", "slopes"),
    [
        (1.0, [2.5, 0.5, 0.125, 0, 0.125, 1.0], [-1, -1, -0.5, 0, 0.5, 1]),
        (2.0, [2.0, 0.25, 0.0625, 0, 0.0625, 0.5625], [-1, -0.5, -0.25, 0, 0.25, 0.75]),
        (0.0, [3.0, 1.0, 0.5, 0, 0.5, 1.5], [-1, -1, -1, 0, 1, 1]),
    ],
)
def test_literal_values(beta, losses, slopes):
    prediction = Tensor(np.array([-2.0, 0, 0.5, 1, 1.5, 2.5]), requires_grad=True)
    loss = smooth_l1(prediction, np.ones(6), beta=beta, reduction="none")
    np.testing.assert_array_equal(loss.data, losses)
    loss.backward(np.ones(6))
    np.testing.assert_array_equal(prediction.grad, slopes)


def test_reductions():
    prediction, target = Tensor(np.full((2, 3), 3.0)), np.zeros((2, 3))
    assert smooth_l1(prediction, target, beta=1.0, reduction="sum").item() == 15
    assert smooth_l1(prediction, target, beta=1.0, reduction="mean").item() == 2.5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("beta", [1e-300, 1e-40, 1e-3])
def test_a_narrow_round_part_neither_overflows_nor_divides_by_zero(dtype, beta):
    prediction = Tensor(np.array([-2, 0, 2], dtype), requires_grad=True)
    loss = smooth_l1(prediction, np.zeros(3, dtype), beta=beta, reduction="none")
    assert loss.dtype == dtype
    np.testing.assert_allclose(loss.data, [2, 0, 2], rtol=1e-3)
    loss.backward(np.ones(3, dtype))
    assert prediction.grad.dtype == dtype
    np.testing.assert_array_equal(prediction.grad, [-1, 0, 1])


def test_nothing_costs_nothing():
    prediction = Tensor(np.zeros((0, 4), np.float32), requires_grad=True)
    for reduction in ("mean", "sum"):
        loss = smooth_l1(prediction, np.zeros((0, 4), np.float32), beta=1.0, reduction=reduction)
        assert loss.item() == 0
        assert loss.dtype == np.float32
        loss.backward()
    assert prediction.grad.shape == (0, 4)


@given(shapes, betas, reductions, seeds)
def test_gradients(shape, beta, reduction, seed):
    """The second derivative jumps at beta, by which central differences of this step err less than 1e-3 of a slope."""
    prediction, target, rng = drawn(shape, beta, seed)
    distance = abs(prediction - target)
    prediction = np.where(abs(distance - beta) < 1e-3, target + beta + 0.25, prediction)
    check_gradients(lambda x: smooth_l1(x, target, beta=beta, reduction=reduction), prediction, rng=rng)


@given(shape=shapes.filter(lambda s: 0 not in s), beta=betas, reduction=reductions, seed=seeds)
def test_equals_torch(torch, shape, beta, reduction, seed):
    prediction, target, rng = drawn(shape, beta, seed)
    ours = Tensor(prediction, requires_grad=True)
    loss = smooth_l1(ours, target, beta=beta, reduction=reduction)
    theirs = torch.tensor(prediction, requires_grad=True)
    expected = torch.nn.functional.smooth_l1_loss(theirs, torch.tensor(target), beta=beta, reduction=reduction)
    np.testing.assert_allclose(loss.data, expected.detach().numpy(), rtol=0, atol=1e-10)
    u = np.asarray(rng.standard_normal(loss.shape))
    loss.backward(u)
    expected.backward(torch.tensor(u))
    np.testing.assert_allclose(ours.grad, theirs.grad.numpy(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("prediction", "target", "beta", "error", "message"),
    [
        (np.zeros((3, 4)), np.zeros(4), 1.0, ShapeError, r"expected \(3, 4\), got \(4,\)"),
        (np.zeros(3), np.zeros(3, np.float32), 1.0, DTypeError, "one floating-point type, got float64 and float32"),
        (np.zeros(3, int), np.zeros(3, int), 1.0, DTypeError, "got int64 and int64"),
        (np.zeros(3), np.zeros(3), -0.5, ArgumentError, "beta must be at least 0 and finite, got -0.5"),
        (np.zeros(3), np.zeros(3), float("inf"), ArgumentError, "beta must be at least 0 and finite, got inf"),
    ],
)
def test_errors_say_what_was_expected(prediction, target, beta, error, message):
    with pytest.raises(error, match=message):
        smooth_l1(Tensor(prediction), target, beta=beta)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ArgumentError, match='reduction must be "mean", "sum" or "none", got \'max\''):
        unwrap(smooth_l1)(Tensor(np.zeros(1)), np.zeros(1), beta=1.0, reduction="max")
