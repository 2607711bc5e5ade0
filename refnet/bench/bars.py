"""What is asked of refnet's kernels on a CPU: ratios of time or memory, refnet's over the peer's."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bar:
    """A limit on a ratio, refnet's figure over the peer's, or on an exponent.

    Attributes:
        at_most: the largest that is accepted.
        aim: what is wished for.
    """

    at_most: float
    aim: float


CONVOLUTIONS_FORWARD = Bar(0.80, 0.70)
CONVOLUTIONS_FORWARD_CHANNELS_LAST = Bar(1.15, 1.0)
CONVOLUTIONS_BOTH = Bar(0.90, 0.75)
INFERENCE = Bar(0.75, 0.5)
TRAINING = Bar(1.0, 0.6)
TRAINING_SHAPES = Bar(0.9, 0.5)
NMS = Bar(1.2, 0.5)
ROI_ALIGN_FORWARD = Bar(0.25, 0.15)
ROI_ALIGN_BOTH = Bar(0.15, 0.06)
MEMORY = Bar(1.0, 0.7)
EVALUATION = Bar(1.1, 1.0)
EXPONENT = Bar(1.05, 1.0)
EXPONENT_NMS = Bar(1.5, 1.0)
