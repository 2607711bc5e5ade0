"""Performance contracts: what each kernel may take of a GPU, checked by compiling it, which needs no GPU.

Every instantiation of every program is compiled for every architecture that it is written for. ``contracts.json``
holds what was measured then (registers, stack, shared memory), and RULES what the instructions must and must not be,
each with its reason. A kernel that became slower in a way that a compiler can see fails the tests.

``make contracts`` measures anew, writes the file and prints what changed. A change is for a person to judge.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import pkgutil
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import refnet.kernels.cuda
from refnet.kernels.cuda.nvrtc import ARCHITECTURES, cached, capability_of, compiled, compiler, suits
from refnet.kernels.cuda.program import FOLDER, Program
from refnet.kernels.cuda.sass import disassembler, helpers, instructions

FILE = FOLDER / "contracts.json"
WORKERS = 2
REGISTER_STEP = 8
"""Registers are handed out to the threads of a warp by this number each (CUDA's occupancy calculator)."""

Contracts: TypeAlias = dict[str, dict[str, dict[str, dict[str, int]]]]
"""By source, instantiation and architecture: the recorded registers, and stack and shared bytes."""


@dataclass(frozen=True, slots=True)
class Compilation:
    """One instantiation for one architecture."""

    program: Program
    name: str
    architecture: str

    @property
    def source(self) -> str:
        """The file's name."""
        return self.program.path.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What a compilation gave.

    Attributes:
        recorded: registers, and bytes of stack and shared memory: what ``contracts.json`` holds.
        spilled: bytes of registers moved to local memory and back.
        fused: multiply-adds rounded once.
        helpers: functions of the compiler that the kernel calls.
        warnings: of the compiler.
        instructions: how often each stands in the machine code; None without a disassembler.
    """

    recorded: dict[str, int]
    spilled: int
    fused: int
    helpers: frozenset[str]
    warnings: tuple[str, ...]
    instructions: Counter[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What the instructions of some kernels must and must not be. Everything is a regular expression for a whole name.

    Attributes:
        why: the reason.
        source, kernel: the files, and the instantiations, that it is about.
        requires: one instruction at least matches each of these.
        forbids: no instruction matches any of these.
        least, most: compute capabilities times ten that it holds for.
    """

    why: str
    source: str = ".*"
    kernel: str = ".*"
    requires: tuple[str, ...] = ()
    forbids: tuple[str, ...] = ()
    least: int = 0
    most: int = 999

    def applies(self, compilation: Compilation) -> bool:
        """Whether it is about this one."""
        return (
            re.fullmatch(self.source, compilation.source) is not None
            and re.fullmatch(self.kernel, compilation.name) is not None
            and self.least <= capability_of(compilation.architecture) <= self.most
        )


RULES = (
    Rule(
        why="float64 runs at 1/2 to 1/64 of float32's rate, so a float32 kernel must not hold a forgotten double",
        # these sum in float64: what four rows gave in float32, or squares of gradients
        kernel=r"(?!.*double|refnet::(channel_sums|channel_moments|finish_|square_chunks|add_shares)).*",
        forbids=(r"D(ADD|MUL|FMA|SETP|MNMX)\b.*|.*\bF64\b.*",),
    ),
    Rule(
        why="products wait for shared memory unless 16 bytes an instruction come from it",
        source=r"conv2d\.cu",
        kernel=r"(correlate|outer)<Simt<.*",
        requires=(r"[FD]FMA.*", r"LDS(\.U)?\.128.*"),
    ),
    Rule(
        why="TF32 and bfloat16 are there for the tensor cores",
        source=r"conv2d\.cu",
        kernel=r"(correlate|outer)<(Tf32|Bf16)<.*",
        requires=(r"HMMA\..*",),
    ),
    Rule(
        why="only a warpgroup's instruction, which reads both operands from shared memory, keeps Hopper's cores busy",
        source=r"conv2d\.cu",
        kernel=r"correlate<Wgmma(Tf32|Bf16)<.*",
        requires=(r"HGMMA\.64x128x.*",),
        forbids=(r"HMMA\..*",),
    ),
    Rule(
        why="copies go from memory to shared memory by themselves while products are summed",
        source=r"conv2d\.cu",
        kernel=r"(correlate|outer)<.*",
        requires=(r"LDGSTS\..*",),
        forbids=(r"LDL.*", r"STL.*"),
        least=80,
    ),
    Rule(
        why="memory is all that these kernels wait for, and 16 bytes an instruction ask the least of it",
        kernel=r"refnet::(elementwise|per_channel|max_pool_.*|resample.*|sgd|adamw|scale)<.*"
        r"|(pool_regions|gather_gradient)<float, 4,.*",
        requires=(r"LDG\.E\.128.*", r"STG\.E\.128.*"),
    ),
    Rule(
        why="channels lie side by side, and 16 bytes of them an instruction ask the least of memory",
        source=r"roi\.cu",
        kernel=r"\w+<float, 4,.*",
        requires=(r"LDG\.E\.128.*",),
    ),
    Rule(
        why="adding four channels at once takes a quarter of the atomic additions",
        kernel=r"scatter_gradient<float, 4,.*",
        requires=(r"LDG\.E\.128.*", r"REDG\.E\.ADD\.F32x4.*"),
        least=90,
    ),
    Rule(
        why="a box that many boxes are compared with is one read of shared memory",
        source=r"(nms|matching)\.cu",
        kernel=r"(nms_overlaps|best_objects)<.*",
        requires=(r"LDS(\.U)?\.128.*",),
    ),
)

LONG_DIVISION = re.compile(r"__cuda_sm\d+_(div|rem)_[su]64")
"""Dividing 64-bit integers is a call of some 100 instructions, which no kernel needs in its loops."""


def programs() -> tuple[Program, ...]:
    """Every program that a module of this package defines, by source."""
    modules = [
        importlib.import_module(f"{refnet.kernels.cuda.__name__}.{module.name}")
        for module in pkgutil.iter_modules(refnet.kernels.cuda.__path__)
    ]
    found = {value for module in modules for value in vars(module).values() if isinstance(value, Program)}
    return tuple(sorted(found, key=lambda program: (program.source, program.contraction)))


def compilations(chosen: Iterable[Program]) -> list[Compilation]:
    """Every instantiation for every architecture that it is written for."""
    return [
        Compilation(program, entry.name, architecture)
        for program in chosen
        for entry in program.instantiations
        for architecture in ARCHITECTURES
        if suits(entry, architecture)
    ]


def compile_all(work: Sequence[Compilation]) -> None:
    """Compile what isn't in the cache, by several processes: one runs one compilation at a time, whatever its threads.

    Raises:
        CompilerError: something doesn't compile.
    """
    missing = [item for item in work if cached(item.program, item.name, item.architecture) is None]
    if not missing:
        return
    with ProcessPoolExecutor(WORKERS, mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(_compile, missing, chunksize=1):
            pass


def _compile(item: Compilation) -> None:
    compiled(item.program, item.name, item.architecture)


def measure(work: Sequence[Compilation]) -> dict[Compilation, Measurement]:
    """Compile, and disassemble if there is a disassembler.

    Raises:
        CompilerError: something doesn't compile.
    """
    compile_all(work)
    measured: dict[Compilation, Measurement] = {}
    for architecture, group in groupby(sorted(work, key=lambda item: item.architecture), lambda i: i.architecture):
        items = list(group)
        cubins = [compiled(item.program, item.name, architecture) for item in items]
        counts: Sequence[Counter[str] | None] = [None] * len(cubins)
        if disassembler():
            counts = instructions(cubins, architecture)
        for item, cubin, count in zip(items, cubins, counts, strict=True):
            used = cubin.resources
            measured[item] = Measurement(
                recorded={"registers": used.registers, "stack": used.stack, "shared": used.shared},
                spilled=used.spill_stores + used.spill_loads,
                fused=cubin.fused,
                helpers=frozenset(helpers(cubin)),
                warnings=tuple(cubin.warnings),
                instructions=count,
            )
    return measured


def faults(item: Compilation, found: Measurement, contracts: Contracts, rules: Sequence[Rule] = RULES) -> list[str]:
    """What in a measurement breaks the contract, a line each."""
    contract = contracts.get(item.source, {}).get(item.name, {}).get(item.architecture)
    lines = list(_against_contract(found, contract)) if contract else ["has no contract: run make contracts"]
    lines += _against_rules(item, found, rules)
    return [f"{item.source}: {item.name}: {item.architecture}: {line}" for line in lines]


def register_limit(recorded: int) -> int:
    """The most that cost no more than `recorded`: the same step."""
    return -(-recorded // REGISTER_STEP) * REGISTER_STEP


def _against_contract(found: Measurement, contract: dict[str, int]) -> Iterator[str]:
    limits = {**contract, "registers": register_limit(contract["registers"])}
    for what, limit in limits.items():
        if found.recorded[what] > limit:
            unit = "registers" if what == "registers" else f"bytes of {what}"
            yield f"at most {limit} {unit}, got {found.recorded[what]} (make contracts accepts that)"


def _against_rules(item: Compilation, found: Measurement, rules: Sequence[Rule]) -> Iterator[str]:
    if found.spilled:
        yield f"registers spilled, {found.spilled} bytes"
    if found.fused and not item.program.contraction:
        yield f"{found.fused} fused multiply-adds in a program without contraction"
    yield from (f"calls {helper}" for helper in sorted(found.helpers) if LONG_DIVISION.fullmatch(helper))
    yield from found.warnings
    if found.instructions is None:
        return
    for rule in rules:
        if rule.applies(item):
            yield from _against_rule(found.instructions, rule)


def _against_rule(counts: Counter[str], rule: Rule) -> Iterator[str]:
    for pattern in rule.requires:
        if not any(re.fullmatch(pattern, name) for name in counts):
            yield f"no instruction {pattern}: {rule.why}"
    for pattern in rule.forbids:
        bad = sorted(name for name in counts if re.fullmatch(pattern, name))
        if bad:
            yield f"instructions {', '.join(bad)}: {rule.why}"


def read_contracts() -> Contracts:
    """The recorded measurements; none if there is no file."""
    if not FILE.exists():
        return {}
    contracts: Contracts = json.loads(FILE.read_text())["kernels"]
    return contracts


def write_contracts(measured: dict[Compilation, Measurement]) -> Contracts:
    """Record measurements, one line an instantiation and architecture."""
    contracts: Contracts = {}
    for item, found in sorted(measured.items(), key=lambda pair: (pair[0].source, pair[0].name)):
        contracts.setdefault(item.source, {}).setdefault(item.name, {})[item.architecture] = found.recorded
    major, minor, _ = compiler().version
    document: dict[str, Any] = {
        "about": f"What each kernel takes, per thread (registers, stack bytes) and block (shared bytes), by NVRTC "
        f"{major}.{minor}. Written by make contracts; a kernel may take no more, registers to the next multiple of "
        f"{REGISTER_STEP}.",
        "kernels": contracts,
    }
    text = json.dumps(document, indent=1)
    # the innermost objects on one line
    FILE.write_text(re.sub(r"\{\s+(\"registers\"[^}]*?)\s+\}", lambda m: f"{{{' '.join(m[1].split())}}}", text) + "\n")
    return contracts


def differences(old: Contracts, new: Contracts) -> list[str]:
    """What changed, a line each."""
    before, after = dict(_flat(old)), dict(_flat(new))
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            lines.append(f"{': '.join(key)}: {before.get(key, 'new')} -> {after.get(key, 'gone')}")
    return lines


def _flat(contracts: Contracts) -> Iterator[tuple[tuple[str, str, str], dict[str, int]]]:
    for source, kernels in contracts.items():
        for name, targets in kernels.items():
            for architecture, recorded in targets.items():
                yield (source, name, architecture), recorded


def main() -> int:
    """Measure, write ``contracts.json``, and print what changed and what breaks a rule."""
    old = read_contracts()
    measured = measure(compilations(programs()))
    new = write_contracts(measured)
    for line in differences(old, new):
        print(line)
    broken = [line for item, found in measured.items() for line in faults(item, found, new)]
    for line in broken:
        print(f"broken: {line}")
    if not disassembler():
        print("nvdisasm isn't installed (package nvidia-cuda-nvdisasm): the rules for instructions weren't checked")
    print(f"{len(measured)} kernels measured, {len(broken)} rules broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
