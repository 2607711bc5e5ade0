"""What kernels may do gives in the emulator what CUDA says it gives, fast and checked, under every schedule."""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refnet.kernels import emulator
from refnet.kernels.cuda.program import Program
from refnet.kernels.emulator import running

pytestmark = pytest.mark.skipif(not emulator.available(), reason="no g++: nothing can be emulated")

FEATURES = Program(
    Path(__file__).with_name("features.cu"),
    [
        "who_am_i", "block_sum", "shuffles", "votes", "last_warp", "block_votes", "atomics", "tickets", "two_tickets",
        "block_tickets", "lock", "async_pipeline", "scale_all", "gather_by_pointer", "constants", "scalars",
        "conversions", "mathematics<float>", "mathematics<double>", "many_locals",
    ],
)  # fmt: skip
LANES = np.arange(32)


@pytest.fixture(params=["fast", "check", "check, seed 1", "check, seed 2"])
def mode(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ways to run a kernel."""
    name, _, seed = request.param.partition(", seed ")
    with running(mode=name, seed=int(seed or 0)):
        yield


def run(name: str, blocks: tuple[int, ...], threads: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    FEATURES.launch(np, name, blocks, threads, arguments, **options)


@pytest.mark.usefixtures("mode")
def test_threads_and_blocks_know_who_they_are() -> None:
    y = np.empty(2 * 3 * 4 * 5 * 3 * 2, np.int32)
    run("who_am_i", (2, 3, 4), (5, 3, 2), y, outputs=(0,))
    np.testing.assert_array_equal(y, np.arange(y.size))


@pytest.mark.usefixtures("mode")
def test_a_block_sums() -> None:
    x, y = np.arange(30 * 100, dtype=np.float32).reshape(30, 100), np.empty(30, np.float32)
    run("block_sum", (30,), (128,), np.int32(100), x, y, outputs=(2,))
    np.testing.assert_array_equal(y, x.sum(axis=1))


@pytest.mark.usefixtures("mode")
def test_shuffles() -> None:
    y = np.empty((8, 32), np.int32)
    run("shuffles", (1,), (32,), y, outputs=(0,))
    expected = [
        np.full(32, 5),
        LANES // 8 * 8 + 1,
        np.where(LANES < 3, LANES, LANES - 3),
        np.where(LANES % 16 < 13, LANES + 3, LANES),
        LANES ^ 6,
        np.where(LANES < 16, (LANES ^ 1) + 100, LANES + 200),
        3 * (31 - LANES),
        np.full(32, -7),
    ]
    np.testing.assert_array_equal(y, expected)


@pytest.mark.usefixtures("mode")
def test_votes_and_reductions_of_a_warp() -> None:
    y = np.empty((10, 32), np.uint32)
    run("votes", (1,), (32,), y, outputs=(0,))
    odd = LANES % 2 == 1
    bits = 1 << LANES.astype(np.uint64)
    expected = [
        np.full(32, bits[LANES % 3 == 0].sum()),
        np.full(32, 3),
        np.where(odd, 0xAAAA0000, 0x55550000),
        0xF << (LANES // 4 * 4),
        np.ones(32),
        np.full(32, 496),
        np.where(odd, 31, 30),
        np.full(32, 2**32 - 7),
        np.full(32, 255),
        np.full(32, 32),
    ]
    np.testing.assert_array_equal(y, np.array(expected, np.uint64))


@pytest.mark.usefixtures("mode")
def test_the_last_warp_may_have_fewer_lanes() -> None:
    y = np.empty(40, np.uint32)
    run("last_warp", (1,), (40,), y, outputs=(0,))
    np.testing.assert_array_equal(y, [2**32 - 1] * 32 + [255] * 8)


@pytest.mark.usefixtures("mode")
def test_barriers_that_vote() -> None:
    y = np.empty((3, 64), np.int32)
    run("block_votes", (1,), (64,), y, outputs=(0,))
    np.testing.assert_array_equal(y, np.repeat([[32], [1], [0]], 64, axis=1))


@pytest.mark.usefixtures("mode")
def test_atomic_operations() -> None:
    i, u, words = np.zeros(8, np.int32), np.array([0, 2**32 - 1, 0, 0], np.uint32), np.zeros(1, np.uint64)
    f, d = np.zeros(8, np.float32), np.zeros(1)
    run("atomics", (3,), (50,), i, u, words, f, d)
    np.testing.assert_array_equal(i, [150 * 149 // 2, 149, -149, -150, 7, 7, 7, 0])
    parity = sum((((150 - bit + 31) // 32) % 2) << bit for bit in range(32))
    np.testing.assert_array_equal(u, [2**32 - 1, 0, parity, 0])
    assert words[0] == 149 << 40
    np.testing.assert_array_equal(f, [75, 0, 0, 0, 150, 300, 450, 600])
    assert d[0] == 37.5


def take_tickets(name: str, seed: int, *, blocks: int = 1, threads: int = 8, each: int = 1) -> tuple[int, ...]:
    y = np.empty(max(blocks, threads) * each, np.int32)
    with running(mode="check", seed=seed):
        run(name, (blocks,), (threads,), np.zeros(1, np.int32), y, outputs=(1,))
    assert sorted(y) == list(range(y.size))
    return tuple(y.tolist())


def test_seeds_reach_other_orders_of_threads_and_blocks() -> None:
    assert take_tickets("tickets", 0) == tuple(range(8))
    assert take_tickets("block_tickets", 0, blocks=8, threads=1) == tuple(range(8))
    assert len({take_tickets("tickets", seed) for seed in range(1, 41)}) > 35
    assert len({take_tickets("block_tickets", seed, blocks=8, threads=1) for seed in range(1, 41)}) > 15
    assert len({take_tickets("block_tickets", seed, blocks=3, threads=1) for seed in range(1, 61)}) == 6


def test_a_seed_is_one_schedule() -> None:
    for seed in range(1, 10):
        assert take_tickets("two_tickets", seed, each=2) == take_tickets("two_tickets", seed, each=2)


def test_seeds_let_others_in_between_two_atomic_operations() -> None:
    taken = np.array([take_tickets("two_tickets", seed, each=2) for seed in range(1, 21)]).reshape(20, 2, 8)
    apart = taken[:, 1] - taken[:, 0] > 1
    assert 0 < apart.mean() < 1


def test_a_lock_within_a_block_is_given_on() -> None:
    for seed in range(5):
        taken, y = np.zeros(1, np.int32), np.zeros(1, np.int32)
        with running(mode="check", seed=seed):
            run("lock", (1,), (64,), taken, y)
        assert y[0] == 64


@pytest.mark.usefixtures("mode")
def test_copies_behind_the_threads_backs() -> None:
    x, y = np.arange(5 * 128, dtype=np.float32).reshape(5, 4, 32), np.empty(32, np.float32)
    run("async_pipeline", (1,), (32,), x, np.int32(5), y, outputs=(2,))
    arrived = x.copy()
    arrived.reshape(5, 32, 4)[1, :, 2:] = 0  # of the second tile, half of each copy
    np.testing.assert_array_equal(y, arrived.sum(axis=(0, 1)))


class Lists(ctypes.Structure):
    """As features.cu has it: 400 bytes, by value."""

    _fields_ = (("out", ctypes.c_void_p * 20), ("inputs", ctypes.c_void_p * 20), ("lengths", ctypes.c_int * 20))


def lists(outs: list[np.ndarray], inputs: list[np.ndarray]) -> Lists:
    filled = Lists()
    for i, (out, source) in enumerate(zip(outs, inputs, strict=True)):
        filled.out[i], filled.inputs[i], filled.lengths[i] = out.ctypes.data, source.ctypes.data, out.size
    return filled


@pytest.mark.usefixtures("mode")
def test_arrays_behind_the_pointers_of_a_structure() -> None:
    inputs = [np.arange(n, dtype=np.float32) for n in (3, 70, 1)]
    outs = [np.zeros_like(x) for x in inputs]
    run("scale_all", (3,), (32,), lists(outs, inputs), np.float32(2), also=[*outs, *inputs])
    for out, x in zip(outs, inputs, strict=True):
        np.testing.assert_array_equal(out, 2 * x)


@pytest.mark.usefixtures("mode")
def test_arrays_behind_an_array_of_pointers() -> None:
    arrays = [np.full(1, i, np.float32) for i in range(8)]
    pointers, y = np.array([a.ctypes.data for a in arrays], np.uint64), np.empty(8, np.float32)
    run("gather_by_pointer", (1,), (8,), pointers, y, outputs=(1,), also=arrays)
    np.testing.assert_array_equal(y, range(8))


@pytest.mark.usefixtures("mode")
def test_constant_memory_and_scalars() -> None:
    y = np.empty(8, np.float32)
    run("constants", (1,), (8,), y, outputs=(0,))
    np.testing.assert_array_equal(y, [1, 2, 4, 8] * 2)
    total = np.empty(1)
    values = (
        np.bool_(True),
        np.int8(-2),
        np.uint16(3),
        np.int32(-4),
        np.int64(2**40),
        np.float32(0.5),
        np.float64(0.25),
    )
    run("scalars", (1,), (1,), *values, total, outputs=(7,))
    assert total[0] == 2**40 - 2 + 0.75


@pytest.mark.usefixtures("mode")
def test_conversions_that_say_how_they_round_saturate() -> None:
    x = np.array([2.5, -2.5, 3e9, -3e9, np.nan, np.inf, 0.0, 1.5], np.float32)
    y = np.empty((3, 8), np.int32)
    run("conversions", (1,), (8,), x, y, outputs=(1,))
    largest, least = 2**31 - 1, -(2**31)
    np.testing.assert_array_equal(y[0], [2, -2, largest, least, 0, largest, 0, 2])
    np.testing.assert_array_equal(y[1], [2, -3, largest, least, 0, largest, 0, 1])
    np.testing.assert_array_equal(y[2].view(np.uint32), [2, 0, 3_000_000_000, 0, 0, 2**32 - 1, 0, 1])


@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mathematics(dtype: type[np.floating[Any]]) -> None:
    x = np.linspace(0.1, 5, 64, dtype=dtype)
    y = np.empty_like(x)
    run(f"mathematics<{'float' if dtype is np.float32 else 'double'}>", (1,), (64,), x, y, outputs=(1,))
    least = np.minimum(np.sqrt(x), np.exp(-x))
    expected = np.maximum(least, np.abs(np.floor(x) - x)) + np.log1p(x) + x * x + x
    np.testing.assert_allclose(y, expected, rtol=8 * np.finfo(dtype).eps)


@pytest.mark.usefixtures("mode")
def test_threads_that_wait_may_have_large_local_arrays() -> None:
    y = np.empty(64, np.float32)
    run("many_locals", (1,), (64,), y, outputs=(0,))
    np.testing.assert_array_equal(y, 127000 - 999 * np.arange(64))
