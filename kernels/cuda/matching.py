"""match_boxes on a GPU: see matching.cu for how."""

import numpy as np
from jaxtyping import Float, Int

from refnet.arrays import Array, namespace
from refnet.errors import ShapeError
from refnet.kernels.cuda.program import Program, blocks, ready
from refnet.kernels.cuda.vectors import TYPES, check_floats
from refnet.ops.matching import check_match

BOXES = 128  # of a block, as in matching.cu
THREADS = 64  # of a block of force_first
MOST_IMAGES = 2**16 - 1  # the extent of a grid along y
BITS = {np.dtype(np.float32): np.uint32, np.dtype(np.float64): np.uint64}

PROGRAM = Program(
    "matching.cu",
    [*(f"{kernel}<{name}>" for kernel in ("best_objects", "best_boxes") for name in TYPES.values()), "force_first"],
    contraction=False,
)


def match_boxes(
    boxes: Array, objects: Array, *, force: str = "none"
) -> tuple[Float[Array, "N B"], Int[Array, "N B"], Int[Array, "N B"]]:
    """See :func:`refnet.ops.match_boxes`. One launch, two with force "ties", three with "first"; the host doesn't wait."""
    check_match(boxes, objects, force)
    check_floats("match_boxes", boxes=boxes, objects=objects)
    xp, dtype = namespace(boxes, objects), boxes.dtype
    images, count, rows = objects.shape[0], objects.shape[1], boxes.shape[1]
    if images > MOST_IMAGES:
        raise ShapeError(f"match_boxes: expected at most {MOST_IMAGES} images, got {images}")
    iou, matched = xp.empty((images, rows), dtype), xp.empty((images, rows), np.int32)
    grid = blocks(rows, BOXES), images
    stride = np.int64(0 if len(boxes) == 1 else 4 * rows)
    given = np.int32(rows), np.int32(count), stride, ready(boxes), ready(objects)
    highest = xp.zeros((images, count), BITS[dtype])
    PROGRAM.launch(
        xp, f"best_objects<{TYPES[dtype]}>", grid, (BOXES,),
        (*given, iou, matched, np.bool_(force != "none"), highest), outputs=(5, 6),
    )  # fmt: skip
    if force == "none":
        return iou, matched, xp.full((images, rows), -1, np.int32)
    forcing, first = xp.empty((images, rows), np.int32), xp.full((images, count), rows, np.int32)
    PROGRAM.launch(
        xp, f"best_boxes<{TYPES[dtype]}>", grid, (BOXES,),
        (*given, iou, highest, np.bool_(force == "first"), first, forcing), outputs=(9,),
    )  # fmt: skip
    if force == "first":
        PROGRAM.launch(
            xp, "force_first", (blocks(count, THREADS), images), (THREADS,),
            (np.int32(rows), np.int32(count), first, forcing),
        )  # fmt: skip
    return iou, matched, forcing
