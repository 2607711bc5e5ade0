import json
import logging

import numpy as np
import pytest
from PIL import Image

from refnet.data import CocoDataset, Shapes, ShapesConfig, batches, write_coco, write_shapes
from refnet.data.dataset import Sample
from refnet.data.shapes import SILHOUETTES
from refnet.errors import ConfigError, DataError
from refnet.rcnn.structures import GroundTruth

SQUARE = [1.0, 1.0, 3.0, 1.0, 3.0, 3.0, 1.0, 3.0]


@pytest.fixture
def folder(tmp_path):
    """A folder with the image a.png, 6 x 5 pixels, and a function that reads it with the given annotations."""
    Image.fromarray(np.arange(90, dtype=np.uint8).reshape(5, 6, 3)).save(tmp_path / "a.png")
    return tmp_path


def content(*annotations, **changes):
    entries = [
        {"id": i, "image_id": 7, "category_id": 3, "bbox": [1, 1, 2, 2], "segmentation": [SQUARE]} | a
        for i, a in enumerate(annotations, start=1)
    ]
    return {
        "images": [{"id": 7, "file_name": "a.png", "height": 5, "width": 6}],
        "annotations": entries,
        "categories": [{"id": 90, "name": "ninety"}, {"id": 3, "name": "three"}],
    } | changes


def read(folder, value, **options):
    path = folder / "annotations.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return CocoDataset(folder, path, **options)


def test_classes_are_numbered_by_category_id(folder):
    dataset = read(folder, content({"category_id": 90}, {"category_id": 3}))
    assert dataset.category_ids == (3, 90)
    assert dataset.class_names == ("three", "ninety")
    assert dataset[0].truth.classes.tolist() == [2, 1]


def test_polygons_and_both_forms_of_run_lengths(folder):
    dataset = read(folder, content(
        {"segmentation": [SQUARE, [4, 0, 6, 0, 6, 1, 4, 1]]},
        {"segmentation": {"size": [5, 6], "counts": [6, 2, 3, 2, 17]}, "iscrowd": 1},
        {"segmentation": {"size": [5, 6], "counts": "6230>"}},
    ))  # fmt: skip
    truth = dataset[0].truth
    square = np.zeros((5, 6), bool)
    square[1:3, 1:3] = True
    np.testing.assert_array_equal(truth.masks[1], square)
    both = square.copy()
    both[0, 4:] = True
    np.testing.assert_array_equal(truth.masks[0], both)
    assert truth.crowd.tolist() == [False, True, False]


def test_box_is_the_annotation_s_clipped_to_the_image(folder):
    dataset = read(folder, content({"bbox": [-1, 2.5, 100, 1]}, {"bbox": [0.25, 0, 1, 1.5]}))
    assert dataset[0].truth.boxes.tolist() == [[0, 2.5, 6, 3.5], [0.25, 0, 1.25, 1.5]]


def test_boxes_without_area_are_dropped_and_reported(folder, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = read(folder, content({"bbox": [1, 1, 0, 2]}, {}, {"bbox": [6, 0, 5, 5]}, {"bbox": [3, 3, -1, 2]}))
    assert dataset.dropped == (1, 3, 4)
    assert len(dataset[0].truth) == 1
    assert "3 annotations left out" in caplog.text


def test_images_without_objects_come_in_the_order_of_ids(folder):
    Image.new("L", (3, 2)).save(folder / "b.png")
    images = [
        {"id": 9, "file_name": "a.png", "height": 5, "width": 6},
        {"id": 4, "file_name": "b.png", "height": 2, "width": 3},
    ]
    dataset = read(folder, content(images=images))
    assert [s.image_id for s in dataset] == [4, 9]
    assert dataset[0].truth.masks.shape == (0, 2, 3)
    assert dataset[0].image.shape == (2, 3, 3)


def test_boxes_alone(folder, caplog):
    dataset = read(folder, content({"segmentation": None}, {"segmentation": []}))
    assert not dataset.has_masks
    assert dataset[0].truth.masks is None
    assert not caplog.text
    with caplog.at_level(logging.WARNING):
        dataset = read(folder, content({"segmentation": None}, {}))
    assert dataset[0].truth.masks is None
    assert "1 of 2 annotations have no segmentation" in caplog.text


MALFORMED = {
    "line 2, column 8": '{"images":\n [1, 2,,]}',
    "can't be read as JSON": "[" * 100_000,
    "expected a JSON object, got list": "[]",
    "expected a list under the key 'categories'": content(categories=None),
    r"images\[0\]: expected an object": content(images=[3]),
    r"images\[0\]: the key 'width' is missing": content(images=[{"id": 7, "file_name": "a.png", "height": 5}]),
    r"annotations\[0\]: the key 'id' is missing": content(annotations=[{}]),
    r"annotations\[1\]: the id 1 occurs twice": content({}, {"id": 1}),
    r"categories\[1\]: the id 3 occurs twice": content(categories=[{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]),
    "id must be of type int": content({"id": "1"}),
    "image_id must be of type int": content({"image_id": True}),
    r"id must be 0 to 2\*\*63 - 1": content({"id": -1}),
    "annotation 1: there is no image with the image_id 8": content({"image_id": 8}),
    "annotation 1: there is no category with the category_id 4": content({"category_id": 4}),
    "iscrowd must be 0 or 1": content({"iscrowd": 2}),
    "bbox: expected finite numbers": content({"bbox": [0, 0, 1, float("nan")]}),
    r"bbox must be \[x, y, width, height\]": content({"bbox": [0, 0, 1]}),
    "annotation 1: segmentation: polygon 0": content({"segmentation": [[1, 2, 3, 4]]}),
    r"expected the image's size \[5, 6\]": content({"segmentation": {"size": [6, 5], "counts": [30]}}),
    "expected a file name inside": content(images=[{"id": 7, "file_name": "b/../../a.png", "height": 5, "width": 6}]),
    "expected a height and width of at least 1": content(
        images=[{"id": 7, "file_name": "a.png", "height": 0, "width": 6}]
    ),
    "found none": content(images=[{"id": 7, "file_name": "c.png", "height": 5, "width": 6}]),
}


@pytest.mark.parametrize("message", MALFORMED)
def test_malformed_files_are_rejected(folder, message):
    with pytest.raises(DataError, match=message):
        read(folder, MALFORMED[message])


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "C:\\a.png", "b\\..\\..\\a.png", "", "a\0.png"])
def test_file_names_that_leave_the_folder_are_rejected(folder, name):
    with pytest.raises(DataError, match="inside of the folder"):
        read(folder, content(images=[{"id": 7, "file_name": name, "height": 5, "width": 6}]))


def test_missing_files_and_folders(folder):
    with pytest.raises(DataError, match="found none"):
        CocoDataset(folder, folder / "absent.json")
    with pytest.raises(DataError, match="expected a folder"):
        CocoDataset(folder / "absent", folder / "absent.json")
    with pytest.raises(DataError, match="can't be read"):
        CocoDataset(folder, folder)
    with pytest.raises(ConfigError, match="channels"):
        read(folder, content(), channels=2)


def test_images_that_cannot_be_decoded(folder):
    dataset = read(folder, content())
    data = (folder / "a.png").read_bytes()
    for damaged in (b"", b"no image", data[: len(data) // 2]):
        (folder / "a.png").write_bytes(damaged)
        with pytest.raises(DataError, match=r"a\.png: can't be decoded"):
            dataset[0]
    Image.new("RGB", (5, 5)).save(folder / "a.png")
    with pytest.raises(DataError, match="expected 6x5 pixels as the annotations say, got 5x5"):
        dataset[0]


def _image(mode):
    """A picture of 6 x 5 pixels in each mode, its first pixel 200 in every channel."""
    if mode == "I;16":
        return Image.fromarray(np.full((5, 6), 200 * 256 + 7, np.uint16))
    if mode == "P":
        return Image.new("RGB", (6, 5), (200, 200, 200)).convert("P", palette=Image.Palette.ADAPTIVE)
    if mode == "1":
        return Image.new("1", (6, 5), 1)
    if mode == "CMYK":
        return Image.new("CMYK", (6, 5), (55, 55, 55, 0))
    return Image.new(mode, (6, 5), (200,) * len(Image.new(mode, (1, 1)).getbands()))


@pytest.mark.parametrize(("mode", "stored"), [
    ("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4), ("P", 3), ("I;16", 1), ("CMYK", 4), ("1", 1),
])  # fmt: skip
def test_every_kind_of_file_gives_bytes_in_the_channels_asked_for(folder, mode, stored):
    name = "b.tiff" if mode == "CMYK" else "b.png"
    _image(mode).save(folder / name)
    images = [{"id": 7, "file_name": name, "height": 5, "width": 6}]
    for channels, count in ((3, 3), (1, 1), (None, stored)):
        image = read(folder, content(images=images), channels=channels)[0].image
        assert image.shape == (5, 6, count)
        if mode == "1":
            assert (image == 255).all()
        elif not (mode == "CMYK" and channels is None):
            assert abs(image.astype(int) - 200).max() <= 1


def test_palette_with_transparency(folder):
    image = Image.new("RGB", (6, 5), (200, 0, 0)).convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(folder / "a.png", transparency=bytes([0, 255]))
    assert read(folder, content())[0].image[0, 0].tolist() == [200, 0, 0]
    assert read(folder, content(), channels=None)[0].image.shape == (5, 6, 4)


def test_exif_orientation_is_applied_only_where_the_stated_size_asks_for_it(folder):
    pixels = np.zeros((5, 6, 3), np.uint8)
    pixels[0, 0] = 255  # the upper left corner as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise
    Image.fromarray(pixels).save(folder / "a.png", exif=exif)
    as_stored = read(folder, content())[0].image
    assert as_stored.shape == (5, 6, 3)
    assert as_stored[0, 0, 0] == 255
    turned = read(folder, content(images=[{"id": 7, "file_name": "a.png", "height": 6, "width": 5}]))[0].image
    assert turned.shape == (6, 5, 3)
    assert turned[0, 4, 0] == 255  # the upper right corner


def test_round_trip_of_shapes(tmp_path):
    config = ShapesConfig(classes=tuple(SILHOUETTES), max_count=8, image_size=96, noise=0.1)
    files = write_shapes(config, tmp_path, train=12, val=3, seed=5)
    read_back = CocoDataset(tmp_path / "train", files["train"])
    made = Shapes(config, count=12, seed=5)
    assert len(read_back) == 12
    assert len(CocoDataset(tmp_path / "val", files["val"])) == 3
    assert read_back.class_names == made.class_names
    for a, b in zip(read_back, made, strict=True):
        assert a.file_name == b.file_name
        for field in ("boxes", "classes", "masks", "crowd"):
            np.testing.assert_array_equal(getattr(a.truth, field), getattr(b.truth, field))
        np.testing.assert_array_equal(a.image, b.image)
    kinds = {type(a["segmentation"]) for a in json.loads(files["train"].read_bytes())["annotations"]}
    assert kinds == {list, dict}  # polygons, and run lengths where there are holes

    again = write_shapes(config, tmp_path / "again", train=12, val=3, seed=5)
    for split, path in files.items():
        assert again[split].read_bytes() == path.read_bytes()
    assert (tmp_path / "again/train/000003.png").read_bytes() == (tmp_path / "train/000003.png").read_bytes()


class Listed:
    """A dataset of given samples."""

    class_names, category_ids = ("thing",), (12,)

    def __init__(self, *samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def test_round_trip_of_crowds_boxes_and_gray(tmp_path):
    truth = GroundTruth(
        boxes=np.array([[0.5, 1, 3.25, 4]], np.float32),
        classes=np.array([1]),
        masks=np.ones((1, 5, 6), bool),
        crowd=np.array([True]),
    )
    image = np.arange(30, dtype=np.uint8).reshape(5, 6, 1)
    bare = GroundTruth(boxes=truth.boxes, classes=truth.classes, masks=None, crowd=truth.crowd)
    for objects in (truth, bare):
        write_coco(
            Listed(Sample(image=image, truth=objects, image_id=3, file_name="sub/x.jpg")), tmp_path, tmp_path / "a.json"
        )
        sample = CocoDataset(tmp_path, tmp_path / "a.json", channels=None)[0]
        assert sample.file_name == "sub/x.png"
        np.testing.assert_array_equal(sample.image, image)
        np.testing.assert_array_equal(sample.truth.boxes, truth.boxes)
        assert sample.truth.crowd.tolist() == [True]
        assert (sample.truth.masks is None) == (objects.masks is None)


def test_what_cannot_be_written(tmp_path):
    def sample(channels, name):
        image = np.zeros((5, 6, channels), np.uint8)
        return Sample(image=image, truth=GroundTruth.empty(5, 6), image_id=0, file_name=name)

    with pytest.raises(DataError, match="1 to 4 channels, got 5"):
        write_coco(Listed(sample(5, "a.png")), tmp_path, tmp_path / "a.json")
    with pytest.raises(DataError, match=r"two images would be named a\.png"):
        write_coco(Listed(sample(3, "a.png"), sample(3, "a.jpg")), tmp_path, tmp_path / "a.json")


def test_samples_must_agree_with_their_image():
    image = np.zeros((5, 6, 3), np.uint8)
    with pytest.raises(DataError, match="masks must have the image's size"):
        Sample(image=image, truth=GroundTruth.empty(6, 5), image_id=0, file_name="a")
    beyond = GroundTruth(
        boxes=np.array([[0, 0, 6.5, 5]], np.float32), classes=np.array([1]), masks=None, crowd=np.array([False])
    )
    with pytest.raises(DataError, match="beyond the image of 6x5"):
        Sample(image=image, truth=beyond, image_id=0, file_name="a")


def test_a_missing_image_shows_in_the_batch_that_needs_it(folder):
    dataset = read(folder, content())
    (folder / "a.png").unlink()
    with pytest.raises(DataError, match="can't be decoded"):
        next(batches(dataset, batch_size=1, seed=0))
