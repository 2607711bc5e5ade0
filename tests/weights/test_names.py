"""Names and layouts of other programs: published counts, every name of their models, and what each number means."""

import re
from pathlib import Path

import numpy as np
import pytest

from refnet.autograd import Tensor
from refnet.errors import WeightsError
from refnet.nn.init import Blank
from refnet.ops import linear
from refnet.rcnn import MaskRCNN, ModelConfig
from refnet.rcnn.presets import detectron2, matterport, torchvision, torchvision_keypoints, torchvision_v2
from refnet.rcnn.vgg import CONVOLUTIONS
from refnet.weights.layouts import Layout
from refnet.weights.load import load
from refnet.weights.names import CONVENTIONS, Structure, all_layers, detect_convention
from refnet.weights.save import to_tensors
from tests.golden import torchvision_rule
from tests.rcnn.small import scene, shrink, vary

MATTERPORT_NAMES = Path(__file__).parents[1] / "golden/matterport/weight_names.txt"


VGG = vary(torchvision(), {"backbone.family": "vgg", "backbone.depth": 11})
KEYPOINTS = torchvision_keypoints(3, 5)


def full(config: ModelConfig) -> MaskRCNN:
    return MaskRCNN(config, rng=Blank())


def small(config: ModelConfig, seed: int = 0, **changes: object) -> MaskRCNN:
    """A small network of random weights, biases and statistics included, in float64."""
    changes = {
        "backbone.depth": 11 if config.backbone.family == "vgg" else 18,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    model = MaskRCNN(vary(shrink(config), changes), rng=np.random.default_rng(seed), dtype=np.float64)
    rng = np.random.default_rng([seed, 1])
    for name, array in model.state().items():
        if array.ndim == 1:
            array[...] = rng.uniform(0.5, 1.5, array.shape) if name.endswith("ce") else rng.normal(0, 0.1, array.shape)
        else:
            array += rng.normal(0, 0.05, array.shape)
    return model


@pytest.mark.parametrize(
    ("config", "convention", "parameters", "tensors", "values"),
    [
        (vary(torchvision(), {"mask_head.enabled": False}), "torchvision", 41_755_286, 295, None),
        (torchvision(), "torchvision", 44_401_393, 307, None),
        (vary(torchvision_v2(), {"mask_head.enabled": False}), "torchvision", 43_712_278, None, None),
        (torchvision_v2(), "torchvision", 46_359_409, None, None),
        (torchvision_keypoints(), "torchvision", 59_137_258, 313, None),
        (matterport(), "matterport", 64_047_096, 690, 64_158_584),
        (vary(matterport(), {"backbone.depth": 50}), "matterport", None, 384, 45_088_120),
    ],
)
def test_published_counts(config, convention, parameters, tensors, values):
    model = full(config)
    named = to_tensors(model, convention)
    assert parameters in (None, model.count())
    assert tensors in (None, len(named))
    assert values in (None, sum(array.size for array in named.values()))


@pytest.mark.parametrize("depth", [50, 101])
def test_matterport_has_exactly_these_names_and_shapes(depth):
    lines = [line.split() for line in MATTERPORT_NAMES.read_text().splitlines()]
    expected = {
        name: tuple(map(int, shape)) for kind, name, *shape in lines if kind == "resnet50" or depth == 101
    }  # the other file's lines are those that ResNet-101 has besides
    named = to_tensors(full(vary(matterport(3), {"backbone.depth": depth})), "matterport")
    assert {name: array.shape for name, array in named.items()} == expected


@pytest.mark.parametrize(
    ("config", "depth"), [(torchvision(), 18), (torchvision(), 50), (torchvision_v2(), 50), (KEYPOINTS, 18)]
)
def test_torchvision_agrees_with_the_rule_that_the_golden_models_were_filled_by(config, depth):
    """An independent table and transposition, which torchvision's own outputs have confirmed."""
    model = small(config, backbone__depth=depth, box_pool__size=7, box_head__convolutions=config.box_head.convolutions)
    naming = torchvision_rule.torchvision_v2_name if config.box_head.convolutions else torchvision_rule.torchvision_name
    named = to_tensors(model, "torchvision")
    for name, array in model.state().items():
        there = naming(name)
        np.testing.assert_array_equal(named[there], torchvision_rule.to_torch(name, array), err_msg=name)
    assert set(named) == {naming(name) for name in model.state()}


@pytest.mark.parametrize(
    ("convention", "name", "entries"),
    [
        ("torchvision", "fpn.lateral.2.weight", ("inner_blocks.2.0.weight", "inner_blocks.2.weight")),
        ("torchvision", "rpn.convolutions.0.bias", ("rpn.head.conv.0.0.bias", "rpn.head.conv.bias")),
        ("torchvision", "mask_head.convolutions.3.bias", ("mask_head.3.0.bias", "mask_head.mask_fcn4.bias")),
        ("torchvision", "keypoint_head.convolutions.7.weight", ("roi_heads.keypoint_head.14.weight",)),
        ("torchvision", "keypoint_head.upsample.bias", ("keypoint_predictor.kps_score_lowres.bias",)),
        ("torchvision-resnet", "backbone.stages.2.5.shortcut.norm.running_variance", ("layer3.5.downsample.1.running_var",)),
        ("matterport", "backbone.stages.2.22.branch.2.norm.running_mean", ("bn4w_branch2c/moving_mean",)),
        ("detectron2", "backbone.stem.norm.running_variance", ("backbone.bottom_up.stem.conv1.norm.running_var",)),
        ("detectron2", "backbone.stages.3.0.branch.1.conv.weight", ("backbone.bottom_up.res5.0.conv2.weight",)),
        ("detectron2", "fpn.lateral.0.bias", ("backbone.fpn_lateral2.bias",)),
        ("detectron2", "keypoint_head.convolutions.0.weight", ("roi_heads.keypoint_head.conv_fcn1.weight",)),
        ("maskrcnn-benchmark", "backbone.stem.norm.bias", ("backbone.body.stem.bn1.bias",)),
        ("maskrcnn-benchmark", "fpn.output.3.weight", ("backbone.fpn.fpn_layer4.weight",)),
        ("maskrcnn-benchmark", "box_head.hidden.1.bias", ("roi_heads.box.feature_extractor.fc7.bias",)),
        ("multimodallearning", "backbone.stages.3.2.branch.0.norm.weight", ("fpn.C5.2.bn1.weight",)),
        ("multimodallearning", "backbone.stages.0.0.shortcut.conv.bias", ("fpn.C2.0.downsample.0.bias",)),
        ("multimodallearning", "fpn.output.3.bias", ("fpn.P5_conv2.1.bias",)),
        ("multimodallearning", "box_head.classes.weight", ("classifier.linear_class.weight",)),
        ("caffe2-resnet", "backbone.stages.2.5.branch.1.norm.weight", ("res4_5_branch2b_bn_s",)),
        ("caffe2-resnet", "backbone.stages.0.0.shortcut.conv.weight", ("res2_0_branch1_w",)),
        ("caffe2-resnet", "rpn.objectness.bias", ()),
    ],
)  # fmt: skip
def test_some_names(convention, name, entries):
    found = CONVENTIONS[convention].entries(name, Structure())
    assert len(found) == len(entries)
    assert all(there.endswith(expected) for there, expected in zip(found, entries, strict=True)), found


def test_vgg_is_numbered_in_one_row_with_relus_and_pools():
    """torchvision's VGG-16 has its convolutions at these places."""
    names = CONVENTIONS["torchvision-vgg"]
    structure = Structure(vgg_blocks=CONVOLUTIONS[16])
    found = [entry for layer in all_layers() for entry in names.entries(f"{layer}.bias", structure)]
    places = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert found == [f"features.{place}.bias" for place in places]


@pytest.mark.parametrize("convention", CONVENTIONS.values(), ids=lambda convention: convention.name)
def test_no_two_layers_share_a_name(convention):
    for structure in (Structure(), Structure(box_convolutions=4, vgg_blocks=CONVOLUTIONS[19])):
        arrays = [convention.arrays_of(layer, structure) for layer in all_layers()]
        entries = [entry for names in arrays for alternatives in names.values() for entry in alternatives]
        assert len(set(entries)) == len(entries)


@pytest.mark.parametrize(
    ("config", "convention"),
    [
        (torchvision(), "torchvision"),
        (torchvision_v2(), "torchvision"),
        (VGG, "torchvision"),
        (KEYPOINTS, "torchvision"),
        (matterport(), "matterport"),
        (detectron2(), "detectron2"),
        (vary(detectron2(), {"keypoint_head.enabled": True}), "detectron2"),
        (torchvision(), "maskrcnn-benchmark"),
        (matterport(), "multimodallearning"),
        (matterport(), "refnet"),
    ],
)
def test_every_convention_is_recognised_and_gives_back_the_bits(config, convention):
    model = small(config)
    named = to_tensors(model, convention)
    assert detect_convention(named).name == convention
    other = small(config, seed=1)
    report = load(other, named)
    assert report.convention.name == convention
    assert len(report.matched) == len(named) == len(model.state())
    loaded = other.state()
    for name, array in model.state().items():
        np.testing.assert_array_equal(loaded[name], array, err_msg=name)
    again = to_tensors(other, convention)
    assert all(np.array_equal(again[name], array) for name, array in named.items())


def test_names_of_nobody_are_an_error():
    with pytest.raises(
        WeightsError, match=r"expected names of one of the conventions torchvision, .*got 1 names: what"
    ):
        detect_convention({"what": np.zeros(1)})


def test_flattened_features_meet_the_same_weights():
    """torch flattens pooled features as (C, P, P), refnet as (P, P, C): the products are the same."""
    model = small(torchvision())
    named = to_tensors(model, "torchvision")
    size, channels = model.config.box_pool.size, model.config.fpn.channels
    pooled = np.random.default_rng(0).normal(size=(2, size, size, channels))
    here = linear(Tensor(pooled.reshape(2, -1)), model.box_head.hidden[0].weight, None).data
    there = pooled.transpose(0, 3, 1, 2).reshape(2, -1) @ named["roi_heads.box_head.fc6.weight"].T
    np.testing.assert_allclose(here, there, rtol=1e-12)


def test_matterport_says_y_before_x():
    model = small(matterport())
    named = to_tensors(model, "matterport")
    ours, theirs = model.rpn.deltas.bias.data.reshape(-1, 4), named["rpn_bbox_pred/bias"].reshape(-1, 4)
    np.testing.assert_array_equal(theirs, ours[:, [1, 0, 3, 2]])
    ours, theirs = model.box_head.deltas.weight.data, named["mrcnn_bbox_fc/kernel"]
    np.testing.assert_array_equal(theirs.reshape(-1, 4, 4), ours.reshape(-1, 4, 4)[..., [1, 0, 3, 2]])
    np.testing.assert_array_equal(named["mrcnn_class_logits/bias"], model.box_head.classes.bias.data)


def test_detectron2_keeps_the_background_last():
    first = small(vary(detectron2(), {"box_head.background": "first"}))
    named = to_tensors(first, "detectron2")
    logits = first.box_head.classes.bias.data
    np.testing.assert_array_equal(named["roi_heads.box_predictor.cls_score.bias"], [*logits[1:], logits[0]])
    np.testing.assert_array_equal(named["roi_heads.box_predictor.bbox_pred.bias"], first.box_head.deltas.bias.data[4:])
    np.testing.assert_array_equal(named["roi_heads.mask_head.predictor.bias"], first.mask_head.logits.bias.data[1:])


def assert_same_objects(one: MaskRCNN, other: MaskRCNN) -> None:
    images = [scene(40, 52, seed=2)[0]]
    for a, b in zip(one.detect(images), other.detect(images), strict=True):
        assert len(a) == len(b) > 0
        np.testing.assert_allclose(a.boxes, b.boxes, rtol=1e-9)
        np.testing.assert_array_equal(a.classes, b.classes)
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-9)
        np.testing.assert_array_equal(a.masks, b.masks)


TWO_SIZES = ((8.0, 12.0), (16.0, 20.0), (24.0, 28.0), (32.0, 40.0), (48.0, 56.0))


@pytest.mark.parametrize(
    ("config", "convention", "own", "changes"),
    [
        (detectron2(), "detectron2", {}, {"box_head.background": "first"}),
        (torchvision(), "torchvision", {}, {"box_head.background": "last"}),
        (torchvision(), "torchvision", {"anchors__sizes": TWO_SIZES}, {"anchors.order": "size_major"}),
        (matterport(), "matterport", {"detections__classes": "all"}, {"anchors.ratio_is": "h/w"}),
    ],
)
def test_weights_mean_the_same_in_a_network_that_orders_its_outputs_otherwise(config, convention, own, changes):
    one = small(config, detections__score_threshold=0.0, **own)
    other = MaskRCNN(vary(one.config, changes), rng=Blank(), dtype=np.float64)
    assert load(other, to_tensors(one, convention)).complete
    loaded = other.state()
    differing = [name for name, array in one.state().items() if not np.array_equal(array, loaded[name])]
    assert 2 <= len(differing) <= 6
    assert_same_objects(one, other)


def test_a_background_that_a_file_lacks_is_zero_and_said():
    one = small(detectron2())
    other = small(vary(detectron2(), {"box_head.background": "first"}), seed=3)
    notes = " ".join(load(other, to_tensors(one, "detectron2")).notes)
    assert "box_head.deltas.weight: 4 output channels of the background are 0" in notes
    assert (other.box_head.deltas.weight.data[:, :4] == 0).all()
    assert (other.mask_head.logits.bias.data[0] == 0).all()
    back = load(small(detectron2(), seed=4), to_tensors(other, "torchvision")).notes
    assert any(
        re.match(r"mask_head\.logits\.weight: 1 output channels of the background are left out", n) for n in back
    )


def test_ratios_that_are_not_symmetric_need_the_files_meaning():
    config = vary(matterport(), {"anchors.ratios": (1.0, 2.0)})
    named = to_tensors(small(config), "matterport")
    with pytest.raises(WeightsError, match=r"anchors\.ratio_is must be 'w/h' for weights of Matterport's"):
        load(small(vary(config, {"anchors.ratio_is": "h/w"})), named)
    assert Layout(convention=CONVENTIONS["torchvision"], config=torchvision()).file_shape("rpn.deltas.bias", (12,)) == (
        12,
    )
