"""The whole network against golden vectors that torchvision computed in float64, stage by stage.

Two images of different size; ResNet-50-FPN, 5 classes. In training, both samplers take everything, so targets,
losses and gradients are deterministic.
"""

import dataclasses
import json

import numpy as np
import pytest

import refnet.kernels
from refnet.autograd import Tensor
from refnet.rcnn import GroundTruth, MaskRCNN, ModelConfig
from refnet.rcnn.detections import own_masks, paste_masks, select_detections
from refnet.rcnn.model import image_index
from refnet.rcnn.presets import torchvision
from refnet.rcnn.proposals import propose
from refnet.rcnn.roi_pool import pool_rois
from refnet.rcnn.targets import assign_anchors, sample_rois
from refnet.rcnn.transform import prepare_truth, restore_boxes
from tests.golden.torchvision_rule import fill, image, torchvision_name
from tests.rcnn.golden import Golden, nchw


def configure(golden: Golden) -> ModelConfig:
    settings = json.loads(str(golden.file["config"]))
    model = settings["model"]
    config = torchvision(settings["classes"] - 1)
    return dataclasses.replace(
        config,
        input=dataclasses.replace(config.input, min_size=model["min_size"], max_size=model["max_size"]),
        rpn=dataclasses.replace(
            config.rpn,
            pre_nms_train=model["rpn_pre_nms_top_n_train"],
            pre_nms_test=model["rpn_pre_nms_top_n_test"],
            post_nms_train=model["rpn_post_nms_top_n_train"],
            post_nms_test=model["rpn_post_nms_top_n_test"],
        ),
        anchor_targets=dataclasses.replace(config.anchor_targets, batch_size=model["rpn_batch_size_per_image"]),
        roi_targets=dataclasses.replace(
            config.roi_targets,
            batch_size=model["box_batch_size_per_image"],
            positive_fraction=model["box_positive_fraction"],
        ),
        detections=dataclasses.replace(
            config.detections,
            limit=model["box_detections_per_img"],
            score_threshold=model["box_score_thresh"],
        ),
    )


@pytest.fixture(scope="module", autouse=True)
def tuned_kernels():
    refnet.kernels.install()
    yield
    refnet.kernels.uninstall()


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [image("0", 96, 128), image("1", 120, 100)]


def build(golden: Golden) -> MaskRCNN:
    model = MaskRCNN(configure(golden), rng=np.random.default_rng(0), dtype=np.float64)
    fill(model)
    return model


def check_features(golden, model, batch, training):
    """Everything up to the proposals; returns the pyramid, the RPN's output, the anchors and the proposals."""
    golden.check("transform.tensors", nchw(batch.pixels))
    sizes = np.stack([batch.windows[:, 3], batch.windows[:, 2]], axis=1)
    np.testing.assert_array_equal(sizes, golden.file["transform.image_sizes"])
    body = model.backbone(Tensor(batch.pixels), training=training)
    for index, features in enumerate(body):
        golden.check(f"body.{index}", nchw(features.data))
    pyramid = model.fpn(body, training=training)
    for name, features in zip(["0", "1", "2", "3", "pool"], pyramid, strict=True):
        golden.check(f"fpn.{name}", nchw(features.data))
    rpn = model.rpn(pyramid)
    for level, (logits, deltas) in enumerate(zip(rpn.objectness_logits, rpn.deltas, strict=True)):
        height, width = pyramid[level].shape[1:3]
        golden.check(f"rpn.objectness{level}", nchw(logits.data.reshape(len(batch), height, width, -1)))
        golden.check(f"rpn.deltas{level}", nchw(deltas.data.reshape(len(batch), height, width, -1)))
    anchors = model.anchors(pyramid, batch)
    proposals = propose(rpn, anchors, batch, model.config.rpn, training=training)
    for index, proposed in enumerate(proposals):
        golden.check(f"rpn.proposals{index}", proposed.boxes)
    return pyramid, rpn, anchors, proposals


def test_inference(images):
    golden = Golden("torchvision_maskrcnn.eval.npz")
    model = build(golden)
    config = model.config
    batch = model.prepare(images)
    pyramid, _, anchors, proposals = check_features(golden, model, batch, training=False)
    joined = np.concatenate(anchors)
    assert len(joined) == int(golden.file["anchors.count"])
    np.testing.assert_allclose(joined.sum(axis=0), golden.file["anchors.sum"])
    np.testing.assert_array_equal(joined[::97], golden.file["anchors.every97"])

    boxes = [p.boxes for p in proposals]
    pooled = pool_rois(pyramid, np.concatenate(boxes), image_index(boxes), batch.size, config.box_pool)
    golden.check("box_roi_pool", nchw(pooled.data))
    output = model.box_head(pooled, training=False)
    golden.check("class_logits", output.class_logits.data)
    golden.check("box_regression", output.deltas.data.reshape(len(pooled), -1))
    found = select_detections(output, boxes, batch, config.box_head, config.detections)
    boxes = [entry.boxes for entry in found]
    pooled = pool_rois(pyramid, np.concatenate(boxes), image_index(boxes), batch.size, config.mask_pool)
    golden.check("mask_roi_pool", nchw(pooled.data))
    logits = model.mask_head(pooled, training=False)
    golden.check("mask_logits", nchw(logits.data)[:: int(golden.file["mask_logits.every"])])
    for index, entry in enumerate(found):
        golden.check(f"final{index}.boxes", restore_boxes(entry.boxes, batch, index))

    masks = own_masks(logits, np.concatenate([e.classes for e in found]), config.box_head, config.mask_head)
    pasted = paste_masks(
        masks[: len(found[0])], restore_boxes(found[0].boxes, batch, 0), batch.original_sizes[0], config.detections
    )
    golden.check("final0.masks", pasted[::16, None])

    detections = model.detect(images)
    for index, entry in enumerate(detections):
        golden.check(f"final{index}.boxes", entry.boxes)
        golden.check(f"final{index}.scores", entry.scores)
        np.testing.assert_array_equal(entry.classes, golden.file[f"final{index}.labels"])
        golden.check(f"final{index}.masks", entry.masks[::16, None])


def test_training(images):
    golden = Golden("torchvision_maskrcnn.train.npz")
    model = build(golden)
    config = model.config
    truth = [
        GroundTruth(
            boxes=golden.file[f"target{i}.boxes"],
            classes=golden.file[f"target{i}.labels"],
            masks=golden.file[f"target{i}.masks"].astype(bool),
            crowd=np.zeros(len(golden.file[f"target{i}.boxes"]), bool),
        )
        for i in range(2)
    ]
    batch = model.prepare(images)
    moved = prepare_truth(truth, batch)
    rng = np.random.default_rng(0)
    _, _, anchors, proposals = check_features(golden, model, batch, training=True)
    targets = assign_anchors(np.concatenate(anchors), moved, batch, config.anchor_targets, config.rpn.delta_std, rng)
    for index in range(2):
        np.testing.assert_array_equal(targets.labels[index], golden.file[f"rpn.labels{index}"])
    rois = sample_rois(proposals, moved, batch, config.roi_targets, config.box_head.delta_std, 28, rng)
    for index in range(2):
        own = rois.images == index
        golden.check(f"samples.proposals{index}", rois.boxes[own])
        np.testing.assert_array_equal(rois.classes[own], golden.file[f"samples.labels{index}"])
        positive = own & (rois.classes > 0)
        wanted = golden.file[f"samples.regression_targets{index}"][golden.file[f"samples.labels{index}"] > 0]
        np.testing.assert_allclose(rois.deltas[positive], wanted, atol=1e-9)

    losses = model.losses(images, truth, rng=rng)
    for name, value in {
        "loss_objectness": losses.rpn_class,
        "loss_rpn_box_reg": losses.rpn_box,
        "loss_classifier": losses.class_,
        "loss_box_reg": losses.box,
        "loss_mask": losses.mask,
    }.items():
        stored = golden.file[f"loss.{name}"]
        np.testing.assert_allclose(
            value.item(), stored, rtol=1e-9 if stored.dtype == np.float64 else 1e-6, err_msg=name
        )
    # torchvision computes the objectness loss in float32 even in a float64 model, and its total contains that one
    rest = float(golden.file["loss.total"]) - float(golden.file["loss.loss_objectness"])
    np.testing.assert_allclose(losses.total.item() - losses.rpn_class.item(), rest, rtol=1e-9)

    losses.total.backward()
    golden.check_gradients(model, torchvision_name)
