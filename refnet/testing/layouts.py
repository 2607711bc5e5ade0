"""The same numbers in memory in other ways: strides of any sign, axes in any order, numbers around that nobody may read."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from refnet.arrays import Array

Layout: TypeAlias = Literal["contiguous", "fortran", "reversed", "spread", "surrounded"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
MARGIN = 3  # numbers before and behind, an odd number: vectors of 16 bytes aren't aligned


def laid_out(array: Array, layout: Layout, xp: Any = np) -> Any:
    """The numbers of `array` in another layout; :func:`owner` is all the memory that it lies in.

    "contiguous" is C order and "fortran" that of Fortran, "reversed" has negative strides along all axes, "spread"
    uses every second number along all axes, "surrounded" is the inside of a larger array. What lies between and around
    is NaN, or the least integer of the type, which is no valid index.

    Args:
        array: NumPy's.
        layout: the layout.
        xp: the namespace that the result belongs to.
    """
    numbers = xp.asarray(array)
    if layout == "contiguous" or not array.ndim:
        return numbers.copy()
    if layout == "fortran":
        return xp.asfortranarray(numbers).copy(order="F")
    place = PLACES[layout]
    shape, inside = place(array.shape)
    buffer = xp.full(shape, unreadable(array.dtype), array.dtype)
    buffer[inside] = numbers
    return buffer[inside]


def owner(array: Any) -> Any:
    """The array whose memory `array` is a view of; itself if it has its own."""
    return array if array.base is None else owner(array.base)


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
