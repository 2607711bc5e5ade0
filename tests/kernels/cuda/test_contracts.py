"""The compile matrix: every kernel for every architecture against its performance contract; and that a breach shows."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from refnet.errors import CompilerError
from refnet.kernels.cuda import contracts, nvrtc, sass
from refnet.kernels.cuda.contracts import Compilation, Measurement, Rule, compilations, faults, programs
from refnet.kernels.cuda.program import FOLDER, Instantiation, Program, sources_in

needs_nvrtc = pytest.mark.skipif(
    not nvrtc.available(), reason="NVRTC isn't installed (package nvidia-cuda-nvrtc): CUDA kernels aren't compiled"
)
needs_disassembler = pytest.mark.skipif(
    sass.disassembler() is None,
    reason="nvdisasm isn't installed (package nvidia-cuda-nvdisasm): CUDA kernels' instructions aren't checked",
)
KERNELS = [(program, entry.name) for program in programs() for entry in program.instantiations]


# ---- the kernels ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> dict[Compilation, Measurement]:
    """Everything, compiled by several processes at the start."""
    return contracts.measure(compilations(programs()))


@needs_nvrtc
@pytest.mark.parametrize(("program", "name"), KERNELS, ids=[f"{program.source}-{name}" for program, name in KERNELS])
def test_a_kernel_keeps_its_contract(measured, program: Program, name: str) -> None:
    mine = {item: found for item, found in measured.items() if (item.program, item.name) == (program, name)}
    assert mine, "no architecture suits it"
    recorded = contracts.read_contracts()
    assert [line for item, found in mine.items() for line in faults(item, found, recorded)] == []


@needs_nvrtc
@needs_disassembler
def test_the_instructions_were_checked(measured) -> None:
    assert all(found.instructions and found.instructions["EXIT"] for found in measured.values())


def test_every_source_has_a_program_and_every_contract_a_kernel() -> None:
    assert {program.source for program in programs()} == {path.name for path in FOLDER.glob("*.cu")}
    recorded = contracts.read_contracts()
    assert {(source, name) for source in recorded for name in recorded[source]} == {
        (program.source, name) for program, name in KERNELS
    }


# ---- what is measured ----------------------------------------------------------------------------------------------

SOURCE = """
template <class T> __global__ void tidy(const T* x, T* y, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i] * x[i] + T(1);
}
template <class T> __global__ void four(const float4* x, float4* y) { y[threadIdx.x] = x[threadIdx.x]; }
template <class T> __global__ void divides(const T* x, T* y) { y[threadIdx.x] = x[0] / x[threadIdx.x]; }
template <class T> __global__ void forgets(const T* x, T* y) { y[threadIdx.x] = x[threadIdx.x] * 0.1; }
template <class T> __global__ void __launch_bounds__(1024, 2) spills(const T* x, T* y) {
  T values[64];
  for (int i = 0; i < 64; ++i) values[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
  for (int i = 0; i < 64; ++i) for (int j = 0; j < 64; ++j) y[(i * 64 + j) * 1024 + threadIdx.x] = values[i] * values[j];
}
"""
NAMES = ["tidy<float>", "four<float>", "divides<long long>", "forgets<float>", "spills<float>"]
PROGRAM = Program("some.cu", NAMES)


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Measurement]]:
    """Measures SOURCE's kernels for one architecture."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "some.cu").write_text(SOURCE)

    def measure(architecture: str = "sm_90a", program: Program = PROGRAM) -> dict[str, Measurement]:
        with sources_in(folder), pytest.MonkeyPatch.context() as patch:
            patch.setenv("REFNET_CACHE", str(folder / "cache"))
            patch.setattr(
                contracts, "compile_all", lambda work: None
            )  # a process of its own takes these from elsewhere
            items = [Compilation(program, entry.name, architecture) for entry in program.instantiations]
            return {item.name: found for item, found in contracts.measure(items).items()}

    return measure


def broken(name: str, found: Measurement, *rules: Rule, program: Program = PROGRAM) -> list[str]:
    """What is wrong with a kernel whose contract is what it takes."""
    item = Compilation(program, name, "sm_90a")
    recorded = {item.source: {name: {"sm_90a": found.recorded}}}
    lines = faults(item, found, recorded, rules)
    assert all(line.startswith(f"some.cu: {name}: sm_90a: ") for line in lines)
    return [line.removeprefix(f"some.cu: {name}: sm_90a: ") for line in lines]


@needs_nvrtc
@needs_disassembler
@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
def test_instructions_of_each_kernel_apart(some, architecture: str) -> None:
    found = some(architecture)
    counts = {name: found[name].instructions for name in NAMES}
    assert counts["tidy<float>"]["FFMA"] == 1
    assert any(name.startswith("LDG.E.128") for name in counts["four<float>"])
    assert not any(name.startswith("LDG.E.128") for name in counts["tidy<float>"])
    assert counts["forgets<float>"]["DMUL"] == 1
    assert all(count["EXIT"] for count in counts.values())


@needs_nvrtc
@needs_disassembler
def test_a_clean_kernel_breaks_no_rule(some) -> None:
    assert broken("tidy<float>", some()["tidy<float>"], *contracts.RULES) == []


@needs_nvrtc
@needs_disassembler
def test_a_forgotten_double_shows(some) -> None:
    lines = broken("forgets<float>", some()["forgets<float>"], *contracts.RULES)
    assert len(lines) == 1
    assert "DMUL" in lines[0]


@needs_nvrtc
def test_a_division_of_64_bit_integers_shows(some) -> None:
    assert broken("divides<long long>", some()["divides<long long>"]) == ["calls __cuda_sm20_div_s64"]


@needs_nvrtc
def test_spilled_registers_show(some) -> None:
    (line,) = broken("spills<float>", some()["spills<float>"])
    assert line.startswith("registers spilled, ")


@needs_nvrtc
def test_a_fused_multiply_add_shows_where_none_may_be(some) -> None:
    apart = Program("some.cu", ["tidy<float>"], contraction=False)
    fused, unfused = some()["tidy<float>"], some(program=apart)["tidy<float>"]
    assert broken("tidy<float>", fused, program=apart) == ["1 fused multiply-adds in a program without contraction"]
    assert broken("tidy<float>", unfused, program=apart) == []


# ---- what breaks a contract ----------------------------------------------------------------------------------------

CLEAN = Measurement(
    recorded={"registers": 33, "stack": 0, "shared": 512},
    spilled=0,
    fused=0,
    helpers=frozenset(),
    warnings=(),
    instructions=Counter({"LDG.E.128.CONSTANT": 4, "HMMA.1688.F32.TF32": 8, "EXIT": 1}),
)
ITEM = Compilation(PROGRAM, "tidy<float>", "sm_90a")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"registers": 40}, None),
        ({"registers": 41}, "at most 40 registers, got 41"),
        ({"stack": 8}, "at most 0 bytes of stack, got 8"),
        ({"shared": 513}, "at most 512 bytes of shared, got 513"),
        ({"registers": 20, "shared": 0}, None),
    ],
)
def test_more_than_was_recorded(change: dict[str, int], says: str | None) -> None:
    recorded = {"some.cu": {"tidy<float>": {"sm_90a": CLEAN.recorded}}}
    lines = faults(ITEM, replace(CLEAN, recorded={**CLEAN.recorded, **change}), recorded)
    assert lines == ([f"some.cu: tidy<float>: sm_90a: {says} (make contracts accepts that)"] if says else [])


def test_a_new_instantiation_has_no_contract_yet() -> None:
    for recorded in ({}, {"some.cu": {"tidy<float>": {"sm_80": CLEAN.recorded}}}):
        (line,) = faults(ITEM, CLEAN, recorded)
        assert line == "some.cu: tidy<float>: sm_90a: has no contract: run make contracts"


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (Rule(why="w", requires=(r"LDG\.E\.128.*",)), None),
        (Rule(why="w", requires=("LDG",)), "no instruction LDG: w"),
        (Rule(why="w", requires=("HGMMA.*", "HMMA.*")), "no instruction HGMMA.*: w"),
        (Rule(why="w", forbids=("HMMA.*", "FFMA")), "instructions HMMA.1688.F32.TF32: w"),
        (Rule(why="w", forbids=("FFMA.*",)), None),
        (Rule(why="w", requires=("LDG",), source="other.*"), None),
        (Rule(why="w", requires=("LDG",), kernel="tidy"), None),
        (Rule(why="w", requires=("LDG",), kernel="tidy.*", least=90, most=90), "no instruction LDG: w"),
        (Rule(why="w", requires=("LDG",), least=91), None),
        (Rule(why="w", requires=("LDG",), most=89), None),
    ],
)
def test_a_rule_for_instructions(rule: Rule, says: str | None) -> None:
    assert broken("tidy<float>", CLEAN, rule) == ([says] if says else [])
    assert broken("tidy<float>", replace(CLEAN, instructions=None), rule) == []


def test_warnings_show() -> None:
    assert broken("tidy<float>", replace(CLEAN, warnings=("some.cu(3): warning #177-D",))) == [
        "some.cu(3): warning #177-D"
    ]


def test_the_first_broken_compilation_is_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also out of the processes that compile."""
    if not nvrtc.available():
        pytest.skip("NVRTC isn't installed (package nvidia-cuda-nvrtc)")
    monkeypatch.setenv("REFNET_CACHE", str(tmp_path))
    (tmp_path / "bad.cu").write_text("template <int n> __global__ void bad() { undeclared(); }")
    program = Program(tmp_path / "bad.cu", ["bad<1>"])
    with pytest.raises(CompilerError, match=r"bad\.cu\(1\)(?s:.*)undeclared"):
        contracts.compile_all(compilations([program]))


# ---- the file ------------------------------------------------------------------------------------------------------


def test_architectures_that_do_not_suit_are_left_out() -> None:
    program = Program("x.cu", ["a", Instantiation("b", least=80), Instantiation("c", only=(90, 100))])
    targets: dict[str, list[str]] = {}
    for item in compilations([program]):
        targets.setdefault(item.name, []).append(item.architecture)
    assert targets == {"a": [*nvrtc.ARCHITECTURES], "b": [*nvrtc.ARCHITECTURES[1:]], "c": ["sm_90a", "sm_100"]}


@needs_nvrtc
def test_make_contracts_writes_the_file_and_says_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contracts, "FILE", tmp_path / "contracts.json")
    monkeypatch.setattr(contracts, "programs", list)
    measured = {ITEM: CLEAN}
    monkeypatch.setattr(contracts, "measure", lambda work: measured)
    assert contracts.main() == 0
    assert (
        "some.cu: tidy<float>: sm_90a: new -> {'registers': 33, 'stack': 0, 'shared': 512}" in capsys.readouterr().out
    )
    assert contracts.main() == 0
    assert capsys.readouterr().out == "1 kernels measured, 0 rules broken\n"
    measured = {ITEM: replace(CLEAN, recorded={**CLEAN.recorded, "registers": 64}, spilled=4)}
    assert contracts.main() == 1
    out = capsys.readouterr().out
    assert "{'registers': 33, 'stack': 0, 'shared': 512} -> {'registers': 64, 'stack': 0, 'shared': 512}" in out
    assert "broken: some.cu: tidy<float>: sm_90a: registers spilled, 4 bytes" in out
    text = (tmp_path / "contracts.json").read_text()
    assert '"sm_90a": {"registers": 64, "stack": 0, "shared": 512}' in text
    assert json.loads(text)["kernels"] == {"some.cu": {"tidy<float>": {"sm_90a": measured[ITEM].recorded}}}
