"""Mask R-CNN from torchvision's parts, with the layers and numbers of a configuration of refnet's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from refnet.arrays import Array
from refnet.data.dataset import Sample
from refnet.rcnn.config import ModelConfig
from refnet.train.config import TrainConfig


def load_state(model: Any, state: Mapping[str, Array], torch: Any) -> None:
    """Give a model of torchvision's its weights, all of which must be in `state`; counters of batches aside."""
    tensors = {name: torch.from_numpy(np.array(array, order="C")) for name, array in state.items()}
    result = model.load_state_dict(tensors, strict=False)
    missing = [name for name in result.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or result.unexpected_keys:
        raise ValueError(f"torchvision's model lacks {missing}, and has no use for {result.unexpected_keys}")


def maskrcnn(config: ModelConfig) -> Any:
    """``maskrcnn_resnet50_fpn`` as its constructor makes it, all of its layers trained but for frozen batch norms.

    Of `config` the depth, the classes, the size of images and the numbers of proposals, regions and detections count; the
    rest is what both have by default.
    """
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    name = f"resnet{config.backbone.depth}"
    backbone = resnet_fpn_backbone(backbone_name=name, weights=None, trainable_layers=5)
    return MaskRCNN(
        backbone,
        config.num_classes + 1,
        min_size=config.input.min_size,
        max_size=config.input.max_size,
        rpn_pre_nms_top_n_train=config.rpn.pre_nms_train,
        rpn_pre_nms_top_n_test=config.rpn.pre_nms_test,
        rpn_post_nms_top_n_train=config.rpn.post_nms_train,
        rpn_post_nms_top_n_test=config.rpn.post_nms_test,
        box_batch_size_per_image=config.roi_targets.batch_size,
        box_detections_per_img=config.detections.limit,
    )


def shapes_model(config: ModelConfig, image_size: int) -> Any:
    """The preset shapes: the same layers, the same numbers of anchors, proposals and ROIs."""
    from torchvision.models.detection import MaskRCNN, anchor_utils, faster_rcnn, mask_rcnn, rpn
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.ops import MultiScaleRoIAlign
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    width, features = config.backbone.width, config.fpn.channels
    channels = [width * 2**index for index in range(4)]
    levels = {f"layer{index + 1}": str(index) for index in range(4)}
    backbone = BackboneWithFPN(_resnet18(width), levels, channels, features, LastLevelMaxPool())

    def pool(pooled: int) -> Any:
        return MultiScaleRoIAlign(["0", "1", "2", "3"], pooled, 2, canonical_scale=64, canonical_level=3)

    classes, heads = config.num_classes + 1, config.mask_head
    return MaskRCNN(
        backbone,
        min_size=image_size,
        max_size=image_size,
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
        rpn_anchor_generator=anchor_utils.AnchorGenerator(
            config.anchors.sizes, ((0.5, 1.0, 2.0),) * len(config.anchors.sizes)
        ),
        rpn_head=rpn.RPNHead(features, 3),
        rpn_pre_nms_top_n_train=config.rpn.pre_nms_train,
        rpn_post_nms_top_n_train=config.rpn.post_nms_train,
        rpn_batch_size_per_image=config.anchor_targets.batch_size,
        box_batch_size_per_image=config.roi_targets.batch_size,
        box_roi_pool=pool(config.box_pool.size),
        box_head=faster_rcnn.TwoMLPHead(features * config.box_pool.size**2, config.box_head.channels),
        box_predictor=faster_rcnn.FastRCNNPredictor(config.box_head.channels, classes),
        mask_roi_pool=pool(config.mask_pool.size),
        mask_head=mask_rcnn.MaskRCNNHeads(features, (heads.channels,) * heads.convolutions, 1),
        mask_predictor=mask_rcnn.MaskRCNNPredictor(heads.channels, heads.channels, classes),
    )


def _resnet18(width: int) -> Any:
    """ResNet-18's stages of `width` to 8 · `width` channels, by the names of torchvision's ResNet."""
    from torch import nn
    from torchvision.models.resnet import BasicBlock

    def stage(index: int) -> Any:
        inputs, outputs, stride = width * 2 ** max(index - 1, 0), width * 2**index, 1 if index == 0 else 2
        shortcut = None
        if inputs != outputs:
            shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        return nn.Sequential(BasicBlock(inputs, outputs, stride, shortcut), BasicBlock(outputs, outputs))

    layers = [
        ("conv1", nn.Conv2d(3, width, 7, 2, 3, bias=False)),
        ("bn1", nn.BatchNorm2d(width)),
        ("relu", nn.ReLU(inplace=True)),
        ("maxpool", nn.MaxPool2d(3, 2, 1)),
        *((f"layer{index + 1}", stage(index)) for index in range(4)),
    ]
    return nn.Sequential(OrderedDict(layers))


def as_torch(samples: Sequence[Sample], torch: Any, device: str = "cpu") -> tuple[list[Any], list[dict[str, Any]]]:
    """A batch as torchvision's detectors take one."""
    images = [as_image(s.image, torch).to(device) for s in samples]
    targets = [
        {
            "boxes": torch.from_numpy(s.truth.boxes.astype(np.float32)).to(device),
            "labels": torch.from_numpy(s.truth.classes.astype(np.int64)).to(device),
            "masks": torch.from_numpy(np.asarray(s.truth.masks).astype(np.uint8)).to(device),
        }
        for s in samples
    ]
    return images, targets


def as_image(pixels: Array, torch: Any) -> Any:
    """An image (H, W, C), 0 to 255, as torchvision's detectors take one: (C, H, W), 0 to 1."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float().contiguous() / 255


def make_optimizer(model: Any, settings: TrainConfig, torch: Any) -> Any:
    """Stochastic gradient descent with the settings of a run of refnet's."""
    return torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        settings.lr,
        settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )


def train_step(
    model: Any, optimizer: Any, batch: tuple[list[Any], list[dict[str, Any]]], settings: TrainConfig, torch: Any
) -> dict[str, float]:
    """One step of training: losses, gradients, clipping and update; the losses are read, as by anyone who trains."""
    losses = model(*batch)
    optimizer.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    if settings.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
    optimizer.step()
    return {name: loss.item() for name, loss in losses.items()}
