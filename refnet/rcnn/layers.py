"""What several stages build their layers from: the initialisers and norms that a config names."""

from typing import Any, TypeAlias

from refnet.autograd import Tensor
from refnet.nn import BatchNorm2d, FrozenBatchNorm2d, init
from refnet.rcnn.config import BackboneConfig

INITIALIZERS = {
    "kaiming_fan_out": init.kaiming_normal(mode="fan_out"),
    "kaiming_uniform": init.kaiming_uniform(a=1.0),
    "glorot_uniform": init.xavier_uniform(),
}
Norm: TypeAlias = BatchNorm2d | FrozenBatchNorm2d


def make_norm(kind: str, channels: int, config: BackboneConfig, dtype: Any) -> Norm:
    """A batch norm of the given kind, with the backbone's epsilon and momentum."""
    if kind == "batch":
        return BatchNorm2d(channels, epsilon=config.norm_epsilon, momentum=config.norm_momentum, dtype=dtype)
    return FrozenBatchNorm2d(channels, epsilon=config.norm_epsilon, trainable=kind == "frozen_statistics", dtype=dtype)


def normalize_regions(norm: Norm, x: Tensor, *, training: bool) -> Tensor:
    """`norm` of the features of regions, of which a batch may have none: then there are no statistics to train.

    With fewer than two values a channel the running statistics serve, and stay as they are.
    """
    return norm(x, training=training and x.size >= 2 * x.shape[-1])


_HEADS = r"(fpn|rpn|box_head|mask_head)\..*"
LAYERS = {
    "heads": _HEADS,
    "5+": rf"backbone\.stages\.3\..*|{_HEADS}",
    "4+": rf"backbone\.stages\.[23]\..*|{_HEADS}",
    "3+": rf"backbone\.stages\.[123]\..*|{_HEADS}",
    "all": r".*",
}
"""Patterns of whole parameter names (:func:`refnet.nn.set_trainable`) for fine-tuning a part of the network: everything
behind the backbone, and with it the backbone's stages from C5, C4 or C3 on (Matterport's ``model.train(layers=)``)."""
