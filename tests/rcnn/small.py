"""Small networks and scenes, and short ways to write the records that stages take."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from refnet.rcnn import GroundTruth, ModelConfig
from refnet.rcnn.structures import ImageBatch


def vary(config: Any, changes: dict[str, Any]) -> Any:
    """`config` with other values behind dotted names, each stage replaced once: fields may depend on one another."""
    own = {name: value for name, value in changes.items() if "." not in name}
    for stage in {name.partition(".")[0] for name in changes if "." in name}:
        inner = {name.partition(".")[2]: v for name, v in changes.items() if name.startswith(f"{stage}.")}
        own[stage] = vary(getattr(config, stage), inner)
    return replace(config, **own)


def shrink(config: ModelConfig) -> ModelConfig:
    """The same conventions, so few numbers that a step takes a fraction of a second.

    Depth and every convention stay; widths, counts and sizes become small. Three classes.
    """
    return vary(
        config,
        {
            "num_classes": 3,
            "input.min_size": 48 if config.input.resize == "shortest_edge" else 40,
            "input.max_size": 64,
            "backbone.width": 4,
            "backbone.depth": min(config.backbone.depth, 50),
            "fpn.channels": 8,
            "anchors.sizes": ((8.0,), (16.0,), (24.0,), (32.0,), (48.0,)),
            "rpn.channels": 8,
            "rpn.pre_nms_train": 12,
            "rpn.post_nms_train": 8,
            "rpn.pre_nms_test": 8,
            "rpn.post_nms_test": 6,
            "anchor_targets.batch_size": 32,
            "roi_targets.batch_size": 12,
            "box_pool.size": 3,
            "mask_pool.size": 4,
            "box_pool.canonical_size": 24.0,
            "mask_pool.canonical_size": 24.0,
            "box_head.channels": 12,
            "box_head.conv_channels": 8,
            "mask_head.convolutions": 1,
            "mask_head.channels": 8,
            "keypoint_pool.size": 4,
            "keypoint_pool.canonical_size": 24.0,
            "keypoint_head.num_keypoints": 3,
            "keypoint_head.convolutions": 1,
            "keypoint_head.channels": 8,
            "detections.limit": 4,
        },
    )


def scene(
    height: int, width: int, *, channels: int = 3, objects: int = 2, seed: int = 0
) -> tuple[np.ndarray, GroundTruth]:
    """An image of noise with brighter rectangles, and their boxes, classes, masks and three keypoints.

    These are the upper left corner, the middle of the right edge, and one that is labelled on the first object only.
    """
    rng = np.random.default_rng(seed)
    image = rng.uniform(0, 96, (height, width, channels))
    boxes, masks = [], np.zeros((objects, height, width), bool)
    for index in range(objects):
        x1, y1 = rng.integers(0, width // 2), rng.integers(0, height // 2)
        x2, y2 = x1 + rng.integers(width // 4, width // 2), y1 + rng.integers(height // 4, height // 2)
        image[y1:y2, x1:x2] += rng.uniform(40, 140, channels)
        masks[index, y1:y2, x1:x2] = True
        boxes.append([x1, y1, x2, y2])
    points = [
        [[x1 + 0.5, y1 + 0.5, 2], [x2 - 0.5, (y1 + y2) / 2, 1], [x1 + 1, y2 - 1, 2 if index == 0 else 0]]
        for index, (x1, y1, x2, y2) in enumerate(boxes)
    ]
    return image, truth(boxes, rng.integers(1, 4, objects), masks=masks, keypoints=np.array(points, np.float64))


def truth(
    boxes: Sequence[Sequence[float]] | np.ndarray,
    classes: Sequence[int] | np.ndarray,
    *,
    masks: np.ndarray | None = None,
    crowd: Sequence[bool] | None = None,
    keypoints: np.ndarray | None = None,
) -> GroundTruth:
    """Ground truth from lists, in float64."""
    return GroundTruth(
        boxes=np.asarray(boxes, np.float64).reshape(-1, 4),
        classes=np.asarray(classes, np.int64).reshape(-1),
        masks=masks,
        crowd=np.zeros(len(boxes), bool) if crowd is None else np.asarray(crowd, bool),
        keypoints=keypoints,
    )


def blank_images(height: int, width: int, *, windows: Sequence[Sequence[float]] | None = None) -> ImageBatch:
    """A batch of black float64 images of one size: one image that fills it, or one for each window."""
    areas = np.asarray([[0, 0, width, height]] if windows is None else windows, np.float64)
    return ImageBatch(
        pixels=np.zeros((len(areas), height, width, 1)),
        windows=areas,
        scales=np.ones((len(areas), 2)),
        original_sizes=[(int(y2 - y1), int(x2 - x1)) for x1, y1, x2, y2 in areas],
    )
