"""The heads: class and box of a region (Lin et al. 2017, 4.2), its mask (He et al. 2017, figure 4), its keypoints."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from refnet.arrays import Array
from refnet.autograd import Tensor
from refnet.nn import Conv2d, ConvTranspose2d, Linear, Module, init
from refnet.ops import matmul, relu, reshape, resize_bilinear, take, transpose
from refnet.rcnn.config import BackboneConfig, BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig
from refnet.rcnn.layers import INITIALIZERS, conv_stack, convolve, convolve_regions, make_norms
from refnet.rcnn.structures import BoxOutput, per_class_outputs


class BoxHead(Module):
    """Two hidden layers and two linear predictors.

    Choice: the hidden layers are fully connected, or a 7x7 and a 1x1 convolution with batch norm (Matterport),
    which is the same product with a norm behind it. 3x3 convolutions may stand before fully connected layers (four
    and one such layer in torchvision's v2 models, after Wu and He 2018).
    """

    def __init__(
        self,
        in_channels: int,
        pool_size: int,
        num_classes: int,
        config: BoxHeadConfig,
        backbone: BackboneConfig,
        *,
        rng: np.random.Generator,
        dtype: Any = np.float32,
    ) -> None:
        self.config = config
        width = config.channels
        conv_init, hidden_init, class_init, box_init = _box_head_initializers(config)
        if config.kind == "fc":
            conv_width = config.conv_channels
            self.convolutions = conv_stack(
                in_channels, conv_width, config.convolutions,
                bias=config.conv_bias, weight_init=conv_init, rng=rng, dtype=dtype,
            )  # fmt: skip
            inputs = pool_size * pool_size * (conv_width if self.convolutions else in_channels)
            self.hidden = [
                Linear(size, width, weight_init=hidden_init, rng=rng, dtype=dtype)
                for size in [inputs, *[width] * (config.layers - 1)]
            ]
        else:
            conv_width = width
            self.convolutions = [
                Conv2d(inputs, width, size, bias=config.conv_bias, weight_init=hidden_init, rng=rng, dtype=dtype)
                for inputs, size in ((in_channels, pool_size), (width, 1))
            ]
            self.hidden = []
        self.norms = make_norms(config.norm, len(self.convolutions), conv_width, backbone, dtype)
        self.classes = Linear(width, num_classes + 1, weight_init=class_init, rng=rng, dtype=dtype)
        self.boxes_per_region = per_class_outputs(num_classes, config.background, config.class_agnostic)
        self.deltas = Linear(width, self.boxes_per_region * 4, weight_init=box_init, rng=rng, dtype=dtype)

    def __call__(self, pooled: Float[Tensor, "R P P C"], *, training: bool) -> BoxOutput:
        """Class logits and deltas of each region."""
        hidden = convolve_regions(self.convolutions, self.norms, pooled, training=training)
        hidden = reshape(hidden, (len(pooled), math.prod(hidden.shape[1:])))
        for layer in self.hidden:
            hidden = relu(layer(hidden))
        return BoxOutput(
            class_logits=self.classes(hidden),
            deltas=reshape(self.deltas(hidden), (len(pooled), self.boxes_per_region, 4)),
        )


def _box_head_initializers(config: BoxHeadConfig) -> tuple[init.Initializer, ...]:
    """Of 3x3 convolutions, of the hidden layers, of the class logits, of the deltas."""
    if config.initialization == "glorot_uniform":
        return (init.xavier_uniform(),) * 4
    conv = INITIALIZERS["kaiming_fan_out"]
    # torch's default for a linear layer: uniform within 1 / sqrt(fan-in), which is a Kaiming uniform with a² = 5
    hidden = init.kaiming_uniform(a=5**0.5)
    if config.initialization == "torchvision":
        return conv, hidden, hidden, hidden
    return conv, init.kaiming_uniform(a=1.0), init.normal(0.01), init.normal(0.001)


class MaskHead(Module):
    """Convolutions, a transposed convolution that doubles the resolution, and one logit for each class and pixel.

    Choice: the masks of the background's class are predicted too where it comes first, and never used: the
    published weights have them.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        config: MaskHeadConfig,
        box_head: BoxHeadConfig,
        backbone: BackboneConfig,
        *,
        rng: np.random.Generator,
        dtype: Any = np.float32,
    ) -> None:
        weight_init = INITIALIZERS[config.initialization]
        width = config.channels
        self.convolutions = conv_stack(
            in_channels, width, config.convolutions,
            bias=config.conv_bias, weight_init=weight_init, rng=rng, dtype=dtype,
        )  # fmt: skip
        self.norms = make_norms(config.norm, config.convolutions, width, backbone, dtype)
        inputs = width if config.convolutions else in_channels
        self.upsample = ConvTranspose2d(inputs, width, 2, stride=2, weight_init=weight_init, rng=rng, dtype=dtype)
        masks = per_class_outputs(num_classes, box_head.background, config.class_agnostic)
        self.logits = Conv2d(width, masks, 1, weight_init=weight_init, rng=rng, dtype=dtype)

    def __call__(
        self, pooled: Float[Tensor, "R P P C"], *, training: bool, channel: Int[Array, " R"] | None = None
    ) -> Float[Tensor, "R S S _"]:
        """Mask logits of each region for each class, S = 2 P; with `channel`, of each region for that class alone."""
        hidden = convolve_regions(self.convolutions, self.norms, pooled, training=training)
        hidden = relu(self.upsample(hidden))
        if channel is None:
            logits: Tensor = self.logits(hidden)
            return logits
        return self._logits_of(hidden, channel)

    def _logits_of(self, hidden: Float[Tensor, "R S S C"], channel: Int[Array, " R"]) -> Float[Tensor, "R S S 1"]:
        """The logits of one class for each region: its column of the weights, by the region's pixels."""
        count, side, _, width = hidden.shape
        assert self.logits.bias is not None
        columns = transpose(reshape(self.logits.weight, (width, -1)))  # K C
        column = reshape(take(columns, channel), (count, width, 1))
        own = matmul(reshape(hidden, (count, side * side, width)), column)  # R S·S 1
        own = own + reshape(take(self.logits.bias, channel), (count, 1, 1))
        return reshape(own, (count, side, side, 1))


class KeypointHead(Module):
    """Convolutions, a transposed convolution to one map for each point, and the same maps at twice the resolution.

    The maps are those of the object, whatever its class (He et al. 2017, section 5). Weights start as torchvision's and
    Detectron2's do: normal by the fan out, and behind the transposed convolution by what these call its fan out, which
    is the fan in here (:mod:`refnet.nn.init`).
    """

    UPSCALE = 4  # of the pooled features: twice by the transposed convolution, twice by interpolation

    def __init__(
        self, in_channels: int, config: KeypointHeadConfig, *, rng: np.random.Generator, dtype: Any = np.float32
    ) -> None:
        weight_init = INITIALIZERS["kaiming_fan_out"]
        self.convolutions = conv_stack(
            in_channels, config.channels, config.convolutions, bias=True, weight_init=weight_init, rng=rng, dtype=dtype
        )
        inputs = config.channels if config.convolutions else in_channels
        self.upsample = ConvTranspose2d(
            inputs,
            config.num_keypoints,
            4,
            stride=2,
            padding=1,
            weight_init=init.kaiming_normal(),
            rng=rng,
            dtype=dtype,
        )

    def __call__(self, pooled: Float[Tensor, "R P P C"]) -> Float[Tensor, "R S S K"]:
        """Heat maps of each region, S = 4 P: the logits of where each point lies."""
        hidden = pooled
        for convolution in self.convolutions:
            hidden = convolve(convolution, None, hidden, training=False, rectified=True)
        maps = self.upsample(hidden)  # R 2P 2P K
        return resize_bilinear(maps, (2 * maps.shape[1], 2 * maps.shape[2]))
