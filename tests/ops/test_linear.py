"""Matrix products and the fully connected layer: literal cases, properties, gradients, PyTorch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from refnet.autograd import Tensor
from refnet.errors import ShapeError
from refnet.ops import linear, matmul
from refnet.testing import check_gradients
from refnet.testing.strategies.geometry import seeds

extents = st.integers(1, 4)
leading = array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)


# literal cases


def test_values():
    x, weight = Tensor(np.array([[1.0, 2]])), Tensor(np.array([[1.0, 0, 3], [10, 20, 30]]))
    np.testing.assert_array_equal(matmul(x, weight).data, [[21, 40, 63]])
    np.testing.assert_array_equal(linear(x, weight, Tensor(np.array([0.5, 0, -3]))).data, [[21.5, 40, 60]])
    np.testing.assert_array_equal(linear(Tensor(np.array([1.0, 2])), weight).data, [21, 40, 63])


def test_a_bias_does_not_reach_into_the_input():
    x, weight = Tensor(np.ones((2, 2))), Tensor(np.eye(2))
    linear(x, weight, Tensor(np.ones(2)))
    np.testing.assert_array_equal(x.data, np.ones((2, 2)))


# properties


@given(leading, extents, extents, seeds)
def test_linear_is_matmul_and_addition(shape, inputs, outputs, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(-3, 4, (*shape, 1, inputs)).astype(np.float64)
    weight, bias = rng.integers(-3, 4, (inputs, outputs)).astype(np.float64), rng.integers(-3, 4, outputs).astype(float)
    expected = matmul(Tensor(x), Tensor(weight)) + Tensor(bias)
    np.testing.assert_array_equal(linear(Tensor(x), Tensor(weight), Tensor(bias)).data, expected.data)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_type_of_the_input_is_kept(dtype):
    x, weight, bias = (Tensor(np.ones(shape, dtype), requires_grad=True) for shape in ((2, 3), (3, 4), (4,)))
    y = linear(x, weight, bias)
    y.backward(np.ones(y.shape, dtype))
    assert y.dtype == dtype
    assert {t.grad.dtype for t in (x, weight, bias)} == {np.dtype(dtype)}


# gradients


@given(leading, extents, extents, seeds)
def test_gradients_of_linear(shape, inputs, outputs, seed):
    rng = np.random.default_rng(seed)
    x, weight = rng.standard_normal((*shape, inputs)), rng.standard_normal((inputs, outputs))
    check_gradients(linear, x, weight, rng=rng)
    check_gradients(linear, x, weight, rng.standard_normal(outputs), rng=rng)


@given(leading, st.integers(0, 3), extents, extents, extents, seeds)
def test_gradients_of_matmul(shape, dropped, m, k, n, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((*shape, m, k)), rng.standard_normal((*shape[dropped:], k, n))
    check_gradients(matmul, a, b, rng=rng)
    check_gradients(matmul, b.swapaxes(-1, -2), a.swapaxes(-1, -2), rng=rng)


# other libraries


@given(shape=leading, inputs=extents, outputs=extents, seed=seeds)
def test_linear_equals_torch(torch, shape, inputs, outputs, seed):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(s) for s in ((*shape, inputs), (inputs, outputs), (outputs,))]
    x, weight, bias = (Tensor(a, requires_grad=True) for a in arrays)
    tx, tw, tb = (torch.tensor(a, requires_grad=True) for a in arrays)
    y, ty = linear(x, weight, bias), torch.nn.functional.linear(tx, tw.T, tb)
    u = rng.standard_normal(y.shape)
    y.backward(u)
    ty.backward(torch.tensor(u))
    np.testing.assert_allclose(y.data, ty.detach().numpy(), rtol=0, atol=1e-10)
    for ours, theirs in ((x, tx), (weight, tw), (bias, tb)):
        np.testing.assert_allclose(ours.grad, theirs.grad.numpy(), rtol=0, atol=1e-10)


# errors


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3), (4, 5)), r"expected x \(..., I\) and weight \(I, O\), got \(2, 3\) and \(4, 5\)"),
        (((2, 3), (3,)), "expected x"),
        (((2, 3), (3, 4), (3,)), r"bias must have shape \(4,\), got \(3,\)"),
    ],
)
def test_errors_say_what_was_expected(shapes, message):
    with pytest.raises(ShapeError, match=message):
        linear(*(Tensor(np.ones(shape)) for shape in shapes))


def test_matmul_refuses_vectors():
    with pytest.raises(ShapeError, match=r"expected \(..., m, k\) and \(..., k, n\)"):
        matmul(Tensor(np.ones(3)), Tensor(np.ones((3, 2))))
