"""Region sampling: the hat function, its borders and its derivative; the products with two matrices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet.ops.sampling import (
    grad_matrices,
    hat_derivative,
    hat_weights,
    inside,
    sample_regions,
    scatter_regions,
)
from refnet.testing.strategies.geometry import seeds

lengths = st.integers(1, 12)
margins = st.sampled_from([0, 1])


def coordinates_within(length: int, rng: np.random.Generator) -> np.ndarray:
    """Coordinates between the outermost pixel centres, some of them integers."""
    return np.concatenate([rng.uniform(0, length - 1, 20), np.arange(length)])


def integers(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Small whole numbers, with which sums of products are exact."""
    return rng.integers(-3, 4, shape).astype(np.float64)


@pytest.mark.parametrize(
    ("coordinate", "margin", "weights"),
    [
        (0.0, 0, [1, 0, 0]),
        (0.25, 0, [0.75, 0.25, 0]),
        (1.0, 0, [0, 1, 0]),
        (1.5, 0, [0, 0.5, 0.5]),
        (2.0, 0, [0, 0, 1]),
        (2.25, 0, [0, 0, 0]),
        (-0.25, 0, [0, 0, 0]),
        (2.25, 1, [0, 0, 1]),
        (3.0, 1, [0, 0, 1]),
        (3.25, 1, [0, 0, 0]),
        (-0.75, 1, [1, 0, 0]),
        (-1.0, 1, [1, 0, 0]),
        (-1.25, 1, [0, 0, 0]),
    ],
)
def test_weights_of_three_pixels(coordinate, margin, weights):
    np.testing.assert_array_equal(hat_weights(np.array([coordinate]), 3, margin=margin), [weights])


@pytest.mark.parametrize(
    ("coordinate", "margin", "derivative"),
    [
        (0.25, 0, [-1, 1, 0]),
        (1.75, 0, [0, -1, 1]),
        (1.0, 0, [0, 0, 0]),
        (2.25, 0, [0, 0, 0]),
        (2.25, 1, [0, 0, 0]),
        (-0.5, 1, [0, 0, 0]),
        (3.5, 1, [0, 0, 0]),
    ],
)
def test_derivatives_for_three_pixels(coordinate, margin, derivative):
    np.testing.assert_array_equal(hat_derivative(np.array([coordinate]), 3, margin=margin), [derivative])


@given(lengths, margins, seeds)
def test_weights_inside_add_up_to_one_and_reproduce_ramps(length, margin, seed):
    coordinates = coordinates_within(length, np.random.default_rng(seed))
    weights = hat_weights(coordinates, length, margin=margin)
    u = 2.0**-53
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=0, atol=3 * u)
    np.testing.assert_allclose(weights @ np.arange(length), coordinates, rtol=0, atol=4 * u * length)


@given(lengths, margins, st.floats(-3, 15))
def test_outside_of_the_margin_nothing_counts(length, margin, coordinate):
    weights = hat_weights(np.array([coordinate]), length, margin=margin)
    counts = -margin <= coordinate <= length - 1 + margin
    assert inside(np.array([coordinate]), length, margin=margin)[0] == counts
    np.testing.assert_allclose(weights.sum(), float(counts), rtol=0, atol=2.0**-51)


@given(lengths, margins, st.integers(-24, 100))
def test_the_derivative_is_the_slope(length, margin, eighths):
    """At odd eighths no kink is near, and differences of dyadic numbers are exact."""
    coordinate = np.array([(2 * eighths + 1) / 8])
    step = 2.0**-6
    above, below = (hat_weights(coordinate + s, length, margin=margin) for s in (step, -step))
    np.testing.assert_array_equal(hat_derivative(coordinate, length, margin=margin), (above - below) / (2 * step))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_data_type_is_that_of_the_coordinates(dtype):
    coordinates = np.array([[0.5, 1.5]], dtype)
    for function in (hat_weights, hat_derivative):
        result = function(coordinates, 4, margin=0)
        assert result.dtype == dtype
        assert result.shape == (1, 2, 4)


@given(st.integers(0, 4), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), seeds)
def test_the_three_adjoints(count, h, w, p, q, seed):
    """<Y f X^T, u> is linear in f, Y and X: its gradients give it back, exactly on small integers."""
    rng = np.random.default_rng(seed)
    images, u = integers((2, h, w, 3), rng), integers((count, p, q, 3), rng)
    rows, columns = integers((count, p, h), rng), integers((count, q, w), rng)
    image_index = rng.integers(0, 2, count)
    product = (sample_regions(images, image_index, rows, columns) * u).sum()
    assert product == np.einsum("rph,rhwc,rqw,rpqc->", rows, images[image_index], columns, u)
    assert product == (images * scatter_regions(u, image_index, rows, columns, images.shape)).sum()
    grad_rows, grad_columns = grad_matrices(u, images, image_index, rows, columns)
    assert product == (rows * grad_rows).sum()
    assert product == (columns * grad_columns).sum()
