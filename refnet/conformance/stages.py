"""The network one stage at a time: what a stage takes from a trace, what it hands on, and how to run it alone.

``model.py`` runs the same functions in a row; here each starts from recorded tensors, so that a stage can be repeated
under another convention without what came before it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np

from refnet.arrays import Array
from refnet.autograd import Tensor, no_grad
from refnet.conformance.trace_file import Entry
from refnet.errors import DataError
from refnet.rcnn.anchors import make_anchors
from refnet.rcnn.config import ModelConfig, RoiPoolConfig
from refnet.rcnn.losses import add_losses, box_losses, keypoint_loss, mask_loss, rpn_losses
from refnet.rcnn.model import (
    MaskRCNN,
    choose_rois,
    find_objects,
    find_proposals,
    finish,
    image_index,
    label_anchors,
)
from refnet.rcnn.roi_pool import pool_rois
from refnet.rcnn.structures import (
    AnchorTargets,
    BoxOutput,
    Detections,
    GroundTruth,
    ImageBatch,
    Proposals,
    Rois,
    RpnOutput,
)
from refnet.rcnn.trace import LEVELS, Trace
from refnet.rcnn.transform import prepare_images, prepare_truth

T = TypeVar("T")


class NotRecorded(DataError):
    """A stage can't be run: a trace doesn't have what it takes, or only a sample of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a stage runs on.

    Attributes:
        tensors: of a trace, by name.
        config: the conventions to run it under.
        model: with these conventions and the trace's weights; None where the weights aren't at hand.
        training: whether the trace is that of a training step.
        seed: of the sampling of anchors and regions.
    """

    tensors: Mapping[str, Entry]
    config: ModelConfig
    model: MaskRCNN | None
    training: bool
    seed: int

    def __getitem__(self, name: str) -> Array:
        entry = self.tensors.get(name)
        if entry is None or entry.step > 1:
            raise NotRecorded(f"{name}: expected the whole tensor, the traces have {'a sample' if entry else 'none'}")
        return entry.values

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    @property
    def network(self) -> MaskRCNN:
        """The model.

        Raises:
            NotRecorded: there is none.
        """
        if self.model is None:
            raise NotRecorded("weights: expected those of the trace, got none")
        return self.model

    def sequence(self, name: str) -> list[Array]:
        """The tensors of all levels of the pyramid, or of all images."""
        if name in LEVELS:
            return [self[f"{name}.{level}"] for level in LEVELS[name]]
        found: list[Array] = []
        while (entry := f"{name}.{len(found)}") in self:
            found.append(self[entry])
        return found

    def record(self, kind: type[T], name: str) -> T:
        """The record `kind` that was taken apart under `name`; what the trace doesn't have of it is None.

        Raises:
            NotRecorded: the trace has nothing of it.
        """
        values: dict[str, Any] = {}
        for entry in fields(kind):  # type: ignore[arg-type]
            part = f"{name}.{entry.name}"
            if part in self:
                values[entry.name] = self[part]
            else:
                values[entry.name] = self.sequence(part) if part in LEVELS or f"{part}.0" in self else None
            if "Tensor" in str(entry.type) and values[entry.name] is not None:
                values[entry.name] = _tensors(values[entry.name])
        if all(value is None for value in values.values()):
            raise NotRecorded(f"{name}: expected its tensors, the traces have none")
        return kind(**values)

    def records(self, kind: type[T], name: str) -> list[T]:
        """The records of all images."""
        return [self.record(kind, f"{name}.{index}") for index in range(len(self["input.pixels"]))]

    @property
    def batch(self) -> ImageBatch:
        """The network's input."""
        sizes = [(image.shape[0], image.shape[1]) for image in self.sequence("images")]
        parts = {name: self[f"input.{name}"] for name in ("pixels", "windows", "scales")}
        if "input.uncropped" in self:
            parts["uncropped"] = self["input.uncropped"]
        return ImageBatch(**parts, original_sizes=sizes)

    @property
    def pyramid(self) -> list[Tensor]:
        """P2 to P6."""
        return [Tensor(array) for array in self.sequence("fpn")]


def _tensors(value: Array | list[Array]) -> Tensor | list[Tensor]:
    return Tensor(value) if isinstance(value, np.ndarray) else [Tensor(item) for item in value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A box of the diagram.

    Attributes:
        name: what its tensors' names begin with.
        sections: the fields of :class:`ModelConfig` that it reads.
        run: computes what it hands on.
    """

    name: str
    sections: tuple[str, ...]
    run: Callable[[Inputs], Any]


def rerun(stage: Stage, inputs: Inputs) -> dict[str, Array]:
    """The stage's tensors, by name, computed from `inputs`.

    Raises:
        NotRecorded: `inputs` doesn't hold all that it takes.
    """
    trace = Trace()
    with no_grad():
        trace(stage.name, stage.run(inputs))
    return trace


def _input(i: Inputs) -> Any:
    return _prepared(i, np.random.default_rng(i.seed))


def _prepared(i: Inputs, rng: np.random.Generator) -> ImageBatch:
    dtype = i["input.pixels"].dtype
    return prepare_images(i.sequence("images"), i.config.input, dtype, rng=rng if i.training else None)


def _generator(i: Inputs) -> np.random.Generator:
    """The random stream behind the preparation of the images, which draws from it what it cuts out."""
    rng = np.random.default_rng(i.seed)
    if i.config.input.resize == "crop":
        _prepared(i, rng)
    return rng


def _truth(i: Inputs) -> Any:
    return prepare_truth(i.records(GroundTruth, "annotations"), i.batch, i.config.input)


def _backbone(i: Inputs) -> Any:
    return i.network.backbone(Tensor(i["input.pixels"]), training=i.training)


def _fpn(i: Inputs) -> Any:
    return i.network.fpn([Tensor(array) for array in i.sequence("backbone")], training=i.training)


def _rpn(i: Inputs) -> Any:
    return i.network.rpn(i.pyramid)


def _anchors(i: Inputs) -> Any:
    shapes = [(array.shape[1], array.shape[2]) for array in i.sequence("fpn")]
    return make_anchors(shapes, i.batch.size, i.config.anchors, i["input.pixels"].dtype)


def _anchor_targets(i: Inputs) -> Any:
    return label_anchors(i.sequence("anchors"), i.records(GroundTruth, "truth"), i.batch, i.config, _generator(i))


def _proposals(i: Inputs) -> Any:
    return find_proposals(i.record(RpnOutput, "rpn"), i.sequence("anchors"), i.batch, i.config, training=i.training)


def _rois(i: Inputs) -> Any:
    rng, anchors, truth = _generator(i), i.sequence("anchors"), i.records(GroundTruth, "truth")
    label_anchors(anchors, truth, i.batch, i.config, rng)  # drew from it first
    proposals = i.records(Proposals, "proposals")
    return choose_rois(proposals, truth, i.record(RpnOutput, "rpn"), anchors, i.batch, i.config, rng)


def _box_pool(i: Inputs) -> Any:
    return _pool(i, i.config.box_pool, "rois" if i.training else "proposals")


def _pool(i: Inputs, config: RoiPoolConfig, source: str) -> Any:
    if source == "rois":
        boxes, images = i["rois.boxes"], i["rois.images"]
    elif source == "foreground":
        foreground = i["rois.foreground"]
        boxes, images = i["rois.boxes"][foreground], i["rois.images"][foreground]
    else:
        each = [i[f"{source}.{index}.boxes"] for index in range(len(i["input.pixels"]))]
        boxes, images = np.concatenate(each), image_index(each)
    return pool_rois(i.pyramid, boxes, images, i.batch.size, config)


def _box_head(i: Inputs) -> Any:
    return i.network.box_head(Tensor(i["box_pool"]), training=i.training)


def _detections(i: Inputs) -> Any:
    boxes = [entry.boxes for entry in i.records(Proposals, "proposals")]
    return find_objects(i.record(BoxOutput, "box_head"), boxes, i.batch, i.config)


def _mask_pool(i: Inputs) -> Any:
    return _pool(i, i.config.mask_pool, "foreground" if i.training else "detections")


def _mask_head(i: Inputs) -> Any:
    head = i.network.mask_head
    if head is None:
        raise NotRecorded("mask_head: expected a model with one, got one without")
    return {"logits": head(Tensor(i["mask_pool"]), training=i.training)}


def _keypoint_pool(i: Inputs) -> Any:
    return _pool(i, i.config.keypoint_pool, "foreground" if i.training else "detections")


def _keypoint_head(i: Inputs) -> Any:
    head = i.network.keypoint_head
    if head is None:
        raise NotRecorded("keypoint_head: expected a model with one, got one without")
    return {"logits": head(Tensor(i["keypoint_pool"]))}


def _losses(i: Inputs) -> Any:
    config, rois = i.config, i.record(Rois, "rois")
    rpn = rpn_losses(i.record(RpnOutput, "rpn"), i.record(AnchorTargets, "anchor_targets"), config.losses)
    box = box_losses(i.record(BoxOutput, "box_head"), rois, config.losses, config.box_head)
    mask = keypoint = None
    if rois.masks is not None:
        logits = Tensor(i["mask_head.logits"])
        mask = mask_loss(logits, rois, rois.masks, config.losses, config.box_head, config.mask_head)
    if rois.keypoints is not None:
        logits, images = Tensor(i["keypoint_head.logits"]), len(i["input.pixels"])
        keypoint = keypoint_loss(logits, rois.keypoints, images, config.losses, config.roi_targets)
    return add_losses(rpn, box, mask, keypoint, config.losses)


def _results(i: Inputs) -> Any:
    masks, keypoints = (Tensor(i[name]) if name in i else None for name in ("mask_head.logits", "keypoint_head.logits"))
    return finish(i.records(Detections, "detections"), masks, keypoints, i.batch, i.config)


STAGES = (
    Stage(name="input", sections=("input",), run=_input),
    Stage(name="truth", sections=("input",), run=_truth),
    Stage(name="backbone", sections=("backbone",), run=_backbone),
    Stage(name="fpn", sections=("fpn", "backbone"), run=_fpn),
    Stage(name="rpn", sections=("rpn",), run=_rpn),
    Stage(name="anchors", sections=("anchors",), run=_anchors),
    Stage(name="anchor_targets", sections=("anchor_targets", "rpn", "box_extent"), run=_anchor_targets),
    Stage(name="proposals", sections=("rpn", "box_extent"), run=_proposals),
    Stage(name="rois", sections=("roi_targets", "box_head", "box_extent"), run=_rois),
    Stage(name="box_pool", sections=("box_pool",), run=_box_pool),
    Stage(name="box_head", sections=("box_head", "backbone"), run=_box_head),
    Stage(name="detections", sections=("detections", "box_head", "box_extent"), run=_detections),
    Stage(name="mask_pool", sections=("mask_pool",), run=_mask_pool),
    Stage(name="mask_head", sections=("mask_head", "box_head", "backbone"), run=_mask_head),
    Stage(name="keypoint_pool", sections=("keypoint_pool",), run=_keypoint_pool),
    Stage(name="keypoint_head", sections=("keypoint_head",), run=_keypoint_head),
    Stage(name="losses", sections=("losses", "box_head", "mask_head", "roi_targets"), run=_losses),
    Stage(name="results", sections=("detections", "mask_head", "keypoint_head", "box_head", "input"), run=_results),
)
"""In the order of the data flow; a pass for training has no detections, one for inference no targets."""
