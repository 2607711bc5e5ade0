"""Operations that move elements and compute nothing: reshape, transpose, concatenate, interleave, stack, take, pad."""

from collections.abc import Sequence

import numpy as np

from refnet.arrays import Array, namespace, on_device_of
from refnet.autograd import Function, Gradients, Tensor, scatter
from refnet.errors import ArgumentError, DTypeError, ShapeError


class Reshape(Function):
    """The same elements, in the same order, under another shape."""

    def forward(self, x: Array, *, shape: tuple[int, ...]) -> Array:
        self.shape = x.shape
        return x.reshape(shape)

    def backward(self, grad_output: Array) -> Gradients:
        return (grad_output.reshape(self.shape),)


class Transpose(Function):
    """Axis k of the result is axis axes[k] of x; the adjoint is the inverse permutation."""

    def forward(self, x: Array, *, axes: tuple[int, ...]) -> Array:
        self.axes = axes
        return x.transpose(axes)

    def backward(self, grad_output: Array) -> Gradients:
        inverse = sorted(range(len(self.axes)), key=lambda k: self.axes[k])
        return (grad_output.transpose(inverse),)


class Concatenate(Function):
    """Arrays one after another along an axis; the adjoint cuts the gradient at the seams."""

    def forward(self, *arrays: Array, axis: int) -> Array:
        self.axis, self.extents = axis, [a.shape[axis] for a in arrays]
        y: Array = namespace(*arrays).concatenate(arrays, axis=axis)
        return y

    def backward(self, grad_output: Array) -> Gradients:
        grads, start = [], 0
        for extent in self.extents:
            part = (slice(None),) * self.axis + (slice(start, start + extent),)
            grads.append(grad_output[part])
            start += extent
        return tuple(grads)


class Interleave(Function):
    """Rows of several arrays among one another, each at its position; the adjoint hands every array its own."""

    def forward(self, *arrays: Array, positions: Sequence[Array]) -> Array:
        self.positions = [on_device_of(rows, array) for rows, array in zip(positions, arrays, strict=True)]
        y: Array = namespace(*arrays).empty((sum(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype)
        for array, rows in zip(arrays, self.positions, strict=True):
            y[rows] = array
        return y

    def backward(self, grad_output: Array) -> Gradients:
        return tuple(grad_output.take(rows, axis=0) for rows in self.positions)


class Stack(Function):
    """Arrays of one shape along a new axis; the adjoint takes them apart."""

    def forward(self, *arrays: Array, axis: int) -> Array:
        self.axis, self.count = axis, len(arrays)
        y: Array = namespace(*arrays).stack(arrays, axis=axis)
        return y

    def backward(self, grad_output: Array) -> Gradients:
        grads = namespace(grad_output).moveaxis(grad_output, self.axis, 0)
        return tuple(grads[k] for k in range(self.count))


class Take(Function):
    """x at `indices` along an axis; an element that is taken twice adds up its gradients."""

    def forward(self, x: Array, *, indices: Array, axis: int) -> Array:
        self.shape, self.indices, self.axis = x.shape, indices, axis
        xp = namespace(x)
        y: Array = xp.asarray(xp.take(x, on_device_of(indices, x), axis=axis))
        return y

    def backward(self, grad_output: Array) -> Gradients:
        index = (*(slice(None),) * self.axis, self.indices)
        return (scatter(grad_output, index, self.shape),)


class Pad(Function):
    """x within a border of a constant; the adjoint cuts the border off."""

    def forward(self, x: Array, *, widths: tuple[tuple[int, int], ...], value: float) -> Array:
        self.inside = tuple(slice(b, b + extent) for (b, _), extent in zip(widths, x.shape, strict=True))
        y: Array = namespace(x).pad(x, widths, constant_values=value)
        return y

    def backward(self, grad_output: Array) -> Gradients:
        return (grad_output[self.inside],)


def reshape(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The same elements in row-major order under `shape`, of which one extent may be -1.

    Raises:
        ShapeError: `shape` doesn't hold as many elements as x.
    """
    known, unknown = 1, 0
    for extent in shape:
        known, unknown = (known, unknown + 1) if extent == -1 else (known * extent, unknown)
    fits = known == x.size if unknown == 0 else unknown == 1 and known != 0 and x.size % known == 0
    if not fits or any(extent < -1 for extent in shape):
        raise ShapeError(f"reshape: {tuple(shape)} doesn't hold the {x.size} elements of shape {x.shape}")
    return Reshape()(x, shape=tuple(shape))


def transpose(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Permute the axes: axis k of the result is axis ``axes[k]`` of x; None reverses them.

    Raises:
        ArgumentError: `axes` isn't a permutation of the axes of x.
    """
    order = tuple(range(x.ndim))[::-1] if axes is None else tuple(a + x.ndim if a < 0 else a for a in axes)
    if sorted(order) != list(range(x.ndim)):
        raise ArgumentError(f"transpose: axes must be a permutation of {x.ndim} axes, got {axes}")
    return Transpose()(x, axes=order)


def concatenate(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Join tensors along an axis that they have.

    Raises:
        ShapeError: there are none, or they differ in extent along another axis.
        ArgumentError: they don't have `axis`.
    """
    if not tensors:
        raise ShapeError("concatenate: expected at least one tensor, got none")
    at = axis_of(axis, tensors[0].ndim, "concatenate")
    if len({(*t.shape[:at], *t.shape[at + 1 :]) for t in tensors}) > 1 or len({t.ndim for t in tensors}) > 1:
        raise ShapeError(f"concatenate: extents must agree except along axis {at}, got {[t.shape for t in tensors]}")
    return Concatenate()(*tensors, axis=at)


def interleave(tensors: Sequence[Tensor], positions: Sequence[Array]) -> Tensor:
    """The rows of all tensors in one: row i of tensor k becomes row ``positions[k][i]``.

    Positions are plain arrays of the host.

    Raises:
        ShapeError: there are no tensors, their rows differ in shape, or there isn't one position a row.
        ArgumentError: the positions aren't the numbers from 0 to that of all rows, each once.
    """
    if not tensors or len({t.shape[1:] for t in tensors}) > 1:
        raise ShapeError(f"interleave: expected tensors with rows of one shape, got {[t.shape for t in tensors]}")
    if [p.shape for p in positions] != [(len(t),) for t in tensors]:
        raise ShapeError(
            f"interleave: expected one position a row, {[len(t) for t in tensors]}, got {[p.shape for p in positions]}"
        )
    everywhere = np.concatenate([np.asarray(p) for p in positions])
    if not np.array_equal(np.sort(everywhere), np.arange(len(everywhere))):
        raise ArgumentError(f"interleave: positions must be 0 to {len(everywhere) - 1}, each once, got {everywhere}")
    return Interleave()(*tensors, positions=positions)


def stack(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Join tensors of one shape along a new axis, which is `axis` of the result.

    Raises:
        ShapeError: there are none, or their shapes differ.
        ArgumentError: the result doesn't have `axis`.
    """
    if len({t.shape for t in tensors}) != 1:
        raise ShapeError(f"stack: expected tensors of one shape, got {[t.shape for t in tensors]}")
    return Stack()(*tensors, axis=axis_of(axis, tensors[0].ndim + 1, "stack"))


def take(x: Tensor, indices: Array, axis: int = 0) -> Tensor:
    """The elements of x at `indices` along `axis`, in that order, which takes the place of the axis.

    The gradient of an element that is taken more than once is the sum; negative indices count from the end. Indices
    that live on a device must be in range: looking would make the host wait.

    Raises:
        DTypeError: `indices` isn't an array of integers.
        ArgumentError: an index is out of range, or x doesn't have `axis`.
    """
    at = axis_of(axis, x.ndim, "take")
    extent = x.shape[at]
    if indices.dtype.kind not in "iu":
        raise DTypeError(f"take: indices must be integers, got {indices.dtype}")
    if (
        isinstance(indices, np.ndarray)
        and indices.size
        and not (-extent <= int(indices.min()) and int(indices.max()) < extent)
    ):
        raise ArgumentError(
            f"take: indices along axis {at} must be in [-{extent}, {extent}), "
            f"got {int(indices.min())} to {int(indices.max())}"
        )
    return Take()(x, indices=indices, axis=at)


def pad(x: Tensor, widths: Sequence[tuple[int, int]], value: float = 0) -> Tensor:
    """Put a border of `value` around x: ``widths[k]`` elements before and after it along axis k.

    Raises:
        ArgumentError: `widths` hasn't a pair of non-negative integers for each axis.
    """
    if len(widths) != x.ndim or any(before < 0 or after < 0 for before, after in widths):
        raise ArgumentError(f"pad: expected {x.ndim} pairs of non-negative widths, got {widths}")
    return Pad()(x, widths=tuple(widths), value=value)


def axis_of(axis: int, ndim: int, what: str) -> int:
    """`axis` counted from the front.

    Raises:
        ArgumentError: there is no such axis among `ndim`.
    """
    if not -ndim <= axis < ndim:
        raise ArgumentError(f"{what}: axis must be in [-{ndim}, {ndim}), got {axis}")
    return axis % ndim
