"""Where a kernel is run while it is checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from refnet.arrays import device_of
from refnet.errors import ArgumentError
from refnet.testing.calls import Call

Device: TypeAlias = Literal["cpu", "cuda", "emulated"]
TITLES: dict[str, str] = {"cpu": "the CPU", "cuda": "the GPU", "emulated": "the emulated GPU"}


def array_module(device: Device) -> Any:
    """The namespace of the arrays that a kernel gets: NumPy's for "cpu" and "emulated", CuPy's for "cuda".

    Raises:
        ArgumentError: there is no such device.
        DeviceError: there is no GPU, or CuPy isn't installed.
    """
    if device not in get_args(Device):
        raise ArgumentError(f"device must be one of {', '.join(get_args(Device))}, got {device!r}")
    if device != "cuda":
        return np
    from refnet.kernels.cuda.cupy_module import import_cupy

    return import_cupy()


def run(kernel: Callable[..., Any], call: Call, device: Device, schedule: int) -> Any:
    """Call `kernel`; emulated, every access is watched, and `schedule` says in which order threads and blocks run."""
    if device != "emulated":
        return call.apply(kernel)
    from refnet.kernels.emulator import running

    with running(mode="check", seed=schedule):
        return call.apply(kernel)


def is_on(array: Any, device: Device) -> bool:
    """Whether a result is where it belongs."""
    return device_of([array]) == ("cuda" if device == "cuda" else "cpu")
