"""One or several operations in a row as something to be timed, by whoever can."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from refnet.arrays import Array
from refnet.bench import torch_peers
from refnet.bench.contest import Contest, Part, WrongResult, within_contract
from refnet.bench.contestants import CHANNELS_LAST, CPU, CUDA, SPECIFICATION, TORCH, Field, by_specification, on_device
from refnet.kernel_op import operations
from refnet.testing import Call
from refnet.testing.calls import as_tuple

CONTESTANTS = {"channels first": TORCH, "channels last": CHANNELS_LAST, "torchvision": "torchvision"}
"""Whom the layouts of :data:`refnet.bench.torch_peers.LAYOUTS` belong to."""

Work = Sequence[tuple[str, Call]]


def part(name: str, make: Callable[[np.random.Generator], Work], *, specification: bool = True) -> Part:
    """A part whose work is made from a generator of random numbers when it is its turn.

    Args:
        specification: whether the specification takes part.
    """
    return Part(name=name, prepare=partial(_contest, make=make, specification=specification))


def _contest(field: Field, *, make: Callable[[np.random.Generator], Work], specification: bool) -> Contest:
    work = make(np.random.default_rng(0))
    runs: dict[str, Callable[[], Any]] = {CPU: partial(_apply, work)}
    layouts = [layout for layout in CONTESTANTS if all(layout in torch_peers.LAYOUTS.get(n, ()) for n, _ in work)]
    for layout in layouts:
        if (field.torchvision if layout == "torchvision" else field.torch) is not None:
            launches = [torch_peers.launch(name, layout, call, field.torch) for name, call in work]
            runs[CONTESTANTS[layout]] = partial(_each, launches)
    if field.cupy is not None:
        there = [(name, call.map(lambda _, array: field.cupy.asarray(array))) for name, call in work]
        runs[CUDA] = on_device(field.cupy, partial(_apply, there))
    if specification:
        runs[SPECIFICATION] = by_specification(partial(_apply, work))
    return Contest(runs=runs, check=partial(_check, work=work, field=field))


def _apply(work: Work) -> list[Any]:
    return [call.apply(operations()[name]) for name, call in work]


def _each(launches: Sequence[Callable[[], Any]]) -> list[Any]:
    return [launch() for launch in launches]


def _check(results: Mapping[str, list[Any]], *, work: Work, field: Field) -> str:
    """That our results lie within the contracts of the operations, and others' are near them.

    Raises:
        WrongResult: they don't.
    """
    worst = 0.0
    for index, (name, call) in enumerate(work):
        reference = operations()[name].specification
        if field.torch is not None:
            reference = torch_peers.reference(name, field.torch, "cpu")
        for contestant in (CPU, CUDA):
            if contestant in results:
                try:
                    share = within_contract(name, call, as_tuple(results[contestant][index]), reference)
                except WrongResult as wrong:
                    raise WrongResult(f"{contestant}, {name}: {wrong}") from None
                worst = max(worst, share)
        for contestant, theirs in results.items():
            if contestant not in (CPU, CUDA, SPECIFICATION):
                _check_peer(f"{contestant}, {name}", torch_peers.to_arrays(name, theirs[index]), results[CPU][index])
    return f"error at most {worst:.2g} of what rounding allows"


PEER_ROUNDING = 1e-4
"""How far a peer's result may lie from ours, as a share of the largest value: it computes the same, or something else."""


def _check_peer(who: str, theirs: Sequence[Array], ours: Any) -> None:
    for result, mine in zip(theirs, as_tuple(ours), strict=False):
        if result.shape != mine.shape:
            raise WrongResult(f"{who}: expected shape {mine.shape}, got {result.shape}")
        apart, largest = abs(result - mine).max(initial=0), abs(mine).max(initial=0)
        if not apart <= PEER_ROUNDING * largest:
            raise WrongResult(f"{who}: {apart:.3g} from kernels/cpu, whose largest value is {largest:.3g}")
