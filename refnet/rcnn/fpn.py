"""The feature pyramid: C2..C5 become P2..P6, all of one width (Lin et al. 2017, section 3)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from refnet.autograd import Tensor
from refnet.nn import Conv2d, Module
from refnet.ops import upsample_add
from refnet.rcnn.config import BackboneConfig, FpnConfig
from refnet.rcnn.layers import INITIALIZERS, convolve, make_norms


class FPN(Module):
    """Top-down pathway and lateral connections.

    .. math:: M_5 = L_5(C_5), \\quad M_l = L_l(C_l) + \\mathrm{up}(M_{l+1}), \\quad P_l = O_l(M_l)

    with 1x1 convolutions L and 3x3 convolutions O. P6 is every second pixel of P5.

    Choice: a batch norm stands behind each convolution instead of the bias, with the backbone's epsilon and momentum,
    or, as in the paper, none.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        config: FpnConfig,
        backbone: BackboneConfig,
        *,
        rng: np.random.Generator,
        dtype: Any = np.float32,
    ) -> None:
        def conv(inputs: int, kernel_size: int) -> Conv2d:
            return Conv2d(
                inputs,
                config.channels,
                kernel_size,
                padding=kernel_size // 2,
                bias=config.norm == "none",
                weight_init=INITIALIZERS[config.initialization],
                rng=rng,
                dtype=dtype,
            )

        self.lateral = [conv(channels, 1) for channels in in_channels]
        self.output = [conv(config.channels, 3) for _ in in_channels]
        self.lateral_norms, self.output_norms = (
            make_norms(config.norm, len(in_channels), config.channels, backbone, dtype) for _ in range(2)
        )

    def __call__(self, features: Sequence[Tensor], *, training: bool) -> tuple[Tensor, ...]:
        """P2 to P6.

        Choice: upsampling is to the size of the finer level, so sizes that aren't multiples of 32 work too; P6
        subsamples the *finished* P5, which is a max-pool of one pixel with stride 2.
        """
        pyramid: list[Tensor] = []
        merged = None
        for level in reversed(range(len(features))):
            lateral = convolve(self.lateral[level], self.lateral_norms[level], features[level], training=training)
            merged = lateral if merged is None else upsample_add(merged, lateral)
            pyramid.insert(0, convolve(self.output[level], self.output_norms[level], merged, training=training))
        return (*pyramid, pyramid[-1][:, ::2, ::2])
