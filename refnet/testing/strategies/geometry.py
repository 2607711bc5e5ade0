"""Hypothesis strategies for what convolutions and poolings are given: sizes, strides, paddings, dilations, groups."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from refnet.testing.strategies.drawing import Draw, seeds


def pairs(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    """(vertical, horizontal)."""
    return st.tuples(st.integers(least, most), st.integers(least, most))


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A convolution's shapes and parameters, and arrays of these shapes."""

    x_shape: tuple[int, int, int, int]
    w_shape: tuple[int, int, int, int]
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    groups: int
    seed: int

    @property
    def parameters(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        """The result's, (N, Ho, Wo, O)."""
        ho, wo = (
            (size + sum(pads) - (k - 1) * d - 1) // s + 1
            for size, k, s, pads, d in zip(
                self.x_shape[1:3], self.w_shape[:2], self.stride, self.padding, self.dilation, strict=True
            )
        )
        return (self.x_shape[0], ho, wo, self.w_shape[3])


@st.composite
def convolutions(draw: Draw, least_images: int = 1, largest_channels: int = 3) -> Convolution:
    """Any valid convolution of small extents, paddings of all four sides drawn by themselves."""
    kernel, stride, dilation = draw(pairs(1, 4)), draw(pairs(1, 3)), draw(pairs(1, 2))
    padding = (draw(pairs(0, 3)), draw(pairs(0, 3)))
    groups = draw(st.integers(1, 3))
    size = [
        draw(st.integers(0, 6)) + max(1, (k - 1) * d + 1 - sum(pads))
        for k, d, pads in zip(kernel, dilation, padding, strict=True)
    ]
    inputs, outputs = draw(pairs(1, largest_channels))
    return Convolution(
        x_shape=(draw(st.integers(least_images, 3)), *size, groups * inputs),
        w_shape=(*kernel, inputs, groups * outputs),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        seed=draw(seeds),
    )


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """A pooling's input shape and parameters."""

    x_shape: tuple[int, int, int, int]
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    seed: int

    @property
    def parameters(self) -> dict[str, Any]:
        return {"kernel_size": self.kernel_size, "stride": self.stride, "padding": self.padding}

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)


@st.composite
def poolings(draw: Draw, symmetric: bool = False, most_padding: float = 1.0) -> Pooling:
    """Any valid pooling of small extents; `symmetric` paddings of at most that share of the window."""
    kernel = draw(pairs(1, 4))
    padding = []
    for k in kernel:
        most = min(k - 1, int(k * most_padding))
        before, after = draw(st.integers(0, most)), draw(st.integers(0, most))
        padding.append((before, before if symmetric else after))
    size = [draw(st.integers(0, 6)) + max(1, k - sum(pads)) for k, pads in zip(kernel, padding, strict=True)]
    return Pooling(
        x_shape=(draw(st.integers(1, 2)), *size, draw(st.integers(1, 3))),
        kernel_size=kernel,
        stride=draw(pairs(1, 4)),
        padding=(padding[0], padding[1]),
        seed=draw(seeds),
    )


def off_zero(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Numbers at least 1/8 from 0, of both signs, so that central differences meet no kink there."""
    return np.asarray(rng.choice([-1.0, 1.0], shape) * rng.uniform(0.125, 2, shape))


def distinct(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Different multiples of 1/8, so far apart that central differences meet no kink of a maximum."""
    count = int(np.prod(shape))
    return np.asarray((rng.permutation(count).reshape(shape) - count // 2) / 8.0)
