"""A choice that kernels are given from outside: for the whole process, or within a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, TypeVar

from refnet.errors import ArgumentError

T = TypeVar("T", bound=str)


class Setting(Generic[T]):
    """One of several values.

    Args:
        name: what is chosen.
        choices: the values; the first one holds until another is set.
    """

    def __init__(self, name: str, choices: tuple[T, ...]) -> None:
        self.name, self.choices = name, choices
        self._installed = choices[0]
        self._scoped: ContextVar[T | None] = ContextVar(name, default=None)

    def set(self, value: T) -> None:
        """Choose `value` from now on, in every thread.

        Raises:
            ArgumentError: there is no such value.
        """
        self._check(value)
        self._installed = value

    @contextmanager
    def within(self, value: T) -> Iterator[None]:
        """Choose `value` within the block, in the present thread or task only.

        Raises:
            ArgumentError: there is no such value.
        """
        self._check(value)
        token = self._scoped.set(value)
        try:
            yield
        finally:
            self._scoped.reset(token)

    def get(self) -> T:
        """What is chosen here and now."""
        return self._scoped.get() or self._installed

    def _check(self, value: T) -> None:
        if value not in self.choices:
            raise ArgumentError(f"{self.name}: expected one of {', '.join(self.choices)}, got {value!r}")
