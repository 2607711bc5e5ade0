"""PyTorch's two formats, put together byte by byte without PyTorch, honest or not.

What an honest file holds is compared with torch.save in test_torch_file.py; the hostile ones are built of the same
parts. Python's own pickler in Python writes the pickles; it only has to be told what to write for a global name.
"""

import io
import pickle
import struct
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
SYS_INFO = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
STORAGES = {
    "f4": "FloatStorage",
    "f8": "DoubleStorage",
    "f2": "HalfStorage",
    "i8": "LongStorage",
    "i4": "IntStorage",
    "i2": "ShortStorage",
    "i1": "CharStorage",
    "u1": "ByteStorage",
    "b1": "BoolStorage",
}


class Name:
    """A global name, which is written and never looked up."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def __call__(self) -> None:
        raise AssertionError("a name of a file was called")


NAMES = {name: Name("torch", name) for name in (*STORAGES.values(), "BFloat16Storage", "Size")} | {
    name: Name("torch._utils", name) for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
}


@dataclass(eq=False)
class Storage:
    """The elements of one or more tensors; `kind`, `count` and `view` are what the file says of them."""

    data: np.ndarray
    key: str = ""
    kind: str = ""
    count: int | None = None
    view: tuple[str, int, int] | None = None

    def persistent_id(self, *, is_stream: bool) -> tuple[Any, ...]:
        kind = NAMES[self.kind or STORAGES[self.data.dtype.str[1:]]]
        count = self.data.size if self.count is None else self.count
        if is_stream:  # torch makes a new text for every tensor here, which the pickler writes anew
            return ("storage", kind, self.key.encode().decode(), "cpu", count, self.view)
        return ("storage", kind, self.key, "cpu", count)


class Call:
    """An object that is pickled as the call of a global name."""

    def __init__(self, name: Name, *arguments: Any, state: Any = None) -> None:
        self.name, self.arguments, self.state = name, arguments, state


@dataclass(eq=False)
class Key:
    """A tensor of a tar archive: its key in the archive's list."""

    key: str


def tensor(storage: Storage, size: Any = None, stride: Any = None, offset: Any = 0) -> Call:
    """A call of _rebuild_tensor_v2, of the whole storage unless it is told otherwise."""
    size = storage.data.shape if size is None else size
    if stride is None:
        stride = tuple(int(np.prod([max(extent, 1) for extent in size[axis + 1 :]])) for axis in range(len(size)))
    return Call(NAMES["_rebuild_tensor_v2"], storage, offset, size, stride, False, OrderedDict())


def parameter(data: Call) -> Call:
    """A call of _rebuild_parameter."""
    return Call(NAMES["_rebuild_parameter"], data, True, OrderedDict())


class _Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    def __init__(self, file: io.BytesIO, *, is_stream: bool, protocol: int = 2) -> None:
        super().__init__(file, protocol)
        self.is_stream = is_stream
        self.storages: dict[int, Storage] = {}

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, Key):
            return obj.key
        if not isinstance(obj, Storage):
            return None
        if id(obj) not in self.storages and not obj.key:
            obj.key = str(len(self.storages))
        self.storages[id(obj)] = obj
        return obj.persistent_id(is_stream=self.is_stream)

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Call):
            return (obj.name, obj.arguments) if obj.state is None else (obj.name, obj.arguments, obj.state)
        return "a name" if isinstance(obj, Name) else NotImplemented

    def save_global(self, obj: Any, name: str | None = None) -> None:
        module, name = (obj.module, obj.name) if isinstance(obj, Name) else (obj.__module__, obj.__qualname__)
        self.write(f"c{module}\n{name}\n".encode())
        self.memoize(obj)


def pickled(root: object, *, is_stream: bool = False, protocol: int = 2) -> tuple[bytes, list[Storage]]:
    """The pickle of `root`, and the storages in the order in which it names them."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, is_stream=is_stream, protocol=protocol)
    pickler.dump(root)
    return buffer.getvalue(), list(pickler.storages.values())


@dataclass
class Record:
    """A member of an archive, and what the archive says of it."""

    name: str
    content: bytes
    root: str = "archive"
    method: int = 0
    packed: bytes | None = None
    crc: int | None = None
    flags: int = 0
    start: int | None = None
    extra: bytes = b""
    local_name: str | None = None
    size: int | None = None
    packed_size: int | None = None


def zipped(records: Iterable[Record]) -> bytes:
    """An archive as torch's writer makes it: contents at multiples of 64, sizes behind them, two ends of directory."""
    body, directory, count = bytearray(), bytearray(), 0
    for record in records:
        content = record.content if record.packed is None else record.packed
        raw = f"{record.root}/{record.name}".encode()
        local = raw if record.local_name is None else record.local_name.encode()
        crc = zlib.crc32(record.content) if record.crc is None else record.crc
        flags = (0x808 if content else 0x800) | record.flags
        start = len(body) if record.start is None else record.start
        size = len(record.content) if record.size is None else record.size
        fill = -(len(body) + 34 + len(local)) % 64
        if record.start is None:
            body += b"PK\3\4" + struct.pack("<5H3I2H", 0, flags, record.method, 0, 0, 0, 0, 0, len(local), fill + 4)
            body += local + b"FB" + struct.pack("<H", fill) + b"Z" * fill + content
            if content:
                body += b"PK\7\x08" + struct.pack("<3I", crc, len(content), size)
        packed_size = len(content) if record.packed_size is None else record.packed_size
        numbers = (0, 0, flags, record.method, 0, 0, crc, packed_size, size)
        directory += b"PK\1\2" + struct.pack("<6H3I", *numbers)
        directory += struct.pack("<5H2I", len(raw), len(record.extra), 0, 0, 0, 0, start) + raw + record.extra
        count += 1
    start, size = len(body), len(directory)
    end = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 0x31E, 45, 0, 0, count, count, size, start)
    end += struct.pack("<4sIQI", b"PK\6\7", 0, start + size, 1)
    return bytes(body + directory) + end + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, start, 0)


@dataclass
class Archive:
    """An archive of torch.save, part by part."""

    program: bytes
    storages: list[Storage]
    identity: bytes = b"0" * 40
    root: str = "archive"
    order: bytes = b"little"
    version: bytes = b"3\n"
    extra: list[Record] = field(default_factory=list)

    def records(self) -> list[Record]:
        head = {"data.pkl": self.program, ".format_version": b"1", ".storage_alignment": b"64", "byteorder": self.order}
        data = {f"data/{storage.key}": storage.data.tobytes() for storage in self.storages}
        tail = {"version": self.version, ".data/serialization_id": self.identity}
        return [Record(name, content, self.root) for name, content in (head | data | tail).items()] + self.extra

    def bytes(self) -> bytes:
        return zipped(self.records())


def archive(root: object, **parts: Any) -> bytes:
    """What torch.save writes of `root`."""
    return Archive(*pickled(root), **parts).bytes()


def stream(root: object, keys: list[str] | None = None, lengths: dict[str, int] | None = None) -> bytes:
    """What torch.save writes of `root` with _use_new_zipfile_serialization=False."""
    program, storages = pickled(root, is_stream=True)
    by_key = {storage.key: storage for storage in storages}
    keys = sorted(by_key) if keys is None else keys
    parts = [pickle.dumps(value, 2) for value in (MAGIC, 1001, SYS_INFO)] + [program, pickle.dumps(keys, 2)]
    for key in keys:
        data = by_key[key].data
        parts += [struct.pack("<q", (lengths or {}).get(key, data.size)), data.tobytes()]
    return b"".join(parts)


def tarred(
    root: object,
    storages: dict[int, np.ndarray],
    tensors: dict[int, tuple[int, tuple[int, ...], tuple[int, ...], int]],
    views: Iterable[tuple[int, int, int, int]] = (),
    lengths: dict[int, int] | None = None,
    names: tuple[str, ...] = ("sys_info", "pickle", "tensors", "storages"),
) -> bytes:
    """What torch.save wrote until 0.1.8: `storages` by key, `tensors` by key as (storage, size, stride, offset), and
    `views` as (key, storage, offset, elements)."""
    kinds = {key: STORAGES[data.dtype.str[1:]] for key, data in storages.items()}
    kinds |= {key: kinds[root] for key, root, _, _ in views}
    places = [pickle.dumps(len(tensors), 2)]
    for key, (storage, size, stride, offset) in tensors.items():
        kind = Name("torch", kinds[storage].replace("Storage", "Tensor"))
        numbers = struct.pack(f"<2i{2 * len(size) + 1}q", len(size), 0, *size, *stride, offset)
        places += [pickled((key, storage, kind))[0], numbers]
    contents = [pickle.dumps(len(storages), 2)]
    for key, data in storages.items():
        length = struct.pack("<q", (lengths or {}).get(key, data.size))
        contents += [pickled((key, "cpu", NAMES[kinds[key]]))[0], length, data.tobytes()]
    contents.append(pickle.dumps(list(views), 2))
    parts = (pickle.dumps(SYS_INFO, 2), pickled(root)[0], b"".join(places), b"".join(contents))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=tarfile.PAX_FORMAT) as members:
        for name, content in zip(names, parts, strict=True):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5  # a fraction makes a header of its own
            members.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
