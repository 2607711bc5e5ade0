"""Each stage, run alone on what a trace recorded before it, gives what the trace recorded of it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from refnet.conformance import record
from refnet.conformance.stages import STAGES, Inputs, NotRecorded, rerun
from refnet.conformance.trace_file import Entry
from refnet.rcnn import GroundTruth, MaskRCNN, ModelConfig
from refnet.rcnn.presets import detectron2, matterport, torchvision, torchvision_keypoints
from tests.rcnn.small import scene, shrink, vary

NETWORKS: dict[str, ModelConfig] = {
    "torchvision": shrink(torchvision()),
    "keypoints": shrink(torchvision_keypoints()),
    "matterport": shrink(matterport()),
    "matterport, faithful": shrink(matterport(faithful=True)),
    "matterport, cropped": vary(shrink(matterport()), {"input.resize": "crop", "input.min_size": 64}),
    "detectron2": shrink(detectron2()),
}


def scenes(config: ModelConfig) -> tuple[list[np.ndarray], list[GroundTruth]]:
    pairs = [scene(72, 80, objects=3, seed=1), scene(70, 66, objects=2, seed=2)]
    truth = [objects for _, objects in pairs]
    if config.keypoint_head.enabled:
        points = config.keypoint_head.num_keypoints
        rng = np.random.default_rng(0)
        for index, objects in enumerate(truth):
            low, high = objects.boxes[:, None, :2], objects.boxes[:, None, 2:]
            places = low + rng.uniform(0.1, 0.9, (len(objects), points, 2)) * (high - low)
            visible = np.full((len(objects), points, 1), 2.0)
            truth[index] = replace(objects, keypoints=np.concatenate([places, visible], axis=2))
    return [image for image, _ in pairs], truth


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_stage_alone_gives_what_it_gave_in_the_row(name, training):
    config = vary(NETWORKS[name], {"backbone.depth": 18})
    images, truth = scenes(config)
    model = MaskRCNN(config, rng=np.random.default_rng(0), dtype=np.float64)
    trace = record(model, images, truth if training else None, seed=3)
    tensors = dict(trace.tensors)
    model = MaskRCNN(config, rng=np.random.default_rng(0), dtype=np.float64)  # running statistics as they were
    inputs = Inputs(tensors=tensors, config=config, model=model, training=training, seed=3)
    seen = set()
    for stage in STAGES:
        expected = {n: e.values for n, e in tensors.items() if n.partition(".")[0] == stage.name}
        if not expected:
            continue
        given = rerun(stage, inputs)
        assert list(given) == list(expected)
        for tensor, values in expected.items():
            np.testing.assert_array_equal(given[tensor], values, err_msg=tensor)
        seen |= expected.keys()
    assert seen == {n for n in tensors if not n.startswith(("images.", "annotations."))}


def inputs_without(names: Any, **changes: Any) -> Inputs:
    model = MaskRCNN(shrink(torchvision()), rng=np.random.default_rng(0))
    tensors = dict(record(model, scenes(model.config)[0]).tensors)
    for name in names:
        del tensors[name]
    given = {"tensors": tensors, "config": model.config, "model": model, "training": False, "seed": 0}
    return Inputs(**(given | changes))


def test_what_is_missing_is_named():
    stages = {stage.name: stage for stage in STAGES}
    with pytest.raises(NotRecorded, match=r"fpn\.p4: expected the whole tensor, the traces have none"):
        rerun(stages["rpn"], inputs_without(["fpn.p4"]))
    with pytest.raises(NotRecorded, match="weights: expected those of the trace"):
        rerun(stages["rpn"], inputs_without([], model=None))
    inputs = inputs_without([])
    sampled = {**inputs.tensors, "box_pool": Entry(np.zeros(3, np.float32), (6, 2, 2, 8), 64)}
    with pytest.raises(NotRecorded, match="box_pool: expected the whole tensor, the traces have a sample"):
        rerun(stages["box_head"], replace(inputs, tensors=sampled))
