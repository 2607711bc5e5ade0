"""CUDA kernels for CuPy's arrays, and for the emulator; KERNELS maps the name of each operation to its kernel."""

from collections.abc import Callable
from typing import Any

from refnet.kernels.cuda import conv2d

KERNELS: dict[str, Callable[..., Any]] = {
    "conv2d_forward": conv2d.conv2d_forward,
    "conv2d_grad_input": conv2d.conv2d_grad_input,
    "conv2d_grad_weight": conv2d.conv2d_grad_weight,
}
