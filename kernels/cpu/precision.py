"""How exactly the kernels of the CPU compute: which algorithms a plan may take.

The type of the arrays says what numbers are rounded to; this says whether sums may be rearranged into others. Choices:

* "float32": Winograd's algorithms may serve float32, where their derived error (:mod:`refnet.testing.winograd`) is
  acceptable to :mod:`refnet.kernels.cpu.conv.plan`. float64 is always made of plain products.
* "exact-order": plain products and sums only, whose error obeys the bound of every sum of K products.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, TypeAlias, get_args

from refnet.errors import ArgumentError

Precision: TypeAlias = Literal["float32", "exact-order"]

_installed: Precision = "float32"
_scoped: ContextVar[Precision | None] = ContextVar("cpu_precision", default=None)


def set_precision(value: Precision) -> None:
    """Compute so from now on, in every thread.

    Raises:
        ArgumentError: there is no such precision.
    """
    global _installed
    _installed = _checked(value)


@contextmanager
def precision(value: Precision) -> Iterator[None]:
    """Within the block, and in the present thread or task only, compute so.

    Raises:
        ArgumentError: there is no such precision.
    """
    token = _scoped.set(_checked(value))
    try:
        yield
    finally:
        _scoped.reset(token)


def present_precision() -> Precision:
    """How exactly kernels compute here and now."""
    return _scoped.get() or _installed


def _checked(value: Any) -> Precision:
    known: tuple[Precision, ...] = get_args(Precision)
    if value not in known:
        raise ArgumentError(f"precision: expected one of {', '.join(known)}, got {value!r}")
    return known[known.index(value)]
