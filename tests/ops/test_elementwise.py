"""Functions of one or two elements: literal cases, properties, gradients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, mutually_broadcastable_shapes

from refnet.autograd import Tensor
from refnet.errors import ArgumentError
from refnet.ops import absolute, clip, exp, log, maximum, minimum, power, sqrt
from refnet.testing import check_gradients
from refnet.testing.strategies.geometry import distinct, off_zero, seeds

shapes = array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def gradient(function, *values: float) -> list[float]:
    """The gradients of a function of numbers."""
    tensors = [Tensor(np.array(value), requires_grad=True) for value in values]
    function(*tensors).backward()
    return [float(t.grad) for t in tensors]


# literal cases


def test_values():
    x = Tensor(np.array([1.0, 4.0]))
    np.testing.assert_array_equal(sqrt(x).data, [1, 2])
    np.testing.assert_array_equal(power(x, 3).data, [1, 64])
    np.testing.assert_array_equal(log(x).data, [0, np.log(4)])
    np.testing.assert_array_equal(exp(x).data, [np.e, np.exp(4)])
    np.testing.assert_array_equal(absolute(Tensor(np.array([-2.0, 0, 3]))).data, [2, 0, 3])
    np.testing.assert_array_equal(clip(Tensor(np.array([-2.0, 0, 3])), -1, 1).data, [-1, 0, 1])
    np.testing.assert_array_equal(maximum(x, 2).data, [2, 4])
    np.testing.assert_array_equal(minimum(x, 2).data, [1, 2])


def test_conventions_at_kinks():
    assert gradient(absolute, 0.0) == [0]
    assert gradient(maximum, 1.0, 1.0) == [0.5, 0.5]
    assert gradient(minimum, 1.0, 1.0) == [0.5, 0.5]
    assert gradient(lambda x: clip(x, 0, 1), 0.0) == [1]
    assert gradient(lambda x: clip(x, 0, 1), 1.0) == [1]
    assert gradient(lambda x: clip(x, 0, 1), 1.5) == [0]
    assert gradient(lambda x: power(x, 0), 0.0) == [0]
    assert gradient(lambda x: power(x, 2), 0.0) == [0]


def test_conventions_at_kinks_are_those_of_torch(torch):
    for ours, theirs, values in (
        (absolute, torch.abs, [0.0]),
        (maximum, torch.maximum, [1.0, 1.0]),
        (minimum, torch.minimum, [1.0, 1.0]),
        (lambda x: clip(x, 0, 1), lambda x: torch.clip(x, 0, 1), [1.0]),
    ):
        tensors = [torch.tensor(v, requires_grad=True) for v in values]
        theirs(*tensors).backward()
        assert gradient(ours, *values) == [float(t.grad) for t in tensors]


# properties


@given(shapes, seeds)
def test_inverses(shape, seed):
    x = Tensor(np.random.default_rng(seed).uniform(0.25, 4, shape))
    np.testing.assert_allclose(exp(log(x)).data, x.data, rtol=4e-16)
    np.testing.assert_allclose(power(sqrt(x), 2).data, x.data, rtol=4e-16)
    np.testing.assert_array_equal(absolute(-x).data, x.data)


@given(shapes, seeds)
def test_maximum_and_minimum_share_both_values_and_gradients(shape, seed):
    rng = np.random.default_rng(seed)
    a, b = (Tensor(rng.integers(0, 3, shape).astype(np.float64), requires_grad=True) for _ in range(2))  # many ties
    total = maximum(a, b) + minimum(a, b)
    np.testing.assert_array_equal(total.data, a.data + b.data)
    total.backward(np.ones(shape))
    np.testing.assert_array_equal(a.grad, np.ones(shape))
    np.testing.assert_array_equal(b.grad, np.ones(shape))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "function",
    [
        exp,
        log,
        sqrt,
        absolute,
        lambda x: power(x, 0.5),
        lambda x: clip(x, 0.5, 2),
        lambda x: maximum(x, 1),
        lambda x: minimum(x, x),
    ],
)
def test_the_type_of_the_input_is_kept(function, dtype):
    x = Tensor(np.array([1.0, 2, 3], dtype), requires_grad=True)
    y = function(x)
    y.backward(np.ones(3, dtype))
    assert y.dtype == dtype
    assert x.grad.dtype == dtype


# gradients


@given(shapes, seeds)
def test_gradients_of_smooth_functions(shape, seed):
    rng = np.random.default_rng(seed)
    for function in (exp, log, sqrt, lambda x: power(x, 3), lambda x: power(x, -0.5)):
        check_gradients(function, np.asarray(rng.uniform(0.5, 2, shape)), rng=rng)


@given(shapes, seeds)
def test_gradients_beside_kinks(shape, seed):
    rng = np.random.default_rng(seed)
    check_gradients(absolute, off_zero(shape, rng), rng=rng)
    check_gradients(lambda x: clip(x, -2 + 1 / 16, 1 + 1 / 16), distinct(shape, rng), rng=rng)


@given(mutually_broadcastable_shapes(num_shapes=2, max_dims=3, min_side=0, max_side=3), seeds)
def test_gradients_of_pairs(broadcastable, seed):
    rng = np.random.default_rng(seed)
    a, b = (distinct(shape, rng) for shape in broadcastable.input_shapes)
    for function in (maximum, minimum):
        check_gradients(function, a, np.asarray(b + 1 / 16), rng=rng)


# errors


def test_clip_refuses_limits_in_the_wrong_order():
    with pytest.raises(ArgumentError, match="low must not be above high, got 1 and 0"):
        clip(Tensor(np.ones(1)), 1, 0)
