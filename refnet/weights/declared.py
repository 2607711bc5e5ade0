"""What a file declares about its tensors, checked before anything believes it.

Every reader of this package takes a name, a shape and a place in the file from the file itself. Here is what they
have in common: the whole content as bytes, the sizes that follow from a shape, and the step from bytes to an array.
No check needs more memory or time than the file is long.
"""

import math
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import UInt8

from refnet.arrays import Array
from refnet.errors import WeightsError

_MAX_NAME = 1024  # characters; the longest names of real files have about a hundred
_MAX_AXES = 32
_MAX_BYTES = 2**63 - 1  # what NumPy can count


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file, to read from. What is found to be wrong with it in the block is said with its path.

    Raises:
        WeightsError: there is no such file, or it isn't a regular file, or it can't be read.
    """
    try:
        # asked before it is opened: opening a pipe waits for somebody to write to it
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise WeightsError("expected a file, got something else of that name")
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise WeightsError(f"weights {path}: can't be read: {error}") from error
    except WeightsError as error:
        raise WeightsError(f"weights {path}: {error}") from error


def content(file: BinaryIO) -> UInt8[Array, " B"]:
    """All bytes of the file."""
    return np.fromfile(file, np.uint8)


@contextmanager
def about(what: str) -> Iterator[None]:
    """What is found to be wrong in the block is said to be wrong about this."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{what}: {error}") from error


def check_name(name: str) -> str:
    """`name`, if it can be a tensor's.

    Names are only ever keys here. They are refused where they would lead out of a directory all the same, because
    whoever unpacks the archive may be less careful.

    Raises:
        WeightsError: the name is empty, very long, has control characters, or is a path that climbs or is absolute.
    """
    parts = name.replace("\\", "/").split("/")
    if not 0 < len(name) <= _MAX_NAME or not name.isprintable() or ".." in parts or not parts[0]:
        raise WeightsError(f"expected a printable name of a tensor, without ../ or a leading /, got {name[:80]!r}")
    return name


def byte_count(shape: Sequence[int], dtype: np.dtype[Any]) -> int:
    """How many bytes an array of this shape has, in exact arithmetic.

    Raises:
        WeightsError: an extent is negative, there are more than 32 axes, or the array would be too large to address.
    """
    if len(shape) > _MAX_AXES or any(extent < 0 for extent in shape):
        raise WeightsError(f"expected a shape of at most {_MAX_AXES} axes, none negative, got {_short(shape)}")
    # an extent of zero must not hide the others: NumPy refuses them, too
    if math.prod(max(extent, 1) for extent in shape) * dtype.itemsize > _MAX_BYTES:
        raise WeightsError(f"expected a shape that fits in 2^63 bytes, got {_short(shape)}")
    return math.prod(shape) * dtype.itemsize


def _short(shape: Sequence[int]) -> str:
    return f"({', '.join(str(extent)[:24] for extent in shape[:8])}{', ...' if len(shape) > 8 else ''})"


def as_array(data: UInt8[Array, " B"], dtype: np.dtype[Any], shape: Sequence[int], *, order: str = "C") -> Array:
    """The bytes as an array in the machine's byte order; no copy where they already are one, and aligned.

    Raises:
        WeightsError: the shape doesn't account for exactly these bytes, or a bool is neither 0 nor 1.
    """
    expected = byte_count(shape, dtype)
    if data.size != expected:
        raise WeightsError(f"expected {expected} bytes for shape {_short(shape)} of {dtype}, got {data.size}")
    if dtype == np.bool_ and data.size and data.max() > 1:
        raise WeightsError(f"expected bools of 0 or 1, got a byte {data.max()}")
    if data.ctypes.data % dtype.itemsize:
        data = data.copy()
    flat = data.view(dtype)
    flat = flat.astype(dtype.newbyteorder("="), copy=False)
    return flat.reshape(tuple(shape), order="F" if order == "F" else "C")


def check_apart(places: Iterable[tuple[int, int]]) -> None:
    """That no two of the places (first byte, byte behind the last) share a byte. Empty places share none.

    Raises:
        WeightsError: two do: one stretch of the file would fill memory many times.
    """
    last = 0
    for start, stop in sorted(place for place in places if place[0] < place[1]):
        if start < last:
            raise WeightsError(f"expected tensors that share no bytes, got two that share byte {start}")
        last = stop
