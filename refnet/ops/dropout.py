"""Dropout (Srivastava et al. 2014): each element is dropped with probability p, the others grow to make up for it

.. math:: y_i = \\frac{m_i}{1 - p} x_i, \\qquad m_i \\sim \\mathrm{Bernoulli}(1 - p)
"""

import numpy as np

from refnet.arrays import Array, namespace
from refnet.autograd import Function, Gradients, Tensor
from refnet.errors import ArgumentError


class Dropout(Function):
    """x times a mask of 0 and 1 / (1 - rate)."""

    def forward(self, x: Array, *, kept: Array, rate: float) -> Array:
        self.factor: Array = namespace(x).asarray(kept).astype(x.dtype) / (1 - rate)
        y: Array = x * self.factor
        return y

    def backward(self, grad_output: Array) -> Gradients:
        return (grad_output * self.factor,)


def dropout(x: Tensor, *, rate: float, rng: np.random.Generator) -> Tensor:
    """Set elements to 0 with probability `rate` and divide the others by 1 - `rate`.

    The expectation of the result is x, so nothing has to be scaled in evaluation: leave the call out there.
    The same state of `rng` drops the same elements in every precision and on every device.

    Raises:
        ArgumentError: `rate` isn't in [0, 1).
    """
    if not 0 <= rate < 1:
        raise ArgumentError(f"dropout: rate must be in [0, 1), got {rate}")
    kept = rng.random(x.shape, dtype=np.float32) >= rate
    return Dropout()(x, kept=kept, rate=rate)
