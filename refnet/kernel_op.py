"""KernelOp: one NumPy specification, any number of kernels.

The body of a function under ``@kernel_op`` *is* the specification. A kernel is another callable with the same
signature, registered for a device; it then runs whenever the arrays live there::

    @kernel_op
    def nms(boxes, scores, *, iou_threshold): ...

    nms(boxes, scores, iou_threshold=0.5)      # NumPy arrays: what is registered for "cpu", else the specification
    nms.register("cuda", my_nms)               # CuPy arrays run this from now on
    nms.resolve("cuda")                        # what would run
    with nms.using(my_nms): ...                # inside this block only, in this thread or task only

There is no fallback from a device to another: arrays on a device for which nothing is registered are an error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Generic, ParamSpec, TypeVar

from refnet.arrays import device_of
from refnet.errors import KernelError

P = ParamSpec("P")
R = TypeVar("R")

_operations: dict[str, KernelOp[..., Any]] = {}


class KernelOp(Generic[P, R]):
    """An operation on raw arrays: its specification and the kernels that may replace it.

    Attributes:
        name: the specification's name.
        specification: the normative NumPy function.
    """

    def __init__(self, specification: Callable[P, R]) -> None:
        self.name = specification.__name__
        self.specification = specification
        self._kernels: dict[str, Callable[P, R]] = {}
        self._scoped: ContextVar[dict[str, Callable[P, R]] | None] = ContextVar(f"{self.name}_kernels", default=None)
        functools.update_wrapper(self, specification)
        if self.name in _operations:
            raise KernelError(f"kernel_op: the name {self.name!r} is taken")
        _operations[self.name] = self

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        device = device_of(_flat((*args, *kwargs.values())), what=self.name)
        return self.resolve(device)(*args, **kwargs)

    def register(self, device: str, kernel: Callable[P, R]) -> None:
        """Run `kernel` for arrays on `device` from now on, in every thread."""
        self._kernels[device] = kernel

    def unregister(self, device: str) -> None:
        """Forget the kernel of `device`, if there is one."""
        self._kernels.pop(device, None)

    def resolve(self, device: str) -> Callable[P, R]:
        """What would run for arrays on `device`.

        Raises:
            KernelError: nothing is registered for a device other than the CPU.
        """
        scoped = self._scoped.get()
        if scoped and device in scoped:
            return scoped[device]
        if device in self._kernels:
            return self._kernels[device]
        if device == "cpu":
            return self.specification
        raise KernelError(
            f"{self.name}: no kernel for arrays on {device!r}; expected one registered by "
            f"refnet.ops.{self.name}.register({device!r}, kernel), or all of refnet's own by refnet.kernels.install()"
        )

    @contextmanager
    def using(self, kernel: Callable[P, R], device: str = "cpu") -> Iterator[None]:
        """Run `kernel` on `device` within the block, in the present thread or task only."""
        token = self._scoped.set({**(self._scoped.get() or {}), device: kernel})
        try:
            yield
        finally:
            self._scoped.reset(token)

    def __repr__(self) -> str:
        kernels = ", ".join(f"{device}: {title_of(kernel)}" for device, kernel in sorted(self._kernels.items()))
        return f"<KernelOp {self.name} ({kernels or 'specification only'})>"


def _flat(values: Iterable[object]) -> Iterator[object]:
    """`values`, those of lists and tuples among them one by one: an operation may take lists of arrays."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def title_of(function: Callable[..., object]) -> str:
    """Where a kernel is from, and its name."""
    return f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"


def kernel_op(specification: Callable[P, R]) -> KernelOp[P, R]:
    """Make `specification` an operation whose implementation can be replaced."""
    return KernelOp(specification)


def operations() -> dict[str, KernelOp[..., Any]]:
    """Every KernelOp by name."""
    return dict(sorted(_operations.items()))
