"""CUDA kernels for CuPy's arrays, and for the emulator; KERNELS maps the name of each operation to its kernel."""

from collections.abc import Callable
from typing import Any

KERNELS: dict[str, Callable[..., Any]] = {}
