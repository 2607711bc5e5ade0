"""Operations that move elements: literal cases, properties, gradients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from refnet.autograd import Tensor
from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.ops import concatenate, interleave, pad, reshape, stack, take, transpose
from refnet.testing import check_gradients
from refnet.testing.strategies.geometry import pairs, seeds

shapes = array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)


def counted(*shape: int) -> Tensor:
    """0, 1, 2... in row-major order."""
    return Tensor(np.arange(float(np.prod(shape))).reshape(shape), requires_grad=True)


# literal cases


def test_reshape_keeps_row_major_order():
    np.testing.assert_array_equal(reshape(counted(2, 3), (3, -1)).data, [[0, 1], [2, 3], [4, 5]])


def test_transpose_reverses_by_default():
    assert transpose(counted(2, 3, 4)).shape == (4, 3, 2)
    assert transpose(counted(2, 3, 4), (0, 2, 1)).shape == (2, 4, 3)
    np.testing.assert_array_equal(transpose(counted(2, 2), (-1, 0)).data, [[0, 2], [1, 3]])


def test_concatenate_and_stack():
    a, b = counted(2, 1), counted(2, 2)
    np.testing.assert_array_equal(concatenate([a, b], axis=1).data, [[0, 0, 1], [1, 2, 3]])
    np.testing.assert_array_equal(stack([b, b], axis=-1).data[1, 0], [2, 2])


def test_interleave():
    a, b = counted(2, 2), counted(1, 2)
    y = interleave([a, b], [np.array([2, 0]), np.array([1])])
    np.testing.assert_array_equal(y.data, [[2, 3], [0, 1], [0, 1]])
    y.backward(np.array([[1.0, 2], [3, 4], [5, 6]]))
    np.testing.assert_array_equal(a.grad, [[5, 6], [1, 2]])
    np.testing.assert_array_equal(b.grad, [[3, 4]])


def test_take_adds_up_the_gradients_of_repeated_elements():
    x = counted(4)
    y = take(x, np.array([[2, 0], [2, -2]]))
    np.testing.assert_array_equal(y.data, [[2, 0], [2, 2]])
    y.backward(np.array([[1.0, 10], [100, 1000]]))
    np.testing.assert_array_equal(x.grad, [10, 0, 1101, 0])


def test_take_without_indices():
    x = counted(3, 2)
    y = take(x, np.array([], dtype=np.int64))
    assert y.shape == (0, 2)
    y.backward(np.zeros((0, 2)))
    np.testing.assert_array_equal(x.grad, np.zeros((3, 2)))


def test_pad():
    np.testing.assert_array_equal(pad(counted(1, 2), ((1, 0), (0, 2)), 7).data, [[7, 7, 7, 7], [0, 1, 7, 7]])


# properties


@given(shapes, st.data())
def test_transpose_is_undone_by_the_inverse(shape, data):
    axes = data.draw(st.permutations(range(len(shape))))
    x = counted(*shape)
    back = transpose(transpose(x, axes), np.argsort(axes).tolist())
    np.testing.assert_array_equal(back.data, x.data)


@given(shapes, st.data(), seeds)
def test_take_of_a_permutation_is_undone_by_its_inverse(shape, data, seed):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    order = np.random.default_rng(seed).permutation(shape[axis])
    x = counted(*shape)
    np.testing.assert_array_equal(take(take(x, order, axis), np.argsort(order), axis).data, x.data)


@given(shapes, st.data())
def test_what_is_cut_apart_joins_again(shape, data):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    x = counted(*shape)
    singles = [take(x, np.array([k]), axis) for k in range(shape[axis])]
    np.testing.assert_array_equal(concatenate(singles, axis).data, x.data)
    if axis >= 0:
        slices = [take(x, np.array(k), axis) for k in range(shape[axis])]
        np.testing.assert_array_equal(stack(slices, axis).data, x.data)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_type_of_the_input_is_kept(dtype):
    x = Tensor(np.ones((2, 3), dtype), requires_grad=True)
    for y in (
        reshape(x, (6,)),
        transpose(x),
        concatenate([x, x]),
        stack([x, x]),
        take(x, np.array([0, 0])),
        pad(x, ((1, 1), (0, 0)), 0.5),
    ):
        assert y.dtype == dtype
        y.backward(np.ones(y.shape, dtype))
        assert x.grad.dtype == dtype


# gradients


@given(shapes, st.data(), seeds)
def test_rows_of_a_tensor_come_together_again(shape, data, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((data.draw(st.integers(0, 6)), *shape[1:]))
    order, cut = rng.permutation(len(x)), data.draw(st.integers(0, len(x)))
    positions = [order[:cut], order[cut:]]
    np.testing.assert_array_equal(interleave([take(Tensor(x), rows) for rows in positions], positions).data, x)
    check_gradients(lambda a, b: interleave([a, b], positions), *(x[rows] for rows in positions), rng=rng)


@given(shapes, st.data(), seeds)
def test_gradients(shape, data, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    other = [*shape]
    other[axis] = data.draw(st.integers(0, 3))
    axes = data.draw(st.permutations(range(len(shape))))
    widths = [data.draw(pairs(0, 2)) for _ in shape]
    once = rng.permutation(shape[axis])[:2]
    indices = rng.integers(-shape[axis], shape[axis], data.draw(array_shapes(min_dims=0, max_dims=2, min_side=0)))
    check_gradients(lambda x: reshape(x, (-1, shape[0])), x, rng=rng)
    check_gradients(lambda x: transpose(x, axes), x, rng=rng)
    check_gradients(lambda a, b: concatenate([a, b], axis), x, rng.standard_normal(other), rng=rng)
    check_gradients(lambda a, b: stack([a, b, a], axis), x, rng.standard_normal(shape), rng=rng)
    check_gradients(lambda x: take(x, indices, axis), x, rng=rng)
    check_gradients(lambda x: take(x, once, axis), x, rng=rng)
    check_gradients(lambda x: pad(x, widths, 3), x, rng=rng)


# errors


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: reshape(x, (4, 2)), ShapeError, r"reshape: \(4, 2\) doesn't hold the 6 elements of shape \(2, 3\)"),
        (lambda x: reshape(x, (-1, -1)), ShapeError, "doesn't hold"),
        (lambda x: reshape(x, (-1, 4)), ShapeError, "doesn't hold"),
        (lambda x: reshape(x, (-2, -3)), ShapeError, "doesn't hold"),
        (lambda x: transpose(x, (0, 0)), ArgumentError, r"permutation of 2 axes, got \(0, 0\)"),
        (lambda x: concatenate([]), ShapeError, "at least one tensor, got none"),
        (lambda x: concatenate([x, transpose(x)]), ShapeError, "agree except along axis 0"),
        (lambda x: concatenate([x], axis=2), ArgumentError, r"axis must be in \[-2, 2\), got 2"),
        (lambda x: interleave([], []), ShapeError, "expected tensors with rows of one shape"),
        (lambda x: interleave([x, transpose(x)], [np.arange(2), np.arange(3)]), ShapeError, "rows of one shape"),
        (lambda x: interleave([x], [np.arange(3)]), ShapeError, r"one position a row, \[2\], got \[\(3,\)\]"),
        (lambda x: interleave([x], []), ShapeError, "one position a row"),
        (lambda x: interleave([x], [np.array([0, 2])]), ArgumentError, r"must be 0 to 1, each once, got \[0 2\]"),
        (lambda x: interleave([x], [np.array([1, 1])]), ArgumentError, r"each once, got \[1 1\]"),
        (lambda x: stack([]), ShapeError, r"tensors of one shape, got \[\]"),
        (lambda x: stack([x, transpose(x)]), ShapeError, "tensors of one shape"),
        (lambda x: take(x, np.array([0.0])), DTypeError, "indices must be integers, got float64"),
        (lambda x: take(x, np.array([2])), ArgumentError, r"must be in \[-2, 2\), got 2 to 2"),
        (lambda x: take(x, np.array([0, -3])), ArgumentError, "got -3 to 0"),
        (lambda x: pad(x, ((1, 1),)), ArgumentError, "2 pairs of non-negative widths"),
        (lambda x: pad(x, ((1, 1), (-1, 0))), ArgumentError, "non-negative"),
    ],
)
def test_errors_say_what_was_expected(call, error, message):
    with pytest.raises(error, match=message):
        call(counted(2, 3))
