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
import traceback
from collections import Counter
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
from refnet.kernels.cuda.nvrtc import architecture, suits
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


def call_all(xp: Any, names: Sequence[str]) -> tuple[Counter[str], list[str]]:
    """Call the kernels of operations: how many calls were made and passed over, and the operations that failed.

    A call is passed over if it isn't for the kernel (float64 may be refused) or for the setting (a tile isn't for
    every shape). Of an operation that fails the error is printed, and the others still run.
    """
    counts: Counter[str] = Counter()
    failed = []
    for name in names:
        place = name
        try:
            for title, setting, call in calls(name):
                place = title
                given = call.map(lambda _, array: xp.array(array))
                try:
                    with setting():
                        given.apply(KERNELS[name])
                except (DTypeError, ArgumentError):
                    counts["passed over"] += 1
                else:
                    counts["made"] += 1
        except Exception:
            failed.append(name)
            print(f"FAILED {place}\n{traceback.format_exc()}", flush=True)
    return counts, failed


def written_for(capability: int) -> set[tuple[str, str]]:
    """The kernels that run on devices of compute `capability` times ten: source and name."""
    return {
        (program.source, entry.name)
        for program in programs()
        for entry in program.instantiations
        if suits(entry, architecture(capability, entry.only))
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if an operation failed, or on a GPU if a kernel was never launched."""
    parser = argparse.ArgumentParser(prog="python -m refnet.kernels.cuda.every_kernel")
    parser.add_argument("operations", nargs="*", help="by default all")
    parser.add_argument("--emulated", action="store_true", help="in the emulator, its checker watching")
    options = parser.parse_args(arguments)
    names = options.operations or sorted(KERNELS)
    missing: set[tuple[str, str]] = set()
    if options.emulated:
        with running(mode="check", seed=1):
            counts, failed = call_all(np, names)
    else:
        cupy = import_cupy()
        cupy.cuda.set_allocator(None)  # no pool: each array is an allocation of the driver's
        counts, failed = call_all(cupy, names)
        cupy.cuda.Device().synchronize()
        if not options.operations:
            missing = written_for(int(cupy.cuda.Device().compute_capability)) - loaded()
    print("".join(f"never launched: {source}: {name}\n" for source, name in sorted(missing)), end="")
    print(f"{counts['made']} calls, {counts['passed over']} passed over, {len(failed)} operations failed")
    return 1 if failed or missing else 0


if __name__ == "__main__":
    sys.exit(main())
