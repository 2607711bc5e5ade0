"""The six kernels that sample regions against their specifications, on whichever device they run.

Both sides compute the same coordinates and hat weights, bit for bit, and add up the same products in another order.
Weights aren't negative, so two sums of K products, in whatever order, and weights of J roundings differ by at most
2 (K + J + 1) u times the same sum over absolute values, which is the specification itself on absolute values.
"""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

import refnet.ops as ops
from refnet.ops.roi_align import sample_counts, spans
from refnet.testing.strategies.regions import Regions

Kernel: TypeAlias = Callable[..., Any]
UNIT = {np.float32: 2.0**-24, np.float64: 2.0**-53}


def rough(boxes: np.ndarray, case: Regions, whole: bool) -> np.ndarray:
    """`boxes` as they are, or moved by numbers that aren't exact in binary."""
    noise = np.random.default_rng([case.seed, 2]).uniform(-0.1, 0.1, boxes.shape)
    return boxes if whole else boxes + noise


def drawn(case: Regions, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """Features and a gradient of the output."""
    rng = case.rng
    features, grad_output = rng.standard_normal(case.features_shape), rng.standard_normal(case.output_shape)
    return features.astype(dtype), grad_output.astype(dtype)


def roundings(case: Regions, boxes: np.ndarray) -> int:
    """J: those in the weights of rows and columns, sums over the samples of a bin."""
    _, extent, _ = spans(boxes, case.spatial_scale, case.aligned)
    bins = np.array([case.size[1], case.size[0]])
    samples = sample_counts(extent / bins, 1, case.sampling_ratio)
    return 2 * (int(samples.max(initial=0)) + 4)


def assert_close(actual: np.ndarray, expected: np.ndarray, bound: Any) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert (abs(actual - expected) <= bound).all(), abs(actual - expected).max()


def check_roi_align_forward(kernel: Kernel, case: Regions, dtype: Any, whole: bool) -> None:
    features, _ = drawn(case, dtype)
    boxes = rough(case.boxes, case, whole).astype(dtype)
    arguments = {"size": case.size, **case.sampling}
    specified = ops.roi_align_forward.specification
    sizes = specified(abs(features), boxes, case.image_index, **arguments)
    count = math.prod(case.features_shape[1:3]) + roundings(case, boxes)
    assert_close(
        kernel(features, boxes, case.image_index, **arguments),
        specified(features, boxes, case.image_index, **arguments),
        2 * (count + 1) * UNIT[dtype] * sizes,
    )


def check_roi_align_grad_features(kernel: Kernel, case: Regions, dtype: Any, whole: bool) -> None:
    features, u = drawn(case, dtype)
    boxes = rough(case.boxes, case, whole).astype(dtype)
    arguments = {"input_shape": features.shape, **case.sampling}
    specified = ops.roi_align_grad_features.specification
    sizes = specified(abs(u), boxes, case.image_index, **arguments)
    count = math.prod(case.size) * len(boxes) + roundings(case, boxes)
    assert_close(
        kernel(u, boxes, case.image_index, **arguments),
        specified(u, boxes, case.image_index, **arguments),
        2 * (count + 1) * UNIT[dtype] * sizes,
    )


def check_roi_align_grad_boxes(kernel: Kernel, case: Regions, dtype: Any, whole: bool) -> None:
    """A bin's gradient is at most |u| times the difference of two features; the edges of a box share it."""
    features, u = drawn(case, dtype)
    boxes = rough(case.boxes, case, whole).astype(dtype)
    sizes = abs(u).sum(axis=(1, 2, 3)) * 2 * np.max(abs(features)) * 2 * case.spatial_scale
    count = u.shape[3] + math.prod(u.shape[1:3] + features.shape[1:3]) + roundings(case, boxes) * (1 + max(case.size))
    assert_close(
        kernel(u, features, boxes, case.image_index, **case.sampling),
        ops.roi_align_grad_boxes.specification(u, features, boxes, case.image_index, **case.sampling),
        2 * (count + 1) * UNIT[dtype] * sizes[:, None],
    )


def check_crop_and_resize_forward(kernel: Kernel, case: Regions, dtype: Any, whole: bool) -> None:
    images, _ = drawn(case, dtype)
    boxes = rough(case.normalized_boxes, case, whole).astype(dtype)
    arguments = {"size": case.size, "extrapolation_value": 0.0}
    specified = ops.crop_and_resize_forward.specification
    sizes = specified(abs(images), boxes, case.image_index, **arguments)
    arguments["extrapolation_value"] = 100.0
    bound = 2 * (math.prod(images.shape[1:3]) + 8) * UNIT[dtype] * sizes
    actual = kernel(images, boxes, case.image_index, **arguments)
    expected = specified(images, boxes, case.image_index, **arguments)
    np.testing.assert_array_equal(actual == 100, expected == 100)
    assert_close(actual, expected, bound)


def check_crop_and_resize_grad_images(kernel: Kernel, case: Regions, dtype: Any, whole: bool) -> None:
    images, u = drawn(case, dtype)
    boxes = rough(case.normalized_boxes, case, whole).astype(dtype)
    specified = ops.crop_and_resize_grad_images.specification
    sizes = specified(abs(u), boxes, case.image_index, input_shape=images.shape)
    assert_close(
        kernel(u, boxes, case.image_index, input_shape=images.shape),
        specified(u, boxes, case.image_index, input_shape=images.shape),
        2 * (math.prod(case.size) * len(boxes) + 8) * UNIT[dtype] * sizes,
    )


def check_crop_and_resize_grad_boxes(kernel: Kernel, case: Regions, dtype: Any, whole: bool) -> None:
    images, u = drawn(case, dtype)
    boxes = rough(case.normalized_boxes, case, whole).astype(dtype)
    sizes = abs(u).sum(axis=(1, 2, 3)) * 2 * np.max(abs(images)) * max(case.features_shape[1:3])
    assert_close(
        kernel(u, images, boxes, case.image_index),
        ops.crop_and_resize_grad_boxes.specification(u, images, boxes, case.image_index),
        2 * (u.shape[3] + math.prod(u.shape[1:3] + images.shape[1:3]) + 16) * UNIT[dtype] * sizes[:, None],
    )


CHECKS: dict[str, Callable[[Kernel, Regions, Any, bool], None]] = {
    "crop_and_resize_forward": check_crop_and_resize_forward,
    "crop_and_resize_grad_boxes": check_crop_and_resize_grad_boxes,
    "crop_and_resize_grad_images": check_crop_and_resize_grad_images,
    "roi_align_forward": check_roi_align_forward,
    "roi_align_grad_boxes": check_roi_align_grad_boxes,
    "roi_align_grad_features": check_roi_align_grad_features,
}
"""By the operation's name: checks a kernel on a case, in a type, with whole boxes or ones moved off the grid."""
