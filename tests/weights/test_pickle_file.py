"""Detectron2's and Caffe2's files: NumPy's arrays, as every protocol writes them."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from refnet.errors import WeightsError
from refnet.weights.files import read_tensors


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_arrays_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "long": rng.normal(size=(50, 60)),
        "short": rng.normal(size=(3,)).astype(np.float32),
        "in columns": np.asfortranarray(rng.normal(size=(3, 4))),
        "big-endian": np.arange(5, dtype=">i4"),
        "empty": np.zeros((0, 3), np.float16),
        "no axes": np.array(3, np.int64),
        "scalar": np.float32(0.5),
        "bool": np.array([True, False]),
    }
    content = {
        "model": {**arrays, "long_momentum": arrays["long"]},
        "__author__": "somebody",
        "matching_heuristics": True,
    }
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_tensors(path)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype.newbyteorder("="), array.shape), name
        assert found[name].tobytes() == array.astype(array.dtype.newbyteorder("=")).tobytes(), name
        assert not found[name].flags.writeable


def _text(text: str) -> bytes:
    """A string of Python 2."""
    return b"U" + bytes([len(text)]) + text.encode()


def _of_python_2(array: np.ndarray) -> bytes:
    """An array as Python 2 pickled it: all bytes and names are strings, truth is 0 or 1, a long string has its own
    instruction."""
    data = array.tobytes()
    length = b"U" + bytes([len(data)]) if len(data) < 256 else b"T" + struct.pack("<i", len(data))
    shape = b"(" + b"".join(b"K" + bytes([extent]) for extent in array.shape) + b"t"
    dtype = b"cnumpy\ndtype\n(" + _text(array.dtype.str[1:]) + b"K\0K\1tR(K\3" + _text("<") + b"NNNJ" + b"\xff" * 4
    dtype += b"J" + b"\xff" * 4 + b"K\0tb"
    head = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\0t" + _text("b") + b"tR(K\1"
    return head + shape + dtype + b"\x89" + length + data + b"tb"


def test_caffe2s_files_by_python_2(tmp_path: Path) -> None:
    """Python reads these, too, if told that strings are Latin-1. Optimiser state and long text are passed over."""
    rng = np.random.default_rng(1)
    blobs = {"conv1_w": rng.normal(size=(8, 3, 7, 7)).astype(np.float32), "conv1_b": np.arange(8, dtype=np.float32)}
    items = b"".join(_text(name) + _of_python_2(array) for name, array in blobs.items())
    items += _text("conv1_w_momentum") + _of_python_2(blobs["conv1_w"])
    config = b"T" + struct.pack("<i", 5000) + b"x: 1\n" * 1000
    content = b"\x80\x02}(" + _text("blobs") + b"}(" + items + b"u" + _text("cfg") + config + b"u."
    oracle = pickle.loads(content, encoding="latin1")["blobs"]
    path = tmp_path / "a.pkl"
    path.write_bytes(content)
    found = read_tensors(path)
    assert list(found) == list(blobs)
    for name in blobs:
        np.testing.assert_array_equal(found[name], oracle[name], strict=True)
        np.testing.assert_array_equal(found[name], blobs[name], strict=True)


def test_arrays_without_a_wrapper(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"a": np.arange(3)}, protocol=2))
    np.testing.assert_array_equal(read_tensors(path)["a"], np.arange(3), strict=True)


def test_bytes_behind_the_pickle_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"a": np.arange(3)}, protocol=2) + b".")
    with pytest.raises(WeightsError, match="got 1 bytes more"):
        read_tensors(path)
