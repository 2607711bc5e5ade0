"""The heads: class and box of a region (Lin et al. 2017, 4.2), and its mask (He et al. 2017, figure 4)."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float

from refnet.autograd import Tensor
from refnet.nn import Conv2d, ConvTranspose2d, Linear, Module, init
from refnet.ops import relu, reshape
from refnet.rcnn.config import BackboneConfig, BoxHeadConfig, MaskHeadConfig
from refnet.rcnn.layers import INITIALIZERS, make_norm, normalize_regions
from refnet.rcnn.structures import BoxOutput, per_class_outputs


class BoxHead(Module):
    """Two hidden layers and two linear predictors.

    Choice: the hidden layers are fully connected, or a 7x7 and a 1x1 convolution with batch norm (Matterport),
    which is the same product with a norm behind it.
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
        hidden_init, class_init, box_init = _box_head_initializers(config)
        if config.kind == "fc":
            inputs = pool_size * pool_size * in_channels
            self.hidden = [
                Linear(inputs, width, weight_init=hidden_init, rng=rng, dtype=dtype),
                Linear(width, width, weight_init=hidden_init, rng=rng, dtype=dtype),
            ]
        else:
            self.convolutions = [
                Conv2d(in_channels, width, pool_size, weight_init=hidden_init, rng=rng, dtype=dtype),
                Conv2d(width, width, 1, weight_init=hidden_init, rng=rng, dtype=dtype),
            ]
            self.norms = [make_norm(backbone.norm, width, backbone, dtype) for _ in range(2)]
        self.classes = Linear(width, num_classes + 1, weight_init=class_init, rng=rng, dtype=dtype)
        self.boxes_per_region = per_class_outputs(num_classes, config.background, config.class_agnostic)
        self.deltas = Linear(width, self.boxes_per_region * 4, weight_init=box_init, rng=rng, dtype=dtype)

    def __call__(self, pooled: Float[Tensor, "R P P C"], *, training: bool) -> BoxOutput:
        """Class logits and deltas of each region."""
        if self.config.kind == "fc":
            hidden = reshape(pooled, (len(pooled), math.prod(pooled.shape[1:])))
            for layer in self.hidden:
                hidden = relu(layer(hidden))
        else:
            hidden = pooled
            for convolution, norm in zip(self.convolutions, self.norms, strict=True):
                hidden = relu(normalize_regions(norm, convolution(hidden), training=training))
            hidden = reshape(hidden, (len(pooled), hidden.shape[-1]))
        return BoxOutput(
            class_logits=self.classes(hidden),
            deltas=reshape(self.deltas(hidden), (len(pooled), self.boxes_per_region, 4)),
        )


def _box_head_initializers(config: BoxHeadConfig) -> tuple[init.Initializer, init.Initializer, init.Initializer]:
    if config.initialization == "glorot_uniform":
        return init.xavier_uniform(), init.xavier_uniform(), init.xavier_uniform()
    # torch's default for a linear layer: uniform within 1 / sqrt(fan-in), which is a Kaiming uniform with a² = 5
    hidden = init.kaiming_uniform(a=5**0.5)
    if config.initialization == "torchvision":
        return hidden, hidden, hidden
    return init.kaiming_uniform(a=1.0), init.normal(0.01), init.normal(0.001)


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
        self.convolutions = [
            Conv2d(in_channels if i == 0 else width, width, 3, padding=1, weight_init=weight_init, rng=rng, dtype=dtype)
            for i in range(config.convolutions)
        ]
        self.norms = (
            []
            if config.norm == "none"
            else [make_norm(config.norm, width, backbone, dtype) for _ in range(config.convolutions)]
        )
        inputs = width if config.convolutions else in_channels
        self.upsample = ConvTranspose2d(inputs, width, 2, stride=2, weight_init=weight_init, rng=rng, dtype=dtype)
        masks = per_class_outputs(num_classes, box_head.background, config.class_agnostic)
        self.logits = Conv2d(width, masks, 1, weight_init=weight_init, rng=rng, dtype=dtype)

    def __call__(self, pooled: Float[Tensor, "R P P C"], *, training: bool) -> Float[Tensor, "R S S K"]:
        """Mask logits of each region for each class, S = 2 P."""
        hidden = pooled
        for index, convolution in enumerate(self.convolutions):
            hidden = convolution(hidden)
            if self.norms:
                hidden = normalize_regions(self.norms[index], hidden, training=training)
            hidden = relu(hidden)
        logits: Tensor = self.logits(relu(self.upsample(hidden)))
        return logits
