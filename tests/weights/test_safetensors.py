"""Safetensors: round trips to the bit, the format's own library as the second oracle, and files that lie."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refnet.errors import WeightsError
from refnet.weights.files import read_tensors, write_tensors
from refnet.weights.safetensors_file import write
from tests.weights.damage import MUTATIONS, assert_refused, assert_same, assorted, mutated, read_or_refuse

TINY = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.weight": np.arange(3, dtype=np.int64)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tensors.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("original") / "tensors"
    write(path, TINY)
    return path.read_bytes()


def raw(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_what_was_written_is_read_bit_for_bit(path: Path) -> None:
    tensors = assorted(np.random.default_rng(0))
    write_tensors(path, tensors)
    assert_same(read_tensors(path), tensors)


def test_no_tensors_at_all(path: Path) -> None:
    write_tensors(path, {})
    assert read_tensors(path) == {}


def test_the_name_of_the_file_says_nothing(tmp_path: Path) -> None:
    write(tmp_path / "model.npz", TINY)
    assert_same(read_tensors(tmp_path / "model.npz"), TINY)


def test_equal_tensors_make_equal_bytes(tmp_path: Path) -> None:
    tensors = assorted(np.random.default_rng(1))
    write(tmp_path / "a", tensors)
    write(tmp_path / "b", {name: tensors[name].copy(order="K") for name in reversed(tensors)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_each_tensor_is_aligned_and_may_be_changed(path: Path) -> None:
    write_tensors(path, assorted(np.random.default_rng(2)))
    for name, array in read_tensors(path).items():
        assert array.flags.aligned, name
        assert array.flags.writeable, name


def test_the_formats_own_library_reads_it(path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy", reason="safetensors isn't installed, and is only compared with")
    tensors = assorted(np.random.default_rng(3))
    write_tensors(path, tensors)
    assert_same(library.load_file(path), tensors)


def test_files_of_the_formats_own_library(path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy", reason="safetensors isn't installed, and is only compared with")
    tensors = {  # as the library needs them: contiguous and native
        name: np.array(array, array.dtype.newbyteorder("="), order="C")
        for name, array in assorted(np.random.default_rng(4)).items()
    }
    library.save_file(tensors, path, metadata={"format": "np"})
    assert_same(read_tensors(path), tensors)


def test_bfloat16_becomes_float32(path: Path) -> None:
    halves = np.array([0x3F80, 0xC000, 0x7F80, 0x0001, 0x8000], "<u2")  # 1, -2, infinity, 2^-133, -0
    path.write_bytes(raw({"x": entry([5], [0, 10], "BF16")}, halves.tobytes()))
    expected = np.array([1, -2, np.inf, 2.0**-133, -0.0], np.float32)
    assert_same(read_tensors(path), {"x": expected})


def test_keys_in_any_order_and_white_space(path: Path) -> None:
    path.write_bytes(raw(b'{ "x" : {"data_offsets":[0,1],\n"shape":[ ],"dtype":"U8"} }   ', b"\x05"))
    assert_same(read_tensors(path), {"x": np.array(5, np.uint8)})


def test_a_header_whose_length_looks_like_a_pickle(path: Path) -> None:
    """Pickles of protocol 2 begin with the bytes 80 02, which are 640 as well."""
    header = json.dumps({"x": entry()}).encode().ljust(0x280)
    path.write_bytes(raw(header, bytes(8)))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert_same(read_tensors(path), {"x": np.zeros(2, np.float32)})


@pytest.mark.parametrize("array", [np.zeros(2, complex), np.array(["a"]), np.zeros(2, "V3"), np.array([{}])], ids=str)
def test_only_plain_numbers_are_written(path: Path, array: np.ndarray) -> None:
    with pytest.raises(WeightsError, match="can't hold 'x'"):
        write_tensors(path, {"x": array})
    assert not path.exists()


def test_a_failed_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tensors(path, TINY)

    def full(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_tensors(path, {})
    assert_same(read_tensors(path), TINY)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


HOSTILE = {
    "a header longer than the file": ((10**6).to_bytes(8, "little") + b'{"x":', "header that fits"),
    "a header of 2^63 bytes": ((2**63).to_bytes(8, "little") + b'{"x":', "one that begins with"),
    "a header that fits and is too long": (raw(b"{" + b" " * 2**23 + b"}"), "header that fits"),
    "a header that isn't JSON": (raw(b'{"x": nothing}'), "header of JSON"),
    "a header that isn't UTF-8": (raw(b'{"\xff\xfe": {}}'), "header of JSON"),
    "JSON nested 100,000 deep": (raw(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "header of JSON"),
    "JSON of half a million empty lists": (raw(b'{"x":[' + b"[]," * (5 * 10**5) + b"[]]}"), "expected an object"),
    "a header that is a list of tensors": (raw(b'{"x":[1,2]}'), "expected an object for 'x'"),
    "a name that occurs twice": (
        raw(b'{"x":%s,"x":%s}' % ((json.dumps(entry()).encode(),) * 2), bytes(8)),
        "'x' twice",
    ),
    "a dtype that occurs twice": (
        raw(b'{"x":{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,8]}}', bytes(8)),
        "'dtype' twice",
    ),
    "a field too many": (raw({"x": entry() | {"path": "/etc/passwd"}}, bytes(8)), "expected dtype, shape"),
    "a field too few": (raw({"x": {"dtype": "F32", "shape": [2]}}, bytes(8)), "expected dtype, shape"),
    "a negative extent": (raw({"x": entry([-2])}, bytes(8)), "none negative"),
    "two negative extents": (raw({"x": entry([-1, -2])}, bytes(8)), "none negative"),
    "an extent of 2^63": (raw({"x": entry([2**63])}, bytes(8)), "fits in 2"),
    "extents whose product wraps round to the truth": (raw({"x": entry([2**62, 16, 2])}, bytes(8)), "fits in 2"),
    "an extent of 2^63 hidden by a zero": (raw({"x": entry([2**63, 0], [0, 0])}), "fits in 2"),
    "100 axes": (raw({"x": entry([1] * 99 + [2])}, bytes(8)), "at most 32 axes"),
    "an extent of 10^5 digits": (
        raw(b'{"x":{"dtype":"F32","shape":[1%s],"data_offsets":[0,8]}}' % (b"0" * 10**5)),
        "header of JSON",
    ),
    "an extent that is a fraction": (raw({"x": entry([2.0])}, bytes(8)), "whole numbers only"),
    "an extent of NaN": (raw({"x": entry([float("nan")])}, bytes(8)), "whole numbers only"),
    "an extent of infinity": (raw({"x": entry([float("inf")])}, bytes(8)), "whole numbers only"),
    "an extent that is true": (raw({"x": entry([2, True])}, bytes(8)), "list of whole numbers"),
    "a shape that is a text": (raw({"x": entry("22")}, bytes(8)), "list of whole numbers"),
    "an unknown dtype": (raw({"x": entry(dtype="F128")}, bytes(8)), "expected a dtype of F64"),
    "a dtype that is a list": (raw({"x": entry(dtype=["F32"])}, bytes(8)), "expected a dtype of F64"),
    "a bool of 2": (raw({"x": entry([1], [0, 1], "BOOL")}, b"\x02"), "bools of 0 or 1"),
    "offsets in the wrong order": (raw({"x": entry(offsets=[8, 0])}, bytes(8)), "data_offsets"),
    "negative offsets": (raw({"x": entry(offsets=[-8, 0])}, bytes(8)), "data_offsets"),
    "offsets behind the end": (raw({"x": entry([2**40], [0, 2**42])}, bytes(8)), "end within 8 bytes"),
    "offsets that don't fit the shape": (raw({"x": entry([3])}, bytes(8)), "expected 12 bytes"),
    "two tensors at one place": (raw({"x": entry(), "y": entry()}, bytes(8)), "begin at byte 8"),
    "two tensors that overlap": (raw({"x": entry(), "y": entry(offsets=[4, 12])}, bytes(12)), "begin at byte 8"),
    "a hole between two tensors": (raw({"x": entry(), "y": entry(offsets=[12, 20])}, bytes(20)), "begin at byte 8"),
    "a hole in front of the first": (raw({"x": entry(offsets=[4, 12])}, bytes(12)), "begin at byte 0"),
    "bytes behind the last": (raw({"x": entry()}, bytes(9)), "expected 8 bytes of data"),
    "a name that climbs": (raw({"../../.ssh/authorized_keys": entry()}, bytes(8)), "printable name"),
    "a name that is no text": (raw(b'{"\\ud800":%s}' % json.dumps(entry()).encode(), bytes(8)), "printable name"),
    "metadata that isn't text": (raw({"__metadata__": {"a": {}}}), "texts only"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile(path: Path, what: str) -> None:
    data, match = HOSTILE[what]
    path.write_bytes(data)
    # parsed JSON is larger than its text; two megabytes of it are looked at
    assert_refused(path, match, constant=2**20 + 24 * min(len(data), 2**21))


@given(st.data())
@settings(max_examples=MUTATIONS, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutations_are_read_or_refused(path: Path, original: bytes, data: st.DataObject) -> None:
    read_or_refuse(path, data.draw(mutated(original)))
