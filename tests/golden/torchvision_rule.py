"""refnet's parameters by torchvision's names, and with the values of the golden torchvision models.

These were filled by the rule of :mod:`refnet.bench.rule`, so that no weights need to be stored.
"""

import re
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from refnet.bench.rule import weight
from refnet.nn import Module

RENAMED = [
    (r"^backbone\.stem\.conv\.", "backbone.body.conv1."),
    (r"^backbone\.stem\.norm\.", "backbone.body.bn1."),
    (r"^backbone\.stages\.(\d)\.(\d+)\.branch\.(\d)\.conv\.", lambda m: f"backbone.body.layer{int(m[1]) + 1}.{m[2]}.conv{int(m[3]) + 1}."),
    (r"^backbone\.stages\.(\d)\.(\d+)\.branch\.(\d)\.norm\.", lambda m: f"backbone.body.layer{int(m[1]) + 1}.{m[2]}.bn{int(m[3]) + 1}."),
    (r"^backbone\.stages\.(\d)\.(\d+)\.shortcut\.conv\.", lambda m: f"backbone.body.layer{int(m[1]) + 1}.{m[2]}.downsample.0."),
    (r"^backbone\.stages\.(\d)\.(\d+)\.shortcut\.norm\.", lambda m: f"backbone.body.layer{int(m[1]) + 1}.{m[2]}.downsample.1."),
    (r"^fpn\.lateral\.(\d)\.", r"backbone.fpn.inner_blocks.\1.0."),
    (r"^fpn\.output\.(\d)\.", r"backbone.fpn.layer_blocks.\1.0."),
    (r"^fpn\.lateral_norms\.(\d)\.", r"backbone.fpn.inner_blocks.\1.1."),
    (r"^fpn\.output_norms\.(\d)\.", r"backbone.fpn.layer_blocks.\1.1."),
    (r"^rpn\.convolutions\.(\d)\.", r"rpn.head.conv.\1.0."),
    (r"^rpn\.objectness\.", "rpn.head.cls_logits."),
    (r"^rpn\.deltas\.", "rpn.head.bbox_pred."),
    (r"^box_head\.hidden\.(\d)\.", lambda m: f"roi_heads.box_head.fc{int(m[1]) + 6}."),
    (r"^box_head\.convolutions\.(\d)\.", r"roi_heads.box_head.\1.0."),
    (r"^box_head\.norms\.(\d)\.", r"roi_heads.box_head.\1.1."),
    (r"^box_head\.classes\.", "roi_heads.box_predictor.cls_score."),
    (r"^box_head\.deltas\.", "roi_heads.box_predictor.bbox_pred."),
    (r"^mask_head\.convolutions\.(\d)\.", r"roi_heads.mask_head.\1.0."),
    (r"^mask_head\.norms\.(\d)\.", r"roi_heads.mask_head.\1.1."),
    (r"^mask_head\.upsample\.", "roi_heads.mask_predictor.conv5_mask."),
    (r"^mask_head\.logits\.", "roi_heads.mask_predictor.mask_fcn_logits."),
    (r"^keypoint_head\.convolutions\.(\d)\.", lambda m: f"roi_heads.keypoint_head.{2 * int(m[1])}."),
    (r"^keypoint_head\.upsample\.", "roi_heads.keypoint_predictor.kps_score_lowres."),
    (r"running_variance$", "running_var"),
]  # fmt: skip
Naming: TypeAlias = Callable[[str], str]


def torchvision_name(name: str) -> str:
    """torchvision's name for one of refnet's parameters or buffers."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def torchvision_v2_name(name: str) -> str:
    """The same for the v2 models, whose box head numbers its four convolutions and the layer behind them through."""
    return re.sub(r"^roi_heads\.box_head\.fc6\.", "roi_heads.box_head.5.", torchvision_name(name))


def classifier_name(name: str) -> str:
    """The same for a residual classifier with a pyramid on top of it."""
    return re.sub(r"^backbone\.(body\.)?", "", torchvision_name(name))


def to_torch(name: str, array: np.ndarray) -> np.ndarray:
    """A parameter of refnet's layout, or its gradient, in PyTorch's."""
    if array.ndim == 4:  # (kh, kw, in, out) -> (out, in, kh, kw); a transposed convolution -> (in, out, kh, kw)
        return array.transpose(2, 3, 0, 1) if "upsample" in name else array.transpose(3, 2, 0, 1)
    if name == "box_head.hidden.0.weight":  # rows (P, P, C) -> columns (C, P, P)
        return array.reshape(7, 7, -1, array.shape[1]).transpose(3, 2, 0, 1).reshape(array.shape[1], -1)
    return array.T if array.ndim == 2 else array


def from_torch(name: str, array: np.ndarray) -> np.ndarray:
    """The inverse of :func:`to_torch`."""
    if array.ndim == 4:
        return array.transpose(2, 3, 0, 1) if "upsample" in name else array.transpose(2, 3, 1, 0)
    if name == "box_head.hidden.0.weight":
        return array.reshape(array.shape[0], -1, 7, 7).transpose(2, 3, 1, 0).reshape(-1, array.shape[0])
    return array.T if array.ndim == 2 else array


def fill(model: Module, naming: Naming = torchvision_name) -> None:
    """Give every parameter and buffer of `model` the golden models' values; `naming` gives torchvision's names."""
    state = {}
    for name, array in model.state().items():
        shape = to_torch(name, np.broadcast_to(array, array.shape)).shape
        state[name] = np.ascontiguousarray(from_torch(name, weight(naming(name), shape)), array.dtype)
    model.load_state(state)
