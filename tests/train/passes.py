"""One training step of a small network, and how far rounding may take its results.

Two ways to evaluate one expression in float32 add in different orders. How far rounding can take a result is measured:
r is the pass in float64, r_k the same from weights of which each is changed by one unit of float32's last place, up or
down at random, as any evaluation in float32 may have rounded it; with one of the two passes as a,
E = max(|a - r|, |r_1 - r|, |r_2 - r|, |r_3 - r|), the largest over the elements of a tensor. The other pass's rounding
is another draw of that kind. It may be four times as large as the worst of these four; what computes something else is
off by a thousand times as much. Where sums are rearranged into others, which multiplies roundings (Winograd's
algorithm), weights are changed by as many units.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import refnet.rcnn.model
from refnet.arrays import device_of, to_host
from refnet.data import Sample
from refnet.kernels.emulator import standin
from refnet.rcnn.model import MaskRCNN
from refnet.rcnn.presets import PRESETS
from refnet.rcnn.structures import Rois
from refnet.train import TrainConfig
from refnet.train.step import make_optimizer, start_step
from tests.rcnn.small import scene, shrink

NETWORKS = ("shapes", "torchvision_keypoints", "matterport_faithful")
SETTINGS = TrainConfig(optimizer="sgd", lr=0.02, weight_decay=1e-2, clip_norm=5.0)
JITTERS = 3
LAST_PLACE = 2.0**-23  # of float32


def network(
    name: str, *, dtype: Any = np.float32, device: str = "cpu", jitter: int | None = None, units: int = 1
) -> MaskRCNN:
    """A small network of a preset; with `jitter`, the seed, each weight is changed by so many units of its last place."""
    model = MaskRCNN(shrink(PRESETS[name](3)), rng=np.random.default_rng(0), dtype=dtype)
    if jitter is not None:
        rng = np.random.default_rng(jitter)
        for parameter in model.parameters().values():
            parameter.data *= 1 + units * LAST_PLACE * rng.choice([-1, 1], parameter.shape)
    model.to(device)
    return model


def batch(model: MaskRCNN) -> list[Sample]:
    scenes = [scene(60, 70, channels=model.config.input.channels, seed=seed) for seed in (1, 2)]
    return [Sample(image=image.astype(np.uint8), truth=truth, image_id=0, file_name="") for image, truth in scenes]


class Pass:
    """One training step from the same weights: losses, gradients, the regions, and the parameters behind it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, **variant: Any) -> None:
        model = network(name, **variant)
        optimizer = make_optimizer(model.parameters(), SETTINGS)
        held: list[Rois] = []
        choose = refnet.rcnn.model.choose_rois
        with monkeypatch.context() as patch:
            patch.setattr(refnet.rcnn.model, "choose_rois", lambda *args: held.append(choose(*args)) or held[-1])
            with standin.counting() as self.counts:
                step = start_step(model, optimizer, batch(model), SETTINGS, step=0, lr=0.02)
        self.rois = held[0]
        self.losses = {n: np.array(v) for n, v in step.values().items()} | {"rois": self.rois.boxes}
        parameters = model.parameters()
        self.gradients = {n: to_host(p.grad) for n, p in parameters.items() if p.grad is not None}
        self.parameters = {n: to_host(p.data) for n, p in parameters.items()}
        self.devices = {device_of((a,)) for a in (*model.state().values(), *optimizer.state().values())}


Values = dict[str, np.ndarray]


def within_rounding(found: Values, exact: Values, rounded: Sequence[Values]) -> None:
    """Assert the bound at the head of this file: `rounded` are a, r_1, ..., `exact` is r."""
    assert list(found) == list(exact)
    for name, value in exact.items():
        worst = max(abs(other[name] - value).max(initial=0.0) for other in rounded)
        least = LAST_PLACE * abs(value).max(initial=0.0)
        assert abs(found[name] - value).max(initial=0.0) <= 4 * max(worst, least), name


def detect(name: str, **variant: Any) -> list[Values]:
    """What a small network finds in each image of the batch."""
    model = network(name, **variant)
    found = model.detect([sample.image for sample in batch(model)])
    fields = ("classes", "boxes", "scores", "masks", "keypoints", "keypoint_scores")
    return [{f: v for f in fields if (v := getattr(entry, f)) is not None} for entry in found]


def check_detections(found: Sequence[Values], exact: Sequence[Values], rounded: Sequence[Sequence[Values]]) -> None:
    """Assert the bound of each image's detections; masks may differ in pixels that lie on the very threshold."""
    for index, entry in enumerate(found):
        assert len(entry["classes"]) > 0
        if entry.get("masks", np.zeros(0)).dtype == bool:
            differing = entry.pop("masks") != exact[index].pop("masks")
            assert differing.mean() < 1e-3
        within_rounding(entry, exact[index], [other[index] for other in rounded])
