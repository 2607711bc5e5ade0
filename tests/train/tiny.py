"""A network and images so small that a step takes some hundredths of a second.

``python -m tests.train.tiny OUT resume|start STOP`` trains it for 20 steps in a process of its own, where the run-time
type checks of the tests don't slow it down tenfold. At step STOP, if that isn't 0, the process gets a SIGINT.
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from refnet.data import ShapesConfig
from refnet.rcnn.config import ModelConfig
from refnet.rcnn.losses import Losses
from refnet.rcnn.model import MaskRCNN
from refnet.rcnn.presets import shapes
from refnet.train import RunConfig, ShapesData, TrainConfig, build_model, train

FLAGS = (
    *("--backbone.width", "8", "--fpn.channels", "16", "--rpn.channels", "16", "--box-head.channels", "32"),
    *("--mask-head.channels", "16", "--mask-head.convolutions", "1", "--shapes.image-size", "64"),
    *("--shapes.min-half-size", "8", "--shapes.max-half-size", "16"),
    *("--train-count", "20", "--val-count", "3", "--batch-size", "2"),
)
"""The same on the command line."""


def tiny_model() -> ModelConfig:
    """The preset for shapes with an eighth of its channels."""
    model = shapes()
    return replace(
        model,
        backbone=replace(model.backbone, width=8),
        fpn=replace(model.fpn, channels=16),
        rpn=replace(model.rpn, channels=16),
        box_head=replace(model.box_head, channels=32),
        mask_head=replace(model.mask_head, channels=16, convolutions=1),
    )


def tiny_run(**train: Any) -> RunConfig:
    """A run of 20 steps on 64x64 images, two at a time; `train` are other fields of its TrainConfig."""
    data = ShapesData(
        train_count=20, val_count=3, shapes=ShapesConfig(image_size=64, min_half_size=8, max_half_size=16)
    )
    settings = TrainConfig(
        steps=20, batch_size=2, checkpoint_every=10, optimizer="sgd", lr=0.02, warmup_steps=5, schedule="cosine"
    )
    return RunConfig(model=tiny_model(), data=data, train=replace(settings, **train))


class StoppingModel(MaskRCNN):
    """The same network; the process gets a signal in the middle of a step."""

    def __init__(self, model: MaskRCNN, *, after: int, number: int = signal.SIGINT) -> None:
        vars(self).update(vars(model))
        self._after, self._number, self._steps = after, number, 0

    def losses(self, *args: Any, **kwargs: Any) -> Losses:
        self._steps += 1
        if self._steps == self._after:
            os.kill(os.getpid(), self._number)
        return super().losses(*args, **kwargs)


if __name__ == "__main__":
    out, mode, stop = sys.argv[1:]
    config = tiny_run()
    model = StoppingModel(build_model(config), after=int(stop))
    result = train(config, config.data.training(3), Path(out), resume=mode == "resume", progress=False, model=model)
    print(result.steps, result.interrupted, result.checkpoint.name)
