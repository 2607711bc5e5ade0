"""What network a file of weights is of: the conventions from its names, the sizes from its shapes."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from refnet.arrays import Array
from refnet.errors import WeightsError
from refnet.rcnn import presets
from refnet.rcnn.config import ModelConfig
from refnet.rcnn.resnet import BLOCKS
from refnet.rcnn.vgg import CONVOLUTIONS
from refnet.weights.files import read_tensors
from refnet.weights.layouts import axes_in_file
from refnet.weights.load import Source, Tensors, unwrapped
from refnet.weights.names import Convention, detect_convention, structure_in

EPSILON_ZERO = {
    "bf2d0c1e": "maskrcnn_resnet50_fpn",
    "258fb6c6": "fasterrcnn_resnet50_fpn",
    "fc266e95": "keypointrcnn_resnet50_fpn",
    "9f466800": "keypointrcnn_resnet50_fpn, the older",
}
"""torchvision's published files that were trained with a batch norm without epsilon, by the start of their SHA-256."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inferred:
    """A configuration that fits a file.

    Attributes:
        config: the network.
        convention: whose names the file has.
        notes: what was chosen without being in the file, for people to check.
    """

    config: ModelConfig
    convention: Convention
    notes: tuple[str, ...]


def model_for(source: Source, *, base: ModelConfig | None = None, sha256: str | None = None) -> Inferred:
    """The network that the weights of a detector are of.

    Names tell the convention, and so the preset; shapes tell depth, widths, the number of classes and which heads there
    are. What weights don't show (thresholds, sizes of images) is the preset's.

    Args:
        source: a file, or a mapping from names to arrays.
        base: the configuration to start from instead of the convention's preset.
        sha256: the digest of the file, if `source` is a mapping that was read from one.

    Raises:
        WeightsError: the weights are of a backbone alone, of a convention that no preset describes, or of a network
            that refnet doesn't have.
    """
    if isinstance(source, Mapping):
        tensors = unwrapped(source)
    else:
        tensors = unwrapped(read_tensors(Path(source)))
        sha256 = file_digest(source)
    convention = detect_convention(tensors)
    found = _Shapes(tensors, convention)
    if base is None:
        base = _preset(convention, found)
    config = _resized(base, found)
    notes = [f"the network is taken from the file: {describe(config)}"]
    if convention.name == "torchvision" and config.backbone.norm != "batch" and config.backbone.family == "resnet":
        model = EPSILON_ZERO.get((sha256 or "")[:8])
        if model:
            config = replace(config, backbone=replace(config.backbone, norm_epsilon=0.0))
            notes.append(f"the file is torchvision's published {model}: its batch norms have epsilon 0")
        elif config.backbone.norm_epsilon > 0:
            notes.append(
                f"batch norms have epsilon {config.backbone.norm_epsilon:g}; torchvision's published COCO_V1 files need 0 "
                "(--backbone.norm-epsilon 0), and this isn't one of them byte for byte"
            )
    if convention.name == "multimodallearning":
        notes.append("boxes are decoded and cut off as Matterport does, where these weights come from")
    return Inferred(config=config, convention=convention, notes=tuple(notes))


def file_digest(path: str | PathLike[str]) -> str:
    """The SHA-256 of a file's content, in hexadecimal; torchvision's file names end with its first eight digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(config: ModelConfig) -> str:
    """A network in a few words."""
    kind = "Mask R-CNN" if config.mask_head.enabled else "Faster R-CNN"
    if config.keypoint_head.enabled:
        kind = f"Keypoint R-CNN{' with masks' if config.mask_head.enabled else ''}"
    family = "VGG" if config.backbone.family == "vgg" else "ResNet"
    return f"{kind}, {family}-{config.backbone.depth}, {config.num_classes} classes"


class _Shapes:
    """The shapes of a file's arrays, by refnet's names and in refnet's order of the axes."""

    def __init__(self, tensors: Tensors, convention: Convention) -> None:
        self.tensors, self.convention = tensors, convention
        self.structure = structure_in(tensors)

    def find(self, name: str) -> tuple[int, ...] | None:
        """The shape of a parameter, or None if the file hasn't got it."""
        for entry in self.convention.entries(name, self.structure):
            if entry in self.tensors:
                array: Array = self.tensors[entry]
                return tuple(array.shape[axis] for axis in axes_in_file(self.convention, name, array.ndim))
        return None

    def __contains__(self, name: str) -> bool:
        return self.find(name) is not None

    def require(self, name: str, ndim: int) -> tuple[int, ...]:
        """The shape of a parameter of `ndim` axes that every network has.

        Raises:
            WeightsError: the file hasn't got it, or with another number of axes.
        """
        shape = self.find(name)
        if shape is None or len(shape) != ndim:
            entries = " or ".join(self.convention.entries(name, self.structure)) or name
            raise WeightsError(
                f"weights: expected {entries} with {ndim} axes in a file of {self.convention.about}, got {shape}"
            )
        return shape

    def count(self, pattern: str) -> int:
        """How many parameters there are in a row, `pattern` with 0, 1, ... in the place of {}."""
        number = 0
        while pattern.format(number) in self:
            number += 1
        return number


def _preset(convention: Convention, found: _Shapes) -> ModelConfig:
    """The preset of a convention.

    Raises:
        WeightsError: there is none.
    """
    if convention.backbone_only:
        raise WeightsError(
            f"weights: expected those of a detector, got those of a backbone ({convention.about}); they can start a "
            "training of a network that a preset describes"
        )
    match convention.name:
        case "torchvision" if "fpn.lateral_norms.0.weight" in found:
            return presets.torchvision_v2()
        case "torchvision" if "keypoint_head.upsample.weight" in found:
            return presets.torchvision_keypoints()
        case "torchvision" | "refnet":
            return presets.torchvision()
        case "matterport" | "multimodallearning":
            return presets.matterport()
        case "detectron2":
            return presets.detectron2()
    raise WeightsError(
        f"weights: no preset has all conventions of {convention.about} (its anchors are rounded in units of a stride); "
        "name a preset to start from"
    )


def _resized(base: ModelConfig, found: _Shapes) -> ModelConfig:
    """`base` with the sizes of the file's arrays."""
    vgg = "backbone.stages.0.0.weight" in found
    _, _, channels, width = found.require(f"backbone.{'stages.0.0' if vgg else 'stem.conv'}.weight", 4)
    fpn = found.require("fpn.output.0.weight", 4)[3]
    rpn = found.require("rpn.convolutions.0.weight", 4)[3]
    (anchors,) = found.require("rpn.deltas.bias", 1)
    if anchors != 4 * base.anchors.per_position:
        raise WeightsError(
            f"weights: expected {base.anchors.per_position} anchors at a position, as the preset has, got {anchors // 4}; "
            "a configuration has to say which"
        )
    classes = found.require("box_head.classes.bias", 1)[0] - 1
    box: dict[str, Any] = {"class_agnostic": classes > 1 and found.require("box_head.deltas.bias", 1) == (4,)}
    if base.box_head.kind == "fc":
        box["convolutions"] = found.count("box_head.convolutions.{}.weight")
        if box["convolutions"]:
            box["conv_channels"] = found.require("box_head.convolutions.0.weight", 4)[3]
        box["layers"] = found.count("box_head.hidden.{}.weight")
        pooled, box["channels"] = found.require("box_head.hidden.0.weight", 2)
        size = round((pooled / (box.get("conv_channels", fpn))) ** 0.5)
    else:
        size, _, _, box["channels"] = found.require("box_head.convolutions.0.weight", 4)
    mask: dict[str, Any] = {"enabled": "mask_head.logits.weight" in found}
    if mask["enabled"]:
        mask["channels"], outputs = found.require("mask_head.logits.weight", 4)[2:]
        mask["convolutions"] = found.count("mask_head.convolutions.{}.weight")
        mask["class_agnostic"] = classes > 1 and outputs == 1
    keypoints: dict[str, Any] = {"enabled": "keypoint_head.upsample.weight" in found}
    if keypoints["enabled"]:
        inputs, keypoints["num_keypoints"] = found.require("keypoint_head.upsample.weight", 4)[2:]
        keypoints["convolutions"] = found.count("keypoint_head.convolutions.{}.weight")
        if keypoints["convolutions"]:
            keypoints["channels"] = inputs
    return replace(
        base,
        num_classes=classes,
        input=replace(base.input, channels=channels),
        backbone=replace(base.backbone, family="vgg" if vgg else "resnet", depth=_depth(found, vgg=vgg), width=width),
        fpn=replace(base.fpn, channels=fpn),
        rpn=replace(base.rpn, channels=rpn, convolutions=found.count("rpn.convolutions.{}.weight")),
        box_pool=replace(base.box_pool, size=size),
        box_head=replace(base.box_head, **box),
        mask_head=replace(base.mask_head, **mask),
        keypoint_head=replace(base.keypoint_head, **keypoints),
    )


def _depth(found: _Shapes, *, vgg: bool) -> Any:
    """The depth of a VGG or a ResNet, from its blocks.

    Raises:
        WeightsError: there is none with such blocks.
    """
    if vgg:
        blocks = tuple(found.count(f"backbone.stages.{stage}.{{}}.weight") for stage in range(5))
        depth = next((depth for depth, known in CONVOLUTIONS.items() if known == blocks), None)
        if depth is None:
            raise WeightsError(
                f"weights: expected the blocks of a VGG-{', '.join(map(str, CONVOLUTIONS))}, got {blocks}"
            )
        return depth
    blocks = tuple(found.count(f"backbone.stages.{stage}.{{}}.branch.0.conv.weight") for stage in range(4))
    bottleneck = "backbone.stages.0.0.branch.2.conv.weight" in found
    for depth, known in BLOCKS.items():
        if known == blocks and bottleneck == (depth >= 50):
            return depth
    raise WeightsError(f"weights: expected the blocks of a ResNet-{', '.join(map(str, BLOCKS))}, got {blocks}")
