"""A stand-in for CuPy on machines without a GPU: a strict array type, and the functions of CuPy that refnet uses.

This module is the namespace, as ``cupy`` is; its arrays are NumPy's within. What CuPy refuses is refused, so that code
which runs here runs there::

    from refnet.kernels.emulator import standin as xp

    x = xp.asarray(np.ones(3, np.float32))     # an upload
    np.asarray(x), x + np.ones(3), x[np.arange(2)]  # TypeError, each
    with xp.counting() as counts:
        float(x.sum())
    counts.synchronizations                      # 1

What CuPy lets pass because it converts silently is refused too where it would hide a copy: ``np.exp(x)``, and NumPy's
arrays as an index. Functions that aren't here raise AttributeError; they are added when refnet needs them.

A GPU works behind the host's back, and the host waits for it only when it must know a value. Each such wait is counted
with the line that brought it about, and what a copy that wasn't waited for will hold is NaN (or 255s) until then.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from refnet import arrays


@dataclass(slots=True)
class Counts:
    """What happened within a block of :func:`counting`.

    Attributes:
        synchronizations: how often the host waited for the device.
        places: the line, ``file:number``, that brought each of these about.
        uploads: copies from the host to the device; nobody waits for them.
        downloads: copies to the host, whether they were waited for or not.
        operations: the namespace's own functions and operators, each a kernel or a few of CuPy's.
        launches: kernels of refnet's, by name and how often.
    """

    synchronizations: int = 0
    places: list[str] = field(default_factory=list)
    uploads: int = 0
    downloads: int = 0
    operations: int = 0
    launches: dict[str, int] = field(default_factory=dict)


class _Stream:
    """What the device has yet to do: copies to the host that nobody has waited for, in the order they were asked for."""

    def __init__(self) -> None:
        self.issued = self.finished = 0
        self.copies: list[tuple[int, np.ndarray, np.ndarray]] = []
        self.counts: list[Counts] = []

    def note(self, *, uploads: int = 0, downloads: int = 0, operations: int = 0) -> None:
        self.issued += 1
        for counts in self.counts:
            counts.uploads += uploads
            counts.downloads += downloads
            counts.operations += operations

    def copy(self, source: np.ndarray, target: np.ndarray) -> None:
        """`target` receives what `source` holds now, when somebody waits for it."""
        self.note(downloads=1)
        self.copies.append((self.issued, target, source.copy()))
        target.reshape(-1).view(np.uint8).fill(0xFF)  # NaN for floating point

    def wait(self, until: int | None = None) -> None:
        """Let the device finish what was issued up to `until`, or all; counted unless that is done already."""
        until = self.issued if until is None else until
        if until <= self.finished:
            return
        for counts in self.counts:
            counts.synchronizations += 1
            counts.places.append(_caller())
        self.finished = until
        for _, target, source in (entry for entry in self.copies if entry[0] <= until):
            target[...] = source
        self.copies = [entry for entry in self.copies if entry[0] > until]

    def wait_for_all(self) -> None:
        """As :meth:`wait`, but a value is computed for it, so it is counted in any case."""
        self.issued += 1
        self.wait()


_stream = _Stream()


def _caller() -> str:
    """The innermost line that is neither here, nor in :mod:`refnet.arrays`, nor in a library that wraps functions."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if frame.filename not in (__file__, arrays.__file__) and path.is_file() and "site-packages" not in path.parts:
            return f"{path.name}:{frame.lineno}"
    return "?"


@contextmanager
def counting() -> Iterator[Counts]:
    """Count what happens within the block, in all threads."""
    counts = Counts()
    _stream.counts.append(counts)
    try:
        yield counts
    finally:
        _stream.counts = [other for other in _stream.counts if other is not counts]


class ndarray:
    """CuPy's array, strictly: it meets no NumPy array but by :func:`asarray` and :meth:`get`."""

    refnet_namespace = __name__
    """Where :func:`refnet.arrays.namespace` finds this module."""
    __slots__ = ("__weakref__", "_host")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: np.ndarray) -> None:
        self._host = host

    # what is known without asking the device

    @property
    def shape(self) -> tuple[int, ...]:
        return self._host.shape

    @property
    def ndim(self) -> int:
        return self._host.ndim

    @property
    def size(self) -> int:
        return self._host.size

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._host.dtype

    @property
    def strides(self) -> tuple[int, ...]:
        return self._host.strides

    @property
    def nbytes(self) -> int:
        return self._host.nbytes

    @property
    def itemsize(self) -> int:
        return self._host.itemsize

    @property
    def flags(self) -> Any:
        return self._host.flags

    @property
    def data(self) -> SimpleNamespace:
        """Its memory; ``data.ptr`` is the address."""
        return SimpleNamespace(ptr=self._host.ctypes.data)

    @property
    def T(self) -> ndarray:
        return ndarray(self._host.T)

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[ndarray]:
        return (self[index] for index in range(len(self)))

    # to the host

    def get(
        self, stream: None = None, order: str = "C", out: np.ndarray | None = None, blocking: bool = True
    ) -> np.ndarray:
        """The values on the host; unless `blocking`, `out` will hold them once somebody has waited."""
        if out is None:
            out = np.empty(self.shape, self.dtype)
        if (out.shape, out.dtype) != (self.shape, self.dtype) or not out.flags.c_contiguous:
            raise ValueError(f"get: out must be C-contiguous {self.dtype} {self.shape}, got {out.dtype} {out.shape}")
        _stream.copy(self._host, out)
        if blocking:
            _stream.wait_for_all()
        return out

    def item(self, *index: int) -> Any:
        """One value as a Python number."""
        _stream.wait_for_all()
        return self._host.item(*index)

    def tolist(self) -> Any:
        """The values as Python's numbers."""
        return self.get().tolist()

    def tobytes(self) -> bytes:
        """The values' bytes."""
        return self.get().tobytes()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        _stream.wait_for_all()
        return self._host.__index__()

    def __bool__(self) -> bool:
        _stream.wait_for_all()
        return bool(self._host)

    def __repr__(self) -> str:
        return f"standin.{self.get()!r}"

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """A NumPy scalar to the left of an operator is a number; all else that NumPy would do here is refused."""
        own = globals().get(ufunc.__name__)
        if method != "__call__" or kwargs or not isinstance(own, _Ufunc) or not isinstance(inputs[0], np.generic):
            kinds = ", ".join(type(value).__name__ for value in inputs)
            raise TypeError(f"Unsupported type: numpy.{ufunc.__name__} of {kinds}")
        return own(*inputs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"Unsupported type: {function.__module__}.{function.__name__} of an array on the device")

    # from the host

    def set(self, array: np.ndarray) -> None:
        """Copy `array`, of this shape and type, from the host."""
        if (array.shape, array.dtype) != (self.shape, self.dtype):
            raise ValueError(f"set: expected {self.dtype} {self.shape}, got {array.dtype} {array.shape}")
        _stream.note(uploads=1)
        self._host[...] = array

    # indexing

    def __getitem__(self, index: Any) -> ndarray:
        return ndarray(np.asarray(self._host[_indices(index)]))

    def __setitem__(self, index: Any, value: Any) -> None:
        self._host[_indices(index)] = _inside(value)

    # operators

    def __abs__(self) -> ndarray:
        result: ndarray = absolute(self)
        return result

    def __neg__(self) -> ndarray:
        result: ndarray = negative(self)
        return result

    def __invert__(self) -> ndarray:
        result: ndarray = invert(self)
        return result

    # methods

    def astype(self, dtype: Any, order: str = "K", casting: Any = "unsafe", copy: bool = True) -> ndarray:
        """The values in another type."""
        if not copy and self.dtype == dtype:
            return self
        converted: ndarray = _apply(np.ndarray.astype, self, dtype, casting=casting)
        return converted

    def view(self, dtype: Any = None) -> ndarray:
        """The same memory, read as another type."""
        return ndarray(self._host.view() if dtype is None else self._host.view(dtype))

    def reshape(self, *shape: Any) -> ndarray:
        """The same values under another shape."""
        return ndarray(self._host.reshape(*shape))

    def ravel(self) -> ndarray:
        """The values in a row."""
        return ndarray(self._host.ravel())

    def transpose(self, *axes: Any) -> ndarray:
        """The axes in another order."""
        return ndarray(self._host.transpose(*axes))

    def swapaxes(self, axis1: int, axis2: int) -> ndarray:
        """Two axes exchanged."""
        return ndarray(self._host.swapaxes(axis1, axis2))

    def squeeze(self, axis: Any = None) -> ndarray:
        """Without axes of one element."""
        return ndarray(self._host.squeeze(axis))

    def copy(self, order: str = "C") -> ndarray:
        """The values in new memory."""
        copied: ndarray = _apply(np.ndarray.copy, self)
        return copied

    def fill(self, value: Any) -> None:
        """Write `value` everywhere."""
        _stream.note(operations=1)
        self._host.fill(_inside(value))


def _inside(value: Any) -> Any:
    """NumPy's array within one of ours; numbers, types and shapes as they are.

    Raises:
        TypeError: it is, or holds, an array of NumPy's.
    """
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, list | tuple):
        return type(value)(_inside(entry) for entry in value)
    return value


def _outside(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(np.asarray(value))
    return type(value)(_outside(entry) for entry in value) if isinstance(value, list | tuple) else value


def _apply(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """One of NumPy's functions over our arrays, counted as an operation of the device."""
    _stream.note(operations=1)
    out = kwargs.get("out")
    with np.errstate(all="ignore"):  # a GPU doesn't warn
        result = function(*_inside(args), **{name: _inside(value) for name, value in kwargs.items()})
    return _outside(result) if out is None else out


def _indices(index: Any) -> Any:
    """An index for NumPy's array; a boolean mask's size must be known, so the host waits for it.

    An Ellipsis at the end keeps a view of one element an array.
    """
    _stream.note(operations=1)
    parts = index if isinstance(index, tuple) else (index,)
    advanced = False
    found: list[Any] = []
    for part in parts:
        if isinstance(part, ndarray):
            if part.dtype.kind not in "biu":
                raise IndexError("arrays used as indices must be of integer (or boolean) type")
            if part.dtype.kind == "b":
                _stream.wait_for_all()
            found.append(part._host)
            advanced = True
        elif isinstance(part, list):
            if np.asarray(part).dtype.kind != "i" and part:
                raise TypeError(f"Unsupported index {part!r}")
            _stream.note(uploads=1)
            found.append(np.asarray(part, np.int64))
            advanced = True
        elif part is None or part is Ellipsis or isinstance(part, slice | int | np.integer):
            found.append(part)
        else:
            raise TypeError(f"Unsupported index of type {type(part)}")
    if not advanced and Ellipsis not in found:
        found.append(Ellipsis)
    return tuple(found)


class _Ufunc:
    """An element-wise function."""

    def __init__(self, function: Any) -> None:
        self._function, self.__name__ = function, function.__name__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _apply(self._function, *args, **kwargs)


class _AddUfunc(_Ufunc):
    """Addition; ``at`` is the one method that CuPy gives it, for the types that CUDA adds atomically."""

    def at(self, a: ndarray, indices: Any, b: Any) -> None:
        """Add `b` to the elements of `a` at `indices`, as often as they occur there."""
        if a.dtype not in (np.float16, np.float32, np.float64, np.int32, np.uint32, np.uint64):
            raise TypeError(f"scatter_add only supports float16, 32, 64, int32, uint32, uint64, got {a.dtype}")
        np.add.at(a._host, _indices(indices), _inside(b))


UFUNCS = (
    "absolute", "abs", "arctan", "bitwise_and", "bitwise_or", "bitwise_xor", "cbrt", "ceil", "copysign", "cos",
    "divide", "equal", "exp", "exp2", "expm1", "floor", "floor_divide", "fmax", "fmin", "fmod", "greater",
    "greater_equal", "hypot", "invert", "isfinite", "isinf", "isnan", "left_shift", "less", "less_equal", "log",
    "log10", "log1p", "log2", "logaddexp", "logical_and", "logical_not", "logical_or", "logical_xor", "maximum",
    "minimum", "multiply", "negative", "not_equal", "power", "reciprocal", "remainder", "right_shift", "rint",
    "sign", "signbit", "sin", "sqrt", "square", "subtract", "tanh", "true_divide", "trunc",
)  # fmt: skip
"""Element-wise functions."""

FUNCTIONS = (
    "all", "any", "argmax", "argmin", "around", "ascontiguousarray", "broadcast_arrays", "broadcast_to", "clip",
    "concatenate", "copy", "cumprod", "cumsum", "diff", "dot", "einsum", "expand_dims", "flip",
    "full_like", "hstack", "linspace", "matmul", "max", "mean", "min", "moveaxis", "ones_like", "pad", "prod",
    "ravel", "repeat", "reshape", "roll", "round", "searchsorted", "split", "squeeze", "stack", "std", "sum",
    "swapaxes", "take", "take_along_axis", "tensordot", "tile", "transpose", "tril", "triu", "var", "vstack",
    "zeros_like",
)  # fmt: skip
"""Functions that take arrays as their first argument, or a sequence of them."""

METHODS = (
    "all", "any", "argmax", "argmin", "argsort", "clip", "cumsum", "dot", "max", "mean", "min", "nonzero", "prod",
    "repeat", "round", "std", "sum", "take", "var",
)  # fmt: skip
"""Methods that are the functions of the same names."""

CREATORS = ("arange", "eye", "full", "identity", "ones", "zeros")
"""Functions that make arrays of numbers and shapes."""

WAITING = ("argwhere", "compress", "extract", "flatnonzero", "nonzero", "unique")
"""Functions whose result has a size that the device must tell first."""


def _function(name: str, *, waits: bool = False) -> Callable[..., Any]:
    function = getattr(np, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        if waits:
            _stream.wait_for_all()
        return _apply(function, *args, **kwargs)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = f"As numpy.{name}."
    return call


def _method(name: str) -> Callable[..., Any]:
    def call(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        return globals()[name](self, *args, **kwargs)

    call.__name__ = name
    return call


def _operator(name: str, ufunc: str, *, reflected: bool = False, in_place: bool = False) -> Callable[..., Any]:
    def call(self: ndarray, other: Any) -> Any:
        if getattr(other, "__array_ufunc__", self) is None:  # the other side, a Tensor, wants to do it
            return NotImplemented
        operands = (other, self) if reflected else (self, other)
        return globals()[ufunc](*operands, **({"out": self} if in_place else {}))

    call.__name__ = name
    return call


BINARY = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "power", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor",
    "lshift": "left_shift", "rshift": "right_shift", "matmul": "matmul",
}  # fmt: skip
COMPARISONS = {
    "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal", "ne": "not_equal",
}  # fmt: skip

CONSTANTS = (
    "bool_", "float16", "float32", "float64", "inf", "int8", "int16", "int32", "int64", "nan", "newaxis", "pi", "uint8",
    "uint16", "uint32", "uint64",
)  # fmt: skip
"""NumPy's own, in CuPy too."""

globals().update({name: getattr(np, name) for name in CONSTANTS})
globals().update({name: _Ufunc(getattr(np, name)) for name in UFUNCS})
globals().update({name: _function(name) for name in (*FUNCTIONS, *CREATORS)})
globals().update({name: _function(name, waits=True) for name in WAITING})
for _name in METHODS:
    setattr(ndarray, _name, _method(_name))
for _name, _own in BINARY.items():
    setattr(ndarray, f"__{_name}__", _operator(_name, _own))
    setattr(ndarray, f"__r{_name}__", _operator(_name, _own, reflected=True))
    setattr(ndarray, f"__i{_name}__", _operator(_name, _own, in_place=True))
for _name, _own in COMPARISONS.items():
    setattr(ndarray, f"__{_name}__", _operator(_name, _own))

add = _AddUfunc(np.add)
absolute: Any
invert: Any
negative: Any


def asarray(a: Any, dtype: Any = None, order: str | None = None) -> ndarray:
    """`a` on the device: an array that is there already, one of NumPy's, or numbers, which are uploaded."""
    if isinstance(a, ndarray):
        same = (dtype is None or a.dtype == dtype) and (order in (None, "K", "A") or a.flags.c_contiguous)
        return a if same else _apply(np.asarray, a, dtype=dtype, order=order)
    _stream.note(uploads=1)
    if isinstance(a, list | tuple):
        a = _inside(a)
    host = np.array(a, dtype=dtype, order="C")
    if host.dtype.kind not in "biuf":
        raise ValueError(f"Unsupported dtype {host.dtype}")
    return ndarray(host)


def array(a: Any, dtype: Any = None, copy: bool = True) -> ndarray:
    """A new array on the device."""
    return asarray(a, dtype).copy() if isinstance(a, ndarray) else asarray(a, dtype)


def empty(shape: Any, dtype: Any = np.float64) -> ndarray:
    """An array that nobody has written to: NaN, or -1, throughout."""
    _stream.note(operations=1)
    host = np.empty(shape, dtype)
    host.reshape(-1).view(np.uint8).fill(0xFF)
    return ndarray(host)


def empty_like(a: ndarray, dtype: Any = None) -> ndarray:
    """An array of the shape of `a` that nobody has written to."""
    return empty(a.shape, a.dtype if dtype is None else dtype)


def asnumpy(a: Any) -> np.ndarray:
    """`a` on the host."""
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def where(condition: ndarray, *choices: Any) -> Any:
    """A choice between two, element by element; with one argument, where it is true, for which the host waits."""
    if not choices:
        _stream.wait_for_all()
    return _apply(np.where, condition, *choices)


def argsort(a: ndarray, axis: int = -1, kind: str | None = None) -> ndarray:
    """The stable order; CuPy knows no other."""
    if kind not in (None, "stable"):
        raise ValueError(f"kind can only be None or 'stable', got {kind!r}")
    result: ndarray = _apply(np.argsort, a, axis=axis, kind="stable")
    return result


def sort(a: ndarray, axis: int = -1, kind: str | None = None) -> ndarray:
    """`a` sorted."""
    if kind not in (None, "stable"):
        raise ValueError(f"kind can only be None or 'stable', got {kind!r}")
    result: ndarray = _apply(np.sort, a, axis=axis, kind="stable")
    return result


def put_along_axis(a: ndarray, indices: ndarray, values: Any, axis: int) -> None:
    """Write `values` where `indices` say, along an axis."""
    _apply(np.put_along_axis, a, indices, values, axis)


def copyto(target: ndarray, source: Any, where: Any = True) -> None:
    """Write `source` into `target`."""
    _apply(np.copyto, target, source, where=where)


class Event:
    """A point in the device's work."""

    def __init__(self, **_: Any) -> None:
        self._point = 0

    def record(self, stream: None = None) -> None:
        """Let it be the present point."""
        _stream.note()
        self._point = _stream.issued

    def synchronize(self) -> None:
        """Wait until the device has got there."""
        _stream.wait(self._point)

    @property
    def done(self) -> bool:
        """Whether the device has got there."""
        return self._point <= _stream.finished


cuda = SimpleNamespace(
    Event=Event,
    alloc_pinned_memory=bytearray,
    runtime=SimpleNamespace(getDeviceCount=lambda: 1),
    get_current_stream=lambda: SimpleNamespace(synchronize=_stream.wait_for_all, ptr=0),
)
"""``cupy.cuda``."""


def load(program: Any, name: str) -> Callable[..., None]:
    """The kernel `name` of `program` in the emulator; it refuses NumPy's arrays, and its launches are counted."""
    from refnet.kernels.emulator.module import load as emulate

    kernel = emulate(program, name)

    def launch(grid: Sequence[int], block: Sequence[int], arguments: Sequence[Any], **options: Any) -> None:
        for index, value in enumerate(arguments):
            if isinstance(value, np.ndarray):
                raise TypeError(f"{name}: argument {index}: Unsupported type {type(value)}")
        _stream.note()
        for counts in _stream.counts:
            counts.launches[name] = counts.launches.get(name, 0) + 1
        kernel(grid, block, arguments, **options)

    return launch


def __getattr__(name: str) -> Any:
    raise AttributeError(f"{sys.modules[__name__].__name__}: the stand-in for CuPy has no {name!r}")
