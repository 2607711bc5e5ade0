"""How a loss for every element becomes the result: their mean, their sum, or as they are."""

from typing import Any, Literal, TypeAlias, get_args

from refnet.arrays import Array, namespace
from refnet.errors import ArgumentError

Reduction: TypeAlias = Literal["mean", "sum", "none"]


def check_reduction(what: str, reduction: str) -> None:
    """Check that `reduction` is one of the three.

    Raises:
        ArgumentError: it isn't.
    """
    if reduction not in get_args(Reduction):
        raise ArgumentError(f'{what}: reduction must be "mean", "sum" or "none", got {reduction!r}')


def reduce_losses(losses: Any, reduction: Reduction) -> Array:
    """`losses`, an array or a number, reduced.

    Choice: the mean of nothing is 0, so that a batch without objects adds nothing to the loss. Others return NaN.
    """
    xp = namespace(losses)
    if reduction == "none":
        return xp.asarray(losses)  # type: ignore[no-any-return]
    total = losses.sum()
    return xp.asarray(total / max(losses.size, 1) if reduction == "mean" else total)  # type: ignore[no-any-return]


def spread_gradient(grad_output: Array, count: int, reduction: Reduction) -> Array:
    """The adjoint of :func:`reduce_losses`, for `count` losses: the gradient of each, or one number for all."""
    if reduction == "mean":
        return namespace(grad_output).asarray(grad_output / max(count, 1))  # type: ignore[no-any-return]
    return grad_output
