"""NumPy's archives: round trips to the bit, and archives that are traps."""

import io
import os
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refnet.errors import WeightsError
from refnet.weights import archive
from refnet.weights.files import read_tensors, write_tensors
from refnet.weights.npz_file import write
from tests.weights.damage import MUTATIONS, assert_refused, assert_same, assorted, mutated, read_or_refuse

TINY = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.weight": np.arange(3, dtype=np.int64)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tensors.npz"


def test_what_was_written_is_read_bit_for_bit(path: Path) -> None:
    tensors = assorted(np.random.default_rng(0))
    write_tensors(path, tensors)
    found = read_tensors(path)
    assert_same(found, tensors)
    assert list(found) == list(tensors)


def test_no_tensors_at_all(path: Path) -> None:
    write_tensors(path, {})
    assert read_tensors(path) == {}


def test_numpy_reads_it(path: Path) -> None:
    tensors = assorted(np.random.default_rng(1))
    write_tensors(path, tensors)
    with np.load(path, allow_pickle=False) as members:
        assert_same(dict(members), tensors)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_of_numpy(path: Path, save: Callable[..., None]) -> None:
    tensors = assorted(np.random.default_rng(2))
    tensors["longer.than.a.chunk"] = np.random.default_rng(3).standard_normal(200_000)
    save(path, **tensors)
    assert_same(read_tensors(path), tensors)


def test_an_archive_that_was_streamed(path: Path) -> None:
    """It has its members' sizes behind them, and only zeros in front."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation

        def tell(self) -> int:
            raise io.UnsupportedOperation

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as members:
        members.writestr("a.npy", npy(TINY["a"]))
    path.write_bytes(pipe.getvalue())
    assert_same(read_tensors(path), {"a": TINY["a"]})


def test_an_archive_of_more_than_65535_members_is_refused_and_one_with_64_bit_records_is_read(path: Path) -> None:
    data = bytearray(zipped({"a.npy": npy(TINY["a"])}))
    end = data.rfind(b"PK\5\6")
    count, size, start = struct.unpack_from("<H2I", data, end + 10)
    record = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
    last = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(data[:end] + record + locator + last)
    assert_same(read_tensors(path), {"a": TINY["a"]})
    struct.pack_into("<Q", record := bytearray(record), 32, 65_536)
    path.write_bytes(data[:end] + record + locator + last)
    assert_refused(path, "at most 65535 members")


def test_equal_tensors_make_equal_bytes_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = assorted(np.random.default_rng(4))
    write(tmp_path / "a", tensors)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(2e9))
    write(tmp_path / "b", {name: np.array(array, order="F") for name, array in tensors.items()})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("array", [np.zeros(2, complex), np.array(["a"]), np.zeros(2, "V3"), np.array([{}])], ids=str)
def test_only_plain_numbers_are_written(path: Path, array: np.ndarray) -> None:
    with pytest.raises(WeightsError, match="expected tensors of plain numbers, got 'x'"):
        write_tensors(path, {"x": array})
    assert not path.exists()


def test_header_of_another_writer(path: Path) -> None:
    """Fields in another order, quotes of the other kind, little white space."""
    header = b'{"shape":(2,3),"fortran_order":True,"descr":">i2"}\n'
    body = np.arange(6, dtype=">i2").tobytes()
    path.write_bytes(zipped({"x.npy": b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header + body}))
    assert_same(read_tensors(path), {"x": np.arange(6, dtype=np.int16).reshape(3, 2).T})


def npy(array: np.ndarray, *, pickled: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=pickled)
    return buffer.getvalue()


def headed(header: str | bytes, data: bytes = bytes(24), *, length: int | None = None, version: int = 1) -> bytes:
    """An .npy with this header."""
    text = header.encode() if isinstance(header, str) else header
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes([version, 0]) + size.to_bytes(2 if version == 1 else 4, "little") + text + data


def shaped(shape: str, descr: str = "'<f4'") -> bytes:
    return headed(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n")


def zipped(members: dict[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    pairs = members.items() if isinstance(members, dict) else members
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in pairs:
            file.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return buffer.getvalue()


def changed(data: bytes, signature: bytes, offset: int, form: str, *values: int) -> bytes:
    """`data` with other numbers at `offset` of the last record with this signature."""
    out = bytearray(data)
    struct.pack_into(form, out, out.rfind(signature) + offset, *values)
    return bytes(out)


def one(npy: bytes) -> bytes:
    return zipped({"x.npy": npy})


PLAIN = one(npy(TINY["a"]))
TWO = zipped({"x.npy": npy(TINY["a"]), "y.npy": npy(TINY["a"])})
ENTRY, LOCAL, END = b"PK\1\2", b"PK\3\4", b"PK\5\6"


def quine_like() -> bytes:
    """A thousand directory entries, all of one member, each with a name of its own."""
    data = zipped({"0000.npy": npy(np.zeros(250_000, np.float32))})
    end, at = data.rfind(END), data.rfind(ENTRY)
    entry = data[at:end]
    directory = b"".join(entry.replace(b"0000.npy", b"%04d.npy" % i) for i in range(1000))
    tail = struct.pack("<4s4H2IH", END, 0, 0, 1000, 1000, len(directory), at, 0)
    return data[:at] + directory + tail


class Trap:
    """Unpickled, it would make a folder."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (self._path,)


HOSTILE = {
    "an array of pickled objects": (one(npy(np.array([{}, 1], object), pickled=True)), "expected plain numbers"),
    "a structured array": (one(npy(np.zeros(2, [("a", "<f4"), ("b", "O")]), pickled=True)), "descr, fortran_order"),
    "an array of texts": (one(npy(np.array(["a", "b"]))), "expected plain numbers"),
    "an array of raw bytes": (one(npy(np.zeros(2, "V8"))), "expected plain numbers"),
    "a member that is a bare pickle": (zipped({"x.npy": b"\x80\x02c__builtin__\nexit\n."}), "magic number"),
    "a member that isn't an array": (zipped({"setup.py": b"import os"}), "NAME.npy only"),
    "a header that is a program": (
        one(headed("{'descr': __import__('os').abort(), 'shape': ()}")),
        "descr, fortran_or",
    ),
    "a header nested 4,000 deep": (one(headed("(" * 4000)), "descr, fortran_order"),
    "a header with a field twice": (one(shaped("(2, 3), 'shape': (2, 3)")), "descr, fortran_order"),
    "a header longer than the member": (one(headed("{}", length=60_000)), "header that fits"),
    "a header of 4 GiB": (one(headed("{}", length=2**32 - 1, version=2)), "header that fits"),
    "a header of 10 megabytes": (one(headed(b"{" + b" " * 10**7, version=2)), "header that fits"),
    "a version of tomorrow": (one(headed("{}", version=9)), "version 1 to 3"),
    "an empty member": (one(b""), "magic number"),
    "a shape of 2^63": (one(shaped(f"({2**63},)")), "fits in 2"),
    "a shape whose product wraps round to the truth": (one(shaped(f"({2**62}, 16, 6)")), "fits in 2"),
    "a shape with 2^63 hidden by a zero": (one(shaped(f"({2**63}, 0)")), "fits in 2"),
    "a shape of 1,000 digits": (one(shaped(f"({'9' * 1000},)")), "shape of whole numbers"),
    "a shape of 1,000 axes": (one(shaped(f"({'1,' * 1000})")), "at most 32 axes"),
    "a negative shape": (one(shaped("(-6,)")), "none negative"),
    "two negative extents": (one(shaped("(-2, -3)")), "none negative"),
    "a shape larger than the member": (one(shaped("(1000000000,)")), "expected 4000000000 bytes"),
    "a shape smaller than the member": (one(shaped("(5,)")), "expected 20 bytes"),
    "a zip bomb": (
        zipped({"x.npy": npy(np.zeros(50_000_000, np.float32))}, zipfile.ZIP_DEFLATED),
        "to unpack to a few",
    ),
    "a zip bomb that denies it": (
        changed(zipped({"x.npy": npy(np.zeros(10**6))}, zipfile.ZIP_DEFLATED), ENTRY, 24, "<I", 152),
        "doesn't unpack to 152 bytes",
    ),
    "a member that unpacks to less": (
        changed(zipped({"x.npy": npy(TINY["a"])}, zipfile.ZIP_DEFLATED), ENTRY, 24, "<I", 10**4),
        "doesn't unpack to 10000 bytes",
    ),
    "a member that unpacks to more than deflate can": (
        changed(zipped({"x.npy": npy(TINY["a"])}, zipfile.ZIP_DEFLATED), ENTRY, 24, "<I", 6 * 10**7),
        "to unpack to 1032 times",
    ),
    "a stored member of two sizes": (changed(PLAIN, ENTRY, 24, "<I", 10**9), "packed in another way"),
    "a member that runs into the directory": (changed(PLAIN, ENTRY, 20, "<2I", 999, 999), "before the archive's dir"),
    "a member outside the file": (changed(PLAIN, ENTRY, 42, "<I", 10**9), "disagree"),
    "a member with two names": (changed(PLAIN, ENTRY, 46, "<I", 0), "printable name|disagree"),
    "a member that is encrypted": (changed(PLAIN, ENTRY, 8, "<H", 1), "encrypted"),
    "a member packed by another method": (changed(PLAIN, ENTRY, 10, "<H", 12), "packed in another way"),
    "a changed byte": (PLAIN.replace(np.float32(5).tobytes(), np.float32(6).tobytes()), "checksum"),
    "two members at one place": (changed(TWO, ENTRY, 42, "<I", 0).replace(b"y.npy", b"x.npz"), "disagree"),
    "a thousand names for one member": (quine_like(), "disagree|share no bytes"),
    "a member inside another": (
        zipped({"x.npy": zipped({"y.npy": npy(TINY["a"])})}),
        "magic number",
    ),
    "a name that climbs": (zipped({"../../.bashrc.npy": npy(TINY["a"])}), "printable name"),
    "an absolute name": (zipped({"/etc/cron.d/x.npy": npy(TINY["a"])}), "printable name"),
    "a name that climbs by backslashes": (zipped({"..\\..\\x.npy": npy(TINY["a"])}), "printable name"),
    "a name with a line break": (zipped({"x\ny.npy": npy(TINY["a"])}), "printable name"),
    "a truncated archive": (PLAIN[:-30], "truncated"),
    "bytes behind the archive": (PLAIN + b"payload", "behind the archive's directory"),
    "a directory of 60,000 members that aren't there": (
        changed(PLAIN, END, 8, "<2H", 60_000, 60_000),
        "60000 in bytes",
    ),
    "a directory at another place": (changed(PLAIN, END, 16, "<I", 0), "right before the archive's end"),
    "a directory of 64 bits that isn't there": (
        changed(PLAIN, END, 12, "<2I", 2**32 - 1, 2**32 - 1),
        "directory of at",
    ),
    "only the first bytes": (b"PK\3\4", "truncated"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile(path: Path, what: str) -> None:
    data, match = HOSTILE[what]
    path.write_bytes(data)
    assert_refused(path, match)


def test_a_repeated_member_is_hostile(path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        path.write_bytes(zipped([("x.npy", npy(TINY["a"])), ("x.npy", npy(TINY["b.weight"]))]))
    assert_refused(path, "got 'x.npy' twice")


def test_members_that_overlap_are_hostile(path: Path) -> None:
    """The second lies within the first, header and all, as in bombs that unpack one stretch many times."""
    inner = zipped({"y.npy": npy(TINY["a"])})
    outer = zipped({"x.npy": inner[: inner.rfind(ENTRY)]})
    at = outer.rfind(ENTRY)
    entries = outer[at : outer.rfind(END)], bytearray(inner[inner.rfind(ENTRY) : inner.rfind(END)])
    struct.pack_into("<I", entries[1], 42, outer.find(LOCAL, 4))
    size = sum(map(len, entries))
    path.write_bytes(outer[:at] + b"".join(entries) + struct.pack("<4s4H2IH", END, 0, 0, 2, 2, size, at, 0))
    assert_refused(path, "share no bytes")


def test_a_pickle_in_an_array_is_not_run(path: Path, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    np.savez(path, x=np.array([Trap(str(trap))], object))
    assert_refused(path, "expected plain numbers")
    assert not trap.exists()
    with np.load(path, allow_pickle=True) as members:
        _ = members["x"]
    assert trap.exists()  # it would have worked


def test_a_compressed_archive_takes_no_more_than_its_arrays(path: Path) -> None:
    """While it is unpacked, the file isn't in memory as well."""
    tensors = {"x": np.random.default_rng(0).standard_normal(2**20).astype(np.float32)}
    np.savez_compressed(path, **tensors)
    tracemalloc.start()
    try:
        found = read_tensors(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert_same(found, tensors)
    assert peak < 2 * path.stat().st_size


def test_what_may_unpack_to_how_much(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_FREE_EXPANSION", 0)
    np.savez_compressed(path, x=np.arange(1000.0))
    assert path.stat().st_size * 2 < 8000
    assert_refused(path, "to unpack to a few times")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    path = tmp_path_factory.mktemp("original") / "tensors.npz"
    write(path, TINY)
    stored = path.read_bytes()
    np.savez_compressed(path, **TINY)
    return [stored, path.read_bytes()]


@given(st.data())
@settings(max_examples=MUTATIONS, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutations_are_read_or_refused(path: Path, originals: list[bytes], data: st.DataObject) -> None:
    original = data.draw(st.sampled_from(originals))
    read_or_refuse(path, data.draw(mutated(original)))
