"""Winograd's minimal filtering: correlations of 3 x 3 taps and stride 1 with fewer products.

Four outputs of three taps take six products instead of twelve, in each direction: F(4 x 4, 3 x 3) takes 36 for a tile
of 16 outputs instead of 144 (Lavin & Gray 2016, Fast Algorithms for Convolutional Neural Networks, equations 12-15):

.. math:: Y = A^T [(G w G^T) \\odot (B^T x B)] A

where x is a tile of 6 x 6 pixels, w the taps, and the products of all tiles and channels with the same place in the
bracket are one matrix product. The gradient to the input is the same with flipped, transposed weights. The gradient to
the weights is F(3 x 3, 4 x 4), correlation with taps of 4 x 4 output gradients, which by transposition of the algorithm
has the same points and so the same B: :math:`\\mathrm{d}w = G^T [(B^T x B) \\odot (A\\, \\mathrm{d}y\\, A^T)] G`.
"""

from dataclasses import dataclass

import numpy as np

from refnet.arrays import Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Minimal:
    """F(m, 3) of one dimension, with t = m + 2 products.

    Attributes:
        name: of the algorithm in two dimensions.
        outputs: m, the outputs of a tile along one axis.
        data: :math:`B^T`, (t, t).
        taps: G, (t, 3).
        result: :math:`A^T`, (m, t).
    """

    name: str
    outputs: int
    data: Array
    taps: Array
    result: Array

    @property
    def size(self) -> int:
        """t, the pixels of a tile along one axis, and its products."""
        return self.outputs + 2


F2 = Minimal(
    name="F(2x2,3x3)",
    outputs=2,
    data=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float64),
    taps=np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]], np.float64),
    result=np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float64),
)

F4 = Minimal(
    name="F(4x4,3x3)",
    outputs=4,
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
    taps=np.array(
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
        np.float64,
    ),
    result=np.array(
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
        np.float64,
    ),
)


def transform_weights(w: Array, minimal: Minimal) -> Array:
    """:math:`G w G^T` of (3, 3, C, O) as (t · t, C, O), by one product with the Kronecker square of G."""
    square = np.kron(minimal.taps, minimal.taps).astype(w.dtype)  # t·t 9
    product: Array = square @ np.ascontiguousarray(w).reshape(9, -1)
    return product.reshape(-1, *w.shape[2:])
