"""What exists in Matterport's convention only: signs of crowds, image meta data, whole boxes, training on random regions.

For reading and writing what belongs to Matterport's programs, and for reproducing them; the network doesn't need it.
Boxes are (x1, y1, x2, y2) here as everywhere; only the rows of image meta data hold (y1, x1, y2, x2).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from refnet.arrays import Array
from refnet.errors import ArgumentError, ShapeError
from refnet.rcnn.boxes import encode, from_normalized, pairwise_iou
from refnet.rcnn.masks import resize_bounded
from refnet.rcnn.structures import GroundTruth, Rois

Shape = tuple[int, int, int]
_BEFORE_CLASSES = 12  # numbers of image meta data that come before the classes


def signed_classes(classes: Int[Array, " G"], crowd: Bool[Array, " G"]) -> Int[Array, " G"]:
    """Classes as Matterport's data sets give them: those of crowds are negative."""
    return np.where(crowd, -classes, classes)


def from_signed_classes(signed: Int[Array, " G"]) -> tuple[Int[Array, " G"], Bool[Array, " G"]]:
    """Classes, and whether each is that of a crowd: the inverse of :func:`signed_classes`."""
    return abs(signed), signed < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageMeta:
    """What Matterport tells its network about an image beside the pixels.

    Attributes:
        image_id: the number of the image in its data set.
        original_shape: (height, width, channels) as it was given.
        shape: (height, width, channels) of the network's input.
        window: (x1, y1, x2, y2), where the image lies within the padding.
        scale: by how much it was enlarged (:func:`~refnet.rcnn.transform.resize_scale`).
        active_classes: (K + 1,), which classes its data set knows, the background first. Detection says none.
    """

    image_id: int
    original_shape: Shape
    shape: Shape
    window: tuple[int, int, int, int]
    scale: float
    active_classes: Bool[Array, " K1"]


def compose_image_meta(meta: ImageMeta) -> Float[Array, " _"]:
    """The row of 12 + (K + 1) numbers that Matterport's network takes: the fields in their order, the window as yxyx."""
    x1, y1, x2, y2 = meta.window
    before = [meta.image_id, *meta.original_shape, *meta.shape, y1, x1, y2, x2, meta.scale]
    return np.concatenate([np.asarray(before, np.float64), meta.active_classes.astype(np.float64)])


def parse_image_meta(row: Real[Array, " _"]) -> ImageMeta:
    """The inverse of :func:`compose_image_meta`.

    Raises:
        ShapeError: the row is too short to name a class.
    """
    if len(row) <= _BEFORE_CLASSES:
        raise ShapeError(f"image meta data: expected more than {_BEFORE_CLASSES} numbers, got {len(row)}")
    image_id, *others = (int(v) for v in row[: _BEFORE_CLASSES - 1])
    height, width, channels, new_height, new_width, new_channels, y1, x1, y2, x2 = others
    return ImageMeta(
        image_id=image_id,
        original_shape=(height, width, channels),
        shape=(new_height, new_width, new_channels),
        window=(x1, y1, x2, y2),
        scale=float(row[_BEFORE_CLASSES - 1]),
        active_classes=row[_BEFORE_CLASSES:].astype(bool),
    )


def denormalize_boxes(boxes: Float[Array, "*B 4"], size: tuple[int, int]) -> Float[Array, "*B 4"]:
    """Normalised coordinates in an image of `size` (H, W) as Matterport's whole pixels, half to even."""
    rounded: Array = np.round(from_normalized(boxes, size))
    return rounded


def trim_zeros(boxes: Real[Array, "B 4"]) -> Real[Array, "_ 4"]:
    """The boxes without those of padding, which are 0 throughout."""
    trimmed: Array = boxes[boxes.any(axis=1)]
    return trimmed


def random_rois(
    count: int, boxes: Float[Array, "G 4"], size: tuple[int, int], rng: np.random.Generator
) -> Float[Array, "R 4"]:
    """Random regions to train the heads on without the RPN, nine tenths of them around objects.

    Around each object as many as around any other, with corners up to its own extent away from it, but within the
    image of `size` (H, W); the others anywhere. Corners are whole pixels, and no region is empty. Rows are drawn before
    columns and twice as many as needed, so that a generator that repeats Matterport's numbers gives its regions.

    Raises:
        ArgumentError: there is no object, or `count` isn't positive.
    """
    if count < 1 or not len(boxes):
        raise ArgumentError(f"random_rois: expected a positive count and an object, got {count} and {len(boxes)}")
    each = int(0.9 * count / len(boxes))
    height, width = size
    parts = []
    for x1, y1, x2, y2 in boxes.astype(np.int64).tolist():
        rows = max(y1 - (y2 - y1), 0), min(y2 + (y2 - y1), height)
        columns = max(x1 - (x2 - x1), 0), min(x2 + (x2 - x1), width)
        parts.append(_draw_rois(each, rows, columns, rng))
    parts.append(_draw_rois(count - each * len(boxes), (0, height), (0, width), rng))
    return np.concatenate(parts)


def _draw_rois(
    count: int, rows: tuple[int, int], columns: tuple[int, int], rng: np.random.Generator
) -> Float[Array, "R 4"]:
    """Boxes whose corners lie from the first row and column to before the last; drawn again if too many are empty."""
    while True:
        drawn = [rng.integers(low, high, (2 * count, 2)) for low, high in (rows, columns)]
        y, x = (np.sort(ends[ends[:, 0] != ends[:, 1]][:count], axis=1) for ends in drawn)
        if len(y) == len(x) == count:
            return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1).astype(np.float64)


def random_roi_targets(
    rois: Float[Array, "B 4"],
    truth: GroundTruth,
    *,
    count: int,
    positive_fraction: float,
    delta_std: tuple[float, float, float, float],
    mask_size: int,
    rng: np.random.Generator,
) -> Rois:
    """`count` of the given regions of one image, and what the heads should say of them.

    Matterport's build_detection_targets. It differs from :func:`~refnet.rcnn.targets.sample_rois`, which trains on
    the RPN's regions: a region is an object's above an IoU of 0.5 and background below, at 0.5 neither; background
    fills up to `count`, repeated if there is too little of it; masks are cut out at corners without their fractions
    and resized by :func:`~refnet.rcnn.masks.resize_bounded`, and stay soft. Crowds take no part.

    Raises:
        ArgumentError: there isn't enough background to repeat, no object, or an object without a mask.
    """
    objects = truth.select(~truth.crowd)
    if not len(objects) or objects.masks is None:
        raise ArgumentError("random_roi_targets: expected an object and the masks of all, got none")
    iou = pairwise_iou(rois, objects.boxes.astype(rois.dtype))
    matched, best = iou.argmax(axis=1), iou.max(axis=1)
    positive, background = np.flatnonzero(best > 0.5), np.flatnonzero(best < 0.5)
    wanted = int(count * positive_fraction)
    if len(positive) > wanted:
        positive = rng.choice(positive, wanted, replace=False)
    missing = count - len(positive)
    if len(background) > missing:
        background = rng.choice(background, missing, replace=False)
    if len(background) < missing:
        if not len(background):
            raise ArgumentError(f"random_roi_targets: expected {missing} regions of background, got none")
        extra = rng.choice(background, missing - len(background), replace=True)
        background = np.concatenate([background, extra])

    chosen = np.concatenate([positive, background])
    foreground = np.arange(len(positive))
    deltas, goal = np.zeros((count, 4), rois.dtype), objects.boxes.astype(rois.dtype)[matched[positive]]
    deltas[foreground] = encode(goal, rois[positive], delta_std)
    masks = np.zeros((len(positive), mask_size, mask_size), rois.dtype)
    for index, (box, owner) in enumerate(zip(rois[positive].astype(np.int64), matched[positive], strict=True)):
        x1, y1, x2, y2 = box.tolist()
        masks[index] = resize_bounded(objects.masks[owner, y1:y2, x1:x2], (mask_size, mask_size))
    classes = np.zeros(count, np.int64)
    classes[foreground] = objects.classes[matched[positive]]
    return Rois(
        boxes=rois[chosen],
        images=np.zeros(count, np.int64),
        classes=classes,
        deltas=deltas,
        foreground=foreground,
        masks=masks,
    )
