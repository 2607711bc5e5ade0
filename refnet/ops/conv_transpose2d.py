"""Transposed convolution ("deconvolution"): the adjoint of conv2d, run forwards.

Where conv2d lets every output read a window, here every input writes one:

.. math::
    y_{n,\\; i s_y + a d_y - p_t,\\; j s_x + b d_x - p_l,\\; o} \\mathrel{+}= x_{n,i,j,c}\\; w_{a,b,c,o}

So the three operations are conv2d's own with their parts exchanged: forward is conv2d_grad_input, the gradient to
x is conv2d_forward and the gradient to w is conv2d_grad_weight, in which x stands for the output's gradient.
"""

from typing import Any

from refnet.arrays import Array
from refnet.autograd import Function, Gradients, Tensor
from refnet.errors import ArgumentError, ShapeError
from refnet.ops.conv2d import (
    PaddingLike,
    Pair,
    as_pair,
    conv2d_forward,
    conv2d_grad_input,
    conv2d_grad_weight,
    resolve_padding,
)
from refnet.ops.linear import sum_rows


class ConvTranspose2d(Function):
    """conv2d_grad_input plus an optional bias, with its three gradients."""

    def forward(self, x: Array, w: Array, *bias: Array, output_size: Pair, **geometry: Any) -> Array:
        self.x, self.w, self.geometry = x, w.transpose(0, 1, 3, 2), geometry  # kh kw Og C: the convolution's weight
        y = conv2d_grad_input(x, self.w, input_size=output_size, **geometry)
        if bias:
            y += bias[0]  # in place: y is ours
        return y

    def backward(self, grad_output: Array) -> Gradients:
        grads: list[Array | None] = [None, None]
        if self.needs_grad[0]:
            grads[0] = conv2d_forward(grad_output, self.w, **self.geometry)
        if self.needs_grad[1]:
            grad_w = conv2d_grad_weight(grad_output, self.x, kernel_size=self.w.shape[:2], **self.geometry)
            grads[1] = grad_w.transpose(0, 1, 3, 2)  # kh kw C Og
        if len(self.needs_grad) == 3:
            grads.append(sum_rows(grad_output) if self.needs_grad[2] else None)
        return tuple(grads)


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Pair = 1,
    padding: PaddingLike = 0,
    output_padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Scatter every pixel of a batch of images through `weight`, `stride` pixels apart.

    Args:
        x: (N, H, W, C).
        weight: (kh, kw, C, O / groups). PyTorch stores (C, O / groups, kh, kw): transpose(2, 3, 0, 1) gives ours.
            Keras stores (kh, kw, O, C): transpose(0, 1, 3, 2) gives ours.
        bias: (O,), or None.
        stride, dilation: pixels, one number or (vertical, horizontal).
        padding: pixels cut off the result, in the forms of conv2d. "same" gives an image of H · stride, cut so
            that it is the adjoint of conv2d's "same".
        output_padding: rows and columns added at the bottom and right, fewer than the stride: a convolution of
            that stride maps several sizes to H, and this says which of them is meant.

    Returns:
        (N, Ho, Wo, O) with Ho = (H - 1) · stride - top - bottom + (kh - 1) · dilation + 1 + output_padding.

    Raises:
        ShapeError: an argument has the wrong shape, or padding leaves nothing of the result.
        ArgumentError: stride, dilation, padding, output_padding or groups is out of range.
    """
    what = "conv_transpose2d"
    if x.ndim != 4 or weight.ndim != 4:
        raise ShapeError(f"{what}: expected x (N, H, W, C) and weight (kh, kw, C, O), got {x.shape} and {weight.shape}")
    kh, kw, channels, per_group = weight.shape
    if groups < 1 or x.shape[3] != channels or channels % groups:
        raise ShapeError(
            f"{what}: weight with {channels} input channels in {groups} groups doesn't fit x with {x.shape[3]} channels"
        )
    if bias is not None and bias.shape != (per_group * groups,):
        raise ShapeError(f"{what}: bias must have shape ({per_group * groups},), got {bias.shape}")
    stride, dilation = as_pair(stride, f"{what}: stride"), as_pair(dilation, f"{what}: dilation")
    extra = as_pair(output_padding, f"{what}: output_padding", least=0)
    if extra[0] >= stride[0] or extra[1] >= stride[1]:
        raise ArgumentError(f"{what}: output_padding must be below the stride {stride}, got {output_padding!r}")
    if padding == "same" and extra != (0, 0):
        raise ArgumentError(
            f'{what}: "same" padding leaves nothing for output_padding to choose, got {output_padding!r}'
        )

    size = (x.shape[1] * stride[0], x.shape[2] * stride[1])  # what "same" asks for
    pads = resolve_padding(padding, size, (kh, kw), stride, dilation)
    if padding != "same":
        (top, bottom), (left, right) = pads
        size = (
            (x.shape[1] - 1) * stride[0] - top - bottom + (kh - 1) * dilation[0] + 1 + extra[0],
            (x.shape[2] - 1) * stride[1] - left - right + (kw - 1) * dilation[1] + 1 + extra[1],
        )
    if min(size) < 1:
        raise ShapeError(f"{what}: padding {pads} leaves nothing of the result for x of shape {x.shape}")
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return ConvTranspose2d()(*inputs, output_size=size, stride=stride, padding=pads, dilation=dilation, groups=groups)
