"""What ``refnet check`` does."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import refnet.ops
from refnet.errors import ArgumentError
from refnet.kernel_op import KernelOp, operations
from refnet.testing.adapter import Adapter
from refnet.testing.cuda_source import cuda_kernel
from refnet.testing.expressions import evaluate, sizes
from refnet.testing.reproduction import file_kernel, kernel_code


def listing() -> str:
    """Every operation with what it does, a line each."""
    lines = []
    for name, operation in _operations().items():
        first = re.sub(r":\w+:(`[^`]+`)", r"\1", (operation.specification.__doc__ or "").strip().splitlines()[0])
        lines.append(f"{name:32}{first}")
    return "\n".join(lines)


def find_operation(name: str) -> KernelOp[..., Any]:
    """The operation of that name.

    Raises:
        ArgumentError: there is none.
    """
    known = _operations()
    if name not in known:
        raise ArgumentError(f"check: expected one of the operations {', '.join(known)}, got {name!r}")
    return known[name]


def kernel_to_check(
    operation: KernelOp[..., Any], *, place: str | None, device: str | None, cuda: Path | None, launch: dict[str, str]
) -> tuple[Callable[..., Any], str]:
    """The kernel that the flags name, and statements that define it.

    Raises:
        ArgumentError: it isn't there, or a flag is missing.
    """
    if cuda is None:
        return load_kernel(place) if place else installed_kernel(operation, device or "cpu")
    missing = [f"--{name}" for name, text in launch.items() if not text]
    if place or missing:
        raise ArgumentError(f"check: --cuda takes the place of --kernel, and needs {', '.join(missing) or 'no more'}")
    arguments = ", ".join(f"{name}={text!r}" for name, text in launch.items())
    code = f"from refnet.testing.cuda_source import cuda_kernel\n\nkernel = cuda_kernel(operation, {str(cuda.resolve())!r}, {arguments})"
    return cuda_kernel(operation, cuda, **launch), code


def load_kernel(place: str) -> tuple[Callable[..., Any], str]:
    """The kernel at ``package.module:name`` or ``file.py:name``, and statements that define it.

    Raises:
        ArgumentError: it isn't there, or can't be called.
    """
    home, _, name = place.rpartition(":")
    if not home or not name:
        raise ArgumentError(f"check: expected a kernel as package.module:name or file.py:name, got {place!r}")
    if home.endswith(".py"):
        module, code = _module_of_file(Path(home)), file_kernel(Path(home).resolve(), name)
    else:
        sys.path.insert(0, str(Path.cwd()))  # as python -m has it
        try:
            module, code = importlib.import_module(home), f"from {home} import {name} as kernel"
        except ModuleNotFoundError as error:
            raise ArgumentError(f"check: {place}: {error}") from None
    kernel = getattr(module, name, None)
    if not callable(kernel):
        raise ArgumentError(f"check: expected a function {name!r} in {home}, found {type(kernel).__name__}")
    return kernel, code


def installed_kernel(operation: KernelOp[..., Any], device: str) -> tuple[Callable[..., Any], str]:
    """Refnet's own kernel of `operation`, and statements that define it.

    Raises:
        ArgumentError: it has none for this device.
    """
    if device == "cpu":
        from refnet.kernels.cpu import KERNELS
    else:
        from refnet.kernels.cuda import KERNELS
    kernel = KERNELS.get(operation.name, operation.specification if device == "cpu" else None)
    if kernel is None:
        raise ArgumentError(f"check: refnet has no CUDA kernel of {operation.name}; --kernel names another")
    return kernel, "kernel = operation.specification" if kernel is operation.specification else kernel_code(kernel)


def parse_adapter(text: str) -> Adapter:
    """An adapter from ``arrays=torch x=NCHW result=NCHW size:output_size``; a colon renames a parameter.

    Raises:
        ArgumentError: it isn't of this form.
    """
    given: dict[str, Any] = {}
    rename: dict[str, str] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        ours, colon, theirs = word.partition(":")
        if equals and name == "image_size":
            given[name] = evaluate(value, {})
        elif equals:
            given[name] = tuple(v or None for v in value.split(",")) if "," in value else value
        elif colon:
            rename[ours] = theirs
        else:
            raise ArgumentError(f"check: --adapter: expected name=convention or name:other_name, got {word!r}")
    return Adapter(rename=rename, **given)


def suitable(operation: KernelOp[..., Any], text: str) -> Callable[..., bool]:
    """Whether the arguments of a call fulfil a condition in text."""

    def fulfilled(**arguments: Any) -> bool:
        return bool(evaluate(text, {**sizes(operation, arguments), **arguments}))

    return fulfilled


def _operations() -> dict[str, KernelOp[..., Any]]:
    return {name: op for name, op in operations().items() if getattr(refnet.ops, name, None) is op}


def _module_of_file(path: Path) -> Any:
    if not path.is_file():
        raise ArgumentError(f"check: expected a kernel's source, found no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module
