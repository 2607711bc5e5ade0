"""Memory that kernels keep from call to call."""

import threading

import numpy as np

from refnet.kernels.cpu.scratch import ALIGNMENT, release, scratch


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_kept_grows_and_is_aligned():
    first = scratch("test", (3, 5), np.float32)
    assert (first.shape, first.dtype) == ((3, 5), np.float32)
    assert address(first) % ALIGNMENT == 0
    assert address(scratch("test", (7,), np.float64)) == address(first)
    assert not np.shares_memory(scratch("another", (3, 5), np.float32), first)
    large = scratch("test", (1000, 3), np.float32)
    large[...] = 1
    assert address(scratch("test", (3, 5), np.float32)) == address(large)
    assert scratch("test", (0, 5), np.float32).shape == (0, 5)
    release()


def test_every_thread_has_its_own():
    mine = scratch("test", (4,), np.float32)
    others: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: others.append(scratch("test", (4,), np.float32)))
    thread.start()
    thread.join()
    assert not np.shares_memory(mine, others[0])
    release()
