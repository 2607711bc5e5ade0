"""The CPU kernels of roi_align and crop_and_resize against their specifications.

Both sides compute the same coordinates and hat weights, bit for bit, and add up the same products in another order.
Weights aren't negative, so a sum of K products and weights of J roundings differ by at most 2 (K + J + 1) u times the
same sum over absolute values, which is the specification itself on absolute values.
"""

from inspect import signature
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refnet.ops as ops
from refnet.kernels.cpu import KERNELS, roi
from refnet.ops.roi_align import sample_counts, spans
from refnet.testing.strategies.regions import Regions, regions

NAMES = [
    "crop_and_resize_forward",
    "crop_and_resize_grad_boxes",
    "crop_and_resize_grad_images",
    "roi_align_forward",
    "roi_align_grad_boxes",
    "roi_align_grad_features",
]
dtypes = st.sampled_from([np.float32, np.float64])
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


# roi_align


@given(regions(), dtypes, st.booleans())
def test_roi_align_forward(case: Regions, dtype, whole):
    features, _ = drawn(case, dtype)
    boxes = rough(case.boxes, case, whole).astype(dtype)
    arguments = {"size": case.size, **case.sampling}
    specified = ops.roi_align_forward.specification
    sizes = specified(abs(features), boxes, case.image_index, **arguments)
    count = sum(case.features_shape[1:3]) + roundings(case, boxes)
    assert_close(
        roi.roi_align_forward(features, boxes, case.image_index, **arguments),
        specified(features, boxes, case.image_index, **arguments),
        2 * (count + 1) * UNIT[dtype] * sizes,
    )


@given(regions(), dtypes, st.booleans())
def test_roi_align_grad_features(case: Regions, dtype, whole):
    features, u = drawn(case, dtype)
    boxes = rough(case.boxes, case, whole).astype(dtype)
    arguments = {"input_shape": features.shape, **case.sampling}
    specified = ops.roi_align_grad_features.specification
    sizes = specified(abs(u), boxes, case.image_index, **arguments)
    count = sum(case.size) + len(boxes) + roundings(case, boxes)
    assert_close(
        roi.roi_align_grad_features(u, boxes, case.image_index, **arguments),
        specified(u, boxes, case.image_index, **arguments),
        2 * (count + 1) * UNIT[dtype] * sizes,
    )


@given(regions(), dtypes, st.booleans())
def test_roi_align_grad_boxes(case: Regions, dtype, whole):
    """A bin's gradient is at most |u| times the difference of two features; the edges of a box share it."""
    features, u = drawn(case, dtype)
    boxes = rough(case.boxes, case, whole).astype(dtype)
    sizes = abs(u).sum(axis=(1, 2, 3)) * 2 * np.max(abs(features)) * 2 * case.spatial_scale
    count = u[:1].size + sum(case.features_shape[1:3]) + roundings(case, boxes) * (1 + max(case.size))
    assert_close(
        roi.roi_align_grad_boxes(u, features, boxes, case.image_index, **case.sampling),
        ops.roi_align_grad_boxes.specification(u, features, boxes, case.image_index, **case.sampling),
        2 * (count + 1) * UNIT[dtype] * sizes[:, None],
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_adaptive_sampling_of_boxes_without_extent(dtype):
    """They take no sample at all: zeros, alone or beside others."""
    empty, other = [3.0, 2.0, 3.0, 2.0], [1.0, 1.0, 4.0, 3.0]
    features = np.arange(30, dtype=dtype).reshape(1, 5, 6, 1)
    sampling = {"spatial_scale": 1.0, "sampling_ratio": 0, "aligned": True}
    for boxes in ([empty], [empty, other], [other, empty, empty]):
        array, index = np.array(boxes, dtype), np.zeros(len(boxes), np.int64)
        pooled = roi.roi_align_forward(features, array, index, size=(2, 2), **sampling)
        u = np.ones_like(pooled)
        grads = roi.roi_align_grad_boxes(u, features, array, index, **sampling)
        scattered = roi.roi_align_grad_features(u, array, index, input_shape=features.shape, **sampling)
        for position, box in enumerate(boxes):
            assert (not pooled[position].any() and not grads[position].any()) == (box == empty)
        assert scattered.sum() == pytest.approx(4 * boxes.count(other))  # the weights of a bin add up to 1


# crop_and_resize


@given(regions(), dtypes, st.booleans())
def test_crop_and_resize_forward(case: Regions, dtype, whole):
    images, _ = drawn(case, dtype)
    boxes = rough(case.normalized_boxes, case, whole).astype(dtype)
    arguments = {"size": case.size, "extrapolation_value": 0.0}
    specified = ops.crop_and_resize_forward.specification
    sizes = specified(abs(images), boxes, case.image_index, **arguments)
    arguments["extrapolation_value"] = 100.0
    bound = 2 * (sum(images.shape[1:3]) + 8) * UNIT[dtype] * sizes
    actual = roi.crop_and_resize_forward(images, boxes, case.image_index, **arguments)
    expected = specified(images, boxes, case.image_index, **arguments)
    np.testing.assert_array_equal(actual == 100, expected == 100)
    assert_close(actual, expected, bound)


@given(regions(), dtypes, st.booleans())
def test_crop_and_resize_grad_images(case: Regions, dtype, whole):
    images, u = drawn(case, dtype)
    boxes = rough(case.normalized_boxes, case, whole).astype(dtype)
    specified = ops.crop_and_resize_grad_images.specification
    sizes = specified(abs(u), boxes, case.image_index, input_shape=images.shape)
    assert_close(
        roi.crop_and_resize_grad_images(u, boxes, case.image_index, input_shape=images.shape),
        specified(u, boxes, case.image_index, input_shape=images.shape),
        2 * (sum(case.size) + len(boxes) + 8) * UNIT[dtype] * sizes,
    )


@given(regions(), dtypes, st.booleans())
def test_crop_and_resize_grad_boxes(case: Regions, dtype, whole):
    images, u = drawn(case, dtype)
    boxes = rough(case.normalized_boxes, case, whole).astype(dtype)
    sizes = abs(u).sum(axis=(1, 2, 3)) * 2 * np.max(abs(images)) * max(case.features_shape[1:3])
    assert_close(
        roi.crop_and_resize_grad_boxes(u, images, boxes, case.image_index),
        ops.crop_and_resize_grad_boxes.specification(u, images, boxes, case.image_index),
        2 * (u[:1].size + sum(images.shape[1:3]) + 16) * UNIT[dtype] * sizes[:, None],
    )


# all


def large(seed: int) -> dict[str, Any]:
    """Arguments as a training step has them: boxes of many sizes on a map of 32 x 32 pixels and 64 channels."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 100, (40, 2))
    boxes = np.concatenate([low, np.minimum(low + rng.uniform(2, 90, (40, 2)), 128)], axis=1).astype(np.float32)
    return {
        "features": rng.standard_normal((2, 32, 32, 64)).astype(np.float32),
        "boxes": boxes,
        "image_index": rng.integers(0, 2, 40),
        "grad_output": rng.standard_normal((40, 7, 7, 64)).astype(np.float32),
    }


def run_all(
    features: np.ndarray, boxes: np.ndarray, image_index: np.ndarray, grad_output: np.ndarray
) -> dict[str, np.ndarray]:
    """What all six kernels make of the arguments."""
    sampling = {"spatial_scale": 0.25, "sampling_ratio": 2, "aligned": False}
    normalized, shape, size = boxes / 128, {"input_shape": features.shape}, {"size": grad_output.shape[1:3]}
    extrapolation = {"extrapolation_value": 0.0}
    return {
        "roi_align_forward": roi.roi_align_forward(features, boxes, image_index, **size, **sampling),
        "roi_align_grad_features": roi.roi_align_grad_features(grad_output, boxes, image_index, **shape, **sampling),
        "roi_align_grad_boxes": roi.roi_align_grad_boxes(grad_output, features, boxes, image_index, **sampling),
        "crop_and_resize_forward": roi.crop_and_resize_forward(
            features, normalized, image_index, **size, **extrapolation
        ),
        "crop_and_resize_grad_images": roi.crop_and_resize_grad_images(grad_output, normalized, image_index, **shape),
        "crop_and_resize_grad_boxes": roi.crop_and_resize_grad_boxes(grad_output, features, normalized, image_index),
    }


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_inputs_give_the_same_bits_whatever_their_layout(seed):
    arguments = large(seed)
    expected = run_all(**arguments)
    for name, result in run_all(**{key: np.asfortranarray(array) for key, array in arguments.items()}).items():
        np.testing.assert_array_equal(result, expected[name], err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_have_the_signature_of_their_specification(name):
    assert KERNELS[name] is getattr(roi, name)
    specified = signature(getattr(ops, name).specification).parameters.values()
    actual = signature(KERNELS[name]).parameters.values()
    assert [(p.name, p.kind, p.default) for p in actual] == [(p.name, p.kind, p.default) for p in specified]
