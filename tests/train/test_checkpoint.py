"""A checkpoint is either whole or refused, and a crash at any moment leaves a whole one behind."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refnet.errors import CheckpointError
from refnet.train.checkpoint import Checkpoint, checkpoints, load_checkpoint, load_newest, save_checkpoint

ROOT = Path(__file__).parents[2]


def make_checkpoint(step: int = 7) -> Checkpoint:
    rng = np.random.default_rng(step)
    return Checkpoint(
        step=step,
        model={"a.weight": rng.standard_normal((3, 4), np.float32), "b": np.full((), step, np.int64)},
        optimizer={"a.weight.velocity": np.zeros((0, 2)), "transposed": rng.standard_normal((4, 5)).T},
        config={"rpn": {"nms_threshold": 0.7}, "milestones": [1, 2]},
        class_names=("square", "Kreis ○"),
        category_ids=(1, 5),
        random={"generator": "Philox", "seed": 2**64 - 1, "next_step": step},
    )


def assert_equal(found: Checkpoint, expected: Checkpoint) -> None:
    for name in ("step", "config", "class_names", "category_ids", "random"):
        assert getattr(found, name) == getattr(expected, name)
    for part in ("model", "optimizer"):
        ours, theirs = getattr(found, part), getattr(expected, part)
        assert list(ours) == list(theirs)
        for name, array in theirs.items():
            assert ours[name].dtype == array.dtype
            assert ours[name].shape == array.shape
            assert ours[name].tobytes() == np.asarray(array, order="C").tobytes()


def test_what_was_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make_checkpoint())
    assert path == tmp_path / "step-00000007.npz"
    assert_equal(load_checkpoint(path), make_checkpoint())


def test_equal_states_make_equal_files_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = save_checkpoint(tmp_path / "a", make_checkpoint()).read_bytes()
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(2e9))
    assert save_checkpoint(tmp_path / "b", make_checkpoint()).read_bytes() == first


def test_numpy_reads_the_file_without_pickles(tmp_path: Path) -> None:
    with np.load(save_checkpoint(tmp_path, make_checkpoint()), allow_pickle=False) as members:
        assert np.array_equal(members["model/a.weight"], make_checkpoint().model["a.weight"])


def test_an_array_of_objects_is_refused_before_anything_is_replaced(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make_checkpoint())
    wrong = replace(make_checkpoint(), model={"a": np.array([{}], object)})
    with pytest.raises(ValueError, match="allow_pickle"):
        save_checkpoint(tmp_path, wrong)
    assert_equal(load_newest(tmp_path)[1], make_checkpoint())


def test_a_file_with_a_pickle_is_refused_and_the_pickle_not_run(tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.npz"
    np.savez(path, metadata=np.array([print], object), sha256=np.zeros(32, np.uint8))
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        load_checkpoint(path)


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 100):
        save_checkpoint(tmp_path, make_checkpoint(step))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000010.npz", "step-00000100.npz"]
    assert load_newest(tmp_path)[1].step == 100


def test_every_flipped_bit_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make_checkpoint())
    content = path.read_bytes()
    refused = 0
    for position in range(0, len(content), 5):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(bytes(damaged))
        try:
            found = load_checkpoint(path)
        except CheckpointError:
            refused += 1
        else:
            assert_equal(found, make_checkpoint())  # a date, or another field of zip that means nothing here
    assert refused > len(content) / 5 / 2


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_torn_file_is_refused(tmp_path: Path, share: float) -> None:
    path = save_checkpoint(tmp_path, make_checkpoint())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_a_member_that_was_replaced_is_refused_although_its_own_checksum_fits(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make_checkpoint())
    other = save_checkpoint(tmp_path / "other", make_checkpoint(8))
    with zipfile.ZipFile(path) as ours, zipfile.ZipFile(other) as theirs:
        members = {name: ours.read(name) for name in ours.namelist()}
        members["model/b.npy"] = theirs.read("model/b.npy")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match="digest"):
        load_checkpoint(path)


def test_a_damaged_newest_is_an_error_that_names_the_one_before(tmp_path: Path) -> None:
    previous = save_checkpoint(tmp_path, make_checkpoint(1))
    newest = save_checkpoint(tmp_path, make_checkpoint(2))
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"step-00000002.*damaged.*delete it.*step-00000001"):
        load_newest(tmp_path)
    newest.unlink()
    assert load_newest(tmp_path)[0] == previous


def test_a_missing_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found none"):
        load_newest(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "step-00000001.npz")


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refnet.train.checkpoint.VERSION", 2)
    path = save_checkpoint(tmp_path, make_checkpoint())
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"expected 'refnet checkpoint' version 1, got .* version 2"):
        load_checkpoint(path)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="can't be written"):
        save_checkpoint(tmp_path / "file", make_checkpoint())


CRASH_AT = """
import os, sys
from pathlib import Path
from tests.train.test_checkpoint import make_checkpoint
from refnet.train import checkpoint

function, count = sys.argv[2], int(sys.argv[3])
module, name = function.split(".")
owner = {"os": os, "Path": Path, "checkpoint": checkpoint}[module]
original, calls = getattr(owner, name), 0

def crash(*args, **kwargs):
    global calls
    calls += 1
    if calls == count:
        os._exit(9)  # as abrupt as a kill: no handler, no flush
    return original(*args, **kwargs)

checkpoint.save_checkpoint(Path(sys.argv[1]), make_checkpoint(1))
setattr(owner, name, crash)
checkpoint.save_checkpoint(Path(sys.argv[1]), make_checkpoint(2))
"""


@pytest.mark.parametrize(
    ("function", "count", "newest"),
    [
        ("Path.open", 1, 1),
        ("checkpoint._npy", 1, 1),
        ("checkpoint._npy", 3, 1),
        ("checkpoint._npy", 6, 1),
        ("os.fsync", 1, 1),
        ("os.replace", 1, 1),
        ("os.fsync", 2, 2),
        ("checkpoint.checkpoints", 1, 2),
    ],
)
def test_a_crash_at_any_stage_leaves_a_whole_checkpoint(tmp_path: Path, function: str, count: int, newest: int) -> None:
    arguments = [sys.executable, "-c", CRASH_AT, str(tmp_path), function, str(count)]
    assert subprocess.run(arguments, cwd=ROOT, check=False).returncode == 9
    path, found = load_newest(tmp_path)
    assert found.step == newest
    assert_equal(found, make_checkpoint(newest))
    save_checkpoint(tmp_path, make_checkpoint(3))
    assert not list(tmp_path.glob("*.partial"))
    assert path.exists()


def kill_fifty_times(folder: Path) -> None:
    """Let a child save checkpoints without end and kill it at a random moment, fifty times."""
    rng = np.random.default_rng(0)
    large = {"large": np.zeros(100_000, np.float32)}
    last = 0
    for _ in range(50):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            while True:
                last += 1
                save_checkpoint(folder, replace(make_checkpoint(last), optimizer=large))
                os.write(write, f"{last}\n".encode())
        os.close(write)
        with os.fdopen(read) as told:
            first = told.readline()  # from here on it saves the next
            time.sleep(rng.uniform(0, 0.01))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            saved = [int(line) for line in (first + told.read()).splitlines()][-1]
        found = load_newest(folder)[1]
        assert found.step in (saved, saved + 1), (found.step, saved)  # killed between the rename and the message
        assert_equal(found, replace(make_checkpoint(found.step), optimizer=large))
        last = found.step


def test_fifty_kills_at_random_moments_lose_nothing_that_was_saved(tmp_path: Path) -> None:
    """In a process of its own: one that has threads, as pytest's may have, shouldn't fork."""
    code = "import sys, pathlib; from tests.train.test_checkpoint import *; kill_fifty_times(pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, cwd=ROOT, check=True)
    save_checkpoint(tmp_path, make_checkpoint(10**6))  # clears up what the last kill may have left behind
    assert sorted(tmp_path.iterdir()) == checkpoints(tmp_path)
    assert len(checkpoints(tmp_path)) == 2
