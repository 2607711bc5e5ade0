"""The losses: by hand, under every switch, without objects, and against Matterport's golden values and gradients."""

import numpy as np
import pytest

from refnet.autograd import Tensor
from refnet.ops import smooth_l1
from refnet.rcnn.config import BoxHeadConfig, LossConfig, MaskHeadConfig, RoiTargetConfig
from refnet.rcnn.losses import (
    add_losses,
    box_losses,
    clipped_cross_entropy,
    keypoint_loss,
    mask_loss,
    rpn_losses,
)
from refnet.rcnn.presets import matterport
from refnet.rcnn.structures import AnchorTargets, BoxOutput, Rois, RpnOutput
from refnet.testing import check_gradients
from tests.golden.matterport_rules import checks, load, normal, uniform
from tests.rcnn.small import vary

HEAD, MASKS = BoxHeadConfig(), MaskHeadConfig()
FLAT = LossConfig(rpn_beta=0.0, box_beta=0.0)


def rpn(logits, deltas=None, *, requires_grad=False) -> RpnOutput:
    """One level; logits (N, A) or (N, A, 2)."""
    logits = np.asarray(logits, np.float64)
    logits = logits[..., None] if logits.ndim == 2 else logits
    deltas = np.zeros((*logits.shape[:2], 4)) if deltas is None else np.asarray(deltas, np.float64)
    return RpnOutput(
        objectness_logits=(Tensor(logits, requires_grad=requires_grad),),
        deltas=(Tensor(deltas, requires_grad=requires_grad),),
    )


def anchor_targets(labels, deltas=None) -> AnchorTargets:
    labels = np.asarray(labels)
    return AnchorTargets(labels=labels, deltas=np.zeros((*labels.shape, 4)) if deltas is None else np.asarray(deltas))


def rois(classes, deltas=None, masks=None, images=None, active=None) -> Rois:
    classes = np.asarray(classes)
    return Rois(
        boxes=np.zeros((len(classes), 4)),
        images=np.zeros(len(classes), np.int64) if images is None else images,
        classes=classes,
        deltas=np.zeros((len(classes), 4)) if deltas is None else np.asarray(deltas, np.float64),
        foreground=np.flatnonzero(classes > 0),
        masks=masks,
        active_classes=active,
    )


def log1pexp(x):
    return np.log(1 + np.exp(x))


class TestRpn:
    def test_class_loss_is_the_mean_over_the_sampled_anchors(self):
        loss, _ = rpn_losses(rpn([[2.0, -1.0, 7.0], [0.5, 9.0, 3.0]]), anchor_targets([[1, 0, -1], [0, -1, -1]]), FLAT)
        np.testing.assert_allclose(loss.item(), (log1pexp(-2) + log1pexp(-1) + log1pexp(0.5)) / 3, rtol=1e-14)

    @pytest.mark.convention("rpn.objectness")
    def test_two_logits_lose_as_much_as_their_difference(self):
        rng = np.random.default_rng(0)
        background, margin = rng.uniform(-2, 2, (1, 5)), rng.uniform(-2, 2, (1, 5))
        targets = anchor_targets([[1, 0, 0, 1, -1]])
        one, _ = rpn_losses(rpn(margin), targets, FLAT)
        two, _ = rpn_losses(rpn(np.stack([background, background + margin], axis=-1)), targets, FLAT)
        np.testing.assert_allclose(two.item(), one.item(), rtol=1e-13)

    @pytest.mark.convention("losses.rpn_box_denominator")
    @pytest.mark.parametrize(("denominator", "count"), [("sampled", 5), ("positive_coordinates", 8)])
    def test_what_the_box_loss_is_divided_by(self, denominator, count):
        deltas = np.zeros((1, 6, 4))
        deltas[0, 1], deltas[0, 2], deltas[0, 3] = [1, 2, 3, 4], [0, 0, 0, 2], 100  # the last isn't positive
        goal = np.zeros((1, 6, 4))
        goal[0, 2] = [0, 0, 0, 5]
        config = vary(FLAT, {"rpn_box_denominator": denominator})
        _, loss = rpn_losses(rpn(np.zeros((1, 6)), deltas), anchor_targets([[0, 1, 1, 0, -1, 0]], goal), config)
        np.testing.assert_allclose(loss.item(), (1 + 2 + 3 + 4 + 3) / count, rtol=1e-15)

    @pytest.mark.convention("losses.rpn_beta", "losses.box_beta")
    @pytest.mark.parametrize(
        ("beta", "expected"),
        # differences of 1/18, 1/9, 1/2 and 2
        [
            (0.0, 1 / 18 + 1 / 9 + 1 / 2 + 2),
            (1 / 9, 1 / 72 + 1 / 18 + 4 / 9 + 35 / 18),
            (1.0, 1 / 648 + 1 / 162 + 1 / 8 + 3 / 2),
        ],
    )
    def test_beta(self, beta, expected):
        deltas = np.array([[[1 / 18, -1 / 9, 1 / 2, -2]]])
        _, loss = rpn_losses(rpn([[0.0]], deltas), anchor_targets([[1]]), vary(FLAT, {"rpn_beta": beta}))
        np.testing.assert_allclose(loss.item(), expected, rtol=1e-14)
        _, loss = box_losses(
            BoxOutput(class_logits=Tensor(np.zeros((1, 2))), deltas=Tensor(np.stack([deltas[0], deltas[0]], axis=1))),
            rois([1]), vary(FLAT, {"box_beta": beta}), HEAD,
        )  # fmt: skip
        np.testing.assert_allclose(loss.item(), expected, rtol=1e-14)

    def test_levels_are_read_in_the_order_of_the_anchors(self):
        logits, deltas = np.arange(6.0).reshape(1, 6, 1), np.arange(24.0).reshape(1, 6, 4)
        parts = RpnOutput(
            objectness_logits=(Tensor(logits[:, :4]), Tensor(logits[:, 4:])),
            deltas=(Tensor(deltas[:, :4]), Tensor(deltas[:, 4:])),
        )
        targets = anchor_targets([[1, 0, -1, 0, 1, 0]], deltas + 1)
        for split, whole in zip(
            rpn_losses(parts, targets, FLAT), rpn_losses(rpn(logits[..., 0], deltas), targets, FLAT), strict=True
        ):
            np.testing.assert_allclose(split.item(), whole.item(), rtol=1e-15)

    @pytest.mark.parametrize("labels", [[[0, 0]], [[-1, -1]]])
    @pytest.mark.parametrize("denominator", ["sampled", "positive_coordinates"])
    def test_without_objects_boxes_lose_nothing(self, labels, denominator):
        output = rpn([[1.0, 2.0]], np.ones((1, 2, 4)), requires_grad=True)
        class_loss, box_loss = rpn_losses(
            output, anchor_targets(labels), vary(FLAT, {"rpn_box_denominator": denominator})
        )
        assert box_loss.item() == 0
        assert np.isfinite(class_loss.item())
        (class_loss + box_loss).backward()
        assert not output.deltas[0].grad.any()
        assert output.objectness_logits[0].grad.any() == (labels == [[0, 0]])


class TestBox:
    def output(self, regions=4, classes=3, boxes=None, *, requires_grad=False, seed=0) -> BoxOutput:
        rng = np.random.default_rng(seed)
        return BoxOutput(
            class_logits=Tensor(rng.standard_normal((regions, classes)), requires_grad=requires_grad),
            deltas=Tensor(rng.standard_normal((regions, boxes or classes, 4)), requires_grad=requires_grad),
        )

    def test_class_loss_is_the_mean_over_all_regions(self):
        output = self.output()
        loss, _ = box_losses(output, rois([0, 2, 1, 0]), FLAT, HEAD)
        logits = output.class_logits.data
        expected = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(4), [0, 2, 1, 0]]
        np.testing.assert_allclose(loss.item(), expected.mean(), rtol=1e-14)

    @pytest.mark.convention("losses.box_denominator")
    @pytest.mark.parametrize(("denominator", "count"), [("sampled", 4), ("positive_coordinates", 8)])
    def test_the_true_classes_box_counts(self, denominator, count):
        output = self.output()
        goal = np.full((4, 4), 0.5)
        _, loss = box_losses(output, rois([0, 2, 1, 0], goal), vary(FLAT, {"box_denominator": denominator}), HEAD)
        own = np.stack([output.deltas.data[1, 2], output.deltas.data[2, 1]])
        np.testing.assert_allclose(loss.item(), np.abs(own - 0.5).sum() / count, rtol=1e-14)

    def test_ignored_regions_take_no_part(self):
        output = self.output()
        some = BoxOutput(class_logits=output.class_logits[[0, 1, 3]], deltas=output.deltas[[0, 1, 3]])
        for with_ignored, without in zip(
            box_losses(output, rois([0, 2, -1, 1]), FLAT, HEAD),
            box_losses(some, rois([0, 2, 1]), FLAT, HEAD),
            strict=True,
        ):
            np.testing.assert_allclose(with_ignored.item(), without.item(), rtol=1e-15)

    @pytest.mark.convention("box_head.background")
    def test_background_first_and_last_are_the_same_loss(self):
        first = self.output()
        last = BoxOutput(
            class_logits=Tensor(np.roll(first.class_logits.data, -1, axis=1)), deltas=Tensor(first.deltas.data[:, 1:])
        )
        targets = rois([0, 2, 1, 0], np.ones((4, 4)))
        for a, b in zip(
            box_losses(first, targets, FLAT, HEAD),
            box_losses(last, targets, FLAT, BoxHeadConfig(background="last")),
            strict=True,
        ):
            np.testing.assert_allclose(a.item(), b.item(), rtol=1e-14)

    @pytest.mark.convention("box_head.class_agnostic")
    @pytest.mark.parametrize("background", ["first", "last"])
    def test_one_box_for_all_classes(self, background):
        output = self.output(boxes=1)
        head = BoxHeadConfig(class_agnostic=True, background=background)
        _, loss = box_losses(output, rois([0, 2, 1, 0]), FLAT, head)
        np.testing.assert_allclose(loss.item(), np.abs(output.deltas.data[1:3, 0]).sum() / 4, rtol=1e-14)

    @pytest.mark.parametrize("classes", [[], [0, 0], [-1]])
    @pytest.mark.parametrize("denominator", ["sampled", "positive_coordinates"])
    def test_without_objects_boxes_lose_nothing(self, classes, denominator):
        output = self.output(regions=len(classes), requires_grad=True)
        targets = rois(np.asarray(classes, np.int64))
        class_loss, box_loss = box_losses(output, targets, vary(FLAT, {"box_denominator": denominator}), HEAD)
        assert box_loss.item() == 0
        assert (class_loss.item() > 0) == (classes == [0, 0])
        (class_loss + box_loss).backward()
        assert not output.deltas.grad.any()


class TestMask:
    def test_only_the_true_classes_mask_counts(self):
        rng = np.random.default_rng(0)
        logits = Tensor(rng.standard_normal((2, 3, 3, 4)), requires_grad=True)
        targets = rng.uniform(0, 1, (2, 3, 3))
        loss = mask_loss(logits, rois([0, 3, 1]), targets, FLAT, HEAD, MASKS)
        own = np.stack([logits.data[0, ..., 3], logits.data[1, ..., 1]])
        expected = (targets * log1pexp(-own) + (1 - targets) * log1pexp(own)).mean()
        np.testing.assert_allclose(loss.item(), expected, rtol=1e-14)
        loss.backward()
        touched = np.abs(logits.grad).sum(axis=(1, 2)) > 0
        assert touched.tolist() == [[False, False, False, True], [False, True, False, False]]

    @pytest.mark.convention("mask_head.class_agnostic")
    @pytest.mark.parametrize(("agnostic", "channels"), [(False, [2, 0]), (True, [0, 0])])
    def test_background_last_and_class_agnostic(self, agnostic, channels):
        rng = np.random.default_rng(1)
        logits = rng.standard_normal((2, 3, 3, 1 if agnostic else 3))
        targets = rng.integers(0, 2, (2, 3, 3)).astype(np.float64)
        loss = mask_loss(
            Tensor(logits),
            rois([3, 1]),
            targets,
            FLAT,
            BoxHeadConfig(background="last"),
            MaskHeadConfig(class_agnostic=agnostic),
        )
        own = logits[[0, 1], :, :, channels]
        np.testing.assert_allclose(loss.item(), log1pexp(np.where(targets == 1, -own, own)).mean(), rtol=1e-14)

    def test_without_objects(self):
        logits = Tensor(np.zeros((0, 3, 3, 4)), requires_grad=True)
        loss = mask_loss(logits, rois([0, 0]), np.zeros((0, 3, 3)), FLAT, HEAD, MASKS)
        assert loss.item() == 0
        loss.backward()
        assert logits.grad.shape == logits.shape


class TestKeypoints:
    TARGETS = np.array([[4, -1, 0], [-1, 5, -1]])  # of two regions with three points, in maps of 3 x 3
    ROIS = RoiTargetConfig(batch_size=8, positive_fraction=0.25)

    def maps(self) -> Tensor:
        return Tensor(np.random.default_rng(0).standard_normal((2, 3, 3, 3)), requires_grad=True)

    def test_visible_points_compete_over_their_map(self):
        logits = self.maps()
        loss = keypoint_loss(logits, self.TARGETS, 1, LossConfig(), self.ROIS)
        single = []
        for region, point, row, column in [(0, 0, 1, 1), (0, 2, 0, 0), (1, 1, 1, 2)]:
            heat = np.exp(logits.data[region, :, :, point])
            single.append(-np.log(heat[row, column] / heat.sum()))
        np.testing.assert_allclose(loss.item(), np.mean(single), rtol=1e-14)
        loss.backward()
        touched = np.abs(logits.grad).sum(axis=(1, 2)) > 0
        np.testing.assert_array_equal(touched, self.TARGETS >= 0)

    @pytest.mark.convention("losses.keypoint_denominator")
    def test_what_it_is_divided_by(self):
        mean, fixed = (
            keypoint_loss(self.maps(), self.TARGETS, 5, LossConfig(keypoint_denominator=rule), self.ROIS).item()
            for rule in ("visible", "fixed")
        )
        np.testing.assert_allclose(fixed, mean * 3 / (5 * 8 * 0.25 * 3), rtol=1e-14)

    @pytest.mark.parametrize("rule", ["visible", "fixed"])
    @pytest.mark.parametrize("regions", [0, 2])
    def test_nothing_visible(self, regions, rule):
        logits = Tensor(np.ones((regions, 3, 3, 3)), requires_grad=True)
        targets = np.full((regions, 3), -1)
        loss = keypoint_loss(logits, targets, 1, LossConfig(keypoint_denominator=rule), self.ROIS)
        assert loss.item() == 0
        loss.backward()
        np.testing.assert_array_equal(logits.grad, np.zeros((regions, 3, 3, 3)))

    def test_gradients(self):
        rng = np.random.default_rng(1)
        check_gradients(lambda x: keypoint_loss(x, self.TARGETS, 1, LossConfig(), self.ROIS), self.maps().data, rng=rng)


def test_the_total_is_the_weighted_sum():
    config = LossConfig(
        rpn_class_weight=2.0,
        rpn_box_weight=3.0,
        class_weight=5.0,
        box_weight=7.0,
        mask_weight=11.0,
        keypoint_weight=13.0,
    )
    parts = [Tensor(np.array(value)) for value in (1.0, 10.0, 100.0, 1000.0, 10000.0, 100000.0)]
    losses = add_losses((parts[0], parts[1]), (parts[2], parts[3]), parts[4], parts[5], config)
    assert losses.total.item() == 2 + 30 + 500 + 7000 + 110000 + 1300000
    assert losses.as_dict() == {
        "loss": 1417532.0, "rpn_class_loss": 1.0, "rpn_box_loss": 10.0, "class_loss": 100.0, "box_loss": 1000.0,
        "mask_loss": 10000.0, "keypoint_loss": 100000.0,
    }  # fmt: skip
    boxes_only = add_losses((parts[0], parts[1]), (parts[2], parts[3]), None, None, config)
    assert boxes_only.total.item() == 7532
    assert not {"mask_loss", "keypoint_loss"} & set(boxes_only.as_dict())


class TestMatterport:
    golden = load("losses")
    config, head, masks = matterport(faithful=True).losses, matterport().box_head, matterport().mask_head
    ULP = 2.0**-23  # of the golden values, which are float32 as their inputs are

    def check(self, name, loss, tensor):
        """The value to a few roundings; the gradient to a few roundings of its largest entry."""
        np.testing.assert_allclose(loss.item(), self.golden[f"{name}.loss"], rtol=16 * self.ULP)
        loss.backward()
        stored = self.golden[f"{name}.grad"].reshape(tensor.shape)
        np.testing.assert_allclose(tensor.grad, stored, rtol=0, atol=16 * self.ULP * np.abs(stored).max())

    @pytest.mark.parametrize("name", ["mixed", "neutral", "big"])
    def test_rpn_class(self, name):
        logits = normal("loss/rpn_logits", (2, 400, 2), 3.0)
        if name == "big":
            logits[:, ::7] *= 40
        output = rpn(logits, requires_grad=True)
        match = self.golden[f"rpn_class.{name}.match"][..., 0]
        loss, _ = rpn_losses(output, anchor_targets(np.choose(match + 1, [0, -1, 1])), self.config)
        self.check(f"rpn_class.{name}", loss, output.objectness_logits[0])

    @pytest.mark.convention("losses.rpn_beta", "losses.rpn_box_denominator")
    @pytest.mark.parametrize("name", ["mixed", "nopos"])
    def test_rpn_box(self, name):
        match = self.golden["rpn_class.mixed.match"][..., 0] if name == "mixed" else np.full((2, 400), -1)
        packed = normal("loss/rpn_target", (2, 100, 4)).astype(np.float64)
        goal = np.zeros((2, 400, 4))
        for image in range(2):  # Matterport keeps the positive anchors' targets at the front
            positive = np.flatnonzero(match[image] == 1)
            goal[image, positive] = packed[image, : len(positive)]
        output = rpn(np.zeros((2, 400, 2)), normal("loss/rpn_bbox", (2, 400, 4)), requires_grad=True)
        _, loss = rpn_losses(output, anchor_targets(np.choose(match + 1, [0, -1, 1]), goal), self.config)
        self.check(f"rpn_bbox.{name}", loss, output.deltas[0])

    def test_smooth_l1(self):
        x = Tensor(self.golden["smooth_l1.x"], requires_grad=True)
        y = smooth_l1(x, np.zeros_like(x.data), beta=self.config.box_beta, reduction="none")
        np.testing.assert_allclose(y.data, self.golden["smooth_l1.y"], rtol=self.ULP)
        y.backward(np.ones_like(y.data))
        np.testing.assert_array_equal(x.grad, self.golden["smooth_l1.grad"])

    def targets(self, name):
        classes = self.golden["target_class_ids"].reshape(-1).astype(np.int64)
        return classes if name != "nopos" else np.zeros_like(classes)

    def class_loss(self, active, config):
        logits = normal("loss/cls_logits", (2, 30, 4), 2.0).astype(np.float64)
        output = BoxOutput(
            class_logits=Tensor(logits.reshape(60, 4), requires_grad=True), deltas=Tensor(np.zeros((60, 4, 4)))
        )
        targets = rois(self.targets("mixed"), images=np.repeat([0, 1], 30), active=active)
        return box_losses(output, targets, config, self.head)[0], output.class_logits

    @pytest.mark.convention("losses.active_classes")
    @pytest.mark.parametrize("name", ["all_active", "some_active", "bg_inactive", "none_active"])
    def test_class(self, name):
        """The first image's classes serve both images; without any the original's loss isn't a number."""
        loss, logits = self.class_loss(self.golden[f"mrcnn_class.{name}.active"] > 0, self.config)
        self.check(f"mrcnn_class.{name}", loss, logits)

    @pytest.mark.convention("losses.active_classes")
    def test_class_by_each_images_own_classes(self):
        active = self.golden["mrcnn_class.some_active.active"] > 0
        active[1] = ~active[0]
        logits = normal("loss/cls_logits", (2, 30, 4), 2.0).astype(np.float64)
        wanted = self.targets("mixed").reshape(2, 30, 1)
        each = np.log(np.exp(logits).sum(axis=-1)) - np.take_along_axis(logits, wanted, axis=-1)[..., 0]
        counted = np.take_along_axis(active, logits.argmax(axis=-1), axis=1)
        assert not counted.all(axis=1).any()
        config = vary(self.config, {"active_classes": "own_image"})
        loss, _ = self.class_loss(active, config)
        np.testing.assert_allclose(loss.item(), each[counted].mean(), rtol=1e-12)
        assert self.class_loss(active & False, config)[0].item() == 0

    @pytest.mark.convention("losses.box_beta", "losses.box_denominator")
    @pytest.mark.parametrize("name", ["mixed", "nopos"])
    def test_box(self, name):
        deltas = Tensor(normal("loss/pb", (2, 30, 4, 4)).astype(np.float64).reshape(60, 4, 4), requires_grad=True)
        output = BoxOutput(class_logits=Tensor(np.zeros((60, 4))), deltas=deltas)
        goal = normal("loss/tb", (2, 30, 4)).reshape(60, 4)
        _, loss = box_losses(output, rois(self.targets(name), goal), self.config, self.head)
        self.check(f"mrcnn_bbox.{name}", loss, deltas)

    @pytest.mark.convention("losses.mask_cross_entropy")
    @pytest.mark.parametrize(("rule", "ending"), [("keras", "_keras2.1"), ("tf_keras", "")])
    @pytest.mark.parametrize("name", ["mixed", "extreme"])
    def test_mask(self, name, rule, ending):
        """Of probabilities, and its gradient to all classes' masks; in float32, where 1 - 1e-7 is a number of its own."""
        targets = (uniform("loss/tm", (2, 30, 28, 28)) > 0.5).astype(np.float32).reshape(60, 28, 28)
        logits = normal("loss/pm", (2, 30, 28, 28, 4), 2.0).astype(np.float64)
        values = (1 / (1 + np.exp(-logits))).astype(np.float32)
        if name == "extreme":
            values[:, :, 0:3], values[:, :, 3:6], values[:, :, 6:8] = 0, 1, 1e-8
        masks = Tensor(values.reshape(60, 28, 28, 4), requires_grad=True)
        classes = self.targets(name)
        foreground = np.flatnonzero(classes > 0)
        loss = clipped_cross_entropy(masks[foreground, :, :, classes[foreground]], targets[foreground], rule)
        np.testing.assert_allclose(loss.item(), self.golden[f"mrcnn_mask.{name}.loss{ending}"], rtol=16 * self.ULP)
        loss.backward()
        stored = self.golden[f"mrcnn_mask.{name}.grad{ending}.s"]
        found = masks.grad.ravel()[:: int(self.golden[f"mrcnn_mask.{name}.grad.step"])]
        # where p is near 0 or 1, a rounding of p is one of 1 / p
        np.testing.assert_allclose(found, stored, rtol=64 * self.ULP, atol=16 * self.ULP * np.abs(stored).max())
        sums = self.golden[f"mrcnn_mask.{name}.grad{ending}.chk"]
        np.testing.assert_allclose(checks(masks.grad), sums, rtol=0, atol=64 * self.ULP * sums[1])

    @pytest.mark.convention("losses.mask_cross_entropy")
    @pytest.mark.parametrize("rule", ["logits", "keras", "tf_keras"])
    def test_formulas_of_the_mask_loss(self, rule):
        """All say the same of ordinary logits; clipped ones have no gradient, and a loss that isn't theirs."""
        config = vary(self.config, {"mask_cross_entropy": rule})

        def lose(logit: float) -> tuple[float, float]:
            logits = Tensor(np.full((1, 1, 1, 4), logit), requires_grad=True)
            loss = mask_loss(logits, rois([1]), np.ones((1, 1, 1)), config, self.head, self.masks)
            loss.backward()
            return loss.item(), float(logits.grad[0, 0, 0, 1])

        np.testing.assert_allclose(lose(-2.0), [log1pexp(2.0), -1 / (1 + np.exp(-2.0))], rtol=2e-6)
        expected = {"logits": (40, -1), "keras": (7 * np.log(10), 0), "tf_keras": (-np.log(2e-7), 0)}[rule]
        np.testing.assert_allclose(lose(-40.0), expected, rtol=1e-7)

    def test_mask_without_objects(self):
        for rule in ("logits", "keras", "tf_keras"):
            config = vary(self.config, {"mask_cross_entropy": rule})
            logits = Tensor(np.ones((60, 28, 28, 4)), requires_grad=True)
            none = logits[np.zeros(0, np.int64)]
            loss = mask_loss(none, rois([0, 0]), np.zeros((0, 28, 28)), config, self.head, self.masks)
            assert loss.item() == self.golden["mrcnn_mask.nopos.loss"]
            loss.backward()
            found = logits.grad.ravel()[:: int(self.golden["mrcnn_mask.nopos.grad.step"])]
            np.testing.assert_array_equal(found, self.golden["mrcnn_mask.nopos.grad.s"])
            np.testing.assert_array_equal(checks(logits.grad), self.golden["mrcnn_mask.nopos.grad.chk"])
