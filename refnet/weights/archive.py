"""Zip archives, read with suspicion: every member accounted for before any of it is read.

Both ``.npz`` and today's ``.pth`` are zip archives. What the archive says of its members it says twice, in a directory
at its end and in front of each member; members may lie over one another, or unpack to a thousand times their size.
:func:`members` takes none of that, and :func:`read` unpacks a member into memory that its reader asked for.

Source: PKWARE's APPNOTE 6.3.3, sections 4.3 to 4.5.
"""

import os
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8

from refnet.arrays import Array
from refnet.errors import WeightsError
from refnet.weights.declared import check_apart, check_name

_LOCAL = struct.Struct("<4s5H3I2H")  # in front of each member
_CENTRAL = struct.Struct("<4s6H3I5H2I")  # an entry of the directory
_END = struct.Struct("<4s4H2IH")  # behind the directory
_LOCATOR = struct.Struct("<4sIQI")  # of the next, where an archive has more than 65,534 members or 4 GiB
_END_64 = struct.Struct("<4sQ2H2I4Q")
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _UTF8 = 1, 0x800
_MAX_MEMBERS = 65_535
_CHUNK = 2**20
# Weights hardly compress: floating-point numbers by a tenth, numbers rounded to 16 bits by a little more than half.
# What is small in any case may be as repetitive as it likes.
_MAX_EXPANSION, _FREE_EXPANSION = 2, 2**26
_MAX_DEFLATE = 1032  # the most that deflate can do: 258 bytes from two bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One member of an archive.

    Attributes:
        name: its path in the archive.
        start: where its bytes begin in the file.
        packed: how many bytes it has there.
        size: how many bytes it claims to have unpacked; `packed` if it isn't compressed.
        deflated: whether it is compressed.
        checksum: CRC-32 of the unpacked bytes.
    """

    name: str
    start: int
    packed: int
    size: int
    deflated: bool
    checksum: int


def is_zip(head: bytes) -> bool:
    """Whether a file that begins like this is a zip archive, maybe an empty one."""
    return head[:4] in (b"PK\x03\x04", b"PK\x05\x06")


def first_name(head: bytes) -> str:
    """The name of an archive's first member, as far as `head`, the beginning of the file, holds it."""
    if len(head) < _LOCAL.size or not head.startswith(b"PK\x03\x04"):
        return ""
    return head[_LOCAL.size : _LOCAL.size + _LOCAL.unpack_from(head)[9]].decode("latin1")


def members(file: BinaryIO) -> dict[str, Member]:
    """The members of the archive by name, in the order of its directory.

    Raises:
        WeightsError: the directory is damaged or larger than any honest one, a name is repeated or leads out of the
            archive, a member is encrypted or packed in an unknown way, lies outside the file or over another.
    """
    length = file.seek(0, os.SEEK_END)
    count, start, directory = _directory(file, length)
    found: dict[str, Member] = {}
    places = [(start, start + len(directory))]
    at = 0
    for _ in range(count):
        if len(directory) - at < _CENTRAL.size:
            raise WeightsError(f"expected {count} members in the archive's directory, got {len(found)}")
        entry = _CENTRAL.unpack_from(directory, at)
        signature, _, _, flags, method, _, _, checksum, packed, size, name_size, extra_size, comment_size = entry[:13]
        at += _CENTRAL.size
        raw, extra = directory[at : at + name_size], directory[at + name_size : at + name_size + extra_size]
        at += name_size + extra_size + comment_size
        if signature != b"PK\x01\x02" or at > len(directory):
            raise WeightsError(f"the archive's directory is damaged at member {len(found)}")
        size, packed, offset = _wide(extra, size, packed, entry[-1])
        name = check_name(_text(raw, flags))
        if name in found:
            raise WeightsError(f"expected each member once in the archive, got {name[:80]!r} twice")
        if method == _DEFLATED and size > _MAX_DEFLATE * packed:
            raise WeightsError(
                f"expected member {name[:80]!r} to unpack to {_MAX_DEFLATE} times its {packed} bytes at most, got {size}"
            )
        if flags & _ENCRYPTED or method not in (_STORED, _DEFLATED) or (method == _STORED and packed != size):
            raise WeightsError(f"member {name[:80]!r} is encrypted, or packed in another way than by deflate")
        begin = _behind_local_header(file, min(offset, length), raw, method)
        places.append((offset, begin + packed))
        found[name] = Member(
            name=name, start=begin, packed=packed, size=size, deflated=method == _DEFLATED, checksum=checksum
        )
    if at != len(directory):
        raise WeightsError(f"expected {at} bytes of directory in the archive, got {len(directory)}")
    unpacked = sum(member.size for member in found.values() if member.deflated)
    if unpacked > _MAX_EXPANSION * length + _FREE_EXPANSION:
        raise WeightsError(f"expected a file of {length} bytes to unpack to a few times that at most, got {unpacked}")
    if any(stop > start for _, stop in places[1:]):
        raise WeightsError("expected members that end before the archive's directory")
    check_apart(places)
    return found


def _directory(file: BinaryIO, length: int) -> tuple[int, int, bytes]:
    """How many members the directory at the archive's end has, where it begins, and its bytes."""
    tail_size = min(length, _END.size + 0xFFFF)
    file.seek(length - tail_size)
    tail = file.read(tail_size)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise WeightsError("the archive has no directory at its end: the file is truncated")
    _, _, _, _, count, size, start, comment = _END.unpack_from(tail, at)
    if at + _END.size + comment != len(tail):
        raise WeightsError("expected nothing behind the archive's directory")
    end = length - tail_size + at
    locator = at - _LOCATOR.size
    if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":  # torch writes one into every archive
        count, size, start, end = _directory_64(file, _LOCATOR.unpack_from(tail, locator)[2], end - _LOCATOR.size)
    if count > _MAX_MEMBERS or size < count * _CENTRAL.size or start + size != end:
        raise WeightsError(
            f"expected a directory of at most {_MAX_MEMBERS} members right before the archive's end at byte {end}, "
            f"got {count} in bytes {start} to {start + size}"
        )
    file.seek(start)
    return count, start, file.read(size)


def _directory_64(file: BinaryIO, at: int, locator: int) -> tuple[int, int, int, int]:
    if at + _END_64.size != locator:
        raise WeightsError(f"expected the archive's 64-bit end record right before byte {locator}, got {at}")
    file.seek(at)
    signature, *_, count, size, start = _END_64.unpack(file.read(_END_64.size))
    if signature != b"PK\x06\x06":
        raise WeightsError("the archive's 64-bit end record is damaged")
    return count, size, start, at


def _wide(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """The three numbers, each from the 64-bit extra field if it didn't fit in 32."""
    numbers = [size, packed, offset]
    if 0xFFFFFFFF not in numbers:
        return size, packed, offset
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        missing = [i for i in range(3) if numbers[i] == 0xFFFFFFFF]
        if kind == 1 and len(field) >= 8 * len(missing):
            for position, i in enumerate(missing):
                (numbers[i],) = struct.unpack_from("<Q", field, 8 * position)
            return numbers[0], numbers[1], numbers[2]
    raise WeightsError("the archive's directory lacks a 64-bit size that it refers to")


def _text(raw: bytes, flags: int) -> str:
    try:
        return raw.decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeDecodeError as error:
        raise WeightsError(f"the name of a member isn't UTF-8, got {raw[:80]!r}") from error


def _behind_local_header(file: BinaryIO, offset: int, name: bytes, method: int) -> int:
    """Where a member's bytes begin, behind a header that must agree with the directory."""
    file.seek(offset)
    header = file.read(_LOCAL.size)
    if len(header) == _LOCAL.size:
        signature, _, _, local_method, *_, name_size, extra_size = _LOCAL.unpack(header)
        if (signature, local_method) == (b"PK\x03\x04", method) and file.read(name_size) == name:
            return offset + _LOCAL.size + int(name_size) + int(extra_size)
    raise WeightsError(f"the archive's directory and the header of member {name[:80]!r} disagree")


def read(file: BinaryIO, member: Member, out: UInt8[Array, " B"] | None = None) -> UInt8[Array, " B"]:
    """The member's bytes, unpacked, in `out` or in new memory of exactly their number.

    Raises:
        WeightsError: the member has more or fewer bytes than the directory says, or another checksum.
    """
    out = np.empty(member.size, np.uint8) if out is None else out
    file.seek(member.start)
    if member.deflated:
        _inflate(file, member, out)
    elif file.readinto(out.data) != member.size:  # type: ignore[attr-defined]
        raise WeightsError(f"member {member.name[:80]!r} ends before its {member.size} bytes: the file is truncated")
    if zlib.crc32(out.data) != member.checksum:
        raise WeightsError(f"member {member.name[:80]!r} is damaged: its checksum is another than the archive says")
    return out


def _inflate(file: BinaryIO, member: Member, out: UInt8[Array, " B"]) -> None:
    """Unpack exactly as many bytes as `out` has, however many there may be."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    done, left = 0, member.packed
    while not inflate.eof:
        pending = inflate.unconsumed_tail
        if not pending:
            pending = file.read(min(_CHUNK, left))
            left -= len(pending)
        try:
            # one more than there is room for, so that a stream that goes on is seen
            data = inflate.decompress(pending, min(_CHUNK, out.size - done + 1))
        except zlib.error as error:
            raise WeightsError(f"member {member.name[:80]!r} is damaged: {error}") from error
        if done + len(data) > out.size or not (data or pending):
            break
        out[done : done + len(data)] = np.frombuffer(data, np.uint8)
        done += len(data)
    if not inflate.eof or done != out.size:
        raise WeightsError(f"member {member.name[:80]!r} doesn't unpack to {out.size} bytes, as the archive says")
