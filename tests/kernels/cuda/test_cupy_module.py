"""What a launch makes of CuPy, by a stand-in for CuPy that notes what it is asked for: no GPU is needed."""

import ctypes
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refnet.errors import DeviceError, LaunchError
from refnet.kernels.cuda import cupy_module
from refnet.kernels.cuda.nvrtc import Cubin
from refnet.kernels.cuda.program import Instantiation, Program

PROGRAM = Program("fake.cu", ["plain", Instantiation("newer", least=90), Instantiation("hopper", only=(90,))])


class FakeArray:
    """An array of CuPy, as far as a launch looks at one."""

    def __init__(self, device: int = 0, *, contiguous: bool = True) -> None:
        self.data = SimpleNamespace(device_id=device)
        self.flags = SimpleNamespace(c_contiguous=contiguous)
        self.shape, self.strides = (2, 3), (12, 4) if contiguous else (4, 8)


FakeArray.__module__ = "cupy"


class FakeCupy(ModuleType):
    """CuPy with two devices, and a list of what was loaded and launched."""

    def __init__(self, capability: str = "90") -> None:
        super().__init__("cupy")
        self.device = 0
        self.loaded: list[tuple[int, str, str]] = []
        self.launched: list[SimpleNamespace] = []
        self.cuda = SimpleNamespace(
            runtime=SimpleNamespace(getDevice=lambda: self.device),
            Device=lambda device: SimpleNamespace(
                compute_capability=capability, attributes={"MaxSharedMemoryPerBlockOptin": 227 << 10}
            ),
        )

    def RawModule(self, *, path: str) -> Any:
        def get_function(symbol: str) -> "FakeKernel":
            self.loaded.append((self.device, path, symbol))
            return FakeKernel(self.launched)

        return SimpleNamespace(get_function=get_function)


class FakeKernel:
    def __init__(self, launched: list[SimpleNamespace]) -> None:
        self.launched = launched
        self.allowed: list[int] = []

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "max_dynamic_shared_size_bytes":
            self.allowed.append(value)
        else:
            super().__setattr__(name, value)

    def __call__(self, grid: Any, block: Any, arguments: Any, *, shared_mem: int) -> None:
        self.launched.append(
            SimpleNamespace(grid=grid, block=block, arguments=arguments, shared=shared_mem, allowed=[*self.allowed])
        )


@pytest.fixture
def targets(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was compiled for which architecture, without a compiler."""
    seen: list[tuple[str, str]] = []

    def compiled(program: Program, name: str, target: str) -> Cubin:
        seen.append((name, target))
        return Cubin(path=Path(f"{name}.{target}.cubin"), symbol=f"_Z{name}", log="", fused=0)

    monkeypatch.setattr(cupy_module, "compiled", compiled)
    monkeypatch.setattr(cupy_module, "_kernels", {})
    return seen


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch, targets: list[tuple[str, str]]) -> FakeCupy:
    module = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def launch(cupy: FakeCupy, *arguments: Any, name: str = "plain", grid: tuple[int, ...] = (5,), **options: Any) -> None:
    PROGRAM.launch(cupy, name, grid, (64,), arguments, **options)


def test_a_launch_loads_the_cubin_of_the_current_device_once(cupy: FakeCupy, targets: list[tuple[str, str]]) -> None:
    for _ in range(3):
        launch(cupy, np.int32(7), grid=(2, 3))
    cupy.device = 1
    launch(cupy, np.int32(7))
    assert cupy.loaded == [(device, "plain.sm_90a.cubin", "_Zplain") for device in (0, 1)]
    assert targets == [("plain", "sm_90a")] * 2
    assert cupy_module.loaded() == {("fake.cu", "plain")}
    assert [(call.grid, call.block) for call in cupy.launched] == [((2, 3), (64,))] * 3 + [((5,), (64,))]


def test_an_empty_grid_launches_nothing(cupy: FakeCupy) -> None:
    launch(cupy, np.int32(7), grid=(2, 0))
    assert cupy.launched == []


@pytest.mark.parametrize("grid", [(2**31,), (1, 65536), (1, 1, 65536)])
def test_a_grid_that_no_device_takes_is_refused(cupy: FakeCupy, grid: tuple[int, ...]) -> None:
    launch(cupy, np.int32(7), grid=(*grid[:-1], grid[-1] - 1))
    with pytest.raises(LaunchError, match=r"fake\.cu: plain: expected a grid of at most"):
        launch(cupy, np.int32(7), grid=grid)


def test_arrays_and_typed_scalars_pass_as_they_are(cupy: FakeCupy) -> None:
    arguments = (FakeArray(), np.int32(7), np.float32(0.5), np.bool_(True))
    launch(cupy, *arguments, outputs=(0,))
    assert all(got is given for got, given in zip(cupy.launched[0].arguments, arguments, strict=True))


def test_a_structure_passes_by_value(cupy: FakeCupy) -> None:
    """CuPy passes a NumPy array by value if it has one element, so the structure must be one, whatever its size."""

    class Pair(ctypes.Structure):
        _fields_ = (("a", ctypes.c_int32), ("b", ctypes.c_double), ("c", ctypes.c_int8))

    launch(cupy, Pair(3, 0.5, 7))
    (value,) = cupy.launched[0].arguments
    assert (value.size, value.itemsize) == (1, ctypes.sizeof(Pair))
    received = Pair.from_buffer_copy(ctypes.string_at(value.__array_interface__["data"][0], ctypes.sizeof(Pair)))
    assert (received.a, received.b, received.c) == (3, 0.5, 7)


def test_more_shared_memory_than_usual_is_asked_for_once(cupy: FakeCupy) -> None:
    for shared in (48 << 10, 100 << 10, 64 << 10, 200 << 10):
        launch(cupy, shared=shared)
    assert [call.shared >> 10 for call in cupy.launched] == [48, 100, 64, 200]
    assert [[most >> 10 for most in call.allowed] for call in cupy.launched] == [[], [100], [100], [100, 200]]
    with pytest.raises(LaunchError, match="needs 262144 bytes of shared memory a block, device 0 has 232448"):
        launch(cupy, shared=256 << 10)


def test_arrays_must_be_on_the_current_device(cupy: FakeCupy) -> None:
    with pytest.raises(DeviceError, match=r"fake\.cu: plain: argument 1: .* current device, 0, got one on 1"):
        launch(cupy, FakeArray(0), FakeArray(1))
    assert cupy.launched == []


@pytest.mark.parametrize("argument", [np.zeros(3, np.float32), FakeArray(contiguous=False), 3, 0.5, True, None])
def test_what_a_kernel_would_misread_is_refused(cupy: FakeCupy, argument: Any) -> None:
    with pytest.raises(LaunchError, match="argument 1"):
        launch(cupy, np.int32(1), argument)
    assert cupy.launched == []


@pytest.mark.parametrize(
    ("capability", "name", "wanted"), [("80", "newer", "of at least 90"), ("100", "hopper", r"in \(90,\)")]
)
def test_a_device_that_the_kernel_is_not_for(
    monkeypatch: pytest.MonkeyPatch, targets: list[tuple[str, str]], capability: str, name: str, wanted: str
) -> None:
    other = FakeCupy(capability)
    monkeypatch.setitem(sys.modules, "cupy", other)
    with pytest.raises(DeviceError, match=f"capability .* {wanted}, got {capability}"):
        launch(other, name=name)
    assert targets == []
    launch(other)
    assert targets == [("plain", f"sm_{capability}")]
