"""Softmax cross-entropy: the loss of the region classifier (Girshick 2015, Fast R-CNN, equation 1).

.. math::
    p_{r,k} = \\frac{e^{z_{r,k}}}{\\sum_j e^{z_{r,j}}}, \\qquad
    L_r = -\\log p_{r,c_r} = \\log \\sum_j e^{z_{r,j}} - z_{r,c_r}, \\qquad
    \\frac{\\partial L_r}{\\partial z_{r,k}} = p_{r,k} - [k = c_r]

for logits z and true classes c. The largest logit of a row is subtracted from it first, which changes nothing but
keeps the exponentials from overflowing.
"""

import numpy as np
from jaxtyping import Float, Int

from refnet.arrays import Array, on_device_of
from refnet.autograd import Function, Gradients, Tensor
from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.kernel_op import kernel_op
from refnet.ops.loss_reduction import Reduction, check_reduction, reduce_losses, spread_gradient


@kernel_op
def cross_entropy_forward(
    logits: Float[Array, "R K"], classes: Int[Array, " R"]
) -> tuple[Float[Array, " R"], Float[Array, "R K"]]:
    """The loss of each row, and its derivative by each logit: softmax minus one-hot.

    K is at least 1 and classes are from 0 to K - 1. A kernel that can't raise an error for another class gives NaN.
    """
    rows = np.arange(len(logits))
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    total = exponentials.sum(axis=1, keepdims=True)
    derivative = exponentials / total
    derivative[rows, classes] -= 1
    return np.log(total[:, 0]) - shifted[rows, classes], derivative


class CrossEntropy(Function):
    """The loss of every row, reduced; the adjoint is softmax minus one-hot."""

    def forward(self, logits: Array, *, classes: Array, reduction: Reduction) -> Array:
        self.reduction = reduction
        losses, self.derivative = cross_entropy_forward(logits, on_device_of(classes, logits))
        return reduce_losses(losses, reduction)

    def backward(self, grad_output: Array) -> Gradients:
        grad = spread_gradient(grad_output, len(self.derivative), self.reduction)
        return (self.derivative * grad[..., None],)


def cross_entropy(logits: Tensor, classes: Array, *, reduction: Reduction = "mean") -> Tensor:
    """The cross-entropy between the softmax of `logits` and the true classes.

    Args:
        logits: (R, K).
        classes: (R,), integers from 0 to K - 1; 0 is the background. Regions to be ignored are left out by the caller.
        reduction: "mean" over the rows, "sum", or "none" for the loss of each.

    Returns:
        A scalar, or (R,) for "none".

    Choice: the mean over no rows is 0: a batch without objects gives no loss. PyTorch's is NaN.

    Raises:
        ShapeError: logits aren't (R, K) with K at least 1, or classes aren't (R,).
        DTypeError: logits aren't floating point, or classes aren't integers.
        ArgumentError: a class is out of range (on a device nobody looks), or `reduction` isn't one of the three.
    """
    check_reduction("cross_entropy", reduction)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ShapeError(f"cross_entropy: logits must be (R, K) with at least one class, got {logits.shape}")
    if classes.shape != (len(logits),):
        raise ShapeError(
            f"cross_entropy: classes must have one entry per row, expected ({len(logits)},), got {classes.shape}"
        )
    if logits.dtype.kind != "f" or classes.dtype.kind not in "iu":
        raise DTypeError(
            f"cross_entropy: expected floating-point logits and integer classes, got {logits.dtype} and {classes.dtype}"
        )
    if (
        isinstance(classes, np.ndarray)
        and classes.size
        and not 0 <= int(classes.min()) <= int(classes.max()) < logits.shape[1]
    ):
        raise ArgumentError(
            f"cross_entropy: classes must be from 0 to {logits.shape[1] - 1}, "
            f"got values from {int(classes.min())} to {int(classes.max())}"
        )
    return CrossEntropy()(logits, classes=classes, reduction=reduction)
