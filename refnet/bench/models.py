"""Whole networks finding objects: the same weights, the same image, and the same detections, or it is no comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from refnet.arrays import Array
from refnet.bench import rule, torch_models
from refnet.bench.contest import Contest, Part, WrongResult
from refnet.bench.contestants import CPU, CUDA, SPECIFICATION, TORCHVISION, Field, by_specification, on_device
from refnet.nn.init import Blank
from refnet.rcnn.config import ModelConfig
from refnet.rcnn.model import MaskRCNN
from refnet.rcnn.presets import torchvision
from refnet.rcnn.structures import Detections
from refnet.weights import load
from refnet.weights.save import to_tensors

SCORE_ROUNDING = 1e-5
"""How far scores may lie apart, of 1. Both networks round to 24 bits in about sixty layers, in orders of their own."""
BOX_ROUNDING = 2e-5
"""How far the edges of boxes may lie apart, as a share of the image's longer side."""
MASK_ROUNDING = 1e-3
"""How far probabilities of masks may lie apart: their logits are a hundred times as large as the rounding of scores."""


def network(height: int, width: int) -> ModelConfig:
    """torchvision's ``maskrcnn_resnet50_fpn`` for images of this size, which aren't resized."""
    config = torchvision()
    return replace(config, input=replace(config.input, min_size=min(height, width), max_size=max(height, width)))


def small_network(height: int, width: int) -> ModelConfig:
    """The same with fewer layers, classes, proposals and regions."""
    config = network(height, width)
    return replace(
        config,
        num_classes=3,
        backbone=replace(config.backbone, depth=18),
        rpn=replace(config.rpn, pre_nms_train=50, pre_nms_test=50, post_nms_train=20, post_nms_test=20),
        roi_targets=replace(config.roi_targets, batch_size=16),
        detections=replace(config.detections, limit=5),
    )


def inference(height: int, width: int, *, quick: bool, specification: bool = False) -> Part:
    """Objects in an image of this size, against torchvision or the specification."""
    config = (small_network if quick else network)(height, width)
    prepare = partial(prepare_inference, config=config, height=height, width=width, specification=specification)
    return Part(name=f"{'specification' if specification else 'inference'} {height}x{width}", prepare=prepare)


def rule_state(config: ModelConfig) -> dict[str, Array]:
    """The weights of :mod:`refnet.bench.rule` for a network, as a state dict of torchvision's."""
    blank = to_tensors(MaskRCNN(config, rng=Blank()))
    return rule.weights({name: array.shape for name, array in blank.items()})


def refnet_model(config: ModelConfig, state: Mapping[str, Array]) -> MaskRCNN:
    """The network with the weights of a state dict."""
    model = MaskRCNN(config, rng=Blank())
    load(model, state)
    return model


def rule_image(height: int, width: int) -> Array:
    """An image as a file holds it, uint8."""
    return rule.image("0", height, width).round().astype(np.uint8)


def prepare_inference(
    field: Field, *, config: ModelConfig, height: int, width: int, specification: bool = False
) -> Contest:
    """Objects in one image.

    Args:
        specification: compare with the specification instead of with torchvision.
    """
    state, image = rule_state(config), rule_image(height, width)
    model = refnet_model(config, state)
    runs = {CPU: lambda: model.detect([image])[0]}
    if specification:
        runs[SPECIFICATION] = by_specification(runs[CPU])
    elif field.torchvision is not None:
        theirs = torch_models.maskrcnn(config).eval()
        torch_models.load_state(theirs, state, field.torch)
        runs[TORCHVISION] = partial(torchvision_detect, theirs, torch_models.as_image(image, field.torch), field.torch)
    if field.cupy is not None:
        on_gpu = refnet_model(config, state)
        on_gpu.to("cuda")
        runs[CUDA] = on_device(field.cupy, lambda: on_gpu.detect([image])[0])
    return Contest(runs=runs, check=partial(check_detections, side=max(height, width)))


def torchvision_detect(model: Any, image: Any, torch: Any) -> Detections:
    """What torchvision's detector finds in an image, in refnet's record; the masks stay its tensors' memory."""
    with torch.no_grad():
        found = model([image])[0]
    return Detections(
        boxes=found["boxes"].numpy(),
        classes=found["labels"].numpy(),
        scores=found["scores"].numpy(),
        masks=found["masks"].numpy()[:, 0],
    )


def check_detections(results: Mapping[str, Detections], *, side: int) -> str:
    """That everybody found the same objects; objects of nearly equal scores may stand in another order.

    Raises:
        WrongResult: they didn't.
    """
    (name, ours), *others = results.items()
    worst = {"score": 0.0, "box": 0.0, "mask": 0.0}
    for other, theirs in others:
        if len(ours.boxes) != len(theirs.boxes):
            raise WrongResult(f"{name} finds {len(ours.boxes)} objects, {other} {len(theirs.boxes)}")
        partner = _partners(ours, theirs, f"{name} and {other}", side)
        for what, mine, yours, allowed in (
            ("score", ours.scores, theirs.scores, SCORE_ROUNDING),
            ("box", ours.boxes, theirs.boxes, BOX_ROUNDING * side),
            ("mask", ours.masks, theirs.masks, MASK_ROUNDING),
        ):
            if mine is None or yours is None:
                raise WrongResult(f"{name} or {other} has no {what}s")
            # one by one: a stack of masks of a large image takes hundreds of MiB
            pairs = zip(mine, (yours[index] for index in partner), strict=True)
            apart = max((float(np.max(abs(a - b), initial=0.0)) for a, b in pairs), default=0.0)
            if not apart <= allowed:
                raise WrongResult(f"{what}s of {name} and {other} lie {apart:.3g} apart, allowed {allowed:.3g}")
            worst[what] = max(worst[what], apart)
    if not others:
        return f"{len(ours.boxes)} detections, nothing to compare with"
    return (
        f"the same {len(ours.boxes)} detections: scores within {worst['score']:.1g}, boxes {worst['box']:.1g} pixels, "
        f"masks {worst['mask']:.1g}"
    )


def _partners(ours: Detections, theirs: Detections, names: str, side: int) -> list[int]:
    """For each of our objects the nearest one of theirs of the same class, each of which is taken once."""
    free = list(range(len(theirs.boxes)))
    partners = []
    for box, class_ in zip(ours.boxes, ours.classes, strict=True):
        distances = {i: float(abs(theirs.boxes[i] - box).max()) for i in free if theirs.classes[i] == class_}
        nearest = min(distances, key=lambda i: distances[i], default=None)
        if nearest is None or distances[nearest] > BOX_ROUNDING * side:
            raise WrongResult(f"{names}: only one finds class {class_} at {box.tolist()}")
        free.remove(nearest)
        partners.append(nearest)
    return partners
