"""Detectron2's and Caffe2's files: NumPy's arrays, as every protocol writes them."""

import pickle
from pathlib import Path

import numpy as np
import pytest

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
