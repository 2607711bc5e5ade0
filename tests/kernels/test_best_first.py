"""The CPU kernel of best_first: the order of a stable sort, whatever the numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from refnet import ops
from refnet.kernels.cpu.best_first import best_first

any_numbers = st.floats(width=32)  # NaN of many kinds, infinities, both zeros and the smallest numbers among them
few_numbers = st.sampled_from([0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), -float("inf")])


@given(
    arrays(np.float32, array_shapes(max_dims=3, min_side=0, max_side=12), elements=st.one_of(any_numbers, few_numbers)),
    st.integers(0, 15),
)
def test_any_float32(scores, limit):
    expected = ops.best_first.specification(scores, limit=limit)
    actual = best_first(scores, limit=limit)
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("limit", [0, 1, 2000, 20_000, 30_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_scores_in_any_layout(limit, dtype):
    scores = np.random.default_rng(0).integers(-999, 999, (20_000, 2)).astype(dtype).T[:, ::-1]
    np.testing.assert_array_equal(
        best_first(scores, limit=limit), np.argsort(-scores, axis=-1, kind="stable")[:, :limit]
    )
