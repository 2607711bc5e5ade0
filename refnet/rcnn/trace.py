"""A trace: every intermediate of one pass through the network, by name, in the order of the data flow.

Names are the stage and what it hands on: ``backbone.c4``, ``fpn.p2``, ``rpn.deltas.p3``, ``proposals.0.boxes`` (of
image 0), ``rois.classes``, ``box_head.class_logits``, ``losses.box``. Records and sequences are taken apart, so that
each entry is one plain array.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import numpy as np

from refnet.arrays import Array, is_array, to_host
from refnet.autograd import Tensor

T = TypeVar("T")

# stages whose sequences run over the levels of the pyramid; other sequences run over images
LEVELS = {
    "backbone": ("c2", "c3", "c4", "c5"),
    "fpn": ("p2", "p3", "p4", "p5", "p6"),
    "anchors": ("p2", "p3", "p4", "p5", "p6"),
    "rpn.objectness_logits": ("p2", "p3", "p4", "p5", "p6"),
    "rpn.deltas": ("p2", "p3", "p4", "p5", "p6"),
}


class Trace(dict[str, Array]):
    """Calling it with a name and a value records the value and returns it, so a call can stand around any expression.

    Arrays are NumPy's, on the host, and copies: what is recorded doesn't change when the network goes on.
    """

    def __call__(self, name: str, value: T) -> T:
        """Record `value`, an array, a tensor, or records and sequences of them, under `name`; return it."""
        for entry, array in flatten(name, value):
            self[entry] = np.array(to_host(array))
        return value


class _NoTrace(Trace):
    def __call__(self, name: str, value: T) -> T:
        return value


NO_TRACE = _NoTrace()
"""Records nothing."""


def flatten(name: str, value: Any) -> Iterator[tuple[str, Array]]:
    """The arrays in `value`, each with its name; what is None has none."""
    if value is None:
        return
    if isinstance(value, Tensor):
        yield name, value.data
    elif is_array(value):
        yield name, value
    elif isinstance(value, int | float | np.generic):
        yield name, np.asarray(value)
    elif is_dataclass(value):
        for entry in fields(value):
            yield from flatten(f"{name}.{entry.name.rstrip('_')}", getattr(value, entry.name))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from flatten(f"{name}.{key}", item)
    else:
        names = LEVELS.get(name) or tuple(str(index) for index in range(len(value)))
        for part, item in zip(names, value, strict=True):
            yield from flatten(f"{name}.{part}", item)
