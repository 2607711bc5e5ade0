"""A convolution with what follows it, at once where that is one operation, equals its steps."""

import numpy as np
import pytest

from refnet.autograd import Tensor, no_grad
from refnet.nn import Conv2d
from refnet.ops import conv2d_fused_forward, relu
from refnet.rcnn.config import BackboneConfig
from refnet.rcnn.layers import convolve, make_norm


def layer(kind: str, *, bias: bool, seed: int = 0):
    """A convolution from 2 to 3 channels and its norm, with values that nothing leaves as it is."""
    rng = np.random.default_rng(seed)
    conv = Conv2d(2, 3, 3, padding=1, bias=bias, rng=rng, dtype=np.float64)
    if conv.bias is not None:
        conv.bias.data[...] = rng.standard_normal(3)
    if kind == "none":
        return conv, None
    norm = make_norm(kind, 3, BackboneConfig(), np.float64)
    for array in norm.state().values():
        array[...] = rng.uniform(0.5, 2, 3)
    return conv, norm


def gradients(y: Tensor, u: np.ndarray, *owners) -> list[np.ndarray | None]:
    tensors = [p for owner in owners for p in ([owner] if isinstance(owner, Tensor) else owner.parameters().values())]
    for tensor in tensors:
        tensor.grad = None
    y.backward(u)
    return [tensor.grad for tensor in tensors]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["none", "batch", "frozen", "frozen_statistics"])
def test_a_convolution_with_its_norm_is_its_steps(kind, bias, training):
    conv, norm = layer(kind, bias=bias)
    rng = np.random.default_rng(1)
    x, residual = (Tensor(rng.standard_normal((2, 4, 4, c)), requires_grad=True) for c in (2, 3))
    u = rng.standard_normal(residual.shape)
    before = {} if norm is None else {name: array.copy() for name, array in norm.buffers().items()}
    expected = conv(x) if norm is None else norm(conv(x), training=training)
    expected = relu(expected + residual)
    moved = {} if norm is None else {name: array.copy() for name, array in norm.buffers().items()}
    owners = [x, residual, conv, *([] if norm is None else [norm])]
    wanted = gradients(expected, u, *owners)
    for name, array in before.items():
        norm.buffers()[name][...] = array
    y = convolve(conv, norm, x, training=training, residual=residual, rectified=True)
    np.testing.assert_allclose(y.data, expected.data, rtol=0, atol=1e-12)
    for grad, step in zip(gradients(y, u, *owners), wanted, strict=True):
        np.testing.assert_allclose(grad, step, rtol=0, atol=1e-12)
    for name, array in moved.items():
        np.testing.assert_array_equal(norm.buffers()[name], array)
    with no_grad():
        y = convolve(conv, norm, x, training=training, residual=residual, rectified=True)
    np.testing.assert_allclose(y.data, expected.data, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "training", "recording", "fused"),
    [
        ("none", True, True, True),
        ("frozen", True, True, True),
        ("frozen_statistics", True, True, False),
        ("frozen_statistics", True, False, True),
        ("batch", True, False, False),
        ("batch", False, True, False),
        ("batch", False, False, True),
    ],
)
def test_what_is_one_operation(kind, training, recording, fused):
    """All that isn't the scale's gradient or the batch's own statistics."""
    conv, norm = layer(kind, bias=True)
    calls = []

    def counted(*args, **kwargs):
        calls.append(kwargs["relu"])
        return conv2d_fused_forward.specification(*args, **kwargs)

    x = Tensor(np.ones((1, 4, 4, 2)))
    with conv2d_fused_forward.using(counted):
        if recording:
            convolve(conv, norm, x, training=training, rectified=True)
        else:
            with no_grad():
                convolve(conv, norm, x, training=training, rectified=True)
    assert (calls == [True]) == fused
