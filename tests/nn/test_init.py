"""Initialisers: fans and scales against PyTorch's, the statistics of what is drawn."""

import math

import numpy as np
import pytest

from refnet.errors import ArgumentError, ShapeError
from refnet.nn import Conv2d, ConvTranspose2d, Linear, init

SHAPE = (3, 3, 64, 96)  # fan in 576, fan out 864
DEVIATIONS = {
    "kaiming_normal": (init.kaiming_normal(), math.sqrt(2 / 576)),
    "kaiming_normal fan_out": (init.kaiming_normal(mode="fan_out"), math.sqrt(2 / 864)),
    "kaiming_normal linear": (init.kaiming_normal(a=1.0), math.sqrt(1 / 576)),
    "kaiming_uniform": (init.kaiming_uniform(), math.sqrt(2 / 576)),
    "kaiming_uniform of PyTorch's layers": (init.kaiming_uniform(a=math.sqrt(5)), 1 / math.sqrt(3 * 576)),
    "kaiming_uniform fan_out": (init.kaiming_uniform(mode="fan_out", a=1.0), math.sqrt(1 / 864)),
    "xavier_normal": (init.xavier_normal(), math.sqrt(2 / 1440)),
    "xavier_uniform": (init.xavier_uniform(), math.sqrt(2 / 1440)),
    "normal": (init.normal(0.01), 0.01),
    "uniform": (init.uniform(0.3), 0.3 / math.sqrt(3)),
}


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.mark.parametrize("name", DEVIATIONS)
def test_mean_and_deviation_of_what_is_drawn(name: str) -> None:
    initialize, deviation = DEVIATIONS[name]
    values = initialize(SHAPE, rng(), np.float64)
    assert values.shape == SHAPE
    five_sigma = 5 / math.sqrt(values.size)
    assert abs(values.mean()) < deviation * five_sigma
    assert abs(values.std() / deviation - 1) < five_sigma  # the error of a deviation is at most this / sqrt(2)
    bound = math.sqrt(3) * deviation
    if "uniform" in name:
        assert 0.999 * bound < np.abs(values).max() <= bound
    else:
        assert np.abs(values).max() > 2 * bound


def test_fans_by_hand() -> None:
    assert init.fans((5, 7)) == (5, 7)
    assert init.fans((3, 2, 5, 7)) == (30, 42)
    with pytest.raises(ShapeError, match="two axes"):
        init.fans((3,))


def test_fans_are_pytorchs_and_reversed_for_the_transposed_convolution() -> None:
    torch = pytest.importorskip("torch", reason="fans are compared with PyTorch's")
    theirs = torch.nn.init._calculate_fan_in_and_fan_out
    assert init.fans(Linear(5, 7, rng=rng()).weight.shape) == theirs(torch.nn.Linear(5, 7).weight)
    ours = Conv2d(4, 6, (3, 2), groups=2, rng=rng())
    assert init.fans(ours.weight.shape) == theirs(torch.nn.Conv2d(4, 6, (3, 2), groups=2).weight)
    ours = ConvTranspose2d(4, 6, (3, 2), groups=2, rng=rng())
    assert init.fans(ours.weight.shape) == theirs(torch.nn.ConvTranspose2d(4, 6, (3, 2), groups=2).weight)[::-1]


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
@pytest.mark.parametrize("a", [0.0, 0.2, 1.0, math.sqrt(5)])
def test_scales_are_pytorchs(mode: str, a: float) -> None:
    torch = pytest.importorskip("torch", reason="scales are compared with PyTorch's")
    weight = torch.empty(96, 64, 3, 3, dtype=torch.float64)
    gain = torch.nn.init.calculate_gain("leaky_relu", a)
    deviation = gain / math.sqrt(torch.nn.init._calculate_correct_fan(weight, mode))
    # what multiplies a standard draw is the deviation itself
    ours = init.kaiming_normal(mode=mode, a=a)(SHAPE, rng(), np.float64)
    np.testing.assert_allclose(ours, deviation * rng().standard_normal(SHAPE), rtol=1e-14)
    ours = init.kaiming_uniform(mode=mode, a=a)(SHAPE, rng(), np.float64)
    np.testing.assert_allclose(ours, math.sqrt(3) * deviation * (2 * rng().random(SHAPE) - 1), rtol=0, atol=1e-15)


@pytest.mark.parametrize("name", DEVIATIONS)
def test_a_seed_gives_the_same_bits_and_float32_is_float64_rounded(name: str) -> None:
    initialize, _ = DEVIATIONS[name]
    double = initialize((3, 3, 4, 5), rng(), np.float64)
    single = initialize((3, 3, 4, 5), rng(), np.float32)
    np.testing.assert_array_equal(double, initialize((3, 3, 4, 5), rng(), np.float64))
    assert single.dtype == np.float32
    np.testing.assert_array_equal(single, double.astype(np.float32))


def test_constants_draw_nothing() -> None:
    generator = rng()
    np.testing.assert_array_equal(init.zeros()((2, 3), generator, np.float32), np.zeros((2, 3), np.float32))
    values = init.constant(-4.5)((4,), generator, np.float64)
    assert values.dtype == np.float64
    np.testing.assert_array_equal(values, [-4.5] * 4)
    assert generator.bit_generator.state == rng().bit_generator.state


def test_initialisers_reject() -> None:
    with pytest.raises(ArgumentError, match="deviation"):
        init.normal(-0.1)
    with pytest.raises(ArgumentError, match="bound"):
        init.uniform(float("nan"))
    with pytest.raises(ShapeError, match="two axes"):
        init.xavier_uniform()((3,), rng(), np.float32)
