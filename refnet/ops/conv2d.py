"""Two-dimensional convolution (cross-correlation, as every network means it), channels last.

.. math::
    y_{n,i,j,o} = \\sum_{a,b,c} x_{n,\\; i s_y + a d_y - p_t,\\; j s_x + b d_x - p_l,\\; c}\\; w_{a,b,c,o}

with stride s, dilation d and padding p; x is 0 outside the image. With g groups, output channels fall into g
equal blocks and block k reads only the k-th block of input channels.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float
from numpy.lib.stride_tricks import sliding_window_view

from refnet.arrays import Array
from refnet.autograd import Function, Gradients, Tensor, is_recording
from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.kernel_op import kernel_op
from refnet.ops.activations import relu as apply_relu
from refnet.ops.activations import relu_grad
from refnet.ops.batch_norm import affine_grad_input
from refnet.ops.linear import sum_rows

Pair: TypeAlias = tuple[int, int]
Padding: TypeAlias = tuple[Pair, Pair]  # ((top, bottom), (left, right))
PaddingLike: TypeAlias = int | Pair | Padding | Literal["same", "valid"]


@kernel_op
def conv2d_forward(
    x: Float[Array, "N H W C"],
    w: Float[Array, "kh kw Cg O"],
    *,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Float[Array, "N Ho Wo O"]:
    """Convolve `x` with `w`: the equation at the head of this file. C = groups · Cg."""
    patches = _patches(np.pad(x, ((0, 0), *padding, (0, 0))), w.shape[:2], stride, dilation)
    n, ho, wo, _, kh, kw = patches.shape
    cg, outputs = w.shape[2:]
    patches = patches.reshape(n, ho, wo, groups, cg, kh, kw)  # N Ho Wo g Cg kh kw
    weights = w.reshape(kh, kw, cg, groups, outputs // groups)  # kh kw Cg g Og
    y: Array = np.einsum("nijgcab,abcgo->nijgo", patches, weights, optimize=True)
    return y.reshape(n, ho, wo, outputs)


@kernel_op
def conv2d_grad_input(
    grad_output: Float[Array, "N Ho Wo O"],
    w: Float[Array, "kh kw Cg O"],
    *,
    input_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Float[Array, "N H W C"]:
    """The adjoint of conv2d_forward in x: every output scatters w times its gradient to the pixels it read."""
    n, ho, wo, _ = grad_output.shape
    kh, kw, cg, outputs = w.shape
    (top, bottom), (left, right) = padding
    g = grad_output.reshape(n, ho, wo, groups, outputs // groups)
    weights = w.reshape(kh, kw, cg, groups, outputs // groups)
    padded = np.zeros((n, input_size[0] + top + bottom, input_size[1] + left + right, groups * cg), grad_output.dtype)
    for a in range(kh):
        for b in range(kw):
            rows = slice(a * dilation[0], a * dilation[0] + stride[0] * (ho - 1) + 1, stride[0])
            cols = slice(b * dilation[1], b * dilation[1] + stride[1] * (wo - 1) + 1, stride[1])
            tap = np.einsum("nijgo,cgo->nijgc", g, weights[a, b], optimize=True)
            padded[:, rows, cols] += tap.reshape(n, ho, wo, groups * cg)
    return padded[:, top : top + input_size[0], left : left + input_size[1]]


@kernel_op
def conv2d_grad_weight(
    x: Float[Array, "N H W C"],
    grad_output: Float[Array, "N Ho Wo O"],
    *,
    kernel_size: Pair,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Float[Array, "kh kw Cg O"]:
    """The adjoint of conv2d_forward in w: the correlation of the input's patches with the output's gradient."""
    patches = _patches(np.pad(x, ((0, 0), *padding, (0, 0))), kernel_size, stride, dilation)
    n, ho, wo, channels, kh, kw = patches.shape
    outputs = grad_output.shape[3]
    patches = patches.reshape(n, ho, wo, groups, channels // groups, kh, kw)
    g = grad_output.reshape(n, ho, wo, groups, outputs // groups)
    grad: Array = np.einsum("nijgcab,nijgo->abcgo", patches, g, optimize=True)
    return grad.reshape(kh, kw, channels // groups, outputs)


@kernel_op
def conv2d_fused_forward(
    x: Float[Array, "N H W C"],
    w: Float[Array, "kh kw Cg O"],
    scale: Float[Array, " O"] | None,
    shift: Float[Array, " O"] | None,
    residual: Float[Array, "N Ho Wo O"] | None,
    *,
    relu: bool,
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> Float[Array, "N Ho Wo O"]:
    """conv2d_forward, times `scale`, plus `shift`, plus `residual`, and with `relu` its maximum with 0.

    What is None is left out. A block of a residual network, its normalisation frozen, is a chain of these; a kernel
    does the four steps while its sums are still in registers, so that the image is written once and not read again.
    """
    y = conv2d_forward.specification(x, w, stride=stride, padding=padding, dilation=dilation, groups=groups)
    if scale is not None:
        y = y * scale
    if shift is not None:
        y = y + shift
    if residual is not None:
        y = y + residual
    return np.maximum(y, 0) if relu else y


def _patches(padded: Array, kernel_size: Sequence[int], stride: Pair, dilation: Pair) -> Array:
    """Every window that the kernel visits, as a view, (N, Ho, Wo, C, kh, kw)."""
    extent = tuple((k - 1) * d + 1 for k, d in zip(kernel_size, dilation, strict=True))
    windows = sliding_window_view(padded, extent, axis=(1, 2))
    view: Array = windows[:, :: stride[0], :: stride[1], :, :: dilation[0], :: dilation[1]]
    return view


class Conv2d(Function):
    """conv2d_fused_forward, whose scale is a constant, with the gradients of x, w, the shift and the residual.

    The sum's gradient times the scale is the convolution's; as well, weights can have the scale, and give it to their
    gradient. Either is done, whichever array is smaller.
    """

    def forward(
        self, x: Array, w: Array, *added: Array, scale: Array | None, shifted: bool, relu: bool, **geometry: Any
    ) -> Array:
        """`added` is the shift, if `shifted`, and the residual, if there is one."""
        self.x, self.w, self.scale, self.shifted, self.geometry = x, w, scale, shifted, geometry
        shift = added[0] if shifted else None
        residual = added[-1] if len(added) > shifted else None
        if scale is None and not added and not relu:
            y = conv2d_forward(x, w, **geometry)
        else:
            y = conv2d_fused_forward(x, w, scale, shift, residual, relu=relu, **geometry)
        self.y = y if relu else None
        return y

    def backward(self, grad_output: Array) -> Gradients:
        grad_sum = grad_output if self.y is None else relu_grad(grad_output, self.y)
        grad, w, scale = grad_sum, self.w, self.scale
        if scale is not None and grad.size < 2 * w.size:
            grad, scale = affine_grad_input(grad, scale), None
        grads: list[Array | None] = [None, None]
        if self.needs_grad[0]:
            scaled = w if scale is None else affine_grad_input(w, scale)
            grads[0] = conv2d_grad_input(grad, scaled, input_size=self.x.shape[1:3], **self.geometry)
        if self.needs_grad[1]:
            grad_w = conv2d_grad_weight(self.x, grad, kernel_size=w.shape[:2], **self.geometry)
            grads[1] = grad_w if scale is None else affine_grad_input(grad_w, scale)
        if self.shifted:
            grads.append(sum_rows(grad_sum) if self.needs_grad[2] else None)
        if len(self.needs_grad) > len(grads):
            grads.append(grad_sum)
        return tuple(grads)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Pair = 1,
    padding: PaddingLike = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve a batch of images.

    Args:
        x: (N, H, W, C).
        weight: (kh, kw, C / groups, O).
        bias: (O,), or None.
        stride, dilation: pixels, one number or (vertical, horizontal).
        padding: pixels of zeros: one number, (vertical, horizontal), ((top, bottom), (left, right)), "valid"
            (none) or "same".

    Returns:
        (N, Ho, Wo, O) with Ho = (H + top + bottom - (kh - 1) · dilation - 1) // stride + 1.

    Choice: "same" pads as TensorFlow does: so much that Ho = ceil(H / stride), and where that is an odd number
    of pixels the extra one goes to the bottom and right. PyTorch's networks pad symmetrically instead, which for
    stride 2 samples other pixels.

    Raises:
        ShapeError: an argument has the wrong shape, or the padded image is smaller than the kernel.
        ArgumentError: stride, dilation, padding or groups is out of range.
    """
    geometry, _ = _geometry(x, weight, stride, padding, dilation, groups, what="conv2d")
    _check_channels("bias", bias, weight, what="conv2d")
    return _convolve(x, weight, None, bias, None, relu=False, **geometry)


def conv2d_fused(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    relu: bool = False,
    stride: int | Pair = 1,
    padding: PaddingLike = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """:func:`conv2d`, times `scale`, plus `shift`, plus `residual`, and with `relu` its maximum with 0.

    One kernel does it all unless `scale` requires a gradient, which needs the image before it: then the steps are
    operations of their own. A frozen batch norm's scale and shift are constants; a trained shift is a bias.

    Args:
        x, weight, stride, padding, dilation, groups: as :func:`conv2d` takes them.
        scale, shift: (O,), or None.
        residual: of the result's shape, (N, Ho, Wo, O), or None.

    Raises:
        ShapeError: an argument has the wrong shape, or the padded image is smaller than the kernel.
        ArgumentError: stride, dilation, padding or groups is out of range.
        DTypeError: floating-point inputs of different precision are mixed.
    """
    geometry, extent = _geometry(x, weight, stride, padding, dilation, groups, what="conv2d_fused")
    _check_channels("scale", scale, weight, what="conv2d_fused")
    _check_channels("shift", shift, weight, what="conv2d_fused")
    expected = (x.shape[0], *extent, weight.shape[3])
    if residual is not None and residual.shape != expected:
        raise ShapeError(f"conv2d_fused: residual must have shape {expected}, got {residual.shape}")
    for factor in (scale, shift):
        if factor is not None and factor.dtype != x.dtype:
            raise DTypeError(f"conv2d_fused: scale and shift must have x's type, {x.dtype}, got {factor.dtype}")
    if scale is None or not (scale.requires_grad and is_recording()):
        constant = None if scale is None else scale.data
        return _convolve(x, weight, constant, shift, residual, relu=relu, **geometry)
    y = _convolve(x, weight, None, None, None, relu=False, **geometry) * scale
    y = y if shift is None else y + shift
    y = y if residual is None else y + residual
    return apply_relu(y) if relu else y


def _convolve(
    x: Tensor,
    weight: Tensor,
    scale: Array | None,
    shift: Tensor | None,
    residual: Tensor | None,
    *,
    relu: bool,
    **geometry: Any,
) -> Tensor:
    added = [tensor for tensor in (shift, residual) if tensor is not None]
    return Conv2d()(x, weight, *added, scale=scale, shifted=shift is not None, relu=relu, **geometry)


def _geometry(
    x: Tensor,
    weight: Tensor,
    stride: int | Pair,
    padding: PaddingLike,
    dilation: int | Pair,
    groups: int,
    *,
    what: str,
) -> tuple[dict[str, Any], Pair]:
    """The parameters as the KernelOps take them, and the rows and columns of the result."""
    if x.ndim != 4 or weight.ndim != 4:
        raise ShapeError(f"{what}: expected x (N, H, W, C) and weight (kh, kw, C, O), got {x.shape} and {weight.shape}")
    kh, kw, cg, outputs = weight.shape
    if groups < 1 or x.shape[3] != cg * groups or outputs % groups:
        raise ShapeError(
            f"{what}: {groups} groups of {cg} input channels and {outputs} outputs don't fit x with {x.shape[3]} channels"
        )
    stride, dilation = as_pair(stride, f"{what}: stride"), as_pair(dilation, f"{what}: dilation")
    pads = resolve_padding(padding, x.shape[1:3], (kh, kw), stride, dilation)
    extent = output_extent(x.shape[1:3], (kh, kw), stride, pads, dilation, what=what)
    return {"stride": stride, "padding": pads, "dilation": dilation, "groups": groups}, extent


def _check_channels(name: str, value: Tensor | None, weight: Tensor, *, what: str) -> None:
    if value is not None and value.shape != weight.shape[3:]:
        raise ShapeError(f"{what}: {name} must have shape {weight.shape[3:]}, got {value.shape}")


def as_pair(value: int | Pair, what: str, least: int = 1) -> Pair:
    """`value` as (vertical, horizontal).

    Raises:
        ArgumentError: it isn't one or two integers of at least `least`.
    """
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2 or any(not isinstance(v, int | np.integer) or v < least for v in pair):
        raise ArgumentError(f"{what} must be one or two integers of at least {least}, got {value!r}")
    return int(pair[0]), int(pair[1])


def resolve_padding(
    padding: PaddingLike, size: Sequence[int], kernel_size: Pair, stride: Pair, dilation: Pair = (1, 1)
) -> Padding:
    """`padding` in any of its forms as ((top, bottom), (left, right)), in pixels.

    Raises:
        ArgumentError: it has none of the forms, or is negative.
    """
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        pads = []
        for extent, k, s, d in zip(size, kernel_size, stride, dilation, strict=True):
            total = max((-(-extent // s) - 1) * s + (k - 1) * d + 1 - extent, 0)
            pads.append((total // 2, total - total // 2))
        return pads[0], pads[1]
    if isinstance(padding, tuple) and len(padding) == 2 and all(isinstance(p, tuple) for p in padding):
        vertical, horizontal = (as_pair(p, "padding", least=0) for p in padding)
        return vertical, horizontal
    if isinstance(padding, str):
        raise ArgumentError(f'padding must be pixels, "same" or "valid", got {padding!r}')
    v, h = as_pair(padding, "padding", least=0)  # type: ignore[arg-type]
    return (v, v), (h, h)


def output_extent(
    size: Sequence[int], kernel_size: Pair, stride: Pair, padding: Padding, dilation: Pair = (1, 1), *, what: str
) -> Pair:
    """Rows and columns that a window of `kernel_size` visits.

    Raises:
        ShapeError: the padded image is smaller than the window.
    """
    extents = []
    for extent, k, s, (before, after), d in zip(size, kernel_size, stride, padding, dilation, strict=True):
        room = extent + before + after - (k - 1) * d - 1
        if room < 0:
            raise ShapeError(
                f"{what}: the window of {(k - 1) * d + 1} pixels is larger than the padded image of {extent + before + after}"
            )
        extents.append(room // s + 1)
    return extents[0], extents[1]
