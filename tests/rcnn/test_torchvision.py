"""The whole network against golden vectors that torchvision computed in float64, stage by stage.

Two images of different size; ResNet-50-FPN; Faster and Mask R-CNN with 4 classes, Keypoint R-CNN with one class of 17
keypoints; the v2 variant of Mask R-CNN. In training, both samplers take everything, so targets, losses and gradients
are deterministic.
"""

import numpy as np
import pytest

import refnet.kernels
from refnet.autograd import Tensor, no_grad
from refnet.ops import relu, reshape
from refnet.rcnn import MaskRCNN
from refnet.rcnn.layers import convolve_regions
from refnet.rcnn.trace import Trace
from tests.golden.torchvision_rule import torchvision_name
from tests.rcnn.golden import MASKS, NAMES, Golden, build, golden_images, nchw, truth_of

CASES = ["fasterrcnn", "maskrcnn", "keypointrcnn", "maskrcnn_v2"]


@pytest.fixture(scope="module", autouse=True)
def tuned_kernels():
    refnet.kernels.install()
    yield
    refnet.kernels.uninstall()


def check_pass(golden: Golden, model: MaskRCNN, trace: Trace) -> None:
    """What training and inference have in common: everything but targets, losses and results."""
    count = len(trace["input.pixels"])
    golden.check("transform.tensors", nchw(trace["input.pixels"]))
    np.testing.assert_array_equal(trace["input.windows"][:, [3, 2]], golden.file["transform.image_sizes"])
    for index in range(4):
        golden.check(f"body.{index}", nchw(trace[f"backbone.c{index + 2}"]))
    for level, name in enumerate(["0", "1", "2", "3", "pool"]):
        pyramid = trace[f"fpn.p{level + 2}"]
        golden.check(f"fpn.{name}", nchw(pyramid))
        for kind, key in (("objectness", "objectness_logits"), ("deltas", "deltas")):
            output = trace[f"rpn.{key}.p{level + 2}"].reshape(*pyramid.shape[:3], -1)
            golden.check(f"rpn.{kind}{level}", nchw(output))
    anchors = np.concatenate([trace[f"anchors.p{level}"] for level in range(2, 7)])
    assert len(anchors) == int(golden.file["anchors.count"])
    np.testing.assert_allclose(anchors.sum(axis=0), golden.file["anchors.sum"])
    np.testing.assert_array_equal(anchors[::97], golden.file["anchors.every97"])
    for index in range(count):
        golden.check(f"rpn.proposals{index}", trace[f"proposals.{index}.boxes"])

    golden.check("box_roi_pool", nchw(trace["box_pool"]))
    if "box_head" in golden.file:
        golden.check("box_head", hidden_features(model, trace["box_pool"])[:, ::16])
    golden.check("class_logits", trace["box_head.class_logits"])
    golden.check("box_regression", trace["box_head.deltas"].reshape(len(trace["box_pool"]), -1))
    for head, pool in (("mask", "mask_roi_pool"), ("keypoint", "keypoint_roi_pool")):
        present = getattr(model, f"{head}_head") is not None
        assert (f"{head}_logits" in golden.file) == present
        if pool in golden.file:
            golden.check(pool, nchw(trace[f"{head}_pool"]))
        if present:
            every = int(golden.file[f"{head}_logits.every"])
            golden.check(f"{head}_logits", nchw(trace[f"{head}_head.logits"])[::every])


def hidden_features(model: MaskRCNN, pooled: np.ndarray) -> np.ndarray:
    """What the box head's predictors see, which the network hands on to nothing else."""
    with no_grad():
        head = model.box_head
        hidden = convolve_regions(head.convolutions, head.norms, Tensor(pooled), training=False)
        hidden = reshape(hidden, (len(pooled), -1))
        for layer in head.hidden:
            hidden = relu(layer(hidden))
    return hidden.data


@pytest.mark.parametrize("case", CASES)
def test_inference(case):
    """The files' entries resized* hold the final detections too (of masks the first eight): torchvision maps back in place."""
    golden = Golden(f"torchvision_{case}.eval.npz")
    model = build(golden)
    trace = Trace()
    detections = model.detect(golden_images(), trace=trace)
    check_pass(golden, model, trace)
    for index, entry in enumerate(detections):
        golden.check(f"final{index}.boxes", entry.boxes)
        golden.check(f"final{index}.scores", entry.scores)
        np.testing.assert_array_equal(entry.classes, golden.file[f"final{index}.labels"])
        assert (entry.masks is None) == (case not in MASKS)
        assert (entry.keypoints is None) == (entry.keypoint_scores is None) == (case != "keypointrcnn")
        if entry.masks is not None:
            golden.check(f"final{index}.masks", entry.masks[::16, None])
            if f"resized{index}.masks" in golden.file:
                golden.check(f"resized{index}.masks", entry.masks[:8, None])
        if entry.keypoints is not None:
            golden.check(f"final{index}.keypoints", entry.keypoints)
            golden.check(f"final{index}.keypoints_scores", entry.keypoint_scores)
    print(f"{case}, inference: largest deviations {golden.largest}")


@pytest.mark.parametrize("case", CASES)
def test_training(case):
    golden = Golden(f"torchvision_{case}.train.npz")
    model = build(golden)
    trace = Trace()
    losses = model.losses(golden_images(), truth_of(golden), rng=np.random.default_rng(0), trace=trace)
    check_pass(golden, model, trace)
    for index in range(2):
        np.testing.assert_array_equal(trace["anchor_targets.labels"][index], golden.file[f"rpn.labels{index}"])
        own = trace["rois.images"] == index
        golden.check(f"samples.proposals{index}", trace["rois.boxes"][own])
        np.testing.assert_array_equal(trace["rois.classes"][own], golden.file[f"samples.labels{index}"])
        positive = own & (trace["rois.classes"] > 0)
        wanted = golden.file[f"samples.regression_targets{index}"][golden.file[f"samples.labels{index}"] > 0]
        np.testing.assert_allclose(trace["rois.deltas"][positive], wanted, atol=1e-9)

    values = {
        "loss_objectness": losses.rpn_class,
        "loss_rpn_box_reg": losses.rpn_box,
        "loss_classifier": losses.class_,
        "loss_box_reg": losses.box,
        "loss_mask": losses.mask,
        "loss_keypoint": losses.keypoint,
    }
    values = {name: value for name, value in values.items() if value is not None}
    stored_losses = {key.removeprefix("loss.") for key in golden.file.files if key.startswith("loss.")}
    assert stored_losses == {*values, "total"}
    for name, value in values.items():
        golden.check(f"loss.{name}", np.asarray(value.item()))
    # torchvision computes the objectness loss in float32 even in a float64 model, and its total contains that one
    rest = float(golden.file["loss.total"]) - float(golden.file["loss.loss_objectness"])
    np.testing.assert_allclose(losses.total.item() - losses.rpn_class.item(), rest, rtol=1e-9)

    losses.total.backward()
    rounded = {}
    if model.keypoint_head is not None:
        # it moves a whole map, which the softmax over the map doesn't see: what is left is the rounding of a sum, over
        # the maps of all regions, of derivatives whose absolute values add up to 2 at most
        terms = trace["keypoint_head.logits"][..., 0].size
        rounded["keypoint_head.upsample.bias"] = 2 * np.finfo(np.float64).eps * terms
    naming = NAMES.get(case, torchvision_name)
    largest = golden.check_gradients(model, naming, vanishing=rounded)
    # the running statistics of batch norms, which the step has moved
    stored_state = {key for key in golden.file.files if key.startswith("state.")}
    moved = {f"state.{naming(name)}": array for name, array in model.buffers().items()} if stored_state else {}
    assert moved.keys() == stored_state
    for name, array in moved.items():
        golden.check_summary(name, array)
    print(f"{case}, training: largest deviations {golden.largest}, of gradients {largest:.1e}")
