"""The training loop: one step after the other, each of which can be repeated bit for bit.

A step is a function of the weights, the optimiser's state and its own number: the images, flips and samples that it
draws depend on (seed, step) alone, and so does the learning rate. A checkpoint therefore holds all there is to hold.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refnet.data import Dataset, batches, keypoint_scheme, stream
from refnet.errors import CheckpointError, ConfigError
from refnet.nn import Optimizer, set_trainable
from refnet.rcnn.model import MaskRCNN
from refnet.train.checkpoint import Checkpoint, load_newest, save_checkpoint
from refnet.train.config import RunConfig
from refnet.train.config_file import differences, to_document, write_config
from refnet.train.interrupt import stop_on_signals
from refnet.train.memory import peak_memory_mib
from refnet.train.metrics import MetricsLog
from refnet.train.progress import progress_bar
from refnet.train.run_dir import CHECKPOINTS, METRICS, holds_run
from refnet.train.source import read_weights
from refnet.train.step import Step, make_optimizer, start_step
from refnet.weights import LoadReport, load

ADJUSTABLE = (
    "steps",
    "checkpoint_every",
    "device",
    "eval_batch_size",
    "val_count",
    "val_images",
    "val_annotations",
    "detections",
    "precision",
    "oks_sigmas",
    "backbone.checkpoint",
)
"""What a resumed run may change, since no step before the checkpoint would have been another one; a cosine's steps
would, and are up to the user. Another device, or precision,
rounds in another way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """How training ended.

    Attributes:
        steps: how many steps are finished.
        interrupted: whether a signal ended it before the last step.
        checkpoint: the newest checkpoint.
    """

    steps: int
    interrupted: bool
    checkpoint: Path


def build_model(config: RunConfig, *, tell: Callable[[LoadReport], None] | None = None) -> MaskRCNN:
    """The network with the weights that a run starts from: random ones, and over them those of ``train.weights``.

    Args:
        tell: called with what became of each of those weights.

    Raises:
        WeightsError: a weight has another shape or isn't there, and ``train.exclude`` doesn't name it.
        CheckpointError: ``train.weights`` is a run without a checkpoint, or a damaged checkpoint.
    """
    model = MaskRCNN(config.model, rng=stream(config.train.seed, "weights"))
    if config.train.weights is not None:
        path = config.train.weights
        report = load(model, read_weights(path), exclude=config.train.exclude, name=str(path))
        if tell is not None:
            tell(report)
    return model


def train(
    config: RunConfig,
    dataset: Dataset,
    run_dir: Path,
    *,
    resume: bool = False,
    progress: bool = True,
    model: MaskRCNN | None = None,
) -> TrainingResult:
    """Train until ``config.train.steps`` steps are finished, or a signal asks to stop.

    A first Ctrl-C (or SIGTERM) lets the present step finish and saves; a second one interrupts at once.

    Args:
        dataset: the images to train on.
        run_dir: receives ``config.toml``, ``config.json``, ``metrics.jsonl`` with a line for each step, and
            ``checkpoints/`` with the newest two.
        resume: continue from the newest checkpoint in `run_dir` as if the run had never stopped.
        progress: draw a progress bar on standard error.
        model: the network; by default the one that :func:`build_model` makes of `config`.

    Raises:
        CheckpointError: with `resume`, there is no checkpoint, it is damaged, or it is of another configuration.
        ConfigError: without `resume`, `run_dir` already holds a run.
        NonFiniteError: a loss or gradient is infinite or NaN. The message names the first; checkpoints remain.
        DeviceError: ``config.train.device`` is "cuda", and nobody has imported CuPy.
    """
    settings = config.train
    checkpoint = _resumable(config, dataset, run_dir) if resume else None
    if not resume and holds_run(run_dir):
        raise ConfigError(f"train: expected a folder without a run, got {run_dir}, which has one; resume it")
    model = build_model(config) if model is None else model
    model.to(settings.device)
    set_trainable(model, settings.trained())
    optimizer = make_optimizer(model.parameters(), settings)
    start = 0
    if checkpoint is not None:
        model.load_state(checkpoint.model)
        optimizer.load_state(checkpoint.optimizer)
        start = checkpoint.step
    run_dir.mkdir(parents=True, exist_ok=True)
    write_config(config, run_dir)
    return _run_steps(model, optimizer, config, dataset, run_dir, start=start, progress=progress)


def _resumable(config: RunConfig, dataset: Dataset, run_dir: Path) -> Checkpoint:
    """The newest checkpoint in `run_dir`, if a run of `config` can continue from it."""
    path, checkpoint = load_newest(run_dir / CHECKPOINTS)
    found = differences(
        {**checkpoint.config, "class_names": checkpoint.class_names},
        {**to_document(config), "class_names": tuple(dataset.class_names)},
    )
    changed = {key: values for key, values in found.items() if not {key, key.partition(".")[0]} & set(ADJUSTABLE)}
    if changed:
        lines = "".join(f"\n  {key}: expected {old!r}, got {new!r}" for key, (old, new) in changed.items())
        raise CheckpointError(f"checkpoint {path}: it is of a run with another configuration:{lines}")
    return checkpoint


def _run_steps(
    model: MaskRCNN,
    optimizer: Optimizer,
    config: RunConfig,
    dataset: Dataset,
    run_dir: Path,
    *,
    start: int,
    progress: bool,
) -> TrainingResult:
    settings = config.train
    learning_rate = settings.learning_rate()
    asked: deque[tuple[Step, dict[str, Any]]] = deque()

    def write_oldest() -> None:
        done, timing = asked.popleft()
        values = done.values()
        log.write({"step": done.number} | values | timing)
        bar.set_postfix_str(_summary(values, timing["images_per_second"]), refresh=False)
        bar.update()

    def save(step: int) -> Path:
        log.sync()
        return save_checkpoint(run_dir / CHECKPOINTS, _checkpoint(model, optimizer, config, dataset, step))

    step = start
    path = None
    stream_of_batches = batches(
        dataset, batch_size=settings.batch_size, seed=settings.seed, start_step=start, flip_probability=settings.flip
    )
    with (
        MetricsLog(run_dir / METRICS, after=start) as log,
        stop_on_signals() as stop,
        progress_bar(total=settings.steps, initial=start, unit="step", shown=progress) as bar,
    ):
        while step < settings.steps and not stop:
            before = time.perf_counter()
            index, samples = next(stream_of_batches)
            assert index == step
            begun = start_step(model, optimizer, samples, settings, step=step, lr=learning_rate(step))
            step += 1
            seconds = time.perf_counter() - before
            speed = len(samples) / seconds
            timing = {"images_per_second": speed, "seconds": seconds, "peak_memory_mib": peak_memory_mib()}
            asked.append((begun, timing))
            pausing = bool(stop) or step % settings.checkpoint_every == 0 or step == settings.steps
            while asked and (pausing or begun.known or len(asked) > 1):  # a device has long finished the one before
                write_oldest()
            if pausing:
                path = save(step)
        if path is None:  # stopped before the first step, or nothing was left to do
            path = save(step)
    return TrainingResult(steps=step, interrupted=step < settings.steps, checkpoint=path)


def _checkpoint(model: MaskRCNN, optimizer: Optimizer, config: RunConfig, dataset: Dataset, step: int) -> Checkpoint:
    return Checkpoint(
        step=step,
        model=model.state(),
        optimizer=optimizer.state(),
        config=to_document(config),
        class_names=tuple(dataset.class_names),
        category_ids=tuple(dataset.category_ids),
        keypoints=keypoint_scheme(dataset),
        random={"generator": "Philox", "seed": config.train.seed, "next_step": step},
    )


def _summary(values: Mapping[str, Any], images_per_second: float) -> str:
    losses = " ".join(
        f"{name.removesuffix('_loss')} {value:.3f}" for name, value in values.items() if name.endswith("loss")
    )
    return f"{losses}, {images_per_second:.1f} images/s"
