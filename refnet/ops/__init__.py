"""Differentiable operations on Tensors, and under each the KernelOps on raw arrays that kernels can replace.

Every file has the same anatomy: the equation, its specification in NumPy, the adjoint(s), the Function that ties
them together and the public function that checks its arguments.
"""

from refnet.ops.conv2d import conv2d, conv2d_forward, conv2d_grad_input, conv2d_grad_weight

__all__ = ["conv2d", "conv2d_forward", "conv2d_grad_input", "conv2d_grad_weight"]
