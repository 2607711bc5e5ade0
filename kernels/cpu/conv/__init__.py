"""Convolution, forward and backward.

``plan.py`` chooses an algorithm by shape, ``patches.py`` and ``winograd.py`` are the algorithms, ``epilogue.py`` is what a
fused convolution does besides, and ``forward.py`` and ``grads.py`` are the kernels.
"""

from refnet.kernels.cpu.conv.forward import conv2d_forward, conv2d_fused_forward
from refnet.kernels.cpu.conv.grads import conv2d_grad_input, conv2d_grad_weight
from refnet.kernels.cpu.conv.plan import Plan, explain, plan, using_plan

__all__ = [
    "Plan",
    "conv2d_forward",
    "conv2d_fused_forward",
    "conv2d_grad_input",
    "conv2d_grad_weight",
    "explain",
    "plan",
    "using_plan",
]
