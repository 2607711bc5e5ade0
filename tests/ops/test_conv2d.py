"""conv2d: literal cases, properties, gradients, PyTorch and TensorFlow."""

from inspect import unwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet.autograd import Tensor
from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.ops import (
    conv2d,
    conv2d_forward,
    conv2d_fused,
    conv2d_fused_forward,
    conv2d_grad_input,
    conv2d_grad_weight,
    relu,
)
from refnet.ops.conv2d import resolve_padding
from refnet.testing import check_gradients
from refnet.testing.strategies.geometry import Convolution, convolutions, seeds
from tests.golden import matterport_rules


def image(rows: list[list[float]]) -> Tensor:
    """One image of one channel."""
    return Tensor(np.array(rows, dtype=np.float64)[None, :, :, None])


def kernel(rows: list[list[float]]) -> Tensor:
    """A weight from one channel to one."""
    return Tensor(np.array(rows, dtype=np.float64)[:, :, None, None])


RAMP = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


# literal cases


def test_the_kernel_is_not_flipped():
    y = conv2d(image(RAMP), kernel([[1, 0], [0, 10]]))
    np.testing.assert_array_equal(y.data[0, :, :, 0], [[51, 62], [84, 95]])


def test_padding_is_top_bottom_then_left_right():
    y = conv2d(image(RAMP), kernel([[1]]), padding=((1, 0), (0, 2)))
    np.testing.assert_array_equal(
        y.data[0, :, :, 0], [[0, 0, 0, 0, 0], [1, 2, 3, 0, 0], [4, 5, 6, 0, 0], [7, 8, 9, 0, 0]]
    )


def test_stride_starts_at_the_first_window():
    y = conv2d(image(RAMP), kernel([[1]]), stride=2)
    np.testing.assert_array_equal(y.data[0, :, :, 0], [[1, 3], [7, 9]])


def test_dilation_spreads_the_taps():
    y = conv2d(image(RAMP), kernel([[1, 10], [100, 1000]]), dilation=2)
    np.testing.assert_array_equal(y.data[0, :, :, 0], [[9731]])


def test_pairs_are_vertical_then_horizontal():
    y = conv2d(image(RAMP), kernel([[1]]), stride=(2, 1), padding=(0, 1))
    np.testing.assert_array_equal(y.data[0, :, :, 0], [[0, 1, 2, 3, 0], [0, 7, 8, 9, 0]])


def test_a_group_reads_its_own_channels():
    x = Tensor(np.array([1.0, 10, 100, 1000]).reshape(1, 1, 1, 4))
    w = Tensor(np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]]).reshape(1, 1, 2, 4))
    y = conv2d(x, w, groups=2)
    np.testing.assert_array_equal(y.data.ravel(), [51, 62, 7300, 8400])


def test_bias_is_added_to_its_channel():
    y = conv2d(image([[1, 2]]), Tensor(np.ones((1, 1, 1, 2))), Tensor(np.array([0.5, -0.5])))
    np.testing.assert_array_equal(y.data, [[[[1.5, 0.5], [2.5, 1.5]]]])


@pytest.mark.parametrize(
    ("size", "k", "stride", "expected"),
    [
        (5, 3, 1, (1, 1)),
        (6, 3, 2, (0, 1)),
        (5, 3, 2, (1, 1)),
        (224, 7, 2, (2, 3)),
        (6, 2, 1, (0, 1)),
        (8, 1, 2, (0, 0)),
        (7, 2, 3, (0, 1)),
    ],
)
def test_same_padding_puts_the_odd_pixel_last(size, k, stride, expected):
    assert resolve_padding("same", (size, size), (k, k), (stride, stride)) == (expected, expected)


# properties


@given(convolutions(least_images=0))
def test_shapes_and_types_follow_from_the_arguments(case: Convolution):
    for dtype in (np.float32, np.float64):
        x, w = case.rng.standard_normal(case.x_shape).astype(dtype), np.ones(case.w_shape, dtype)
        y = conv2d_forward(x, w, **case.parameters)
        assert y.shape == case.y_shape
        assert y.dtype == dtype
        grad_x = conv2d_grad_input(y, w, input_size=x.shape[1:3], **case.parameters)
        assert grad_x.shape == x.shape
        assert grad_x.dtype == dtype
        grad_w = conv2d_grad_weight(x, y, kernel_size=w.shape[:2], **case.parameters)
        assert grad_w.shape == w.shape
        assert grad_w.dtype == dtype


@given(convolutions())
def test_each_output_is_the_sum_over_its_window(case: Convolution):
    """The equation at the head of the file, one product at a time, on small integers: exact."""
    rng = case.rng
    x, w = (rng.integers(-3, 4, shape).astype(np.float64) for shape in (case.x_shape, case.w_shape))
    y = conv2d_forward(x, w, **case.parameters)
    n, i, j, o = (int(rng.integers(extent)) for extent in y.shape)
    per_group = w.shape[3] // case.groups
    expected = 0.0
    for a in range(w.shape[0]):
        for b in range(w.shape[1]):
            row = i * case.stride[0] + a * case.dilation[0] - case.padding[0][0]
            column = j * case.stride[1] + b * case.dilation[1] - case.padding[1][0]
            if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
                for c in range(w.shape[2]):
                    expected += x[n, row, column, o // per_group * w.shape[2] + c] * w[a, b, c, o]
    assert y[n, i, j, o] == expected


@given(convolutions())
def test_the_gradients_are_the_adjoints(case: Convolution):
    """<conv(x, w), u> = <x, grad_input(u, w)> = <w, grad_weight(x, u)>, exactly, on small integers."""
    rng = case.rng
    x, w, u = (rng.integers(-3, 4, shape).astype(np.float64) for shape in (case.x_shape, case.w_shape, case.y_shape))
    product = (conv2d_forward(x, w, **case.parameters) * u).sum()
    assert product == (x * conv2d_grad_input(u, w, input_size=x.shape[1:3], **case.parameters)).sum()
    assert product == (w * conv2d_grad_weight(x, u, kernel_size=w.shape[:2], **case.parameters)).sum()


@given(st.integers(1, 5), st.integers(0, 3), st.integers(0, 3), seeds)
def test_moving_the_image_moves_the_result(k, down, right, seed):
    rng = np.random.default_rng(seed)
    x, w = rng.integers(-3, 4, (1, 9, 8, 2)).astype(np.float64), rng.integers(-3, 4, (k, k, 2, 3)).astype(np.float64)
    moved = np.pad(x, ((0, 0), (down, 0), (right, 0), (0, 0)))
    y, y_moved = (conv2d(Tensor(image), Tensor(w)).data for image in (x, moved))
    np.testing.assert_array_equal(y_moved[:, down:, right:], y)


# gradients


@given(convolutions())
def test_gradients(case: Convolution):
    rng = case.rng
    check_gradients(
        lambda x, w, bias: conv2d(x, w, bias, **case.parameters),
        rng.standard_normal(case.x_shape),
        rng.standard_normal(case.w_shape),
        rng.standard_normal(case.w_shape[3]),
        rng=rng,
    )


@given(st.integers(1, 4), st.integers(1, 3), st.integers(5, 9), seeds)
def test_gradients_with_same_padding(k, stride, size, seed):
    rng = np.random.default_rng(seed)
    check_gradients(
        lambda x, w: conv2d(x, w, stride=stride, padding="same"),
        rng.standard_normal((1, size, 6, 2)),
        rng.standard_normal((k, k, 2, 2)),
        rng=rng,
    )


def test_only_the_gradients_that_are_needed_are_computed():
    x, w, bias = Tensor(np.ones((1, 2, 2, 1))), Tensor(np.ones((1, 1, 1, 1)), requires_grad=True), Tensor(np.ones(1))
    y = conv2d(x, w, bias)

    def forbidden(*args, **kwargs):
        raise AssertionError("nobody needs this gradient")

    with conv2d_grad_input.using(forbidden):
        y.backward(np.ones(y.shape))
    assert w.grad is not None
    assert x.grad is None
    assert bias.grad is None


# with what follows it


def test_the_steps_of_a_fused_convolution_in_their_order():
    x, w = image([[1, 2, 3]]), kernel([[2]])
    y = conv2d_fused(x, w, Tensor(np.array([3.0])), Tensor(np.array([-10.0])), image([[1, -3, 1]]), relu=True)
    np.testing.assert_array_equal(y.data[0, 0, :, 0], [0, 0, 9])  # 6 - 10 + 1, 12 - 10 - 3, 18 - 10 + 1


def away_from_kinks(case: Convolution, given: list[bool]) -> tuple[list[np.ndarray | None], np.ndarray, np.ndarray]:
    """Scale, shift and residual, if given, such that no sum of x and w is within 1/8 of relu's kink; x and w."""
    rng = case.rng
    x, w = rng.standard_normal(case.x_shape), rng.standard_normal(case.w_shape)
    scale, shift = rng.standard_normal(case.w_shape[3]), rng.standard_normal(case.w_shape[3])
    arrays = [array if wanted else None for array, wanted in zip((scale, shift), given, strict=False)]
    y = conv2d_fused_forward(x, w, *arrays, None, relu=False, **case.parameters)
    residual = np.where(abs(y) < 0.5, np.sign(y) + (y == 0), 0) if given[2] else None
    return [*arrays, residual], x, w


@given(case=convolutions(), given=st.lists(st.booleans(), min_size=3, max_size=3), rectified=st.booleans())
def test_a_fused_convolution_is_its_steps(case: Convolution, given: list[bool], rectified: bool):
    extras, x, w = away_from_kinks(case, given)
    scale, shift, residual = (None if array is None else Tensor(array, requires_grad=True) for array in extras)
    inputs = [Tensor(array, requires_grad=True) for array in (x, w)]
    composed = conv2d(*inputs, **case.parameters)
    composed = composed if scale is None else composed * scale
    composed = composed if shift is None else composed + shift
    composed = composed if residual is None else composed + residual
    composed = relu(composed) if rectified else composed
    u = case.rng.standard_normal(composed.shape)
    composed.backward(u)
    tensors = [*inputs, *(tensor for tensor in (scale, shift, residual) if tensor is not None)]
    expected = [tensor.grad for tensor in tensors]
    for tensor in tensors:
        tensor.grad = None
    for trainable in ((True, True), (False, True), (False, False)):  # by steps, and at once
        for factor, wanted in zip((scale, shift), trainable, strict=True):
            if factor is not None:
                factor.requires_grad, factor.grad = wanted, None
        fused = conv2d_fused(*inputs, scale, shift, residual, relu=rectified, **case.parameters)
        np.testing.assert_allclose(fused.data, composed.data, rtol=0, atol=1e-12)
        fused.backward(u)
        for tensor, grad in zip(tensors, expected, strict=True):
            if tensor.requires_grad:
                np.testing.assert_allclose(tensor.grad, grad, rtol=0, atol=1e-12)
            tensor.grad = None


@given(case=convolutions())
def test_gradients_of_a_fused_convolution(case: Convolution):
    (scale, shift, residual), x, w = away_from_kinks(case, [True, True, True])
    check_gradients(
        lambda x, w, residual: conv2d_fused(x, w, Tensor(scale), Tensor(shift), residual, relu=True, **case.parameters),
        x,
        w,
        residual,
        rng=case.rng,
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"scale": np.ones(3)}, ShapeError, r"scale must have shape \(4,\), got \(3,\)"),
        ({"shift": np.ones(1)}, ShapeError, r"shift must have shape \(4,\), got \(1,\)"),
        ({"residual": np.ones((1, 4, 4, 4))}, ShapeError, r"residual must have shape \(1, 2, 2, 4\)"),
        ({"scale": np.ones(4, np.float32)}, DTypeError, "x's type, float64, got float32"),
    ],
)
def test_errors_of_a_fused_convolution(changes, error, message):
    arrays = {"x": np.ones((1, 4, 4, 2)), "weight": np.ones((3, 3, 2, 4)), **changes}
    with pytest.raises(error, match=message):
        conv2d_fused(**{name: Tensor(array) for name, array in arrays.items()})


# other libraries


@given(case=convolutions())
def test_equals_torch(torch, case: Convolution):
    rng = case.rng
    x, w, bias = (
        Tensor(rng.standard_normal(shape), requires_grad=True)
        for shape in (case.x_shape, case.w_shape, case.w_shape[3:])
    )
    y = conv2d(x, w, bias, **case.parameters)
    u = rng.standard_normal(y.shape)
    y.backward(u)

    tx = torch.tensor(x.data.transpose(0, 3, 1, 2).copy(), requires_grad=True)
    tw = torch.tensor(w.data.transpose(3, 2, 0, 1).copy(), requires_grad=True)
    tb = torch.tensor(bias.data, requires_grad=True)
    (top, bottom), (left, right) = case.padding
    padded = torch.nn.functional.pad(tx, (left, right, top, bottom))
    ty = torch.nn.functional.conv2d(padded, tw, tb, stride=case.stride, dilation=case.dilation, groups=case.groups)
    ty.backward(torch.tensor(u.transpose(0, 3, 1, 2).copy()))
    np.testing.assert_allclose(y.data, ty.detach().numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-10)
    np.testing.assert_allclose(x.grad, tx.grad.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-10)
    np.testing.assert_allclose(w.grad, tw.grad.numpy().transpose(2, 3, 1, 0), rtol=0, atol=1e-10)
    np.testing.assert_allclose(bias.grad, tb.grad.numpy(), rtol=0, atol=1e-10)


def sums_of(x: np.ndarray, w: np.ndarray, **geometry) -> np.ndarray:
    """What bounds the rounding of a float32 convolution: (K + 1) u times the sum of the products' sizes."""
    products = conv2d_forward.specification(abs(x).astype(np.float64), abs(w).astype(np.float64), **geometry)
    return (w[..., 0].size + 1) * 2.0**-24 * products


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding_equals_tensorflow(k, stride):
    golden = matterport_rules.load("same_padding")
    for h, w in ((5, 6), (7, 8), (6, 9), (8, 5)):
        name = f"conv_k{k}_s{stride}_{h}x{w}"
        x = Tensor(matterport_rules.normal(f"{name}/x", (1, h, w, 2)).astype(np.float64), requires_grad=True)
        weight = Tensor(matterport_rules.normal(f"{name}/w", (k, k, 2, 3)).astype(np.float64), requires_grad=True)
        y = conv2d(x, weight, stride=stride, padding="same")
        padding = resolve_padding("same", (h, w), (k, k), (stride, stride))
        geometry = {"stride": (stride, stride), "padding": padding, "dilation": (1, 1), "groups": 1}
        bound = sums_of(x.data, weight.data, **geometry)
        assert (abs(y.data - golden[f"{name}.y"]) <= bound).all()
        if f"{name}.gx" in golden:
            u = matterport_rules.normal(f"{name}/up", y.shape).astype(np.float64)
            y.backward(u)
            sizes = {"input_size": (h, w), **geometry}
            bound = conv2d_grad_input.specification(abs(u), abs(weight.data), **sizes) * (k * k * 3 + 1) * 2.0**-24
            assert (abs(x.grad - golden[f"{name}.gx"]) <= bound).all()
            sizes = {"kernel_size": (k, k), **geometry}
            bound = conv2d_grad_weight.specification(abs(x.data), abs(u), **sizes) * (u[..., 0].size + 1) * 2.0**-24
            assert (abs(weight.grad - golden[f"{name}.gw"]) <= bound).all()


@pytest.mark.parametrize(("h", "w"), [(16, 20), (17, 19)])
def test_the_stem_of_matterport(h, w):
    """A 7x7 convolution of stride 2 after 3 pixels of padding isn't TensorFlow's "same": both against Keras."""
    golden = matterport_rules.load("same_padding")
    x = matterport_rules.normal(f"stem_{h}x{w}/x", (1, h, w, 3)).astype(np.float64)
    weight = matterport_rules.normal(f"stem_{h}x{w}/w", (7, 7, 3, 4)).astype(np.float64)
    for name, padding in (("conv", 3), ("conv_same", "same")):
        y = conv2d(Tensor(x), Tensor(weight), stride=2, padding=padding)
        pads = resolve_padding(padding, (h, w), (7, 7), (2, 2))
        bound = sums_of(x, weight, stride=(2, 2), padding=pads, dilation=(1, 1), groups=1)
        assert (abs(y.data - golden[f"stem_{h}x{w}.{name}"]) <= bound).all()


def test_a_1x1_convolution_of_stride_2_equals_tensorflow():
    golden = matterport_rules.load("same_padding")
    x = matterport_rules.normal("c1s2/x", (1, 8, 8, 2))
    weight = matterport_rules.normal("c1s2/w", (1, 1, 2, 3))
    y = conv2d(Tensor(x), Tensor(weight), stride=2, padding="valid")
    bound = sums_of(x, weight, stride=(2, 2), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1)
    assert (abs(y.data - golden["c1s2.y"]) <= 2 * bound).all()  # both sides are float32


# errors


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": np.ones((4, 4, 2))}, ShapeError, r"expected x \(N, H, W, C\)"),
        ({"weight": np.ones((3, 3, 3, 4))}, ShapeError, "1 groups of 3 input channels"),
        ({"weight": np.ones((3, 3, 1, 3)), "groups": 2}, ShapeError, "2 groups of 1 input channels and 3 outputs"),
        ({"groups": 0}, ShapeError, "0 groups"),
        ({"bias": np.ones(3)}, ShapeError, r"bias must have shape \(4,\), got \(3,\)"),
        ({"x": np.ones((1, 2, 4, 2))}, ShapeError, "window of 3 pixels is larger than the padded image of 2"),
        ({"dilation": 2}, ShapeError, "window of 5 pixels is larger than the padded image of 4"),
        ({"stride": 0}, ArgumentError, "stride must be one or two integers of at least 1, got 0"),
        ({"padding": -1}, ArgumentError, "padding must be one or two integers of at least 0, got -1"),
        ({"padding": ((0, 0), (0, -1))}, ArgumentError, "padding must be"),
    ],
)
def test_errors_say_what_was_expected(changes, error, message):
    arguments = {"x": np.ones((1, 4, 4, 2)), "weight": np.ones((3, 3, 2, 4)), "bias": np.ones(4), **changes}
    arrays = {name: Tensor(arguments.pop(name)) for name in ("x", "weight", "bias")}
    with pytest.raises(error, match=message):
        conv2d(**arrays, **arguments)


def test_an_unknown_word_for_padding_is_refused():
    with pytest.raises(ArgumentError, match='pixels, "same" or "valid", got \'full\''):
        unwrap(resolve_padding)("full", (4, 4), (3, 3), (1, 1))  # without the run-time check of its annotation
