"""Non-maximum suppression among the boxes that can overlap: those whose centres lie in cells of a grid nearby.

An intersection over union is at most that of the boxes' extents along x alone, or along y. Let two widths w and w'
share o of their union u, and o / u > t. Their ends together differ by u - o, so the centres by at most half of that:

.. math:: |c - c'| \\le \\frac{u - o}{2} < \\frac{1 - t}{2} u < \\frac{1 - t}{2 t} o \\le \\frac{1 - t}{2 t} \\min(w, w')

which is half a width at a threshold t of 1/2. Boxes lie in cells of about that size by their centres, and each looks for
others within its own reach. Groups and images have cells of their own.

Boxes go in rounds, the best first. A round resolves its boxes among themselves, then those that are kept remove what
they overlap from the rest, so that few are left for the next round, which takes twice as many. Pairs of boxes are
compared by the specification's arithmetic, operation by operation: results are equal bit for bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

from refnet.arrays import Array
from refnet.kernels.cpu.best_first import best_first
from refnet.ops.nms import check_nms, check_nms_arrays, check_scores

ROUND = 128  # boxes of each image in the first round
PAIRS = 1 << 14  # compared at once: their arrays stay in cache
CELLS = 4  # at most so many for a box


def nms(boxes: Array, scores: Array, *, iou_threshold: float, limit: int | None = None) -> Int[Array, " K"]:
    """See :func:`refnet.ops.nms`."""
    check_nms("nms", boxes, scores, iou_threshold=iou_threshold, limit=limit)
    return _of_one_image(boxes, scores, None, iou_threshold, limit)


def batched_nms(
    boxes: Array, scores: Array, groups: Array, *, iou_threshold: float, limit: int | None = None
) -> Int[Array, " K"]:
    """See :func:`refnet.ops.batched_nms`."""
    check_nms("batched_nms", boxes, scores, groups, iou_threshold=iou_threshold, limit=limit)
    return _of_one_image(boxes, scores, groups, iou_threshold, limit)


def batched_nms_padded(
    boxes: Array, scores: Array, groups: Array, valid: Array, *, iou_threshold: float, limit: int
) -> tuple[Int[Array, "*N K"], Int[Array, "*N"]]:
    """See :func:`refnet.ops.batched_nms_padded`. All images go through the rounds together: small ones cost little."""
    what = "batched_nms_padded"
    check_nms_arrays(what, boxes, scores, groups, valid, iou_threshold=iou_threshold, limit=limit)
    check_scores(what, np.where(valid, scores, 0).reshape(-1))
    leading, count = boxes.shape[:-2], boxes.shape[-2]
    images = int(np.prod(leading))
    order = best_first(np.where(valid, scores, scores.dtype.type(-np.inf)).reshape(images, count), limit=count)  # N B
    rows = (order + np.arange(images)[:, None] * count).T.reshape(-1)  # B·N, all images' best, then their second
    survive = _survivors(
        boxes.reshape(-1, 4)[rows], groups.reshape(-1)[rows], valid.reshape(-1)[rows], images, iou_threshold, limit
    )
    survivors = survive.reshape(count, images).T  # N B, best first
    rank = survivors.cumsum(axis=1) - 1
    image, place = np.nonzero(survivors & (rank < limit))
    kept = np.full((images, limit), -1, dtype=np.int64)
    kept[image, rank[image, place]] = order[image, place]
    found = np.bincount(image, minlength=images).astype(np.int64)
    return kept.reshape(*leading, limit), found.reshape(leading)


def _of_one_image(
    boxes: Array, scores: Array, groups: Array | None, iou_threshold: float, limit: int | None
) -> Int[Array, " K"]:
    order = best_first(scores, limit=len(scores))
    ranked = None if groups is None else groups[order]
    wanted = len(order) if limit is None else limit
    there = np.ones(len(order), dtype=bool)
    kept: Array = order[_survivors(boxes[order], ranked, there, 1, iou_threshold, wanted)][:limit]
    return kept


def _survivors(
    boxes: Float[Array, "P 4"],
    groups: Int[Array, " P"] | None,
    there: Bool[Array, " P"],
    images: int,
    iou_threshold: float,
    limit: int,
) -> Bool[Array, " P"]:
    """Which boxes are kept: the first `limit` of each image, and any that follow.

    Args:
        boxes: the best of each image, then the second of each, and so on.
        groups: only boxes of one group suppress each other; without, all.
        there: which boxes count.
    """
    threshold = boxes.dtype.type(iou_threshold)
    x1, y1, x2, y2 = boxes.T
    with np.errstate(over="ignore", invalid="ignore"):
        area = (x2 - x1) * (y2 - y1)
    # of a box without an area, or with one beyond all numbers, the IoU with any other is 0 or not a number
    comparable = np.flatnonzero(there & (area > 0) & (area < np.inf))
    kept = there.copy()
    kept[comparable] = False
    if comparable.size and limit:
        image = comparable % images
        layer = image
        if groups is not None:
            names, group = np.unique(groups[comparable], return_inverse=True)
            layer = image * len(names) + group
        corners = np.stack([x1, y1, x2, y2, area])[:, comparable]
        kept[comparable] = _by_rounds(corners, layer, image, images, threshold, limit)
    return kept


def _by_rounds(
    corners: Float[Array, "5 B"],
    layer: Int[Array, " B"],
    image: Int[Array, " B"],
    images: int,
    threshold: np.floating,
    limit: int,
) -> Bool[Array, " B"]:
    """Which boxes are kept, of boxes with an area in the order of their scores; see :func:`_survivors`.

    Args:
        corners: x1, y1, x2, y2 and area.
        layer: boxes of different layers don't suppress each other.
        image: of each layer.
    """
    grid = _Grid.of(corners, layer, float(threshold))
    kept = np.zeros(len(layer), dtype=bool)
    found = np.zeros(images, np.int64)
    rest, size = np.arange(len(layer)), ROUND * images
    while rest.size:
        block, rest = rest[:size], rest[size:]
        kept[block] = True
        pairs = list(_overlapping(corners, grid.pairs(block, block), threshold))
        _resolve(kept, *(np.concatenate(side) for side in zip(*pairs, strict=True)))
        survivors = block[kept[block]]
        left = np.ones(len(layer), dtype=bool)
        for _, worse in _overlapping(corners, grid.pairs(survivors, rest), threshold):
            left[worse] = False
        found += np.bincount(image[survivors], minlength=images)
        rest = rest[left[rest] & (found < limit)[image[rest]]]
        size *= 2
    return kept


def _resolve(kept: Bool[Array, " B"], better: Int[Array, " E"], worse: Int[Array, " E"]) -> None:
    """Mark as not kept, of boxes that are kept so far, those that overlap a better one that stays.

    A box that overlaps no better one stays, and those that overlap it go. Neither matters to the others any longer, of
    which some now overlap no better one. So there are as many turns as boxes in the longest chain, in practice few.
    """
    while better.size:
        first = np.ones(len(kept), dtype=bool)
        first[worse] = False
        kept[worse[first[better]]] = False
        open_ = kept[worse] & kept[better]
        better, worse = better[open_], worse[open_]


def _overlapping(
    corners: Float[Array, "5 B"], pairs: Iterator[tuple[Array, Array]], threshold: np.floating
) -> Iterator[tuple[Array, Array]]:
    """The pairs of boxes whose IoU exceeds the threshold, where the first is the better one."""
    for a, b in pairs:
        ax1, ay1, ax2, ay2, a_area = (row.take(a) for row in corners)
        bx1, by1, bx2, by2, b_area = (row.take(b) for row in corners)
        width = np.minimum(ax2, bx2, out=ax2)
        width -= np.maximum(ax1, bx1, out=ax1)
        np.maximum(width, 0, out=width)
        height = np.minimum(ay2, by2, out=ay2)
        height -= np.maximum(ay1, by1, out=ay1)
        np.maximum(height, 0, out=height)
        intersection = np.multiply(width, height, out=width)
        with np.errstate(over="ignore"):  # of a union beyond all numbers: the IoU is 0
            union = np.add(a_area, b_area, out=a_area)
        union -= intersection
        intersection /= union
        hits = np.flatnonzero((intersection > threshold) & (a < b))
        yield a[hits], b[hits]


@dataclass(frozen=True, slots=True)
class _Grid:
    """Cells of boxes by their centres, with a layer of cells for each set of boxes that may suppress each other.

    Attributes:
        cells: how many there are, numbered layer by layer, row by row.
        columns: of each layer.
        base: (B,), the first cell of each box's layer.
        cell: (B,), where the box lies.
        top, bottom, left, right: (B,), the rows and columns in which a box looks for others, the last ones included.
    """

    cells: int
    columns: int
    base: Int[Array, " B"]
    cell: Int[Array, " B"]
    top: Int[Array, " B"]
    bottom: Int[Array, " B"]
    left: Int[Array, " B"]
    right: Int[Array, " B"]

    @classmethod
    def of(cls, corners: Float[Array, "5 B"], layer: Int[Array, " B"], threshold: float) -> "_Grid":
        """The grid of boxes that have an area."""
        layers = int(layer.max()) + 1
        most = int(np.sqrt(CELLS * len(layer) / layers)) + 1  # rows, and columns
        near = _near(corners[4], threshold)
        (left, column, right, columns), (top, row, bottom, rows) = (
            _reach(corners[axis], corners[axis + 2], near, most) for axis in (0, 1)
        )
        base = layer * (rows * columns)
        return cls(
            cells=layers * rows * columns, columns=columns, base=base, cell=base + row * columns + column,
            top=top, bottom=bottom, left=left, right=right,
        )  # fmt: skip

    def pairs(self, seekers: Int[Array, " S"], others: Int[Array, " O"]) -> Iterator[tuple[Array, Array]]:
        """Each of the seekers with each of the others in the cells that it reaches: numbers of boxes, in portions."""
        members = others[np.argsort(self.cell[others])]
        starts = np.zeros(self.cells + 1, np.intp)
        np.cumsum(np.bincount(self.cell[others], minlength=self.cells), out=starts[1:])
        heights = self.bottom[seekers] - self.top[seekers] + 1
        seeker = np.repeat(seekers, heights)
        row = self.base[seeker] + _ranges(self.top[seekers], heights) * self.columns
        begin = starts[row + self.left[seeker]]
        counts = starts[row + self.right[seeker] + 1] - begin
        ends = counts.cumsum()
        limits = ends.searchsorted(np.arange(PAIRS, ends[-1], PAIRS)) if len(ends) else []
        for start, stop in pairwise([0, *limits, len(ends)]):
            portion = slice(start, stop)
            yield np.repeat(seeker[portion], counts[portion]), members[_ranges(begin[portion], counts[portion])]


def _near(area: Float[Array, " B"], threshold: float) -> Float[Array, " B"]:
    """How far apart the centres of boxes may be, in sizes of the smaller, when their IoU exceeds the threshold.

    An IoU is rounded by 8 epsilon at most: its intersection thrice by half an epsilon, its union by 12 halves (four for
    the areas and their sum, which is up to twice as large, three for the intersection, one at last), itself once.
    An area of few bits is rounded by more, and has no bound.
    """
    info = np.finfo(area.dtype)
    slack = 16 * float(info.eps)
    least = threshold * (1 - slack) - slack * 2.0**-16  # the last: an intersection beneath the smallest numbers
    if least <= 0:
        return np.full(area.shape, np.inf)
    return np.where(area > float(info.tiny) * 2**20, (1 - least) / (2 * least), np.inf)


def _reach(
    low: Float[Array, " B"], high: Float[Array, " B"], near: Float[Array, " B"], most: int
) -> tuple[Int[Array, " B"], Int[Array, " B"], Int[Array, " B"], int]:
    """Along one axis: the cell of the first place that each box reaches, of its centre, of the last; how many there are.

    Args:
        near: the bound of the distance between centres, in sizes of the box.
        most: cells.
    """
    low, high = low.astype(np.float64) / 8, high.astype(np.float64) / 8  # so that no sum or difference overflows
    least = np.finfo(np.float64).tiny
    size, centre = np.maximum(high - low, least), (low + high) / 2
    with np.errstate(over="ignore"):
        reach = np.minimum(near * size, (size + size.max()) / 2)  # further away, boxes don't meet
    reach += 2.0**-48 * max(-low.min(), high.max())  # what rounding does to coordinates
    origin, end = centre.min(), centre.max()
    side = max(np.median(reach), (end - origin) / most, least)
    first, middle, last = (
        ((place.clip(origin, end) - origin) / side).astype(np.intp)
        for place in (centre - reach, centre, centre + reach)
    )
    return first, middle, last, int(middle.max()) + 1


def _ranges(starts: Int[Array, " R"], counts: Int[Array, " R"]) -> Int[Array, " K"]:
    """starts[0], starts[0] + 1, ..., so many of them as counts[0] says, then those from starts[1], and so on."""
    ends = counts.cumsum()
    return np.repeat(starts - (ends - counts), counts) + np.arange(ends[-1] if len(ends) else 0)
