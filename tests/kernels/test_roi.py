"""The CPU kernels of roi_align and crop_and_resize against their specifications."""

from inspect import signature
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refnet.ops as ops
from refnet.kernels.cpu import KERNELS, blas, roi
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


def bulky(channels: int, regions: int = 24) -> tuple[Regions, dict[str, Any]]:
    """Boxes of two images that take every path: several groups of bins, products in pieces, more than one thread."""
    rng = np.random.default_rng(3)
    low = rng.uniform(-8, 120, (regions, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 130, (regions, 2))], axis=1)
    boxes[0] = [-20, -10, 300, 200]  # reaches over the whole image, and beyond
    boxes[1] = [90, 60, 10, 5]  # runs backwards
    case = Regions(
        features_shape=(2, 40, 48, channels), boxes=boxes, image_index=rng.integers(0, 2, regions), size=(14, 9),
        spatial_scale=0.25, sampling_ratio=2, aligned=True, seed=5,
    )  # fmt: skip
    return case, {"dtype": np.float32, "whole": True}


@pytest.mark.parametrize("product", ["of BLAS", "of NumPy"])
@pytest.mark.parametrize("channels", [1, 96])
@pytest.mark.parametrize("name", CHECKS)
def test_large_regions_in_groups_and_threads(name, channels, product, thread_count, monkeypatch):
    """Where BLAS can't be reached, its products are made by NumPy and added; threads share the regions, or the rows."""
    if product == "of NumPy":
        monkeypatch.setattr(blas, "function", lambda dtype: None)
    monkeypatch.setattr(roi, "LEAST", 0)
    case, how = bulky(channels)
    CHECKS[name](getattr(roi, name), case, **how)
    monkeypatch.setattr(blas, "UNPACKED", 20_000)  # products in several pieces
    CHECKS[name](getattr(roi, name), case, **how)


def test_image_indices_of_one_byte():
    """From the fifth image on, lines have numbers that a byte doesn't hold."""
    arguments = large(0)
    arguments["features"] = np.tile(arguments["features"], (5, 1, 1, 1))
    arguments["image_index"] = np.arange(40) % 10
    expected = run_all(**arguments)
    for name, result in run_all(**arguments | {"image_index": arguments["image_index"].astype(np.int8)}).items():
        np.testing.assert_array_equal(result, expected[name], err_msg=name)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_inputs_give_the_same_bits_twice(seed, thread_count):
    arguments = large(seed)
    first, second = run_all(**arguments), run_all(**arguments)
    for name, result in first.items():
        np.testing.assert_array_equal(result, second[name], err_msg=name)


def test_threads_share_the_rows_by_the_windows_that_lie_over_them(monkeypatch):
    """Three of four windows lie over the last ten of forty rows: the second of two bands begins among these."""
    monkeypatch.setattr(roi, "count", lambda: 2)
    tops, bottoms = np.array([0, 30, 30, 30]), np.array([10, 40, 40, 40])
    assert roi._bands(tops, bottoms, 40, roi.LEAST) == [slice(0, 33), slice(33, 40)]
    assert roi._bands(tops, bottoms, 40, roi.LEAST - 1) == [slice(0, 40)]


def test_groups_cover_what_their_bins_touch():
    """Every weight that isn't zero lies in its bin's group, and bins are in one group each, in order."""
    rng = np.random.default_rng(0)
    shares = np.sort(rng.uniform(0, 1, (30, 28)), axis=1).reshape(30, 14, 2)
    shares[::3] = shares[::3, ::-1]
    axis = roi.make_axis(shares * np.linspace(4, 70, 30)[:, None, None] - 3, 64, margin=1)
    assert {len(groups) for groups in axis.groups} >= {1, 2, 3, 4}
    for groups, weights in zip(axis.groups, axis.weights, strict=True):
        outside = weights != 0
        for first, behind, start, stop in groups:
            outside[first:behind, start:stop] = False
        assert not outside.any()
        assert [(a, b) for a, b, _, _ in groups] == [(a, b) for a, b in pairwise([0, *(b for _, b, _, _ in groups)])]
        assert groups[-1][1] == 14


@pytest.mark.parametrize("name", CHECKS)
def test_kernels_have_the_signature_of_their_specification(name):
    assert KERNELS[name] is getattr(roi, name)
    specified = signature(getattr(ops, name).specification).parameters.values()
    actual = signature(KERNELS[name]).parameters.values()
    assert [(p.name, p.kind, p.default) for p in actual] == [(p.name, p.kind, p.default) for p in specified]
