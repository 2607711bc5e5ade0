"""What several stages build their layers from: the initialisers and norms that a config names."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from refnet.autograd import Tensor
from refnet.nn import BatchNorm2d, Conv2d, FrozenBatchNorm2d, init
from refnet.ops import conv2d_fused, relu
from refnet.rcnn.config import BackboneConfig

INITIALIZERS = {
    "kaiming_fan_out": init.kaiming_normal(mode="fan_out"),
    "kaiming_uniform": init.kaiming_uniform(a=1.0),
    "glorot_uniform": init.xavier_uniform(),
}
Norm: TypeAlias = BatchNorm2d | FrozenBatchNorm2d


def make_norm(kind: str, channels: int, config: BackboneConfig, dtype: Any) -> Norm:
    """A batch norm of the given kind, with the backbone's epsilon, momentum and variance."""
    if kind == "batch":
        return BatchNorm2d(
            channels,
            epsilon=config.norm_epsilon,
            momentum=config.norm_momentum,
            variance=config.norm_variance,
            dtype=dtype,
        )
    return FrozenBatchNorm2d(channels, epsilon=config.norm_epsilon, trainable=kind == "frozen_statistics", dtype=dtype)


def make_norms(kind: str, count: int, channels: int, config: BackboneConfig, dtype: Any) -> list[Norm | None]:
    """As many norms as there are convolutions; None for each for kind "none"."""
    return [None if kind == "none" else make_norm(kind, channels, config, dtype) for _ in range(count)]


def conv_stack(
    inputs: int,
    width: int,
    count: int,
    *,
    stride: int = 1,
    bias: bool,
    weight_init: init.Initializer,
    rng: np.random.Generator,
    dtype: Any,
) -> list[Conv2d]:
    """`count` 3x3 convolutions of one width, one behind the other; the first has the stride, all pad as TensorFlow."""
    return [
        Conv2d(
            channels, width, 3, stride=step, padding="same",
            bias=bias, weight_init=weight_init, rng=rng, dtype=dtype,
        )
        for channels, step in [(inputs, stride), *[(width, 1)] * (count - 1)][:count]
    ]  # fmt: skip


def convolve(
    convolution: Conv2d,
    norm: Norm | None,
    x: Float[Tensor, "N H W C"],
    *,
    training: bool,
    residual: Float[Tensor, "N Ho Wo O"] | None = None,
    rectified: bool = False,
) -> Float[Tensor, "N Ho Wo O"]:
    """The convolution of `x`, normalised, plus `residual`; `rectified`, its maximum with 0.

    All of that is one operation, but under a norm whose scale is trained or depends on the batch.
    """
    scale: Tensor | None = None
    shift: Tensor | None = convolution.bias
    if norm is not None:
        if not norm.is_constant(training=training):
            y = norm(convolution(x), training=training)
            y = y if residual is None else y + residual
            return relu(y) if rectified else y
        scale, offset = norm.affine()
        shift = offset if shift is None else shift * scale + offset
    return conv2d_fused(x, convolution.weight, scale, shift, residual, relu=rectified, **convolution.geometry)


def convolve_regions(
    convolutions: Sequence[Conv2d], norms: Sequence[Norm | None], pooled: Float[Tensor, "R _ _ _"], *, training: bool
) -> Float[Tensor, "R _ _ _"]:
    """The features of regions through one convolution after the other, each with its norm, if any, and a ReLU.

    A batch may have no regions, and then there are no statistics to train: with fewer than two values a channel the
    running statistics serve, and stay as they are.
    """
    x = pooled
    for convolution, norm in zip(convolutions, norms, strict=True):
        if norm is None or norm.is_constant(training=training):
            x = convolve(convolution, norm, x, training=training, rectified=True)
        else:
            x = convolution(x)
            x = relu(norm(x, training=training and x.size >= 2 * x.shape[-1]))
    return x


_HEADS = r"(fpn|rpn|box_head|mask_head|keypoint_head)\..*"


def _from_conv(first: int) -> str:
    """A residual network's conv2_x is its first stage, whose blocks have a branch; VGG's conv1 is its first."""
    resnet = rf"[{first - 2}-3]\.\d+\.(branch|shortcut)\..*"
    vgg = rf"[{first - 1}-4]\.\d+\.(weight|bias)"
    return rf"backbone\.stages\.({resnet}|{vgg})|{_HEADS}"


LAYERS = {
    "heads": _HEADS,
    "5+": _from_conv(5),
    "4+": _from_conv(4),
    "3+": _from_conv(3),
    "all": r".*",
}
"""Patterns of whole parameter names (:func:`refnet.nn.set_trainable`) for fine-tuning a part of the network: everything
behind the backbone, and with it the backbone's layers from conv5, conv4 or conv3 on, as the table of either paper
counts them (Matterport's ``model.train(layers=)``; Fast R-CNN trains VGG from conv3 on)."""
