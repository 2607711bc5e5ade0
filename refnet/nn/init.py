"""How parameters start: initialisers are callables ``(shape, rng, dtype) -> array``.

Random ones draw in float64 and round once, so that a seed gives a float32 network that is the float64 one to the
last bit that float32 has.

The variance of most is set by the fans, the number of values that meet in one output (fan in) or that one input
spreads to (fan out). They are read off the shape, channels last:

==================================  =================  ==================
weight                              fan in             fan out
==================================  =================  ==================
linear (in, out)                    in                 out
convolution (kh, kw, C/g, O)        kh · kw · C / g    kh · kw · O
transposed conv. (kh, kw, C, O/g)   kh · kw · C        kh · kw · O / g
==================================  =================  ==================

Choice: PyTorch and Keras store the weight of a transposed convolution as that of the convolution whose adjoint it
is, and so call fan in what is fan out here, and the reverse. To start one as they do, exchange the modes.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np

from refnet.arrays import Array
from refnet.errors import ArgumentError, ShapeError
from refnet.nn.module import DType

Initializer: TypeAlias = Callable[[tuple[int, ...], np.random.Generator, DType], Array]
Mode: TypeAlias = Literal["fan_in", "fan_out"]


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """(fan in, fan out) of a weight: see the table at the head of this file.

    Raises:
        ShapeError: `shape` has fewer than two axes.
    """
    if len(shape) < 2:
        raise ShapeError(f"fans: a weight must have at least two axes (..., in, out), got shape {shape}")
    taps = math.prod(shape[:-2])
    return taps * shape[-2], taps * shape[-1]


def kaiming_normal(*, mode: Mode = "fan_in", a: float = 0.0) -> Initializer:
    """Normal with the deviation that keeps the variance through a rectifier (He et al. 2015, eq. 10, 14 and 15).

    .. math:: \\sigma = \\sqrt{\\frac{2}{(1 + a^2)\\, \\mathrm{fan}}}

    Args:
        mode: keep the variance of the activations ("fan_in") or of the gradients ("fan_out").
        a: the slope, below 0, of the activation that follows: 0 is ReLU, 1 none.
    """
    _check_mode(mode)

    def initialize(shape: tuple[int, ...], rng: np.random.Generator, dtype: DType) -> Array:
        return normal(_kaiming_deviation(shape, mode, a))(shape, rng, dtype)

    return initialize


def kaiming_uniform(*, mode: Mode = "fan_in", a: float = 0.0) -> Initializer:
    """Uniform with the deviation of :func:`kaiming_normal`: the bound is sqrt(3) times as large.

    Choice: PyTorch's layers start so with a = sqrt(5), which is a bound of 1 / sqrt(fan in); its FPN with a = 1.
    """
    _check_mode(mode)

    def initialize(shape: tuple[int, ...], rng: np.random.Generator, dtype: DType) -> Array:
        return uniform(math.sqrt(3) * _kaiming_deviation(shape, mode, a))(shape, rng, dtype)

    return initialize


def xavier_normal() -> Initializer:
    """Normal with a deviation of sqrt(2 / (fan in + fan out)) (Glorot and Bengio 2010, eq. 12)."""

    def initialize(shape: tuple[int, ...], rng: np.random.Generator, dtype: DType) -> Array:
        return normal(math.sqrt(2 / sum(fans(shape))))(shape, rng, dtype)

    return initialize


def xavier_uniform() -> Initializer:
    """Uniform with a bound of sqrt(6 / (fan in + fan out)) (Glorot and Bengio 2010, eq. 16); Keras' default."""

    def initialize(shape: tuple[int, ...], rng: np.random.Generator, dtype: DType) -> Array:
        return uniform(math.sqrt(6 / sum(fans(shape))))(shape, rng, dtype)

    return initialize


def normal(deviation: float) -> Initializer:
    """Normal with mean 0."""
    if not deviation >= 0:
        raise ArgumentError(f"normal: the deviation must not be negative, got {deviation}")

    def initialize(shape: tuple[int, ...], rng: np.random.Generator, dtype: DType) -> Array:
        return np.asarray(deviation * rng.standard_normal(shape), dtype)

    return initialize


def uniform(bound: float) -> Initializer:
    """Uniform between -`bound` and `bound`."""
    if not bound >= 0:
        raise ArgumentError(f"uniform: the bound must not be negative, got {bound}")

    def initialize(shape: tuple[int, ...], rng: np.random.Generator, dtype: DType) -> Array:
        return np.asarray(rng.uniform(-bound, bound, shape), dtype)

    return initialize


class Blank(np.random.Generator):
    """Draws zeros, so that a network which is about to be given its weights costs nothing to initialise."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def standard_normal(self, size: Any = None, *_: Any, **__: Any) -> Any:
        """Zeros."""
        return np.zeros(() if size is None else size)

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        """Zeros."""
        return np.zeros(() if size is None else size)


def constant(value: float) -> Initializer:
    """`value` everywhere; draws nothing from the generator."""

    def initialize(shape: tuple[int, ...], rng: np.random.Generator, dtype: DType) -> Array:
        return np.full(shape, value, dtype)

    return initialize


def zeros() -> Initializer:
    """0 everywhere; draws nothing from the generator."""
    return constant(0.0)


def _kaiming_deviation(shape: tuple[int, ...], mode: Mode, a: float) -> float:
    fan_in, fan_out = fans(shape)
    return math.sqrt(2 / ((1 + a**2) * (fan_in if mode == "fan_in" else fan_out)))


def _check_mode(mode: str) -> None:
    if mode not in ("fan_in", "fan_out"):
        raise ArgumentError(f'kaiming: the mode must be "fan_in" or "fan_out", got {mode!r}')
