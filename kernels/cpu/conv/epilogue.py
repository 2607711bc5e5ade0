"""What follows the sums of a fused convolution, done to each tile while it is in cache."""

from typing import Any

import numpy as np

from refnet.arrays import Array

# Numbers that all steps are done to before the next ones: of 16,000 the calls cost more than the work, more than 64,000
# leave the cache before the last step.
PIECE = 32768


class Epilogue:
    """Times `scale`, plus `shift`, plus `residual`, and the maximum with 0; None leaves a step out.

    Args:
        scale, shift: (O,).
        residual: of the result's shape.
        relu: whether the maximum is taken.
    """

    def __init__(
        self,
        scale: Array | None = None,
        shift: Array | None = None,
        residual: Array | None = None,
        relu: bool = False,
    ) -> None:
        self.scale, self.shift, self.residual, self.relu = scale, shift, residual, relu
        self.empty = not relu and scale is None and shift is None and residual is None
        self._lines: tuple[Array | None, Array | None, Array] | None = None

    def of_channels(self, some: slice) -> "Epilogue":
        """The part for some outputs."""
        scale, shift, residual = (
            None if array is None else array[..., some] for array in (self.scale, self.shift, self.residual)
        )
        return Epilogue(scale, shift, residual, self.relu)

    def of_pixels(self) -> "Epilogue":
        """The same for a result whose pixels are in a row, (N Ho Wo, O)."""
        if self.residual is None:
            return self
        return Epilogue(self.scale, self.shift, self.residual.reshape(-1, self.residual.shape[-1]), self.relu)

    def finish(self, y: Array, where: Any) -> None:
        """Do the steps to ``y[where]``, in place; `where` takes whole pixels."""
        if self.empty:
            return
        part, added = y[where], None if self.residual is None else self.residual[where]
        if not part.flags.c_contiguous or not (added is None or added.flags.c_contiguous):
            _do(part, self.scale, self.shift, added, np.zeros((), y.dtype) if self.relu else None)
            return
        scale, shift, zeros = self._repeated(part)
        numbers, added = part.reshape(-1), None if added is None else added.reshape(-1)
        for start in range(0, numbers.size, zeros.size):
            piece = numbers[start : start + zeros.size]
            _do(
                piece,
                None if scale is None else scale[: piece.size],
                None if shift is None else shift[: piece.size],
                None if added is None else added[start : start + piece.size],
                zeros[: piece.size] if self.relu else None,
            )

    def _repeated(self, part: Array) -> tuple[Array | None, Array | None, Array]:
        """Scale, shift and 0 as often as a piece has pixels: NumPy starts a loop for every row, and rows are short."""
        pixels = max(1, min(PIECE, part.size) // part.shape[-1])
        lines = self._lines
        if lines is None or lines[2].size < pixels * part.shape[-1]:
            scale, shift = (None if a is None else np.tile(a, pixels) for a in (self.scale, self.shift))
            self._lines = lines = scale, shift, np.zeros(pixels * part.shape[-1], part.dtype)
        return lines


def _do(part: Array, scale: Array | None, shift: Array | None, residual: Array | None, zeros: Array | None) -> None:
    if scale is not None:
        np.multiply(part, scale, out=part)
    if shift is not None:
        np.add(part, shift, out=part)
    if residual is not None:
        np.add(part, residual, out=part)
    if zeros is not None:
        np.maximum(part, zeros, out=part)
