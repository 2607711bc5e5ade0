"""Work on several threads: what runs where, in which order, and what the environment says."""

import multiprocessing
import threading

import numpy as np
import pytest

from refnet.errors import ArgumentError
from refnet.kernels.cpu import threads


def test_results_come_in_order(thread_count):
    assert threads.spread(lambda piece: piece * 2, range(7)) == [0, 2, 4, 6, 8, 10, 12]
    assert threads.spread(lambda piece: piece * 2, []) == []


def test_pieces_run_beside_one_another(thread_count):
    """Two pieces that wait for each other end only if two threads run them; with one thread there is no second."""
    meeting = threading.Barrier(min(2, thread_count))
    names = threads.spread(
        lambda _: (meeting.wait(10), threading.current_thread().name)[1], range(min(2, thread_count))
    )
    assert names[0] == threading.current_thread().name
    assert len(set(names)) == min(2, thread_count)


def test_an_error_in_any_piece_is_raised(thread_count):
    for wrong in range(3):
        with pytest.raises(ZeroDivisionError):
            threads.spread(lambda piece, wrong=wrong: 1 / (piece - wrong), range(3))


def test_work_is_split_evenly(thread_count):
    assert threads.split([]) == []
    for length in range(1, 10):
        parts = threads.split(range(length))
        assert [item for part in parts for item in part] == list(range(length))
        assert len(parts) == min(length, thread_count)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_short_work_stays_in_the_calling_thread(monkeypatch):
    monkeypatch.setenv("REFNET_NUM_THREADS", "3")
    threads.reset()
    try:
        for seconds, expected in [(threads.WORTHWHILE / 2, 1), (2 * threads.WORTHWHILE, 3)]:
            with threads.shared_if_worthwhile(seconds):
                assert threads.count() == len(threads.split(range(9))) == expected
                names = set(threads.spread(lambda _: threading.current_thread().name, range(3)))
                assert (names == {threading.current_thread().name}) == (expected == 1)
            assert threads.count() == 3
    finally:
        monkeypatch.undo()
        threads.reset()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"REFNET_NUM_THREADS": "5"}, 5),
        ({"REFNET_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "8"}, 2),
        ({"OPENBLAS_NUM_THREADS": "2"}, 1),
        ({}, 1),
    ],
)
def test_the_environment_sets_the_number(monkeypatch, environment, expected):
    for name in ("REFNET_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    threads.reset()
    assert threads.count() == expected
    threads.reset()


def test_every_core_works_where_blas_has_one_thread(monkeypatch):
    monkeypatch.delenv("REFNET_NUM_THREADS", raising=False)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    threads.reset()
    assert threads.count() == 4
    threads.reset()


@pytest.mark.parametrize("value", ["0", "-1", "two", ""])
def test_other_numbers_are_refused(monkeypatch, value):
    monkeypatch.setenv("REFNET_NUM_THREADS", value)
    threads.reset()
    with pytest.raises(ArgumentError, match=f"REFNET_NUM_THREADS must be a positive number, got '{value}'"):
        threads.count()
    threads.reset()


def _work_in_child() -> None:
    assert threads.spread(abs, [-1, -2, -3]) == [1, 2, 3]


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the system can't fork")
def test_a_forked_process_starts_its_own_threads(thread_count):
    threads.spread(abs, [-1, -2, -3])
    child = multiprocessing.get_context("fork").Process(target=_work_in_child)
    child.start()
    child.join(30)
    assert child.exitcode == 0


def test_what_the_caller_set_for_itself_holds_in_all_threads(thread_count):
    with np.errstate(over="ignore"):
        assert [state["over"] for state in threads.spread(lambda _: np.geterr(), range(5))] == ["ignore"] * 5
    assert [state["over"] for state in threads.spread(lambda _: np.geterr(), range(5))] == ["warn"] * 5
