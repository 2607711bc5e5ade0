"""Safetensors: a header of JSON behind its own length in eight bytes, then the tensors' bytes one behind another.

``{"NAME": {"dtype": "F32", "shape": [64, 3, 7, 7], "data_offsets": [first, behind]}, "__metadata__": {...}}``

The format's own library trusts an array's memory order when it writes, and has no checksum; a file that passed its
checks may still repeat names. This reader takes a file only if the header accounts for every byte of it exactly once.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Never

import numpy as np
from jaxtyping import UInt8

from refnet.arrays import Array
from refnet.errors import WeightsError
from refnet.weights.declared import about, as_array, byte_count, check_name, content, opened
from refnet.whole_file import whole_file

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
_BFLOAT16 = "BF16"  # the upper half of a float32; NumPy has no such type
_CODES = {np.dtype(text).newbyteorder("="): code for code, text in _DTYPES.items()}

# Parsed JSON takes up to twenty times its text. Real headers have about 100 bytes a tensor.
_MAX_HEADER = 2 * 2**20
_PREFIX = 8


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins like this may be one. There is no magic number: the header opens like JSON, and is
    shorter than 4 GiB."""
    return head[_PREFIX : _PREFIX + 1] == b"{" and head[4:_PREFIX] == bytes(4)


def read(path: Path) -> dict[str, Array]:
    """The tensors by name, in the order in which they lie in the file; bfloat16 becomes float32.

    The arrays share the memory that the file was read into.

    Raises:
        WeightsError: the file is no safetensors file, or the header doesn't describe it exactly.
    """
    with opened(path) as file:
        return _tensors(content(file))


def _tensors(file: UInt8[Array, " B"]) -> dict[str, Array]:
    length = int.from_bytes(file[:_PREFIX].tobytes(), "little")
    if file.size < _PREFIX or length > min(file.size - _PREFIX, _MAX_HEADER):
        raise WeightsError(f"expected a header that fits in the file and in {_MAX_HEADER} bytes, got {length}")
    header = _header(file[_PREFIX : _PREFIX + length].tobytes())
    data = file[_PREFIX + length :]
    places = sorted((_place(entry), name) for name, entry in header.items() if name != "__metadata__")
    tensors = {}
    end = 0
    for (start, stop), name in places:
        if start != end:
            raise WeightsError(f"expected tensor {name!r} to begin at byte {end} of the data, got {start}")
        end = stop
        if stop > data.size:
            raise WeightsError(f"expected tensor {name!r} to end within {data.size} bytes of data, got {stop}")
        with about(f"tensor {name[:80]!r}"):
            tensors[check_name(name)] = _tensor(data[start:stop], header[name])
    if end != data.size:
        raise WeightsError(f"expected {end} bytes of data, as the header says, got {data.size}")
    return tensors


def _header(text: bytes) -> dict[str, dict[str, Any]]:
    if text[:1] != b"{":
        raise WeightsError(f"expected a header that opens with {{, got {text[:8]!r}")
    try:
        header: dict[str, Any] = json.loads(
            text.decode(), object_pairs_hook=_unique, parse_float=_no_number, parse_constant=_no_number
        )
    except (ValueError, RecursionError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"expected a header of JSON: {error}") from error
    for name, entry in header.items():
        if not isinstance(entry, dict):
            raise WeightsError(f"expected an object for {name[:80]!r} in the header, got {type(entry).__name__}")
        if name == "__metadata__":
            if not all(isinstance(value, str) for value in entry.values()):
                raise WeightsError("expected texts only under __metadata__")
        elif entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise WeightsError(f"expected dtype, shape and data_offsets for {name[:80]!r}, got {sorted(entry)[:4]}")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise WeightsError(f"expected each name once in the header, got {name[:80]!r} twice")
        found[name] = value
    return found


def _no_number(text: str) -> Never:
    raise WeightsError(f"expected whole numbers only in the header, got {text[:24]!r}")


def _whole_numbers(values: Any) -> tuple[int, ...]:
    # bool is an int, JSON's true is no number
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise WeightsError(f"expected a list of whole numbers in the header, got {str(values)[:80]}")
    return tuple(values)


def _place(entry: dict[str, Any]) -> tuple[int, int]:
    offsets = _whole_numbers(entry["data_offsets"])
    if len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1]:
        raise WeightsError(f"expected data_offsets [first, behind], got {str(offsets)[:80]}")
    return offsets[0], offsets[1]


def _tensor(data: UInt8[Array, " B"], entry: dict[str, Any]) -> Array:
    code, shape = entry["dtype"], _whole_numbers(entry["shape"])
    if code == _BFLOAT16:
        halves = as_array(data, np.dtype("<u2"), shape)
        return (halves.astype(np.uint32) << 16).view(np.float32)
    if not isinstance(code, str) or code not in _DTYPES:
        raise WeightsError(f"expected a dtype of {', '.join([*_DTYPES, _BFLOAT16])}, got {str(code)[:24]!r}")
    return as_array(data, np.dtype(_DTYPES[code]), shape)


def write(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write the tensors. The same tensors make the same bytes, in whatever order and memory layout they come.

    They lie in the file by descending size of their elements, then by name, so that each is aligned.

    Raises:
        WeightsError: a tensor has a dtype that the format doesn't know, or a name that no reader would take.
        OSError: the file can't be written.
    """
    for name, array in tensors.items():
        if check_name(name) == "__metadata__" or array.dtype.newbyteorder("=") not in _CODES:
            raise WeightsError(f"safetensors: can't hold {name!r} of {array.dtype}, only {', '.join(_DTYPES)}")
    ordered = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {}
    end = 0
    for name in ordered:
        array = tensors[name]
        dtype = array.dtype.newbyteorder("=")
        start, end = end, end + byte_count(array.shape, dtype)
        header[name] = {"dtype": _CODES[dtype], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _PREFIX)
    if len(text) > _MAX_HEADER:
        raise WeightsError(f"safetensors: expected a header of at most {_MAX_HEADER} bytes, got {len(text)}")
    with whole_file(path) as file:
        file.write(len(text).to_bytes(_PREFIX, "little"))
        file.write(text)
        for name in ordered:
            array = tensors[name]
            file.write(np.asarray(array, array.dtype.newbyteorder("<"), order="C").data)
