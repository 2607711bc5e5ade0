"""roi_align: literal cases, the paper's four corners one sample at a time, properties, gradients."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet.autograd import Tensor
from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.ops import roi_align, roi_align_forward, roi_align_grad_boxes, roi_align_grad_features
from refnet.ops.roi_align import sample_coordinates, sample_counts, spans
from refnet.testing import check_gradients
from refnet.testing.strategies.geometry import seeds
from refnet.testing.strategies.regions import Regions, boxes_away_from_kinks, regions

U = 2.0**-53  # unit roundoff of float64


def pool(features: np.ndarray, box: list[float], **changes) -> np.ndarray:
    """ROIAlign of one box on one map of one channel, to one bin of one sample unless told otherwise."""
    arguments = {"size": 1, "spatial_scale": 1.0, "sampling_ratio": 1, "aligned": True, **changes}
    y = roi_align(Tensor(features[None, :, :, None]), np.array([box], dtype=np.float64), np.array([0]), **arguments)
    return y.data[0, :, :, 0]


RAMP = np.arange(12.0).reshape(3, 4)  # f(row, column) = 4 row + column


# literal cases


def test_aligned_pixels_are_found_by_their_centres():
    np.testing.assert_array_equal(pool(RAMP, [0, 0, 4, 3], size=(3, 4)), RAMP)


def test_without_alignment_samples_lie_half_a_pixel_further():
    np.testing.assert_array_equal(pool(RAMP, [0, 0, 2, 2], size=2, aligned=False), RAMP[:2, :2] + 2.5)


def test_a_bin_is_the_mean_of_its_samples():
    # samples at rows 0, 1 and columns 0.5, 2.5 of the map: f = 0.5, 2.5, 4.5, 6.5
    np.testing.assert_array_equal(pool(RAMP, [0, 0, 4, 2], sampling_ratio=2), [[3.5]])


def test_boxes_are_scaled_to_the_map():
    np.testing.assert_array_equal(pool(RAMP, [0, 0, 32, 24], size=(3, 4), spatial_scale=0.125), RAMP)


def test_x_is_the_column():
    np.testing.assert_array_equal(pool(RAMP, [3, 0, 4, 1]), [[3]])


@pytest.mark.parametrize(
    ("row", "value"), [(-1.25, 0), (-1.0, 1), (-0.5, 1), (0.5, 2), (1.5, 4), (2.0, 5), (3.0, 5), (3.25, 0)]
)
def test_beyond_the_border(row, value):
    """Three rows 1, 3, 5 of a map, sampled at one coordinate: clamped within a pixel of the map, 0 outside."""
    column = np.array([[1.0], [3.0], [5.0]])
    np.testing.assert_array_equal(pool(column, [0, row, 1, row + 1]), [[value]])


def test_without_alignment_a_box_is_at_least_a_pixel():
    np.testing.assert_array_equal(pool(RAMP, [1, 1, 1, 1], size=2, aligned=False), [[6.25, 6.75], [8.25, 8.75]])


def test_the_adaptive_ratio_takes_a_sample_for_each_pixel_begun():
    counts = sample_counts(np.array([0.0, 0.5, 2.0, 2.25, 7.0]), 2, 0)
    np.testing.assert_array_equal(counts, [0, 1, 1, 2, 4])
    squares = np.arange(5.0)[None] ** 2
    np.testing.assert_array_equal(pool(squares, [0, 0, 4, 1], sampling_ratio=0), [[(0 + 1 + 4 + 9) / 4]])


def test_an_aligned_box_without_extent_has_no_adaptive_samples():
    np.testing.assert_array_equal(pool(RAMP + 1, [1, 1, 1, 2], sampling_ratio=0), [[0]])


# the paper's text


def four_corners(features: np.ndarray, y: float, x: float) -> np.ndarray:
    """The feature at one point from the four around it (He et al. 2017, figure 3), with torchvision's border."""
    height, width, channels = features.shape
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(channels)
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    ly, lx = y - top, x - left
    return (
        features[top, left] * ((1 - ly) * (1 - lx))
        + features[top, right] * ((1 - ly) * lx)
        + features[bottom, left] * (ly * (1 - lx))
        + features[bottom, right] * (ly * lx)
    )


def by_samples(features: np.ndarray, case: Regions) -> np.ndarray:
    """ROIAlign as a loop over boxes, bins and samples."""
    output = np.zeros(case.output_shape)
    bins_y, bins_x = case.size
    offset = 0.5 if case.aligned else 0.0
    for r, box in enumerate(case.boxes):
        x1, y1, x2, y2 = (float(edge) * case.spatial_scale - offset for edge in box)
        height, width = (y2 - y1, x2 - x1) if case.aligned else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
        bin_height, bin_width = height / bins_y, width / bins_x
        samples_y = case.sampling_ratio or math.ceil(height / bins_y)
        samples_x = case.sampling_ratio or math.ceil(width / bins_x)
        for p, q in np.ndindex(bins_y, bins_x):
            for i, j in np.ndindex(samples_y, samples_x):
                y = y1 + p * bin_height + bin_height * (i + 0.5) / samples_y
                x = x1 + q * bin_width + bin_width * (j + 0.5) / samples_x
                output[r, p, q] += four_corners(features[case.image_index[r]], y, x)
            output[r, p, q] /= max(samples_y * samples_x, 1)
    return output


@given(regions(bins=st.sampled_from([1, 2, 4])))
def test_equals_the_four_corners_of_each_sample(case: Regions):
    """Boxes at quarters of a pixel and powers of 2 for bins keep coordinates exact, also at the very border."""
    features = case.rng.standard_normal(case.features_shape)
    arguments = {"size": case.size, **case.sampling}
    y = roi_align_forward(features, case.boxes, case.image_index, **arguments)
    # each side adds at most 4 products a sample, of at most 16 x 16 samples in a bin, 4 roundings in a weight
    bound = 2 * (4 * 16 * 16 + 4) * U * np.max(abs(features))
    assert (abs(y - by_samples(features, case)) <= bound).all()


# properties


@given(regions())
def test_shapes_and_types_follow_from_the_arguments(case: Regions):
    for dtype in (np.float32, np.float64):
        features, boxes = case.rng.standard_normal(case.features_shape).astype(dtype), case.boxes.astype(dtype)
        y = roi_align_forward(features, boxes, case.image_index, size=case.size, **case.sampling)
        assert y.shape == case.output_shape
        assert y.dtype == dtype
        grad = roi_align_grad_features(y, boxes, case.image_index, input_shape=features.shape, **case.sampling)
        assert grad.shape == features.shape
        assert grad.dtype == dtype
        grad = roi_align_grad_boxes(y, features, boxes, case.image_index, **case.sampling)
        assert grad.shape == boxes.shape
        assert grad.dtype == dtype


@given(regions())
def test_the_gradient_of_the_features_is_the_adjoint(case: Regions):
    rng = case.rng
    features, u = rng.standard_normal(case.features_shape), rng.standard_normal(case.output_shape)
    y = roi_align_forward(features, case.boxes, case.image_index, size=case.size, **case.sampling)
    grad = roi_align_grad_features(u, case.boxes, case.image_index, input_shape=features.shape, **case.sampling)
    sizes = roi_align_forward(abs(features), case.boxes, case.image_index, size=case.size, **case.sampling)
    bound = 2 * (features.size + u.size) * U * (sizes * abs(u)).sum()
    assert abs((y * u).sum() - (features * grad).sum()) <= bound


def inner_boxes(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Boxes whose samples all lie between the outermost pixel centres, aligned or not."""
    low = rng.uniform(0.5, [(width - 1) / 2, (height - 1) / 2], (count, 2))
    return np.concatenate([low, low + rng.uniform(1, [(width - 1) / 2, (height - 1) / 2], (count, 2))], axis=1)


@given(regions(extents=st.integers(4, 9)))
def test_constants_and_ramps_are_reproduced_at_the_bins_centres(case: Regions):
    _, height, width, _ = case.features_shape
    boxes = inner_boxes(case.rng, len(case.boxes), height, width)
    row, column = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    features = np.stack([np.ones((height, width)), row, column], axis=-1)[None]
    arguments = {"size": case.size, **case.sampling, "spatial_scale": 1.0}
    y = roi_align_forward(features, boxes, np.zeros(len(boxes), np.int64), **arguments)
    offset = 0.5 if case.aligned else 0.0
    centres = [
        boxes[:, axis, None] + (np.arange(bins) + 0.5) / bins * (boxes[:, axis + 2] - boxes[:, axis])[:, None] - offset
        for axis, bins in ((1, case.size[0]), (0, case.size[1]))
    ]
    bound = 64 * U * max(height, width)  # a dozen roundings of coordinates up to the extent, on either side
    assert (abs(y[..., 0] - 1) <= bound).all()
    assert (abs(y[..., 1] - centres[0][:, :, None]) <= bound).all()
    assert (abs(y[..., 2] - centres[1][:, None, :]) <= bound).all()


@given(regions(), st.integers(0, 3), st.integers(0, 3))
def test_moving_features_and_boxes_together_changes_nothing(case: Regions, down, right):
    """The border must not come near: the map lies in a frame of zeros wider than boxes reach."""
    frame = ((0, 0), (4, 8), (4, 8), (0, 0))
    features = np.pad(case.rng.standard_normal(case.features_shape), frame)
    moved = np.roll(features, (down, right), axis=(1, 2))
    boxes = case.boxes + 4 / case.spatial_scale
    shift = np.array([right, down, right, down]) / case.spatial_scale
    arguments = {"size": case.size, **case.sampling}
    y = roi_align_forward(features, boxes, case.image_index, **arguments)
    y_moved = roi_align_forward(moved, boxes + shift, case.image_index, **arguments)
    bound = 64 * U * 32 * np.max(abs(features))  # coordinates up to 32 are rounded a few times
    assert (abs(y - y_moved) <= bound).all()


# gradients


def kinks_of(case: Regions):
    """The numbers that must not be integers: coordinates; the extent; samples of the adaptive ratio."""

    def kinks(box: np.ndarray) -> list[np.ndarray]:
        start, extent, _ = spans(box, 1.0, case.aligned)
        numbers = [] if case.aligned else [box[:, 2:] - box[:, :2]]
        for axis, bins in ((0, case.size[1]), (1, case.size[0])):
            samples = int(sample_counts(extent[:, axis], bins, case.sampling_ratio)[0])
            numbers.append(sample_coordinates(start[:, axis], extent[:, axis], bins, samples))
            if not case.sampling_ratio and (case.aligned or extent[0, axis] > 1):
                numbers.append(extent[:, axis] / bins)
        return numbers

    return kinks


@given(regions(least_boxes=1))
def test_gradients(case: Regions):
    rng = case.rng
    boxes = boxes_away_from_kinks(case, kinks_of(case), gap=1e-3) / case.spatial_scale
    check_gradients(
        lambda f, b: roi_align(f, b, case.image_index, size=case.size, **case.sampling),
        rng.standard_normal(case.features_shape),
        boxes,
        rng=rng,
    )


def test_below_one_pixel_only_the_position_counts():
    """The clamp to one pixel lets only the upper left corner through: d f / dx = 1, d f / dy = 4."""
    box = Tensor(np.array([[0.25, 0.25, 0.5, 0.75]]), requires_grad=True)
    y = roi_align(
        Tensor(RAMP[None, :, :, None]), box, np.array([0]), size=1, spatial_scale=1.0, sampling_ratio=1, aligned=False
    )
    y.backward(np.ones(y.shape))
    np.testing.assert_array_equal(box.grad, [[1, 4, 0, 0]])


def test_only_the_gradients_that_are_needed_are_computed():
    def forbidden(*args, **kwargs):
        raise AssertionError("nobody needs this gradient")

    features = Tensor(RAMP[None, :, :, None], requires_grad=True)
    boxes = np.array([[0.0, 0.0, 2.0, 2.0]])
    y = roi_align(features, boxes, np.array([0]), size=2, spatial_scale=1.0, sampling_ratio=2, aligned=True)
    with roi_align_grad_boxes.using(forbidden):
        y.backward(np.ones(y.shape))
    assert features.grad is not None


# errors


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"features": np.ones((4, 4, 2))}, ShapeError, r"expected images \(N, H, W, C\)"),
        ({"features": np.ones((2, 0, 4, 2))}, ShapeError, "at least one pixel"),
        ({"boxes": np.ones((3, 5))}, ShapeError, r"boxes must have shape \(R, 4\), got \(3, 5\)"),
        ({"image_index": np.zeros(2, int)}, ShapeError, r"one entry per box, expected \(3,\), got \(2,\)"),
        ({"image_index": np.zeros(3)}, DTypeError, "must hold integers, got float64"),
        ({"image_index": np.array([0, 2, 1])}, ArgumentError, "from 0 to 1, got values from 0 to 2"),
        ({"image_index": np.array([0, -1, 1])}, ArgumentError, "got values from -1 to 1"),
        ({"boxes": np.full((3, 4), np.nan)}, ArgumentError, "boxes must be finite, got .* for box 0"),
        ({"boxes": np.ones((3, 4), np.float32)}, DTypeError, "one floating-point type, got float64 and float32"),
        ({"size": 0}, ArgumentError, "size must be one or two integers of at least 1, got 0"),
        ({"sampling_ratio": -1}, ArgumentError, "must not be negative, got -1"),
        ({"spatial_scale": 0.0}, ArgumentError, "spatial_scale must be positive and finite, got 0.0"),
    ],
)
def test_errors_say_what_was_expected(changes, error, message):
    arguments = {
        "features": np.ones((2, 4, 4, 2)),
        "boxes": np.ones((3, 4)),
        "image_index": np.array([0, 1, 0]),
        "size": 2,
        "spatial_scale": 1.0,
        "sampling_ratio": 2,
        "aligned": True,
        **changes,
    }
    features = Tensor(arguments.pop("features"))
    with pytest.raises(error, match=message):
        roi_align(features, **arguments)


@given(seeds)
def test_boxes_of_different_images_are_independent(seed):
    """Pooling all at once is pooling image by image, bit for bit."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((3, 6, 5, 2))
    boxes, image_index = inner_boxes(rng, 7, 6, 5), rng.integers(0, 3, 7)
    arguments = {"size": (2, 3), "spatial_scale": 1.0, "sampling_ratio": 2, "aligned": False}
    y = roi_align_forward(features, boxes, image_index, **arguments)
    for image in range(3):
        own = image_index == image
        alone = roi_align_forward(features[image][None], boxes[own], np.zeros(own.sum(), np.int64), **arguments)
        np.testing.assert_array_equal(y[own], alone)
