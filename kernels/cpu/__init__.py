"""Tuned NumPy and BLAS kernels; KERNELS maps the name of each operation to the kernel that replaces it."""

from collections.abc import Callable
from typing import Any

from refnet.kernels.cpu import nms, roi

KERNELS: dict[str, Callable[..., Any]] = {
    "batched_nms": nms.batched_nms,
    "crop_and_resize_forward": roi.crop_and_resize_forward,
    "crop_and_resize_grad_boxes": roi.crop_and_resize_grad_boxes,
    "crop_and_resize_grad_images": roi.crop_and_resize_grad_images,
    "nms": nms.nms,
    "roi_align_forward": roi.roi_align_forward,
    "roi_align_grad_boxes": roi.roi_align_grad_boxes,
    "roi_align_grad_features": roi.roi_align_grad_features,
}
