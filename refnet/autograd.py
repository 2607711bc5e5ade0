"""Reverse-mode automatic differentiation over arrays: Tensor, Function, backward.

A :class:`Function` is one differentiable operation; its instance is the context, so that ``forward`` saves on
``self`` what ``backward`` needs, and the two stand side by side. Arrays are positional, parameters are keywords::

    class Exp(Function):
        def forward(self, x):
            self.y = namespace(x).exp(x)
            return self.y

        def backward(self, grad_output):
            return (grad_output * self.y,)

    y = Exp()(x)

Each call to a Function whose inputs require gradients records itself as the creator of its result.
:func:`backward` walks the creators from the loss to the leaves, each after all of its users:

.. math:: \\bar x_i = \\sum_{f : x_i \\in \\mathrm{inputs}(f)} J_{f,i}^{\\top} \\bar y_f

Derivatives are first order: gradients are plain arrays. Anchors, targets, proposals and kept indices are plain
arrays too, so the type says where gradients stop. The operators of Tensor live here since they and Tensor
need each other; every other operation is in :mod:`refnet.ops`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

import numpy as np

from refnet.arrays import Array, device_of, is_array, namespace, on_device_of, to_host
from refnet.errors import DTypeError, GraphError, ShapeError

_recording: ContextVar[bool] = ContextVar("recording", default=True)
_recomputing: ContextVar[bool] = ContextVar("recomputing", default=False)


@contextmanager
def no_grad() -> Iterator[None]:
    """Within the block, in this thread or task, no graph is recorded: results don't require gradients."""
    token = _recording.set(False)
    try:
        yield
    finally:
        _recording.reset(token)


def is_recomputing() -> bool:
    """Whether this is the second run of what was run in :func:`checkpoint` before: running averages have moved then."""
    return _recomputing.get()


def is_recording() -> bool:
    """Whether results require gradients here if what they are made of does: not within :func:`no_grad`."""
    return _recording.get()


class Tensor:
    """An array, and the way gradients reach it.

    Attributes:
        data: the values, a NumPy or CuPy array.
        grad: the gradient that :func:`backward` added up here, or None; only leaves keep one. It may share memory
            with others: replace it, but don't write into it.
        requires_grad: whether gradients flow to this tensor.
        creator: the Function that computed it, or None for a leaf.

    Raises:
        DTypeError: gradients are asked for a tensor that isn't floating point.
    """

    __slots__ = ("__weakref__", "creator", "data", "grad", "requires_grad")
    __array_ufunc__ = None  # array + tensor is Tensor.__radd__, not an array of objects

    def __init__(self, data: Any, *, requires_grad: bool = False) -> None:
        self.data: Array = data if is_array(data) else np.asarray(data)
        if requires_grad and self.data.dtype.kind != "f":
            raise DTypeError(f"Tensor: only floating point can require gradients, got {self.data.dtype}")
        self.grad: Array | None = None
        self.requires_grad = requires_grad
        self.creator: Function | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def size(self) -> int:
        return self.data.size

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.data.dtype

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({to_host(self.data)!r}{grad})"

    def item(self) -> float:
        """The value of a tensor with one element, as a Python number."""
        return float(self.data.item())

    def detach(self) -> Tensor:
        """The same values as a leaf that gradients don't reach."""
        return Tensor(self.data)

    def backward(self, grad: Array | None = None) -> None:
        """See :func:`backward`."""
        backward(self, grad)

    def __add__(self, other: Operand) -> Tensor:
        return Add()(self, other)

    def __radd__(self, other: Operand) -> Tensor:
        return Add()(other, self)

    def __sub__(self, other: Operand) -> Tensor:
        return Subtract()(self, other)

    def __rsub__(self, other: Operand) -> Tensor:
        return Subtract()(other, self)

    def __mul__(self, other: Operand) -> Tensor:
        return Multiply()(self, other)

    def __rmul__(self, other: Operand) -> Tensor:
        return Multiply()(other, self)

    def __truediv__(self, other: Operand) -> Tensor:
        return Divide()(self, other)

    def __rtruediv__(self, other: Operand) -> Tensor:
        return Divide()(other, self)

    def __neg__(self) -> Tensor:
        return Negate()(self)

    def __pow__(self, exponent: float) -> Tensor:
        return Power()(self, exponent=exponent)

    def __matmul__(self, other: Operand) -> Tensor:
        return MatMul()(self, other)

    def __rmatmul__(self, other: Operand) -> Tensor:
        return MatMul()(other, self)

    def __getitem__(self, index: Any) -> Tensor:
        return GetItem()(self, index=index)

    def __bool__(self) -> bool:
        return bool(self.data)


Operand: TypeAlias = "Tensor | Array | float"
Node: TypeAlias = "Function | Tensor"  # of the graph: what computed a tensor, or a leaf
# arithmetic on arrays without axes gives NumPy's scalars; Tensor and the engine make them arrays again
Result: TypeAlias = Array | np.generic
Gradients: TypeAlias = tuple[Result | None, ...]


class Function:
    """A differentiable operation; its instance is the context of one application.

    Subclasses define ``forward(self, *arrays, **parameters)``, which returns an array, and
    ``backward(self, grad_output)``, which returns a gradient for each input, in order; None where the input
    needs none (``self.needs_grad`` says which do). A gradient may still have the broadcast shape of the
    result: the engine sums it back to the input's shape.

    The graph is made of Functions and leaves, and holds no other tensor: an activation lives as long as somebody uses
    it or a Function keeps its array.

    Attributes:
        needs_grad: whether each input needs a gradient.
        sources: what gets the gradient of each input: its creator, itself if it is a leaf, None where none is needed.
        forms: shape and type of each input.
        consumed: whether :func:`backward` has passed here and freed what was kept.
    """

    needs_grad: tuple[bool, ...]
    sources: tuple[Node | None, ...]
    forms: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]
    consumed: bool = False

    def forward(self, *arrays: Any, **parameters: Any) -> Result:
        raise NotImplementedError

    def backward(self, grad_output: Array) -> Gradients:
        raise NotImplementedError

    def __call__(self, *inputs: Any, **parameters: Any) -> Tensor:
        """Run forward on the data of `inputs`; record the graph if a gradient will be wanted.

        A Python number takes the data type of the tensors beside it, and a plain array of NumPy's, a constant, is
        copied to the device of these.

        Raises:
            DTypeError: floating-point inputs of different precision are mixed.
            DeviceError: inputs live on different devices.
        """
        name = type(self).__name__
        tensors = _as_tensors(inputs, name)
        device_of((t.data for t in tensors), what=name)
        self.needs_grad = tuple(t.requires_grad and is_recording() for t in tensors)
        result = Tensor(self.forward(*(t.data for t in tensors), **parameters))
        if any(self.needs_grad):
            self.sources = tuple(
                _node(t) if needed else None for t, needed in zip(tensors, self.needs_grad, strict=True)
            )
            self.forms = tuple((t.shape, t.dtype) for t in tensors)
            result.requires_grad = True
            result.creator = self
        return result


def _as_tensors(inputs: Sequence[Any], name: str) -> tuple[Tensor, ...]:
    dtype: np.dtype[Any] | None = None
    for value in inputs:
        if hasattr(value, "dtype") and value.dtype.kind == "f" and not isinstance(value, np.generic):
            if dtype is not None and value.dtype != dtype:
                raise DTypeError(f"{name}: inputs must have one floating-point type, got {dtype} and {value.dtype}")
            dtype = value.dtype
    like = _reference(inputs)
    xp = namespace(like)
    return tuple(
        value
        if isinstance(value, Tensor)
        else Tensor(on_device_of(value, like) if isinstance(value, np.ndarray) else xp.asarray(value, dtype=dtype))
        for value in inputs
    )


def _reference(inputs: Sequence[Any]) -> Array | None:
    """An array that lives where the others belong: a tensor's, or else one that isn't NumPy's, or else any."""
    arrays = [value for value in inputs if is_array(value)]
    tensors = [value.data for value in inputs if isinstance(value, Tensor)]
    ours = [array for array in arrays if not isinstance(array, np.ndarray)]
    return next(iter([*tensors, *ours, *arrays]), None)


def _node(tensor: Tensor) -> Node:
    return tensor if tensor.creator is None else tensor.creator


def backward(root: Tensor, grad: Array | None = None) -> None:
    """Add the gradient of `root` to ``.grad`` of every leaf that it depends on and that requires one.

    The graph is freed as it is consumed, so that the memory of an activation is returned as soon as its
    gradient is known. `grad` is the gradient of the loss with respect to `root`; a scalar's is 1.

    Raises:
        GraphError: `root` requires no gradient; it isn't a scalar and `grad` is missing; or this graph, or a
            part of it, was already consumed by an earlier call.
        ShapeError: `grad` hasn't the shape of `root`.
    """
    if not root.requires_grad:
        raise GraphError("backward: the tensor depends on nothing that requires gradients")
    xp = namespace(root.data)
    if grad is None:
        if root.size != 1:
            raise GraphError(f"backward: a gradient is needed for a result that isn't a scalar, got shape {root.shape}")
        grad = xp.ones_like(root.data)
    elif grad.shape != root.shape:
        raise ShapeError(
            f"backward: the gradient must have the shape of the tensor, expected {root.shape}, got {grad.shape}"
        )
    for leaf, gradient in _leaf_gradients(root, grad):
        leaf.grad = gradient if leaf.grad is None else xp.asarray(leaf.grad + gradient)


def _leaf_gradients(root: Tensor, grad: Array) -> Iterator[tuple[Tensor, Array]]:
    """Every leaf that `root` depends on and that requires a gradient, with it; the graph is consumed on the way."""
    gradients = _Gradients()
    gradients.add(_node(root), grad)
    order = _topological_order(_node(root))
    while order:
        node = order.pop()
        if isinstance(node, Tensor):
            yield node, gradients.pop(node)
        else:
            _pass_back(node, gradients)


class _Gradients:
    """The gradients that nodes have received so far, while these wait for their turn.

    A function may hand one array to several tensors, or keep it, so what came from a function is never written into.
    The sum of two is an array of ours, which all that follow are added to in place.
    """

    def __init__(self) -> None:
        self._received: dict[int, Array] = {}  # by the node's id
        self._sums: set[int] = set()  # of these, what we have added up

    def add(self, node: Node, contribution: Array) -> None:
        key = id(node)
        present = self._received.get(key)
        if present is None:
            self._received[key] = contribution
        elif key in self._sums:
            present += contribution
        else:
            # arithmetic turns arrays without axes into scalars
            self._received[key] = namespace(present).asarray(present + contribution)
            self._sums.add(key)

    def pop(self, node: Node) -> Array:
        self._sums.discard(id(node))
        return self._received.pop(id(node))


def _pass_back(function: Function, gradients: _Gradients) -> None:
    """Hand the gradient of what `function` computed to what it computed it of.

    When this returns, nobody holds that gradient any more, or the arrays that the function kept.
    """
    gradient = gradients.pop(function)
    xp = namespace(gradient)
    input_gradients = function.backward(gradient)
    for source, (shape, dtype), contribution in zip(function.sources, function.forms, input_gradients, strict=True):
        if source is None:
            continue
        assert contribution is not None, f"{type(function).__name__}.backward returned no gradient for an input"
        contribution = _unbroadcast(xp.asarray(contribution), shape)
        assert contribution.dtype == dtype, (type(function).__name__, contribution.dtype, dtype)
        gradients.add(source, contribution)
    vars(function).clear()
    function.consumed = True


def _topological_order(root: Node) -> list[Node]:
    """Every node that `root` depends on, after all that it depends on; `root` comes last.

    What a node was made of comes in the order of its inputs, as it was computed. So the way back frees first what was
    kept last.
    """
    order: list[Node] = []
    seen: set[int] = set()
    stack: list[tuple[Node, bool]] = [(root, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
            continue
        if id(node) in seen:
            continue
        seen.add(id(node))
        stack.append((node, True))
        if isinstance(node, Tensor):
            continue
        if node.consumed:
            raise GraphError("backward: this graph was consumed by an earlier backward; compute the result again")
        stack.extend((source, False) for source in reversed(node.sources) if source is not None)
    return order


def _unbroadcast(grad: Array, shape: tuple[int, ...]) -> Array:
    """The adjoint of broadcasting: sum `grad` over the axes along which `shape` was repeated."""
    if grad.shape == shape:
        return grad
    added = grad.ndim - len(shape)
    stretched = (added + axis for axis, extent in enumerate(shape) if extent == 1)
    total: Array = namespace(grad).asarray(grad.sum(axis=(*range(added), *stretched)))
    return total.reshape(shape)


class Checkpoint(Function):
    """What `run` makes of x, of which only x is kept: the backward pass runs it again (see :func:`checkpoint`)."""

    def forward(self, x: Array, *parameters: Array, run: Callable[[Tensor], Tensor]) -> Array:
        self.x, self.run = x, run
        # recorded as without this function, for what is one operation where nothing is recorded may be several here
        return run(Tensor(x, requires_grad=self.needs_grad[0])).data

    def backward(self, grad_output: Array) -> Gradients:
        x = Tensor(self.x, requires_grad=self.needs_grad[0])
        recording, recomputing = _recording.set(True), _recomputing.set(True)
        try:
            y = self.run(x)
        finally:
            _recording.reset(recording)
            _recomputing.reset(recomputing)
        found = {id(leaf): gradient for leaf, gradient in _leaf_gradients(y, grad_output)}
        return tuple(found.get(id(leaf)) for leaf in (x, *self.sources[1:]))


def checkpoint(run: Callable[[Tensor], Tensor], x: Tensor, parameters: Iterable[Tensor]) -> Tensor:
    """``run(x)``, whose activations are dropped, and computed again when the backward pass needs them.

    Of n parts of a network that are run so, memory holds the inputs of all and the activations of one, instead of the
    activations of all; it costs a second forward pass (Chen et al. 2016, "Training Deep Nets with Sublinear Memory
    Cost", section 4). Gradients are the same, bit for bit, but that to x is added up here before others join it.

    Args:
        run: must give the same at each call, and draw nothing at random. What it changes besides, it must change once
            only: the second time :func:`is_recomputing` holds.
        parameters: all leaves besides x that `run` gives gradients to.
    """
    return Checkpoint()(x, *parameters, run=run)


class Add(Function):
    """a + b."""

    def forward(self, a: Array, b: Array) -> Result:
        total: Result = a + b
        return total

    def backward(self, grad_output: Array) -> Gradients:
        return grad_output, grad_output


class Subtract(Function):
    """a - b."""

    def forward(self, a: Array, b: Array) -> Result:
        difference: Result = a - b
        return difference

    def backward(self, grad_output: Array) -> Gradients:
        return grad_output, -grad_output


class Multiply(Function):
    """a b, element by element."""

    def forward(self, a: Array, b: Array) -> Result:
        self.a, self.b = a, b
        product: Result = a * b
        return product

    def backward(self, grad_output: Array) -> Gradients:
        return (
            grad_output * self.b if self.needs_grad[0] else None,
            grad_output * self.a if self.needs_grad[1] else None,
        )


class Divide(Function):
    """a / b, element by element."""

    def forward(self, a: Array, b: Array) -> Result:
        quotient: Result = a / b
        self.b, self.y = b, quotient
        return quotient

    def backward(self, grad_output: Array) -> Gradients:
        grad_a = grad_output / self.b
        return grad_a, -grad_a * self.y if self.needs_grad[1] else None


class Negate(Function):
    """-x."""

    def forward(self, x: Array) -> Result:
        return -x

    def backward(self, grad_output: Array) -> Gradients:
        return (-grad_output,)


class Power(Function):
    """x to a constant power; the derivative is p x^(p-1)."""

    def forward(self, x: Array, *, exponent: float) -> Result:
        self.x, self.exponent = x, exponent
        return x**exponent

    def backward(self, grad_output: Array) -> Gradients:
        if self.exponent == 0:  # 0 * x**-1 would be 0 * inf at x = 0
            return (grad_output * 0,)
        return (grad_output * (self.exponent * self.x ** (self.exponent - 1)),)


class MatMul(Function):
    """a @ b over the last two axes; leading axes broadcast. Gradients are g b^T and a^T g.

    Raises:
        ShapeError: an input has fewer than two axes, or the inner extents differ.
    """

    def forward(self, a: Array, b: Array) -> Result:
        if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
            raise ShapeError(f"matmul: expected (..., m, k) and (..., k, n), got {a.shape} and {b.shape}")
        self.a, self.b = a, b
        product: Array = a @ b
        return product

    def backward(self, grad_output: Array) -> Gradients:
        return (
            grad_output @ self.b.swapaxes(-1, -2) if self.needs_grad[0] else None,
            self.a.swapaxes(-1, -2) @ grad_output if self.needs_grad[1] else None,
        )


class GetItem(Function):
    """x[index] with slices, integers, boolean masks or integer arrays; a repeated element adds up its gradients.

    NumPy's arrays may index a tensor on a device: they are copied there.
    """

    def forward(self, x: Array, *, index: Any) -> Result:
        self.shape, self.index = x.shape, _without_tensors(index)
        result: Array = x[index_beside(x, self.index)]
        return result if is_array(result) else namespace(x).asarray(result)

    def backward(self, grad_output: Array) -> Gradients:
        return (scatter(grad_output, self.index, self.shape),)


def _without_tensors(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(_without_tensors(part) for part in index)
    return index.data if isinstance(index, Tensor) else index


def scatter(grad_output: Array, index: Any, shape: tuple[int, ...]) -> Array:
    """The adjoint of ``x[index]`` for x of `shape`: zeros, and `grad_output` added up at the elements it came from."""
    xp = namespace(grad_output)
    grad: Array = xp.zeros(shape, grad_output.dtype)
    where = index_beside(grad_output, index)
    if _may_repeat(index):
        xp.add.at(grad, where, grad_output)
    else:
        grad[where] = grad_output
    return grad


def index_beside(x: Array, index: Any) -> Any:
    """`index` for `x`: on a device, its arrays are copied there, masks as the positions that they pick.

    How many those are only the host can tell without waiting for the device.
    """
    if isinstance(x, np.ndarray):
        return index
    parts = index if isinstance(index, tuple) else (index,)
    arrays = [np.asarray(part) if isinstance(part, list) else part for part in parts]
    masks = [part.nonzero() if isinstance(part, np.ndarray) and part.dtype.kind == "b" else (part,) for part in arrays]
    return tuple(on_device_of(p, x) if isinstance(p, np.ndarray) else p for positions in masks for p in positions)


def _may_repeat(index: Any) -> bool:
    """Whether ``x[index]`` can hold an element of x twice: only integer arrays (or lists) can repeat.

    A device isn't asked: an array that lives there can.
    """
    parts = index if isinstance(index, tuple) else (index,)
    arrays = [part for part in parts if isinstance(part, list) or is_array(part)]
    if not arrays:
        return False
    if len(arrays) > 1:
        return True
    part = np.asarray(arrays[0]) if isinstance(arrays[0], list) else arrays[0]
    if part.dtype.kind == "b":
        return False
    if not isinstance(part, np.ndarray):
        return True
    if part.size and bool((part < 0).any()):  # -1 and the last position are one element
        return True
    return bool(np.unique(part).size != part.size)
