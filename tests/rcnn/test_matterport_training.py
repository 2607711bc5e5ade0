"""Training against Matterport's: targets, losses, the gradient of every weight, and three steps with either clipping.

T1 takes its regions from the RPN and mini-masks, T2 given regions of two images and full masks. All regions lie away
from what a rounding could change (``rois_edge``, ``margin`` in the files), so the bounds are those of float32: between
TensorFlow's own two sets of convolution kernels gradients differ by up to 2e-4 of the largest of a weight.
"""

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pytest

import refnet.kernels
from refnet.autograd import Tensor, no_grad
from refnet.nn import Parameter, add_weight_decay, set_trainable
from refnet.nn.init import Blank
from refnet.rcnn import GroundTruth, Losses, MaskRCNN
from refnet.rcnn.boxes import from_yxyx, to_normalized
from refnet.rcnn.layers import LAYERS
from refnet.rcnn.masks import minimize_masks, tight_boxes
from refnet.rcnn.matterport import compose_image_meta, parse_image_meta
from refnet.rcnn.model import find_proposals
from refnet.rcnn.roi_pool import pool_rois
from refnet.rcnn.structures import RpnOutput
from refnet.rcnn.trace import LEVELS, NO_TRACE, Trace
from refnet.train.config import TrainConfig
from refnet.train.step import apply_gradients, make_optimizer, undecayed_names
from tests.golden import matterport_rules
from tests.golden.matterport_rules import LeavingOut, assert_stored, keras_name, to_keras, traced_meta
from tests.rcnn.small import vary

# By how much gradients depend on the order of float32 sums: two sets of TensorFlow's own kernels differ by as much.
NOISE = 5e-4
LOSSES = ("rpn_class", "rpn_box", "class_", "box", "mask")
TRAIN = TrainConfig(
    lr=1e-4, momentum=0.9, nesterov=False, weight_decay=1e-4, decay_vectors=True, no_decay=r".*norms?\..*",
    decay_norm="mean", decay_clipped=True, clip_norm=5.0,
)  # fmt: skip


class Case:
    """A file, its images and objects, and the network at its weights."""

    def __init__(self, name: str, model: MaskRCNN) -> None:
        self.name, self.golden, self.model = name, matterport_rules.load(name), model
        self.config = model.config = matterport_rules.settings(self.golden)
        self.images = [matterport_rules.image(str(key), 128, 128) for key in self.golden["image_keys"]]
        self.truth = [self.objects(index) for index in range(len(self.images))]
        self.given = None
        if "input_rois_px" in self.golden:
            self.given = [from_yxyx(boxes).astype(model.dtype) for boxes in self.golden["input_rois_px"]]

    def objects(self, index: int) -> GroundTruth:
        classes = self.golden["gt_class_ids"][index]
        specs = self.golden["gt_specs"]
        masks = matterport_rules.shape_masks(specs[specs[:, 0] == index, 1:], (128, 128))
        boxes = tight_boxes(masks)
        np.testing.assert_array_equal(from_yxyx(boxes), self.golden["gt_boxes_px"][index, : len(boxes)])
        return GroundTruth(
            boxes=boxes,
            classes=classes[: len(boxes)].astype(np.int64),
            masks=masks,
            crowd=np.zeros(len(boxes), bool),
            active_classes=parse_image_meta(self.golden["meta"][index]).active_classes,
        )

    def losses(self, trace: Trace = NO_TRACE) -> Losses:
        return self.model.losses(
            self.images,
            self.truth,
            rng=LeavingOut(range(100, 100 + len(self.images))),
            proposals=self.given,
            trace=trace,
        )

    def history(self, losses: Losses, decay: float) -> list[float]:
        """As the files have it: the total, the decay's share of it, and the five losses."""
        return [losses.total.item() + decay, decay, *(getattr(losses, name).item() for name in LOSSES)]

    def decay(self) -> float:
        """The term of the decay alone."""
        return add_weight_decay(
            self.model.parameters(), weight_decay=TRAIN.weight_decay, decay_norm=TRAIN.decay_norm,
            no_decay=undecayed_names(self.model.parameters(), TRAIN),
        )  # fmt: skip

    def samples(self, prefix: str) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
        """Of each weight its name here, the positions that the file keeps, their values, and sums over all."""
        names = {keras_name(name): name for name in self.model.parameters()}
        assert set(names) == set(self.golden["trainable"].tolist())
        stored = np.split(self.golden[f"{prefix}.s"], np.cumsum(self.golden[f"{prefix}.len"])[:-1])
        for index, name in enumerate(self.golden["trainable"].tolist()):
            step = int(self.golden[f"{prefix}.step"][index])
            yield names[name], np.arange(len(stored[index])) * step, stored[index], self.golden[f"{prefix}.chk"][index]


@pytest.fixture(scope="module")
def weights(unannotated_module):
    refnet.kernels.install()
    model = MaskRCNN(matterport_rules.settings(matterport_rules.load("train_T1")), rng=Blank())
    matterport_rules.fill(model)
    yield model, {name: array.copy() for name, array in model.state().items()}
    refnet.kernels.uninstall()


@pytest.fixture(params=["train_T1", "train_T2"], scope="module")
def first(request, weights):
    """A file's case, and of its first pass the trace, the losses, and the gradients, those of the decay included."""
    model, start = weights
    model.load_state(start)
    model.zero_grad()
    case = Case(request.param, model)
    trace = Trace()
    losses = case.losses(trace)
    losses.total.backward()
    history = case.history(losses, case.decay())
    return case, trace, history, {name: parameter.grad for name, parameter in model.parameters().items()}


def test_features(first):
    """Of the images and the RPN, whose proposals T2 has too, though its heads are trained on regions given to them."""
    case, trace, _, _ = first
    golden, count = case.golden, len(case.images)
    found = [matterport_rules.checks(pixels) for pixels in trace["input.pixels"]]
    np.testing.assert_allclose(found, golden["image_chk"], rtol=1e-6)
    for index, row in enumerate(golden["meta"]):
        meta = traced_meta(trace, index, case.images[index].shape, case.truth[index].active_classes)
        np.testing.assert_array_equal(compose_image_meta(replace(meta, image_id=index)), row)
    assert_stored(golden, "C5", trace["backbone.c5"], atol=1e-4)
    assert_stored(golden, "P2", trace["fpn.p2"], atol=1e-4)
    logits, deltas = (
        [trace[f"rpn.{part}.{level}"] for level in LEVELS["fpn"]] for part in ("objectness_logits", "deltas")
    )
    assert_stored(golden, "rpn_logits", np.concatenate(logits, axis=1), atol=1e-4)
    assert_stored(golden, "rpn_bbox", from_yxyx(np.concatenate(deltas, axis=1)), atol=1e-4)
    found = [trace[f"proposals.{index}.boxes"] for index in range(count)]
    if case.given is not None:
        rpn = RpnOutput(objectness_logits=[Tensor(x) for x in logits], deltas=[Tensor(x) for x in deltas])
        anchors = [trace[f"anchors.{level}"] for level in LEVELS["fpn"]]
        batch = case.model.prepare(case.images)
        found = [entry.boxes for entry in find_proposals(rpn, anchors, batch, case.config, training=True)]
    proposals = from_yxyx(to_normalized(np.stack(found), (128, 128)))
    if "rpn_rois_head" in golden:  # the best; neighbours far behind have scores that a rounding swaps
        assert proposals.shape[1] == golden["rpn_rois_count"]
        head = golden["rpn_rois_head"]
        np.testing.assert_allclose(proposals[0, : len(head)], head, rtol=0, atol=1e-5)
        sums = matterport_rules.checks(proposals)[:5]  # of all, in any order
        np.testing.assert_allclose(sums, golden["rpn_rois.chk"][:5], rtol=0, atol=1e-5 * sums[1])
    else:
        assert_stored(golden, "rpn_rois", proposals, atol=1e-5)


def test_masks_of_the_objects(first):
    """What the targets are cut from: mini-masks in T1, the whole image's in T2; objects that aren't there are empty."""
    case = first[0]
    shape = case.golden["gt_mask_shape"]
    masks = matterport_rules.unpack(case.golden["gt_mask_bits"], shape).transpose(0, 3, 1, 2)
    mini = case.config.roi_targets.mini_mask
    for entry, stored in zip(case.truth, masks, strict=True):
        found = entry.masks if mini is None else minimize_masks(entry.masks, entry.boxes, mini)
        np.testing.assert_array_equal(found, stored[: len(found)])
        assert not stored[len(found) :].any()


def test_masks_of_all_regions(first, weights):
    """There the mask head looks at the background's regions too, at which its loss doesn't."""
    case, trace, _, _ = first
    model, start = weights
    model.load_state(start)
    pyramid = [Tensor(trace[f"fpn.{level}"]) for level in LEVELS["fpn"]]
    order = np.lexsort((trace["rois.classes"] == 0, trace["rois.images"]))  # stable: objects come first there
    boxes, images = trace["rois.boxes"][order], trace["rois.images"][order]
    with no_grad():
        logits = model.mask_head(pool_rois(pyramid, boxes, images, (128, 128), case.config.mask_pool), training=True)
    found = 1 / (1 + np.exp(-logits.data))
    assert_stored(case.golden, "mask", found.reshape(case.golden["mask.shape"]), atol=1e-4)


def test_targets(first):
    case, trace, _, _ = first
    golden = case.golden
    assert not any(golden[key].any() for key in golden if key.startswith("rois_edge"))
    np.testing.assert_array_equal(trace["anchor_targets.labels"], np.choose(golden["rpn_match"] + 1, [0, -1, 1]))
    for index, wanted in enumerate(golden["rpn_bbox_target"]):
        positive = trace["anchor_targets.labels"][index] == 1
        found = from_yxyx(trace["anchor_targets.deltas"][index, positive])
        np.testing.assert_allclose(found, wanted[: len(found)], rtol=0, atol=1e-5)
    masks = matterport_rules.unpack(golden["target_mask_bits"], golden["target_mask_shape"])
    start = 0
    for index in range(len(case.images)):
        own = np.flatnonzero(trace["rois.images"] == index)
        own = own[np.argsort(trace["rois.classes"][own] == 0, kind="stable")]  # objects come first there
        positive = int((trace["rois.classes"][own] > 0).sum())
        rois = from_yxyx(to_normalized(trace["rois.boxes"][own], (128, 128)))
        np.testing.assert_allclose(rois, golden["rois"][index], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(trace["rois.classes"][own], golden["target_class_ids"][index])
        # a box's corners are known to 1e-6 of the image, and an offset counts them in tenths of its least side
        smallest = (rois[:positive, 2:] - rois[:positive, :2]).min()
        deltas = from_yxyx(trace["rois.deltas"][own])
        np.testing.assert_allclose(deltas, golden["target_bbox"][index], rtol=0, atol=1e-6 / (0.1 * smallest))
        np.testing.assert_array_equal(trace["rois.masks"][start : start + positive], masks[index, :positive])
        assert not masks[index, positive:].any()
        np.testing.assert_allclose(
            trace["box_head.class_logits"][own], golden["class_logits"][index], rtol=0, atol=1e-4
        )
        np.testing.assert_allclose(from_yxyx(trace["box_head.deltas"][own]), golden["bbox"][index], rtol=0, atol=1e-4)
        start += positive
    assert start == len(trace["rois.masks"])


def test_losses(first):
    case, _, history, _ = first
    np.testing.assert_allclose(np.roll(history, -2), case.golden["losses"][[*range(5), 6, 5]], rtol=1e-6)


def test_gradients(first):
    """Of every trained weight: samples, the norm, and the norm of all.

    The file's float32 gradients are compared with those of the network in float64, and the network's float32 gradients
    mustn't be farther from these than the file's: two float32 computations would add their roundings up.
    """
    case, _, _, rounded = first
    grads = _float64_gradients(case)
    total = theirs = ours = 0.0
    for (name, positions, stored, sums), norm in zip(case.samples("grad"), case.golden["grad_norm_each"], strict=True):
        grad = to_keras(name, grads[name])
        typical = norm / np.sqrt(grad.size)
        sampled = grad.ravel()[positions]
        np.testing.assert_allclose(sampled, stored, rtol=0, atol=2e-3 * typical, err_msg=name)
        theirs += np.square((stored - sampled) / typical).sum()
        ours += np.square((to_keras(name, rounded[name]).ravel()[positions] - sampled) / typical).sum()
        np.testing.assert_allclose(np.linalg.norm(grad), norm, rtol=NOISE, err_msg=name)
        deviations = abs(matterport_rules.checks(grad) - sums)[:3]
        assert (deviations <= NOISE * sums[[1, 1, 2]] * (1, 1, 2)).all(), name  # a square departs twice as much
        total += float(np.square(grad).sum())
    np.testing.assert_allclose(np.sqrt(total), case.golden["grad_norm"], rtol=1e-5)
    assert 0 < ours <= theirs


def _float64_gradients(case: Case) -> dict[str, np.ndarray]:
    """Those of the same network and pass in float64, the decay's included."""
    model = MaskRCNN(case.config, rng=Blank())
    matterport_rules.fill(model)
    model.astype(np.float64)
    double = Case(case.name, model)
    double.losses().total.backward()
    double.decay()
    return {name: parameter.grad for name, parameter in model.parameters().items()}


@pytest.mark.convention("roi_targets.detach")
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("name", ["train_T1", "train_T2"])
def test_the_box_loss_leaks_into_the_rpn(weights, name, detach):
    """Its targets aren't constants in the original. With given regions, or detached, nothing leaks; values are equal."""
    model, start = weights
    model.load_state(start)
    case = Case(name, model)
    model.config = vary(model.config, {"roi_targets.detach": detach})
    watched = dict(zip(case.golden["per_loss_grad_names"].tolist(), case.golden["per_loss_grad_norm"][3], strict=True))
    names = {keras: name for name in model.parameters() if (keras := keras_name(name)) in watched}
    set_trainable(model, [re.escape(name) for name in names.values()])
    model.zero_grad()
    try:
        losses = case.losses()
        np.testing.assert_allclose(losses.box.item(), case.golden["losses"][3], rtol=1e-6)
        losses.box.backward()
        for keras, norm in watched.items():
            grad = model.parameters()[names[keras]].grad
            found = 0.0 if grad is None else np.linalg.norm(grad)
            if detach and keras.startswith("rpn_"):
                assert found == 0
            elif keras.startswith("mrcnn_") or not detach or name == "train_T2":
                np.testing.assert_allclose(found, norm, rtol=NOISE, err_msg=keras)
    finally:
        set_trainable(model, ".*")


@pytest.mark.parametrize("name", ["train_T1", "train_T2"])
@pytest.mark.parametrize("layers", LAYERS)
def test_layers_that_are_trained(weights, layers, name):
    """The weights of Matterport's ``train(layers=)``, whose names the file has a checksum of, and the same decay."""
    model, start = weights
    model.load_state(start)
    golden = matterport_rules.load(name)
    trained = set_trainable(model, LAYERS[layers])
    set_trainable(model, ".*")
    assert len(trained) == golden[f"set.{layers}.count"]
    theirs = {keras_name(name) for name in trained}
    joined = "\n".join(keras for keras in golden["trainable"].tolist() if keras in theirs)
    assert zlib.crc32(joined.encode()) == golden[f"set.{layers}.names_crc"]
    parameters = {name: model.parameters()[name] for name in trained}
    np.testing.assert_allclose(_term(parameters), golden[f"set.{layers}.l2"], rtol=1e-6)


@pytest.mark.parametrize("clip", ["global", "each"])
def test_steps_of_sgd(first, weights, clip):
    """Clipped by the norm of all gradients together, as Keras does, or each by its own, as tf.keras."""
    case, _, history, grads = first
    model, start = weights
    model.load_state(start)
    for name, parameter in model.parameters().items():
        parameter.grad = grads[name]
    stored = {key: case.golden[f"sgd_{clip}.{key}"] for key in ("history", "norms")}
    found, norms = [history], []
    config = vary(TRAIN, {"clip": clip, "decay_clipped": False, "weight_decay": 0.0})  # the first has its decay already
    optimizer = make_optimizer(model.parameters(), vary(TRAIN, {"clip": clip}))
    for _ in stored["norms"]:
        norms.append(apply_gradients(optimizer, config, lr=TRAIN.lr))
        model.zero_grad()
        losses = case.losses()
        config = vary(TRAIN, {"clip": clip})
        if len(norms) < len(stored["norms"]):
            losses.total.backward()
        found.append(case.history(losses, _term(model.parameters())))
    np.testing.assert_allclose(found, stored["history"], rtol=1e-5)
    np.testing.assert_allclose(norms, stored["norms"], rtol=1e-4)
    for name, positions, values, _ in case.samples(f"sgd_{clip}.delta"):
        before, after = start[name], model.parameters()[name].data
        moved = to_keras(name, after.astype(np.float64) - before).ravel()[positions]
        # each step rounds the weight, here and there
        rounding = 2 * len(norms) * np.spacing(np.abs(before).max()) / 2
        typical = np.sqrt(np.square(values, dtype=np.float64).mean())
        np.testing.assert_allclose(moved, values, rtol=0, atol=rounding + 5e-3 * typical, err_msg=name)


def _term(parameters: Mapping[str, Parameter]) -> float:
    """The decay's term, by its formula."""
    kinds = {name: keras_name(name).split("/")[1] for name in parameters}
    squares = (
        float(np.square(parameter.data, dtype=np.float64).mean())
        for name, parameter in parameters.items()
        if kinds[name] in ("kernel", "bias")
    )
    return TRAIN.weight_decay * sum(squares)
