"""The losses (He et al. 2017, sections 3 and 5; Ren et al. 2015, eq. 1; Girshick 2015, eqs. 1-3)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from refnet.arrays import Array, namespace, on_device_of, together_to_host
from refnet.autograd import Tensor
from refnet.ops import (
    binary_cross_entropy_with_logits,
    clip,
    concatenate,
    cross_entropy,
    log,
    reshape,
    sigmoid,
    smooth_l1,
    transpose,
)
from refnet.ops import sum as add_up
from refnet.rcnn.config import BoxHeadConfig, LossConfig, MaskHeadConfig, RoiTargetConfig
from refnet.rcnn.structures import IGNORE, AnchorTargets, BoxOutput, Rois, RpnOutput, class_channel, own_channel

KERAS_EPSILON = 1e-7  # how near to 0 and 1 Keras lets probabilities come


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """The losses, each a scalar, unweighted, and their weighted sum.

    Attributes:
        rpn_class: is there an object at an anchor?
        rpn_box: how far is the proposal from the object?
        class_: which class has a region?
        box: how far is its box from the object?
        mask: which pixels belong to it? None without a mask head.
        keypoint: where are its points? None without a keypoint head.
        total: the sum by the configured weights; its gradient trains the network.
    """

    rpn_class: Tensor
    rpn_box: Tensor
    class_: Tensor
    box: Tensor
    mask: Tensor | None
    keypoint: Tensor | None
    total: Tensor

    def named(self) -> dict[str, Tensor]:
        """They by the names they have in the literature."""
        losses = {
            "loss": self.total,
            "rpn_class_loss": self.rpn_class,
            "rpn_box_loss": self.rpn_box,
            "class_loss": self.class_,
            "box_loss": self.box,
            "mask_loss": self.mask,
            "keypoint_loss": self.keypoint,
        }
        return {name: loss for name, loss in losses.items() if loss is not None}

    def as_dict(self) -> dict[str, float]:
        """Their values by name."""
        losses = self.named()
        values = together_to_host(*(loss.data for loss in losses.values()))
        return {name: float(value) for name, value in zip(losses, values, strict=True)}


def rpn_losses(rpn: RpnOutput, targets: AnchorTargets, config: LossConfig) -> tuple[Tensor, Tensor]:
    """The RPN's two losses over the sampled anchors of the whole batch.

    .. math::
        L_{cls} = \\frac{1}{S} \\sum_{i} \\mathrm{CE}(p_i, p_i^*), \\quad
        L_{box} = \\frac{1}{D} \\sum_{i : p_i^* = 1} \\mathrm{smooth}_{L1}(t_i - t_i^*)

    Choice: D is the number S of sampled anchors, or four times the positive ones, which is a mean.
    """
    logits = _flat(rpn.objectness_logits)  # N·A L
    deltas = _flat(rpn.deltas)  # N·A 4
    labels = targets.labels.reshape(-1)
    sampled, positive = np.flatnonzero(labels != IGNORE), np.flatnonzero(labels == 1)
    if logits.shape[1] == 1:
        wanted = labels[sampled, None].astype(logits.dtype)
        class_loss = binary_cross_entropy_with_logits(logits[sampled], wanted, reduction="mean")
    else:
        class_loss = cross_entropy(logits[sampled], labels[sampled], reduction="mean")
    goal = targets.deltas.reshape(-1, 4)[on_device_of(positive, targets.deltas)]
    box_loss = smooth_l1(deltas[positive], goal, beta=config.rpn_beta, reduction="sum")
    count = len(sampled) if config.rpn_box_denominator == "sampled" else 4 * len(positive)
    return class_loss, box_loss / float(max(count, 1))


def _flat(levels: Sequence[Float[Tensor, "N _ D"]]) -> Float[Tensor, "_ D"]:
    joined = concatenate(levels, axis=1)  # N A D
    return reshape(joined, (-1, joined.shape[2]))


def box_losses(output: BoxOutput, rois: Rois, config: LossConfig, head: BoxHeadConfig) -> tuple[Tensor, Tensor]:
    """Cross entropy of the class, and smooth L1 of the box that belongs to the true class.

    Choice: the box loss is divided by all regions, so that each weighs the same whatever its label, or by four
    times those with an object.

    Where the targets depend on the RPN (:attr:`RoiTargetConfig.detach`), so does the box loss.
    """
    taking_part = np.flatnonzero(rois.classes != IGNORE)
    wanted = rois.classes[taking_part]
    if head.background == "last":
        wanted = np.where(wanted == 0, output.class_logits.shape[1] - 1, wanted - 1)
    logits = output.class_logits
    if len(taking_part) < len(rois.classes):
        logits = logits[taking_part]
    class_loss = (
        cross_entropy(logits, wanted, reduction="mean")
        if rois.active_classes is None
        else _active_cross_entropy(logits, wanted, rois.images[taking_part], rois.active_classes, config, head)
    )
    foreground = rois.foreground
    channel = class_channel(rois.classes[foreground], head.background, head.class_agnostic)
    deltas = output.deltas[foreground, channel]  # F 4
    difference = deltas - rois.deltas[foreground]
    zeros = np.zeros(difference.shape, difference.dtype)
    box_loss = smooth_l1(difference, zeros, beta=config.box_beta, reduction="sum")
    count = len(taking_part) if config.box_denominator == "sampled" else 4 * len(foreground)
    return class_loss, box_loss / float(max(count, 1))


def _active_cross_entropy(
    logits: Float[Tensor, "R K1"],
    wanted: Int[Array, " R"],
    images: Int[Array, " R"],
    active: Bool[Array, "N K1"],
    config: LossConfig,
    head: BoxHeadConfig,
) -> Tensor:
    """The mean over the regions whose predicted class is active in their image, or in the first one.

    The mean over no region is 0; by the first image's classes it is NaN, as the original computes it.
    """
    predicted = logits.data.argmax(axis=1)
    if head.background == "last":
        predicted = (predicted + 1) % logits.shape[1]
    row = images if config.active_classes == "own_image" else np.zeros_like(images)
    active, row = on_device_of(active, predicted), on_device_of(row, predicted)
    counted = active[row, predicted].astype(logits.dtype)
    none = 1.0 if config.active_classes == "own_image" else float("nan")
    count: Array = namespace(counted).where(counted.any(), counted.sum(), none).astype(logits.dtype)
    return add_up(cross_entropy(logits, wanted, reduction="none") * counted) / count


def mask_loss(
    logits: Float[Tensor, "F S S _"],
    rois: Rois,
    targets: Float[Array, "F S S"],
    config: LossConfig,
    head: BoxHeadConfig,
    mask: MaskHeadConfig,
) -> Tensor:
    """Binary cross entropy of the mask that belongs to the true class, averaged over its pixels.

    The other classes' masks get no gradient: classes don't compete for pixels (He et al. 2017, section 3).

    Choice: it is computed from the logits, or from their rounded and clipped probabilities.
    """
    own = own_channel(logits, rois.classes[rois.foreground], head.background, mask.class_agnostic)  # F S S
    if config.mask_cross_entropy == "logits":
        return binary_cross_entropy_with_logits(own, targets, reduction="mean")
    return clipped_cross_entropy(sigmoid(own), targets, config.mask_cross_entropy)


def clipped_cross_entropy(
    probabilities: Float[Tensor, "*S"], targets: Float[Array, "*S"], rule: Literal["keras", "tf_keras"]
) -> Tensor:
    """Keras' mean binary cross entropy of probabilities, by :attr:`LossConfig.mask_cross_entropy`.

    .. math:: q = \\min(\\max(p, \\epsilon), 1 - \\epsilon), \\quad \\epsilon = 10^{-7}
    """
    clipped = clip(probabilities, KERAS_EPSILON, 1 - KERAS_EPSILON)
    if rule == "keras":
        return binary_cross_entropy_with_logits(log(clipped / (1 - clipped)), targets, reduction="mean")
    # the constants are added first, as TensorFlow rearranges it: near p = 1 the order shows in float32
    gain = log(clipped + KERAS_EPSILON) * targets + log((1 + KERAS_EPSILON) - clipped) * (1 - targets)
    return -add_up(gain) / float(max(gain.size, 1))


def keypoint_loss(
    logits: Float[Tensor, "F S S K"], targets: Int[Array, "F K"], images: int, config: LossConfig, rois: RoiTargetConfig
) -> Tensor:
    """Cross entropy of the softmax over a point's whole heat map with the one location where it is (He et al. 2017, 5).

    .. math:: L = \\frac{1}{D} \\sum_{f,k\\ \\mathrm{visible}} \\mathrm{CE}(m_{f,k}, t_{f,k})

    Points that aren't visible in their region get no gradient; without any the loss is 0.

    Choice: D is the number of visible points, so an object with few weighs as much as one with many, or fixed, as many
    points as `images` images could have.
    """
    maps = reshape(transpose(logits, (0, 3, 1, 2)), (targets.size, math.prod(logits.shape[1:3])))  # F·K S·S
    places = targets.reshape(-1)
    visible = np.flatnonzero(places != IGNORE)
    total = cross_entropy(maps[visible], places[visible], reduction="sum")
    count = float(len(visible))
    if config.keypoint_denominator == "fixed":
        count = images * rois.batch_size * rois.positive_fraction * targets.shape[1]
    return total / max(count, 1.0)


def add_losses(
    rpn: tuple[Tensor, Tensor],
    box: tuple[Tensor, Tensor],
    mask: Tensor | None,
    keypoint: Tensor | None,
    config: LossConfig,
) -> Losses:
    """The record of all of them, and their weighted sum."""
    total = rpn[0] * config.rpn_class_weight + rpn[1] * config.rpn_box_weight
    total = total + box[0] * config.class_weight + box[1] * config.box_weight
    if mask is not None:
        total = total + mask * config.mask_weight
    if keypoint is not None:
        total = total + keypoint * config.keypoint_weight
    return Losses(
        rpn_class=rpn[0], rpn_box=rpn[1], class_=box[0], box=box[1], mask=mask, keypoint=keypoint, total=total
    )
