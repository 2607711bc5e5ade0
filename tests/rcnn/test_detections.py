"""Detections: every switch by hand, pasting of masks, and Matterport's DetectionLayer and unmold_detections."""

import numpy as np
import pytest

from refnet.autograd import Tensor
from refnet.rcnn.boxes import from_yxyx
from refnet.rcnn.config import BoxHeadConfig, DetectionConfig, KeypointHeadConfig, MaskHeadConfig
from refnet.rcnn.detections import class_scores, decode_keypoints, own_masks, paste_masks, select_detections
from refnet.rcnn.presets import matterport
from refnet.rcnn.structures import BoxOutput
from tests.golden.matterport_rules import load
from tests.rcnn.small import blank_images, vary

IMAGE = blank_images(64, 64)
HEAD = BoxHeadConfig()
PLAIN = DetectionConfig(min_size=0.0)


def squares(*lefts: float, side: float = 8.0) -> np.ndarray:
    return np.array([[x, 0, x + side, side] for x in lefts], np.float64).reshape(-1, 4)


def heads(probabilities, deltas=None, boxes_per_region=None) -> BoxOutput:
    """Logits of which softmax makes these probabilities, exactly where they are dyadic."""
    probabilities = np.asarray(probabilities, np.float64)
    with np.errstate(divide="ignore"):
        logits = np.log(probabilities)
    shape = (len(probabilities), boxes_per_region or probabilities.shape[1], 4)
    return BoxOutput(class_logits=Tensor(logits), deltas=Tensor(np.zeros(shape) if deltas is None else deltas))


def run(output, boxes, config=PLAIN, head=HEAD, images=IMAGE, extent="continuous"):
    return select_detections(output, [boxes], images, head, config, extent=extent)[0]


class TestKeypoints:
    def maps(self, *peaks, size=8, height=5.0) -> np.ndarray:
        """One detection's maps, each flat but for a peak at (column, row)."""
        maps = np.zeros((1, size, size, len(peaks)))
        for point, (column, row) in enumerate(peaks):
            maps[0, row, column, point] = height
        return maps

    @pytest.mark.convention("keypoint_head.scores")
    def test_a_point_lies_in_the_middle_of_its_pixel(self):
        box = np.array([[10.0, 20, 18, 28]])  # as large as the map
        points, scores = decode_keypoints(self.maps((2, 3), (0, 7)), box, KeypointHeadConfig())
        np.testing.assert_array_equal(points, [[[12.5, 23.5, 1], [10.5, 27.5, 1]]])
        np.testing.assert_array_equal(scores, [[5, 5]])

    def test_a_box_of_no_whole_number_of_pixels(self):
        box = np.array([[10.0, 20, 17.5, 20.25]])  # 8 pixels for 7.5, and one for a quarter
        points, _ = decode_keypoints(self.maps((2, 3)), box, KeypointHeadConfig())
        np.testing.assert_array_equal(points, [[[10 + 2.5 * 7.5 / 8, 20.5, 1]]])

    @pytest.mark.convention("keypoint_head.scores")
    def test_a_probability_sums_over_the_small_map(self):
        small, large = np.array([[0.0, 0, 8, 8]]), np.array([[0.0, 0, 80, 80]])
        config = KeypointHeadConfig(scores="probability")
        _, scores = decode_keypoints(self.maps((2, 3)), small, config)
        np.testing.assert_allclose(scores, np.exp(5) / (np.exp(5) + 63), rtol=1e-14)
        _, enlarged = decode_keypoints(self.maps((2, 3)), large, config)
        _, logit = decode_keypoints(self.maps((2, 3)), large, KeypointHeadConfig())
        np.testing.assert_allclose(enlarged, np.exp(logit) / (np.exp(5) + 63), rtol=1e-14)

    @pytest.mark.parametrize("kind", ["logit", "probability"])
    def test_no_detections(self, kind):
        points, scores = decode_keypoints(np.zeros((0, 8, 8, 3)), np.zeros((0, 4)), KeypointHeadConfig(scores=kind))
        assert (points.shape, scores.shape) == ((0, 3, 3), (0, 3))

    def test_equal_torch(self, torch):
        rng = np.random.default_rng(0)
        maps, corner = rng.standard_normal((6, 8, 8, 4)), rng.uniform(0, 30, (6, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(0.25, 40, (6, 2))], axis=1)
        points, scores = decode_keypoints(maps, boxes, KeypointHeadConfig())
        for index, (x1, y1, x2, y2) in enumerate(boxes):
            width, height = max(x2 - x1, 1.0), max(y2 - y1, 1.0)
            size = (int(np.ceil(height)), int(np.ceil(width)))
            source = torch.tensor(maps[index].transpose(2, 0, 1)[:, None].copy())
            large = torch.nn.functional.interpolate(source, size=size, mode="bicubic", align_corners=False).numpy()[
                :, 0
            ]
            for point, heat in enumerate(large):
                row, column = np.unravel_index(heat.argmax(), heat.shape)
                expected = x1 + (column + 0.5) * width / size[1], y1 + (row + 0.5) * height / size[0], 1
                np.testing.assert_allclose(points[index, point], expected, rtol=1e-14)
                np.testing.assert_allclose(scores[index, point], heat.max(), rtol=1e-12)


class TestSelection:
    def test_best_first(self):
        found = run(heads([[0.25, 0.5, 0.25], [0.125, 0.125, 0.75]]), squares(0, 20))
        assert list(zip(found.boxes[:, 0], found.classes, strict=True)) == [(20, 2), (0, 1), (0, 2), (20, 1)]
        np.testing.assert_allclose(found.scores, [0.75, 0.5, 0.25, 0.125], rtol=1e-15)
        assert found.masks is None

    @pytest.mark.convention("detections.classes")
    @pytest.mark.parametrize(("rule", "expected"), [("all", [(0, 2), (0, 1), (20, 2)]), ("argmax", [(0, 2)])])
    def test_a_region_may_be_of_several_classes_or_of_its_best(self, rule, expected):
        output = heads([[0.2, 0.3, 0.5], [0.6, 0.15, 0.25]])  # the second is background most of all
        found = run(output, squares(0, 20), vary(PLAIN, {"classes": rule, "score_threshold": 0.2}))
        assert list(zip(found.boxes[:, 0], found.classes, strict=True)) == expected

    @pytest.mark.convention("detections.score_comparison")
    @pytest.mark.parametrize(("comparison", "count"), [(">", 0), (">=", 1)])
    def test_a_score_of_exactly_the_threshold(self, comparison, count):
        config = vary(PLAIN, {"score_threshold": 0.5, "score_comparison": comparison})
        assert len(run(heads([[0.5, 0.5]]), squares(0), config)) == count
        assert len(run(heads([[0.25, 0.75]]), squares(0), config)) == 1
        assert len(run(heads([[0.75, 0.25]]), squares(0), config)) == 0

    def test_only_boxes_of_one_class_suppress_each_other(self):
        output = heads([[0.1, 0.5, 0.4], [0.1, 0.45, 0.45], [0.1, 0.6, 0.3]])
        found = run(output, squares(0, 1, 30), vary(PLAIN, {"score_threshold": 0.35}))
        assert list(zip(found.boxes[:, 0], found.classes, strict=True)) == [(30, 1), (0, 1), (1, 2)]

    @pytest.mark.convention("detections.nms_threshold")
    @pytest.mark.parametrize(("threshold", "expected"), [(0.5, [0, 4]), (0.25, [0])])
    def test_nms_threshold(self, threshold, expected):
        # boxes at 0 and 4 have an IoU of 1/3
        found = run(heads([[0.1, 0.9], [0.2, 0.8]]), squares(0, 4), vary(PLAIN, {"nms_threshold": threshold}))
        assert found.boxes[:, 0].tolist() == expected

    def test_limit(self):
        output = heads([[0.1, 0.5, 0.4], [0.1, 0.3, 0.6]])
        found = run(output, squares(0, 20), vary(PLAIN, {"limit": 3}))
        assert found.scores.round(3).tolist() == [0.6, 0.5, 0.4]

    @pytest.mark.convention("detections.min_size")
    @pytest.mark.parametrize(("min_size", "expected"), [(0.0, [0, 61, 20]), (4.0, [0, 20]), (5.0, [0])])
    def test_boxes_of_exactly_the_least_size_stay(self, min_size, expected):
        boxes = np.array([[0.0, 0, 8, 8], [61, 0, 69, 8], [20, 0, 24, 8]])  # the second is cut off to 3
        found = run(heads([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]]), boxes, vary(PLAIN, {"min_size": min_size}))
        assert found.boxes[:, 0].tolist() == expected

    def test_each_class_has_its_own_box_clipped_to_the_image(self):
        deltas = np.zeros((1, 3, 4))
        deltas[0, 1], deltas[0, 2] = [10, 0, 0, 0], [0, 0, 50, 5 * np.log(2)]
        images = blank_images(64, 64, windows=[[4, 0, 40, 60]])
        found = run(heads([[0.2, 0.5, 0.3]], deltas), squares(16), images=images)
        # one width to the right; or as wide as the image, since 8 exp(10) is more, and twice as high
        np.testing.assert_allclose(found.boxes, [[24, 0, 32, 8], [4, 0, 40, 12]], rtol=1e-14)

    @pytest.mark.convention("box_head.delta_clamp")
    def test_the_clamp(self):
        deltas = np.zeros((1, 2, 4))
        deltas[0, 1] = [0, 0, 5, 5]
        head = BoxHeadConfig(delta_std=(1.0, 1.0, 1.0, 1.0), delta_clamp=float(np.log(2)))
        box = np.array([[24.0, 24, 32, 32]])
        np.testing.assert_allclose(run(heads([[0, 1]], deltas), box, head=head).boxes, [[20, 20, 36, 36]], rtol=1e-14)
        unlimited = vary(head, {"delta_clamp": None})  # which only the image's border stops
        np.testing.assert_allclose(run(heads([[0, 1]], deltas), box, head=unlimited).boxes, [[0, 0, 64, 64]])

    @pytest.mark.convention("box_head.background")
    def test_background_last(self):
        rng = np.random.default_rng(0)
        probabilities, deltas = rng.dirichlet(np.ones(4), 6), rng.uniform(-1, 1, (6, 4, 4))
        boxes = squares(0, 10, 20, 30, 40, 50)
        first = run(heads(probabilities, deltas), boxes)
        last = run(
            heads(np.roll(probabilities, -1, axis=1), deltas[:, 1:]), boxes, head=BoxHeadConfig(background="last")
        )
        np.testing.assert_array_equal(first.classes, last.classes)
        np.testing.assert_array_equal(first.boxes, last.boxes)
        np.testing.assert_allclose(first.scores, last.scores, rtol=1e-14)

    @pytest.mark.convention("box_head.class_agnostic")
    def test_one_box_for_all_classes(self):
        deltas = np.zeros((1, 1, 4))
        deltas[0, 0, 0] = 10.0
        found = run(heads([[0.2, 0.5, 0.3]], deltas), squares(16), head=BoxHeadConfig(class_agnostic=True))
        assert found.boxes[:, 0].tolist() == [24, 24]

    def test_every_image_gets_its_own(self):
        images = blank_images(64, 64, windows=[[0, 0, 64, 64], [0, 0, 12, 64], [0, 0, 64, 64]])
        output = heads([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
        found = select_detections(output, [squares(0), squares(), squares(8, 30)], images, HEAD, PLAIN)
        assert [entry.boxes[:, 0].tolist() for entry in found] == [[0], [], [8, 30]]
        assert [entry.scores.round(3).tolist() for entry in found] == [[0.9], [], [0.8, 0.7]]

    @pytest.mark.parametrize("rule", ["all", "argmax"])
    def test_nothing_to_detect(self, rule):
        found = run(heads(np.zeros((0, 3))), squares(), vary(PLAIN, {"classes": rule}))
        assert found.boxes.shape == (0, 4)
        assert len(found) == 0

    def test_inclusive_boxes_end_on_the_last_pixel(self):
        boxes = np.array([[-5.0, -5, 90, 90], [10, 0, 13, 3], [10, 0, 13, 1]])
        output = heads([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
        config = vary(PLAIN, {"nms_threshold": 0.5})
        found = run(output, boxes, config, extent="inclusive").boxes
        # 4 x 4 and 4 x 2 pixels have an IoU of exactly one half, and both stay
        np.testing.assert_allclose(found, [[0, 0, 63, 63], [10, 0, 13, 3], [10, 0, 13, 1]], rtol=0, atol=1e-14)


def test_scores_are_a_softmax_with_the_background_in_front():
    logits = np.array([[1.0, 2.0, 0.5]])
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(class_scores(Tensor(logits), HEAD), expected, rtol=1e-15)
    last = class_scores(Tensor(logits), BoxHeadConfig(background="last"))
    np.testing.assert_allclose(last, expected[:, [2, 0, 1]], rtol=1e-15)


@pytest.mark.convention("mask_head.class_agnostic", "box_head.background")
@pytest.mark.parametrize(
    ("background", "agnostic", "channels", "read"),
    [("first", False, 4, [3, 1]), ("last", False, 3, [2, 0]), ("first", True, 1, [0, 0]), ("last", True, 1, [0, 0])],
)
def test_every_detection_takes_the_mask_of_its_class(background, agnostic, channels, read):
    logits = np.random.default_rng(0).standard_normal((2, 5, 5, channels))
    found = own_masks(
        Tensor(logits), np.array([3, 1]), BoxHeadConfig(background=background), MaskHeadConfig(class_agnostic=agnostic)
    )
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits[[0, 1], :, :, read])), rtol=1e-15)


class TestSoftPaste:
    config = DetectionConfig(paste="soft", mask_threshold=None)

    def paste(self, mask, box, size=(8, 8), config=config):
        return paste_masks(np.array([mask], np.float64), np.array([box], np.float64), size, config)[0]

    @pytest.mark.convention("detections.paste")
    def test_by_hand(self):
        # 2 x 2 cells over (2, 2, 6, 6); ringed by zeros they span (0, 0, 8, 8), and as both ends count, 9 x 9 pixels
        pasted = self.paste([[1, 1], [1, 1]], [2, 2, 6, 6], (10, 10))
        centers = (np.arange(9) + 0.5) * 4 / 9 - 0.5  # in units of cells, of which 1 and 2 are the mask's
        profile = np.interp(centers, [0, 1, 2, 3], [0, 1, 1, 0])
        np.testing.assert_allclose(pasted[:9, :9], np.outer(profile, profile), rtol=0, atol=1e-15)
        assert not pasted[9:].any()
        assert not pasted[:, 9:].any()

    def test_coordinates_are_truncated_towards_zero(self):
        moved = self.paste([[1, 1], [1, 1]], [2.9, 2.9, 6.9, 6.9], (10, 10))
        np.testing.assert_array_equal(moved, self.paste([[1, 1], [1, 1]], [2, 2, 6, 6], (10, 10)))
        # (1.5, 5.5) widened is (-0.5, 7.5): pixels 0 to 7, where rounding down would begin at -1
        row = self.paste([[1, 1], [1, 1]], [1.5, 2, 5.5, 6], (10, 10))[4]
        np.testing.assert_allclose(row, [0, 0.25, 0.75, 1, 1, 0.75, 0.25, 0, 0, 0], rtol=0, atol=1e-15)

    @pytest.mark.parametrize("shift", [(-5, 0), (0, -5), (5, 3), (-6, -6)])
    def test_what_lies_outside_the_image_is_cut_off(self, shift):
        mask = np.random.default_rng(0).uniform(0.1, 1, (4, 4))
        whole = self.paste(mask, [16, 16, 24, 24], (48, 48))
        dx, dy = shift
        window = whole[16 - dy : 24 - dy, 16 - dx : 24 - dx]
        np.testing.assert_array_equal(self.paste(mask, [dx, dy, dx + 8, dy + 8]), window)

    @pytest.mark.parametrize("box", [[40, 0, 44, 4], [0, 40, 4, 44], [-44, 0, -40, 4], [0, -44, 4, -40]])
    @pytest.mark.parametrize("paste", ["soft", "hard"])
    def test_a_box_beside_the_image_leaves_it_empty(self, box, paste):
        config = DetectionConfig(paste=paste)
        assert not self.paste(np.ones((4, 4)), box, config=config).any()

    def test_a_box_without_area_marks_a_pixel(self):
        assert (self.paste(np.ones((2, 2)), [3, 3, 3, 3]) > 0).sum() == 1

    @pytest.mark.convention("detections.mask_threshold")
    def test_threshold(self):
        mask = np.random.default_rng(1).uniform(0, 1, (4, 4))
        soft = self.paste(mask, [1, 1, 6, 7])
        hard = self.paste(mask, [1, 1, 6, 7], config=vary(self.config, {"mask_threshold": 0.5}))
        assert hard.dtype == bool
        np.testing.assert_array_equal(hard, soft >= 0.5)
        assert self.paste(np.ones((2, 2)), [2, 2, 6, 6], config=vary(self.config, {"mask_threshold": 1.0})).any()


class TestHardPaste:
    config = DetectionConfig(paste="hard")

    def paste(self, mask, box, size=(8, 8)):
        return paste_masks(np.array([mask], np.float64), np.array([box], np.float64), size, self.config)[0]

    @pytest.mark.parametrize("side", [1, 2, 3, 6])
    def test_a_full_mask_fills_its_box(self, side):
        expected = np.zeros((8, 8), bool)
        expected[1 : 1 + side, 2 : 2 + side] = True
        np.testing.assert_array_equal(self.paste(np.ones((2, 2)), [2, 1, 2 + side, 1 + side]), expected)

    def test_corners_are_rounded_half_to_even(self):
        found = np.argwhere(self.paste(np.ones((2, 2)), [1.5, 0.5, 4.5, 3.5]))
        assert (found.min(axis=0).tolist(), found.max(axis=0).tolist()) == ([0, 2], [3, 3])

    @pytest.mark.convention("detections.paste")
    def test_values_fade_towards_the_edge_unless_the_mask_is_full(self):
        mask = np.ones((2, 2))
        mask[1, 1] = 0
        # three times as large, pixel centres lie at -1/3, 0, 1/3, 2/3, 1 and 4/3 cells: outside the cells' centres
        # at 0 and 1 a third is lost, so that corners have 4/9, and (5, 2) has 2/3 - 2/3 · 1/3
        expected = [
            [0, 1, 1, 1, 1, 0],
            [1, 1, 1, 1, 1, 1],
            [1, 1, 1, 1, 1, 0],
            [1, 1, 1, 1, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [0, 1, 0, 0, 0, 0],
        ]
        np.testing.assert_array_equal(self.paste(mask, [0, 0, 6, 6], (6, 6)), expected)

    def test_an_empty_box_is_left_out(self):
        assert not self.paste(np.ones((2, 2)), [2.2, 2, 2.4, 6]).any()


@pytest.mark.parametrize("paste", ["soft", "hard"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_precision_and_empties(paste, dtype):
    config = DetectionConfig(paste=paste)
    assert paste_masks(np.zeros((0, 4, 4), dtype), np.zeros((0, 4), dtype), (5, 6), config).shape == (0, 5, 6)
    masks = paste_masks(np.ones((1, 4, 4), dtype), np.array([[1, 1, 4, 4]], dtype), (5, 6), config)
    assert masks.dtype == bool
    if paste == "soft":
        soft = paste_masks(
            np.ones((1, 4, 4), dtype), np.array([[1, 1, 4, 4]], dtype), (5, 6), vary(config, {"mask_threshold": None})
        )
        assert soft.dtype == dtype


class TestMatterport:
    golden = load("detection_layer")

    @pytest.mark.convention("detections.classes", "detections.score_threshold", "detections.nms_threshold")
    @pytest.mark.parametrize(
        "name", ["default", "window", "lowconf_max20", "noconf", "nms0.7", "none", "batch2", "nonsquare"]
    )
    def test_detection_layer(self, name):
        """In normalised coordinates, a unit like any other; the window is part of the image's meta data."""
        confidence, threshold, limit, count = self.golden[f"{name}.cfg"]
        preset = matterport()
        config = vary(
            preset.detections,
            {"score_threshold": float(confidence), "nms_threshold": float(threshold), "limit": int(limit)},
        )
        images = int(count)
        rois = from_yxyx(self.golden["rois"][:images].astype(np.float64))
        meta = self.golden[f"{name}.meta"].astype(np.float64)
        height, width = meta[0, 4:6]
        windows = (meta[:, [8, 7, 10, 9]] - [0, 0, 1, 1]) / ([width - 1, height - 1] * 2)
        output = heads(
            self.golden["probs"][:images].reshape(-1, 4),
            from_yxyx(self.golden["deltas"][:images].reshape(-1, 4, 4).astype(np.float64)),
        )
        found = select_detections(output, list(rois), blank_images(1, 1, windows=windows), preset.box_head, config)
        for index, entry in enumerate(found):
            stored = self.golden[f"{name}.out"][index]
            expected = stored[: int(self.golden[f"{name}.count"][index])]
            assert len(entry) == len(expected)
            np.testing.assert_allclose(from_yxyx(entry.boxes), expected[:, :4], rtol=0, atol=1e-6)
            np.testing.assert_array_equal(entry.classes, expected[:, 4])
            np.testing.assert_allclose(entry.scores, expected[:, 5], rtol=1e-6)
