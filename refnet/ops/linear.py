"""Matrix products: matmul, and the fully connected layer

.. math:: y_{\\cdot o} = \\sum_i x_{\\cdot i} w_{io} + b_o
"""

import math

import numpy as np
from jaxtyping import Float

from refnet.arrays import Array
from refnet.autograd import Function, Gradients, Tensor
from refnet.errors import ShapeError
from refnet.kernel_op import kernel_op


class Linear(Function):
    """x @ w plus an optional bias, over the last axis of x."""

    def forward(self, x: Array, w: Array, *bias: Array) -> Array:
        self.shape = x.shape
        self.x, self.w = x.reshape(math.prod(x.shape[:-1]), w.shape[0]), w  # one product, whatever the leading axes
        y = matrix_product(self.x, w)
        if bias:
            y += bias[0]  # in place: y is ours
        return y.reshape(*x.shape[:-1], w.shape[1])

    def backward(self, grad_output: Array) -> Gradients:
        g = grad_output.reshape(len(self.x), self.w.shape[1])
        grads: list[Array | None] = [
            matrix_product(g, self.w.T).reshape(self.shape) if self.needs_grad[0] else None,
            matrix_product(self.x.T, g) if self.needs_grad[1] else None,
        ]
        if len(self.needs_grad) == 3:
            grads.append(sum_rows(g) if self.needs_grad[2] else None)
        return tuple(grads)


@kernel_op
def matrix_product(a: Float[Array, "M K"], b: Float[Array, "K N"]) -> Float[Array, "M N"]:
    """a b: the fully connected layer without its bias, and with a transpose on either side its gradients."""
    product: Array = a @ b
    return product


@kernel_op
def sum_rows(g: Float[Array, "*B C"]) -> Float[Array, " C"]:
    """The sum over all axes but the last: the gradient of a bias.

    It is a product with ones, which reads memory as fast as it can; ``sum(axis=0)`` walks from row to row.
    """
    rows = g.reshape(math.prod(g.shape[:-1]), g.shape[-1])
    total: Array = np.ones(len(rows), g.dtype) @ rows
    return total


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product over the last two axes; leading axes broadcast.

    Raises:
        ShapeError: an input has fewer than two axes, or the inner extents differ.
    """
    return a @ b


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A fully connected layer.

    Args:
        x: (..., I).
        weight: (I, O): PyTorch stores the transpose, Keras stores this.
        bias: (O,), or None.

    Returns:
        (..., O).

    Raises:
        ShapeError: the extents don't fit.
    """
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[0]:
        raise ShapeError(f"linear: expected x (..., I) and weight (I, O), got {x.shape} and {weight.shape}")
    if bias is not None and bias.shape != (weight.shape[1],):
        raise ShapeError(f"linear: bias must have shape ({weight.shape[1]},), got {bias.shape}")
    return Linear()(x, weight) if bias is None else Linear()(x, weight, bias)
