"""compare() names the convention: each of the thirty that silently break ports is set otherwise in turn.

The other trace is that of a network with the same weights under the other convention; nothing tells compare() which.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from refnet.conformance import Departure, TraceFile, compare, read_trace, record, write_trace
from refnet.conformance.compare import difference
from refnet.conformance.switches import Switch, flipped, rebuild
from refnet.conformance.trace_file import Entry
from refnet.errors import DataError
from refnet.rcnn import GroundTruth, MaskRCNN, ModelConfig
from refnet.rcnn.boxes import from_yxyx, to_normalized
from refnet.rcnn.presets import matterport, torchvision
from refnet.train.config_file import with_values
from tests.rcnn.small import scene, shrink, vary


@dataclass(frozen=True, kw_only=True)
class Convention:
    """One line of the checklist.

    Attributes:
        number: its place there.
        what: in words.
        changes: the fields of the other network, or none, if only its tensors are written down otherwise.
        named: what an explanation must say.
        training: whether it shows in training; else in inference.
        base: the settings it is seen from.
        own: fields of both networks, which make it visible.
        rewrite: what the other implementation writes down instead.
        gain: of the weights that predict the RPN's deltas.
    """

    number: int
    what: str
    named: str
    changes: dict[str, Any] = field(default_factory=dict)
    training: bool = True
    base: Any = torchvision
    own: dict[str, Any] = field(default_factory=dict)
    rewrite: Any = None
    gain: float = 1.2


def yxyx(name: str, array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return from_yxyx(array) if name.startswith("anchors.") or name.endswith("boxes") else array


def normalized(name: str, array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return to_normalized(array, size) if name.startswith("anchors.") or name.endswith("boxes") else array


CONVENTIONS = [
    Convention(number=1, what="box order", named="boxes (y1, x1, y2, x2)", rewrite=yxyx, training=False),
    Convention(number=2, what="normalised boxes", named="boxes normalised", rewrite=normalized, training=False),
    Convention(number=3, what="+1 widths", named="box_extent = 'inclusive'", changes={"box_extent": "inclusive"}),
    Convention(number=4, what="batch norm epsilon", named="backbone.norm_epsilon = 0.001", changes={"backbone.norm_epsilon": 1e-3}),
    Convention(number=5, what="biased convolutions", named="backbone.conv_bias = False", changes={"backbone.conv_bias": False}, base=matterport),
    Convention(number=6, what="stride in 1x1 or 3x3", named="backbone.stride_in = '1x1'", changes={"backbone.stride_in": "1x1"}, own={"backbone.depth": 50}),
    Convention(number=7, what="asymmetric padding", named="backbone.padding = 'same'", changes={"backbone.padding": "same"}),
    Convention(number=8, what="RGB or BGR", named="input.channel_order = 'bgr'", changes={"input.channel_order": "bgr"}),
    Convention(number=9, what="softmax or sigmoid", named="rpn.objectness = 'softmax'", changes={"rpn.objectness": "softmax"}),
    Convention(number=10, what="ratio is h/w or w/h", named="anchors.ratio_is = 'w/h'", changes={"anchors.ratio_is": "w/h"}),
    Convention(number=11, what="anchor centres", named="anchors.center_offset = 0.5", changes={"anchors.center_offset": 0.5}),
    Convention(number=12, what="anchor rounding", named="anchors.rounding = False", changes={"anchors.rounding": False}),
    Convention(number=13, what="anchor order", named="anchors.order = 'size_major'", changes={"anchors.order": "size_major"}, own={"anchors.sizes": ((8.0, 12.0), (16.0, 20.0), (24.0, 28.0), (32.0, 40.0), (48.0, 56.0))}),
    Convention(number=14, what="RPN delta std", named="rpn.delta_std = (0.1, 0.1, 0.2, 0.2)", changes={"rpn.delta_std": (0.1, 0.1, 0.2, 0.2)}),
    Convention(number=15, what="clamp of dw, dh", named="rpn.delta_clamp = None", changes={"rpn.delta_clamp": None}, gain=4.0, own={"anchors.sizes": ((0.25,), (0.5,), (1.0,), (2.0,), (4.0,)), "anchors.rounding": False, "backbone.depth": 50}),
    Convention(number=16, what="global or per level", named="rpn.scope = 'global'", changes={"rpn.scope": "global"}, own={"backbone.depth": 50}),
    Convention(number=17, what="level rounding", named="box_pool.level_rounding = 'round'", changes={"box_pool.level_rounding": "round"}),
    Convention(number=18, what="level epsilon", named="box_pool.level_epsilon = 0.0", changes={"box_pool.level_epsilon": 0.0}, own={"box_pool.canonical_size": 24.00001}),
    Convention(number=19, what="true boxes appended", named="roi_targets.append_ground_truth = False", changes={"roi_targets.append_ground_truth": False}),
    Convention(number=20, what="foreground fraction", named="roi_targets.positive_fraction = 0.33", changes={"roi_targets.positive_fraction": 0.33}, own={"roi_targets.batch_size": 15, "roi_targets.positive_iou": 0.1, "backbone.depth": 50}),
    Convention(number=21, what="how background fills up", named="roi_targets.negatives = 'ratio'", changes={"roi_targets.negatives": "ratio"}),
    Convention(number=22, what="smooth L1's beta", named="losses.box_beta = 1.0", changes={"losses.box_beta": 1.0}),
    Convention(number=23, what="loss denominators", named="losses.rpn_box_denominator = 'positive_coordinates'", changes={"losses.rpn_box_denominator": "positive_coordinates"}),
    Convention(number=24, what="half-pixel shift", named="box_pool.aligned = True", changes={"box_pool.aligned": True}),
    Convention(number=25, what="soft or thresholded mask targets", named="roi_targets.mask_values = 'threshold'", changes={"roi_targets.mask_values": "threshold"}),
    Convention(number=26, what="argmax or all classes", named="detections.classes = 'argmax'", changes={"detections.classes": "argmax"}, training=False, gain=0.3, own={"detections.limit": 40}),
    Convention(number=27, what="score and NMS thresholds", named="detections.score_threshold = 0.7", changes={"detections.score_threshold": 0.7}, training=False, gain=0.3, own={"detections.limit": 40}),
    Convention(number=28, what="background first or last", named="box_head.background = 'last'", changes={"box_head.background": "last"}),
    Convention(number=29, what="mask paste", named="detections.paste = 'hard'", changes={"detections.paste": "hard"}, training=False, own={"detections.mask_threshold": 0.5}),
    Convention(number=30, what="crowds", named="anchor_targets.crowd = 'avoid'", changes={"anchor_targets.crowd": "avoid"}),
]  # fmt: skip


def network(config: ModelConfig, gain: float) -> MaskRCNN:
    """A network whose weights make every convention show: strong RPN deltas, sure classes."""
    model = MaskRCNN(config, rng=np.random.default_rng(0), dtype=np.float64)
    rng = np.random.default_rng(1)
    state = model.state()
    for name, scale in (("rpn.deltas.weight", gain), ("rpn.objectness.weight", 3.0), ("box_head.classes.weight", 0.2)):
        state[name][...] = scale * rng.standard_normal(state[name].shape) / np.sqrt(state[name].shape[-2])
    for name, values in state.items():
        if name.endswith("bias"):
            values[...] = 0.05 * rng.standard_normal(values.shape)
        elif name.endswith("running_variance"):
            values[...] = rng.uniform(0.5, 1.5, values.shape)
    return model


def scenes() -> tuple[list[np.ndarray], list[GroundTruth]]:
    """Two images of different size; the second has a crowd."""
    first, second = scene(48, 64, objects=3, seed=3), scene(44, 60, objects=3, seed=5)
    first[1].boxes[0] = 8, 8, 32, 32  # its side is the one that goes to the canonical level
    first[1].boxes[1] = 20, 10, 44.25, 34.25  # a little more, but less if a box is a pixel narrower
    crowd = second[1]
    crowd.crowd[2] = True
    return [first[0], second[0]], [first[1], crowd]


def traces(convention: Convention) -> tuple[TraceFile, TraceFile, ModelConfig, MaskRCNN]:
    config = vary(shrink(convention.base()), {"backbone.depth": 18} | convention.own)
    model = network(config, convention.gain)
    changes = [Switch(field=name, value=value, here=None) for name, value in convention.changes.items()]
    other = rebuild(model, flipped(config, changes))
    images, truth = scenes()
    given: Sequence[GroundTruth] | None = truth if convention.training else None
    ours, theirs = record(model, images, given, seed=2), record(other, images, given, seed=2)
    size = ours.tensors["input.pixels"].shape[1:3]
    tensors = {
        name: entry
        for name, entry in theirs.tensors.items()
        if not name.startswith(("images.", "annotations."))  # another program doesn't write them
    }
    if convention.rewrite is not None:
        for name, entry in tensors.items():
            values = convention.rewrite(name, entry.values, size)
            tensors[name] = Entry(values, values.shape)
    return ours, TraceFile(tensors=tensors), config, network(config, convention.gain)


@pytest.mark.convention(
    "box_extent",
    "backbone.norm_epsilon",
    "backbone.conv_bias",
    "backbone.stride_in",
    "backbone.padding",
    "input.channel_order",
    "rpn.objectness",
    "anchors.ratio_is",
    "anchors.center_offset",
    "anchors.rounding",
    "anchors.order",
    "rpn.delta_std",
    "rpn.delta_clamp",
    "rpn.scope",
    "box_pool.level_rounding",
    "box_pool.level_epsilon",
    "roi_targets.append_ground_truth",
    "roi_targets.positive_fraction",
    "roi_targets.negatives",
    "losses.box_beta",
    "losses.rpn_box_denominator",
    "box_pool.aligned",
    "roi_targets.mask_values",
    "detections.classes",
    "detections.score_threshold",
    "box_head.background",
    "detections.paste",
    "anchor_targets.crowd",
)
@pytest.mark.parametrize("convention", CONVENTIONS, ids=lambda c: f"{c.number}-{c.what}")
def test_each_convention_is_named_and_no_other(request, convention):
    assert convention.changes.keys() <= set(request.node.get_closest_marker("convention").args)
    ours, theirs, config, model = traces(convention)
    found = compare(ours, theirs, config, model=model)
    assert found.departure is not None, "the convention doesn't show in this scene"
    assert len(found.explanations) == 1, str(found)
    assert convention.named in found.explanations[0], str(found)


def eval_traces(**changes: Any) -> tuple[TraceFile, TraceFile, ModelConfig, MaskRCNN]:
    return traces(Convention(number=0, what="", named="", changes=changes, training=False))


def test_equal_traces_agree():
    ours, theirs, config, model = eval_traces()
    found = compare(ours, theirs, config, model=model)
    assert found.departure is None
    assert set(found.agreeing) == {name for name in ours.tensors if not name.startswith("images.")}
    assert set(found.agreeing.values()) == {0.0}
    assert str(found).endswith(f"all {len(found.agreeing)} tensors that both have agree")


def test_two_switches_of_one_stage_are_named_together():
    found = compare_changed(**{"anchors.center_offset": 0.5, "anchors.ratio_is": "w/h"})
    assert found.explanations == ["anchors.ratio_is = 'w/h' (here 'h/w') and anchors.center_offset = 0.5 (here 0.0)"]


def test_many_switches_are_those_of_a_preset_reduced_to_what_is_needed():
    found = compare_changed(**{
        "box_pool.method": "crop_and_resize", "box_pool.box_units": "normalized",
        "box_pool.level_rounding": "round", "box_pool.level_epsilon": 0.0,
    })  # fmt: skip
    assert found.stage == "box_pool"
    (text,) = found.explanations
    assert "box_pool.method = 'crop_and_resize'" in text
    assert "box_pool.level_rounding = 'round'" in text
    assert "level_epsilon" not in text  # which changes nothing here


def compare_changed(**changes: Any) -> Any:
    ours, theirs, config, model = traces(Convention(number=0, what="", named="", changes=changes))
    return compare(ours, theirs, config, model=model)


def test_a_mistake_that_is_no_convention_is_found_and_not_explained():
    ours, theirs, config, model = eval_traces()
    wrong = theirs.tensors["fpn.p3"].values.copy()
    wrong[1, 2, 3, 4] += 1
    tensors = {**theirs.tensors, "fpn.p3": Entry(wrong, wrong.shape)}
    found = compare(ours, TraceFile(tensors=tensors), config, model=model)
    assert found.departure is not None
    assert (found.departure.name, found.departure.index) == ("fpn.p3", (1, 2, 3, 4))
    assert found.departure.other_value == pytest.approx(found.departure.value + 1)
    assert found.explanations == []
    assert f"none of {found.tried} settings of the stage fpn explains it" in str(found)


def test_without_weights_a_stage_with_weights_is_not_run_again_and_others_are():
    ours, theirs, config, _ = eval_traces(**{"backbone.norm_epsilon": 1e-3})
    found = compare(ours, theirs, config)
    assert found.note is not None
    assert "weights" in found.note
    ours, theirs, config, _ = eval_traces(**{"anchors.center_offset": 0.5})
    assert compare(ours, theirs, config).explanations == ["anchors.center_offset = 0.5 (here 0.0)"]


def test_tensors_of_one_side_are_told_and_passed_over():
    ours, theirs, config, model = eval_traces(**{"anchors.center_offset": 0.5})
    tensors = {n: e for n, e in theirs.tensors.items() if not n.startswith("backbone.")}
    found = compare(ours, TraceFile(tensors={**tensors, "mine": tensors["fpn.p2"]}), config, model=model)
    assert found.only_there == ["mine"]
    assert found.only_here == [f"backbone.c{level}" for level in (2, 3, 4, 5)]
    assert found.explanations == ["anchors.center_offset = 0.5 (here 0.0)"]


def test_samples_are_compared_with_whole_tensors(tmp_path):
    ours, theirs, config, model = eval_traces()
    write_trace(tmp_path / "ours.npz", ours, sample=200)
    sampled = read_trace(tmp_path / "ours.npz")
    assert sampled.tensors["fpn.p2"].step > 1
    assert compare(sampled, theirs, config, model=model).departure is None
    wrong = theirs.tensors["fpn.p2"].values.copy()
    wrong.flat[sampled.tensors["fpn.p2"].step * 7] += 1
    tensors = {**theirs.tensors, "fpn.p2": Entry(wrong, wrong.shape)}
    found = compare(sampled, TraceFile(tensors=tensors), config, model=model)
    assert found.departure is not None
    assert np.ravel_multi_index(found.departure.index, wrong.shape) == sampled.tensors["fpn.p2"].step * 7


def test_nan_departs_from_a_number_but_not_from_nan():
    here, there = np.array([1.0, np.nan, 3.0]), np.array([1.0, np.nan, np.nan])
    assert difference("x", Entry(here, (3,)), Entry(here, (3,))) == 0.0
    found = difference("x", Entry(here, (3,)), Entry(there, (3,)))
    assert isinstance(found, Departure)
    assert (found.index, found.difference) == ((2,), np.inf)


def test_a_trace_comes_back_from_its_file(tmp_path):
    ours, *_ = eval_traces()
    write_trace(tmp_path / "trace.npz", ours)
    back = read_trace(tmp_path / "trace.npz")
    assert list(back.tensors) == list(ours.tensors)
    for name, entry in ours.tensors.items():
        np.testing.assert_array_equal(back.tensors[name].values, entry.values)
    assert with_values(ModelConfig(), back.metadata["config"], "trace") == vary(
        shrink(torchvision()), {"backbone.depth": 18}
    )


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04", b"\x93NUMPY", b"text"],
    ids=["empty", "cut off", "an array", "text"],
)
def test_what_is_no_trace_is_refused(tmp_path, content):
    path = tmp_path / "trace.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"trace\.npz"):
        read_trace(path)


def test_objects_in_a_trace_are_never_made(tmp_path):
    np.savez(tmp_path / "trace.npz", evil=np.array([print], object))
    with pytest.raises(DataError, match="expected plain numbers"):
        read_trace(tmp_path / "trace.npz")
