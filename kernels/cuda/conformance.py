"""Does the emulator tell the truth? What a GPU computed, kept in a file and computed again by the emulator.

On a machine with a GPU::

    python -m refnet.kernels.cuda.conformance record h200.npz     # the named edge cases of every operation
    python -m refnet.kernels.cuda.conformance replay h200.npz     # anywhere: the same calls, emulated

A file that lies in ``tests/golden/cuda`` is replayed by the tests. It holds its inputs, so it outlives changes of the
edge cases. Results that the operation's contract wants equal must be so bit for bit; sums may differ by what the order
and the fusing of their operations explain: both lie within the contract's bound of the exact value.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias
from zipfile import BadZipFile

import numpy as np

from refnet.arrays import Array, to_host
from refnet.errors import DataError, DTypeError
from refnet.kernel_op import operations
from refnet.kernels.cuda import KERNELS
from refnet.kernels.cuda.cupy_module import import_cupy
from refnet.kernels.cuda.every_kernel import ATOMIC, PRECISIONS, Setting
from refnet.testing import Call, Rounding, contract_of
from refnet.testing.calls import as_tuple, leaves, map_leaves
from refnet.whole_file import whole_file

Device: TypeAlias = Literal["cuda", "emulated"]
FORMAT = 1
DTYPES = ("float32", "float64")
SETTINGS: dict[str, dict[str, Setting]] = {
    "conv2d_forward": PRECISIONS,
    "conv2d_grad_input": PRECISIONS,
    "conv2d_grad_weight": PRECISIONS,
    "crop_and_resize_grad_images": ATOMIC,
    "roi_align_grad_features": ATOMIC,
}
"""Ways to compute an operation that give other numbers; all but the precisions of products are of float64 too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call of an operation and what came of it.

    Attributes:
        operation: its name.
        title: of the edge case.
        setting: what the kernel was called within: of SETTINGS, or nothing.
        dtype: of the floating-point arguments.
        call: the arguments.
        results: what was computed, and behind that the arguments that were written to.
    """

    operation: str
    title: str
    setting: str
    dtype: str
    call: Call
    results: tuple[Array, ...]

    def __str__(self) -> str:
        return f"{self.operation}: {self.title}: {self.dtype}{self.setting and ', '}{self.setting}"


# ---- recording -----------------------------------------------------------------------------------------------------


def record(path: Path, device: Device = "cuda", chosen: Iterable[str] = ()) -> tuple[int, list[str]]:
    """Run the edge cases of operations, by default of all that have a CUDA kernel, and write the file.

    Returns:
        How many cases it holds, and the operations that failed, whose errors are printed and of which it holds none.

    Raises:
        DeviceError: CuPy isn't installed, or there is no device.
    """
    xp, title = _device(device)
    cases: list[Case] = []
    failed = []
    for name in sorted(chosen or KERNELS):
        try:
            cases += _run(name, KERNELS[name], xp)
        except Exception:
            failed.append(name)
            print(f"FAILED {name}\n{traceback.format_exc()}", flush=True)
    write(path, cases, device=title)
    return len(cases), failed


def _device(device: Device) -> tuple[Any, str]:
    """The namespace of the arrays, and what to call the device."""
    if device == "emulated":
        return np, f"emulator on {platform.machine()}"
    cupy = import_cupy()
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
    return cupy, properties["name"].decode()


def _run(name: str, kernel: Callable[..., Any], xp: Any) -> Iterator[Case]:
    contract = contract_of(operations()[name])
    for setting in ("", *SETTINGS.get(name, {})):
        for title, call in contract.edges.items():
            for dtype in DTYPES[:1] if setting in PRECISIONS else DTYPES:
                typed = call.astype(dtype)
                try:
                    results = _results(kernel, typed, contract.writes, xp, _setting(name, setting))
                except DTypeError:  # float64 may be refused
                    if dtype == DTYPES[0]:
                        raise
                    continue
                yield Case(operation=name, title=title, setting=setting, dtype=dtype, call=typed, results=results)


def _setting(operation: str, name: str) -> Setting:
    return SETTINGS[operation][name] if name else nullcontext


def _results(
    kernel: Callable[..., Any], call: Call, writes: Sequence[str], xp: Any, setting: Setting
) -> tuple[Array, ...]:
    """The results, and the arguments that were written to; the call's own arrays stay as they are."""
    given = call.map(lambda _, array: xp.array(array))
    with setting():
        results = as_tuple(given.apply(kernel))
    written = (leaf for name in writes for leaf in leaves(given.arrays[name]))
    return tuple(np.array(to_host(array)) for array in (*results, *written))


# ---- replaying -----------------------------------------------------------------------------------------------------


def replay(path: Path) -> list[str]:
    """Compute a file's calls in the emulator; where it departs, a line each.

    Raises:
        DataError: it isn't such a file, or holds no case.
        CompilerError: there is no g++.
    """
    cases = read(path)
    if not cases:
        raise DataError(f"{path}: expected cases, found none")
    return [f"{case}: {departure}" for case in cases for departure in _departures(case)]


def _departures(case: Case) -> Iterator[str]:
    operation = operations()[case.operation]
    contract = contract_of(operation)
    setting = _setting(case.operation, case.setting)
    emulated = _results(KERNELS[case.operation], case.call, contract.writes, np, setting)
    rounding = Rounding.of(case.dtype, case.setting if case.setting in PRECISIONS else "full")  # type: ignore[arg-type]
    expected = contract.bound(operation.specification, case.call, rounding)
    if len(emulated) != len(case.results):
        yield f"expected {len(case.results)} results, got {len(emulated)}"
        return
    for position, (recorded, got, exact) in enumerate(zip(case.results, emulated, expected, strict=True)):
        if (recorded.shape, recorded.dtype) != (got.shape, got.dtype):
            yield f"result {position}: recorded {recorded.dtype} {recorded.shape}, emulated {got.dtype} {got.shape}"
            continue
        allowed = np.zeros(()) if exact.allowed is None else 2 * exact.allowed
        with np.errstate(invalid="ignore"):
            distance = abs(recorded.astype(np.float64) - got.astype(np.float64))
            good = (recorded == got) | (distance <= allowed) | (np.isnan(recorded) & np.isnan(got))
        if not good.all():
            place = tuple(int(index) for index in np.argwhere(~good)[0])
            yield (
                f"result {position}: {np.count_nonzero(~good)} of {good.size} numbers differ, "
                f"first {list(place)}: recorded {recorded[place]}, emulated {got[place]}"
            )


# ---- the file ------------------------------------------------------------------------------------------------------


def write(path: Path, cases: Sequence[Case], *, device: str) -> None:
    """Write cases to an .npz file: arrays by number, and an index in JSON."""
    arrays: list[Array] = []

    def keep(array: Array) -> int:
        arrays.append(array)
        return len(arrays) - 1

    index = [
        {
            "operation": case.operation,
            "title": case.title,
            "setting": case.setting,
            "dtype": case.dtype,
            "arrays": {name: map_leaves(keep, value) for name, value in case.call.arrays.items()},
            "parameters": case.call.parameters,
            "exact": case.call.exact,
            "results": [keep(result) for result in case.results],
        }
        for case in cases
    ]
    document = {"format": FORMAT, "device": device, "cases": index}
    entries: dict[str, Any] = {str(number): array for number, array in enumerate(arrays)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        np.savez_compressed(file, index=np.array(json.dumps(document)), **entries)


def read(path: Path) -> list[Case]:
    """The cases of a file.

    Raises:
        DataError: it isn't a file of :func:`write`, or one of another format.
    """
    try:
        with path.open("rb") as raw, np.load(raw) as file:
            document = json.loads(str(file["index"]))
            if document["format"] != FORMAT:
                raise ValueError(f"one of format {document['format']}, not {FORMAT}")
            return [_case(entry, file) for entry in document["cases"]]
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise DataError(f"{path}: expected a file of conformance record, got {error}") from None


def _case(entry: dict[str, Any], file: Any) -> Case:
    def array(number: int) -> Array:
        found: Array = file[str(number)]
        return found

    return Case(
        operation=entry["operation"],
        title=entry["title"],
        setting=entry["setting"],
        dtype=entry["dtype"],
        call=Call(
            arrays={name: map_leaves(array, _tuples(value)) for name, value in entry["arrays"].items()},
            parameters={name: _tuples(value) for name, value in entry["parameters"].items()},
            exact=entry["exact"],
        ),
        results=tuple(array(number) for number in entry["results"]),
    )


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples."""
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m refnet.kernels.cuda.conformance", description=__doc__)
    parser.add_argument("action", choices=("record", "replay"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", choices=("cuda", "emulated"), default="cuda", help="where to record")
    options = parser.parse_args(arguments)
    if options.action == "record":
        count, failed = record(options.file, options.device)
        print(f"{options.file}: {count} cases recorded, {len(failed)} operations failed")
        return 1 if failed else 0
    departures = replay(options.file)
    print("\n".join([*departures, f"{options.file}: {len(departures)} departures"]))
    return 1 if departures else 0


if __name__ == "__main__":
    sys.exit(main())
