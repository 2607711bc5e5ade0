"""Backbones with a pyramid against torchvision's, and VGG: residual networks of every depth, VGG of every depth.

The golden file holds C2 to C5 and P2 to P6 of an image, and of every parameter the gradient of the inner product of
the pyramid with arrays drawn by the rule; ResNet-50 stands in the files of the detectors.
"""

import numpy as np
import pytest

import refnet.kernels
from refnet.autograd import Tensor
from refnet.bench.rule import image, weight
from refnet.errors import ConfigError
from refnet.nn import Module, set_trainable
from refnet.nn.init import Blank
from refnet.ops import sum as total
from refnet.rcnn import MaskRCNN
from refnet.rcnn.config import BackboneConfig, FpnConfig
from refnet.rcnn.fpn import FPN
from refnet.rcnn.layers import LAYERS
from refnet.rcnn.model import BACKBONES
from refnet.rcnn.presets import shapes
from refnet.rcnn.vgg import CONVOLUTIONS, VGG
from tests.golden.torchvision_rule import classifier_name, fill
from tests.rcnn.golden import Golden, nchw
from tests.rcnn.small import scene, shrink, vary

LEVELS = ("0", "1", "2", "3", "pool")


class Body(Module):
    """A backbone and a pyramid, under the names that they have in a detector."""

    def __init__(self, config: BackboneConfig) -> None:
        rng = Blank()
        self.backbone = BACKBONES[config.family](3, config, rng=rng, dtype=np.float64)
        self.fpn = FPN(self.backbone.out_channels, FpnConfig(), config, rng=rng, dtype=np.float64)


def vgg_name(depth: int):
    """torchvision's names of VGG's convolutions: their places in a sequence with ReLUs and max-pools."""
    places, place = {}, 0
    for stage, count in enumerate(CONVOLUTIONS[depth]):
        for index in range(count):
            places[f"backbone.stages.{stage}.{index}"], place = place, place + 2
        place += 1

    def naming(name: str) -> str:
        layer, _, leaf = name.rpartition(".")
        return f"features.{places[layer]}.{leaf}" if layer in places else classifier_name(name)

    return naming


@pytest.fixture(scope="module")
def golden():
    refnet.kernels.install()
    yield Golden("torchvision_backbones.npz")
    refnet.kernels.uninstall()


@pytest.mark.convention("backbone.norm_epsilon")
@pytest.mark.parametrize(
    ("family", "depth", "epsilon"),
    [*(("resnet", depth, 1e-5) for depth in (18, 34, 101, 152)), ("resnet", 18, 0.0)]
    + [("vgg", depth, 1e-5) for depth in CONVOLUTIONS],
)
def test_features_and_gradients_are_torchvisions(golden, family, depth, epsilon):
    naming = vgg_name(depth) if family == "vgg" else classifier_name
    model = Body(BackboneConfig(family=family, depth=depth, norm_epsilon=epsilon))
    fill(model, naming)
    case = f"{family}{depth}" + ("" if epsilon else ".epsilon0")
    pixels = Tensor(image(f"{family}{depth}", 64, 96)[None] / 255)
    features = model.backbone(pixels, training=True)
    for level, c in enumerate(features):
        golden.check(f"{case}.body.{level}", nchw(c.data))
    pyramid = model.fpn(features, training=True)
    products = []
    for level, p in zip(LEVELS, pyramid, strict=True):
        golden.check(f"{case}.fpn.{level}", nchw(p.data))
        cotangent = weight(f"cotangent.{level}", nchw(p.data).shape).transpose(0, 2, 3, 1)
        products.append(total(p * np.ascontiguousarray(cotangent)))
    (products[0] + products[1] + products[2] + products[3] + products[4]).backward()
    golden.check_gradients(model, naming, f"{case}.grad.")


def vgg(**fields) -> VGG:
    config = BackboneConfig(family="vgg", **{"depth": 11, "width": 4, **fields})
    return VGG(3, config, rng=np.random.default_rng(0), dtype=np.float64)


@pytest.mark.parametrize(
    ("depth", "published"), [(11, 132_863_336), (13, 133_047_848), (16, 138_357_544), (19, 143_667_240)]
)
def test_parameters_of_the_published_classifiers(depth, published):
    network = VGG(3, BackboneConfig(family="vgg", depth=depth), rng=Blank())
    classifier = (512 * 7 * 7 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 1000
    assert network.count() + classifier == published


@pytest.mark.parametrize("depth", CONVOLUTIONS)
@pytest.mark.parametrize("size", [(64, 96), (45, 50)])
def test_shapes_of_vgg(depth, size):
    network = vgg(depth=depth)
    features = network(Tensor(np.zeros((2, *size, 3))), training=False)
    assert network.out_channels == (16, 32, 32, 32)
    for stride, width, c in zip((4, 8, 16, 32), network.out_channels, features, strict=True):
        assert c.shape == (2, size[0] // stride, size[1] // stride, width)


def test_a_depth_belongs_to_a_family():
    with pytest.raises(ConfigError, match=r"backbone.depth must be one of \(11, 13, 16, 19\) for vgg, got 50"):
        BackboneConfig(family="vgg")
    with pytest.raises(ConfigError, match=r"backbone.depth must be one of .* for resnet, got 16"):
        BackboneConfig(depth=16)


SMALL = vary(shrink(shapes()), {"backbone.family": "vgg", "backbone.depth": 16})


@pytest.mark.parametrize("first", [3, 4, 5])
def test_layers_of_vgg_train_from_a_block_on(first):
    model = MaskRCNN(SMALL, rng=np.random.default_rng(0))
    blocks = tuple(f"backbone.stages.{block}." for block in range(first - 1, 5))
    trained = set_trainable(model, LAYERS[f"{first}+"])
    expected = [name for name in model.parameters() if name.startswith(blocks) or not name.startswith("backbone.")]
    assert trained == expected
    picture, truth = scene(48, 56)
    model.losses([picture], [truth], rng=np.random.default_rng(0)).total.backward()
    assert [name for name, value in model.parameters().items() if value.grad is not None] == trained
