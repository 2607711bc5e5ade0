"""Layers against PyTorch's, and the conventions of batch normalisation."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest

from refnet.arrays import Array
from refnet.autograd import Tensor
from refnet.errors import ArgumentError, ShapeError
from refnet.nn import BatchNorm2d, Conv2d, ConvTranspose2d, FrozenBatchNorm2d, Linear, Module, init


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch", reason="layers are compared with PyTorch's")


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def channels_first(torch: Any, x: Array) -> Any:
    return torch.tensor(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def channels_last(x: Any) -> Array:
    return np.moveaxis(x.detach().numpy(), 1, -1)


def close(got: Array, expected: Array) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_conv2d_is_pytorchs_with_the_weight_transposed(torch: Any, bias: bool) -> None:
    generator = rng()
    layer = Conv2d(
        4,
        6,
        (3, 2),
        stride=(2, 1),
        padding=(1, 2),
        dilation=(1, 2),
        groups=2,
        bias=bias,
        bias_init=init.normal(1.0),
        rng=generator,
        dtype=np.float64,
    )
    theirs = torch.nn.Conv2d(4, 6, (3, 2), (2, 1), (1, 2), (1, 2), 2, bias, dtype=torch.float64)
    theirs.load_state_dict(
        {n: torch.tensor(a.transpose(3, 2, 0, 1) if a.ndim == 4 else a) for n, a in layer.state().items()}
    )
    x = generator.standard_normal((2, 7, 8, 4))
    close(layer(Tensor(x)).data, channels_last(theirs(channels_first(torch, x))))


def test_conv_transpose2d_is_pytorchs_with_the_weight_transposed(torch: Any) -> None:
    generator = rng()
    layer = ConvTranspose2d(
        4,
        6,
        3,
        stride=2,
        padding=1,
        output_padding=1,
        groups=2,
        bias_init=init.normal(1.0),
        rng=generator,
        dtype=np.float64,
    )
    theirs = torch.nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2, dtype=torch.float64)
    theirs.load_state_dict(
        {n: torch.tensor(a.transpose(2, 3, 0, 1) if a.ndim == 4 else a) for n, a in layer.state().items()}
    )
    x = generator.standard_normal((2, 4, 5, 4))
    close(layer(Tensor(x)).data, channels_last(theirs(channels_first(torch, x))))


def test_linear_is_pytorchs_with_the_weight_transposed(torch: Any) -> None:
    generator = rng()
    layer = Linear(5, 3, bias_init=init.normal(1.0), rng=generator, dtype=np.float64)
    theirs = torch.nn.Linear(5, 3, dtype=torch.float64)
    theirs.load_state_dict({n: torch.tensor(a.T) for n, a in layer.state().items()})
    x = generator.standard_normal((4, 5))
    close(layer(Tensor(x)).data, theirs(torch.tensor(x)).detach().numpy())


def randomized(layer: Module, generator: np.random.Generator) -> None:
    for array in layer.state().values():
        array[...] = generator.uniform(0.5, 2, array.shape)


def test_batch_norm_trains_and_infers_as_pytorchs_does(torch: Any) -> None:
    generator = rng()
    layer = BatchNorm2d(3, epsilon=1e-3, momentum=0.2, dtype=np.float64)
    randomized(layer, generator)
    theirs = torch.nn.BatchNorm2d(3, eps=1e-3, momentum=0.2, dtype=torch.float64)
    for name, array in (
        ("weight", layer.weight.data),
        ("bias", layer.bias.data),
        ("running_mean", layer.running_mean),
        ("running_var", layer.running_variance),
    ):
        theirs.state_dict()[name].copy_(torch.tensor(array))

    for _ in range(3):
        x = Tensor(generator.normal(3, 2, (2, 4, 5, 3)), requires_grad=True)
        x_theirs = channels_first(torch, x.data).requires_grad_()
        y, y_theirs = layer(x, training=True), theirs(x_theirs)
        close(y.data, channels_last(y_theirs))
        u = generator.standard_normal(y.shape)
        layer.zero_grad()
        theirs.zero_grad()
        y.backward(u)
        y_theirs.backward(channels_first(torch, u))
        close(x.grad, channels_last(x_theirs.grad))
        close(layer.weight.grad, theirs.weight.grad.numpy())
        close(layer.bias.grad, theirs.bias.grad.numpy())
        close(layer.running_mean, theirs.running_mean.numpy())
        close(layer.running_variance, theirs.running_var.numpy())

    theirs.eval()
    before = layer.running_mean.copy()
    close(layer(x, training=False).data, channels_last(theirs(x_theirs)))
    np.testing.assert_array_equal(layer.running_mean, before)


@pytest.mark.convention("backbone.norm_momentum", "backbone.norm_variance")
@pytest.mark.parametrize(
    ("rule", "variance"),
    [("unbiased", 0.75 + 0.25 * 5 / 3), ("biased", 0.75 + 0.25 * 5 / 4), ("keras", 0.75 + 0.25 * 5 / 2.5)],
)
def test_running_averages_by_hand(rule: Literal["unbiased", "biased", "keras"], variance: float) -> None:
    layer = BatchNorm2d(1, epsilon=0.5, momentum=0.25, variance=rule, dtype=np.float64)
    mean = layer.running_mean
    layer(Tensor(np.array([0.0, 1.0, 2.0, 3.0]).reshape(1, 2, 2, 1)), training=True)  # variance 5 / 4
    assert layer.running_mean is mean  # in place, so that a state taken before stays the state
    np.testing.assert_array_equal(layer.running_mean, 0.25 * 1.5)
    np.testing.assert_allclose(layer.running_variance, variance, rtol=1e-15)


def test_one_value_a_channel_has_no_unbiased_variance() -> None:
    x = Tensor(np.ones((1, 1, 1, 2), np.float32))
    with pytest.raises(ShapeError, match="unbiased variance"):
        BatchNorm2d(2)(x, training=True)
    np.testing.assert_array_equal(BatchNorm2d(2, variance="biased")(x, training=True).data, 0)


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_frozen_batch_norm_is_pytorchs_at_inference(torch: Any, trainable: bool, training: bool) -> None:
    generator = rng()
    layer = FrozenBatchNorm2d(3, epsilon=0.0, trainable=trainable, dtype=np.float64)
    randomized(layer, generator)
    before = {name: array.copy() for name, array in layer.state().items()}
    x = Tensor(generator.standard_normal((2, 4, 5, 3)), requires_grad=True)
    x_theirs = channels_first(torch, x.data).requires_grad_()
    weight, bias, mean, variance = (torch.tensor(array) for array in layer.state().values())
    weight.requires_grad_()
    bias.requires_grad_()
    y = layer(x, training=training)
    y_theirs = torch.nn.functional.batch_norm(x_theirs, mean, variance, weight, bias, eps=0.0)
    close(y.data, channels_last(y_theirs))

    u = generator.standard_normal(y.shape)
    y.backward(u)
    y_theirs.backward(channels_first(torch, u))
    close(x.grad, channels_last(x_theirs.grad))
    if trainable:
        close(layer.weight.grad, weight.grad.numpy())
        close(layer.bias.grad, bias.grad.numpy())
    for name, array in layer.state().items():
        np.testing.assert_array_equal(array, before[name])


def test_batch_norms_have_the_same_names_and_differ_in_what_is_trained() -> None:
    names = ["weight", "bias", "running_mean", "running_variance"]
    assert list(BatchNorm2d(2).state()) == names
    assert list(FrozenBatchNorm2d(2).state()) == names
    assert list(BatchNorm2d(2).parameters()) == names[:2]
    assert list(FrozenBatchNorm2d(2, trainable=True).parameters()) == names[:2]
    assert list(FrozenBatchNorm2d(2).parameters()) == []


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layers_keep_the_data_type(dtype: type[np.floating]) -> None:
    generator = rng()
    norm = BatchNorm2d(2, dtype=dtype)
    frozen = FrozenBatchNorm2d(2, trainable=True, dtype=dtype)
    layers = [
        Conv2d(2, 2, 1, rng=generator, dtype=dtype),
        ConvTranspose2d(2, 2, 2, stride=2, rng=generator, dtype=dtype),
        Linear(2, 2, rng=generator, dtype=dtype),
        lambda x: norm(x, training=True),
        lambda x: norm(x, training=False),
        lambda x: frozen(x, training=True),
    ]
    y = Tensor(generator.standard_normal((1, 3, 3, 2)).astype(dtype))
    for layer in layers:
        y = layer(y)
        assert y.dtype == dtype
    y.backward(np.ones(y.shape, dtype))
    assert norm.weight.grad.dtype == dtype
    assert all(array.dtype == dtype for array in norm.state().values())


def test_layers_start_by_their_initialisers_in_the_order_weight_bias() -> None:
    layer = Conv2d(2, 3, 1, weight_init=init.normal(2.0), bias_init=init.uniform(1.0), rng=rng())
    generator = rng()
    np.testing.assert_array_equal(layer.weight.data, init.normal(2.0)((1, 1, 2, 3), generator, np.float32))
    np.testing.assert_array_equal(layer.bias.data, init.uniform(1.0)((3,), generator, np.float32))
    np.testing.assert_array_equal(Linear(2, 3, rng=rng()).bias.data, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conv2d(3, 4, 3, groups=2, rng=rng()), "multiples of the groups"),
        (lambda: Conv2d(3, 0, 3, rng=rng()), "channels must be positive"),
        (lambda: Conv2d(3, 4, 0, rng=rng()), "kernel_size"),
        (lambda: ConvTranspose2d(4, 3, 3, groups=2, rng=rng()), "multiples of the groups"),
        (lambda: Linear(0, 4, rng=rng()), "channels must be positive"),
        (lambda: BatchNorm2d(2, momentum=1.5), "momentum"),
        (lambda: BatchNorm2d(2, epsilon=-1.0), "epsilon"),
        (lambda: FrozenBatchNorm2d(0), "channels"),
    ],
)
def test_layers_reject(make: Callable[[], Module], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()
