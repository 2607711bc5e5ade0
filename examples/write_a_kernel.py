"""From an empty file to a checked kernel: NMS that compares all pairs of boxes at once; the first try has a mistake.

python examples/write_a_kernel.py, and the same check from a shell: refnet check nms --kernel examples/write_a_kernel.py:nms
"""

import operator

import numpy as np

from refnet import ops
from refnet.ops.nms import check_nms
from refnet.testing import KernelMismatch, check_kernel


def nms(boxes, scores, *, iou_threshold, limit=None, above=operator.gt):
    check_nms("nms", boxes, scores, iou_threshold=iou_threshold, limit=limit)
    order = np.argsort(-scores, kind="stable")
    low, high = boxes[order, :2], boxes[order, 2:]
    sides = np.maximum(np.minimum(high[:, None], high) - np.maximum(low[:, None], low), 0)  # B B 2
    shared, area = sides.prod(axis=2), (high - low).prod(axis=1)
    with np.errstate(invalid="ignore"):  # 0 / 0: neither box has an area
        suppresses = above(shared / (area[:, None] + area - shared), boxes.dtype.type(iou_threshold))
    kept = np.ones(len(boxes), bool)
    for best in range(len(boxes)):
        kept[best + 1 :] &= ~(kept[best] & suppresses[best, best + 1 :])
    return order[kept][:limit]


def first_try(boxes, scores, *, iou_threshold, limit=None):
    return nms(boxes, scores, iou_threshold=iou_threshold, limit=limit, above=operator.ge)


if __name__ == "__main__":
    try:
        check_kernel(ops.nms, first_try)
    except KernelMismatch as mismatch:  # two boxes whose overlap is the threshold
        print(mismatch)
    print(check_kernel(ops.nms, nms))
