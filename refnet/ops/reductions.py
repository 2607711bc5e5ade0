"""Sum, mean and maximum over all or some axes."""

import math
from typing import TypeAlias

from refnet.arrays import Array, namespace
from refnet.autograd import Function, Gradients, Tensor
from refnet.errors import ArgumentError, ShapeError
from refnet.ops.shape import axis_of

Axes: TypeAlias = int | tuple[int, ...] | None


class Sum(Function):
    """The sum over axes; every summand receives the gradient of its sum."""

    def forward(self, x: Array, *, axes: tuple[int, ...], keepdims: bool) -> Array:
        self.shape, self.axes = x.shape, axes
        xp = namespace(x)
        y: Array = xp.asarray(xp.sum(x, axis=axes, keepdims=keepdims))
        return y

    def backward(self, grad_output: Array) -> Gradients:
        return (_spread(grad_output, self.shape, self.axes),)


class Mean(Function):
    """The sum over axes divided by the number of summands."""

    def forward(self, x: Array, *, axes: tuple[int, ...], keepdims: bool) -> Array:
        self.shape, self.axes = x.shape, axes
        xp = namespace(x)
        y: Array = xp.asarray(xp.mean(x, axis=axes, keepdims=keepdims))
        return y

    def backward(self, grad_output: Array) -> Gradients:
        count = math.prod(self.shape[a] for a in self.axes)
        share = namespace(grad_output).asarray(grad_output / count)
        return (_spread(share, self.shape, self.axes),)


class Max(Function):
    """The maximum over axes; the first element that attains it receives the gradient."""

    def forward(self, x: Array, *, axes: tuple[int, ...], keepdims: bool) -> Array:
        xp = namespace(x)
        self.shape, self.axes = x.shape, axes
        self.kept = tuple(a for a in range(x.ndim) if a not in axes)
        candidates = x.transpose(self.kept + axes)
        self.transposed_shape = candidates.shape
        candidates = candidates.reshape(*candidates.shape[: len(self.kept)], -1)
        self.first = candidates.argmax(axis=-1)[..., None]
        y: Array = xp.take_along_axis(candidates, self.first, axis=-1)
        kept_shape = tuple(1 if a in axes else extent for a, extent in enumerate(x.shape))
        return y.reshape(kept_shape) if keepdims else y[..., 0]

    def backward(self, grad_output: Array) -> Gradients:
        xp = namespace(grad_output)
        extents = self.transposed_shape[: len(self.kept)]
        grad = xp.zeros((*extents, math.prod(self.transposed_shape[len(self.kept) :])), grad_output.dtype)
        xp.put_along_axis(grad, self.first, grad_output.reshape(*extents, 1), axis=-1)
        order = self.kept + self.axes
        inverse = sorted(range(len(order)), key=lambda k: order[k])
        return (grad.reshape(self.transposed_shape).transpose(inverse),)


def _spread(grad: Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """`grad` of a reduction repeated over the axes that were reduced."""
    kept = tuple(1 if a in axes else extent for a, extent in enumerate(shape))
    spread: Array = namespace(grad).broadcast_to(grad.reshape(kept), shape)
    return spread


def sum(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` (one, several, or all when None); over nothing it is 0.

    Raises:
        ArgumentError: x doesn't have `axis`.
    """
    return Sum()(x, axes=_axes(axis, x.ndim, "sum"), keepdims=keepdims)


def mean(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The mean over `axis` (one, several, or all when None).

    Raises:
        ArgumentError: x doesn't have `axis`.
        ShapeError: there is nothing to average.
    """
    axes = _axes(axis, x.ndim, "mean")
    _require_elements(x, axes, "mean")
    return Mean()(x, axes=axes, keepdims=keepdims)


def max(x: Tensor, axis: Axes = None, keepdims: bool = False) -> Tensor:
    """The largest element over `axis` (one, several, or all when None).

    Choice: where several elements are the largest, the gradient goes to the first of them in row-major order, as
    in max pooling and PyTorch's ``max(dim)``; PyTorch's ``amax``, TensorFlow and JAX share it among them.

    Raises:
        ArgumentError: x doesn't have `axis`.
        ShapeError: there is nothing to choose from.
    """
    axes = _axes(axis, x.ndim, "max")
    _require_elements(x, axes, "max")
    return Max()(x, axes=axes, keepdims=keepdims)


def _axes(axis: Axes, ndim: int, what: str) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    axes = tuple(sorted(axis_of(a, ndim, what) for a in (axis if isinstance(axis, tuple) else (axis,))))
    if len(set(axes)) != len(axes):
        raise ArgumentError(f"{what}: an axis can be reduced once, got {axis}")
    return axes


def _require_elements(x: Tensor, axes: tuple[int, ...], what: str) -> None:
    if any(x.shape[a] == 0 for a in axes):
        raise ShapeError(f"{what}: expected at least one element along each of the axes {axes}, got shape {x.shape}")
