"""NumPy or CuPy? Which device? The only file of refnet that knows CuPy's name, and it never imports it.

A CuPy array can only exist after its owner imported CuPy, so looking the library up in ``sys.modules`` is
enough; refnet itself starts without it.
"""

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from refnet.errors import DeviceError

# CuPy arrays have the same surface; for a type checker, an array is NumPy's.
Array = np.ndarray


def is_array(value: object) -> bool:
    """Whether `value` is a NumPy or CuPy array."""
    return isinstance(value, np.ndarray) or _is_cupy(value)


def _is_cupy(value: object) -> bool:
    return type(value).__module__.partition(".")[0] == "cupy"


def device_of(values: Iterable[object], *, what: str = "arrays") -> str:
    """The device, ``"cpu"`` or ``"cuda"``, that all arrays among `values` share; ``"cpu"`` when there are none.

    Values that aren't arrays (numbers, shapes, None) are passed over.

    Raises:
        DeviceError: arrays of both devices are among `values`.
    """
    found = ""
    for value in values:
        if isinstance(value, np.ndarray):
            device = "cpu"
        elif _is_cupy(value):
            device = "cuda"
        else:
            continue
        if found and device != found:
            raise DeviceError(f"{what}: all arrays must live on one device, got {found} and {device}")
        found = device
    return found or "cpu"


def namespace(*values: object) -> Any:
    """The module, numpy or cupy, whose functions take these arrays."""
    if device_of(values) == "cpu":
        return np
    return sys.modules["cupy"]


def to_host(array: Any) -> Array:
    """`array` as a NumPy array; a copy only if it lives on another device."""
    if isinstance(array, np.ndarray):
        return array
    host: Array = array.get()
    return host
