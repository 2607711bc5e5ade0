"""Keras's ``.h5``: the part of HDF5 that ``save_weights`` and ``save`` write, and no more of it.

A file of weights has an attribute ``layer_names``, at its root or in its group ``model_weights``; for each layer a group
with an attribute ``weight_names``; and under each of these names, which are paths, an array. Keras has always written
it in HDF5's oldest layout: superblock 0, groups by symbol tables, object headers 1, arrays in one piece.

Reading needs no library. The HDF5 library follows what a file says into loops and out of its memory: of 2,000 small
files with a few changed bytes, one ended the process and four weren't done after five seconds (HDF5 2.0). This reader
takes only the structures named above, each in bytes of its own: the sum of what it looks at can't exceed the file, so
that cycles, overlaps and repetitions end by themselves. Writing uses h5py.

Source: HDF5 File Format Specification, version 1.1 and, for later versions of its messages, 3.0.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from refnet.arrays import Array
from refnet.errors import WeightsError
from refnet.weights.declared import about, as_array, byte_count, check_name, content, opened
from refnet.whole_file import whole_file

# The layers that Matterport's network keeps in a model of their own, and that model's name.
MATTERPORT_MODELS = dict.fromkeys(("rpn_conv_shared", "rpn_class_raw", "rpn_bbox_pred"), "rpn_model")

_SIGNATURE = b"\x89HDF\r\n\x1a\n"

# What a message in an object header is about.
_DATASPACE, _DATATYPE, _EXTERNAL, _LAYOUT, _FILTERS, _ATTRIBUTE = 0x01, 0x03, 0x07, 0x08, 0x0B, 0x0C
_CONTINUATION, _SYMBOL_TABLE = 0x10, 0x11
_NEWER_GROUP = {0x02, 0x06, 0x0A}  # link info, link, group info

_SOFT_LINK = 2  # what a symbol table's entry caches
_CONTIGUOUS = 1
_INTEGER, _FLOAT, _TEXT, _VARIABLE = 0, 1, 3, 9
_NUL_TERMINATED, _NUL_PADDED, _SPACE_PADDED = 0, 1, 2

# IEEE 754 by size: where the sign is; bit offset, precision, then place and size of exponent and mantissa; the bias
_IEEE = {
    2: (15, (0, 16, 10, 5, 0, 10), 15),
    4: (31, (0, 32, 23, 8, 0, 23), 127),
    8: (63, (0, 64, 52, 11, 0, 52), 1023),
}

_MAX_THINGS = 2**16  # links, messages and texts; a ResNet-101 has some 15,000
_MAX_TEXT = 1024

_ORDER = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")  # of a layer's weights, in Keras
_KERAS_VERSION = b"2.1.6"  # the layout written here; Keras converts the weights of versions before 2
_MAX_ATTRIBUTE = 64_000  # bytes; an object header holds no more


def is_hdf5(head: bytes) -> bool:
    """Whether a file that begins like this is HDF5."""
    return head[:8] == _SIGNATURE


def read(path: Path) -> dict[str, Array]:
    """The weights as ``LAYER/WEIGHT``, such as ``conv1/kernel``, in the order of the file's layers.

    The layer is the one that owns the weight: ``rpn_conv_shared``, where Keras stores it under the model ``rpn_model``.
    The arrays share the memory that the file was read into.

    Raises:
        WeightsError: the file is damaged, isn't Keras's, or uses a part of HDF5 that Keras doesn't.
    """
    with opened(path) as file:
        return _File(content(file)).weights()


class _Cursor:
    """Reads a stretch of the file from its first byte on, and never beyond its end."""

    def __init__(self, data: memoryview, at: int, end: int) -> None:
        if not 0 <= at <= end <= len(data):
            raise WeightsError(f"expected a structure within {len(data)} bytes, got one at {at} to {end}")
        self._data = data
        self.at = at
        self.end = end

    def take(self, count: int) -> bytes:
        at, self.at = self.at, self.at + count
        if self.at > self.end:
            raise WeightsError(f"a structure ends within its parts, at byte {self.end}")
        return bytes(self._data[at : self.at])

    def copy(self) -> "_Cursor":
        return _Cursor(self._data, self.at, self.end)

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def numbers(self, *sizes: int) -> list[int]:
        return [self.number(size) for size in sizes]

    def expect(self, signature: bytes, what: str) -> None:
        if self.take(len(signature)) != signature:
            raise WeightsError(f"expected {what} at byte {self.at - len(signature)}")

    def part(self, count: int) -> "_Cursor":
        """The next `count` bytes as a stretch of their own."""
        at, self.at = self.at, self.at + count
        if self.at > self.end:
            raise WeightsError(f"a structure ends within its parts, at byte {self.end}")
        return _Cursor(self._data, at, self.at)


@dataclass(frozen=True, slots=True)
class _Texts:
    """A datatype of texts: `size` bytes each, padded in one of three ways, or kept elsewhere if `size` is None."""

    size: int | None
    padding: int = _NUL_TERMINATED


class _File:
    """One file's structures. Looking at any of them is paid for in bytes, of which the file has only so many."""

    def __init__(self, data: UInt8[Array, " B"]) -> None:
        self._data = data
        self._view = data.data
        self._bytes = data.size
        self._things = _MAX_THINGS
        self._headers: dict[int, list[tuple[int, _Cursor]]] = {}
        self._links: dict[int, dict[str, int]] = {}
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}

    def weights(self) -> dict[str, Array]:
        group = self._root()
        layers = self._texts(group, "layer_names")
        if layers is None and "model_weights" in self._group(group):
            group = self._group(group)["model_weights"]
            layers = self._texts(group, "layer_names")
        if layers is None:
            raise WeightsError("expected Keras's attribute layer_names at the root or in the group model_weights")
        found: dict[str, Array] = {}
        for layer in _unique(layers):
            with about(f"layer {layer[:80]!r}"):
                address = self._find(group, layer)
                names = self._texts(address, "weight_names")
                if names is None:
                    raise WeightsError("expected Keras's attribute weight_names")
                for name in _unique(names):
                    key = _key(layer, name)
                    if key in found:
                        raise WeightsError(f"expected each weight once, got {key!r} twice")
                    with about(f"weight {name!r}"):
                        found[key] = self._dataset(self._find(address, name))
        return found

    # Paying, and reading where a structure says that another one is

    def _pay(self, count: int, things: int = 0) -> None:
        self._bytes -= count
        self._things -= things
        if self._bytes < 0 or self._things < 0:
            raise WeightsError(
                f"expected at most {_MAX_THINGS} links, messages and texts that share no bytes of the file, got more"
            )

    def _at(self, address: int, size: int) -> _Cursor:
        self._pay(size)
        return _Cursor(self._view, address, address + size)

    def _root(self) -> int:
        """The address of the root group's object header."""
        cursor = self._at(0, 96)
        cursor.expect(_SIGNATURE, "HDF5's signature")
        version, *_, offset_size, length_size, _ = cursor.numbers(1, 1, 1, 1, 1, 1, 1, 1)
        if (version, offset_size, length_size) != (0, 8, 8):
            raise WeightsError(
                f"expected HDF5's superblock 0 with 8-byte offsets, which is what Keras writes, got version {version}"
            )
        cursor.take(8)
        base, _, end, _, _, root = cursor.numbers(8, 8, 8, 8, 8, 8)
        if base != 0 or end > self._data.size:
            raise WeightsError(
                f"expected {end} bytes from byte {base} on, got {self._data.size}: the file is truncated"
            )
        return root

    def _messages(self, address: int) -> list[tuple[int, _Cursor]]:
        """What the object header at `address` says, as pairs of a kind and a stretch."""
        if address not in self._headers:
            self._headers[address] = list(self._read_messages(address))
        return [(kind, message.copy()) for kind, message in self._headers[address]]

    def _read_messages(self, address: int) -> Iterator[tuple[int, _Cursor]]:
        cursor = self._at(address, 16)
        version, _, count, _, size, _ = cursor.numbers(1, 1, 2, 4, 4, 4)
        if version != 1:
            raise WeightsError(f"expected an object header of version 1 at byte {address}, got {version}")
        stretches = [(address + 16, size)]
        while stretches:
            cursor = self._at(*stretches.pop())
            while cursor.end - cursor.at >= 8:
                kind, length, flags, _ = cursor.numbers(2, 2, 1, 3)
                message = cursor.part(length)
                count -= 1
                self._pay(0, things=1)
                if kind == _CONTINUATION:
                    stretches.append((message.number(8), message.number(8)))
                elif flags & 2:
                    raise WeightsError(f"expected messages in their own header, got a shared one at {message.at}")
                else:
                    yield kind, message
        if count:
            raise WeightsError(f"expected another number of messages in the object header at byte {address}")

    # Groups

    def _find(self, group: int, path: str) -> int:
        """The address of the object at `path` in a group."""
        for name in check_name(path).split("/"):
            links = self._group(group)
            if name not in links:
                raise WeightsError(f"expected an object {path!r}, and there is no {name!r}")
            group = links[name]
        return group

    def _group(self, address: int) -> dict[str, int]:
        """The links of a group: addresses of object headers by name."""
        if address not in self._links:
            self._links[address] = self._read_group(address)
        return self._links[address]

    def _read_group(self, address: int) -> dict[str, int]:
        tables = []
        for kind, message in self._messages(address):
            if kind in _NEWER_GROUP:
                raise WeightsError("expected a group of HDF5's oldest layout, got external links or a newer layout")
            if kind == _SYMBOL_TABLE:
                tables.append(message.numbers(8, 8))
        if len(tables) != 1:
            raise WeightsError(f"expected a group with one symbol table at byte {address}, got {len(tables)}")
        ((tree, heap),) = tables
        names = self._local_heap(heap)
        links: dict[str, int] = {}
        nodes = [tree]
        while nodes:
            node = nodes.pop()
            head = self._at(node, 8)
            signature = head.take(4)
            if signature == b"TREE":
                kind, _, used = head.numbers(1, 1, 2)
                if kind != 0:
                    raise WeightsError(f"expected a tree of groups at byte {node}")
                entries = self._at(node + 24, 16 * used)
                nodes += [entries.numbers(8, 8)[1] for _ in range(used)]
                self._pay(0, things=used)
            elif signature == b"SNOD":
                used = head.numbers(1, 1, 2)[2]
                entries = self._at(node + 8, 40 * used)
                for _ in range(used):
                    offset, header, cached, _, _, _ = entries.numbers(8, 8, 4, 4, 8, 8)
                    name = self._name(names, offset)
                    if cached == _SOFT_LINK:
                        raise WeightsError(f"expected an object {name[:80]!r}, got a link to a path")
                    if name in links:
                        raise WeightsError(f"expected each name once in a group, got {name[:80]!r} twice")
                    links[name] = header
            else:
                raise WeightsError(f"expected a node of a group at byte {node}, got {signature!r}")
        return links

    def _local_heap(self, address: int) -> tuple[int, int]:
        """Where the names of a group's members begin and end."""
        cursor = self._at(address, 32)
        cursor.expect(b"HEAP\0", "a group's heap of names")
        size, _, start = cursor.numbers(3, 8, 8, 8)[1:]
        return start, start + size

    def _name(self, heap: tuple[int, int], offset: int) -> str:
        start, end = heap
        start = start + offset
        cursor = _Cursor(self._view, start, min(end, start + _MAX_TEXT))
        text = cursor.take(cursor.end - start).partition(b"\0")[0]
        self._pay(len(text), things=1)
        return _decoded(text)

    # Attributes of texts

    def _texts(self, address: int, wanted: str) -> list[str] | None:
        """The texts of an attribute; None if the object has no such attribute."""
        found = None
        for kind, message in self._messages(address):
            if kind == _ATTRIBUTE:
                name, datatype, dataspace = _attribute(message)
                if name == wanted.encode():
                    with about(f"attribute {wanted}"):
                        found = self._attribute_texts(datatype, dataspace, message)
        return found

    def _attribute_texts(self, datatype: _Cursor, dataspace: _Cursor, data: _Cursor) -> list[str]:
        shape = _shape(dataspace)
        count = math.prod(shape)
        if count == 0:
            return []  # Keras writes an empty array of numbers for a layer without weights
        kind = _datatype(datatype)
        if not isinstance(kind, _Texts):
            raise WeightsError(f"expected texts, got {kind}")
        self._pay(0, things=count)
        if kind.size is None:
            return [_decoded(self._heap_text(*data.numbers(4, 8, 4))) for _ in range(count)]
        texts = [data.take(kind.size) for _ in range(count)]
        if kind.padding == _SPACE_PADDED:
            return [_decoded(text.rstrip(b" ")) for text in texts]
        return [_decoded(text.partition(b"\0")[0]) for text in texts]

    def _heap_text(self, length: int, collection: int, index: int) -> bytes:
        if length == 0:
            return b""
        if collection not in self._heaps:
            self._heaps[collection] = self._global_heap(collection)
        at, size = self._heaps[collection].get(index, (0, 0))
        if length > size or length > _MAX_TEXT:
            raise WeightsError(f"expected a text of at most {min(size, _MAX_TEXT)} bytes, got {length}")
        return _Cursor(self._view, at, at + length).take(length).partition(b"\0")[0]

    def _global_heap(self, address: int) -> dict[int, tuple[int, int]]:
        """Places and sizes of the objects in a collection, by index."""
        head = self._at(address, 16)
        head.expect(b"GCOL\1", "a heap of texts")
        size = head.numbers(3, 8)[1]
        if size < 16:
            raise WeightsError(f"expected a heap of texts of 16 bytes or more, got {size}")
        cursor = self._at(address + 16, size - 16)
        objects: dict[int, tuple[int, int]] = {}
        while cursor.end - cursor.at >= 16:
            index, _, _, length = cursor.numbers(2, 2, 4, 8)
            if index == 0:
                break  # the free space at the end
            self._pay(0, things=1)
            if index in objects:
                raise WeightsError(f"expected each text once in its heap, got number {index} twice")
            objects[index] = cursor.at, length
            cursor.part(length + -length % 8)
        return objects

    # Datasets

    def _dataset(self, address: int) -> Array:
        """The array of a dataset."""
        found: dict[int, _Cursor] = {}
        for kind, message in self._messages(address):
            if kind in (_EXTERNAL, _FILTERS):
                raise WeightsError(
                    "expected plain data in the file itself, got compressed data or those of other files"
                )
            if kind in (_DATASPACE, _DATATYPE, _LAYOUT):
                if kind in found:
                    raise WeightsError("expected one shape, one type and one place of data, got two")
                found[kind] = message
        if len(found) < 3:
            raise WeightsError("expected a dataset with a shape, a type and a place of its data")
        version, layout = found[_LAYOUT].numbers(1, 1)
        if version not in (3, 4) or layout != _CONTIGUOUS:
            raise WeightsError(f"expected data in one piece (layout 1 of version 3 or 4), got {layout} of {version}")
        start, size = found[_LAYOUT].numbers(8, 8)
        shape, dtype = _shape(found[_DATASPACE]), _datatype(found[_DATATYPE])
        if isinstance(dtype, _Texts):
            raise WeightsError("expected numbers, got texts")
        if size != byte_count(shape, dtype):
            raise WeightsError(f"expected {byte_count(shape, dtype)} bytes for its shape and {dtype}, got {size}")
        if size == 0:
            return as_array(self._data[:0], dtype, shape)  # nothing was ever allocated, so it has no place
        place = self._at(start, size)
        return as_array(self._data[place.at : place.end], dtype, shape)


def _attribute(message: _Cursor) -> tuple[bytes, _Cursor, _Cursor]:
    """An attribute's name, datatype and dataspace; `message` is left at its data."""
    version, flags = message.numbers(1, 1)
    if version not in (1, 2, 3) or (version > 1 and flags):
        raise WeightsError(f"expected an attribute of version 1 to 3 and nothing shared, got {version}, flags {flags}")
    sizes = message.numbers(2, 2, 2)
    if version == 3:
        message.take(1)  # the encoding of the name
    name, datatype, dataspace = (message.part(size + (-size % 8 if version == 1 else 0)) for size in sizes)
    return name.take(sizes[0]).partition(b"\0")[0], datatype, dataspace


def _shape(message: _Cursor) -> tuple[int, ...]:
    version, axes, flags = message.numbers(1, 1, 1)
    if version not in (1, 2) or flags & 2:
        raise WeightsError(f"expected a shape of version 1 or 2, not permuted, got {version}, flags {flags}")
    kind = message.number(1)
    if version == 1:
        message.take(4)
    elif kind > 1:
        return (0,)  # no elements at all
    shape = tuple(message.number(8) for _ in range(axes))
    byte_count(shape, np.dtype(np.uint8))
    return shape


def _datatype(message: _Cursor) -> np.dtype[Any] | _Texts:
    head, flags, size = message.numbers(1, 3, 4)
    version, kind = head >> 4, head & 15
    if version in (1, 2, 3):
        order = ">" if flags & 1 else "<"
        if kind == _TEXT and flags & 15 <= _SPACE_PADDED and 0 < size <= _MAX_TEXT:
            return _Texts(size, flags & 15)
        if kind == _VARIABLE and flags & 15 == 1 and size == 16:
            return _Texts(None)
        if kind == _INTEGER and size in (1, 2, 4, 8) and flags & ~9 == 0 and message.numbers(2, 2) == [0, 8 * size]:
            return np.dtype(f"{order}{'i' if flags & 8 else 'u'}{size}")
        if kind == _FLOAT and size in _IEEE:
            sign, places, bias = _IEEE[size]
            found = flags & ~1, tuple(message.numbers(2, 2, 1, 1, 1, 1)), message.number(4)
            if found == (sign << 8 | 0x20, places, bias):
                return np.dtype(f"{order}f{size}")
    raise WeightsError(f"expected integers, IEEE floating-point numbers or texts, got type {kind} of {size} bytes")


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise WeightsError(f"expected a text in UTF-8, got {text[:80]!r}") from error


def _unique(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise WeightsError("expected names that differ from one another, got one of them twice")
    return names


def _key(layer: str, name: str) -> str:
    """``LAYER/WEIGHT`` of a weight that Keras calls `name` in the group `layer`.

    A name is a path of scopes: of the layer itself, whose name TensorFlow may have made unique by a number, or of
    a layer within it, if it is a model.
    """
    *scopes, weight = re.sub(r":\d+$", "", name).split("/")
    owner = scopes[-1] if scopes else layer
    if re.fullmatch(re.escape(layer) + r"(_\d+)?", owner):
        owner = layer
    return check_name(f"{owner}/{weight}")


def write(path: Path, tensors: Mapping[str, Array], *, models: Mapping[str, str] = MATTERPORT_MODELS) -> None:
    """Write weights as Keras's ``save_weights`` does, so that ``load_weights(..., by_name=True)`` of Keras 2 reads them.

    The names are lists of bytes of one length, as Keras before 2.3 wrote them: all versions of Keras and h5py read them.
    Equal weights make equal bytes.

    Args:
        path: the file; it appears whole or not at all.
        tensors: the weights by ``LAYER/WEIGHT``, as :func:`read` returns them, the layers in the model's order. A weight
            is a kernel, bias, gamma, beta, moving_mean or moving_variance. Keras hands out a layer's weights by their
            position, so they are brought into its order.
        models: the layers that belong to a model within the model, and are stored under its name.

    Raises:
        WeightsError: h5py isn't installed, a name can't be Keras's, or an array isn't of plain numbers.
        OSError: the file can't be written.
    """
    try:
        import h5py
    except ImportError as error:
        raise WeightsError(
            "weights: writing .h5 needs h5py, expected it installed: pip install 'refnet[weights]'"
        ) from error
    layers: dict[str, list[str]] = {}
    for name, array in tensors.items():
        layer, _, weight = check_name(name).rpartition("/")
        if not layer or "/" in layer or weight not in _ORDER:
            raise WeightsError(f"hdf5: expected LAYER/WEIGHT with a weight of {', '.join(_ORDER)}, got {name!r}")
        if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
            raise WeightsError(f"hdf5: expected arrays of plain numbers, got {name!r} of {array.dtype}")
        layers.setdefault(layer, []).append(weight)
    groups: dict[str, list[str]] = {}
    for layer, weights in layers.items():
        names = [f"{layer}/{weight}" for weight in sorted(weights, key=_ORDER.index)]
        groups.setdefault(models.get(layer, layer), []).extend(names)
    with whole_file(path) as file, h5py.File(file.name, "w", libver=("earliest", "v108")) as root:
        _write_texts(root, "layer_names", list(groups))
        root.attrs["backend"] = b"tensorflow"
        root.attrs["keras_version"] = _KERAS_VERSION
        for group, names in groups.items():
            members = root.create_group(group)
            _write_texts(members, "weight_names", [f"{name}:0" for name in names])
            for name in names:
                members.create_dataset(f"{name}:0", data=np.asarray(tensors[name], order="C"))


def _write_texts(group: Any, name: str, texts: list[str]) -> None:
    values = np.array([text.encode() for text in texts]) if texts else np.zeros(0)  # as Keras writes none
    if values.nbytes > _MAX_ATTRIBUTE:
        raise WeightsError(f"hdf5: expected {name} of at most {_MAX_ATTRIBUTE} bytes, got {values.nbytes}")
    group.attrs[name] = values
