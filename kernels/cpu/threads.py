"""Independent pieces of a kernel's work on several threads.

NumPy lets go of the interpreter's lock in copies, products and arithmetic, so Python's threads do run beside one
another. They are used only where BLAS itself is limited to one thread (OPENBLAS_NUM_THREADS=1 in the environment
before NumPy is imported): its own threads would get in each other's way, and they speed up nothing but products.
REFNET_NUM_THREADS sets another number than one a core; 1 keeps all work in the calling thread.

The lock is handed over at every call of NumPy, and to wake a thread takes as long as a small product. So what is done in
many short calls is shared only from some milliseconds on.

How work is split depends on the number of threads, and so may the last bit of a sum: same inputs, same bits holds for
one setting.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from functools import cache
from itertools import pairwise
from typing import TypeVar

from refnet.errors import ArgumentError

T = TypeVar("T")
R = TypeVar("R")


WORTHWHILE = 2e-3  # seconds: from there on two threads multiply matrices faster than one

_alone: ContextVar[bool] = ContextVar("alone", default=False)


def count() -> int:
    """How many threads share the work of a kernel, here and now.

    Raises:
        ArgumentError: REFNET_NUM_THREADS isn't a positive number.
    """
    return 1 if _alone.get() else _installed()


@contextmanager
def shared_if_worthwhile(seconds: float) -> Iterator[None]:
    """Within the block threads share work only if one alone would take so long that it pays.

    Args:
        seconds: how long that would be.
    """
    token = _alone.set(seconds < WORTHWHILE)
    try:
        yield
    finally:
        _alone.reset(token)


@cache
def _installed() -> int:
    asked = os.environ.get("REFNET_NUM_THREADS")
    if asked is not None:
        if not asked.isdecimal() or int(asked) == 0:
            raise ArgumentError(f"REFNET_NUM_THREADS must be a positive number, got {asked!r}")
        return int(asked)
    if os.environ.get("OPENBLAS_NUM_THREADS") != "1":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_installed() - 1, thread_name_prefix="refnet-kernel")


def reset() -> None:
    """Read the environment again at the next call, and start new threads."""
    _installed.cache_clear()
    _pool.cache_clear()  # a pool that nobody refers to ends its threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=reset)  # the threads stay behind in the parent


def spread(work: Callable[[T], R], pieces: Sequence[T]) -> list[R]:
    """The results of ``work(piece)`` in order; the calling thread does the first piece, other threads the rest.

    `work` must not call this function: threads that wait for one another would never end.
    """
    if count() == 1 or len(pieces) < 2:
        return [work(piece) for piece in pieces]
    # what the caller set for itself, such as np.errstate, holds in the other threads, too
    others = [_pool().submit(copy_context().run, work, piece) for piece in pieces[1:]]
    return [work(pieces[0]), *(other.result() for other in others)]


def split(items: Sequence[T], *, worthwhile: bool = True) -> list[Sequence[T]]:
    """`items` in as many runs of nearly equal length as there are threads; none is empty. All in one if not worthwhile."""
    if not worthwhile:
        return [items]
    return [items[run] for run in runs(len(items), min(count(), len(items)))]


def runs(length: int, parts: int) -> list[slice]:
    """0 to `length` in so many runs of nearly equal length."""
    ends = [length * part // parts for part in range(parts + 1)] if parts else []
    return [slice(a, b) for a, b in pairwise(ends)]
