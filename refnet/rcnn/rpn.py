"""The region proposal network: for every anchor, is there an object, and where is its box (Ren et al. 2015, 3.1)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from refnet.autograd import Tensor
from refnet.nn import Conv2d, Module, init
from refnet.ops import reshape
from refnet.rcnn.config import RpnConfig
from refnet.rcnn.layers import conv_stack, convolve
from refnet.rcnn.structures import RpnOutput


class RPN(Module):
    """3x3 convolutions (one, as published) and two 1x1 convolutions, shared by all levels.

    `step` is :attr:`AnchorConfig.step`: the first convolution strides from one position of anchors to the next.
    """

    def __init__(
        self,
        in_channels: int,
        anchors_per_position: int,
        config: RpnConfig,
        *,
        step: int = 1,
        rng: np.random.Generator,
        dtype: Any = np.float32,
    ) -> None:
        weight_init = init.normal(0.01) if config.initialization == "normal" else init.xavier_uniform()
        self.logits_per_anchor = 1 if config.objectness == "sigmoid" else 2

        def predictor(outputs: int) -> Conv2d:
            return Conv2d(config.channels, outputs, 1, weight_init=weight_init, rng=rng, dtype=dtype)

        self.convolutions = conv_stack(
            in_channels, config.channels, config.convolutions,
            stride=step, bias=True, weight_init=weight_init, rng=rng, dtype=dtype,
        )  # fmt: skip
        self.objectness = predictor(anchors_per_position * self.logits_per_anchor)
        self.deltas = predictor(anchors_per_position * 4)

    def __call__(self, pyramid: Sequence[Float[Tensor, "N _ _ C"]]) -> RpnOutput:
        """Logits and deltas of each level's anchors, ordered as :func:`~refnet.rcnn.anchors.make_anchors` does.

        Choice: one logit for a sigmoid, or two for a softmax with the background first.
        """
        logits, deltas = [], []
        for features in pyramid:
            hidden = features
            for convolution in self.convolutions:
                hidden = convolve(convolution, None, hidden, training=False, rectified=True)
            count = len(features)
            logits.append(reshape(self.objectness(hidden), (count, -1, self.logits_per_anchor)))  # N H·W·A L
            deltas.append(reshape(self.deltas(hidden), (count, -1, 4)))  # N H·W·A 4
        return RpnOutput(objectness_logits=tuple(logits), deltas=tuple(deltas))
