"""The list of what is measured, in full size or so small that it takes seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from refnet.bench import bars, evaluation, layers, memory, models, operations, scaling, training
from refnet.bench.contest import Curve, Part, Subject
from refnet.bench.contestants import SPECIFICATION, TORCHVISION
from refnet.train.config import RunConfig

Named = TypeVar("Named", bound=Subject | Curve)


def subjects(*, quick: bool) -> list[Subject]:
    """Every row, in the order of the table."""
    rows = [
        *layers.subjects(quick=quick),
        *operations.subjects(quick=quick),
        *_models(quick),
        *memory.subjects(quick=quick),
        evaluation.subject(quick=quick),
    ]
    if quick:  # nothing is asked of toys
        rows = [replace(subject, against=dict.fromkeys(subject.against)) for subject in rows]
    return rows


def curves(*, quick: bool) -> list[Curve]:
    """Every curve of growth."""
    found = list(scaling.curves(quick=quick))
    return [replace(curve, bar=None) for curve in found] if quick else found


def everything(*, quick: bool) -> list[Subject | Curve]:
    """Rows, then curves."""
    return [*subjects(quick=quick), *curves(quick=quick)]


def chosen(listed: Sequence[Named], only: Sequence[str]) -> list[Named]:
    """Those with any of these words in their names, all if there are no words."""
    return [one for one in listed if not only or any(word in one.name for word in only)]


def _models(quick: bool) -> Iterator[Subject]:
    for height, width in ((64, 96),) if quick else ((512, 512), (800, 1088)):
        yield Subject.of(models.inference(height, width, quick=quick), {TORCHVISION: bars.INFERENCE})
    size = 64 if quick else 512
    for batch in (1,) if quick else (1, 2):
        yield Subject.of(training.step(size, size, batch, quick=quick), {TORCHVISION: bars.TRAINING})
    run = RunConfig()
    if quick:
        run = replace(run, train=replace(run.train, batch_size=1))
    shapes = Part(
        name=f"training step shapes, batch {run.train.batch_size}",
        prepare=partial(training.prepare_shapes, run=run, head_start=2 if quick else 50),
    )
    yield Subject.of(shapes, {TORCHVISION: bars.TRAINING_SHAPES})
    height, width = (64, 96) if quick else (512, 512)
    yield Subject.of(models.inference(height, width, quick=quick, specification=True), {SPECIFICATION: None})
