"""Sum, mean and maximum: literal cases, properties, gradients, PyTorch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from refnet import ops
from refnet.autograd import Tensor
from refnet.errors import ArgumentError, ShapeError
from refnet.testing import check_gradients
from refnet.testing.strategies.geometry import distinct, seeds

shapes = array_shapes(min_dims=0, max_dims=4, max_side=4)
REDUCTIONS = [(ops.sum, np.sum), (ops.mean, np.mean), (ops.max, np.max)]


@st.composite
def reductions(draw: st.DrawFn) -> tuple[tuple[int, ...], int | tuple[int, ...] | None, bool]:
    """A shape, axes of it and keepdims."""
    shape = draw(shapes)
    axes = st.integers(-len(shape), len(shape) - 1)
    several = st.permutations(range(len(shape))).flatmap(
        lambda order: st.integers(0, len(order)).map(lambda n: tuple(order[:n]))
    )
    return shape, draw(st.none() | several | axes) if shape else None, draw(st.booleans())


# literal cases


def test_values():
    x = Tensor(np.array([[1.0, 5], [3, -1]]))
    assert ops.sum(x).item() == 8
    assert ops.mean(x).item() == 2
    assert ops.max(x).item() == 5
    np.testing.assert_array_equal(ops.sum(x, axis=0).data, [4, 4])
    np.testing.assert_array_equal(ops.mean(x, axis=-1, keepdims=True).data, [[3], [1]])
    np.testing.assert_array_equal(ops.max(x, axis=0).data, [3, 5])


def test_the_first_maximum_receives_the_gradient():
    x = Tensor(np.array([[2.0, 7], [7, 7]]), requires_grad=True)
    ops.max(x).backward()
    np.testing.assert_array_equal(x.grad, [[0, 1], [0, 0]])
    x.grad = None
    ops.max(x, axis=0).backward(np.array([1.0, 10]))
    np.testing.assert_array_equal(x.grad, [[0, 10], [1, 0]])


def test_a_sum_over_nothing_is_0():
    x = Tensor(np.ones((0, 3)), requires_grad=True)
    y = ops.sum(x, axis=0)
    np.testing.assert_array_equal(y.data, [0, 0, 0])
    y.backward(np.ones(3))
    assert x.grad.shape == (0, 3)


# properties


@given(reductions(), seeds)
def test_values_are_those_of_numpy(case, seed):
    shape, axis, keepdims = case
    values = np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float64)
    for ours, numpys in REDUCTIONS:
        y = ours(Tensor(values), axis, keepdims)
        np.testing.assert_array_equal(y.data, numpys(values, axis=axis, keepdims=keepdims))
        assert isinstance(y.data, np.ndarray)


@given(reductions(), seeds)
def test_a_mean_and_a_maximum_hand_on_the_whole_gradient(case, seed):
    shape, axis, keepdims = case
    rng = np.random.default_rng(seed)
    x = Tensor(rng.integers(0, 3, shape).astype(np.float64), requires_grad=True)  # many ties
    for reduction in (ops.mean, ops.max):
        x.grad = None
        y = reduction(x, axis, keepdims)
        u = rng.standard_normal(y.shape)
        y.backward(u)
        np.testing.assert_allclose(x.grad.sum(), u.sum(), atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("axis", [None, 0])
def test_the_type_of_the_input_is_kept(dtype, axis):
    for reduction, _ in REDUCTIONS:
        x = Tensor(np.ones((2, 3), dtype), requires_grad=True)
        y = reduction(x, axis)
        y.backward(np.ones(y.shape, dtype))
        assert y.dtype == dtype
        assert x.grad.dtype == dtype


# gradients


@given(reductions(), seeds)
def test_gradients(case, seed):
    shape, axis, keepdims = case
    rng = np.random.default_rng(seed)
    for reduction, _ in REDUCTIONS:
        check_gradients(lambda x, reduction=reduction: reduction(x, axis, keepdims), distinct(shape, rng), rng=rng)


# other libraries


@given(shape=array_shapes(min_dims=1, max_dims=3, max_side=4), seed=seeds)
def test_the_first_maximum_is_that_of_torch(torch, shape, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 3, shape).astype(np.float64)  # many ties
    x, tx = Tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    y, ty = ops.max(x, axis=-1), tx.max(dim=-1).values
    u = rng.standard_normal(y.shape)
    y.backward(u)
    ty.backward(torch.tensor(u))
    np.testing.assert_array_equal(y.data, ty.detach().numpy())
    np.testing.assert_array_equal(x.grad, tx.grad.numpy())


# errors


@pytest.mark.parametrize("reduction", [ops.sum, ops.mean, ops.max])
def test_axes_are_checked(reduction):
    x = Tensor(np.ones((2, 3)))
    with pytest.raises(ArgumentError, match=r"axis must be in \[-2, 2\), got 2"):
        reduction(x, axis=2)
    with pytest.raises(ArgumentError, match=r"an axis can be reduced once, got \(0, -2\)"):
        reduction(x, axis=(0, -2))


@pytest.mark.parametrize("reduction", [ops.mean, ops.max])
def test_nothing_has_no_mean_and_no_maximum(reduction):
    with pytest.raises(ShapeError, match=r"at least one element along each of the axes \(1,\), got shape \(2, 0\)"):
        reduction(Tensor(np.ones((2, 0))), axis=1)
