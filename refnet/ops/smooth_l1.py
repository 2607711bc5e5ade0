"""Smooth L1: the loss of boxes (Girshick 2015, Fast R-CNN, equation 3), with the width of its round part.

.. math::
    L = \\begin{cases} d^2 / (2 \\beta) & |d| < \\beta \\\\ |d| - \\beta / 2 & \\text{else} \\end{cases}
    = m \\left(\\frac{m}{2 \\beta}\\right) + (|d| - m), \\qquad
    \\frac{\\partial L}{\\partial d} = \\mathrm{sign}(d)\\, \\frac{m}{\\beta}, \\qquad m = \\min(|d|, \\beta)

for the difference d = prediction - target. For beta = 0 it is |d|, with the derivative sign(d), 0 at d = 0.
"""

import numpy as np
from jaxtyping import Float

from refnet.arrays import Array, on_device_of
from refnet.autograd import Function, Gradients, Tensor
from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.kernel_op import kernel_op
from refnet.ops.loss_reduction import Reduction, check_reduction, reduce_losses, spread_gradient


@kernel_op
def smooth_l1_forward(
    prediction: Float[Array, "*B"], target: Float[Array, "*B"], *, beta: float
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """The loss of each element, and its derivative by the prediction; `beta` has the precision of the arrays."""
    difference = prediction - target
    distance = abs(difference)
    width = prediction.dtype.type(beta)
    if width == 0:
        return np.asarray(distance), np.asarray(np.sign(difference))
    near = np.minimum(distance, width)
    steepness = near / width  # at most 1, however narrow the round part
    return np.asarray(near * steepness / 2 + (distance - near)), np.asarray(np.sign(difference) * steepness)


class SmoothL1(Function):
    """The loss of every element, reduced; the adjoint is the difference over beta, clipped to [-1, 1]."""

    def forward(self, prediction: Array, *, target: Array, beta: float, reduction: Reduction) -> Array:
        self.reduction = reduction
        losses, self.derivative = smooth_l1_forward(prediction, on_device_of(target, prediction), beta=beta)
        return reduce_losses(losses, reduction)

    def backward(self, grad_output: Array) -> Gradients:
        return (self.derivative * spread_gradient(grad_output, self.derivative.size, self.reduction),)


def smooth_l1(prediction: Tensor, target: Array, *, beta: float, reduction: Reduction = "mean") -> Tensor:
    """The distance between prediction and target: squared up to `beta`, linear beyond.

    Args:
        prediction: any shape.
        target: the same shape and data type.
        beta: where the square ends, at least 0. 0 is L1.
        reduction: "mean" over the elements, "sum", or "none" for the loss of each.

    Returns:
        A scalar, or the shape of `prediction` for "none".

    Choice: beta is 1 in the paper's equation; implementations of Faster R-CNN take 1/9 (sigma = 3) for the RPN,
    and Detectron2 0. The mean of nothing is 0: a batch without objects gives no loss. PyTorch's is NaN.

    Raises:
        ShapeError: prediction and target differ in shape.
        DTypeError: they aren't of one floating-point type.
        ArgumentError: beta is negative or not finite, or `reduction` isn't one of the three.
    """
    check_reduction("smooth_l1", reduction)
    if target.shape != prediction.shape:
        raise ShapeError(
            f"smooth_l1: target must have the shape of prediction, expected {prediction.shape}, got {target.shape}"
        )
    if prediction.dtype.kind != "f" or target.dtype != prediction.dtype:
        raise DTypeError(
            f"smooth_l1: expected prediction and target of one floating-point type, "
            f"got {prediction.dtype} and {target.dtype}"
        )
    if not 0 <= beta < float("inf"):
        raise ArgumentError(f"smooth_l1: beta must be at least 0 and finite, got {beta}")
    return SmoothL1()(prediction, target=target, beta=float(beta), reduction=reduction)
