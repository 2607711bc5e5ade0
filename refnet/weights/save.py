"""A network's weights in the names and layout of another program, so that what was trained here runs there."""

from os import PathLike
from pathlib import Path

from refnet.arrays import Array, to_host
from refnet.errors import WeightsError
from refnet.rcnn.config import ModelConfig
from refnet.rcnn.model import MaskRCNN
from refnet.weights.files import write_tensors
from refnet.weights.layouts import Layout
from refnet.weights.names import CONVENTIONS, structure_of


def save(model: MaskRCNN, path: str | PathLike[str], convention: str = "torchvision") -> None:
    """Write the weights of `model` in the names and layout of `convention`.

    The end of the file's name says the format: .pth, .safetensors or .npz for torchvision's state dict (with the names
    that its models have in memory today), .h5 for Matterport's. Nothing but weights is in such a file: the conventions
    that the network was trained with have to be those of the program that reads it.

    Raises:
        WeightsError: a layer has no counterpart there, or lacks one that is needed; the format isn't known; the file
            can't be written.
    """
    write_tensors(Path(path), to_tensors(model, convention))


def to_tensors(model: MaskRCNN, convention: str = "torchvision") -> dict[str, Array]:
    """The weights of `model` by the names, and in the layout, of `convention`.

    Raises:
        WeightsError: there is no such convention, a layer has no counterpart there, or one lacks that is needed.
    """
    there = CONVENTIONS.get(convention)
    if there is None or there.backbone_only:
        known = [name for name, other in CONVENTIONS.items() if not other.backbone_only]
        raise WeightsError(f"weights: expected one of the conventions {', '.join(known)}, got {convention!r}")
    structure, layout = structure_of(model.config), Layout(convention=there, config=model.config)
    named = {name: there.entries(name, structure) for name in model.state()}
    problems = [f"{name} has no name there" for name, entries in named.items() if not entries]
    problems += _unlike(model.config, convention)
    if problems:
        raise WeightsError(
            f"weights: the network can't be written as {there.about} name it:\n  " + "\n  ".join(problems)
        )
    return {named[name][0]: layout.to_file(name, to_host(array)) for name, array in model.state().items()}


def _unlike(config: ModelConfig, convention: str) -> list[str]:
    """Which parameters that every network of `convention` has are missing in one of `config`, by the field to change."""
    expected: dict[str, tuple[object, object]] = {}
    if convention == "matterport":
        expected = {
            "backbone.conv_bias": (True, config.backbone.conv_bias),
            "box_head.conv_bias": (True, config.box_head.conv_bias),
            "mask_head.enabled": (True, config.mask_head.enabled),
            "mask_head.conv_bias": (True, config.mask_head.conv_bias),
            "mask_head.norm": ("a norm", "none" if config.mask_head.norm == "none" else "a norm"),
            "box_head.norm": ("a norm", "none" if config.box_head.norm == "none" else "a norm"),
            "rpn.objectness": ("softmax", config.rpn.objectness),
        }
    elif convention == "torchvision":
        expected = {
            "backbone.conv_bias": (False, config.backbone.conv_bias),
            "rpn.objectness": ("sigmoid", config.rpn.objectness),
        }
    return [f"{name}: expected {want}, got {got}" for name, (want, got) in expected.items() if want != got]
