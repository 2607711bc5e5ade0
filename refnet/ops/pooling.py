"""Max and average pooling, channels last: the maximum or the mean of the window at each output pixel.

.. math:: y_{n,i,j,c} = \\max_{a,b}\\; x_{n,\\; i s_y + a - p_t,\\; j s_x + b - p_l,\\; c}

Padding counts as minus infinity for the maximum; for the mean it counts as 0, or not at all.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.lib.stride_tricks import sliding_window_view

from refnet.arrays import Array
from refnet.autograd import Function, Gradients, Tensor
from refnet.errors import ArgumentError, ShapeError
from refnet.kernel_op import kernel_op
from refnet.ops.conv2d import Padding, PaddingLike, Pair, as_pair, output_extent, resolve_padding
from refnet.ops.resize import Separable


@kernel_op
def max_pool2d_forward(
    x: Float[Array, "N H W C"], *, kernel_size: Pair, stride: Pair, padding: Padding
) -> tuple[Float[Array, "N Ho Wo C"], Int[Array, "N Ho Wo C"]]:
    """The maximum of each window, and its place in the window, a · kw + b (int32), the first where several are equal."""
    padded = np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-np.inf)
    windows = sliding_window_view(padded, kernel_size, axis=(1, 2))[:, :: stride[0], :: stride[1]]
    windows = windows.reshape(*windows.shape[:4], kernel_size[0] * kernel_size[1])  # N Ho Wo C kh·kw
    place = windows.argmax(axis=-1)
    y = np.take_along_axis(windows, place[..., None], axis=-1)[..., 0]
    return y, place.astype(np.int32)


@kernel_op
def max_pool2d_grad(
    grad_output: Float[Array, "N Ho Wo C"],
    place: Int[Array, "N Ho Wo C"],
    *,
    input_size: Pair,
    kernel_size: Pair,
    stride: Pair,
    padding: Padding,
) -> Float[Array, "N H W C"]:
    """The adjoint of max_pool2d_forward: each output's gradient goes to the pixel at `place` of its window."""
    n, ho, wo, c = grad_output.shape
    (top, bottom), (left, right) = padding
    padded = np.zeros((n, input_size[0] + top + bottom, input_size[1] + left + right, c), grad_output.dtype)
    for a in range(kernel_size[0]):
        for b in range(kernel_size[1]):
            rows = slice(a, a + stride[0] * (ho - 1) + 1, stride[0])
            columns = slice(b, b + stride[1] * (wo - 1) + 1, stride[1])
            padded[:, rows, columns] += grad_output * (place == a * kernel_size[1] + b)
    return padded[:, top : top + input_size[0], left : left + input_size[1]]


class MaxPool2d(Function):
    """max_pool2d_forward and its gradient."""

    def forward(self, x: Array, **geometry: Any) -> Array:
        self.input_size, self.geometry = x.shape[1:3], geometry
        y, self.place = max_pool2d_forward(x, **geometry)
        return y

    def backward(self, grad_output: Array) -> Gradients:
        return (max_pool2d_grad(grad_output, self.place, input_size=self.input_size, **self.geometry),)


def max_pool2d(
    x: Tensor,
    kernel_size: int | Pair,
    *,
    stride: int | Pair | None = None,
    padding: PaddingLike = 0,
    ceil_mode: bool = False,
) -> Tensor:
    """The maximum of each window of (N, H, W, C).

    Args:
        kernel_size: the window in pixels, one number or (vertical, horizontal).
        stride: pixels between windows; by default the window's own extent.
        padding: pixels of minus infinity, in the forms of conv2d; less than the window.
        ceil_mode: also keep a last window that reaches over the padded border, if it starts on the image or on
            the padding before it.

    Choice: where several pixels of a window are the largest, the gradient goes to the first in row-major order, as
    in PyTorch and TensorFlow on a CPU. "same" is TensorFlow's: see :func:`refnet.ops.conv2d`; for a stem's 3x3
    stride 2 it samples other pixels than PyTorch's padding of 1.

    Raises:
        ShapeError: x hasn't four axes, or the padded image is smaller than the window.
        ArgumentError: a parameter is out of range.
    """
    kernel, strides, pads, _ = _geometry(x, kernel_size, stride, padding, ceil_mode, "max_pool2d")
    return MaxPool2d()(x, kernel_size=kernel, stride=strides, padding=pads)


def avg_pool2d(
    x: Tensor,
    kernel_size: int | Pair,
    *,
    stride: int | Pair | None = None,
    padding: PaddingLike = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of (N, H, W, C). Arguments and errors are those of :func:`max_pool2d`.

    The mean is separable: it is a product with one matrix for the rows and one for the columns.

    Choice: with `count_include_pad`, PyTorch's default, a padded pixel counts as a 0; without, as TensorFlow does,
    the mean is over the image's own pixels. What ceil_mode adds beyond the padding never counts.
    """
    kernel, strides, pads, counted = _geometry(x, kernel_size, stride, padding, ceil_mode, "avg_pool2d")
    rows, columns = (
        _averages(extent, k, s, p, c if count_include_pad else (0, 0))
        for extent, k, s, p, c in zip(x.shape[1:3], kernel, strides, pads, counted, strict=True)
    )
    return Separable()(x, rows=rows, columns=columns)


def _averages(extent: int, kernel: int, stride: int, padding: Pair, counted: Pair) -> Float[np.ndarray, "P S"]:
    """The matrix that averages `extent` pixels over windows; `counted` pixels of the padding count as zeros."""
    count = (extent + padding[0] + padding[1] - kernel) // stride + 1
    start = np.arange(count)[:, None] * stride - padding[0]
    pixel = np.arange(extent)
    inside = (start <= pixel) & (pixel < start + kernel)  # P S
    members = np.minimum(start + kernel, extent + counted[1]) - np.maximum(start, -counted[0])
    matrix: Array = inside / members
    return matrix


def _geometry(
    x: Tensor,
    kernel_size: int | Pair,
    stride: int | Pair | None,
    padding: PaddingLike,
    ceil_mode: bool,
    what: str,
) -> tuple[Pair, Pair, Padding, Padding]:
    """Window, stride, the padding that makes every window whole, and the padding that was asked for."""
    if x.ndim != 4:
        raise ShapeError(f"{what}: expected x (N, H, W, C), got {x.shape}")
    kernel = as_pair(kernel_size, f"{what}: kernel_size")
    strides = kernel if stride is None else as_pair(stride, f"{what}: stride")
    asked = resolve_padding(padding, x.shape[1:3], kernel, strides)
    if any(p >= k for k, pair in zip(kernel, asked, strict=True) for p in pair):
        raise ArgumentError(f"{what}: padding must be less than the window {kernel}, got {padding!r}")
    if not ceil_mode:
        output_extent(x.shape[1:3], kernel, strides, asked, what=what)
        return kernel, strides, asked, asked
    pads = []
    for extent, k, s, (before, after) in zip(x.shape[1:3], kernel, strides, asked, strict=True):
        last = -(-(extent + before + after - k) // s)  # the index of a window that reaches the border or passes it
        if last * s >= extent + before:
            last -= 1
        pads.append((before, max(after, last * s + k - extent - before)))
    whole = pads[0], pads[1]
    output_extent(x.shape[1:3], kernel, strides, whole, what=what)
    return kernel, strides, whole, asked
