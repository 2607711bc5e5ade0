"""Traces on disk: an ``.npz`` archive without pickles, one member for each tensor, in the order of the data flow.

A tensor ``NAME`` is stored whole, or as a sample: every ``NAME:step``-th of its values in C order, ``NAME:shape`` being
its shape. ``metadata`` is JSON as bytes; a trace that another implementation wrote needs none, and no more tensors
than it has: names and layouts are those of refnet (:mod:`refnet.rcnn.trace`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from refnet.arrays import Array
from refnet.errors import DataError, WeightsError
from refnet.weights import npz_file

FORMAT = "refnet trace"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a trace, or a sample of it.

    Attributes:
        values: the tensor itself, or, with a `step` above 1, every step-th of its values in one row.
        shape: of the whole tensor.
    """

    values: Shaped[Array, "..."]
    shape: tuple[int, ...]
    step: int = 1

    def like(self, other: "Entry") -> "Entry":
        """This tensor sampled as `other` is, so that the two can be compared."""
        if self.step > 1 or other.step == 1:
            return self
        return Entry(np.ascontiguousarray(self.values).reshape(-1)[:: other.step], self.shape, other.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFile:
    """The tensors by name, in the order of the data flow, and what is known about the pass that they are from."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def entries(trace: Mapping[str, Array]) -> dict[str, Entry]:
    """Whole tensors as entries."""
    return {name: Entry(array, array.shape) for name, array in trace.items()}


def write_trace(path: Path, trace: TraceFile, *, sample: int | None = None) -> None:
    """Write a trace of whole tensors.

    Args:
        sample: tensors of more values than this are stored as a sample of about as many; None: all are whole.
    """
    text = json.dumps({"format": FORMAT, "version": VERSION, **trace.metadata}, sort_keys=True, allow_nan=False)
    members: dict[str, Array] = {"metadata": np.frombuffer(text.encode(), np.uint8)}
    for name, entry in trace.tensors.items():
        array = entry.values
        if sample is None or array.size <= sample:
            members[name] = array
            continue
        # an odd step doesn't keep to one column of a matrix with evenly many
        step = -(-array.size // sample) | 1
        members[name] = np.ascontiguousarray(array).reshape(-1)[::step]
        members[f"{name}:shape"], members[f"{name}:step"] = np.asarray(array.shape), np.asarray(step)
    npz_file.write(path, members)


def read_trace(path: Path) -> TraceFile:
    """Read a trace, refnet's or another implementation's. Nothing in it is executed.

    Raises:
        DataError: there is no such file, or it isn't a trace.
    """
    try:
        members = npz_file.read(path)
    except (OSError, WeightsError) as error:
        raise DataError(f"trace {path}: expected an .npz archive of tensors: {error}") from error
    metadata = _metadata(members.pop("metadata", None), path)
    tensors = {}
    for name, values in members.items():
        if name.endswith((":shape", ":step")):
            continue
        step = int(members.get(f"{name}:step", 1))
        shape = tuple(int(extent) for extent in members.get(f"{name}:shape", values.shape))
        if values.size != -(-int(np.prod(shape)) // step):
            raise DataError(f"trace {path}: {name}: a sample of {shape} by {step} can't have {values.size} values")
        tensors[name] = Entry(values, shape, step)
    return TraceFile(tensors=tensors, metadata=metadata)


def _metadata(member: Array | None, path: Path) -> Mapping[str, Any]:
    if member is None:
        return {}
    try:
        metadata = json.loads(member.tobytes())
        found = metadata["format"], metadata["version"]
    except (ValueError, TypeError, LookupError) as error:
        raise DataError(f"trace {path}: metadata: expected JSON of a {FORMAT}, got {error}") from error
    if found != (FORMAT, VERSION):
        raise DataError(f"trace {path}: expected a {FORMAT} of version {VERSION}, got {found}")
    return dict(metadata)
