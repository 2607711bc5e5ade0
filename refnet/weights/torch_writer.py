"""PyTorch's weight files, written without PyTorch: the archive that torch.save makes of an OrderedDict of tensors.

The format is told in :mod:`refnet.weights.torch_file`. Python's pickler would import the functions that a pickle
names, so the pickle is put together here, instruction by instruction.
"""

import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from refnet.arrays import Array
from refnet.errors import WeightsError
from refnet.weights.declared import check_name
from refnet.whole_file import whole_file

# What the names of torch's storages and data types hold. BFLOAT16 is the upper half of a float32, and read as one.
BFLOAT16 = np.dtype("V2")
STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": BFLOAT16,
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
DTYPES = {
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
    "uint64": np.dtype("<u8"),
}  # those without a storage of their own: such tensors are views of bytes

_WRITTEN = {dtype: name for name, dtype in (*STORAGES.items(), *DTYPES.items()) if dtype is not BFLOAT16}
_ALIGNMENT = 64
_OVERHEAD = 2048  # bytes of the pickle and of the archive that belong to one tensor, at most
_BATCH = 1000  # items that Python's pickler adds at once


def write(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write the tensors as an archive, the bytes that torch.save writes of an OrderedDict of contiguous tensors.

    Only the id that torch adds, for its statistics, differs: torch's depends on the C++ library that it was built
    with. Equal tensors make equal bytes, in whatever memory layout they come.

    Raises:
        WeightsError: a tensor is of a type that torch hasn't, or has a name that no reader would take; the file would
            have 4 GiB or more.
        OSError: the file can't be written.
    """
    for name, array in tensors.items():
        check_name(name)
        if array.dtype.newbyteorder("<") not in _WRITTEN:
            raise WeightsError(f"pth: expected tensors of torch's types, got {name!r} of {array.dtype}")
    if sum(array.nbytes + _OVERHEAD + len(name) for name, array in tensors.items()) >= 1 << 32:
        raise WeightsError("pth: expected tensors of less than 4 GiB in all, got more")
    with whole_file(path) as file:
        writer = _ArchiveWriter(file)
        writer.add("data.pkl", _program(tensors))
        writer.add(".format_version", b"1")
        writer.add(".storage_alignment", str(_ALIGNMENT).encode())
        writer.add("byteorder", b"little")
        for key, array in enumerate(tensors.values()):
            plain = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
            writer.add(f"data/{key}", plain.reshape(-1).view(np.uint8).data)
        writer.add("version", b"3\n")
        writer.add(".data/serialization_id", f"{writer.checksum:040d}".encode())
        writer.close()


class _Program:
    """A pickle of protocol 2 in the making, as Python's pickler writes it: every object is put into the memory."""

    def __init__(self) -> None:
        self.code = bytearray(b"\x80\x02")
        self._memory: dict[str, int] = {}
        self._count = 0

    def put(self) -> None:
        """Number the object on top of the stack."""
        self.code += b"q" + bytes([self._count]) if self._count < 256 else b"r" + struct.pack("<I", self._count)
        self._count += 1

    def once(self, key: str, code: bytes) -> None:
        """The object that `code` makes; from the memory if it was made before."""
        if key not in self._memory:
            self._memory[key] = self._count
            self.code += code
            self.put()
        else:
            number = self._memory[key]
            self.code += b"h" + bytes([number]) if number < 256 else b"j" + struct.pack("<I", number)

    def name(self, module: str, name: str) -> None:
        """A global name."""
        self.once(f"{module} {name}", f"c{module}\n{name}\n".encode())

    def text(self, text: str) -> None:
        """A text that is the same object wherever it stands."""
        self.once(f"text {text}", _text(text))

    def integer(self, value: int) -> None:
        """An integer from 0 on."""
        if value < 1 << 8:
            self.code += b"K" + bytes([value])
        elif value < 1 << 16:
            self.code += b"M" + struct.pack("<H", value)
        elif value < 1 << 31:
            self.code += b"J" + struct.pack("<i", value)
        else:
            content = value.to_bytes(value.bit_length() // 8 + 1, "little")
            self.code += b"\x8a" + bytes([len(content)]) + content

    def integers(self, values: tuple[int, ...]) -> None:
        """A tuple of integers."""
        if len(values) > 3:
            self.code += b"("
        for value in values:
            self.integer(value)
        self.code += {0: b")", 1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(values), b"t")
        if values:
            self.put()

    def ordered_dict(self) -> None:
        """An empty OrderedDict."""
        self.name("collections", "OrderedDict")
        self.code += b")R"
        self.put()


def _text(text: str) -> bytes:
    content = text.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def _program(tensors: Mapping[str, Array]) -> bytes:
    """The pickle of an OrderedDict of the tensors, which calls _rebuild_tensor for each."""
    program = _Program()
    program.ordered_dict()
    for start in range(0, len(tensors), _BATCH):
        batch = list(tensors.items())[start : start + _BATCH]
        program.code += b"(" if len(batch) > 1 else b""
        for key, (name, array) in enumerate(batch, start):
            program.code += _text(name)
            program.put()
            _call(program, key, array)
        program.code += b"u" if len(batch) > 1 else b"s"
    return bytes(program.code + b".")


def _call(program: _Program, key: int, array: Array) -> None:
    storage = _WRITTEN[array.dtype.newbyteorder("<")]
    is_typed = storage in STORAGES
    program.name("torch._utils", "_rebuild_tensor_v2" if is_typed else "_rebuild_tensor_v3")
    program.code += b"(("
    program.text("storage")
    program.name(*("torch", storage) if is_typed else ("torch.storage", "UntypedStorage"))
    program.code += _text(str(key))
    program.put()
    program.text("cpu")
    program.integer(array.size if is_typed else array.nbytes)
    program.code += b"t"
    program.put()
    program.code += b"Q"
    program.integer(0)
    program.integers(array.shape)
    program.integers(
        tuple(math.prod(max(extent, 1) for extent in array.shape[axis + 1 :]) for axis in range(array.ndim))
    )
    program.code += b"\x89"  # no gradient
    program.ordered_dict()  # no hooks
    if not is_typed:
        program.name("torch", storage)
    program.code += b"t"
    program.put()
    program.code += b"R"
    program.put()


class _ArchiveWriter:
    """A zip archive as torch writes it: members stored at multiples of 64 bytes, their sizes behind them."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._directory = bytearray()
        self._count = 0
        self.checksum = 0  # of all members so far

    def add(self, name: str, content: bytes | memoryview) -> None:
        """Add one member."""
        raw, start = f"archive/{name}".encode(), self._file.tell()
        crc, size = zlib.crc32(content), len(content)
        self.checksum = zlib.crc32(crc.to_bytes(4, "little"), self.checksum)
        # UTF-8, and sizes behind the content if there is any
        flags = 0x808 if size else 0x800
        unpadded = start + 30 + len(raw) + 4
        padding = -unpadded % _ALIGNMENT
        self._file.write(struct.pack("<4s5H3I2H", b"PK\3\4", 0, flags, 0, 0, 0, 0, 0, 0, len(raw), padding + 4))
        self._file.write(raw + struct.pack("<2sH", b"FB", padding) + b"Z" * padding)
        self._file.write(content)
        if size:
            self._file.write(struct.pack("<4s3I", b"PK\7\10", crc, size, size))
        self._directory += struct.pack(
            "<4s6H3I5H2I", b"PK\1\2", 0, 0, flags, 0, 0, 0, crc, size, size, len(raw), 0, 0, 0, 0, 0, start
        )
        self._directory += raw
        self._count += 1

    def close(self) -> None:
        """Write the directory."""
        start, size, count = self._file.tell(), len(self._directory), self._count
        end = start + size
        if count > 0xFFFF:
            raise WeightsError(f"pth: expected an archive of at most 65535 members, got {count}")
        self._file.write(self._directory)
        self._file.write(struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 0x031E, 45, 0, 0, count, count, size, start))
        self._file.write(struct.pack("<4sIQI", b"PK\6\7", 0, end, 1))
        self._file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, start, 0))
