"""Launch kernels over CuPy's arrays.

CuPy would compile a source itself, but for ``sm_90`` where Hopper's own instructions need ``sm_90a``; so a kernel's
machine code is :mod:`refnet.kernels.cuda.nvrtc`'s, and CuPy loads it (``RawModule(path=...)``) and launches it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refnet.arrays import is_array
from refnet.errors import DeviceError, LaunchError
from refnet.kernels.cuda.nvrtc import architecture, compiled, suits
from refnet.kernels.cuda.program import Launch, Program, source_folder

SHARED_BY_DEFAULT = 48 << 10
"""Bytes of dynamic shared memory that a kernel has without asking (CUDA's programming guide, "Shared memory")."""


def import_cupy() -> Any:
    """The module cupy, if it has a device to work on.

    Raises:
        DeviceError: CuPy isn't installed, or there is no device.
    """
    try:
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
    except ImportError as error:
        raise DeviceError(f"expected CuPy (package cupy-cuda13x), got {error}") from None
    except RuntimeError as error:  # CUDARuntimeError is one
        raise DeviceError(f"expected a CUDA device, got {error}") from None
    if not count:
        raise DeviceError("expected a CUDA device, found none")
    return cupy


def load(program: Program, name: str) -> Launch:
    """The kernel `name` of `program`, compiled for the current device; call it as :meth:`Program.launch` does.

    Raises:
        CompilerError: it doesn't compile, or there is no NVRTC.
        DeviceError: the device is older than the kernel, or of another kind than it is written for.
    """
    key = (sys.modules["cupy"].cuda.runtime.getDevice(), program, source_folder(), name)
    kernel = _kernels.get(key)
    if kernel is None:
        kernel = _kernels[key] = _load(*key)
    return kernel


_kernels: dict[tuple[int, Program, Path, str], _Kernel] = {}
"""One module per device, program, folder of its source, and name; it lives as long as the process."""


def loaded() -> set[tuple[str, str]]:
    """The kernels that were launched so far, on any device: the source's name, and the kernel's."""
    return {(Path(program.source).name, name) for _, program, _, name in _kernels}


def _load(device: int, program: Program, folder: Path, name: str) -> _Kernel:
    cupy, path = sys.modules["cupy"], folder / program.source
    properties = cupy.cuda.Device(device)
    capability = int(properties.compute_capability)
    entry = next(entry for entry in program.instantiations if entry.name == name)
    target = architecture(capability, entry.only)
    if not suits(entry, target):
        wanted = f"in {entry.only}" if entry.only else f"of at least {entry.least}"
        raise DeviceError(
            f"{path.name}: {name}: expected a device of compute capability (times ten) {wanted}, got {capability}"
        )
    cubin = compiled(program, name, target)
    function = cupy.RawModule(path=str(cubin.path)).get_function(cubin.symbol)
    return _Kernel(f"{path.name}: {name}", device, function, properties.attributes["MaxSharedMemoryPerBlockOptin"])


class _Kernel:
    def __init__(self, title: str, device: int, function: Any, most_shared: int) -> None:
        self.title, self.device, self.function, self.most_shared = title, device, function, most_shared
        self.shared = SHARED_BY_DEFAULT

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arguments: Sequence[Any],
        *,
        shared: int = 0,
        outputs: Sequence[int] = (),
        also: Sequence[Any] = (),
    ) -> None:
        """Launch on the current stream. `outputs` and `also` are for the emulator's checker; a device has none.

        Raises:
            DeviceError: an array lives on another device than the current one.
            LaunchError: an array is NumPy's, or the device has less shared memory than asked for.
        """
        del outputs, also
        values = tuple(self._value(index, value) for index, value in enumerate(arguments))
        if shared > self.shared:
            self._allow(shared)
        self.function(grid, block, values, shared_mem=shared)

    def _allow(self, shared: int) -> None:
        if shared > self.most_shared:
            raise LaunchError(
                f"{self.title}: needs {shared} bytes of shared memory a block, device {self.device} has {self.most_shared}"
            )
        self.function.max_dynamic_shared_size_bytes = shared
        self.shared = shared

    def _value(self, index: int, value: Any) -> Any:
        """As CuPy takes it: a structure becomes the one element of a NumPy array, which it passes by value."""
        if isinstance(value, np.generic):
            return value
        if isinstance(value, ctypes.Structure):
            return np.frombuffer(bytes(value), dtype=np.dtype((np.void, ctypes.sizeof(value))))
        if isinstance(value, np.ndarray):
            raise LaunchError(f"{self.title}: argument {index}: expected an array of CuPy, got one of NumPy")
        if is_array(value) and value.data.device_id != self.device:
            raise DeviceError(
                f"{self.title}: argument {index}: expected an array on the current device, {self.device}, "
                f"got one on {value.data.device_id}"
            )
        return value
