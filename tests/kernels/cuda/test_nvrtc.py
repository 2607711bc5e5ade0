"""Compiling with NVRTC, which needs no GPU: machine code, its report, errors, and a cache that notices damage."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest

from refnet.errors import CompilerError
from refnet.kernels.cuda import nvrtc
from refnet.kernels.cuda.nvrtc import architecture, cached, compiled, read_resources, suits
from refnet.kernels.cuda.program import Instantiation, Program, sources_in

needs_nvrtc = pytest.mark.skipif(
    not nvrtc.available(), reason="NVRTC isn't installed (package nvidia-cuda-nvrtc): CUDA kernels aren't compiled"
)

HEADER = "template <class T> __device__ T scaled(T x, T by) { return x * by; }\n"
SOURCE = """
#include "scale.cuh"
template <class T> __global__ void scale_and_add(const T* x, T* y, T by, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = scaled(x[i], by) + T(1);
}
template <int n> __global__ void pick(float* y, int k) {
  float values[n];
  for (int i = 0; i < n; ++i) values[i] = y[i];
  for (int i = 0; i < n; ++i) y[i] = 0;
  y[0] = values[k & (n - 1)];
}
template <int n> __global__ void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n)); }
"""
HOPPER = Instantiation("more_registers<64>", only=(90,))
PROGRAM = Program("scale.cu", ["scale_and_add<float>", "scale_and_add<double>", "pick<64>", HOPPER])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the source lies, beside an empty cache."""
    monkeypatch.setenv("REFNET_CACHE", str(tmp_path / "cache"))
    (tmp_path / "scale.cu").write_text(SOURCE)
    (tmp_path / "scale.cuh").write_text(HEADER)
    with sources_in(tmp_path):
        yield tmp_path


@needs_nvrtc
@pytest.mark.parametrize("target", nvrtc.ARCHITECTURES)
def test_machine_code_for_every_architecture(folder: Path, target: str) -> None:
    cubin = compiled(PROGRAM, "scale_and_add<float>", target)
    assert cubin.path.read_bytes()[:4] == b"\x7fELF"
    assert cubin.symbol.startswith("_Z13scale_and_addIfE")
    assert cubin.symbol.encode() in cubin.path.read_bytes()
    assert cubin.warnings == []


@needs_nvrtc
def test_the_report_of_the_assembler(folder: Path) -> None:
    plain = compiled(PROGRAM, "scale_and_add<float>", "sm_90a").resources
    assert 4 <= plain.registers <= 32
    assert (plain.stack, plain.spill_stores, plain.spill_loads, plain.shared) == (0, 0, 0, 0)
    assert compiled(PROGRAM, "pick<64>", "sm_90a").resources.stack == 64 * 4  # a run-time index: no registers


def test_a_report_is_read_for_its_kernel_alone() -> None:
    log = """ptxas info    : Compiling entry function 'other' for 'sm_80'
ptxas info    : Function properties for other
ptxas         .     512 bytes stack frame, 508 bytes spill stores, 700 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 512 bytes cumulative stack size
ptxas info    : Compiling entry function 'mine' for 'sm_80'
ptxas info    : Function properties for mine
ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 8 bytes cumulative stack size, 1024 bytes smem, 380 bytes cmem[0]
"""
    expected = nvrtc.Resources(registers=40, stack=8, spill_stores=4, spill_loads=12, shared=1024)
    assert read_resources(log, "mine") == expected
    with pytest.raises(CompilerError, match="expected a report of its registers"):
        read_resources(log, "min")


@needs_nvrtc
def test_contraction_is_the_programs_choice(folder: Path) -> None:
    """x * by + 1 is a fused multiply-add, or a product and a sum; a quotient's own aren't counted."""
    (folder / "scale.cuh").write_text(HEADER.replace("x * by", "x / by * by"))
    apart = Program("scale.cu", PROGRAM.instantiations, contraction=False)
    assert compiled(PROGRAM, "scale_and_add<float>", "sm_90a").fused == 1
    assert compiled(apart, "scale_and_add<float>", "sm_90a").fused == 0
    assert "--fmad=false" in nvrtc.options(apart, "sm_90a")
    assert not {"--use_fast_math", "--ftz=true"} & set(nvrtc.options(PROGRAM, "sm_90a"))


@needs_nvrtc
def test_hoppers_own_instructions_compile(folder: Path) -> None:
    assert compiled(PROGRAM, HOPPER.name, "sm_90a").symbol
    with pytest.raises(CompilerError, match="setmaxnreg"):
        compiled(PROGRAM, HOPPER.name, "sm_80")


@needs_nvrtc
def test_an_error_names_the_file_the_kernel_and_the_line(folder: Path) -> None:
    (folder / "scale.cuh").write_text(HEADER.replace("x * by", "x * buy"))
    with pytest.raises(CompilerError, match=r"(?s)scale\.cu: scale_and_add<float>: .*sm_80.*scale\.cuh\(1\).*buy"):
        compiled(PROGRAM, "scale_and_add<float>", "sm_80")
    assert not list(folder.rglob("*.cubin"))


@needs_nvrtc
def test_a_warning_is_kept(folder: Path) -> None:
    (folder / "scale.cu").write_text(SOURCE + "__global__ void f(int n) { if (n = 0) return; }\n")
    assert any("warning #" in line for line in compiled(PROGRAM, "scale_and_add<float>", "sm_80").warnings)


@needs_nvrtc
def test_what_was_compiled_before_comes_from_the_cache(folder: Path) -> None:
    assert cached(PROGRAM, "scale_and_add<float>", "sm_90a") is None
    first = compiled(PROGRAM, "scale_and_add<float>", "sm_90a")
    with patch.object(nvrtc.Compiler, "compile", side_effect=AssertionError("compiled again")):
        assert compiled(PROGRAM, "scale_and_add<float>", "sm_90a") == first
    assert cached(PROGRAM, "scale_and_add<float>", "sm_90a") == first


@needs_nvrtc
def test_whatever_matters_makes_another_entry(folder: Path) -> None:
    name = "scale_and_add<float>"
    paths = [compiled(PROGRAM, name, "sm_90a").path]
    paths.append(compiled(PROGRAM, name, "sm_80").path)
    paths.append(compiled(PROGRAM, "scale_and_add<double>", "sm_90a").path)
    paths.append(compiled(Program("scale.cu", [name], contraction=False), name, "sm_90a").path)
    with patch.object(nvrtc.compiler(), "version", (13, 99, 1)):
        paths.append(compiled(PROGRAM, name, "sm_90a").path)
    (folder / "scale.cuh").write_text(HEADER.replace("x * by", "by * x"))
    paths.append(compiled(PROGRAM, name, "sm_90a").path)
    (folder / "scale.cu").write_text(SOURCE.replace("T(1)", "T(2)"))
    paths.append(compiled(PROGRAM, name, "sm_90a").path)
    assert len(set(paths)) == len(paths) == 7


@needs_nvrtc
@pytest.mark.parametrize(
    "damage",
    [
        lambda code, entry: code.write_bytes(code.read_bytes()[:-1]),
        lambda code, entry: code.write_bytes(bytes([code.read_bytes()[0] ^ 1]) + code.read_bytes()[1:]),
        lambda code, entry: code.unlink(),
        lambda code, entry: entry.unlink(),
        lambda code, entry: entry.write_text(entry.read_text()[:20]),
        lambda code, entry: entry.write_text("[]"),
    ],
    ids=["cut off", "a bit flipped", "no code", "no entry", "half an entry", "another entry"],
)
def test_a_damaged_entry_is_compiled_anew(folder: Path, damage) -> None:
    good = compiled(PROGRAM, "scale_and_add<float>", "sm_90a")
    code = good.path.read_bytes()
    damage(good.path, good.path.with_suffix(".json"))
    assert cached(PROGRAM, "scale_and_add<float>", "sm_90a") is None
    again = compiled(PROGRAM, "scale_and_add<float>", "sm_90a")
    assert again.path.read_bytes() == code
    assert replace(again, log="") == replace(good, log="")  # the log tells how long it took


def test_the_architecture_of_a_device() -> None:
    assert [architecture(capability) for capability in (75, 80, 86, 90, 100, 120)] == [
        "sm_75", "sm_80", "sm_86", "sm_90a", "sm_100", "sm_120",
    ]  # fmt: skip
    assert architecture(100, only=(100,)) == "sm_100a"
    assert architecture(120, only=(100,)) == "sm_120"


def test_which_kernels_suit_an_architecture() -> None:
    assert not suits(Instantiation("k", least=80), "sm_75")
    assert suits(Instantiation("k", least=80), "sm_90a")
    assert [target for target in nvrtc.ARCHITECTURES if suits(HOPPER, target)] == ["sm_90a"]


def test_without_nvrtc_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_libraries", lambda: iter(()))
    assert not nvrtc.available()
    with pytest.raises(CompilerError, match="package nvidia-cuda-nvrtc"):
        nvrtc.compiler.__wrapped__()


def test_where_nvrtc_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [
        tmp_path / "site/nvidia/cu13/lib/libnvrtc.so.13",
        tmp_path / "toolkit/lib64/libnvrtc.so.13",
        tmp_path / "elsewhere/libnvrtc.so.13",
    ]
    for library in wanted:
        library.parent.mkdir(parents=True)
        library.touch()
    monkeypatch.setattr("sys.path", [str(tmp_path / "empty"), str(tmp_path / "site")])
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "elsewhere"))
    assert [library for library in nvrtc._libraries() if tmp_path in library.parents] == wanted
