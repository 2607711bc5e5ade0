"""The CPU kernels of roi_align and crop_and_resize against their specifications."""

from inspect import signature
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refnet.ops as ops
from refnet.kernels.cpu import KERNELS, roi
from refnet.testing.strategies.regions import Regions, regions
from tests.sampled_regions import CHECKS

dtypes = st.sampled_from([np.float32, np.float64])


@pytest.mark.parametrize("name", CHECKS)
@given(regions(), dtypes, st.booleans())
def test_the_specifications_values(name: str, case: Regions, dtype: Any, whole: bool) -> None:
    CHECKS[name](getattr(roi, name), case, dtype, whole)


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


@pytest.mark.parametrize("name", CHECKS)
def test_kernels_have_the_signature_of_their_specification(name):
    assert KERNELS[name] is getattr(roi, name)
    specified = signature(getattr(ops, name).specification).parameters.values()
    actual = signature(KERNELS[name]).parameters.values()
    assert [(p.name, p.kind, p.default) for p in actual] == [(p.name, p.kind, p.default) for p in specified]
