"""Targets: which anchors and regions should say what (Ren et al. 2015, 3.1.2; Girshick 2015, 2.3; He et al. 2017, 3).

Plain arrays throughout: no gradient flows through an assignment.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from refnet.arrays import Array
from refnet.ops import crop_and_resize_forward, roi_align_forward
from refnet.ops.conv2d import Pair, as_pair
from refnet.rcnn.boxes import Extent, encode, narrow, pairwise_iou, to_normalized, widen
from refnet.rcnn.config import AnchorTargetConfig, RoiTargetConfig
from refnet.rcnn.masks import minimize_masks
from refnet.rcnn.structures import BACKGROUND, IGNORE, AnchorTargets, GroundTruth, ImageBatch, Proposals, Rois

Four = tuple[float, float, float, float]


def assign_anchors(
    anchors: Float[Array, "A 4"],
    truth: Sequence[GroundTruth],
    images: ImageBatch,
    config: AnchorTargetConfig,
    delta_std: Four,
    rng: np.random.Generator,
    *,
    extent: Extent = "continuous",
) -> AnchorTargets:
    """Label every anchor of every image, and sample those that take part in the loss.

    An anchor is positive from ``positive_iou`` on, or if it is the best one of some object; it is background below
    ``negative_iou`` with every object; all others take no part.

    Choice: with border "ignore", an anchor that crosses the border of its image (not that of the padding) takes no
    part at all, so an object's best anchor is the best of those inside.
    """
    labels = np.empty((len(truth), len(anchors)), np.int64)
    deltas = np.zeros((len(truth), len(anchors), 4), anchors.dtype)
    for index, entry in enumerate(truth):
        objects = entry.select(~entry.crowd)
        label, matched = np.full(len(anchors), IGNORE), np.zeros(len(anchors), np.int64)
        eligible: Array = np.ones(len(anchors), bool)
        if config.border == "ignore":
            eligible = _is_within(anchors, images.windows[index])
        label[eligible], matched[eligible] = match_anchors(anchors[eligible], objects, config, extent)
        if config.crowd == "avoid":
            label[(label == BACKGROUND) & _in_crowd(anchors, entry, config.crowd_iou, extent)] = IGNORE
        labels[index] = sample_labels(label, config.batch_size, config.positive_fraction, rng)
        positive = np.flatnonzero(labels[index] == 1)
        boxes = objects.boxes.astype(anchors.dtype)
        deltas[index, positive] = encode(
            widen(boxes[matched[positive]], extent), widen(anchors[positive], extent), delta_std
        )
    return AnchorTargets(labels=labels, deltas=deltas)


def match_anchors(
    anchors: Float[Array, "A 4"], objects: GroundTruth, config: AnchorTargetConfig, extent: Extent = "continuous"
) -> tuple[Int[Array, " A"], Int[Array, " A"]]:
    """Before sampling: each anchor's label (1, 0, -1) and the object it belongs to.

    Choice: an object's best anchor is positive even below ``positive_iou``; all that tie for best, or the first
    only. Such a forced anchor regresses to the object that *it* overlaps most, as every implementation does, or to
    the object that forced it, as the paper's text has it.
    """
    if not len(objects) or not len(anchors):
        return np.full(len(anchors), BACKGROUND), np.zeros(len(anchors), np.int64)
    iou = pairwise_iou(widen(objects.boxes.astype(anchors.dtype), extent), widen(anchors, extent))  # G A
    matched, best = iou.argmax(axis=0), iou.max(axis=0)
    labels = np.full(len(anchors), IGNORE)
    labels[best < config.negative_iou] = BACKGROUND
    labels[best >= config.positive_iou] = 1

    if config.force_best == "ties":
        forcing, forced = np.nonzero((iou == iou.max(axis=1, keepdims=True)) & (iou > 0))
    else:
        forcing, forced = np.arange(len(objects)), iou.argmax(axis=1)
        overlapping = iou[forcing, forced] > 0
        forcing, forced = forcing[overlapping], forced[overlapping]
    labels[forced] = 1
    if config.forced_match == "forcing_object":
        weak = best[forced] < config.positive_iou
        matched[forced[weak]] = forcing[weak]
    return labels, matched


def _is_within(boxes: Float[Array, "B 4"], window: Float[Array, "4"]) -> Bool[Array, " B"]:
    return np.asarray(((boxes[:, :2] >= window[:2]) & (boxes[:, 2:] <= window[2:])).all(axis=1))


def sample_labels(
    labels: Int[Array, " A"], batch_size: int, positive_fraction: float, rng: np.random.Generator
) -> Int[Array, " A"]:
    """Keep at most ``batch_size`` labels, of which at most a fraction positive; the others become -1."""
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == BACKGROUND)
    positive = choose(positive, int(batch_size * positive_fraction), rng)
    negative = choose(negative, batch_size - len(positive), rng)
    sampled = np.full(len(labels), IGNORE)
    sampled[positive], sampled[negative] = 1, BACKGROUND
    return sampled


def choose(candidates: Int[Array, " B"], count: int, rng: np.random.Generator) -> Int[Array, " k"]:
    """At most `count` of `candidates`, at random without repetition, in their order."""
    if len(candidates) <= count:
        return candidates
    return np.sort(rng.choice(candidates, count, replace=False))


def _in_crowd(boxes: Array, truth: GroundTruth, threshold: float, extent: Extent) -> Bool[Array, " B"]:
    """Which boxes overlap a crowd so much that they can't be called background."""
    crowds = truth.boxes[truth.crowd].astype(boxes.dtype)
    if not len(crowds):
        return np.zeros(len(boxes), bool)
    iou = pairwise_iou(widen(boxes, extent), widen(crowds, extent))
    return np.asarray((iou >= threshold).any(axis=1))


def sample_rois(
    proposals: Sequence[Proposals],
    truth: Sequence[GroundTruth],
    images: ImageBatch,
    config: RoiTargetConfig,
    delta_std: Four,
    mask_size: int | Pair | None,
    rng: np.random.Generator,
    *,
    keypoint_maps: tuple[int, int] | None = None,
    extent: Extent = "continuous",
) -> Rois:
    """Choose the regions that train the heads, and say what the heads should answer.

    A region belongs to the object that it overlaps most, if by ``positive_iou`` at least; otherwise it is
    background. `mask_size` is the side of the mask targets, or their height and width, None where there is no mask head;
    `keypoint_maps` says how many heat maps a region has and their side, None where there is no keypoint head.

    Choice: the true boxes may join the proposals; background fills the batch up, or stands in a fixed ratio to the
    regions with an object, and then boxes without extent may fill it up.
    """
    parts = []
    for index, (proposed, entry) in enumerate(zip(proposals, truth, strict=True)):
        objects = entry.select(~entry.crowd)
        candidates = proposed.boxes
        if config.append_ground_truth:
            candidates = np.concatenate([candidates, objects.boxes.astype(candidates.dtype)])
        chosen, classes, matched = _match_rois(candidates, entry, objects, config, rng, extent)
        boxes, sources = candidates[chosen], np.full(len(candidates), -1)
        if proposed.sources is not None:
            sources[: len(proposed.sources)] = proposed.sources
        foreground = np.flatnonzero(classes > 0)
        deltas = np.zeros_like(boxes)
        goal = objects.boxes.astype(boxes.dtype)[matched[foreground]]
        deltas[foreground] = encode(widen(goal, extent), widen(boxes[foreground], extent), delta_std)
        masks = None
        if mask_size is not None:
            masks = mask_targets(boxes[foreground], objects, matched[foreground], images.size, mask_size, config)
        points = None
        if keypoint_maps is not None:
            points = keypoint_targets(boxes[foreground], objects, matched[foreground], *keypoint_maps)
        missing = max(config.batch_size - len(boxes), 0) if config.padding == "zeros" else 0
        padding = narrow(np.zeros((missing, 4), boxes.dtype), extent)
        parts.append((
            np.concatenate([boxes, padding]), np.full(len(boxes) + missing, index), np.pad(classes, (0, missing)),
            np.pad(deltas, ((0, missing), (0, 0))), goal, np.pad(sources[chosen], (0, missing), constant_values=-1),
            masks, points,
        ))  # fmt: skip
    boxes, image, classes, deltas, goal, source = (np.concatenate([part[i] for part in parts]) for i in range(6))
    return Rois(
        boxes=boxes,
        images=image,
        classes=classes,
        deltas=deltas,
        foreground=np.flatnonzero(classes > 0),
        masks=None if mask_size is None else np.concatenate([part[6] for part in parts if part[6] is not None]),
        keypoints=None if keypoint_maps is None else np.concatenate([p[7] for p in parts if p[7] is not None]),
        objects=goal,
        sources=source,
        active_classes=_active_classes(truth),
    )


def _active_classes(truth: Sequence[GroundTruth]) -> Bool[Array, "N K1"] | None:
    """The rows of all images; one that says nothing has all classes."""
    rows = [entry.active_classes for entry in truth]
    known = next((row for row in rows if row is not None), None)
    return None if known is None else np.stack([np.ones_like(known) if row is None else row for row in rows])


def _match_rois(
    candidates: Float[Array, "B 4"],
    entry: GroundTruth,
    objects: GroundTruth,
    config: RoiTargetConfig,
    rng: np.random.Generator,
    extent: Extent,
) -> tuple[Int[Array, " R"], Int[Array, " R"], Int[Array, " R"]]:
    """The sampled candidates' positions, their classes and the objects they belong to."""
    matched, best = np.zeros(len(candidates), np.int64), np.zeros(len(candidates), candidates.dtype)
    if len(objects):
        iou = pairwise_iou(widen(objects.boxes.astype(candidates.dtype), extent), widen(candidates, extent))
        matched, best = iou.argmax(axis=0), iou.max(axis=0)
    is_object = best >= config.positive_iou if len(objects) else np.zeros(len(candidates), bool)
    is_background = ~is_object & (best >= config.negative_iou_low)
    if config.crowd == "avoid":
        is_background &= ~_in_crowd(candidates, entry, config.crowd_iou, extent)

    positive = choose(np.flatnonzero(is_object), int(config.batch_size * config.positive_fraction), rng)
    wanted = config.batch_size - len(positive)
    if config.negatives == "ratio":
        # in float32, as Matterport computes it: 1 / 0.33 rounds differently in float64
        wanted = int(np.float32(1.0 / config.positive_fraction) * np.float32(len(positive))) - len(positive)
    negative = choose(np.flatnonzero(is_background), wanted, rng)
    chosen = np.sort(np.concatenate([positive, negative]))
    classes = np.zeros(len(candidates), np.int64)
    classes[positive] = objects.classes[matched[positive]]
    return chosen, classes[chosen], matched[chosen]


def mask_targets(
    boxes: Float[Array, "F 4"],
    objects: GroundTruth,
    matched: Int[Array, " F"],
    image_size: tuple[int, int],
    size: int | Pair,
    config: RoiTargetConfig,
) -> Float[Array, "F S T"]:
    """The mask of each box's object, cut out by the box and resampled to `size`, a side or height and width.

    Choice: the mask is sampled where it lies in the image, or from a mini-mask of its own box, which is coarser. The
    resampled values are kept, rounded with 0.5 to 0, or 1 from 0.5 on. An object without a mask
    (only its box is known) has none to learn from, which the data must not mix with masks.
    """
    size = as_pair(size, "mask_targets: size")
    if objects.masks is None or not len(boxes):
        return np.zeros((len(boxes), *size), boxes.dtype)
    masks = objects.masks
    if config.mini_mask is not None:
        masks = minimize_masks(masks, objects.boxes, config.mini_mask)
    masks = masks[..., None].astype(boxes.dtype)  # G H W 1
    if config.mask_sampling == "roi_align":
        values = roi_align_forward(masks, boxes, matched, size=size, spatial_scale=1.0, sampling_ratio=0, aligned=False)
    else:
        boxes = to_normalized(boxes, image_size)
        if config.mini_mask is not None:
            boxes = _relative(boxes, to_normalized(objects.boxes.astype(boxes.dtype)[matched], image_size))
        values = crop_and_resize_forward(masks, boxes, matched, size=size, extrapolation_value=0.0)
    return binarize(values[..., 0], config.mask_values)


def _relative(boxes: Float[Array, "F 4"], frames: Float[Array, "F 4"]) -> Float[Array, "F 4"]:
    """Boxes as their `frames` see them: (0, 0) is the upper left corner of the frame, (1, 1) the lower right one."""
    origin, size = frames[:, [0, 1, 0, 1]], frames[:, 2:] - frames[:, :2]
    relative: Array = (boxes - origin) / np.concatenate([size, size], axis=1)
    return relative


def binarize(values: Float[Array, "*S"], rule: Literal["soft", "round", "threshold"]) -> Float[Array, "*S"]:
    """Mask values by :attr:`RoiTargetConfig.mask_values`."""
    if rule == "soft":
        return np.asarray(np.minimum(values, 1))  # an average of ones may exceed 1 by a rounding
    if rule == "round":
        return np.round(values)
    return (values >= 0.5).astype(values.dtype)


def keypoint_targets(
    boxes: Float[Array, "F 4"], objects: GroundTruth, matched: Int[Array, " F"], count: int, size: int
) -> Int[Array, "F K"]:
    """Where each of `count` points of each box's object lies in a heat map of `size` squared: row · size + column.

    A box (x1, y1, x2, y2) is divided into cells, the point belongs to the cell that it lies in,

    .. math:: \\lfloor (x - x_1)\\, s / (x_2 - x_1) \\rfloor, \\quad \\lfloor (y - y_1)\\, s / (y_2 - y_1) \\rfloor

    and a point exactly on the right or lower edge to the last one. A point outside of the box, or that isn't visible
    (0), has no target: -1. So has every point of an object without keypoints, which only an image without objects may
    have where others have them.
    """
    if objects.keypoints is None or not len(boxes):
        return np.full((len(boxes), count), IGNORE)
    points = objects.keypoints[matched]  # F K 3
    positions = points[..., :2].astype(boxes.dtype)
    corner, opposite = boxes[:, None, :2], boxes[:, None, 2:]
    labelled = points[..., 2] > 0
    with np.errstate(invalid="ignore"):  # what isn't labelled may be NaN
        cells = np.floor((positions - corner) * (size / (opposite - corner)))
    cells[positions == opposite] = size - 1
    valid = labelled & ((cells >= 0) & (cells < size)).all(axis=-1)
    cells = np.where(valid[..., None], cells, 0).astype(np.int64)
    return np.where(valid, cells[..., 1] * size + cells[..., 0], IGNORE)
