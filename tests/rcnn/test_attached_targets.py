"""Box targets with gradients: the values of the constants, and the derivative of the boxes they come from."""

import numpy as np
import pytest

from refnet.autograd import Tensor
from refnet.ops import sum as add_up
from refnet.rcnn.attached_targets import attach_box_targets
from refnet.rcnn.config import RoiTargetConfig, RpnConfig
from refnet.rcnn.proposals import propose
from refnet.rcnn.structures import RpnOutput
from refnet.rcnn.targets import sample_rois
from tests.rcnn.small import blank_images, truth, vary

IMAGES = blank_images(64, 64, windows=[[0, 0, 64, 60], [4, 0, 64, 64]])
TRUTH = [truth([[6, 6, 30, 32], [40, 30, 61, 59]], [1, 2]), truth([[10, 30, 34, 56]], [3])]
ANCHORS = [
    np.array([[4.0, 4, 28, 28], [40, 28, 64, 62], [0, 40, 8, 48]]),  # the second is cut off at two sides
    np.array([[10.0, 32, 34, 58], [8, 8, 32, 30]]),
]
CONFIG = RpnConfig(delta_std=(0.1, 0.1, 0.2, 0.2), delta_clamp=None, scope="global")
STD = (0.1, 0.1, 0.2, 0.2)


def rpn() -> RpnOutput:
    rng = np.random.default_rng(3)
    levels = [rng.uniform(-0.3, 0.3, (2, len(a), 4)) for a in ANCHORS]
    return RpnOutput(
        objectness_logits=tuple(Tensor(rng.uniform(-2, 2, (2, len(a), 1))) for a in ANCHORS),
        deltas=tuple(Tensor(level, requires_grad=True) for level in levels),
    )


def sampled(output, config, extent):
    proposals = propose(output, ANCHORS, IMAGES, config, training=True, extent=extent)
    rng = np.random.default_rng(0)
    targets = RoiTargetConfig(append_ground_truth=True, positive_iou=0.25, batch_size=16, positive_fraction=1.0)
    return sample_rois(proposals, TRUTH, IMAGES, targets, STD, None, rng, extent=extent)


@pytest.mark.convention("roi_targets.detach")
@pytest.mark.parametrize("clip", ["image", "padded"])
@pytest.mark.parametrize("scope", ["global", "per_level"])
@pytest.mark.parametrize("extent", ["continuous", "normalized", "inclusive"])
def test_derivatives(extent, scope, clip):
    """Against central differences of the constants: a small step changes no proposal's rank and no assignment."""
    output, config = rpn(), vary(CONFIG, {"scope": scope, "clip": clip})
    rois = sampled(output, config, extent)
    joined = np.concatenate(ANCHORS)
    attached = attach_box_targets(rois, output, joined, IMAGES, config, STD, extent=extent)
    np.testing.assert_allclose(attached.deltas.data, rois.deltas, rtol=0, atol=1e-13)

    weights = np.random.default_rng(1).standard_normal(rois.deltas.shape)
    add_up(attached.deltas * weights).backward()
    grads = [level.grad for level in output.deltas]
    assert all(np.abs(grad).max() > 0.1 for grad in grads)
    step = 1e-6
    for level, grad in zip(output.deltas, grads, strict=True):
        for index in np.ndindex(level.shape):
            values = []
            for sign in (1, -1):
                level.data[index] += sign * step
                values.append((sampled(output, config, extent).deltas * weights).sum())
                level.data[index] -= sign * step
            np.testing.assert_allclose(grad[index], (values[0] - values[1]) / (2 * step), rtol=1e-6, atol=1e-6)


def test_only_what_the_rpn_proposed_leads_back_to_it():
    """True boxes among the regions have targets of 0 throughout, which depend on nothing."""
    output = rpn()
    rois = sampled(output, CONFIG, "continuous")
    true_boxes = rois.foreground[rois.sources[rois.foreground] < 0]
    assert len(true_boxes) == 3
    attached = attach_box_targets(rois, output, np.concatenate(ANCHORS), IMAGES, CONFIG, STD)
    add_up(attached.deltas[true_boxes]).backward()
    assert not any(level.grad.any() for level in output.deltas)
