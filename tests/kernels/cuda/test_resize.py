"""Resizing in the emulator, against its specification.

A pixel that is copied, and sums of copies in the specification's order, must be equal; so must interpolation by a power
of two of small integers, whose weights and products are exact. Otherwise a result of K products obeys
|y - y*| <= (K + 6) u y*(|x|): each weight, the product of two weights, a product and K sums are rounded; the
specification's own weights are off by roundings of coordinates in float64.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.kernels.cuda import KERNELS
from refnet.kernels.emulator import available
from refnet.testing.strategies.geometry import pairs, seeds
from tests.kernels.cuda.comparison import (
    UNIT,
    assert_same,
    assert_within,
    dtypes,
    emulated,
    exact,
    layouts,
    schedules,
)

pytestmark = pytest.mark.skipif(not available(), reason="the emulator needs g++")

channels = st.sampled_from([1, 3, 4, 8])
sizes = pairs(1, 9)


def normal(seed: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@given(source=sizes, size=sizes, channels=channels, seed=seeds, dtype=dtypes, layout=layouts, schedule=schedules)
def test_nearest(source, size, channels, seed, dtype, layout, schedule):
    x, fine = (layout(normal(seed, (2, *extents, channels), dtype)) for extents in (source, size))
    assert_same("resize_nearest_forward", x, size=size, schedule=schedule)
    assert_same("upsample_add_forward", x, fine, schedule=schedule)
    (grad,) = emulated("resize_nearest_grad", fine, source=source, schedule=schedule)
    (expected,) = exact("resize_nearest_grad", fine, source=source)
    (size_of_sums,) = exact("resize_nearest_grad", abs(fine), source=source)
    assert_within(grad, expected, size[0] * size[1] * UNIT[dtype] * size_of_sums, dtype)


@given(source=sizes, factors=pairs(1, 4), channels=channels, seed=seeds, dtype=dtypes, schedule=schedules)
def test_the_gradient_of_whole_factors_has_the_specification_s_bits(source, factors, channels, seed, dtype, schedule):
    shape = (2, source[0] * factors[0], source[1] * factors[1], channels)
    assert_same("resize_nearest_grad", normal(seed, shape, dtype), source=source, schedule=schedule)


@given(
    source=sizes, size=sizes, align=st.booleans(), channels=channels, seed=seeds, dtype=dtypes, layout=layouts,
    schedule=schedules,
)  # fmt: skip
def test_bilinear(source, size, align, channels, seed, dtype, layout, schedule):
    x, g = (layout(normal(seed, (2, *extents, channels), dtype)) for extents in (source, size))
    coordinates = 8 * max(*source, *size) * 2.0**-52
    for name, array, products, parameters in (
        ("resize_bilinear_forward", x, 4, {"size": size}),
        ("resize_bilinear_grad", g, size[0] * size[1], {"source": source}),
    ):
        (found,) = emulated(name, array, align_corners=align, schedule=schedule, **parameters)
        (expected,) = exact(name, array, align_corners=align, **parameters)
        (terms,) = exact(name, abs(array), align_corners=align, **parameters)
        bound = (products + 6) * UNIT[dtype] * terms + products * coordinates * abs(array).max()
        assert_within(found, expected, bound, dtype)


@given(source=sizes, factors=st.sampled_from([1, 2, 4]), channels=channels, seed=seeds, dtype=dtypes)
def test_bilinear_by_a_power_of_two_is_exact(source, factors, channels, seed, dtype):
    rng = np.random.default_rng(seed)
    size = (factors * source[0], 2 * source[1])
    x, g = (rng.integers(-8, 9, (2, *extents, channels)).astype(dtype) for extents in (source, size))
    assert_same("resize_bilinear_forward", x, size=size, align_corners=False)
    assert_same("resize_bilinear_grad", g, source=source, align_corners=False)


def test_pixels_without_weight_are_not_read():
    """Where the specification multiplies by 0, what isn't finite stays where it is."""
    x = np.array([1, np.nan, 3, np.inf], np.float32).reshape(1, 1, 4, 1)
    (same,) = emulated("resize_bilinear_forward", x, size=(1, 4), align_corners=False)
    np.testing.assert_array_equal(same, x)
    (grad,) = emulated("resize_bilinear_grad", x, source=(1, 4), align_corners=False)
    np.testing.assert_array_equal(grad, x)


def test_a_row_of_many_blocks_and_a_pyramid_s_level():
    coarse, fine = normal(0, (1, 7, 11, 36), np.float32), normal(1, (1, 13, 22, 36), np.float32)
    assert_same("upsample_add_forward", coarse, fine, schedule=3)
    (grad,) = emulated("resize_nearest_grad", fine, source=(7, 11), schedule=3)
    (expected,) = exact("resize_nearest_grad", fine, source=(7, 11))
    assert_within(grad, expected, 4 * UNIT[np.float32] * exact("resize_nearest_grad", abs(fine), source=(7, 11))[0], np.float32)  # fmt: skip


def test_an_empty_batch_and_no_channels():
    for shape in ((0, 3, 2, 4), (2, 3, 2, 0)):
        x = np.ones(shape, np.float32)
        assert_same("resize_nearest_forward", x, size=(6, 4))
        assert_same("resize_nearest_grad", x, source=(3, 1))
        assert_same("upsample_add_forward", x, x)
        assert_same("resize_bilinear_forward", x, size=(6, 4), align_corners=False)
        assert_same("resize_bilinear_grad", x, source=(6, 4), align_corners=True)


def test_what_it_does_not_take():
    x = np.ones((1, 2, 2, 1), np.float32)
    with pytest.raises(DTypeError, match="resize_nearest_forward: expected arrays that are all float32"):
        KERNELS["resize_nearest_forward"](x.astype(int), size=(2, 2))
    with pytest.raises(DTypeError, match="upsample_add_forward: expected arrays that are all float32"):
        KERNELS["upsample_add_forward"](x, x.astype(np.float64))
    with pytest.raises(ShapeError, match=r"resize_bilinear_grad: expected .* with at least one pixel"):
        KERNELS["resize_bilinear_grad"](x[:, :0], source=(2, 2), align_corners=False)
    with pytest.raises(ShapeError, match="upsample_add_forward"):
        KERNELS["upsample_add_forward"](x, x[0])
    with pytest.raises(ShapeError, match="upsample_add_forward: fine must have shape"):
        KERNELS["upsample_add_forward"](x, np.ones((1, 4, 4, 2), np.float32))
    with pytest.raises(ArgumentError, match="resize_nearest_forward: twice the product"):
        KERNELS["resize_nearest_forward"](np.broadcast_to(x[:, :1], (1, 40000, 2, 1)), size=(40000, 2))
