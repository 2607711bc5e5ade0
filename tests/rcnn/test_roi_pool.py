"""ROI pooling over the pyramid: which level, which order, which sampling; Matterport's PyramidROIAlign."""

import numpy as np
import pytest

from refnet.autograd import Tensor
from refnet.ops import crop_and_resize, roi_align, roi_pool
from refnet.rcnn.boxes import from_normalized, from_yxyx, to_normalized
from refnet.rcnn.config import RoiPoolConfig
from refnet.rcnn.presets import matterport
from refnet.rcnn.roi_pool import assign_levels, pool_rois
from refnet.rcnn.structures import STRIDES
from tests.golden.matterport_rules import load, normal
from tests.rcnn.small import vary

METHODS = {
    "roi_align": RoiPoolConfig(size=3),
    "roi_pool": RoiPoolConfig(size=3, method="roi_pool"),
    "crop_and_resize": RoiPoolConfig(size=3, method="crop_and_resize", box_units="normalized"),
}


def squares(*sides: float) -> np.ndarray:
    return np.array([[8, 8, 8 + side, 8 + side] for side in sides], np.float64).reshape(-1, 4)


def levels_of(boxes, size=(1024, 1024), **fields) -> list[int]:
    return assign_levels(boxes, size, RoiPoolConfig(**fields)).tolist()


def pyramid(size: int, channels: int = 2, images: int = 2, requires_grad: bool = False) -> list[Tensor]:
    """Random features of P2 to P6 of square images."""
    rng = np.random.default_rng(0)
    shapes = [(images, size // stride, size // stride, channels) for stride in STRIDES]
    return [Tensor(rng.standard_normal(shape), requires_grad=requires_grad) for shape in shapes]


class TestLevels:
    def test_a_side_of_224_goes_to_level_4(self):
        assert levels_of(squares(223, 224, 225)) == [3, 4, 4]
        assert levels_of(np.array([[0.0, 0, 112, 448], [0, 0, 448, 111]])) == [4, 3]  # the area counts

    def test_every_level_covers_an_octave(self):
        assert levels_of(squares(56, 111, 112, 223, 224, 447, 448)) == [2, 2, 3, 3, 4, 4, 5]

    def test_beyond_the_pyramid(self):
        assert levels_of(squares(1, 1e-9, 0, 900, 5000)) == [2, 2, 2, 5, 5]

    @pytest.mark.convention("box_pool.level_rounding")
    def test_rounding_to_the_nearest(self):
        # the boundaries lie at 224 / sqrt(2) = 158.4, and twice that
        assert levels_of(squares(158, 159, 316, 317), level_rounding="round") == [3, 4, 4, 5]
        assert levels_of(squares(158, 159, 316, 317), level_rounding="floor") == [3, 3, 4, 4]

    @pytest.mark.convention("box_pool.level_epsilon")
    def test_epsilon_forgives_the_last_bits(self):
        below = squares(224 * (1 - 1e-7))
        assert levels_of(below, level_epsilon=0.0) == [3]
        assert levels_of(below, level_epsilon=1e-6) == [4]
        assert levels_of(squares(224 * (1 - 1e-5)), level_epsilon=1e-6) == [3]

    @pytest.mark.convention("box_pool.box_units")
    def test_normalized_boxes_are_a_little_smaller(self):
        # a side of 224 pixels is 223 / 1023 of 1024, which is 223.2
        assert levels_of(squares(224), box_units="normalized") == [3]
        assert levels_of(squares(225), box_units="normalized") == [4]
        # the area of the image isn't that of a square
        wide = np.array([[0.0, 0, 226, 226]])
        assert levels_of(wide, (512, 2048), box_units="normalized") == [4]

    def test_normalized_boxes_narrower_than_a_pixel_are_of_the_finest_level(self):
        boxes = np.array([[5.0, 5, 5, 5], [5, 5, 5.5, 300], [5, 5, 6, 300], [5, 5, 300, 5.5]])
        assert levels_of(boxes, box_units="normalized") == [2, 2, 2, 2]

    def test_canonical_size_and_level(self):
        assert levels_of(squares(31, 32, 64), canonical_size=64.0, canonical_level=3) == [2, 2, 3]

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_precision(self, dtype):
        assert levels_of(squares(111, 112, 448).astype(dtype)) == [2, 3, 5]


class TestPooling:
    boxes = squares(250, 20, 130, 480, 21)
    images = np.array([0, 1, 0, 1, 0])
    levels = (4, 2, 3, 5, 2)

    @pytest.mark.parametrize("method", METHODS)
    def test_every_box_reads_its_level_and_image_in_the_boxes_order(self, method):
        features = [
            Tensor(np.broadcast_to(np.array([10.0, 20])[:, None, None, None] + level, p.shape).copy())
            for level, p in zip((2, 3, 4, 5, 6), pyramid(512), strict=True)
        ]
        pooled = pool_rois(features, self.boxes, self.images, (512, 512), METHODS[method])
        assert pooled.shape == (5, 3, 3, 2)
        expected = 10 * (self.images + 1) + np.array(self.levels)
        # a constant is pooled to itself, but for the rounding of weights that add up to 1
        np.testing.assert_allclose(
            pooled.data, np.broadcast_to(expected[:, None, None, None], pooled.shape), rtol=1e-14
        )

    @pytest.mark.convention("box_pool.method", "box_pool.aligned", "box_pool.sampling_ratio")
    @pytest.mark.parametrize("aligned", [False, True])
    @pytest.mark.parametrize("ratio", [0, 2])
    def test_roi_align_is_asked_as_the_config_says(self, aligned, ratio):
        config = vary(METHODS["roi_align"], {"aligned": aligned, "sampling_ratio": ratio})
        self.check(
            config,
            lambda features, boxes, index, level: roi_align(
                features, boxes, index, size=3, spatial_scale=0.5**level, sampling_ratio=ratio, aligned=aligned
            ),
        )

    @pytest.mark.convention("box_pool.method")
    def test_roi_pool(self):
        self.check(
            METHODS["roi_pool"],
            lambda features, boxes, index, level: roi_pool(features, boxes, index, size=3, spatial_scale=0.5**level),
        )

    @pytest.mark.convention("box_pool.method")
    def test_crop_and_resize(self):
        self.check(
            METHODS["crop_and_resize"],
            lambda features, boxes, index, _: crop_and_resize(
                features, to_normalized(boxes, (512, 512)), index, size=3
            ),
        )

    def check(self, config, pool):
        """Against the same operation on one box after the other, values and gradients."""
        rng = np.random.default_rng(1)
        upstream = rng.standard_normal((5, 3, 3, 2))
        features, references = pyramid(512, requires_grad=True), pyramid(512, requires_grad=True)
        pooled = pool_rois(features, self.boxes, self.images, (512, 512), config)
        pooled.backward(upstream)
        for r, level in enumerate(self.levels):
            part = pool(references[level - 2], self.boxes[r : r + 1], self.images[r : r + 1], level)
            np.testing.assert_array_equal(pooled.data[r], part.data[0])
            part.backward(upstream[r : r + 1])
        for found, reference in zip(features[:4], references[:4], strict=True):
            np.testing.assert_allclose(found.grad, reference.grad, rtol=0, atol=1e-14)
        assert features[4].grad is None  # P6 is the proposals' alone

    @pytest.mark.parametrize("method", METHODS)
    def test_no_boxes(self, method):
        features = pyramid(64, requires_grad=True)
        pooled = pool_rois(features, squares(), np.zeros(0, np.int64), (64, 64), METHODS[method])
        assert pooled.shape == (0, 3, 3, 2)
        pooled.backward(np.zeros(pooled.shape))
        assert all(p.grad is None or not p.grad.any() for p in features)

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_precision(self, method, dtype):
        features = [Tensor(p.data.astype(dtype)) for p in pyramid(64)]
        pooled = pool_rois(features, squares(9, 30).astype(dtype), np.array([0, 1]), (64, 64), METHODS[method])
        assert pooled.dtype == dtype


@pytest.mark.convention("box_pool.method", "box_pool.level_rounding", "box_pool.box_units")
@pytest.mark.parametrize("name", ["m128_p7", "m128_p14", "m1024_p7", "m1024_p14", "m512x768_p7", "m512x768_p14"])
def test_matterports_pyramid_roi_align(name):
    golden = load("roi_align")
    size = tuple(int(v) for v in golden[f"{name}.image_hw"])
    pool_size = int(name.split("_p")[1])
    config = vary(matterport().box_pool, {"size": pool_size})
    normalized = from_yxyx(golden[f"{name}.boxes"].astype(np.float64))  # N R 4
    real = np.abs(normalized).sum(axis=-1) > 0  # the others are padding, which has no counterpart in pixels
    boxes = from_normalized(normalized, size)
    levels = np.stack([assign_levels(own, size, config) for own in boxes])
    np.testing.assert_array_equal(levels[real], golden[f"{name}.levels"][real])

    shapes = golden[f"{name}.feat_shapes"]
    features = [
        Tensor(normal(f"ra/{name}/f{level}", tuple(shape)).astype(np.float64))
        for level, shape in zip((2, 3, 4, 5), shapes, strict=True)
    ]
    image, _ = np.nonzero(real)
    pooled = np.zeros(golden[f"{name}.out.shape"])
    pooled[real] = pool_rois(features, boxes[real], image, size, config).data
    stored = golden[f"{name}.out.s"]
    sample = np.zeros(pooled.size, bool)
    sample[:: int(golden[f"{name}.out.step"])] = True
    # a sample on the last row or column counts as outside if it got there by a rounding, and these are float32's:
    # of the boxes whose samples come that near, the golden vectors decide nothing
    clear = real & ~touches_far_edge(normalized, levels, shapes, pool_size)
    assert clear.sum() > 0.6 * real.sum()
    chosen = sample.reshape(pooled.shape) & clear[..., None, None, None]
    found, expected = pooled[chosen], stored[chosen.ravel()[sample]]
    # coordinates of up to 256 pixels in float32, each rounded four times, on slopes of twice the largest value
    largest = max(float(np.abs(f.data).max()) for f in features)
    tolerance = 4 * 2.0**-24 * max(shapes[0][1:3]) * 2 * largest
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def touches_far_edge(normalized, levels, shapes, count) -> np.ndarray:
    """Whether a sample of each box lies within 1e-4 pixels of the last row or column of its level."""
    extents = shapes[levels - 2][..., 1:3][..., ::-1] - 1  # N R (width, height)
    share = np.arange(count)[:, None, None, None] / (count - 1)
    low, high = normalized[..., :2], normalized[..., 2:]
    return (np.abs((low + share * (high - low)) * extents - extents) < 1e-4).any(axis=(0, -1))
