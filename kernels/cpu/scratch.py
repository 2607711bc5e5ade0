"""Memory for what a kernel needs only while it runs: kept from call to call, each thread has its own.

The system hands out new pages cleared, a quarter of a millisecond a megabyte; a kernel that wrote its patches into a
new array in every call would often wait longer for the memory than for the copy. Results never lie here.
"""

import math
import threading
from typing import Any

import numpy as np

from refnet.arrays import Array

ALIGNMENT = 64  # bytes: of a cache line, and of the widest vectors

_kept = threading.local()


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """An array of any numbers, the caller's until this thread asks for the same name again.

    Memory under a name grows to the largest that was asked for; what is larger than the present array stays as it is.
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    buffers: dict[str, Array] = _kept.__dict__
    buffer = buffers.get(name)
    if buffer is None or buffer.size < size:
        raw = np.empty(size + ALIGNMENT, np.uint8)
        start = -raw.__array_interface__["data"][0] % ALIGNMENT
        buffers[name] = buffer = raw[start : start + size]
    array: Array = buffer[:size].view(dtype).reshape(shape)
    return array


def release() -> None:
    """Give back the calling thread's memory."""
    _kept.__dict__.clear()
