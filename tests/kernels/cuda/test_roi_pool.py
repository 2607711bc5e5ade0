"""The CUDA kernels of ROI pooling, in the emulator: their specification's results bit for bit."""

from dataclasses import replace
from inspect import signature
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refnet.ops as ops
from refnet.errors import ShapeError
from refnet.kernels.cuda import KERNELS, roi_pool
from refnet.kernels.emulator import available, running, standin
from refnet.ops.roi_pool import NOWHERE
from refnet.testing.strategies.regions import Regions, regions
from tests.sampled_regions import rough

pytestmark = pytest.mark.skipif(not available(), reason="no g++: CUDA kernels aren't emulated")

types = st.sampled_from([np.float32, np.float64])
schedules = st.integers(0, 2**16)
specified = ops.roi_pool_forward.specification
specified_grad = ops.roi_pool_grad.specification


@given(regions(), types, st.booleans(), st.sampled_from([1, 3, 33]), schedules)
def test_maxima_and_where_they_are(case: Regions, dtype: Any, whole: bool, channels: int, schedule: int) -> None:
    """Of small whole numbers, so that a bin has its maximum more than once, and of some that aren't numbers."""
    case = replace(case, features_shape=(*case.features_shape[:3], channels))
    features = case.rng.integers(-3, 3, case.features_shape).astype(dtype)
    features[features == -3] = np.nan
    boxes = rough(case.boxes, case, whole).astype(dtype)
    arguments = {"size": case.size, "spatial_scale": case.spatial_scale}
    with running(mode="check", seed=schedule):
        output, source = roi_pool.roi_pool_forward(features, boxes, case.image_index, **arguments)
    expected, expected_source = specified(features, boxes, case.image_index, **arguments)
    np.testing.assert_array_equal(source, expected_source, strict=True)
    np.testing.assert_array_equal(output, expected, strict=True)


@given(regions(), types, st.booleans(), st.sampled_from([1, 3, 129]), schedules)
def test_gradients_are_summed_in_the_bins_order(
    case: Regions, dtype: Any, whole: bool, channels: int, schedule: int
) -> None:
    case = replace(case, features_shape=(*case.features_shape[:3], channels))
    rng = case.rng
    features = rng.standard_normal(case.features_shape).astype(dtype)
    boxes = rough(case.boxes, case, whole).astype(dtype)
    _, source = specified(features, boxes, case.image_index, size=case.size, spatial_scale=case.spatial_scale)
    grad_output = rng.standard_normal(case.output_shape).astype(dtype)
    with running(mode="check", seed=schedule):
        grad = roi_pool.roi_pool_grad(grad_output, source, case.image_index, input_shape=features.shape)
    expected = specified_grad(grad_output, source, case.image_index, input_shape=features.shape)
    np.testing.assert_array_equal(grad, expected, strict=True)


def drawn(regions: int) -> dict[str, Any]:
    """Arguments for boxes on two maps of 19 x 21 pixels."""
    rng = np.random.default_rng(regions)
    low = rng.uniform(-4, 36, (regions, 2))
    return {
        "features": rng.standard_normal((2, 19, 21, 5)).astype(np.float32),
        "boxes": np.concatenate([low, low + rng.uniform(1, 30, (regions, 2))], axis=1).astype(np.float32),
        "image_index": rng.integers(0, 2, regions),
    }


def test_more_bins_than_are_looked_at_at_a_time() -> None:
    arguments = drawn(100)
    with running(mode="check", seed=4):
        output, source = roi_pool.roi_pool_forward(**arguments, size=(2, 3), spatial_scale=0.5)
        grad = roi_pool.roi_pool_grad(output, source, arguments["image_index"], input_shape=(2, 19, 21, 5))
    expected, expected_source = specified(**arguments, size=(2, 3), spatial_scale=0.5)
    np.testing.assert_array_equal(source, expected_source)
    np.testing.assert_array_equal(
        grad, specified_grad(expected, expected_source, arguments["image_index"], input_shape=(2, 19, 21, 5))
    )


@pytest.mark.parametrize("image", [-1, 2])
def test_an_image_that_is_not_there_gives_nan(image: int) -> None:
    arguments = {**drawn(3), "image_index": np.array([0, image, 1])}
    with running(mode="check"):
        output, source = roi_pool.roi_pool_forward(**arguments, size=(2, 3), spatial_scale=0.5)
        grad = roi_pool.roi_pool_grad(output, source, arguments["image_index"], input_shape=(2, 19, 21, 5))
    assert np.isnan(output[1]).all()
    assert (source[1] == NOWHERE).all()
    rest = specified_grad(output[[0, 2]], source[[0, 2]], np.array([0, 1]), input_shape=(2, 19, 21, 5))
    np.testing.assert_array_equal(grad, rest)


@pytest.mark.parametrize(("regions", "channels"), [(0, 3), (2, 0)])
def test_nothing_to_do(regions: int, channels: int) -> None:
    features, boxes = np.ones((1, 3, 3, channels), np.float32), np.ones((regions, 4), np.float32)
    index = np.zeros(regions, np.int64)
    with running(mode="check"):
        output, source = roi_pool.roi_pool_forward(features, boxes, index, size=(2, 2), spatial_scale=1.0)
        grad = roi_pool.roi_pool_grad(output, source, index, input_shape=features.shape)
    assert output.shape == source.shape == (regions, 2, 2, channels)
    assert grad.shape == features.shape
    assert not grad.any()


def test_what_does_not_fit_together_is_refused() -> None:
    features, boxes, index = np.ones((1, 3, 3, 2), np.float32), np.ones((2, 4), np.float32), np.zeros(2, np.int64)
    with pytest.raises(ShapeError, match="one pixel"):
        roi_pool.roi_pool_forward(features[:, :0], boxes, index, size=(2, 2), spatial_scale=1.0)
    grad_output, source = np.ones((2, 2, 2, 3), np.float32), np.zeros((2, 2, 2, 3), np.int64)
    with pytest.raises(ShapeError, match="grad_output"):
        roi_pool.roi_pool_grad(grad_output, source, index, input_shape=features.shape)


def test_on_a_device_the_host_never_waits() -> None:
    arguments = {key: standin.asarray(array) for key, array in drawn(9).items()}
    with running(mode="check"), standin.counting() as counts:
        output, source = roi_pool.roi_pool_forward(**arguments, size=(2, 3), spatial_scale=0.5)
        roi_pool.roi_pool_grad(output, source, arguments["image_index"], input_shape=(2, 19, 21, 5))
    assert counts.synchronizations == counts.downloads == 0


@pytest.mark.parametrize("name", ["roi_pool_forward", "roi_pool_grad"])
def test_kernels_have_the_signature_of_their_specification(name: str) -> None:
    assert KERNELS[name] is getattr(roi_pool, name)
    expected = signature(getattr(ops, name).specification).parameters.values()
    actual = signature(KERNELS[name]).parameters.values()
    assert [(p.name, p.kind, p.default) for p in actual] == [(p.name, p.kind, p.default) for p in expected]
