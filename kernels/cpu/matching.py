"""Matching of boxes with objects, a tile of boxes with one object at a time: no array holds all pairs.

A tile has at most TILE boxes of all images, so temporary arrays have a bounded size however many boxes and objects there
are, but for the list of boxes that were as good as the best when they were seen. An object that lies beside the box
around a whole tile is passed over, and so most of them are where the boxes are anchors, which come row by row.
Arithmetic is that of the specification, operation by operation, so results are equal bit for bit.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from refnet.arrays import Array
from refnet.ops.matching import check_match

TILE = 2**15  # the arrays of one comparison, of 128 KiB in float32, stay in a cache of 2 MiB


def match_boxes(
    boxes: Array, objects: Array, *, force: str = "none"
) -> tuple[Float[Array, "N B"], Int[Array, "N B"], Int[Array, "N B"]]:
    """See :func:`refnet.ops.match_boxes`."""
    check_match(boxes, objects, force)
    images, rows = len(objects), boxes.shape[1]
    iou = np.zeros((images, rows), boxes.dtype)
    matched, forcing = np.zeros((images, rows), np.int32), np.full((images, rows), -1, np.int32)
    together = max(TILE // max(rows, 1), 1)  # images that are compared at once: as many as fit a tile
    for first in range(0, images, together):
        group = slice(first, first + together)
        own = boxes if len(boxes) == 1 else boxes[group]
        _match(own, objects[group], force, iou[group], matched[group], forcing[group])
    return iou, matched, forcing


def _match(boxes: Array, objects: Array, force: str, iou: Array, matched: Array, forcing: Array) -> None:
    """Write the results for a few images, which are 0, 0 and -1 so far."""
    images, count = objects.shape[:2]
    best = _BestBoxes(np.zeros((images, count), boxes.dtype))
    width = max(TILE // images, 1)
    with np.errstate(all="ignore"):
        for start in range(0, boxes.shape[1], width):
            tile = slice(start, start + width)
            corners = _Corners(*np.ascontiguousarray(boxes[:, tile].transpose(2, 0, 1)))
            for g in np.flatnonzero(_may_meet(corners, objects)):
                overlap = _overlap(corners, objects[:, g])
                better = overlap > iou[:, tile]
                np.copyto(matched[:, tile], np.int32(g), where=better)
                np.maximum(overlap, iou[:, tile], out=iou[:, tile])
                if force != "none":
                    best.see(int(g), overlap, start)
    best.write(forcing, only_first=force == "first")


@dataclass(slots=True)
class _Corners:
    """The boxes of a tile by corner, each (N, T) or (1, T), and their areas."""

    x1: Array
    y1: Array
    x2: Array
    y2: Array
    area: Array = field(init=False)

    def __post_init__(self) -> None:
        self.area = (self.x2 - self.x1) * (self.y2 - self.y1)


def _may_meet(boxes: _Corners, objects: Float[Array, "N G 4"]) -> Bool[Array, " G"]:
    """Which objects, in any image, reach into the box around the tile. What isn't a number might."""
    x1, y1, x2, y2 = objects.transpose(2, 0, 1)
    left, top = boxes.x1.min(axis=1)[:, None], boxes.y1.min(axis=1)[:, None]
    right, bottom = boxes.x2.max(axis=1)[:, None], boxes.y2.max(axis=1)[:, None]
    beside = (x2 <= left) | (x1 >= right) | (y2 <= top) | (y1 >= bottom)
    meeting: Array = ~beside.all(axis=0)
    return meeting


def _overlap(boxes: _Corners, objects: Float[Array, "N 4"]) -> Float[Array, "N T"]:
    """The IoU of each box of the tile with one object of its image."""
    x1, y1, x2, y2 = objects.T[:, :, None]  # N 1 each
    width = np.minimum(x2, boxes.x2)
    width -= np.maximum(x1, boxes.x1)
    np.maximum(width, 0, out=width)
    height = np.minimum(y2, boxes.y2)
    height -= np.maximum(y1, boxes.y1)
    np.maximum(height, 0, out=height)
    common = np.multiply(width, height, out=width)
    union = np.add((x2 - x1) * (y2 - y1), boxes.area, out=height)
    union -= common
    if not union.min() > 0:  # boxes without area, or that aren't numbers
        positive = union > 0
        np.copyto(common, 0, where=~positive)
        np.copyto(union, 1, where=~positive)
    overlap: Array = np.divide(common, union, out=common)
    return overlap


@dataclass(slots=True)
class _BestBoxes:
    """The best boxes of each object, tile by tile.

    Attributes:
        highest: (N, G), the largest IoU so far.
        found: boxes that were as good as the best when they were seen: images, object, boxes and IoUs.
    """

    highest: Array
    found: list[tuple[Array, int, Array, Array]] = field(default_factory=list)

    def see(self, g: int, overlap: Float[Array, "N T"], start: int) -> None:
        """Take in the IoUs of object `g` with the boxes from `start` on."""
        highest = self.highest[:, g]
        np.maximum(highest, overlap.max(axis=1), out=highest)
        bar = np.where(highest > 0, highest, np.inf)[:, None]
        image, box = np.divmod(np.flatnonzero((overlap >= bar).ravel()), overlap.shape[1])
        if len(image):
            self.found.append((image, g, start + box, overlap[image, box]))

    def write(self, forcing: Int[Array, "N B"], *, only_first: bool) -> None:
        """Note for each box the last object whose best it is; boxes were seen in order, and objects within a tile."""
        taken = np.zeros(self.highest.shape, bool)
        for image, g, box, iou in self.found:
            best = iou == self.highest[image, g]
            if only_first:
                best &= ~taken[image, g]
                best[1:] &= image[1:] != image[:-1]
                taken[image[best], g] = True
            forcing[image[best], box[best]] = g
