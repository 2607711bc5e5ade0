"""The list of what is measured, in full size or so small that it takes seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from refnet.bench import bars, layers, models, operations, training
from refnet.bench.contest import Part, Subject
from refnet.train.config import RunConfig


def subjects(*, quick: bool) -> list[Subject]:
    """Every subject, in the order of the table."""
    everything = [*layers.subjects(quick=quick), *operations.subjects(quick=quick), *_models(quick)]
    if quick:  # nothing is asked of toys
        everything = [replace(subject, against=dict.fromkeys(subject.against)) for subject in everything]
    return everything


def chosen(everything: Sequence[Subject], only: Sequence[str]) -> list[Subject]:
    """Those with any of these words in their names, all if there are no words."""
    return [subject for subject in everything if not only or any(word in subject.name for word in only)]


def _one(name: str, part: Part, **against: bars.Bar | None) -> Subject:
    return Subject(name=name, parts=((1, part),), against=against)


def _models(quick: bool) -> Iterator[Subject]:
    network = models.small_network if quick else models.network
    for height, width in ((64, 96),) if quick else ((512, 512), (800, 1088)):
        name = f"inference {height}x{width}"
        prepare = partial(models.prepare_inference, config=network(height, width), height=height, width=width)
        yield _one(name, Part(name=name, prepare=prepare), torchvision=bars.INFERENCE)
    size = 64 if quick else 512
    for batch in (1,) if quick else (1, 2):
        name = f"training step {size}x{size}, batch {batch}"
        prepare = partial(training.prepare_step, config=network(size, size), height=size, width=size, batch=batch)
        yield _one(name, Part(name=name, prepare=prepare), torchvision=bars.TRAINING)
    run = RunConfig()
    if quick:
        run = replace(run, train=replace(run.train, batch_size=1))
    name = f"training step shapes, batch {run.train.batch_size}"
    prepare = partial(training.prepare_shapes, run=run, head_start=2 if quick else 50)
    yield _one(name, Part(name=name, prepare=prepare), torchvision=bars.TRAINING_SHAPES)
    height, width = (64, 96) if quick else (512, 512)
    name = f"specification, {height}x{width}"
    prepare = partial(
        models.prepare_inference, config=network(height, width), height=height, width=width, specification=True
    )
    yield _one(name, Part(name=name, prepare=prepare), specification=None)
