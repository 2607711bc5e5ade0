"""Images and ground truth on their way into the network, boxes on their way back, and the records themselves."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet.errors import DataError, ShapeError
from refnet.rcnn import GroundTruth
from refnet.rcnn.boxes import from_yxyx
from refnet.rcnn.config import InputConfig
from refnet.rcnn.masks import minimize_masks, tight_boxes
from refnet.rcnn.matterport import ImageMeta, compose_image_meta, from_signed_classes, signed_classes
from refnet.rcnn.presets import matterport, torchvision
from refnet.rcnn.transform import (
    padded_size,
    prepare_images,
    prepare_truth,
    resize_scale,
    resized_size,
    restore_boxes,
    restore_keypoints,
    restore_pixels,
)
from tests.golden import matterport_rules
from tests.golden.matterport_rules import assert_stored, checks, load, shape_masks, unpack
from tests.rcnn.small import truth, vary

PLAIN = InputConfig(resize="none", pad_divisor=1, value_scale=1.0, mean=(0.0,), std=(1.0,))


def ramp(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.arange(height * width * channels, dtype=np.float64).reshape(height, width, channels) % 251


@pytest.mark.convention("input.resize", "input.max_size")
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((800, 1000), (800, 1000)),
        ((400, 500), (800, 1000)),
        ((1000, 500), (1333, 666)),  # the longer side is the limit, and fractions are cut off
        ((1600, 2400), (800, 1200)),
        ((1, 5000), (1, 1333)),  # never less than a pixel
    ],
)
def test_shortest_edge(size, expected):
    assert resized_size(size, torchvision().input) == expected


@pytest.mark.convention("input.resize", "input.max_size")
@pytest.mark.parametrize(
    ("size", "limits", "expected", "window"),
    [
        # computed by Matterport's resize_image(mode="square"); windows as (x1, y1, x2, y2)
        ((100, 128), (128, 128), (100, 128), [0, 14, 128, 114]),
        ((37, 53), (64, 128), (64, 92), [18, 32, 110, 96]),  # enlarged to the least size
        ((90, 40), (128, 128), (128, 57), [35, 0, 92, 128]),  # as far as the other side allows
        ((150, 201), (96, 128), (96, 128), [0, 16, 128, 112]),  # shrunk to the largest
        ((33, 77), (67, 99), (42, 99), [0, 28, 99, 70]),
        # and by hand: between the two sizes it stays as it is
        ((100, 120), (64, 128), (100, 120), [4, 14, 124, 114]),
    ],
)
def test_square(size, limits, expected, window):
    config = vary(matterport().input, {"min_size": limits[0], "max_size": limits[1]})
    assert resized_size(size, config) == expected
    batch = prepare_images([ramp(*size)], config)
    assert batch.size == (limits[1], limits[1])
    np.testing.assert_array_equal(batch.windows, [window])


@pytest.mark.convention("input.resize", "input.pad_divisor", "input.pad_position")
def test_no_resizing_and_padding_to_the_divisor():
    config = vary(PLAIN, {"pad_divisor": 32})
    assert padded_size([(30, 65), (33, 20)], config) == (64, 96)
    images = [ramp(30, 65), ramp(33, 20)]
    batch = prepare_images(images, config, np.float64)
    assert batch.pixels.shape == (2, 64, 96, 3)
    np.testing.assert_array_equal(batch.windows, [[0, 0, 65, 30], [0, 0, 20, 33]])
    np.testing.assert_array_equal(batch.scales, np.ones((2, 2)))
    assert list(batch.original_sizes) == [(30, 65), (33, 20)]
    for pixels, image in zip(batch.pixels, images, strict=True):
        height, width = image.shape[:2]
        np.testing.assert_array_equal(pixels[:height, :width], image)
        assert not pixels[height:].any()
        assert not pixels[:, width:].any()


@pytest.mark.convention("input.pad_position")
def test_centered_padding_leaves_the_odd_pixel_to_the_end():
    batch = prepare_images([ramp(29, 31)], vary(PLAIN, {"pad_divisor": 16, "pad_position": "center"}), np.float64)
    np.testing.assert_array_equal(batch.windows, [[0, 1, 31, 30]])
    np.testing.assert_array_equal(batch.pixels[0, 1:30, :31], ramp(29, 31))
    assert batch.pixels[0, :, 31:].sum() == batch.pixels[0, 30:].sum() == batch.pixels[0, :1].sum() == 0


@pytest.mark.convention("input.value_scale", "input.mean", "input.std", "input.pad_before_normalization")
def test_values_are_scaled_then_normalized_then_padded():
    image = np.zeros((1, 1, 3), np.uint8)
    image[0, 0] = 255, 51, 0
    config = vary(PLAIN, {"value_scale": 1 / 255, "mean": (0.5, 0.1, 0.25), "std": (0.25, 0.1, 0.5), "pad_divisor": 2})
    pixels = prepare_images([image], config, np.float64).pixels
    np.testing.assert_allclose(pixels[0, 0, 0], [2.0, 1.0, -0.5], rtol=1e-15)
    np.testing.assert_array_equal(pixels[0, 1], np.zeros((2, 3)))
    black = prepare_images([image], vary(config, {"pad_before_normalization": True}), np.float64).pixels
    np.testing.assert_allclose(black[0, 1, 1], [-2.0, -1.0, -0.5], rtol=1e-15)
    np.testing.assert_array_equal(black[0, 0, 0], pixels[0, 0, 0])


@pytest.mark.convention("input.mean", "input.channel_order")
def test_mean_and_deviation_belong_to_the_order_that_the_network_sees():
    image = np.full((1, 1, 3), [1.0, 2.0, 3.0])
    config = vary(PLAIN, {"mean": (10.0, 20.0, 30.0)})
    np.testing.assert_array_equal(prepare_images([image], config).pixels[0, 0, 0], [-9, -18, -27])
    bgr = vary(config, {"channel_order": "bgr"})
    np.testing.assert_array_equal(prepare_images([image], bgr).pixels[0, 0, 0], [-7, -18, -29])


@pytest.mark.parametrize("channels", [1, 4, 5])
def test_any_number_of_channels(channels):
    config = vary(PLAIN, {"channels": channels, "mean": (1.0,) * channels, "std": (2.0,)})
    batch = prepare_images([ramp(4, 6, channels)], config, np.float64)
    np.testing.assert_array_equal(batch.pixels[0], (ramp(4, 6, channels) - 1) / 2)


@pytest.mark.convention("input.resampling")
def test_resizing_interpolates_between_centres_of_pixels():
    image = np.array([0.0, 100.0])[None, :, None].repeat(2, axis=0)  # 2 x 2
    config = vary(PLAIN, {"resize": "shortest_edge", "min_size": 4, "max_size": 4, "channels": 1})
    pixels = prepare_images([image], config, np.float64).pixels[0, :, :, 0]
    np.testing.assert_allclose(pixels, np.tile([0.0, 25.0, 75.0, 100.0], (4, 1)), rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_precision(dtype):
    batch = prepare_images([ramp(5, 7).astype(np.uint8)], torchvision().input, dtype)
    assert batch.pixels.dtype == batch.windows.dtype == batch.scales.dtype == dtype


@pytest.mark.usefixtures("unannotated")
@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "at least one image"),
        ([ramp(4, 4, 1)], r"image 0 must be \(height, width, 3\)"),
        ([ramp(4, 4), ramp(4, 4)[..., 0]], "image 1 must be"),
        ([ramp(4, 4)[:0]], r"got \(0, 4, 3\)"),
    ],
)
def test_images_of_another_shape_are_refused(images, message):
    with pytest.raises(ShapeError, match=message):
        prepare_images(images, PLAIN)


def test_truth_moves_with_its_image():
    config = vary(matterport().input, {"min_size": 8, "max_size": 16, "mask_resampling": "nearest", "boxes": "scaled"})
    batch = prepare_images([ramp(4, 4), ramp(8, 16)], config, np.float64)  # the first is doubled, and lies at (4, 4)
    masks = np.zeros((1, 4, 4), bool)
    masks[0, 1, 2:] = True
    first, second = prepare_truth(
        [truth([[2, 1, 4, 2]], [3], masks=masks), truth([[0, 0, 16, 8]], [1], crowd=[True])], batch, config
    )
    np.testing.assert_array_equal(first.boxes, [[8, 6, 12, 8]])
    expected = np.zeros((1, 16, 16), bool)
    expected[0, 6:8, 8:12] = True
    np.testing.assert_array_equal(first.masks, expected)
    np.testing.assert_array_equal(second.boxes, [[0, 4, 16, 12]])
    assert second.masks is None
    assert second.crowd.all()
    assert (first.classes, second.classes) == ([3], [1])


@pytest.mark.convention("input.mask_resampling")
def test_masks_take_the_nearest_pixel_above():
    config = vary(PLAIN, {"resize": "shortest_edge", "min_size": 5, "max_size": 5, "channels": 1})
    batch = prepare_images([ramp(3, 3, 1)], config)
    masks = np.eye(3, dtype=bool)[None]
    moved = prepare_truth([truth([[0, 0, 3, 3]], [1], masks=masks)], batch, config)[0].masks[0]
    source = [0, 0, 1, 1, 2]  # floor(i 3 / 5)
    np.testing.assert_array_equal(moved, masks[0][np.ix_(source, source)])


def test_an_image_without_objects_keeps_none():
    batch = prepare_images([ramp(4, 6)], vary(PLAIN, {"pad_divisor": 8}))
    moved = prepare_truth([GroundTruth.empty(4, 6)], batch, PLAIN)[0]
    assert len(moved) == 0
    assert moved.masks.shape == (0, 8, 8)


def test_truth_that_doesnt_fit_its_images_is_refused():
    batch = prepare_images([ramp(4, 6)], PLAIN)
    with pytest.raises(ShapeError, match="objects of 1 images, got those of 2"):
        prepare_truth([GroundTruth.empty(4, 6)] * 2, batch, PLAIN)
    with pytest.raises(ShapeError, match=r"size of their image, \(4, 6\), got \(6, 4\)"):
        prepare_truth([GroundTruth.empty(6, 4)], batch, PLAIN)


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.sampled_from(["none", "shortest_edge", "square", "pad64", "crop"]),
    st.sampled_from(["end", "center"]),
)
def test_boxes_come_back_where_they_were(height, width, resize, position):
    config = vary(
        PLAIN,
        {"resize": resize, "pad_position": position, "min_size": 16, "max_size": 32, "pad_divisor": 8, "channels": 1},
    )
    batch = prepare_images([ramp(height, width, 1)], config, np.float64)
    box = np.array([[0.0, 0.0, width, height], [0.25 * width, 0.5 * height, 0.75 * width, height]])
    moved = prepare_truth([truth(box, [1, 2])], batch, config)[0].boxes
    # the whole image fills its window; scales are float32
    np.testing.assert_allclose(moved[0], batch.windows[0], rtol=1e-6)
    np.testing.assert_allclose(restore_boxes(moved, batch, 0), box, rtol=0, atol=1e-6 * max(height, width))


def test_keypoints_move_with_the_image_and_come_back():
    config = vary(
        PLAIN,
        {"resize": "square", "pad_position": "center", "min_size": 16, "max_size": 32, "pad_divisor": 8, "channels": 1},
    )
    batch = prepare_images([ramp(40, 20, 1)], config, np.float64)
    box = np.array([[0.0, 0, 20, 40], [5, 10, 15, 20]])
    points = np.concatenate([box.reshape(2, 2, 2), np.array([[[0], [1]], [[2], [1]]])], axis=2)
    moved = prepare_truth([truth(box, [1, 2], keypoints=points)], batch, config)[0]
    np.testing.assert_array_equal(moved.keypoints[..., :2], moved.boxes.reshape(2, 2, 2))
    np.testing.assert_array_equal(moved.keypoints[..., 2], points[..., 2])
    assert (moved.keypoints[0, 0, :2] == (8, 0)).all()  # 40 x 20 becomes 32 x 16 in the middle of 32 x 32
    np.testing.assert_allclose(restore_keypoints(moved.keypoints, batch, 0), points, rtol=0, atol=1e-5)


@pytest.mark.convention("box_extent")
def test_restored_boxes_of_normalized_extent():
    """The outermost pixels' centres lie on one another: 3 steps between 4 pixels became 12 between 13."""
    config = vary(PLAIN, {"resize": "square", "min_size": 13, "max_size": 16, "pad_position": "center"})
    batch = prepare_images([ramp(4, 4)], config, np.float64)
    np.testing.assert_array_equal(batch.windows, [[1, 1, 14, 14]])
    boxes = np.array([[1.0, 1, 14, 14], [5, 1, 10, 14]])
    restored = restore_boxes(boxes, batch, 0, extent="normalized")
    np.testing.assert_array_equal(restored, [[0, 0, 4, 4], [1, 0, 3, 4]])
    np.testing.assert_allclose(restore_boxes(boxes, batch, 0)[1], [16 / 13, 0, 36 / 13, 4], rtol=1e-6)


def test_an_image_of_one_pixel_has_no_normalized_extent():
    batch = prepare_images([ramp(1, 4)], PLAIN, np.float64)
    restored = restore_boxes(np.array([[0.0, 0, 4, 1]]), batch, 0, extent="normalized")
    np.testing.assert_array_equal(restored, [[0, 0, 4, 1]])


@pytest.mark.convention("input.resize")
@pytest.mark.parametrize(
    ("resize", "changes", "expected"),
    [
        ("pad64", {}, (8, 14)),
        ("pad64", {"min_scale": 3.0}, (15, 27)),
        ("crop", {"min_scale": 1.5}, (8, 14)),
        ("square", {"min_scale": 3.0}, (9, 16)),  # no larger than max_size
        ("shortest_edge", {"min_scale": 3.0}, (8, 14)),
    ],
)
def test_least_scale(resize, changes, expected):
    config = vary(PLAIN, {"resize": resize, "min_size": 8, "max_size": 16, **changes})
    assert resized_size((5, 9), config) == expected
    if resize in ("pad64", "crop"):
        assert resized_size((50, 90), config)[0] >= 50  # these never shrink


class FromPython(np.random.Generator):
    """Draws whole numbers as Python's random does, which Matterport's crop uses."""

    def __init__(self, seed):
        super().__init__(np.random.PCG64(0))
        self.random = random.Random(seed)

    def integers(self, low, high):
        return self.random.randint(low, high - 1)


class TestCrop:
    config = vary(PLAIN, {"resize": "crop", "min_size": 4, "max_size": 8, "channels": 1})
    image = ramp(5, 6, 1)

    @pytest.mark.convention("input.resize")
    def test_in_training_a_square_is_cut_out(self):
        offsets = set()
        for seed in range(40):
            batch = prepare_images([self.image], self.config, np.float64, rng=np.random.default_rng(seed))
            left, top, right, bottom = batch.uncropped[0].astype(int)
            assert (right - left, bottom - top) == (6, 5)
            np.testing.assert_array_equal(batch.windows, [[0, 0, 4, 4]])
            np.testing.assert_array_equal(batch.pixels[0], self.image[-top : 4 - top, -left : 4 - left])
            offsets.add((-top, -left))
        assert offsets == {(y, x) for y in range(2) for x in range(3)}

    def test_truth_is_cut_likewise(self):
        masks = np.zeros((3, 5, 6), bool)
        masks[0, :2, :3], masks[1, 4:, 5:], masks[2, 2:, 1:] = True, True, True
        entry = truth([[0, 0, 3, 2], [5, 4, 6, 5], [1, 2, 6, 5]], [1, 2, 3], masks=masks)
        batch = prepare_images([self.image], self.config, np.float64, rng=np.random.default_rng(11))
        left, top = batch.uncropped[0, :2]
        assert (left, top) == (0, 0)
        for boxes in ("scaled", "masks"):
            moved = prepare_truth([entry], batch, vary(self.config, {"boxes": boxes}))[0]
            np.testing.assert_array_equal(moved.boxes, [[0, 0, 3, 2], [1, 2, 4, 4]])
            assert moved.classes.tolist() == [1, 3]
            np.testing.assert_array_equal(moved.masks, masks[[0, 2], :4, :4])
        bare = truth(entry.boxes, entry.classes)
        np.testing.assert_array_equal(prepare_truth([bare], batch, self.config)[0].boxes, moved.boxes)

    def test_without_a_generator_nothing_is_cut_off(self):
        batch = prepare_images([self.image], self.config, np.float64)
        np.testing.assert_array_equal(batch.pixels[0], self.image)
        np.testing.assert_array_equal(batch.uncropped, batch.windows)


@pytest.mark.convention("input.boxes")
def test_objects_whose_masks_vanish_are_dropped_where_boxes_are_drawn_around_masks():
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 1, 1], masks[1, 2:7, 3:5] = True, True  # row 1 isn't sampled: 8 rows become 4
    config = vary(PLAIN, {"resize": "square", "min_size": 4, "max_size": 4, "boxes": "masks"})
    batch = prepare_images([ramp(8, 8)], config, np.float64)
    entry = truth([[1, 1, 2, 2], [3, 2, 5, 7]], [1, 2], masks=masks)
    moved = prepare_truth([entry], batch, config)[0]
    assert moved.classes.tolist() == [2]
    np.testing.assert_array_equal(moved.boxes, [[2, 1, 3, 4]])
    kept = prepare_truth([entry], batch, vary(config, {"boxes": "scaled"}))[0]
    np.testing.assert_array_equal(kept.boxes, [[0.5, 0.5, 1, 1], [1.5, 1, 2.5, 3.5]])
    assert kept.masks.any(axis=(1, 2)).tolist() == [False, True]


@pytest.mark.convention("input.resampling")
def test_bytes_are_resampled_without_fractions_before_normalization():
    image = np.array([[[100], [201]]], np.uint8)
    config = vary(
        PLAIN,
        {"resize": "pad64", "min_size": 2, "max_size": 2, "channels": 1, "resampling": "bytes", "mean": (10.0,)},
    )
    # 3/4 (the row beyond is 0) of 3/4 100, of 3/4 100 + 1/4 201, of 1/4 100 + 3/4 201, of 3/4 201; none below 100
    np.testing.assert_array_equal(prepare_images([image], config).pixels[0, :, :, 0], [[90, 90, 121, 103]] * 2)
    fractions = prepare_images([image.astype(np.float64)], config, np.float64).pixels[0, 0, :, 0]
    assert fractions[2] == 0.75 * (0.25 * 100 + 0.75 * 201) - 10 == 121.8125


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_pixels_to_look_at(order):
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    config = vary(torchvision().input, {"resize": "none", "pad_divisor": 1, "channel_order": order})
    np.testing.assert_array_equal(restore_pixels(prepare_images([image], config).pixels[0], config), image)


def meta_of(source, batch, index, config, *, image_id, active) -> ImageMeta:
    """What Matterport would say of image `index` of a batch, which was `source`."""
    return ImageMeta(
        image_id=image_id,
        original_shape=source.shape,
        shape=batch.pixels.shape[1:],
        window=tuple(int(v) for v in batch.windows[index]),
        scale=resize_scale(source.shape[:2], config),
        active_classes=np.array(active),
    )


class TestMatterport:
    golden = load("resize")

    def configure(self, name):
        _, _, least, most, scale = self.golden[f"{name}.in"]
        return vary(
            matterport().input,
            {
                "resize": str(self.golden[f"{name}.mode"]),
                "min_size": max(int(least), 1),
                "max_size": int(most),
                "min_scale": max(float(scale), 0.0),
                "pad_divisor": 64 if name.startswith("p64") else 1,
            },
        )

    @pytest.mark.convention(
        "input.resize",
        "input.resampling",
        "input.pad_divisor",
        "input.pad_position",
        "input.pad_before_normalization",
        "input.value_scale",
        "input.mean",
        "input.std",
    )
    @pytest.mark.parametrize("name", golden["names"].tolist())
    def test_images(self, name):
        """Every byte, and every float64 after normalisation."""
        height, width = (int(v) for v in self.golden[f"{name}.in"][:2])
        source, config = matterport_rules.image(name, height, width), self.configure(name)
        np.testing.assert_array_equal(checks(source), self.golden[f"{name}.in_chk"])
        batch = prepare_images([source], config, np.float64, rng=FromPython(7))
        assert_stored(self.golden, f"{name}.mold", batch.pixels[0], atol=2.0**-17)  # float32, below 256
        np.testing.assert_allclose(checks(batch.pixels), self.golden[f"{name}.mold.chk"], rtol=1e-13, atol=0)
        np.testing.assert_array_equal(from_yxyx(batch.windows[0]), self.golden[f"{name}.window"])
        restored = restore_pixels(batch.pixels[0], config)
        assert_stored(self.golden, f"{name}.out", restored)
        np.testing.assert_array_equal(checks(restored), self.golden[f"{name}.unmold_chk"])
        crop = self.golden[f"{name}.crop"]
        if crop[0] >= 0:
            np.testing.assert_array_equal(-batch.wholes[0, 1::-1], crop[:2])
        meta = meta_of(source, batch, 0, config, image_id=3, active=[True, False, True, True])
        np.testing.assert_array_equal(compose_image_meta(meta), self.golden[f"{name}.meta"])

    @pytest.mark.convention("input.mask_resampling")
    @pytest.mark.parametrize("name", golden["names"].tolist())
    def test_masks(self, name):
        h, w = (int(v) for v in self.golden[f"{name}.in"][:2])
        specs = [
            [ord("e"), h // 2, w // 3, h // 3, w // 5],
            [ord("r"), h // 3, 2 * w // 3, h // 5, w // 4],
            [ord("t"), h // 2, w // 2, h // 2 - 1, w // 2 - 1],
        ]
        masks, config = shape_masks(np.array(specs), (h, w)), self.configure(name)
        batch = prepare_images([matterport_rules.image(name, h, w)], config, np.float64, rng=FromPython(7))
        moved = prepare_truth([truth(tight_boxes(masks), [1, 2, 3], masks=masks)], batch, config)[0]
        stored = unpack(self.golden[f"{name}.mask_bits"], tuple(self.golden[f"{name}.mask_shape"]))
        np.testing.assert_array_equal(moved.masks, stored.transpose(2, 0, 1))

    def test_a_batch(self):
        images = [
            matterport_rules.image(f"mold{index}", *size) for index, size in enumerate([(64, 64), (50, 80), (90, 31)])
        ]
        config = vary(matterport().input, {"min_size": 64, "max_size": 128})
        batch = prepare_images(images, config, np.float64)
        assert_stored(self.golden, "mold_inputs.images", batch.pixels, atol=2.0**-17)
        np.testing.assert_array_equal(from_yxyx(batch.windows), self.golden["mold_inputs.windows"])
        for index, source in enumerate(images):
            meta = meta_of(source, batch, index, config, image_id=0, active=[False] * 4)
            np.testing.assert_array_equal(compose_image_meta(meta), self.golden["mold_inputs.metas"][index])


class TestMatterportTruth:
    golden = load("load_gt")

    @pytest.mark.convention("input.boxes")
    @pytest.mark.parametrize("name", ["sq", "sq_up", "pad64", "shrink"])
    def test_load_image_gt(self, name):
        golden = {key.removeprefix(f"{name}."): self.golden[key] for key in self.golden if key.startswith(f"{name}.")}
        height, width = (int(v) for v in golden["0.hw"])
        masks, ids = shape_masks(self.golden["specs"], (height, width)), self.golden["ids"]
        exists = masks.any(axis=(1, 2))
        masks, ids = masks[exists], ids[exists]
        classes, crowd = from_signed_classes(ids)
        config = vary(
            matterport().input,
            {"resize": "pad64" if name == "pad64" else "square", "min_size": 64, "max_size": 128},
        )
        source = matterport_rules.image("toy", height, width)
        batch = prepare_images([source], config, np.float64)
        entry = prepare_truth([truth(tight_boxes(masks), classes, masks=masks, crowd=crowd)], batch, config)[0]
        np.testing.assert_array_equal(checks(restore_pixels(batch.pixels[0], config)), golden["0.image_chk"])
        meta = meta_of(source, batch, 0, config, image_id=0, active=[True, True, True, False])
        np.testing.assert_array_equal(compose_image_meta(meta), golden["0.meta"])
        np.testing.assert_array_equal(signed_classes(entry.classes, entry.crowd), golden["0.class_ids"])
        np.testing.assert_array_equal(from_yxyx(entry.boxes), golden["0.bbox"])
        stored = unpack(golden["0.mask_bits"], tuple(golden["0.mask_shape"]))
        np.testing.assert_array_equal(entry.masks, stored.transpose(2, 0, 1))
        small = minimize_masks(entry.masks, entry.boxes, (56, 56))
        stored = unpack(golden["1.mask_bits"], tuple(golden["1.mask_shape"]))
        np.testing.assert_array_equal(small, stored.transpose(2, 0, 1))


UNLABELLED = np.zeros((2, 1, 3))


class TestGroundTruth:
    def test_selection(self):
        masks = np.arange(3)[:, None, None] == np.zeros((1, 2, 2))
        entry = truth(
            [[0, 0, 1, 1], [1, 1, 2, 2], [0, 0, 2, 2]], [1, 2, 3], masks=masks, crowd=[True, False, False],
            keypoints=np.arange(18.0).reshape(3, 2, 3),
        )  # fmt: skip
        rest = entry.select(~entry.crowd)
        assert rest.classes.tolist() == [2, 3]
        assert rest.masks.shape == (2, 2, 2)
        np.testing.assert_array_equal(rest.keypoints, np.arange(6.0, 18).reshape(2, 2, 3))
        assert len(entry.select(np.array([2, 0]))) == 2

    @pytest.mark.usefixtures("unannotated")
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"classes": np.array([1])}, "classes must have one entry per box, expected 2, got 1"),
            ({"masks": np.zeros((3, 4, 4), bool)}, "masks must have one entry per box, expected 2, got 3"),
            ({"keypoints": np.zeros((1, 5, 3))}, "keypoints must have one entry per box, expected 2, got 1"),
            (
                {"keypoints": UNLABELLED * [np.nan, 1, 1] + [0, 0, 2]},
                r"keypoint 0 of object 0 .* got \[nan, 0.0, 2.0\]",
            ),
            ({"crowd": np.zeros(0, bool)}, "crowd must have one entry per box, expected 2, got 0"),
            ({"classes": np.array([2, 0])}, "classes start at 1, got 0"),
            ({"boxes": np.array([[0, 0, 1, 1], [3.0, 0, 3, 1]])}, "box 1 must have a positive width and height"),
            ({"boxes": np.array([[0, 5.0, 1, 1], [3, 0, 4, 1]])}, r"box 0 .*got \[0.0, 5.0, 1.0, 1.0\]"),
            ({"boxes": np.array([[0, 0, 1, np.inf], [3, 0, 4, 1]])}, "box 0"),
            ({"boxes": np.array([[0, 0, 1, 1], [np.nan, 0, 4, 1]])}, "box 1"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, changes, message):
        fields = {
            "boxes": np.array([[0.0, 0, 1, 1], [1, 1, 2, 2]]),
            "classes": np.array([1, 2]),
            "masks": None,
            "crowd": np.zeros(2, bool),
        }
        GroundTruth(**fields)
        GroundTruth(**fields, keypoints=UNLABELLED + np.array([np.nan, np.inf, 0]))
        with pytest.raises(DataError, match=message):
            GroundTruth(**{**fields, **changes})
