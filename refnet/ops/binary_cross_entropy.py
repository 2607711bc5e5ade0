"""Sigmoid cross-entropy: the loss of objectness (Ren et al. 2015) and of masks (He et al. 2017, section 3).

.. math::
    L = -t \\log \\sigma(z) - (1 - t) \\log(1 - \\sigma(z)) = \\max(z, 0) - z t + \\log(1 + e^{-|z|}), \\qquad
    \\frac{\\partial L}{\\partial z} = \\sigma(z) - t

for a logit z and a target t. The second form never takes the exponential of a positive number, so it neither
overflows nor loses the loss of a confident logit to rounding.
"""

import numpy as np
from jaxtyping import Float

from refnet.arrays import Array, on_device_of
from refnet.autograd import Function, Gradients, Tensor
from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.kernel_op import kernel_op
from refnet.ops.loss_reduction import Reduction, check_reduction, reduce_losses, spread_gradient


@kernel_op
def binary_cross_entropy_forward(
    logits: Float[Array, "*B"], targets: Float[Array, "*B"]
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """The loss of each element, and its derivative by the logit: sigmoid minus target."""
    small = np.exp(-abs(logits))  # in (0, 1]
    sigmoid = np.where(logits >= 0, 1, small) / (1 + small)
    losses = np.maximum(logits, 0) - logits * targets + np.log1p(small)
    return np.asarray(losses), np.asarray(sigmoid - targets)


class BinaryCrossEntropyWithLogits(Function):
    """The loss of every element, reduced; the adjoint is sigmoid minus target."""

    def forward(self, logits: Array, *, targets: Array, reduction: Reduction) -> Array:
        self.reduction = reduction
        losses, self.derivative = binary_cross_entropy_forward(logits, on_device_of(targets, logits))
        return reduce_losses(losses, reduction)

    def backward(self, grad_output: Array) -> Gradients:
        return (self.derivative * spread_gradient(grad_output, self.derivative.size, self.reduction),)


def binary_cross_entropy_with_logits(logits: Tensor, targets: Array, *, reduction: Reduction = "mean") -> Tensor:
    """The cross-entropy between the sigmoid of `logits` and `targets`.

    Args:
        logits: any shape.
        targets: the same shape and data type, from 0 to 1; values between are soft targets.
        reduction: "mean" over the elements, "sum", or "none" for the loss of each.

    Returns:
        A scalar, or the shape of `logits` for "none".

    Choice: the mean of nothing is 0: a batch without objects gives no loss. PyTorch's is NaN.

    Raises:
        ShapeError: logits and targets differ in shape.
        DTypeError: they aren't of one floating-point type.
        ArgumentError: a target is outside [0, 1] (on a device nobody looks), or `reduction` isn't one of the three.
    """
    what = "binary_cross_entropy_with_logits"
    check_reduction(what, reduction)
    if targets.shape != logits.shape:
        raise ShapeError(f"{what}: targets must have the shape of logits, expected {logits.shape}, got {targets.shape}")
    if logits.dtype.kind != "f" or targets.dtype != logits.dtype:
        raise DTypeError(
            f"{what}: expected logits and targets of one floating-point type, got {logits.dtype} and {targets.dtype}"
        )
    if isinstance(targets, np.ndarray) and targets.size and not 0 <= float(targets.min()) <= float(targets.max()) <= 1:
        raise ArgumentError(
            f"{what}: targets must be from 0 to 1, got values from {float(targets.min())} to {float(targets.max())}"
        )
    return BinaryCrossEntropyWithLogits()(logits, targets=targets, reduction=reduction)
