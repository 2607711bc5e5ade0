"""CUDA kernels for CuPy's arrays, and for the emulator; KERNELS maps the name of each operation to its kernel."""

from collections.abc import Callable
from typing import Any

from refnet.kernels.cuda import conv2d, dense, losses, nms, pooling, resize, roi, roi_pool, updates

KERNELS: dict[str, Callable[..., Any]] = {
    "adamw_update": updates.adamw_update,
    "affine_forward": dense.affine_forward,
    "affine_grad_input": dense.affine_grad_input,
    "affine_grad_parameters": dense.affine_grad_parameters,
    "batch_norm_forward": dense.batch_norm_forward,
    "batch_norm_grad": dense.batch_norm_grad,
    "batched_nms": nms.batched_nms,
    "batched_nms_padded": nms.batched_nms_padded,
    "binary_cross_entropy_forward": losses.binary_cross_entropy_forward,
    "conv2d_forward": conv2d.conv2d_forward,
    "conv2d_fused_forward": conv2d.conv2d_fused_forward,
    "conv2d_grad_input": conv2d.conv2d_grad_input,
    "conv2d_grad_weight": conv2d.conv2d_grad_weight,
    "crop_and_resize_forward": roi.crop_and_resize_forward,
    "crop_and_resize_grad_boxes": roi.crop_and_resize_grad_boxes,
    "crop_and_resize_grad_images": roi.crop_and_resize_grad_images,
    "cross_entropy_forward": losses.cross_entropy_forward,
    "frozen_batch_norm_affine": dense.frozen_batch_norm_affine,
    "max_pool2d_forward": pooling.max_pool2d_forward,
    "max_pool2d_grad": pooling.max_pool2d_grad,
    "move_running_statistics": dense.move_running_statistics,
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
    "scaled": updates.scaled,
    "sgd_update": updates.sgd_update,
    "smooth_l1_forward": losses.smooth_l1_forward,
    "softmax_forward": losses.softmax_forward,
    "sum_rows": dense.sum_rows,
    "sums_of_squares": updates.sums_of_squares,
    "upsample_add_forward": resize.upsample_add_forward,
}
