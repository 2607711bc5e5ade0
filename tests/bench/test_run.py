"""From subjects to results: ratios, failures, sums of parts, and what is written down."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from refnet.bench import charts, memory, report, run, stopwatch, subjects
from refnet.bench.bars import Bar
from refnet.bench.contest import Contest, Curve, Part, Subject, WrongResult
from refnet.bench.contestants import CPU, SPECIFICATION, TORCH, Field
from refnet.bench.stopwatch import Spread
from refnet.errors import ConfigError, DependencyError, RefnetError
from refnet.kernels.cpu import threads

FIELD = Field(missing={"torch": "No module named 'torch'"}, versions={"numpy": "2"})


@pytest.fixture
def bench() -> Iterator[run.Bench]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFNET_NUM_THREADS", "1")  # so that it is taken back
        yield run.Bench(FIELD, rounds=3, threads=1)
    threads.reset()


def part(name: str, check: str = "equal", wrong: str = "") -> Part:
    def checked(results: object) -> str:
        assert results == {CPU: 1, SPECIFICATION: 1}
        if wrong:
            raise WrongResult(wrong)
        return check

    return Part(name=name, prepare=lambda _: Contest(runs={CPU: lambda: 1, SPECIFICATION: lambda: 1}, check=checked))


def subject(*parts: tuple[int, Part], name: str = "s") -> Subject:
    return Subject(name=name, parts=parts, against={SPECIFICATION: None, TORCH: Bar(0.8, 0.7)})


def test_ratios_are_of_medians_with_the_quartiles_of_the_rounds() -> None:
    values = {CPU: [1.0, 2.0, 3.0], SPECIFICATION: [2.0, 4.0, 12.0], TORCH: [4.0]}
    result = run.compare(subject(), values, threads=2, check="equal")
    assert [(r.peer, r.value, r.low, r.high) for r in result.ratios] == [
        (SPECIFICATION, 0.5, 0.375, 0.5), (TORCH, 0.5, 0.375, 0.625),
    ]  # fmt: skip
    assert result.ratios[1].kept
    assert not run.compare(subject(), values | {TORCH: [2.0]}, threads=1, check="").ratios[1].kept


def test_times_of_parts_are_added_as_often_as_they_occur(bench: run.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([{CPU: [1.0, 2, 3], SPECIFICATION: [7.0]}, {CPU: [10.0, 20, 30], SPECIFICATION: [1.0, 2, 3]}])
    monkeypatch.setattr(run, "in_turns", lambda *_, **__: next(times))
    result = bench.measure(subject((2, part("a")), (1, part("b")), (1, part("a"))))  # a is measured once
    assert (result.spreads[CPU].median, result.spreads[CPU].rounds) == (3 * 2 + 20, 3)
    assert (result.spreads[SPECIFICATION].median, result.spreads[SPECIFICATION].rounds) == (3 * 7 + 2, 1)
    assert result.check == "equal"
    assert result.parts["a"] == {CPU: 2.0, SPECIFICATION: 7.0}


def test_a_wrong_result_is_a_failure_and_has_no_time(bench: run.Bench) -> None:
    found = run.Report()
    told: list[str] = []

    def broken(_: Field) -> Contest:
        raise RuntimeError("no memory")

    listed = [
        subject((1, part("a", wrong="off by one")), name="wrong"),
        subject((1, Part(name="c", prepare=broken)), name="broken"),
        subject((1, part("b")), name="right"),
    ]
    run.run(listed, bench, found, tell=lambda done: told.append(report.line(done)))
    assert [result.subject for result in found.results] == ["right"]
    assert [failure.subject for failure in found.failures] == ["wrong", "broken"]
    assert told[0] == "FAILED wrong, 1 thread: wrong result: off by one"
    assert "RuntimeError: no memory" in told[1]
    assert told[2].startswith("right, 1 thread: kernels/cpu ")


def test_what_is_not_installed_is_told_in_a_line(bench: run.Bench) -> None:
    def prepare(_: Field) -> Contest:
        raise DependencyError("hypothesis isn't installed: pip install 'refnet[testing]'")

    found = run.Report()
    run.run([subject((1, Part(name="a", prepare=prepare)))], bench, found, tell=print)
    assert [failure.reason for failure in found.failures] == [
        "hypothesis isn't installed: pip install 'refnet[testing]'"
    ]


def test_contestants_take_turns_after_a_call_each() -> None:
    calls: list[str] = []
    times = stopwatch.in_turns({n: lambda n=n: calls.append(n) for n in "ab"}, rounds=2)  # type: ignore[misc]
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}
    order = [name for index, name in enumerate(calls) if index == 0 or calls[index - 1] != name]
    assert order == ["a", "b", "a", "b", "a", "b"]


def test_a_slow_reference_is_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "PATIENCE", -1.0)
    calls = {"slow": 0, "quick": 0}

    def call(name: str) -> None:
        calls[name] += 1

    times = stopwatch.in_turns({"slow": lambda: call("slow"), "quick": lambda: call("quick")}, rounds=3, once=("slow",))
    assert calls["slow"] == len(times["slow"]) == 1
    assert len(times["quick"]) == 3


def test_the_table_says_what_is_asked_and_what_is_missing(bench: run.Bench, tmp_path: Path) -> None:
    found = run.Report()
    run.run([subject((1, part("a")))], bench, found, tell=lambda _: None)
    found.results.append(run.compare(subject(name="t"), {CPU: [0.9], TORCH: [1.0]}, threads=1, check="equal"))
    found.failures.append(run.Failure(subject="f", threads=1, reason="wrong result: boxes"))
    report.write(found, FIELD, tmp_path, rounds=3)
    table = (tmp_path / report.TABLE).read_text()
    assert "| s | torch | 0.8 | 0.7 | not measured | " in table
    assert "| s | specification | reported |  | " in table
    assert "| t | torch | 0.8 | 0.7 | 0.90, missed | 900 ms | 1 s |" in table
    assert "torch was left out: No module named 'torch'." in table
    assert "Failed: f, 1 thread: wrong result: boxes" in table
    document = json.loads((tmp_path / report.RESULTS).read_text())
    assert {"machine", "versions", "left_out", "rounds", "results", "growths", "failures"} == document.keys()
    assert document["results"][1]["ratios"][0]["bar"] == {"at_most": 0.8, "aim": 0.7}


def curve(*sizes: int) -> Curve:
    points = tuple((size, subject((1, part(f"size {size}")))) for size in sizes)
    return Curve(name="growth", along="boxes", points=points, bar=Bar(1.5, 1.0))


def test_the_exponent_of_a_power_is_found() -> None:
    sizes = [10, 100, 1000]
    assert run.exponent(sizes, [3 * size**1.25 for size in sizes]) == pytest.approx(1.25)
    assert run.exponent([1, 2], [5.0, 5.0]) == pytest.approx(0)


def test_a_curve_has_a_point_for_each_size(bench: run.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([{CPU: [1.0], SPECIFICATION: [1.0]}, {CPU: [2.0], SPECIFICATION: [4.0]}])
    monkeypatch.setattr(run, "in_turns", lambda *_, **__: next(times))
    growth = bench.trace(curve(10, 20))
    assert growth.exponents == pytest.approx({CPU: 1.0, SPECIFICATION: 2.0})
    assert growth.kept
    assert not dataclasses.replace(growth, bar=Bar(0.9, 0.5)).kept
    assert report.line(growth) == "growth, 1 thread: kernels/cpu boxes^1.00, specification boxes^2.00, asked 1.5"


def test_what_an_earlier_run_found_is_kept_and_replaced(bench: run.Bench, tmp_path: Path) -> None:
    first, second = run.Report(), run.Report()
    run.run(
        [subject((1, part("a")), name="b"), subject((1, part("a")), name="a"), curve(1, 2)], bench, first, tell=print
    )
    report.write(first, FIELD, tmp_path, rounds=3)
    earlier = report.read(tmp_path, FIELD)
    assert earlier == first
    second.results.append(run.compare(subject(name="b"), {CPU: [9.0]}, threads=1, check="equal"))
    second.failures.append(run.Failure(subject="growth", threads=1, reason="no"))
    whole = report.merged(earlier, second, ["a", "b", "growth"])
    assert [r.subject for r in whole.results] == ["a", "b"]
    assert whole.results[1].spreads[CPU].median == 9.0
    assert whole.growths == []  # it failed now, so what was true then isn't any more
    assert whole.failures == second.failures
    assert report.read(tmp_path / "nowhere", FIELD) == run.Report()
    with pytest.raises(ConfigError, match="expected figures of this machine and these versions"):
        report.read(tmp_path, dataclasses.replace(FIELD, versions={"numpy": "3"}))


def test_charts_show_every_comparison_that_something_is_asked_of(bench: run.Bench, tmp_path: Path) -> None:
    values = {CPU: [0.5, 0.6, 0.7], SPECIFICATION: [5.0], TORCH: [1.0, 1.0, 1.0]}
    rows = [run.compare(subject(name=name), values, threads=n, check="") for name in "ab" for n in (1, 2)]
    found = run.Report(results=rows, growths=[bench.trace(curve(10, 20))])
    assert [path.name for path in charts.write_charts(found, tmp_path)] == [charts.RATIOS, charts.GROWTH]
    figure = charts.ratio_chart([(row, ratio) for row in rows for ratio in row.ratios if ratio.peer == TORCH])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a, against torch", "b, against torch"]
    assert len(axes.patches) == 4
    assert {text.get_text() for text in axes.texts} == {"0.60"}
    assert charts.write_charts(run.Report(), tmp_path) == []


def test_memory_is_measured_in_a_process_of_its_own() -> None:
    found = memory.in_a_process(CPU, "inference", (64, 64, 1), threads=1, quick=True)
    assert 20 < found["imported"] < found["peak"] < 2000
    with pytest.raises(RefnetError, match="peak memory of nobody"):
        memory.in_a_process("nobody", "inference", (0, 64, 1), threads=1, quick=True)


def test_memory_is_that_of_the_installed_refnet_wherever_one_stands(tmp_path: Path, monkeypatch) -> None:
    """A checkout holds a folder of that name, too, which has no kernels in it."""
    folder = tmp_path / "refnet" / "bench"
    folder.mkdir(parents=True)
    for path in (folder.parent / "__init__.py", folder / "__init__.py"):
        path.touch()
    (folder / "memory.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    assert memory.in_a_process(CPU, "inference", (64, 96, 1), threads=1, quick=True)["peak"] > 0


@pytest.mark.parametrize(
    ("values", "unit", "text"),
    [
        ([0.5], "s", "500 ms"),
        ([1.0, 2.0, 3.0], "s", "2 (1.5 to 2.5) s"),
        ([0.00012345], "s", "0.123 ms"),
        ([2345.6], "MiB", "2346 MiB"),
    ],
)
def test_amounts_have_three_digits(values: list[float], unit: str, text: str) -> None:
    assert report.amount(Spread.of(values), unit) == text


def test_subjects_are_chosen_by_words_of_their_names() -> None:
    everything = subjects.everything(quick=False)
    names = [s.name for s in everything]
    assert len(set(names)) == len(names)
    assert subjects.chosen(everything, ()) == everything
    assert [s.name for s in subjects.chosen(everything, ("shapes", "800x1088"))] == [
        name for name in names if "shapes" in name or "800x1088" in name
    ]
    assert subjects.chosen(everything, ("no such",)) == []
