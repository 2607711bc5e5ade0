"""Compile a kernel with NVRTC, NVIDIA's compiler as a library: no CuPy, no driver and no GPU needed.

One instantiation is one compilation and one cubin, the machine code for one architecture. The tests compile by the
same call that a GPU's user does, so what they compiled and measured is what a GPU runs.

NVRTC comes as the package ``nvidia-cuda-nvrtc``, or with the CUDA toolkit.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refnet.errors import CompilerError
from refnet.kernels.cache import cache_folder, write_shared
from refnet.kernels.cuda.program import Instantiation, Program, headers_beside

ARCHITECTURES = ("sm_75", "sm_80", "sm_90a", "sm_100", "sm_120")
"""What every kernel is compiled for in the tests: Turing, Ampere, Hopper, and the two Blackwells."""

ENTRY_FORMAT = 1
"""Of the cache's entries; another number makes others of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one thread, or one block, of a kernel takes, as the assembler reports it.

    Attributes:
        registers: of a thread.
        stack: bytes of local memory of a thread.
        spill_stores, spill_loads: bytes of registers moved to local memory and back.
        shared: bytes of static shared memory of a block.
    """

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cubin:
    """Machine code of one kernel for one architecture.

    Attributes:
        path: the file, as ``cupy.RawModule(path=...)`` takes it.
        symbol: what the kernel is called in it, the name expression mangled.
        log: what NVRTC and its assembler said.
        fused: how many multiply-adds of floating-point numbers, rounded once, the source's intermediate code (PTX) has;
            those within a division or a square root, which the assembler writes, aren't counted.
    """

    path: Path
    symbol: str
    log: str
    fused: int

    @property
    def resources(self) -> Resources:
        """What the kernel takes."""
        return read_resources(self.log, self.symbol)

    @property
    def warnings(self) -> list[str]:
        """The compiler's and the assembler's warnings."""
        return [line.strip() for line in self.log.splitlines() if re.search(r"\bwarning\b *[#:]", line)]


def architecture(capability: int, only: Sequence[int] = ()) -> str:
    """What to compile for on a device of compute `capability` times ten: 90 gives ``sm_90a``.

    The suffix stands for instructions that no later architecture has. Hopper's are always allowed (wgmma); another's
    if the kernel is written for it alone, that is, named in `only`.
    """
    return f"sm_{capability}{'a' if capability == 90 or capability in only else ''}"


def capability_of(architecture: str) -> int:
    """90 of ``sm_90a``."""
    return int(re.sub(r"\D", "", architecture))


def suits(instantiation: Instantiation, architecture: str) -> bool:
    """Whether the kernel is written for `architecture`."""
    capability = capability_of(architecture)
    return capability >= instantiation.least and (not instantiation.only or capability in instantiation.only)


def options(program: Program, architecture: str) -> tuple[str, ...]:
    """NVRTC's options. Denormals, division and square root are IEEE 754's; only contraction is up to the program."""
    contraction = "true" if program.contraction else "false"
    return (
        f"--gpu-architecture={architecture}", "-std=c++17", f"--fmad={contraction}", "--ftz=false", "--prec-div=true",
        "--prec-sqrt=true", "-lineinfo", "--ptxas-options=-v",
        "--diag-suppress=177",  # a constant that this instantiation doesn't use
    )  # fmt: skip


def compiled(program: Program, name: str, architecture: str) -> Cubin:
    """The kernel `name` of `program` for `architecture`, from the cache if it was compiled before.

    The cache knows it by everything that matters: source, headers, name, options, and the compiler. An entry that is
    damaged, or half written by a process that died, is compiled anew.

    Raises:
        CompilerError: the source doesn't compile, its log being the message; or there is no NVRTC.
    """
    request = _Request.of(program, name, architecture)
    return request.cached() or request.keep(compiler().compile(request))


def cached(program: Program, name: str, architecture: str) -> Cubin | None:
    """What :func:`compiled` would give without compiling; None if it would compile."""
    return _Request.of(program, name, architecture).cached()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compilation:
    """What comes out of one."""

    code: bytes
    intermediate: str
    symbol: str
    log: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """All that a compilation depends on, but for the compiler, and the place of its result in the cache."""

    title: str
    source: str
    headers: dict[str, str]
    name: str
    flags: tuple[str, ...]
    path: Path

    @classmethod
    def of(cls, program: Program, name: str, architecture: str) -> _Request:
        path = program.path
        source, headers = path.read_text(), {header.name: header.read_text() for header in headers_beside(path)}
        flags = options(program, architecture)
        identity = json.dumps([ENTRY_FORMAT, path.name, source, headers, name, flags, compiler().version])
        key = hashlib.sha256(identity.encode()).hexdigest()[:32]
        stem = re.sub(r"\W+", "_", f"{path.stem}_{name}").strip("_")[:80]
        place = cache_folder() / "cubin" / architecture / f"{stem}-{key}.cubin"
        return cls(title=path.name, source=source, headers=headers, name=name, flags=flags, path=place)

    def cached(self) -> Cubin | None:
        """What :meth:`keep` wrote, unless it isn't there, or no longer as it was."""
        try:
            entry = json.loads(self.path.with_suffix(".json").read_bytes())
            if entry.pop("sha256") == hashlib.sha256(self.path.read_bytes()).hexdigest():
                return Cubin(path=self.path, **entry)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return None

    def keep(self, result: _Compilation) -> Cubin:
        """Write a result to the cache."""
        fused = len(re.findall(r"\bfma\.", result.intermediate))
        entry = {"symbol": result.symbol, "log": result.log, "fused": fused}
        digest = hashlib.sha256(result.code).hexdigest()
        write_shared(self.path, result.code)
        write_shared(self.path.with_suffix(".json"), json.dumps({**entry, "sha256": digest}).encode())
        return Cubin(path=self.path, symbol=result.symbol, log=result.log, fused=fused)


def read_resources(log: str, symbol: str) -> Resources:
    """What the assembler's report (``--ptxas-options=-v``) says of the kernel `symbol`.

    Raises:
        CompilerError: it says nothing of it.
    """
    match = re.search(rf"Compiling entry function '{re.escape(symbol)}'(.*?)(?=Compiling entry function|\Z)", log, re.S)
    if not match:
        raise CompilerError(f"{symbol}: expected a report of its registers, got the log\n{log}")

    def number(pattern: str) -> int:
        found = re.search(rf"(\d+) {pattern}", match[1])
        return int(found[1]) if found else 0

    return Resources(
        registers=number("registers"),
        stack=number("bytes stack frame"),
        spill_stores=number("bytes spill stores"),
        spill_loads=number("bytes spill loads"),
        shared=number("bytes smem"),
    )


class Compiler:
    """The library itself.

    Attributes:
        path: of the library.
        version: (major, minor, bytes of the library), the last because NVRTC doesn't tell its patch level.
    """

    def __init__(self, path: Path) -> None:
        # NVRTC opens its library of built-in functions by name only, so have it loaded.
        for builtins in sorted(path.parent.glob("libnvrtc-builtins.so*")):
            ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
        self.path = path
        self._library = ctypes.CDLL(str(path))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = (major.value, minor.value, path.stat().st_size)

    def compile(self, request: _Request) -> _Compilation:
        """Compile.

        Raises:
            CompilerError: it doesn't compile.
        """
        program, name, flags = ctypes.c_void_p(), request.name.encode(), request.flags
        self._call(
            "nvrtcCreateProgram", ctypes.byref(program), request.source.encode(), request.title.encode(),
            len(request.headers), _strings(request.headers.values()), _strings(request.headers),
        )  # fmt: skip
        try:
            self._call("nvrtcAddNameExpression", program, name)
            status = self._library.nvrtcCompileProgram(program, len(flags), _strings(flags))
            log = self._read(program, "ProgramLog")
            if status:
                raise CompilerError(f"{request.title}: {request.name}: NVRTC says, given {' '.join(flags)}:\n{log}")
            symbol = ctypes.c_char_p()
            self._call("nvrtcGetLoweredName", program, name, ctypes.byref(symbol))
            return _Compilation(
                code=self._read_bytes(program, "CUBIN"),
                intermediate=self._read(program, "PTX"),
                symbol=(symbol.value or b"").decode(),
                log=log,
            )
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _read(self, program: ctypes.c_void_p, what: str) -> str:
        return self._read_bytes(program, what).rstrip(b"\0").decode()

    def _read_bytes(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            raise CompilerError(f"{function}: NVRTC says {self._library.nvrtcGetErrorString(status).decode()}")


def _strings(texts: Any) -> Any:
    encoded = [text.encode() for text in texts]
    return (ctypes.c_char_p * len(encoded))(*encoded)


@functools.cache
def compiler() -> Compiler:
    """NVRTC, loaded once.

    Raises:
        CompilerError: it isn't installed.
    """
    path = next(_libraries(), None)
    if path is None:
        raise CompilerError(
            "NVRTC: expected the package nvidia-cuda-nvrtc, a CUDA toolkit in CUDA_HOME, CUDA_PATH or /usr/local/cuda, "
            "or libnvrtc.so on LD_LIBRARY_PATH; found none"
        )
    return Compiler(path)


def available() -> bool:
    """Whether there is an NVRTC."""
    return next(_libraries(), None) is not None


def _libraries() -> Iterator[Path]:
    """Every libnvrtc.so of a version that knows all of ARCHITECTURES (13), the preferred first: pip's, the toolkit's."""
    packages = [Path(entry) / "nvidia" for entry in sys.path]
    folders = [place for package in packages for place in (package / "cu13/lib", package / "cuda_nvrtc/lib")]
    toolkits = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders += [Path(toolkit) / "lib64" for toolkit in toolkits if toolkit]
    folders += [Path(entry) for entry in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if entry]
    for folder in folders:
        if (folder / "libnvrtc.so.13").is_file():
            yield folder / "libnvrtc.so.13"
