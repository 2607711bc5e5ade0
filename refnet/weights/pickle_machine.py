"""A pickle interpreter that can only build data.

A pickle is a program for a stack machine. Python's own interpreter imports and calls what the program names, and
allocates what it announces, so a file from elsewhere must never reach it. This one knows the instructions that weight
files use, and no others:

- a global name is looked up in a table of :class:`Stub`; nothing is ever imported;
- REDUCE and NEWOBJ call such a stub, BUILD hands a state to a :class:`Buildable`; both are refnet's own code;
- a length is believed only as far as the file reaches;
- every instruction is charged an upper bound of the memory that it takes, out of an :class:`Allowance` that grows
  with the file's size. This bounds the run time as well, for no instruction is free.

Instructions: https://docs.python.org/3/library/pickletools.html, protocols 2 to 5, without the opcodes that neither
torch.save nor NumPy's arrays produce (INST, OBJ, NEWOBJ_EX, EXT, POP, DUP, sets, out-of-band buffers and those of
protocol 0). The order of bytes is little-endian unless said otherwise.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO

from refnet.errors import WeightsError

PROTOCOLS = range(2, 6)

_SHORT = 4096  # bytes; longer text can't be a name, and is kept as bytes
_CHUNK = 1 << 20
_MARKS = 256  # open at the same time: containers within containers
_NAME = 200  # bytes of a module's or a global's name
_INTEGER = 16  # bytes; torch's magic number takes 10
_KEY = 1 << 63


class Allowance:
    """What is left of the memory, in bytes, that a file's programs may take beside its arrays.

    The base lets small files hold some thousand tensors; beyond that, what is built must not outweigh the file.
    """

    BASE = 16 << 20

    def __init__(self, size: int) -> None:
        self.total = self.BASE + size
        self.left = self.total

    def charge(self, cost: int) -> None:
        """Take `cost` bytes off. Raises WeightsError when they aren't there."""
        self.left -= cost
        if self.left < 0:
            raise WeightsError(
                f"expected objects of at most {self.total} bytes in all for a file of this size, got more"
            )


@dataclass(frozen=True, slots=True)
class Stub:
    """What a global name stands for.

    Attributes:
        name: the name, ``module.name``.
        call: what REDUCE and NEWOBJ do with the tuple of arguments; None if the name can't be called.
        value: what the name carries, for those who know it (a data type, say).
    """

    name: str
    call: Callable[[tuple[Any, ...]], object] | None = None
    value: object = None


class Buildable:
    """An object that BUILD may hand a state to."""

    __slots__ = ()

    def build(self, state: object) -> None:
        """Take the state in. Raises WeightsError for one that doesn't fit."""
        raise NotImplementedError


class OrderedMapping(dict[Any, Any], Buildable):
    """What ``collections.OrderedDict`` stands for. Its attributes (torch's ``_metadata``) are passed over."""

    def build(self, state: object) -> None:
        """Pass the attributes over, if that is what `state` is."""
        if not isinstance(state, dict):
            raise WeightsError(f"the attributes of an OrderedDict must be a dict, got {describe(state)}")


class Record(Buildable):
    """What an object of no interest stands for (the ``argparse.Namespace`` of a training script)."""

    __slots__ = ()

    def build(self, state: object) -> None:
        """Pass the state over."""


@dataclass(frozen=True, slots=True)
class LongText:
    """Text of more than some thousand bytes: an array's bytes, one character each, written under protocol 2.

    Attributes:
        latin1: the characters as bytes, or None if some are beyond U+00FF (then it is text indeed, and of no interest).
    """

    latin1: memoryview | None


def describe(value: object) -> str:
    """`value` in a few words, safe for values of any size and depth."""
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str | bytes):
        return repr(value) if len(value) <= 80 else f"{value[:80]!r}..."
    if isinstance(value, Stub):
        return f"the name {value.name}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, list | tuple | dict) else type(value).__name__


def arguments(name: str, values: tuple[Any, ...], *kinds: type | tuple[type, ...], optional: int = 0) -> list[Any]:
    """The arguments of a stub, checked: one of each of `kinds`, the last `optional` of which may be missing (None).

    Raises:
        WeightsError: their number or the type of one is another. A bool isn't taken for an int.
    """
    if not len(kinds) - optional <= len(values) <= len(kinds):
        raise WeightsError(f"{name}: expected {len(kinds)} arguments, got {len(values)}")
    for position, (value, kind) in enumerate(zip(values, kinds, strict=False)):
        accepted = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, accepted) or (isinstance(value, bool) and not {bool, object} & set(accepted)):
            names = " or ".join(one.__name__ for one in accepted)
            raise WeightsError(f"{name}: argument {position} must be {names}, got {describe(value)}")
    return [*values, *[None] * (len(kinds) - len(values))]


def _ordered(values: tuple[Any, ...]) -> OrderedMapping:
    (pairs,) = arguments("collections.OrderedDict", values, (list, dict), optional=1)
    mapping = OrderedMapping()
    for pair in pairs.items() if isinstance(pairs, dict) else pairs or ():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise WeightsError(f"collections.OrderedDict: expected pairs, got {describe(pair)}")
        _set(mapping, *pair)
    return mapping


def _record(values: tuple[Any, ...]) -> Record:
    arguments("argparse.Namespace", values)
    return Record()


def stubs(*entries: Stub) -> dict[str, Stub]:
    """A table for the machine, by name, that holds the containers of Python's library and `entries`."""
    library = (
        Stub("collections.OrderedDict", _ordered),
        Stub("collections.Counter", _ordered),
        Stub("argparse.Namespace", _record),
    )
    return {stub.name: stub for stub in (*library, *entries)}


def _set(mapping: dict[Any, Any], key: object, value: object) -> None:
    # Tuples as keys would be hashed through all their depth, which a few shared references make exponential.
    if isinstance(key, int) and not -_KEY <= key < _KEY:
        raise WeightsError("a dict's key must fit into 64 bits, got a longer integer")
    if not (key is None or isinstance(key, str | int)):
        raise WeightsError(f"a dict's key must be text or an integer, got {describe(key)}")
    if key in mapping:
        raise WeightsError(f"a dict's keys must differ, got {describe(key)} twice")
    mapping[key] = value


class PickleMachine:
    """Runs one pickle that starts where `file` stands.

    Args:
        file: a seekable stream.
        end: where the file, or the part of it that may be read, ends: an offset in bytes.
        what: what is being read, for messages.
        table: what the global names stand for; see :func:`stubs`.
        allowance: shared by all pickles of a file.
        persistent: what a persistent id stands for; None where there must be none.
    """

    def __init__(
        self,
        file: BinaryIO | BytesIO,
        *,
        end: int,
        what: str,
        table: Mapping[str, Stub],
        allowance: Allowance,
        persistent: Callable[[object], object] | None = None,
    ) -> None:
        self._file = file
        self._read_raw = file.read
        self._end = end
        self._what = what
        self._table = table
        self._allowance = allowance
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> object:
        """Execute up to STOP; `file` then stands behind it.

        Raises:
            WeightsError: an instruction, a name or an argument isn't one that weights need, or the file is damaged.
        """
        code = b""
        try:
            while True:
                code = self._read_raw(1)
                if code == b".":
                    return self._finish()
                instruction = _INSTRUCTIONS.get(code)
                if instruction is None:
                    raise WeightsError("expected an instruction that builds data, got " + _opcode_name(code))
                self._allowance.charge(16)
                instruction[1](self)
        except WeightsError as error:
            position = self._file.tell()
            raise WeightsError(f"{self._what}: before byte {position}, at {_opcode_name(code)}: {error}") from None

    def _finish(self) -> object:
        if self._marks or len(self._stack) != 1:
            raise WeightsError(f"expected one object at the end, got {len(self._stack)} and {len(self._marks)} marks")
        return self._stack.pop()

    # Reading

    def _read(self, count: int) -> bytes:
        """`count` bytes of a fixed-size operand."""
        content = self._read_raw(count)
        if len(content) != count:
            raise WeightsError("the file ends too early")
        return content

    def _long(self, count: int) -> memoryview:
        """`count` bytes, where the file itself says how many."""
        left = self._end - self._file.tell()
        if not 0 <= count <= left:
            raise WeightsError(f"expected at most the {left} bytes that are left, got a length of {count}")
        return memoryview(self._read(count))

    def _number(self, kind: str) -> Any:
        return struct.unpack(kind, self._read(struct.calcsize(kind)))[0]

    def _line(self) -> str:
        line = self._file.readline(_NAME + 1)
        if not line.endswith(b"\n"):
            raise WeightsError(f"expected a line of at most {_NAME} bytes, got a longer one or the end of the file")
        return self._decode(line[:-1], "ascii")

    def _decode(self, content: bytes | memoryview, encoding: str) -> str:
        try:
            return str(content, encoding)
        except UnicodeDecodeError as error:
            raise WeightsError(f"expected text in {encoding}, got {describe(bytes(content))}") from error

    # The stack

    def _push(self, value: object, cost: int) -> None:
        self._allowance.charge(cost)
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack:
            raise WeightsError("an operand is missing on the stack")
        return self._stack.pop()

    def _pop_mark(self) -> list[Any]:
        if not self._marks:
            raise WeightsError("a mark is missing on the stack")
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def _top(self, kind: type, name: str) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            found = describe(self._stack[-1]) if self._stack else "nothing"
            raise WeightsError(f"expected {name} on the stack, got {found}")
        return self._stack[-1]

    # Instructions

    def _proto(self) -> None:
        version = self._read(1)[0]
        if version not in PROTOCOLS:
            raise WeightsError(f"expected a protocol from {PROTOCOLS[0]} to {PROTOCOLS[-1]}, got {version}")

    def _frame(self) -> None:
        length, left = self._number("<Q"), self._end - self._file.tell()
        if length > left:
            raise WeightsError(f"expected a frame of at most the {left} bytes that are left, got {length}")

    def _mark(self) -> None:
        if len(self._marks) >= _MARKS:
            raise WeightsError(f"expected containers at most {_MARKS} deep, got more")
        self._allowance.charge(64)
        self._marks.append(self._stack)
        self._stack = []

    def _none(self) -> None:
        self._stack.append(None)

    def _true(self) -> None:
        self._stack.append(True)

    def _false(self) -> None:
        self._stack.append(False)

    def _integer(self, kind: str) -> None:
        self._push(self._number(kind), 32)

    def _long_integer(self) -> None:
        length = self._read(1)[0]
        if length > _INTEGER:
            raise WeightsError(f"expected an integer of at most {_INTEGER} bytes, got {length}")
        self._push(int.from_bytes(self._read(length), "little", signed=True), 48)

    def _float(self) -> None:
        self._push(self._number(">d"), 32)

    def _text(self, kind: str) -> None:
        length = self._number(kind)
        if length <= _SHORT:
            text = self._decode(self._long(length), "utf-8")
            self._push(text, 64 + 4 * len(text))
        else:
            self._push(self._long_text(length), 256)

    def _long_text(self, length: int) -> LongText:
        """Read piece by piece, so that no more than the result and one piece are held."""
        left = self._end - self._file.tell()
        if length > left:
            raise WeightsError(f"expected at most the {left} bytes that are left, got a length of {length}")
        result, filled, held = bytearray(length), 0, b""
        is_latin1 = True
        for start in range(0, length, _CHUNK):
            piece = held + self._read(min(_CHUNK, length - start))
            cut = len(piece)
            if start + _CHUNK < length and piece[-1] >= 0xC0:  # the first half of a two-byte character
                cut -= 1
            held = piece[cut:]
            try:
                content = piece[:cut].decode("utf-8").encode("latin-1")
            except UnicodeError:
                is_latin1 = False
                continue
            result[filled : filled + len(content)] = content
            filled += len(content)
        return LongText(memoryview(result)[:filled].toreadonly() if is_latin1 else None)

    def _string(self, kind: str) -> None:
        """A string of Python 2: text if short, as Latin-1; else bytes."""
        content = self._long(self._number(kind))
        if len(content) <= _SHORT:
            self._push(str(content, "latin-1"), 64 + 2 * len(content))
        else:
            self._push(content, 320)

    def _bytes(self, kind: str) -> None:
        self._push(self._long(self._number(kind)), 320)

    def _list(self) -> None:
        self._push([], 128)

    def _dict(self) -> None:
        self._push({}, 128)

    def _empty_tuple(self) -> None:
        self._stack.append(())

    def _tuple(self) -> None:
        items = self._pop_mark()
        self._push(tuple(items), 64 + 8 * len(items))

    def _tuple_of(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(items)), 64 + 8 * count)

    def _append(self) -> None:
        item = self._pop()
        self._top(list, "a list").append(item)

    def _appends(self) -> None:
        items = self._pop_mark()
        self._allowance.charge(16 * len(items))
        self._top(list, "a list").extend(items)

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._allowance.charge(160)
        _set(self._top(dict, "a dict"), key, value)

    def _set_items(self) -> None:
        items = self._pop_mark()
        if len(items) % 2:
            raise WeightsError("expected keys and values in pairs, got an odd number")
        self._allowance.charge(80 * len(items))
        mapping = self._top(dict, "a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            _set(mapping, key, value)

    def _put(self, index: int) -> None:
        self._allowance.charge(160)
        self._memo[index] = self._top(object, "an object")

    def _memoize(self) -> None:
        self._put(len(self._memo))

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise WeightsError(f"nothing is in memory under number {index}")
        self._stack.append(self._memo[index])

    def _global(self) -> None:
        module = self._line()
        self._push(self._look_up(module, self._line()), 16)

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise WeightsError(f"expected two names, got {describe(module)} and {describe(name)}")
        self._push(self._look_up(module, name), 16)

    def _look_up(self, module: str, name: str) -> Stub:
        stub = self._table.get(f"{module}.{name}")
        if stub is None:
            raise WeightsError(
                f"expected one of the {len(self._table)} names that weights need, got {describe(module)} {describe(name)}"
            )
        return stub

    def _reduce(self) -> None:
        values, stub = self._pop(), self._pop()
        if not isinstance(stub, Stub) or stub.call is None or not isinstance(values, tuple):
            raise WeightsError(f"expected a name to call and a tuple, got {describe(stub)} and {describe(values)}")
        self._charge_parts(values)
        self._stack.append(stub.call(values))

    def _build(self) -> None:
        state = self._pop()
        if isinstance(state, tuple):
            self._charge_parts(state)
        self._top(Buildable, "an object that takes a state").build(state)

    def _charge_parts(self, values: tuple[Any, ...]) -> None:
        """Pay for what a stub may make of `values`: a mapping of pairs, bytes of text, an object of its own."""
        pairs = sum(len(value) for value in values if isinstance(value, list | dict))
        text = sum(len(value) for value in values if isinstance(value, str))
        self._allowance.charge(256 + 256 * pairs + text)

    def _persistent_id(self) -> None:
        key = self._pop()
        if self._persistent is None:
            raise WeightsError(f"expected no persistent id in this file, got {describe(key)}")
        self._push(self._persistent(key), 160)


def _opcode_name(code: bytes) -> str:
    if not code:
        return "the end of the file"
    if code in _INSTRUCTIONS:
        return _INSTRUCTIONS[code][0]
    import pickletools  # only its table of names, and only for a message

    letter = code.decode("latin-1")
    return next((info.name for info in pickletools.opcodes if info.code == letter), f"byte 0x{code[0]:02x}")


# STOP, ".", is part of the loop
_INSTRUCTIONS: dict[bytes, tuple[str, Callable[[PickleMachine], None]]] = {
    b"\x80": ("PROTO", PickleMachine._proto),
    b"\x95": ("FRAME", PickleMachine._frame),
    b"(": ("MARK", PickleMachine._mark),
    b"N": ("NONE", PickleMachine._none),
    b"\x88": ("NEWTRUE", PickleMachine._true),
    b"\x89": ("NEWFALSE", PickleMachine._false),
    b"J": ("BININT", lambda machine: machine._integer("<i")),
    b"K": ("BININT1", lambda machine: machine._integer("<B")),
    b"M": ("BININT2", lambda machine: machine._integer("<H")),
    b"\x8a": ("LONG1", PickleMachine._long_integer),
    b"G": ("BINFLOAT", PickleMachine._float),
    b"X": ("BINUNICODE", lambda machine: machine._text("<I")),
    b"\x8c": ("SHORT_BINUNICODE", lambda machine: machine._text("<B")),
    b"\x8d": ("BINUNICODE8", lambda machine: machine._text("<Q")),
    b"T": ("BINSTRING", lambda machine: machine._string("<i")),
    b"U": ("SHORT_BINSTRING", lambda machine: machine._string("<B")),
    b"B": ("BINBYTES", lambda machine: machine._bytes("<I")),
    b"C": ("SHORT_BINBYTES", lambda machine: machine._bytes("<B")),
    b"\x8e": ("BINBYTES8", lambda machine: machine._bytes("<Q")),
    b"\x96": ("BYTEARRAY8", lambda machine: machine._bytes("<Q")),
    b"]": ("EMPTY_LIST", PickleMachine._list),
    b"}": ("EMPTY_DICT", PickleMachine._dict),
    b")": ("EMPTY_TUPLE", PickleMachine._empty_tuple),
    b"t": ("TUPLE", PickleMachine._tuple),
    b"\x85": ("TUPLE1", lambda machine: machine._tuple_of(1)),
    b"\x86": ("TUPLE2", lambda machine: machine._tuple_of(2)),
    b"\x87": ("TUPLE3", lambda machine: machine._tuple_of(3)),
    b"a": ("APPEND", PickleMachine._append),
    b"e": ("APPENDS", PickleMachine._appends),
    b"s": ("SETITEM", PickleMachine._set_item),
    b"u": ("SETITEMS", PickleMachine._set_items),
    b"q": ("BINPUT", lambda machine: machine._put(machine._number("<B"))),
    b"r": ("LONG_BINPUT", lambda machine: machine._put(machine._number("<I"))),
    b"\x94": ("MEMOIZE", PickleMachine._memoize),
    b"h": ("BINGET", lambda machine: machine._get(machine._number("<B"))),
    b"j": ("LONG_BINGET", lambda machine: machine._get(machine._number("<I"))),
    b"c": ("GLOBAL", PickleMachine._global),
    b"\x93": ("STACK_GLOBAL", PickleMachine._stack_global),
    b"R": ("REDUCE", PickleMachine._reduce),
    b"\x81": ("NEWOBJ", PickleMachine._reduce),
    b"b": ("BUILD", PickleMachine._build),
    b"Q": ("BINPERSID", PickleMachine._persistent_id),
}
