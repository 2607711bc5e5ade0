"""Record a trace: one pass through a network, with what it was given."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from refnet.arrays import Array
from refnet.conformance.trace_file import TraceFile, entries
from refnet.rcnn.model import MaskRCNN
from refnet.rcnn.structures import GroundTruth
from refnet.rcnn.trace import Trace
from refnet.train.config_file import to_plain


def record(
    model: MaskRCNN,
    images: Sequence[Shaped[Array, "_ _ _"]],
    truth: Sequence[GroundTruth] | None = None,
    *,
    seed: int = 0,
) -> TraceFile:
    """Every intermediate of the detection in `images`, or, given their objects, of a training step up to the losses.

    The tensors are those of :meth:`MaskRCNN.detect` or :meth:`MaskRCNN.losses`, behind ``images.0`` and so on and
    ``annotations.0.boxes`` and so on, as they were given. A training step moves running statistics.

    Args:
        seed: of the sampling of anchors and regions.
    """
    trace = Trace()
    trace("images", list(images))
    if truth is None:
        model.detect(images, trace=trace)
    else:
        trace("annotations", list(truth))
        model.losses(images, truth, rng=np.random.default_rng(seed), trace=trace)
    metadata = {"training": truth is not None, "seed": seed, "config": to_plain(model.config)}
    return TraceFile(tensors=entries(trace), metadata=metadata)
