"""PyTorch's weight files, read without PyTorch and without executing anything.

torch.save has had three formats. Since 1.6 it writes a zip archive of stored members under one folder: ``data.pkl``, a
pickle in which every tensor is a call (storage, offset, size, stride), and one member ``data/KEY`` for each storage.
Before, it wrote a stream: five pickles (a magic number, the version 1001, facts about the machine, the object, the
storages' keys), then for each key the number of elements (int64) and the elements. A storage is a persistent id
``("storage", type, key, location, elements)``; in the stream a sixth entry may cut a view (key, offset, elements) out
of it. All numbers are little-endian unless the archive's member ``byteorder`` says ``big``.

Strides count elements. A tensor lies inside its storage if

    offset + sum((size - 1) * stride) < elements of the storage
"""

import io
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import UInt8

from refnet.arrays import Array
from refnet.errors import WeightsError
from refnet.weights import archive
from refnet.weights.declared import as_array, byte_count, opened
from refnet.weights.pickle_machine import Allowance, Buildable, PickleMachine, Stub, arguments, describe, stubs
from refnet.weights.pickle_numpy import NUMPY_STUBS, NumpyArray, Shape, check_total, checked_shape, unwrapped
from refnet.weights.torch_writer import BFLOAT16, DTYPES, STORAGES

_MAGIC = 0x1950A86A20F9469CFC6C
_STREAM = b"\x8a\x0a" + _MAGIC.to_bytes(10, "little") + b"."  # the first pickle, without its protocol
_PROTOCOL = 1001
_VERSIONS = [str(number).encode() for number in range(1, 11)]  # of the archive, as torch 2 accepts them
_PIECE = 1 << 18
_BLOCK = 512  # of a tar archive
_WRAPPERS = ("model", "state_dict", "model_state", "model_state_dict")


@dataclass(frozen=True, slots=True)
class _Storage:
    """A part of the storage `key`: `count` elements from `offset` on, of `total`."""

    key: str
    dtype: np.dtype[Any]
    total: int
    offset: int
    count: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A view of a storage; `offset` and `stride` count elements of `dtype` from the start of the storage."""

    key: str
    dtype: np.dtype[Any]
    offset: int
    size: Shape
    stride: Shape
    nbytes: int


class _Storages:
    """The storages that a file's pickle has named so far."""

    def __init__(self) -> None:
        self.types: dict[str, tuple[np.dtype[Any], int]] = {}

    def persistent(self, key: object) -> _Storage:
        """A storage from its persistent id. Raises WeightsError for any other id."""
        values = key if isinstance(key, tuple) else (key,)
        kind, storage, name, _, count, view = arguments(
            "persistent id", values, str, Stub, str, str, int, (tuple, type(None)), optional=1
        )
        if kind != "storage" or not isinstance(storage.value, np.dtype) or not storage.name.endswith("Storage"):
            raise WeightsError(f"persistent id: expected a storage, got {describe(kind)} and {storage.name}")
        byte_count((count,), storage.value)
        if self.types.setdefault(name, (storage.value, count)) != (storage.value, count):
            raise WeightsError(f"storage {describe(name)}: expected the same type and length everywhere, got two")
        offset, length = 0, count
        if view is not None:
            _, offset, length = arguments("view of a storage", view, str, int, int)
            if offset < 0 or length < 0 or offset + length > count:
                raise WeightsError(f"view of a storage: expected at most {count} elements, got {offset} + {length}")
        return _Storage(name, storage.value, count, offset, length)


def _tensor(storage: _Storage, dtype: np.dtype[Any], offset: int, size: Shape, stride: Shape) -> _Tensor:
    nbytes = byte_count(checked_shape(size), dtype)
    if len(size) != len(checked_shape(stride)) or any(step < 0 for step in stride):
        raise WeightsError(f"tensor: expected a stride from 0 on for each of {len(size)} axes, got {len(stride)}")
    count = nbytes // dtype.itemsize
    room = storage.count * storage.dtype.itemsize // dtype.itemsize
    end = offset + sum((extent - 1) * step for extent, step in zip(size, stride, strict=True)) + 1 if count else offset
    if offset < 0 or end > room or count > room:
        raise WeightsError(
            f"tensor: expected to lie in a storage of {room} elements without repeating them, "
            f"got {count} elements from {describe(offset)} on with strides {describe(stride)}"
        )
    if storage.offset * storage.dtype.itemsize % dtype.itemsize:
        raise WeightsError(f"tensor: expected a storage that starts at a whole element, got byte {storage.offset}")
    start = storage.offset * storage.dtype.itemsize // dtype.itemsize
    return _Tensor(storage.key, dtype, start + offset, size, stride, nbytes)


def _rebuild_tensor(values: tuple[Any, ...]) -> _Tensor:
    storage, offset, size, stride = arguments("_rebuild_tensor", values, _Storage, int, tuple, tuple)
    return _tensor(storage, storage.dtype, offset, size, stride)


def _rebuild_tensor_v2(values: tuple[Any, ...]) -> _Tensor:
    *place, _, _, metadata = arguments(
        "_rebuild_tensor_v2", values, _Storage, int, tuple, tuple, bool, object, (dict, type(None)), optional=1
    )
    if metadata:
        raise WeightsError("_rebuild_tensor_v2: expected no conjugate or negative views, got one")
    return _rebuild_tensor(tuple(place))


def _rebuild_tensor_v3(values: tuple[Any, ...]) -> _Tensor:
    storage, offset, size, stride, _, _, dtype, metadata = arguments(
        "_rebuild_tensor_v3", values, _Storage, int, tuple, tuple, bool, object, Stub, (dict, type(None)), optional=1
    )
    if metadata or not isinstance(dtype.value, np.dtype) or dtype.name.endswith("Storage"):
        raise WeightsError(f"_rebuild_tensor_v3: expected a data type and a plain view, got {dtype.name}")
    return _tensor(storage, dtype.value, offset, size, stride)


def _rebuild_parameter(values: tuple[Any, ...]) -> _Tensor:
    tensor: _Tensor = arguments("_rebuild_parameter", values, _Tensor, bool, object)[0]
    return tensor


class _Parameter(Buildable):
    """A parameter as it was pickled when it was a variable around a tensor: made empty, the tensor in its state."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: _Tensor | None) -> None:
        self.tensor = tensor

    def build(self, state: object) -> None:
        """(tensor, gradient, hooks, ...), or (..., hooks) where the tensor was an argument."""
        if self.tensor is None and isinstance(state, tuple) and len(state) == 5 and isinstance(state[0], _Tensor):
            self.tensor = state[0]
        elif self.tensor is None or not isinstance(state, tuple) or len(state) != 3:
            raise WeightsError(f"Parameter: expected a state with one tensor, got {describe(state)}")


def _parameter(values: tuple[Any, ...]) -> _Parameter:
    return _Parameter(arguments("Parameter", values, _Tensor, optional=1)[0])


def _size(values: tuple[Any, ...]) -> Shape:
    extents: Shape = arguments("torch.Size", values, tuple)[0]
    return extents


_TABLE = stubs(
    *NUMPY_STUBS,  # of numbers beside the weights
    Stub("torch._utils._rebuild_tensor", _rebuild_tensor),
    Stub("torch._utils._rebuild_tensor_v2", _rebuild_tensor_v2),
    Stub("torch._utils._rebuild_tensor_v3", _rebuild_tensor_v3),
    Stub("torch._utils._rebuild_parameter", _rebuild_parameter),
    Stub("torch.nn.parameter.Parameter", _parameter),
    Stub("torch.Size", _size),
    Stub("torch.storage.UntypedStorage", value=np.dtype("u1")),
    *(Stub(f"torch.{name}", value=dtype) for name, dtype in (*STORAGES.items(), *DTYPES.items())),
    *(Stub(f"torch.{name.replace('Storage', 'Tensor')}") for name in STORAGES),
)


def is_torch_file(head: bytes) -> bool:
    """Whether a file that starts with `head` is one of torch.save: a stream that starts with torch's magic number, or
    a zip archive whose first member is in a folder and no array of NumPy, or a tar archive. `head` must hold that
    member's name, 512 bytes at least.
    """
    name = archive.first_name(head)
    return _STREAM in head[:32] or _is_tar(head) or ("/" in name and not name.endswith(".npy"))


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def read(path: Path) -> dict[str, Array]:
    """The tensors of a ``.pth`` file by their names in it, read-only; bfloat16 becomes float32.

    A state dict may be the whole object or stand under ``model``, ``state_dict``, ``model_state`` or
    ``model_state_dict``. Tensors that share a storage share it here as well, and keep their strides.

    Raises:
        WeightsError: there is no such file, it is damaged, or it holds anything else than data and tensors.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_BLOCK)
        file.seek(0)
        if _is_tar(head):
            return _read_tar(file, size)
        return _read_archive(file, size) if archive.is_zip(head) else _read_stream(file, size)


def _state_dict(root: object, file_size: int) -> dict[str, _Tensor | NumpyArray]:
    """The tensors in what a pickle holds, checked against what their sum may be."""
    tensors = unwrapped(root, _WRAPPERS)
    tensors = {name: value.tensor if isinstance(value, _Parameter) else value for name, value in tensors.items()}
    for name, value in tensors.items():
        if not isinstance(value, _Tensor | NumpyArray):
            raise WeightsError(f"{describe(name)}: expected a tensor, got {describe(value)}")
    check_total((value.nbytes for value in tensors.values()), file_size)
    return tensors


def _read_archive(file: BinaryIO, size: int) -> dict[str, Array]:
    members = archive.members(file)
    if any(member.deflated for member in members.values()):
        raise WeightsError("expected members that are stored as they are, as torch.save does it, got compressed ones")
    roots = {name.partition("/")[0] for name in members}
    if len(roots) != 1:
        raise WeightsError(f"expected one folder in the archive, got {len(roots)}")
    root = roots.pop()
    if f"{root}/constants.pkl" in members:
        raise WeightsError("expected a state dict, got a program of torch.jit: save its state_dict() instead")

    def content(name: str, default: bytes | None = None) -> bytes:
        if f"{root}/{name}" not in members and default is not None:
            return default
        return archive.read(file, _member(members, f"{root}/{name}")).tobytes()

    order, version = content("byteorder", b"little"), content("version", b"1").strip()
    if order not in (b"little", b"big"):
        raise WeightsError(f"byteorder: expected little or big, got {describe(order)}")
    if version not in _VERSIONS:
        raise WeightsError(f"version: expected 1 to {len(_VERSIONS)}, got {describe(version)}")
    program = archive.read(file, _member(members, f"{root}/data.pkl"))
    storages = _Storages()
    tensors = _state_dict(
        PickleMachine(
            io.BytesIO(program.data),
            end=program.size,
            what="data.pkl",
            table=_TABLE,
            allowance=Allowance(size),
            persistent=storages.persistent,
        ).run(),
        size,
    )
    del program
    contents = {}
    for key in _needed(tensors.values()):
        dtype, count = storages.types[key]
        member = _member(members, f"{root}/data/{key}")
        if member.size != count * dtype.itemsize:
            raise WeightsError(f"storage {describe(key)}: expected {count * dtype.itemsize} bytes, got {member.size}")
        contents[key] = _content(dtype, count, partial(archive.read, file, member), order == b"big")
    return {name: _array(tensor, contents) for name, tensor in tensors.items()}


def _member(members: Mapping[str, archive.Member], name: str) -> archive.Member:
    if name not in members:
        raise WeightsError(f"expected a member {describe(name)} in the archive, found none")
    return members[name]


def _read_stream(file: BinaryIO, size: int) -> dict[str, Array]:
    allowance = Allowance(size)
    storages = _Storages()

    def run(what: str, persistent: Callable[[object], object] | None = None) -> Any:
        return PickleMachine(file, end=size, what=what, table=_TABLE, allowance=allowance, persistent=persistent).run()

    magic, protocol = run("magic number"), run("protocol")
    if magic != _MAGIC or protocol != _PROTOCOL:
        raise WeightsError(f"expected the magic number and protocol {_PROTOCOL}, got {describe(protocol)}")
    run("sys_info")  # says which machine wrote the file; its numbers are little-endian all the same
    tensors = _state_dict(run("object", storages.persistent), size)
    keys = run("keys")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        raise WeightsError("keys: expected a list of different names")
    if set(keys) != set(storages.types):
        raise WeightsError(f"keys: expected the {len(storages.types)} storages that the object names, got others")
    needed = _needed(tensors.values())
    contents = {}
    position = file.tell()
    for key in keys:
        dtype, count = storages.types[key]
        file.seek(position)
        found = int.from_bytes(file.read(8), "little", signed=True)
        start, position = position + 8, position + 8 + count * dtype.itemsize
        if found != count or position > size:
            raise WeightsError(
                f"storage {describe(key)}: expected {count} elements before byte {size}, "
                f"got {found} from byte {start} on"
            )
        if key in needed:
            contents[key] = _content(dtype, count, partial(_fill, file, start), False)
    if position != size:
        raise WeightsError(f"expected the end of the file, got {size - position} bytes more")
    return {name: _array(tensor, contents) for name, tensor in tensors.items()}


def _read_tar(file: BinaryIO, size: int) -> dict[str, Array]:
    members = _tar_members(file, size)
    allowance = Allowance(size)

    def run(what: str, persistent: Callable[[object], object] | None = None) -> Any:
        end = members[what][1]
        return PickleMachine(file, end=end, what=what, table=_TABLE, allowance=allowance, persistent=persistent).run()

    def opened_at(what: str) -> int:
        if what not in members:
            raise WeightsError(f"expected a member {what} in the archive, found none")
        file.seek(members[what][0])
        return members[what][1]

    def read(form: str) -> tuple[Any, ...]:
        content = file.read(struct.calcsize(form))
        if len(content) != struct.calcsize(form):
            raise WeightsError("the file ends too early")
        return struct.unpack(form, content)

    def items(what: str) -> Iterator[tuple[str, Any, Stub]]:
        for _ in range(*arguments(what, (run(what),), int)):
            first, second, kind = arguments(what, run(what), int, (int, str), Stub)
            yield str(first), second, kind

    end = opened_at("storages")
    objects: dict[str, _Storage | _Tensor] = {}
    starts: dict[str, int] = {}
    for key, _, kind in items("storages"):
        ((count,), start) = read("<q"), file.tell()
        if not isinstance(kind.value, np.dtype) or key in starts:
            raise WeightsError(f"storages: expected storages with different keys, got {kind.name} {key}")
        if start + byte_count((count,), kind.value) > end:
            raise WeightsError(
                f"storage {key}: expected it to end before byte {end}, got {count} elements from {start}"
            )
        objects[key], starts[key] = _Storage(key, kind.value, count, 0, count), start
        file.seek(start + byte_count((count,), kind.value))
    for view in arguments("views", (run("storages"),), list)[0]:
        key, root, offset, count = arguments("view", view if isinstance(view, tuple) else (view,), int, int, int, int)
        whole = objects.get(str(root))
        if str(key) in objects or not isinstance(whole, _Storage) or not 0 <= offset <= offset + count <= whole.total:
            raise WeightsError(f"view of a storage: expected a part of {root}, got {offset} + {count}")
        objects[str(key)] = _Storage(whole.key, whole.dtype, whole.total, offset, count)

    end = opened_at("tensors")
    for key, place, _ in items("tensors"):
        axes, _ = read("<2i")
        storage = objects.get(str(place))
        if key in objects or not isinstance(storage, _Storage) or not 0 <= 16 * axes <= end - file.tell():
            raise WeightsError(f"tensors: expected a view of a storage under a key of its own, got {key} of {place}")
        numbers = read(f"<{2 * axes + 1}q")
        objects[key] = _tensor(storage, storage.dtype, numbers[-1], numbers[:axes], numbers[axes:-1])

    def persistent(key: object) -> _Storage | _Tensor:
        if not isinstance(key, str) or key not in objects:
            raise WeightsError(f"persistent id: expected a tensor's key, got {describe(key)}")
        return objects[key]

    opened_at("pickle")
    tensors = _state_dict(run("pickle", persistent), size)
    contents = {}
    for key in _needed(tensors.values()):
        storage = objects[key]
        assert isinstance(storage, _Storage)
        contents[key] = _content(storage.dtype, storage.total, partial(_fill, file, starts[key]), False)
    return {name: _array(tensor, contents) for name, tensor in tensors.items()}


def _tar_members(file: BinaryIO, size: int) -> dict[str, tuple[int, int]]:
    """Where each member of a tar archive starts and ends; those of torch alone."""
    members: dict[str, tuple[int, int]] = {}
    position = 0
    while True:
        file.seek(position)
        header = file.read(_BLOCK)
        if header == bytes(_BLOCK):
            return members
        name, kind = header[:100].rstrip(b"\0").decode("latin1"), header[156:157]
        checked = header[:148] + b" " * 8 + header[156:]
        try:
            length, checksum = int(header[124:136].strip(b" \0"), 8), int(header[148:156].strip(b" \0"), 8)
        except ValueError as error:
            raise WeightsError(f"tar: the header at byte {position} is damaged") from error
        start, end = position + _BLOCK, position + _BLOCK + length
        if not _is_tar(header) or checksum != sum(checked) or length < 0 or end > size:
            raise WeightsError(f"tar: the header at byte {position} is damaged, or the file is truncated")
        if kind == b"x":
            if length > 1 << 16 or b" size=" in file.read(length):
                raise WeightsError("tar: expected sizes of at most 8 GiB, in the header itself")
        elif kind not in (b"0", b"\0") or name not in ("sys_info", "pickle", "tensors", "storages") or name in members:
            raise WeightsError(f"tar: expected torch's four members, each once, got {describe(name)}")
        else:
            members[name] = start, end
        position = end + -end % _BLOCK


def _fill(file: BinaryIO, start: int, content: UInt8[Array, " B"]) -> None:
    file.seek(start)
    if file.readinto(content.data) != content.size:  # type: ignore[attr-defined]
        raise WeightsError(f"expected {content.size} bytes from byte {start} on: the file is truncated")


def _needed(tensors: Iterable[_Tensor | NumpyArray]) -> dict[str, None]:
    """The keys of the storages that `tensors` view, in order."""
    return dict.fromkeys(tensor.key for tensor in tensors if isinstance(tensor, _Tensor) and tensor.nbytes)


def _content(dtype: np.dtype[Any], count: int, fill_with: Callable[[Array], object], is_big: bool) -> Array:
    """The elements of a storage; bfloat16 as float32, in the memory of the result alone."""
    widening = 2 if dtype is BFLOAT16 else 1
    content = np.empty(count * dtype.itemsize * widening, np.uint8)
    stored = content[content.size - count * dtype.itemsize :]
    fill_with(stored)
    numbers = stored.view("<u2" if dtype is BFLOAT16 else dtype)
    if is_big:
        numbers.byteswap(inplace=True)
    if dtype is not BFLOAT16:
        return as_array(content, dtype, (count,))
    # Half i is read at place count + i and goes to place 2 i + 1, which isn't behind it: from the front, in pieces.
    halves = content.view("<u2")
    for start in range(0, count, _PIECE):
        piece = numbers[start : start + _PIECE].copy()
        stop = start + len(piece)
        halves[2 * start : 2 * stop : 2] = 0
        halves[2 * start + 1 : 2 * stop : 2] = piece
    return as_array(content, np.dtype("<f4"), (count,))


def _array(tensor: _Tensor | NumpyArray, contents: Mapping[str, Array]) -> Array:
    """The view of its storage that a tensor is."""
    if isinstance(tensor, NumpyArray):
        return tensor.array()
    dtype = np.dtype(np.float32) if tensor.dtype is BFLOAT16 else tensor.dtype.newbyteorder("=")
    if not tensor.nbytes:
        empty = np.empty(tensor.size, dtype)
        empty.setflags(write=False)
        return empty
    content = contents[tensor.key]
    elements = content.view(np.uint8)[: content.nbytes // dtype.itemsize * dtype.itemsize].view(dtype)
    # along an axis of one element, a stride is never used and may be any number
    strides = [step * dtype.itemsize * (extent > 1) for extent, step in zip(tensor.size, tensor.stride, strict=True)]
    return np.lib.stride_tricks.as_strided(elements[tensor.offset :], tensor.size, strides, writeable=False)
