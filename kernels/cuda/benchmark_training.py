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

from refnet import kernels
from refnet.bench import torch_models
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
    model = torch_models.shapes_model(config.model, config.data.shapes.image_size).to(device).train()  # type: ignore[union-attr]
    optimizer = torch_models.make_optimizer(model, settings, torch)
    learning_rate = settings.learning_rate()
    dataset = config.data.training(config.model.input.channels)
    source = batches(
        dataset, batch_size=settings.batch_size, seed=settings.seed, start_step=0, flip_probability=settings.flip
    )
    times = [time.perf_counter()]
    for step in range(settings.steps):
        _, samples = next(source)
        optimizer.param_groups[0]["lr"] = learning_rate(step)
        torch_models.train_step(model, optimizer, torch_models.as_torch(samples, torch, device), settings, torch)
        times.append(time.perf_counter())
    half = settings.steps // 2
    return (settings.steps - half) / (times[-1] - times[half])


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
