"""Detections: from the heads' output to objects (Ren et al. 2015, 3.2; He et al. 2017, 3.1, "Inference")."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from refnet.arrays import Array, namespace, together_to_host
from refnet.autograd import Tensor, no_grad
from refnet.ops import batched_nms, resize_bicubic, resize_bilinear, sigmoid, softmax
from refnet.rcnn.boxes import Extent, clip_widened, decode, is_at_least, narrow, widen
from refnet.rcnn.config import BoxHeadConfig, DetectionConfig, KeypointHeadConfig, MaskHeadConfig
from refnet.rcnn.masks import resize_bounded
from refnet.rcnn.structures import BoxOutput, Detections, ImageBatch, class_channel, own_channel


def select_detections(
    output: BoxOutput,
    proposals: Sequence[Float[Array, "_ 4"]],
    images: ImageBatch,
    head: BoxHeadConfig,
    config: DetectionConfig,
    *,
    extent: Extent = "continuous",
) -> list[Detections]:
    """The objects of each image, on the host, without masks, boxes still in pixels of the network's input.

    Args:
        output: of the box head, for the proposals of all images in a row.
        proposals: the boxes of each image.

    Choice: a region may become an object of every class whose score passes the threshold, or of its best class
    only. Boxes of one class suppress each other either way.
    """
    scores, deltas = together_to_host(class_scores(output.class_logits, head), output.deltas.data)
    found, start = [], 0
    for index, boxes in enumerate(proposals):
        rows = slice(start, start + len(boxes))
        start += len(boxes)
        region, classes = _candidates(scores[rows], config)
        score = scores[rows][region, classes]
        channel = class_channel(classes, head.background, head.class_agnostic)
        decoded = decode(deltas[rows][region, channel], widen(boxes[region], extent), head.delta_std, head.delta_clamp)
        box = clip_widened(decoded, images.windows[index], extent)
        large = is_at_least(box, config.min_size)
        box, score, classes = box[large], score[large], classes[large]
        kept = batched_nms(box, score, classes, iou_threshold=config.nms_threshold, limit=config.limit)
        found.append(Detections(boxes=narrow(box[kept], extent), classes=classes[kept], scores=score[kept], masks=None))
    return found


def class_scores(logits: Float[Tensor, "R K1"], head: BoxHeadConfig) -> Float[Array, "R K1"]:
    """The probability of each class, 0 the background, wherever the logits keep it."""
    with no_grad():
        scores = softmax(logits, axis=1).data
    return scores if head.background == "first" else namespace(scores).roll(scores, 1, axis=1)


def _candidates(scores: Float[Array, "R K1"], config: DetectionConfig) -> tuple[Int[Array, " D"], Int[Array, " D"]]:
    """The regions and classes that pass the threshold, region by region."""
    if config.score_comparison == ">":
        passing = scores > config.score_threshold
    else:
        passing = scores >= config.score_threshold
    if config.classes == "argmax" and len(scores):
        best = np.zeros_like(passing)
        best[np.arange(len(scores)), scores.argmax(axis=1)] = True
        passing &= best
    passing[:, 0] = False
    region, classes = np.nonzero(passing)
    return region, classes


def own_masks(
    logits: Float[Tensor, "D S S _"], classes: Int[Array, " D"], head: BoxHeadConfig, mask: MaskHeadConfig
) -> Float[Array, "D S S"]:
    """The mask probabilities of each detection for its own class."""
    with no_grad():
        return sigmoid(own_channel(logits, classes, head.background, mask.class_agnostic)).data


def paste_masks(
    masks: Float[Array, "D S S"], boxes: Float[Array, "D 4"], size: tuple[int, int], config: DetectionConfig
) -> Array:
    """Lay each mask over its box in an image of `size`: (D, H, W), bool, or probabilities without a threshold.

    Choice: "soft" widens mask and box by one cell on every side, truncates the box to whole pixels and counts both
    ends as inside (torchvision); "hard" rounds the box to whole pixels, half to even (Matterport). Either resamples
    bilinearly with half-pixel centres; "hard" takes everything outside the mask for 0, but lets no value leave the
    range of the mask's own (:func:`~refnet.rcnn.masks.resize_bounded`).
    """
    height, width = size
    threshold = config.mask_threshold
    pasted = np.zeros((len(masks), height, width), masks.dtype if threshold is None else bool)
    cells = masks.shape[1]
    if config.paste == "soft":
        masks = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
        center, half = (boxes[:, :2] + boxes[:, 2:]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((cells + 2) / cells)
        corners = np.trunc(np.concatenate([center - half, center + half], axis=1))
    else:
        corners = np.round(boxes)
    for index, (mask, (x1, y1, x2, y2)) in enumerate(zip(masks, corners.astype(np.int64).tolist(), strict=True)):
        if config.paste == "soft":
            values = _resize(mask, max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1))
        elif x2 > x1 and y2 > y1:
            values = resize_bounded(mask, (y2 - y1, x2 - x1))
        else:
            continue
        top, left = max(y1, 0), max(x1, 0)
        part = values[top - y1 : max(height - y1, 0), left - x1 : max(width - x1, 0)]  # none of a box outside
        target = pasted[index, top : top + part.shape[0], left : left + part.shape[1]]
        target[...] = part if threshold is None else part >= threshold
    return pasted


def _resize(mask: Float[Array, "S S"], height: int, width: int) -> Float[Array, "h w"]:
    with no_grad():
        return resize_bilinear(Tensor(mask[None, :, :, None]), (height, width)).data[0, :, :, 0]


def decode_keypoints(
    maps: Float[Array, "D S S K"], boxes: Float[Array, "D 4"], config: KeypointHeadConfig
) -> tuple[Float[Array, "D K 3"], Float[Array, "D K"]]:
    """The points of each detection, (x, y, 1) in the boxes' pixels, and how sure each is.

    The heat maps are enlarged to the box's size in whole pixels, rounded up, and a point lies in the middle of the
    pixel with the greatest value (He et al. 2017, section 5; ``heatmaps_to_keypoints`` of torchvision and Detectron2).
    A box narrower or lower than a pixel counts as one pixel.

    Choice: enlarged bicubically. The score is the logit there, or the probability by a softmax that sums over the
    small map, so that it doesn't depend on the box's size.
    """
    points, scores = np.ones((*maps.shape[:1], maps.shape[3], 3), maps.dtype), np.zeros(maps.shape[::3], maps.dtype)
    sizes = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)  # D 2
    for index, (small, size) in enumerate(zip(maps, sizes, strict=True)):
        width, height = (int(v) for v in np.ceil(size))
        with no_grad():
            maps_of_one = Tensor(small.transpose(2, 0, 1)[..., None])  # K S S 1
            large = resize_bicubic(maps_of_one, (height, width)).data.reshape(-1, height * width)  # K h·w
        best = large.argmax(axis=1)  # K
        pixels = np.stack([best % width, best // width], axis=1)  # K 2
        points[index, :, :2] = (pixels + 0.5) * (size / (width, height)) + boxes[index, :2]
        scores[index] = large.max(axis=1)
    if config.scores == "probability":
        with np.errstate(over="ignore"):  # a map that is far above its own maximum leaves a probability of 0
            scores = 1 / np.exp(maps - scores[:, None, None]).sum(axis=(1, 2))
    return points, scores
