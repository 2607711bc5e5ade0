"""How fast are our kernels? Ratios to cuDNN and torchvision on one GPU, each result checked against float64 first.

::

    python -m refnet.kernels.cuda.benchmark OUT            # on a machine with a GPU, CuPy, PyTorch and torchvision
    python -m refnet.kernels.cuda.benchmark OUT --dry-run  # anywhere: every case in the emulator, small, and no times

Writes ``OUT/benchmark.json`` and a table, ``OUT/benchmark.md``. The method is that of
:mod:`refnet.kernels.cuda.timing`: contenders take turns in one process, and ratios are compared, not times. A peer gets
the layout in memory that it is fastest with, and the weights laid out for it beforehand.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from refnet.bench import torch_peers
from refnet.bench.contest import WrongResult, within_contract
from refnet.bench.workloads import Layer, clustered, regions, resnet50_fpn
from refnet.kernel_op import operations
from refnet.kernels.cuda import KERNELS, conv2d, roi
from refnet.kernels.cuda.cupy_module import import_cupy
from refnet.kernels.cuda.timing import Comparison, Stopwatch, copies
from refnet.testing import Call
from refnet.testing.bounds import Precision
from refnet.testing.calls import as_tuple, leaves


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What is asked of us.

    Attributes:
        title: what is compared with what.
        least, aim: how many times as fast as the peer.
    """

    title: str
    least: float
    aim: float


BARS = {
    "forward": Bar(title="conv2d forward, fp32, against cuDNN with TF32 off", least=0.7, aim=1.0),
    "forward tf32": Bar(title="conv2d forward, TF32, against cuDNN with TF32 on", least=0.5, aim=0.9),
    "forward bf16": Bar(
        title="conv2d forward, products of bfloat16 (our arrays are float32), against cuDNN's bfloat16 arrays",
        least=0.4,
        aim=0.8,
    ),
    "grad_input": Bar(title="conv2d gradient to the input, fp32, against cuDNN with TF32 off", least=0.6, aim=1.0),
    "grad_weight": Bar(title="conv2d gradient to the weights, fp32, against cuDNN with TF32 off", least=0.6, aim=1.0),
    "nms 2000": Bar(title="nms of 2,000 boxes, against torchvision", least=2, aim=4),
    "nms 12000": Bar(title="nms of 12,000 boxes, against torchvision", least=4, aim=10),
    "roi_align 7": Bar(title="roi_align forward 7x7, 1,000 ROIs x 256 channels, against torchvision", least=1.5, aim=3),
    "roi_align 14": Bar(title="roi_align forward 14x14, the same", least=1.5, aim=3),
    "roi_align atomic": Bar(title="roi_align backward, atomic, against torchvision's atomic", least=1.5, aim=4),
    "roi_align deterministic": Bar(title="roi_align backward, deterministic, against the same", least=1.0, aim=2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call that is compared.

    Attributes:
        bar: the row of the table; a row's figure is the geometric mean of its cases.
        title: what it is.
        operation: its name.
        make: its arguments, float32.
        precision: what products are made of.
        waits: whether the host waits within the call, for us and for the peer.
        setting: what our kernel is called within.
    """

    bar: str
    title: str
    operation: str
    make: Callable[[], Call]
    precision: Precision = "full"
    waits: bool = False
    setting: Callable[[], AbstractContextManager[None]] = nullcontext

    def run(self, call: Call) -> tuple[Any, ...]:
        """Our results."""
        with self.setting():
            return as_tuple(call.apply(KERNELS[self.operation]))


# ---- the cases -----------------------------------------------------------------------------------------------------


CONVOLUTIONS: tuple[tuple[str, Precision], ...] = (
    ("forward", "full"), ("forward", "tf32"), ("forward", "bf16"), ("grad_input", "full"), ("grad_weight", "full")
)  # fmt: skip


OURS: dict[Precision, conv2d.Precision] = {"full": "float32", "tf32": "tf32", "bf16": "bf16"}


def cases(*, toy: bool) -> Iterator[Case]:
    """Every case, in full size or as small as it can be."""
    height, width, images, narrower = (32, 64, 1, 16) if toy else (800, 1088, 2, 1)
    for operation, precision in CONVOLUTIONS:
        for layer in resnet50_fpn(height, width, narrower):
            if operation == "grad_input" and layer.title.startswith("stem"):
                continue  # images have no gradient

            def convolution(layer: Layer = layer, operation: str = operation) -> Call:
                return layer.call(operation, images, np.random.default_rng(0))

            full = precision == "full"
            yield Case(
                bar=operation if full else f"{operation} {precision}",
                title=layer.title,
                operation=f"conv2d_{operation}",
                make=convolution,
                precision=precision,
                setting=partial(conv2d.precision, OURS[precision]),
            )
    for count in (2000, 12000):

        def boxes(count: int = count) -> Call:
            few = count // 50 if toy else count
            return Call(arrays=dict(clustered(few, np.random.default_rng(count))), parameters={"iou_threshold": 0.7})

        yield Case(bar=f"nms {count}", title="clustered boxes", operation="nms", make=boxes, waits=True)
    for size in (7, 14):

        def pooled(size: int = size) -> Call:
            return _roi_call(size, toy, gradient=False)

        yield Case(bar=f"roi_align {size}", title="level 2", operation="roi_align_forward", make=pooled)
    for always in (False, True):

        def scattered() -> Call:
            return _roi_call(7, toy, gradient=True)

        name = "roi_align deterministic" if always else "roi_align atomic"
        yield Case(
            bar=name,
            title="7x7",
            operation="roi_align_grad_features",
            make=scattered,
            setting=partial(roi.deterministic, always),
        )


def _roi_call(size: int, toy: bool, *, gradient: bool) -> Call:
    height, width, channels, count = (64, 96, 8, 5) if toy else (800, 1088, 256, 1000)
    rng = np.random.default_rng(size)
    shape = (1, height // 4, width // 4, channels)
    parameters: dict[str, Any] = {"spatial_scale": 0.25, "sampling_ratio": 2, "aligned": False}
    indices = {"boxes": regions(count, height, width, rng), "image_index": np.zeros(count, np.int64)}
    if gradient:
        grad_output = rng.standard_normal((count, size, size, channels), np.float32)
        return Call(arrays={"grad_output": grad_output, **indices}, parameters={"input_shape": shape, **parameters})
    features = rng.standard_normal(shape, np.float32)
    return Call(arrays={"features": features, **indices}, parameters={"size": (size, size), **parameters})


# ---- the check -----------------------------------------------------------------------------------------------------


def verify(case: Case, call: Call, results: Sequence[Any], reference: Callable[..., Any]) -> float:
    """The largest error as a share of what the operation's contract allows; `reference` computes in float64.

    Raises:
        WrongResult: it is larger than that.
    """
    try:
        return within_contract(case.operation, call, results, reference, precision=case.precision)
    except WrongResult as wrong:
        raise WrongResult(f"{case.bar}: {case.title}: {wrong}") from None


# ---- running -------------------------------------------------------------------------------------------------------


def dry_run(chosen: Iterable[Case]) -> list[dict[str, Any]]:
    """Each case in the emulator, against the specification; a line for each."""
    lines = []
    for case in chosen:
        call = case.make()
        share = verify(case, call, case.run(call), operations()[case.operation].specification)
        lines.append({"bar": case.bar, "title": case.title, "error": share})
    return lines


class Bench:
    """A GPU with everything that is compared on it."""

    def __init__(self) -> None:
        import torch
        import torchvision

        self.cupy, self.torch = import_cupy(), torch
        self.stopwatch = Stopwatch(self.cupy, torch)
        self.versions = {module.__name__: module.__version__ for module in (self.cupy, torch, torchvision, np)}
        cudnn: Any = torch.backends.cudnn
        cudnn.benchmark = True
        self.versions["cudnn"] = str(cudnn.version())
        self.versions["device"] = torch.cuda.get_device_name()

    def run(self, case: Case) -> dict[str, Any]:
        """Check and time one case.

        Raises:
            WrongResult: our result is wrong.
        """
        call = case.make()
        size = sum(leaf.nbytes for value in call.arrays.values() for leaf in leaves(value))
        sets = [call.map(lambda _, a: self.cupy.asarray(a)) for _ in range(copies(size, self.stopwatch.cache))]
        reference = torch_peers.reference(case.operation, self.torch)
        share = verify(case, call, case.run(sets[0]), reference)
        with torch_peers.tf32(self.torch, case.precision == "tf32"):
            theirs = {
                name: [
                    torch_peers.launch(case.operation, name, given, self.torch, half=case.precision == "bf16")
                    for given in sets
                ]
                for name in torch_peers.LAYOUTS[case.operation]
            }
            compare = self.stopwatch.compare_waiting if case.waits else self.stopwatch.compare
            ours = [partial(case.run, given) for given in sets]
            timed = compare(ours, theirs)
        self.cupy.get_default_memory_pool().free_all_blocks()
        self.torch.cuda.empty_cache()
        return {"bar": case.bar, "title": case.title, "error": share, **figures(timed)}


def figures(timed: Comparison) -> dict[str, Any]:
    """A comparison as the file has it: medians in microseconds, and the ratio's median and range over the rounds."""
    ratios = timed.ratios
    return {
        "ours_us": statistics.median(timed.ours),
        "peers_us": {name: statistics.median(values) for name, values in timed.peers.items()},
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
    }


# ---- the report ----------------------------------------------------------------------------------------------------


def rows(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each bar: the geometric means of its cases' ratios."""
    table = []
    for name, bar in BARS.items():
        mine = [line for line in lines if line["bar"] == name and "ratio" in line]
        row: dict[str, Any] = {"title": bar.title, "least": bar.least, "aim": bar.aim, "cases": len(mine)}
        if mine:
            row.update({key: statistics.geometric_mean(line[key] for line in mine) for key in ("ratio", "low", "high")})
        table.append(row)
    return table


def markdown(table: Sequence[dict[str, Any]]) -> str:
    """The rows as a table; what wasn't measured says so."""
    lines = ["| operation | at least | aim | measured: median (range over rounds) | cases |", "|---|---|---|---|---|"]
    for row in table:
        measured = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})" if "ratio" in row else "not measured"
        lines.append(f"| {row['title']} | {row['least']:g} | {row['aim']:g} | {measured} | {row['cases']} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if a case failed, after all others have run."""
    parser = argparse.ArgumentParser(prog="python -m refnet.kernels.cuda.benchmark")
    parser.add_argument("out", type=Path, help="the folder that receives benchmark.json and benchmark.md")
    parser.add_argument("--dry-run", action="store_true", help="small cases in the emulator, no times")
    parser.add_argument("--only", default="", help="cases whose row or title has this in it")
    options = parser.parse_args(arguments)
    bench = None if options.dry_run else Bench()
    lines, failures = [], []
    for case in cases(toy=options.dry_run):
        if options.only not in f"{case.bar}: {case.title}":
            continue
        try:
            lines += [bench.run(case)] if bench else dry_run([case])
        except Exception:
            failures.append({"bar": case.bar, "title": case.title, "error": traceback.format_exc()})
            print(f"FAILED {case.bar}: {case.title}\n{failures[-1]['error']}", flush=True)
    table = rows(lines)
    document = {"versions": bench.versions if bench else {}, "rows": table, "cases": lines, "failures": failures}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "benchmark.json").write_text(json.dumps(document, indent=1) + "\n")
    (options.out / "benchmark.md").write_text(markdown(table))
    print(f"{len(lines)} cases right, {len(failures)} failed" if options.dry_run else markdown(table))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
