"""How far a convolution by Winograd's minimal filtering may lie from the exact one: its derived, elementwise bound.

F(m x m, 3 x 3) computes tiles of m x m outputs, the first at the first output, from t x t pixels, t = m + 2 (Lavin & Gray
2016, Fast Algorithms for Convolutional Neural Networks, equations 12-15, with their matrices):

.. math:: y = A^T \\Big[\\sum_c (G w_c G^T) \\odot (B^T x_c B)\\Big] A

Every number passes at most t products with B and t more across, the 9 products of the taps (with their coefficients
rounded), C products over channels, and t and t products with A. A sum of n products has an error of n units, in any
order, so the error analysis of Barabasz, Anderson, Soodhalter & Gregg (2018, Error Analysis and Improving the Accuracy
of Winograd Convolution for Deep Neural Networks, theorem 2) gives, with K = C + 4 t + 10,

.. math:: |\\Delta y| \\le K u\\, |A|^T \\Big[\\sum_c (|G| |w_c| |G|^T) \\odot (|B|^T |x_c| |B|)\\Big] |A| + O(u^2)

The absolute matrices are larger than what cancels in them: up to 7 times for F(2x2,3x3), 256 times for F(4x4,3x3), if
all numbers are equally large. Typical errors are a thousandth of that.

What isn't finite is not confined to the windows that hold it: a NaN or an infinity may spread over all the outputs of
the tiles that read it, and so may an overflow of the transformed pixels, which are up to 100 times as large as pixels.
Other tiles aren't touched.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


ALGORITHMS: dict[str, Matrices] = {
    "winograd_f2": Matrices(
        data=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float64),
        taps=np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
        result=np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float64),
    ),
    "winograd_f4": Matrices(
        data=np.array(
            [
                [4, 0, -5, 0, 1, 0],
                [0, -4, -4, 1, 1, 0],
                [0, 4, -4, -1, 1, 0],
                [0, -2, -1, 2, 1, 0],
                [0, 2, -1, -2, 1, 0],
                [0, 4, 0, -5, 0, 1],
            ],
            np.float64,
        ),
        taps=np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
        result=np.array(
            [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], np.float64
        ),
    ),
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
        # no step's two halves, down and across, are larger than the largest number of the whole
        safe = (pixels <= largest).all(axis=(3, 4, 5))[..., None] & (weights <= largest).all(axis=(0, 2, 3))
        safe &= (products <= largest).all(axis=(3, 4)) & (outputs <= largest).all(axis=(2, 4))
    outputs[~np.broadcast_to(safe[:, :, None, :, None], outputs.shape)] = np.inf
    sums: Array = outputs.reshape(len(x), tiles[0] * m, tiles[1] * m, w.shape[3])[:, : size[0], : size[1]]
    return sums


def error_factor(algorithm: str, channels: int, rounding: Rounding) -> float:
    """K u; the reference, in float64, is rounded too."""
    return (channels + 4 * (ALGORITHMS[algorithm].outputs + 2) + 10) * (rounding.unit + DOUBLE)


def or_plain(plain: Bound, *, steps: int = 0) -> Bound:
    """The bound of a convolution that may be computed by Winograd's algorithms, which :attr:`Rounding.algorithm` says.

    Args:
        plain: the bound of plain sums.
        steps: roundings that follow, of a fused convolution's scale, shift and residual.
    """

    def bound(specification: Callable[..., Any], call: Call, rounding: Rounding) -> tuple[Expected, ...]:
        if rounding.algorithm == "plain":
            return plain(specification, call, rounding)
        wide = call.astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            (value,) = wide.results(specification)
        # in numbers that a float can't hold, half of its largest for what the sums may be off
        largest = float(np.finfo(call["x"].dtype).max) / 2
        size = absolute_sums(wide["x"], wide["w"], wide["padding"], rounding.algorithm, largest)
        with np.errstate(invalid="ignore"):
            for name, combine in (("scale", np.multiply), ("shift", np.add), ("residual", np.add)):
                if name in wide.arrays and wide[name] is not None:
                    size = combine(size, abs(wide[name]))
            factor = error_factor(rounding.algorithm, call["w"].shape[2], rounding) + steps * (rounding.unit + DOUBLE)
            allowed = np.where(size <= largest, factor * size, np.inf)
        return (Expected(value, allowed),)

    return bound
