"""Proposals: the RPN's best boxes, decoded, cut off at the image and thinned out by NMS (Ren et al. 2015, 3.3)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from refnet.arrays import Array
from refnet.ops import batched_nms
from refnet.rcnn.boxes import Extent, clip_widened, decode, is_at_least, narrow, widen
from refnet.rcnn.config import RpnConfig
from refnet.rcnn.structures import ImageBatch, Proposals, RpnOutput


def propose(
    rpn: RpnOutput,
    anchors: Sequence[Float[Array, "_ 4"]],
    images: ImageBatch,
    config: RpnConfig,
    *,
    training: bool,
    extent: Extent = "continuous",
) -> list[Proposals]:
    """The proposals of each image; no gradient passes.

    Choice: the best ``pre_nms`` anchors are taken, and suppress each other, on each level or over all levels
    together. Both keep at most ``post_nms`` of an image, best first; equal scores go by the anchor's position. With
    padding "zeros" a test image always has ``post_nms_test``.
    """
    before = config.pre_nms_train if training else config.pre_nms_test
    after = config.post_nms_train if training else config.post_nms_test
    logits = [level.data for level in rpn.objectness_logits]
    deltas = [level.data for level in rpn.deltas]
    if config.scope == "global":
        logits, deltas, anchors = [_joined(logits)], [_joined(deltas)], [np.concatenate(anchors)]

    starts = np.cumsum([0, *(len(reference) for reference in anchors)])
    proposals = []
    for index, window in enumerate(images.borders(config.clip)):
        boxes, scores, levels, sources = [], [], [], []
        for level, reference in enumerate(anchors):
            score = objectness_scores(logits[level][index])
            # by logit: where the probability saturates, it no longer tells the better from the good
            best = best_first(_margin(logits[level][index]), before)
            boxes.append(
                decode(deltas[level][index][best], widen(reference[best], extent), config.delta_std, config.delta_clamp)
            )
            scores.append(score[best])
            levels.append(np.full(len(best), level))
            sources.append(starts[level] + best)
        box = clip_widened(np.concatenate(boxes), window, extent)
        score, group, source = np.concatenate(scores), np.concatenate(levels), np.concatenate(sources)
        large = is_at_least(box, config.min_size)
        box, score, group, source = box[large], score[large], group[large], source[large]
        kept = batched_nms(box, score, group, iou_threshold=config.nms_threshold, limit=after)
        box, score, source = box[kept], score[kept], source[kept]
        if config.padding == "zeros" and not training:  # in training they would be taken off again
            missing = after - len(box)
            box, score = np.pad(box, ((0, missing), (0, 0))), np.pad(score, (0, missing))
            source = np.pad(source, (0, missing), constant_values=-1)
        proposals.append(Proposals(boxes=narrow(box, extent), scores=score, sources=source))
    return proposals


def objectness_scores(logits: Float[Array, "A _"]) -> Float[Array, " A"]:
    """The probability of an object from one logit (sigmoid) or two (softmax: the sigmoid of their difference)."""
    margin = _margin(logits)
    decay = np.exp(-np.abs(margin))  # never overflows
    probability: Array = np.where(margin >= 0, 1, decay) / (1 + decay)
    return probability


def _margin(logits: Array) -> Array:
    margin: Array = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
    return margin


def best_first(scores: Float[Array, " B"], limit: int) -> Array:
    """Positions of the `limit` highest scores, best first; the lower position wins a tie."""
    return np.argsort(-scores, kind="stable")[:limit]


def _joined(levels: Sequence[Array]) -> Array:
    return np.concatenate(levels, axis=1)
