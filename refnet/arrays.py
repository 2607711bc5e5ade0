"""NumPy or CuPy? Which device? The only file of refnet that knows CuPy's name, and it never imports it.

A CuPy array can only exist after its owner imported CuPy, so looking the library up in ``sys.modules`` is
enough; refnet itself starts without it. Another library's arrays are taken for a GPU's if their type says, as
``refnet_namespace``, which module has CuPy's functions for them: the emulator's stand-in for CuPy is one.

The host runs ahead of a GPU. It waits only when it must know a value (:func:`to_host`); copies to the device
(:func:`on_device_of`) and copies that are read later (:class:`Download`) are queued behind what was asked for before.
"""

import sys
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from refnet.errors import DeviceError

if TYPE_CHECKING:
    # CuPy arrays have the same surface; for a type checker, an array is NumPy's.
    Array = np.ndarray
else:

    class _Arrays(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, np.ndarray) or is_array(value)

    class Array(metaclass=_Arrays):
        """What annotations mean by an array where they are executed: one of any device."""


def is_array(value: object) -> bool:
    """Whether `value` is an array: NumPy's, CuPy's, or one that names its namespace."""
    return _home(value) is not None


def _home(value: object) -> str | None:
    """The name of the module whose functions take `value`; None if it isn't an array."""
    kind = type(value)
    if kind not in _homes:  # every operation asks it of every argument
        _homes[kind] = _home_of(kind)
    return _homes[kind]


_homes: dict[type, str | None] = {}


def _home_of(kind: type) -> str | None:
    if issubclass(kind, np.ndarray):
        return "numpy"
    if kind.__module__.partition(".")[0] == "cupy":
        return "cupy"
    return getattr(kind, "refnet_namespace", None)


def device_of(values: Iterable[object], *, what: str = "arrays") -> str:
    """The device, ``"cpu"`` or ``"cuda"``, that all arrays among `values` share; ``"cpu"`` when there are none.

    Values that aren't arrays (numbers, shapes, None) are passed over.

    Raises:
        DeviceError: arrays of both devices are among `values`.
    """
    return "cpu" if _common_home(values, what) == "numpy" else "cuda"


def _common_home(values: Iterable[object], what: str) -> str:
    found = ""
    for value in values:
        home = _home(value)
        if home is None:
            continue
        if found and home != found:
            names = " and ".join("cpu" if name == "numpy" else "cuda" for name in (found, home))
            raise DeviceError(f"{what}: all arrays must live on one device, got {names}")
        found = home
    return found or "numpy"


def namespace(*values: object) -> Any:
    """The module, numpy or cupy, whose functions take these arrays."""
    return sys.modules[_common_home(values, "arrays")]


def library(device: str) -> Any:
    """The module that makes arrays on `device`, ``"cpu"`` or ``"cuda"``.

    Raises:
        DeviceError: CuPy hasn't been imported; who wants a GPU does that.
    """
    if device == "cpu":
        return np
    if "cupy" not in sys.modules:
        raise DeviceError(f"{device}: arrays on a GPU are CuPy's, and nobody has imported it")
    return sys.modules["cupy"]


def to_host(array: Any) -> Array:
    """`array` as a NumPy array; a copy, for which the host waits, only if it lives on another device."""
    if isinstance(array, np.ndarray):
        return array
    host: Array = array.get()
    return host


def together_to_host(*arrays: Any) -> tuple[Any, ...]:
    """Arrays of one device as NumPy arrays, for all of which the host waits once; None stays None."""
    if device_of(arrays) == "cpu":
        return arrays
    fetched = iter(Download(*(array for array in arrays if array is not None)).wait())
    return tuple(None if array is None else next(fetched) for array in arrays)


def records_to_host(*records: Any) -> tuple[Any, ...]:
    """Records (dataclasses) of arrays of one device with NumPy arrays, for all of which the host waits once."""
    names = [[field.name for field in fields(record)] for record in records]
    arrays = iter(together_to_host(*(getattr(r, name) for r, own in zip(records, names, strict=True) for name in own)))
    return tuple(
        replace(record, **{name: next(arrays) for name in own}) for record, own in zip(records, names, strict=True)
    )


def on_device_of(array: Any, reference: Any) -> Array:
    """`array` where `reference` lives: itself if it is there, else a copy; the host waits for one to itself only."""
    xp = namespace(reference)
    if xp is np:
        return to_host(array)
    moved: Array = xp.asarray(array)
    return moved


class Download:
    """Arrays on their way to the host, all of one device. The device needn't finish before the host goes on.

    >>> coming = Download(boxes, scores)
    >>> ...                                # ask the device for more
    >>> boxes, scores = coming.wait()
    """

    def __init__(self, *arrays: Any) -> None:
        xp = namespace(*arrays)
        self._arrived: Any = None
        if xp is np:
            self._host = tuple(array.copy() for array in arrays)
            return
        self._host = tuple(_copy_later(array, xp) for array in arrays)
        self._arrived = xp.cuda.Event()
        self._arrived.record()

    def wait(self) -> tuple[Array, ...]:
        """The arrays, as they were; the host waits unless the device has got there already."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host


def _copy_later(array: Any, xp: Any) -> Array:
    memory = xp.cuda.alloc_pinned_memory(max(array.nbytes, 1))  # a copy to other memory would make the host wait
    host: Array = np.frombuffer(memory, array.dtype, array.size).reshape(array.shape)
    array.get(out=host, blocking=False)
    return host
