"""The convolution kernels against their specifications, over any geometry, in exact order.

A sum of K products in precision u, in any order, obeys |y - y*| <= (K + 1) u sum |x| |w|; on small integers nothing is
rounded, and every order gives the same bits.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet import ops
from refnet.autograd import Tensor
from refnet.kernels.cpu import KERNELS
from refnet.kernels.cpu.conv import patches
from refnet.kernels.cpu.precision import precision
from refnet.testing import check_gradients
from refnet.testing.strategies.geometry import Convolution, convolutions
from tests.same_threads import same_threads


@pytest.fixture(autouse=True)
def exact_order() -> Iterator[None]:
    """Other plans have a bound of their own: test_conv_plan.py."""
    with precision("exact-order"):
        yield


UNIT = {np.float32: 2.0**-24, np.float64: 2.0**-53}

# from one output pixel a tile to all of them
tile_bytes = st.sampled_from([1, 300, 2000, patches.TILE_BYTES])


def cases(case: Convolution, x: np.ndarray, w: np.ndarray, u: np.ndarray) -> list[tuple[str, int, tuple, dict]]:
    """The three operations: name, products in a sum, arrays, parameters."""
    taps = math.prod(case.w_shape[:2])
    sizes = case.parameters
    return [
        ("conv2d_forward", taps * w.shape[2], (x, w), sizes),
        ("conv2d_grad_input", taps * w.shape[3] // case.groups, (u, w), {"input_size": x.shape[1:3], **sizes}),
        ("conv2d_grad_weight", u[..., 0].size, (x, u), {"kernel_size": w.shape[:2], **sizes}),
    ]


def draw(case: Convolution, sample: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]) -> list[np.ndarray]:
    rng = case.rng
    return [sample(rng, shape) for shape in (case.x_shape, case.w_shape, case.y_shape)]


@given(case=convolutions(least_images=0), tile=tile_bytes)
@same_threads
def test_equal_the_specification_bit_for_bit_on_integers(thread_count, case: Convolution, tile: int):
    arrays = draw(case, lambda rng, shape: rng.integers(-3, 4, shape).astype(np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "TILE_BYTES", tile)
        for name, _, inputs, parameters in cases(case, *arrays):
            y = KERNELS[name](*inputs, **parameters)
            assert y.dtype == np.float32
            np.testing.assert_array_equal(y, getattr(ops, name).specification(*inputs, **parameters), err_msg=name)


@given(case=convolutions(largest_channels=8), tile=tile_bytes, dtype=st.sampled_from([np.float32, np.float64]))
@same_threads
def test_are_within_the_bound_of_rounding(thread_count, case: Convolution, tile: int, dtype: type):
    arrays = draw(case, lambda rng, shape: rng.standard_normal(shape).astype(dtype))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "TILE_BYTES", tile)
        for name, products, inputs, parameters in cases(case, *arrays):
            y = KERNELS[name](*inputs, **parameters)
            specification = getattr(ops, name).specification
            reference = specification(*(a.astype(np.float64) for a in inputs), **parameters)
            size = specification(*(abs(a).astype(np.float64) for a in inputs), **parameters)
            bound = (products + 1) * (UNIT[dtype] + UNIT[np.float64]) * size  # the reference is rounded, too
            assert (abs(y - reference) <= bound).all(), name


@given(case=convolutions(least_images=0), given=st.lists(st.booleans(), min_size=4, max_size=4))
@same_threads
def test_the_fused_convolution_equals_its_steps_on_integers(thread_count, case: Convolution, given: list[bool]):
    rng = case.rng
    shapes = (case.x_shape, case.w_shape, case.w_shape[3:], case.w_shape[3:], case.y_shape)
    x, w, *extras = (rng.integers(-3, 4, shape).astype(np.float32) for shape in shapes)
    extras = [array if wanted else None for array, wanted in zip(extras, given, strict=False)]
    parameters = {"relu": given[3], **case.parameters}
    y = KERNELS["conv2d_fused_forward"](x, w, *extras, **parameters)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, ops.conv2d_fused_forward.specification(x, w, *extras, **parameters))


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "stride", "padding"),
    [
        ((2, 40, 37, 16), (3, 3, 16, 24), 1, 1),  # several tiles of one image
        ((70, 7, 7, 8), (7, 7, 8, 16), 1, 0),  # a fully connected layer as a convolution
        ((5, 33, 20, 3), (7, 7, 3, 8), 2, 3),  # a stem
        ((3, 30, 30, 32), (1, 1, 32, 16), 1, 0),  # no copy
        ((3, 30, 30, 32), (1, 1, 32, 16), 2, 0),  # most pixels of the input have no gradient
        ((9, 14, 14, 8), (2, 2, 8, 8), 2, 0),  # a mask head's transposed convolution
    ],
)
def test_layers_of_networks(thread_count, x_shape, w_shape, stride, padding):
    case = Convolution(
        x_shape=x_shape,
        w_shape=w_shape,
        stride=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dilation=(1, 1),
        groups=1,
        seed=0,
    )
    arrays = draw(case, lambda rng, shape: rng.integers(-3, 4, shape).astype(np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "TILE_BYTES", 1 << 16)
        for name, _, inputs, parameters in cases(case, *arrays):
            expected = getattr(ops, name).specification(*inputs, **parameters)
            np.testing.assert_array_equal(KERNELS[name](*inputs, **parameters), expected, err_msg=name)


def test_inputs_need_not_be_contiguous(thread_count):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (3, 9, 8, 2)).astype(np.float32)[:, ::-1].transpose(0, 2, 1, 3)
    w = rng.integers(-3, 4, (4, 3, 1, 1)).astype(np.float32).transpose(2, 3, 1, 0)[:, :, :2]
    u = np.broadcast_to(np.float32(2), (3, 8, 9, 4))
    case = Convolution(
        x_shape=x.shape, w_shape=w.shape, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1, seed=0
    )
    for name, _, inputs, parameters in cases(case, x, w, u):
        expected = getattr(ops, name).specification(*inputs, **parameters)
        np.testing.assert_array_equal(KERNELS[name](*inputs, **parameters), expected, err_msg=name)


def test_the_same_inputs_give_the_same_bits(thread_count):
    case = Convolution(
        x_shape=(6, 20, 20, 16),
        w_shape=(3, 3, 16, 16),
        stride=(1, 1),
        padding=((1, 1), (1, 1)),
        dilation=(1, 1),
        groups=1,
        seed=3,
    )
    arrays = draw(case, lambda rng, shape: rng.standard_normal(shape).astype(np.float32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "TILE_BYTES", 1 << 16)
        for name, _, inputs, parameters in cases(case, *arrays):
            first = KERNELS[name](*inputs, **parameters)
            for _ in range(5):
                np.testing.assert_array_equal(KERNELS[name](*inputs, **parameters), first, err_msg=name)


@given(convolutions())
def test_gradients_through_the_kernels(case: Convolution):
    x, w, _ = draw(case, lambda rng, shape: rng.standard_normal(shape))
    with (
        ops.conv2d_forward.using(KERNELS["conv2d_forward"]),
        ops.conv2d_grad_input.using(KERNELS["conv2d_grad_input"]),
        ops.conv2d_grad_weight.using(KERNELS["conv2d_grad_weight"]),
    ):
        check_gradients(lambda x, w: ops.conv2d(x, w, **case.parameters), x, w, rng=case.rng)
        y = ops.conv_transpose2d(Tensor(x), Tensor(np.ones((2, 2, x.shape[3], 1))), stride=2)
    expected = ops.conv_transpose2d(Tensor(x), Tensor(np.ones((2, 2, x.shape[3], 1))), stride=2)
    np.testing.assert_allclose(y.data, expected.data, atol=1e-12)
