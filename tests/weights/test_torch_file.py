"""PyTorch's files: what torch.save wrote, in both formats, comes back bit for bit, and ours is read by torch.

tests/golden/weights holds what torch 2.13 made of _tensors() in both formats, and the arrays that they hold, so that
the proof stands where torch isn't installed.
"""

import argparse
import pickle
import re
import struct
import tracemalloc
import zlib
from collections import Counter, OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refnet.errors import WeightsError
from refnet.weights import torch_file
from refnet.weights.files import read_tensors, write_tensors
from tests.weights.damage import assert_refused
from tests.weights.torch_bytes import Call, Key, Name, Storage, archive, parameter, stream, tarred, tensor

FORMATS = {"zip": True, "stream": False}
GOLDEN = Path(__file__).parent.parent / "golden" / "weights"


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


def _assert_same(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name
        assert not found[name].flags.writeable, name
        assert found[name].flags.aligned, name


@pytest.mark.parametrize("kind", FORMATS)
def test_reads_what_torch_writes_bit_for_bit(torch: Any, tmp_path: Path, kind: str) -> None:
    tensors = _tensors(torch)
    torch.save(tensors, tmp_path / "a.pth", _use_new_zipfile_serialization=FORMATS[kind])
    found = read_tensors(tmp_path / "a.pth")
    _assert_same(found, {name: _plain(tensor) for name, tensor in tensors.items()})
    for name in ("transposed", "channels last", "shared, every third"):
        assert found[name].strides == tensors[name].numpy().strides, name
    assert np.shares_memory(found["shared"], found["shared, every third"])


@pytest.mark.parametrize("kind", FORMATS)
def test_reads_files_that_torch_wrote(kind: str) -> None:
    with np.load(GOLDEN / "torch_tensors.npz") as expected:
        _assert_same(read_tensors(GOLDEN / f"torch_{kind}.pth"), dict(expected))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("wrapper", ["", "model", "state_dict", "model_state", "model_state_dict"])
def test_finds_the_state_dict_of_a_checkpoint(torch: Any, tmp_path: Path, kind: str, wrapper: str) -> None:
    """With what training scripts store beside it, and with the attributes of a module's state dict."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 3, 2, 2)).sum().backward()
    optimizer.step()
    root = model.state_dict()
    if wrapper:
        beside = {
            "epoch": 3,
            "args": argparse.Namespace(lr=0.1),
            "best": np.float64(0.5),
            "milestones": Counter([8, 9]),
        }
        root = {"optimizer": optimizer.state_dict(), wrapper: root, **beside}
    torch.save(root, tmp_path / "a.pth", _use_new_zipfile_serialization=FORMATS[kind])
    expected = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    _assert_same(read_tensors(tmp_path / "a.pth"), expected)


def _small() -> dict[str, Any]:
    """A state dict for the writers of these tests: every type, shared storages, views, parameters, attributes."""
    rng = np.random.default_rng(0)
    flat = Storage(rng.normal(size=30).astype(np.float32))
    root: dict[str, Any] = OrderedDict()
    for code in ("f4", "f8", "f2", "i8", "i4", "i2", "i1", "u1", "b1"):
        root[code] = tensor(Storage(rng.integers(0, 2, (2, 3)).astype(code)))
    root["bfloat16"] = tensor(Storage(rng.integers(0, 2**16, 7).astype("<u2"), kind="BFloat16Storage"))
    root["parameter"] = parameter(tensor(Storage(np.ones((2, 3, 4, 5), np.float32))))
    root["no axes"] = tensor(Storage(np.array(3.5, np.float32)))
    root["empty"] = tensor(Storage(np.zeros((0, 3), np.float32)))
    root["shared"] = tensor(flat, (5, 6))
    root["columns"] = tensor(flat, (6, 4), (1, 6), 6)
    root.__dict__["_metadata"] = OrderedDict([("", {"version": 1})])
    return root


def _of_torch(torch: Any) -> Any:
    """What :func:`_small` says, as torch's tensors."""
    root = OrderedDict()
    storages: dict[int, Any] = {}

    def made(call: Any) -> Any:
        if call.name.name == "_rebuild_parameter":
            return torch.nn.Parameter(made(call.arguments[0]))
        storage, offset, size, stride = call.arguments[:4]
        if id(storage) not in storages:
            data = torch.from_numpy(storage.data.reshape(-1).view("i2" if storage.kind else storage.data.dtype).copy())
            storages[id(storage)] = data.view(torch.bfloat16) if storage.kind else data
        return storages[id(storage)].as_strided(size, stride, offset)

    small = _small()
    for name, call in small.items():
        root[name] = made(call)
    root.__dict__["_metadata"] = small.__dict__["_metadata"]
    return root


def test_the_archives_of_these_tests_are_those_of_torch(torch: Any, tmp_path: Path) -> None:
    torch.save(_of_torch(torch), tmp_path / "archive.pth")
    expected = (tmp_path / "archive.pth").read_bytes()
    identity = re.search(rb"serialization_idFB.\0Z*(\d{40})", expected)
    assert identity is not None
    assert archive(_small(), identity=identity[1]) == expected


def test_the_streams_of_these_tests_are_those_of_torch(torch: Any, tmp_path: Path) -> None:
    """But for the keys: torch's are addresses in memory."""
    torch.save(_of_torch(torch), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    expected = (tmp_path / "a.pth").read_bytes()
    small = _small()
    calls = [call.arguments[0] if call.name.name == "_rebuild_parameter" else call for call in small.values()]
    storages = dict.fromkeys(call.arguments[0] for call in calls)
    addresses = re.findall(rb"Storage\n(?:q.|r....)X(....)(\d+)|h.X(....)(\d{9,})", expected, re.DOTALL)
    keys = list(dict.fromkeys((first or second).decode() for _, first, _, second in addresses))
    assert len(keys) == len(storages)
    for storage, key in zip(storages, keys, strict=True):
        storage.key = key
    assert stream(small) == expected


@pytest.mark.parametrize("write", [archive, stream])
def test_reads_every_type_view_and_shared_storage(tmp_path: Path, write: Any) -> None:
    small = _small()
    (tmp_path / "a.pth").write_bytes(write(small))
    found = read_tensors(tmp_path / "a.pth")
    assert list(found) == list(small)
    for code in ("f4", "f8", "f2", "i8", "i4", "i2", "i1", "u1", "b1"):
        np.testing.assert_array_equal(found[code], small[code].arguments[0].data, strict=True)
    halves = small["bfloat16"].arguments[0].data
    assert found["bfloat16"].tobytes() == (halves.astype("<u4") << 16).tobytes()
    flat = small["shared"].arguments[0].data
    np.testing.assert_array_equal(found["shared"], flat.reshape(5, 6), strict=True)
    np.testing.assert_array_equal(found["columns"], flat[6:].reshape(4, 6).T, strict=True)
    assert (found["no axes"].shape, found["empty"].shape) == ((), (0, 3))


def test_a_view_in_the_stream_is_cut_out_of_its_storage(tmp_path: Path) -> None:
    data = np.arange(20, dtype=np.float32)
    storage = Storage(data, view=("view", 4, 10))
    (tmp_path / "a.pth").write_bytes(stream({"a": tensor(storage, (2, 3), offset=1)}))
    np.testing.assert_array_equal(read_tensors(tmp_path / "a.pth")["a"], data[5:11].reshape(2, 3), strict=True)


def _tar(**changes: Any) -> bytes:
    """A tar archive with a parameter made in either way, a tensor, and one in a view of a storage."""
    parameter = Name("torch.nn.parameter", "Parameter")
    root = OrderedDict()
    root["old"] = Call(parameter, state=(Key("11"), None, OrderedDict(), True, False))
    root["newer"] = Call(parameter, Key("12"), state=(True, False, OrderedDict()))
    root["tensor"] = Key("13")
    root["in a view"] = Key("14")
    storages = {1: np.arange(12, dtype=np.float32), 2: np.arange(3, dtype=np.int64)}
    tensors = {11: (1, (3, 4), (4, 1), 0), 12: (1, (2, 2), (1, 2), 5), 13: (2, (3,), (1,), 0), 14: (3, (2,), (1,), 1)}
    parts: dict[str, Any] = {"storages": storages, "tensors": tensors, "views": [(3, 1, 4, 5)]}
    return tarred(root, **(parts | changes))


def test_tar_archives_of_the_first_versions(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(_tar())
    flat = np.arange(12, dtype=np.float32)
    expected = {"old": flat.reshape(3, 4), "newer": flat[5:9].reshape(2, 2).T, "tensor": np.arange(3)}
    _assert_same(read_tensors(tmp_path / "a.pth"), expected | {"in a view": flat[5:7]})


def test_torch_reads_the_tar_archives_of_these_tests(torch: Any, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(_tar())
    expected = torch.load(tmp_path / "a.pth", weights_only=False)
    _assert_same(read_tensors(tmp_path / "a.pth"), {name: _plain(tensor) for name, tensor in expected.items()})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"lengths": {1: 2**62}}, "fits in 2|expected it to end before byte"),
        ({"lengths": {2: 300}}, "expected it to end before byte"),
        ({"lengths": {1: -1}}, "none negative"),
        ({"views": [(3, 1, 4, 9)]}, "a part of 1, got 4 \\+ 9"),
        ({"views": [(3, 1, -1, 5)]}, "a part of 1, got -1"),
        ({"views": [(1, 1, 0, 1), (3, 1, 4, 5)]}, "a part of 1"),
        ({"tensors": {11: (1, (3, 5), (4, 1), 0)}}, "to lie in a storage of 12"),
        ({"tensors": {11: (3, (5,), (1,), 1)}}, "to lie in a storage of 5"),
        ({"tensors": {1: (1, (3,), (1,), 0)}}, "under a key of its own, got 1 of 1"),
        ({"tensors": {12: (1, (3,), (1,), 0)}}, "a tensor's key, got '11'"),
        ({"names": ("sys_info", "pickle", "tensors", "../storages")}, "each once, got '../storages'"),
        ({"names": ("sys_info", "pickle", "tensors", "pickle")}, "each once, got 'pickle'"),
    ],
    ids=str,
)
def test_tar_archives_that_lie(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    (tmp_path / "a.pth").write_bytes(_tar(**changes))
    assert_refused(tmp_path / "a.pth", match)


def test_a_damaged_tar_archive(tmp_path: Path) -> None:
    content = _tar()
    path = tmp_path / "a.pth"
    for damaged in (content[:600], content[:2000], content[:130] + b"7" + content[131:], content[:1024]):
        path.write_bytes(damaged)
        assert_refused(path, "damaged")
    path.write_bytes(content[: content.index(b"storages\0") - 1024] + bytes(1024))
    assert_refused(path, "expected a member storages")


def test_big_endian_archives(tmp_path: Path) -> None:
    data = np.arange(6, dtype=np.float32).reshape(2, 3)
    halves = np.array([0x3F80, 0x4000], np.uint16)
    root = {"a": tensor(Storage(data)), "b": tensor(Storage(halves, kind="BFloat16Storage"))}
    content = archive(root, order=b"big")
    for array in (data, halves):
        swapped = array.byteswap().tobytes()
        assert content.count(array.tobytes()) == 1
        content = content.replace(array.tobytes(), swapped)
        content = content.replace(_crc(array.tobytes()), _crc(swapped))
    (tmp_path / "a.pth").write_bytes(content)
    found = read_tensors(tmp_path / "a.pth")
    np.testing.assert_array_equal(found["a"], data, strict=True)
    np.testing.assert_array_equal(found["b"], np.array([1, 2], np.float32), strict=True)


def _crc(content: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(content))


def _arrays(count: int = 0) -> dict[str, np.ndarray]:
    """Every type and layout that the writer takes, and `count` small ones for the batches of the pickler."""
    rng = np.random.default_rng(1)
    codes = ("f4", "f8", "f2", "i8", "i4", "i2", "i1", "u1", "?", "u2", "u4", "u8")
    arrays = {f"type.{code}": rng.integers(0, 2, (3, 4)).astype(code) for code in codes}
    arrays |= {
        "no axes": np.array(2.5),
        "empty": np.zeros((0, 3, 0, 2), np.float32),
        "long": np.zeros((70000, 1), "i1"),
    }
    return arrays | {f"{index}.weight": np.full((2, 1, 300, 1)[: index % 5], index) for index in range(count)}


@pytest.mark.parametrize("count", [0, 985, 986, 1300])
def test_writes_the_bytes_that_torch_writes(torch: Any, tmp_path: Path, count: int) -> None:
    """But for torch's id and its check sums."""
    arrays = _arrays(count)
    tensors = OrderedDict((name, torch.from_numpy(array)) for name, array in arrays.items())
    tensors["empty"] = torch.zeros(arrays["empty"].shape)  # NumPy has no strides for it
    torch.save(tensors, tmp_path / "archive.pth")
    write_tensors(tmp_path / "ours.pth", arrays)
    expected, found = (bytearray((tmp_path / f"{name}.pth").read_bytes()) for name in ("archive", "ours"))
    assert len(expected) == len(found)
    places = [match.start() for match in re.finditer(rb"\.data/serialization_id", expected)]
    spans = [(places[0] + 23, places[0] + 23 + 64 + 40 + 8), (places[1] - 39, places[1])]  # member, directory
    for start, stop in spans:
        expected[start:stop] = found[start:stop]
    assert expected == found


def test_torch_reads_what_is_written(torch: Any, tmp_path: Path) -> None:
    arrays = _arrays(20)
    write_tensors(tmp_path / "a.pth", arrays)
    found = torch.load(tmp_path / "a.pth", weights_only=True)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].numpy(), array, strict=True)


def test_round_trip_is_exact_in_any_memory_layout(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    plain = rng.normal(size=(4, 5, 6)).astype(np.float32)
    layouts = {
        "transposed": plain.T,
        "sliced": plain[::2, ::-1, 1::3],
        "in columns": np.asfortranarray(plain),
        "repeated": np.broadcast_to(np.float32(3), (4, 3)),
        "big-endian": plain.astype(">f4"),
        "no axes": np.array(np.nan),
        "ünïcode/层": plain[0],
    }
    write_tensors(tmp_path / "a.pth", _arrays() | layouts)
    found = read_tensors(tmp_path / "a.pth")
    expected = {name: array.astype(array.dtype.newbyteorder("=")) for name, array in (_arrays() | layouts).items()}
    _assert_same(found, expected)


def test_equal_tensors_make_equal_bytes(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.pth", _arrays())
    write_tensors(tmp_path / "b.pth", {name: np.array(array, order="F") for name, array in _arrays().items()})
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


@pytest.mark.parametrize("array", [np.zeros(2, complex), np.array(["a"]), np.array([{}])], ids=str)
def test_what_torch_has_no_type_for_isnt_written(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(WeightsError, match="expected tensors of torch's types, got 'x'"):
        write_tensors(tmp_path / "a.pth", {"x": array})
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_4_gib_is_written(tmp_path: Path) -> None:
    array = np.broadcast_to(np.float32(0), (1 << 15, 1 << 15))
    with pytest.raises(WeightsError, match="less than 4 GiB"):
        write_tensors(tmp_path / "a.pth", {"x": array})


def test_sniffing() -> None:
    small = {"a": tensor(Storage(np.zeros(1, np.float32)))}
    assert torch_file.is_torch_file(archive(small)[:64])
    assert torch_file.is_torch_file(stream(small)[:64])
    for head in (b"", b"PK", b"PK\3\4", b"PK\5\6" + bytes(60), b"\x80\x02}", b"\x80\x02\x8a\x0a" + bytes(20)):
        assert not torch_file.is_torch_file(head)


@pytest.mark.parametrize("kind", ["zip", "stream", "bfloat16", "pkl of protocol 2", "pkl of protocol 5"])
def test_reading_takes_little_more_memory_than_the_tensors(tmp_path: Path, kind: str) -> None:
    """Twice the file for bfloat16, which becomes float32; under protocol 2, bytes beyond 127 take two in the file."""
    arrays = [np.random.default_rng(index).integers(0, 2**16, 1 << 20).astype("<u2") for index in range(8)]
    if kind.startswith("pkl"):
        content = pickle.dumps({"model": {str(index): array for index, array in enumerate(arrays)}}, int(kind[-1]))
    else:
        code, name = ("<u2", "BFloat16Storage") if kind == "bfloat16" else ("<f2", "")
        root = {str(index): tensor(Storage(array.view(code), kind=name)) for index, array in enumerate(arrays)}
        content = stream(root) if kind == "stream" else archive(root)
    (tmp_path / "a").write_bytes(content)
    del content
    tracemalloc.start()
    try:
        found = read_tensors(tmp_path / "a")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = sum(array.nbytes for array in found.values())
    assert size == sum(array.nbytes for array in arrays) * (2 if kind == "bfloat16" else 1)
    limit = 2 if kind == "bfloat16" else 1
    assert peak <= limit * (tmp_path / "a").stat().st_size + (4 << 20)
