"""From image files' pixels to the network's input, and back.

Resizing, normalisation, padding and cropping of the images, the same motion for the ground truth, and the way back for
boxes and pixels.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from refnet.arrays import Array
from refnet.autograd import Tensor, no_grad
from refnet.errors import ShapeError
from refnet.ops import resize_bilinear
from refnet.ops.resize import nearest
from refnet.rcnn.boxes import Extent, clip, narrow, widen
from refnet.rcnn.config import InputConfig, broadcast
from refnet.rcnn.masks import resize_bounded, resize_corner_aligned, tight_boxes
from refnet.rcnn.structures import GroundTruth, ImageBatch, Proposals


def prepare_images(
    images: Sequence[Shaped[Array, "_ _ _"]],
    config: InputConfig,
    dtype: Any = np.float32,
    *,
    rng: np.random.Generator | None = None,
) -> ImageBatch:
    """Resize, normalise and pad images of any sizes to one batch.

    Args:
        images: (H, W, C) each, values in bytes' range 0 to 255 whatever their type.
        rng: draws what resize "crop" cuts out. Without one, as for detection, nothing is cut off.

    Choice: Matterport cuts at random in detection too, and stretches what it finds there over the whole image; "crop"
    is meant for training only. Here an image is then enlarged as in training, and detected whole.

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
    mean, std = _mean_and_std(config)
    resized = [_resized(image, config, mean, std, dtype) for image in images]
    sizes = [pixels.shape[:2] for pixels in resized]
    cuts = [(0, 0)] * len(images)
    if config.resize == "crop" and rng is not None:
        cuts = [_draw_cut(size, config.min_size, rng) for size in sizes]
        resized = [
            pixels[y : y + config.min_size, x : x + config.min_size]
            for pixels, (y, x) in zip(resized, cuts, strict=True)
        ]

    height, width = padded_size([r.shape[:2] for r in resized], config)
    padding = -mean / std if config.pad_before_normalization else np.zeros(config.channels)
    batch = np.broadcast_to(padding.astype(dtype), (len(images), height, width, config.channels)).copy()
    windows, scales = np.zeros((len(images), 4), dtype), np.zeros((len(images), 2), dtype)
    uncropped = np.zeros((len(images), 4), dtype)
    for index, (image, pixels) in enumerate(zip(images, resized, strict=True)):
        h, w = pixels.shape[:2]
        top, left = (0, 0) if config.pad_position == "end" else ((height - h) // 2, (width - w) // 2)
        batch[index, top : top + h, left : left + w] = pixels
        windows[index] = left, top, left + w, top + h
        (whole_h, whole_w), (y, x) = sizes[index], cuts[index]
        uncropped[index] = left - x, top - y, left - x + whole_w, top - y + whole_h
        scales[index] = _ratios((whole_w, whole_h), (image.shape[1], image.shape[0]))
    return ImageBatch(
        pixels=batch,
        windows=windows,
        scales=scales,
        original_sizes=[(i.shape[0], i.shape[1]) for i in images],
        uncropped=uncropped if config.resize == "crop" else None,
    )


def _mean_and_std(config: InputConfig) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
    mean, std = (np.asarray(broadcast(v, config.channels), np.float64) for v in (config.mean, config.std))
    return mean, std


def _resized(image: Array, config: InputConfig, mean: Array, std: Array, dtype: Any) -> Float[Array, "h w C"]:
    """The image normalised, and resized before or after that."""
    pixels, size = image, resized_size(image.shape[:2], config)
    if config.channel_order == "bgr":
        pixels = pixels[:, :, ::-1]
    if config.resampling == "bytes" and pixels.shape[:2] != size:
        pixels = resize_bounded(pixels, size).astype(image.dtype)
    normalized = _normalized(pixels, config.value_scale, mean, std).astype(dtype)
    if normalized.shape[:2] == size:
        return normalized
    with no_grad():
        resized: Array = resize_bilinear(Tensor(normalized[None]), size).data[0]
    return resized


def _normalized(pixels: Array, scale: float, mean: Array, std: Array) -> Float[Array, "h w C"]:
    """(scale · pixels - mean) / std, row by row of the image: along the few channels alone NumPy would crawl."""
    height, width, _ = pixels.shape
    values = pixels.reshape(height, -1).astype(np.float64)
    values *= scale
    values -= np.tile(mean, width)
    values /= np.tile(std, width)
    return values.reshape(pixels.shape)


def _draw_cut(size: tuple[int, int], side: int, rng: np.random.Generator) -> tuple[int, int]:
    """The first row and column of a square of `side`, every place inside an image of `size` equally likely."""
    height, width = size
    row = int(rng.integers(0, height - side + 1))
    return row, int(rng.integers(0, width - side + 1))


def _ratios(after: tuple[float, float], before: tuple[float, float]) -> Float[Array, "2"]:
    """By how much each extent changed; in float32 whatever the network's type, so that boxes equal torchvision's."""
    ratios: Array = np.asarray(after, np.float32) / np.asarray(before, np.float32)
    return ratios


def resize_scale(size: tuple[int, ...], config: InputConfig) -> float:
    """By how much an image of `size` (H, W) is enlarged, before its extents are made whole."""
    if config.resize == "none":
        return 1.0
    if config.resize == "shortest_edge":
        return min(config.min_size / min(size), config.max_size / max(size))
    scale = max(1.0, config.min_size / min(size), config.min_scale)
    if config.resize == "square" and round(max(size) * scale) > config.max_size:
        scale = config.max_size / max(size)
    return scale


def resized_size(size: tuple[int, ...], config: InputConfig) -> tuple[int, int]:
    """Height and width after resizing, before cropping and padding.

    Choice: fractions are cut off for "shortest_edge" (torchvision), rounded half to even for Matterport's modes.
    """
    scale, whole = resize_scale(size, config), int if config.resize == "shortest_edge" else round
    return max(whole(size[0] * scale), 1), max(whole(size[1] * scale), 1)


def padded_size(sizes: Sequence[tuple[int, ...]], config: InputConfig) -> tuple[int, int]:
    """Height and width that hold all images: multiples of the divisor."""
    if config.resize == "square":
        return config.max_size, config.max_size
    divisor = config.pad_divisor
    height, width = (-(-max(extent) // divisor) * divisor for extent in zip(*sizes, strict=True))
    return height, width


def prepare_truth(truth: Sequence[GroundTruth], images: ImageBatch, config: InputConfig) -> list[GroundTruth]:
    """Move the ground truth as its images were moved: boxes and keypoints scaled and shifted, masks resized and padded.

    Choice: :attr:`InputConfig.mask_resampling` says how masks are resized, :attr:`InputConfig.boxes` whether boxes
    move by themselves or are drawn around the resized masks. Objects of whose masks then nothing is left are dropped,
    and so are those that lie outside of what was cut out of their image.
    """
    if len(truth) != len(images):
        raise ShapeError(f"prepare_truth: expected the objects of {len(images)} images, got those of {len(truth)}")
    moved = []
    for index, entry in enumerate(truth):
        boxes = _moved_boxes(entry.boxes, images, index)
        masks, drawn = entry.masks, False
        if masks is not None:
            size = images.original_sizes[index]
            if masks.shape[1:] != size:
                raise ShapeError(
                    f"prepare_truth: masks must have the size of their image, {size}, got {masks.shape[1:]}"
                )
            masks = _moved_masks(masks, images, index, config)
            drawn = config.boxes == "masks"
            if drawn:
                boxes = tight_boxes(masks).astype(boxes.dtype)
        if drawn or images.uncropped is not None:
            visible = _has_area(boxes)
            entry, boxes, masks = entry.select(visible), boxes[visible], None if masks is None else masks[visible]
        points = entry.keypoints
        if points is not None:
            scale = images.scales[index]
            points = points.astype(scale.dtype)
            points = np.concatenate([points[..., :2] * scale + images.wholes[index, :2], points[..., 2:]], axis=-1)
        moved.append(replace(entry, boxes=boxes, masks=masks, keypoints=points))
    return moved


def prepare_proposals(proposals: Sequence[Float[Array, "_ 4"]], images: ImageBatch, dtype: Any) -> list[Proposals]:
    """Boxes in the pixels of each image, moved as the images were, as proposals that no RPN made, all equally good.

    Those outside of what was cut out of their image are dropped.
    """
    if len(proposals) != len(images):
        raise ShapeError(f"prepare_proposals: expected the boxes of {len(images)} images, got {len(proposals)}")
    moved = [_moved_boxes(boxes, images, index).astype(dtype) for index, boxes in enumerate(proposals)]
    if images.uncropped is not None:
        moved = [boxes[_has_area(boxes)] for boxes in moved]
    return [Proposals(boxes=boxes, scores=np.ones(len(boxes), dtype)) for boxes in moved]


def _moved_boxes(boxes: Float[Array, "B 4"], images: ImageBatch, index: int) -> Float[Array, "B 4"]:
    """Boxes in the pixels of image `index`, scaled and shifted with it, and cut off where it was."""
    scale = np.tile(images.scales[index], 2)
    moved: Array = boxes.astype(scale.dtype) * scale + np.tile(images.wholes[index, :2], 2)
    return moved if images.uncropped is None else clip(moved, images.windows[index])


def _has_area(boxes: Float[Array, "B 4"]) -> Bool[Array, " B"]:
    return np.asarray((boxes[:, 2:] > boxes[:, :2]).all(axis=1))


def _moved_masks(
    masks: Bool[Array, "G _ _"], images: ImageBatch, index: int, config: InputConfig
) -> Bool[Array, "G H W"]:
    """Masks resized as the whole of image `index`, of which its window is kept."""
    left, top, right, bottom = (int(v) for v in images.wholes[index])
    height, width = bottom - top, right - left
    if config.mask_resampling == "nearest":
        resized = masks[:, nearest(masks.shape[1], height)[:, None], nearest(masks.shape[2], width)]
    else:
        resized = resize_corner_aligned(masks, (height, width))
    x1, y1, x2, y2 = (int(v) for v in images.windows[index])
    padded = np.zeros((len(masks), *images.size), bool)
    padded[:, y1:y2, x1:x2] = resized[:, y1 - top : y2 - top, x1 - left : x2 - left]
    return padded


def restore_boxes(
    boxes: Float[Array, "D 4"], images: ImageBatch, index: int, *, extent: Extent = "continuous"
) -> Float[Array, "D 4"]:
    """Boxes of the network's input in pixels of image `index` as it was given.

    Choice: borders of the image lie on borders, so boxes scale with the image; with `extent` "normalized", centres of
    its outermost pixels on centres (Matterport), so that x1 and x2 - 1 scale with the distance between these.
    """
    extent = "normalized" if extent == "normalized" else "continuous"
    offset, scale = _way_back(images, index, 1 if extent == "normalized" else 0, boxes.dtype)
    return narrow((widen(boxes, extent) - np.tile(offset, 2)) * np.tile(scale, 2), extent)


def restore_keypoints(points: Float[Array, "D K 3"], images: ImageBatch, index: int) -> Float[Array, "D K 3"]:
    """Keypoints (x, y, visibility) of the network's input in pixels of image `index` as it was given."""
    offset, scale = _way_back(images, index, 0, points.dtype)
    return np.concatenate([(points[..., :2] - offset) * scale, points[..., 2:]], axis=-1)


def _way_back(images: ImageBatch, index: int, less: int, dtype: Any) -> tuple[Float[Array, "2"], Float[Array, "2"]]:
    """What to subtract from a point (x, y) of the network's input, and what to multiply it by then.

    Both extents of the image are taken for `less` smaller, before and after.
    """
    whole, (height, width) = images.wholes[index], images.original_sizes[index]
    left, top, right, bottom = whole.tolist()
    before = max(right - left - less, 1), max(bottom - top - less, 1)  # a single pixel has no distance to scale
    return whole[:2], _ratios((width - less, height - less), before).astype(dtype)


def restore_pixels(pixels: Float[Array, "*N H W C"], config: InputConfig) -> UInt8[Array, "*N H W C"]:
    """Bytes to look at from the network's input: normalisation undone, and the order of the channels."""
    mean, std = _mean_and_std(config)
    values: Array = np.round((pixels * std + mean) / config.value_scale).clip(0, 255).astype(np.uint8)
    return values[..., ::-1] if config.channel_order == "bgr" else values
