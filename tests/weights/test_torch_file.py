"""PyTorch's files: what torch.save wrote, in both formats, comes back bit for bit."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refnet.weights.files import read_tensors

FORMATS = {"zip": True, "stream": False}


def _tensors(torch: Any) -> OrderedDict[str, Any]:
    """Every data type, and every way in which a tensor can lie in its storage."""
    generator = torch.Generator().manual_seed(3)
    flat = torch.randn(24, generator=generator)
    tensors = OrderedDict()
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        tensors[dtype] = torch.randn(3, 5, generator=generator).to(getattr(torch, dtype))
    for dtype in ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64"):
        info = torch.iinfo(getattr(torch, dtype))
        tensors[dtype] = torch.tensor([info.min, 0, 1, min(info.max, 2**63 - 1)], dtype=getattr(torch, dtype))
    tensors["bool"] = torch.tensor([[True, False], [False, True]])
    tensors["special"] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    tensors["no axes"] = torch.tensor(5.5)
    tensors["empty"] = torch.zeros(0, 3)
    tensors["parameter"] = torch.nn.Parameter(torch.ones(2))
    tensors["transposed"] = torch.randn(3, 4, generator=generator).t()
    tensors["channels last"] = torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last)
    tensors["shared"] = flat
    tensors["shared, a part"] = flat[5:9]
    tensors["shared, every third"] = flat.view(8, 3)[:, 1]
    tensors["bfloat16, a part"] = tensors["bfloat16"][1:, 2:4]
    return tensors


def _plain(tensor: Any) -> np.ndarray:
    tensor = tensor.detach()
    array: np.ndarray = (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()
    return array


@pytest.mark.parametrize("kind", FORMATS)
def test_reads_what_torch_writes_bit_for_bit(torch: Any, tmp_path: Path, kind: str) -> None:
    tensors = _tensors(torch)
    torch.save(tensors, tmp_path / "a.pth", _use_new_zipfile_serialization=FORMATS[kind])
    found = read_tensors(tmp_path / "a.pth")
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        expected = _plain(tensor)
        assert (found[name].dtype, found[name].shape) == (expected.dtype, expected.shape), name
        assert found[name].tobytes() == expected.tobytes(), name
        if expected.size and str(tensor.dtype) != "torch.bfloat16":
            assert found[name].strides == expected.strides, name
        assert not found[name].flags.writeable
    assert np.shares_memory(found["shared"], found["shared, every third"])
