"""Compile a kernel, and the emulator's runtime, with g++; keep the results on disk.

A compiled file is named after a hash of all that it depends on: the texts, the flags and the compiler's version. So an
old one is never loaded, and one cache serves any number of source folders, processes and versions.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from threading import RLock

from refnet.errors import CompilerError
from refnet.kernels.cache import cache_folder
from refnet.kernels.cuda.program import headers_beside

FOLDER = Path(str(files("refnet.kernels.emulator"))) / "runtime"
OWN = "emulator-runtime"  # what debugging information calls this folder: checkouts share what is compiled
# one translation unit: the checker's entry points and what they call are compiled into each other
PARTS = ("fibers", "launch", "barriers", "warp", "async_copy", "tensor_core", "warpgroup", "shadow", "metrics", "hooks")
COMMON = ("-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-x", "c++", "-")
RUNTIME_FLAGS = ("-std=c++20", "-O2", "-g1", "-fvisibility=default", "-ftls-model=initial-exec")
KERNEL_FLAGS = ("-std=c++17", "-w", "-ffp-contract=off", "-fno-gnu-unique", "-include", "cuda_shim.h")
FAST = ("-O2",)  # what -O3 and -march=native add makes up for nothing: most time goes into switching threads
# g++ instruments the code as for ThreadSanitizer and UBSan, but nothing of theirs is linked: the runtime has the hooks;
# vectors aren't taken apart, so that one access of 16 bytes is seen as one
CHECK = (
    "-O1", "-fno-tree-sra", "-g1", "-nodefaultlibs", "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0",
    "-fsanitize=signed-integer-overflow,shift,integer-divide-by-zero,bounds,alignment,float-cast-overflow,unreachable",
)  # fmt: skip

lock = RLock()  # of the runtime: it runs one kernel at a time


def available() -> bool:
    """Whether kernels can be emulated here: on x86-64 Linux with g++."""
    return _supported() and shutil.which("g++") is not None


def _supported() -> bool:
    return sys.platform == "linux" and platform.machine() in ("x86_64", "AMD64")


@functools.cache
def _compiler(path: str | None) -> str:
    """Which compiler it is.

    Raises:
        CompilerError: there is none, or the emulator doesn't run here.
    """
    if not _supported():
        raise CompilerError(f"the emulator runs on x86-64 Linux, got {platform.machine()} {sys.platform}")
    if path is None:
        raise CompilerError("the emulator compiles kernels with g++, and there is none on the PATH")
    return subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout


def _build(title: str, stub: str, flags: Sequence[str], folder: Path, texts: Sequence[Path]) -> Path:
    """The shared object that g++ makes of `stub`, which includes files of `folder` and the runtime's headers.

    Raises:
        CompilerError: there is no compiler, or it rejects the text.
    """
    key = hashlib.sha256("\0".join([_compiler(shutil.which("g++")), OWN, stub, *flags]).encode())
    for text in texts:
        key.update(b"\0" + text.name.encode() + b"\0" + text.read_bytes())
    path = cache_folder() / "emulator" / f"{title}-{key.hexdigest()[:24]}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        made = Path(temporary, "made.so")
        places = ("-iquote", str(folder), f"-I{FOLDER}", f"-fdebug-prefix-map={FOLDER}={OWN}", "-o", str(made))
        command = ["g++", *COMMON, *flags, *places]
        done = subprocess.run(command, input=stub, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompilerError(f"{title}: g++ says\n{done.stderr}")
        made.replace(path)
    return path


class Module(ctypes.Structure):
    """What the runtime finds out about a kernel's shared object (``EmuModule`` in launch.cpp)."""

    _fields_ = (
        ("low", ctypes.c_uint64),
        ("high", ctypes.c_uint64),
        ("static_shared", ctypes.c_uint64),
        ("anchor_offset", ctypes.c_int64),
    )


class Request(ctypes.Structure):
    """A launch (``EmuRequest`` in launch.cpp)."""

    _fields_ = (
        ("kernel", ctypes.c_void_p),
        ("module", ctypes.POINTER(Module)),
        ("arguments", ctypes.c_void_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("dynamic_shared", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("workers", ctypes.c_uint),
        ("mode", ctypes.c_uint),
    )


class Parameter(ctypes.Structure):
    """A kernel's parameter (``emu_parameter`` in emulator_api.h)."""

    _fields_ = (("kind", ctypes.c_char), ("pointer", ctypes.c_char), ("size", ctypes.c_uint))


class Exported(ctypes.Structure):
    """A compiled kernel (``emu_kernel`` in emulator_api.h)."""

    _fields_ = (
        ("call", ctypes.c_void_p),
        ("shared_anchor", ctypes.c_void_p),
        ("parameters", ctypes.POINTER(Parameter)),
        ("parameter_count", ctypes.c_uint),
        ("shared_grain", ctypes.c_ubyte * 2),
    )


@functools.cache
def runtime() -> ctypes.CDLL:
    """The runtime, loaded so that kernels find its functions."""
    stub = "".join(f'#include "{part}.cpp"\n' for part in PARTS)
    texts = sorted([*FOLDER.glob("*.h"), *FOLDER.glob("*.cpp")])
    library = ctypes.CDLL(str(_build("runtime", stub, RUNTIME_FLAGS, FOLDER, texts)), ctypes.RTLD_GLOBAL)
    library.emu_find_module.argtypes = [ctypes.c_void_p, ctypes.POINTER(Module)]
    library.emu_launch.argtypes = [ctypes.POINTER(Request)]
    library.emu_fault_kind.restype = library.emu_fault_text.restype = ctypes.c_char_p
    library.emu_clear_buffers.argtypes = [ctypes.c_uint64, ctypes.c_uint64]
    library.emu_add_buffer.argtypes = [ctypes.c_void_p, ctypes.c_uint64, *[ctypes.c_uint] * 3, ctypes.c_char_p]
    library.emu_count_unwritten.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint64)]
    library.emu_count_unwritten.restype = ctypes.c_uint64
    library.emu_metrics.argtypes = [ctypes.POINTER(ctypes.c_uint64)]
    library.emu_metrics.restype = ctypes.POINTER(ctypes.c_uint64)
    return library


class Compiled:
    """One instantiation of a kernel in memory.

    Attributes:
        path: the shared object.
        address: of what it exports, an :class:`Exported`.
        parameters: kind, pointer and size of each parameter, as ``emu_parameter`` has them.
        module: what the runtime knows about the shared object.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        exported = Exported.in_dll(self._library, "emu_exported")
        self.address = ctypes.addressof(exported)
        found = (exported.parameters[i] for i in range(exported.parameter_count))
        self.parameters = tuple((p.kind.decode(), p.pointer.decode().strip("\0"), int(p.size)) for p in found)
        self.module = Module()
        self._lines: dict[int, list[tuple[str, int]]] = {}
        with lock:
            runtime().emu_find_module(self.address, ctypes.byref(self.module))

    @functools.cached_property
    def _shared_variables(self) -> list[tuple[int, int, str]]:
        """Start, end and name of what is static shared memory."""
        command = ["readelf", "--symbols", "--wide", "--demangle", str(self.path)]
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        found = re.findall(r"^ *\d+: ([0-9a-f]+) +(\d+) TLS .*?([^: ]+)$", text, re.MULTILINE)
        return [(int(start, 16), int(start, 16) + int(size), name) for start, size, name in found]

    def shared_variable(self, byte: int) -> tuple[str, int] | None:
        """The variable of static shared memory that a byte of it belongs to, and which byte of the variable that is."""
        for start, end, name in self._shared_variables:
            if start <= byte < end and name != "emu_anchor":
                return name, byte - start
        return None

    def lines(self, place: int) -> list[tuple[str, int]]:
        """File and line of a return address, and of the calls into which it was inlined, innermost first.

        The emulator's own headers are left out; the list is empty if the address isn't the kernel's.
        """
        if place not in self._lines:
            offset = place - 1 - self.module.low
            command = ["addr2line", "-e", str(self.path), "-i", hex(offset)]
            text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
            found = re.findall(r"^(.*):(\d+)", text, re.MULTILINE)
            self._lines[place] = [(Path(n).name, int(line)) for n, line in found if Path(n).parent.name != OWN]
        return self._lines[place]


def compile_kernel(source: Path, name: str, *, checked: bool) -> Compiled:
    """The instantiation `name` of a kernel in `source`, compiled unless that was done before.

    Raises:
        CompilerError: there is no compiler, or it rejects the text.
    """
    texts = (source, *headers_beside(source))
    stamps = tuple((s.st_mtime_ns, s.st_size, s.st_ino) for s in (text.stat() for text in texts))
    return _compile(texts, stamps, name, checked)


@functools.cache
def _compile(texts: tuple[Path, ...], stamps: tuple[tuple[int, int, int], ...], name: str, checked: bool) -> Compiled:
    runtime()
    source = texts[0]
    title = re.sub(r"\W+", "_", f"{source.stem}_{name}").strip("_")[:80]
    stub = f'#include "{source.name}"\nEMU_EXPORT(emu_exported, {name})\n'
    flags = (*KERNEL_FLAGS, *(CHECK if checked else FAST))
    return Compiled(_build(title, stub, flags, source.parent, [*texts, *sorted(FOLDER.glob("*.h"))]))
