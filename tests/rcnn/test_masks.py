"""Geometry of masks: literal cases, SciPy's zoom, and Matterport's golden vectors."""

import numpy as np
import pytest
import scipy.ndimage

from refnet.autograd import Tensor
from refnet.errors import DataError
from refnet.ops import resize_bilinear
from refnet.rcnn.boxes import from_yxyx
from refnet.rcnn.detections import paste_masks
from refnet.rcnn.masks import (
    expand_masks,
    minimize_masks,
    resize_bounded,
    resize_corner_aligned,
    tight_box,
    tight_boxes,
)
from refnet.rcnn.presets import matterport
from tests.golden.matterport_rules import assert_stored, load, shape_masks, uniform, unpack


def test_tight_boxes():
    masks = np.zeros((3, 4, 6), bool)
    masks[0, 1, 2] = masks[1, 3, 0] = masks[1, 0, 5] = True
    np.testing.assert_array_equal(tight_boxes(masks), [[2, 1, 3, 2], [0, 0, 6, 4], [0, 0, 0, 0]])
    assert tight_box(masks[0]) == (2, 1, 3, 2)
    assert tight_boxes(masks[:0]).shape == (0, 4)


class TestResizeBounded:
    def test_what_lies_outside_counts_as_zero(self):
        row = np.array([[0.0, 1.0]]).T
        np.testing.assert_array_equal(resize_bounded(row, (4, 1))[:, 0], [0, 0.25, 0.75, 0.75])

    def test_no_value_leaves_the_range(self):
        np.testing.assert_array_equal(resize_bounded(np.full((2, 3), 0.75), (5, 7)), np.full((5, 7), 0.75))
        below = np.array([[-2.0, -1.0]])
        np.testing.assert_array_equal(resize_bounded(below, (1, 4)), [[-1.5, -1.75, -1.25, -1]])

    @pytest.mark.parametrize("size", [(5, 7), (9, 23), (14, 3)])
    def test_inside_it_is_the_ordinary_interpolation(self, size):
        image = np.random.default_rng(0).uniform(-1, 1, (6, 8, 2))
        image[0], image[-1], image[:, 0], image[:, -1] = 0, 0, 0, 0  # then the border rule makes no difference
        expected = resize_bilinear(Tensor(image[None]), size).data[0]
        # three roundings of coordinates up to 8, two texts, two axes, differences of neighbours up to 2
        np.testing.assert_allclose(resize_bounded(image, size), expected, rtol=0, atol=3 * 8 * 2.0**-53 * 2 * 2 * 2)

    @pytest.mark.parametrize(
        ("dtype", "expected"), [(np.float32, np.float32), (np.float64, np.float64), (np.uint8, float), (bool, float)]
    )
    def test_types(self, dtype, expected):
        assert resize_bounded(np.ones((2, 2), dtype), (3, 3)).dtype == expected

    golden = load("resize")

    @pytest.mark.parametrize("name", sorted(k[3:-3] for k in golden if k.startswith("rf.") and k.endswith(".in")))
    def test_golden(self, name):
        """Equal in every bit."""
        image = self.golden[f"rf.{name}.in"]
        sizes = [key.rpartition(".")[2] for key in self.golden if key.startswith(f"rf.{name}.") and "x" in key[-4:]]
        assert len(sizes) == 7
        for size in sizes:
            stored = self.golden[f"rf.{name}.{size}"]
            height, width = (int(v) for v in size.split("x"))
            np.testing.assert_array_equal(resize_bounded(image, (height, width)).astype(stored.dtype), stored)


def test_corner_alignment_is_that_of_scipy():
    """At every pair of extents up to 40, lost last rows included."""
    lost = 0
    for source in range(1, 41):
        mask = np.random.default_rng(source).uniform(size=(source, 1)) < 0.5
        mask[-1] = True
        for size in range(1, 41):
            expected = scipy.ndimage.zoom(mask, (size / source, 1), order=0)
            np.testing.assert_array_equal(resize_corner_aligned(mask[None], (size, 1))[0], expected)
            np.testing.assert_array_equal(resize_corner_aligned(mask.T[None], (1, size))[0], expected.T)
            lost += size > 1 and not expected[-1, 0]
    assert lost > 0  # so this case took part


class TestMiniMasks:
    golden = load("masks")
    masks = shape_masks(golden["specs"], tuple(int(v) for v in golden["hw"]))
    boxes = tight_boxes(masks)

    def test_boxes(self):
        np.testing.assert_array_equal(self.masks.sum(axis=(1, 2)), self.golden["mask_sums"])
        np.testing.assert_array_equal(self.boxes, from_yxyx(self.golden["extract_bboxes"]))
        np.testing.assert_array_equal(
            tight_boxes(np.concatenate([self.masks[:2], np.zeros((1, 96, 120), bool)])),
            from_yxyx(self.golden["extract_bboxes_empty"]),
        )

    @pytest.mark.parametrize("size", [(28, 28), (56, 56), (14, 20)])
    def test_there_and_back(self, size):
        name = f"{size[0]}x{size[1]}"
        small = minimize_masks(self.masks, self.boxes, size)
        stored = unpack(self.golden[f"mini_{name}"], (*size, len(small)))
        np.testing.assert_array_equal(small, stored.transpose(2, 0, 1))
        expanded = expand_masks(small, self.boxes, (96, 120))
        stored = unpack(self.golden[f"expand_{name}"], (96, 120, len(small)))
        np.testing.assert_array_equal(expanded, stored.transpose(2, 0, 1))
        for masks, kind in ((small, "mini"), (expanded, "expand")):
            np.testing.assert_array_equal(masks.sum(axis=(1, 2)), self.golden[f"{kind}_{name}_sums"])

    def test_boxes_are_rounded_and_cut_off(self):
        mask = np.ones((1, 4, 4), bool)
        mask[0, :, 0] = False
        box = np.array([[0.5, -3.0, 2.5, 9.0]])  # half to even: columns 0 and 1
        np.testing.assert_array_equal(minimize_masks(mask, box, (2, 2)), [[[False, True]] * 2])
        expanded = expand_masks(np.ones((1, 2, 2), bool), box, (4, 4))
        np.testing.assert_array_equal(expanded[0], [[True, True, False, False]] * 4)

    @pytest.mark.parametrize("box", [[1.0, 1, 1.25, 3], [4.0, 0, 9, 4]])
    def test_a_box_without_pixels_is_refused(self, box):
        with pytest.raises(DataError, match="box 0 must cover a pixel of the image of 4 x 4"):
            minimize_masks(np.ones((1, 4, 4), bool), np.array([box]), (2, 2))
        with pytest.raises(DataError, match="box 0 must cover a pixel of the image of 4 x 4"):
            expand_masks(np.ones((1, 2, 2), bool), np.array([box]), (4, 4))


class TestPastedMasks:
    golden = load("masks")
    boxes = from_yxyx(golden["unmold_boxes"])

    @pytest.mark.parametrize(("name", "key", "cells"), [("rand", "unmold/probs", 28), ("smooth", "unmold/smooth", 7)])
    def test_golden(self, name, key, cells):
        masks = uniform(key, (7, cells, cells)).repeat(28 // cells, axis=1).repeat(28 // cells, axis=2)
        pasted = paste_masks(masks, self.boxes.astype(np.float64), (96, 120), matterport().detections)
        np.testing.assert_array_equal(
            pasted, unpack(self.golden[f"unmold_{name}_bits"], (96, 120, len(masks))).transpose(2, 0, 1)
        )
        np.testing.assert_array_equal(pasted.sum(axis=(1, 2)), self.golden[f"unmold_{name}_sums"])
        for index in range(3):  # and the probabilities before the threshold, in every bit
            x1, y1, x2, y2 = self.boxes[index].tolist()
            values = resize_bounded(masks[index], (y2 - y1, x2 - x1))
            assert_stored(self.golden, f"unmold_{name}_prob{index}", values)
