"""Whole networks side by side: equal ones pass the checks, and others are found out."""

from dataclasses import replace

import numpy as np
import pytest

from refnet.bench import models, rule, training
from refnet.bench.contest import WrongResult
from refnet.rcnn.structures import Detections

FOUND = Detections(
    boxes=np.array([[1.0, 2, 30, 40], [5, 6, 50, 60], [7, 8, 70, 80]], np.float32),
    classes=np.array([1, 2, 2]),
    scores=np.array([0.9, 0.8, 0.8], np.float32),
    masks=np.full((3, 4, 4), 0.5, np.float32),
)


def changed(**arrays: np.ndarray) -> Detections:
    return replace(FOUND, **arrays)


def test_equal_scores_may_stand_in_another_order() -> None:
    order = [0, 2, 1]
    other = changed(boxes=FOUND.boxes[order], classes=FOUND.classes[order], scores=FOUND.scores[order])
    found = models.check_detections({"a": FOUND, "b": other}, side=100)
    assert found.startswith("the same 3 detections: scores within 0,")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (changed(boxes=FOUND.boxes + np.float32(0.01)), "only one finds class 1"),
        (changed(classes=np.array([1, 2, 1])), "only one finds class 2"),
        (changed(scores=FOUND.scores + np.float32(1e-4)), "scores of a and b lie 0.0001 apart"),
        (changed(masks=np.full((3, 4, 4), 0.6, np.float32)), "masks of a and b lie 0.1 apart"),
        (changed(scores=np.full(3, np.nan, np.float32)), "scores of a and b lie nan apart"),
        (changed(masks=None), "a or b has no masks"),
        (
            Detections(boxes=FOUND.boxes[:2], classes=FOUND.classes[:2], scores=FOUND.scores[:2], masks=None),
            "a finds 3 objects, b 2",
        ),
    ],
)
def test_other_detections_are_wrong(other: Detections, message: str) -> None:
    with pytest.raises(WrongResult, match=message):
        models.check_detections({"a": FOUND, "b": other}, side=100)


def test_every_object_is_taken_once() -> None:
    twice = changed(boxes=FOUND.boxes[[0, 1, 1]])
    with pytest.raises(WrongResult, match="only one finds class 2"):
        models.check_detections({"a": twice, "b": FOUND}, side=100)


def gradients(loss: float = 2.0, grad: float = 1.0) -> training.Gradients:
    return training.Gradients(losses={"mask_loss": loss}, arrays={"w": np.array([grad, 2.0]), "dead": np.zeros(3)})


def test_losses_and_gradients_are_compared() -> None:
    assert training.check_gradients({"a": gradients(), "b": gradients()}).startswith("the same losses within 0")
    for other, message in (
        (gradients(loss=2.001), "mask_loss: a 2, b 2.001"),
        (gradients(loss=np.nan), "mask_loss: a 2, b nan"),
        (gradients(grad=1.1), "the gradient of w: a and b differ by"),
        (gradients(grad=np.nan), "the gradient of w: a and b differ by"),
    ):
        with pytest.raises(WrongResult, match=message):
            training.check_gradients({"a": gradients(), "b": other})
    with pytest.raises(WrongResult, match="a: losses must be finite"):
        training.check_gradients({"a": gradients(loss=np.inf)})


def test_first_ones_are_chosen() -> None:
    candidates = np.array([5, 7, 9, 11])
    assert training.FirstOnes().choice(candidates, 2, replace=False).tolist() == [5, 7]


def test_weights_by_the_rule_are_those_of_their_names() -> None:
    config = models.small_network(64, 96)
    state = models.rule_state(config)
    assert state["backbone.body.conv1.weight"].shape == (64, 3, 7, 7)
    np.testing.assert_array_equal(
        state["rpn.head.cls_logits.bias"], rule.weight("rpn.head.cls_logits.bias", (3,)).astype(np.float32)
    )
    model = models.refnet_model(config, state)
    np.testing.assert_array_equal(
        model.backbone.stem.conv.weight.data, state["backbone.body.conv1.weight"].transpose(2, 3, 1, 0)
    )
