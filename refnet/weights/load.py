"""Weights of other programs into a network, with a report that proves what went where.

>>> report = load(model, "maskrcnn_resnet50_fpn_coco.pth")
>>> report.parameters
44401393
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np

from refnet.arrays import Array, on_device_of
from refnet.errors import WeightsError
from refnet.nn import match_names
from refnet.rcnn.model import MaskRCNN
from refnet.weights.files import read_tensors
from refnet.weights.layouts import Layout
from refnet.weights.names import Convention, Structure, all_layers, detect_convention, structure_in

Tensors: TypeAlias = Mapping[str, Array]
Source: TypeAlias = str | PathLike[str] | Tensors

WRAPPERS = ("module.", "model.", "state_dict.")  # DataParallel's, and those of checkpoints that hold more than weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """An array that can't be what the network needs.

    Attributes:
        name, entry: the parameter, and the file's name for it.
        expected, got: what the file should hold and what it does.
    """

    name: str
    entry: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.name}: expected {self.expected}, got {self.got} ({self.entry})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What of a file went where. Names of the network's own are called parameters here, buffers included.

    Attributes:
        source: the file.
        convention: whose names it has.
        matched: parameters that took their values from the file, with the file's names for them.
        kept: parameters that kept their values: they were excluded, or the file is of a backbone alone.
        missing: parameters that the file should have and hasn't.
        unexpected: names in the file that the network has no use for.
        ignored: names in the file that are passed over, with the reason.
        mismatched: arrays of another shape or kind than the network needs.
        notes: conversions and other things worth knowing.
        parameters: values in the network's parameters, without buffers, as torch counts a model's parameters.
        model_values, file_values, loaded_values: values in all arrays of the network; of the file; taken from it.
    """

    source: str
    convention: Convention
    matched: Mapping[str, str]
    kept: Sequence[str]
    missing: Sequence[str]
    unexpected: Sequence[str]
    ignored: Mapping[str, str]
    mismatched: Sequence[Mismatch]
    notes: Sequence[str]
    parameters: int
    model_values: int
    file_values: int
    loaded_values: int

    @property
    def complete(self) -> bool:
        """Whether nothing is missing, unexpected or mismatched."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        tensors = len(self.matched) + len(self.missing) + len(self.mismatched) + len(self.kept)
        lines = [
            f"weights {self.source}: names of {self.convention.about} ({self.convention.name})",
            f"  loaded      {len(self.matched)} of {tensors} arrays, {self.loaded_values:,} of {self.model_values:,} "
            f"values; the file has {self.file_values:,}",
            f"  parameters  {self.parameters:,}, not counting what is a buffer",
        ]
        lines += _listed("kept", self.kept)
        for reason in dict.fromkeys(self.ignored.values()):
            names = [name for name, why in self.ignored.items() if why == reason]
            lines.append(f"  ignored     {len(names)}: {reason}: {names[0]}{', ...' if len(names) > 1 else ''}")
        lines += [f"  note        {note}" for note in self.notes]
        lines += _listed("missing", self.missing)
        lines += _listed("unexpected", self.unexpected)
        lines += _listed("mismatched", [str(entry) for entry in self.mismatched])
        return "\n".join(lines)


def _listed(what: str, entries: Sequence[str]) -> list[str]:
    return [f"  {what:12}{len(entries)}:", *(f"    {entry}" for entry in entries)] if entries else []


def load(model: MaskRCNN, source: Source, *, exclude: str | Sequence[str] = (), name: str | None = None) -> LoadReport:
    """Give `model` the weights of a file, whatever program wrote it, or of a mapping from such names to arrays.

    Nothing is left to chance: every array of the network must be in the file, with the right shape, and everything in
    the file must have a place or a reason to be ignored. Of a file that holds a classifier, the backbone is taken.

    Args:
        exclude: patterns of parameters (regular expressions that match whole names of refnet's) which keep the values
            that the model has, such as ``box_head\\.(classes|deltas)\\..*`` for another number of classes.

        name: what messages call the source, by default the path of the file.

    Raises:
        WeightsError: something is missing, unexpected or mismatched, or not finite, or the file isn't one of weights. The
            message holds the whole report, and the model is as it was.
        ArgumentError: a pattern isn't a regular expression, or matches no parameter.
    """
    tensors = source if isinstance(source, Mapping) else read_tensors(Path(source))
    if name is None:
        name = "arrays" if isinstance(source, Mapping) else str(source)
    patterns = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    plan = _Plan(model, unwrapped(tensors), patterns, name)
    report = plan.report()
    if not report.complete:
        problems = len(report.missing) + len(report.unexpected) + len(report.mismatched)
        raise WeightsError(
            f"weights {name}: {problems} arrays don't fit the network; nothing was loaded:\n{_indented(report)}"
        )
    plan.copy()
    return report


def _indented(report: LoadReport) -> str:
    return "\n".join(f"  {line}" for line in str(report).splitlines())


def unwrapped(tensors: Tensors) -> Tensors:
    """`tensors` without the prefixes that wrappers put before every name, such as DataParallel's ``module.``."""
    for prefix in WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return unwrapped({name.removeprefix(prefix): array for name, array in tensors.items()})
    return tensors


class _Plan:
    """Which array of a file becomes which parameter of a model, decided before anything is changed."""

    def __init__(self, model: MaskRCNN, tensors: Tensors, exclude: Sequence[str], source: str) -> None:
        self.model, self.tensors, self.source = model, tensors, source
        self.convention = detect_convention(tensors)
        self.layout = Layout(convention=self.convention, config=model.config)
        self.targets = model.state()
        structure = structure_in(tensors)
        self.meant: dict[str, str] = {}  # what refnet calls a name of the file
        layers = dict.fromkeys(name.rpartition(".")[0] for name in self.targets)
        self._understand(layers, structure)
        if len(self.meant) < len(tensors):
            self._understand(all_layers(), structure)
        self.entries = {name: entry for entry, name in self.meant.items() if name in self.targets}
        self.excluded = self._matching(exclude)

    def _understand(self, layers: Iterable[str], structure: Structure) -> None:
        for layer in layers:
            for leaf, entries in self.convention.arrays_of(layer, structure).items():
                for entry in entries:
                    if entry in self.tensors:
                        self.meant.setdefault(entry, f"{layer}.{leaf}")

    def _matching(self, patterns: Sequence[str]) -> set[str]:
        """The parameters, of the network or of the file, that a pattern matches."""
        return set(match_names({**self.targets, **dict.fromkeys(self.meant.values())}, patterns, what="exclude"))

    def report(self) -> LoadReport:
        """What will happen, or what stands against it."""
        matched: dict[str, str] = {}
        missing, kept, mismatched = [], [], []
        self.constants: dict[str, float] = {}
        for name, target in self.targets.items():
            leaf = name.rpartition(".")[2]
            if name in self.excluded or (self.convention.backbone_only and not name.startswith("backbone.")):
                kept.append(name)
            elif name not in self.entries:
                if self.convention.affine_norms and leaf in ("running_mean", "running_variance"):
                    epsilon = self.model.config.backbone.norm_epsilon
                    self.constants[name] = 0.0 if leaf == "running_mean" else 1.0 - epsilon
                else:
                    missing.append(name)
            else:
                problem = self._mismatch(name, target)
                if problem is None:
                    matched[name] = self.entries[name]
                else:
                    mismatched.append(problem)
        ignored, unexpected = self._leftover()
        return LoadReport(
            source=self.source,
            convention=self.convention,
            matched=matched,
            kept=kept,
            missing=missing,
            unexpected=unexpected,
            ignored=ignored,
            mismatched=mismatched,
            notes=self._notes(matched),
            parameters=self.model.count(),
            model_values=sum(array.size for array in self.targets.values()),
            file_values=sum(array.size for array in self.tensors.values()),
            loaded_values=sum(self.targets[name].size for name in matched),
        )

    def _mismatch(self, name: str, target: Array) -> Mismatch | None:
        entry = self.entries[name]
        array = self.tensors[entry]
        shape = self.layout.file_shape(name, target.shape)
        if array.shape != shape:
            return Mismatch(name=name, entry=entry, expected=f"shape {shape}", got=f"shape {array.shape}")
        if array.dtype.kind != "f":
            return Mismatch(name=name, entry=entry, expected="floating point", got=str(array.dtype))
        with np.errstate(over="ignore"):
            finite = np.isfinite(array.astype(target.dtype, copy=False)).all()
        if not finite:
            return Mismatch(name=name, entry=entry, expected=f"finite values of {target.dtype}", got="others, too")
        return None

    def _leftover(self) -> tuple[dict[str, str], list[str]]:
        """The names in the file that no parameter of the network takes: ignored ones with the reason, and others."""
        ignored: dict[str, str] = {}
        unexpected = []
        for entry in self.tensors:
            name = self.meant.get(entry)
            if name in self.targets and self.entries[name] == entry and name not in self.excluded:
                continue
            reason = next((why for pattern, why in self.convention.ignored if re.fullmatch(pattern, entry)), None)
            if name in self.excluded:
                reason = "excluded"
            if reason is None:
                unexpected.append(entry if name in (None, entry) else f"{entry} ({name})")
            else:
                ignored[entry] = reason
        return ignored, unexpected

    def _notes(self, matched: Mapping[str, str]) -> list[str]:
        notes = []
        if self.convention.backbone_only:
            notes.append("these are weights of a backbone: everything behind it keeps its values")
        for dtype in sorted({str(self.tensors[entry].dtype) for entry in matched.values()} - {str(self.model.dtype)}):
            count = sum(str(self.tensors[entry].dtype) == dtype for entry in matched.values())
            notes.append(f"{count} arrays are {dtype}, converted to the network's {self.model.dtype}")
        if self.constants:
            notes.append(
                f"the file's batch norms are only scale and shift: {len(self.constants)} statistics are mean 0 and "
                "variance 1 - epsilon"
            )
        for name in matched:
            if name.endswith(".weight") and (here := self.layout.only_here(name)):
                notes.append(f"{name}: {len(here)} output channels of the background are 0, the file has none")
            if name.endswith(".weight") and (there := self.layout.only_in_file(name)):
                notes.append(f"{name}: {len(there)} output channels of the background are left out")
        return notes

    def copy(self) -> None:
        """Give the model its values."""
        for name, target in self.targets.items():
            if name in self.constants:
                target[...] = self.constants[name]
            elif name in self.entries and name not in self.excluded:
                values = self.layout.from_file(name, self.tensors[self.entries[name]])
                target[...] = on_device_of(values, target)
