"""The layers with parameters: convolutions, the fully connected layer and batch normalisation.

Channels last. The weight of a layer is called ``weight``, its bias or shift ``bias``, and running statistics
``running_mean`` and ``running_variance``. What a layer computes is said in :mod:`refnet.ops`.
"""

from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from refnet.autograd import Tensor, is_recomputing, is_recording
from refnet.errors import ArgumentError, ShapeError
from refnet.nn.init import Initializer, kaiming_normal, zeros
from refnet.nn.module import DType, Module, Parameter
from refnet.ops.batch_norm import batch_norm, frozen_batch_norm, frozen_batch_norm_affine, move_running_statistics
from refnet.ops.conv2d import PaddingLike, Pair, as_pair, conv2d
from refnet.ops.conv_transpose2d import conv_transpose2d
from refnet.ops.linear import linear


class Conv2d(Module):
    """A convolution: weight (kh, kw, in_channels / groups, out_channels), bias (out_channels,) or None.

    Choice: weights start as for a ReLU network (He et al. 2015) and biases at 0. PyTorch's layers, which neglect the
    activation, start at ``kaiming_uniform(a=5**0.5)`` with a uniform bias; Keras' at ``xavier_uniform()``.

    Raises:
        ArgumentError: the channels aren't multiples of `groups`, or an extent isn't positive.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        *,
        stride: int | Pair = 1,
        padding: PaddingLike = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        weight_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        rng: np.random.Generator,
        dtype: DType = np.float32,
    ) -> None:
        _check_channels("Conv2d", in_channels, out_channels, groups)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        shape = (*as_pair(kernel_size, "Conv2d: kernel_size"), in_channels // groups, out_channels)
        self.weight = Parameter((weight_init or kaiming_normal())(shape, rng, dtype))
        self.bias = Parameter((bias_init or zeros())((out_channels,), rng, dtype)) if bias else None

    def __call__(self, x: Float[Tensor, "N H W C"]) -> Float[Tensor, "N Ho Wo O"]:
        return conv2d(x, self.weight, self.bias, **self.geometry)

    @property
    def geometry(self) -> dict[str, Any]:
        """Stride, padding, dilation and groups, as :func:`~refnet.ops.conv2d` and ``conv2d_fused`` take them."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}


class ConvTranspose2d(Module):
    """A transposed convolution: weight (kh, kw, in_channels, out_channels / groups), bias (out_channels,) or None.

    It starts as :class:`Conv2d` does; :mod:`refnet.nn.init` says what its fans are.

    Raises:
        ArgumentError: the channels aren't multiples of `groups`, or an extent isn't positive.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        *,
        stride: int | Pair = 1,
        padding: PaddingLike = 0,
        output_padding: int | Pair = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        weight_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        rng: np.random.Generator,
        dtype: DType = np.float32,
    ) -> None:
        _check_channels("ConvTranspose2d", in_channels, out_channels, groups)
        self.stride, self.padding, self.output_padding = stride, padding, output_padding
        self.dilation, self.groups = dilation, groups
        shape = (*as_pair(kernel_size, "ConvTranspose2d: kernel_size"), in_channels, out_channels // groups)
        self.weight = Parameter((weight_init or kaiming_normal())(shape, rng, dtype))
        self.bias = Parameter((bias_init or zeros())((out_channels,), rng, dtype)) if bias else None

    def __call__(self, x: Float[Tensor, "N H W C"]) -> Float[Tensor, "N Ho Wo O"]:
        return conv_transpose2d(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            output_padding=self.output_padding,
            dilation=self.dilation,
            groups=self.groups,
        )


class Linear(Module):
    """A fully connected layer: weight (in_channels, out_channels), bias (out_channels,) or None.

    It starts as :class:`Conv2d` does.

    Raises:
        ArgumentError: an extent isn't positive.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bias: bool = True,
        weight_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        rng: np.random.Generator,
        dtype: DType = np.float32,
    ) -> None:
        _check_channels("Linear", in_channels, out_channels, 1)
        self.weight = Parameter((weight_init or kaiming_normal())((in_channels, out_channels), rng, dtype))
        self.bias = Parameter((bias_init or zeros())((out_channels,), rng, dtype)) if bias else None

    def __call__(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return linear(x, self.weight, self.bias)


class BatchNorm2d(Module):
    """Batch normalisation whose statistics are trained: weight (gamma) and bias (beta), each (channels,), and averages.

    Training normalises by the batch and moves the running averages towards its statistics, in place:

    .. math:: r \\leftarrow (1 - m)\\, r + m\\, s

    Otherwise the running averages normalise, and nothing changes.

    Args:
        epsilon: added to the variance.
        momentum: m.
        variance: what the running variance averages, as a multiple of the variance that normalises, for M values a
            channel: "unbiased" M / (M - 1), "biased" 1, "keras" M / (M - 1 - epsilon).

    Choice: `momentum` is the weight of the new value, as in PyTorch; the momentum of Keras and TensorFlow is that of
    the old one, 1 - m (their .99 is .01 here). The running variance is the unbiased one in PyTorch and in TensorFlow's
    fused kernel, the biased one in Keras otherwise, and up to 2.2 Keras corrects it with an epsilon too many.

    Raises:
        ArgumentError: `momentum` isn't between 0 and 1, `epsilon` is negative, or there are no channels.
    """

    def __init__(
        self,
        channels: int,
        *,
        epsilon: float = 1e-5,
        momentum: float = 0.1,
        variance: Literal["unbiased", "biased", "keras"] = "unbiased",
        dtype: DType = np.float32,
    ) -> None:
        _check_norm("BatchNorm2d", channels, epsilon)
        if not 0 <= momentum <= 1:
            raise ArgumentError(f"BatchNorm2d: momentum must be between 0 and 1, got {momentum}")
        self.epsilon, self.momentum, self.variance = epsilon, momentum, variance
        self.weight, self.bias = Parameter(np.ones(channels, dtype)), Parameter(np.zeros(channels, dtype))
        self.running_mean, self.running_variance = np.zeros(channels, dtype), np.ones(channels, dtype)

    def __call__(self, x: Float[Tensor, "*B C"], *, training: bool) -> Float[Tensor, "*B C"]:
        """Normalise `x`.

        Raises:
            ShapeError: the channels don't fit; or, in training, there are no values, or a single one a channel, which
                has no unbiased variance.
        """
        if not training:
            return frozen_batch_norm(
                x, self.weight, self.bias, self.running_mean, self.running_variance, epsilon=self.epsilon
            )
        count = x.size // max(x.shape[-1], 1)
        if self.variance != "biased" and count == 1:
            raise ShapeError(f"BatchNorm2d: a single value has no unbiased variance, got x of shape {x.shape}")
        y, mean, variance = batch_norm(x, self.weight, self.bias, epsilon=self.epsilon)
        if is_recomputing():
            return y
        correction = 1.0
        if self.variance != "biased":
            correction = count / (count - 1 - (self.epsilon if self.variance == "keras" else 0))
        move_running_statistics(
            self.running_mean, self.running_variance, mean, variance, momentum=self.momentum, correction=correction
        )
        return y

    def is_constant(self, *, training: bool) -> bool:
        """Whether the layer is :meth:`affine` here: not where the batch normalises, or weight and bias want gradients."""
        return not training and not _wants_gradients(self.weight, self.bias)

    def affine(self) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
        """The scale and the shift of each channel that the running averages amount to, as constants."""
        return _affine(self)


class FrozenBatchNorm2d(Module):
    """Batch normalisation whose statistics are constants: an affine map of each channel.

    It holds the same names as :class:`BatchNorm2d` and is called the same way; `training` makes no difference.

    Args:
        epsilon: added to the variance.
        trainable: whether weight and bias are parameters; otherwise they are buffers too.

    Choice: Matterport's TRAIN_BN = False freezes the statistics alone, and scale and shift are trained on;
    torchvision's and Detectron's frozen layer freezes all four.

    Raises:
        ArgumentError: `epsilon` is negative, or there are no channels.
    """

    def __init__(
        self, channels: int, *, epsilon: float = 1e-5, trainable: bool = False, dtype: DType = np.float32
    ) -> None:
        _check_norm("FrozenBatchNorm2d", channels, epsilon)
        self.epsilon, self.trainable = epsilon, trainable
        weight, bias = np.ones(channels, dtype), np.zeros(channels, dtype)
        self.weight = Parameter(weight) if trainable else weight
        self.bias = Parameter(bias) if trainable else bias
        self.running_mean, self.running_variance = np.zeros(channels, dtype), np.ones(channels, dtype)

    def __call__(self, x: Float[Tensor, "*B C"], *, training: bool) -> Float[Tensor, "*B C"]:
        gamma, beta = self._weight_and_bias()
        return frozen_batch_norm(x, gamma, beta, self.running_mean, self.running_variance, epsilon=self.epsilon)

    def is_constant(self, *, training: bool) -> bool:
        """Whether the layer is :meth:`affine` here: not where weight and bias want gradients."""
        return not _wants_gradients(*self._weight_and_bias())

    def affine(self) -> tuple[Float[Tensor, " C"], Float[Tensor, " C"]]:
        """The scale and the shift of each channel that the layer amounts to, as constants."""
        return _affine(self)

    def _weight_and_bias(self) -> tuple[Tensor, ...]:
        return tuple(v if isinstance(v, Parameter) else Tensor(v) for v in (self.weight, self.bias))


def _wants_gradients(weight: Tensor, bias: Tensor) -> bool:
    return is_recording() and (weight.requires_grad or bias.requires_grad)


def _affine(norm: BatchNorm2d | FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    gamma, beta = (v.data if isinstance(v, Tensor) else v for v in (norm.weight, norm.bias))
    scale, shift = frozen_batch_norm_affine(gamma, beta, norm.running_mean, norm.running_variance, epsilon=norm.epsilon)
    return Tensor(scale), Tensor(shift)


def _check_channels(what: str, in_channels: int, out_channels: int, groups: int) -> None:
    if in_channels < 1 or out_channels < 1:
        raise ArgumentError(f"{what}: channels must be positive, got {in_channels} in and {out_channels} out")
    if groups < 1 or in_channels % groups or out_channels % groups:
        raise ArgumentError(
            f"{what}: {in_channels} channels in and {out_channels} out must be multiples of the groups, got {groups}"
        )


def _check_norm(what: str, channels: int, epsilon: float) -> None:
    if channels < 1:
        raise ArgumentError(f"{what}: channels must be positive, got {channels}")
    if not epsilon >= 0:
        raise ArgumentError(f"{what}: epsilon must not be negative, got {epsilon}")
