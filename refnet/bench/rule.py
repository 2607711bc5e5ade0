"""Weights and images by a rule, so that two programs have the same ones without a file.

Every array is drawn in float64 from a generator seeded by the CRC-32 of its name in torchvision's state dicts.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from refnet.arrays import Array

GAINS = {
    "rpn.head.bbox_pred": 0.3,
    "box_predictor.bbox_pred": 0.3,
    "cls_score": 0.25,
}
"""Of layers whose outputs would be too large otherwise."""


def generator(name: str) -> np.random.Generator:
    """The generator of an array's numbers."""
    return np.random.Generator(np.random.PCG64([zlib.crc32(name.encode()), 0]))


def weight(name: str, shape: tuple[int, ...]) -> Array:
    """The array for torchvision's entry `name`, in PyTorch's layout."""
    rng = generator(name)
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_mean" or leaf == "bias":
        return 0.05 * rng.standard_normal(shape)
    if leaf == "running_var":
        return rng.uniform(0.5, 1.5, shape)
    if len(shape) == 1:  # a batch norm's scale; smaller towards the end of a block
        return rng.uniform(0.2, 0.4, shape) if ".bn3." in name or ".bn2." in name else rng.uniform(0.5, 1.0, shape)
    std = np.sqrt(2.0 / int(np.prod(shape[1:])))
    for part, gain in GAINS.items():
        if part in name:
            std *= gain
    values: Array = std * rng.standard_normal(shape)
    return values


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """A state dict of torchvision's, float32, for arrays of these shapes."""
    return {name: weight(name, shape).astype(np.float32) for name, shape in shapes.items()}


def image(name: str, height: int, width: int) -> Array:
    """An image (height, width, 3), values 0 to 255 in float64: smooth blobs and noise."""
    rng = generator("image/" + name)
    y, x = np.mgrid[0:height, 0:width]
    pixels = 0.2 * rng.random((3, height, width))
    for _ in range(6):
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        sy, sx = rng.uniform(0.05, 0.25) * height, rng.uniform(0.05, 0.25) * width
        blob = np.exp(-(((y - cy) / sy) ** 2) - ((x - cx) / sx) ** 2)
        pixels += rng.uniform(0, 0.6, (3, 1, 1)) * blob
    clipped: Array = np.clip(pixels, 0.0, 1.0).transpose(1, 2, 0) * 255.0
    return clipped
