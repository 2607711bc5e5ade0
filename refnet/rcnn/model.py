"""Mask R-CNN, put together: the only file that imports the stages. ``losses`` trains, ``detect`` finds objects."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from refnet.arrays import Array, namespace, on_device_of, records_to_host, together_to_host
from refnet.autograd import Tensor, no_grad
from refnet.errors import ArgumentError
from refnet.nn import Module
from refnet.nn.module import DType
from refnet.rcnn.anchors import make_anchors
from refnet.rcnn.attached_targets import attach_box_targets
from refnet.rcnn.boxes import Extent, is_at_least
from refnet.rcnn.config import ModelConfig
from refnet.rcnn.detections import decode_keypoints, own_masks, paste_masks, select_detections
from refnet.rcnn.fpn import FPN
from refnet.rcnn.heads import BoxHead, KeypointHead, MaskHead
from refnet.rcnn.losses import Losses, add_losses, box_losses, keypoint_loss, mask_loss, rpn_losses
from refnet.rcnn.proposals import propose, propose_padded
from refnet.rcnn.resnet import ResNet
from refnet.rcnn.roi_pool import pool_rois
from refnet.rcnn.rpn import RPN
from refnet.rcnn.structures import (
    AnchorMatches,
    AnchorTargets,
    BoxOutput,
    Detections,
    GroundTruth,
    ImageBatch,
    PaddedProposals,
    Proposals,
    RoiMatches,
    Rois,
    RpnOutput,
    class_channel,
    pad_proposals,
)
from refnet.rcnn.targets import assign_anchors, match_anchors, match_rois, object_masks, sample_rois
from refnet.rcnn.trace import NO_TRACE, Trace
from refnet.rcnn.transform import (
    prepare_images,
    prepare_proposals,
    prepare_truth,
    restore_boxes,
    restore_keypoints,
)
from refnet.rcnn.vgg import VGG

BACKBONES: dict[str, type[ResNet] | type[VGG]] = {"resnet": ResNet, "vgg": VGG}


class MaskRCNN(Module):
    """Faster R-CNN with a mask head, a keypoint head, both (He et al. 2017) or neither, over a feature pyramid (Lin et al. 2017).

    Args:
        config: every choice, stage by stage.
        rng: draws the initial weights.
        dtype: float32 or float64, of all weights and activations.
    """

    def __init__(self, config: ModelConfig, *, rng: np.random.Generator, dtype: Any = np.float32) -> None:
        self.config = config
        self.dtype = np.dtype(dtype)
        width, classes = config.fpn.channels, config.num_classes
        self.backbone = BACKBONES[config.backbone.family](config.input.channels, config.backbone, rng=rng, dtype=dtype)
        self.fpn = FPN(self.backbone.out_channels, config.fpn, config.backbone, rng=rng, dtype=dtype)
        self.rpn = RPN(width, config.anchors.per_position, config.rpn, step=config.anchors.step, rng=rng, dtype=dtype)
        self.box_head = BoxHead(
            width, config.box_pool.size, classes, config.box_head, config.backbone, rng=rng, dtype=dtype
        )
        self.mask_head = (
            MaskHead(width, classes, config.mask_head, config.box_head, config.backbone, rng=rng, dtype=dtype)
            if config.mask_head.enabled
            else None
        )
        self.keypoint_head = (
            KeypointHead(width, config.keypoint_head, rng=rng, dtype=dtype) if config.keypoint_head.enabled else None
        )

    def astype(self, dtype: DType) -> None:
        """Convert all weights (:meth:`Module.astype`), and what images are prepared as."""
        super().astype(dtype)
        self.dtype = np.dtype(dtype)

    def prepare(
        self, images: Sequence[Shaped[Array, "_ _ _"]], *, rng: np.random.Generator | None = None
    ) -> ImageBatch:
        """Images (H, W, C), values 0 to 255, as the network's input; `rng` draws what is cut out of them in training."""
        return prepare_images(images, self.config.input, self.dtype, rng=rng)

    def anchors(self, pyramid: Sequence[Tensor], images: ImageBatch) -> list[Float[Array, "_ 4"]]:
        """The anchors of each level, where the pyramid is."""
        shapes = [(p.shape[1], p.shape[2]) for p in pyramid]
        levels = make_anchors(shapes, images.size, self.config.anchors, self.dtype)
        return [on_device_of(level, p.data) for level, p in zip(levels, pyramid, strict=True)]

    def _input(self, images: ImageBatch) -> Float[Tensor, "N H W C"]:
        """The pixels where the weights live."""
        return Tensor(on_device_of(images.pixels, self.rpn.objectness.weight.data))

    def losses(
        self,
        images: Sequence[Shaped[Array, "_ _ _"]],
        truth: Sequence[GroundTruth],
        *,
        rng: np.random.Generator,
        proposals: Sequence[Float[Array, "_ 4"]] | None = None,
        trace: Trace = NO_TRACE,
    ) -> Losses:
        """The losses on a batch of images of any sizes; ``losses(...).total.backward()`` gives all gradients.

        Batch norms, where the config has any, use the batch's statistics and move their running ones.

        On a device all that carries gradients lives there, and anchors, proposals and objects are matched there. Which
        anchors and regions take part is drawn on the host, so they are those that a CPU would draw; for what it needs
        to know for that it waits once.

        Args:
            images: (H, W, C) each, values 0 to 255.
            truth: the objects of each image; there may be none.
            rng: samples anchors and regions, and draws what :attr:`InputConfig.resize` "crop" cuts out of the images.
            proposals: (R, 4), boxes in the pixels of each image, from which the regions of the heads are sampled
                instead of from the RPN's (Matterport's USE_RPN_ROIS = False); the RPN is trained all the same.
            trace: receives every intermediate by name.

        Raises:
            ArgumentError: masks or keypoints are missing that a head needs, objects have another number of keypoints
                than ``config.keypoint_head`` says, or a class is above ``config.num_classes``.
            ShapeError: images, or masks, have the wrong shape, or there isn't one entry of `truth`, or of `proposals`,
                per image.
        """
        config, see = self.config, trace
        batch = see("input", self.prepare(images, rng=rng))
        truth = see("truth", prepare_truth(truth, batch, config.input))
        self._check_truth(truth)
        features = see("backbone", self.backbone(self._input(batch), training=True))
        pyramid = see("fpn", self.fpn(features, training=True))
        rpn = see("rpn", self.rpn(pyramid))
        anchors = see("anchors", self.anchors(pyramid, batch))
        padded = (
            propose_padded(rpn, anchors, batch, config.rpn, training=True, extent=config.box_extent)
            if proposals is None
            else pad_proposals(prepare_proposals(proposals, batch, self.dtype), like=anchors[0])
        )
        matches = match(anchors, padded, truth, batch, config)
        masks = object_masks(truth, batch.size, config.roi_targets, anchors[0]) if self.mask_head is not None else None
        padded, anchor_matches, roi_matches = records_to_host(padded, *matches)  # here the host waits for a device
        anchor_targets = label_anchors(anchors, truth, batch, config, rng, anchor_matches)
        see("anchor_targets", anchor_targets)
        proposed = see("proposals", padded.of_images())
        rois = see("rois", choose_rois(proposed, truth, rpn, anchors, batch, config, rng, roi_matches, masks))
        pooled = see("box_pool", pool_rois(pyramid, rois.boxes, rois.images, batch.size, config.box_pool))
        output = see("box_head", self.box_head(pooled, training=True))
        box = box_losses(output, rois, config.losses, config.box_head)
        mask = keypoint = None
        boxes, index = rois.boxes[rois.foreground], rois.images[rois.foreground]
        if self.mask_head is not None and rois.masks is not None:
            pooled = see("mask_pool", pool_rois(pyramid, boxes, index, batch.size, config.mask_pool))
            logits = self._mask_logits(pooled, rois.classes[rois.foreground], see, training=True)
            mask = mask_loss(logits, rois, rois.masks, config.losses, config.box_head, config.mask_head)
        if self.keypoint_head is not None and rois.keypoints is not None:
            pooled = see("keypoint_pool", pool_rois(pyramid, boxes, index, batch.size, config.keypoint_pool))
            logits = see("keypoint_head.logits", self.keypoint_head(pooled))
            keypoint = keypoint_loss(logits, rois.keypoints, len(batch), config.losses, config.roi_targets)
        rpn_parts = rpn_losses(rpn, anchor_targets, config.losses)
        return see("losses", add_losses(rpn_parts, box, mask, keypoint, config.losses))

    def _check_truth(self, truth: Sequence[GroundTruth]) -> None:
        if self.mask_head is not None and any(entry.masks is None for entry in truth if len(entry)):
            raise ArgumentError("losses: a model with a mask head needs the masks of all objects, got some without")
        if self.keypoint_head is not None:
            wanted = self.config.keypoint_head.num_keypoints
            counts = {0 if e.keypoints is None else e.keypoints.shape[1] for e in truth if len(e)} - {wanted}
            if counts:
                raise ArgumentError(
                    f"losses: a model with a keypoint head needs {wanted} keypoints of every object, got {min(counts)}"
                )
        highest = max((int(entry.classes.max()) for entry in truth if len(entry)), default=0)
        if highest > self.config.num_classes:
            raise ArgumentError(f"losses: classes must be from 1 to {self.config.num_classes}, got {highest}")

    def detect(self, images: Sequence[Shaped[Array, "_ _ _"]], *, trace: Trace = NO_TRACE) -> list[Detections]:
        """The objects in images (H, W, C) of any sizes, values 0 to 255; boxes, masks and keypoints in their own pixels.

        They are on the host, which waits for a device three times: for proposals, for scores and boxes, for masks and
        keypoints.

        `trace` receives every intermediate by name. Masks are computed for each object's own class only; for a trace,
        which holds those of all classes, together with these, which may change their last bit.
        """
        config, see = self.config, trace
        with no_grad():
            batch = see("input", self.prepare(images))
            found, mask_logits, keypoint_logits = self._heads(batch, see)
            return see("results", finish(found, mask_logits, keypoint_logits, batch, config))

    def _heads(
        self, batch: ImageBatch, see: Trace
    ) -> tuple[list[Detections], Float[Tensor, "D S S _"] | None, Float[Tensor, "D M M K"] | None]:
        """The objects, boxes in pixels of the network's input, and what the heads for masks and keypoints say of them.

        With it all features are freed, which take as much memory as the masks in full size.
        """
        config = self.config
        pyramid = self._pyramid(batch, see)
        found = see("detections", self._find(pyramid, batch, see))
        boxes = [entry.boxes for entry in found]
        joined, index = np.concatenate(boxes), image_index(boxes)
        mask_logits = keypoint_logits = None
        if self.mask_head is not None:
            pooled = see("mask_pool", pool_rois(pyramid, joined, index, batch.size, config.mask_pool))
            classes = np.concatenate([entry.classes for entry in found])
            mask_logits = self._mask_logits(pooled, classes, see, training=False)
        if self.keypoint_head is not None:
            pooled = see("keypoint_pool", pool_rois(pyramid, joined, index, batch.size, config.keypoint_pool))
            keypoint_logits = see("keypoint_head.logits", self.keypoint_head(pooled))
        return found, mask_logits, keypoint_logits

    def _pyramid(self, batch: ImageBatch, see: Trace) -> tuple[Tensor, ...]:
        """P2 to P6; nothing else of the backbone is kept."""
        features = see("backbone", self.backbone(self._input(batch), training=False))
        return see("fpn", self.fpn(features, training=False))

    def _find(self, pyramid: Sequence[Tensor], batch: ImageBatch, see: Trace) -> list[Detections]:
        """The objects of each image, boxes in pixels of the network's input."""
        rpn = see("rpn", self.rpn(pyramid))
        anchors = see("anchors", self.anchors(pyramid, batch))
        proposals = see("proposals", find_proposals(rpn, anchors, batch, self.config, training=False))
        boxes = [p.boxes for p in proposals]
        pooled = pool_rois(pyramid, np.concatenate(boxes), image_index(boxes), batch.size, self.config.box_pool)
        output = see("box_head", self.box_head(see("box_pool", pooled), training=False))
        return find_objects(output, boxes, batch, self.config)

    def _mask_logits(
        self, pooled: Float[Tensor, "R P P C"], classes: Int[Array, " R"], see: Trace, *, training: bool
    ) -> Float[Tensor, "R S S _"]:
        """The mask head's logits: those of each region's own class, or of all classes where a trace is to have them."""
        assert self.mask_head is not None
        if see is NO_TRACE:
            channel = class_channel(classes, self.config.box_head.background, self.config.mask_head.class_agnostic)
            return self.mask_head(pooled, training=training, channel=channel)
        return see("mask_head.logits", self.mask_head(pooled, training=training))


def match(
    anchors: Sequence[Float[Array, "_ 4"]],
    proposals: PaddedProposals,
    truth: Sequence[GroundTruth],
    batch: ImageBatch,
    config: ModelConfig,
) -> tuple[AnchorMatches, RoiMatches]:
    """The objects that the anchors of all levels, and the proposals, belong to, where these are."""
    return (
        match_anchors(_joined(anchors), truth, batch, config.anchor_targets, _anchor_extent(config)),
        match_rois(proposals.boxes, truth, config.roi_targets, config.box_extent),
    )


def _joined(levels: Sequence[Float[Array, "_ 4"]]) -> Float[Array, "A 4"]:
    joined: Array = namespace(*levels).concatenate(levels)
    return joined


def _anchor_extent(config: ModelConfig) -> Extent:
    return "inclusive" if config.box_extent == "inclusive" else "continuous"


def label_anchors(
    anchors: Sequence[Float[Array, "_ 4"]],
    truth: Sequence[GroundTruth],
    batch: ImageBatch,
    config: ModelConfig,
    rng: np.random.Generator,
    matches: AnchorMatches | None = None,
) -> AnchorTargets:
    """What the RPN should say of the anchors of all levels."""
    return assign_anchors(
        _joined(anchors), truth, batch, config.anchor_targets, config.rpn.delta_std, rng,
        extent=_anchor_extent(config), matches=matches,
    )  # fmt: skip


def find_proposals(
    rpn: RpnOutput, anchors: Sequence[Float[Array, "_ 4"]], batch: ImageBatch, config: ModelConfig, *, training: bool
) -> list[Proposals]:
    """The RPN's proposals in each image."""
    return propose(rpn, anchors, batch, config.rpn, training=training, extent=config.box_extent)


def choose_rois(
    proposals: Sequence[Proposals],
    truth: Sequence[GroundTruth],
    rpn: RpnOutput,
    anchors: Sequence[Float[Array, "_ 4"]],
    batch: ImageBatch,
    config: ModelConfig,
    rng: np.random.Generator,
    matches: RoiMatches | None = None,
    masks: Float[Array, "G _ _ 1"] | None = None,
) -> Rois:
    """The regions that train the heads, and what these should say of them."""
    mask_size = 2 * config.mask_pool.size if config.mask_head.enabled else None
    keypoint_maps = None
    if config.keypoint_head.enabled:
        keypoint_maps = config.keypoint_head.num_keypoints, KeypointHead.UPSCALE * config.keypoint_pool.size
    std, extent = config.box_head.delta_std, config.box_extent
    rois = sample_rois(
        proposals, truth, batch, config.roi_targets, std, mask_size, rng,
        keypoint_maps=keypoint_maps, extent=extent, matches=matches, masks=masks,
    )  # fmt: skip
    if config.roi_targets.detach:
        return rois
    return attach_box_targets(rois, rpn, _joined(anchors), batch, config.rpn, std, extent=extent)


def find_objects(
    output: BoxOutput, boxes: Sequence[Float[Array, "_ 4"]], batch: ImageBatch, config: ModelConfig
) -> list[Detections]:
    """The objects of each image, boxes in pixels of the network's input."""
    return select_detections(output, boxes, batch, config.box_head, config.detections, extent=config.box_extent)


def finish(
    found: Sequence[Detections],
    mask_logits: Float[Tensor, "D S S _"] | None,
    keypoint_logits: Float[Tensor, "D M M K"] | None,
    batch: ImageBatch,
    config: ModelConfig,
) -> list[Detections]:
    """The detections in pixels of the images as they were given, with their masks and keypoints."""
    ends = np.cumsum([len(entry) for entry in found])[:-1]  # of each image's detections in the row of all
    own = maps = None
    if mask_logits is not None:
        classes = np.concatenate([entry.classes for entry in found])
        own = own_masks(mask_logits, classes, config.box_head, config.mask_head)
    if keypoint_logits is not None:
        maps = keypoint_logits.data
    own, maps = together_to_host(own, maps)
    masks: list[Any] = [None] * len(found) if own is None else np.split(own, ends)
    if maps is not None:
        joined = np.concatenate([entry.boxes for entry in found])
        parts = decode_keypoints(maps, joined, config.keypoint_head)
        points, scores = (np.split(part, ends) for part in parts)
        found = [
            replace(entry, keypoints=own, keypoint_scores=score)
            for entry, own, score in zip(found, points, scores, strict=True)
        ]
    return [restore(*pair, batch, index, config) for index, pair in enumerate(zip(found, masks, strict=True))]


def restore(
    found: Detections, masks: Float[Array, "D S S"] | None, batch: ImageBatch, index: int, config: ModelConfig
) -> Detections:
    """The detections of image `index` of a batch in pixels of the image as it was given, with its masks pasted.

    Choice: boxes may be rounded to whole pixels, and those dropped that then have no area; keypoints aren't.
    """
    boxes = restore_boxes(found.boxes, batch, index, extent=config.box_extent)
    if config.detections.round_boxes:
        boxes = np.round(boxes)
        kept = is_at_least(boxes, 1)
        found, boxes, masks = found.select(kept), boxes[kept], None if masks is None else masks[kept]
    pasted = None
    if masks is not None:
        pasted = paste_masks(masks, boxes, batch.original_sizes[index], config.detections)
    points = None if found.keypoints is None else restore_keypoints(found.keypoints, batch, index)
    return replace(found, boxes=boxes, masks=pasted, keypoints=points)


def image_index(boxes: Sequence[Shaped[Array, "_ 4"]]) -> Shaped[Array, " R"]:
    """For boxes of several images in a row, the image of each."""
    return np.repeat(np.arange(len(boxes)), [len(b) for b in boxes])
