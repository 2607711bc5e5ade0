"""Keypoints in datasets: read, refused, mirrored, drawn with the shapes, and written."""

import json
import logging
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from refnet.data import CocoDataset, KeypointScheme, Shapes, ShapesConfig, batches, keypoint_scheme, write_shapes
from refnet.data.loader import flipped
from refnet.data.shapes import KEYPOINTS, SILHOUETTES
from refnet.errors import DataError

NAMES = ["nose", "left_eye", "right_eye"]
POINTS = [3, 1, 2, 0, 0, 0, 4, 2, 1]


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (6, 5)).save(tmp_path / name)
    return tmp_path


def read(folder, *annotations, categories=None, **options):
    entries = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 3]} | a for i, a in enumerate(annotations, start=1)
    ]
    content = {
        "images": [{"id": k, "file_name": name, "height": 5, "width": 6} for k, name in ((1, "a.png"), (2, "b.png"))],
        "annotations": entries,
        "categories": categories
        or [{"id": 1, "name": "person", "keypoints": NAMES, "skeleton": [[1, 2], [3, 1]]}, {"id": 2, "name": "dog"}],
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return CocoDataset(folder, path, **options)


def test_a_whole_number_is_the_middle_of_a_pixel(folder):
    dataset = read(folder, {"keypoints": POINTS, "num_keypoints": 2})
    assert keypoint_scheme(dataset) == KeypointScheme(names=tuple(NAMES), skeleton=((0, 1), (2, 0)))
    assert dataset[0].truth.keypoints.tolist() == [[[3.5, 1.5, 2], [0, 0, 0], [4.5, 2.5, 1]]]
    assert dataset[1].truth.keypoints.shape == (0, 3, 3)


def test_numbers_are_taken_as_they_are_when_asked(folder):
    dataset = read(folder, {"keypoints": POINTS}, keypoint_offset=0.0)
    assert dataset[0].truth.keypoints.tolist() == [[[3, 1, 2], [0, 0, 0], [4, 2, 1]]]


def test_what_is_not_labelled_lies_nowhere(folder):
    dataset = read(folder, {"keypoints": [3, 1, 2, 5, 4, 0, 4, 2, 1]}, {"category_id": 2}, {"keypoints": []})
    truth = dataset[0].truth
    assert truth.keypoints[0, 1].tolist() == [0, 0, 0]
    assert not truth.keypoints[1:].any()


def test_datasets_without_keypoints(folder, caplog):
    dataset = read(folder, {"keypoints": POINTS}, categories=[{"id": 1, "name": "person"}])
    assert keypoint_scheme(dataset) is dataset[0].truth.keypoints is None
    two = [{"id": k, "name": str(k), "keypoints": names} for k, names in ((1, ["a"]), (2, ["b"]))]
    with caplog.at_level(logging.WARNING):
        assert read(folder, {"keypoints": [1, 1, 1]}, categories=two).keypoints is None
    assert "2 different sets" in caplog.text


def test_images_with_few_keypoints_are_left_out_when_asked(folder):
    crowd = {"image_id": 2, "keypoints": [1, 1, 2, 2, 2, 2, 3, 3, 2], "iscrowd": 1}
    entries = [{"keypoints": POINTS}, {"keypoints": [2, 2, 2, 0, 0, 0, 0, 0, 0]}, crowd]
    assert [s.image_id for s in read(folder, *entries, min_keypoints=3)] == [1]
    assert len(read(folder, *entries, min_keypoints=4)) == 0
    with pytest.raises(DataError, match="expected keypoints, of which an image needs 1, got none"):
        read(folder, categories=[{"id": 1, "name": "person"}], min_keypoints=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keypoints": POINTS[:6]}, "annotation 1: keypoints must be x, y and visibility of 3 points, got 6 numbers"),
        ({"keypoints": "all"}, "annotation 1: keypoints: expected finite numbers"),
        ({"keypoints": [*POINTS[:7], float("nan"), 2]}, "annotation 1: keypoints: expected finite numbers"),
        ({"keypoints": [*POINTS[:8], 3]}, r"annotation 1: the visibility of a keypoint must be 0, 1 or 2"),
        ({"keypoints": POINTS, "num_keypoints": 3}, "annotation 1: num_keypoints must be .*, 2, got 3"),
    ],
)
def test_malformed_annotations_are_named(folder, changes, message):
    with pytest.raises(DataError, match=message):
        read(folder, changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keypoints": "nose"}, "category 1: keypoints must be a list of names, got 'nose'"),
        ({"keypoints": ["a", 2]}, "category 1: keypoints must be a list of names"),
        ({"keypoints": ["a", "a"]}, "category 1: keypoints: expected one or more different names"),
        ({"skeleton": [[1, 2, 3]]}, "category 1: skeleton must be a list of pairs"),
        ({"skeleton": [[1, 4]]}, "category 1: keypoints: a skeleton's points must be 0 to 2"),
        ({"skeleton": [[0, 1]]}, "category 1: keypoints: a skeleton's points must be 0 to 2"),
    ],
)
def test_malformed_categories_are_named(folder, changes, message):
    with pytest.raises(DataError, match=message):
        read(folder, categories=[{"id": 1, "name": "person", "keypoints": NAMES} | changes])


def test_left_becomes_right_in_the_mirror(folder):
    dataset = read(folder, {"keypoints": [3, 1, 2, 0, 0, 0, 4, 2, 1]})
    assert dataset.keypoints.mirrored() == [0, 2, 1]
    sample = dataset[0]
    mirrored = flipped(sample, dataset.keypoints)
    assert mirrored.truth.keypoints.tolist() == [[[2.5, 1.5, 2], [1.5, 2.5, 1], [0, 0, 0]]]
    np.testing.assert_array_equal(flipped(mirrored, dataset.keypoints).truth.keypoints, sample.truth.keypoints)
    assert flipped(sample).truth.keypoints[0, :, 0].tolist() == [2.5, 0, 1.5]
    (_, samples), *_ = islice(batches(dataset, batch_size=4, seed=0, flip_probability=1.0), 1)
    loaded = next(s for s in samples if s.image_id == 1)
    np.testing.assert_array_equal(loaded.truth.keypoints, mirrored.truth.keypoints)


SHAPES = ShapesConfig(classes=tuple(SILHOUETTES), keypoints=True, image_size=96, margin=10, max_count=6)


def test_keypoints_of_shapes_lie_at_their_tips():
    samples = list(Shapes(SHAPES, count=40, seed=2))
    seen = 0
    for sample in samples:
        for box, mask, points in zip(sample.truth.boxes, sample.truth.masks, sample.truth.keypoints, strict=True):
            assert set(points[:, 2].tolist()) <= {0, 1, 2}
            assert not points[points[:, 2] == 0].any()
            if (points[:, 2] == 2).all() and mask.sum() > 0.4 * (box[2:] - box[:2]).prod():
                top, left, right, bottom = points
                tips = [left[0], top[1], right[0], bottom[1]]
                np.testing.assert_allclose(tips, box, rtol=0, atol=1)  # the box is one of whole pixels
                seen += 1
    assert seen > 20
    plain = Shapes(ShapesConfig(image_size=96, margin=10, max_count=6, classes=tuple(SILHOUETTES)), count=40, seed=2)
    for sample, other in zip(samples, plain, strict=True):
        np.testing.assert_array_equal(sample.image, other.image)
        assert other.truth.keypoints is None
    assert keypoint_scheme(plain) is None


def test_a_covered_tip_is_hidden_and_one_outside_is_not_labelled():
    truths = [s.truth for s in Shapes(SHAPES, count=60, seed=3)]
    visibility = np.concatenate([t.keypoints[..., 2].ravel() for t in truths])
    assert {0.0, 1.0, 2.0} == set(visibility.tolist())
    labelled = np.concatenate([t.keypoints[t.keypoints[..., 2] > 0] for t in truths])
    assert ((labelled[:, :2] >= 0) & (labelled[:, :2] <= 96)).all()


def test_round_trip(tmp_path):
    files = write_shapes(SHAPES, tmp_path, train=8, val=0, seed=5)
    read_back = CocoDataset(tmp_path / "train", files["train"])
    assert keypoint_scheme(read_back) == KEYPOINTS
    for a, b in zip(read_back, Shapes(SHAPES, count=8, seed=5), strict=True):
        np.testing.assert_array_equal(a.truth.keypoints, b.truth.keypoints)


@pytest.mark.parametrize(
    ("names", "skeleton"), [((), ()), (("a", "a"), ()), (("a", "b"), ((0, 2),)), (("a",), ((-1, 0),))]
)
def test_schemes_that_make_no_sense(names, skeleton):
    with pytest.raises(DataError):
        KeypointScheme(names=names, skeleton=skeleton)
