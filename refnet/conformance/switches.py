"""The conventions as switches: which other values a field may have, and the same weights under another convention."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np

from refnet.arrays import Array
from refnet.errors import ConfigError
from refnet.nn.init import Blank
from refnet.rcnn.config import ModelConfig
from refnet.rcnn.model import MaskRCNN
from refnet.rcnn.presets import PRESETS


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """One field of the configuration at another value.

    Attributes:
        field: its dotted name, ``anchors.center_offset``.
        value: what it is there.
        here: what it is here.
    """

    field: str
    value: Any
    here: Any

    def __str__(self) -> str:
        return f"{self.field} = {self.value!r} (here {self.here!r})"


SIZES = {
    "num_classes", "width", "depth", "family", "channels", "layers", "convolutions", "enabled", "size", "checkpoint",
}  # fmt: skip
"""Fields that say which layers a network has, how large they are, and how much memory they take: no conventions."""

# conventions that show only over many steps, so in no trace
_UNSEEN = {"initialization", "zero_init_residual", "norm_momentum"}
_NOT_TRIED = SIZES | _UNSEEN

MORE: Mapping[str, tuple[Any, ...]] = {
    "backbone.norm_epsilon": (0.0,),  # torchvision's published COCO_V1 files
    "anchors.center_offset": (0.5,),  # ChainerCV
    "anchors.step": (2,),  # Matterport with RPN_ANCHOR_STRIDE = 2
    "rpn.min_size": (16.0,),  # py-faster-rcnn
    "roi_targets.negative_iou_low": (0.1,),  # py-faster-rcnn
}
"""Values that somebody uses and no preset has."""

# a value that makes sense only together with another
_COMPANIONS: Mapping[tuple[str, Any], Mapping[str, Any]] = {
    ("detections.paste", "hard"): {"mask_threshold": 0.5},
    ("box_pool.method", "crop_and_resize"): {"box_units": "normalized"},
    ("mask_pool.method", "crop_and_resize"): {"box_units": "normalized"},
}


def switches(config: ModelConfig, sections: Iterable[str]) -> Iterator[Switch]:
    """Every other value that a field of these sections may have.

    A choice has those of its type; a number those that some preset or peer uses.
    """
    presets = [preset() for preset in PRESETS.values()]
    for section in sections:
        owner = getattr(config, section)
        if not is_dataclass(owner):
            yield from _switches(section, owner, get_type_hints(ModelConfig)[section], [])
            continue
        for name, hint in get_type_hints(type(owner)).items():
            if name not in _NOT_TRIED:
                used = [getattr(getattr(preset, section), name) for preset in presets]
                yield from _switches(f"{section}.{name}", getattr(owner, name), hint, used)


def _switches(field: str, here: Any, hint: Any, used: list[Any]) -> Iterator[Switch]:
    if get_origin(hint) is Literal:
        values = list(get_args(hint))
    elif hint is bool:
        values = [True, False]
    else:
        values = [*used, *MORE.get(field, ())]
    seen = [here]
    for value in values:
        if value not in seen:
            seen.append(value)
            yield Switch(field=field, value=value, here=here)


def differing(config: ModelConfig, other: ModelConfig, sections: Iterable[str]) -> list[Switch]:
    """The switches of these sections that lead from `config` to `other`."""
    found = []
    for section in sections:
        here, there = getattr(config, section), getattr(other, section)
        names = [f.name for f in fields(here) if f.name not in _NOT_TRIED] if is_dataclass(here) else [""]
        for name in names:
            a, b = (getattr(here, name), getattr(there, name)) if name else (here, there)
            if a != b:
                found.append(Switch(field=f"{section}.{name}".rstrip("."), value=b, here=a))
    return found


def flipped(config: ModelConfig, changes: Iterable[Switch]) -> ModelConfig:
    """`config` with these switches set; a value that makes sense only together with another brings that along.

    Raises:
        ConfigError: the values don't go together.
    """
    whole: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for change in changes:
        section, _, name = change.field.partition(".")
        if not name:
            whole[section] = change.value
            continue
        values = parts.setdefault(section, {})
        values[name] = change.value
        for other, needed in _COMPANIONS.get((change.field, change.value), {}).items():
            if getattr(getattr(config, section), other) != needed:
                values.setdefault(other, needed)
    return replace(config, **whole, **{s: replace(getattr(config, s), **values) for s, values in parts.items()})


def rebuild(model: MaskRCNN, config: ModelConfig) -> MaskRCNN:
    """The weights of `model` under the conventions of `config`.

    Where a convention has its own shape of weights, they are those that compute the same: two logits for one are
    (0, z); a background that moves takes its logit along, and boxes or masks of the background are dropped; a
    convolution that gets a bias gets zeros, and one that loses it loses it.

    Raises:
        ConfigError: weights of `config` have shapes that these can't be given.
    """
    rebuilt = MaskRCNN(config, rng=Blank(), dtype=model.dtype)
    state = model.state()
    for name, target in rebuilt.state().items():
        if name not in state:
            if not name.endswith("conv.bias"):
                raise ConfigError(f"rebuild: {name}: the model has no such values")
            target[...] = 0
            continue
        values = _adapted(name, state[name], model.config, config)
        if values.shape != target.shape:
            raise ConfigError(f"rebuild: {name}: expected {target.shape}, got {values.shape}")
        target[...] = values
    return rebuilt


def _adapted(name: str, values: Array, here: ModelConfig, there: ModelConfig) -> Array:
    if name.startswith("rpn.objectness.") and here.rpn.objectness != there.rpn.objectness:
        if there.rpn.objectness == "softmax":
            pairs = np.stack([np.zeros_like(values), values], axis=-1)  # ... A 2
            return pairs.reshape(*values.shape[:-1], -1)
        pairs = values.reshape(*values.shape[:-1], -1, 2)
        return np.asarray(pairs[..., 1] - pairs[..., 0])
    if here.box_head.background == there.box_head.background:
        return values
    first, classes = there.box_head.background == "first", here.num_classes
    if name.startswith("box_head.classes."):
        return np.roll(values, 1 if first else -1, axis=-1)
    groups = {"box_head.deltas.": here.box_head.class_agnostic, "mask_head.logits.": here.mask_head.class_agnostic}
    for prefix, agnostic in groups.items():
        if name.startswith(prefix) and not agnostic:
            by_class = values.reshape(*values.shape[:-1], classes + (0 if first else 1), -1)
            moved = np.concatenate([0 * by_class[..., :1, :], by_class], axis=-2) if first else by_class[..., 1:, :]
            return moved.reshape(*values.shape[:-1], -1)
    return values
