"""The stand-in for CuPy: what it refuses, what it counts, and that it computes what NumPy computes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from refnet.arrays import Download, device_of, is_array, namespace, on_device_of, records_to_host, to_host
from refnet.autograd import Tensor
from refnet.errors import DeviceError
from refnet.kernels.cuda.program import Program
from refnet.kernels.emulator import available, standin

HOST = np.arange(6, dtype=np.float32).reshape(2, 3)


def device(values: Any = HOST) -> Any:
    return standin.asarray(np.asarray(values))


def test_its_arrays_live_on_the_device() -> None:
    x = device()
    assert is_array(x)
    assert device_of((x, 1, None)) == "cuda"
    assert namespace(x) is standin
    with pytest.raises(DeviceError, match="got cuda and cpu"):
        device_of((x, HOST))


REFUSED: dict[str, Callable[[Any], Any]] = {
    "asarray": np.asarray,
    "array of arrays": lambda x: np.array([x, x]),
    "a function of NumPy's": np.exp,
    "a reduction of NumPy's": np.sum,
    "where of NumPy's": lambda x: np.where(x > 1, x, 0),
    "concatenate of NumPy's": lambda x: np.concatenate([x, x]),
    "array on the right": lambda x: x + HOST,
    "array on the left": lambda x: HOST + x,
    "array in place": lambda x: x.__iadd__(HOST),
    "array compared": lambda x: x == HOST,
    "array without axes": lambda x: x * np.array(2.0),
    "array as an index": lambda x: x[np.array([0, 1])],
    "array among indices": lambda x: x[:, np.array([0, 1])],
    "array written": lambda x: x.__setitem__(0, HOST[0]),
    "array written to NumPy's": lambda x: HOST.copy().__setitem__(0, x[0]),
    "array in a list": lambda x: standin.concatenate([x, HOST]),
    "array to a function": lambda x: standin.maximum(x, HOST),
    "array to take": lambda x: standin.take(x, np.array([0])),
    "tensor's array": lambda x: Tensor(HOST).data * x,
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_meets_no_array_of_numpy(name: str) -> None:
    with pytest.raises(TypeError):
        REFUSED[name](device())


def test_what_it_lacks_is_named() -> None:
    with pytest.raises(AttributeError, match="no 'kron'"):
        _ = standin.kron


@dataclass
class Pair:
    """A record of arrays."""

    first: Any
    second: Any


WAITING: dict[str, Callable[[Any], Any]] = {
    "get": lambda x: x.get(),
    "item": lambda x: x[0, 0].item(),
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x.sum()),
    "bool": lambda x: bool(x.any()),
    "an if": lambda x: 1 if x[0, 0] else 2,
    "range": lambda x: range(x.astype(np.int64)[0, 0]),
    "tolist": lambda x: x.tolist(),
    "print": str,
    "mask": lambda x: x[x > 2],
    "mask written": lambda x: x.__setitem__(x > 2, 0),
    "nonzero": lambda x: x.nonzero(),
    "flatnonzero": standin.flatnonzero,
    "unique": standin.unique,
    "where with one argument": lambda x: standin.where(x > 0),
    "asnumpy": standin.asnumpy,
    "to_host": to_host,
    "a download waited for": lambda x: Download(x, x).wait(),
    "records": lambda x: records_to_host(Pair(x, None), Pair(x, x)),
}


@pytest.mark.parametrize("name", WAITING)
def test_each_wait_of_the_host_is_counted_with_its_place(name: str) -> None:
    x = device()
    with standin.counting() as counts:
        WAITING[name](x)
    assert counts.synchronizations == len(counts.places) == 1
    assert counts.places[0].startswith("test_standin.py:")


def test_records_come_to_the_host_as_they_are() -> None:
    here, there = records_to_host(Pair(device(), None), Pair(device() + 1, device()))
    np.testing.assert_array_equal(here.first, HOST)
    np.testing.assert_array_equal(there.first - there.second, np.ones_like(HOST))
    assert here.second is None
    (own,) = records_to_host(Pair(HOST, None))
    assert own.first is HOST


RUNNING: dict[str, Callable[[Any], Any]] = {
    "arithmetic": lambda x: np.float32(2) * (x + 1) @ -x.T,
    "shape": lambda x: (len(x), x.shape, x.size, x.flags.c_contiguous),
    "gather": lambda x: x[:, standin.asarray(np.array([1, 1]))],
    "where": lambda x: standin.where(x > 1, x, 0).sum(axis=(0, 1)),
    "sort": lambda x: standin.argsort(-x, axis=1, kind="stable"),
    "add.at": lambda x: standin.add.at(x[0], standin.asarray(np.array([1, 1])), 1),
    "upload": lambda x: on_device_of(HOST, x),
    "download": lambda x: Download(x),
}


@pytest.mark.parametrize("name", RUNNING)
def test_nothing_else_makes_the_host_wait(name: str) -> None:
    x = device()
    with standin.counting() as counts:
        RUNNING[name](x)
    assert counts.synchronizations == 0


def test_a_download_holds_what_was_then_once_somebody_waits() -> None:
    x = device()
    coming = Download(x, x.sum())
    x *= 0
    assert np.isnan(coming._host[0]).all()
    values, total = coming.wait()
    np.testing.assert_array_equal(values, HOST)
    assert total == HOST.sum()


def test_a_download_that_another_wait_has_covered_costs_none() -> None:
    x = device()
    coming = Download(x)
    with standin.counting() as counts:
        float(x.sum())
        coming.wait()
    assert counts.synchronizations == 1


def test_a_download_from_the_host_is_a_copy() -> None:
    x = HOST.copy()
    coming = Download(x)
    x *= 0
    np.testing.assert_array_equal(coming.wait()[0], HOST)


def test_uploads_and_operations_are_counted() -> None:
    with standin.counting() as counts:
        x = on_device_of(HOST, device())
        x += 1
        x[0] = 0
    assert (counts.uploads, counts.operations) == (2, 2)


def test_an_array_nobody_has_written_to_is_no_number() -> None:
    assert np.isnan(standin.empty((2, 2), np.float32).get()).all()
    assert (standin.empty_like(device(np.arange(3))).get() == -1).all()


@pytest.mark.parametrize(
    "compute",
    [
        lambda xp, x: x[0, 1] * x.sum(),
        lambda xp, x: 2 - x[..., [1, 0]] / np.float32(3),
        lambda xp, x: xp.concatenate([x, x[:1]]).max(axis=0),
        lambda xp, x: xp.pad(x.T.reshape(3, 2), ((0, 0), (1, 0))),
        lambda xp, x: xp.where(x > 2, xp.exp(-abs(x)), 0).astype(np.float64),
        lambda xp, x: xp.take_along_axis(x, xp.argsort(-x, axis=1, kind="stable"), axis=1),
        lambda xp, x: xp.broadcast_to(xp.arange(3, dtype=x.dtype), (2, 3)) <= x,
    ],
)
def test_it_computes_what_numpy_computes(compute: Callable[[Any, Any], Any]) -> None:
    expected, result = compute(np, HOST), compute(standin, device())
    assert isinstance(result, standin.ndarray)
    assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
    np.testing.assert_array_equal(result.get(), expected)


def test_a_view_of_one_element_is_a_view() -> None:
    x = device()
    one = x[1, 2]
    one += 1
    assert x[1, 2].item() == HOST[1, 2] + 1


def test_a_tensor_on_the_right_takes_part_itself() -> None:
    assert isinstance(device() + Tensor(device()), Tensor)


@pytest.mark.skipif(not available(), reason="the emulator compiles with g++, and there is none")
def test_kernels_take_its_arrays_alone(tmp_path: Any) -> None:
    source = tmp_path / "twice.cu"
    source.write_text(
        "__global__ void twice(int n, const float* x, float* y) { if (threadIdx.x < n) y[threadIdx.x] = 2 * x[threadIdx.x]; }"
    )
    program = Program(source, ["twice"])
    x = device(HOST.reshape(-1))
    y = standin.empty_like(x)
    with standin.counting() as counts:
        program.launch(standin, "twice", (1,), (32,), (np.int32(6), x, y), outputs=(2,))
    np.testing.assert_array_equal(y.get(), 2 * HOST.reshape(-1))
    assert (counts.launches, counts.synchronizations) == ({"twice": 1}, 0)
    with pytest.raises(TypeError, match="argument 1: Unsupported type"):
        program.launch(standin, "twice", (1,), (32,), (np.int32(6), HOST.reshape(-1), y), outputs=(2,))
