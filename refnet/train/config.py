"""What makes a run: the network, the data, and how one is trained on the other.

The command line's flags and the keys of a configuration file are generated from these records; see
:mod:`refnet.train.config_file`. All of it is stored with the run, and with every checkpoint.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from refnet.data import KEYPOINT_OFFSET, CocoDataset, Dataset, Shapes, ShapesConfig
from refnet.errors import ConfigError
from refnet.nn import Schedule, schedules
from refnet.rcnn.config import ModelConfig, check, check_choices
from refnet.rcnn.layers import LAYERS
from refnet.rcnn.presets import shapes


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapesData:
    """Toy shapes, drawn as they are asked for."""

    train_count: int = 12_000
    """Images to train on."""
    val_count: int = 200
    """Other images, to evaluate on."""
    data_seed: int = 0
    """Which images: equal seeds draw equal ones."""
    shapes: ShapesConfig = field(default_factory=ShapesConfig)
    """What the images look like."""

    def __post_init__(self) -> None:
        check(self.train_count >= 1, f"train_count must be at least 1, got {self.train_count}")
        check(self.val_count >= 0, f"val_count must not be negative, got {self.val_count}")

    def training(self, channels: int) -> Dataset:
        """The images to train on.

        Raises:
            ConfigError: they haven't as many channels as the network takes.
        """
        self._check_channels(channels)
        return Shapes(self.shapes, count=self.train_count, seed=self.data_seed, split="train")

    def validation(self, channels: int) -> Dataset | None:
        """The images to evaluate on; None if there are none.

        Raises:
            ConfigError: they haven't as many channels as the network takes.
        """
        self._check_channels(channels)
        if not self.val_count:
            return None
        return Shapes(self.shapes, count=self.val_count, seed=self.data_seed, split="val")

    def _check_channels(self, channels: int) -> None:
        check(
            self.shapes.channels == channels,
            f"input.channels and shapes.channels must be equal, got {channels} and {self.shapes.channels}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoData:
    """Images in folders, with their objects in files of COCO's format."""

    images: Path
    """The folder of the images to train on."""
    annotations: Path
    """Their objects, JSON in COCO's format."""
    val_images: Path | None = None
    """The folder of the images to evaluate on."""
    val_annotations: Path | None = None
    """Their objects."""
    keypoint_offset: float = KEYPOINT_OFFSET
    """What is added to the coordinates of keypoints on reading, and subtracted from those of detections. 0.5: a whole
    number in a file is a pixel, whose middle it means (D). 0: as they are (T)."""
    min_keypoints: int = 0
    """Images to train on whose objects have fewer labelled keypoints in all are left out: 10 (T), 1 (D)."""

    def __post_init__(self) -> None:
        check(self.min_keypoints >= 0, f"min_keypoints must not be negative, got {self.min_keypoints}")
        check(
            (self.val_images is None) == (self.val_annotations is None),
            f"val_images and val_annotations belong together, got {self.val_images} and {self.val_annotations}",
        )

    def training(self, channels: int) -> CocoDataset:
        """The images to train on, converted to `channels` if these are 1 (gray) or 3 (RGB)."""
        return self._read(self.images, self.annotations, channels, min_keypoints=self.min_keypoints)

    def validation(self, channels: int) -> CocoDataset | None:
        """The images to evaluate on, converted likewise; None if none were named."""
        if self.val_images is None or self.val_annotations is None:
            return None
        return self._read(self.val_images, self.val_annotations, channels, min_keypoints=0)

    def _read(self, images: Path, annotations: Path, channels: int, *, min_keypoints: int) -> CocoDataset:
        return CocoDataset(
            images,
            annotations,
            channels=channels if channels in (1, 3) else None,
            keypoint_offset=self.keypoint_offset,
            min_keypoints=min_keypoints,
        )


Data: TypeAlias = ShapesData | CocoData


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How the network is trained (approximate joint training, Ren et al. 2015, section 3.2)."""

    steps: int = 1500
    """Batches to train on in all."""
    batch_size: int = 8
    """Images of a batch."""
    seed: int = 0
    """Of the initial weights, the order of the images, flips and sampling. Equal seeds give equal runs, bit for bit, on
    one machine and with one number of threads: another number sums products in another order."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Stochastic gradient descent with momentum, or Adam with decoupled weight decay."""
    lr: float = 0.02
    """The learning rate that `warmup_steps` lead to and `schedule` starts from."""
    momentum: float = 0.9
    """For sgd: how much of the last step's velocity stays."""
    nesterov: bool = True
    """For sgd: look ahead by the momentum."""
    betas: tuple[float, float] = (0.9, 0.999)
    """For adamw: how much of the first and second moments stays."""
    weight_decay: float = 1e-4
    """How strongly weights are drawn to 0."""
    decay_vectors: bool = False
    """Whether weight_decay holds for parameters with one axis too: biases, scales and shifts. False (Goyal et al. 2017,
    section 5.3, for the norms), True (T, D; M with no_decay)."""
    no_decay: str | None = None
    """A regular expression that matches the whole names of further parameters that don't decay. M, which exempts the
    norms but not the biases: .*norms?\\..*"""
    decay_norm: Literal["half_sum", "mean"] = "half_sum"
    """For sgd: what weight_decay is a factor of, half the sum of squares of each parameter (T, D) or their mean (M)."""
    decay_clipped: bool = False
    """For sgd: whether the decay is part of the gradients that are clipped (M), or is added behind that (T, D)."""
    warmup_steps: int = 50
    """Steps in which the learning rate rises in a straight line."""
    warmup_start: float = 1e-3
    """The share of the learning rate at the first step of the warm-up."""
    schedule: Literal["cosine", "multi_step", "constant"] = "cosine"
    """cosine: to 0 at the last step. multi_step: times gamma at each of the milestones. constant: stays."""
    milestones: tuple[int, ...] = ()
    """For multi_step: the steps behind which the learning rate is lower."""
    gamma: float = 0.1
    """For multi_step: by what the learning rate is multiplied."""
    clip_norm: float | None = 5.0
    """Gradients longer than this are shortened to it; None: never."""
    clip: Literal["global", "each"] = "global"
    """Whether clip_norm bounds the length of all gradients together, or of each parameter's."""
    layers: str = "all"
    """Which parameters are trained: all; heads, everything behind the backbone; 5+, 4+, 3+, the heads and the backbone
    from C5, C4, C3 on; or a regular expression that matches whole names of parameters, such as rpn\\..*"""
    weights: Path | None = None
    """What the run starts from: a run, for its newest checkpoint, a checkpoint, or a file of weights of another program,
    of a detector or of a classifier; None: random weights. A detector's file also gives the network's defaults, unless a
    preset or a configuration is named."""
    exclude: tuple[str, ...] = ()
    """Regular expressions that match the whole names of weights not to take, such as box_head\\.(classes|deltas)\\..* for
    a new number of classes."""
    flip: float = 0.5
    """The probability that an image is mirrored left to right."""
    checkpoint_every: int = 100
    """Steps between checkpoints; there is always one at the end."""
    eval_batch_size: int = 8
    """Images that are evaluated at a time."""
    oks_sigmas: tuple[float, ...] = ()
    """How far each keypoint may be off in the evaluation, in units of the root of the object's area; none: COCO's own
    for 17 points, and 0.05 for each of any other number."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the network lives: cuda is a GPU of NVIDIA's, and needs CuPy."""
    precision: Literal["float32", "exact-order", "tf32", "bf16"] = "float32"
    """How convolutions compute; arrays are float32. On a CPU float32 may rearrange sums where that is quicker and its error
    is bounded (Winograd), and exact-order keeps plain sums of products, as a GPU always does. A GPU's tensor cores take
    factors that are rounded, to 10 bits behind the leading one (tf32) or to 7 (bf16), and are several times as fast."""
    kernels: Literal["tuned", "specification"] = "tuned"
    """tuned: the fast kernels of refnet.kernels. specification: the normative text itself."""

    def __post_init__(self) -> None:
        check_choices("", self)
        for name in ("steps", "batch_size", "checkpoint_every", "eval_batch_size"):
            check(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        check(all(sigma > 0 for sigma in self.oks_sigmas), f"oks_sigmas must be positive, got {self.oks_sigmas}")
        for name in ("lr", "weight_decay", "warmup_steps"):
            check(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("flip", "warmup_start"):
            check(0 <= getattr(self, name) <= 1, f"{name} must lie in [0, 1], got {getattr(self, name)}")
        check(0 <= self.seed < 2**64, f"seed must lie in [0, 2^64), got {self.seed}")
        check(self.clip_norm is None or self.clip_norm > 0, f"clip_norm must be positive, got {self.clip_norm}")
        check(
            bool(self.milestones) == (self.schedule == "multi_step"),
            f"milestones belong to schedule multi_step, and it to them; got {self.milestones} for {self.schedule}",
        )
        self.learning_rate()
        check(
            self.device == "cuda" or self.precision in ("float32", "exact-order"),
            f"a CPU has no tensor cores: precision must be float32 or exact-order, got {self.precision} on {self.device}",
        )
        check(
            self.device == "cpu" or self.kernels == "tuned",
            f"kernels must be tuned on a GPU, where the specification doesn't run, got {self.kernels}",
        )
        check(
            self.optimizer == "sgd" or (self.decay_norm == "half_sum" and not self.decay_clipped),
            "decay_norm and decay_clipped belong to optimizer sgd, the decay of adamw is no gradient",
        )
        patterns = [("layers", self.layers), ("no_decay", self.no_decay or ""), *(("exclude", p) for p in self.exclude)]
        for name, pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"{name} must be a regular expression, got {pattern!r}: {error}") from error

    def learning_rate(self) -> Callable[[int], float]:
        """The learning rate of a step, counted from 0."""
        after: Schedule
        if self.schedule == "cosine":
            after = schedules.cosine(self.steps)
        elif self.schedule == "multi_step":
            after = schedules.multi_step(self.milestones, self.gamma)
        else:
            after = schedules.constant()
        factor = schedules.product(schedules.warmup(self.warmup_steps, start=self.warmup_start), after)
        return lambda step: self.lr * factor(step)

    def trained(self) -> str:
        """The regular expression that matches the whole names of trained parameters."""
        return LAYERS.get(self.layers, self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """A whole run."""

    model: ModelConfig = field(default_factory=shapes)
    """Every choice of the network."""
    data: Data = field(default_factory=ShapesData)
    """What it is trained and evaluated on."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How it is trained."""

    @property
    def keypoint_offset(self) -> float:
        """What keypoints in files lack to continuous pixels."""
        return self.data.keypoint_offset if isinstance(self.data, CocoData) else KEYPOINT_OFFSET
