"""binary_cross_entropy_with_logits: literal cases, gradients, PyTorch, extremes, empties, errors."""

from inspect import unwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet.autograd import Tensor
from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.ops import binary_cross_entropy_with_logits as bce
from refnet.testing import check_gradients
from refnet.testing.strategies.geometry import seeds

reductions = st.sampled_from(["mean", "sum", "none"])
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def drawn(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Logits, and targets of which some are hard, some soft."""
    rng = np.random.default_rng(seed)
    logits, soft = np.asarray(rng.standard_normal(shape) * 3), rng.uniform(size=shape)
    return logits, np.asarray(np.where(rng.uniform(size=shape) < 0.5, np.round(soft), soft)), rng


def test_literal_values():
    loss = bce(Tensor(np.array([0.0, 0.0, np.log(3)])), np.array([0.0, 1.0, 1.0]), reduction="none")
    np.testing.assert_allclose(loss.data, [np.log(2), np.log(2), np.log(4 / 3)], rtol=2**-51)


def test_the_gradient_is_sigmoid_minus_target():
    logits = Tensor(np.log([1.0, 3.0, 1 / 3]), requires_grad=True)
    bce(logits, np.array([0.0, 1.0, 0.5]), reduction="sum").backward()
    np.testing.assert_allclose(logits.grad, [1 / 2, 3 / 4 - 1, 1 / 4 - 1 / 2], atol=1e-15)


def test_reductions():
    logits, targets = Tensor(np.zeros((2, 3))), np.zeros((2, 3))
    each = bce(logits, targets, reduction="none").data
    np.testing.assert_array_equal(each, np.full((2, 3), np.log(2)))
    assert bce(logits, targets, reduction="sum").item() == each.sum()
    assert bce(logits, targets, reduction="mean").item() == each.sum() / 6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_confident_logits_neither_overflow_nor_lose_their_loss(dtype):
    logits = Tensor(np.array([1e4, -1e4, 1e4, -1e4, -50], dtype), requires_grad=True)
    loss = bce(logits, np.array([1, 0, 0, 1, 0], dtype), reduction="none")
    assert loss.dtype == dtype
    np.testing.assert_array_equal(loss.data, np.array([0, 0, 1e4, 1e4, np.exp(dtype(-50))], dtype))
    loss.backward(np.ones(5, dtype))
    assert logits.grad.dtype == dtype
    np.testing.assert_array_equal(logits.grad, np.array([0, 0, 1, -1, np.exp(dtype(-50))], dtype))


def test_nothing_costs_nothing():
    logits = Tensor(np.zeros((0, 4), np.float32), requires_grad=True)
    for reduction in ("mean", "sum"):
        loss = bce(logits, np.zeros((0, 4), np.float32), reduction=reduction)
        assert loss.item() == 0
        assert loss.dtype == np.float32
        loss.backward()
    assert logits.grad.shape == (0, 4)


@given(shapes, seeds)
def test_negating_the_logit_swaps_the_classes(shape, seed):
    logits, targets, _ = drawn(shape, seed)
    one = bce(Tensor(logits), targets, reduction="none").data
    other = bce(Tensor(np.negative(logits)), np.asarray(1 - targets), reduction="none").data
    np.testing.assert_allclose(one, other, rtol=0, atol=4 * 2.0**-53 * np.max(1 + abs(logits), initial=1))


@given(shapes, reductions, seeds)
def test_gradients(shape, reduction, seed):
    logits, targets, rng = drawn(shape, seed)
    check_gradients(lambda z: bce(z, targets, reduction=reduction), logits, rng=rng)


@given(shape=shapes.filter(lambda s: 0 not in s), reduction=reductions, seed=seeds)
def test_equals_torch(torch, shape, reduction, seed):
    logits, targets, rng = drawn(shape, seed)
    ours = Tensor(logits, requires_grad=True)
    loss = bce(ours, targets, reduction=reduction)
    theirs = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(theirs, torch.tensor(targets), reduction=reduction)
    np.testing.assert_allclose(loss.data, expected.detach().numpy(), rtol=0, atol=1e-10)
    u = np.asarray(rng.standard_normal(loss.shape))
    loss.backward(u)
    expected.backward(torch.tensor(u))
    np.testing.assert_allclose(ours.grad, theirs.grad.numpy(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("logits", "targets", "error", "message"),
    [
        (np.zeros((3, 2)), np.zeros(3), ShapeError, r"expected \(3, 2\), got \(3,\)"),
        (np.zeros(3), np.zeros(3, np.float32), DTypeError, "one floating-point type, got float64 and float32"),
        (np.zeros(3, int), np.zeros(3, int), DTypeError, "one floating-point type, got int64 and int64"),
        (np.zeros(2), np.array([0.0, 1.5]), ArgumentError, "targets must be from 0 to 1, got values from 0.0 to 1.5"),
        (np.zeros(2), np.array([0.0, -1.0]), ArgumentError, "got values from -1.0 to 0.0"),
        (np.zeros(2), np.array([0.0, np.nan]), ArgumentError, "got values from nan to nan"),
    ],
)
def test_errors_say_what_was_expected(logits, targets, error, message):
    with pytest.raises(error, match=message):
        bce(Tensor(logits), targets)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ArgumentError, match='reduction must be "mean", "sum" or "none", got \'max\''):
        unwrap(bce)(Tensor(np.zeros(1)), np.zeros(1), reduction="max")
