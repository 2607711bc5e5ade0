"""Any .cu file as a kernel of an operation: its parameters, grid and block, described in a few words.

The signature lists the kernel's parameters in order, with commas between them::

    x, w, out, i32:N, i32:H, i32:stride[0], f32:iou_threshold

A bare name is a pointer to an argument of the specification or to its result (``out``; ``out0`` and ``out1`` of
several), arrays in C order. ``zeros:out`` is a result that is filled with zeros first, which sums by atomics need. A
type before a colon is a number: i32, i64, u32, f32, f64 or bool, of any expression (:mod:`refnet.testing.expressions`).
Grid and block are one to three expressions, and shared memory is one, in bytes::

    refnet check conv2d_forward --cuda mine.cu --entry "conv<float>" --grid "cdiv(N * Ho * Wo * O, 256)" --block 256
        --signature "x, w, out, i32:N, i32:H, i32:W, i32:C, i32:kh, i32:kw, i32:O, ..."
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from refnet.arrays import namespace, to_host
from refnet.errors import ArgumentError
from refnet.kernel_op import KernelOp
from refnet.testing.calls import as_tuple, map_leaves
from refnet.testing.expressions import evaluate, sizes

TYPES: dict[str, Any] = {
    "i32": np.int32, "i64": np.int64, "u32": np.uint32, "f32": np.float32, "f64": np.float64, "bool": np.bool_,
}  # fmt: skip


def cuda_kernel(
    operation: KernelOp[..., Any],
    source: str | Path,
    *,
    entry: str,
    signature: str,
    grid: str,
    block: str,
    shared: str = "0",
) -> Callable[..., Any]:
    """A kernel of `operation` that launches `entry` of a .cu file; NumPy's arrays run it in the emulator.

    The shapes and types of results are taken from the specification, which is run for them.

    Raises:
        ArgumentError: the file isn't there, or an expression isn't one.
    """
    path = Path(source).resolve()
    if not path.is_file():
        raise ArgumentError(f"expected a CUDA source, found no file {source}")
    names = list(inspect.signature(operation.specification).parameters)

    def kernel(*arguments: Any, **parameters: Any) -> Any:
        from refnet.kernels.cuda.program import Program, ready

        arrays = dict(zip(names, arguments, strict=False))
        xp = namespace(*arguments)
        host = [map_leaves(to_host, value) for value in arguments]
        results = [xp.empty(r.shape, r.dtype) for r in as_tuple(operation.specification(*host, **parameters))]
        outputs = {"out": results[0]} | {f"out{index}": result for index, result in enumerate(results)}
        known = {**sizes(operation, arrays, results), **parameters, **arrays, **outputs}

        passed: list[Any] = []
        written: list[int] = []
        for position, item in enumerate(split(signature)):
            kind, _, text = item.rpartition(":")
            if kind in TYPES:
                passed.append(TYPES[kind](evaluate(text, known)))
            elif text in outputs and kind in ("", "zeros"):
                if kind:
                    outputs[text].fill(0)
                else:
                    written.append(position)
                passed.append(outputs[text])
            elif text in arrays and not kind:
                passed.append(ready(arrays[text]))
            else:
                known_types = ", ".join(TYPES)
                raise ArgumentError(
                    f"signature: expected an array ({', '.join([*arrays, *outputs])}), zeros:out, or a type "
                    f"({known_types}) and an expression, got {item!r}"
                )
        program = Program(path, [entry])
        extents = [_extent(text, known) for text in (grid, block)]
        dynamic = int(evaluate(shared, known))
        program.launch(xp, entry, extents[0], extents[1], passed, shared=dynamic, outputs=written)
        return results[0] if len(results) == 1 else tuple(results)

    kernel.__qualname__ = f"{entry} of {path.name}"
    return kernel


def split(signature: str) -> list[str]:
    """The parts between commas that stand in no brackets."""
    parts, depth = [""], 0
    for letter in signature:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _extent(text: str, known: dict[str, Any]) -> tuple[int, ...]:
    value = evaluate(text, known)
    extent = value if isinstance(value, tuple) else (value,)
    if not 1 <= len(extent) <= 3:
        raise ArgumentError(f"grid and block have one to three extents, got {text!r}")
    return tuple(int(entry) for entry in extent)
