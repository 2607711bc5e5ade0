"""Activations: literal cases, properties, gradients, PyTorch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from refnet.autograd import Tensor
from refnet.ops import leaky_relu, log_softmax, relu, sigmoid, softmax
from refnet.testing import check_gradients
from refnet.testing.strategies.geometry import off_zero, seeds

shapes = array_shapes(min_dims=1, max_dims=4, max_side=4)
EXTREME = np.array([-1e30, -1000.0, -100, 0, 100, 1000, 1e30])


# literal cases


def test_relu():
    x = Tensor(np.array([-2.0, -0.0, 0.0, 3.0]), requires_grad=True)
    y = relu(x)
    np.testing.assert_array_equal(y.data, [0, 0, 0, 3])
    y.backward(np.array([1.0, 2, 3, 4]))
    np.testing.assert_array_equal(x.grad, [0, 0, 0, 4])


def test_leaky_relu():
    x = Tensor(np.array([-2.0, 0.0, 3.0]), requires_grad=True)
    y = leaky_relu(x, 0.25)
    np.testing.assert_array_equal(y.data, [-0.5, 0, 3])
    y.backward(np.array([1.0, 2, 4]))
    np.testing.assert_array_equal(x.grad, [0.25, 0.5, 4])


def test_relu_lets_a_nan_be_seen():
    np.testing.assert_array_equal(relu(Tensor(np.array([np.nan, 1.0]))).data, [np.nan, 1])


def test_sigmoid():
    np.testing.assert_allclose(
        sigmoid(Tensor(np.array([0, np.log(3), -np.log(3)]))).data, [0.5, 0.75, 0.25], rtol=1e-15
    )


def test_softmax():
    x = Tensor(np.log(np.array([[1.0, 3], [2, 2]])))
    np.testing.assert_allclose(softmax(x).data, [[0.25, 0.75], [0.5, 0.5]], rtol=1e-15)
    np.testing.assert_allclose(softmax(x, axis=0).data, [[1 / 3, 0.6], [2 / 3, 0.4]], rtol=1e-15)


# properties


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_overflows(dtype):
    x = EXTREME.astype(dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert np.isfinite(sigmoid(Tensor(x)).data).all()
        assert np.isfinite(softmax(Tensor(x)).data).all()
        assert np.isfinite(log_softmax(Tensor(x)).data).all()
    assert sigmoid(Tensor(x)).data[3] == 0.5
    assert log_softmax(Tensor(x)).data[-2] == dtype(1000) - dtype(1e30)


@given(shapes, seeds, st.floats(-50, 50))
def test_softmax_is_a_distribution_that_a_shift_does_not_move(shape, seed, shift):
    x = np.random.default_rng(seed).standard_normal(shape)
    y = softmax(Tensor(x)).data
    np.testing.assert_allclose(y.sum(axis=-1), 1, rtol=1e-14)
    np.testing.assert_allclose(softmax(Tensor(x + shift)).data, y, rtol=1e-13)
    np.testing.assert_allclose(np.exp(log_softmax(Tensor(x)).data), y, rtol=1e-14)


@given(shapes, seeds)
def test_sigmoid_is_odd_about_one_half(shape, seed):
    x = Tensor(np.random.default_rng(seed).standard_normal(shape))
    np.testing.assert_allclose(sigmoid(x).data + sigmoid(-x).data, 1, rtol=4e-16)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("function", [relu, lambda x: leaky_relu(x, 0.1), sigmoid, softmax, log_softmax])
def test_the_type_of_the_input_is_kept(function, dtype):
    x = Tensor(np.array([-1.0, 2, 3], dtype), requires_grad=True)
    y = function(x)
    y.backward(np.ones(3, dtype))
    assert y.dtype == dtype
    assert x.grad.dtype == dtype


# gradients


@given(shapes, seeds)
def test_gradients(shape, seed):
    rng = np.random.default_rng(seed)
    for function in (relu, lambda x: leaky_relu(x, 0.125)):
        check_gradients(function, off_zero(shape, rng), rng=rng)
    check_gradients(sigmoid, rng.standard_normal(shape), rng=rng)
    for axis in range(-1, len(shape)):
        check_gradients(lambda x, axis=axis: softmax(x, axis), rng.standard_normal(shape), rng=rng)
        check_gradients(lambda x, axis=axis: log_softmax(x, axis), rng.standard_normal(shape), rng=rng)


# other libraries


@given(shape=shapes, seed=seeds)
def test_equal_torch(torch, shape, seed):
    rng = np.random.default_rng(seed)
    functional = torch.nn.functional
    for ours, theirs in (
        (relu, torch.relu),
        (lambda x: leaky_relu(x, 0.25), lambda x: functional.leaky_relu(x, 0.25)),
        (sigmoid, torch.sigmoid),
        (softmax, lambda x: torch.softmax(x, -1)),
        (log_softmax, lambda x: torch.log_softmax(x, -1)),
    ):
        values, u = rng.integers(-2, 3, shape).astype(np.float64), rng.standard_normal(shape)  # zeros among them
        x, tx = Tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
        y, ty = ours(x), theirs(tx)
        y.backward(u)
        ty.backward(torch.tensor(u))
        np.testing.assert_allclose(y.data, ty.detach().numpy(), rtol=0, atol=1e-10)
        if ours is not relu:  # at 0 PyTorch agrees: the gradient is 0
            np.testing.assert_allclose(x.grad, tx.grad.numpy(), rtol=0, atol=1e-10)
        else:
            np.testing.assert_array_equal(x.grad, tx.grad.numpy())
