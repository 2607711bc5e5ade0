"""From subjects to results: ratios, failures, sums of parts, and what is written down."""

import json
from pathlib import Path

import pytest

from refnet.bench import report, run, stopwatch, subjects
from refnet.bench.bars import Bar
from refnet.bench.contest import Contest, Part, Subject, WrongResult
from refnet.bench.contestants import CPU, SPECIFICATION, TORCH, Field
from refnet.bench.stopwatch import Spread

FIELD = Field(missing={"torch": "No module named 'torch'"}, versions={"numpy": "2"})


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> run.Bench:
    monkeypatch.setenv("REFNET_NUM_THREADS", "1")
    return run.Bench(FIELD, rounds=3, threads=1)


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
    result = run.compare(subject(), values, threads=2, unit="s", check="equal")
    assert [(r.peer, r.value, r.low, r.high) for r in result.ratios] == [
        (SPECIFICATION, 0.5, 0.375, 0.5), (TORCH, 0.5, 0.375, 0.625),
    ]  # fmt: skip
    assert result.ratios[1].kept
    assert not run.compare(subject(), values | {TORCH: [2.0]}, threads=1, unit="s", check="").ratios[1].kept


def test_times_of_parts_are_added_as_often_as_they_occur(bench: run.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([{CPU: [1.0, 2, 3], SPECIFICATION: [7.0]}, {CPU: [10.0, 20, 30], SPECIFICATION: [1.0, 2, 3]}])
    monkeypatch.setattr(run, "in_turns", lambda *_, **__: next(times))
    result = bench.measure(subject((2, part("a")), (1, part("b")), (1, part("a"))))  # a is measured once
    assert (result.spreads[CPU].median, result.spreads[CPU].rounds) == (3 * 2 + 20, 3)
    assert (result.spreads[SPECIFICATION].median, result.spreads[SPECIFICATION].rounds) == (3 * 7 + 2, 1)
    assert result.check == "3 parts, each checked" or result.check == "equal"


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
    found.results.append(run.compare(subject(name="t"), {CPU: [0.9], TORCH: [1.0]}, threads=1, unit="s", check="equal"))
    found.failures.append(run.Failure(subject="f", threads=1, reason="wrong result: boxes"))
    report.write(found, FIELD, tmp_path, rounds=3)
    table = (tmp_path / report.TABLE).read_text()
    assert "| s | torch | 0.8 | 0.7 | not measured | " in table
    assert "| s | specification | reported |  | " in table
    assert "| t | torch | 0.8 | 0.7 | 0.90 (0.90 to 0.90), missed | 900 ms | 1 s |" in table
    assert "torch was left out: No module named 'torch'." in table
    assert "Failed: f, 1 threads: wrong result: boxes" in table
    document = json.loads((tmp_path / report.RESULTS).read_text())
    assert {"machine", "versions", "left_out", "rounds", "results", "failures"} == document.keys()
    assert document["results"][1]["ratios"][0]["bar"] == {"at_most": 0.8, "aim": 0.7}


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
    everything = subjects.subjects(quick=False)
    names = [s.name for s in everything]
    assert len(set(names)) == len(names)
    assert subjects.chosen(everything, ()) == everything
    assert [s.name for s in subjects.chosen(everything, ("shapes", "800x1088"))] == [
        name for name in names if "shapes" in name or "800x1088" in name
    ]
    assert subjects.chosen(everything, ("no such",)) == []
