"""The arrays of another program in refnet's layout, and back.

Two things change: the order of the axes, and which output channel means what. The second is done by meaning: for the
layers whose outputs are anchors, coordinates or classes, both sides list what each channel stands for, and channels of
equal meaning are matched, so that one text moves the background, swaps x and y, and permutes anchors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Num, Shaped

from refnet.arrays import Array
from refnet.errors import WeightsError
from refnet.rcnn.anchors import cell_anchors
from refnet.rcnn.config import AnchorConfig, ModelConfig
from refnet.weights.names import Convention

Meaning: TypeAlias = tuple[Any, ...]

COORDINATES = {"xyxy": ("x", "y", "w", "h"), "yxyx": ("y", "x", "h", "w")}
AXES = {
    ("torch", "conv"): (2, 3, 1, 0),
    ("torch", "upsample"): (2, 3, 0, 1),
    ("torch", "linear"): (1, 0),
    ("keras", "upsample"): (0, 1, 3, 2),
}
"""Which axis of the file's array becomes each axis of refnet's; where nothing is said, they agree."""


def axes_in_file(convention: Convention, name: str, ndim: int) -> tuple[int, ...]:
    """For each axis of the parameter `name`, which axis of the file's array it is."""
    kind = {4: "upsample" if ".upsample." in name else "conv", 2: "linear"}.get(ndim, "vector")
    return AXES.get((convention.arrays, kind), tuple(range(ndim)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the arrays of one convention lie for a network of one configuration.

    Raises:
        WeightsError: the convention's anchors and those of the configuration have different shapes, so that no order
            of the channels makes them agree.
    """

    convention: Convention
    config: ModelConfig

    def __post_init__(self) -> None:
        if self.only_here("rpn.deltas.bias") or self.only_in_file("rpn.deltas.bias"):
            anchors = self.config.anchors
            raise WeightsError(
                f"weights: anchors.ratio_is must be {self.convention.ratio_is!r} for weights of "
                f"{self.convention.about} with the ratios {anchors.ratios}, got {anchors.ratio_is!r}"
            )

    def file_shape(self, name: str, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that the parameter `name`, of `shape` here, has in a file."""
        outputs = self._theirs(name)
        changed = [*shape[:-1], len(outputs)] if outputs else list(shape)
        axes = self._axes(name, len(shape))
        return tuple(changed[axes.index(i)] for i in range(len(axes)))

    def from_file(self, name: str, array: Num[Array, "..."]) -> Num[Array, "..."]:
        """The array of a file, which must have :meth:`file_shape`, as the parameter `name`."""
        array = array.transpose(self._axes(name, array.ndim))
        if self._is_flattened(name):
            array = _exchange_flattening(array, self.config.box_pool.size, channels="first")
        return _matched(array, self._theirs(name), self._ours(name))

    def to_file(self, name: str, array: Num[Array, "..."]) -> Num[Array, "..."]:
        """The inverse of :meth:`from_file`, but for channels that only the file has, which are 0."""
        array = _matched(array, self._ours(name), self._theirs(name))
        if self._is_flattened(name):
            array = _exchange_flattening(array, self.config.box_pool.size, channels="last")
        return np.ascontiguousarray(array.transpose(np.argsort(self._axes(name, array.ndim))))

    def only_in_file(self, name: str) -> list[Meaning]:
        """What the output channels stand for that only the file has."""
        ours = set(self._ours(name))
        return [meaning for meaning in self._theirs(name) if meaning not in ours]

    def only_here(self, name: str) -> list[Meaning]:
        """What the output channels stand for that only the network has."""
        theirs = set(self._theirs(name))
        return [meaning for meaning in self._ours(name) if meaning not in theirs]

    def _axes(self, name: str, ndim: int) -> tuple[int, ...]:
        return axes_in_file(self.convention, name, ndim)

    def _is_flattened(self, name: str) -> bool:
        """Whether the inputs of a fully connected layer are pooled features: here (P, P, C), in torch (C, P, P)."""
        return self.convention.arrays == "torch" and name == "box_head.hidden.0.weight"

    def _ours(self, name: str) -> list[Meaning]:
        config = self.config
        anchors = config.anchors
        return self._meanings(name, "xyxy", config.box_head.background, anchors.ratio_is, anchors.order)

    def _theirs(self, name: str) -> list[Meaning]:
        there, config = self.convention, self.config
        return self._meanings(
            name,
            there.boxes,
            there.background or config.box_head.background,
            there.ratio_is or config.anchors.ratio_is,
            there.order or config.anchors.order,
        )

    def _meanings(
        self,
        name: str,
        boxes: Literal["xyxy", "yxyx"],
        background: Literal["first", "last"],
        ratio_is: Literal["h/w", "w/h"],
        order: Literal["ratio_major", "size_major"],
    ) -> list[Meaning]:
        """What each output channel of a layer stands for; empty where the channels are only features."""
        config = self.config
        foreground = list(range(1, config.num_classes + 1))
        predicted = [0, *foreground] if background == "first" else foreground
        match name.split(".")[:-1]:
            case ["rpn", "objectness"]:
                logits = ("object",) if config.rpn.objectness == "sigmoid" else ("background", "object")
                return [(*anchor, logit) for anchor in _anchors(config.anchors, ratio_is, order) for logit in logits]
            case ["rpn", "deltas"]:
                return [
                    (*anchor, c) for anchor in _anchors(config.anchors, ratio_is, order) for c in COORDINATES[boxes]
                ]
            case ["box_head", "classes"]:
                return [(k,) for k in (predicted if background == "first" else [*foreground, 0])]
            case ["box_head", "deltas"]:
                kinds = ["any"] if config.box_head.class_agnostic else predicted
                return [(k, c) for k in kinds for c in COORDINATES[boxes]]
            case ["mask_head", "logits"] if not config.mask_head.class_agnostic:
                return [(k,) for k in predicted]
        return []


def _anchors(
    config: AnchorConfig, ratio_is: Literal["h/w", "w/h"], order: Literal["ratio_major", "size_major"]
) -> list[Meaning]:
    """Width and height of the anchors at one position, in an order."""
    boxes = cell_anchors(config.sizes[0], replace(config, rounding=False, ratio_is=ratio_is, order=order))
    return [(round(float(x2 - x1), 4), round(float(y2 - y1), 4)) for x1, y1, x2, y2 in boxes]


def _matched(array: Array, given: list[Meaning], wanted: list[Meaning]) -> Array:
    """Along the last axis, the channels of the meanings `wanted`, from an array with those `given`; 0 if there is none."""
    if given == wanted:
        return array
    place = {meaning: i for i, meaning in enumerate(given)}
    index = np.array([place.get(meaning, -1) for meaning in wanted])
    taken = array[..., index]
    taken[..., index < 0] = 0
    return taken


def _exchange_flattening(
    weight: Shaped[Array, "I O"], size: int, *, channels: Literal["first", "last"]
) -> Shaped[Array, "I O"]:
    """Rows in the order (C, P, P), channels first, as rows in the order (P, P, C); or back, from channels last."""
    inputs, outputs = weight.shape
    if channels == "first":
        return weight.reshape(-1, size, size, outputs).transpose(1, 2, 0, 3).reshape(inputs, outputs)
    return weight.reshape(size, size, -1, outputs).transpose(2, 0, 1, 3).reshape(inputs, outputs)
