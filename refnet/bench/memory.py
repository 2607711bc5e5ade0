"""The most memory that a network occupies at work, measured in a process of its own for each contestant.

::

    python -m refnet.bench.memory WHO WORK HEIGHT WIDTH BATCH    # prints MiB in JSON: before, and at most

What making the network took is forgotten before the work begins, where the system can (Linux), and refnet keeps the
memory that it frees, as its program does.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from refnet.bench import bars
from refnet.bench.contest import Measurement, Subject
from refnet.bench.contestants import CPU, TORCHVISION, Field
from refnet.errors import RefnetError

CALLS = 2  # the second finds what the first has left behind


def subjects(*, quick: bool) -> Iterator[Subject]:
    """Inference and steps of training: whole processes, and what is above the imported libraries."""
    work = [("inference", 64, 96, 1)] if quick else [
        ("inference", 512, 512, 1),
        ("inference", 800, 1088, 1),
        ("training", 512, 512, 1),
        ("training", 512, 512, 2),
    ]  # fmt: skip
    for name, height, width, batch in work:
        for above in (False, True):
            yield subject(name, height, width, batch, above=above, quick=quick)


def subject(work: str, height: int, width: int, batch: int, *, above: bool, quick: bool) -> Subject:
    """The peak of one kind of work."""
    size = f"{height}x{width}" + (f", batch {batch}" if work == "training" else "")
    return Subject(
        name=f"peak memory, {work} {size}{', above the imports' if above else ''}",
        against={TORCHVISION: bars.MEMORY},
        unit="MiB",
        measure=partial(_measure, work=work, numbers=(height, width, batch), above=above, quick=quick),
    )


def _measure(
    field: Field, threads: int, *, work: str, numbers: tuple[int, int, int], above: bool, quick: bool
) -> Measurement:
    contestants = [CPU, *([TORCHVISION] if field.torchvision is not None else [])]
    values = {}
    for name in contestants:
        found = in_a_process(name, work, numbers, threads=threads, quick=quick)
        values[name] = [found["peak"] - found["imported"] if above else found["peak"]]
    return values, "peaks of fresh processes"


_known: dict[tuple[Any, ...], dict[str, float]] = {}


def in_a_process(who: str, work: str, numbers: Sequence[int], *, threads: int, quick: bool) -> dict[str, float]:
    """MiB of a fresh process in which `who` works: "imported" behind the imports, and "peak". Measured once.

    Raises:
        RefnetError: the process failed.
    """
    key = (who, work, *numbers, threads, quick)
    if key not in _known:
        arguments = [who, work, *numbers, "quick" if quick else "full"]
        environment = {
            **os.environ,
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": str(threads),
            "REFNET_NUM_THREADS": str(threads),
        }
        done = subprocess.run(  # -P: in a checkout, the folder one stands in would hide the installed package
            [sys.executable, "-P", "-m", "refnet.bench.memory", *map(str, arguments)],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RefnetError(f"peak memory of {who}, {work}: {done.stderr.strip()}")
        _known[key] = json.loads(done.stdout.splitlines()[-1])
    return _known[key]


def occupied() -> dict[str, float]:
    """MiB of this process now and at most, from Linux's account; elsewhere at most only, which stands for both."""
    from refnet.train.memory import peak_memory_mib

    status = Path("/proc/self/status")
    if not status.is_file():
        peak = peak_memory_mib() or 0.0
        return {"now": peak, "peak": peak}
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return {name: int(lines[key].split()[0]) / 1024 for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}


def forget_peak() -> None:
    """Let Linux count the peak from now on; elsewhere it counts from the start."""
    switch = Path("/proc/self/clear_refs")
    if switch.exists():
        switch.write_text("5")  # proc(5): resets the peak resident set size


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    who, work, height, width, batch, size = sys.argv[1:] if arguments is None else arguments
    # imports are what is measured first, so they stand here
    from refnet import kernels
    from refnet.bench import models, torch_models, training
    from refnet.train import keep_freed_memory

    kernels.install()
    torch: Any = None
    if who == TORCHVISION:
        torch = importlib.import_module("torch")
        importlib.import_module("torchvision")
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    imported = occupied()["now"]
    h, w, n = int(height), int(width), int(batch)
    config = (models.small_network if size == "quick" else models.network)(h, w)
    state = models.rule_state(config)
    if work == "training":
        samples = [training.rule_sample(index, h, w, config.num_classes) for index in range(n)]
        call = training.steps_of(who, config, state, samples, torch)
    elif torch is None:
        ours, image = models.refnet_model(config, state), models.rule_image(h, w)

        def call() -> None:
            ours.detect([image] * n)
    else:
        theirs = torch_models.maskrcnn(config).eval()
        torch_models.load_state(theirs, state, torch)
        pixels = torch_models.as_image(models.rule_image(h, w), torch)

        def call() -> None:
            with torch.no_grad():
                theirs([pixels] * n)

    del state
    gc.collect()
    forget_peak()
    if torch is None:
        keep_freed_memory()
    for _ in range(CALLS):
        call()
    print(json.dumps({"imported": imported, "peak": occupied()["peak"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
