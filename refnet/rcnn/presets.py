"""Settings of the conventions that belong together: a peer's, the paper's, and a small model for toy shapes.

Each preset takes the number of classes (without background) and returns a :class:`~refnet.rcnn.config.ModelConfig`;
:func:`dataclasses.replace` changes what should differ.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from refnet.rcnn.config import (
    AnchorConfig,
    AnchorTargetConfig,
    BackboneConfig,
    BoxHeadConfig,
    DetectionConfig,
    FpnConfig,
    InputConfig,
    KeypointHeadConfig,
    LossConfig,
    MaskHeadConfig,
    ModelConfig,
    RoiPoolConfig,
    RoiTargetConfig,
    RpnConfig,
)


def torchvision(num_classes: int = 90) -> ModelConfig:
    """``torchvision.models.detection.maskrcnn_resnet50_fpn``: torchvision's constants are the defaults of the fields.

    Other depths are a field of the backbone, and so is the batch norms' epsilon, with which the published COCO_V1 files
    were trained as 0: ``replace(config, backbone=replace(config.backbone, norm_epsilon=0.0))``.
    """
    return ModelConfig(
        num_classes=num_classes,
        anchors=AnchorConfig(stride="floor"),
        box_head=BoxHeadConfig(initialization="torchvision"),
        detections=DetectionConfig(mask_threshold=None),
    )


def torchvision_v2(num_classes: int = 90) -> ModelConfig:
    """``torchvision.models.detection.maskrcnn_resnet50_fpn_v2``: batch norm everywhere, a deeper RPN and box head.

    Without the mask head it is ``fasterrcnn_resnet50_fpn_v2``. After Li et al. 2021, "Benchmarking detection transfer
    learning with vision transformers".
    """
    config = torchvision(num_classes)
    return replace(
        config,
        backbone=replace(config.backbone, norm="batch"),
        fpn=replace(config.fpn, norm="batch"),
        rpn=replace(config.rpn, convolutions=2),
        box_head=replace(config.box_head, convolutions=4, layers=1, conv_bias=False, norm="batch"),
        mask_head=replace(config.mask_head, conv_bias=False, norm="batch"),
    )


def torchvision_keypoints(num_classes: int = 1, num_keypoints: int = 17) -> ModelConfig:
    """``torchvision.models.detection.keypointrcnn_resnet50_fpn``: persons and their points, no masks.

    That model's training resizes each image to a shorter side drawn from 640 to 800; here it is always 800, as in its
    evaluation.
    """
    return replace(
        torchvision(num_classes),
        mask_head=MaskHeadConfig(enabled=False),
        keypoint_head=KeypointHeadConfig(enabled=True, num_keypoints=num_keypoints),
    )


def matterport(num_classes: int = 80, *, faithful: bool = False) -> ModelConfig:
    """Matterport's Mask_RCNN 2.1 with ResNet-101, ``mrcnn/config.py`` and ``mrcnn/model.py``.

    Its conventions, but not its mistakes. With `faithful` those too: a forced anchor regresses to the object that it
    overlaps most, whichever forced it; boxes without extent fill up proposals and regions; the first image says which
    classes count in the whole batch; box targets aren't detached; mask probabilities are clipped; the running variance
    is corrected by an epsilon too many.
    """
    return ModelConfig(
        num_classes=num_classes,
        box_extent="normalized",
        input=InputConfig(
            resize="square",
            min_size=800,
            max_size=1024,
            resampling="bytes",
            mask_resampling="corner_aligned",
            boxes="masks",
            pad_divisor=64,
            pad_position="center",
            pad_before_normalization=True,
            value_scale=1.0,
            mean=(123.7, 116.8, 103.9),
            std=(1.0,),
        ),
        backbone=BackboneConfig(
            depth=101,
            conv_bias=True,
            stride_in="1x1",
            padding="same",
            norm="frozen_statistics",
            norm_epsilon=1e-3,
            norm_momentum=0.01,
            norm_variance="keras" if faithful else "unbiased",
            initialization="glorot_uniform",
        ),
        fpn=FpnConfig(initialization="glorot_uniform"),
        anchors=AnchorConfig(ratio_is="w/h", rounding=False, order="size_major"),
        rpn=RpnConfig(
            channels=512,
            objectness="softmax",
            delta_std=(0.1, 0.1, 0.2, 0.2),
            delta_clamp=None,
            initialization="glorot_uniform",
            scope="global",
            pre_nms_train=6000,
            pre_nms_test=6000,
            post_nms_train=2000,
            post_nms_test=1000,
            min_size=0.0,
            clip="padded",
            padding="zeros" if faithful else "none",
        ),
        anchor_targets=AnchorTargetConfig(crowd="avoid", forced_match="own_best" if faithful else "forcing_object"),
        roi_targets=RoiTargetConfig(
            append_ground_truth=False,
            batch_size=200,
            positive_fraction=0.33,
            negatives="ratio",
            crowd="avoid",
            padding="zeros" if faithful else "none",
            detach=not faithful,
            mini_mask=(56, 56),
            mask_sampling="crop_and_resize",
            mask_values="round",
        ),
        box_pool=_matterport_pool(7),
        mask_pool=_matterport_pool(14),
        keypoint_pool=_matterport_pool(14),
        box_head=BoxHeadConfig(
            kind="conv", norm="frozen_statistics", delta_clamp=None, initialization="glorot_uniform"
        ),
        mask_head=MaskHeadConfig(norm="frozen_statistics", initialization="glorot_uniform"),
        losses=LossConfig(
            rpn_beta=1.0,
            rpn_box_denominator="positive_coordinates",
            box_beta=1.0,
            box_denominator="positive_coordinates",
            active_classes="first_image" if faithful else "own_image",
            mask_cross_entropy="keras" if faithful else "logits",
        ),
        detections=DetectionConfig(
            classes="argmax",
            score_threshold=0.7,
            score_comparison=">=",
            nms_threshold=0.3,
            min_size=0.0,
            round_boxes=True,
            paste="hard",
        ),
    )


def _matterport_pool(size: int) -> RoiPoolConfig:
    return RoiPoolConfig(
        size=size, method="crop_and_resize", level_rounding="round", level_epsilon=0.0, box_units="normalized"
    )


def detectron2(num_classes: int = 80) -> ModelConfig:
    """Detectron2's ``COCO-InstanceSegmentation/mask_rcnn_R_50_FPN``, whose backbone came from Caffe.

    Two things are near, not equal: Detectron2 shrinks images with an antialiasing filter, and pastes masks by sampling
    at every pixel's centre, where this resamples as torchvision does.
    """
    return ModelConfig(
        num_classes=num_classes,
        input=InputConfig(value_scale=1.0, mean=(103.53, 116.28, 123.675), std=(1.0,), channel_order="bgr"),
        backbone=BackboneConfig(stride_in="1x1"),
        anchors=AnchorConfig(rounding=False, order="size_major"),
        rpn=RpnConfig(post_nms_train=1000, min_size=0.0),
        roi_targets=RoiTargetConfig(mask_values="threshold"),
        box_pool=_detectron2_pool(7),
        mask_pool=_detectron2_pool(14),
        keypoint_pool=_detectron2_pool(14),
        box_head=BoxHeadConfig(background="last"),
        keypoint_head=KeypointHeadConfig(scores="probability"),
        losses=LossConfig(rpn_beta=0.0, box_beta=0.0),
        detections=DetectionConfig(min_size=0.0),
    )


def _detectron2_pool(size: int) -> RoiPoolConfig:
    return RoiPoolConfig(size=size, sampling_ratio=0, aligned=True, level_epsilon=1e-8)


def paper(num_classes: int = 80) -> ModelConfig:
    """Mask R-CNN as published (He et al. 2017, with Lin et al. 2017 and Ren et al. 2015 where it refers to them)."""
    return ModelConfig(
        num_classes=num_classes,
        input=InputConfig(value_scale=1.0, mean=(102.9801, 115.9465, 122.7717), std=(1.0,), channel_order="bgr"),
        backbone=BackboneConfig(depth=101, stride_in="1x1"),
        anchors=AnchorConfig(rounding=False),
        rpn=RpnConfig(objectness="softmax", min_size=0.0, pre_nms_train=2000, post_nms_train=2000),
        anchor_targets=AnchorTargetConfig(forced_match="forcing_object", border="ignore"),
        roi_targets=RoiTargetConfig(mask_values="threshold"),
        box_pool=RoiPoolConfig(size=7, level_epsilon=0.0),
        mask_pool=RoiPoolConfig(size=14, level_epsilon=0.0),
        keypoint_pool=RoiPoolConfig(size=14, level_epsilon=0.0),
        losses=LossConfig(rpn_beta=1.0, box_beta=1.0),
        detections=DetectionConfig(min_size=0.0),
    )


def shapes(num_classes: int = 3) -> ModelConfig:
    """A small network that learns toy shapes of 128x128 pixels from scratch on a laptop, within minutes."""
    return ModelConfig(
        num_classes=num_classes,
        input=InputConfig(resize="none", mean=(0.5,), std=(0.25,)),
        backbone=BackboneConfig(depth=18, width=32, norm="batch", zero_init_residual=True),
        fpn=FpnConfig(channels=64),
        anchors=AnchorConfig(sizes=((16.0,), (32.0,), (48.0,), (64.0,), (96.0,)), center_offset=0.5, rounding=False),
        rpn=RpnConfig(
            channels=64, pre_nms_train=200, pre_nms_test=100, post_nms_train=100, post_nms_test=50, min_size=1.0
        ),
        anchor_targets=AnchorTargetConfig(batch_size=64, forced_match="forcing_object"),
        roi_targets=RoiTargetConfig(batch_size=64, mask_values="threshold"),
        box_pool=RoiPoolConfig(size=7, aligned=True, canonical_size=64.0, canonical_level=3),
        mask_pool=RoiPoolConfig(size=14, aligned=True, canonical_size=64.0, canonical_level=3),
        keypoint_pool=RoiPoolConfig(size=14, aligned=True, canonical_size=64.0, canonical_level=3),
        box_head=BoxHeadConfig(channels=256),
        mask_head=MaskHeadConfig(convolutions=2, channels=64),
        keypoint_head=KeypointHeadConfig(num_keypoints=4, convolutions=2, channels=64),
        detections=DetectionConfig(limit=20),
    )


PRESETS: dict[str, Callable[..., ModelConfig]] = {
    "torchvision": torchvision,
    "torchvision_v2": torchvision_v2,
    "torchvision_keypoints": torchvision_keypoints,
    "matterport": matterport,
    "matterport_faithful": partial(matterport, faithful=True),
    "detectron2": detectron2,
    "paper": paper,
    "shapes": shapes,
}
