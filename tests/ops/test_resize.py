"""Resizing: literal cases, properties, gradients, PyTorch and Keras."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet.autograd import Tensor
from refnet.errors import ArgumentError, ShapeError
from refnet.ops import resize_bicubic, resize_bilinear, resize_nearest, upsample_add, upsample_nearest
from refnet.testing import check_gradients
from refnet.testing.strategies.geometry import pairs, seeds
from tests.golden import matterport_rules

sizes = pairs(1, 8)


def row(*pixels: float) -> Tensor:
    """One image of one row and one channel."""
    return Tensor(np.array(pixels, dtype=np.float64).reshape(1, 1, -1, 1))


# literal cases


@pytest.mark.parametrize(
    ("size", "expected"), [(4, [1, 1, 2, 2]), (3, [1, 1, 2]), (1, [1]), (5, [1, 1, 1, 2, 2]), (2, [1, 2])]
)
def test_nearest_rounds_down(size, expected):
    np.testing.assert_array_equal(resize_nearest(row(1, 2), (1, size)).data.ravel(), expected)


def test_nearest_takes_rows_and_columns():
    x = Tensor(np.array([[1.0, 2], [3, 4]]).reshape(1, 2, 2, 1))
    np.testing.assert_array_equal(resize_nearest(x, (2, 4)).data[0, :, :, 0], [[1, 1, 2, 2], [3, 3, 4, 4]])
    np.testing.assert_array_equal(upsample_nearest(x, (2, 1)).data[0, :, :, 0], [[1, 2], [1, 2], [3, 4], [3, 4]])


def test_bilinear_aligns_the_outer_edges():
    np.testing.assert_array_equal(resize_bilinear(row(0, 4), (1, 4)).data.ravel(), [0, 1, 3, 4])
    np.testing.assert_array_equal(resize_bilinear(row(0, 4, 8, 12), (1, 2)).data.ravel(), [2, 10])
    np.testing.assert_array_equal(resize_bilinear(row(0, 8), 1).data.ravel(), [4])


def test_bilinear_aligns_the_outer_centres_when_asked():
    y = resize_bilinear(row(0, 6), (1, 4), align_corners=True)
    np.testing.assert_allclose(y.data.ravel(), [0, 2, 4, 6], rtol=4e-16)
    np.testing.assert_array_equal(resize_bilinear(row(3, 6), (1, 1), align_corners=True).data.ravel(), [3])


def test_bicubic_weighs_four_pixels():
    """The kernel is 19/32 at a half and -3/32 at one and a half; outside of the image the outermost pixels go on."""
    np.testing.assert_array_equal(resize_bicubic(row(32, 0, 0, 0), (1, 2)).data.ravel(), [19 - 3, 0])
    np.testing.assert_array_equal(resize_bicubic(row(0, 32, 0, 0), (1, 2)).data.ravel(), [19, -3])


# properties


@given(sizes, sizes, st.booleans())
def test_a_constant_stays(source, size, align_corners):
    x = Tensor(np.full((1, *source, 2), 0.7))
    assert (resize_nearest(x, size).data == 0.7).all()
    np.testing.assert_allclose(resize_bilinear(x, size, align_corners=align_corners).data, 0.7, rtol=1e-14)
    np.testing.assert_allclose(resize_bicubic(x, size).data, 0.7, rtol=1e-14)


@given(sizes, seeds, st.booleans())
def test_its_own_size_changes_nothing(size, seed, align_corners):
    x = np.random.default_rng(seed).standard_normal((2, *size, 2))
    np.testing.assert_array_equal(resize_nearest(Tensor(x), size).data, x)
    np.testing.assert_array_equal(resize_bilinear(Tensor(x), size, align_corners=align_corners).data, x)
    np.testing.assert_array_equal(resize_bicubic(Tensor(x), size).data, x)


@given(pairs(2, 8), pairs(2, 12))
def test_a_ramp_stays_a_ramp(source, size):
    """f(y, x) = 3 y - x at the sampled coordinates, wherever no sample lies outside of the outer centres."""
    rows, columns = ((np.arange(n) + 0.5) * (s / n) - 0.5 for s, n in zip(source, size, strict=True))
    ramp = 3.0 * np.arange(source[0])[:, None] - np.arange(source[1])
    y = resize_bilinear(Tensor(ramp[None, :, :, None]), size).data[0, :, :, 0]
    expected = 3 * rows.clip(0, source[0] - 1)[:, None] - columns.clip(0, source[1] - 1)
    np.testing.assert_allclose(y, expected, atol=1e-13)


@given(sizes, sizes, seeds)
def test_the_gradient_adds_up_what_was_copied(source, size, seed):
    rng = np.random.default_rng(seed)
    x = Tensor(rng.integers(-3, 4, (2, *source, 2)).astype(np.float64), requires_grad=True)
    y = resize_nearest(x, size)
    u = rng.integers(-3, 4, y.shape).astype(np.float64)
    y.backward(u)
    assert (x.grad * x.data).sum() == (u * y.data).sum()


@given(pairs(1, 4), pairs(1, 3))
def test_upsampling_is_resizing_by_whole_factors(source, factor):
    x = Tensor(np.arange(float(source[0] * source[1])).reshape(1, *source, 1))
    expected = resize_nearest(x, (source[0] * factor[0], source[1] * factor[1])).data
    np.testing.assert_array_equal(upsample_nearest(x, factor).data, expected)


@given(sizes, sizes, seeds)
def test_upsample_add_is_the_sum_of_its_parts(source, size, seed):
    rng = np.random.default_rng(seed)
    coarse, fine = (Tensor(rng.standard_normal((2, *s, 2)), requires_grad=True) for s in (source, size))
    apart_coarse, apart_fine = (Tensor(x.data, requires_grad=True) for x in (coarse, fine))
    total, expected = upsample_add(coarse, fine), apart_fine + resize_nearest(apart_coarse, size)
    np.testing.assert_array_equal(total.data, expected.data)
    u = rng.standard_normal(total.shape)
    total.backward(u)
    expected.backward(u)
    np.testing.assert_array_equal(coarse.grad, apart_coarse.grad)
    np.testing.assert_array_equal(fine.grad, apart_fine.grad)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [(4, 6), (3, 5)])
@pytest.mark.parametrize("resize", [resize_nearest, resize_bilinear, resize_bicubic])
def test_the_type_of_the_input_is_kept(resize, size, dtype):
    x = Tensor(np.ones((1, 2, 3, 2), dtype), requires_grad=True)
    y = resize(x, size)
    y.backward(np.ones(y.shape, dtype))
    assert y.dtype == dtype
    assert x.grad.dtype == dtype


@pytest.mark.parametrize("size", [(4, 6), (3, 5)])
@pytest.mark.parametrize("resize", [resize_nearest, resize_bilinear, resize_bicubic])
def test_a_batch_may_be_empty(resize, size):
    x = Tensor(np.ones((0, 2, 3, 2)), requires_grad=True)
    y = resize(x, size)
    assert y.shape == (0, *size, 2)
    y.backward(y.data)
    assert x.grad.shape == x.shape


# gradients


@given(sizes, sizes, st.booleans(), seeds)
def test_gradients(source, size, align_corners, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, *source, 2))
    check_gradients(lambda x: resize_nearest(x, size), x, rng=rng)
    check_gradients(lambda x: resize_bilinear(x, size, align_corners=align_corners), x, rng=rng)
    check_gradients(lambda x: resize_bicubic(x, size), x, rng=rng)


# other libraries


@given(source=sizes, size=sizes, seed=seeds)
def test_equal_torch(torch, source, size, seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((2, *source, 2))
    interpolate = torch.nn.functional.interpolate
    for ours, options in (
        (resize_nearest, {"mode": "nearest"}),
        (resize_bilinear, {"mode": "bilinear", "align_corners": False}),
        (lambda x, size: resize_bilinear(x, size, align_corners=True), {"mode": "bilinear", "align_corners": True}),
        (resize_bicubic, {"mode": "bicubic", "align_corners": False}),
    ):
        x = Tensor(values, requires_grad=True)
        tx = torch.tensor(values.transpose(0, 3, 1, 2).copy(), requires_grad=True)
        y, ty = ours(x, size), interpolate(tx, size, **options)
        u = rng.standard_normal(y.shape)
        y.backward(u)
        ty.backward(torch.tensor(u.transpose(0, 3, 1, 2).copy()))
        np.testing.assert_allclose(y.data, ty.detach().numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-10)
        np.testing.assert_allclose(x.grad, tx.grad.numpy().transpose(0, 2, 3, 1), rtol=0, atol=1e-10)


def test_upsampling_equals_keras():
    golden = matterport_rules.load("same_padding")
    y = upsample_nearest(Tensor(matterport_rules.normal("up/x", (1, 3, 4, 2))), 2)
    np.testing.assert_array_equal(y.data, golden["up.y"])


# errors


@pytest.mark.parametrize("resize", [resize_nearest, resize_bilinear, resize_bicubic])
def test_errors_say_what_was_expected(resize):
    with pytest.raises(ShapeError, match=r"expected x \(N, H, W, C\) with at least one pixel, got \(2, 2, 1\)"):
        resize(Tensor(np.ones((2, 2, 1))), 2)
    with pytest.raises(ShapeError, match="with at least one pixel"):
        resize(Tensor(np.ones((1, 0, 2, 1))), 2)
    with pytest.raises(ArgumentError, match="size must be one or two integers of at least 1, got 0"):
        resize(Tensor(np.ones((1, 2, 2, 1))), 0)
    with pytest.raises(ArgumentError, match="factor must be"):
        upsample_nearest(Tensor(np.ones((1, 2, 2, 1))), 0)


def test_upsample_add_takes_images_that_belong_together():
    x = Tensor(np.ones((1, 2, 2, 3)))
    for other in (np.ones((2, 4, 4, 3)), np.ones((1, 4, 4, 1))):
        with pytest.raises(ShapeError, match="upsample_add: expected the same images and channels"):
            upsample_add(x, Tensor(other))
    with pytest.raises(ShapeError, match=r"upsample_add: expected x \(N, H, W, C\)"):
        upsample_add(x, Tensor(np.ones((4, 4, 3))))
