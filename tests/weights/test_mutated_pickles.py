"""Damaged files of PyTorch's and Detectron's formats: tensors or a WeightsError come out, never anything else."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.weights.damage import MUTATIONS
from tests.weights.torch_bytes import Key, Storage, archive, parameter, stream, tarred, tensor

ROOT = Path(__file__).parent.parent.parent


def _tensors() -> dict[str, object]:
    """Little of everything, so that most mutations hit something that matters."""
    flat = Storage(np.arange(8, dtype=np.float32))
    return {
        "a": tensor(flat, (2, 3), (1, 2), 1),
        "b": parameter(tensor(flat)),
        "c": tensor(Storage(np.array([0, 1], "?"))),
        "d": tensor(Storage(np.arange(3, dtype="<u2"), kind="BFloat16Storage")),
        "e": tensor(Storage(np.array(7))),
    }


def _tar() -> bytes:
    arrays = {1: np.arange(12, dtype=np.float32), 2: np.arange(3)}
    return tarred(
        {"a": Key("4"), "b": Key("5")}, arrays, {4: (2, (3,), (1,), 0), 5: (3, (2,), (1,), 1)}, [(3, 1, 4, 5)]
    )


def _pickle(protocol: int) -> bytes:
    arrays = {"a": np.arange(4, dtype=np.float32), "b": np.asfortranarray(np.ones((2, 3), ">i2")), "c": np.float64(3)}
    return pickle.dumps({"model": arrays, "__author__": "x"}, protocol=protocol)


@pytest.mark.parametrize("kind", ["zip", "stream", "tar", "pkl of protocol 2", "pkl of protocol 5"])
def test_mutations_give_tensors_or_our_own_error(tmp_path: Path, kind: str) -> None:
    make = {
        "zip": lambda: archive(_tensors()),
        "stream": lambda: stream(_tensors()),
        "tar": _tar,
        "pkl of protocol 2": lambda: _pickle(2),
        "pkl of protocol 5": lambda: _pickle(5),
    }
    (tmp_path / "original").write_bytes(make[kind]())
    command = [sys.executable, "-m", "tests.weights.judge", "mutations", str(tmp_path / "original"), str(MUTATIONS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    read, refused = [int(word) for word in done.stdout.split()]
    assert min(read, refused) >= MUTATIONS // 100  # mutations that are all refused, or all harmless, test little
