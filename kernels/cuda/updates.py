"""Launchers of ``updates.cu``: a few launches for all parameters of a network, 48 arrays of one type at a time."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from refnet.arrays import Array, namespace
from refnet.errors import DTypeError
from refnet.kernels.cuda.program import Program, blocks, ready
from refnet.kernels.cuda.vectors import TYPES, VECTOR, address
from refnet.ops.updates import check_factors, check_update

MOST = 48  # arrays of a launch
THREADS = 256
CHUNK = 64 * THREADS  # numbers of a block
PROGRAM = Program(
    "updates.cu",
    [
        *(
            f"refnet::{name}"
            for T in TYPES.values()
            for name in (
                f"sgd<{T}, {MOST}, true>",
                f"sgd<{T}, {MOST}, false>",
                f"adamw<{T}, {MOST}>",
                f"scale<{T}, {MOST}>",
                f"square_chunks<{T}, {MOST}>",
                f"add_shares<{T}, {MOST}>",
            )
        ),
    ],
    contraction=False,
)


def _structure(number: type[ctypes.c_float | ctypes.c_double]) -> type[ctypes.Structure]:
    class Arrays(ctypes.Structure):
        """updates.cu's Arrays; setting a number rounds it to the arrays' type."""

        _fields_ = (
            ("lists", ctypes.c_void_p * MOST * 4),
            ("sizes", ctypes.c_int64 * MOST),
            ("only_if", ctypes.c_void_p),
            ("numbers", number * MOST * 3),
            ("wide", ctypes.c_int32 * MOST),
            ("first_chunk", ctypes.c_int32 * (MOST + 1)),
        )

    return Arrays


STRUCTURES = {
    np.dtype(np.float32): _structure(ctypes.c_float),
    np.dtype(np.float64): _structure(ctypes.c_double),
}


def sgd_update(
    values: Sequence[Array],
    gradients: Sequence[Array],
    velocities: Sequence[Array],
    *,
    rates: Sequence[float],
    decays: Sequence[float],
    momentum: float,
    nesterov: bool,
    only_if: Array | None = None,
) -> None:
    """See :func:`refnet.ops.sgd_update`."""
    written = [values, velocities] if momentum else [values]
    check_update("sgd_update", written, gradients, rates, decays)
    lists = [values, [ready(gradient) for gradient in gradients], *written[1:]]
    for share in _shares(lists, (rates, decays), only_if):
        dtype = share.dtype.type
        share.launch(f"sgd<{share.type}, {MOST}, {str(bool(momentum)).lower()}>", dtype(momentum), np.bool_(nesterov))


def adamw_update(
    values: Sequence[Array],
    gradients: Sequence[Array],
    first_moments: Sequence[Array],
    second_moments: Sequence[Array],
    *,
    keeps: Sequence[float],
    first_rates: Sequence[float],
    second_rates: Sequence[float],
    betas: tuple[float, float],
    epsilon: float,
    only_if: Array | None = None,
) -> None:
    """See :func:`refnet.ops.adamw_update`."""
    written = [values, first_moments, second_moments]
    check_update("adamw_update", written, gradients, keeps, first_rates, second_rates)
    lists = [values, [ready(gradient) for gradient in gradients], first_moments, second_moments]
    constants = betas[0], 1 - betas[0], betas[1], 1 - betas[1], epsilon
    for share in _shares(lists, (keeps, first_rates, second_rates), only_if):
        share.launch(f"adamw<{share.type}, {MOST}>", *(share.dtype.type(constant) for constant in constants))


def scaled(arrays: Sequence[Array], factors: Array) -> list[Array]:
    """See :func:`refnet.ops.scaled`."""
    check_factors(arrays, factors)
    xp = namespace(*arrays, factors)
    results = [xp.empty(array.shape, array.dtype) for array in arrays]
    for share in _shares([[ready(array) for array in arrays], results]):
        share.launch(f"scale<{share.type}, {MOST}>", ready(factors[share.first : share.end], share.dtype))
    return results


def sums_of_squares(arrays: Sequence[Array]) -> Array:
    """See :func:`refnet.ops.sums_of_squares`."""
    xp = namespace(*arrays)
    squares: Array = xp.empty(len(arrays), np.float64)
    for share in _shares([[ready(array) for array in arrays]]):
        of_chunks = xp.empty(share.chunks, np.float64)
        share.launch(f"square_chunks<{share.type}, {MOST}>", of_chunks, outputs=(2,))
        PROGRAM.launch(
            xp, f"refnet::add_shares<{share.type}, {MOST}>", (share.end - share.first,), (32,),
            (share.table, of_chunks, squares[share.first : share.end]), outputs=(2,),
        )  # fmt: skip
    return squares


@dataclass(frozen=True, slots=True, kw_only=True)
class _Share:
    """Neighbouring arrays of one type, on which one launch works.

    Attributes:
        xp: their namespace.
        first, end: their places in the lists.
        dtype: their type.
        table: what the kernel gets of them.
        chunks: into how many they are divided.
        arrays: to which the table points.
    """

    xp: Any
    first: int
    end: int
    dtype: np.dtype[Any]
    table: Any
    chunks: int
    arrays: tuple[Array, ...]

    @property
    def type(self) -> str:
        """What C++ calls their type."""
        return TYPES[self.dtype]

    def launch(self, kernel: str, *arguments: Any, outputs: Sequence[int] = ()) -> None:
        """A block for each chunk."""
        PROGRAM.launch(
            self.xp, f"refnet::{kernel}", (self.chunks,), (THREADS,), (self.table, np.int32(CHUNK), *arguments),
            outputs=outputs, also=self.arrays,
        )  # fmt: skip


def _shares(
    lists: Sequence[Sequence[Array]], numbers: Sequence[Sequence[float]] = (), only_if: Array | None = None
) -> Iterator[_Share]:
    """Lists of contiguous arrays, those at one place of one shape and type, divided among launches."""
    arrays = lists[0]
    first = 0
    while first < len(arrays):
        dtype = arrays[first].dtype
        if dtype not in TYPES:
            raise DTypeError(f"updates: expected arrays of float32 or float64, got {dtype}")
        end = first
        while end < min(len(arrays), first + MOST) and arrays[end].dtype == dtype:
            end += 1
        yield _share(
            [entries[first:end] for entries in lists], [entries[first:end] for entries in numbers], first, only_if
        )
        first = end


def _share(
    lists: Sequence[Sequence[Array]], numbers: Sequence[Sequence[float]], first: int, only_if: Array | None
) -> _Share:
    count = len(lists[0])
    dtype = lists[0][0].dtype
    table: Any = STRUCTURES[dtype]()
    for k, entries in enumerate(lists):
        table.lists[k][:count] = [address(array) for array in entries]
    for k, values in enumerate(numbers):
        table.numbers[k][:count] = values
    sizes = [array.size for array in lists[0]]
    table.sizes[:count] = sizes
    table.wide[:count] = [all(address(array) % VECTOR == 0 for array in row) for row in zip(*lists, strict=True)]
    starts = list(accumulate((blocks(size, CHUNK) for size in sizes), initial=0))
    table.first_chunk[:] = starts + starts[-1:] * (MOST - count)
    arrays = tuple(array for entries in lists for array in entries)
    if only_if is not None:
        table.only_if = address(only_if)
        arrays += (only_if,)
    xp = namespace(*arrays)
    return _Share(xp=xp, first=first, end=first + count, dtype=dtype, table=table, chunks=starts[-1], arrays=arrays)
