"""Two traces, tensor by tensor in the order of the data flow: where does the other one depart, and which convention
would explain it?

The first tensor that departs belongs to one stage. That stage is run again, from the other trace's own inputs, which
agree so far, once for each convention that it knows with that one set otherwise; a convention that makes the
difference vanish is named. Where none does alone, pairs are tried, and then the settings of whole presets, reduced to
those that are needed.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refnet.arrays import Array
from refnet.conformance.representations import representations
from refnet.conformance.stages import STAGES, Inputs, NotRecorded, Stage, rerun
from refnet.conformance.switches import Switch, differing, flipped, rebuild, switches
from refnet.conformance.trace_file import Entry, TraceFile
from refnet.errors import ConfigError, RefnetError
from refnet.rcnn.config import ModelConfig
from refnet.rcnn.model import MaskRCNN
from refnet.rcnn.presets import PRESETS

TOLERANCES = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 1e-4}
"""By how much values may differ, relative to the largest of their tensor, in the coarser of the two types."""

_NOT_COMPARED = ("images.", "annotations.")  # what both were given


@dataclass(frozen=True, slots=True, kw_only=True)
class Departure:
    """A tensor that isn't the same in both traces.

    Attributes:
        name: of the tensor.
        shape, other_shape: where these differ, nothing else is compared.
        difference: the largest, relative to the largest value of the tensor here; infinite where one is NaN.
        index: where that is.
        value, other_value: what stands there.
        share: of the values (of a sample, if one is stored) that differ by more than the tolerance.
    """

    name: str
    shape: tuple[int, ...]
    other_shape: tuple[int, ...]
    difference: float = np.inf
    index: tuple[int, ...] = ()
    value: float = np.nan
    other_value: float = np.nan
    share: float = 1.0

    def __str__(self) -> str:
        if self.shape != self.other_shape:
            return f"{self.name}: shape {self.shape} here, {self.other_shape} there"
        return (
            f"{self.name} {self.shape}: at {list(self.index)} {self.value:.9g} here, {self.other_value:.9g} there; "
            f"the largest difference is {self.difference:.3g} of the largest value, and {self.share:.2%} of the "
            "values differ"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What :func:`compare` found.

    Attributes:
        agreeing: the tensors up to the first departure, each with its largest relative difference.
        departure: the first tensor that departs; None where all agree.
        stage: the one that it belongs to.
        explanations: what would make the difference vanish: a switch, several together, or another way to write
            the tensor down. Each one suffices by itself.
        tried: how many settings the stage was run under.
        note: why the stage couldn't be run again, where it couldn't.
        only_here, only_there: the tensors that one trace has.
    """

    agreeing: Mapping[str, float]
    departure: Departure | None = None
    stage: str | None = None
    explanations: Sequence[str] = ()
    tried: int = 0
    note: str | None = None
    only_here: Sequence[str] = ()
    only_there: Sequence[str] = ()

    def __str__(self) -> str:
        lines = []
        for stage, names in itertools.groupby(self.agreeing, lambda name: name.partition(".")[0]):
            values = [self.agreeing[name] for name in names]
            lines.append(f"{stage}: {len(values)} agree, the largest difference is {max(values):.2g}")
        if self.only_here or self.only_there:
            lines.append(f"not compared: {len(self.only_here)} only here, {len(self.only_there)} only there")
            lines += [f"  only there: {name}" for name in self.only_there]
        if self.departure is None:
            return "\n".join([*lines, f"all {len(self.agreeing)} tensors that both have agree"])
        lines += ["", f"first departure: {self.departure}"]
        if self.explanations:
            lines += ["this would explain it:", *(f"  {text}" for text in self.explanations)]
        elif self.note is not None:
            lines.append(f"the stage {self.stage} can't be run again: {self.note}")
        else:
            lines.append(f"none of {self.tried} settings of the stage {self.stage} explains it")
        return "\n".join(lines)


def compare(
    ours: TraceFile,
    other: TraceFile,
    config: ModelConfig,
    *,
    model: MaskRCNN | None = None,
    tolerance: float | None = None,
) -> Comparison:
    """Compare two traces and look for the convention that would explain the first departure.

    Args:
        ours: written by refnet under `config`, with the metadata ``training`` and ``seed``.
        other: another implementation's, with any of the same tensors.
        model: the network with the weights of `ours`; without it, stages with weights aren't run again.
        tolerance: relative to a tensor's largest value; by default 1e-9 where both are float64, else 1e-4.
    """
    names = [name for name in ours.tensors if not name.startswith(_NOT_COMPARED)]
    shared = [name for name in names if name in other.tensors]
    only_here = [name for name in names if name not in other.tensors]
    only_there = [name for name in other.tensors if name not in ours.tensors and not name.startswith(_NOT_COMPARED)]
    agreeing: dict[str, float] = {}
    for name in shared:
        found = difference(name, ours.tensors[name], other.tensors[name], tolerance)
        if isinstance(found, float):
            agreeing[name] = found
            continue
        search = _Search(ours, other, config, model, found, tolerance)
        return Comparison(
            agreeing=agreeing, departure=found, stage=search.stage.name if search.stage else None,
            explanations=search.explanations(), tried=search.tried, note=search.note, only_here=only_here, only_there=only_there,
        )  # fmt: skip
    return Comparison(agreeing=agreeing, only_here=only_here, only_there=only_there)


def difference(name: str, ours: Entry, other: Entry, tolerance: float | None = None) -> Departure | float:
    """The largest relative difference of two tensors, or, if it exceeds the tolerance, where they depart."""
    if ours.shape != other.shape:
        return Departure(name=name, shape=ours.shape, other_shape=other.shape)
    if ours.step != other.step and 1 not in (ours.step, other.step):
        raise ConfigError(f"compare: {name}: samples by {ours.step} and by {other.step} share no values")
    ours, other = ours.like(other), other.like(ours)
    a, b = (entry.values.astype(np.float64) for entry in (ours, other))
    if not a.size:
        return 0.0
    if tolerance is None:
        kinds = [entry.values.dtype for entry in (ours, other)]
        tolerance = max(TOLERANCES.get(kind, 0.0) for kind in kinds)
    scale = np.abs(a[np.isfinite(a)]).max(initial=0.0) or 1.0
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        distance = np.where(same, 0.0, np.nan_to_num(np.abs(a - b) / scale, nan=np.inf))
    largest = float(distance.max())
    if largest <= tolerance:
        return largest
    position = int(distance.argmax())
    index = np.unravel_index(position * ours.step, ours.shape)
    return Departure(
        name=name, shape=ours.shape, other_shape=other.shape, difference=largest,
        index=tuple(int(i) for i in index), value=float(a.flat[position]), other_value=float(b.flat[position]),
        share=float((distance > tolerance).mean()),
    )  # fmt: skip


class _Search:
    """Looks for what explains a departure."""

    def __init__(
        self,
        ours: TraceFile,
        other: TraceFile,
        config: ModelConfig,
        model: MaskRCNN | None,
        departure: Departure,
        tolerance: float | None,
    ) -> None:
        self.ours, self.other, self.config, self.model = ours, other, config, model
        self.departure, self.tolerance = departure, tolerance
        name = departure.name.partition(".")[0]
        self.stage: Stage | None = next((stage for stage in STAGES if stage.name == name), None)
        # what came before agrees, so the stage runs on the other's own values where there are any
        earlier = itertools.takewhile(lambda n: n != departure.name, ours.tensors)
        before = {n for n in earlier if n.partition(".")[0] != name}
        self.inputs = {
            n: other.tensors[n] if n in other.tensors and n in before else e for n, e in ours.tensors.items()
        }
        self.tried = 0
        self.note: str | None = None

    def explanations(self) -> list[str]:
        """All that would explain it, each by itself: conventions, or else other ways to write the same numbers down."""
        found: list[str] = []
        if self.stage is not None:
            try:
                found = self._switches(self.stage)
            except NotRecorded as error:
                self.note = str(error)
        return found or list(self._representations())

    def _switches(self, stage: Stage) -> list[str]:
        """The switches that explain it alone; else two of them; else those that a preset has and that are needed."""
        unchanged = self._run(self.config)
        found, visible = [], []
        for change in switches(self.config, stage.sections):
            tensors = self._run_under([change])
            if tensors is not None and not _identical(tensors, unchanged):
                visible.append(change)
                if self._explains(tensors):
                    found.append(change)
        if found:
            by_field = itertools.groupby(found, lambda change: change.field)
            return [" or ".join(map(str, values)) for _, values in by_field]
        for pair in itertools.combinations(visible, 2):
            if pair[0].field != pair[1].field and self._explains(self._run_under(pair)):
                return [_together(pair)]
        for name, preset in PRESETS.items():
            needed = differing(self.config, preset(self.config.num_classes), stage.sections)
            if len(needed) > 2 and self._explains(self._run_under(needed)):
                for change in list(needed):
                    fewer = [c for c in needed if c is not change]
                    if self._explains(self._run_under(fewer)):
                        needed = fewer
                return [f"as in {name}: {_together(needed)}"]
        return []

    def _representations(self) -> Iterator[str]:
        name = self.departure.name
        ours, other = self.ours.tensors[name], self.other.tensors[name]
        if ours.step > 1:
            return
        _, height, width, _ = self.ours.tensors["input.pixels"].shape
        found = False
        for representation in representations(name, ours.values):
            values = representation.convert(ours.values, (height, width))
            if isinstance(difference(name, Entry(values, values.shape), other, self.tolerance), float):
                found = True
                yield representation.name
        if not found and other.step == 1 and _same_rows(ours.values, other.values):
            yield "the same rows in another order"

    def _run(self, config: ModelConfig) -> dict[str, Array]:
        assert self.stage is not None
        model = self.model
        if model is not None and config != self.config and self.stage.name in WEIGHTED:
            model = rebuild(model, config)
        inputs = Inputs(
            tensors=self.inputs, config=config, model=model,
            training=bool(self.ours.metadata.get("training")), seed=int(self.ours.metadata.get("seed", 0)),
        )  # fmt: skip
        return rerun(self.stage, inputs)

    def _run_under(self, changes: Iterable[Switch]) -> dict[str, Array] | None:
        """The stage's tensors under `changes`; None if these don't go together, or with these weights or tensors."""
        try:
            tensors = self._run(flipped(self.config, changes))
        except NotRecorded:
            raise
        except (RefnetError, ValueError, IndexError):
            return None
        self.tried += 1
        return tensors

    def _explains(self, tensors: Mapping[str, Array] | None) -> bool:
        """Whether these are all that the other trace has of the stage."""
        if tensors is None:
            return False
        stage = self.departure.name.partition(".")[0]
        theirs = {n: entry for n, entry in self.other.tensors.items() if n.partition(".")[0] == stage}
        return all(
            name in tensors
            and isinstance(difference(name, Entry(tensors[name], tensors[name].shape), entry, self.tolerance), float)
            for name, entry in theirs.items()
        )


def _identical(a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name], equal_nan=True) for name in a)


def _together(changes: Iterable[Switch]) -> str:
    return " and ".join(map(str, changes))


WEIGHTED = ("backbone", "fpn", "rpn", "box_head", "mask_head")


def _same_rows(ours: Array, other: Array) -> bool:
    """Whether both hold the same rows in different orders, to the last bit."""
    if ours.ndim not in (1, 2) or ours.shape != other.shape or len(ours) < 2:
        return False
    a, b = (np.unique(values.reshape(len(values), -1), axis=0, return_counts=True) for values in (ours, other))
    return bool(np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]))
