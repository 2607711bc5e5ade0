"""Proposals: every switch by hand, and Matterport's ProposalLayer."""

import numpy as np
import pytest

from refnet.autograd import Tensor
from refnet.ops import best_first
from refnet.rcnn.boxes import from_normalized, from_yxyx, to_normalized
from refnet.rcnn.config import RpnConfig
from refnet.rcnn.presets import matterport
from refnet.rcnn.proposals import objectness_scores, propose
from refnet.rcnn.structures import Proposals, RpnOutput, pad_proposals
from tests.golden.matterport_rules import load, normal, uniform
from tests.rcnn.small import blank_images, vary

IMAGE = blank_images(64, 64)
PLAIN = RpnConfig(min_size=0.0)


def output(logits: list[list[float]], deltas: list[list[list[float]]] | None = None) -> RpnOutput:
    """Of one image: a logit for each anchor of each level; no offsets unless given."""
    levels = [np.asarray(level, np.float64).reshape(1, len(level), -1) for level in logits]
    offsets = [np.zeros((1, len(level), 4)) for level in logits]
    if deltas is not None:
        offsets = [np.asarray(level, np.float64)[None] for level in deltas]
    return RpnOutput(
        objectness_logits=tuple(Tensor(level) for level in levels), deltas=tuple(Tensor(level) for level in offsets)
    )


def squares(*lefts: float, side: float = 8.0) -> np.ndarray:
    """Boxes of one size in a row."""
    return np.array([[x, 0, x + side, side] for x in lefts]).reshape(-1, 4)


def lefts(proposals) -> list[float]:
    return proposals[0].boxes[:, 0].tolist()


def run(rpn, anchors, config=PLAIN, training=False, images=IMAGE, extent="continuous"):
    return propose(rpn, anchors, images, config, training=training, extent=extent)


def test_best_first_and_each_with_its_probability():
    found = run(output([[0.0, 3.0], [-1.0, 2.0]]), [squares(0, 10), squares(20, 30)])[0]
    assert found.boxes[:, 0].tolist() == [10, 30, 0, 20]
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp([-3.0, -2.0, 0.0, 1.0])), rtol=1e-15)


def test_of_equal_scores_the_first_comes_first_as_in_tensorflow():
    golden = load("same_padding")
    np.testing.assert_array_equal(best_first(golden["topk.in"], limit=7), golden["topk.idx"])


@pytest.mark.convention("rpn.scope", "rpn.pre_nms_test")
@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("per_level", [0, 10, 30, 40]),  # the two best of each level
        ("global", [0, 10]),  # the two best of all
    ],
)
def test_how_many_enter(scope, expected):
    rpn = output([[9.0, 8.0, 7.0], [3.0, 2.0, 1.0]])
    anchors = [squares(0, 10, 20), squares(30, 40, 50)]
    assert lefts(run(rpn, anchors, vary(PLAIN, {"scope": scope, "pre_nms_test": 2}))) == expected


@pytest.mark.convention("rpn.pre_nms_train", "rpn.pre_nms_test", "rpn.post_nms_train")
def test_training_and_inference_have_limits_of_their_own():
    rpn, anchors = output([[5.0, 4.0, 3.0, 2.0, 1.0]]), [squares(0, 10, 20, 30, 40)]
    before = vary(PLAIN, {"pre_nms_train": 4, "pre_nms_test": 2})
    assert [len(run(rpn, anchors, before, training=t)[0].boxes) for t in (True, False)] == [4, 2]
    after = vary(PLAIN, {"post_nms_train": 1, "post_nms_test": 3})
    assert [lefts(run(rpn, anchors, after, training=t)) for t in (True, False)] == [[0], [0, 10, 20]]


def test_the_limit_after_nms_holds_for_all_levels_together():
    rpn, anchors = output([[5.0, 1.0], [4.0, 3.0]]), [squares(0, 10), squares(20, 30)]
    assert lefts(run(rpn, anchors, vary(PLAIN, {"post_nms_test": 3}))) == [0, 20, 30]


@pytest.mark.convention("rpn.scope")
@pytest.mark.parametrize(("scope", "expected"), [("per_level", [0, 0, 20]), ("global", [0, 20])])
def test_which_proposals_suppress_each_other(scope, expected):
    rpn, anchors = output([[3.0, 2.5], [2.0, 1.0]]), [squares(0, 1), squares(0, 20)]
    # boxes at 0 and 1 have an IoU of 56 / 72 = .78, those at 0 on both levels of 1
    assert lefts(run(rpn, anchors, vary(PLAIN, {"scope": scope}))) == expected


@pytest.mark.parametrize(("threshold", "expected"), [(0.7, [0]), (0.8, [0, 1])])
def test_nms_threshold(threshold, expected):
    assert lefts(run(output([[2.0, 1.0]]), [squares(0, 1)], vary(PLAIN, {"nms_threshold": threshold}))) == expected


def test_a_suppressed_proposal_doesnt_count_against_the_limit():
    rpn, anchors = output([[3.0, 2.0, 1.0]]), [squares(0, 1, 20)]
    assert lefts(run(rpn, anchors, vary(PLAIN, {"post_nms_test": 2}))) == [0, 20]


@pytest.mark.parametrize("scope", ["per_level", "global"])
def test_of_equal_scores_the_first_anchor_wins(scope):
    config = vary(PLAIN, {"scope": scope, "pre_nms_test": 3, "post_nms_test": 2})
    assert lefts(run(output([[1.0] * 4]), [squares(30, 20, 10, 0)], config)) == [30, 20]


def test_logits_order_what_probabilities_cannot():
    rpn = output([[800.0, 900.0, 1000.0]])
    found = run(rpn, [squares(0, 10, 20)], vary(PLAIN, {"pre_nms_test": 2}))
    assert lefts(found) == [20, 10]
    np.testing.assert_array_equal(found[0].scores, [1, 1])


@pytest.mark.convention("rpn.min_size")
@pytest.mark.parametrize(("min_size", "expected"), [(0.0, [0, 20, 40]), (4.0, [20, 40]), (4.5, [40])])
def test_boxes_of_exactly_the_least_size_stay(min_size, expected):
    anchors = [np.array([[0.0, 0, 3, 8], [20, 0, 28, 4], [40, 0, 48, 8]])]
    assert lefts(run(output([[3.0, 2.0, 1.0]]), anchors, vary(PLAIN, {"min_size": min_size}))) == expected


def test_size_counts_after_clipping():
    anchors = [np.array([[60.0, 0, 90, 8], [0, 0, 8, 8]])]
    assert lefts(run(output([[2.0, 1.0]]), anchors, vary(PLAIN, {"min_size": 5.0}))) == [0]


@pytest.mark.convention("rpn.clip")
@pytest.mark.parametrize(("rule", "expected"), [("image", [0, 8, 50, 40]), ("padded", [0, 0, 64, 64])])
def test_where_proposals_are_cut_off(rule, expected):
    images = blank_images(64, 64, windows=[[0, 8, 50, 40]])
    anchors = [np.array([[-10.0, -10, 100, 100]])]
    found = run(output([[1.0]]), anchors, vary(PLAIN, {"clip": rule}), images=images)
    assert found[0].boxes.tolist() == [expected]


def test_each_image_has_its_own_window():
    images = blank_images(64, 64, windows=[[0, 0, 64, 32], [0, 0, 16, 64]])
    rpn = RpnOutput(objectness_logits=(Tensor(np.ones((2, 1, 1))),), deltas=(Tensor(np.zeros((2, 1, 4))),))
    found = run(rpn, [np.array([[-9.0, -9, 99, 99]])], images=images)
    assert [p.boxes[0].tolist() for p in found] == [[0, 0, 64, 32], [0, 0, 16, 64]]


@pytest.mark.convention("rpn.delta_std", "rpn.delta_clamp")
def test_deltas_are_multiplied_by_their_deviation_and_clamped():
    anchors, deltas = [np.array([[24.0, 24, 40, 40]])], [[[0.5, -0.5, np.log(2), 50.0]]]
    config = vary(PLAIN, {"delta_std": (0.5, 0.25, 1.0, 1.0), "clip": "padded"})
    images = blank_images(1024, 1024)
    found = run(output([[0.0]], deltas), anchors, config, images=images)[0]
    # the centre (32, 32) moves by (4, -2); the width doubles, the height grows to 1000, of which the image cuts off
    np.testing.assert_allclose(found.boxes, [[20, 0, 52, 530]], rtol=1e-14)
    unlimited = vary(config, {"delta_clamp": None})
    found = run(output([[0.0]], deltas), anchors, unlimited, images=images)[0]
    np.testing.assert_allclose(found.boxes, [[20, 0, 52, 1024]], rtol=1e-14)


@pytest.mark.convention("rpn.objectness")
def test_two_logits_say_as_much_as_their_difference():
    rng = np.random.default_rng(0)
    background, margin = rng.uniform(-3, 3, 6), rng.uniform(-3, 3, 6)
    pairs = np.stack([background, background + margin], axis=1)
    np.testing.assert_allclose(objectness_scores(pairs), objectness_scores(margin[:, None]), rtol=1e-14)
    softmax = np.exp(pairs[:, 1]) / np.exp(pairs).sum(axis=1)
    np.testing.assert_allclose(objectness_scores(pairs), softmax, rtol=1e-14)
    anchors = [squares(0, 10, 20, 30, 40, 50)]
    assert lefts(run(output([pairs]), anchors)) == lefts(run(output([margin]), anchors))
    np.testing.assert_array_equal(objectness_scores(np.array([[-2000.0], [0.0], [2000.0]])), [0, 0.5, 1])


@pytest.mark.convention("box_extent")
def test_inclusive_boxes_end_on_the_last_pixel():
    anchors = [np.array([[-10.0, -10, 100, 100], [0, 0, 0, 0], [10, 0, 13, 3], [10, 0, 13, 1]])]
    rpn, config = output([[4.0, 3.0, 2.0, 1.0]]), vary(PLAIN, {"min_size": 1.0, "nms_threshold": 0.5})
    found = run(rpn, anchors, config, extent="inclusive")[0].boxes.tolist()
    # the last two are of 4 x 4 and 4 x 2 pixels: an IoU of exactly one half stays
    assert found == [[0, 0, 63, 63], [0, 0, 0, 0], [10, 0, 13, 3], [10, 0, 13, 1]]
    assert run(rpn, anchors, config)[0].boxes.tolist() == [[0, 0, 64, 64], [10, 0, 13, 3], [10, 0, 13, 1]]


@pytest.mark.convention("rpn.padding")
def test_padding_fills_up_when_detecting():
    """It is the original's mistake that the heads then look at boxes of nothing."""
    anchors, rpn = [squares(0, 10)], output([[1.0, 2.0]])
    padded = vary(PLAIN, {"padding": "zeros", "post_nms_test": 4, "post_nms_train": 4})
    found = run(rpn, anchors, padded, training=False)[0]
    assert found.boxes.shape == (4, 4)
    assert not found.boxes[2:].any()
    assert found.scores[2:].tolist() == [0, 0]
    assert found.sources.tolist() == [1, 0, -1, -1]
    normalized = run(rpn, anchors, padded, training=False, extent="normalized")[0]
    assert normalized.boxes[2:].tolist() == [[0, 0, 1, 1]] * 2  # the first pixel's centre, and nothing about it
    assert len(run(rpn, anchors, padded, training=True)[0].boxes) == 2
    assert len(run(rpn, anchors, vary(padded, {"padding": "none"}), training=False)[0].boxes) == 2


@pytest.mark.parametrize("scope", ["per_level", "global"])
def test_sources_are_positions_in_the_row_of_all_anchors(scope):
    anchors = [squares(0, 10), squares(20, 30, 40)]
    config = vary(PLAIN, {"scope": scope})
    found = run(output([[1.0, 5.0], [2.0, 4.0, 3.0]]), anchors, config)[0]
    assert found.sources.tolist() == [1, 3, 4, 2, 0]
    np.testing.assert_array_equal(found.boxes, np.concatenate(anchors)[found.sources])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_precision(dtype):
    rpn = RpnOutput(objectness_logits=(Tensor(np.ones((1, 2, 1), dtype)),), deltas=(Tensor(np.ones((1, 2, 4), dtype)),))
    found = propose(rpn, [squares(0, 9).astype(dtype)], blank_images(64, 64), PLAIN, training=True)[0]
    assert (found.boxes.dtype, found.scores.dtype) == (dtype, dtype)


@pytest.mark.convention("rpn.objectness", "rpn.delta_std", "rpn.padding", "box_extent")
@pytest.mark.parametrize("units", ["normalized", "pixels"])
@pytest.mark.parametrize("name", ["full", "prelimit", "thr03", "few_padded", "ties"])
def test_matterports_proposal_layer(name, units):
    """It decodes normalised boxes. Those are a unit like any other, with a "padded image" of 1 x 1; and in pixels of
    the image of 128 x 128 the extent "normalized" means the same."""
    golden = load("proposal_layer")
    count, threshold, before, _ = golden[f"{name}.cfg"]
    anchors = from_yxyx(load("anchors")["a128.norm"].astype(np.float64))
    foreground = uniform("prop/fg", (2, len(anchors)), 0.01, 0.99).astype(np.float64)
    deltas = from_yxyx(normal("prop/deltas", (2, len(anchors), 4), 1.5).astype(np.float64))
    if name == "few_padded":
        every = golden["few.idx"]
        anchors, foreground, deltas = anchors[every], foreground[:, every], deltas[:, every]
    if name == "ties":
        foreground = np.round(foreground * 8) / 8
    with np.errstate(divide="ignore"):  # rounded, a probability can be 0 or 1
        logits = np.stack([np.log(1 - foreground), np.log(foreground)], axis=-1)
    config = vary(
        matterport(faithful=True).rpn,
        {"pre_nms_test": int(before), "post_nms_test": int(count), "nms_threshold": float(threshold)},
    )
    rpn = RpnOutput(objectness_logits=(Tensor(logits),), deltas=(Tensor(deltas),))
    if units == "normalized":
        images = blank_images(1, 1, windows=[[0, 0, 1, 1]] * 2)
        boxes = [p.boxes for p in propose(rpn, [anchors], images, config, training=False)]
    else:
        images, size = blank_images(128, 128, windows=[[0, 0, 128, 128]] * 2), (128, 128)
        anchors = from_normalized(anchors, size)
        found = propose(rpn, [anchors], images, config, training=False, extent="normalized")
        boxes = [to_normalized(p.boxes, size) for p in found]
    for index, proposals in enumerate(boxes):
        stored = golden[f"{name}.out"][index]
        np.testing.assert_allclose(from_yxyx(proposals), stored, rtol=0, atol=1e-6)
        assert proposals.any(axis=1).sum() == golden[f"{name}.nonzero"][index]


def test_proposals_of_several_images_in_arrays_of_one_size():
    rng = np.random.default_rng(0)
    parts = [
        Proposals(boxes=rng.uniform(0, 9, (n, 4)), scores=rng.uniform(size=n), sources=None if n == 2 else np.arange(n))
        for n in (2, 0, 3)
    ]
    padded = pad_proposals(parts, like=parts[0].boxes)
    assert (padded.boxes.shape, padded.counts.tolist()) == ((3, 3, 4), [2, 0, 3])
    assert not padded.boxes[0, 2].any()
    assert padded.sources.tolist() == [[-1, -1, -1], [-1, -1, -1], [0, 1, 2]]
    for own, part in zip(padded.of_images(), parts, strict=True):
        np.testing.assert_array_equal(own.boxes, part.boxes)
        np.testing.assert_array_equal(own.scores, part.scores)
