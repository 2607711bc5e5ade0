"""Box targets that gradients pass through, as in Matterport's network, which forgets to detach them.

A region is a proposal, which the RPN's deltas d moved away from its anchor a; the box head is to lead on from there to
the object g. In the offsets of :mod:`refnet.rcnn.boxes`

.. math:: t = \\mathrm{encode}(g, b), \\qquad b = \\mathrm{clip}(\\mathrm{decode}(d, a))

so the box loss has a gradient to d too. It makes the RPN prefer regions from which the head's present answer would be
right. Everyone else takes t for a constant (:attr:`~refnet.rcnn.config.RoiTargetConfig.detach`).
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from refnet.arrays import Array, on_device_of
from refnet.autograd import Tensor
from refnet.ops import concatenate, reshape, take
from refnet.rcnn.boxes import Extent, clip_tensor, decode_tensor, encode_tensor, widen, widened_window
from refnet.rcnn.config import RpnConfig
from refnet.rcnn.structures import ImageBatch, Rois, RpnOutput


def attach_box_targets(
    rois: Rois,
    rpn: RpnOutput,
    anchors: Float[Array, "A 4"],
    images: ImageBatch,
    config: RpnConfig,
    delta_std: tuple[float, float, float, float],
    *,
    extent: Extent = "continuous",
) -> Rois:
    """`rois` with the same targets, recomputed from the RPN's deltas for the regions that the RPN proposed.

    The targets of true boxes among the regions, and of regions given by the user, stay constants.
    """
    if rois.sources is None or rois.objects is None:
        return rois
    proposed = rois.sources[rois.foreground] >= 0
    positions = rois.foreground[proposed]
    image, source = rois.images[positions], rois.sources[positions]
    deltas = reshape(concatenate(rpn.deltas, axis=1), (-1, 4))[image * len(anchors) + source]
    references, goals, constants = (
        Tensor(on_device_of(array, deltas.data))
        for array in (
            widen(anchors[on_device_of(source, anchors)], extent), widen(rois.objects[proposed], extent), rois.deltas
        )
    )  # fmt: skip
    boxes = decode_tensor(deltas, references, config.delta_std, config.delta_clamp)
    boxes = clip_tensor(boxes, widened_window(images.borders(config.clip)[image], extent))
    targets = encode_tensor(goals, boxes, delta_std)
    order = np.arange(len(rois.boxes))
    order[positions] = len(order) + np.arange(len(positions))
    return replace(rois, deltas=take(concatenate([constants, targets]), order))
