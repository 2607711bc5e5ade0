"""crop_and_resize: literal cases, TensorFlow bit for bit, one sample at a time, PyTorch, properties, gradients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet.autograd import Tensor
from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.ops import (
    crop_and_resize,
    crop_and_resize_forward,
    crop_and_resize_grad_boxes,
    crop_and_resize_grad_images,
)
from refnet.ops.crop_and_resize import crop_coordinates, crop_coordinates_for_gradient
from refnet.ops.sampling import grad_matrices, hat_derivative, hat_weights
from refnet.testing import check_gradients
from refnet.testing.strategies.geometry import seeds
from refnet.testing.strategies.regions import Regions, boxes_away_from_kinks, regions
from tests.golden import matterport_rules

U32, U64 = 2.0**-24, 2.0**-53  # unit roundoff
GOLDEN = [*"abcdefghij", "int"]
TO_XYXY = [1, 0, 3, 2]  # from TensorFlow's order (y1, x1, y2, x2)


def crop(image: np.ndarray, box: list[float], size, **arguments) -> np.ndarray:
    """One crop of one image of one channel."""
    boxes = np.array([box], dtype=np.float64)
    return crop_and_resize(Tensor(image[None, :, :, None]), boxes, np.array([0]), size=size, **arguments).data[
        0, :, :, 0
    ]


RAMP = np.arange(12.0).reshape(3, 4)  # f(row, column) = 4 row + column


# literal cases


def test_the_unit_box_is_the_whole_image():
    np.testing.assert_array_equal(crop(RAMP, [0, 0, 1, 1], (3, 4)), RAMP)


def test_corners_of_the_box_are_corners_of_the_crop():
    np.testing.assert_array_equal(crop(RAMP, [0, 0, 1, 1], (2, 2)), [[0, 3], [8, 11]])
    np.testing.assert_array_equal(crop(RAMP, [0, 0.5, 1, 1], (3, 2)), [[4, 7], [6, 9], [8, 11]])


def test_a_single_sample_lies_in_the_middle():
    np.testing.assert_array_equal(crop(RAMP, [0, 0, 1, 0.5], 1), [[3.5]])


def test_a_box_that_runs_backwards_mirrors():
    np.testing.assert_array_equal(crop(RAMP, [1, 0, 0, 1], (3, 4)), RAMP[:, ::-1])


def test_samples_outside_get_the_extrapolation_value():
    rows = np.array([[1.0], [3.0], [5.0]])
    np.testing.assert_array_equal(crop(rows, [0, -0.5, 0, 1.5], (5, 1)).ravel(), [0, 1, 3, 5, 0])
    np.testing.assert_array_equal(
        crop(rows, [0, -0.5, 0, 1.5], (5, 1), extrapolation_value=-7.0).ravel(), [-7, 1, 3, 5, -7]
    )


def test_a_sample_outside_by_rounding_is_outside():
    """In float32 the last of 7 samples from 0.2 to 1 lies just past the last of 9 rows; in float64 it does not."""
    images, box = np.ones((1, 9, 1, 1), np.float32), np.array([[0, 0.2, 0, 1]], np.float32)
    arguments = {"size": (7, 1), "extrapolation_value": -1.0}
    y = crop_and_resize_forward(images, box, np.array([0]), **arguments)
    np.testing.assert_array_equal(y.ravel() == -1, [False] * 6 + [True])
    y = crop_and_resize_forward(images.astype(np.float64), box.astype(np.float64), np.array([0]), **arguments)
    assert not (y == -1).any()


# TensorFlow


class GoldenCase:
    """One of TensorFlow's results, with the inputs that it came from."""

    def __init__(self, name: str) -> None:
        golden = matterport_rules.load("crop_and_resize")
        if name == "int":
            boxes, self.image_index, shape = golden["int.boxes"], np.zeros(3, int), (1, 5, 5, 1)
            self.size, self.extrapolation_value = (5, 5), 0.0
        else:
            boxes, self.image_index, shape = golden["boxes"], golden["box_ind"], tuple(golden[f"{name}.image_shape"])
            self.size = tuple(int(extent) for extent in golden[f"{name}.crop"])
            self.extrapolation_value = float(golden[f"{name}.extrap"])
        self.boxes = boxes[:, TO_XYXY].copy()
        self.images = matterport_rules.normal(f"crop/img/{name}", shape)
        self.output, self.grad_images = golden[f"{name}.out"], golden[f"{name}.grad_image"]
        self.grad_boxes = golden[f"{name}.grad_boxes"][:, TO_XYXY]
        self.grad_output = matterport_rules.normal(f"crop/up/{name}", self.output.shape)

    def coordinates(self, function=crop_coordinates) -> tuple[np.ndarray, np.ndarray]:
        x1, y1, x2, y2 = self.boxes.T
        _, h, w, _ = self.images.shape
        return function(y1, y2, h, self.size[0]), function(x1, x2, w, self.size[1])


def interpolate(image: np.ndarray, y: np.float32, x: np.float32) -> np.ndarray:
    """Two horizontal interpolations and a vertical one, in the order in which TensorFlow rounds them."""
    top, bottom, left, right = int(np.floor(y)), int(np.ceil(y)), int(np.floor(x)), int(np.ceil(x))
    dy, dx = y - np.float32(top), x - np.float32(left)
    upper = image[top, left] + (image[top, right] - image[top, left]) * dx
    lower = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * dx
    return upper + (lower - upper) * dy


@pytest.mark.parametrize("name", GOLDEN)
def test_coordinates_equal_tensorflow_bit_for_bit(name):
    """Interpolated in TensorFlow's order at our coordinates, every bit is TensorFlow's."""
    case = GoldenCase(name)
    _, h, w, _ = case.images.shape
    expected = np.full(case.output.shape, case.extrapolation_value, np.float32)
    ys, xs = case.coordinates()
    for r, p, q in np.ndindex(case.output.shape[:3]):
        y, x = ys[r, p], xs[r, q]
        if 0 <= y <= h - 1 and 0 <= x <= w - 1:
            expected[r, p, q] = interpolate(case.images[case.image_index[r]], y, x)
    np.testing.assert_array_equal(expected, case.output)


@pytest.mark.parametrize("name", GOLDEN)
def test_forward_equals_tensorflow(name):
    """Values differ by rounding only: each side rounds at most 8 numbers, none above twice the largest feature."""
    case = GoldenCase(name)
    arguments = {"size": case.size, "extrapolation_value": case.extrapolation_value}
    y = crop_and_resize_forward(case.images, case.boxes, case.image_index, **arguments)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, case.output, rtol=0, atol=2 * 8 * U32 * 2 * np.max(abs(case.images)))
    np.testing.assert_array_equal(y == case.extrapolation_value, case.output == case.extrapolation_value)


@pytest.mark.parametrize("name", GOLDEN)
def test_gradient_of_the_images_equals_tensorflow(name):
    """A pixel's gradient is a sum over at most all samples, in any order."""
    case = GoldenCase(name)
    arguments = {"input_shape": case.images.shape}
    grad = crop_and_resize_grad_images(case.grad_output, case.boxes, case.image_index, **arguments)
    sizes = crop_and_resize_grad_images(abs(case.grad_output), case.boxes, case.image_index, **arguments)
    samples = case.grad_output[..., 0].size
    assert (abs(grad - case.grad_images) <= 2 * (samples + 8) * U32 * sizes).all()


@pytest.mark.parametrize("name", GOLDEN)
def test_gradient_of_the_boxes_equals_tensorflow(name):
    """A box's gradient is a sum over all samples and channels of four products each, in any order."""
    case = GoldenCase(name)
    _, h, w, _ = case.images.shape
    grad = crop_and_resize_grad_boxes(case.grad_output, case.images, case.boxes, case.image_index)
    s, t = case.coordinates(crop_coordinates_for_gradient)
    rows, columns = hat_weights(s, h, margin=0), hat_weights(t, w, margin=0)
    sizes = grad_matrices(abs(case.grad_output), abs(case.images), case.image_index, rows, columns)
    size_y = (sizes[0] * abs(hat_derivative(s, h, margin=0))).sum(axis=(1, 2)) * (h - 1)
    size_x = (sizes[1] * abs(hat_derivative(t, w, margin=0))).sum(axis=(1, 2)) * (w - 1)
    bound = 2 * (4 * case.grad_output[0].size + 8) * U32 * np.stack([size_x, size_y, size_x, size_y], axis=1)
    assert (abs(grad - case.grad_boxes) <= bound).all()


def test_at_integer_coordinates_the_gradient_of_the_boxes_is_zero():
    """The first box of this case is the whole image of 5 x 5 pixels, sampled 5 x 5 times."""
    case = GoldenCase("int")
    grad = crop_and_resize_grad_boxes(case.grad_output, case.images, case.boxes, case.image_index)
    np.testing.assert_array_equal(grad[0], 0)
    np.testing.assert_array_equal(case.grad_boxes[0], 0)


@pytest.mark.parametrize("name", ["m128_p7", "m128_p14", "m1024_p7", "m1024_p14", "m512x768_p7", "m512x768_p14"])
def test_pyramid_of_matterport(name):
    """Regions of four levels, with zero boxes and boxes on the far edge; the golden file keeps every step-th element."""
    golden = {
        key.removeprefix(f"{name}."): array
        for key, array in matterport_rules.load("roi_align").items()
        if key.startswith(f"{name}.")
    }
    shape = tuple(golden["out.shape"])
    bins = (int(shape[2]), int(shape[3]))
    boxes = golden["boxes"].reshape(-1, 4)[:, TO_XYXY].copy()
    image_index = np.repeat(np.arange(shape[0]), shape[1])
    levels = golden["levels"].ravel()
    upstream = matterport_rules.normal(f"ra/{name}/up", shape).reshape(-1, *shape[2:])
    pooled = np.zeros((len(boxes), *shape[2:]), np.float32)
    largest = 0.0
    for level, feature_shape in zip(range(2, 6), golden["feat_shapes"], strict=True):
        features = matterport_rules.normal(f"ra/{name}/f{level}", tuple(feature_shape))
        own = levels == level
        arguments = (boxes[own], image_index[own])
        pooled[own] = crop_and_resize_forward(features, *arguments, size=bins, extrapolation_value=0.0)
        largest = max(largest, float(np.max(abs(features))))
        grad = crop_and_resize_grad_images(upstream[own], *arguments, input_shape=features.shape)
        sizes = crop_and_resize_grad_images(abs(upstream[own]), *arguments, input_shape=features.shape)
        bound = 2 * (own.sum() * bins[0] * bins[1] + 8) * U32 * sizes
        step = int(golden[f"grad_p{level}.step"])
        assert (abs(grad.ravel()[::step] - golden[f"grad_p{level}.s"]) <= bound.ravel()[::step]).all()
    step = int(golden["out.step"])
    np.testing.assert_allclose(pooled.ravel()[::step], golden["out.s"], rtol=0, atol=2 * 8 * U32 * 2 * largest)


# the equation


exact_extents = st.sampled_from([1, 2, 3, 5, 9])  # one less is a power of 2, so that coordinates are exact


@given(regions(extents=exact_extents, bins=st.sampled_from([1, 2, 3, 5])))
def test_each_value_is_interpolated_between_four_pixels(case: Regions):
    """Coordinates at quarters of a pixel, exact also at the very border."""
    images, boxes = case.rng.standard_normal(case.features_shape), case.normalized_boxes
    y = crop_and_resize_forward(images, boxes, case.image_index, size=case.size, extrapolation_value=9.0)
    expected = np.full(y.shape, 9.0)
    _, h, w, _ = images.shape
    for r, p, q in np.ndindex(y.shape[:3]):
        x1, y1, x2, y2 = (float(edge) for edge in boxes[r])
        row = (y1 + (y2 - y1) * p / (case.size[0] - 1) if case.size[0] > 1 else (y1 + y2) / 2) * (h - 1)
        column = (x1 + (x2 - x1) * q / (case.size[1] - 1) if case.size[1] > 1 else (x1 + x2) / 2) * (w - 1)
        if 0 <= row <= h - 1 and 0 <= column <= w - 1:
            expected[r, p, q] = interpolate(images[case.image_index[r]], row, column)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2 * 8 * U64 * 2 * np.max(abs(images)))


@given(case=regions(extents=st.integers(2, 9), bins=st.integers(2, 4)))
def test_equals_torch_inside_the_image(torch, case: Regions):
    """grid_sample with corners aligned has the same coordinates, from -1 to 1."""
    rng = case.rng
    images = rng.standard_normal(case.features_shape)
    low = rng.uniform(0.01, 0.5, (len(case.boxes), 2))
    boxes = np.concatenate([low, low + rng.uniform(0, 0.49, low.shape)], axis=1)
    y = crop_and_resize_forward(images, boxes, case.image_index, size=case.size, extrapolation_value=0.0)
    for r, (x1, y1, x2, y2) in enumerate(boxes):
        rows, columns = np.linspace(y1, y2, case.size[0]) * 2 - 1, np.linspace(x1, x2, case.size[1]) * 2 - 1
        grid = np.stack([*np.meshgrid(columns, rows)], axis=-1)
        image = torch.tensor(images[case.image_index[r]].transpose(2, 0, 1))
        sampled = torch.nn.functional.grid_sample(image[None], torch.tensor(grid)[None], align_corners=True)
        np.testing.assert_allclose(y[r], sampled[0].numpy().transpose(1, 2, 0), rtol=0, atol=1e-10)


# properties


@given(regions())
def test_shapes_and_types_follow_from_the_arguments(case: Regions):
    for dtype in (np.float32, np.float64):
        images, boxes = case.rng.standard_normal(case.features_shape).astype(dtype), case.normalized_boxes.astype(dtype)
        y = crop_and_resize_forward(images, boxes, case.image_index, size=case.size, extrapolation_value=0.5)
        assert y.shape == case.output_shape
        assert y.dtype == dtype
        grad = crop_and_resize_grad_images(y, boxes, case.image_index, input_shape=images.shape)
        assert grad.shape == images.shape
        assert grad.dtype == dtype
        grad = crop_and_resize_grad_boxes(y, images, boxes, case.image_index)
        assert grad.shape == boxes.shape
        assert grad.dtype == dtype


@given(regions())
def test_the_gradient_of_the_images_is_the_adjoint(case: Regions):
    rng = case.rng
    images, u = rng.standard_normal(case.features_shape), rng.standard_normal(case.output_shape)
    arguments = (case.normalized_boxes, case.image_index)
    y = crop_and_resize_forward(images, *arguments, size=case.size, extrapolation_value=0.0)
    sizes = crop_and_resize_forward(abs(images), *arguments, size=case.size, extrapolation_value=0.0)
    grad = crop_and_resize_grad_images(u, *arguments, input_shape=images.shape)
    bound = 2 * (images.size + u.size) * U64 * (sizes * abs(u)).sum()
    assert abs((y * u).sum() - (images * grad).sum()) <= bound


@given(regions(extents=st.integers(1, 9)))
def test_constants_and_ramps_are_reproduced(case: Regions):
    """Inside the image the values are the coordinates themselves."""
    _, height, width, _ = case.features_shape
    boxes = case.rng.uniform(0.05, 0.95, (len(case.boxes), 4))
    row, column = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    images = np.stack([np.ones((height, width)), row, column], axis=-1)[None]
    y = crop_and_resize_forward(
        images, boxes, np.zeros(len(boxes), np.int64), size=case.size, extrapolation_value=np.nan
    )
    rows, columns = (
        [
            np.linspace(low, high, count) * (extent - 1) if count > 1 else [(low + high) / 2 * (extent - 1)]
            for low, high in edges
        ]
        for edges, count, extent in (
            (boxes[:, 1::2], case.size[0], height),
            (boxes[:, 0::2], case.size[1], width),
        )
    )
    rows, columns = np.reshape(rows, (-1, case.size[0])), np.reshape(columns, (-1, case.size[1]))
    bound = 32 * U64 * max(height, width)  # a dozen roundings of coordinates up to the extent, on either side
    assert (abs(y[..., 0] - 1) <= bound).all()
    assert (abs(y[..., 1] - rows[:, :, None]) <= bound).all()
    assert (abs(y[..., 2] - columns[:, None, :]) <= bound).all()


@given(regions(extents=st.just(9), bins=st.sampled_from([2, 3, 5])), st.integers(-3, 3), st.integers(-3, 3))
def test_moving_image_and_boxes_together_changes_nothing(case: Regions, down, right):
    """Boxes within the inner 4 x 4 of 9 x 9 pixels, in quarters of a pixel, so that coordinates are exact."""
    images = case.rng.standard_normal(case.features_shape)
    boxes = case.rng.integers(12, 20, (len(case.boxes), 4)) / 32
    moved, shift = np.roll(images, (down, right), axis=(1, 2)), np.array([right, down, right, down]) / 8
    arguments = {"size": case.size, "extrapolation_value": 0.0}
    y = crop_and_resize_forward(images, boxes, case.image_index, **arguments)
    y_moved = crop_and_resize_forward(moved, boxes + shift, case.image_index, **arguments)
    np.testing.assert_allclose(y_moved, y, rtol=0, atol=2 * 8 * U64 * np.max(abs(images)))


# gradients


@given(regions(least_boxes=1))
def test_gradients(case: Regions):
    rng = case.rng
    _, h, w, _ = case.features_shape
    extent = np.maximum([w - 1, h - 1, w - 1, h - 1], 1)

    def kinks(box: np.ndarray) -> list[np.ndarray]:
        x1, y1, x2, y2 = (box / extent).T
        coordinates = []
        if w > 1:  # an axis of one pixel has no coordinate but 0
            coordinates.append(crop_coordinates(x1, x2, w, case.size[1]))
        if h > 1:
            coordinates.append(crop_coordinates(y1, y2, h, case.size[0]))
        return coordinates or [np.array([0.5])]

    boxes = boxes_away_from_kinks(case, kinks, gap=4e-3) / extent
    check_gradients(
        lambda f, b: crop_and_resize(f, b, case.image_index, size=case.size, extrapolation_value=0.5),
        rng.standard_normal(case.features_shape),
        boxes,
        rng=rng,
    )


@given(seeds)
def test_no_gradient_flows_through_samples_outside(seed):
    rng = np.random.default_rng(seed)
    images, boxes = (
        Tensor(rng.standard_normal((1, 4, 4, 2)), requires_grad=True),
        Tensor(rng.uniform(1.1, 2.0, (3, 4)), requires_grad=True),
    )
    y = crop_and_resize(images, boxes, np.zeros(3, int), size=3, extrapolation_value=2.0)
    np.testing.assert_array_equal(y.data, 2)
    y.backward(rng.standard_normal(y.shape))
    np.testing.assert_array_equal(images.grad, 0)
    np.testing.assert_array_equal(boxes.grad, 0)


# errors


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": np.ones((4, 4, 2))}, ShapeError, r"expected images \(N, H, W, C\)"),
        ({"boxes": np.ones(4)}, ShapeError, r"boxes must have shape \(R, 4\), got \(4,\)"),
        ({"boxes": np.ones((3, 4), np.float32)}, DTypeError, "got float64 and float32"),
        ({"image_index": np.array([0, 1])}, ShapeError, "one entry per box"),
        ({"image_index": np.array([0, 1, 2])}, ArgumentError, "image_index must be from 0 to 1"),
        ({"boxes": np.array([[0, 0, 1, 1], [0, 0, np.inf, 1], [0, 0, 1, 1]])}, ArgumentError, "finite.* for box 1"),
        ({"size": (2, 0)}, ArgumentError, "size must be one or two integers"),
    ],
)
def test_errors_say_what_was_expected(changes, error, message):
    arguments = {
        "images": np.ones((2, 4, 4, 2)),
        "boxes": np.ones((3, 4)),
        "image_index": np.array([0, 1, 0]),
        "size": 2,
        **changes,
    }
    images = Tensor(arguments.pop("images"))
    with pytest.raises(error, match=message):
        crop_and_resize(images, **arguments)
