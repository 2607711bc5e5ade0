"""roi_pool: literal cases, the definition in whole numbers, PyTorch's adaptive pooling, properties, gradients."""

from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet.autograd import Tensor
from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.ops import roi_pool, roi_pool_forward, roi_pool_grad
from refnet.ops.roi_pool import round_half_away
from refnet.testing import check_gradients
from refnet.testing.strategies.geometry import distinct
from refnet.testing.strategies.regions import Regions, regions

RAMP = np.arange(12.0).reshape(3, 4)


def pool(features: np.ndarray, box: list[float], size, spatial_scale: float = 1.0) -> np.ndarray:
    """One box of one map of one channel."""
    boxes = np.array([box], dtype=np.float64)
    y = roi_pool(Tensor(features[None, :, :, None]), boxes, np.array([0]), size=size, spatial_scale=spatial_scale)
    return y.data[0, :, :, 0]


# literal cases


def test_the_last_pixel_belongs_to_the_region():
    np.testing.assert_array_equal(pool(RAMP, [0, 0, 3, 2], (3, 4)), RAMP)
    np.testing.assert_array_equal(pool(RAMP, [1, 0, 2, 1], 1), [[6]])


def test_neighbouring_bins_overlap_where_the_division_is_uneven():
    row = np.array([[5.0, 1, 9, 2, 3]])
    np.testing.assert_array_equal(pool(row, [0, 0, 4, 0], (1, 2)), [[9, 9]])  # pixels 0 to 2 and 2 to 4


def test_halves_are_rounded_away_from_zero():
    x = np.array([-2.5, -1.5, -0.5, -0.25, 0.25, 0.5, 1.5, 2.5, 0.49999999999999994])
    np.testing.assert_array_equal(round_half_away(x), [-3, -2, -1, 0, 0, 1, 2, 3, 0])
    np.testing.assert_array_equal(pool(RAMP, [1, 0, 1, 0], 1, spatial_scale=0.5), [[1]])


def test_a_bin_outside_the_map_is_zero_and_takes_no_gradient():
    features = Tensor(-1 - RAMP[None, :, :, None], requires_grad=True)
    boxes = np.array([[3.0, 1, 4, 1], [6, 6, 9, 9]])
    y = roi_pool(features, boxes, np.array([0, 0]), size=(1, 2), spatial_scale=1.0)
    np.testing.assert_array_equal(y.data[..., 0], [[[-8, 0]], [[0, 0]]])
    y.backward(np.ones(y.shape))
    np.testing.assert_array_equal(features.grad[0, :, :, 0], [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]])


def test_of_equal_features_the_first_in_reading_order_takes_the_gradient():
    features = Tensor(np.ones((1, 2, 2, 1)), requires_grad=True)
    y = roi_pool(features, np.array([[0.0, 0, 1, 1]]), np.array([0]), size=1, spatial_scale=1.0)
    y.backward(np.ones(y.shape))
    np.testing.assert_array_equal(features.grad[0, :, :, 0], [[1, 0], [0, 0]])


# the definition


def away_from_zero(x: Fraction) -> int:
    return floor(x + Fraction(1, 2)) if x >= 0 else ceil(x - Fraction(1, 2))


@given(regions())
def test_equals_the_definition_in_whole_numbers(case: Regions):
    """Bins by exact fractions; up to 4 bins of boxes this small, no float division crosses an integer."""
    features = case.rng.integers(-9, 10, case.features_shape).astype(np.float64)
    _, height, width, channels = features.shape
    scale = Fraction(case.spatial_scale)
    expected, source = np.zeros(case.output_shape), np.full(case.output_shape, -1)
    for r, p, q in np.ndindex(*case.output_shape[:3]):
        x1, y1, x2, y2 = (away_from_zero(Fraction(float(edge)) * scale) for edge in case.boxes[r])
        bin_h, bin_w = Fraction(max(y2 - y1 + 1, 1), case.size[0]), Fraction(max(x2 - x1 + 1, 1), case.size[1])
        for h, w in np.ndindex(height, width):
            if not floor(p * bin_h) <= h - y1 < ceil((p + 1) * bin_h):
                continue
            if not floor(q * bin_w) <= w - x1 < ceil((q + 1) * bin_w):
                continue
            for c in range(channels):
                value = features[case.image_index[r], h, w, c]
                if source[r, p, q, c] < 0 or value > expected[r, p, q, c]:
                    expected[r, p, q, c], source[r, p, q, c] = value, h * width + w
    y, places = roi_pool_forward(
        features, case.boxes, case.image_index, size=case.size, spatial_scale=case.spatial_scale
    )
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(places, source)


@given(case=regions(extents=st.integers(2, 9)))
def test_equals_torch_inside_the_map(torch, case: Regions):
    """On a region of whole pixels, adaptive pooling has the same bins."""
    rng = case.rng
    features = Tensor(rng.standard_normal(case.features_shape), requires_grad=True)
    _, h, w, _ = features.shape
    boxes = np.sort(rng.integers(0, [[w, h]], (len(case.boxes), 2, 2)), axis=1).reshape(-1, 4).astype(np.float64)
    y = roi_pool(features, boxes, case.image_index, size=case.size, spatial_scale=1.0)
    u = rng.standard_normal(y.shape)
    y.backward(u)
    t = torch.tensor(features.data.transpose(0, 3, 1, 2), requires_grad=True)
    total = torch.zeros((), dtype=t.dtype)
    for r, (x1, y1, x2, y2) in enumerate(boxes.astype(int)):
        region = t[case.image_index[r], :, y1 : y2 + 1, x1 : x2 + 1]
        pooled = torch.nn.functional.adaptive_max_pool2d(region, case.size)
        np.testing.assert_array_equal(y.data[r], pooled.detach().numpy().transpose(1, 2, 0))
        total = total + (pooled * torch.tensor(u[r].transpose(2, 0, 1))).sum()
    (expected,) = torch.autograd.grad(total, t, allow_unused=True, materialize_grads=True) if len(boxes) else (t * 0,)
    np.testing.assert_allclose(features.grad, expected.detach().numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-12)


# properties


@given(regions())
def test_shapes_and_types_follow_from_the_arguments(case: Regions):
    for dtype in (np.float32, np.float64):
        features, boxes = case.rng.standard_normal(case.features_shape).astype(dtype), case.boxes.astype(dtype)
        y, source = roi_pool_forward(
            features, boxes, case.image_index, size=case.size, spatial_scale=case.spatial_scale
        )
        assert y.shape == source.shape == case.output_shape
        assert y.dtype == dtype
        grad = roi_pool_grad(y, source, case.image_index, input_shape=features.shape)
        assert grad.shape == features.shape
        assert grad.dtype == dtype


@given(regions())
def test_gradients_go_to_the_maxima_and_none_gets_lost(case: Regions):
    rng = case.rng
    features = rng.integers(-3, 4, case.features_shape).astype(np.float64)
    arguments = {"size": case.size, "spatial_scale": case.spatial_scale}
    y, source = roi_pool_forward(features, case.boxes, case.image_index, **arguments)
    u = rng.integers(-3, 4, y.shape).astype(np.float64)
    grad = roi_pool_grad(u, source, case.image_index, input_shape=features.shape)
    assert (features * grad).sum() == (y * u).sum()
    assert grad.sum() == u[source >= 0].sum()


@given(regions(), st.integers(0, 3), st.integers(0, 3))
def test_moving_features_and_boxes_together_changes_nothing(case: Regions, down, right):
    """The map lies in a frame of -1 wider than boxes reach."""
    frame = ((0, 0), (8, 12), (8, 12), (0, 0))
    features = np.pad(case.rng.standard_normal(case.features_shape), frame, constant_values=-1)
    moved = np.roll(features, (down, right), axis=(1, 2))
    boxes = case.boxes + 8 / case.spatial_scale
    shift = np.array([right, down, right, down]) / case.spatial_scale
    arguments = {"size": case.size, "spatial_scale": case.spatial_scale}
    y, _ = roi_pool_forward(features, boxes, case.image_index, **arguments)
    y_moved, _ = roi_pool_forward(moved, boxes + shift, case.image_index, **arguments)
    np.testing.assert_array_equal(y, y_moved)


@given(regions(least_boxes=1))
def test_gradients(case: Regions):
    rng = case.rng
    check_gradients(
        lambda f: roi_pool(f, case.boxes, case.image_index, size=case.size, spatial_scale=case.spatial_scale),
        distinct(case.features_shape, rng),
        rng=rng,
    )


# errors


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"features": np.ones((4, 4, 2))}, ShapeError, r"expected images \(N, H, W, C\)"),
        ({"boxes": np.ones((3, 5))}, ShapeError, r"boxes must have shape \(R, 4\)"),
        ({"boxes": np.ones((3, 4), int)}, DTypeError, "one floating-point type, got float64 and int64"),
        ({"image_index": np.array([0, 1, 2])}, ArgumentError, "image_index must be from 0 to 1"),
        ({"size": (0, 2)}, ArgumentError, "size must be one or two integers"),
        ({"spatial_scale": -0.5}, ArgumentError, "spatial_scale must be positive and finite, got -0.5"),
    ],
)
def test_errors_say_what_was_expected(changes, error, message):
    arguments = {
        "features": np.ones((2, 4, 4, 2)),
        "boxes": np.ones((3, 4)),
        "image_index": np.array([0, 1, 0]),
        "size": 2,
        "spatial_scale": 1.0,
        **changes,
    }
    features = Tensor(arguments.pop("features"))
    with pytest.raises(error, match=message):
        roi_pool(features, **arguments)
