"""What travels between the stages: plain records of arrays. Their types say where gradients stop.

A Tensor carries gradients; an Array (anchors, targets, proposals, detections) never does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from refnet.arrays import Array, on_device_of
from refnet.autograd import Tensor
from refnet.errors import DataError
from refnet.ops import reshape

BACKGROUND = 0  # the class of a region without an object
STRIDES = (4, 8, 16, 32, 64)  # of P2 to P6, in pixels of the network's input
IGNORE = -1  # the label of an anchor or region that takes no part in a loss


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundTruth:
    """The objects of one image.

    Attributes:
        boxes: (G, 4), (x1, y1, x2, y2) in continuous pixels: pixel i covers [i, i + 1).
        classes: (G,), 1 to the number of classes; 0 is the background.
        masks: (G, H, W), whether a pixel belongs to the object; None when only boxes are known.
        crowd: (G,), whether the entry stands for a group of objects (COCO's ``iscrowd``).
        active_classes: (K + 1,), which classes, the background first, the image's data set knows at all; None: all.
        keypoints: (G, K, 3), each point's x, y and visibility: 0 not labelled, when x and y mean nothing, else labelled (COCO
            writes 1 for a hidden point, 2 for one that is seen); None when none are known.

    Raises:
        DataError: extents don't agree, a class is below 1, a box has no area (its logarithm would be NaN), or a labelled
            keypoint isn't finite.
    """

    boxes: Float[Array, "G 4"]
    classes: Int[Array, " G"]
    masks: Bool[Array, "G H W"] | None
    crowd: Bool[Array, " G"]
    active_classes: Bool[Array, " _"] | None = None
    keypoints: Float[Array, "G K 3"] | None = None

    def __post_init__(self) -> None:
        count = len(self.boxes)
        others = {"classes": self.classes, "masks": self.masks, "crowd": self.crowd, "keypoints": self.keypoints}
        for name, array in others.items():
            if array is not None and len(array) != count:
                raise DataError(f"ground truth: {name} must have one entry per box, expected {count}, got {len(array)}")
        if count and int(self.classes.min()) < 1:
            raise DataError(f"ground truth: classes start at 1, got {int(self.classes.min())}")
        flat = ~((self.boxes[:, 2:] > self.boxes[:, :2]).all(axis=1) & np.isfinite(self.boxes).all(axis=1))
        if flat.any():
            index = int(flat.argmax())
            raise DataError(
                f"ground truth: box {index} must have a positive width and height, got {self.boxes[index].tolist()}"
            )
        if self.keypoints is not None:
            strange = ~np.isfinite(self.keypoints).all(axis=2) & (self.keypoints[..., 2] != 0)
            if strange.any():
                index, point = (int(v) for v in np.argwhere(strange)[0])
                raise DataError(
                    f"ground truth: keypoint {point} of object {index} must be finite, "
                    f"got {self.keypoints[index, point].tolist()}"
                )

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, which: Array) -> "GroundTruth":
        """The entries that the boolean or integer array `which` picks."""
        return GroundTruth(
            boxes=self.boxes[which],
            classes=self.classes[which],
            masks=None if self.masks is None else self.masks[which],
            crowd=self.crowd[which],
            active_classes=self.active_classes,
            keypoints=None if self.keypoints is None else self.keypoints[which],
        )

    @property
    def objects(self) -> "GroundTruth":
        """The entries that stand for one object each; crowds don't."""
        return self.select(~self.crowd) if self.crowd.any() else self

    @staticmethod
    def empty(height: int, width: int, dtype: type[np.floating] = np.float32) -> "GroundTruth":
        """An image of `height` x `width` pixels without objects."""
        return GroundTruth(
            boxes=np.zeros((0, 4), dtype),
            classes=np.zeros(0, np.int64),
            masks=np.zeros((0, height, width), bool),
            crowd=np.zeros(0, bool),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageBatch:
    """Images resized, normalised and padded to one size.

    Attributes:
        pixels: (N, H, W, C).
        windows: (N, 4), where each image lies within the padding, (x1, y1, x2, y2).
        scales: (N, 2), by how much each image was enlarged, (x, y).
        original_sizes: (height, width) of each image as it was given.
        uncropped: (N, 4), where the whole of each image would lie, which reaches beyond the window where a part was cut
            out of it; None where nothing was.
    """

    pixels: Float[Array, "N H W C"]
    windows: Float[Array, "N 4"]
    scales: Float[Array, "N 2"]
    original_sizes: Sequence[tuple[int, int]]
    uncropped: Float[Array, "N 4"] | None = None

    @property
    def wholes(self) -> Float[Array, "N 4"]:
        """Where the whole of each image lies, or would lie had nothing been cut off."""
        return self.windows if self.uncropped is None else self.uncropped

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the padded images."""
        return self.pixels.shape[1], self.pixels.shape[2]

    def borders(self, of: Literal["image", "padded"]) -> Float[Array, "N 4"]:
        """Where boxes of each image are cut off: at its own border, or at that of the padding."""
        if of == "image":
            return self.windows
        return np.tile(np.asarray([0, 0, self.size[1], self.size[0]], self.windows.dtype), (len(self), 1))

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True, slots=True, kw_only=True)
class RpnOutput:
    """What the region proposal network says of every anchor, in the order of the anchors.

    Attributes:
        objectness_logits: per level (N, A, 1) with one logit, or (N, A, 2) for (background, object).
        deltas: per level (N, A, 4), the box's offset from its anchor.
    """

    objectness_logits: Sequence[Float[Tensor, "N _ _"]]
    deltas: Sequence[Float[Tensor, "N _ 4"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposals:
    """The regions of one image that the RPN takes for objects, best first.

    Attributes:
        boxes: (R, 4), pixels of the network's input.
        scores: (R,), the probability of an object.
        sources: (R,), the anchor that each was decoded from, by its position in the row of all anchors; -1 for boxes
            of padding. None for proposals that no RPN made.
    """

    boxes: Float[Array, "R 4"]
    scores: Float[Array, " R"]
    sources: Int[Array, " R"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedProposals:
    """The proposals of all images in arrays of one size, whatever their number; they live where the RPN's output does.

    Attributes:
        boxes: (N, R, 4), best first; behind those that there are, boxes and scores are 0 and sources -1.
        scores, sources: (N, R), as in :class:`Proposals`.
        counts: (N,), how many there are.
    """

    boxes: Float[Array, "N R 4"]
    scores: Float[Array, "N R"]
    sources: Int[Array, "N R"]
    counts: Int[Array, " N"]

    def of_images(self) -> list[Proposals]:
        """Those of each image, when they are on the host."""
        return [
            Proposals(boxes=boxes[:count], scores=scores[:count], sources=sources[:count])
            for boxes, scores, sources, count in zip(
                self.boxes, self.scores, self.sources, self.counts.tolist(), strict=True
            )
        ]


def pad_proposals(proposals: Sequence[Proposals], *, like: Array) -> PaddedProposals:
    """Proposals of images in arrays of one size, where `like` is: the inverse of :meth:`PaddedProposals.of_images`."""
    counts = np.array([len(entry.boxes) for entry in proposals])
    rows = np.arange(counts.max(initial=0)) < counts[:, None]  # N R
    sources = [np.full(len(e.boxes), -1) if e.sources is None else e.sources for e in proposals]
    boxes = np.zeros((*rows.shape, 4), proposals[0].boxes.dtype)
    scores, source = np.zeros(rows.shape, boxes.dtype), np.full(rows.shape, -1)
    boxes[rows] = np.concatenate([entry.boxes for entry in proposals])
    scores[rows], source[rows] = np.concatenate([entry.scores for entry in proposals]), np.concatenate(sources)
    arrays = {"boxes": boxes, "scores": scores, "sources": source, "counts": counts}
    return PaddedProposals(**{name: on_device_of(array, like) for name, array in arrays.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorMatches:
    """What every anchor is, before any are sampled.

    Attributes:
        labels: (N, A), int8: 1 object, 0 background, -1 neither.
        objects: (N, A), which of the image's objects an anchor with an object belongs to; crowds aren't counted.
    """

    labels: Int[Array, "N A"]
    objects: Int[Array, "N A"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoiMatches:
    """The object that each candidate for a region overlaps most.

    Candidates are the proposals, in the rows of :class:`PaddedProposals`, and behind them the true boxes of the image, if
    they join.

    Attributes:
        iou: (N, C), how much, 0 without objects.
        objects: (N, C), which of the image's objects; crowds aren't counted.
        in_crowd: (N, C), whether it overlaps a crowd too much to be background; None where nobody asks.
    """

    iou: Float[Array, "N C"]
    objects: Int[Array, "N C"]
    in_crowd: Bool[Array, "N C"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorTargets:
    """What the RPN should have said, for the anchors of all levels in one row.

    Attributes:
        labels: (N, A), 1 object, 0 background, -1 takes no part; on the host.
        deltas: (N, A, 4), meaningful where the label is 1; where the anchors are.
    """

    labels: Int[Array, "N A"]
    deltas: Float[Array, "N A 4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rois:
    """The regions that the heads look at, of all images of a batch, and what the heads should say of them.

    Attributes:
        boxes: (R, 4), pixels of the network's input.
        images: (R,), the image that each box lies in.
        classes: (R,), the class it should get; 0 is the background, -1 takes no part in the class loss.
        deltas: (R, 4), the offset to the matched object, meaningful where the class is positive. An array, unless
            :attr:`RoiTargetConfig.detach` is False.
        foreground: (F,), the positions of the regions with an object.
        masks: (F, S, S), the mask of the matched object inside each foreground region, on the device, if there is one,
            while all else is on the host; None without masks.
        objects: (F, 4), the box of the object of each foreground region.
        sources: (R,), the anchor that each region was decoded from, as in :class:`Proposals`; -1 for others.
        active_classes: (N, K + 1), as in :class:`GroundTruth`, for each image; None: all classes of all images.
        keypoints: (F, K), where each point of the matched object lies in the heat map of its region, row · side +
            column, or -1 if it isn't visible there; None without keypoints.
    """

    boxes: Float[Array, "R 4"]
    images: Int[Array, " R"]
    classes: Int[Array, " R"]
    deltas: Float[Array, "R 4"] | Float[Tensor, "R 4"]
    foreground: Int[Array, " F"]
    masks: Float[Array, "F S T"] | None
    keypoints: Int[Array, "F K"] | None = None
    objects: Float[Array, "F 4"] | None = None
    sources: Int[Array, " R"] | None = None
    active_classes: Bool[Array, "N K1"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxOutput:
    """What the box head says of each region.

    Attributes:
        class_logits: (R, K + 1), the background first or last.
        deltas: (R, B, 4), a box for each class (B = K + 1, or K where the background is last), or one for all.
    """

    class_logits: Float[Tensor, "R _"]
    deltas: Float[Tensor, "R _ 4"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Detections:
    """The objects found in one image, best first.

    Attributes:
        boxes: (D, 4), pixels of the original image.
        classes: (D,), from 1.
        scores: (D,), probabilities.
        masks: (D, H, W): bool when thresholded, probabilities when soft; None without a mask head.
        keypoints: (D, K, 3), each point's x, y in pixels of the original image, and 1; None without a keypoint head.
        keypoint_scores: (D, K), how sure each point is: a logit, or a probability.
    """

    boxes: Float[Array, "D 4"]
    classes: Int[Array, " D"]
    scores: Float[Array, " D"]
    masks: Num[Array, "D H W"] | Bool[Array, "D H W"] | None
    keypoints: Float[Array, "D K 3"] | None = None
    keypoint_scores: Float[Array, "D K"] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, which: Array) -> "Detections":
        """The entries that the boolean or integer array `which` picks."""
        values = ((entry.name, getattr(self, entry.name)) for entry in fields(self))
        return replace(self, **{name: value[which] for name, value in values if value is not None})


def per_class_outputs(num_classes: int, background: str, class_agnostic: bool) -> int:
    """How many boxes or masks a head predicts for a region."""
    if class_agnostic:
        return 1
    return num_classes + 1 if background == "first" else num_classes


def class_channel(classes: Int[Array, " R"], background: str, class_agnostic: bool) -> Int[Array, " R"]:
    """Which of those outputs belongs to each class, 1 to K."""
    if class_agnostic:
        return np.zeros_like(classes)
    return classes if background == "first" else classes - 1


def own_channel(
    logits: Float[Tensor, "R S S _"], classes: Int[Array, " R"], background: str, class_agnostic: bool
) -> Float[Tensor, "R S S"]:
    """The mask logits of each region for its class; those of the head may already be of that class alone."""
    if logits.shape[3] == 1:
        return reshape(logits, logits.shape[:3])
    return logits[np.arange(len(classes)), :, :, class_channel(classes, background, class_agnostic)]
