"""Max and average pooling: literal cases, properties, gradients, PyTorch and TensorFlow."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet.autograd import Tensor
from refnet.errors import ArgumentError, ShapeError
from refnet.ops import avg_pool2d, max_pool2d, max_pool2d_forward, max_pool2d_grad
from refnet.testing import check_gradients
from refnet.testing.strategies.geometry import Pooling, distinct, poolings
from tests.golden import matterport_rules


def image(rows: list[list[float]]) -> Tensor:
    """One image of one channel."""
    return Tensor(np.array(rows, dtype=np.float64)[None, :, :, None], requires_grad=True)


RAMP = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


# literal cases


def test_values():
    np.testing.assert_array_equal(max_pool2d(image(RAMP), 2).data[0, :, :, 0], [[5]])
    np.testing.assert_array_equal(avg_pool2d(image(RAMP), 2).data[0, :, :, 0], [[3]])
    np.testing.assert_array_equal(max_pool2d(image(RAMP), 2, stride=1).data[0, :, :, 0], [[5, 6], [8, 9]])
    np.testing.assert_array_equal(max_pool2d(image(RAMP), (1, 3)).data[0, :, :, 0], [[3], [6], [9]])


def test_ceil_mode_keeps_the_window_that_reaches_over_the_border():
    np.testing.assert_array_equal(max_pool2d(image(RAMP), 2, ceil_mode=True).data[0, :, :, 0], [[5, 6], [8, 9]])
    np.testing.assert_array_equal(avg_pool2d(image(RAMP), 2, ceil_mode=True).data[0, :, :, 0], [[3, 4.5], [7.5, 9]])


def test_ceil_mode_drops_a_window_that_starts_behind_the_image():
    x = image([[1, 2]])  # windows of 1 every 3 pixels, padded by none: a second one would start at pixel 3
    assert max_pool2d(x, 1, stride=3, ceil_mode=True).shape == (1, 1, 1, 1)


def test_padding_never_is_the_maximum():
    y = max_pool2d(image([[-5, -7]]), (1, 2), padding=((0, 0), (1, 1)))
    np.testing.assert_array_equal(y.data[0, :, :, 0], [[-5, -7]])


def test_padding_counts_as_zeros_in_the_mean_unless_told():
    x = image([[6, 8]])
    arguments = {"stride": 1, "padding": ((0, 0), (1, 0))}
    np.testing.assert_array_equal(avg_pool2d(x, (1, 2), **arguments).data[0, :, :, 0], [[3, 7]])
    y = avg_pool2d(x, (1, 2), count_include_pad=False, **arguments)
    np.testing.assert_array_equal(y.data[0, :, :, 0], [[6, 7]])


def test_the_first_maximum_receives_the_gradient():
    x = image([[1, 2], [2, 2]])
    max_pool2d(x, 2).backward(np.ones((1, 1, 1, 1)))
    np.testing.assert_array_equal(x.grad[0, :, :, 0], [[0, 1], [0, 0]])


def test_overlapping_windows_add_up_their_gradients():
    x = image([[1, 3, 2]])
    max_pool2d(x, (1, 2), stride=1).backward(np.array([5.0, 7]).reshape(1, 1, 2, 1))
    np.testing.assert_array_equal(x.grad[0, :, :, 0], [[0, 12, 0]])


def test_a_nan_is_the_maximum_of_its_window():
    np.testing.assert_array_equal(max_pool2d(image([[1, np.nan, 2, 3]]), (1, 2)).data[0, :, :, 0], [[np.nan, 3]])


# properties


@given(poolings())
def test_each_maximum_stands_at_its_place(case: Pooling):
    x = case.rng.integers(-3, 4, case.x_shape).astype(np.float64)  # many ties
    y, place = max_pool2d_forward(x, **case.parameters)
    assert place.dtype == np.int32
    (top, _), (left, _) = case.padding
    for n, i, j, c in np.ndindex(y.shape):
        rows = list(range(i * case.stride[0] - top, i * case.stride[0] - top + case.kernel_size[0]))
        columns = list(range(j * case.stride[1] - left, j * case.stride[1] - left + case.kernel_size[1]))
        inside = [
            (x[n, r, k, c], -(a * len(columns) + b))
            for a, r in enumerate(rows)
            for b, k in enumerate(columns)
            if 0 <= r < x.shape[1] and 0 <= k < x.shape[2]
        ]
        largest, first = max(inside)
        assert (y[n, i, j, c], place[n, i, j, c]) == (largest, -first)


@given(poolings())
def test_the_gradient_is_the_adjoint_of_picking(case: Pooling):
    rng = case.rng
    x = distinct(case.x_shape, rng)
    y, place = max_pool2d_forward(x, **case.parameters)
    u = rng.integers(-3, 4, y.shape).astype(np.float64)
    grad = max_pool2d_grad(u, place, input_size=x.shape[1:3], **case.parameters)
    assert (grad * x).sum() == (u * y).sum()


@given(poolings(), st.booleans())
def test_a_constant_stays(case: Pooling, ceil_mode: bool):
    x = Tensor(np.full(case.x_shape, 0.7))
    assert (max_pool2d(x, ceil_mode=ceil_mode, **case.parameters).data == 0.7).all()
    y = avg_pool2d(x, ceil_mode=ceil_mode, count_include_pad=False, **case.parameters)
    np.testing.assert_allclose(y.data, 0.7, rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("pool", [max_pool2d, avg_pool2d])
def test_the_type_of_the_input_is_kept(pool, dtype):
    x = Tensor(np.ones((1, 5, 5, 2), dtype), requires_grad=True)
    y = pool(x, 3, stride=2, padding=1)
    y.backward(np.ones(y.shape, dtype))
    assert y.dtype == dtype
    assert x.grad.dtype == dtype


@pytest.mark.parametrize("pool", [max_pool2d, avg_pool2d])
def test_a_batch_may_be_empty(pool):
    x = Tensor(np.ones((0, 5, 5, 2)), requires_grad=True)
    y = pool(x, 3, stride=2)
    assert y.shape == (0, 2, 2, 2)
    y.backward(y.data)
    assert x.grad.shape == x.shape


# gradients


@given(poolings(), st.booleans(), st.booleans())
def test_gradients(case: Pooling, ceil_mode: bool, count_include_pad: bool):
    rng = case.rng
    x = distinct(case.x_shape, rng)
    check_gradients(lambda x: max_pool2d(x, ceil_mode=ceil_mode, **case.parameters), x, rng=rng)
    check_gradients(
        lambda x: avg_pool2d(x, ceil_mode=ceil_mode, count_include_pad=count_include_pad, **case.parameters),
        x,
        rng=rng,
    )


# other libraries


@given(case=poolings(symmetric=True, most_padding=0.5), ceil_mode=st.booleans(), count_include_pad=st.booleans())
def test_equal_torch(torch, case: Pooling, ceil_mode: bool, count_include_pad: bool):
    rng = case.rng
    values = rng.integers(-3, 4, case.x_shape).astype(np.float64)  # many ties
    padding = tuple(before for before, _ in case.padding)
    functional = torch.nn.functional
    for ours, theirs in (
        (
            lambda x: max_pool2d(x, ceil_mode=ceil_mode, **case.parameters),
            lambda x: functional.max_pool2d(x, case.kernel_size, case.stride, padding, ceil_mode=ceil_mode),
        ),
        (
            lambda x: avg_pool2d(x, ceil_mode=ceil_mode, count_include_pad=count_include_pad, **case.parameters),
            lambda x: functional.avg_pool2d(
                x, case.kernel_size, case.stride, padding, ceil_mode=ceil_mode, count_include_pad=count_include_pad
            ),
        ),
    ):
        x = Tensor(values, requires_grad=True)
        tx = torch.tensor(values.transpose(0, 3, 1, 2).copy(), requires_grad=True)
        y, ty = ours(x), theirs(tx)
        u = rng.standard_normal(y.shape)
        y.backward(u)
        ty.backward(torch.tensor(u.transpose(0, 3, 1, 2).copy()))
        np.testing.assert_allclose(y.data, ty.detach().numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-10)
        np.testing.assert_allclose(x.grad, tx.grad.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-10)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_max_pool_equals_tensorflow(k, stride, padding):
    golden = matterport_rules.load("same_padding")
    for h, w in ((5, 6), (7, 8), (8, 8)):
        name = f"pool_k{k}_s{stride}_{h}x{w}_{padding.upper()}"
        x = Tensor(matterport_rules.normal(f"{name}/x", (1, h, w, 2), shift=-3), requires_grad=True)
        y = max_pool2d(x, k, stride=stride, padding=padding)
        y.backward(matterport_rules.normal(f"{name}/up", y.shape))
        np.testing.assert_array_equal(y.data, golden[f"{name}.y"])
        # up to k² gradients add up in an order of their own
        np.testing.assert_allclose(x.grad, golden[f"{name}.gx"], rtol=0, atol=k * k * 2.0**-24 * abs(x.grad).max())


def test_ties_go_to_the_first_as_in_tensorflow():
    golden = matterport_rules.load("same_padding")
    x = Tensor(golden["pool_ties.x"], requires_grad=True)
    y = max_pool2d(x, 3, stride=2, padding="same")
    y.backward(matterport_rules.normal("pool_ties/up", y.shape))
    np.testing.assert_array_equal(y.data, golden["pool_ties.y"])
    np.testing.assert_allclose(x.grad, golden["pool_ties.gx"], rtol=0, atol=9 * 2.0**-24 * abs(x.grad).max())


@pytest.mark.parametrize("size", ["16x20", "17x19"])
def test_the_stem_of_matterport(size):
    golden = matterport_rules.load("same_padding")
    y = max_pool2d(Tensor(golden[f"stem_{size}.conv"]), 3, stride=2, padding="same")
    np.testing.assert_array_equal(y.data, golden[f"stem_{size}.pool"])


# errors


@pytest.mark.parametrize("pool", [max_pool2d, avg_pool2d])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kernel_size": 0}, ArgumentError, "kernel_size must be one or two integers of at least 1, got 0"),
        ({"kernel_size": 2, "stride": 0}, ArgumentError, "stride must be"),
        ({"kernel_size": 2, "padding": 2}, ArgumentError, r"padding must be less than the window \(2, 2\), got 2"),
        ({"kernel_size": 5}, ShapeError, "window of 5 pixels is larger than the padded image of 4"),
        ({"kernel_size": 6, "stride": 1, "ceil_mode": True}, ShapeError, "window of 6 pixels"),
    ],
)
def test_errors_say_what_was_expected(pool, arguments, error, message):
    with pytest.raises(error, match=message):
        pool(Tensor(np.ones((1, 4, 4, 2))), **arguments)


@pytest.mark.parametrize("pool", [max_pool2d, avg_pool2d])
def test_images_have_four_axes(pool):
    with pytest.raises(ShapeError, match=r"expected x \(N, H, W, C\), got \(4, 4, 2\)"):
        pool(Tensor(np.ones((4, 4, 2))), 2)
