"""nms, batched_nms and batched_nms_padded on a GPU: see nms.cu for how.

Memory: a bit for each pair of boxes of an image, 18 MB for 12,000 boxes.
"""

import numpy as np
from jaxtyping import Float, Int

from refnet.arrays import Array, namespace, to_host
from refnet.errors import DTypeError, ShapeError
from refnet.kernels.cuda.program import Program, blocks, ready
from refnet.kernels.cuda.vectors import TYPES
from refnet.ops import best_first as operation
from refnet.ops.nms import check_nms_arrays, check_scores

TILE = 64  # boxes to a word, as in nms.cu
MOST = 2**18  # boxes of an image: the scan keeps 8 bytes a tile in shared memory, the overlaps are 8 GB
ROWS, THREADS = 32, 256  # of a block of nms_order
SCAN_THREADS = 1024

PROGRAM = Program(
    "nms.cu",
    [*(f"{kernel}<{name}>" for kernel in ("nms_order", "nms_overlaps") for name in TYPES.values()), "nms_scan"],
    contraction=False,
)


def best_first(scores: Float[Array, "*N B"], *, limit: int) -> Int[Array, "*N _"]:
    """See :func:`refnet.ops.best_first`, whose text is for a device as well.

    All are sorted: CuPy's sort is stable, and its partition sorts everything too.
    """
    return operation.specification(scores, limit=limit)


def nms(boxes: Array, scores: Array, *, iou_threshold: float, limit: int | None = None) -> Int[Array, " K"]:
    """See :func:`refnet.ops.nms`. The host waits once, for the number of boxes kept."""
    groups = namespace(boxes, scores).zeros(len(boxes), np.int64)
    return _nms("nms", boxes, scores, groups, iou_threshold, limit)


def batched_nms(
    boxes: Array, scores: Array, groups: Array, *, iou_threshold: float, limit: int | None = None
) -> Int[Array, " K"]:
    """See :func:`refnet.ops.batched_nms`. The host waits once, for the number of boxes kept."""
    return _nms("batched_nms", boxes, scores, groups, iou_threshold, limit)


def batched_nms_padded(
    boxes: Array, scores: Array, groups: Array, valid: Array, *, iou_threshold: float, limit: int
) -> tuple[Int[Array, "*N K"], Int[Array, "*N"]]:
    """See :func:`refnet.ops.batched_nms_padded`. The host doesn't wait, and all images take three launches."""
    check_nms_arrays("batched_nms_padded", boxes, scores, groups, valid, iou_threshold=iou_threshold, limit=limit)
    kept, report = _suppress("batched_nms_padded", boxes, scores, groups, valid, True, iou_threshold, limit)
    return kept, report[..., 0]


def _nms(
    what: str, boxes: Array, scores: Array, groups: Array, iou_threshold: float, limit: int | None
) -> Int[Array, " K"]:
    if boxes.ndim != 2:
        raise ShapeError(f"{what}: boxes must have shape (B, 4), got {boxes.shape}")
    check_nms_arrays(what, boxes, scores, groups, iou_threshold=iou_threshold, limit=limit)
    most = len(boxes) if limit is None else min(limit, len(boxes))
    xp = namespace(boxes, scores, groups)
    flags = xp.zeros(len(boxes), bool)
    kept, report = _suppress(what, boxes, scores, groups, flags, False, iou_threshold, most)
    count, has_nan = to_host(report)
    if has_nan:
        check_scores(what, scores)
    best: Array = kept[: int(count)]
    return best


def _suppress(
    what: str,
    boxes: Array,
    scores: Array,
    groups: Array,
    flags: Array,
    present: bool,
    iou_threshold: float,
    limit: int,
) -> tuple[Int[Array, "*N K"], Int[Array, "*N 2"]]:
    """The rows kept of those whose flag is `present`; how many there are, and whether a score isn't a number."""
    xp = namespace(boxes, scores, groups, flags)
    *images, n = scores.shape
    if n > MOST:
        raise ShapeError(f"{what}: expected at most {MOST} boxes of an image, got {n}")
    types = [TYPES.get(array.dtype) for array in (boxes, scores)]
    if None in types:
        raise DTypeError(f"{what}: expected float32 or float64, got {boxes.dtype} and {scores.dtype}")
    count = int(np.prod(images))
    kept = xp.empty((*images, limit), np.int64)
    report = xp.empty((*images, 2), np.int64)
    if min(count, n) == 0:
        kept.fill(-1)
        report.fill(0)
        return kept, report

    order = xp.empty((count, n), np.int32)
    PROGRAM.launch(
        xp, f"nms_order<{types[1]}>", (blocks(n, ROWS), count), (THREADS,),
        (np.int32(n), ready(scores), ready(flags), np.bool_(present), order), outputs=(4,),
    )  # fmt: skip
    tiles = blocks(n, TILE)
    near, far = xp.empty((count, n, 2), np.uint64), xp.empty((count, n, tiles), np.uint64)
    PROGRAM.launch(
        xp, f"nms_overlaps<{types[0]}>", (tiles | 1, blocks(tiles, 2), count), (TILE,),
        (np.int32(n), ready(boxes), ready(groups, np.int64), order, boxes.dtype.type(iou_threshold), near, far),
    )  # fmt: skip
    PROGRAM.launch(
        xp, "nms_scan", (count,), (SCAN_THREADS,), (np.int32(n), np.int32(limit), order, near, far, kept, report),
        shared=8 * tiles, outputs=(5, 6),
    )  # fmt: skip
    return kept, report
