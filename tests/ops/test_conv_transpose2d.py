"""conv_transpose2d: literal cases, properties, gradients, PyTorch and Keras."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet.autograd import Tensor
from refnet.errors import ArgumentError, ShapeError
from refnet.ops import conv2d, conv2d_forward, conv2d_grad_input, conv2d_grad_weight, conv_transpose2d
from refnet.ops.conv2d import resolve_padding
from refnet.testing import check_gradients
from refnet.testing.strategies.geometry import Convolution, convolutions, seeds
from tests.golden import matterport_rules


@st.composite
def transposed(draw: st.DrawFn) -> tuple[Convolution, tuple[int, int]]:
    """A convolution to transpose, and the output_padding that leads back to its input's size."""
    case = draw(convolutions())
    left_over = (
        (size + sum(pads) - (k - 1) * d - 1) % s
        for size, k, s, pads, d in zip(
            case.x_shape[1:3], case.w_shape[:2], case.stride, case.padding, case.dilation, strict=True
        )
    )
    return case, tuple(left_over)


# literal cases


def test_every_pixel_writes_the_kernel():
    x = Tensor(np.array([[1.0, 10]]).reshape(1, 1, 2, 1))
    w = Tensor(np.array([[1.0, 2], [3, 4]]).reshape(2, 2, 1, 1))
    np.testing.assert_array_equal(conv_transpose2d(x, w, stride=2).data[0, :, :, 0], [[1, 2, 10, 20], [3, 4, 30, 40]])
    np.testing.assert_array_equal(conv_transpose2d(x, w, stride=1).data[0, :, :, 0], [[1, 12, 20], [3, 34, 40]])


def test_padding_cuts_and_output_padding_extends():
    x = Tensor(np.array([[1.0, 10]]).reshape(1, 1, 2, 1))
    w = Tensor(np.array([[1.0, 2, 3]]).reshape(1, 3, 1, 1))
    y = conv_transpose2d(x, w, stride=2, padding=((0, 0), (1, 1)), output_padding=(0, 1))
    np.testing.assert_array_equal(y.data[0, :, :, 0], [[2, 13, 20, 30]])
    y = conv_transpose2d(x, w, stride=3, padding=((0, 0), (0, 1)), output_padding=(0, 2))
    np.testing.assert_array_equal(y.data[0, :, :, 0], [[1, 2, 3, 10, 20, 30, 0]])


def test_a_group_writes_its_own_channels_and_the_bias_is_added_once():
    x = Tensor(np.array([1.0, 10]).reshape(1, 1, 1, 2))
    w = Tensor(np.array([[2.0, 3], [4, 5]]).reshape(1, 1, 2, 2))
    y = conv_transpose2d(x, w, Tensor(np.array([0.5, 0, 0, -1])), stride=1, groups=2)
    np.testing.assert_array_equal(y.data.ravel(), [2.5, 3, 40, 49])


def test_same_padding_multiplies_the_size_by_the_stride():
    x, w = Tensor(np.ones((1, 3, 5, 1))), Tensor(np.ones((3, 3, 1, 1)))
    assert conv_transpose2d(x, w, stride=(2, 3), padding="same").shape == (1, 6, 15, 1)


# properties


@given(transposed())
def test_it_is_the_adjoint_of_conv2d(drawn):
    """<conv_transpose2d(x), u> = <x, conv2d(u)>, exactly, on small integers; the weight has C and O exchanged."""
    case, output_padding = drawn
    rng = case.rng
    x, u, w = (rng.integers(-3, 4, s).astype(np.float64) for s in (case.y_shape, case.x_shape, case.w_shape))
    weight = Tensor(w.transpose(0, 1, 3, 2))
    y = conv_transpose2d(Tensor(x), weight, output_padding=output_padding, **case.parameters)
    assert y.shape == case.x_shape
    assert (y.data * u).sum() == (x * conv2d(Tensor(u), Tensor(w), **case.parameters).data).sum()


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), seeds)
def test_same_is_the_adjoint_of_same(k, stride, size, seed):
    rng = np.random.default_rng(seed)
    x, u = rng.integers(-3, 4, (1, size, 2, 2)), rng.integers(-3, 4, (1, size * stride, 2 * stride, 3))
    w = rng.integers(-3, 4, (k, k, 2, 3)).astype(np.float64)
    y = conv_transpose2d(Tensor(x.astype(float)), Tensor(w), stride=stride, padding="same").data
    back = conv2d(Tensor(u.astype(float)), Tensor(w.transpose(0, 1, 3, 2)), stride=stride, padding="same").data
    assert (y * u).sum() == (x * back).sum()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_type_of_the_input_is_kept(dtype):
    x, w, b = (Tensor(np.ones(s, dtype), requires_grad=True) for s in ((1, 2, 2, 3), (2, 2, 3, 4), (4,)))
    y = conv_transpose2d(x, w, b, stride=2)
    y.backward(np.ones(y.shape, dtype))
    assert y.dtype == dtype
    assert {t.grad.dtype for t in (x, w, b)} == {np.dtype(dtype)}


def test_a_batch_may_be_empty():
    x, w = Tensor(np.ones((0, 2, 2, 3)), requires_grad=True), Tensor(np.ones((2, 2, 3, 4)), requires_grad=True)
    y = conv_transpose2d(x, w, stride=2)
    assert y.shape == (0, 4, 4, 4)
    y.backward(y.data)
    np.testing.assert_array_equal(w.grad, np.zeros(w.shape))


# gradients


@given(transposed())
def test_gradients(drawn):
    case, output_padding = drawn
    rng = case.rng
    w = rng.standard_normal(case.w_shape).transpose(0, 1, 3, 2)
    check_gradients(
        lambda x, w, bias: conv_transpose2d(x, w, bias, output_padding=output_padding, **case.parameters),
        rng.standard_normal(case.y_shape),
        w,
        rng.standard_normal(w.shape[3] * case.groups),
        rng=rng,
    )


def test_only_the_gradients_that_are_needed_are_computed():
    x, w, b = Tensor(np.ones((1, 2, 2, 1)), requires_grad=True), Tensor(np.ones((1, 1, 1, 1))), Tensor(np.ones(1))
    y = conv_transpose2d(x, w, b)

    def forbidden(*args, **kwargs):
        raise AssertionError("nobody needs this gradient")

    with conv2d_grad_weight.using(forbidden):
        y.backward(np.ones(y.shape))
    assert x.grad is not None
    assert w.grad is None
    assert b.grad is None


# other libraries


@given(drawn=transposed())
def test_equals_torch(torch, drawn):
    """PyTorch pads symmetrically: the rest of the result is cut off its own."""
    case, output_padding = drawn
    rng = case.rng
    w = rng.standard_normal(case.w_shape)  # kh kw O/g C
    arrays = (rng.standard_normal(case.y_shape), w.transpose(0, 1, 3, 2), rng.standard_normal(w.shape[2] * case.groups))
    x, weight, bias = (Tensor(a, requires_grad=True) for a in arrays)
    y = conv_transpose2d(x, weight, bias, output_padding=output_padding, **case.parameters)
    u = rng.standard_normal(y.shape)
    y.backward(u)

    tx = torch.tensor(x.data.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    tw = torch.tensor(weight.data.transpose(2, 3, 0, 1).copy(), requires_grad=True)  # (C, O/g, kh, kw)
    tb = torch.tensor(bias.data, requires_grad=True)
    (top, bottom), (left, right) = case.padding
    ty = torch.nn.functional.conv_transpose2d(
        tx,
        tw,
        tb,
        stride=case.stride,
        output_padding=output_padding,
        dilation=case.dilation,
        groups=case.groups,
    )
    ty = ty[:, :, top : ty.shape[2] - bottom, left : ty.shape[3] - right]
    ty.backward(torch.tensor(u.transpose(0, 3, 1, 2).copy()))
    np.testing.assert_allclose(y.data, ty.detach().numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-10)
    np.testing.assert_allclose(x.grad, tx.grad.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-10)
    np.testing.assert_allclose(weight.grad, tw.grad.numpy().transpose(2, 3, 0, 1), rtol=0, atol=1e-10)
    np.testing.assert_allclose(bias.grad, tb.grad.numpy(), rtol=0, atol=1e-10)


def test_equals_keras():
    """A mask head's 2x2 stride 2, whose weight Keras stores as (kh, kw, O, C)."""
    golden = matterport_rules.load("same_padding")
    x = Tensor(matterport_rules.normal("deconv/x", (2, 3, 4, 5)).astype(np.float64), requires_grad=True)
    stored = matterport_rules.normal("deconv/w", (2, 2, 6, 5)).astype(np.float64)
    weight = Tensor(stored.transpose(0, 1, 3, 2), requires_grad=True)
    u = matterport_rules.normal("deconv/up", (2, 6, 8, 6)).astype(np.float64)
    y = conv_transpose2d(x, weight, stride=2)
    y.backward(u)

    geometry = {"stride": (2, 2), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}
    rounding = 2.0**-24  # of float32, times the number of products, times the sum of their sizes
    bound = 6 * rounding * conv2d_grad_input.specification(abs(x.data), abs(stored), input_size=(6, 8), **geometry)
    assert (abs(y.data - golden["deconv.y"]) <= bound).all()
    bound = 25 * rounding * conv2d_forward.specification(abs(u), abs(stored), **geometry)
    assert (abs(x.grad - golden["deconv.gx"]) <= bound).all()
    bound = 25 * rounding * conv2d_grad_weight.specification(abs(u), abs(x.data), kernel_size=(2, 2), **geometry)
    assert (abs(weight.grad.transpose(0, 1, 3, 2) - golden["deconv.gw"]) <= bound).all()


# errors


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": np.ones((4, 4, 2))}, ShapeError, r"expected x \(N, H, W, C\)"),
        ({"weight": np.ones((3, 3, 4, 3))}, ShapeError, "4 input channels in 1 groups doesn't fit x with 2"),
        ({"groups": 3}, ShapeError, "in 3 groups"),
        ({"groups": 2}, ShapeError, r"bias must have shape \(6,\), got \(3,\)"),
        ({"output_padding": 2, "stride": 2}, ArgumentError, r"output_padding must be below the stride \(2, 2\), got 2"),
        ({"output_padding": 1, "stride": 2, "padding": "same"}, ArgumentError, "leaves nothing for output_padding"),
        ({"padding": 3}, ShapeError, "leaves nothing of the result"),
        ({"dilation": 0}, ArgumentError, "dilation must be"),
    ],
)
def test_errors_say_what_was_expected(changes, error, message):
    arguments = {"x": np.ones((1, 4, 4, 2)), "weight": np.ones((3, 3, 2, 3)), "bias": np.ones(3), **changes}
    arrays = {name: Tensor(arguments.pop(name)) for name in ("x", "weight", "bias")}
    with pytest.raises(error, match=message):
        conv_transpose2d(**arrays, **arguments)


def test_same_padding_is_resolved_on_the_large_image():
    assert resolve_padding("same", (6, 6), (3, 3), (2, 2)) == ((0, 1), (0, 1))
    x, w = Tensor(np.ones((1, 3, 3, 1))), Tensor(np.arange(9.0).reshape(3, 3, 1, 1))
    y = conv_transpose2d(x, w, stride=2, padding="same")
    np.testing.assert_array_equal(y.data[0, 0, :, 0], [0, 1, 2, 1, 2, 1])
