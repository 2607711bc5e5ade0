"""The best of many scores as the smallest of whole numbers that hold the score and its position.

The bits of a float32, read as an int32, are in the order of the numbers once those of negative ones are reversed. With
the position in the lower half of an int64 no two are equal, so any way to sort is stable, and vector instructions that
select and sort int64 do it ten times as fast as a stable sort of positions.
"""

import numpy as np
from jaxtyping import Float, Int

from refnet.arrays import Array
from refnet.ops import best_first as operation
from refnet.ops.best_first import check_limit

MAGNITUDE = np.int32(0x7FFFFFFF)  # all bits but the sign
LOW = 0xFFFFFFFF  # the lower half of a key in 64 bits


def best_first(scores: Float[Array, "*N B"], *, limit: int) -> Int[Array, "*N _"]:
    """See :func:`refnet.ops.best_first`. Float64 has no bits left for the position, and is sorted as specified."""
    check_limit(limit)
    count = scores.shape[-1]
    if scores.dtype != np.float32 or count > 2**31:
        return operation.specification(scores, limit=limit)
    bits = in_order((0 - scores).view(np.int32))  # 0 - 0 and 0 - -0 are both 0
    np.copyto(bits, MAGNITUDE, where=np.isnan(scores))  # above infinity
    keys = bits.astype(np.int64)
    keys <<= 32
    keys |= np.arange(count)
    if 0 < limit < count:
        keys.partition(limit - 1, axis=-1)
    best = keys[..., :limit]
    best.sort(axis=-1)
    positions: Array = best & LOW
    return positions


def in_order(bits: Int[Array, "*B"]) -> Int[Array, "*B"]:
    """The bits of float32 numbers as integers of the same order, and back: negative numbers run the other way."""
    ordered: Array = bits ^ ((bits >> 31) & MAGNITUDE)
    return ordered
