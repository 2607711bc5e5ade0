"""The libraries that our kernels are compared with: PyTorch's cuDNN and torchvision, given the same arrays.

Nothing here is imported unless it is asked for: refnet needs neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any, TypeAlias

import numpy as np

from refnet.arrays import Array
from refnet.kernel_op import operations
from refnet.testing import Call

Launch: TypeAlias = Callable[[], Any]
BOTH = ("channels last", "channels first")
LAYOUTS = {
    "conv2d_forward": BOTH,
    "conv2d_grad_input": BOTH,
    "conv2d_grad_weight": BOTH,
    "max_pool2d_forward": BOTH,
    "max_pool2d_grad": BOTH,
    "upsample_add_forward": BOTH,
    "batch_norm_forward": BOTH,
    "batch_norm_grad": BOTH,
    "relu_forward": BOTH,
    "resize_bilinear_forward": BOTH,
    "cross_entropy_forward": ("channels first",),
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
    """The operation in float64, from and to NumPy's arrays, with the specification's arguments.

    That of a convolution is a peer's, on `device`, which is much faster. Others are the specification itself, which
    defines their decisions and the rounding of coordinates.
    """
    specification = operations()[operation].specification
    if not operation.startswith("conv2d_"):
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
    if operation in DENSE:
        order = torch.channels_last if layout == "channels last" else torch.contiguous_format
        given = {
            name: _channels_first(array).contiguous(memory_format=order) if array.ndim == 4 else array
            for name, array in arrays.items()
        }
        return DENSE[operation](given, parameters, torch)
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


def _max_pool(arrays: dict[str, Any], parameters: dict[str, Any], torch: Any) -> Launch:
    (top, _), (left, _) = parameters["padding"]
    window = (parameters["kernel_size"], parameters["stride"], (top, left), (1, 1), False)
    return lambda: torch.ops.aten.max_pool2d_with_indices(arrays["x"], *window)


def _max_pool_grad(arrays: dict[str, Any], parameters: dict[str, Any], torch: Any) -> Launch:
    (top, _), (left, _) = parameters["padding"]
    window = (parameters["kernel_size"], parameters["stride"], (top, left), (1, 1), False)
    grad, place = arrays["grad_output"], arrays["place"]
    height, width = parameters["input_size"]
    kw, (sy, sx) = parameters["kernel_size"][1], parameters["stride"]
    rows, columns = (torch.arange(extent) for extent in grad.shape[2:])
    # our place is a tap of the window, theirs a pixel of the input
    y = rows[:, None] * sy - top + torch.div(place, kw, rounding_mode="floor")
    x = columns * sx - left + place % kw
    indices = (y * width + x).contiguous(memory_format=_order_of(grad, torch))
    shape = (*grad.shape[:2], height, width)
    like = torch.empty(shape, dtype=grad.dtype).contiguous(memory_format=_order_of(grad, torch))
    return lambda: torch.ops.aten.max_pool2d_with_indices_backward(grad, like, *window, indices)


def _order_of(tensor: Any, torch: Any) -> Any:
    last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _upsample_add(arrays: dict[str, Any], parameters: dict[str, Any], torch: Any) -> Launch:
    coarse, fine = arrays["coarse"], arrays["fine"]
    size = fine.shape[2:]
    return lambda: fine + torch.nn.functional.interpolate(coarse, size=size, mode="nearest")


def _batch_norm(arrays: dict[str, Any], parameters: dict[str, Any], torch: Any) -> Launch:
    x, gamma, beta = (arrays[name] for name in ("x", "gamma", "beta"))
    return lambda: torch.ops.aten.native_batch_norm(x, gamma, beta, None, None, True, 0.1, parameters["epsilon"])


def _batch_norm_grad(arrays: dict[str, Any], parameters: dict[str, Any], torch: Any) -> Launch:
    grad, x, gamma, mean = (arrays[name] for name in ("grad_output", "x", "gamma", "mean"))
    epsilon = parameters["epsilon"]
    scale = (arrays["variance"] + epsilon).rsqrt()
    wanted = [True, True, True]
    backward = torch.ops.aten.native_batch_norm_backward
    return lambda: backward(grad, x, gamma, None, None, mean, scale, True, epsilon, wanted)


def _relu(arrays: dict[str, Any], parameters: dict[str, Any], torch: Any) -> Launch:
    return lambda: torch.relu(arrays["x"])


def _resize_bilinear(arrays: dict[str, Any], parameters: dict[str, Any], torch: Any) -> Launch:
    resize, x = torch.nn.functional.interpolate, arrays["x"]
    return lambda: resize(x, size=parameters["size"], mode="bilinear", align_corners=parameters["align_corners"])


def _cross_entropy(arrays: dict[str, Any], parameters: dict[str, Any], torch: Any) -> Launch:
    logits, classes = arrays["logits"], arrays["classes"]

    def loss_and_derivative() -> Any:
        logs = torch.log_softmax(logits, 1)
        losses = torch.nn.functional.nll_loss(logs, classes, reduction="none")
        derivative = logs.exp()
        derivative[torch.arange(len(classes)), classes] -= 1
        return losses, derivative

    return loss_and_derivative


DENSE: dict[str, Callable[[dict[str, Any], dict[str, Any], Any], Launch]] = {
    "max_pool2d_forward": _max_pool,
    "max_pool2d_grad": _max_pool_grad,
    "upsample_add_forward": _upsample_add,
    "batch_norm_forward": _batch_norm,
    "batch_norm_grad": _batch_norm_grad,
    "relu_forward": _relu,
    "resize_bilinear_forward": _resize_bilinear,
    "cross_entropy_forward": _cross_entropy,
}
"""How the dense operations are computed from tensors with channels first, in either order of memory."""


def to_arrays(operation: str, result: Any) -> list[Array]:
    """The first result of a launch, in refnet's layout; the others (indices, saved statistics) mean something else."""
    first = result[0] if isinstance(result, tuple) else result
    axes = (2, 3, 1, 0) if operation == "conv2d_grad_weight" else (0, 2, 3, 1)
    return [(first.permute(axes) if first.ndim == 4 else first).cpu().numpy()]


def _channels_first(array: Any) -> Any:
    return array.permute(0, 3, 1, 2)
