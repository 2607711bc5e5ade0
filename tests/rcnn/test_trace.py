"""The trace of a pass: what is in it, under which names, and that recording changes nothing."""

import numpy as np

from refnet.rcnn import MaskRCNN
from refnet.rcnn.presets import torchvision, torchvision_keypoints
from refnet.rcnn.trace import NO_TRACE, Trace, flatten
from tests.rcnn.small import scene, shrink


def test_a_trace_holds_every_stage_in_the_order_of_the_data_flow():
    image, truth = scene(48, 64)
    model = MaskRCNN(shrink(torchvision()), rng=np.random.default_rng(0), dtype=np.float64)
    training, inference = Trace(), Trace()
    losses = model.losses([image], [truth], rng=np.random.default_rng(1), trace=training)
    found = model.detect([image], trace=inference)

    def stages(trace):
        return list(dict.fromkeys(name.partition(".")[0] for name in trace))

    both = ["input", "backbone", "fpn", "rpn", "anchors"]
    assert stages(inference) == [*both, "proposals", "box_pool", "box_head", "detections", "mask_pool", "mask_head", "results"]  # fmt: skip
    assert stages(training) == [
        "input", "truth", "backbone", "fpn", "rpn", "anchors", "anchor_targets", "proposals", "rois",
        "box_pool", "box_head", "mask_pool", "mask_head", "losses",
    ]  # fmt: skip
    assert {"backbone.c2", "fpn.p6", "rpn.objectness_logits.p2", "rpn.deltas.p6", "anchors.p3"} <= set(training)
    np.testing.assert_array_equal(training["losses.total"], losses.total.data)
    np.testing.assert_array_equal(inference["results.0.boxes"], found[0].boxes)
    assert "losses.class" in training  # without the underscore that Python's keyword asks for


def test_recording_changes_nothing_and_keeps_copies():
    array = np.zeros(3)
    trace = Trace()
    assert trace("x", array) is array
    array += 1
    np.testing.assert_array_equal(trace["x"], 0)
    assert NO_TRACE("x", array) is array
    assert not NO_TRACE


def test_what_is_none_has_no_entry_and_numbers_are_arrays():
    assert dict(flatten("a", [None, 2.0])) == {"a.1": np.asarray(2.0)}


def test_a_network_of_another_precision_sees_images_in_it():
    image, _ = scene(48, 64)
    model = MaskRCNN(shrink(torchvision()), rng=np.random.default_rng(0))
    model.astype(np.float64)
    trace = Trace()
    model.detect([image], trace=trace)
    assert {array.dtype for name, array in trace.items() if name.startswith(("input.p", "fpn", "box"))} == {
        np.dtype(np.float64)
    }


def test_a_network_of_keypoints_records_theirs():
    image, truth = scene(48, 64)
    config = shrink(torchvision_keypoints())
    model = MaskRCNN(config, rng=np.random.default_rng(0), dtype=np.float64)
    training, inference = Trace(), Trace()
    model.losses([image], [truth], rng=np.random.default_rng(1), trace=training)
    found = model.detect([image], trace=inference)
    assert training["rois.keypoints"].shape == (len(training["rois.foreground"]), 3)
    assert training["keypoint_head.logits"].shape[1:] == (16, 16, 3)
    np.testing.assert_array_equal(inference["results.0.keypoint_scores"], found[0].keypoint_scores)
    np.testing.assert_array_equal(inference["results.0.keypoints"], found[0].keypoints)
    assert inference["keypoint_head.logits"].shape[0] == inference["keypoint_pool"].shape[0] == len(found[0])
    assert "mask_pool" not in {**training, **inference}
