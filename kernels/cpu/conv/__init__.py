"""Convolution, forward and backward."""

from refnet.kernels.cpu.conv.forward import conv2d_forward, conv2d_fused_forward
from refnet.kernels.cpu.conv.grads import conv2d_grad_input, conv2d_grad_weight

__all__ = ["conv2d_forward", "conv2d_fused_forward", "conv2d_grad_input", "conv2d_grad_weight"]
