"""Dropout: literal cases, properties, gradients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from refnet.autograd import Tensor
from refnet.errors import ArgumentError
from refnet.ops import dropout
from refnet.testing import check_gradients
from refnet.testing.strategies.geometry import seeds


def test_what_is_kept_grows():
    x = Tensor(np.ones(1000))
    y = dropout(x, rate=0.75, rng=np.random.default_rng(0))
    assert set(y.data.tolist()) == {0.0, 4.0}


def test_a_rate_of_0_changes_nothing():
    x = np.random.default_rng(0).standard_normal(100)
    np.testing.assert_array_equal(dropout(Tensor(x), rate=0, rng=np.random.default_rng(1)).data, x)


def test_the_rate_is_the_share_that_is_dropped():
    """Of n = 10,000 elements np ± 5 sqrt(np(1 - p)) are dropped; the seed is fixed, so this can't fail by chance."""
    dropped = (dropout(Tensor(np.ones(10_000)), rate=0.3, rng=np.random.default_rng(2)).data == 0).sum()
    assert abs(dropped - 3000) < 5 * np.sqrt(10_000 * 0.3 * 0.7)


@given(array_shapes(), seeds, st.floats(0, 0.99))
def test_both_precisions_drop_the_same_elements(shape, seed, rate):
    single, double = (
        dropout(Tensor(np.ones(shape, dtype)), rate=rate, rng=np.random.default_rng(seed)).data
        for dtype in (np.float32, np.float64)
    )
    assert single.dtype == np.float32
    np.testing.assert_array_equal(single == 0, double == 0)


def test_one_generator_drops_others_the_next_time():
    rng = np.random.default_rng(0)
    first, second = (dropout(Tensor(np.ones(100)), rate=0.5, rng=rng).data for _ in range(2))
    assert (first != second).any()


@given(array_shapes(), seeds, st.floats(0, 0.9))
def test_gradients(shape, seed, rate):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    check_gradients(lambda x: dropout(x, rate=rate, rng=np.random.default_rng(seed)), x, rng=rng)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_rates_are_checked(rate):
    with pytest.raises(ArgumentError, match=r"rate must be in \[0, 1\), got"):
        dropout(Tensor(np.ones(1)), rate=rate, rng=np.random.default_rng(0))
