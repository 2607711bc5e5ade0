"""NumPy's ``.npz``: a zip archive with one ``.npy`` per tensor, and never a pickle.

A ``.npy`` is a magic number, a version, the length of a header, the header (a Python dict as text: dtype, memory
order, shape) and the bytes. The header is matched against the one form that it may have, and isn't evaluated.

Source: NumPy enhancement proposal 1.
"""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from refnet.arrays import Array
from refnet.errors import WeightsError
from refnet.weights.archive import members
from refnet.weights.archive import read as read_member
from refnet.weights.declared import about, as_array, check_name, opened
from refnet.whole_file import whole_file

_MAGIC = b"\x93NUMPY"
_LENGTHS = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}  # bytes of the header's length, by version
_MAX_HEADER = 4096  # NumPy's own are 118 bytes for a tensor of a few axes
_FIELD = re.compile(
    r"""\s*(?P<quote>['"])(?P<field>descr|fortran_order|shape)(?P=quote)\s*:\s*
    (?:'(?P<text>[^'"\\]*)'|"(?P<text2>[^'"\\]*)"|(?P<bool>True|False)|\((?P<extents>[-\s\d,]*)\))\s*(?:,|$)""",
    re.VERBOSE | re.ASCII,
)
_DTYPE = re.compile(r"[<>=|](?:f[248]|[iu][1248]|b1)")
_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip archive can express, for all members


def read(path: Path) -> dict[str, Array]:
    """The tensors by name, in the archive's order.

    Raises:
        WeightsError: the archive or one of its arrays is damaged, or holds anything but plain numbers.
    """
    tensors = {}
    with opened(path) as file:
        for name, member in members(file).items():
            if not name.endswith(".npy"):
                raise WeightsError(f"expected members NAME.npy only, got {name[:80]!r}")
            with about(f"array {name[:80]!r}"):
                tensors[name.removesuffix(".npy")] = _array(read_member(file, member))
    return tensors


def _array(npy: UInt8[Array, " B"]) -> Array:
    head = npy[:12].tobytes()
    digits = _LENGTHS.get(head[6:8])
    if head[:6] != _MAGIC or digits is None:
        raise WeightsError(f"expected the magic number of .npy, version 1 to 3, got {head[:8]!r}")
    length = int.from_bytes(head[8 : 8 + digits], "little")
    start = 8 + digits + length
    if length > _MAX_HEADER or start > npy.size:
        raise WeightsError(f"expected a header that fits in the file and in {_MAX_HEADER} bytes, got {length}")
    dtype, order, shape = _header(npy[8 + digits : start].tobytes().decode("latin1"))
    return as_array(npy[start:], dtype, shape, order=order)


def _header(text: str) -> tuple[np.dtype, str, tuple[int, ...]]:
    """The dtype, memory order and shape of a header such as
    ``{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }``."""
    opened, body = text[:1], text.rstrip(" \n\0")
    fields = {}
    at = 1
    end = len(body) - 1
    while match := _FIELD.match(body, at, end):
        if match["field"] in fields:
            break
        fields[match["field"]] = match
        at = match.end()
    if (
        opened != "{"
        or body[-1:] != "}"
        or body[at:end].strip()
        or fields.keys() != {"descr", "fortran_order", "shape"}
    ):
        raise WeightsError(f"expected a header of descr, fortran_order and shape, got {text[:80]!r}")
    descr = fields["descr"]["text"] or fields["descr"]["text2"] or ""
    order, extents = fields["fortran_order"]["bool"], fields["shape"]["extents"]
    if not _DTYPE.fullmatch(descr):
        raise WeightsError(f"expected plain numbers (a descr such as '<f4'), got {text[:80]!r}")
    if order is None or extents is None or not re.fullmatch(r"\s*(-?\d{1,20}\s*,\s*)*(-?\d{1,20}\s*)?", extents):
        raise WeightsError(f"expected fortran_order True or False and a shape of whole numbers, got {text[:80]!r}")
    shape = tuple(int(extent) for extent in extents.split(",") if extent.strip())
    return np.dtype(descr), "F" if order == "True" else "C", shape


def write(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write the tensors, uncompressed. The same tensors in the same order make the same bytes at any time, in
    whatever memory layout they come.

    Raises:
        WeightsError: a tensor isn't of plain numbers, or has a name that no reader would take.
        OSError: the file can't be written.
    """
    for name, array in tensors.items():
        check_name(name)
        if not _DTYPE.fullmatch(array.dtype.str):
            raise WeightsError(f"npz: expected tensors of plain numbers, got {name!r} of {array.dtype}")
    with whole_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in tensors.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy", _DATE), "w", force_zip64=True) as member:
                plain = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
                np.lib.format.write_array(member, plain, allow_pickle=False)
