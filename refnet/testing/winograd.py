"""How far a convolution by Winograd's minimal filtering may lie from the exact one: its derived, elementwise bound.

F(m x m, 3 x 3) computes tiles of m x m outputs, the first at the first output, from t x t pixels, t = m + 2 (Lavin & Gray
2016, Fast Algorithms for Convolutional Neural Networks, equations 12-15):

.. math:: y = A^T \\Big[\\sum_c (G w_c G^T) \\odot (B^T x_c B)\\Big] A

Every number passes at most t products with B and t more across, the 9 products of the taps (with their coefficients
rounded), C products over channels, and t and t products with A. A sum of n products has an error of n units, in any
order, so the error analysis of Barabasz, Anderson, Soodhalter & Gregg (2018, Error Analysis and Improving the Accuracy
of Winograd Convolution for Deep Neural Networks, theorem 2) gives, with K = C + 4 t + 10,

.. math:: |\\Delta y| \\le K u\\, |A|^T \\Big[\\sum_c (|G| |w_c| |G|^T) \\odot (|B|^T |x_c| |B|)\\Big] |A| + O(u^2)

The absolute matrices are larger than what cancels in them: up to 7 times for F(2x2,3x3), 63 times for F(4x4,3x3) with the
points 0, ±5/8 and ±3/2, if all numbers are equally large. Typical errors are a thousandth of that.

The gradient to the input, of stride 1, is the convolution of the output's gradient with the flipped weights, and has its
bound. That to the weights is what the same algorithm gives transposed, F(3 x 3, m x m): for tiles g of m x m output
gradients

.. math:: \\mathrm{d}w = G^T \\Big[\\sum_{tiles} (B^T x B) \\odot (A\\, g\\, A^T)\\Big] G

Its numbers pass at most 4 t products with B and A, a product for each tile, and at the end t² products with the Kronecker
square of G, which is rounded: K = tiles + 4 t + t² + 1, of the same expression of absolute values.

What isn't finite is not confined to the windows that hold it: a NaN or an infinity may spread over all the outputs of
the tiles that read it, and so may an overflow of the transformed pixels, which are up to 100 times as large as pixels.
Other tiles aren't touched. In the gradient to the weights it may spread over the nine taps.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from refnet.arrays import Array
from refnet.testing.bounds import DOUBLE, Bound, Expected, Rounding
from refnet.testing.calls import Call


@dataclass(frozen=True, slots=True, eq=False)
class Matrices:
    """:math:`B^T`, G and :math:`A^T` of F(m, 3)."""

    data: Array
    taps: Array
    result: Array

    @property
    def outputs(self) -> int:
        """m."""
        return len(self.result)


def toom_cook(*points: Fraction | int) -> Matrices:
    """The matrices of F(m, 3) that evaluate polynomials at m + 1 points and at infinity.

    Row i of :math:`B^T` holds the coefficients of the product of all x - p_k but the i-th, the last row those of all; row i
    of G the powers of p_i over the product of all p_i - p_k; column i of :math:`A^T` the powers of p_i.
    """
    others = [[Fraction(q) for q in points if q != p] for p in points]
    m = len(points) - 1
    data = [_coefficients(roots, m + 2) for roots in (*others, [Fraction(p) for p in points])]
    scales = [math.prod((p - q for q in roots), start=Fraction(1)) for p, roots in zip(points, others, strict=True)]
    taps = [[p**k / scale for k in range(3)] for p, scale in zip(points, scales, strict=True)]
    result = [[*(p**k for p in points), int(k == m - 1)] for k in range(m)]
    return Matrices(*(np.array(rows).astype(np.float64) for rows in (data, [*taps, [0, 0, 1]], result)))


def _coefficients(roots: Sequence[Fraction], length: int) -> list[Fraction]:
    """Of the product of x - r over the roots, from that of 1 on, filled up with zeros."""
    found = [Fraction(1)]
    for root in roots:
        found = [
            above - root * below for above, below in zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)
        ]
    return found + [Fraction(0)] * (length - len(found))


ALGORITHMS: dict[str, Matrices] = {
    "winograd_f2": Matrices(
        data=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float64),
        taps=np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
        result=np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float64),
    ),
    "winograd_f4": toom_cook(0, Fraction(5, 8), Fraction(-5, 8), Fraction(3, 2), Fraction(-3, 2)),
}


def absolute_sums(x: Array, w: Array, padding: Any, algorithm: str, largest: float = np.inf) -> Array:
    """:math:`|A|^T [\\sum_c (|G| |w_c| |G|^T) \\odot (|B|^T |x_c| |B|)] |A|` for all outputs, float64.

    Infinity for all of a tile where a step of it isn't finite, or is more than `largest`.

    Args:
        x: (N, H, W, C).
        w: (3, 3, C, O).
        padding: ((top, bottom), (left, right)).
        algorithm: of :data:`ALGORITHMS`.
        largest: what is larger overflows.
    """
    matrices = ALGORITHMS[algorithm]
    data, taps, result = (abs(m) for m in (matrices.data, matrices.taps, matrices.result))
    m = matrices.outputs
    size = [extent + sum(pads) - 2 for extent, pads in zip(x.shape[1:3], padding, strict=True)]
    tiles = [-(-extent // m) for extent in size]
    pads = [(before, after + n * m - extent) for (before, after), n, extent in zip(padding, tiles, size, strict=True)]
    padded = np.pad(abs(x.astype(np.float64)), ((0, 0), *pads, (0, 0)))
    windows = sliding_window_view(padded, (m + 2, m + 2), axis=(1, 2))[:, ::m, ::m]  # N ty tx C t t
    with np.errstate(invalid="ignore", over="ignore"):
        pixels = np.einsum("ia,nyxcab,jb->nyxcij", data, windows, data, optimize=True)
        weights = np.einsum("ia,abco,jb->coij", taps, abs(w.astype(np.float64)), taps, optimize=True)
        products = np.einsum("nyxcij,coij->nyxijo", pixels, weights, optimize=True)
        outputs = np.einsum("pi,nyxijo,qj->nypxqo", result, products, result, optimize=True)
        # half of a step, down without across, is at most 1.14 times as large as the largest number of the whole
        safe = (pixels <= largest).all(axis=(3, 4, 5))[..., None] & (weights <= largest).all(axis=(0, 2, 3))
        safe &= (products <= largest).all(axis=(3, 4)) & (outputs <= largest).all(axis=(2, 4))
    outputs[~np.broadcast_to(safe[:, :, None, :, None], outputs.shape)] = np.inf
    sums: Array = outputs.reshape(len(x), tiles[0] * m, tiles[1] * m, w.shape[3])[:, : size[0], : size[1]]
    return sums


def absolute_gradient_sums(x: Array, g: Array, padding: Any, algorithm: str, largest: float = np.inf) -> Array:
    """:math:`|G|^T [\\sum_{tiles} (|B|^T |x| |B|) \\odot (|A| |g| |A|^T)] |G|` for all weights, float64.

    Infinity for all taps of a channel and an output of which a step isn't finite, or is more than `largest`.

    Args:
        x: (N, H, W, C).
        g: the output's gradient, (N, Ho, Wo, O).
        padding, algorithm, largest: as :func:`absolute_sums` takes them.
    """
    matrices = ALGORITHMS[algorithm]
    data, taps, result = (abs(m) for m in (matrices.data, matrices.taps, matrices.result))
    m, size = matrices.outputs, g.shape[1:3]
    more = [-extent % m for extent in size]  # pixels that the last tiles lack
    pads = [(before, after + missing) for (before, after), missing in zip(padding, more, strict=True)]
    pixels = np.pad(abs(x.astype(np.float64)), ((0, 0), *pads, (0, 0)))
    pixels = sliding_window_view(pixels, (m + 2, m + 2), axis=(1, 2))[:, ::m, ::m]  # N ty tx C t t
    outputs = np.pad(abs(g.astype(np.float64)), ((0, 0), *((0, missing) for missing in more), (0, 0)))
    outputs = sliding_window_view(outputs, (m, m), axis=(1, 2))[:, ::m, ::m]  # N ty tx O m m
    with np.errstate(invalid="ignore", over="ignore"):
        pixels = np.einsum("ia,nyxcab,jb->nyxcij", data, pixels, data, optimize=True)
        outputs = np.einsum("ai,nyxoab,bj->nyxoij", result, outputs, result, optimize=True)
        products = np.einsum("nyxcij,nyxoij->ijco", pixels, outputs, optimize=True)
        sums: Array = np.einsum("ia,ijco,jb->abco", taps, products, taps, optimize=True)
        safe = (pixels <= largest).all(axis=(0, 1, 2, 4, 5))[:, None] & (outputs <= largest).all(axis=(0, 1, 2, 4, 5))
        safe &= (products <= largest).all(axis=(0, 1)) & (sums <= largest).all(axis=(0, 1))
    sums[:, :, ~safe] = np.inf
    return sums


def error_factor(algorithm: str, channels: int, rounding: Rounding) -> float:
    """K u; the reference, in float64, is rounded too."""
    return (channels + 4 * (ALGORITHMS[algorithm].outputs + 2) + 10) * (rounding.unit + DOUBLE)


def gradient_error_factor(algorithm: str, output_shape: Sequence[int], rounding: Rounding) -> float:
    """K u of the gradient to the weights, for an output of the shape (N, Ho, Wo, O)."""
    m = ALGORITHMS[algorithm].outputs
    tiles = output_shape[0] * math.prod(-(-extent // m) for extent in output_shape[1:3])
    return (tiles + 4 * (m + 2) + (m + 2) ** 2 + 1) * (rounding.unit + DOUBLE)


# from a call, the algorithm, the largest number that doesn't overflow and the rounding: absolute sums, and K u
Sizes: TypeAlias = Callable[[Call, str, float, Rounding], tuple[Array, float]]


def of_forward(call: Call, algorithm: str, largest: float, rounding: Rounding) -> tuple[Array, float]:
    """Of conv2d_forward."""
    size = absolute_sums(call["x"], call["w"], call["padding"], algorithm, largest)
    return size, error_factor(algorithm, call["w"].shape[2], rounding)


def of_grad_input(call: Call, algorithm: str, largest: float, rounding: Rounding) -> tuple[Array, float]:
    """Of conv2d_grad_input: a convolution of the output's gradient, of which wide paddings cut off the edges."""
    pads = [tuple(2 - pad for pad in pair) for pair in call["padding"]]
    rows, columns = (slice(max(-a, 0), -max(-b, 0) or None) for a, b in pads)
    pads = [(max(a, 0), max(b, 0)) for a, b in pads]
    g, w = call["grad_output"][:, rows, columns], call["w"][::-1, ::-1].swapaxes(2, 3)
    return absolute_sums(g, w, pads, algorithm, largest), error_factor(algorithm, w.shape[2], rounding)


def of_grad_weight(call: Call, algorithm: str, largest: float, rounding: Rounding) -> tuple[Array, float]:
    """Of conv2d_grad_weight."""
    size = absolute_gradient_sums(call["x"], call["grad_output"], call["padding"], algorithm, largest)
    return size, gradient_error_factor(algorithm, call["grad_output"].shape, rounding)


def or_plain(plain: Bound, sizes: Sizes = of_forward, *, steps: int = 0) -> Bound:
    """The bound of a convolution that may be computed by Winograd's algorithms, which :attr:`Rounding.algorithm` says.

    Args:
        plain: the bound of plain sums.
        sizes: of the operation.
        steps: roundings that follow, of a fused convolution's scale, shift and residual.
    """

    def bound(specification: Callable[..., Any], call: Call, rounding: Rounding) -> tuple[Expected, ...]:
        if rounding.algorithm == "plain":
            return plain(specification, call, rounding)
        wide = call.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            (value,) = wide.results(specification)
        # in numbers that a float can't hold, half of its largest for what the sums may be off
        largest = min(float(np.finfo(array.dtype).max) for array in call.arrays.values() if array is not None) / 2
        size, factor = sizes(wide, rounding.algorithm, largest, rounding)
        with np.errstate(invalid="ignore"):
            for name, combine in (("scale", np.multiply), ("shift", np.add), ("residual", np.add)):
                if name in wide.arrays and wide[name] is not None:
                    size = combine(size, abs(wide[name]))
            factor += steps * (rounding.unit + DOUBLE)
            allowed = np.where(size <= largest, factor * size, np.inf)
        return (Expected(value, allowed),)

    return bound
