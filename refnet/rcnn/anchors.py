"""Anchors: reference boxes of several sizes and shapes at every position of every level (Ren et al. 2015, 3.1.1)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from refnet.arrays import Array
from refnet.rcnn.config import AnchorConfig
from refnet.rcnn.structures import STRIDES


def make_anchors(
    shapes: Sequence[tuple[int, int]], image_size: tuple[int, int], config: AnchorConfig, dtype: Any = np.float32
) -> list[Float[Array, "A 4"]]:
    """The anchors of each level, ordered by row, column, and then :attr:`AnchorConfig.order`.

    Args:
        shapes: height and width of P2 to P6.
        image_size: height and width of the padded images.

    Choice: an anchor of area s² and ratio r (height by width) is s·√r high and s/√r wide; where Matterport says
    ratio it means width by height, which for the usual .5, 1, 2 only reverses the order.
    """
    levels = []
    for (height, width), stride, sizes in zip(shapes, STRIDES, config.sizes, strict=True):
        stride_y, stride_x = stride, stride
        if config.stride == "floor":
            stride_y, stride_x = image_size[0] // height, image_size[1] // width
        y = (np.arange(0, height, config.step) + config.center_offset) * stride_y
        x = (np.arange(0, width, config.step) + config.center_offset) * stride_x
        centers = np.stack(np.broadcast_arrays(x, y[:, None], x, y[:, None]), axis=-1)  # H W 4
        boxes = centers[:, :, None] + cell_anchors(sizes, config)  # H W A 4
        levels.append(boxes.reshape(-1, 4).astype(dtype))
    return levels


def cell_anchors(sizes: Sequence[float], config: AnchorConfig) -> Float[Array, "A 4"]:
    """The anchors of one position, about the origin, in float64."""
    ratios = np.asarray(config.ratios, np.float64)
    if config.ratio_is == "w/h":
        ratios = 1.0 / ratios
    size = np.asarray(sizes, np.float64)
    heights, widths = np.sqrt(ratios)[:, None] * size, (1.0 / np.sqrt(ratios))[:, None] * size  # ratio size
    if config.order == "size_major":
        heights, widths = heights.T, widths.T
    half = np.stack([-widths.ravel(), -heights.ravel(), widths.ravel(), heights.ravel()], axis=1) / 2
    return np.round(half) if config.rounding else half
