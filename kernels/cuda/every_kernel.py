"""Call every kernel on a GPU at awkward sizes, for a tool that watches: compute-sanitizer.

::

    compute-sanitizer --tool memcheck python -m refnet.kernels.cuda.every_kernel
    python -m refnet.kernels.cuda.every_kernel --emulated     # the emulator's checker watches instead

The sizes are those of the operations' edge cases: empty, one, one less and one more than a block, odd. Each array gets
memory of its own from the driver, so that what lies behind it is nobody's. Results are compared with nothing here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from refnet.errors import ArgumentError, DTypeError
from refnet.kernel_op import operations
from refnet.kernels.cuda import KERNELS, conv2d, roi
from refnet.kernels.cuda.contracts import programs
from refnet.kernels.cuda.cupy_module import import_cupy, loaded
from refnet.kernels.emulator import running
from refnet.testing import Call, contract_of

Setting: TypeAlias = Callable[[], AbstractContextManager[Any]]
ATOMIC: dict[str, Setting] = {"by atomics": partial(roi.deterministic, False)}
PRECISIONS: dict[str, Setting] = {name: partial(conv2d.precision, name) for name in ("tf32", "bf16")}
TILES: dict[str, Setting] = {
    f"{tile.atom} {tile.dtype} {tile.rows}x{tile.columns}, {splits} parts": partial(
        conv2d.forcing, tile=tile, splits=splits
    )
    for tile in conv2d.ALL_TILES
    for splits in (1, 3)
}
SETTINGS: dict[str, dict[str, Setting]] = {
    "conv2d_forward": TILES,
    "conv2d_grad_input": TILES,
    "conv2d_grad_weight": TILES,
    "crop_and_resize_grad_images": ATOMIC,
    "roi_align_grad_features": ATOMIC,
}
"""Ways to compute an operation, other than what the launcher chooses by itself."""


def calls(name: str) -> Iterator[tuple[str, Setting, Call]]:
    """Every edge case of an operation in both types, as the launcher chooses and in each of its SETTINGS."""
    for title, setting in {"": nullcontext, **SETTINGS.get(name, {})}.items():
        for edge, call in contract_of(operations()[name]).edges.items():
            for dtype in ("float32", "float64"):
                yield f"{name}: {edge}: {dtype}: {title}", setting, call.astype(dtype)


def call_all(xp: Any, names: Sequence[str]) -> tuple[int, int]:
    """Call the kernels of operations: how many calls were made, and how many aren't for the kernel, or the setting."""
    made = passed_over = 0
    for name in names:
        for title, setting, call in calls(name):
            given = call.map(lambda _, array: xp.array(array))
            try:
                with setting():
                    given.apply(KERNELS[name])
            except (DTypeError, ArgumentError):  # float64 may be refused; a tile isn't for every shape
                passed_over += 1
            except Exception as error:
                error.add_note(title)
                raise
            else:
                made += 1
    return made, passed_over


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if a kernel was never launched."""
    parser = argparse.ArgumentParser(prog="python -m refnet.kernels.cuda.every_kernel")
    parser.add_argument("operations", nargs="*", help="by default all")
    parser.add_argument("--emulated", action="store_true", help="in the emulator, its checker watching")
    options = parser.parse_args(arguments)
    names = options.operations or sorted(KERNELS)
    if options.emulated:
        with running(mode="check", seed=1):
            made, passed_over = call_all(np, names)
        print(f"{made} calls, {passed_over} passed over")
        return 0
    cupy = import_cupy()
    cupy.cuda.set_allocator(None)  # no pool: each array is an allocation of the driver's
    made, passed_over = call_all(cupy, names)
    cupy.cuda.Device().synchronize()
    missing = {(program.source, entry.name) for program in programs() for entry in program.instantiations} - loaded()
    print(f"{made} calls, {passed_over} passed over, {len(loaded())} kernels launched")
    print("".join(f"never launched: {source}: {name}\n" for source, name in sorted(missing)), end="")
    return 1 if missing and not options.operations else 0


if __name__ == "__main__":
    sys.exit(main())
