"""A .cu file and the instantiations of its kernels: what is compiled, and how one is launched.

The same text runs in two places. CuPy's arrays run what NVRTC compiled for their device; NumPy's arrays, and those of
the emulator's stand-in for CuPy, run what g++ compiled for the emulator (:mod:`refnet.kernels.emulator`). A launcher
doesn't see the difference::

    NMS = Program("nms.cu", ["nms_mask", "nms_scan"], contraction=False)
    NMS.launch(xp, "nms_mask", (columns, rows), (64,), (np.int32(n), boxes, np.float32(threshold), mask), outputs=(3,))
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from refnet.arrays import is_array, namespace
from refnet.errors import LaunchError

Launch = Callable[..., None]
LARGEST_GRID = (2**31 - 1, 65535, 65535)  # blocks along x, y and z, on every device
FOLDER = Path(str(files("refnet.kernels.cuda")))
_folder: ContextVar[Path] = ContextVar("folder", default=FOLDER)


@contextmanager
def sources_in(folder: Path) -> Iterator[None]:
    """Within the block, take programs' sources from `folder`: a changed copy of ours, to see that a change is noticed."""
    token = _folder.set(folder.resolve())
    try:
        yield
    finally:
        _folder.reset(token)


def source_folder() -> Path:
    """Where programs' sources are."""
    return _folder.get()


def headers_beside(source: Path) -> tuple[Path, ...]:
    """The headers in the folder of `source`, any of which it may include."""
    return tuple(sorted(source.parent.glob("*.cuh")))


@dataclass(frozen=True, slots=True)
class Instantiation:
    """One kernel: what C++ calls it, and the oldest architecture that it compiles for.

    Attributes:
        name: the name expression, ``"max_pool_forward<float>"``.
        least: compute capability times ten, 75 for sm_75.
        only: compute capabilities that alone have its instructions (90 for wgmma, compiled for sm_90a); empty: all.
    """

    name: str
    least: int = 75
    only: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, init=False)
class Program:
    """A .cu file.

    Attributes:
        source: the file's name, in this folder (or the one that :func:`sources_in` names), or an absolute path.
        instantiations: every kernel that a launcher may ask for.
        contraction: whether the compiler may fuse a product and a sum into one rounding. Where decisions must equal
            NumPy's bit for bit (NMS, ROI coordinates) it may not.
        names: those of the instantiations.
    """

    source: str
    instantiations: tuple[Instantiation, ...]
    contraction: bool
    names: frozenset[str] = field(compare=False, repr=False)

    def __init__(
        self, source: str | Path, instantiations: Sequence[str | Instantiation], *, contraction: bool = True
    ) -> None:
        named = (Instantiation(entry) if isinstance(entry, str) else entry for entry in instantiations)
        object.__setattr__(self, "source", str(source))
        object.__setattr__(self, "instantiations", tuple(named))
        object.__setattr__(self, "contraction", contraction)
        object.__setattr__(self, "names", frozenset(entry.name for entry in self.instantiations))

    def __hash__(self) -> int:  # of each launch: both know theirs already
        return hash((self.source, self.names))

    @property
    def path(self) -> Path:
        """The file itself."""
        return _folder.get() / self.source

    def launch(
        self,
        xp: Any,
        name: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arguments: Sequence[Any],
        *,
        shared: int = 0,
        outputs: Sequence[int] = (),
        also: Sequence[Any] = (),
    ) -> None:
        """Run one kernel on the current stream.

        Args:
            xp: the namespace of the arrays (:func:`refnet.arrays.namespace`).
            name: of one of the instantiations.
            grid, block: blocks, and threads of a block, along x, y and z. An empty grid runs nothing.
            arguments: arrays in C order, NumPy's typed scalars, ctypes structures (passed by value).
            shared: bytes of dynamic shared memory.
            outputs: positions of the arrays that are written only, and in every element; the emulator checks both.
            also: further arrays that the kernel reaches through pointers within structures or arrays; the emulator
                must know them to tell them from memory that isn't the kernel's.

        Raises:
            LaunchError: an argument isn't contiguous, or is a Python number, or the name isn't one of the program's, or
                the grid is larger than any may be.
        """
        if name not in self.names:
            known = ", ".join(entry.name for entry in self.instantiations)
            raise LaunchError(f"{self.path.name}: expected one of the instantiations {known}; got {name!r}")
        if min(grid) < 1:  # CuPy would round an extent of 0 up to 1
            return
        if any(extent > most for extent, most in zip(grid, LARGEST_GRID, strict=False)):
            raise LaunchError(f"{self.path.name}: {name}: expected a grid of at most {LARGEST_GRID}, got {grid}")
        for index, value in enumerate(arguments):
            if not isinstance(value, np.generic):
                self._check_argument(name, index, value)
        run = _load(xp)(self, name)
        run(grid, block, tuple(arguments), shared=shared, outputs=tuple(outputs), also=tuple(also))

    def _check_argument(self, name: str, index: int, value: Any) -> None:
        """Check what a kernel receives: its parameters are read as bytes, whatever they were meant to be.

        Raises:
            LaunchError: it is an array that isn't contiguous (CuPy would pass it as if it were), or a Python number.
        """
        if is_array(value):
            if value.flags.c_contiguous:
                return
            fault = f"expected an array in C order, got strides {value.strides} for {value.shape}"
        elif isinstance(value, ctypes.Structure):
            return
        else:
            fault = f"expected an array, a typed scalar or a structure, got {type(value).__name__}"
        raise LaunchError(f"{self.path.name}: {name}: argument {index}: {fault}")


def _load(xp: Any) -> Callable[[Program, str], Launch]:
    """What makes a kernel callable for arrays of `xp`."""
    if xp.__name__ == "cupy":
        from refnet.kernels.cuda.cupy_module import load

        return load
    if xp.__name__ == "refnet.kernels.emulator.standin":
        return xp.load  # type: ignore[no-any-return]
    from refnet.kernels.emulator.module import load as emulate

    return emulate


def blocks(count: int, size: int) -> int:
    """How many blocks of `size` cover `count`."""
    return -(-count // size)


def ready(array: Any, dtype: Any = None) -> Any:
    """`array` in C order, of `dtype` if one is given; itself if it is so already."""
    if array.flags.c_contiguous and (dtype is None or array.dtype == dtype):
        return array
    return namespace(array).ascontiguousarray(array, dtype=dtype)
