"""Proposals: the RPN's best boxes, decoded, cut off at the image and thinned out by NMS (Ren et al. 2015, 3.3).

How many boxes there are, nobody needs to know on the way: small boxes are marked, and what NMS leaves is filled up with
zeros. All images so have as many, and a device does its part without the host, which waits once, for the result.
"""

from collections.abc import Sequence

from jaxtyping import Float

from refnet.arrays import Array, namespace, on_device_of, records_to_host
from refnet.ops import batched_nms_padded, best_first
from refnet.rcnn.boxes import Extent, clip_widened, decode, is_at_least, narrow, widen
from refnet.rcnn.config import RpnConfig
from refnet.rcnn.structures import ImageBatch, PaddedProposals, Proposals, RpnOutput


def propose(
    rpn: RpnOutput,
    anchors: Sequence[Float[Array, "_ 4"]],
    images: ImageBatch,
    config: RpnConfig,
    *,
    training: bool,
    extent: Extent = "continuous",
) -> list[Proposals]:
    """The proposals of each image, on the host; no gradient passes.

    Choice: the best ``pre_nms`` anchors are taken, and suppress each other, on each level or over all levels
    together. Both keep at most ``post_nms`` of an image, best first; equal scores go by the anchor's position. With
    padding "zeros" a test image always has ``post_nms_test``.
    """
    padded = propose_padded(rpn, anchors, images, config, training=training, extent=extent)
    found: PaddedProposals = records_to_host(padded)[0]
    return found.of_images()


def propose_padded(
    rpn: RpnOutput,
    anchors: Sequence[Float[Array, "_ 4"]],
    images: ImageBatch,
    config: RpnConfig,
    *,
    training: bool,
    extent: Extent = "continuous",
) -> PaddedProposals:
    """:func:`propose` without waiting for a device: ``post_nms`` proposals of each image, and how many are there."""
    before = config.pre_nms_train if training else config.pre_nms_test
    after = config.post_nms_train if training else config.post_nms_test
    logits = [level.data for level in rpn.objectness_logits]
    deltas = [level.data for level in rpn.deltas]
    xp = namespace(*logits)
    anchors = [on_device_of(own, logits[0]) for own in anchors]
    if config.scope == "global":
        joined = xp.concatenate(logits, axis=1), xp.concatenate(deltas, axis=1), xp.concatenate(anchors)
        logits, deltas, anchors = [joined[0]], [joined[1]], [joined[2]]

    offsets, references, candidates, levels, sources = [], [], [], [], []
    start = 0
    for level, (logit, delta, own) in enumerate(zip(logits, deltas, anchors, strict=True)):
        # by logit: where the probability saturates, it no longer tells the better from the good
        best = best_first(_margin(logit), limit=before)  # N B
        offsets.append(xp.take_along_axis(delta, best[..., None], axis=1))
        references.append(own[best])
        candidates.append(xp.take_along_axis(logit, best[..., None], axis=1))
        levels.append(xp.full(best.shape, level))
        sources.append(start + best)
        start += len(own)
    offset, reference, candidate, group, source = (
        xp.concatenate(parts, axis=1) for parts in (offsets, references, candidates, levels, sources)
    )
    score = objectness_scores(candidate)
    windows = on_device_of(images.borders(config.clip)[:, None], logits[0])  # N 1 4
    box = decode(offset, widen(reference, extent), config.delta_std, config.delta_clamp)
    box = clip_widened(box, windows, extent)
    large = is_at_least(box, config.min_size)
    kept, count = batched_nms_padded(box, score, group, large, iou_threshold=config.nms_threshold, limit=after)

    there = xp.arange(after) < count[:, None]  # N R
    row = xp.where(there, kept, 0)
    box = xp.where(there[..., None], xp.take_along_axis(box, row[..., None], axis=1), 0)
    score = xp.where(there, xp.take_along_axis(score, row, axis=1), 0)
    source = xp.where(there, xp.take_along_axis(source, row, axis=1), -1)
    if config.padding == "zeros" and not training:  # in training they would be taken off again
        count = xp.full_like(count, after)
    return PaddedProposals(boxes=narrow(box, extent), scores=score, sources=source, counts=count)


def objectness_scores(logits: Float[Array, "*A _"]) -> Float[Array, "*A"]:
    """The probability of an object from one logit (sigmoid) or two (softmax: the sigmoid of their difference)."""
    xp, margin = namespace(logits), _margin(logits)
    decay = xp.exp(-abs(margin))  # never overflows
    probability: Array = xp.where(margin >= 0, 1, decay) / (1 + decay)
    return probability


def _margin(logits: Array) -> Array:
    margin: Array = logits[..., 0] if logits.shape[-1] == 1 else logits[..., 1] - logits[..., 0]
    return margin
