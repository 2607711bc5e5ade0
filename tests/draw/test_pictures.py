import numpy as np
import pytest

from refnet.draw import draw_detections, draw_side_by_side
from refnet.draw.pictures import OPACITY, _color
from refnet.errors import ArgumentError, DataError
from refnet.rcnn.structures import Detections, GroundTruth

NAMES = ("cat", "dog")


def found(*rows, masks=True, size=(100, 120)):
    """Rows (box, class, score); masks are soft, and fill the boxes."""
    boxes = np.array([r[0] for r in rows], np.float32).reshape(-1, 4)
    filled = np.zeros((len(rows), *size), np.float32)
    for mask, (x1, y1, x2, y2) in zip(filled, boxes.astype(int), strict=True):
        mask[max(y1, 0) : y2, max(x1, 0) : x2] = 0.5
    return Detections(
        boxes=boxes,
        classes=np.array([r[1] for r in rows], np.int64),
        scores=np.array([r[2] for r in rows], np.float32),
        masks=filled if masks else None,
    )


def gray(height=100, width=120, channels=3):
    return np.full((height, width, channels), 128, np.uint8)


def pixels_of(picture, color):
    return int((picture == color).all(axis=2).sum())


@pytest.mark.parametrize(("size", "scale", "expected"), [
    ((128, 128), None, (384, 384)), ((100, 120), None, (400, 480)), ((640, 480), None, (640, 480)),
    ((100, 120), 1, (100, 120)), ((1, 1), 3, (3, 3)),
])  # fmt: skip
def test_small_images_are_enlarged(size, scale, expected):
    image = gray(*size)
    picture = draw_detections(image, GroundTruth.empty(*size), NAMES, scale=scale)
    assert picture.shape == (*expected, 3)
    assert (picture == 128).all()


def test_masks_tint_the_image_and_leave_the_rest_alone():
    image = gray()
    picture = draw_detections(image, found(((20, 40, 80, 90), 1, 0.9)), NAMES, scale=1)
    color = np.array(_color(0))
    np.testing.assert_array_equal(picture[65, 50], np.rint(128 * (1 - OPACITY) + color * OPACITY))
    assert (picture[40, 30:79] == color).all()  # the box's upper edge
    assert (picture[:20] == 128).all()  # the label lies just above the box
    assert (picture[:, 90:] == 128).all()
    assert (image == 128).all()  # the caller's image is as it was


def test_mask_may_be_thresholded_or_absent():
    soft = found(((20, 40, 80, 90), 1, 0.9))
    hard = Detections(boxes=soft.boxes, classes=soft.classes, scores=soft.scores, masks=soft.masks >= 0.5)
    np.testing.assert_array_equal(draw_detections(gray(), soft, NAMES), draw_detections(gray(), hard, NAMES))
    bare = draw_detections(gray(), found(((20, 40, 80, 90), 1, 0.9), masks=False), NAMES, scale=1)
    assert bare[65, 50].tolist() == [128, 128, 128]


def test_unsure_detections_are_left_out():
    detections = found(((20, 40, 80, 90), 1, 0.3))
    assert (draw_detections(gray(), detections, NAMES) == 128).all()
    assert not (draw_detections(gray(), detections, NAMES, min_score=0.3) == 128).all()


def test_colors_of_instances_and_of_classes():
    detections = found(((5, 40, 35, 90), 2, 0.9), ((45, 40, 75, 90), 2, 0.8), ((85, 40, 115, 90), 1, 0.7))

    def corners(color_by):
        picture = draw_detections(gray(), detections, NAMES, scale=1, color_by=color_by)
        return [tuple(int(v) for v in picture[89, x]) for x in (5, 45, 85)]

    assert len(set(corners("instance"))) == 3
    first, second, third = corners("class")
    assert first == second != third


def test_the_best_lies_in_front():
    detections = found(((20, 40, 80, 90), 1, 0.6), ((20, 40, 80, 90), 2, 0.9))
    picture = draw_detections(gray(), detections, NAMES, scale=1, color_by="class")
    assert tuple(picture[85, 20]) == _color(1)


def test_labels_of_equal_boxes_do_not_cover_each_other():
    alone = found(((20, 40, 80, 90), 1, 0.9), masks=False)
    both = found(((20, 40, 80, 90), 1, 0.9), ((20, 40, 80, 90), 2, 0.8), masks=False)
    label = pixels_of(draw_detections(gray(), alone, NAMES, color_by="class"), _color(0))
    picture = draw_detections(gray(), both, NAMES, color_by="class")
    assert pixels_of(picture, _color(0)) > 0.9 * label  # box and label of the first are all there
    assert pixels_of(picture, _color(1)) > 0.3 * label  # of the second, the label


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_any_number_of_channels(channels):
    picture = draw_detections(gray(channels=channels), found(((-5, -5, 300, 300), 1, 0.9)), NAMES)
    assert picture.shape == (400, 480, 3)


def test_boxes_without_width_or_beyond_the_image():
    rows = [((30, 30, 30, 30), 1, 0.9), ((119.5, 99.5, 120, 100), 2, 0.9), ((200, 200, 300, 300), 1, 0.9)]
    assert draw_detections(gray(), found(*rows, masks=False), NAMES).shape == (400, 480, 3)


def test_side_by_side():
    truth = GroundTruth(
        boxes=np.array([[20, 40, 80, 90]], np.float32),
        classes=np.array([2]),
        masks=np.ones((1, 100, 120), bool),
        crowd=np.array([True]),
    )
    picture = draw_side_by_side(gray(), found(), truth, NAMES, scale=4)
    assert picture.shape[1] == 2 * 480 + 8
    left, right = picture[-400:, :480], picture[-400:, -480:]
    assert (left == 128).all()
    np.testing.assert_array_equal(right, draw_detections(gray(), truth, NAMES, scale=4, color_by="class"))


def test_what_does_not_fit_is_rejected():
    with pytest.raises(DataError, match=r"masks must have the image's size \(100, 120\), got \(50, 60\)"):
        draw_detections(gray(), found(((1, 1, 9, 9), 1, 0.9), size=(50, 60)), NAMES)
    for wrong in (0, 3):
        with pytest.raises(DataError, match="classes must be 1 to 2"):
            draw_detections(gray(), found(((1, 1, 9, 9), wrong, 0.9)), NAMES)
    with pytest.raises(ArgumentError, match="at least 1"):
        draw_detections(gray(), found(), NAMES, scale=0)


def test_keypoints_are_drawn_where_they_are_and_joined():
    points = np.array([[[20, 20, 2], [80, 20, 1], [50, 60, 0]]], np.float32)
    entry = GroundTruth(
        boxes=np.array([[10, 10, 100, 90]], np.float32), classes=np.array([1]), masks=None, crowd=np.array([False]),
        keypoints=points,
    )  # fmt: skip
    image, color = gray(), np.array(_color(0))
    dots = draw_detections(image, entry, NAMES, scale=1)
    assert (dots[20, 20] == color).all()
    assert (dots[20, 80] == color).all()
    assert (dots[20, 50] == 128).all()
    assert (dots[60, 50] == 128).all()  # not labelled
    lines = draw_detections(image, entry, NAMES, scale=1, skeleton=((0, 1), (1, 2)))
    assert (lines[20, 50] == color).all()
    assert (lines[40, 65] == 128).all()
    side = draw_side_by_side(image, found(), entry, NAMES, scale=1, skeleton=((0, 1),))
    assert side.shape[1] > 2 * 120
    with pytest.raises(DataError, match="skeleton must join keypoints 0 to 2"):
        draw_detections(image, entry, NAMES, skeleton=((0, 3),))
