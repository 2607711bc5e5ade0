"""Parameter and Module: named values, found by walking attributes.

A module is any object whose attributes hold parameters, arrays and other modules; its name for a value is the
path of attributes that leads there::

    class Head(Module):
        def __init__(self, rng):
            self.conv = Conv2d(256, 256, 3, padding=1, rng=rng)
            self.logits = [Conv2d(256, 3, 1, rng=rng)]

    Head(rng).parameters().keys()   # conv.weight, conv.bias, logits.0.weight, logits.0.bias

There is no flag for training or inference: what differs between them is an argument of the call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from refnet.arrays import Array, is_array, library, namespace, on_device_of
from refnet.autograd import Tensor
from refnet.errors import ArgumentError, CheckpointError, DTypeError

DType: TypeAlias = "type[np.floating[Any]] | np.dtype[Any]"


class Parameter(Tensor):
    """A tensor that training changes, in place; kept contiguous (C order), so that an optimiser can walk it in blocks.

    Raises:
        DTypeError: the values aren't floating point.
    """

    __slots__ = ()

    def __init__(self, data: Any, *, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad=requires_grad)
        if self.data.dtype.kind != "f":
            raise DTypeError(f"Parameter: values must be floating point, got {self.data.dtype}")
        self.data = namespace(self.data).asarray(self.data, order="C")

    def __repr__(self) -> str:
        return f"Parameter{super().__repr__().removeprefix('Tensor')}"


class Module:
    """A part of a network.

    An attribute that is a :class:`Parameter` is a parameter; one that is a plain array is a buffer (a running
    mean, say: kept with the parameters but not trained); modules are entered, and so are lists, tuples and
    dictionaries, by index or key, for the parameters and modules in them. Anything else isn't looked at.
    A parameter or module that is reached twice counts once, by its first name.
    """

    def parameters(self) -> dict[str, Parameter]:
        """The parameters by dotted name, in the order in which the attributes were set."""
        return {name: value for name, _, value in self._values() if isinstance(value, Parameter)}

    def buffers(self) -> dict[str, Array]:
        """The arrays that aren't parameters, by dotted name; the arrays themselves."""
        return {name: value for name, _, value in self._values() if not isinstance(value, Parameter)}

    def state(self) -> dict[str, Array]:
        """Everything that a checkpoint must hold: the arrays of the parameters and the buffers, not copies."""
        return {name: _array(value) for name, _, value in self._values()}

    def load_state(self, state: Mapping[str, Array], *, strict: bool = True) -> list[str]:
        """Copy the values of `state` into the parameters and buffers of the same names.

        Args:
            strict: the names must be exactly those of :meth:`state`. Otherwise names that only one side knows are
                passed over; shapes and data types must agree in any case.

        Returns:
            The names that kept their values since `state` hasn't them; none if `strict`.

        Raises:
            CheckpointError: a name, shape or data type doesn't agree. The message lists all of them, and nothing
                was changed.
        """
        return copy_state(self.state(), state, strict=strict, what=f"load_state of {type(self).__name__}")

    def astype(self, dtype: DType) -> None:
        """Convert every floating-point parameter and buffer, in this module, and forget the gradients.

        The arrays are new ones, so make the optimiser afterwards.

        Raises:
            DTypeError: `dtype` is neither float32 nor float64.
        """
        target = np.dtype(dtype)
        if target not in (np.float32, np.float64):
            raise DTypeError(f"astype: expected float32 or float64, got {target}")
        self._replace(lambda array: array.astype(target, copy=False) if array.dtype.kind == "f" else array)

    def to(self, device: str) -> None:
        """Move every parameter and buffer to `device`, ``"cpu"`` or ``"cuda"``, and forget the gradients.

        The arrays are new ones, so make the optimiser afterwards.

        Raises:
            DeviceError: nobody has imported CuPy.
        """
        there = library(device).empty(0)
        self._replace(lambda array: on_device_of(array, there))

    def _replace(self, change: Callable[[Array], Array]) -> None:
        """Put what `change` makes of each parameter's and buffer's array into its place."""
        for name, owner, value in list(self._values()):
            if isinstance(value, Parameter):
                value.data = change(value.data)
                value.grad = None
            else:
                setattr(owner, name.rpartition(".")[2], change(value))

    def zero_grad(self) -> None:
        """Forget the gradient of every parameter."""
        for parameter in self.parameters().values():
            parameter.grad = None

    def count(self) -> int:
        """The number of values in all parameters, trained or not; buffers aren't counted."""
        return sum(parameter.size for parameter in self.parameters().values())

    def _values(self) -> Iterator[tuple[str, Module, Parameter | Array]]:
        """Every parameter and buffer with its name and the module that it is an attribute of.

        Raises:
            ArgumentError: two values have one name, which only keys of dictionaries can bring about.
        """
        names: set[str] = set()
        for name, owner, value in _walk_module(self, "", set()):
            if name in names:
                raise ArgumentError(f"{type(self).__name__}: two parameters or buffers are called {name!r}")
            names.add(name)
            yield name, owner, value


def _walk_module(module: Module, prefix: str, seen: set[int]) -> Iterator[tuple[str, Module, Parameter | Array]]:
    if id(module) in seen:
        return
    seen.add(id(module))
    for attribute, value in vars(module).items():
        if is_array(value):
            yield prefix + attribute, module, value
        else:
            yield from _walk(value, prefix + attribute, module, seen)


def _walk(value: Any, name: str, owner: Module, seen: set[int]) -> Iterator[tuple[str, Module, Parameter | Array]]:
    if isinstance(value, Parameter):
        if id(value) not in seen:
            seen.add(id(value))
            yield name, owner, value
    elif isinstance(value, Module):
        yield from _walk_module(value, f"{name}.", seen)
    elif isinstance(value, list | tuple | dict):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _walk(item, f"{name}.{key}", owner, seen)


def _array(value: Parameter | Array) -> Array:
    return value.data if isinstance(value, Parameter) else value


def copy_state(
    targets: Mapping[str, Array], state: Mapping[str, Array], *, strict: bool = True, what: str
) -> list[str]:
    """Copy the arrays of `state` into those of `targets` that have the same names, wherever they live; all or none.

    Returns:
        The names of `targets` that `state` hasn't; none if `strict`.

    Raises:
        CheckpointError: a shape or data type doesn't agree, or, if `strict`, a name.
    """
    missing = [name for name in targets if name not in state]
    problems = [
        f"{name}: expected {targets[name].dtype} {targets[name].shape}, got {value.dtype} {value.shape}"
        for name, value in state.items()
        if name in targets and (value.shape != targets[name].shape or value.dtype != targets[name].dtype)
    ]
    if strict:
        problems += [f"{name}: missing" for name in missing]
        problems += [f"{name}: unexpected" for name in state if name not in targets]
    if problems:
        raise CheckpointError(f"{what}: {len(problems)} values don't agree:\n  " + "\n  ".join(problems))
    for name, value in state.items():
        if name in targets:
            targets[name][...] = on_device_of(value, targets[name])
    return missing
