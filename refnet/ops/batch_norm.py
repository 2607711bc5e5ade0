"""Batch normalisation (Ioffe & Szegedy 2015, algorithm 1), over all axes but the last.

.. math::
    y = \\gamma \\hat x + \\beta, \\qquad \\hat x = \\frac{x - \\mu}{\\sqrt{\\sigma^2 + \\epsilon}}

with the mean and the biased variance of the M values that each channel has in the batch. Since they depend on x,

.. math::
    \\bar\\beta = \\sum \\bar y, \\qquad \\bar\\gamma = \\sum \\bar y \\hat x, \\qquad
    \\bar x = \\frac{\\gamma}{\\sqrt{\\sigma^2 + \\epsilon}} \\left( \\bar y - \\frac{\\bar\\beta + \\hat x \\bar\\gamma}{M} \\right)

Frozen, the mean and variance are constants and the layer is affine: y = scale · x + shift.
"""

import numpy as np
from jaxtyping import Float

from refnet.arrays import Array, namespace
from refnet.autograd import Function, Gradients, Tensor
from refnet.errors import ArgumentError, ShapeError
from refnet.kernel_op import kernel_op


@kernel_op
def batch_norm_forward(
    x: Float[Array, "*B C"], gamma: Float[Array, " C"], beta: Float[Array, " C"], *, epsilon: float
) -> tuple[Float[Array, "*B C"], Float[Array, " C"], Float[Array, " C"]]:
    """Normalise every channel of `x` by its own mean and biased variance; returns y, the mean and the variance."""
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axis=axes, dtype=np.float64)
    variance = ((x - mean) ** 2).mean(axis=axes)
    y = gamma * (x - mean) / np.sqrt(variance + epsilon) + beta
    return y.astype(x.dtype), mean.astype(x.dtype), variance.astype(x.dtype)


@kernel_op
def batch_norm_grad(
    grad_output: Float[Array, "*B C"],
    x: Float[Array, "*B C"],
    gamma: Float[Array, " C"],
    mean: Float[Array, " C"],
    variance: Float[Array, " C"],
    *,
    epsilon: float,
) -> tuple[Float[Array, "*B C"], Float[Array, " C"], Float[Array, " C"]]:
    """The adjoint of batch_norm_forward; returns the gradients of x, gamma and beta."""
    axes = tuple(range(x.ndim - 1))
    count = x.size // x.shape[-1]
    x_hat = (x - mean) / np.sqrt(variance + epsilon)
    grad_beta = grad_output.sum(axis=axes)
    grad_gamma = (grad_output * x_hat).sum(axis=axes)
    grad_x = gamma / np.sqrt(variance + epsilon) * (grad_output - (grad_beta + x_hat * grad_gamma) / count)
    return grad_x, grad_gamma, grad_beta


@kernel_op
def affine_forward(
    x: Float[Array, "*B C"], scale: Float[Array, " C"], shift: Float[Array, " C"]
) -> Float[Array, "*B C"]:
    """scale · x + shift, channel by channel."""
    y: Array = x * scale + shift
    return y


@kernel_op
def affine_grad_input(grad_output: Float[Array, "*B C"], scale: Float[Array, " C"]) -> Float[Array, "*B C"]:
    """The adjoint of affine_forward in x: scale · g, channel by channel."""
    grad: Array = grad_output * scale
    return grad


@kernel_op
def affine_grad_parameters(
    grad_output: Float[Array, "*B C"], x: Float[Array, "*B C"]
) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
    """The adjoint of affine_forward in scale and shift: the sums of g x and of g over each channel."""
    axes = tuple(range(x.ndim - 1))
    return (grad_output * x).sum(axis=axes), grad_output.sum(axis=axes)


@kernel_op
def frozen_batch_norm_affine(
    gamma: Float[Array, " C"],
    beta: Float[Array, " C"],
    mean: Float[Array, " C"],
    variance: Float[Array, " C"],
    *,
    epsilon: float,
) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
    """scale = gamma / sqrt(variance + epsilon) and shift = beta - scale · mean, as which frozen normalisation acts."""
    scale = gamma * (1 / np.sqrt(variance + epsilon))
    return scale, beta - scale * mean


@kernel_op
def move_running_statistics(
    running_mean: Float[Array, " C"],
    running_variance: Float[Array, " C"],
    mean: Float[Array, " C"],
    variance: Float[Array, " C"],
    *,
    momentum: float,
    correction: float,
) -> None:
    """Move the running averages r towards a batch's statistics s, in place: r <- (1 - momentum) r + momentum s.

    Args:
        correction: what the variance is multiplied by first.
    """
    for running, statistic in ((running_mean, mean), (running_variance, variance * correction)):
        running *= 1 - momentum
        running += momentum * statistic


class BatchNorm(Function):
    """batch_norm_forward and its three gradients; `mean` and `variance` are what it normalised by."""

    def forward(self, x: Array, gamma: Array, beta: Array, *, epsilon: float) -> Array:
        self.x, self.gamma, self.epsilon = x, gamma, epsilon
        y, self.mean, self.variance = batch_norm_forward(x, gamma, beta, epsilon=epsilon)
        return y

    def backward(self, grad_output: Array) -> Gradients:
        return batch_norm_grad(grad_output, self.x, self.gamma, self.mean, self.variance, epsilon=self.epsilon)


class FrozenBatchNorm(Function):
    """affine_forward with the scale and shift of frozen_batch_norm_affine."""

    def forward(self, x: Array, gamma: Array, beta: Array, *, mean: Array, variance: Array, epsilon: float) -> Array:
        self.x, self.mean, self.variance, self.epsilon = x, mean, variance, epsilon
        self.scale, shift = frozen_batch_norm_affine(gamma, beta, mean, variance, epsilon=epsilon)
        return affine_forward(x, self.scale, shift)

    def backward(self, grad_output: Array) -> Gradients:
        grad_x = affine_grad_input(grad_output, self.scale) if self.needs_grad[0] else None
        if not (self.needs_grad[1] or self.needs_grad[2]):
            return grad_x, None, None
        grad_scale, grad_shift = affine_grad_parameters(grad_output, self.x)
        rate = 1 / namespace(grad_scale).sqrt(self.variance + self.epsilon)
        return grad_x, (grad_scale - grad_shift * self.mean) * rate, grad_shift


def batch_norm(x: Tensor, gamma: Tensor, beta: Tensor, *, epsilon: float) -> tuple[Tensor, Array, Array]:
    """Normalise every channel by the statistics of this batch.

    Args:
        x: (..., C).
        gamma, beta: (C,).
        epsilon: added to the variance.

    Returns:
        The result, and the mean and variance (C,) of the batch, for running averages.

    Choice: the variance is the biased one, the sum of squares over M. PyTorch, and TensorFlow's fused kernel, move
    their running variance by the unbiased one, M / (M - 1) times it; that is the layer's business.

    Raises:
        ShapeError: an argument has the wrong shape, or there is no value to average.
        ArgumentError: `epsilon` is negative.
    """
    _check(x, {"gamma": gamma.shape, "beta": beta.shape}, epsilon, "batch_norm")
    if x.size == 0:
        raise ShapeError(f"batch_norm: expected at least one value a channel, got x of shape {x.shape}")
    function = BatchNorm()
    y = function(x, gamma, beta, epsilon=epsilon)
    return y, function.mean, function.variance


def frozen_batch_norm(
    x: Tensor, gamma: Tensor, beta: Tensor, mean: Array, variance: Array, *, epsilon: float
) -> Tensor:
    """Normalise every channel by the given statistics, which are constants.

    Args:
        x: (..., C).
        gamma, beta, mean, variance: (C,).
        epsilon: added to the variance; checkpoints disagree on it (1e-3, 1e-5, 0).

    Raises:
        ShapeError: an argument has the wrong shape.
        ArgumentError: `epsilon` is negative.
    """
    shapes = {"gamma": gamma.shape, "beta": beta.shape, "mean": mean.shape, "variance": variance.shape}
    _check(x, shapes, epsilon, "frozen_batch_norm")
    return FrozenBatchNorm()(x, gamma, beta, mean=mean, variance=variance, epsilon=epsilon)


def _check(x: Tensor, shapes: dict[str, tuple[int, ...]], epsilon: float, what: str) -> None:
    if x.ndim < 2:
        raise ShapeError(f"{what}: expected x (..., C), got {x.shape}")
    for name, shape in shapes.items():
        if shape != (x.shape[-1],):
            raise ShapeError(f"{what}: {name} must have shape ({x.shape[-1]},), got {shape}")
    if epsilon < 0:
        raise ArgumentError(f"{what}: epsilon must not be negative, got {epsilon}")
