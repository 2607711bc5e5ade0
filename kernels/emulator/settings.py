"""How kernels run in the emulator: fast, checked or measured, and in which order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from refnet.errors import ArgumentError

Mode = Literal["fast", "check", "metrics"]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How kernels run in the emulator.

    Attributes:
        mode: "fast"; "check" watches every access, barrier and conversion; "metrics" also counts what each source line
            moves. A fault of a kernel that runs "fast" isn't noticed, and may end the process.
        seed: 0 runs threads and blocks in their natural order. Another number is a schedule of its own: which thread
            starts or goes on next, in which order blocks run, and (checked) who comes between two atomic operations.
        workers: how many blocks run at a time, "fast"; checks run one.
    """

    mode: Mode = "fast"
    seed: int = 0
    workers: int = field(default_factory=_cores)

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ArgumentError(f"running: mode must be one of {', '.join(get_args(Mode))}, got {self.mode!r}")
        if not 0 <= self.seed < 2**64:
            raise ArgumentError(f"running: seed must be an integer of 64 bits, not negative, got {self.seed}")
        if self.workers < 1:
            raise ArgumentError(f"running: workers must be at least 1, got {self.workers}")


_settings: ContextVar[Settings] = ContextVar("emulator")
_default = Settings()


def present() -> Settings:
    """What holds here."""
    return _settings.get(_default)


@contextmanager
def running(**changes: Any) -> Iterator[Settings]:
    """Run emulated kernels with other :class:`Settings` within the block.

    Raises:
        ArgumentError: a setting has a value that makes no sense.
    """
    settings = replace(present(), **changes)
    token = _settings.set(settings)
    try:
        yield settings
    finally:
        _settings.reset(token)
