"""What exists in Matterport's convention only, against its golden vectors and by hand."""

import numpy as np
import pytest

from refnet.errors import ArgumentError, ShapeError
from refnet.rcnn.boxes import from_yxyx
from refnet.rcnn.matterport import (
    compose_image_meta,
    denormalize_boxes,
    from_signed_classes,
    parse_image_meta,
    random_roi_targets,
    random_rois,
    signed_classes,
    trim_zeros,
)
from tests.golden.matterport_rules import load, shape_masks
from tests.rcnn.small import truth

STD = (0.1, 0.1, 0.2, 0.2)


class Legacy(np.random.Generator):
    """Draws the numbers of NumPy's old global generator, which Matterport uses."""

    def __init__(self, seed):
        super().__init__(np.random.PCG64(0))
        self.state = np.random.RandomState(seed)

    def integers(self, low, high, size):
        return self.state.randint(low, high, size)

    def choice(self, a, size, replace):
        return self.state.choice(a, size, replace)


def test_crowds_have_negative_classes():
    signed = np.array([3, -1, 1])
    classes, crowd = from_signed_classes(signed)
    np.testing.assert_array_equal(classes, [3, 1, 1])
    np.testing.assert_array_equal(crowd, [False, True, False])
    np.testing.assert_array_equal(signed_classes(classes, crowd), signed)


class TestImageMeta:
    golden = load("resize")

    def test_rows_of_a_batch(self):
        for index, row in enumerate(self.golden["mold_inputs.metas"]):
            meta = parse_image_meta(row)
            stored = {
                key.removeprefix("parse."): value[index]
                for key, value in self.golden.items()
                if key.startswith("parse.") and "dtype" not in key
            }
            assert meta.image_id == stored["image_id"]
            assert meta.original_shape == tuple(stored["original_image_shape"])
            assert meta.shape == tuple(stored["image_shape"])
            assert meta.window == tuple(from_yxyx(stored["window"]))
            assert np.float32(meta.scale) == stored["scale"]
            np.testing.assert_array_equal(meta.active_classes, stored["active_class_ids"])
            np.testing.assert_array_equal(compose_image_meta(meta), row)

    def test_fields_keep_their_places(self):
        row = np.arange(1.0, 17.0)
        row[12:] = 1, 0, 1, 1
        meta = parse_image_meta(row)
        assert (meta.image_id, meta.original_shape, meta.shape) == (1, (2, 3, 4), (5, 6, 7))
        assert (meta.window, meta.scale) == ((9, 8, 11, 10), 12.0)
        assert meta.active_classes.tolist() == [True, False, True, True]
        np.testing.assert_array_equal(compose_image_meta(meta), row)

    def test_a_row_without_classes_is_refused(self):
        with pytest.raises(ShapeError, match="more than 12 numbers, got 12"):
            parse_image_meta(np.zeros(12))


class TestBoxes:
    golden = load("boxes")

    @pytest.mark.parametrize("name", ["128x128", "100x150", "1024x800"])
    def test_whole_pixels(self, name):
        size = tuple(int(v) for v in name.split("x"))
        for source, target in (("norm", "denorm"), ("denorm_in", "denorm_out")):
            boxes = from_yxyx(self.golden[f"{source}.{name}"]).astype(np.float64)
            np.testing.assert_array_equal(denormalize_boxes(boxes, size), from_yxyx(self.golden[f"{target}.{name}"]))

    def test_halves_go_to_even(self):
        # of an image of two pixels, where normalised boxes only lack the shift of x2 and y2
        halves = denormalize_boxes(from_yxyx(self.golden["denorm_half_in"]), (2, 2))
        np.testing.assert_array_equal(halves, from_yxyx(self.golden["denorm_half_out"]))

    def test_rounding_is_tensorflows(self):
        values = load("same_padding")
        corners = np.tile(values["round.in"][:, None], 4)
        found = denormalize_boxes(corners, (2, 2))[:, :2]  # x1 and y1, which aren't shifted
        np.testing.assert_array_equal(found, np.tile(values["round.out"][:, None], 2))

    def test_padding_is_trimmed(self):
        trimmed = trim_zeros(from_yxyx(self.golden["trim_zeros_in"]))
        np.testing.assert_array_equal(trimmed, from_yxyx(self.golden["trim_zeros_out"]))


class TestRandomRois:
    golden = load("load_gt")
    boxes = from_yxyx(np.array([[10.0, 12, 50, 70], [60, 60, 92, 92]]))

    def test_golden(self):
        rois = random_rois(50, self.boxes, (128, 128), Legacy(99))
        np.testing.assert_array_equal(rois, from_yxyx(self.golden["random_rois_seed99"]))

    def test_where_they_lie(self):
        rois = random_rois(1000, self.boxes, (100, 200), np.random.default_rng(0))
        assert rois.shape == (1000, 4)
        assert (rois[:, :2] < rois[:, 2:]).all()
        for part, area in (
            (rois[:450], [0, 0, 127, 89]),
            (rois[450:900], [28, 28, 123, 99]),
            (rois[900:], [0, 0, 199, 99]),
        ):
            np.testing.assert_array_equal(
                np.r_[part[:, :2].min(axis=0), part[:, 2:].max(axis=0)].astype(int) // 4, np.array(area) // 4
            )

    def test_narrow_objects_have_theirs(self):
        """Around an object of a pixel, many draws are empty and are drawn again."""
        rois = random_rois(20, np.array([[3.0, 3, 4, 4]]), (8, 8), np.random.default_rng(0))
        assert (rois[:, :2] < rois[:, 2:]).all()
        assert rois[:18].min() == 2
        assert rois[:18].max() == 4

    @pytest.mark.parametrize(("count", "objects"), [(0, 1), (5, 0)])
    def test_refusals(self, count, objects):
        with pytest.raises(ArgumentError, match=f"got {count} and {objects}"):
            random_rois(count, self.boxes[:objects], (128, 128), np.random.default_rng(0))


class TestRandomRoiTargets:
    golden = load("load_gt")

    def targets(self, rois, entry, count, fraction=0.5, rng=None):
        return random_roi_targets(
            np.asarray(rois, np.float64),
            entry,
            count=count,
            positive_fraction=fraction,
            delta_std=STD,
            mask_size=4,
            rng=rng or np.random.default_rng(0),
        )

    def test_golden(self):
        """Where no region overlaps an object by half: which background is drawn."""
        boxes = from_yxyx(self.golden["bdt.gt_boxes"]).astype(np.float64)
        masks = np.zeros((2, 128, 128), bool)
        rois = from_yxyx(self.golden["random_rois_seed99"])
        targets = self.targets(rois, truth(boxes, [1, 2], masks=masks), 16, 0.33, Legacy(5))
        np.testing.assert_array_equal(targets.boxes, from_yxyx(self.golden["bdt.rois"]))
        np.testing.assert_array_equal(targets.classes, self.golden["bdt.class_ids"])
        assert not self.golden["bdt.bbox"].any()
        assert not targets.deltas.any()
        assert len(targets.foreground) == len(targets.masks) == 0
        assert not self.golden["bdt.masks.chk"].any()

    def entry(self):
        masks = shape_masks(np.array([[ord("r"), 5, 5, 4, 4], [ord("r"), 20, 20, 3, 3]]), (32, 32))
        masks[0, 1:10, 1:4] = False
        masks = np.concatenate([masks, np.ones((1, 32, 32), bool)])
        return truth(
            [[1, 1, 10, 10], [17, 17, 24, 24], [0, 0, 32, 32]], [2, 1, 3], masks=masks, crowd=[False, False, True]
        )

    def test_objects_and_background(self):
        rois = [[1, 1, 10, 10], [1.75, 1, 10, 10], [17, 17, 24, 20.5], [0, 0, 32, 32], [30, 30, 31, 31]]
        targets = self.targets(rois, self.entry(), 6)
        # the third overlaps by 0.5 exactly, and is nothing; the last two are background, one or both repeated
        np.testing.assert_array_equal(targets.classes, [2, 2, 0, 0, 0, 0])
        np.testing.assert_array_equal(targets.boxes[:4], np.array(rois, float)[[0, 1, 3, 4]])
        assert {tuple(box) for box in targets.boxes[4:]} <= {tuple(map(float, box)) for box in rois[3:]}
        np.testing.assert_array_equal(targets.foreground, [0, 1])
        np.testing.assert_allclose(
            targets.deltas[:2], [[0, 0, 0, 0], [-0.375 / 8.25 / 0.1, 0, np.log(9 / 8.25) / 0.2, 0]], rtol=1e-14
        )
        assert not targets.deltas[2:].any()
        # 9 columns, of which the first three are empty, sampled at 0.625, 2.875, 5.125 and 7.375
        np.testing.assert_allclose(targets.masks[0], np.tile([0, 0.875, 1, 1], (4, 1)), rtol=1e-14)
        np.testing.assert_array_equal(targets.masks[0], targets.masks[1])  # 1.75 lost its fraction

    def test_positives_are_limited(self):
        rois = [[1, 1, 10, 10]] * 4 + [[0, 0, 32, 32]]
        targets = self.targets(rois, self.entry(), 3, 0.4)
        np.testing.assert_array_equal(targets.classes, [2, 0, 0])

    def test_refusals(self):
        with pytest.raises(ArgumentError, match="2 regions of background, got none"):
            self.targets([[1, 1, 10, 10]], self.entry(), 3)
        entry = self.entry()
        with pytest.raises(ArgumentError, match="expected an object"):
            self.targets([[1, 1, 10, 10]], entry.select(entry.crowd), 3)
        with pytest.raises(ArgumentError, match="the masks of all"):
            self.targets([[1, 1, 10, 10]], truth(entry.boxes, entry.classes), 3)
