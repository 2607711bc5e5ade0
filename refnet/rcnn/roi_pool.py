"""ROI pooling: features of one size for regions of any size, each from the level that suits it.

Lin et al. 2017, eq. 1 chooses the level; He et al. 2017, section 3 the samples.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from refnet.arrays import Array
from refnet.autograd import Tensor
from refnet.ops import crop_and_resize, interleave, roi_align, roi_pool
from refnet.rcnn.boxes import areas, to_normalized
from refnet.rcnn.config import RoiPoolConfig
from refnet.rcnn.structures import STRIDES

FIRST_LEVEL, LAST_LEVEL = 2, 5  # P6 serves the RPN only


def pool_rois(
    pyramid: Sequence[Float[Tensor, "N _ _ C"]],
    boxes: Float[Array, "R 4"],
    images: Int[Array, " R"],
    image_size: tuple[int, int],
    config: RoiPoolConfig,
) -> Float[Tensor, "R P P C"]:
    """Pool each box from its level of the pyramid; the result keeps the boxes' order.

    Args:
        pyramid: P2 to P6.
        images: the image that each box lies in.
        image_size: height and width of the padded images.
    """
    levels = assign_levels(boxes, image_size, config)
    size = (config.size, config.size)
    parts: list[Tensor] = []
    positions: list[Array] = []
    for level in range(FIRST_LEVEL, LAST_LEVEL + 1):
        chosen = np.flatnonzero(levels == level)
        if not len(chosen) and (positions or level < LAST_LEVEL):
            continue
        features, index = pyramid[level - FIRST_LEVEL], images[chosen]
        scale = 1.0 / STRIDES[level - FIRST_LEVEL]
        if config.method == "crop_and_resize":
            part = crop_and_resize(features, to_normalized(boxes[chosen], image_size), index, size=size)
        elif config.method == "roi_align":
            part = roi_align(
                features,
                boxes[chosen],
                index,
                size=size,
                spatial_scale=scale,
                sampling_ratio=config.sampling_ratio,
                aligned=config.aligned,
            )
        else:
            part = roi_pool(features, boxes[chosen], index, size=size, spatial_scale=scale)
        parts.append(part)
        positions.append(chosen)
    if len(parts) == 1:  # then the boxes are in order already
        return parts[0]
    return interleave(parts, positions)


def assign_levels(boxes: Float[Array, "R 4"], image_size: tuple[int, int], config: RoiPoolConfig) -> Int[Array, " R"]:
    """The pyramid level of each box, 2 to 5 (Lin et al. 2017, eq. 1).

    .. math:: l = \\lfloor l_0 + \\log_2 (\\sqrt{w h} / 224) \\rfloor

    Choice: rounded down (the paper) or to the nearest (Matterport), from pixels or from normalised coordinates
    times the square root of the image's area, which is a little less.
    """
    area = areas(boxes)
    if config.box_units == "normalized":
        area = areas(to_normalized(boxes, image_size)) * (image_size[0] * image_size[1])
    # a box without area goes to the finest level; normalised, one narrower than a pixel has less than none
    with np.errstate(divide="ignore", invalid="ignore"):
        raw = np.log2(np.sqrt(area) / config.canonical_size) + config.level_epsilon
        raw = np.where(np.isfinite(raw), raw, -np.inf)
    level = (
        np.floor(config.canonical_level + raw)
        if config.level_rounding == "floor"
        else (config.canonical_level + np.round(raw))
    )
    return np.clip(level, FIRST_LEVEL, LAST_LEVEL).astype(np.int64)
