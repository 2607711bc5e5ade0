"""Files of results recorded on a GPU, which the emulator must reproduce; and that they notice a changed number."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refnet import ops
from refnet.errors import DataError, DeviceError
from refnet.kernels.cuda import KERNELS, conformance
from refnet.kernels.cuda.conformance import Case, read, record, replay, write
from refnet.kernels.emulator import available
from refnet.testing import Call

RECORDED = sorted((Path(__file__).parents[2] / "golden" / "cuda").glob("*.npz"))
SPECIFICATIONS = {name: getattr(ops, name).specification for name in ("nms", "conv2d_forward")}
needs_compiler = pytest.mark.skipif(not available(), reason="g++ isn't installed: CUDA kernels aren't emulated")


@needs_compiler
@pytest.mark.parametrize("path", RECORDED, ids=[path.name for path in RECORDED])
def test_the_emulator_computes_what_a_gpu_computed(path: Path) -> None:
    assert replay(path) == []


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Specifications in the place of kernels: the mechanism doesn't care who computes."""
    chosen = dict(SPECIFICATIONS)
    monkeypatch.setattr(conformance, "KERNELS", chosen)
    monkeypatch.setattr(conformance, "SETTINGS", {})
    return chosen


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything of these, recorded without a GPU."""
    path = tmp_path_factory.mktemp("conformance") / "folder" / "recorded.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conformance, "KERNELS", SPECIFICATIONS)
        patch.setattr(conformance, "SETTINGS", {})
        count, failed = record(path, "emulated")
        assert (count, failed) == (len(read(path)), [])
        assert count > 80
    return path


@pytest.fixture
def file(tmp_path: Path, recorded: Path, kernels: dict[str, Any]) -> Path:
    """A copy."""
    return Path(shutil.copy(recorded, tmp_path))


def changed(file: Path, operation: str, change: Any) -> list[str]:
    """What replay says if one result of one case of `operation` had been otherwise."""
    case = next(case for case in read(file) if case.operation == operation and case.results[0].size > 2)
    first, *others = case.results
    write(file, [replace(case, results=(change(first.copy()), *others))], device="changed")
    return replay(file)


def test_what_is_recorded_is_replayed(file: Path) -> None:
    assert replay(file) == []


def test_calls_survive_the_file(file: Path) -> None:
    cases = {(case.operation, case.title, case.dtype): case for case in read(file)}
    assert {key[2] for key in cases} == {"float32", "float64"}
    for (operation, title, dtype), case in cases.items():
        original = conformance.contract_of(getattr(ops, operation)).edges[title].astype(dtype)
        assert case.call.parameters == original.parameters
        assert all(np.array_equal(case.call.arrays[name], original.arrays[name]) for name in original.arrays)
        assert all(case.call.arrays[name].dtype == original.arrays[name].dtype for name in original.arrays)


def test_arguments_that_are_left_out_or_several_arrays_survive(tmp_path: Path) -> None:
    arrays = {"a": None, "b": (np.arange(3), np.ones((2, 2), np.float32)), "c": np.zeros((0, 4))}
    call = Call(arrays=arrays, parameters={"size": (2, (3, 4)), "scale": 0.1, "limit": None, "aligned": True})
    write(
        tmp_path / "x.npz",
        [Case(operation="o", title="t", setting="", dtype="float32", call=call, results=())],
        device="none",
    )
    (case,) = read(tmp_path / "x.npz")
    assert case.call.parameters == call.parameters
    assert case.call.arrays["a"] is None
    assert isinstance(case.call.arrays["b"], tuple)
    np.testing.assert_array_equal(case.call.arrays["b"][1], np.ones((2, 2)))
    assert case.call.arrays["c"].shape == (0, 4)


def test_a_changed_decision_is_noticed(file: Path) -> None:
    def swap(kept: np.ndarray) -> np.ndarray:
        kept[:2] = kept[1::-1]
        return kept

    (line,) = changed(file, "nms", swap)
    assert line.startswith("nms: ")
    assert "2 of" in line


@pytest.mark.parametrize("error", [1e-3, np.nan])
def test_a_changed_sum_is_noticed(file: Path, error: float) -> None:
    (line,) = changed(file, "conv2d_forward", lambda y: np.where(np.arange(y.size).reshape(y.shape) == 1, y + error, y))
    assert "1 of" in line


def test_a_rounding_of_a_sum_is_none(file: Path) -> None:
    normal = [case for case in read(file) if case.operation == "conv2d_forward" and not case.call.exact]
    write(
        file,
        [replace(case, results=(case.results[0] * (1 + np.finfo(case.dtype).eps),)) for case in normal],
        device="rounded",
    )
    assert normal
    assert replay(file) == []


@pytest.mark.parametrize(
    "change", [lambda y: y.astype(np.float64 if y.dtype == np.float32 else np.float32), lambda y: y[..., 1:]]
)
def test_another_shape_or_type_is_noticed(file: Path, change: Any) -> None:
    (line,) = changed(file, "conv2d_forward", change)
    assert "result 0: recorded" in line


def test_a_kernel_that_changed_is_noticed(
    file: Path, kernels: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    write(file, [case for case in read(file) if case.title == "a stem"], device="fewer")
    kernels["conv2d_forward"] = lambda *arrays, **parameters: -ops.conv2d_forward.specification(*arrays, **parameters)
    assert conformance.main(["replay", str(file)]) == 1
    assert "conv2d_forward: a stem: float32: result 0: " in capsys.readouterr().out


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 cut off", b"no zip file at all"])
def test_what_is_no_such_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"x\.npz: expected a file of conformance record"):
        read(tmp_path / "x.npz")


def test_another_format_and_no_case(tmp_path: Path, kernels: dict[str, Any]) -> None:
    np.savez(tmp_path / "x.npz", index=np.array(json.dumps({"format": 99})))
    with pytest.raises(DataError, match="one of format 99, not 1"):
        read(tmp_path / "x.npz")
    write(tmp_path / "y.npz", [], device="none")
    with pytest.raises(DataError, match="expected cases, found none"):
        replay(tmp_path / "y.npz")


def test_an_operation_that_fails_is_left_out(
    tmp_path: Path, kernels: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    kernels["conv2d_forward"] = None
    assert conformance.main(["record", str(tmp_path / "x.npz"), "--device", "emulated"]) == 1
    assert "FAILED conv2d_forward" in capsys.readouterr().out
    assert {case.operation for case in read(tmp_path / "x.npz")} == {"nms"}


def test_recording_needs_a_gpu(tmp_path: Path, kernels: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match="expected CuPy"):
        record(tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()


@needs_compiler
def test_real_kernels_in_the_emulator(tmp_path: Path) -> None:
    assert {"nms", "roi_align_grad_features"} <= set(KERNELS)
    record(tmp_path / "x.npz", "emulated", ["nms", "roi_align_grad_features"])
    assert {case.setting for case in read(tmp_path / "x.npz")} == {"", "by atomics"}
    assert replay(tmp_path / "x.npz") == []


def test_products_of_less_precision_have_a_wider_bound(
    tmp_path: Path, kernels: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conformance, "SETTINGS", {"conv2d_forward": conformance.PRECISIONS})
    record(tmp_path / "x.npz", "emulated", ["conv2d_forward"])
    cases = [case for case in read(tmp_path / "x.npz") if not case.call.exact and case.dtype == "float32"]
    assert {case.setting for case in cases} == {"", "tf32", "bf16"}
    rounded = [replace(case, results=(case.results[0] * np.float32(1 + 2**-12),)) for case in cases]
    write(tmp_path / "x.npz", rounded, device="rounded")
    lines = replay(tmp_path / "x.npz")
    assert lines
    assert all(line.split(": ")[2] == "float32" for line in lines)
