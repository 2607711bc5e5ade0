"""Which algorithm the planner takes for each convolution of ResNet-50 with FPN, RPN and mask head, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from refnet.bench.workloads import Layer, mask_head, resnet50_fpn

ROIS = 100


def explanations(side: int = 512) -> Iterator[str]:
    """A line for each of the planner's operations and each layer, for an image of `side` by `side` pixels."""
    from refnet.kernels.cpu.conv.plan import Operation, explain

    layers: list[tuple[Layer, int]] = [(layer, 1) for layer in resnet50_fpn(side, side, rpn=True)]
    layers += [(layer, ROIS) for layer in mask_head()]
    for operation in get_args(Operation):
        for layer, images in layers:
            pad = layer.window // 2
            text = explain(
                operation,
                (images, layer.height, layer.width, layer.channels),
                (layer.window, layer.window, layer.channels, layer.outputs),
                stride=(layer.stride, layer.stride),
                padding=((pad, pad), (pad, pad)),
                dilation=(1, 1),
                groups=1,
            )
            yield f"{layer.title.split()[0]} x{layer.count}: {text}"
