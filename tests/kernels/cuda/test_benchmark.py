"""The benchmark without a GPU: its cases are right in the emulator, its peers compute the same, its figures add up."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refnet import ops
from refnet.bench import torch_peers
from refnet.bench.workloads import regions, resnet50_fpn
from refnet.kernels.cuda import benchmark, timing
from refnet.kernels.cuda.benchmark import BARS, Case, WrongResult, cases, figures, markdown, rows
from refnet.kernels.cuda.timing import Comparison
from refnet.kernels.emulator import available
from refnet.testing import Call

needs_compiler = pytest.mark.skipif(not available(), reason="g++ isn't installed: CUDA kernels aren't emulated")


# ---- the cases -----------------------------------------------------------------------------------------------------


def test_every_row_has_its_cases_in_both_sizes() -> None:
    for toy in (True, False):
        assert {case.bar for case in cases(toy=toy)} == set(BARS)
    full = [(case.bar, case.title, case.operation) for case in cases(toy=False)]
    assert len(full) == len(set(full))


def test_the_layers_of_the_network() -> None:
    """ResNet-50's convolutions have so many products for a 224x224 image: He et al. 2016, table 1: 3.8e9."""
    layers = {(c.window, c.stride, c.channels, c.outputs, c.height) for c in resnet50_fpn(224, 224)}

    def products(window: int, stride: int, channels: int, outputs: int, height: int) -> int:
        assert (window, stride, channels, outputs, height) in layers
        return (height // stride) ** 2 * window**2 * channels * outputs

    total, channels = products(7, 2, 3, 64, 224), 64
    for stage, blocks in {2: 3, 3: 4, 4: 6, 5: 3}.items():
        middle, wide = 16 * 2**stage, 64 * 2**stage
        after, before = 224 >> stage, 224 >> max(stage - 1, 2)
        stride = before // after
        total += products(1, 1, channels, middle, before) + products(3, stride, middle, middle, before)
        total += products(1, stride, channels, wide, before) + blocks * products(1, 1, middle, wide, after)
        total += (blocks - 1) * (products(1, 1, wide, middle, after) + products(3, 1, middle, middle, after))
        channels = wide
    assert 3.8e9 < total < 4.2e9  # strides in the 3x3 make it a little more


def test_regions_lie_within_the_image() -> None:
    boxes = regions(500, 80, 120, np.random.default_rng(0))
    assert boxes.min() >= 0
    assert (boxes[:, 2:] >= boxes[:, :2]).all()
    assert (boxes[:, 2:] <= [120, 80]).all()


@needs_compiler
@pytest.mark.parametrize("only", ["grad_weight: fpn 1x1", "nms 2000", "roi_align deterministic"])
def test_a_dry_run_checks_results_and_prints_no_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], only: str
) -> None:
    assert benchmark.main([str(tmp_path), "--dry-run", "--only", only]) == 0
    assert "0 failed" in capsys.readouterr().out
    document = json.loads((tmp_path / "benchmark.json").read_text())
    assert document["failures"] == []
    assert all(only in f"{line['bar']}: {line['title']}" and "ours_us" not in line for line in document["cases"])
    assert document["cases"]
    assert "not measured" in (tmp_path / "benchmark.md").read_text()


def test_a_wrong_kernel_fails_and_the_others_still_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(x: np.ndarray, w: np.ndarray, **geometry: Any) -> np.ndarray:
        return ops.conv2d_forward.specification(x, w, **geometry) * (1 + 1e-3)

    monkeypatch.setattr(benchmark, "KERNELS", {"conv2d_forward": wrong, "nms": ops.nms.specification})
    chosen = [case for case in cases(toy=True) if case.bar == "forward"][-1:]
    chosen += [case for case in cases(toy=True) if case.operation == "nms"]
    monkeypatch.setattr(benchmark, "cases", lambda *, toy: chosen)
    assert benchmark.main([str(tmp_path), "--dry-run"]) == 1
    out = capsys.readouterr().out
    assert "WrongResult: forward: " in out
    assert "2 cases right, 1 failed" in out


def test_bounds_are_those_of_the_contract() -> None:
    case = next(case for case in cases(toy=True) if case.title.startswith("stem"))
    call = case.make()
    exact = ops.conv2d_forward.specification(*(a.astype(np.float64) for a in call.arrays.values()), **call.parameters)
    reference = ops.conv2d_forward.specification
    near = (exact * (1 + 1e-6)).astype(np.float32)
    assert 0 < benchmark.verify(case, call, (near,), reference) <= 1
    for bad in (exact * (1 + 1e-4), np.full_like(exact, np.nan), exact[..., 1:]):
        with pytest.raises(WrongResult, match="stem"):
            benchmark.verify(case, call, (bad.astype(np.float32),), reference)


# ---- the peers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bar", ["forward", "forward tf32", "grad_input", "grad_weight", "nms 2000", "roi_align 7", "roi_align atomic"]
)
def test_a_peer_computes_the_same(torch: Any, bar: str) -> None:
    """On the CPU, in float64, where the peers' code is the same."""
    if bar.startswith(("nms", "roi")):
        pytest.importorskip("torchvision", reason="torchvision isn't installed, and is only compared with")
    for case in [case for case in cases(toy=True) if case.bar == bar][:6]:
        call = case.make().astype(np.float64)
        specification = getattr(ops, case.operation).specification
        expected = call.apply(specification)
        np.testing.assert_allclose(call.apply(torch_peers.reference(case.operation, torch, "cpu")), expected, atol=1e-9)
        for layout in torch_peers.LAYOUTS[case.operation]:
            result = torch_peers.launch(case.operation, layout, call, torch)()
            axes = (2, 3, 1, 0) if bar == "grad_weight" else (0, 2, 3, 1)
            result = result if bar.startswith("nms") else result.permute(axes)
            np.testing.assert_allclose(result.numpy(), expected, atol=1e-9)


# ---- the figures ---------------------------------------------------------------------------------------------------


def test_ratios_are_to_the_fastest_peer_round_by_round() -> None:
    timed = Comparison(ours=(10.0, 20.0, 10.0), peers={"slow": (90.0, 90.0, 1.0), "fast": (20.0, 30.0, 40.0)})
    assert timed.best_peer == "fast"
    assert timed.ratios == [2.0, 1.5, 4.0]
    assert figures(timed) == {
        "ours_us": 10.0, "peers_us": {"slow": 90.0, "fast": 30.0}, "ratio": 2.0, "low": 1.5, "high": 4.0,
    }  # fmt: skip


def test_a_row_is_the_geometric_mean_of_its_cases() -> None:
    lines = [
        {"bar": "forward", "title": t, "ratio": r, "low": r / 2, "high": r * 2} for t, r in (("a", 0.5), ("b", 2.0))
    ]
    table = rows([*lines, {"bar": "nms 2000", "title": "without a time"}])
    assert table[0]["ratio"] == pytest.approx(1)
    assert (table[0]["low"], table[0]["high"], table[0]["cases"]) == (pytest.approx(0.5), pytest.approx(2), 2)
    text = markdown(table)
    assert "| 0.7 | 1 | 1.00 (0.50 to 2.00) | 2 |" in text
    assert text.count("not measured") == len(BARS) - 1


@pytest.mark.parametrize(
    ("size", "cache", "expected"), [(1, 60, 64), (60, 60, 4), (100, 60, 3), (1000, 60, 1), (0, 60, 64)]
)
def test_arguments_rotate_through_four_caches(size: int, cache: int, expected: int) -> None:
    assert timing.copies(size, cache) == expected


@pytest.mark.parametrize(
    ("each", "copies", "expected"), [(1.0, 4, 2000), (500.0, 3, 6), (5000.0, 2, 2), (0.0, 1, 20000)]
)
def test_a_measurement_takes_long_enough(each: float, copies: int, expected: int) -> None:
    assert timing.calls(lambda count: each * count, copies) == expected


def test_cases_of_a_bench_are_calls_of_the_right_kernel() -> None:
    call = Call(arrays={"x": np.ones(3)}, parameters={})
    case = Case(bar="b", title="t", operation="relu_forward", make=lambda: call)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "KERNELS", {"relu_forward": lambda x: -x})
        assert case.run(call)[0].tolist() == [-1, -1, -1]
