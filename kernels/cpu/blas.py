"""C = A B + beta C by NumPy's own OpenBLAS.

``np.matmul`` can't add to what is there. The function that can is in the library that NumPy multiplies with, and ctypes
lets go of the interpreter's lock while it runs. It must be that very library: two copies of OpenBLAS in one process,
such as SciPy's beside NumPy's, have a pool of threads each, which wait for one another.

Where NumPy was built with another BLAS, :func:`available` is False, and plans that need this are not offered.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from refnet.arrays import Array

UNPACKED = 10**6  # OpenBLAS multiplies matrices with at most so many products as they lie, without packing them first
ROW_MAJOR, NO_TRANSPOSE, TRANSPOSE = 101, 111, 112  # of cblas.h

# what OpenBLAS is built with: a prefix for SciPy's builds, which NumPy's wheels hold, and a suffix for 64-bit integers
NAMES: dict[str, Any] = {
    "scipy_cblas_{}gemm64_": ctypes.c_int64,
    "scipy_cblas_{}gemm": ctypes.c_int32,
    "cblas_{}gemm64_": ctypes.c_int64,
    "cblas_{}gemm": ctypes.c_int32,
}


@dataclass(frozen=True, slots=True)
class _Product:
    """The function for one type of numbers."""

    call: Callable[..., None]
    name: str


@cache
def _products() -> dict[Any, _Product]:
    """By type, the functions of the library; none if it isn't OpenBLAS or doesn't name them."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    if "openblas" not in blas["name"].lower():
        return {}
    for library in _libraries():
        for name, integer in NAMES.items():
            if hasattr(library, name.format("s")) and hasattr(library, name.format("d")):
                return {
                    np.dtype(dtype): _declared(library, name.format(letter), integer, real)
                    for letter, dtype, real in (("s", np.float32, ctypes.c_float), ("d", np.float64, ctypes.c_double))
                }
    return {}


def _libraries() -> list[ctypes.CDLL]:
    """Where to look: NumPy's module, by which the linkers of Linux and macOS find what it was linked with, then the
    libraries that a wheel brings along, which is where they must be looked for on Windows."""
    home = Path(np.__file__).parent
    bundled = [
        path
        for folder in (home.parent / "numpy.libs", home / ".dylibs", home / ".libs")
        for path in sorted(folder.glob("*openblas*"))
    ]
    found = []
    for path in (np._core._multiarray_umath.__file__, *bundled):  # type: ignore[attr-defined]
        try:
            found.append(ctypes.CDLL(str(path)))
        except OSError:  # not a library of this system, or one that can't be loaded by its path
            continue
    return found


def _declared(library: ctypes.CDLL, name: str, integer: Any, real: Any) -> _Product:
    function = getattr(library, name)
    matrix = [ctypes.c_void_p, integer]
    function.argtypes = [*[ctypes.c_int] * 3, *[integer] * 3, real, *matrix, *matrix, real, *matrix]
    function.restype = None
    return _Product(function, name)


def available() -> bool:
    """Whether :func:`multiply` can be called."""
    return bool(_products())


def title() -> str:
    """The name of the function for float32, or why there is none."""
    products = _products()
    if not products:
        return "none: NumPy's BLAS isn't OpenBLAS, or doesn't name its functions as OpenBLAS does"
    return products[np.dtype(np.float32)].name


def function(dtype: Any) -> Callable[..., None] | None:
    """The function for numbers of `dtype` itself, ``cblas_?gemm``, for who keeps count of addresses; None without it.

    Looking up where three arrays lie costs :func:`multiply` several times what a small product does.
    """
    product = _products().get(np.dtype(dtype))
    return None if product is None else product.call


def multiply(a: Array, b: Array, c: Array, beta: float = 0.0) -> None:
    """C = A B + beta C, in place; with beta = 0, C may hold anything.

    Along one axis of `a` and of `b`, and in rows of `c`, numbers must be neighbours; lines may lie any distance apart
    at which they don't overlap.

    Args:
        a, b, c: (m, k), (k, n) and (m, n), all float32 or all float64, with a BLAS that is :func:`available`.
        beta: what `c` is multiplied with first.
    """
    (m, k), n = a.shape, b.shape[1]
    assert b.shape[0] == k
    assert c.shape == (m, n)
    assert a.dtype == b.dtype == c.dtype
    if m == 0 or n == 0:
        return
    if k == 0:
        c[...] = 0 if beta == 0 else c * beta
        return
    transpose_a, pitch_a = _order(a)
    transpose_b, pitch_b = _order(b)
    transpose_c, pitch_c = _order(c)
    assert transpose_c == NO_TRANSPOSE
    _products()[c.dtype].call(
        ROW_MAJOR, transpose_a, transpose_b, m, n, k, 1.0, _address(a), pitch_a, _address(b), pitch_b, beta, _address(c), pitch_c
    )  # fmt: skip


def _order(matrix: Array) -> tuple[int, int]:
    """Whether the matrix is the transpose of what lies in memory row by row, and how far these rows are apart."""
    (rows, columns), (down, across), item = matrix.shape, matrix.strides, matrix.itemsize
    if (across == item or columns == 1) and (down >= columns * item or rows == 1):
        return NO_TRANSPOSE, max(down // item, columns) if rows > 1 else columns
    assert down == item or rows == 1, "numbers must be neighbours along one axis"
    return TRANSPOSE, max(across // item, rows) if columns > 1 else rows


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
