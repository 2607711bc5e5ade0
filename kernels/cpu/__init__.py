"""Tuned NumPy and BLAS kernels; KERNELS maps the name of each operation to the kernel that replaces it."""

from collections.abc import Callable
from typing import Any

KERNELS: dict[str, Callable[..., Any]] = {}
