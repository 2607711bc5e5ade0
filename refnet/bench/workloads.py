"""What detectors compute: the convolutions of their networks, and boxes as they meet them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refnet.arrays import Array
from refnet.testing import Call

BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}
"""Blocks of ResNet-50's stages (He et al. 2016, table 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A convolution of a network: extents of its input and its weights, and how the window moves.

    Attributes:
        count: how often the network has it.
    """

    title: str
    height: int
    width: int
    channels: int
    outputs: int
    window: int
    stride: int
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether its input is the image, which has no gradient."""
        return self.channels == 3

    def call(self, operation: str, images: int, rng: np.random.Generator) -> Call:
        """The arguments of one of the three operations of a convolution."""
        pad = self.window // 2
        rows, columns = ((extent - 1) // self.stride + 1 for extent in (self.height, self.width))
        x, y = (images, self.height, self.width, self.channels), (images, rows, columns, self.outputs)
        w = (self.window, self.window, self.channels, self.outputs)
        shapes = {"forward": {"x": x, "w": w}, "grad_input": {"grad_output": y, "w": w}}
        shapes["grad_weight"] = {"x": x, "grad_output": y}
        geometry: dict[str, Any] = {
            "stride": (self.stride, self.stride), "padding": ((pad, pad), (pad, pad)), "dilation": (1, 1), "groups": 1,
        }  # fmt: skip
        extra: dict[str, Any] = {
            "forward": {},
            "grad_input": {"input_size": x[1:3]},
            "grad_weight": {"kernel_size": w[:2]},
        }
        arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes[operation].items()}
        return Call(arrays=arrays, parameters={**extra[operation], **geometry})


class _Layers:
    """Collects layers; equal ones are counted."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, ...], Layer] = {}

    def add(
        self,
        title: str,
        height: int,
        width: int,
        channels: int,
        outputs: int,
        window: int,
        stride: int = 1,
        count: int = 1,
    ) -> None:
        numbers = (height, width, channels, outputs, window, stride)
        new = Layer(
            title=f"{title} {window}x{window}/{stride} {channels}->{outputs} @{height}x{width}",
            height=height, width=width, channels=channels, outputs=outputs, window=window, stride=stride, count=0,
        )  # fmt: skip
        known = self.found.get(numbers, new)
        self.found[numbers] = replace(known, count=known.count + count)


def resnet50_fpn(height: int, width: int, narrower: int = 1, *, rpn: bool = False) -> list[Layer]:
    """The distinct convolutions of ResNet-50 (strides in the 3x3) and FPN, and of the RPN, for images of this size.

    Args:
        narrower: by what all numbers of channels are divided.
        rpn: whether the region proposal network's are among them, for three anchors on each of five levels.
    """
    layers, pyramid = _Layers(), 256 // narrower

    def add(
        title: str, reduced: int, channels: int, outputs: int, window: int, stride: int = 1, count: int = 1
    ) -> None:
        layers.add(title, height // reduced, width // reduced, channels, outputs, window, stride, count)

    add("stem", 1, 3, 64 // narrower, 7, 2)
    channels = 64 // narrower
    for stage, blocks in BLOCKS.items():
        middle, wide = 2**stage * 16 // narrower, 2**stage * 64 // narrower
        before, after, stride = 2 ** max(stage - 1, 2), 2**stage, 1 if stage == 2 else 2
        add(f"res{stage}", before, channels, middle, 1)
        add(f"res{stage}", before, middle, middle, 3, stride)
        add(f"res{stage}", before, channels, wide, 1, stride)
        add(f"res{stage}", after, middle, wide, 1, count=blocks)
        add(f"res{stage}", after, wide, middle, 1, count=blocks - 1)
        add(f"res{stage}", after, middle, middle, 3, count=blocks - 1)
        add("fpn", after, wide, pyramid, 1)
        add("fpn", after, pyramid, pyramid, 3)
        channels = wide
    for level in range(2, 7) if rpn else ():
        for outputs, window in ((pyramid, 3), (3, 1), (12, 1)):
            add("rpn", 2**level, pyramid, outputs, window)
    return list(layers.found.values())


def mask_head() -> list[Layer]:
    """The convolutions of the mask head for regions of 14x14, without the transposed one: four, and the logits."""
    layers = _Layers()
    layers.add("mask head", 14, 14, 256, 256, 3, count=4)
    layers.add("mask logits", 28, 28, 256, 91, 1)
    return list(layers.found.values())


def regions(count: int, height: int, width: int, rng: np.random.Generator) -> Array:
    """Boxes as proposals are: of all sizes from 16 pixels to half the image, of all shapes."""
    size = np.exp(rng.uniform(math.log(16), math.log(min(height, width) / 2), (count, 1)))
    extent = size * np.exp(rng.uniform(-0.5, 0.5, (count, 1)) * [[1.0, -1.0]])
    centre = rng.uniform(0, 1, (count, 2)) * [width, height]
    boxes = np.concatenate([centre - extent / 2, centre + extent / 2], axis=1)
    inside: Array = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    return inside


def clustered(count: int, rng: np.random.Generator) -> dict[str, Array]:
    """Boxes around some objects and their scores, as an RPN gives them before NMS."""
    centres = rng.uniform(0, 1000, (max(count // 40, 1), 2))[rng.integers(0, max(count // 40, 1), count)]
    centres = centres + rng.normal(0, 12, (count, 2))
    sides = np.abs(rng.normal(80, 30, (count, 2))) + 1
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).astype(np.float32)
    return {"boxes": boxes, "scores": rng.uniform(size=count).astype(np.float32)}


def uniform(count: int, rng: np.random.Generator) -> dict[str, Array]:
    """Boxes anywhere in an image, of which nearly all survive, and their scores."""
    corners = rng.uniform(0, 800, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(4, 124, (count, 2))], axis=1).astype(np.float32)
    return {"boxes": boxes, "scores": rng.uniform(size=count).astype(np.float32)}
