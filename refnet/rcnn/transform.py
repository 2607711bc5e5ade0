"""From image files' pixels to the network's input, and back.

Resizing, normalisation and padding of the images, and the same motion for the ground truth.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from refnet.arrays import Array
from refnet.autograd import Tensor, no_grad
from refnet.errors import ShapeError
from refnet.ops import resize_bilinear
from refnet.rcnn.config import InputConfig, broadcast
from refnet.rcnn.structures import GroundTruth, ImageBatch, Proposals


def prepare_images(
    images: Sequence[Shaped[Array, "_ _ _"]], config: InputConfig, dtype: Any = np.float32
) -> ImageBatch:
    """Resize, normalise and pad images of any sizes to one batch.

    Args:
        images: (H, W, C) each, values in bytes' range 0 to 255 whatever their type.

    Raises:
        ShapeError: there is no image, or one hasn't three axes, pixels, or ``config.channels`` channels.
    """
    if not len(images):
        raise ShapeError("prepare_images: expected at least one image, got none")
    for index, image in enumerate(images):
        if image.ndim != 3 or image.shape[2] != config.channels or 0 in image.shape:
            raise ShapeError(
                f"prepare_images: image {index} must be (height, width, {config.channels}), got {image.shape}; "
                "input.channels sets the number of channels"
            )
    mean = np.asarray(broadcast(config.mean, config.channels), np.float64)
    std = np.asarray(broadcast(config.std, config.channels), np.float64)

    resized = []
    for image in images:
        pixels = image[:, :, ::-1] if config.channel_order == "bgr" else image
        normalized = ((pixels.astype(np.float64) * config.value_scale - mean) / std).astype(dtype)
        resized.append(_resize(normalized, resized_size(image.shape[:2], config)))

    height, width = padded_size([r.shape[:2] for r in resized], config)
    padding = -mean / std if config.pad_before_normalization else np.zeros(config.channels)
    batch = np.broadcast_to(padding.astype(dtype), (len(images), height, width, config.channels)).copy()
    windows, scales = np.zeros((len(images), 4), dtype), np.zeros((len(images), 2), dtype)
    for index, (image, pixels) in enumerate(zip(images, resized, strict=True)):
        h, w = pixels.shape[:2]
        top, left = (0, 0) if config.pad_position == "end" else ((height - h) // 2, (width - w) // 2)
        batch[index, top : top + h, left : left + w] = pixels
        windows[index] = left, top, left + w, top + h
        scales[index] = _ratios((w, h), (image.shape[1], image.shape[0]))
    return ImageBatch(
        pixels=batch, windows=windows, scales=scales, original_sizes=[(i.shape[0], i.shape[1]) for i in images]
    )


def _ratios(after: tuple[float, float], before: tuple[float, float]) -> Float[Array, "2"]:
    """By how much each extent changed; in float32 whatever the network's type, so that boxes equal torchvision's."""
    ratios: Array = np.asarray(after, np.float32) / np.asarray(before, np.float32)
    return ratios


def resized_size(size: tuple[int, ...], config: InputConfig) -> tuple[int, int]:
    """Height and width after resizing, before padding."""
    height, width = size
    if config.resize == "none":
        return height, width
    if config.resize == "shortest_edge":
        scale = min(config.min_size / min(size), config.max_size / max(size))
        return max(int(height * scale), 1), max(int(width * scale), 1)
    scale = max(1.0, config.min_size / min(size))
    if round(max(size) * scale) > config.max_size:
        scale = config.max_size / max(size)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def padded_size(sizes: Sequence[tuple[int, ...]], config: InputConfig) -> tuple[int, int]:
    """Height and width that hold all images: multiples of the divisor."""
    if config.resize == "square":
        return config.max_size, config.max_size
    divisor = config.pad_divisor
    height, width = (-(-max(extent) // divisor) * divisor for extent in zip(*sizes, strict=True))
    return height, width


def _resize(image: Float[Array, "H W C"], size: tuple[int, int]) -> Float[Array, "h w C"]:
    if image.shape[:2] == size:
        return image
    with no_grad():
        resized: Array = resize_bilinear(Tensor(image[None]), size).data[0]
    return resized


def prepare_truth(truth: Sequence[GroundTruth], images: ImageBatch) -> list[GroundTruth]:
    """Move the ground truth as its images were moved: boxes and keypoints scaled and shifted, masks resized and padded.

    Masks are resized by nearest neighbour: row i of the result is row floor(i · H / h) of the original.
    """
    if len(truth) != len(images):
        raise ShapeError(f"prepare_truth: expected the objects of {len(images)} images, got those of {len(truth)}")
    moved = []
    for entry, window, scale, size in zip(truth, images.windows, images.scales, images.original_sizes, strict=True):
        masks = entry.masks
        if masks is not None:
            if masks.shape[1:] != size:
                raise ShapeError(
                    f"prepare_truth: masks must have the size of their image, {size}, got {masks.shape[1:]}"
                )
            left, top, right, bottom = (int(v) for v in window)
            rows = np.arange(bottom - top) * size[0] // (bottom - top)
            cols = np.arange(right - left) * size[1] // (right - left)
            whole = np.zeros((len(masks), *images.size), bool)
            whole[:, top:bottom, left:right] = masks[:, rows[:, None], cols]
            masks = whole
        boxes, points = _moved_boxes(entry.boxes.astype(scale.dtype), window, scale), entry.keypoints
        if points is not None:
            points = points.astype(scale.dtype)
            points = np.concatenate([points[..., :2] * scale + window[:2], points[..., 2:]], axis=-1)
        moved.append(replace(entry, boxes=boxes, masks=masks, keypoints=points))
    return moved


def prepare_proposals(proposals: Sequence[Float[Array, "_ 4"]], images: ImageBatch, dtype: Any) -> list[Proposals]:
    """Boxes in the pixels of each image, moved as the images were, as proposals that no RPN made, all equally good."""
    if len(proposals) != len(images):
        raise ShapeError(f"prepare_proposals: expected the boxes of {len(images)} images, got {len(proposals)}")
    moved = [
        _moved_boxes(boxes.astype(images.scales.dtype), window, scale).astype(dtype)
        for boxes, window, scale in zip(proposals, images.windows, images.scales, strict=True)
    ]
    return [Proposals(boxes=boxes, scores=np.ones(len(boxes), dtype)) for boxes in moved]


def _moved_boxes(
    boxes: Float[Array, "B 4"], window: Float[Array, "4"], scale: Float[Array, "2"]
) -> Float[Array, "B 4"]:
    moved: Array = boxes * np.concatenate([scale, scale]) + np.concatenate([window[:2], window[:2]])
    return moved


def restore_boxes(boxes: Float[Array, "D 4"], images: ImageBatch, index: int) -> Float[Array, "D 4"]:
    """Boxes of the network's input in pixels of image `index` as it was given."""
    offset, scale = _way_back(images, index, boxes.dtype)
    restored: Array = (boxes - np.concatenate([offset, offset])) * np.concatenate([scale, scale])
    return restored


def restore_keypoints(points: Float[Array, "D K 3"], images: ImageBatch, index: int) -> Float[Array, "D K 3"]:
    """Keypoints (x, y, visibility) of the network's input in pixels of image `index` as it was given."""
    offset, scale = _way_back(images, index, points.dtype)
    return np.concatenate([(points[..., :2] - offset) * scale, points[..., 2:]], axis=-1)


def _way_back(images: ImageBatch, index: int, dtype: Any) -> tuple[Float[Array, "2"], Float[Array, "2"]]:
    """What to subtract from a point (x, y) of the network's input, and what to multiply it by then."""
    window, (height, width) = images.windows[index], images.original_sizes[index]
    left, top, right, bottom = window.tolist()
    return window[:2], _ratios((width, height), (right - left, bottom - top)).astype(dtype)
