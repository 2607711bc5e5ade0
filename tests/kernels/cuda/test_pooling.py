"""Max pooling in the emulator: the specification's bits, its ties, its NaN and its order of sums."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet.errors import DTypeError, ShapeError
from refnet.kernels.cuda import KERNELS
from refnet.kernels.emulator import available
from refnet.testing.strategies.geometry import Pooling, poolings
from tests.kernels.cuda.comparison import assert_same, dtypes, layouts, schedules, specified

pytestmark = pytest.mark.skipif(not available(), reason="the emulator needs g++")

PLAIN = {"kernel_size": (2, 2), "stride": (2, 2), "padding": ((0, 0), (0, 0))}
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0]


@given(
    case=poolings(),
    channels=st.sampled_from([1, 4]),
    values=st.sampled_from(["any", "ties", "special"]),
    dtype=dtypes,
    layout=layouts,
    schedule=schedules,
)
def test_max_pool(case: Pooling, channels: int, values: str, dtype: type, layout, schedule: int):
    case = replace(case, x_shape=(*case.x_shape[:3], case.x_shape[3] * channels))
    rng = case.rng
    choices = {"any": rng.standard_normal, "ties": lambda s: rng.integers(-2, 3, s), "special": lambda s: rng.choice(SPECIAL, s)}  # fmt: skip
    x = layout(choices[values](case.x_shape).astype(dtype))
    assert_same("max_pool2d_forward", x, schedule=schedule, **case.parameters)
    y, place = specified("max_pool2d_forward", x, **case.parameters)
    g = layout(choices[values](y.shape).astype(dtype))
    assert_same("max_pool2d_grad", g, layout(place), input_size=x.shape[1:3], schedule=schedule, **case.parameters)


@pytest.mark.parametrize("channels", [64, 67])
def test_max_pool_of_a_stem(channels):
    rng = np.random.default_rng(0)
    x = rng.integers(-9, 10, (2, 14, 18, channels)).astype(np.float32)
    parameters = {"kernel_size": (3, 3), "stride": (2, 2), "padding": ((1, 1), (1, 1))}
    assert_same("max_pool2d_forward", x, **parameters)
    y, place = specified("max_pool2d_forward", x, **parameters)
    g = rng.standard_normal(y.shape).astype(np.float32)
    assert_same("max_pool2d_grad", g, place, input_size=(14, 18), schedule=1, **parameters)


def test_minus_infinity_behind_padding_of_minus_infinity():
    """The padding comes first, so it is the first of equals, and the gradient is lost there."""
    x = np.full((1, 1, 2, 1), -np.inf, np.float32)
    parameters = {"kernel_size": (1, 2), "stride": (1, 1), "padding": ((0, 0), (1, 1))}
    assert_same("max_pool2d_forward", x, **parameters)
    _, place = KERNELS["max_pool2d_forward"](x, **parameters)
    np.testing.assert_array_equal(place.ravel(), [0, 0, 0])


def test_an_empty_batch_and_no_channels():
    for shape in ((0, 4, 4, 3), (2, 4, 4, 0)):
        x = np.ones(shape, np.float32)
        assert_same("max_pool2d_forward", x, **PLAIN)
        assert_same("max_pool2d_grad", *specified("max_pool2d_forward", x, **PLAIN), input_size=(4, 4), **PLAIN)


def test_what_it_does_not_take():
    x, g = np.ones((1, 4, 4, 1), np.float32), np.ones((1, 2, 2, 1), np.float32)
    place = g.astype(np.int32)
    with pytest.raises(DTypeError, match="max_pool2d_forward: expected arrays that are all float32 or all float64"):
        KERNELS["max_pool2d_forward"](x.astype(np.float16), **PLAIN)
    with pytest.raises(ShapeError, match=r"max_pool2d_forward: expected x \(N, H, W, C\)"):
        KERNELS["max_pool2d_forward"](x[0], **PLAIN)
    with pytest.raises(ShapeError, match="larger than the padded image"):
        KERNELS["max_pool2d_forward"](x[:, :1], **PLAIN)
    with pytest.raises(DTypeError, match="place must be int32, got int64"):
        KERNELS["max_pool2d_grad"](g, place.astype(np.int64), input_size=(4, 4), **PLAIN)
    with pytest.raises(ShapeError, match=r"grad_output must have shape \(1, 3, 2, 1\)"):
        KERNELS["max_pool2d_grad"](g, place, input_size=(6, 4), **PLAIN)
    with pytest.raises(ShapeError, match="place must have shape"):
        KERNELS["max_pool2d_grad"](g, place[:, :1], input_size=(4, 4), **PLAIN)
