"""Compile a .cu with g++ and launch its kernels over NumPy's arrays, as ``cupy.RawModule`` does on a GPU."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np

from refnet.errors import ArgumentError, CompilerError, KernelFault, LaunchError
from refnet.kernels.cache import cache_folder
from refnet.kernels.cuda.program import Launch, Program, headers_beside

Mode = Literal["fast", "check", "metrics"]
RUNTIME = Path(str(files("refnet.kernels.emulator"))) / "runtime"
SOURCES = (RUNTIME / "runtime.cpp", RUNTIME / "checker.cpp", RUNTIME / "tensor_core.cpp")
HEADERS = (RUNTIME / "cuda_shim.h", RUNTIME / "internal.h")
COMMON = ("-std=c++17", "-fPIC", "-w", "-pthread", f"-I{RUNTIME}")
CHECKS = (
    "-O1", "-g", "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0",
    "-fsanitize=undefined,float-cast-overflow", "-fno-sanitize=vptr,null,pointer-overflow,return",
)  # fmt: skip
FLAGS: dict[str, tuple[str, ...]] = {"fast": ("-O3", "-march=native"), "check": CHECKS, "metrics": CHECKS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How kernels run in the emulator.

    Attributes:
        mode: "fast"; "check" watches every access (bounds, initialisation, races, barriers); "metrics" also counts
            memory transactions and bank conflicts.
        seed: of the order in which threads and blocks run; 0 is their natural order.
        workers: how many blocks run at a time; checks run one.
    """

    mode: Mode = "fast"
    seed: int = 0
    workers: int = 2


DEFAULT = Settings()
_settings: ContextVar[Settings] = ContextVar("emulator", default=DEFAULT)


@contextmanager
def running(**changes: Any) -> Iterator[Settings]:
    """Run emulated kernels with other :class:`Settings` within the block."""
    if changes.get("mode", "fast") not in FLAGS:
        raise ArgumentError(f"running: mode must be one of {', '.join(FLAGS)}, got {changes['mode']!r}")
    settings = replace(_settings.get(), **changes)
    token = _settings.set(settings)
    try:
        yield settings
    finally:
        _settings.reset(token)


def available() -> bool:
    """Whether there is a compiler: without g++ nothing can be emulated."""
    return shutil.which("g++") is not None


def load(program: Program, name: str) -> Launch:
    """The kernel `name` of `program`, compiled for the present mode; call it as :meth:`Program.launch` does."""
    return _Kernel(program, name, _settings.get())


def _build(commands: Sequence[Sequence[str]], texts: Sequence[Path], name: str, *, source: str = "") -> Path:
    """Run `commands`, in which OUTPUT and OBJECT stand for files, unless the result is in the cache."""
    key = hashlib.sha256("\0".join([*(" ".join(c) for c in commands), source]).encode())
    for text in texts:
        key.update(text.read_bytes())
    path = cache_folder() / "emulator" / f"{name}-{key.hexdigest()[:20]}.so"
    if path.exists():
        return path
    if not available():
        raise CompilerError("the emulator compiles kernels with g++, and there is none")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        places = {"OUTPUT": f"{folder}/out.so", "OBJECT": f"{folder}/out.o"}
        for command in commands:
            arguments = [places.get(word, word) for word in command]
            done = subprocess.run(arguments, input=source, capture_output=True, text=True, check=False)
            if done.returncode:
                raise CompilerError(f"{name}: g++ says\n{done.stderr}")
        os.replace(places["OUTPUT"], path)
    return path


@functools.cache
def _runtime() -> tuple[ctypes.CDLL, Path]:
    command = ["g++", *COMMON, "-O2", "-g", "-shared", "-o", "OUTPUT", *map(str, SOURCES)]
    path = _build([command], [*SOURCES, *HEADERS], "runtime")
    library = ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    library.emu_error.restype = library.emu_report.restype = ctypes.c_char_p
    library.emu_unwritten.restype = ctypes.c_long
    library.emu_module_base.restype = ctypes.c_ulong
    library.emu_set.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_int, ctypes.c_int, ctypes.c_size_t]
    library.emu_buf.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, *[ctypes.c_int] * 3]
    library.emu_set_module.argtypes = [ctypes.c_void_p]
    return library, path


@functools.cache
def _compile(source: Path, name: str, checked: bool) -> tuple[ctypes.CDLL, Path]:
    _, runtime = _runtime()
    stub = f'#include "{source}"\nEMU_EXPORT(0, {name})\n'
    flags = FLAGS["check" if checked else "fast"]
    first = [
        "g++", "-x", "c++", *COMMON, *flags, "-ffp-contract=off", "-fno-gnu-unique", "-include", "cuda_shim.h",
        "-c", "-", "-o", "OBJECT",
    ]  # fmt: skip
    # instrumented, but linked without libtsan: the hooks are the runtime's own
    second = ["g++", "-shared", "-fPIC", "OBJECT", str(runtime), "-o", "OUTPUT"]
    title = re.sub(r"\W+", "_", f"{source.stem}_{name}").strip("_")[:80]
    path = _build([first, second], [source, *headers_beside(source), *HEADERS], title, source=stub)
    return ctypes.CDLL(str(path)), path


class _Kernel:
    def __init__(self, program: Program, name: str, settings: Settings) -> None:
        self.name, self.settings = name, settings
        self.checked = settings.mode != "fast"
        self.runtime, _ = _runtime()
        self.library, self.path = _compile(program.path, name, self.checked)
        buffer = ctypes.create_string_buffer(512)
        self.library.emu_sig0(buffer)
        self.signature = buffer.value.decode().split()

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
        if len(arguments) != len(self.signature):
            raise LaunchError(f"{self.name}: expected {len(self.signature)} arguments, got {len(arguments)}")
        runtime, settings = self.runtime, self.settings
        runtime.emu_bufs_clear()
        values: list[Any] = []
        buffers: list[int] = []
        for index, (value, kind) in enumerate(zip(arguments, self.signature, strict=True)):
            value = getattr(value, "_host", value)  # the stand-in's arrays are NumPy's within
            values.append(self._pack(index, value, kind, index in outputs))
            if self.checked and isinstance(value, np.ndarray):
                grain = {1: 0, 2: 1}.get(value.dtype.itemsize, 2)
                runtime.emu_buf(
                    value.ctypes.data, value.nbytes, f"argument {index}".encode(), grain, index not in outputs,
                    kind[0] == "c",
                )  # fmt: skip
                buffers.append(index)
        for index, value in enumerate(also):
            value = getattr(value, "_host", value)
            if self.checked:
                runtime.emu_buf(value.ctypes.data, value.nbytes, f"also {index}".encode(), 2, 1, 0)
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.cast(ctypes.byref(v), ctypes.c_void_p) for v in values))
        check = {"fast": 0, "check": 1, "metrics": 2}[settings.mode]
        runtime.emu_set(settings.workers, settings.seed, 1, check, 1 << 16)
        function = self.library.emu_k0
        if check:
            runtime.emu_set_module(ctypes.cast(function, ctypes.c_void_p))
            runtime.emu_report_clear()
        extents = [(ctypes.c_uint * 3)(*(*(int(e) for e in extent), 1, 1)[:3]) for extent in (grid, block)]
        if function(pointers, *extents, ctypes.c_size_t(shared)):
            raise KernelFault(self._symbolise(f"{self.name}: {runtime.emu_error().decode()}"))
        if check:
            first = ctypes.c_long()
            for position, index in enumerate(buffers):
                missed = runtime.emu_unwritten(position, ctypes.byref(first)) if index in outputs else 0
                if missed:
                    raise KernelFault(
                        f"{self.name}: {missed} elements of output argument {index} never written, first {first.value}"
                    )

    def _pack(self, index: int, value: Any, kind: str, output: bool) -> Any:
        what = f"{self.name}: argument {index}"
        if kind[0] in "pc":
            if not isinstance(value, np.ndarray):
                raise LaunchError(f"{what}: expected an array, got {type(value).__name__}")
            if kind[1] != "V" and (value.dtype.kind != kind[1] or value.dtype.itemsize != int(kind[2:])):
                raise LaunchError(f"{what}: expected elements {kind[1:]}, got {value.dtype}")
            if output:
                value.view(np.uint8).reshape(-1)[...] = 0xFF
            return ctypes.c_void_p(value.ctypes.data)
        data = bytes(value) if isinstance(value, ctypes.Structure) else value.tobytes()
        wanted = "V" if isinstance(value, ctypes.Structure) else value.dtype.kind
        if wanted != kind[0] or len(data) != int(kind[1:]):
            raise LaunchError(f"{what}: expected {kind}, got {type(value).__name__} of {len(data)} bytes")
        return (ctypes.c_char * len(data)).from_buffer_copy(data)

    def _symbolise(self, message: str) -> str:
        def place(match: re.Match[str]) -> str:
            offset = int(match[1], 16) - 1 - self.runtime.emu_module_base()
            command = ["addr2line", "-e", str(self.path), "-i", hex(offset)]
            lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")
            return "at " + Path(lines[0]).name

        return re.sub(r"pc=(0x[0-9a-f]+)", place, message)
