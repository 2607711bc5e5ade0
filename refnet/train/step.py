"""One training step: losses, gradients, and the way of the parameters along them.

On a CPU the losses are known before the gradients are computed. A GPU works behind the host's back: the host asks it
for the whole step without knowing a loss, and reads the values a step later, when they have long arrived. A step whose
loss or gradient isn't finite changes no parameter in either case; on a GPU that is decided there.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refnet.arrays import Array, Download, device_of, namespace
from refnet.data import Sample, stream
from refnet.nn import (
    SGD,
    AdamW,
    GradientNorms,
    NonFiniteError,
    Optimizer,
    Parameter,
    decay_gradients,
    find_nonfinite,
    measure_gradients,
    shorten_gradients,
)
from refnet.rcnn.model import MaskRCNN
from refnet.train.config import TrainConfig


def make_optimizer(parameters: Mapping[str, Parameter], config: TrainConfig) -> Optimizer:
    """The optimiser of the parameters that are trained.

    Choice: parameters with one axis (biases, and the scales and shifts of norms) don't decay unless
    ``decay_vectors`` says so (Goyal et al. 2017, section 5.3, for the norms). torchvision and Detectron2 let them,
    Matterport exempts the norms'.
    """
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    undecayed = undecayed_names(trained, config)
    if config.optimizer == "adamw":
        return AdamW(trained, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, no_decay=undecayed)
    return SGD(
        trained, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov and config.momentum > 0,
        weight_decay=0.0 if config.decay_clipped else config.weight_decay, decay_norm=config.decay_norm,
        no_decay=undecayed,
    )  # fmt: skip


def undecayed_names(parameters: Mapping[str, Parameter], config: TrainConfig) -> list[str]:
    """Patterns of the parameters that don't decay."""
    vectors = [] if config.decay_vectors else [re.escape(name) for name, p in parameters.items() if p.ndim == 1]
    return vectors if config.no_decay is None else [*vectors, config.no_decay]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step that was asked for.

    Attributes:
        number: counted from 1.
        known: whether its values are on the host already.
    """

    number: int
    known: bool
    _lr: float
    _losses: tuple[str, ...]
    _gradients: tuple[str, ...]
    _coming: Download  # the losses, and the sums of squares of the gradients
    _model: MaskRCNN

    def values(self) -> dict[str, float]:
        """The losses, the learning rate, and the norm of the gradients before clipping; the host waits for them.

        Raises:
            NonFiniteError: a loss or gradient is infinite or NaN. The message names the first, or the first parameter
                if one already was; no parameter was changed by this step.
        """
        losses, squares = self._coming.wait()
        values = dict(zip(self._losses, losses.tolist(), strict=True))
        norms = GradientNorms(names=self._gradients, squares=squares)
        if not self.known:  # or start_step would have raised the error
            _check_losses(values, self.number, self._model)
            _check_norms(norms, self.number)
        return values | {"lr": self._lr, "grad_norm": float(norms.total)}


def train_step(
    model: MaskRCNN, optimizer: Optimizer, samples: Sequence[Sample], config: TrainConfig, *, step: int, lr: float
) -> dict[str, float]:
    """One step on one batch; `step` counts from 0. See :meth:`Step.values` for what it returns and raises."""
    return start_step(model, optimizer, samples, config, step=step, lr=lr).values()


def start_step(
    model: MaskRCNN, optimizer: Optimizer, samples: Sequence[Sample], config: TrainConfig, *, step: int, lr: float
) -> Step:
    """One step on one batch, of which a device may still have to do most; `step` counts from 0.

    The host waits for a device once, within :meth:`~refnet.rcnn.model.MaskRCNN.losses`.

    Raises:
        NonFiniteError: on a CPU, as :meth:`Step.values`.
    """
    model.zero_grad()
    losses = model.losses(
        [sample.image for sample in samples],
        [sample.truth for sample in samples],
        rng=stream(config.seed, "sampling", step),
    )
    named = losses.named()
    arrays = [loss.data for loss in named.values()]
    xp, known = namespace(*arrays), device_of(arrays) == "cpu"
    values = xp.stack(arrays)
    if known:
        _check_losses(dict(zip(named, values.tolist(), strict=True)), step + 1, model)
    losses.total.backward()
    norms = _measure(optimizer.parameters, config)
    if known:
        _check_norms(norms, step + 1)
    finite = None if known else xp.isfinite(values).all() & xp.isfinite(norms.squares).all()
    _move(optimizer, norms, config, lr=lr, only_if=finite)
    return Step(
        number=step + 1, known=known, _lr=lr, _losses=tuple(named), _gradients=norms.names,
        _coming=Download(values, norms.squares), _model=model,
    )  # fmt: skip


def apply_gradients(optimizer: Optimizer, config: TrainConfig, *, lr: float) -> float:
    """Decay, clip, and move the parameters along their gradients.

    Returns:
        The norm of the gradients before clipping.

    Raises:
        NonFiniteError: a gradient is infinite or NaN; no parameter was changed.
    """
    norms = _measure(optimizer.parameters, config)
    norm = norms.checked()
    _move(optimizer, norms, config, lr=lr)
    return norm


def _measure(parameters: Mapping[str, Parameter], config: TrainConfig) -> GradientNorms:
    """The norms of the gradients, and of the decay where that is part of them."""
    if config.decay_clipped:
        decay_gradients(
            parameters, weight_decay=config.weight_decay, decay_norm=config.decay_norm,
            no_decay=undecayed_names(parameters, config),
        )  # fmt: skip
    return measure_gradients(parameters)


def _move(
    optimizer: Optimizer, norms: GradientNorms, config: TrainConfig, *, lr: float, only_if: Array | None = None
) -> None:
    shorten_gradients(optimizer.parameters, norms, max_norm=config.clip_norm or np.inf, mode=config.clip)
    optimizer.step(lr, only_if=only_if)


def _check_losses(values: Mapping[str, float], number: int, model: MaskRCNN) -> None:
    wrong = [name for name in sorted(values, key=lambda name: name == "loss") if not np.isfinite(values[name])]
    if wrong:
        culprits = find_nonfinite(model.parameters(), gradients=False)
        cause = f"; so is the parameter {culprits[0]}" if culprits else "; all parameters are finite"
        raise NonFiniteError(f"step {number}: {wrong[0]} must be finite, got {values[wrong[0]]}{cause}")


def _check_norms(norms: GradientNorms, number: int) -> None:
    try:
        norms.checked()
    except NonFiniteError as error:
        raise NonFiniteError(f"step {number}: the losses are finite, but {error}") from error
