"""KernelOp: what runs when, and what is refused."""

import functools
import threading
from collections.abc import Iterator

import numpy as np
import pytest

import refnet.kernel_op
from refnet.errors import DeviceError, KernelError
from refnet.kernel_op import KernelOp, kernel_op, operations


def double(x: np.ndarray, *, times: int = 1) -> np.ndarray:
    """The specification."""
    return x * 2.0**times


def kernel_a(x: np.ndarray, *, times: int = 1) -> str:
    return f"a{times}"


def kernel_b(x: np.ndarray, *, times: int = 1) -> str:
    return f"b{times}"


class Elsewhere:
    """What device_of takes for an array of the other device."""

    __module__ = "cupy"


@pytest.fixture
def operation(monkeypatch) -> Iterator[KernelOp]:
    """An operation that the registry forgets after the test."""
    monkeypatch.setattr(refnet.kernel_op, "_operations", {})
    return kernel_op(double)


X = np.ones(2)


def test_the_specification_runs_by_default(operation):
    assert operation.resolve("cpu") is double
    np.testing.assert_array_equal(operation(X, times=3), [8, 8])


def test_a_registered_kernel_runs_until_it_is_forgotten(operation):
    operation.register("cpu", kernel_a)
    assert operation(X, times=2) == "a2"
    assert operation.resolve("cpu") is kernel_a
    assert operation.specification is double
    operation.unregister("cpu")
    operation.unregister("cpu")  # nothing to forget is no error
    assert operation.resolve("cpu") is double


def test_a_kernel_is_used_within_a_block(operation):
    operation.register("cpu", kernel_a)
    with operation.using(kernel_b):
        assert operation(X) == "b1"
        with operation.using(double):
            np.testing.assert_array_equal(operation(X), [2, 2])
        assert operation(X) == "b1"
    assert operation(X) == "a1"


def test_a_block_ends_with_an_error(operation):
    with pytest.raises(ZeroDivisionError), operation.using(kernel_b):
        _ = 1 / 0
    assert operation.resolve("cpu") is double


def test_a_block_holds_for_its_device_only(operation):
    with operation.using(kernel_b, device="cuda"):
        assert operation.resolve("cpu") is double
        assert operation.resolve("cuda") is kernel_b
        with operation.using(kernel_a):
            assert operation.resolve("cpu") is kernel_a
            assert operation.resolve("cuda") is kernel_b


def test_a_block_holds_in_one_thread_only(operation):
    seen = []
    with operation.using(kernel_b):
        thread = threading.Thread(target=lambda: seen.append(operation.resolve("cpu")))
        thread.start()
        thread.join()
    assert seen == [double]


def test_a_block_of_another_thread_is_not_seen(operation):
    entered, checked = threading.Event(), threading.Event()

    def other() -> None:
        with operation.using(kernel_b):
            entered.set()
            assert checked.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(10)
    resolved = operation.resolve("cpu")
    checked.set()
    thread.join()
    assert resolved is double


def test_there_is_no_fallback_to_another_device(operation):
    with pytest.raises(
        KernelError, match=r"double: no kernel for arrays on 'cuda'; expected .*double.register\('cuda'"
    ):
        operation(Elsewhere())
    operation.register("cuda", kernel_a)
    assert operation(Elsewhere(), times=4) == "a4"
    assert operation.resolve("cpu") is double


def test_arrays_of_two_devices_are_refused(operation):
    with pytest.raises(DeviceError, match="double: all arrays must live on one device, got cpu and cuda"):
        operation(X, times=Elsewhere())


def test_lists_of_arrays_are_looked_into(operation):
    operation.register("cuda", kernel_a)
    assert operation([(3, Elsewhere()), Elsewhere()], times=4) == "a4"
    with pytest.raises(DeviceError, match="double: all arrays must live on one device, got cuda and cpu"):
        operation([Elsewhere(), X])


def test_a_name_is_taken_once(operation):
    with pytest.raises(KernelError, match="the name 'double' is taken"):
        kernel_op(double)


def test_an_operation_looks_like_its_specification(operation):
    assert (operation.__name__, operation.__doc__) == ("double", "The specification.")
    assert repr(operation) == "<KernelOp double (specification only)>"
    operation.register("cpu", kernel_a)
    assert repr(operation) == f"<KernelOp double (cpu: {__name__}.kernel_a)>"
    operation.register("cuda", functools.partial(kernel_b, times=2))  # has no name of its own
    assert f"cuda: functools.{functools.partial(kernel_b, times=2)!r}" in repr(operation)


def test_the_registry_is_a_copy(operation):
    assert operations() == {"double": operation}
    operations().clear()
    assert operations() == {"double": operation}


def test_every_operation_is_found_under_its_name_in_ops():
    """The message of a missing kernel says refnet.ops.NAME.register."""
    import refnet.ops

    for name, operation in operations().items():
        assert getattr(refnet.ops, name) is operation
