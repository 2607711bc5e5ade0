"""Counterexamples as programs: what is printed can be pasted and run."""

from __future__ import annotations

import base64
import importlib
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from refnet.arrays import Array
from refnet.kernel_op import KernelOp
from refnet.testing.calls import Call, Values, map_leaves
from refnet.testing.devices import Device
from refnet.testing.layouts import Layout

CUPY = "cupy"
INLINE = 256  # numbers of an array that are written down; larger ones are packed


def program(
    operation: KernelOp[..., Any],
    kernel: str,
    call: Call,
    *,
    layout: Layout = "contiguous",
    device: Device = "cpu",
    schedule: int = 0,
    raises: bool = False,
    times: int = 1,
    writes: tuple[str, ...] = (),
) -> str:
    """A program that makes `call` of the specification and of the kernel, and prints both results.

    Args:
        operation: the operation.
        kernel: statements that define ``kernel``.
        call: the arguments, of the types that the kernel gets.
        layout, device, schedule: how the kernel got them.
        raises: whether it is the specification's error that the kernel lacks.
        times: how often the kernel is called.
        writes: arguments that are changed in place.
    """
    lines = ["import numpy as np"]
    if device == "cuda":
        lines.append(f"import {CUPY}")
    lines += ["", operation_code(operation)]
    if device == "emulated":
        lines.append("from refnet.kernels.emulator import running")
    helpers = ["Values"] if _recipes(call) else []
    helpers += ["laid_out"] if layout != "contiguous" or device == "cuda" else []
    helpers += ["unpacked"] if any(_packed(name, value, call) for name, value in call.arrays.items()) else []
    if helpers:
        lines.append(f"from refnet.testing import {', '.join(sorted(helpers))}")
    lines += ["", kernel, ""]
    lines += [f"{name} = {_value(name, value, call)}" for name, value in call.arrays.items()]
    lines.append(f"parameters = {parameters_code(call.parameters)}")
    plain = ", ".join([*call.arrays, "**parameters"])
    if raises:
        lines += ["try:", f"    operation.specification({plain})", "except Exception as error:"]
        lines.append('    print(f"the specification raises {type(error).__name__}: {error}")')
    elif writes:
        kept = ", ".join(_copy(name, call.arrays[name]) for name in writes)
        lines += [f"before = {kept},", f"operation.specification({plain})"]
        lines.append(f'print("specification:", {", ".join(writes)}, sep="\\n")')
        lines.append(f"{', '.join(writes)}, = before")
    else:
        lines.append(f'print("specification:", operation.specification({plain}), sep="\\n")')
    for name, value in call.arrays.items():
        if "laid_out" in helpers and value is not None and name not in writes:
            lines.append(f"{name} = {_laid_out(name, value, layout, device)}")
    statement = f'print("kernel:", {", ".join([f"kernel({plain})", *writes])}, sep="\\n")'
    if device == "emulated":
        seeds = range(schedule, schedule + times)
        lines += [f'with running(mode="check", seed={seed}):\n    {statement}' for seed in seeds]
    else:
        lines += [statement] * times
    return "\n".join(lines) + "\n"


def operation_code(operation: KernelOp[..., Any]) -> str:
    """Statements that define ``operation``."""
    home = operation.specification.__module__
    if home.startswith("refnet.ops."):
        return f"from refnet.ops import {operation.name} as operation"
    return f"from {home} import {operation.name} as operation"


def kernel_code(kernel: Callable[..., Any]) -> str:
    """Statements that define ``kernel``, if it can be imported; otherwise such that name the place to put it."""
    module, name = getattr(kernel, "__module__", ""), getattr(kernel, "__qualname__", "")
    try:
        importable = getattr(importlib.import_module(module), name, None) is kernel
    except (ImportError, ValueError):
        importable = False
    if importable and module != "__main__":
        return f"from {module} import {name} as kernel"
    script = getattr(sys.modules["__main__"], "__file__", None)
    if importable and script:
        return file_kernel(Path(script).resolve(), name)
    title = name or repr(kernel)
    return f"kernel = operation.specification  # put {title} here: it has no name that could be imported"


def kernel_title(kernel: Callable[..., Any]) -> str:
    """What to call a kernel in a message."""
    return getattr(kernel, "__qualname__", None) or repr(kernel)


def parameters_code(parameters: dict[str, Any]) -> str:
    """A dictionary as Python writes it, NumPy's numbers as plain ones."""
    entries = ", ".join(f"{name!r}: {_plain(value)!r}" for name, value in parameters.items())
    return "{" + entries + "}"


def array_code(array: Array) -> str:
    """An expression that gives `array`, to the last bit."""
    dtype = f'"{array.dtype}"'
    if array.size > INLINE:
        packed = base64.b85encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 9)).decode()
        return f"unpacked({packed!r}, {array.shape}, {dtype})"
    if not array.size:
        return f"np.zeros({array.shape}, {dtype})"
    return f"np.array({_nested(array)}, {dtype})"


def unpacked(packed: str, shape: tuple[int, ...], dtype: str) -> Array:
    """The array that a reproduction holds in packed form."""
    numbers = np.frombuffer(zlib.decompress(base64.b85decode(packed)), dtype)
    return numbers.reshape(shape).copy()


def file_kernel(path: str | Path, name: str) -> str:
    """Statements that define ``kernel`` as `name` of a file."""
    return f"import runpy\n\nkernel = runpy.run_path({str(path)!r})[{name!r}]"


def _recipes(call: Call) -> list[str]:
    return [name for name in call.recipes if call.arrays[name].size > INLINE]


def _packed(name: str, value: Any, call: Call) -> bool:
    sizes: list[int] = []
    map_leaves(lambda a: sizes.append(a.size), value)
    return name not in _recipes(call) and any(size > INLINE for size in sizes)


def _value(name: str, value: Any, call: Call) -> str:
    if name in _recipes(call):
        recipe: Values = call.recipes[name]
        return f'{recipe!r}.array().astype("{value.dtype}")'
    return _nested_code(value, array_code)


def _nested_code(value: Any, code: Callable[[Array], str]) -> str:
    if value is None:
        return "None"
    if isinstance(value, tuple | list):
        entries = [_nested_code(entry, code) for entry in value]
        opening, closing = ("[", "]") if isinstance(value, list) else ("(", ",)" if len(value) == 1 else ")")
        return opening + ", ".join(entries) + closing
    return code(value)


def _copy(name: str, value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}(array.copy() for array in {name})"
    return f"{name}.copy()"


def _laid_out(name: str, value: Any, layout: Layout, device: Device) -> str:
    xp = ", cupy" if device == "cuda" else ""
    if not isinstance(value, tuple | list):
        return f"laid_out({name}, {layout!r}{xp})"
    return f"type({name})(laid_out(entry, {layout!r}{xp}) for entry in {name})"


def _nested(array: Array) -> str:
    if array.ndim > 1:
        return "[" + ", ".join(_nested(entry) for entry in array) + "]"
    if array.ndim:
        return "[" + ", ".join(_number(number) for number in array) + "]"
    return _number(array[()])


def _number(number: Any) -> str:
    if not isinstance(number, np.floating):
        return str(number)
    if np.isnan(number):
        return "np.nan"
    return ("-" if number < 0 else "") + "np.inf" if np.isinf(number) else str(number)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_plain(entry) for entry in value)
    return value.item() if isinstance(value, np.generic) else value
