"""The whole network against what Matterport's finds, stage by stage, in float32 as the original.

The original and TensorFlow's other convolution kernels differ by 1e-5 at the features' scale of 5; the bounds are those
of the golden files' text. Regions that end exactly on the image's far edge are left out (``edge`` in the files): by a
rounding they lose a row or column of their samples in one program and not in another.
"""

import numpy as np
import pytest

import refnet.kernels
from refnet.autograd import Tensor, no_grad
from refnet.nn.init import Blank
from refnet.ops import relu, reshape
from refnet.rcnn import MaskRCNN
from refnet.rcnn.boxes import from_yxyx, to_normalized
from refnet.rcnn.detections import class_scores
from refnet.rcnn.layers import convolve_regions
from refnet.rcnn.matterport import compose_image_meta
from refnet.rcnn.roi_pool import pool_rois
from refnet.rcnn.trace import Trace
from tests.golden import matterport_rules
from tests.golden.matterport_rules import assert_stored, traced_meta
from tests.rcnn.small import vary

FEATURES, COORDINATES = 1e-4, 1e-5
FILES = ["model_A_r50_128", "model_C_r50_batch2", "model_D_r50_pad64"]
LEVELS = ("p2", "p3", "p4", "p5", "p6")


@pytest.fixture(scope="module")
def weights(unannotated_module):
    """The network, whose weights all files share."""
    refnet.kernels.install()
    model = MaskRCNN(matterport_rules.settings(matterport_rules.load(FILES[0])), rng=Blank())
    matterport_rules.fill(model)
    yield model
    refnet.kernels.uninstall()


class Run:
    """A file, and what the network finds in its images."""

    def __init__(self, name, model, **changes):
        self.golden = matterport_rules.load(name)
        model.config = vary(matterport_rules.settings(self.golden), changes)
        self.model = model
        keys, sizes = self.golden["image_keys"], self.golden["image_hw"]
        self.images = [matterport_rules.image(str(key), *size) for key, size in zip(keys, sizes, strict=True)]
        self.trace = Trace()
        self.results = model.detect(self.images, trace=self.trace)
        self.size = self.trace["input.pixels"].shape[1:3]
        self.config = model.config

    def joined(self, name):
        return np.concatenate([self.trace[f"{name}.{level}"] for level in LEVELS], axis=-2)

    def per_image(self, name):
        """An array of the regions of all images in a row, as Matterport has it: (N, R, ...)."""
        return self.trace[name].reshape(len(self.images), -1, *self.trace[name].shape[1:])


@pytest.fixture(scope="module", params=FILES)
def run(request, weights):
    return Run(request.param, weights)


def test_features(run):
    np.testing.assert_array_equal([matterport_rules.checks(image) for image in run.images], run.golden["image_chk"])
    assert_stored(run.golden, "molded", run.trace["input.pixels"], atol=2.0**-17)  # half an ulp of 151.1
    windows = from_yxyx(run.trace["input.windows"])
    np.testing.assert_array_equal(windows, run.golden["windows"])
    for index, row in enumerate(run.golden["meta"]):
        meta = traced_meta(run.trace, index, run.images[index].shape, np.zeros(4, bool))
        np.testing.assert_allclose(compose_image_meta(meta), row, rtol=1e-7)  # the scale is float32 here
    anchors = from_yxyx(to_normalized(run.joined("anchors"), run.size))
    assert_stored(run.golden, "anchors", anchors, atol=1e-6)
    for name in ("C2", "C3", "C4", "C5"):
        assert_stored(run.golden, name, run.trace[f"backbone.{name.lower()}"], atol=FEATURES)
    for name in ("P2", "P3", "P4", "P5", "P6"):
        assert_stored(run.golden, name, run.trace[f"fpn.{name.lower()}"], atol=FEATURES)


def test_proposals(run):
    logits = run.joined("rpn.objectness_logits")
    assert_stored(run.golden, "rpn_logits", logits, atol=FEATURES)
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
    assert_stored(run.golden, "rpn_probs", probabilities, atol=COORDINATES)
    assert_stored(run.golden, "rpn_bbox", from_yxyx(run.joined("rpn.deltas")), atol=FEATURES)
    found = np.stack([run.trace[f"proposals.{index}.boxes"] for index in range(len(run.images))])
    np.testing.assert_allclose(from_yxyx(to_normalized(found, run.size)), run.golden["rois"], rtol=0, atol=COORDINATES)


def test_box_head(run):
    assert not run.golden["rois_edge"].any()
    assert_stored(run.golden, "pool7", run.per_image("box_pool"), atol=FEATURES)
    assert_stored(run.golden, "class_logits", run.per_image("box_head.class_logits"), atol=FEATURES)
    assert_stored(run.golden, "bbox", from_yxyx(run.per_image("box_head.deltas")), atol=FEATURES)
    logits = run.trace["box_head.class_logits"]
    probabilities = class_scores(Tensor(logits), run.config.box_head).reshape(run.golden["class_probs"].shape)
    assert_stored(run.golden, "class_probs", probabilities, atol=COORDINATES)
    head = run.model.box_head
    with no_grad():
        shared = convolve_regions(head.convolutions, head.norms, Tensor(run.trace["box_pool"]), training=False)
        again = head.classes(reshape(shared, (len(logits), -1)))
    assert_stored(run.golden, "shared_fc", shared.data.reshape(len(run.images), -1, 1024), atol=FEATURES)
    np.testing.assert_array_equal(again.data, logits)


def test_detections(run):
    assert not run.golden["detections_edge"].any()
    start = 0
    for index, stored in enumerate(run.golden["detections"]):
        count = int((stored[:, 4] > 0).sum())
        assert len(run.trace[f"detections.{index}.boxes"]) == count == run.golden[f"det{index}.count"]
        boxes = from_yxyx(to_normalized(run.trace[f"detections.{index}.boxes"], run.size))
        np.testing.assert_allclose(boxes, stored[:count, :4], rtol=0, atol=COORDINATES)
        np.testing.assert_array_equal(run.trace[f"detections.{index}.classes"], stored[:count, 4])
        np.testing.assert_allclose(run.trace[f"detections.{index}.scores"], stored[:count, 5], rtol=0, atol=COORDINATES)
        classes = stored[: min(count, 6), 4].astype(int)
        logits = run.trace["mask_head.logits"][start : start + len(classes)]
        own = 1 / (1 + np.exp(-logits[np.arange(len(classes)), :, :, classes]))
        class_mask = run.golden[f"det{index}.class_mask"]
        np.testing.assert_allclose(own, class_mask[: len(own)], rtol=0, atol=FEATURES)
        start += count


def test_mask_head(run):
    """There its input is of a fixed number of rows: padding has the features of a box of nothing at the origin."""
    pyramid = [Tensor(run.trace[f"fpn.{level}"]) for level in LEVELS]
    head, limit = run.model.mask_head, run.config.detections.limit
    counts = run.golden["detections"][:, :, 4].astype(bool).sum(axis=1)
    nothing = np.tile(np.float32([0, 0, 1, 1]), (len(run.images), 1))  # without extent, normalised
    with no_grad():
        padding = pool_rois(pyramid, nothing, np.arange(len(run.images)), run.size, run.config.mask_pool).data
        parts = np.split(run.trace["mask_pool"], np.cumsum(counts)[:-1])
        rows = [part for pair in zip(parts, padding[:, None].repeat(limit, axis=1), strict=True) for part in pair]
        pooled = np.concatenate([np.concatenate(rows[i : i + 2])[:limit] for i in range(0, len(rows), 2)])
        hidden = convolve_regions(head.convolutions, head.norms, Tensor(pooled), training=False)
        upsampled = relu(head.upsample(hidden))
        logits = head.logits(upsampled).data
    for name, values in (("pool14", pooled), ("mask_deconv", upsampled.data), ("mask", 1 / (1 + np.exp(-logits)))):
        assert_stored(run.golden, name, values.reshape(len(run.images), limit, *values.shape[1:]), atol=FEATURES)
    real = logits[(np.arange(limit) < counts[:, None]).ravel()]
    np.testing.assert_allclose(run.trace["mask_head.logits"], real, rtol=0, atol=FEATURES)


def test_results(run):
    """In the original image: whole pixels, and masks to the pixel."""
    for index, entry in enumerate(run.results):
        np.testing.assert_array_equal(from_yxyx(entry.boxes), run.golden[f"final{index}.rois"])
        np.testing.assert_array_equal(entry.classes, run.golden[f"final{index}.class_ids"])
        np.testing.assert_allclose(entry.scores, run.golden[f"final{index}.scores"], rtol=0, atol=COORDINATES)
        shape = run.golden[f"final{index}.masks_shape"]
        masks = matterport_rules.unpack(run.golden[f"final{index}.masks_bits"], shape)
        np.testing.assert_array_equal(entry.masks, masks.transpose(2, 0, 1))
        np.testing.assert_array_equal(entry.masks.sum(axis=(1, 2)), run.golden[f"final{index}.masks_sums"])


@pytest.mark.convention("rpn.padding")
def test_padding_may_be_detected(weights):
    """It is the original's mistake that boxes of nothing fill up the proposals, and are classified; else all is equal."""
    changes = {
        "rpn.nms_threshold": 0.0,
        "rpn.post_nms_test": 300,
        "detections.limit": 300,
        "detections.score_threshold": 0.3,
    }
    padded = Run(FILES[0], weights, **changes)
    plain = Run(FILES[0], weights, **changes, **{"rpn.padding": "none"})
    count = len(plain.trace["proposals.0.boxes"])
    assert count < len(padded.trace["proposals.0.boxes"]) == 300
    nothing = (padded.trace["detections.0.boxes"] == [0, 14, 1, 15]).all(axis=1)  # the window's corner: clipped to it
    assert nothing.sum() == 300 - count
    for name in ("boxes", "classes", "scores"):
        found = padded.trace[f"detections.0.{name}"][~nothing]
        # products of more rows may be summed in another order
        np.testing.assert_allclose(found, plain.trace[f"detections.0.{name}"], rtol=COORDINATES, atol=FEATURES)
    assert (padded.results[0].boxes == [0, 0, 1, 1]).all(axis=1).sum() == nothing.sum()  # a pixel in the corner
    assert len(plain.results[0]) == len(plain.trace["detections.0.boxes"])
