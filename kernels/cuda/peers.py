"""The libraries that our kernels are compared with: PyTorch's cuDNN and torchvision, given the same arrays.

Nothing here is imported unless it is asked for: refnet needs neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import numpy as np

from refnet.arrays import Array
from refnet.kernel_op import operations
from refnet.kernels.cuda.timing import Launch
from refnet.testing import Call

CONVOLUTION = ("channels last", "channels first")
LAYOUTS = {
    "conv2d_forward": CONVOLUTION,
    "conv2d_grad_input": CONVOLUTION,
    "conv2d_grad_weight": CONVOLUTION,
    "nms": ("torchvision",),
    "roi_align_forward": ("torchvision",),
    "roi_align_grad_features": ("torchvision",),
}
"""The ways in which a peer computes each operation; the fastest counts. torchvision has channels first only."""


@contextmanager
def tf32(torch: Any, allowed: bool) -> Iterator[None]:
    """Within the block, PyTorch's float32 products are made of TF32, or of float32."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, products.allow_tf32
    cudnn.allow_tf32 = products.allow_tf32 = allowed
    try:
        yield
    finally:
        cudnn.allow_tf32, products.allow_tf32 = before


def launch(operation: str, layout: str, call: Call, torch: Any, *, half: bool = False) -> Launch:
    """What computes `call`, of CuPy's or NumPy's arrays, as often as it is called; it is laid out anew only once.

    With `half`, floating-point arrays become bfloat16.
    """
    arrays = {name: torch.from_dlpack(array) for name, array in call.arrays.items()}
    if half:
        arrays = {name: a.bfloat16() if a.is_floating_point() else a for name, a in arrays.items()}
    return _prepared(operation, layout, arrays, call.parameters, torch)


def reference(operation: str, torch: Any, device: str = "cuda") -> Callable[..., Any]:
    """The operation in float64 by a peer, on `device`: from and to NumPy's arrays, with the specification's arguments.

    Decisions are the specification's own, whose order of operations they are defined by.
    """
    specification = operations()[operation].specification
    if operation == "nms":
        return specification
    names = tuple(signature(specification).parameters)

    def compute(*arrays: Array, **parameters: Any) -> Array:
        given = {
            name: torch.from_numpy(np.ascontiguousarray(a)).to(device) for name, a in zip(names, arrays, strict=False)
        }
        given = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in given.items()}
        with tf32(torch, False):
            result = _prepared(operation, LAYOUTS[operation][-1], given, parameters, torch)()
        axes = (2, 3, 1, 0) if operation == "conv2d_grad_weight" else (0, 2, 3, 1)
        host: Array = result.permute(axes).cpu().numpy()
        return host

    return compute


def _prepared(
    operation: str, layout: str, arrays: dict[str, Any], parameters: dict[str, Any], torch: Any
) -> Callable[[], Any]:
    """A function without arguments that returns the result, images with channels first."""
    if operation.startswith("conv2d_"):
        return _convolution(operation, layout, arrays, parameters, torch)
    import torchvision

    if operation == "nms":
        return lambda: torchvision.ops.nms(arrays["boxes"], arrays["scores"], parameters["iou_threshold"])
    index = arrays["image_index"].to(arrays["boxes"].dtype)[:, None]
    rois = torch.cat([index, arrays["boxes"]], dim=1)
    scale, ratio, aligned = (parameters[name] for name in ("spatial_scale", "sampling_ratio", "aligned"))
    if operation == "roi_align_forward":
        features = _channels_first(arrays["features"]).contiguous()
        size = parameters["size"]
        return lambda: torchvision.ops.roi_align(features, rois, size, scale, ratio, aligned)
    grad = _channels_first(arrays["grad_output"]).contiguous()
    n, h, w, c = parameters["input_shape"]
    backward = torch.ops.torchvision._roi_align_backward
    return lambda: backward(grad, rois, scale, grad.shape[2], grad.shape[3], n, c, h, w, ratio, aligned)


def _convolution(
    operation: str, layout: str, arrays: dict[str, Any], parameters: dict[str, Any], torch: Any
) -> Callable[[], Any]:
    order = torch.channels_last if layout == "channels last" else torch.contiguous_format
    images = {
        name: _channels_first(arrays[name]).contiguous(memory_format=order)
        for name in ("x", "grad_output")
        if name in arrays
    }
    stride, dilation, groups = (parameters[name] for name in ("stride", "dilation", "groups"))
    (top, _), (left, _) = parameters["padding"]
    if "w" in arrays:
        w = arrays["w"].permute(3, 2, 0, 1).contiguous(memory_format=order)
    if operation == "conv2d_forward":
        x = images["x"]
        return lambda: torch.nn.functional.conv2d(x, w, None, stride, (top, left), dilation, groups)
    grad = images["grad_output"]
    if operation == "conv2d_grad_input":
        shape = (grad.shape[0], w.shape[1] * groups, *parameters["input_size"])
        x = torch.empty(shape, dtype=grad.dtype, device=grad.device).contiguous(memory_format=order)
        wanted = [True, False, False]
    else:
        x = images["x"]
        w = torch.empty(
            (grad.shape[1], x.shape[1] // groups, *parameters["kernel_size"]), dtype=x.dtype, device=x.device
        )
        w, wanted = w.contiguous(memory_format=order), [False, True, False]
    backward = torch.ops.aten.convolution_backward
    arguments = (grad, x, w, None, stride, (top, left), dilation, False, (0, 0), groups, wanted)
    return lambda: backward(*arguments)[wanted.index(True)]


def _channels_first(array: Any) -> Any:
    return array.permute(0, 3, 1, 2)
