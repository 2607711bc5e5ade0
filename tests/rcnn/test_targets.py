"""Targets of anchors, of regions and of masks: every threshold at its exact value, and Matterport's golden vectors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet.rcnn import GroundTruth
from refnet.rcnn.anchors import make_anchors
from refnet.rcnn.boxes import decode, encode, from_normalized, from_yxyx, to_normalized
from refnet.rcnn.config import AnchorTargetConfig, RoiTargetConfig
from refnet.rcnn.presets import matterport
from refnet.rcnn.structures import Proposals
from refnet.rcnn.targets import (
    assign_anchors,
    binarize,
    choose,
    keypoint_targets,
    mask_targets,
    match_anchors,
    object_masks,
    sample_labels,
    sample_rois,
)
from tests.golden.matterport_rules import LeavingOut, Unshuffled, load, shape_masks, unpack
from tests.rcnn.small import blank_images, truth, vary

ONES = (1.0, 1.0, 1.0, 1.0)
NOTHING = GroundTruth.empty(64, 64, np.float64)
ALL_ANCHORS = AnchorTargetConfig(batch_size=1000)
ALL_ROIS = RoiTargetConfig(append_ground_truth=False, batch_size=1000, positive_fraction=1.0)


def boxes(*values) -> np.ndarray:
    return np.array(values, np.float64).reshape(-1, 4)


def strips(*heights: float) -> np.ndarray:
    """Parts of the box (0, 0, 10, 10), the IoU with which is a tenth of their height."""
    return boxes(*([0, 0, 10, height] for height in heights))


WHOLE = truth([[0, 0, 10, 10]], [2])


def match(anchors, objects, config, extent="continuous") -> tuple[np.ndarray, np.ndarray]:
    """The labels of the anchors of one image, and their objects."""
    found = match_anchors(anchors, [objects], blank_images(64, 64), config, extent)
    return found.labels[0], found.objects[0]


def cut_masks(boxes, objects, matched, image_size, size, config) -> np.ndarray:
    """The mask targets of boxes in one image."""
    masks = object_masks([objects], image_size, config, boxes)
    return mask_targets(boxes, masks, objects.boxes[matched], matched, image_size, size, config)


class TestKeypoints:
    def run(self, points, box=(2, 4, 6, 12), size=8, matched=(0,), dtype=np.float64):
        """Cells (column, row) of points in a box 4 wide and 8 high, None without a target."""
        points = np.array(points, dtype).reshape(1, -1, 3)
        entry = truth([box], [1], keypoints=points)
        region = np.array([box], dtype)
        targets = keypoint_targets(region, entry, np.array(matched), points.shape[1], size)
        assert targets.shape == (1, points.shape[1])
        return [None if t == -1 else (int(t) % size, int(t) // size) for t in targets[0]]

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_a_point_belongs_to_the_cell_that_it_lies_in(self, dtype):
        points = [[2, 4, 2], [2.5, 5, 1], [2.49, 4.99, 2], [5.75, 11.5, 1]]
        assert self.run(points, dtype=dtype) == [(0, 0), (1, 1), (0, 0), (7, 7)]

    def test_the_right_and_lower_edges_belong_to_the_last_cell(self):
        assert self.run([[6, 4, 1], [2, 12, 1], [6, 12, 1]]) == [(7, 0), (0, 7), (7, 7)]

    def test_outside_of_the_box_there_is_no_target(self):
        assert self.run([[1.9, 5, 2], [3, 3.9, 2], [6.1, 5, 2], [3, 12.1, 2], [6, 12.1, 2]]) == [None] * 5

    def test_what_is_not_labelled_has_no_target(self):
        assert self.run([[3, 5, 0], [np.nan, np.inf, 0], [3, 5, 1], [3, 5, 2]]) == [None, None, (2, 1), (2, 1)]

    def test_each_region_has_the_points_of_its_object(self):
        points = np.array([[[1, 1, 2]], [[3, 3, 2]]], np.float64)
        entry = truth([[0, 0, 4, 4], [0, 0, 4, 4]], [1, 1], keypoints=points)
        regions = boxes([0, 0, 4, 4], [0, 0, 4, 4], [2, 2, 4, 4])
        assert keypoint_targets(regions, entry, np.array([1, 0, 0]), 1, 4).tolist() == [[15], [5], [-1]]

    def test_nothing_to_find(self):
        assert keypoint_targets(boxes(), NOTHING, np.zeros(0, np.int64), 3, 4).shape == (0, 3)

    def test_sampled_regions_carry_them(self):
        entry = truth([[0, 0, 4, 4]], [1], keypoints=np.array([[[1.0, 1, 2]]]))
        proposed = Proposals(boxes=boxes([0, 0, 4, 4], [20, 20, 24, 24]), scores=np.ones(2))
        rois = sample_rois(
            [proposed], [entry], blank_images(64, 64), ALL_ROIS, ONES, None, np.random.default_rng(0),
            keypoint_maps=(1, 4),
        )  # fmt: skip
        assert (rois.keypoints.tolist(), rois.foreground.tolist()) == ([[5]], [0])


class TestMatching:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_thresholds_at_their_exact_value(self, dtype):
        anchors = strips(10, 7, 6.5, 3, 2.5, 0).astype(dtype)
        labels, _ = match(anchors, WHOLE, AnchorTargetConfig())
        assert labels.tolist() == [1, 1, -1, -1, 0, 0]

    def test_other_thresholds(self):
        config = AnchorTargetConfig(positive_iou=0.5, negative_iou=0.5)
        labels, _ = match(strips(10, 5, 4.9, 0), WHOLE, config)
        assert labels.tolist() == [1, 1, 0, 0]

    @pytest.mark.convention("anchor_targets.force_best")
    @pytest.mark.parametrize(("rule", "expected"), [("ties", [0, 1, 1, 0]), ("first", [0, 1, 0, 0])])
    def test_the_best_anchor_is_positive_whatever_its_overlap(self, rule, expected):
        anchors = strips(1, 2, 2, 1)
        labels, matched = match(anchors, WHOLE, AnchorTargetConfig(force_best=rule))
        assert labels.tolist() == expected
        assert matched.tolist() == [0, 0, 0, 0]

    @pytest.mark.parametrize("rule", ["ties", "first"])
    def test_an_object_that_no_anchor_touches_forces_none(self, rule):
        labels, _ = match(strips(1, 2) + 50, WHOLE, AnchorTargetConfig(force_best=rule))
        assert labels.tolist() == [0, 0]

    @pytest.mark.convention("anchor_targets.forced_match")
    @pytest.mark.parametrize(("rule", "second"), [("own_best", 0), ("forcing_object", 1)])
    @pytest.mark.parametrize("force_best", ["ties", "first"])
    def test_which_object_a_forced_anchor_belongs_to(self, rule, second, force_best):
        objects = truth([[0, 0, 10, 10], [9, 0, 19, 10]], [1, 2])
        # the second anchor overlaps the first object by a half and the second by a fifth, which nothing betters
        anchors = boxes([0, 0, 10, 10], [4, 0, 12, 10])
        config = AnchorTargetConfig(forced_match=rule, force_best=force_best)
        labels, matched = match(anchors, objects, config)
        assert labels.tolist() == [1, 1]
        assert matched.tolist() == [0, second]

    def test_an_anchor_that_is_positive_anyway_keeps_its_own_object(self):
        objects = truth([[0, 0, 10, 10], [9, 0, 19, 10]], [1, 2])
        config = AnchorTargetConfig(forced_match="forcing_object")
        labels, matched = match(boxes([0, 0, 10, 10]), objects, config)
        assert (labels.tolist(), matched.tolist()) == ([1], [0])

    def test_equal_overlaps_go_to_the_first_object(self):
        objects = truth([[0, 0, 10, 10], [0, 0, 10, 10]], [1, 2])
        assert match(strips(10), objects, AnchorTargetConfig())[1].tolist() == [0]

    def test_without_objects_all_is_background(self):
        labels, _ = match(strips(10, 1), NOTHING, AnchorTargetConfig())
        assert labels.tolist() == [0, 0]

    @pytest.mark.convention("box_extent")
    def test_inclusive_boxes(self):
        anchors, objects = boxes([0, 0, 9, 6], [0, 0, 9, 9]), truth([[0, 0, 9, 9]], [1])
        # 7 of 10 rows are 0.7; as continuous boxes 6 of 9
        assert match(anchors, objects, AnchorTargetConfig(), "inclusive")[0].tolist() == [1, 1]
        assert match(anchors, objects, AnchorTargetConfig())[0].tolist() == [-1, 1]


class TestSampling:
    @given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 20), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    def test_counts(self, positive, negative, batch_size, fraction):
        rng = np.random.default_rng(0)
        labels = rng.permutation([1] * positive + [0] * negative + [-1] * 5)
        sampled = sample_labels(labels, batch_size, fraction, rng)
        kept = sampled != -1
        np.testing.assert_array_equal(sampled[kept], labels[kept])
        chosen = min(positive, int(batch_size * fraction))
        assert (sampled == 1).sum() == chosen
        assert (sampled == 0).sum() == min(negative, batch_size - chosen)

    def test_the_generator_decides(self):
        labels = np.repeat([1, 0], 50)
        first, again, other = (sample_labels(labels, 20, 0.5, np.random.default_rng(seed)) for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()

    def test_every_candidate_is_as_likely(self):
        rng = np.random.default_rng(0)
        counts = np.zeros(5)
        for _ in range(2000):
            chosen = choose(np.arange(5), 2, rng)
            assert len(set(chosen.tolist())) == 2
            assert chosen.tolist() == sorted(chosen)
            counts[chosen] += 1
        # each is drawn 800 times, with a deviation of sqrt(2000 * .4 * .6) = 22
        assert np.abs(counts - 800).max() < 5 * 22


class TestAnchorTargets:
    def assign(self, anchors, objects, config=ALL_ANCHORS, images=None, std=ONES):
        images = blank_images(64, 64) if images is None else images
        return assign_anchors(anchors, [objects], images, config, std, np.random.default_rng(0))

    @pytest.mark.convention("rpn.delta_std")
    def test_deltas_lead_to_the_matched_object(self):
        objects = truth([[0, 0, 10, 10], [20, 20, 40, 30]], [1, 2])
        anchors = boxes([0, 0, 10, 9], [21, 20, 40, 31], [50, 50, 60, 60])
        std = (0.1, 0.1, 0.2, 0.2)
        targets = self.assign(anchors, objects, std=std)
        assert targets.labels.tolist() == [[1, 1, 0]]
        restored = decode(targets.deltas[0, :2], anchors[:2], std, None)
        np.testing.assert_allclose(restored, objects.boxes, rtol=0, atol=1e-13)
        assert not targets.deltas[0, 2].any()

    @pytest.mark.convention("anchor_targets.crowd")
    @pytest.mark.parametrize(("rule", "expected"), [("drop", [1, 0, 0]), ("avoid", [1, -1, 0])])
    def test_crowds_are_no_objects(self, rule, expected):
        entry = truth([[0, 0, 10, 10], [20, 20, 40, 40]], [1, 1], crowd=[False, True])
        anchors = boxes([0, 0, 10, 10], [21, 21, 39, 39], [50, 50, 60, 60])
        assert self.assign(anchors, entry, vary(ALL_ANCHORS, {"crowd": rule})).labels.tolist() == [expected]

    @pytest.mark.parametrize(("threshold", "expected"), [(0.1, -1), (0.1001, 0)])
    def test_how_much_of_a_crowd_counts(self, threshold, expected):
        entry = truth([[0, 0, 10, 10]], [1], crowd=[True])
        config = vary(ALL_ANCHORS, {"crowd": "avoid", "crowd_iou": threshold})
        assert self.assign(strips(1), entry, config).labels.tolist() == [[expected]]

    def test_a_crowd_takes_no_positive_anchor_away(self):
        entry = truth([[0, 0, 10, 10], [0, 0, 10, 10]], [1, 1], crowd=[False, True])
        assert self.assign(strips(10), entry, vary(ALL_ANCHORS, {"crowd": "avoid"})).labels.tolist() == [[1]]

    @pytest.mark.convention("anchor_targets.border")
    def test_anchors_that_cross_the_border_of_their_image(self):
        images = blank_images(64, 64, windows=[[0, 0, 40, 30]])
        anchors = boxes([0, 0, 40, 30], [30, 20, 40.5, 30], [-0.5, 0, 10, 10], [10, 10, 20, 20])
        nothing = truth([], [])
        keep = self.assign(anchors, nothing, images=images)
        ignore = self.assign(anchors, nothing, vary(ALL_ANCHORS, {"border": "ignore"}), images=images)
        assert keep.labels.tolist() == [[0, 0, 0, 0]]
        assert ignore.labels.tolist() == [[0, -1, -1, 0]]

    def test_an_object_at_the_border_gets_the_best_anchor_inside(self):
        anchors = boxes([-2, 0, 8, 10], [2, 0, 12, 10])
        entry = truth([[0, 0, 8, 10]], [1])  # 0.8 of the first, half of the second
        assert self.assign(anchors, entry).labels.tolist() == [[1, -1]]
        inside = self.assign(anchors, entry, vary(ALL_ANCHORS, {"border": "ignore"}))
        assert inside.labels.tolist() == [[-1, 1]]
        np.testing.assert_allclose(inside.deltas[0, 1], encode(entry.boxes, anchors[1:], ONES)[0])

    def test_no_anchor_inside(self):
        config = vary(ALL_ANCHORS, {"border": "ignore"})
        assert self.assign(boxes([-1, 0, 5, 5]), WHOLE, config).labels.tolist() == [[-1]]

    @pytest.mark.parametrize("entry", [NOTHING, truth([[0, 0, 10, 10]], [1], crowd=[True])])
    def test_an_image_without_objects_is_background(self, entry):
        assert self.assign(strips(10, 1), entry).labels.tolist() == [[0, 0]]

    def test_each_image_is_sampled_by_itself(self):
        anchors = np.tile(strips(10), (40, 1))
        targets = assign_anchors(
            anchors, [WHOLE, NOTHING], blank_images(64, 64, windows=[[0, 0, 64, 64]] * 2),
            vary(ALL_ANCHORS, {"batch_size": 16, "positive_fraction": 0.25}), ONES, np.random.default_rng(0),
        )  # fmt: skip
        assert [[(row == v).sum() for v in (1, 0)] for row in targets.labels] == [[4, 0], [0, 16]]


class TestRois:
    def sample(self, proposed, entry, config=ALL_ROIS, mask_size=None, images=None, std=ONES, seed=0):
        return sample_rois(
            [Proposals(boxes=proposed, scores=np.ones(len(proposed)))], [entry],
            blank_images(64, 64) if images is None else images, config, std, mask_size, np.random.default_rng(seed),
        )  # fmt: skip

    @pytest.mark.convention("roi_targets.negative_iou_low")
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_thresholds_at_their_exact_value(self, dtype):
        rois = self.sample(strips(10, 5, 4.9, 1, 0).astype(dtype), WHOLE)
        assert rois.classes.tolist() == [2, 2, 0, 0, 0]
        low = vary(ALL_ROIS, {"negative_iou_low": 0.1})
        assert self.sample(strips(10, 5, 4.9, 1, 0.9).astype(dtype), WHOLE, low).classes.tolist() == [2, 2, 0, 0]

    def test_targets_lead_to_the_matched_object(self):
        entry = truth([[0, 0, 10, 10], [20, 20, 40, 30]], [3, 1])
        proposed = boxes([50, 50, 60, 60], [21, 20, 40, 31], [0, 0, 10, 9])
        std = (0.1, 0.1, 0.2, 0.2)
        rois = self.sample(proposed, entry, std=std)
        np.testing.assert_array_equal(rois.boxes, proposed)
        assert rois.classes.tolist() == [0, 1, 3]
        assert rois.foreground.tolist() == [1, 2]
        assert rois.images.tolist() == [0, 0, 0]
        restored = decode(rois.deltas[1:], proposed[1:], std, None)
        np.testing.assert_allclose(restored, entry.boxes[::-1], rtol=0, atol=1e-13)
        assert not rois.deltas[0].any()

    @pytest.mark.convention("roi_targets.append_ground_truth")
    @pytest.mark.parametrize(("append", "count"), [(True, 3), (False, 1)])
    def test_true_boxes_may_join_the_proposals(self, append, count):
        entry = truth([[0, 0, 10, 10], [20, 20, 30, 30], [5, 5, 9, 9]], [3, 1, 1], crowd=[False, False, True])
        rois = self.sample(boxes([50, 50, 60, 60]), entry, vary(ALL_ROIS, {"append_ground_truth": append}))
        assert len(rois.boxes) == count
        assert rois.classes.tolist() == [0, 3, 1][:count]

    @pytest.mark.convention("roi_targets.batch_size", "roi_targets.positive_fraction", "roi_targets.negatives")
    @pytest.mark.parametrize(
        ("config", "positive", "negative"),
        [
            ({"batch_size": 16, "positive_fraction": 0.25, "negatives": "fill"}, 4, 12),
            ({"batch_size": 16, "positive_fraction": 0.25, "negatives": "ratio"}, 4, 12),
            ({"batch_size": 80, "positive_fraction": 0.25, "negatives": "fill"}, 10, 40),  # no more are there
            ({"batch_size": 80, "positive_fraction": 0.25, "negatives": "ratio"}, 10, 30),
            ({"batch_size": 30, "positive_fraction": 0.33, "negatives": "ratio"}, 9, 18),  # 9 / .33 = 27.3
            ({"batch_size": 40, "positive_fraction": 1.0, "negatives": "ratio"}, 10, 0),
        ],
    )
    def test_how_many(self, config, positive, negative):
        proposed = np.concatenate([np.tile(strips(10), (10, 1)), np.tile(strips(1), (40, 1))])
        rois = self.sample(proposed, WHOLE, vary(ALL_ROIS, config))
        assert ((rois.classes > 0).sum(), (rois.classes == 0).sum()) == (positive, negative)

    @pytest.mark.convention("roi_targets.negatives")
    @pytest.mark.parametrize(("rule", "count"), [("fill", 8), ("ratio", 0)])
    def test_without_objects(self, rule, count):
        config = RoiTargetConfig(batch_size=8, negatives=rule)
        rois = self.sample(np.tile(strips(10), (20, 1)), NOTHING, config, mask_size=4)
        assert len(rois.boxes) == count
        assert len(rois.foreground) == 0
        assert rois.masks.shape == (0, 4, 4)

    def test_without_proposals(self):
        assert len(self.sample(boxes(), WHOLE).boxes) == 0
        assert self.sample(boxes(), WHOLE, RoiTargetConfig()).classes.tolist() == [2]

    @pytest.mark.convention("roi_targets.crowd")
    @pytest.mark.parametrize(("rule", "expected"), [("drop", [2, 0, 0]), ("avoid", [2, 0])])
    def test_crowds(self, rule, expected):
        entry = truth([[0, 0, 10, 10], [20, 20, 40, 40]], [2, 1], crowd=[False, True])
        proposed = boxes([0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60])
        assert self.sample(proposed, entry, vary(ALL_ROIS, {"crowd": rule})).classes.tolist() == expected

    def test_the_generator_decides(self):
        proposed = np.concatenate([strips(*np.linspace(6, 10, 30)), strips(*np.linspace(0.1, 4, 30))])
        config = RoiTargetConfig(batch_size=12)
        first, again, other = (self.sample(proposed, WHOLE, config, seed=seed).boxes for seed in (1, 1, 2))
        np.testing.assert_array_equal(first, again)
        assert first.tolist() != other.tolist()

    def test_images_follow_one_another(self):
        proposals = [Proposals(boxes=strips(10, 1), scores=np.ones(2)), Proposals(boxes=strips(9), scores=np.ones(1))]
        images = blank_images(64, 64, windows=[[0, 0, 64, 64]] * 2)
        rois = sample_rois(
            proposals, [WHOLE, truth([[0, 0, 10, 10]], [1])], images, ALL_ROIS, ONES, None, np.random.default_rng(0)
        )
        assert rois.images.tolist() == [0, 0, 1]
        assert rois.classes.tolist() == [2, 0, 1]
        assert rois.foreground.tolist() == [0, 2]
        assert rois.masks is None


class TestMasks:
    @staticmethod
    def objects(*masks) -> GroundTruth:
        masks = np.array(masks, bool)
        return truth([[0, 0, *masks.shape[:0:-1]]] * len(masks), [1] * len(masks), masks=masks)

    @pytest.mark.convention("roi_targets.mask_values")
    def test_binarization_at_a_half(self):
        values = np.array([0, 0.4, np.nextafter(0.5, 0), 0.5, np.nextafter(0.5, 1), 1, np.nextafter(1.0, 2)])
        assert binarize(values, "round").tolist() == [0, 0, 0, 0, 1, 1, 1]
        assert binarize(values, "threshold").tolist() == [0, 0, 0, 1, 1, 1, 1]
        np.testing.assert_array_equal(binarize(values, "soft"), np.minimum(values, 1))

    @pytest.mark.convention("roi_targets.mask_sampling", "roi_targets.mask_values")
    @pytest.mark.parametrize(
        ("rule", "expected"),
        # two bins over (2, 0, 6, 4), each the mean of four samples at 0.5 and 1.5 from its edge. A sample at 2.5 lies
        # between the centres of pixels 2 and 3; the mask is 1 in pixels 4 and above, and the sample at 3.5 gets 1/2
        [("soft", [[0.25, 1.0]] * 2), ("round", [[0, 1]] * 2), ("threshold", [[0, 1]] * 2)],
    )
    def test_roi_align_of_the_mask(self, rule, expected):
        mask = np.zeros((8, 8), bool)
        mask[:, 4:] = True
        config = RoiTargetConfig(mask_sampling="roi_align", mask_values=rule)
        found = cut_masks(boxes([2, 0, 6, 4]), self.objects(mask), np.zeros(1, np.int64), (8, 8), 2, config)
        np.testing.assert_array_equal(found[0], expected)

    @pytest.mark.convention("roi_targets.mask_sampling", "roi_targets.mask_values")
    @pytest.mark.parametrize(
        ("rule", "expected"),
        # columns at 2.5 - 0.5 = 2, 3.5 and 5 in units of pixel centres; the mask begins at pixel 4
        [("soft", [0, 0.5, 1]), ("round", [0, 0, 1]), ("threshold", [0, 1, 1])],
    )
    def test_crop_and_resize_of_the_mask(self, rule, expected):
        mask = np.zeros((9, 9), bool)
        mask[:, 4:] = True
        config = RoiTargetConfig(mask_sampling="crop_and_resize", mask_values=rule)
        found = cut_masks(boxes([2, 0, 6, 9]), self.objects(mask), np.zeros(1, np.int64), (9, 9), 3, config)
        np.testing.assert_array_equal(found[0], [expected] * 3)

    def test_each_box_takes_the_mask_of_its_object(self):
        masks = np.zeros((2, 8, 8), bool)
        masks[1] = True
        found = cut_masks(
            boxes([0, 0, 4, 4], [2, 2, 6, 6], [0, 0, 4, 4]),
            self.objects(*masks), np.array([1, 0, 1]), (8, 8), 2, RoiTargetConfig(),
        )  # fmt: skip
        np.testing.assert_array_equal(found, np.array([1, 0, 1])[:, None, None] * np.ones((2, 2)))

    def test_the_foregrounds_masks_come_with_the_rois(self):
        masks = np.zeros((2, 64, 64), bool)
        masks[1, 20:30, 20:30] = True
        entry = truth([[0, 0, 10, 10], [20, 20, 30, 30]], [1, 2], masks=masks)
        rois = TestRois().sample(boxes([50, 50, 60, 60], [20, 20, 30, 30], [0, 0, 10, 10]), entry, mask_size=5)
        assert rois.foreground.tolist() == [1, 2]
        assert rois.masks.shape == (2, 5, 5)
        assert rois.masks[0].sum() > 20
        assert not rois.masks[1].any()


class TestMatterport:
    def anchors(self) -> np.ndarray:
        golden = load("anchors")
        config = vary(matterport().anchors, {"sizes": tuple((float(s),) for s in golden["a128.scales"])})
        shapes = [(int(h), int(w)) for h, w in golden["a128.backbone_shapes"]]
        return np.concatenate(make_anchors(shapes, (128, 128), config, np.float64))

    @pytest.mark.convention("anchor_targets.forced_match", "anchor_targets.crowd")
    @pytest.mark.parametrize("name", ["plain", "tiny", "tie", "crowd", "full", "dup"])
    def test_rpn_targets(self, name):
        golden = load("rpn_targets")
        classes = golden[f"{name}.class_ids"]
        entry = truth(from_yxyx(golden[f"{name}.boxes"]), abs(classes), crowd=classes < 0)  # a crowd's is negative
        preset = matterport(faithful=True)
        config = vary(preset.anchor_targets, {"batch_size": int(golden[f"{name}.counts"][3])})  # takes them all
        targets = assign_anchors(
            self.anchors(), [entry], blank_images(128, 128), config, preset.rpn.delta_std, np.random.default_rng(0)
        )
        stored = golden[f"{name}.match"]  # 1 object, -1 background, 0 takes no part
        np.testing.assert_array_equal(targets.labels[0], np.choose(stored + 1, [0, -1, 1]))
        deltas = targets.deltas[0, targets.labels[0] == 1]
        np.testing.assert_allclose(from_yxyx(deltas), golden[f"{name}.bbox_pos"], rtol=0, atol=1e-12)

    def test_sampled_rpn_targets(self):
        """24 of the anchors for the objects of the plain case; which background stays is drawn."""
        golden = load("rpn_targets")
        entry = truth(from_yxyx(golden["plain.boxes"]), golden["plain.class_ids"])
        preset = matterport(faithful=True)
        config = vary(preset.anchor_targets, {"batch_size": 24})
        targets = assign_anchors(
            self.anchors(), [entry], blank_images(128, 128), config, preset.rpn.delta_std, LeavingOut([1234])
        )
        stored = golden["sampled24_seed1234.match"]
        np.testing.assert_array_equal(targets.labels[0], np.choose(stored + 1, [0, -1, 1]))
        deltas = from_yxyx(targets.deltas[0, targets.labels[0] == 1])
        np.testing.assert_allclose(deltas, golden["sampled24_seed1234.bbox"][: len(deltas)], rtol=0, atol=1e-12)
        assert not golden["sampled24_seed1234.bbox"][len(deltas) :].any()

    @pytest.mark.convention(
        "roi_targets.crowd",
        "roi_targets.padding",
        "roi_targets.mini_mask",
        "roi_targets.mask_sampling",
        "roi_targets.mask_values",
    )
    @pytest.mark.parametrize(
        "name",
        ["all_full", "all_mini", "trunc_full", "trunc_mini", "batch2", "crowd", "fewpos", "nopos", "mask14x20"],
    )
    def test_detection_targets(self, name):
        """Regions, classes, offsets and masks with all padding; those with an object come first there."""
        golden = load("detection_targets")
        batch_size, fraction, mini, count, *mask_size = golden[f"{name}.cfg"]
        preset = matterport(faithful=True)
        config = vary(
            preset.roi_targets,
            {
                "batch_size": int(batch_size),
                "positive_fraction": float(fraction),
                "mini_mask": preset.roi_targets.mini_mask if mini else None,
            },
        )
        first = 1 if name == "trunc_full" else 0
        source = golden["nopos.proposals"][None] if name == "nopos" else golden["proposals"][first:]
        source = source[: int(count)].astype(np.float64)
        proposals = [from_normalized(from_yxyx(rows[rows.any(axis=1)]), (128, 128)) for rows in source]
        rois = sample_rois(
            [Proposals(boxes=boxes, scores=np.ones(len(boxes))) for boxes in proposals],
            [self.entry(golden, name, index) for index in range(int(count))],
            blank_images(128, 128, windows=[[0, 0, 128, 128]] * int(count)),
            config, preset.box_head.delta_std, (int(mask_size[0]), int(mask_size[1])), Unshuffled(), extent="normalized",
        )  # fmt: skip
        masks = unpack(golden[f"{name}.masks_bits"], golden[f"{name}.masks_shape"])
        start = 0
        for index in range(int(count)):
            own = np.flatnonzero(rois.images == index)
            own = own[np.argsort(rois.classes[own] == 0, kind="stable")]
            found = from_yxyx(to_normalized(rois.boxes[own], (128, 128)))
            np.testing.assert_allclose(found, golden[f"{name}.rois"][index], rtol=0, atol=1e-15)
            np.testing.assert_array_equal(rois.classes[own], golden[f"{name}.class_ids"][index])
            positive = int((rois.classes[own] > 0).sum())
            # computed in float32: coordinates up to 1 are known to 2^-24, and divided by an extent and a deviation
            smallest = float((found[:positive, 2:] - found[:positive, :2]).min(initial=1))
            deltas, stored = from_yxyx(rois.deltas[own]), golden[f"{name}.deltas"][index]
            np.testing.assert_allclose(deltas, stored, rtol=0, atol=4 * 2.0**-24 / (0.1 * smallest))
            np.testing.assert_array_equal(rois.masks[start : start + positive], masks[index, :positive])
            assert not masks[index, positive:].any()
            sums = golden[f"{name}.mask_sums"][index]
            np.testing.assert_array_equal(rois.masks[start : start + positive].sum(axis=(1, 2)), sums[:positive])
            assert not sums[positive:].any()
            start += positive

    def entry(self, golden, name, index) -> GroundTruth:
        """The objects of an image; rows without a class are padding, and a crowd's class is negative."""
        classes = golden[f"{name}.gt_class_ids"][index]
        real = classes != 0
        found = from_normalized(golden[f"{name}.gt_boxes_norm"][index][real].astype(np.float64), (128, 128)).round()
        which = [np.flatnonzero((golden["gt_boxes_px"] == box).all(axis=1))[0] for box in found]
        masks = shape_masks(golden["gt_specs"][which], (128, 128))
        return truth(from_yxyx(found), abs(classes[real]), masks=masks, crowd=classes[real] < 0)

    @pytest.mark.convention("roi_targets.padding")
    def test_padding_is_left_out(self):
        """Without the mistake, only what was found trains the heads."""
        proposals = [Proposals(boxes=boxes([0, 0, 8, 8], [40, 40, 50, 50]), scores=np.ones(2))]
        entry = truth([[0, 0, 8, 9]], [2])
        for faithful, expected in ((False, [2, 0]), (True, [2, 0, 0, 0, 0, 0])):
            preset = matterport(faithful=faithful)
            config = vary(preset.roi_targets, {"batch_size": 6})
            rois = sample_rois(
                proposals, [entry], blank_images(64, 64), config, preset.box_head.delta_std, None, Unshuffled(),
                extent="normalized",
            )  # fmt: skip
            assert rois.classes.tolist() == expected
            assert rois.boxes[2:].tolist() == [[0, 0, 1, 1]] * (len(expected) - 2)  # no extent but a pixel's
            assert rois.foreground.tolist() == [0]
