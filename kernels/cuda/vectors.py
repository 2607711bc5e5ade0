"""How launchers share rows of channels among threads, for kernels over ``vector.cuh``, and check what they are given."""

from typing import Any

import numpy as np

from refnet.arrays import Array
from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.kernels.cuda.program import blocks

TYPES = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}
VECTOR = 16  # bytes, the most that an instruction moves
THREADS = 256  # of a block
LARGEST = 2**31 - 1  # an int


def width(channels: int, *arrays: Any) -> int:
    """How many neighbouring channels a thread moves at once: as many as 16 bytes hold, or one.

    Every row of every array must start at a multiple of such a vector's bytes. The first array's type decides.
    """
    widest = VECTOR // arrays[0].itemsize
    distinct = {id(array): array for array in arrays}.values()
    whole = channels % widest == 0 and all(address(array) % (widest * array.itemsize) == 0 for array in distinct)
    return widest if whole else 1


def address(array: Any) -> int:
    """Where the array's memory begins."""
    found: int = array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr
    return found


def block_of(vectors: int) -> tuple[int, int]:
    """Threads along the vectors of a row, at most a warp, and along rows; powers of two."""
    across = min(32, 1 << max(vectors - 1, 0).bit_length())
    return across, THREADS // across


def check_floats(what: str, **arrays: Array) -> None:
    """Check that all arrays are of one floating-point type that kernels are compiled for.

    Raises:
        DTypeError: they aren't.
    """
    dtypes = {array.dtype for array in arrays.values()}
    if len(dtypes) != 1 or not dtypes <= {np.dtype(np.float32), np.dtype(np.float64)}:
        got = ", ".join(f"{name} {array.dtype}" for name, array in arrays.items())
        raise DTypeError(f"{what}: expected arrays that are all float32 or all float64, got {got}")


def check_shape(what: str, array: Array, shape: tuple[int, ...]) -> None:
    """Check the shape of an argument, called `what`.

    Raises:
        ShapeError: it has another.
    """
    if array.shape != shape:
        raise ShapeError(f"{what} must have shape {shape}, got {array.shape}")


def check_count(what: str, count: int) -> None:
    """Check that `count`, called `what`, can be an int of a kernel.

    Raises:
        ArgumentError: it is too large.
    """
    if count > LARGEST:
        raise ArgumentError(f"{what}: expected at most {LARGEST}, got {count}")


def cover(rows: int, vectors: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Grid and block that give a thread to each vector of each row; see :func:`block_of`."""
    block = block_of(vectors)
    return (blocks(rows, block[1]), blocks(vectors, block[0])), block
