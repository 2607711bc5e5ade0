"""What the names in a pickle of NumPy's arrays stand for, and what both kinds of pickled weight files share.

An array is pickled as a call of ``_reconstruct``, which makes an empty one, and a state: (version, shape, dtype,
is it in Fortran's order?, bytes). A dtype is a call of ``dtype`` with a code such as ``f4``, and a state that holds
the order of its bytes. The arrays made here are views of the bytes that were read; they can't be written to.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from refnet.arrays import Array
from refnet.errors import WeightsError
from refnet.weights.declared import as_array, check_name
from refnet.weights.pickle_machine import Buildable, LongText, Stub, arguments, describe

_CODES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}

Shape = tuple[int, ...]


def checked_shape(shape: object) -> Shape:
    """`shape`, if it is a tuple of integers. Raises WeightsError for anything else."""
    if not isinstance(shape, tuple) or not all(type(extent) is int for extent in shape):
        raise WeightsError(f"expected a tuple of integers, got {describe(shape)}")
    return shape


class NumpyType(Buildable):
    """A data type: a code of NumPy, little-endian unless the state says otherwise."""

    __slots__ = ("dtype",)

    def __init__(self, code: str) -> None:
        self.dtype = np.dtype(code).newbyteorder("<")

    def build(self, state: object) -> None:
        """(version, order, base, names, fields, ...): the last three are None for plain numbers."""
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
            raise WeightsError(f"dtype: expected a state with an order of bytes, got {describe(state)}")
        if any(part is not None for part in state[2:5]):
            raise WeightsError("dtype: expected plain numbers, got a structure")
        self.dtype = self.dtype.newbyteorder("<" if state[1] in "|=" else state[1])


class NumpyArray(Buildable):
    """An array, as bytes; :meth:`array` is the array itself."""

    __slots__ = ("dtype", "in_columns", "payload", "shape")

    def __init__(self) -> None:
        self.payload = memoryview(b"")
        self.dtype = np.dtype("f4")
        self.shape: Shape = (0,)
        self.in_columns = False

    def build(self, state: object) -> None:
        """(version, shape, dtype, in Fortran's order?, bytes)."""
        values = state if isinstance(state, tuple) else (state,)
        _, shape, kind, in_columns, payload = arguments(
            "ndarray", values, int, tuple, NumpyType, (bool, int), (str, memoryview, LongText)
        )
        self.fill(payload, kind, shape, bool(in_columns))

    def fill(self, payload: object, kind: NumpyType, shape: object, in_columns: bool) -> None:
        """Take the parts in."""
        self.payload, self.dtype, self.shape, self.in_columns = (
            _payload(payload),
            kind.dtype,
            checked_shape(shape),
            in_columns,
        )

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return len(self.payload)

    def array(self) -> Array:
        """The array, in this machine's order of bytes, read-only: a view if it is stored so.

        Raises:
            WeightsError: the shape doesn't account for exactly the bytes.
        """
        data = np.frombuffer(self.payload, np.uint8)
        array = as_array(data, self.dtype, self.shape, order="F" if self.in_columns else "C")
        array.setflags(write=False)
        return array


def _payload(value: object) -> memoryview:
    """Bytes, whichever way the protocol wrote them; text has one character a byte."""
    if isinstance(value, str):
        try:
            return memoryview(value.encode("latin-1"))
        except UnicodeEncodeError as error:
            raise WeightsError("expected bytes, got text with characters beyond U+00FF") from error
    if isinstance(value, LongText):
        if value.latin1 is None:
            raise WeightsError("expected bytes, got text with characters beyond U+00FF")
        return value.latin1
    if isinstance(value, memoryview):
        return value
    raise WeightsError(f"expected bytes, got {describe(value)}")


def _encode(values: tuple[Any, ...]) -> memoryview:
    text, encoding = arguments("_codecs.encode", values, (str, LongText), str)
    if encoding not in ("latin1", "latin-1"):
        raise WeightsError(f"_codecs.encode: expected the encoding latin1, got {describe(encoding)}")
    return _payload(text)


def _no_bytes(values: tuple[Any, ...]) -> memoryview:
    arguments("bytes", values)  # how Python 3 writes b"" under protocol 2
    return memoryview(b"")


def _dtype(values: tuple[Any, ...]) -> NumpyType:
    code, _, _ = arguments("numpy.dtype", values, str, (bool, int), (bool, int), optional=2)
    if code not in _CODES:
        raise WeightsError(f"numpy.dtype: expected numbers, {', '.join(sorted(_CODES))}, got {describe(code)}")
    return NumpyType(code)


def _reconstruct(values: tuple[Any, ...]) -> NumpyArray:
    kind, _, _ = arguments("_reconstruct", values, Stub, tuple, (str, memoryview))
    if kind.name != "numpy.ndarray":
        raise WeightsError(f"_reconstruct: expected numpy.ndarray, got {kind.name}")
    return NumpyArray()


def _scalar(values: tuple[Any, ...]) -> NumpyArray:
    kind, payload = arguments("scalar", values, NumpyType, (str, memoryview))
    array = NumpyArray()
    array.fill(payload, kind, (), False)
    return array


def _from_buffer(values: tuple[Any, ...]) -> NumpyArray:
    payload, kind, shape, order = arguments("_frombuffer", values, memoryview, NumpyType, tuple, str)
    if order not in ("C", "F"):
        raise WeightsError(f"_frombuffer: expected the order C or F, got {describe(order)}")
    array = NumpyArray()
    array.fill(payload, kind, shape, order == "F")
    return array


NUMPY_STUBS = (
    Stub("_codecs.encode", _encode),
    Stub("__builtin__.bytes", _no_bytes),
    Stub("builtins.bytes", _no_bytes),
    Stub("numpy.ndarray"),
    Stub("numpy.dtype", _dtype),
    *(
        Stub(f"numpy.{core}.{name}", call)
        for core in ("core", "_core")  # before and since NumPy 2
        for name, call in (
            ("multiarray._reconstruct", _reconstruct),
            ("multiarray.scalar", _scalar),
            ("numeric._frombuffer", _from_buffer),
        )
    ),
)


def unwrapped(root: object, wrappers: tuple[str, ...]) -> dict[str, Any]:
    """The dict of tensors by name: under the first of `wrappers` that `root` holds, or `root` itself.

    Raises:
        WeightsError: that isn't a dict, or a key isn't the name of a tensor.
    """
    found = root
    if isinstance(root, dict):
        found = next((root[name] for name in wrappers if isinstance(root.get(name), dict)), root)
    if not isinstance(found, dict):
        raise WeightsError(f"expected a dict of tensors by name, got {describe(found)}")
    for name in found:
        if not isinstance(name, str):
            raise WeightsError(f"expected a dict of tensors by name, got the key {describe(name)}")
        check_name(name)
    return found


def check_total(sizes: Iterable[int], file_size: int) -> None:
    """Refuse tensors that share their bytes so often that a copy of each would take more than twice the file.

    Raises:
        WeightsError: they do.
    """
    total = sum(sizes)
    if total > 2 * file_size:
        raise WeightsError(f"expected tensors of at most twice the file's {file_size} bytes, got {total}")
