import numpy as np
import pytest

from refnet.data import SILHOUETTES, Shapes, ShapesConfig, stream
from refnet.data.shapes import draw_shapes
from refnet.errors import ArgumentError, ConfigError
from refnet.rcnn.masks import tight_box

EVERY_KIND = tuple(SILHOUETTES)


def test_an_image_depends_on_its_number_alone():
    config = ShapesConfig(noise=0.1)
    whole = Shapes(config, count=6, seed=7)
    tail = Shapes(config, count=2, seed=7, first=4)
    backwards = {i: whole[i] for i in reversed(range(6))}
    for number in (4, 5):
        part = tail[number - 4]
        assert part.image_id == backwards[number].image_id == number
        np.testing.assert_array_equal(part.image, backwards[number].image)
        np.testing.assert_array_equal(part.truth.masks, backwards[number].truth.masks)


def test_first_image_is_the_one_it_always_was():
    # Pins the streams and the order of draws: a seed must give the same images in every version.
    sample = Shapes(count=1, seed=0)[0]
    assert sample.image[0, 0].tolist() == [66, 48, 40]
    assert sample.truth.classes.tolist() == [1, 2]
    assert sample.truth.boxes.tolist() == [[21.0, 57.0, 77.0, 113.0], [70.0, 14.0, 116.0, 60.0]]


def test_seeds_and_splits_are_disjoint():
    datasets = [Shapes(count=20, seed=s, split=split) for s, split in ((0, "train"), (0, "val"), (1, "train"))]
    images = {sample.image.tobytes() for dataset in datasets for sample in dataset}
    assert len(images) == 60


def test_boxes_are_tight_around_visible_pixels_and_masks_are_disjoint():
    config = ShapesConfig(classes=EVERY_KIND, max_count=8, nms_threshold=1.0)
    for sample in Shapes(config, count=40, seed=3):
        masks = sample.truth.masks
        assert masks.sum(axis=0).max() <= 1  # a pixel shows one shape at most
        for mask, box in zip(masks, sample.truth.boxes, strict=True):
            assert tight_box(mask) == tuple(box)
            colors = sample.image[mask]
            assert (colors == colors[0]).all()
            assert abs(colors[0].astype(int) - _ground(sample)).max() >= config.min_contrast
        assert (sample.image[~masks.any(axis=0)] == _ground(sample)).all()  # nothing is drawn that has no mask


def _ground(sample):
    return sample.image[~sample.truth.masks.any(axis=0)][0].astype(int)


def test_shapes_in_front_hide_those_behind():
    config = ShapesConfig(classes=("square",), min_count=2, max_count=2, nms_threshold=1.0, min_visible=1e-6)
    hidden = 0
    for number in range(30):
        truth = draw_shapes(config, stream(0, "test", number))[1]
        if len(truth) == 2:
            back, front = truth.masks.sum(axis=(1, 2))
            x1, y1, x2, y2 = truth.boxes[1]
            assert front == (x2 - x1) * (y2 - y1)  # the last one is whole
            hidden += back < np.prod(truth.boxes[0, 2:] - truth.boxes[0, :2])
    assert hidden > 0


def test_suppression_keeps_the_shape_in_front():
    config = ShapesConfig(image_size=64, margin=31, min_count=5, max_count=5, min_half_size=20, max_half_size=20)
    _, truth = draw_shapes(config, stream(0, "test"))
    assert len(truth) == 1


@pytest.mark.parametrize(("kind", "area"), [
    ("square", 4), ("circle", np.pi), ("triangle", 4 / np.sqrt(3)), ("diamond", 2), ("ring", 0.75 * np.pi),
    ("cross", 20 / 9), ("ellipse", np.pi / 2),
])  # fmt: skip
def test_area_of_every_kind(kind, area):
    config = ShapesConfig(
        image_size=512, margin=240, classes=(kind,), min_count=1, max_count=1, min_half_size=200, max_half_size=200
    )
    _, truth = draw_shapes(config, stream(1, "test"))
    assert truth.masks.sum() == pytest.approx(area * 200**2, rel=0.01)


def test_no_objects_and_any_number_of_channels():
    sample = Shapes(ShapesConfig(min_count=0, max_count=0, channels=5, image_size=64), count=1, seed=0)[0]
    assert sample.image.shape == (64, 64, 5)
    assert sample.truth.masks.shape == (0, 64, 64)


def test_noise_has_the_stated_deviation():
    config = ShapesConfig(min_count=0, max_count=0, noise=0.04)
    image = next(s.image for s in Shapes(config, count=99, seed=0) if 60 < s.image.mean(axis=(0, 1)).min() < 190)
    deviation = image[:, :, image.mean(axis=(0, 1)).argmin()].std()
    assert deviation == pytest.approx(0.04 * 255, rel=0.03)  # the deviation of 16384 values is off by 0.6 % itself


@pytest.mark.parametrize("field", [
    {"image_size": 0}, {"channels": 0}, {"min_count": 5}, {"min_count": -1}, {"min_half_size": 1},
    {"min_half_size": 33}, {"margin": 64}, {"nms_threshold": 1.5}, {"min_visible": 0.0}, {"min_contrast": 65},
    {"noise": -0.1}, {"noise": float("nan")}, {"classes": ()}, {"classes": ("square", "square")},
    {"classes": ("star",)},
])  # fmt: skip
def test_impossible_configurations_are_rejected(field):
    with pytest.raises(ConfigError, match=next(iter(field))):
        ShapesConfig(**field)


def test_impossible_seeds_splits_and_counts_are_rejected():
    for arguments in ({"seed": -1}, {"seed": 2**64}, {"seed": 0, "split": ""}, {"seed": 0, "split": "validation"}):
        with pytest.raises(ArgumentError):
            Shapes(count=1, **arguments)
    with pytest.raises(ConfigError):
        Shapes(count=-1, seed=0)
    with pytest.raises(IndexError):
        Shapes(count=1, seed=0)[1]


def test_streams_differ_in_each_of_their_parts():
    parts = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 1), (0, "a", 0, 1), (0, "a", 1, 1), (0, "a", 0, 0, 1)]
    assert len({stream(seed, *rest).bytes(16) for seed, *rest in parts}) == len(parts)
    assert stream(0, "a", 0).bytes(16) == stream(0, "a").bytes(16)  # a position left out is 0
    with pytest.raises(ArgumentError):
        stream(0, "a", 1, 2, 3, 4)
