"""Gradients against central differences."""

from collections.abc import Callable, Sequence

import numpy as np

from refnet.arrays import Array
from refnet.autograd import Tensor
from refnet.errors import RefnetError

STEP = 1e-4  # error about step**4 f''''' + 1e-16 / step: both far below 1e-6 for functions of unit scale


class GradientError(RefnetError, AssertionError):
    """A gradient departs from the central difference."""


def check_gradients(
    function: Callable[..., Tensor],
    *inputs: Array,
    rng: np.random.Generator,
    wrt: Sequence[int] | None = None,
    relative: float = 1e-6,
    step: float = STEP,
) -> None:
    """Compare the gradients of `function` with five-point central differences, in float64.

    The result y is projected on a random u, and for each input x in `wrt` a random direction v of unit length is
    drawn: ``<x.grad, v>`` must equal

    .. math:: \\frac{8 [f(h) - f(-h)] - [f(2h) - f(-2h)]}{12 h}, \\quad f(t) = \\langle u, y(x + t v) \\rangle

    One number stands for the whole gradient, since an error in any element shows along a random direction.

    Args:
        function: takes a Tensor for each of `inputs`, returns a Tensor of any shape.
        inputs: float64 arrays. Keep them away from kinks by more than 2 `step`.
        wrt: the positions of the inputs to differentiate; all by default.
        relative: the allowed difference, relative to ``|u| * |x.grad|``'s scale of the numbers compared.

    Raises:
        GradientError: a gradient departs, is missing or isn't finite; the message gives the input and both values.
    """
    positions = range(len(inputs)) if wrt is None else wrt
    tensors = [Tensor(np.array(x), requires_grad=i in positions) for i, x in enumerate(inputs)]
    y = function(*tensors)
    u = rng.standard_normal(y.shape)
    y.backward(u)

    for position in positions:
        x = np.array(inputs[position])
        if x.dtype != np.float64:
            raise GradientError(f"check_gradients: input {position} must be float64, got {x.dtype}")
        v = rng.standard_normal(x.shape)
        v /= max(float(np.linalg.norm(v)), 1e-12)

        def along(t: float, position: int = position, x: Array = x, v: Array = v) -> Array:
            shifted = [Tensor(x + t * v if i == position else a) for i, a in enumerate(inputs)]
            return function(*shifted).data

        # differences first, the projection after: the large parts of y that don't change cancel exactly
        difference = 8 * (along(step) - along(-step)) - (along(2 * step) - along(-2 * step))
        numeric = float((u * difference).sum() / (12 * step))
        grad = tensors[position].grad
        if grad is None or grad.shape != x.shape or not np.isfinite(grad).all():
            raise GradientError(
                f"check_gradients: input {position} of shape {x.shape} has no finite gradient: {grad!r}"
            )
        analytic = float((grad * v).sum())
        scale = max(abs(numeric), float(np.linalg.norm(grad)) / max(np.sqrt(grad.size), 1.0), 1e-3)
        if not abs(numeric - analytic) <= relative * scale:
            raise GradientError(
                f"check_gradients: input {position} of shape {x.shape}: expected {numeric!r} along a random direction, "
                f"got {analytic!r}; the difference is {abs(numeric - analytic) / scale:.3g} of the scale, at most {relative:g} allowed"
            )
