"""Differentiable operations on Tensors, and under each the KernelOps on raw arrays that kernels can replace.

Every file has the same anatomy: the equation, its specification in NumPy, the adjoint(s), the Function that ties
them together and the public function that checks its arguments.
"""

from refnet.ops.activations import leaky_relu, log_softmax, relu, sigmoid, softmax
from refnet.ops.batch_norm import (
    affine_forward,
    affine_grad,
    batch_norm,
    batch_norm_forward,
    batch_norm_grad,
    frozen_batch_norm,
)
from refnet.ops.conv2d import conv2d, conv2d_forward, conv2d_grad_input, conv2d_grad_weight
from refnet.ops.conv_transpose2d import conv_transpose2d
from refnet.ops.dropout import dropout
from refnet.ops.elementwise import absolute, clip, exp, log, maximum, minimum, power, sqrt
from refnet.ops.linear import linear, matmul
from refnet.ops.pooling import avg_pool2d, max_pool2d, max_pool2d_forward, max_pool2d_grad
from refnet.ops.reductions import max, mean, sum
from refnet.ops.resize import resize_bilinear, resize_nearest, upsample_nearest
from refnet.ops.shape import concatenate, pad, reshape, stack, take, transpose

__all__ = [
    "absolute",
    "affine_forward",
    "affine_grad",
    "avg_pool2d",
    "batch_norm",
    "batch_norm_forward",
    "batch_norm_grad",
    "clip",
    "concatenate",
    "conv2d",
    "conv2d_forward",
    "conv2d_grad_input",
    "conv2d_grad_weight",
    "conv_transpose2d",
    "dropout",
    "exp",
    "frozen_batch_norm",
    "leaky_relu",
    "linear",
    "log",
    "log_softmax",
    "matmul",
    "max",
    "max_pool2d",
    "max_pool2d_forward",
    "max_pool2d_grad",
    "maximum",
    "mean",
    "minimum",
    "pad",
    "power",
    "relu",
    "reshape",
    "resize_bilinear",
    "resize_nearest",
    "sigmoid",
    "softmax",
    "sqrt",
    "stack",
    "sum",
    "take",
    "transpose",
    "upsample_nearest",
]
