"""The backbone without shortcuts: VGG (Simonyan and Zisserman 2015, table 1), from pixels to C2..C5."""

from typing import Any

import numpy as np
from jaxtyping import Float

from refnet.autograd import Tensor
from refnet.nn import Conv2d, Module
from refnet.ops import max_pool2d
from refnet.rcnn.config import BackboneConfig
from refnet.rcnn.layers import INITIALIZERS, conv_stack, convolve

CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""How many convolutions each block has: configurations A, B, D and E of the table, without the three last layers."""
WIDTHS = (1, 2, 4, 8, 8)


class VGG(Module):
    """Five blocks of 3x3 convolutions with biases and ReLUs, a 2x2 max-pool behind each."""

    def __init__(
        self, channels: int, config: BackboneConfig, *, rng: np.random.Generator, dtype: Any = np.float32
    ) -> None:
        weight_init = INITIALIZERS[config.initialization]
        self.stages: list[list[Conv2d]] = []
        inputs = channels
        for width, count in zip(WIDTHS, CONVOLUTIONS[config.depth], strict=True):
            outputs = config.width * width
            self.stages.append(
                conv_stack(inputs, outputs, count, bias=True, weight_init=weight_init, rng=rng, dtype=dtype)
            )
            inputs = outputs
        self.out_channels = tuple(config.width * width for width in (*WIDTHS[2:], WIDTHS[-1]))

    def __call__(self, pixels: Float[Tensor, "N H W C"], *, training: bool) -> tuple[Tensor, ...]:
        """C2, C3, C4, C5; `training` makes no difference.

        Choice: C2 to C4 are what the last three blocks compute before their pooling, and C5 is the last pooling,
        which gives them the strides of a residual network: 4, 8, 16, 32. Ren et al. 2015 end at stride 16.
        """
        x = pixels
        features = []
        for block, convolutions in enumerate(self.stages):
            for convolution in convolutions:
                x = convolve(convolution, None, x, training=training, rectified=True)
            if block >= 2:
                features.append(x)
            x = max_pool2d(x, 2, stride=2)
        return (*features, x)
