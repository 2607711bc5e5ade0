"""The residual network: published parameter counts, shapes, where it strides, its norms, and PyTorch's functions."""

import numpy as np
import pytest

from refnet.autograd import Tensor
from refnet.nn import BatchNorm2d
from refnet.nn.init import Blank
from refnet.ops import sum as add_up
from refnet.rcnn.config import BackboneConfig
from refnet.rcnn.presets import matterport
from refnet.rcnn.resnet import ResNet
from refnet.rcnn.vgg import VGG
from tests.golden.matterport_rules import load, normal
from tests.rcnn.small import vary


def build(channels: int = 3, dtype=np.float64, **fields) -> ResNet:
    return ResNet(channels, BackboneConfig(**{"width": 4, **fields}), rng=np.random.default_rng(0), dtype=dtype)


@pytest.mark.parametrize(
    ("depth", "published"),
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_parameters_of_the_published_classifiers(depth, published):
    network = ResNet(3, BackboneConfig(depth=depth, norm="batch"), rng=Blank())
    classifier = network.out_channels[-1] * 1000 + 1000
    assert network.count() + classifier == published


@pytest.mark.convention("backbone.norm")
def test_frozen_norms_hold_no_parameters():
    parameters = {norm: build(depth=18, norm=norm).count() for norm in ("batch", "frozen_statistics", "frozen")}
    assert parameters["batch"] == parameters["frozen_statistics"]
    frozen = build(depth=18, norm="frozen")
    norms = [name for name in frozen.state() if ".norm." in name and name.rsplit(".", 1)[1] in ("weight", "bias")]
    shifts_and_scales = sum(frozen.state()[name].size for name in norms)
    assert parameters["batch"] - parameters["frozen"] == shifts_and_scales > 0
    assert set(build(depth=18, norm="batch").state()) == set(frozen.state())


@pytest.mark.convention("backbone.conv_bias")
def test_convolutions_have_biases_if_asked():
    plain, biased = build(depth=18), build(depth=18, conv_bias=True)
    added = set(biased.parameters()) - set(plain.parameters())
    assert added == {name.replace(".weight", ".bias") for name in plain.parameters()}
    assert not set(plain.parameters()) - set(biased.parameters())


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("stride_in", ["1x1", "3x3"])
@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("size", [(64, 96), (33, 50)])
def test_shapes(depth, stride_in, padding, size):
    network = build(depth=depth, stride_in=stride_in, padding=padding)
    features = network(Tensor(np.zeros((2, *size, 3))), training=False)
    widths = [4, 8, 16, 32] if depth == 18 else [16, 32, 64, 128]
    assert network.out_channels == tuple(widths)
    for stride, width, c in zip((4, 8, 16, 32), widths, features, strict=True):
        assert c.shape == (2, -(-size[0] // stride), -(-size[1] // stride), width)


@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_input_channels(channels):
    network = build(channels, depth=18)
    assert network.stem.conv.weight.shape == (7, 7, channels, 4)
    assert network(Tensor(np.zeros((1, 32, 32, channels))), training=False)[3].shape == (1, 1, 1, 32)


@pytest.mark.convention("backbone.stride_in")
@pytest.mark.parametrize(("stride_in", "reads_odd_pixels"), [("1x1", False), ("3x3", True)])
def test_a_strided_1x1_convolution_skips_every_other_pixel(stride_in, reads_odd_pixels):
    block = build(depth=50, stride_in=stride_in).stages[1][0]
    rng = np.random.default_rng(1)
    x = rng.uniform(0, 1, (1, 8, 8, 16))
    changed = x.copy()
    changed[:, 1::2, 1::2] += rng.uniform(0, 1, (1, 4, 4, 16))
    before, after = (block(Tensor(v), training=False).data for v in (x, changed))
    assert before.shape == (1, 4, 4, 32)
    assert (np.abs(after - before).max() > 0) == reads_odd_pixels


@pytest.mark.convention("backbone.norm")
def test_a_norm_uses_the_statistics_that_its_kind_says():
    rng = np.random.default_rng(2)
    x = Tensor(rng.standard_normal((4, 32, 32, 3)))
    for kind in ("frozen", "frozen_statistics", "batch"):
        network = build(depth=18, norm=kind)
        state = {name: array.copy() for name, array in network.state().items()}
        inference, training = (network(x, training=flag)[0].data for flag in (False, True))
        moved = {name for name, array in network.state().items() if not np.array_equal(array, state[name])}
        if kind == "batch":
            assert moved == {name for name in state if "running" in name}
            assert np.abs(training - inference).max() > 1e-3
        else:
            assert not moved
            np.testing.assert_array_equal(training, inference)


@pytest.mark.convention("backbone.norm_epsilon", "backbone.norm_momentum", "backbone.norm_variance")
@pytest.mark.parametrize("variance", ["unbiased", "biased", "keras"])
def test_epsilon_momentum_and_variance_reach_every_norm(variance):
    network = build(norm="batch", norm_epsilon=0.25, norm_momentum=0.125, norm_variance=variance)
    norms = [layer.norm for layer in layers_of(network)]
    assert len(norms) == 53  # ResNet-50 has 53 convolutions
    assert {(norm.epsilon, norm.momentum, norm.variance) for norm in norms} == {(0.25, 0.125, variance)}
    assert all(isinstance(norm, BatchNorm2d) for norm in norms)


def layers_of(network: ResNet):
    yield network.stem
    for block in (block for stage in network.stages for block in stage):
        yield from block.branch
        if block.shortcut is not None:
            yield block.shortcut


@pytest.mark.convention("backbone.zero_init_residual")
@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_zero_initialized_blocks_are_the_identity(depth, norm):
    network = build(depth=depth, norm=norm, zero_init_residual=True)
    x = np.random.default_rng(3).uniform(0, 1, (1, 4, 4, network.out_channels[0]))
    np.testing.assert_array_equal(network.stages[0][1](Tensor(x), training=True).data, x)
    plain = build(depth=depth, norm=norm)
    assert np.abs(plain.stages[0][1](Tensor(x), training=True).data - x).max() > 1e-3


@pytest.mark.convention("backbone.initialization")
@pytest.mark.parametrize("family", ["resnet", "vgg"])
def test_initial_weights(family):
    """Normal with the variance 2 / fan out, or uniform up to sqrt(6 / (fan in + fan out))."""
    depth = {"resnet": 18, "vgg": 11}[family]
    for kind in ("kaiming_fan_out", "glorot_uniform"):
        config = BackboneConfig(family=family, depth=depth, width=16, initialization=kind)
        network = {"resnet": ResNet, "vgg": VGG}[family](3, config, rng=np.random.default_rng(0))
        weights = {name: p.data for name, p in network.parameters().items() if p.data.ndim == 4}
        assert len(weights) >= 8
        for name, weight in weights.items():
            kh, kw, inputs, outputs = weight.shape
            if kind == "kaiming_fan_out":
                # the deviation of n normal numbers is known to 1 / sqrt(2 n)
                assert abs(weight.std() / np.sqrt(2 / (kh * kw * outputs)) - 1) < 5 / np.sqrt(2 * weight.size), name
            else:
                bound = np.sqrt(6 / (kh * kw * (inputs + outputs)))
                assert 0.98 * bound < np.abs(weight).max() <= bound * (1 + 1e-6), name


@pytest.mark.convention("backbone.padding")
@pytest.mark.parametrize("name", ["stem_16x20", "stem_17x19"])
def test_matterports_stem_pads_its_pooling_below_and_to_the_right(name):
    golden = load("same_padding")
    height, width = (int(v) for v in name.removeprefix("stem_").split("x"))
    config = vary(matterport().backbone, {"width": 4, "depth": 18, "conv_bias": False, "norm_epsilon": 0.0})
    network = ResNet(3, config, rng=np.random.default_rng(0), dtype=np.float64)
    network.stem.conv.weight.data[...] = normal(f"{name}/w", (7, 7, 3, 4))
    x = Tensor(normal(f"{name}/x", (1, height, width, 3)).astype(np.float64))
    convolved = network.stem(x, training=False)  # the norm is the identity
    scale = np.abs(golden[f"{name}.conv"]).max()
    np.testing.assert_allclose(convolved.data, golden[f"{name}.conv"], rtol=0, atol=2e-6 * scale)
    network.stages = [[]]  # so that what enters them comes out
    pooled = np.maximum(golden[f"{name}.pool"], 0)
    np.testing.assert_allclose(network(x, training=False)[0].data, pooled, rtol=0, atol=2e-6 * scale)


@pytest.mark.convention("backbone.padding", "backbone.stride_in")
@pytest.mark.parametrize("depth", [18, 50])
def test_against_pytorchs_functions(torch, depth):
    """The whole network of both kinds of blocks, from the definition, by torch.nn.functional."""
    functional = torch.nn.functional
    network = build(depth=depth, norm="frozen", norm_epsilon=1e-3)
    rng = np.random.default_rng(4)
    for name, array in network.state().items():
        if ".norm." in name:
            array[...] = rng.uniform(0.5, 1.5, array.shape)

    def conv_norm(layer, x, stride):
        weight = torch.tensor(layer.conv.weight.data.transpose(3, 2, 0, 1).copy())
        x = functional.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
        norm = layer.norm
        mean, variance, scale, shift = (
            torch.tensor(v) for v in (norm.running_mean, norm.running_variance, norm.weight, norm.bias)
        )
        return functional.batch_norm(x, mean, variance, scale, shift, eps=1e-3)

    x = rng.standard_normal((2, 45, 64, 3))
    y = functional.relu(conv_norm(network.stem, torch.tensor(x.transpose(0, 3, 1, 2).copy()), 2))
    y = functional.max_pool2d(y, 3, stride=2, padding=1)
    expected = []
    for index, blocks in enumerate(network.stages):
        for position, block in enumerate(blocks):
            stride = 2 if index and not position else 1
            strided = 0 if depth == 18 else 1  # of a bottleneck, the 3x3
            z = y
            for i, layer in enumerate(block.branch):
                z = conv_norm(layer, z, stride if i == strided else 1)
                if i < len(block.branch) - 1:
                    z = functional.relu(z)
            shortcut = y if block.shortcut is None else conv_norm(block.shortcut, y, stride)
            y = functional.relu(z + shortcut)
        expected.append(y.numpy().transpose(0, 2, 3, 1))
    for ours, theirs in zip(network(Tensor(x), training=False), expected, strict=True):
        np.testing.assert_allclose(ours.data, theirs, rtol=0, atol=1e-11 * np.abs(theirs).max())


@pytest.mark.parametrize("norm", ["batch", "frozen", "frozen_statistics"])
@pytest.mark.parametrize("depth", [18, 50])
def test_checkpoints_change_no_bit(depth, norm):
    """Features, gradients of weights and pixels, and running statistics, which move once a step."""
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((2, 64, 64, 3))
    kept = []
    for checkpoint in (False, True):
        network = build(depth=depth, norm=norm, checkpoint=checkpoint)
        values = np.random.default_rng(1)
        for array in network.state().values():
            if array.ndim == 1:  # scales, shifts and statistics, which start at 0 and 1
                array[...] = values.uniform(0.5, 1.5, array.shape)
        x = Tensor(pixels, requires_grad=True)
        features = network(x, training=True)
        weighted = [add_up(c * values.standard_normal(c.shape)) for c in features]
        (weighted[0] + weighted[1] + weighted[2] + weighted[3]).backward()
        kept.append(
            [c.data for c in features]
            + [p.grad for p in network.parameters().values()]
            + [x.grad, *network.buffers().values()]
        )
    for plain, recomputed in zip(*kept, strict=True):
        np.testing.assert_array_equal(recomputed, plain)
