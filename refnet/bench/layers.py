"""All convolutions of a network, each as often as the network has it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from refnet.bench import bars
from refnet.bench.contest import Part, Subject
from refnet.bench.contestants import CHANNELS_LAST, SPECIFICATION, TORCH
from refnet.bench.work import Work, part
from refnet.bench.workloads import Layer, mask_head, resnet50_fpn


def subjects(*, quick: bool) -> Iterator[Subject]:
    """Forward, backward, and both: of ResNet-50 with FPN and RPN, and of the mask head."""
    for side in (64,) if quick else (256, 512):
        layers = resnet50_fpn(side, side, 16 if quick else 1, rpn=True)
        yield from _three(f"convolutions {side}x{side}", layers, images=1, asked=side == 512)
    rois = 1 if quick else 100
    yield from _three(f"mask head of {rois} ROIs", mask_head(), images=rois, asked=False)


def _three(title: str, layers: list[Layer], *, images: int, asked: bool) -> Iterator[Subject]:
    forward = [(layer.count, layer_part(layer, images, backward=False)) for layer in layers]
    backward = [(layer.count, layer_part(layer, images, backward=True)) for layer in layers]
    ways: dict[str, tuple[list[tuple[int, Part]], bars.Bar | None, bars.Bar | None]] = {
        "forward": (forward, bars.CONVOLUTIONS_FORWARD, bars.CONVOLUTIONS_FORWARD_CHANNELS_LAST),
        "backward": (backward, None, None),
        "forward + backward": (forward + backward, bars.CONVOLUTIONS_BOTH, None),
    }
    for way, (parts, first, last) in ways.items():
        against = {TORCH: first if asked else None, CHANNELS_LAST: last if asked else None, SPECIFICATION: None}
        yield Subject(name=f"{title}, {way}", parts=tuple(parts), against=against)


def layer_part(layer: Layer, images: int, *, backward: bool) -> Part:
    """One layer forward, or its gradients to the input, if it has one, and to the weights."""
    name = f"{layer.title} x{images} {'backward' if backward else 'forward'}"
    return part(name, partial(_work, layer, images, backward))


def _work(layer: Layer, images: int, backward: bool, rng: np.random.Generator) -> Work:
    if not backward:
        wanted = ["forward"]
    elif layer.is_first:
        wanted = ["grad_weight"]
    else:
        wanted = ["grad_input", "grad_weight"]
    return [(f"conv2d_{operation}", layer.call(operation, images, rng)) for operation in wanted]
