"""What follows the sums of a fused convolution, done to each tile while it is in cache."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refnet.arrays import Array

LINE = 4096  # numbers of a row of repeated factors: NumPy starts a loop for every row, so rows of few channels are slow


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Epilogue:
    """Times `scale`, plus `shift`, plus `residual`, and the maximum with 0; None leaves a step out.

    Attributes:
        scale, shift: (O,).
        residual: of the result's shape.
        relu: whether the maximum is taken.
    """

    scale: Array | None = None
    shift: Array | None = None
    residual: Array | None = None
    relu: bool = False

    def of_channels(self, some: slice) -> "Epilogue":
        """The part for some outputs."""
        scale, shift, residual = (
            None if array is None else array[..., some] for array in (self.scale, self.shift, self.residual)
        )
        return Epilogue(scale=scale, shift=shift, residual=residual, relu=self.relu)

    def of_pixels(self) -> "Epilogue":
        """The same for a result whose pixels are in a row, (N Ho Wo, O)."""
        residual = self.residual
        return self if residual is None else replace(self, residual=residual.reshape(-1, residual.shape[-1]))

    def finish(self, y: Array, where: Any) -> None:
        """Do the steps to ``y[where]``, in place; `where` takes whole pixels."""
        part = y[where]
        for factors, step in ((self.scale, np.multiply), (self.shift, np.add)):
            if factors is not None:
                for rows, repeated in _rows(part, factors):
                    step(rows, repeated, out=rows)
        if self.residual is not None:
            part += self.residual[where]
        if self.relu:
            np.maximum(part, 0, out=part)


def _rows(part: Array, factors: Array) -> Sequence[tuple[Array, Array]]:
    """`part` as rows, and what to combine each with; its last few pixels may make a shorter row."""
    if not part.flags.c_contiguous:
        return [(part, factors)]
    repeated = np.tile(factors, max(1, LINE // len(factors)))
    numbers = part.reshape(-1)
    whole = numbers.size // repeated.size * repeated.size
    last = numbers[whole:]
    return [(numbers[:whole].reshape(-1, repeated.size), repeated), (last, repeated[: last.size])]
