"""The backbone: a residual network (He et al. 2016, table 1), from pixels to C2..C5."""

from typing import Any

import numpy as np
from jaxtyping import Float

from refnet.autograd import Tensor, checkpoint
from refnet.nn import Conv2d, Module
from refnet.ops import max_pool2d, reshape
from refnet.rcnn.config import BackboneConfig
from refnet.rcnn.layers import INITIALIZERS, convolve, make_norm

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class ConvNorm(Module):
    """A convolution and the batch norm behind it."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        stride: int,
        config: BackboneConfig,
        *,
        rng: np.random.Generator,
        dtype: Any,
    ) -> None:
        same = config.padding == "same" and kernel_size == 3
        self.conv = Conv2d(
            inputs,
            outputs,
            kernel_size,
            stride=stride,
            padding="same" if same else kernel_size // 2,
            bias=config.conv_bias,
            weight_init=INITIALIZERS[config.initialization],
            rng=rng,
            dtype=dtype,
        )
        self.norm = make_norm(config.norm, outputs, config, dtype)

    def __call__(self, x: Tensor, *, training: bool, residual: Tensor | None = None, rectified: bool = False) -> Tensor:
        """The norm of the convolution of `x`, plus `residual`; `rectified`, its maximum with 0."""
        return convolve(self.conv, self.norm, x, training=training, residual=residual, rectified=rectified)


class Block(Module):
    """A residual block: relu(x + F(x)), F two 3x3 convolutions, or a bottleneck 1x1, 3x3, 1x1 from depth 50 on.

    Where the shape changes, x passes a 1x1 convolution of the same stride.

    Choice: :attr:`BackboneConfig.stride_in` says which convolution of a bottleneck strides.
    """

    def __init__(
        self, inputs: int, width: int, stride: int, config: BackboneConfig, *, rng: np.random.Generator, dtype: Any
    ) -> None:
        outputs = width * expansion(config)

        def conv(inputs: int, outputs: int, kernel_size: int, stride: int) -> ConvNorm:
            return ConvNorm(inputs, outputs, kernel_size, stride, config, rng=rng, dtype=dtype)

        if expansion(config) == 1:
            self.branch = [conv(inputs, width, 3, stride), conv(width, width, 3, 1)]
        else:
            first, second = (stride, 1) if config.stride_in == "1x1" else (1, stride)
            self.branch = [conv(inputs, width, 1, first), conv(width, width, 3, second), conv(width, outputs, 1, 1)]
        self.shortcut = conv(inputs, outputs, 1, stride) if stride != 1 or inputs != outputs else None
        last = self.branch[-1].norm
        if config.zero_init_residual:
            weight = last.weight.data if isinstance(last.weight, Tensor) else last.weight
            weight[...] = 0

    def __call__(self, x: Tensor, *, training: bool) -> Tensor:
        y = x
        for layer in self.branch[:-1]:
            y = layer(y, training=training, rectified=True)
        shortcut = x if self.shortcut is None else self.shortcut(x, training=training)
        return self.branch[-1](y, training=training, residual=shortcut, rectified=True)


def expansion(config: BackboneConfig) -> int:
    """By how much a block's output is wider than its 3x3 convolution."""
    return 1 if config.depth < 50 else 4


class ResNet(Module):
    """Stem and four stages; the stages' outputs have strides 4, 8, 16, 32."""

    def __init__(
        self, channels: int, config: BackboneConfig, *, rng: np.random.Generator, dtype: Any = np.float32
    ) -> None:
        self.config = config
        self.stem = ConvNorm(channels, config.width, 7, 2, config, rng=rng, dtype=dtype)
        self.stages: list[list[Block]] = []
        inputs = config.width
        for index, count in enumerate(BLOCKS[config.depth]):
            width = config.width * 2**index
            blocks = []
            for position in range(count):
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(Block(inputs, width, stride, config, rng=rng, dtype=dtype))
                inputs = width * expansion(config)
            self.stages.append(blocks)
        self.out_channels = tuple(config.width * 2**i * expansion(config) for i in range(4))

    def __call__(self, pixels: Float[Tensor, "N H W C"], *, training: bool) -> tuple[Tensor, ...]:
        """C2, C3, C4, C5.

        Choice: the stem's max-pool pads a pixel on every side, or, with "same", below and to the right of even
        images, which shifts everything that follows by a pixel.
        """
        x = self.stem(pixels, training=training, rectified=True)
        x = max_pool2d(x, 3, stride=2, padding="same" if self.config.padding == "same" else 1)
        features = []
        for blocks in self.stages:
            for block in blocks:
                x = self._run(block, x, training=training)
            features.append(x)
        return tuple(features)

    def _run(self, block: Block, x: Tensor, *, training: bool) -> Tensor:
        """The block of `x`; its gradients to x are added up before others are, whether it is a checkpoint or not."""
        if not self.config.checkpoint:
            return block(reshape(x, x.shape), training=training)
        return checkpoint(lambda features: block(features, training=training), x, block.parameters().values())
