"""Targets: which anchors and regions should say what (Ren et al. 2015, 3.1.2; Girshick 2015, 2.3; He et al. 2017, 3).

Plain arrays throughout: no gradient flows through an assignment.

On a device, overlaps are compared there (:func:`match_anchors`, :func:`match_rois`) and masks are sampled there
(:func:`mask_targets`). Which anchors and regions take part is drawn on the host, by the generator that a CPU would use,
so equal seeds draw the same; and what then concerns the few hundred that were drawn, and isn't there already, is
computed on the host too, which takes less than asking the device for it.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from refnet.arrays import Array, namespace, on_device_of
from refnet.ops import crop_and_resize_forward, match_boxes, roi_align_forward
from refnet.ops.conv2d import Pair, as_pair
from refnet.rcnn.boxes import Extent, encode, narrow, to_normalized, widen
from refnet.rcnn.config import AnchorTargetConfig, RoiTargetConfig
from refnet.rcnn.masks import minimize_masks
from refnet.rcnn.structures import (
    BACKGROUND,
    IGNORE,
    AnchorMatches,
    AnchorTargets,
    GroundTruth,
    ImageBatch,
    Proposals,
    RoiMatches,
    Rois,
    pad_proposals,
)

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
    matches: AnchorMatches | None = None,
) -> AnchorTargets:
    """Label every anchor of every image, and sample those that take part in the loss.

    `matches` is what :func:`match_anchors` found, on the host; None: it is asked here.
    """
    if matches is None:
        matches = match_anchors(anchors, truth, images, config, extent)
    labels = np.stack([sample_labels(row, config.batch_size, config.positive_fraction, rng) for row in matches.labels])
    image, anchor = np.nonzero(labels == 1)
    goal = _of_objects(_object_boxes(truth), image, matches.objects[image, anchor]).astype(anchors.dtype)
    positive = on_device_of(image * len(anchors) + anchor, anchors)
    deltas = namespace(anchors).zeros((labels.size, 4), anchors.dtype)
    deltas[positive] = encode(
        widen(on_device_of(goal, anchors), extent), widen(anchors[on_device_of(anchor, anchors)], extent), delta_std
    )
    return AnchorTargets(labels=labels, deltas=deltas.reshape(*labels.shape, 4))


def match_anchors(
    anchors: Float[Array, "A 4"],
    truth: Sequence[GroundTruth],
    images: ImageBatch,
    config: AnchorTargetConfig,
    extent: Extent = "continuous",
) -> AnchorMatches:
    """Before sampling: each anchor's label (1, 0, -1) and the object it belongs to, where the anchors are.

    An anchor is positive from ``positive_iou`` on, or if it is the best one of some object; it is background below
    ``negative_iou`` with every object; all others take no part.

    Choice: an object's best anchor is positive even below ``positive_iou``; all that tie for best, or the first
    only. Such a forced anchor regresses to the object that *it* overlaps most, as every implementation does, or to
    the object that forced it, as the paper's text has it.

    Choice: with border "ignore", an anchor that crosses the border of its image (not that of the padding) takes no
    part at all, so an object's best anchor is the best of those inside.
    """
    xp, objects = namespace(anchors), _object_boxes(truth)
    boxes = widen(anchors, extent)[None]  # 1 A 4
    if config.border == "ignore":
        within = _are_within(anchors, on_device_of(images.windows, anchors))  # N A
        boxes = xp.where(within[..., None], boxes, boxes.dtype.type(np.nan))  # what isn't a number overlaps nothing
    iou, matched, forcing = match_boxes(boxes, _side_by_side(objects, anchors, extent), force=config.force_best)
    positive, forced = iou >= config.positive_iou, forcing >= 0
    if config.forced_match == "forcing_object":
        matched = xp.where(forced & ~positive, forcing, matched)
    background = iou < config.negative_iou
    empty = np.array([not len(own) for own in objects])[:, None]
    if empty.any():
        empty = on_device_of(empty, anchors)
        positive, background = positive & ~empty, background | empty
    if config.crowd == "avoid" and (in_crowd := _in_crowd(boxes, truth, config.crowd_iou, extent)) is not None:
        background = background & ~in_crowd
    if config.border == "ignore":
        positive, background = positive & within, background & within
    labels = xp.where(positive | forced, np.int8(1), xp.where(background, np.int8(BACKGROUND), np.int8(IGNORE)))
    return AnchorMatches(labels=labels, objects=matched)


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


def _object_boxes(truth: Sequence[GroundTruth]) -> list[Float[Array, "_ 4"]]:
    return [entry.boxes[~entry.crowd] for entry in truth]


def _side_by_side(boxes: Sequence[Float[Array, "_ 4"]], like: Array, extent: Extent) -> Float[Array, "N G 4"]:
    """Boxes of images, widened, in one array that is where `like` is, of its type; zeros, which overlap nothing, fill up."""
    padded = np.zeros((len(boxes), max(map(len, boxes), default=0), 4), like.dtype)
    for row, own in zip(padded, boxes, strict=True):
        row[: len(own)] = widen(own.astype(like.dtype), extent)
    return on_device_of(padded, like)


def _of_objects(values: Sequence[Shaped[Array, "_ *S"]], images: Int[Array, " B"], objects: Int[Array, " B"]) -> Array:
    """From values for the objects of each image, those for one object of one image each."""
    joined: Array = np.concatenate(values)[_row_of(values, images, objects)]
    return joined


def _row_of(values: Sequence[Any], images: Int[Array, " B"], objects: Int[Array, " B"]) -> Int[Array, " B"]:
    """Where each object lies when those of all images stand in a row."""
    starts = np.cumsum([0, *map(len, values)])
    return np.asarray(starts[images] + objects)


def _are_within(boxes: Float[Array, "B 4"], windows: Float[Array, "N 4"]) -> Bool[Array, "N B"]:
    low, high = boxes[:, :2] >= windows[:, None, :2], boxes[:, 2:] <= windows[:, None, 2:]
    within: Array = namespace(boxes).all(low & high, axis=-1)
    return within


def _in_crowd(
    boxes: Float[Array, "#N B 4"], truth: Sequence[GroundTruth], threshold: float, extent: Extent
) -> Bool[Array, "N B"] | None:
    """Which boxes, widened already, overlap a crowd of their image so much that they can't be called background.

    None where there are no crowds.
    """
    crowds = [entry.boxes[entry.crowd] for entry in truth]
    if not any(map(len, crowds)):
        return None
    iou, _, _ = match_boxes(boxes, _side_by_side(crowds, boxes, extent))
    has_crowd = np.array([len(own) > 0 for own in crowds])[:, None]
    inside: Array = (iou >= threshold) & on_device_of(has_crowd, boxes)
    return inside


def match_rois(
    boxes: Float[Array, "N R 4"],
    truth: Sequence[GroundTruth],
    config: RoiTargetConfig,
    extent: Extent = "continuous",
) -> RoiMatches:
    """Before sampling: the object that each candidate overlaps most, where the proposals `boxes` are.

    Choice: the true boxes may join the proposals as candidates.
    """
    candidates, objects = widen(boxes, extent), _side_by_side(_object_boxes(truth), boxes, extent)
    if config.append_ground_truth:
        candidates = namespace(boxes).concatenate([candidates, objects], axis=1)
    iou, matched, _ = match_boxes(candidates, objects)
    in_crowd = _in_crowd(candidates, truth, config.crowd_iou, extent) if config.crowd == "avoid" else None
    return RoiMatches(iou=iou, objects=matched, in_crowd=in_crowd)


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
    matches: RoiMatches | None = None,
    masks: Float[Array, "G _ _ 1"] | None = None,
) -> Rois:
    """Choose the regions that train the heads, and say what the heads should answer.

    A region belongs to the object that it overlaps most, if by ``positive_iou`` at least; otherwise it is
    background. `mask_size` is the side of the mask targets, or their height and width, None where there is no mask head;
    `keypoint_maps` says how many heat maps a region has and their side, None where there is no keypoint head.

    `matches` is what :func:`match_rois` found, on the host, and `masks` what :func:`object_masks` gives, which says
    where mask targets are sampled; None: they are made here.

    Choice: background fills the batch up, or stands in a fixed ratio to the regions with an object, and then boxes
    without extent may fill it up.
    """
    if matches is None:
        matches = match_rois(pad_proposals(proposals, like=proposals[0].boxes).boxes, truth, config, extent)
    objects = [entry.objects for entry in truth]
    joining = max(map(len, objects), default=0) if config.append_ground_truth else 0
    parts = [
        _sample_image(index, proposed, own, matches, joining, config, rng, extent)
        for index, (proposed, own) in enumerate(zip(proposals, objects, strict=True))
    ]
    boxes, classes, matched, source = (np.concatenate(part) for part in zip(*parts, strict=True))
    image = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    foreground = np.flatnonzero(classes > 0)
    own_boxes, own_images, matched = boxes[foreground], image[foreground], matched[foreground]
    goal = _of_objects([entry.boxes for entry in objects], own_images, matched).astype(boxes.dtype)
    deltas = np.zeros_like(boxes)
    deltas[foreground] = encode(widen(goal, extent), widen(own_boxes, extent), delta_std)
    values = points = None
    if mask_size is not None:
        if masks is None:
            masks = object_masks(truth, images.size, config, boxes)
        row = _row_of(objects, own_images, matched)
        values = mask_targets(own_boxes, masks, goal, row, images.size, mask_size, config)
    if keypoint_maps is not None:
        points = np.concatenate([
            keypoint_targets(own_boxes[own_images == n], entry, matched[own_images == n], *keypoint_maps)
            for n, entry in enumerate(objects)
        ])  # fmt: skip
    return Rois(
        boxes=boxes,
        images=image,
        classes=classes,
        deltas=deltas,
        foreground=foreground,
        masks=values,
        keypoints=points,
        objects=goal,
        sources=source,
        active_classes=_active_classes(truth),
    )


def _sample_image(
    index: int,
    proposed: Proposals,
    objects: GroundTruth,
    matches: RoiMatches,
    joining: int,
    config: RoiTargetConfig,
    rng: np.random.Generator,
    extent: Extent,
) -> tuple[Float[Array, "R 4"], Int[Array, " R"], Int[Array, " R"], Int[Array, " R"]]:
    """The regions drawn in an image: boxes, classes, objects that they belong to, sources; padding behind them.

    True boxes lie in the last `joining` rows of `matches`, which are as many as the most objects of an image.
    """
    candidates, rows = proposed.boxes, np.arange(len(proposed.boxes))
    if config.append_ground_truth:
        candidates = np.concatenate([candidates, objects.boxes.astype(candidates.dtype)])
        rows = np.concatenate([rows, matches.iou.shape[1] - joining + np.arange(len(objects))])
    in_crowd = None if matches.in_crowd is None else matches.in_crowd[index, rows]
    drawn, is_object = _draw_rois(matches.iou[index, rows], in_crowd, len(objects) > 0, config, rng)

    missing = max(config.batch_size - len(drawn), 0) if config.padding == "zeros" else 0
    boxes = np.concatenate([candidates[drawn], narrow(np.zeros((missing, 4), candidates.dtype), extent)])
    classes, matched, sources = (np.full(len(boxes), value) for value in (BACKGROUND, 0, -1))
    matched[: len(drawn)] = matches.objects[index, rows[drawn]]
    foreground, of_rpn = np.flatnonzero(is_object), np.flatnonzero(drawn < len(proposed.boxes))
    classes[foreground] = objects.classes[matched[foreground]]
    if proposed.sources is not None:
        sources[of_rpn] = proposed.sources[drawn[of_rpn]]
    return boxes, classes, matched, sources


def _active_classes(truth: Sequence[GroundTruth]) -> Bool[Array, "N K1"] | None:
    """The rows of all images; one that says nothing has all classes."""
    rows = [entry.active_classes for entry in truth]
    known = next((row for row in rows if row is not None), None)
    return None if known is None else np.stack([np.ones_like(known) if row is None else row for row in rows])


def _draw_rois(
    iou: Float[Array, " C"],
    in_crowd: Bool[Array, " C"] | None,
    has_objects: bool,
    config: RoiTargetConfig,
    rng: np.random.Generator,
) -> tuple[Int[Array, " R"], Bool[Array, " R"]]:
    """The positions of the candidates that are drawn in an image, and which of them have an object."""
    is_object = np.asarray(np.logical_and(iou >= config.positive_iou, has_objects))
    is_background = ~is_object & (iou >= config.negative_iou_low)
    if in_crowd is not None:
        is_background &= ~in_crowd

    positive = choose(np.flatnonzero(is_object), int(config.batch_size * config.positive_fraction), rng)
    wanted = config.batch_size - len(positive)
    if config.negatives == "ratio":
        # in float32, as Matterport computes it: 1 / 0.33 rounds differently in float64
        wanted = int(np.float32(1.0 / config.positive_fraction) * np.float32(len(positive))) - len(positive)
    negative = choose(np.flatnonzero(is_background), wanted, rng)
    chosen = np.sort(np.concatenate([positive, negative]))
    return chosen, is_object[chosen]


def object_masks(
    truth: Sequence[GroundTruth], image_size: tuple[int, int], config: RoiTargetConfig, like: Array
) -> Float[Array, "G _ _ 1"]:
    """The masks of the objects of all images in a row, to sample targets from, where `like` is and of its type.

    Choice: they are the masks as they lie in the image, or mini-masks of the objects' own boxes, which are coarser. An
    object without a mask (only its box is known) has an empty one: there is nothing to learn from it, and data must not
    mix such objects with others.
    """
    masks = []
    for objects in (entry.objects for entry in truth):
        own = objects.masks
        if own is None:
            own = np.zeros((len(objects), *(config.mini_mask or image_size)), bool)
        elif config.mini_mask is not None:
            own = minimize_masks(own, objects.boxes, config.mini_mask)
        masks.append(on_device_of(own, like))
    joined: Array = namespace(like).concatenate(masks, dtype=like.dtype)
    return joined[..., None]  # G H W 1


def mask_targets(
    boxes: Float[Array, "F 4"],
    masks: Float[Array, "G _ _ 1"],
    frames: Float[Array, "F 4"],
    objects: Int[Array, " F"],
    image_size: tuple[int, int],
    size: int | Pair,
    config: RoiTargetConfig,
) -> Float[Array, "F S T"]:
    """The mask of each box's object, cut out by the box and resampled to `size`, a side or height and width.

    `masks` are :func:`object_masks`, `objects` says which of them belongs to each box, and `frames` is the box of that
    object, where its mini-mask lies. The targets are computed where the masks are.

    Choice: the mask is sampled by ROIAlign or by crop_and_resize. The resampled values are kept, rounded with 0.5 to 0,
    or 1 from 0.5 on.
    """
    size, xp = as_pair(size, "mask_targets: size"), namespace(masks)
    if not len(boxes):
        none: Array = xp.zeros((0, *size), masks.dtype)
        return none
    if config.mask_sampling == "crop_and_resize":
        boxes = to_normalized(boxes, image_size)
        if config.mini_mask is not None:
            boxes = _relative(boxes, to_normalized(frames, image_size))
    regions = masks, on_device_of(boxes, masks), on_device_of(objects, masks)
    if config.mask_sampling == "crop_and_resize":
        values = crop_and_resize_forward(*regions, size=size, extrapolation_value=0.0)
    else:
        values = roi_align_forward(*regions, size=size, spatial_scale=1.0, sampling_ratio=0, aligned=False)
    return binarize(values[..., 0], config.mask_values)


def _relative(boxes: Float[Array, "F 4"], frames: Float[Array, "F 4"]) -> Float[Array, "F 4"]:
    """Boxes as their `frames` see them: (0, 0) is the upper left corner of the frame, (1, 1) the lower right one."""
    origin, size = frames[:, [0, 1, 0, 1]], frames[:, 2:] - frames[:, :2]
    relative: Array = (boxes - origin) / np.concatenate([size, size], axis=1)
    return relative


def binarize(values: Float[Array, "*S"], rule: Literal["soft", "round", "threshold"]) -> Float[Array, "*S"]:
    """Mask values by :attr:`RoiTargetConfig.mask_values`."""
    xp, chosen = namespace(values), values
    if rule == "soft":
        chosen = xp.minimum(values, 1)  # an average of ones may exceed 1 by a rounding
    elif rule == "round":
        chosen = xp.rint(values)
    else:
        chosen = (values >= 0.5).astype(values.dtype)
    return chosen


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
