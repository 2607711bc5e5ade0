"""Steps a second of ``refnet train shapes``, against the same small network from torchvision's parts.

::

    python -m refnet.kernels.cuda.benchmark_training OUT   # on a machine with a GPU, CuPy, PyTorch and torchvision

Both train on the same batches, drawn by the same loader, with the same optimizer; one after the other, in turns. A step
is everything from batch to batch. Writes ``OUT/training.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from refnet import kernels
from refnet.data.dataset import Sample
from refnet.data.loader import batches
from refnet.kernels.cuda.cupy_module import import_cupy
from refnet.train.config import RunConfig, TrainConfig
from refnet.train.loop import train
from refnet.train.metrics import read_metrics

TURNS = 3
LEAST, AIM = 0.5, 1.2


def refnet_speed(config: RunConfig) -> float:
    """Our steps a second, without the first half, in which kernels are compiled."""
    dataset = config.data.training(config.model.input.channels)
    with TemporaryDirectory() as folder:
        train(config, dataset, Path(folder) / "run", progress=False)
        seconds = [float(line["seconds"]) for line in read_metrics(Path(folder) / "run" / "metrics.jsonl")]
    half = seconds[len(seconds) // 2 :]
    return len(half) / sum(half)


def torchvision_speed(config: RunConfig, torch: Any) -> float:
    """torchvision's steps a second, without the first half, in which cuDNN chooses among its algorithms."""
    device, settings = ("cuda" if config.train.device == "cuda" else "cpu"), config.train
    model = torchvision_model(config).to(device).train()
    optimizer = torch.optim.SGD(
        model.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay, nesterov=True
    )
    learning_rate = settings.learning_rate()
    dataset = config.data.training(config.model.input.channels)
    source = batches(
        dataset, batch_size=settings.batch_size, seed=settings.seed, start_step=0, flip_probability=settings.flip
    )
    times = [time.perf_counter()]
    for step in range(settings.steps):
        _, samples = next(source)
        optimizer.param_groups[0]["lr"] = learning_rate(step)
        losses = model(*as_torch(samples, torch, device))
        optimizer.zero_grad(set_to_none=True)
        total = sum(losses.values())
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        float(total)  # the loss is read, as by anyone who trains
        times.append(time.perf_counter())
    half = settings.steps // 2
    return (settings.steps - half) / (times[-1] - times[half])


def as_torch(samples: Sequence[Sample], torch: Any, device: str) -> tuple[list[Any], list[dict[str, Any]]]:
    """A batch as torchvision's detectors take one."""
    images = [
        torch.from_numpy(np.ascontiguousarray(s.image)).to(device).permute(2, 0, 1).float() / 255 for s in samples
    ]
    targets = [
        {
            "boxes": torch.from_numpy(s.truth.boxes.astype(np.float32)).to(device),
            "labels": torch.from_numpy(s.truth.classes.astype(np.int64)).to(device),
            "masks": torch.from_numpy(np.asarray(s.truth.masks).astype(np.uint8)).to(device),
        }
        for s in samples
    ]
    return images, targets


def torchvision_model(config: RunConfig) -> Any:
    """The preset shapes, from torchvision's parts: the same layers, the same numbers of anchors, proposals and ROIs."""
    from torch import nn
    from torchvision.models.detection import MaskRCNN, anchor_utils, faster_rcnn, mask_rcnn, rpn
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.resnet import BasicBlock
    from torchvision.ops import MultiScaleRoIAlign
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    c = config.model
    width, features, size = c.backbone.width, c.fpn.channels, config.data.shapes.image_size  # type: ignore[union-attr]

    def stage(index: int) -> Any:
        inputs, outputs, stride = width * 2 ** max(index - 1, 0), width * 2**index, 1 if index == 0 else 2
        shortcut = None
        if inputs != outputs:
            shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        return nn.Sequential(BasicBlock(inputs, outputs, stride, shortcut), BasicBlock(outputs, outputs))

    stem = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    body = nn.Sequential()
    body.add_module("stem", nn.Sequential(*stem))
    for index in range(4):
        body.add_module(f"layer{index}", stage(index))
    names = {f"layer{index}": str(index) for index in range(4)}
    channels = [width * 2**index for index in range(4)]
    backbone = BackboneWithFPN(body, names, channels, features, LastLevelMaxPool())

    def pool(pooled: int) -> Any:
        return MultiScaleRoIAlign(["0", "1", "2", "3"], pooled, 2, canonical_scale=64, canonical_level=3)

    classes, heads = c.num_classes + 1, c.mask_head
    return MaskRCNN(
        backbone,
        min_size=size,
        max_size=size,
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
        rpn_anchor_generator=anchor_utils.AnchorGenerator(c.anchors.sizes, ((0.5, 1.0, 2.0),) * len(c.anchors.sizes)),
        rpn_head=rpn.RPNHead(features, 3),
        rpn_pre_nms_top_n_train=c.rpn.pre_nms_train,
        rpn_post_nms_top_n_train=c.rpn.post_nms_train,
        rpn_batch_size_per_image=c.anchor_targets.batch_size,
        box_batch_size_per_image=c.roi_targets.batch_size,
        box_roi_pool=pool(c.box_pool.size),
        box_head=faster_rcnn.TwoMLPHead(features * c.box_pool.size**2, c.box_head.channels),
        box_predictor=faster_rcnn.FastRCNNPredictor(c.box_head.channels, classes),
        mask_roi_pool=pool(c.mask_pool.size),
        mask_head=mask_rcnn.MaskRCNNHeads(features, (heads.channels,) * heads.convolutions, 1),
        mask_predictor=mask_rcnn.MaskRCNNPredictor(heads.channels, heads.channels, classes),
    )


def in_turns(contenders: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Each measured TURNS times, alternating."""
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(TURNS):
        for name, measure in contenders.items():
            speeds[name].append(measure())
    return speeds


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m refnet.kernels.cuda.benchmark_training")
    parser.add_argument("out", type=Path, help="the folder that receives training.json")
    parser.add_argument("--steps", type=int, default=200, help="of each contender and turn, the first half not timed")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args(arguments)
    import torch

    if options.device == "cuda":
        import_cupy()
    kernels.install()
    config = RunConfig(train=replace(TrainConfig(), steps=options.steps, device=options.device, checkpoint_every=10**6))
    speeds = in_turns({"refnet": lambda: refnet_speed(config), "torchvision": lambda: torchvision_speed(config, torch)})
    ratios = [ours / theirs for ours, theirs in zip(*speeds.values(), strict=True)]
    row = {
        "title": "train shapes, steps a second, against the same network in torchvision",
        "least": LEAST,
        "aim": AIM,
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "steps_per_second": speeds,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "training.json").write_text(json.dumps(row, indent=1) + "\n")
    print(f"{row['title']}: {row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f}), {speeds}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
