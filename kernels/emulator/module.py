"""Launch kernels over NumPy's arrays in the emulator, as ``cupy.RawModule`` does on a GPU."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from refnet.errors import KernelFault, LaunchError
from refnet.kernels.cuda.program import LARGEST_GRID, Launch, Program
from refnet.kernels.emulator.compiler import Compiled, Request, compile_kernel, lock, runtime
from refnet.kernels.emulator.metrics import COUNTERS, collected
from refnet.kernels.emulator.settings import Mode, Settings, present

# of every GPU since sm_50, and for shared memory of sm_90
LARGEST_BLOCK, MOST_THREADS = (1024, 1024, 64), 1024
MOST_SHARED, MOST_STATIC_SHARED = 227 * 1024, 48 * 1024


def load(program: Program, name: str) -> Launch:
    """The kernel `name` of `program`, compiled for the present mode; call it as :meth:`Program.launch` does.

    Raises:
        CompilerError: there is no compiler, or it rejects the text.
    """
    settings = present()
    return _Kernel(name, compile_kernel(program.path, name, checked=settings.mode != "fast"), settings)


class _Kernel:
    """One instantiation, with the settings under which it was asked for."""

    def __init__(self, name: str, compiled: Compiled, settings: Settings) -> None:
        self.name, self.compiled, self.settings = name, compiled, settings

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arguments: Sequence[Any],
        *,
        shared: int,
        outputs: Sequence[int],
        also: Sequence[Any],
    ) -> None:
        """Run it.

        Raises:
            LaunchError: the arguments aren't those of the kernel's signature, or a limit of the device is passed.
            KernelFault: the kernel did what it must not.
        """
        self._check_limits(grid, block, shared)
        # within an array of the emulator's stand-in for CuPy is one of NumPy's
        values = [getattr(value, "_host", value) for value in arguments]
        packed = self._pack(values, outputs)
        addresses = (ctypes.c_void_p * len(packed))(*map(ctypes.addressof, packed))
        extents = [(ctypes.c_uint * 3)(*(*map(int, extent), 1, 1)[:3]) for extent in (grid, block)]
        request = Request(
            self.compiled.address,
            ctypes.pointer(self.compiled.module),
            ctypes.addressof(addresses),
            *extents,
            shared,
            self.settings.seed,
            self.settings.workers,
            get_args(Mode).index(self.settings.mode),
        )
        with lock:
            self._poison(values, outputs)
            if self.settings.mode == "fast":
                self._launch(request)
                return
            self._register(values, outputs, [getattr(value, "_host", value) for value in also])
            try:
                self._launch(request)
                self._check_outputs(values, outputs)
                if self.settings.mode == "metrics":
                    self._collect()
            finally:
                runtime().emu_clear_buffers(0, 0)

    def _launch(self, request: Request) -> None:
        if runtime().emu_launch(ctypes.byref(request)):
            kind, text = runtime().emu_fault_kind().decode(), runtime().emu_fault_text().decode()
            raise KernelFault(f"{self.name}: {kind}: {self._with_places(text)}", kind)

    def _check_limits(self, grid: tuple[int, ...], block: tuple[int, ...], shared: int) -> None:
        for what, extents, largest in (("grid", grid, LARGEST_GRID), ("block", block, LARGEST_BLOCK)):
            if len(extents) > 3 or any(not 1 <= e <= most for e, most in zip(extents, largest, strict=False)):
                raise LaunchError(f"{self.name}: expected a {what} of at most {largest}, got {tuple(extents)}")
        threads = int(np.prod(block))
        if threads > MOST_THREADS:
            raise LaunchError(f"{self.name}: expected at most {MOST_THREADS} threads in a block, got {threads}")
        static = self.compiled.module.static_shared - 1  # a byte of it is the emulator's
        if static > MOST_STATIC_SHARED + 1024:  # which may cost the alignment of a variable
            raise LaunchError(
                f"{self.name}: expected at most {MOST_STATIC_SHARED} bytes of static shared memory, got {static}"
            )
        if shared < 0 or static // 1024 * 1024 + shared > MOST_SHARED:
            raise LaunchError(
                f"{self.name}: expected at most {MOST_SHARED} bytes of shared memory, got {static} static and "
                f"{shared} dynamic"
            )

    def _pack(self, values: Sequence[Any], outputs: Sequence[int]) -> list[Any]:
        """The bytes of each parameter."""
        parameters = self.compiled.parameters
        if len(values) != len(parameters):
            raise LaunchError(f"{self.name}: expected {len(parameters)} arguments, got {len(values)}")
        packed: list[Any] = []
        for index, (value, (kind, pointer, size)) in enumerate(zip(values, parameters, strict=True)):
            what = f"{self.name}: argument {index}"
            if pointer:
                _check_array(what, value, kind, size, pointer == "p")
                packed.append(ctypes.c_void_p(value.ctypes.data))
            else:
                if index in outputs:
                    raise LaunchError(f"{what}: an output must be an array")
                packed.append(_pack_value(what, value, kind, size))
        return packed

    def _poison(self, values: Sequence[Any], outputs: Sequence[int]) -> None:
        """Fill outputs with NaN, or -1: what the kernel doesn't write must not look as if it had."""
        arrays = [(index, value) for index, value in enumerate(values) if isinstance(value, np.ndarray)]
        for output in outputs:
            for index, value in arrays:
                if index != output and np.may_share_memory(value, values[output]):
                    raise LaunchError(
                        f"{self.name}: argument {output}, an output, shares memory with argument {index}, so it is "
                        "also read"
                    )
            ctypes.memset(values[output].ctypes.data, 0xFF, values[output].nbytes)

    def _register(self, values: Sequence[Any], outputs: Sequence[int], also: Sequence[Any]) -> None:
        """Tell the checker which memory is the kernel's."""
        module, pointers = self.compiled.module, (pointer for _, pointer, _ in self.compiled.parameters)
        buffers = [
            (f"argument {index}", value, index not in outputs, pointer == "c")
            for index, (value, pointer) in enumerate(zip(values, pointers, strict=True))
            if pointer
        ]
        buffers += [(f"also {index}", value, True, not value.flags.writeable) for index, value in enumerate(also)]
        library = runtime()
        library.emu_clear_buffers(module.low, module.high)
        for name, value, initialised, constant in buffers:
            library.emu_add_buffer(
                value.ctypes.data, value.nbytes, value.itemsize, initialised, constant, name.encode()
            )

    def _check_outputs(self, values: Sequence[Any], outputs: Sequence[int]) -> None:
        first = ctypes.c_uint64()
        for index in outputs:
            missed = runtime().emu_count_unwritten(values[index].ctypes.data, ctypes.byref(first))
            if missed:
                item = values[index].itemsize
                raise KernelFault(
                    f"{self.name}: initcheck: {-(-missed // item)} of {values[index].size} elements of argument {index} "
                    f"were never written, the first is element {first.value // item}",
                    "initcheck",
                )

    def _collect(self) -> None:
        metrics, count = collected.get(), ctypes.c_uint64()
        numbers = runtime().emu_metrics(ctypes.byref(count))
        if metrics is None:
            return
        width = 2 + len(COUNTERS)
        for entry in range(count.value):
            place, kind, *counters = numbers[entry * width : (entry + 1) * width]
            source, line = (self.compiled.lines(place) or [("?", 0)])[0]
            metrics.add(source, line, kind, tuple(counters))

    def _with_places(self, text: str) -> str:
        """Addresses become file and line, with those of the calls that were inlined; shared memory gets its names."""

        def place(match: re.Match[str]) -> str:
            lines = [f"{name}:{line}" for name, line in self.compiled.lines(int(match[1], 16))]
            return " called at ".join(lines) or "an unknown place"

        def variable(match: re.Match[str]) -> str:
            found = self.compiled.shared_variable(int(match[1]))
            return f"byte {found[1]} of __shared__ {found[0]}" if found else match[0]

        text = re.sub(r"@(0x[0-9a-f]+)@", place, text).replace("@(nil)@", "an unknown place")
        return re.sub(r"byte (\d+) of __shared__ memory", variable, text)


def _check_array(what: str, value: Any, kind: str, size: int, written: bool) -> None:
    if not isinstance(value, np.ndarray):
        raise LaunchError(f"{what}: expected an array, got {type(value).__name__}")
    if kind != "V" and (value.dtype.kind != kind or value.dtype.itemsize != size):
        raise LaunchError(f"{what}: expected elements of type {kind}{size}, got {value.dtype.str[1:]} ({value.dtype})")
    if written and not value.flags.writeable:
        raise LaunchError(f"{what}: expected an array that may be written, got a read-only one")


def _pack_value(what: str, value: Any, kind: str, size: int) -> Any:
    structure = isinstance(value, ctypes.Structure)
    if not structure and not isinstance(value, np.generic):
        raise LaunchError(f"{what}: expected a value of type {kind}{size}, got {type(value).__name__}")
    data = bytes(value) if structure else value.tobytes()
    if kind != ("V" if structure else value.dtype.kind) or len(data) != size:
        raise LaunchError(f"{what}: expected a value of type {kind}{size}, got {type(value).__name__}")
    return (ctypes.c_char * size).from_buffer_copy(data)
