"""The CPU kernels of ROI pooling by the maximum: values and positions bit for bit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet import ops
from refnet.kernels.cpu import roi_pool
from refnet.testing import check_kernel
from refnet.testing.strategies.regions import Regions, regions
from tests.same_threads import same_threads

SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, np.inf, -np.inf, np.nan, -np.nan], np.float32)


@pytest.mark.parametrize("name", ["roi_pool_forward", "roi_pool_grad"])
def test_contracts(name, thread_count):
    check_kernel(getattr(ops, name), getattr(roi_pool, name), max_examples=40)


def both(features: np.ndarray, boxes: np.ndarray, index: np.ndarray, **how: Any) -> None:
    """The kernel's maxima, their positions and the gradient must be the specification's, down to the last bit."""
    output, source = roi_pool.roi_pool_forward(features, boxes, index, **how)
    expected, origin = ops.roi_pool_forward.specification(features, boxes, index, **how)
    np.testing.assert_array_equal(source, origin)
    np.testing.assert_array_equal(output, expected)
    assert output.dtype == expected.dtype
    u = np.random.default_rng(0).standard_normal(output.shape).astype(features.dtype)
    np.testing.assert_array_equal(
        roi_pool.roi_pool_grad(u, source, index, input_shape=features.shape),
        ops.roi_pool_grad.specification(u, source, index, input_shape=features.shape),
    )


@given(case=regions(), dtype=st.sampled_from([np.float32, np.float64]), few=st.booleans())
@same_threads
def test_the_first_of_equal_numbers(thread_count, case: Regions, dtype, few):
    """Of few different numbers many are equal; special ones are among them: of NaN the first counts, -0 equals 0."""
    rng = np.random.default_rng(case.seed)
    numbers = SPECIAL if few else rng.standard_normal(50)
    features = rng.choice(numbers, case.features_shape).astype(dtype)
    both(features, case.boxes.astype(dtype), case.image_index, size=case.size, spatial_scale=case.spatial_scale)


def test_a_map_of_several_images(thread_count):
    rng = np.random.default_rng(0)
    low = rng.uniform(-20, 500, (60, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 300, (60, 2))], axis=1).astype(np.float32)
    features = rng.integers(-9, 9, (3, 33, 30, 40)).astype(np.float32)
    both(features, boxes, rng.integers(0, 3, 60), size=(7, 5), spatial_scale=1 / 16)


def test_keys_keep_the_order_of_numbers():
    values = np.sort(np.concatenate([SPECIAL[:8], np.float32([3e38, -3e38, 0.5])]))
    keys = roi_pool._keys(values.reshape(1, -1, 1)).ravel()
    assert (np.diff(keys >> 32) >= 0).all()
    np.testing.assert_array_equal(roi_pool._values(keys), values)
