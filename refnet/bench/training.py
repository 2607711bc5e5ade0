"""Steps of training: losses, gradients, clipping and update, on the same images with the same weights.

The check samples the same anchors and regions in both programs, the first ones instead of random ones, and compares
losses and gradients. What is timed draws its samples as each program does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from refnet.arrays import Array
from refnet.bench import models, rule, torch_models
from refnet.bench.contest import Contest, Part, WrongResult
from refnet.bench.contestants import CPU, CUDA, TORCHVISION, Field, on_device
from refnet.data import Sample, batches
from refnet.rcnn.config import ModelConfig
from refnet.rcnn.model import MaskRCNN
from refnet.rcnn.presets import torchvision
from refnet.rcnn.structures import GroundTruth
from refnet.train.config import RunConfig, TrainConfig
from refnet.train.step import make_optimizer, start_step
from refnet.weights.layouts import Layout
from refnet.weights.names import CONVENTIONS, structure_of
from refnet.weights.save import to_tensors

STILL = TrainConfig(lr=1e-9, warmup_steps=0, schedule="constant")
"""So slow that every step is the same work: the weights stay where they are."""
OBJECTS = 8
LOSS_ROUNDING = 1e-4
"""How far a loss may lie from the peer's, relative to it."""
GRADIENT_ROUNDING = 1e-3
"""How far a parameter's gradient may lie from the peer's, as a share of its length. ReLUs whose argument is nearly 0
pass a gradient in one program and none in the other, which is more than rounding."""


class FirstOnes(np.random.Generator):
    """Chooses the first candidates, so that another program can choose the same ones."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def choice(self, a: Any, size: Any = None, replace: bool = True, *_: Any, **__: Any) -> Any:
        """The first `size` entries of `a`."""
        assert not replace
        return a[:size]


@contextmanager
def first_ones(torch: Any) -> Iterator[None]:
    """Within the block, PyTorch's permutations are the identity, so torchvision's samplers choose the first ones."""
    before = torch.randperm
    torch.randperm = lambda n, **options: torch.arange(n, **options)
    try:
        yield
    finally:
        torch.randperm = before


def rule_sample(index: int, height: int, width: int, classes: int) -> Sample:
    """An image with :data:`OBJECTS` elliptic objects."""
    rng = rule.generator(f"sample/{index}")
    corner = rng.uniform(0, 0.6, (OBJECTS, 2)) * (width, height)
    extent = rng.uniform(0.15, 0.4, (OBJECTS, 2)) * (width, height)
    boxes = np.round(np.concatenate([corner, corner + extent], axis=1) * 4) / 4
    y, x = np.mgrid[0:height, 0:width] + 0.5
    (cx, cy), (rx, ry) = ((boxes[:, :2] + boxes[:, 2:]).T / 2)[..., None, None], (extent.T / 2)[..., None, None]
    truth = GroundTruth(
        boxes=boxes,
        classes=rng.integers(1, classes + 1, OBJECTS),
        masks=((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1,
        crowd=np.zeros(OBJECTS, bool),
    )
    pixels = rule.image(f"sample/{index}", height, width).round().astype(np.uint8)
    return Sample(image=pixels, truth=truth, image_id=index, file_name=f"{index}.png")


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """What a pass forward and back leaves behind.

    Attributes:
        losses: by name, unweighted.
        arrays: the gradients by torchvision's names, in its layout.
    """

    losses: Mapping[str, float]
    arrays: Mapping[str, Array]


def step(height: int, width: int, batch: int, *, quick: bool) -> Part:
    """A step of training on so many images of this size."""
    config = (models.small_network if quick else models.network)(height, width)
    prepare = partial(prepare_step, config=config, height=height, width=width, batch=batch)
    return Part(name=f"training step {height}x{width}, batch {batch}", prepare=prepare)


def prepare_step(field: Field, *, config: ModelConfig, height: int, width: int, batch: int) -> Contest:
    """A step of torchvision's Mask R-CNN with frozen batch norms, all convolutions trained."""
    state = models.rule_state(config)
    samples = [rule_sample(index, height, width, config.num_classes) for index in range(batch)]
    return _contest(field, config, config, state, lambda: itertools.repeat(samples), STILL, torch_models.maskrcnn)


def prepare_shapes(field: Field, *, run: RunConfig, head_start: int) -> Contest:
    """A step of ``refnet train``, the loading of its images included, against the same network of torchvision's parts.

    Args:
        head_start: steps of training before anything is measured: at the very start a network proposes nothing that
            overlaps objects, and the mask head has little to do.
    """
    dataset, settings, config = run.data.training(run.model.input.channels), run.train, run.model

    def loader(start: int = 0) -> Iterator[list[Sample]]:
        source = batches(
            dataset,
            batch_size=settings.batch_size,
            seed=settings.seed,
            start_step=start,
            flip_probability=settings.flip,
        )
        return (list(samples) for _, samples in source)

    model = MaskRCNN(config, rng=np.random.default_rng(settings.seed))
    optimizer, rate = make_optimizer(model.parameters(), settings), settings.learning_rate()
    for step, samples in enumerate(itertools.islice(loader(), head_start)):
        start_step(model, optimizer, samples, settings, step=step, lr=rate(step))
    size = run.data.shapes.image_size  # type: ignore[union-attr]
    return _contest(
        field,
        config,
        _with_torchvisions_conventions(config),
        to_tensors(model),
        lambda: loader(head_start),
        replace(settings, lr=STILL.lr),
        partial(torch_models.shapes_model, image_size=size),
    )


def _with_torchvisions_conventions(config: ModelConfig) -> ModelConfig:
    """The preset shapes computing what torchvision's parts compute, for the check: the work is the same."""
    theirs = torchvision(config.num_classes)
    return replace(
        config,
        anchors=replace(config.anchors, center_offset=theirs.anchors.center_offset, rounding=theirs.anchors.rounding),
        anchor_targets=replace(config.anchor_targets, forced_match=theirs.anchor_targets.forced_match),
        roi_targets=replace(config.roi_targets, mask_values=theirs.roi_targets.mask_values),
        rpn=replace(config.rpn, min_size=theirs.rpn.min_size),
        box_pool=replace(config.box_pool, aligned=False),
        mask_pool=replace(config.mask_pool, aligned=False),
    )


def _contest(
    field: Field,
    config: ModelConfig,
    checked: ModelConfig,
    state: Mapping[str, Array],
    loader: Callable[[], Iterator[list[Sample]]],
    settings: TrainConfig,
    torch_model: Callable[[ModelConfig], Any],
) -> Contest:
    """Steps from the same weights on the same batches.

    The check is a pass of its own, by the configuration `checked`; what is timed returns nothing to compare.
    """
    found = {CPU: _our_gradients(checked, state, next(loader()))}
    runs = {CPU: _our_steps(config, state, loader(), settings, "cpu")}
    if field.torchvision is not None:
        found[TORCHVISION] = _their_gradients(torch_model(config), state, next(loader()), field.torch)
        runs[TORCHVISION] = _their_steps(torch_model(config), state, loader(), settings, field.torch)
    if field.cupy is not None:
        runs[CUDA] = on_device(field.cupy, _our_steps(config, state, loader(), settings, "cuda"))
    return Contest(runs=runs, check=lambda _: check_gradients(found))


def _our_gradients(config: ModelConfig, state: Mapping[str, Array], samples: list[Sample]) -> Gradients:
    model = models.refnet_model(config, state)
    losses = model.losses([s.image for s in samples], [s.truth for s in samples], rng=FirstOnes())
    losses.total.backward()
    there = CONVENTIONS["torchvision"]
    layout, structure = Layout(convention=there, config=config), structure_of(config)
    named = {name: parameter.grad for name, parameter in model.parameters().items() if parameter.grad is not None}
    arrays = {there.entries(name, structure)[0]: layout.to_file(name, grad) for name, grad in named.items()}
    values = losses.as_dict()
    values.pop("loss")
    return Gradients(losses=values, arrays=arrays)


THEIR_LOSSES = {
    "loss_objectness": "rpn_class_loss",
    "loss_rpn_box_reg": "rpn_box_loss",
    "loss_classifier": "class_loss",
    "loss_box_reg": "box_loss",
    "loss_mask": "mask_loss",
}


def _their_gradients(model: Any, state: Mapping[str, Array], samples: list[Sample], torch: Any) -> Gradients:
    torch_models.load_state(model, state, torch)
    with first_ones(torch):
        losses = model.train()(*torch_models.as_torch(samples, torch))
    sum(losses.values()).backward()
    arrays = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return Gradients(losses={THEIR_LOSSES[name]: loss.item() for name, loss in losses.items()}, arrays=arrays)


def _our_steps(
    config: ModelConfig, state: Mapping[str, Array], loader: Iterator[list[Sample]], settings: TrainConfig, device: str
) -> Callable[[], None]:
    model = models.refnet_model(config, state)
    model.to(device)
    optimizer = make_optimizer(model.parameters(), settings)
    steps = itertools.count()

    def step() -> None:
        start_step(model, optimizer, next(loader), settings, step=next(steps), lr=settings.lr).values()

    return step


def _their_steps(
    model: Any, state: Mapping[str, Array], loader: Iterator[list[Sample]], settings: TrainConfig, torch: Any
) -> Callable[[], None]:
    torch_models.load_state(model, state, torch)
    model.train()
    optimizer = torch_models.make_optimizer(model, settings, torch)

    def step() -> None:
        batch = torch_models.as_torch(next(loader), torch)
        torch_models.train_step(model, optimizer, batch, settings, torch)

    return step


def steps_of(
    who: str, config: ModelConfig, state: Mapping[str, Array], samples: list[Sample], torch: Any
) -> Callable[[], None]:
    """Steps of kernels/cpu or of torchvision on the same samples."""
    loader = itertools.repeat(samples)
    if who == TORCHVISION:
        return _their_steps(torch_models.maskrcnn(config), state, loader, STILL, torch)
    return _our_steps(config, state, loader, STILL, "cpu")


def check_gradients(found: Mapping[str, Gradients]) -> str:
    """That all losses and gradients are equal but for rounding.

    Raises:
        WrongResult: they aren't.
    """
    (name, ours), *others = found.items()
    if not all(np.isfinite(loss) for loss in ours.losses.values()):
        raise WrongResult(f"{name}: losses must be finite, got {dict(ours.losses)}")
    if not others:
        return "losses are finite, nothing to compare with"
    worst_loss = worst_gradient = 0.0
    for other, theirs in others:
        if ours.losses.keys() != theirs.losses.keys() or ours.arrays.keys() != theirs.arrays.keys():
            raise WrongResult(f"{name} and {other} have other losses or train other parameters")
        for loss, value in ours.losses.items():
            apart = abs(value - theirs.losses[loss]) / abs(theirs.losses[loss])
            if not apart <= LOSS_ROUNDING:
                raise WrongResult(f"{loss}: {name} {value:.7g}, {other} {theirs.losses[loss]:.7g}")
            worst_loss = max(worst_loss, apart)
        for parameter, grad in ours.arrays.items():
            length = float(np.linalg.norm(theirs.arrays[parameter])) or 1.0  # of no gradient nothing may be left
            apart = float(np.linalg.norm(grad - theirs.arrays[parameter])) / length
            if not apart <= GRADIENT_ROUNDING:
                raise WrongResult(
                    f"the gradient of {parameter}: {name} and {other} differ by {apart:.2g} of its length"
                )
            worst_gradient = max(worst_gradient, apart)
    return f"the same losses within {worst_loss:.1g} and gradients within {worst_gradient:.1g} of their length"
