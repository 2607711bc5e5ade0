"""The whole network: its gradient, every convention, batches of all kinds, presets, and which layers train."""

import dataclasses
from typing import Literal, get_args, get_origin

import numpy as np
import pytest

import refnet.rcnn.model
from refnet.errors import ArgumentError, ShapeError
from refnet.nn import set_trainable
from refnet.nn.init import Blank
from refnet.rcnn import GroundTruth, MaskRCNN
from refnet.rcnn.boxes import from_normalized, from_yxyx
from refnet.rcnn.layers import LAYERS
from refnet.rcnn.matterport import parse_image_meta
from refnet.rcnn.model import restore
from refnet.rcnn.presets import PRESETS, matterport, shapes, torchvision, torchvision_keypoints, torchvision_v2
from refnet.rcnn.structures import Detections
from refnet.rcnn.trace import Trace
from tests.golden.matterport_rules import load, normal, unpack
from tests.rcnn.small import blank_images, scene, shrink, truth, vary

BASE = shrink(shapes())


def build(config=BASE, dtype=np.float64, seed=0) -> MaskRCNN:
    """A network some way from its initial weights, where no scale or shift is exactly 0 or 1."""
    model = MaskRCNN(config, rng=np.random.default_rng(seed), dtype=dtype)
    rng = np.random.default_rng(seed + 1)
    for parameter in model.parameters().values():
        parameter.data += (0.05 * rng.standard_normal(parameter.shape)).astype(dtype)
    return model


def scenes(*sizes, channels=3):
    pairs = [scene(*size, channels=channels, seed=seed) for seed, size in enumerate(sizes, 1)]
    return [image for image, _ in pairs], [entry for _, entry in pairs]


def train(model, images, truths, seed=0):
    """Losses and their gradient, all finite, of every parameter that is trained."""
    losses = model.losses(images, truths, rng=np.random.default_rng(seed))
    assert losses.total.dtype == model.dtype
    assert all(np.isfinite(value) for value in losses.as_dict().values())
    model.zero_grad()
    losses.total.backward()
    for name, parameter in model.parameters().items():
        if parameter.requires_grad and parameter.grad is not None:
            assert parameter.grad.dtype == model.dtype, name
            assert np.isfinite(parameter.grad).all(), name
    return losses


def detect(model, images):
    """Detections, each of which makes sense."""
    config = model.config
    detections = model.detect(images)
    assert len(detections) == len(images)
    for image, found in zip(images, detections, strict=True):
        height, width = image.shape[:2]
        count = len(found)
        assert count <= config.detections.limit
        assert found.boxes.shape == (count, 4)
        assert found.boxes.dtype == found.scores.dtype == model.dtype
        # the way back from the network's input is known to float32
        assert (found.boxes >= -1e-3).all()
        assert (found.boxes <= np.array([width, height, width, height]) + 1e-3).all()
        least = -1.0 if config.box_extent == "inclusive" else 0.0
        assert (found.boxes[:, 2:] - found.boxes[:, :2] >= least).all()
        assert set(found.classes.tolist()) <= set(range(1, config.num_classes + 1))
        assert ((found.scores >= config.detections.score_threshold) & (found.scores <= 1)).all()
        assert (np.diff(found.scores) <= 0).all()
        if model.keypoint_head is None:
            assert found.keypoints is found.keypoint_scores is None
        else:
            assert found.keypoints.shape == (count, config.keypoint_head.num_keypoints, 3)
            assert found.keypoint_scores.shape == found.keypoints.shape[:2]
            assert found.keypoints.dtype == found.keypoint_scores.dtype == model.dtype
            assert (found.keypoints[..., 2] == 1).all()
            size = np.maximum(found.boxes[:, 2:] - found.boxes[:, :2], 2.0)  # one narrower than a pixel counts as one
            assert (found.keypoints[..., :2] >= found.boxes[:, None, :2] - 1e-3).all()
            assert (found.keypoints[..., :2] <= (found.boxes[:, :2] + size)[:, None] + 1e-3).all()
        if model.mask_head is None:
            assert found.masks is None
        else:
            assert found.masks.shape == (count, height, width)
            soft = config.detections.mask_threshold is None
            assert found.masks.dtype == (model.dtype if soft else bool)
            assert ((found.masks >= 0) & (found.masks <= 1)).all()
    return detections


@pytest.mark.usefixtures("unannotated")  # which takes half the time
class TestGradient:
    """The directional derivative of the total loss is the inner product of gradient and direction, in float64.

    Gradients stop at the proposals by design, so these are held fixed, and so is the sampling. The step is as small
    as rounding allows: over a distance h, a share of the rectifiers, maxima and absolute values proportional to h
    crosses a kink, and each one that does spoils the quotient, while the loss, a number below 100, is known to some
    1e-14, which 2e-7 turns into 5e-8: far less than 1e-5 of derivatives that aren't below 0.01 themselves.
    """

    STEP = 1e-7

    @pytest.mark.parametrize(
        ("preset", "changes"),
        [
            ("shapes", {"mask_head.norm": "batch"}),
            ("shapes", {"keypoint_head.enabled": True}),
            ("matterport", {"roi_targets.append_ground_truth": True}),
            ("torchvision_v2", {"backbone.depth": 18}),
            ("torchvision", {"backbone.depth": 18, "box_pool.method": "roi_pool", "box_head.class_agnostic": True}),
        ],
    )
    def test_along_random_directions(self, monkeypatch, preset, changes):
        model = build(vary(shrink(PRESETS[preset]()), changes))
        images, truths = scenes((48, 56), (40, 64))
        held = []
        propose = refnet.rcnn.model.propose_padded

        def hold(*args, **kwargs):
            if not held:
                held.append(propose(*args, **kwargs))
            return held[0]

        monkeypatch.setattr(refnet.rcnn.model, "propose_padded", hold)
        losses = train(model, images, truths)
        assert min(losses.as_dict().values()) > 0  # every loss takes part
        parameters = model.parameters()
        start = {name: parameter.data.copy() for name, parameter in parameters.items()}
        rng = np.random.default_rng(9)

        def loss_at(t, direction):
            for name, v in direction.items():
                parameters[name].data[...] = start[name] + t * v
            value = model.losses(images, truths, rng=np.random.default_rng(0)).total.item()
            for name in direction:
                parameters[name].data[...] = start[name]
            return value

        # over all parameters at once, and over each part of the network, lest a small one hide behind a large
        for part in ("", "backbone.", "fpn.", "rpn.", "box_head.", "mask_head.", "keypoint_head."):
            direction = {name: rng.standard_normal(p.shape) for name, p in parameters.items() if name.startswith(part)}
            analytic = sum(float((parameters[name].grad * v).sum()) for name, v in direction.items())
            numeric = (loss_at(self.STEP, direction) - loss_at(-self.STEP, direction)) / (2 * self.STEP)
            np.testing.assert_allclose(analytic, numeric, rtol=1e-5, err_msg=part or "all")

    def test_every_parameter_takes_part(self):
        model = build(vary(shrink(matterport()), {"roi_targets.append_ground_truth": True}))
        train(model, *scenes((48, 56), (40, 64)))
        assert all(p.grad is not None and p.grad.any() for p in model.parameters().values())


# A row for each convention, with the values that BASE hasn't; the numbers are those of the list of differences
# between implementations that break ports.
SWITCHES = {
    "resize to a shortest edge": {"input.resize": "shortest_edge"},
    "resize to a square": {"input.resize": "square"},
    "enlarge only": {"input.resize": "pad64"},
    "crop": {"input.resize": "crop", "input.min_size": 40},
    "resize bytes": {"input.resize": "square", "input.resampling": "bytes"},
    "corner-aligned masks": {"input.resize": "square", "input.mask_resampling": "corner_aligned"},
    "boxes around masks": {"input.resize": "square", "input.boxes": "masks"},
    "padding in the middle": {"input.pad_position": "center"},
    "padding before normalisation": {"input.pad_before_normalization": True},
    "bytes": {"input.value_scale": 1.0, "input.mean": (123.7, 116.8, 103.9), "input.std": (58.0,)},
    "bgr": {"input.channel_order": "bgr"},
    "inclusive boxes": {"box_extent": "inclusive"},
    "normalized boxes": {"box_extent": "normalized"},
    "ResNet-34": {"backbone.depth": 34},
    "ResNet-50": {"backbone.depth": 50},
    "ResNet-101": {"backbone.depth": 101},
    "ResNet-152": {"backbone.depth": 152},
    **{f"VGG-{depth}": {"backbone.family": "vgg", "backbone.depth": depth} for depth in (11, 13, 16, 19)},
    "strides in 1x1": {"backbone.depth": 50, "backbone.stride_in": "1x1"},
    "biases": {"backbone.conv_bias": True},
    "asymmetric padding": {"backbone.padding": "same"},
    "frozen norm": {"backbone.norm": "frozen", "mask_head.norm": "frozen"},
    "frozen statistics": {"backbone.norm": "frozen_statistics", "mask_head.norm": "frozen_statistics"},
    "batch norm in the mask head": {"mask_head.norm": "batch"},
    "epsilon and momentum": {"backbone.norm_epsilon": 1e-3, "backbone.norm_momentum": 0.01},
    "biased variance": {"backbone.norm_variance": "biased"},
    "Keras' variance": {"backbone.norm_variance": "keras"},
    "blocks that don't start as the identity": {"backbone.zero_init_residual": False},
    "checkpoints of blocks": {"backbone.checkpoint": True},
    "Glorot's weights": {
        f"{stage}.initialization": "glorot_uniform" for stage in ("backbone", "fpn", "rpn", "box_head", "mask_head")
    },
    "torchvision's weights": {"box_head.initialization": "torchvision"},
    "ratio is w/h": {"anchors.ratio_is": "w/h"},
    "anchors at corners": {"anchors.center_offset": 0.0},
    "rounded anchors": {"anchors.rounding": True},
    "sizes before ratios": {"anchors.order": "size_major"},
    "strides of the padded image": {"anchors.stride": "floor"},
    "anchors at every second position": {"anchors.step": 2},
    "softmax objectness": {"rpn.objectness": "softmax"},
    "deviations of the RPN's deltas": {"rpn.delta_std": (0.1, 0.1, 0.2, 0.2)},
    "no clamp": {"rpn.delta_clamp": None, "box_head.delta_clamp": None},
    "top-k and NMS over all levels": {"rpn.scope": "global"},
    "any size of proposals": {"rpn.min_size": 0.0},
    "proposals in the padding": {"rpn.clip": "padded", "input.pad_divisor": 64},
    "the first best anchor": {"anchor_targets.force_best": "first"},
    "own best object": {"anchor_targets.forced_match": "own_best"},
    "no anchors across the border": {"anchor_targets.border": "ignore"},
    "crowds avoided": {"anchor_targets.crowd": "avoid", "roi_targets.crowd": "avoid"},
    "proposals and regions filled up": {
        "rpn.padding": "zeros", "roi_targets.padding": "zeros", "roi_targets.negatives": "ratio",
        "roi_targets.positive_fraction": 0.33,
    },
    "box targets with gradients": {"roi_targets.detach": False},
    "true boxes aren't proposals": {"roi_targets.append_ground_truth": False},
    "negatives in a ratio": {"roi_targets.negatives": "ratio", "roi_targets.positive_fraction": 0.33},
    "negatives that overlap": {"roi_targets.negative_iou_low": 0.1},
    "masks by crop_and_resize": {"roi_targets.mask_sampling": "crop_and_resize"},
    "mini-masks": {"roi_targets.mask_sampling": "crop_and_resize", "roi_targets.mini_mask": (14, 14)},
    "classes of the first image": {"losses.active_classes": "first_image"},
    "mask loss of probabilities": {"losses.mask_cross_entropy": "keras"},
    "mask loss of tf.keras": {"losses.mask_cross_entropy": "tf_keras"},
    "soft masks": {"roi_targets.mask_values": "soft"},
    "rounded masks": {"roi_targets.mask_values": "round"},
    "crop_and_resize": {
        f"{pool}.{field}": value
        for pool in ("box_pool", "mask_pool")
        for field, value in {"method": "crop_and_resize", "box_units": "normalized"}.items()
    },
    "ROI pooling": {"box_pool.method": "roi_pool", "mask_pool.method": "roi_pool"},
    "not aligned": {"box_pool.aligned": False, "mask_pool.aligned": False},
    "adaptive sampling": {"box_pool.sampling_ratio": 0, "mask_pool.sampling_ratio": 0},
    "levels by rounding": {"box_pool.level_rounding": "round", "mask_pool.level_rounding": "round"},
    "no epsilon": {"box_pool.level_epsilon": 0.0, "mask_pool.level_epsilon": 0.0},
    "convolutional box head": {"box_head.kind": "conv", "box_head.norm": "frozen_statistics"},
    "convolutional box head with a frozen norm": {"box_head.kind": "conv", "box_head.norm": "frozen"},
    "convolutional box head with batch norm": {"box_head.kind": "conv", "box_head.norm": "batch"},
    "four convolutions and a layer": {
        "box_head.convolutions": 4, "box_head.layers": 1,
        "box_head.conv_bias": False, "box_head.norm": "batch",
    },
    "batch norm instead of biases": {"mask_head.norm": "batch", "mask_head.conv_bias": False},
    "batch norm in the pyramid": {"fpn.norm": "batch"},
    "frozen norm in the pyramid": {"fpn.norm": "frozen"},
    "frozen statistics in the pyramid": {"fpn.norm": "frozen_statistics"},
    "a deeper RPN": {"rpn.convolutions": 2},
    "one box for all classes": {"box_head.class_agnostic": True},
    "one mask for all classes": {"mask_head.class_agnostic": True},
    "background last": {"box_head.background": "last"},
    "background last, one for all classes": {
        "box_head.background": "last", "box_head.class_agnostic": True, "mask_head.class_agnostic": True,
    },
    "boxes only": {"mask_head.enabled": False},
    "keypoints": {"mask_head.enabled": False, "keypoint_head.enabled": True},
    "keypoints and masks": {"keypoint_head.enabled": True, "keypoint_head.convolutions": 0},
    "probabilities of keypoints": {"keypoint_head.enabled": True, "keypoint_head.scores": "probability"},
    "a fixed denominator": {"keypoint_head.enabled": True, "losses.keypoint_denominator": "fixed"},
    "keypoints pooled otherwise": {
        "keypoint_head.enabled": True, "keypoint_pool.method": "crop_and_resize", "keypoint_pool.box_units": "normalized",
        "keypoint_pool.level_rounding": "round",
    },
    "ROI pooling of keypoints": {"keypoint_head.enabled": True, "keypoint_pool.method": "roi_pool"},
    "keypoints not aligned": {"keypoint_head.enabled": True, "keypoint_pool.aligned": False},
    "no convolutions in the mask head": {"mask_head.convolutions": 0},
    "L1": {"losses.rpn_beta": 0.0, "losses.box_beta": 0.0},
    "smooth L1 of the paper": {"losses.rpn_beta": 1.0, "losses.box_beta": 1.0},
    "box losses are means": {
        "losses.rpn_box_denominator": "positive_coordinates", "losses.box_denominator": "positive_coordinates",
    },
    "the best class only": {"detections.classes": "argmax", "detections.score_threshold": 0.0},
    "scores of at least": {"detections.score_comparison": ">="},
    "hard masks": {"detections.paste": "hard"},
    "whole boxes": {"detections.round_boxes": True},
    "probabilities": {"detections.mask_threshold": None},
}  # fmt: skip


@pytest.mark.parametrize("changes", [{}, *SWITCHES.values()], ids=["base", *SWITCHES])
def test_every_convention_trains_and_detects(changes):
    model = build(vary(BASE, changes), np.float32)
    images, truths = scenes((48, 56))
    train(model, images, truths)
    detect(model, images)


def test_the_table_of_conventions_is_complete():
    """Every value of every field that names a choice or is a yes or no, but those of BASE itself."""
    run = {(name, value) for changes in SWITCHES.values() for name, value in changes.items()}
    missing = []
    for stage, record in [("", BASE), *((f.name, getattr(BASE, f.name)) for f in dataclasses.fields(BASE))]:
        if not dataclasses.is_dataclass(record):
            continue
        for entry in dataclasses.fields(record):
            values = get_args(entry.type) if get_origin(entry.type) is Literal else ()
            for value in (False, True) if entry.type is bool else values:
                name = f"{stage}.{entry.name}".removeprefix(".")
                if value != getattr(record, entry.name) and (name, value) not in run:
                    missing.append((name, value))
    assert not missing


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset, dtype):
    model = build(shrink(PRESETS[preset]()), dtype)
    images, truths = scenes((40, 30), (24, 44))
    train(model, images, truths)
    detect(model, images)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (torchvision(90), 44_401_393),  # maskrcnn_resnet50_fpn
        (vary(torchvision(90), {"mask_head.enabled": False}), 41_755_286),  # fasterrcnn_resnet50_fpn
        (torchvision_keypoints(), 59_137_258),  # keypointrcnn_resnet50_fpn
        (torchvision_v2(90), 46_359_409),  # maskrcnn_resnet50_fpn_v2
        (vary(torchvision_v2(90), {"mask_head.enabled": False}), 43_712_278),  # fasterrcnn_resnet50_fpn_v2
        (matterport(80), 64_047_096),  # mask_rcnn_coco.h5, what is trained
    ],
)
def test_published_numbers_of_parameters(config, parameters):
    assert MaskRCNN(config, rng=Blank()).count() == parameters


@pytest.mark.parametrize(("depth", "values"), [(101, 64_158_584), (50, 45_088_120)])
def test_published_numbers_of_values_in_a_file(depth, values):
    model = MaskRCNN(vary(matterport(80), {"backbone.depth": depth}), rng=Blank())
    assert sum(array.size for array in model.state().values()) == values


@pytest.mark.usefixtures("unannotated")
class TestBatches:
    def test_given_proposals_take_the_place_of_the_rpns(self):
        """In pixels of the images as they were given: an enlarged image enlarges them."""
        config = vary(BASE, {"input.resize": "shortest_edge", "input.min_size": 64, "input.max_size": 128})
        model = build(vary(config, {"roi_targets.append_ground_truth": False}))
        images, truths = scenes((32, 48), (32, 40))
        given = [np.array([[4.0, 6, 20, 30], [1, 1, 9, 12]]), np.array([[8.0, 2, 30, 28]])]
        trace = Trace()
        losses = model.losses(images, truths, rng=np.random.default_rng(0), proposals=given, trace=trace)
        np.testing.assert_allclose(trace["rois.boxes"], 2 * np.concatenate(given), rtol=1e-6)
        losses.total.backward()
        assert np.abs(model.rpn.deltas.weight.grad).max() > 0  # trained all the same
        with pytest.raises(ShapeError, match="expected the boxes of 2 images, got 1"):
            model.losses(images, truths, rng=np.random.default_rng(0), proposals=given[:1])

    def test_images_of_different_sizes(self):
        model = build()
        images, truths = scenes((48, 64), (33, 40), (70, 20))
        train(model, images, truths)
        detect(model, images)

    @pytest.mark.parametrize("preset", ["torchvision", "matterport"])
    def test_a_batch_finds_what_its_images_would_alone(self, preset):
        """With fixed statistics, and sizes that are padded alike."""
        model = build(shrink(PRESETS[preset]()))
        images, _ = scenes((48, 64), (44, 60), (48, 64))
        together = detect(model, images)
        assert sum(len(found) for found in together) > 0
        for image, found in zip(images, together, strict=True):
            alone = detect(model, [image])[0]
            np.testing.assert_array_equal(alone.classes, found.classes)
            np.testing.assert_allclose(alone.boxes, found.boxes, rtol=0, atol=1e-9)
            np.testing.assert_allclose(alone.scores, found.scores, rtol=1e-9)
            np.testing.assert_allclose(alone.masks, found.masks, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("channels", [1, 4])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_any_number_of_channels(self, channels, dtype):
        model = build(vary(BASE, {"input.channels": channels}), dtype)
        images, truths = scenes((48, 56), channels=channels)
        train(model, images, truths)
        detect(model, images)

    def test_bytes_and_numbers_are_the_same_image(self):
        model = build()
        image = np.random.default_rng(0).integers(0, 256, (48, 48, 3)).astype(np.uint8)
        first, second = (detect(model, [x])[0] for x in (image, image.astype(np.float32)))
        np.testing.assert_array_equal(first.boxes, second.boxes)

    def test_the_generator_decides(self):
        model = build(vary(BASE, {"anchor_targets.batch_size": 8}))
        images, truths = scenes((48, 56))
        first, again, other = (train(model, images, truths, seed=seed).total.item() for seed in (1, 1, 2))
        assert first == again
        assert first != other

    def test_training_and_detecting_have_proposals_of_their_own_number(self, monkeypatch):
        model = build(vary(BASE, {"rpn.post_nms_train": 2, "rpn.post_nms_test": 3}))
        counts = []
        propose = refnet.rcnn.proposals.propose_padded

        def count(*args, **kwargs):
            proposals = propose(*args, **kwargs)
            counts.append(proposals.boxes.shape[1])
            return proposals

        for module in (refnet.rcnn.model, refnet.rcnn.proposals):
            monkeypatch.setattr(module, "propose_padded", count)
        images, truths = scenes((48, 56))
        train(model, images, truths)
        detect(model, images)
        assert counts == [2, 3]

    def test_detecting_changes_nothing(self):
        model = build()
        before = {name: array.copy() for name, array in model.state().items()}
        images, _ = scenes((48, 56))
        first, second = detect(model, images)[0], detect(model, images)[0]
        np.testing.assert_array_equal(first.scores, second.scores)
        for name, array in model.state().items():
            np.testing.assert_array_equal(array, before[name])


OFTEN_WITHOUT_OBJECTS = {
    "shapes": vary(BASE, {"mask_head.norm": "batch"}),
    "matterport": shrink(matterport()),  # for which there are no regions either
    "conv": vary(
        BASE, {"box_head.kind": "conv", "box_head.norm": "batch", "roi_targets.negatives": "ratio"}
    ),  # nor batch statistics
    "boxes": vary(BASE, {"mask_head.enabled": False}),
    "keypoints": vary(BASE, {"mask_head.enabled": False, "keypoint_head.enabled": True}),
    "means": vary(
        BASE,
        {"losses.rpn_box_denominator": "positive_coordinates", "losses.box_denominator": "positive_coordinates"},
    ),
}


class TestRestore:
    golden = load("detection_layer")

    @pytest.mark.convention("detections.round_boxes", "detections.paste")
    @pytest.mark.parametrize("name", ["window", "nonsquare", "none"])
    def test_golden(self, name):
        """Matterport's unmold_detections, which takes boxes of the network's input in normalised coordinates."""
        meta = parse_image_meta(self.golden[f"{name}.meta"][0])
        height, width, _ = self.golden[f"unmold.{name}.orig"].tolist()
        count = int(self.golden[f"{name}.count"][0])
        rows = self.golden[f"{name}.out"][0, :count].astype(np.float64)
        found = Detections(
            boxes=from_normalized(from_yxyx(rows[:, :4]), meta.shape[:2]),
            classes=rows[:, 4].astype(np.int64),
            scores=rows[:, 5],
            masks=None,
        )
        probabilities = 1 / (1 + np.exp(-normal(f"unmold/{name}", (100, 7, 7, 4), 2.0).astype(np.float64)))
        masks = np.kron(probabilities, np.ones((1, 4, 4, 1)))[np.arange(len(found)), :, :, found.classes]
        batch = dataclasses.replace(
            blank_images(*meta.shape[:2], windows=[meta.window]), original_sizes=[(height, width)]
        )
        restored = restore(found, masks, batch, 0, matterport())
        assert len(restored) == count
        np.testing.assert_array_equal(restored.boxes, from_yxyx(self.golden[f"unmold.{name}.rois"]))
        np.testing.assert_array_equal(restored.classes, self.golden[f"unmold.{name}.class_ids"])
        np.testing.assert_array_equal(restored.scores, self.golden[f"unmold.{name}.scores"])
        stored = unpack(self.golden[f"unmold.{name}.masks_bits"], self.golden[f"unmold.{name}.masks_shape"])
        np.testing.assert_array_equal(restored.masks, stored.transpose(2, 0, 1))
        np.testing.assert_array_equal(restored.masks.sum(axis=(1, 2)), self.golden[f"unmold.{name}.masks_sums"])

    @pytest.mark.convention("detections.round_boxes")
    def test_boxes_without_area_are_dropped_after_rounding(self):
        found = Detections(
            boxes=np.array([[1.5, 0, 2.5, 4], [1.25, 0, 2.75, 4], [0.5, 0.5, 1.5, 1.5], [0.25, 0, 0.5, 4]]),
            classes=np.array([1, 2, 3, 4]),
            scores=np.array([0.9, 0.8, 0.7, 0.6]),
            masks=None,
        )
        config = vary(BASE, {"detections.round_boxes": True, "detections.paste": "hard"})
        restored = restore(found, np.ones((4, 3, 3)), blank_images(4, 4), 0, config)
        np.testing.assert_array_equal(
            restored.boxes, [[1, 0, 3, 4], [0, 0, 2, 2]]
        )  # halves go to even: 2 to 2 is empty
        np.testing.assert_array_equal(restored.classes, [2, 3])
        np.testing.assert_array_equal(restored.masks.sum(axis=(1, 2)), [8, 4])
        np.testing.assert_array_equal(restore(found, None, blank_images(4, 4), 0, BASE).boxes, found.boxes)


class TestWithoutObjects:
    @pytest.mark.parametrize("config", OFTEN_WITHOUT_OBJECTS.values(), ids=OFTEN_WITHOUT_OBJECTS)
    def test_alone_and_beside_an_image_with_objects(self, config):
        model = build(config)
        (image, other), (_, entry) = scenes((48, 56), (48, 56))
        losses = train(model, [image], [GroundTruth.empty(48, 56)])
        assert losses.rpn_class.item() > 0
        assert losses.rpn_box.item() == losses.box.item() == 0
        assert losses.mask is None or losses.mask.item() == 0
        assert losses.keypoint is None or losses.keypoint.item() == 0
        both = train(model, [image, other], [GroundTruth.empty(48, 56), entry])
        assert both.rpn_box.item() > 0

    @pytest.mark.parametrize("rule", ["drop", "avoid"])
    def test_nothing_but_a_crowd(self, rule):
        model = build(vary(BASE, {"anchor_targets.crowd": rule, "roi_targets.crowd": rule}))
        (image,), _ = scenes((48, 56))
        masks = np.ones((1, 48, 56), bool)
        losses = train(model, [image], [truth([[0, 0, 56, 48]], [1], masks=masks, crowd=[True])])
        assert losses.rpn_box.item() == losses.box.item() == losses.mask.item() == 0
        # a crowd over the whole image leaves nothing that may be called background, but for anchors outside of it
        assert (losses.class_.item() == 0) == (rule == "avoid")

    def test_no_detections(self):
        model = build(vary(BASE, {"detections.score_threshold": 1.0}))
        found = detect(model, scenes((48, 56))[0])[0]
        assert len(found) == 0

    def test_no_proposals(self):
        model = build(vary(BASE, {"rpn.min_size": 1000.0, "roi_targets.append_ground_truth": False}))
        images, truths = scenes((48, 56))
        losses = train(model, images, truths)
        assert losses.class_.item() == losses.box.item() == losses.mask.item() == 0
        assert len(detect(model, images)[0]) == 0


@pytest.mark.usefixtures("unannotated")
class TestRefusals:
    def test_masks_are_missing(self):
        images, truths = scenes((48, 56))
        bare = dataclasses.replace(truths[0], masks=None)
        with pytest.raises(ArgumentError, match="needs the masks of all objects"):
            build().losses(images, [bare], rng=np.random.default_rng(0))
        train(build(vary(BASE, {"mask_head.enabled": False})), images, [bare])

    def test_keypoints_are_missing_or_too_many(self):
        images, truths = scenes((48, 56))
        model = build(vary(BASE, {"keypoint_head.enabled": True}))
        bare = dataclasses.replace(truths[0], keypoints=None)
        more = dataclasses.replace(truths[0], keypoints=np.ones((2, 5, 3)))
        for entry, got in ((bare, 0), (more, 5)):
            with pytest.raises(ArgumentError, match=f"needs 3 keypoints of every object, got {got}"):
                model.losses(images, [entry], rng=np.random.default_rng(0))
        train(build(), images, [bare])

    @pytest.mark.parametrize("background", ["first", "last"])
    def test_a_class_that_the_model_hasnt(self, background):
        images, truths = scenes((48, 56))
        strange = dataclasses.replace(truths[0], classes=np.array([1, 4]))
        model = build(vary(BASE, {"box_head.background": background, "box_head.class_agnostic": True}))
        with pytest.raises(ArgumentError, match="classes must be from 1 to 3, got 4"):
            model.losses(images, [strange], rng=np.random.default_rng(0))


HEADS = ("fpn.", "rpn.", "box_head.", "mask_head.", "keypoint_head.")
TRAINED = {
    "heads": HEADS,
    "5+": ("backbone.stages.3.", *HEADS),
    "4+": ("backbone.stages.2.", "backbone.stages.3.", *HEADS),
    "3+": ("backbone.stages.1.", "backbone.stages.2.", "backbone.stages.3.", *HEADS),
    "all": ("",),
}


@pytest.mark.parametrize("name", LAYERS)
def test_which_parameters_train(name):
    model = build(vary(BASE, {"keypoint_head.enabled": True}))
    trained = set_trainable(model, LAYERS[name])
    assert trained == [p for p in model.parameters() if p.startswith(TRAINED[name])]
    train(model, *scenes((48, 56)))
    assert [p for p, value in model.parameters().items() if value.grad is not None] == trained
