"""cross_entropy: literal cases, gradients, PyTorch, extremes, empties, errors."""

from inspect import unwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet.autograd import Tensor
from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.ops import cross_entropy
from refnet.testing import check_gradients
from refnet.testing.strategies.geometry import seeds

reductions = st.sampled_from(["mean", "sum", "none"])
rows, kinds = st.integers(0, 6), st.integers(1, 5)


def drawn(r: int, k: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((r, k)) * 3, rng.integers(0, k, r), rng


def test_equal_logits_cost_the_logarithm_of_their_number():
    loss = cross_entropy(Tensor(np.zeros((2, 4))), np.array([0, 3]))
    assert loss.shape == ()
    np.testing.assert_allclose(loss.data, np.log(4), rtol=2**-52)


def test_the_gradient_is_softmax_minus_one_hot():
    logits = Tensor(np.log([[1.0, 2, 5], [1, 1, 2]]), requires_grad=True)
    cross_entropy(logits, np.array([1, 2]), reduction="sum").backward()
    np.testing.assert_allclose(logits.grad, [[1 / 8, 2 / 8 - 1, 5 / 8], [1 / 4, 1 / 4, 2 / 4 - 1]], atol=1e-15)


def test_reductions():
    logits, classes = Tensor(np.zeros((3, 2))), np.array([0, 1, 0])
    each = cross_entropy(logits, classes, reduction="none").data
    np.testing.assert_array_equal(each, np.full(3, np.log(2)))
    assert cross_entropy(logits, classes, reduction="sum").item() == each.sum()
    assert cross_entropy(logits, classes, reduction="mean").item() == each.sum() / 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_logits_neither_overflow_nor_vanish(dtype):
    logits = Tensor(np.array([[1e4, -1e4], [-1e4, 1e4]], dtype), requires_grad=True)
    loss = cross_entropy(logits, np.array([0, 0]), reduction="none")
    assert loss.dtype == dtype
    np.testing.assert_array_equal(loss.data, [0, 2e4])
    loss.backward(np.ones(2, dtype))
    assert logits.grad.dtype == dtype
    np.testing.assert_array_equal(logits.grad, [[0, 0], [-1, 1]])


def test_nothing_costs_nothing():
    logits = Tensor(np.zeros((0, 3), np.float32), requires_grad=True)
    for reduction in ("mean", "sum"):
        loss = cross_entropy(logits, np.zeros(0, int), reduction=reduction)
        assert loss.item() == 0
        assert loss.dtype == np.float32
        loss.backward()
    assert logits.grad.shape == (0, 3)


@given(rows, kinds, seeds, st.integers(-40, 40))
def test_adding_a_number_to_a_row_changes_nothing(r, k, seed, shift):
    """On whole numbers the shift is exact."""
    rng = np.random.default_rng(seed)
    logits, classes = rng.integers(-9, 10, (r, k)).astype(np.float64), rng.integers(0, k, r)
    both = [cross_entropy(Tensor(z), classes, reduction="none").data for z in (logits, logits + shift)]
    np.testing.assert_array_equal(*both)


@given(rows, kinds, reductions, seeds)
def test_gradients(r, k, reduction, seed):
    logits, classes, rng = drawn(r, k, seed)
    check_gradients(lambda z: cross_entropy(z, classes, reduction=reduction), logits, rng=rng)


@given(r=st.integers(1, 6), k=kinds, reduction=reductions, seed=seeds)
def test_equals_torch(torch, r, k, reduction, seed):
    logits, classes, rng = drawn(r, k, seed)
    ours = Tensor(logits, requires_grad=True)
    loss = cross_entropy(ours, classes, reduction=reduction)
    theirs = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(theirs, torch.tensor(classes), reduction=reduction)
    np.testing.assert_allclose(loss.data, expected.detach().numpy(), rtol=0, atol=1e-10)
    u = np.asarray(rng.standard_normal(loss.shape))
    loss.backward(u)
    expected.backward(torch.tensor(u))
    np.testing.assert_allclose(ours.grad, theirs.grad.numpy(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("logits", "classes", "error", "message"),
    [
        (np.zeros(3), np.zeros(3, int), ShapeError, r"logits must be \(R, K\) with at least one class, got \(3,\)"),
        (np.zeros((3, 0)), np.zeros(3, int), ShapeError, "at least one class"),
        (np.zeros((3, 2)), np.zeros(2, int), ShapeError, r"one entry per row, expected \(3,\), got \(2,\)"),
        (np.zeros((3, 2)), np.zeros(3), DTypeError, "integer classes, got float64 and float64"),
        (np.zeros((3, 2)), np.array([0, 2, 1]), ArgumentError, "classes must be from 0 to 1, got values from 0 to 2"),
        (np.zeros((3, 2)), np.array([0, -1, 1]), ArgumentError, "got values from -1 to 1"),
    ],
)
def test_errors_say_what_was_expected(logits, classes, error, message):
    with pytest.raises(error, match=message):
        cross_entropy(Tensor(logits), classes)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ArgumentError, match='reduction must be "mean", "sum" or "none", got \'max\''):
        unwrap(cross_entropy)(Tensor(np.zeros((1, 2))), np.zeros(1, int), reduction="max")
