"""Tuned NumPy and BLAS kernels; KERNELS maps the name of each operation to the kernel that replaces it."""

from collections.abc import Callable
from typing import Any

from refnet.kernels.cpu import best_first, conv, dense, matching, nms, pooling, products, resize, roi, roi_pool, updates

KERNELS: dict[str, Callable[..., Any]] = {
    "adamw_update": updates.adamw_update,
    "affine_forward": dense.affine_forward,
    "affine_grad_input": dense.affine_grad_input,
    "affine_grad_parameters": dense.affine_grad_parameters,
    "batch_norm_forward": dense.batch_norm_forward,
    "batch_norm_grad": dense.batch_norm_grad,
    "batched_nms": nms.batched_nms,
    "batched_nms_padded": nms.batched_nms_padded,
    "best_first": best_first.best_first,
    "conv2d_forward": conv.conv2d_forward,
    "conv2d_fused_forward": conv.conv2d_fused_forward,
    "conv2d_grad_input": conv.conv2d_grad_input,
    "conv2d_grad_weight": conv.conv2d_grad_weight,
    "crop_and_resize_forward": roi.crop_and_resize_forward,
    "crop_and_resize_grad_boxes": roi.crop_and_resize_grad_boxes,
    "crop_and_resize_grad_images": roi.crop_and_resize_grad_images,
    "match_boxes": matching.match_boxes,
    "matrix_product": products.matrix_product,
    "max_pool2d_forward": pooling.max_pool2d_forward,
    "max_pool2d_grad": pooling.max_pool2d_grad,
    "nms": nms.nms,
    "relu_forward": dense.relu_forward,
    "relu_grad": dense.relu_grad,
    "resize_bilinear_forward": resize.resize_bilinear_forward,
    "resize_bilinear_grad": resize.resize_bilinear_grad,
    "resize_nearest_forward": resize.resize_nearest_forward,
    "resize_nearest_grad": resize.resize_nearest_grad,
    "roi_align_forward": roi.roi_align_forward,
    "roi_align_grad_boxes": roi.roi_align_grad_boxes,
    "roi_align_grad_features": roi.roi_align_grad_features,
    "roi_pool_forward": roi_pool.roi_pool_forward,
    "roi_pool_grad": roi_pool.roi_pool_grad,
    "sgd_update": updates.sgd_update,
    "sums_of_squares": updates.sums_of_squares,
    "upsample_add_forward": resize.upsample_add_forward,
}
