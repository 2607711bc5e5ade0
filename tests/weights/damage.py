"""Damaged and hostile files: what a reader may do with them, and how they come about."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from refnet.errors import WeightsError
from refnet.weights.files import read_tensors

MUTATIONS = 20_000 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 300

# what a refusal may cost beside the file itself: the error, its traceback, a buffer
CONSTANT = 2**20

# values at which sizes, counts and offsets go wrong
_EDGES = [0, 1, 7, 8, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]


def assert_refused(path: Path, match: str, *, constant: int = CONSTANT) -> None:
    """Reading the file is a WeightsError, and takes memory of at most twice the file and a constant."""
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError, match=match):
            read_tensors(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 2 * path.stat().st_size + constant


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """The same names, dtypes, shapes and bits; memory order and byte order apart."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        native = array.astype(array.dtype.newbyteorder("="), order="C")
        assert found[name].dtype == native.dtype, name
        assert found[name].shape == native.shape, name
        assert found[name].tobytes() == native.tobytes(), name


def assorted(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Every dtype, and every memory layout that writers get wrong."""
    tensors = {
        f"dtypes.{code}": rng.integers(0, 2 if code == "?" else 100, (2, 3)).astype(code) for code in "?bBhHiIqQefd"
    }
    plain = rng.standard_normal((4, 5, 6)).astype(np.float32)
    return tensors | {
        "transposed": plain.T,
        "every.other": plain[::2, ::-1, 1::3],
        "broadcast": np.broadcast_to(np.float32(3), (4, 3)),
        "fortran": np.asfortranarray(plain),
        "big.endian": plain.astype(">f4"),
        "big.endian.transposed": plain.astype(">i2").T,
        "scalar": np.array(2.5),
        "one.byte": np.array(7, np.uint8),  # whatever follows it must be aligned again
        "empty": np.zeros((0, 3), np.float32),
        "not.numbers": np.array([np.nan, -np.nan, np.inf, -0.0], np.float32).view(np.uint32) | np.uint32(5),
        "ünïcode/层": plain[0],
    }


@st.composite
def mutated(draw: st.DrawFn, original: bytes) -> bytes:
    """`original` with a few bits flipped, numbers replaced by extreme ones, parts repeated, or its end cut off."""
    data = bytearray(original)
    filled = np.flatnonzero(np.frombuffer(original, np.uint8)).tolist()  # most of an HDF5 file is room that isn't used
    for _ in range(draw(st.integers(1, 4))):
        at = min(draw(st.sampled_from(filled) | st.integers(0, len(original) - 1)), max(len(data) - 1, 0))
        kind = draw(st.sampled_from(["flip", "byte", "number", "copy", "cut", "remove"]))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "number":
            size = draw(st.sampled_from([2, 4, 8]))
            value = draw(st.sampled_from(_EDGES) | st.integers(0, len(original)))
            data[at : at + size] = (value % 256**size).to_bytes(size, draw(st.sampled_from(["little", "big"])))
        elif kind == "copy":
            source = draw(st.integers(0, max(len(data) - 1, 0)))
            length = draw(st.integers(1, 64))
            data[at : at + length] = data[source : source + length]
        elif kind == "cut":
            del data[at:]
        else:
            del data[at : at + draw(st.integers(1, 8))]
    return bytes(data)


def read_or_refuse(path: Path, data: bytes) -> None:
    """Reading `data` gives arrays or a WeightsError. Anything else propagates, and fails the test."""
    path.write_bytes(data)
    try:
        tensors = read_tensors(path)
    except WeightsError:
        return
    assert all(isinstance(array, np.ndarray) for array in tensors.values())
    # a compressed archive as small as these may unpack to 64 MiB
    assert sum(array.nbytes for array in tensors.values()) <= 2 * len(data) + 2**26
