"""Hostile files of PyTorch's and Detectron's formats: none is executed, each is refused, soon and in little memory.

A program of a pickle is tried in each of the three kinds of file that hold one. Those that would run something are
first handed to Python's own interpreter, which shows that they would.
"""

import contextlib
import copyreg
import json
import pickle
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refnet.weights.pickle_machine import Allowance
from tests.weights.torch_bytes import (
    MAGIC,
    NAMES,
    SYS_INFO,
    Archive,
    Call,
    Record,
    Storage,
    archive,
    pickled,
    stream,
    tensor,
    zipped,
)

HEAD = b"\x80\x02"
ROOT = Path(__file__).parent.parent.parent
CONSTANT = Allowance.BASE + (2 << 20)  # the objects that a small file may make, and what any program needs


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return named(module, name) + b"(" + b"".join(arguments) + b"tR"


def integer(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def storage_id(*parts: bytes) -> bytes:
    return b"(" + text("storage") + b"".join(parts) + b"tQ"


# Programs that make a folder, given its path; Python's interpreter runs them.

RUN: dict[str, Callable[[str], bytes]] = {
    "os.system by GLOBAL": lambda path: HEAD + call("os", "system", text(f"mkdir {path}")) + b".",
    "posix.mkdir by GLOBAL": lambda path: HEAD + call("posix", "mkdir", text(path)) + b".",
    "eval by GLOBAL": lambda path: HEAD + call("builtins", "eval", text(f"__import__('os').mkdir({path!r})")) + b".",
    "exec, as Python 2 calls it": lambda path: (
        HEAD + call("__builtin__", "exec", text(f"import os; os.mkdir({path!r})")) + b"."
    ),
    "os.system by STACK_GLOBAL": lambda path: (
        b"\x80\x04" + short("os") + short("system") + b"\x93" + text(f"mkdir {path}") + b"\x85R."
    ),
    "a name with dots by STACK_GLOBAL": lambda path: (
        b"\x80\x04" + short("shutil") + short("os.mkdir") + b"\x93" + text(path) + b"\x85R."
    ),
    "os.system by INST": lambda path: HEAD + b"(" + text(f"mkdir {path}") + b"ios\nsystem\n.",
    "os.mkdir by OBJ": lambda path: HEAD + b"(" + named("os", "mkdir") + text(path) + b"o.",
    "os.mkdir by EXT1": lambda path: HEAD + b"\x82\xf0" + text(path) + b"\x85R.",
    "getattr of an imported module": lambda path: (
        HEAD
        + call("builtins", "getattr", call("importlib", "import_module", text("os")), text("mkdir"))
        + text(path)
        + b"\x85R."
    ),
    "an attribute that BUILD calls": lambda path: (
        HEAD
        + call("collections", "OrderedDict")
        + b"}"
        + text("__setstate__")
        + named("os", "mkdir")
        + b"sb"
        + text(path)
        + b"b."
    ),
    "a call in a persistent id": lambda path: HEAD + call("os", "mkdir", text(path)) + b"Q.",
    "a call in a dict of weights": lambda path: HEAD + b"}" + text("a") + call("os", "mkdir", text(path)) + b"s.",
    "a call whose result is dropped": lambda path: HEAD + call("os", "mkdir", text(path)) + b"0}.",
    "map, consumed by list": lambda path: (
        HEAD + call("builtins", "list", call("builtins", "map", named("os", "mkdir"), b"(" + text(path) + b"t")) + b"."
    ),
}

# Programs that do other harm, and what the refusal says of each.

_LAUGHS = b"".join(b"]q" + bytes([n + 1]) + (b"h" + bytes([n]) + b"a") * 10 for n in range(60))
_DEEP_KEY = b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(60))
_DTYPE = call("numpy", "dtype", text("f4"), b"\x89", b"\x88")
_ARRAY = call("numpy.core.multiarray", "_reconstruct", named("numpy", "ndarray"), integer(0) + b"\x85", text("b"))


def _state(shape: bytes, kind: bytes = _DTYPE, payload: bytes = b"C\x04abcd") -> bytes:
    return HEAD + b"}" + text("a") + _ARRAY + b"(" + integer(1) + shape + kind + b"\x89" + payload + b"tbs."


PROGRAMS: dict[str, tuple[bytes, str]] = {
    "loading of bytes as a file of torch": (
        HEAD + call("torch.storage", "_load_from_bytes", b"C\x04abcd") + b".",
        "names that weights need, got 'torch.storage' '_load_from_bytes'",
    ),
    "a function of torch that imports": (
        HEAD + call("torch._utils", "_import_dotted_name", text("os.system")) + b".",
        "names that weights need",
    ),
    "a file's loader": (
        HEAD + call("torch.serialization", "load", text("/etc/passwd")) + b".",
        "names that weights need",
    ),
    "NumPy's runner of code": (
        HEAD + call("numpy.testing._private.utils", "runstring", text("1"), b"}") + b".",
        "names that weights need",
    ),
    "a partial function": (
        HEAD + call("functools", "partial", named("os", "system")) + b".",
        "names that weights need",
    ),
    "NEWOBJ of a class": (HEAD + named("subprocess", "Popen") + text("ls") + b"\x85\x81.", "names that weights need"),
    "NEWOBJ_EX": (HEAD + b"NN}\x92.", "got NEWOBJ_EX"),
    "EXT4": (HEAD + b"\x84\1\0\0\0.", "got EXT4"),
    "a persistent id as text": (HEAD + b"Pmodule\n.", "got PERSID"),
    "REDUCE of text": (HEAD + text("os.system") + b")R.", "expected a name to call"),
    "REDUCE of a name that can't be called": (HEAD + named("numpy", "ndarray") + b")R.", "expected a name to call"),
    "REDUCE without a tuple": (HEAD + named("collections", "OrderedDict") + b"]R.", "expected a name to call"),
    "REDUCE of an allowed result": (HEAD + call("collections", "OrderedDict") + b")R.", "expected a name to call"),
    "BUILD of a plain dict": (HEAD + b"}}b.", "expected an object that takes a state"),
    "BUILD of a name": (HEAD + named("collections", "OrderedDict") + b"}b.", "expected an object that takes a state"),
    "BUILD with slots": (
        HEAD + call("collections", "OrderedDict") + b"N}" + text("keys") + b"Ns\x86b.",
        "must be a dict, got tuple",
    ),
    "codecs other than latin1": (
        HEAD + call("_codecs", "encode", text("a"), text("zip")) + b".",
        "the encoding latin1",
    ),
    "codecs of bytes": (HEAD + call("_codecs", "encode", b"C\1a", text("latin1")) + b".", "must be str or LongText"),
    "too many arguments": (HEAD + call("collections", "OrderedDict", b"]", b"]") + b".", "expected 1 arguments, got 2"),
    "an OrderedDict of no pairs": (
        HEAD + call("collections", "OrderedDict", b"]Na") + b".",
        "expected pairs, got None",
    ),
    "a data type of objects": (HEAD + call("numpy", "dtype", text("O8")) + b".", "expected numbers"),
    "a data type by its name": (HEAD + call("numpy", "dtype", text("os.system")) + b".", "expected numbers"),
    "a data type of a structure": (
        HEAD + _DTYPE + b"(" + integer(3) + text("<") + b"N" + text("a") + b"\x85}tb.",
        "got a structure",
    ),
    "a data type without an order": (HEAD + _DTYPE + b"(" + integer(3) + text("?") + b"NNNtb.", "an order of bytes"),
    "an array of another class": (
        HEAD
        + call("numpy.core.multiarray", "_reconstruct", named("collections", "OrderedDict"), b")", text("b"))
        + b".",
        "expected numpy.ndarray",
    ),
    "an array longer than its bytes": (_state(integer(2**40) + b"\x85"), "expected 4398046511104 bytes"),
    "an array of negative extents": (_state(integer(-1) + integer(-1) + b"\x86"), "none negative"),
    "an array whose size overflows": (_state((integer(2**32) + integer(2**32)) + b"\x86"), "fits in 2\\^63 bytes"),
    "an array of nothing that is huge": (_state(integer(0) + integer(2**63) + b"\x86"), "fits in 2\\^63 bytes"),
    "an array of a hundred axes": (_state(b"(" + integer(1) * 100 + b"t"), "at most 32 axes"),
    "an array of fractional extents": (_state(b"G\x3f\xf0\0\0\0\0\0\0\x85"), "a tuple of integers"),
    "an array of wide characters": (_state(integer(1) + b"\x85", payload=text("\u0100bcd")), "beyond U\\+00FF"),
    "truth that is neither": (
        _state(integer(4) + b"\x85", call("numpy", "dtype", text("b1"), b"\x89", b"\x88")),
        "expected bools of 0 or 1",
    ),
    "a length of 4 EiB": (HEAD + b"\x8e" + struct.pack("<Q", 2**62) + b".", "got a length of 4611686018427387904"),
    "a byte array of 4 GiB": (HEAD + b"\x96" + struct.pack("<Q", 2**32) + b".", "got a length of 4294967296"),
    "text of 4 EiB": (HEAD + b"\x8d" + struct.pack("<Q", 2**62) + b".", "got a length of 4611686018427387904"),
    "text of 4 GiB": (HEAD + b"X\xff\xff\xff\xff.", "got a length of 4294967295"),
    "a string of negative length": (HEAD + b"T\xff\xff\xff\xff.", "got a length of -1"),
    "a frame of 16 EiB": (b"\x80\x04\x95" + b"\xff" * 8 + b".", "expected a frame"),
    "an integer of 255 bytes": (HEAD + b"\x8a\xff" + b"\x7f" * 255 + b".", "an integer of at most 16 bytes"),
    "an integer of 2 GiB": (HEAD + b"\x8b\xff\xff\xff\x7f" + b"\x7f" * 99 + b".", "got LONG4"),
    "an integer in a million digits": (HEAD + b"I" + b"9" * 1_000_000 + b"\n.", "got INT"),
    "a name without an end": (HEAD + b"c" + b"a" * 1_000_000, "a line of at most 200 bytes"),
    "a memo of 4 billion entries": (HEAD + b"Nr\xff\xff\xff\xff.", "expected a dict of tensors"),
    "nothing in the memo": (HEAD + b"h\x05.", "nothing is in memory under number 5"),
    "lists of lists, 10 to the 60": (HEAD + b"]q\0" + _LAUGHS + b".", "expected one object at the end, got 61"),
    "lists of lists as weights": (HEAD + b"}" + text("a") + b"]q\0" + _LAUGHS.replace(b"]", b"0]") + b"s.", "got POP"),
    "a key of 2 to the 60 parts": (HEAD + b"}" + text("a") + b"q\0" + b"0Ns.", "got POP"),
    "a nested key": (HEAD + b"}Nq\0\x85q\0" + b"h\0h\0\x86q\0" * 1 + b"\x86Ns.", "must be text or an integer"),
    "a key that is a list": (HEAD + b"}]Ns.", "must be text or an integer, got list"),
    "a key beyond 64 bits": (HEAD + b"}" + integer(2**100) + b"Ns.", "must fit into 64 bits"),
    "a key twice": (HEAD + b"}" + (text("a") + b"N") * 1 + b"s" + text("a") + b"Ns.", "must differ, got 'a' twice"),
    "an item without a value": (HEAD + b"}(" + text("a") + b"u.", "in pairs"),
    "an item of a tuple": (HEAD + b")NNs.", "expected a dict on the stack"),
    "appending to a dict": (HEAD + b"}Na.", "expected a list on the stack"),
    "a list that holds itself": (HEAD + b"]q\0h\0a.", "expected a dict of tensors by name, got list"),
    "a dict that holds itself": (HEAD + b"}q\0" + text("model") + b"h\0s.", "expected a"),
    "a tuple 250,000 deep": (HEAD + b"N" + b"\x85" * 250_000 + b".", "expected objects of at most"),
    "a million open marks": (HEAD + b"(" * 1_000_000 + b".", "at most 256 deep"),
    "200,000 lists": (HEAD + b"(" + b"]" * 200_000 + b"l.", "expected objects of at most"),
    "200,000 dicts": (HEAD + b"(" + b"}" * 200_000 + b"t.", "expected objects of at most"),
    "150,000 entries of the memo": (HEAD + b"N" + b"\x94" * 150_000 + b".", "expected objects of at most"),
    "a million times nothing": (HEAD + b"(" + b"N" * 1_000_000 + b"t.", "expected objects of at most"),
    "copies of a long text": (
        HEAD
        + text("a" * 4000)
        + b"q\0"
        + text("latin1")
        + b"q\1("
        + (named("_codecs", "encode") + b"h\0h\1\x86R") * 20_000,
        "expected objects of at most",
    ),
    "a list of pairs, again and again": (
        HEAD
        + b"]("
        + b"".join(integer(key) + b"N\x86" for key in range(1000))
        + b"eq\0("
        + (named("collections", "OrderedDict") + b"h\0\x85R") * 20_000,
        "expected objects of at most",
    ),
    "nothing on the stack": (HEAD + b"a.", "missing on the stack"),
    "no mark": (HEAD + b"t.", "a mark is missing"),
    "an end within a mark": (HEAD + b"(}.", "1 marks"),
    "two objects": (HEAD + b"}}.", "expected one object at the end"),
    "no end": (HEAD + b"}", "the end of the file|one object at the end"),
    "an unknown instruction": (HEAD + b"\xff.", "byte 0xff"),
    "an unknown protocol": (HEAD + b"\x80\xff}.", "a protocol from 2 to 5"),
    "text that isn't": (HEAD + b"X\2\0\0\0\xff\xff.", "expected text in utf-8"),
    "weights without a name": (HEAD + b"}NNs.", "got the key None"),
    "a name that clears the screen": (HEAD + b"}" + text("\x1b[2J") + b"Ns.", "printable name"),
    "weights of numbers": (HEAD + b"}" + text("a") + integer(3) + b"s.", "'a': expected a"),
    "weights of names": (HEAD + b"}" + text("a") + named("numpy", "ndarray") + b"s.", "'a': expected a"),
}


CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "zip": lambda program: Archive(program, []).bytes(),
    "stream": lambda program: (
        b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, SYS_INFO)) + program + pickle.dumps([], 2)
    ),
    "pkl": lambda program: program,
}


# Tensors that lie about their place, in both of torch's formats.


def _one(storage: Storage | None = None, **place: Any) -> dict[str, Any]:
    return {"a": tensor(Storage(np.arange(6, dtype=np.float32)) if storage is None else storage, **place)}


def _of(**said: Any) -> Storage:
    return Storage(np.arange(6, dtype=np.float32), **said)


def _calling(name: str, *arguments: Any) -> dict[str, Any]:
    return {"a": Call(NAMES[name], *arguments)}


def _many(count: int) -> dict[str, Any]:
    storage = Storage(np.zeros(1000, np.float32))
    return {str(index): tensor(storage) for index in range(count)}


def _two_types() -> dict[str, Any]:
    return {"a": tensor(_of(key="0")), "b": tensor(Storage(np.arange(6, dtype=np.int32), key="0"))}


_PLACE = "to lie in a storage of 6 elements"
TENSORS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "an offset behind the end": (lambda: _one(size=(2,), offset=5), _PLACE),
    "an offset before the start": (lambda: _one(size=(2,), offset=-1), _PLACE),
    "an offset of 2 to the 100": (lambda: _one(size=(2,), offset=2**100), _PLACE),
    "an offset of nothing": (lambda: _one(size=(0,), offset=7), _PLACE),
    "one element too many": (lambda: _one(size=(7,)), _PLACE),
    "a stride too long": (lambda: _one(size=(2, 3), stride=(4, 1)), _PLACE),
    "a stride of 2 to the 62": (lambda: _one(size=(3,), stride=(2**62,)), _PLACE),
    "a negative stride": (lambda: _one(size=(3,), stride=(-1,), offset=5), "a stride from 0 on"),
    "negative sizes, whose product isn't": (lambda: _one(size=(-2, -3), stride=(3, 1)), "none negative"),
    "terabytes by strides of 0": (lambda: _one(size=(2**20, 2**20), stride=(0, 0)), _PLACE),
    "a little more than there is, by a stride of 0": (lambda: _one(size=(2, 4), stride=(0, 1)), _PLACE),
    "a size of 2 to the 64": (lambda: _one(size=(2**32, 2**32), stride=(0, 0)), "fits in 2\\^63 bytes"),
    "a size of 2 to the 64 plus 6": (lambda: _one(size=(2**64 + 6,), stride=(1,)), "fits in 2\\^63 bytes"),
    "nothing, but huge": (lambda: _one(size=(0, 2**63), stride=(0, 0)), "fits in 2\\^63 bytes"),
    "a hundred axes": (lambda: _one(size=(1,) * 100, stride=(0,) * 100), "at most 32 axes"),
    "more strides than axes": (lambda: _one(size=(6,), stride=(1, 1)), "for each of 1 axes, got 2"),
    "sizes of truth": (lambda: _one(size=(True,)), "a tuple of integers"),
    "sizes in a list": (lambda: _one(size=[6], stride=(1,)), "argument 2 must be tuple"),
    "an offset of text": (lambda: _one(offset="0"), "argument 1 must be int"),
    "an offset of truth": (lambda: _one(size=(2,), offset=True), "argument 1 must be int, got True"),
    "a storage of 2 to the 62": (lambda: _one(_of(count=2**62)), "fits in 2\\^63 bytes"),
    "a storage of petabytes": (
        lambda: _one(_of(count=2**48)),
        "expected 1125899906842624 bytes|expected 281474976710656",
    ),
    "a storage of less than nothing": (lambda: _one(_of(count=-1)), "none negative"),
    "a storage of other elements": (lambda: _one(_of(kind="DoubleStorage")), "expected 48 bytes|got 6 from|bytes more"),
    "a storage of two types": (_two_types, "the same type and length everywhere"),
    "the type of a storage for the storage": (
        lambda: _calling("_rebuild_tensor", NAMES["FloatStorage"], 0, (6,), (1,)),
        "must be _Storage",
    ),
    "a storage of sizes": (lambda: {"a": Storage(np.zeros(2, np.float32), kind="Size")}, "expected a storage, got"),
    "a storage for a tensor": (lambda: {"a": _of()}, "'a': expected a tensor, got _Storage"),
    "a tensor without its place": (lambda: _calling("_rebuild_tensor", _of()), "expected 4 arguments, got 1"),
    "a conjugate view": (
        lambda: _calling("_rebuild_tensor_v2", _of(), 0, (6,), (1,), False, None, {"conj": True}),
        "no conjugate",
    ),
    "a parameter of nothing": (lambda: _calling("_rebuild_parameter", None, True, None), "must be _Tensor"),
    "one storage under 500 names": (lambda: _many(500), "of at most twice the file's"),
    "one storage under 10,000 names": (lambda: _many(10_000), "objects of at most"),
    "truth that is neither": (lambda: _one(Storage(np.array([0, 1, 2], "u1"), kind="BoolStorage")), "bools of 0 or 1"),
    "a tensor in a tensor's name": (lambda: {"../a": tensor(_of())}, "printable name"),
}

# Archives that lie about their members.


def _archive(change: Callable[[list[Record]], list[Record]] = lambda records: records, **parts: Any) -> bytes:
    program, storages = pickled(_one() | {"b": tensor(Storage(np.ones(300, np.float32)))})
    return zipped(change(Archive(program, storages, **parts).records()))


def _but(name: str, **changes: Any) -> bytes:
    """An archive in which one member is told of in another way."""
    return _archive(
        lambda records: [replace(record, **changes) if record.name == name else record for record in records]
    )


def _bomb() -> bytes:
    content = bytes(50_000_000)
    return _archive(lambda records: [*records, Record("data/9", content, method=8, packed=_deflated(content))])


def _deflated(content: bytes) -> bytes:
    compress = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compress.compress(content) + compress.flush()


def _on_top(records: list[Record]) -> list[Record]:
    """One more entry of the directory for the bytes of data/1."""
    return [*records, replace(_named(records, "data/1"), start=_start(records, "data/1"))]


def _named(records: list[Record], name: str) -> Record:
    return next(record for record in records if record.name == name)


def _start(records: list[Record], name: str) -> int:
    """Where a member's header lies."""
    return zipped(records).index(f"archive/{name}FB".encode()) - 30


def _quoted(records: list[Record]) -> list[Record]:
    """A member that holds all the others, headers and all: each byte of the file unpacks twice."""
    program = _named(records, "data.pkl")
    content = zipped(records)
    size = _start(records, "version") - content.index(program.content)
    return [replace(program, size=size, packed_size=size), *records[1:]]


def _end(form: str, offset: int, *values: int) -> bytes:
    """An archive with other numbers in its 64-bit end of directory, `offset` bytes behind the start of that."""
    content = bytearray(_archive())
    struct.pack_into(form, content, content.rfind(b"PK\6\6") + offset, *values)
    return bytes(content)


def _wide(*values: int) -> dict[str, Any]:
    return {"extra": struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)}


ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a bomb: 50 MB of zeros in 50 kB": (_bomb, "stored as they are"),
    "compressed weights": (
        lambda: _but("data/1", method=8, packed=_deflated(np.ones(300, "f4").tobytes())),
        "stored as",
    ),
    "compressed by an unknown method": (lambda: _but("data/1", method=99), "another way than by deflate"),
    "encrypted weights": (lambda: _but("data/1", flags=1), "encrypted"),
    "stored, but larger than packed": (lambda: _but("data/1", size=1 << 31), "another way than by deflate"),
    "two members of the same bytes": (lambda: _archive(_on_top), "twice"),
    "two members of the same bytes under two names": (
        lambda: _archive(lambda records: [*records[:-1], replace(_on_top(records)[-1], name="data/2")]),
        "disagree|share no bytes",
    ),
    "a member that holds the others": (lambda: _archive(_quoted), "share no bytes"),
    "two programs": (lambda: _archive(lambda records: [*records, _named(records, "data.pkl")]), "twice"),
    "two storages of one key": (lambda: _archive(lambda records: [*records, _named(records, "data/0")]), "twice"),
    "no program": (lambda: _archive(lambda records: records[1:]), "a member 'archive/data.pkl'"),
    "no storage": (
        lambda: _archive(lambda records: [record for record in records if record.name != "data/1"]),
        "a member 'archive/data/1' in the archive, found none",
    ),
    "two folders": (lambda: _archive(lambda records: [*records, Record("a", b"", root="b")]), "one folder"),
    "a way out of the folder": (
        lambda: _archive(lambda records: [*records, Record("../../../tmp/a", b"")]),
        "without ../",
    ),
    "a name from the root": (lambda: _archive(lambda records: [*records, Record("a", b"", root="/etc")]), "leading /"),
    "a name of two systems": (lambda: _archive(lambda records: [*records, Record("a\\..\\b", b"")]), "without ../"),
    "another name in front of the member": (lambda: _but("data/1", local_name="archive/data/7"), "disagree"),
    "a member behind the end": (lambda: _but("data/1", start=1 << 30), "disagree"),
    "a member at 16 EiB": (lambda: _but("data/1", start=0xFFFFFFFF, **_wide(2**64 - 1)), "disagree"),
    "a member of 16 EiB": (
        lambda: _but("data/1", size=0xFFFFFFFF, **_wide(2**64 - 1, 2**64 - 1)),
        "another way than by deflate",
    ),
    "a 64-bit size that isn't there": (lambda: _but("data/1", size=0xFFFFFFFF), "lacks a 64-bit size"),
    "a wrong check sum of weights": (lambda: _but("data/1", crc=1), "another than the archive says"),
    "a wrong check sum of the program": (lambda: _but("data.pkl", crc=1), "another than the archive says"),
    "too short a storage": (lambda: _but("data/1", content=bytes(1196)), "expected 1200 bytes, got 1196"),
    "too long a storage": (lambda: _but("data/1", content=bytes(1204)), "expected 1200 bytes, got 1204"),
    "a middle order of bytes": (lambda: _archive(order=b"middle"), "expected little or big, got b?'middle'"),
    "no order of bytes": (lambda: _archive(order=b""), "expected little or big"),
    "a long order of bytes": (lambda: _archive(order=bytes(1_000_000)), "expected little or big"),
    "a version from the future": (lambda: _archive(version=b"11\n"), "version: expected 1 to 10"),
    "a program of torch.jit": (
        lambda: _archive(lambda records: [*records, Record("constants.pkl", b"")]),
        "got a program of torch.jit",
    ),
    "4 billion members": (lambda: _end("<2Q", 24, 2**32, 2**32), "at most 65535 members"),
    "more members than the directory has": (lambda: _end("<2Q", 24, 60_000, 60_000), "directory"),
    "fewer members than the directory has": (lambda: _end("<2Q", 24, 3, 3), "bytes of directory"),
    "a directory of 16 EiB": (lambda: _end("<Q", 40, 2**64 - 1), "directory"),
    "a directory at 16 EiB": (lambda: _end("<Q", 48, 2**64 - 1), "directory"),
    "half an archive": (lambda: _archive()[:1500], "truncated"),
    "an archive without its last byte": (lambda: _archive()[:-1], "truncated|directory"),
    "bytes behind the archive": (lambda: _archive() + bytes(10), "nothing behind"),
}

# Streams that lie about what follows.


def _stream(
    magic: object = MAGIC, protocol: object = 1001, info: object = SYS_INFO, keys: object = ["0"], data: bytes = b""
) -> bytes:
    program, storages = pickled(_one(), is_stream=True)
    head = [pickle.dumps(value, 2) for value in (magic, protocol, info)]
    return b"".join([*head, program, pickle.dumps(keys, 2), data or struct.pack("<q", 6) + storages[0].data.tobytes()])


def _lying(length: int) -> bytes:
    return stream(_one(), lengths={"0": length})


STREAMS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a length of 2 to the 62": (lambda: _lying(2**62), "expected 6 elements before byte \\d+, got 4611686018427387904"),
    "a negative length": (lambda: _lying(-1), "expected 6 elements before byte \\d+, got -1"),
    "too small a length": (lambda: _lying(5), "expected 6 elements before byte \\d+, got 5"),
    "a key twice": (lambda: _stream(keys=["0", "0"]), "a list of different names"),
    "no key": (lambda: _stream(keys=[]), "expected the 1 storages"),
    "an unknown key": (lambda: _stream(keys=["0", "1"]), "expected the 1 storages"),
    "keys of numbers": (lambda: _stream(keys=[0]), "a list of different names"),
    "keys in a tuple": (lambda: _stream(keys=("0",)), "a list of different names"),
    "keys in lists": (lambda: _stream(keys=[["0"]]), "a list of different names"),
    "another protocol": (lambda: _stream(protocol=1002), "protocol 1001, got 1002"),
    "facts of a million entries": (lambda: _stream(info=dict.fromkeys(range(300_000))), "objects of at most"),
    "a million facts": (lambda: _stream(info=[None] * 1_000_000), "objects of at most"),
    "facts that only look so": (lambda: _stream(info=[Fake()]), "names that weights need"),
    "an end before the weights": (lambda: stream(_one())[:-1], "before byte \\d+, got 6 from byte"),
    "an end before the length": (lambda: stream(_one())[:-28], "before byte \\d+, got"),
    "an end in the program": (lambda: stream(_one())[:200], "ends too early|end of the file|are left"),
    "bytes behind the weights": (lambda: stream(_one()) + b"\0", "got 1 bytes more"),
    "a view behind its storage": (lambda: stream(_one(_of(view=("v", 4, 3)))), "expected at most 6 elements"),
    "a view before its storage": (lambda: stream(_one(_of(view=("v", -1, 3)))), "expected at most 6 elements"),
    "a tensor behind its view": (lambda: stream(_one(_of(view=("v", 2, 3)), size=(4,))), "a storage of 3 elements"),
    "a view of four parts": (lambda: stream(_one(_of(view=("v", 0, 1, 2)))), "expected 3 arguments"),  # type: ignore[arg-type]
}


class Fake:
    """Something that Python's interpreter would make by calling a function."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("called",)


# All of them: what makes the file, given the folder that it may try to make, and what the refusal says.
FILES: dict[str, tuple[Callable[[str], bytes], str]] = {}
for _container, _wrap in CONTAINERS.items():
    for _name, _program in RUN.items():
        FILES[f"{_container}: {_name}"] = (
            lambda path, wrap=_wrap, program=_program: wrap(program(path)),
            "names that weights need|instruction that builds data",
        )
    for _name, (_content, _match) in PROGRAMS.items():
        FILES[f"{_container}: {_name}"] = lambda _, wrap=_wrap, content=_content: wrap(content), _match
for _name, (_root, _match) in TENSORS.items():
    FILES[f"zip: {_name}"] = lambda _, root=_root: archive(root()), _match
    FILES[f"stream: {_name}"] = lambda _, root=_root: stream(root()), _match
for _name, (_make, _match) in ARCHIVES.items():
    FILES[f"archive: {_name}"] = lambda _, make=_make: make(), _match
for _name, (_make, _match) in STREAMS.items():
    FILES[f"stream itself: {_name}"] = lambda _, make=_make: make(), _match


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of each file, read in a process of its own; none makes the canary's folder."""
    canary = tmp_path_factory.mktemp("nothing") / "canary"
    folder = tmp_path_factory.mktemp("hostile")
    for index, (make, _) in enumerate(FILES.values()):
        (folder / f"{index:04}").write_bytes(make(str(canary)))
    command = [sys.executable, "-m", "tests.weights.judge", "files", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *lines, modules = [json.loads(line) for line in done.stdout.splitlines()]
    assert not canary.exists()
    assert set(modules["imported"]) <= {"pickletools"}
    return dict(zip(FILES, lines, strict=True))


@pytest.mark.parametrize("name", FILES)
def test_hostile_file_is_refused(verdicts: dict[str, dict[str, Any]], name: str) -> None:
    """With our own error that says why, within a second, in twice the file's size of memory and some MiB."""
    verdict = verdicts[name]
    assert verdict["error"] == "WeightsError", verdict["message"]
    assert re.search(FILES[name][1], verdict["message"])
    assert len(verdict["message"]) < 800
    assert verdict["peak"] <= 2 * verdict["size"] + CONSTANT
    assert verdict["seconds"] < 1


@pytest.mark.parametrize("name", RUN)
def test_pythons_own_interpreter_would_run_it(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    copyreg.add_extension("os", "mkdir", 0xF0)
    try:
        with contextlib.suppress(Exception):  # some end in an error once they have run
            pickle.loads(RUN[name](str(canary)))
    finally:
        copyreg.remove_extension("os", "mkdir", 0xF0)
    assert canary.exists()
