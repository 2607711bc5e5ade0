"""The same numbers in memory in other ways: strides of any sign, axes in any order, numbers around that nobody may read."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from refnet.arrays import Array

Layout: TypeAlias = Literal["contiguous", "fortran", "reversed", "spread", "surrounded"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
MARGIN = 3  # numbers before and behind, an odd number: vectors of 16 bytes aren't aligned


def laid_out(array: Array, layout: Layout, xp: Any = np) -> Any:
    """The numbers of `array` in another layout.

    "contiguous" is C order and "fortran" that of Fortran, "reversed" has negative strides along all axes, "spread"
    uses every second number along all axes, "surrounded" is the inside of a larger array. What lies between and around
    is NaN, or the least integer of the type, which is no valid index.

    Args:
        array: NumPy's.
        layout: the layout.
        xp: the namespace that the result belongs to.
    """
    return with_memory(array, layout, xp)[0]


def with_memory(array: Array, layout: Layout, xp: Any = np) -> tuple[Any, Any]:
    """:func:`laid_out`, and all the memory that it lies in."""
    if layout == "contiguous" or not array.ndim:
        plain = xp.asarray(array.copy())
        return plain, plain
    if layout == "fortran":
        turned = xp.asarray(array.T.copy())  # in C order
        return turned.T, turned
    shape, inside = PLACES[layout](array.shape)
    buffer = xp.asarray(np.full(shape, unreadable(array.dtype), array.dtype))
    buffer[inside] = xp.asarray(array)
    return buffer[inside], buffer


def unreadable(dtype: Any) -> Any:
    """What shows if it is read: NaN, or the least integer."""
    kind = np.dtype(dtype).kind
    return np.nan if kind in "fc" else np.iinfo(dtype).min if kind == "i" else 0


Place: TypeAlias = Callable[[tuple[int, ...]], tuple[tuple[int, ...], tuple[slice, ...]]]

PLACES: dict[str, Place] = {
    "reversed": lambda shape: (shape, (slice(None, None, -1),) * len(shape)),
    "spread": lambda shape: (tuple(2 * n + 1 for n in shape), tuple(slice(1, 2 * n + 1, 2) for n in shape)),
    "surrounded": lambda shape: (
        tuple(n + 2 * MARGIN for n in shape),
        tuple(slice(MARGIN, MARGIN + n) for n in shape),
    ),
}
