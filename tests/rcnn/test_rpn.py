"""The region proposal network: the order of its outputs is that of the anchors."""

import numpy as np
import pytest

from refnet.autograd import Tensor
from refnet.rcnn.config import RpnConfig
from refnet.rcnn.rpn import RPN

ANCHORS = 3


def transparent(objectness: str, step: int = 1, **fields) -> RPN:
    """The hidden layer copies its one channel; output channel k is (k + 1) times as much, plus k / 8."""
    rpn = RPN(
        1,
        ANCHORS,
        RpnConfig(channels=1, objectness=objectness, **fields),
        step=step,
        rng=np.random.default_rng(0),
        dtype=np.float64,
    )
    for convolution in rpn.convolutions:
        convolution.weight.data[...] = 0
        convolution.weight.data[1, 1] = 1
    for layer in (rpn.objectness, rpn.deltas):
        channels = np.arange(layer.weight.shape[3])
        layer.weight.data[0, 0, 0], layer.bias.data[...] = channels + 1, channels / 8
    return rpn


@pytest.mark.convention("rpn.objectness")
@pytest.mark.parametrize(("objectness", "logits"), [("sigmoid", 1), ("softmax", 2)])
def test_outputs_go_row_by_row_with_all_anchors_of_a_position_together(objectness, logits):
    rng = np.random.default_rng(1)
    pyramid = [Tensor(rng.integers(0, 9, (2, *size, 1)).astype(np.float64)) for size in ((3, 4), (2, 2), (1, 1))]
    output = transparent(objectness)(pyramid)
    for features, own_logits, own_deltas in zip(pyramid, output.objectness_logits, output.deltas, strict=True):
        _, height, width, _ = features.shape
        assert own_logits.shape == (2, height * width * ANCHORS, logits)
        assert own_deltas.shape == (2, height * width * ANCHORS, 4)
        for image, row, column, anchor in np.ndindex(2, height, width, ANCHORS):
            value = features.data[image, row, column, 0]
            index = (row * width + column) * ANCHORS + anchor
            for outputs, count in ((own_logits, logits), (own_deltas, 4)):
                channel = anchor * count + np.arange(count)  # those of one anchor side by side
                np.testing.assert_array_equal(outputs.data[image, index], value * (channel + 1) + channel / 8)


def test_the_hidden_layer_is_rectified():
    rpn = transparent("sigmoid")
    output = rpn([Tensor(np.full((1, 1, 1, 1), -5.0))])
    np.testing.assert_array_equal(output.objectness_logits[0].data[0, :, 0], [0, 1 / 8, 2 / 8])


def test_several_hidden_layers_are_rectified_each():
    rpn = transparent("sigmoid", convolutions=2)
    assert len(rpn.convolutions) == 2
    first, second = rpn.convolutions
    first.bias.data[...], second.bias.data[...] = -2, 3
    features = np.asarray([1.0, 7.0]).reshape(1, 1, 2, 1)
    logits = rpn([Tensor(features)]).objectness_logits[0].data[0, :, 0].reshape(2, ANCHORS)
    np.testing.assert_array_equal(logits[:, 0], [3, 8])  # relu(relu(x - 2) + 3)


@pytest.mark.convention("anchors.step")
@pytest.mark.parametrize(("size", "first"), [((5, 7), 0), ((4, 6), 1), ((1, 1), 0)])
def test_a_step_is_the_stride_of_the_first_layer(size, first):
    """The kernel's middle lies on the first position of an odd extent, and on the second of an even one."""
    features = np.random.default_rng(3).integers(1, 9, (1, *size, 1)).astype(np.float64)
    for layers in (1, 2):
        logits = transparent("sigmoid", step=2, convolutions=layers)([Tensor(features)]).objectness_logits[0]
        np.testing.assert_array_equal(logits.data[0, ::ANCHORS, 0], features[0, first::2, first::2, 0].ravel())
        whole = transparent("sigmoid", convolutions=layers)([Tensor(features)]).objectness_logits[0]
        np.testing.assert_array_equal(whole.data[0, ::ANCHORS, 0], features.ravel())


@pytest.mark.convention("rpn.initialization")
def test_initialization():
    normal = RPN(64, ANCHORS, RpnConfig(channels=64), rng=np.random.default_rng(0))
    glorot = RPN(64, ANCHORS, RpnConfig(channels=64, initialization="glorot_uniform"), rng=np.random.default_rng(0))
    layers = [(rpn.convolutions[0], rpn.objectness, rpn.deltas) for rpn in (normal, glorot)]
    for own, other in zip(*layers, strict=True):
        weight = own.weight.data
        # the deviation of n normal numbers is known to 1 / sqrt(2 n)
        assert abs(weight.std() / 0.01 - 1) < 5 / np.sqrt(2 * weight.size)
        kh, kw, inputs, outputs = weight.shape
        bound = np.sqrt(6 / (kh * kw * (inputs + outputs)))
        assert 0.95 * bound < np.abs(other.weight.data).max() <= bound * (1 + 1e-6)
        assert not own.bias.data.any()
