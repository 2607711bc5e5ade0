"""Optimisers: SGD with momentum, and AdamW; the clipping of gradients.

An optimiser changes the parameters in place (:mod:`refnet.ops.updates`). It never writes to a gradient, which other
tensors may share.

The learning rate isn't part of an optimiser's state: whoever resumes a run says it anew, by :mod:`refnet.nn.schedules`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from refnet.arrays import Array, namespace, to_host
from refnet.errors import ArgumentError, DTypeError, RefnetError
from refnet.nn.module import Parameter, copy_state
from refnet.nn.select import match_names
from refnet.ops.updates import adamw_update, scaled, sgd_update, sums_of_squares

DecayNorm: TypeAlias = Literal["half_sum", "mean"]


class NonFiniteError(RefnetError, ArithmeticError):
    """A gradient holds an infinity or NaN."""


class Optimizer:
    """What SGD and AdamW share: the parameters, and what holds for each by the pattern of its name.

    Patterns are those of :mod:`refnet.nn.select`: they match whole names, and each must match one.

    Args:
        parameters: by name, from :meth:`refnet.nn.Module.parameters`. One whose gradient is None is passed over.
        lr: the learning rate, used by a :meth:`step` that isn't given another.
        weight_decay: how strongly parameters are drawn to 0.
        no_decay: patterns of the parameters that aren't.
        lr_scale: pattern -> a factor of the learning rate; the first pattern that matches a name counts.
        decay_norm: see :class:`SGD`.

    Raises:
        ArgumentError: a number is out of range, or a pattern matches no name.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        *,
        lr: float,
        weight_decay: float,
        no_decay: Sequence[str],
        lr_scale: Mapping[str, float] | None,
        decay_norm: DecayNorm = "half_sum",
    ) -> None:
        what = type(self).__name__
        _check_not_negative(what, lr=lr)
        self.parameters = dict(parameters)
        self.lr = lr
        self._decay = _decays(what, parameters, weight_decay, decay_norm, no_decay)
        self._lr_scale = dict.fromkeys(parameters, 1.0)
        for pattern, factor in reversed(list((lr_scale or {}).items())):  # so that the first has the last word
            _check_not_negative(what, lr_scale=factor)
            self._lr_scale.update(
                dict.fromkeys(match_names(parameters, pattern, what=f"{what}: lr_scale"), float(factor))
            )

    def step(self, lr: float | None = None, *, only_if: Array | None = None) -> None:
        """Move every parameter that has a gradient, in place, with the learning rate `lr` or the optimiser's own.

        Args:
            only_if: a boolean without axes that the host doesn't know yet, beside the parameters: where it turns out
                false, they and their moments stay as they are.

        Raises:
            ArgumentError: `lr` is negative or not a number, or the values of a parameter aren't contiguous.
            DTypeError: a parameter has changed its data type since the optimiser was made.
        """
        lr = self.lr if lr is None else lr
        _check_not_negative(type(self).__name__, lr=lr)
        moving = [name for name, parameter in self.parameters.items() if parameter.grad is not None]
        for name in moving:
            self._check(name)
        self._update(moving, [float(lr) * self._lr_scale[name] for name in moving], only_if)

    def state(self) -> dict[str, Array]:
        """What a checkpoint must hold for training to go on bit for bit; the arrays themselves, not copies."""
        raise NotImplementedError

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Copy `state`, as :meth:`state` of an optimiser of the same parameters gave it.

        Raises:
            CheckpointError: a name, shape or data type doesn't agree; nothing was changed.
        """
        copy_state(self.state(), state, what=f"load_state of {type(self).__name__}")

    def _update(self, names: Sequence[str], rates: Sequence[float], only_if: Array | None) -> None:
        """Move these parameters, which have gradients, with the learning rate of each."""
        raise NotImplementedError

    def _moments_of(self, name: str) -> tuple[Array, ...]:
        """What changes with the parameter `name`."""
        raise NotImplementedError

    def _moments(self) -> dict[str, Array]:
        """Zeros for each parameter; a CPU gives them memory when they are first written, so a frozen one costs none."""
        return {name: namespace(p.data).zeros(p.shape, p.dtype) for name, p in self.parameters.items()}

    def _check(self, name: str) -> None:
        data, grad = self.parameters[name].data, self.parameters[name].grad
        assert grad is not None
        assert grad.shape == data.shape
        if not data.flags.c_contiguous:
            raise ArgumentError(f"{type(self).__name__}: the values of {name} must be contiguous, in C order")
        others = (grad, *self._moments_of(name))
        if any(array.dtype != data.dtype for array in others):
            raise DTypeError(
                f"{type(self).__name__}: {name} is {data.dtype}, its gradient and moments are "
                f"{[str(array.dtype) for array in others]}; make the optimiser after astype"
            )

    def _arrays(self, names: Sequence[str]) -> tuple[list[Array], list[Array]]:
        """The values and the gradients of parameters."""
        grads = [self.parameters[name].grad for name in names]
        return [self.parameters[name].data for name in names], [grad for grad in grads if grad is not None]


class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    .. math::
        g &\\leftarrow \\nabla L + \\lambda w \\\\
        v &\\leftarrow \\mu v + g, \\qquad v_0 = 0 \\\\
        w &\\leftarrow w - \\eta\\, v \\qquad (\\text{Nesterov: } w - \\eta\\, (g + \\mu v))

    Choice: the learning rate multiplies the velocity, as in PyTorch. In Caffe and Keras it is part of it,
    v <- mu v + eta g and w <- w - v: the same while the rate is constant, but behind a change of the rate their velocity
    is still that of the old one (Goyal et al. 2017, section 3, "momentum correction").

    Choice: `decay_norm` says what the decay is the gradient of: "half_sum", lambda / 2 times the sum of squares of each
    parameter (PyTorch, Caffe, the papers), or "mean", lambda times their mean (Matterport), which for a parameter of
    n values draws 2 / n times as strongly.

    Args:
        momentum: mu, 0 for none.
        nesterov: look ahead by the momentum.
        others: see :class:`Optimizer`.

    Raises:
        ArgumentError: as Optimizer; or `nesterov` without momentum.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        *,
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decay_norm: DecayNorm = "half_sum",
        no_decay: Sequence[str] = (),
        lr_scale: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(
            parameters, lr=lr, weight_decay=weight_decay, no_decay=no_decay, lr_scale=lr_scale, decay_norm=decay_norm
        )
        _check_fraction("SGD", momentum=momentum)
        if nesterov and momentum == 0:
            raise ArgumentError("SGD: nesterov needs a momentum above 0, got 0")
        self.momentum, self.nesterov = float(momentum), nesterov
        self._velocity = self._moments() if momentum else {}

    def state(self) -> dict[str, Array]:
        return {f"{name}.velocity": velocity for name, velocity in self._velocity.items()}

    def _moments_of(self, name: str) -> tuple[Array, ...]:
        return (self._velocity[name],) if self.momentum else ()

    def _update(self, names: Sequence[str], rates: Sequence[float], only_if: Array | None) -> None:
        values, gradients = self._arrays(names)
        sgd_update(
            values, gradients, [self._velocity[name] for name in names] if self.momentum else [], rates=rates,
            decays=[self._decay[name] for name in names], momentum=self.momentum, nesterov=self.nesterov,
            only_if=only_if,
        )  # fmt: skip


class AdamW(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1) with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2).

    .. math::
        w &\\leftarrow w - \\eta \\lambda w \\\\
        m &\\leftarrow \\beta_1 m + (1 - \\beta_1) g, \\qquad v \\leftarrow \\beta_2 v + (1 - \\beta_2) g^2 \\\\
        w &\\leftarrow w - \\eta\\, \\frac{m / (1 - \\beta_1^t)}{\\sqrt{v / (1 - \\beta_2^t)} + \\epsilon}

    t counts the steps in which the parameter had a gradient.

    Choice: the decay is multiplied by the learning rate, as in PyTorch; in the paper only by the schedule's factor.

    Args:
        betas: beta_1 and beta_2.
        epsilon: keeps the quotient finite where gradients vanish.
        others: see :class:`Optimizer`.

    Raises:
        ArgumentError: as Optimizer; or a beta isn't in [0, 1), or epsilon is negative.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
        no_decay: Sequence[str] = (),
        lr_scale: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, no_decay=no_decay, lr_scale=lr_scale)
        _check_fraction("AdamW", beta_1=betas[0], beta_2=betas[1])
        _check_not_negative("AdamW", epsilon=epsilon)
        self.betas, self.epsilon = (float(betas[0]), float(betas[1])), float(epsilon)
        self._first, self._second = self._moments(), self._moments()
        self._steps = {name: np.zeros((), np.int64) for name in parameters}

    def state(self) -> dict[str, Array]:
        state: dict[str, Array] = {}
        for name in self.parameters:
            state[f"{name}.first_moment"] = self._first[name]
            state[f"{name}.second_moment"] = self._second[name]
            state[f"{name}.steps"] = self._steps[name]
        return state

    def _moments_of(self, name: str) -> tuple[Array, ...]:
        return self._first[name], self._second[name]

    def _update(self, names: Sequence[str], rates: Sequence[float], only_if: Array | None) -> None:
        for name in names:
            self._steps[name] += 1
        steps = [int(self._steps[name]) for name in names]
        beta_1, beta_2 = self.betas
        values, gradients = self._arrays(names)
        adamw_update(
            values, gradients, [self._first[name] for name in names], [self._second[name] for name in names],
            keeps=[1 - rate * self._decay[name] for name, rate in zip(names, rates, strict=True)],
            first_rates=[rate / (1 - beta_1**t) for rate, t in zip(rates, steps, strict=True)],
            second_rates=[1 / (1 - beta_2**t) for t in steps],
            betas=self.betas, epsilon=self.epsilon, only_if=only_if,
        )  # fmt: skip


def add_weight_decay(
    parameters: Mapping[str, Parameter],
    *,
    weight_decay: float,
    decay_norm: DecayNorm = "half_sum",
    no_decay: Sequence[str] = (),
) -> float:
    """Add the gradient of the decay to the gradients, as if it were part of the loss, and return what it adds to that.

    For parameters on a device, what it adds makes the host wait; :func:`decay_gradients` doesn't tell.

    Choice: so done before :func:`clip_gradients`, the decay is clipped with the rest, as in Keras, whose regularisers
    are losses; :class:`SGD` adds it behind the clipping, as PyTorch does. `decay_norm` and `no_decay` are those of SGD;
    a parameter without a gradient is passed over.

    Raises:
        ArgumentError: a number is out of range, or a pattern matches no name.
    """
    decays = decay_gradients(parameters, weight_decay=weight_decay, decay_norm=decay_norm, no_decay=no_decay)
    squares = to_host(sums_of_squares([parameters[name].data for name in decays]))
    added = 0.0
    for decay, square in zip(decays.values(), squares.tolist(), strict=True):
        added += decay / 2 * square
    return added


def decay_gradients(
    parameters: Mapping[str, Parameter],
    *,
    weight_decay: float,
    decay_norm: DecayNorm = "half_sum",
    no_decay: Sequence[str] = (),
) -> dict[str, float]:
    """Add the gradient of the decay to the gradients, as :func:`add_weight_decay` does.

    Returns:
        For each parameter that decays, by how much of itself.

    Raises:
        ArgumentError: a number is out of range, or a pattern matches no name.
    """
    decays: dict[str, float] = {}
    for name, decay in _decays("weight decay", parameters, weight_decay, decay_norm, no_decay).items():
        parameter = parameters[name]
        if decay and parameter.grad is not None:
            decays[name] = decay
            parameter.grad = parameter.grad + decay * parameter.data  # a new array: others may hold the old one
    return decays


def _decays(
    what: str, parameters: Mapping[str, Parameter], weight_decay: float, decay_norm: DecayNorm, no_decay: Sequence[str]
) -> dict[str, float]:
    """By how much of itself each parameter decays.

    Raises:
        ArgumentError: a number is out of range, or a pattern matches no name; `what` says who asks.
    """
    _check_not_negative(what, weight_decay=weight_decay)
    if decay_norm not in get_args(DecayNorm):
        raise ArgumentError(f'{what}: decay_norm must be "half_sum" or "mean", got {decay_norm!r}')
    undecayed = set(match_names(parameters, no_decay, what=f"{what}: no_decay"))
    decays = {}
    for name, parameter in parameters.items():
        factor = 2 / max(parameter.size, 1) if decay_norm == "mean" else 1.0
        decays[name] = 0.0 if name in undecayed else float(weight_decay * factor)
    return decays


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientNorms:
    """How long gradients are, beside them: on a device, the host doesn't know it yet.

    Attributes:
        names: of the parameters that have a gradient.
        squares: (P,), float64, the sum of squares of each.
    """

    names: tuple[str, ...]
    squares: Array

    @property
    def total(self) -> Array:
        """The norm of all gradients as one vector."""
        xp = namespace(self.squares)
        square = self.squares.cumsum()[-1] if self.names else xp.zeros(())  # in order, as Python's sum
        return xp.asarray(xp.sqrt(square))  # type: ignore[no-any-return]

    def checked(self) -> float:
        """The norm of all; the host waits for it.

        Raises:
            NonFiniteError: the norm of a gradient isn't finite; the message names the first.
        """
        squares = to_host(self.squares)
        for name, square in zip(self.names, squares.tolist(), strict=True):
            if not np.isfinite(square):
                raise NonFiniteError(
                    f"clip_gradients: the norm of the gradient of {name} must be finite, got {square**0.5}"
                )
        return float(GradientNorms(names=self.names, squares=squares).total)


def measure_gradients(parameters: Mapping[str, Parameter]) -> GradientNorms:
    """The norms of all gradients.

    They are summed in float64 in an order that depends on the shapes alone, so they don't change with the number of
    threads.
    """
    grads = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    return GradientNorms(names=tuple(grads), squares=sums_of_squares(list(grads.values())))


def clip_gradients(
    parameters: Mapping[str, Parameter], *, max_norm: float, mode: Literal["global", "each"] = "global"
) -> float:
    """Shorten the gradients that are longer than `max_norm`, and return the norm of all of them before.

    .. math:: g \\leftarrow g \\min(1, c / \\lVert g \\rVert)

    Args:
        mode: "global" takes all gradients as one vector, which keeps its direction; "each" clips each alone.

    Choice: PyTorch clips by one norm, and so did the Keras that Matterport was written for; that of TensorFlow 2 clips
    each gradient alone. PyTorch divides by the norm plus 1e-6.

    Raises:
        ArgumentError: `max_norm` isn't positive, or `mode` isn't one of the two.
        NonFiniteError: the norm of a gradient isn't finite; the message names the first, and nothing was changed.
    """
    _check_clipping(max_norm, mode)
    norms = measure_gradients(parameters)
    norm = norms.checked()
    shorten_gradients(parameters, norms, max_norm=max_norm, mode=mode)
    return norm


def shorten_gradients(
    parameters: Mapping[str, Parameter],
    norms: GradientNorms,
    *,
    max_norm: float,
    mode: Literal["global", "each"] = "global",
) -> None:
    """:func:`clip_gradients` by norms that were measured before, whatever they are; no device is waited for.

    Raises:
        ArgumentError: `max_norm` isn't positive, or `mode` isn't one of the two.
    """
    _check_clipping(max_norm, mode)
    if max_norm == np.inf:
        return
    grads = [grad for name in norms.names if (grad := parameters[name].grad) is not None]
    xp, squares = namespace(norms.squares), norms.squares
    lengths = xp.broadcast_to(norms.total, squares.shape) if mode == "global" else xp.sqrt(squares)
    too_long = lengths > max_norm
    if xp is np and not too_long.any():
        return
    factors = xp.where(too_long, max_norm / xp.maximum(lengths, max_norm), 1.0)
    for name, grad in zip(norms.names, scaled(grads, factors), strict=True):
        parameters[name].grad = grad


def _check_clipping(max_norm: float, mode: str) -> None:
    if not max_norm > 0:
        raise ArgumentError(f"clip_gradients: max_norm must be positive, got {max_norm}")
    if mode not in ("global", "each"):
        raise ArgumentError(f'clip_gradients: mode must be "global" or "each", got {mode!r}')


def find_nonfinite(parameters: Mapping[str, Parameter], *, gradients: bool = True) -> list[str]:
    """The names of the parameters whose values, or, if `gradients`, gradients, hold an infinity or NaN."""
    return [
        name
        for name, p in parameters.items()
        if not all(
            bool(namespace(a).isfinite(a).all()) for a in (p.data, p.grad if gradients else None) if a is not None
        )
    ]


def _check_not_negative(what: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise ArgumentError(f"{what}: {name} must be finite and not negative, got {value}")


def _check_fraction(what: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ArgumentError(f"{what}: {name} must be at least 0 and below 1, got {value}")
