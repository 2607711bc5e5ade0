"""Differentiable operations on Tensors, and under each the KernelOps on raw arrays that kernels can replace.

Every file has the same anatomy: the equation, its specification in NumPy, the adjoint(s), the Function that ties
them together and the public function that checks its arguments.
"""

from refnet.ops.activations import (
    leaky_relu,
    log_softmax,
    relu,
    relu_forward,
    relu_grad,
    sigmoid,
    softmax,
    softmax_forward,
)
from refnet.ops.batch_norm import (
    affine_forward,
    affine_grad_input,
    affine_grad_parameters,
    batch_norm,
    batch_norm_forward,
    batch_norm_grad,
    frozen_batch_norm,
    frozen_batch_norm_affine,
    move_running_statistics,
)
from refnet.ops.best_first import best_first
from refnet.ops.binary_cross_entropy import binary_cross_entropy_forward, binary_cross_entropy_with_logits
from refnet.ops.conv2d import (
    conv2d,
    conv2d_forward,
    conv2d_fused,
    conv2d_fused_forward,
    conv2d_grad_input,
    conv2d_grad_weight,
)
from refnet.ops.conv_transpose2d import conv_transpose2d
from refnet.ops.crop_and_resize import (
    crop_and_resize,
    crop_and_resize_forward,
    crop_and_resize_grad_boxes,
    crop_and_resize_grad_images,
)
from refnet.ops.cross_entropy import cross_entropy, cross_entropy_forward
from refnet.ops.dropout import dropout
from refnet.ops.elementwise import absolute, clip, exp, log, maximum, minimum, power, sqrt
from refnet.ops.linear import linear, matmul, matrix_product, sum_rows
from refnet.ops.matching import match_boxes
from refnet.ops.nms import batched_nms, batched_nms_padded, nms
from refnet.ops.pooling import avg_pool2d, max_pool2d, max_pool2d_forward, max_pool2d_grad
from refnet.ops.reductions import max, mean, sum
from refnet.ops.resize import (
    resize_bicubic,
    resize_bilinear,
    resize_bilinear_forward,
    resize_bilinear_grad,
    resize_nearest,
    resize_nearest_forward,
    resize_nearest_grad,
    upsample_add,
    upsample_add_forward,
    upsample_nearest,
)
from refnet.ops.roi_align import roi_align, roi_align_forward, roi_align_grad_boxes, roi_align_grad_features
from refnet.ops.roi_pool import roi_pool, roi_pool_forward, roi_pool_grad
from refnet.ops.shape import concatenate, interleave, pad, reshape, stack, take, transpose
from refnet.ops.smooth_l1 import smooth_l1, smooth_l1_forward
from refnet.ops.updates import adamw_update, scaled, sgd_update, sums_of_squares

__all__ = [
    "absolute",
    "adamw_update",
    "affine_forward",
    "affine_grad_input",
    "affine_grad_parameters",
    "avg_pool2d",
    "batch_norm",
    "batch_norm_forward",
    "batch_norm_grad",
    "batched_nms",
    "batched_nms_padded",
    "best_first",
    "binary_cross_entropy_forward",
    "binary_cross_entropy_with_logits",
    "clip",
    "concatenate",
    "conv2d",
    "conv2d_forward",
    "conv2d_fused",
    "conv2d_fused_forward",
    "conv2d_grad_input",
    "conv2d_grad_weight",
    "conv_transpose2d",
    "crop_and_resize",
    "crop_and_resize_forward",
    "crop_and_resize_grad_boxes",
    "crop_and_resize_grad_images",
    "cross_entropy",
    "cross_entropy_forward",
    "dropout",
    "exp",
    "frozen_batch_norm",
    "frozen_batch_norm_affine",
    "interleave",
    "leaky_relu",
    "linear",
    "log",
    "log_softmax",
    "match_boxes",
    "matmul",
    "matrix_product",
    "max",
    "max_pool2d",
    "max_pool2d_forward",
    "max_pool2d_grad",
    "maximum",
    "mean",
    "minimum",
    "move_running_statistics",
    "nms",
    "pad",
    "power",
    "relu",
    "relu_forward",
    "relu_grad",
    "reshape",
    "resize_bicubic",
    "resize_bilinear",
    "resize_bilinear_forward",
    "resize_bilinear_grad",
    "resize_nearest",
    "resize_nearest_forward",
    "resize_nearest_grad",
    "roi_align",
    "roi_align_forward",
    "roi_align_grad_boxes",
    "roi_align_grad_features",
    "roi_pool",
    "roi_pool_forward",
    "roi_pool_grad",
    "scaled",
    "sgd_update",
    "sigmoid",
    "smooth_l1",
    "smooth_l1_forward",
    "softmax",
    "softmax_forward",
    "sqrt",
    "stack",
    "sum",
    "sum_rows",
    "sums_of_squares",
    "take",
    "transpose",
    "upsample_add",
    "upsample_add_forward",
    "upsample_nearest",
]
