"""Files of several programs into networks: what is reported, what is refused, and which network a file is of."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from refnet.autograd import Tensor
from refnet.errors import ArgumentError, WeightsError
from refnet.rcnn import MaskRCNN
from refnet.rcnn.presets import detectron2, matterport, shapes, torchvision, torchvision_v2
from refnet.weights import infer, load, model_for, save, write_tensors
from refnet.weights.load import unwrapped
from refnet.weights.save import to_tensors
from tests.golden.torchvision_rule import fill
from tests.rcnn.small import vary
from tests.weights.test_names import KEYPOINTS, VGG, small

OLD_NAMES = [
    (r"((inner|layer)_blocks\.\d)\.0\.", r"\1."),
    (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
    (r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}."),
]


def old_name(name):
    """torchvision's name in the files that it published before its layers were regrouped."""
    for pattern, replacement in OLD_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def copied(model):
    return {name: array.copy() for name, array in model.state().items()}


def assert_equal_states(one, other):
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def seven_cells(config):
    return small(config, box_pool__size=7)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
def test_files_with_names_of_both_generations(tmp_path, suffix, old):
    """The model's weights come from a rule of torchvision's names, so a wrong name or axis gives other numbers."""
    model = seven_cells(torchvision())
    fill(model)
    tensors = to_tensors(model, "torchvision")
    named = {old_name(name) if old else name: array for name, array in tensors.items()}
    named |= {
        name.replace("running_var", "num_batches_tracked"): np.array(7) for name in named if "running_var" in name
    }
    assert old == ("rpn.head.conv.weight" in named)
    file = tmp_path / f"weights{suffix}"
    write_tensors(file, named)
    other = seven_cells(torchvision())
    report = load(other, file)
    assert_equal_states(other.state(), model.state())
    assert report.complete
    assert len(report.matched) == len(tensors)
    assert set(report.ignored.values()) == {"a counter that inference does not need"}
    text = str(report)
    assert (
        f"loaded      {len(tensors)} of {len(tensors)} arrays, {report.model_values:,} of {report.model_values:,}"
        in text
    )
    assert f"parameters  {model.count():,}" in text


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
@pytest.mark.parametrize("config", [torchvision_v2(), shapes()])
def test_a_round_trip_keeps_every_bit(tmp_path, config, suffix):
    model = small(config)
    model.astype(np.float32)
    first, second = tmp_path / f"first{suffix}", tmp_path / f"second{suffix}"
    save(model, first)
    other = MaskRCNN(model.config, rng=np.random.default_rng(7))
    load(other, first)
    assert_equal_states(other.state(), model.state())
    save(other, second)
    assert first.read_bytes() == second.read_bytes()


def test_matterports_file_keeps_every_bit(tmp_path):
    model = small(matterport())
    model.astype(np.float32)
    save(model, tmp_path / "w.h5", "matterport")
    other = MaskRCNN(model.config, rng=np.random.default_rng(7))
    assert load(other, tmp_path / "w.h5").convention.name == "matterport"
    assert_equal_states(other.state(), model.state())


def test_what_cannot_be_written_is_said(tmp_path):
    with pytest.raises(
        WeightsError, match=r"can't be written as Matterport's.*\n  box_head\.hidden\.0\.weight has no name"
    ):
        save(small(torchvision()), tmp_path / "w.npz", "matterport")
    plain = small(matterport(), mask_head__norm="none")
    with pytest.raises(WeightsError, match=r"\n  mask_head\.norm: expected a norm, got none"):
        save(plain, tmp_path / "w.npz", "matterport")
    with pytest.raises(WeightsError, match=r"expected one of the conventions torchvision, .* got 'caffe2-resnet'"):
        save(small(torchvision()), tmp_path / "w.npz", "caffe2-resnet")
    assert not list(tmp_path.iterdir())


def test_another_number_of_classes_needs_the_predictors_excluded():
    file = to_tensors(small(torchvision()), "torchvision")
    model = small(torchvision(), seed=5, num_classes=7)
    before = copied(model)
    with pytest.raises(WeightsError, match=r"6 arrays don't fit the network; nothing was loaded") as raised:
        load(model, file)
    message = str(raised.value)
    assert "mismatched  6:" in message
    assert "box_head.deltas.weight: expected shape (32, 12), got shape (16, 12) " in message
    assert "(roi_heads.box_predictor.bbox_pred.weight)" in message
    assert all(line.startswith("  ") for line in message.splitlines()[1:])
    assert_equal_states(model.state(), before)
    report = load(model, file, exclude=[r"box_head\.(classes|deltas)\..*", r"mask_head\.logits\..*"])
    assert len(report.kept) == 6
    assert sum(reason == "excluded" for reason in report.ignored.values()) == 6
    for name, array in model.state().items():
        assert np.array_equal(array, before[name]) == (name in report.kept), name


def test_a_head_that_the_network_lacks_may_be_excluded():
    file = to_tensors(small(torchvision()), "torchvision")
    model = small(torchvision(), seed=5, mask_head__enabled=False)
    with pytest.raises(
        WeightsError, match=r"unexpected  6:\n.*mask_head\.0\.0\.weight \(mask_head\.convolutions\.0\.weight\)"
    ):
        load(model, file)
    assert load(model, file, exclude=r"mask_head\..*").complete


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: w.pop("roi_heads.box_head.fc7.bias"), r"missing     1:\n +box_head\.hidden\.1\.bias$"),
        (lambda w: w.update({"what.is.this": np.zeros(1)}), r"unexpected  1:\n +what\.is\.this$"),
        (lambda w: w.update({"backbone.body.bn1.bias": np.zeros(4, int)}), r"stem\.norm\.bias: expected floating point, got int"),
        (lambda w: w["backbone.body.bn1.bias"].put(2, np.nan), r"stem\.norm\.bias: expected finite values of float64"),
        (lambda w: w["backbone.body.conv1.weight"].resize(4, 3, 49, refcheck=False), r"\(4, 3, 7, 7\), got shape \(4, 3, 49\)"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_changes_nothing(change, expected):
    named = to_tensors(small(torchvision()), "torchvision")
    change(named)
    model = small(torchvision(), seed=5)
    before = copied(model)
    with pytest.raises(WeightsError, match=r"1 arrays don't fit") as raised:
        load(model, named)
    assert re.search(expected, str(raised.value), re.MULTILINE)
    assert_equal_states(model.state(), before)


def test_patterns_must_mean_something():
    named = to_tensors(small(torchvision()), "torchvision")
    with pytest.raises(ArgumentError, match=r"exclude: the pattern 'box_head' matches the whole of none"):
        load(small(torchvision()), named, exclude="box_head")
    with pytest.raises(ArgumentError, match=r"exclude: '\*' isn't a regular expression"):
        load(small(torchvision()), named, exclude="*")


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_other_precisions_are_converted_and_reported(dtype):
    named = {name: array.astype(dtype) for name, array in to_tensors(small(torchvision()), "torchvision").items()}
    model = small(torchvision(), seed=5)
    report = load(model, named)
    assert f"{len(named)} arrays are {np.dtype(dtype)}, converted to the network's float64" in report.notes
    bias = named["rpn.head.cls_logits.bias"]
    np.testing.assert_array_equal(model.rpn.objectness.bias.data, bias.astype(np.float64))


def test_a_value_beyond_the_networks_precision_is_an_error():
    named = to_tensors(small(torchvision()), "torchvision")
    named["rpn.head.cls_logits.bias"][0] = 1e300
    model = small(torchvision())
    model.astype(np.float32)
    model.dtype = np.dtype(np.float32)
    with pytest.raises(WeightsError, match=r"rpn\.objectness\.bias: expected finite values of float32"):
        load(model, named)


def test_wrappers_prefixes_are_taken_off():
    named = {f"model.module.{name}": array for name, array in to_tensors(small(torchvision()), "torchvision").items()}
    assert load(small(torchvision(), seed=5), named).complete
    assert unwrapped({"module.a": np.zeros(1), "b": np.zeros(1)}).keys() == {"module.a", "b"}


def backbone_of(model, convention):
    """A classifier's file: the backbone's part of a detector's, renamed, and a classifier."""
    named = to_tensors(model, "torchvision" if "torchvision" in convention else "matterport")
    if "torchvision" in convention:
        prefix, last = ("features.", "classifier.6") if "vgg" in convention else ("", "fc")
        body = {k.removeprefix("backbone.body."): v for k, v in named.items() if k.startswith("backbone.body.")}
        named = {f"{prefix}{name}": array for name, array in body.items()}
        return named | {f"{last}.weight": np.zeros((1000, 8)), f"{last}.bias": np.zeros(1000)}
    return {k: v for k, v in named.items() if re.match(r"(res|bn)\d|conv1|bn_conv1", k)} | {"fc1000/bias": np.zeros(3)}


@pytest.mark.parametrize(
    ("config", "convention"),
    [(torchvision(), "torchvision-resnet"), (VGG, "torchvision-vgg"), (matterport(), "keras-resnet")],
)
def test_a_classifiers_file_fills_the_backbone_alone(config, convention):
    source, model = small(config), small(config, seed=5)
    before = copied(model)
    report = load(model, backbone_of(source, convention))
    assert report.convention.name == convention
    assert "everything behind it keeps its values" in str(report)
    assert "the classifier of another task" in report.ignored.values()
    weights = source.state()
    for name, array in model.state().items():
        theirs = weights[name] if name.startswith("backbone.") else before[name]
        np.testing.assert_array_equal(array, theirs, err_msg=name)
    with pytest.raises(WeightsError, match="expected those of a detector, got those of a backbone"):
        model_for(backbone_of(source, convention))
    short = backbone_of(source, convention)
    short.pop(next(name for name in short if "3" in name))
    with pytest.raises(WeightsError, match=r"missing     1:\n +backbone\."):
        load(model, short)


def test_caffe2s_affine_norms_become_the_identity_before_scale_and_shift():
    source = small(detectron2())
    names = {
        "conv1.weight": "conv1_w", "conv1.norm.weight": "res_conv1_bn_s", "conv1.norm.bias": "res_conv1_bn_b",
    }  # fmt: skip
    named = {"fc1000_w": np.zeros((2, 2)), "conv1_b": np.zeros(4)}
    for name, array in to_tensors(source, "detectron2").items():
        short = name.removeprefix("backbone.bottom_up.").removeprefix("stem.")
        if short == name or "running" in name:
            continue
        block = re.sub(r"conv(\d)", lambda m: "branch2" + "abc"[int(m[1]) - 1], short).replace("shortcut", "branch1")
        ends = {".norm.weight": "_bn_s", ".norm.bias": "_bn_b", ".weight": "_w"}
        end = next(end for end in ends if block.endswith(end))
        named[names.get(short, block.removesuffix(end).replace(".", "_") + ends[end])] = array
    model = small(detectron2(), seed=5)
    report = load(model, named)
    norms = sum(name.startswith("backbone.") and name.endswith("running_mean") for name in model.state())
    assert f"{2 * norms} statistics are mean 0 and variance 1 - epsilon" in str(report)
    norm, x = model.backbone.stem.norm, np.random.default_rng(0).normal(size=(1, 2, 2, 4))
    scale, shift = named["res_conv1_bn_s"], named["res_conv1_bn_b"]
    np.testing.assert_allclose(norm(Tensor(x), training=False).data, x * scale + shift, rtol=1e-12)


@pytest.mark.parametrize(
    ("config", "convention"),
    [
        (torchvision(), "torchvision"),
        (vary(torchvision(), {"mask_head.enabled": False}), "torchvision"),
        (torchvision_v2(), "torchvision"),
        (KEYPOINTS, "torchvision"),
        (VGG, "torchvision"),
        (matterport(), "matterport"),
        (detectron2(), "detectron2"),
    ],
)
def test_the_network_is_inferred_from_names_and_shapes(config, convention):
    """Everything that shapes show is found; everything else is the preset's."""
    depth = 16 if config.backbone.family == "vgg" else 50
    model = small(config, backbone__depth=depth)
    preset = vary(config, {"num_classes": 3})
    found = model_for(to_tensors(model, convention))
    assert found.convention.name == convention
    shape_fields = {
        "backbone.width": 4, "backbone.depth": depth, "fpn.channels": 8, "rpn.channels": 8, "box_pool.size": 3,
        "box_head.channels": 12, "mask_head.convolutions": 1, "mask_head.channels": 8,
    }  # fmt: skip
    if config.box_head.convolutions:
        shape_fields["box_head.conv_channels"] = 8
    if config.keypoint_head.enabled:
        head = model.config.keypoint_head
        for name in ("channels", "convolutions", "num_keypoints"):
            shape_fields[f"keypoint_head.{name}"] = getattr(head, name)
    if not config.mask_head.enabled:
        shape_fields = {name: value for name, value in shape_fields.items() if not name.startswith("mask_head")}
    assert found.config == vary(preset, shape_fields)
    assert load(MaskRCNN(found.config, rng=np.random.default_rng(0)), to_tensors(model, convention)).complete
    base = model_for(to_tensors(model, convention), base=vary(preset, {"detections.limit": 3}))
    assert base.config.detections.limit == 3


def test_what_no_preset_describes_needs_one_named():
    named = to_tensors(small(torchvision()), "maskrcnn-benchmark")
    with pytest.raises(WeightsError, match="no preset has all conventions of maskrcnn-benchmark's models"):
        model_for(named)
    assert model_for(named, base=torchvision()).config.num_classes == 3


def test_files_that_are_no_detectors_are_said_to_be():
    named = to_tensors(small(torchvision()), "torchvision")
    with pytest.raises(WeightsError, match=r"expected the blocks of a ResNet-18, .*, got \(2, 2, 2, 1\)"):
        model_for({name: array for name, array in named.items() if "layer4.1." not in name})
    with pytest.raises(WeightsError, match="expected 3 anchors at a position, as the preset has, got 6"):
        model_for(to_tensors(small(torchvision(), anchors__ratios=(0.25, 0.5, 0.8, 1.0, 2.0, 4.0)), "torchvision"))
    with pytest.raises(WeightsError, match=r"expected backbone\.fpn\.layer_blocks\.0\.0\.weight or .* with 4 axes"):
        model_for({name: array for name, array in named.items() if "fpn" not in name})


def test_the_published_files_have_epsilon_0(tmp_path, monkeypatch):
    named = to_tensors(small(torchvision()), "torchvision")
    digests = ["bf2d0c1e", "258fb6c6", "fc266e95", "9f466800"]
    for digest in digests:
        found = model_for(named, sha256=digest + 56 * "0")
        assert found.config.backbone.norm_epsilon == 0
        assert "torchvision's published" in " ".join(found.notes)
    file = tmp_path / "maskrcnn_resnet50_fpn_coco-bf2d0c1e.npz"
    write_tensors(file, named)
    unknown = model_for(file)  # by content, not by name
    assert unknown.config.backbone.norm_epsilon == 1e-5
    assert "published COCO_V1 files need 0" in " ".join(unknown.notes)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(infer.EPSILON_ZERO, digest[:8], "test")
    assert model_for(Path(file)).config.backbone.norm_epsilon == 0
