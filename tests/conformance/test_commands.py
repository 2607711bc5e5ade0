"""refnet trace and refnet compare, as their user meets them."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from refnet.conformance import read_trace
from refnet.weights import npz_file
from tests.test_cli import FLAGS, error_of, run, run_any


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, its weights, two images with annotations, and traces of both kinds of pass."""
    folder = tmp_path_factory.mktemp("traces")
    small = ("--shapes.image-size", 64, "--shapes.min-half-size", 8, "--shapes.max-half-size", 12)
    run("data", "shapes", "--out", folder / "data", "--train", 1, "--val", 2, *small)
    run("train", "shapes", *FLAGS, "--steps", 1, "--val-count", 0, "--out", folder / "run")
    run("convert", folder / "run", folder / "w.pth")
    images = sorted((folder / "data/val").iterdir())
    run("trace", folder / "run", *images, "-o", folder / "detect.npz", "--dtype", "float64")
    run("trace", folder / "run", *images, "-o", folder / "train.npz", "--annotations", folder / "data/val.json")
    return folder


def images(folder: Path) -> list[Path]:
    return sorted((folder / "data/val").iterdir())


def test_a_trace_holds_the_pass(folder: Path) -> None:
    detect, train = read_trace(folder / "detect.npz"), read_trace(folder / "train.npz")
    assert detect.tensors["input.pixels"].values.shape == (2, 64, 64, 3)
    assert detect.tensors["fpn.p2"].values.dtype == np.float64
    assert train.tensors["fpn.p2"].values.dtype == np.float32
    assert "results.1.boxes" in detect.tensors
    assert "losses.mask" in train.tensors
    assert train.metadata["training"]


def test_weights_of_another_program_give_the_same_trace(folder: Path, tmp_path: Path) -> None:
    network = ["--preset", "shapes"]
    done = run("trace", "--weights", folder / "w.pth", *network, *images(folder), "-o", tmp_path / "w.npz", "--dtype", "float64")  # fmt: skip
    assert "tensors in" in done.stdout
    done = run("compare", folder / "detect.npz", tmp_path / "w.npz", "--tolerance", 0)
    assert "agree" in done.stdout.splitlines()[-1]


def test_a_convention_is_named_by_its_flag(folder: Path, tmp_path: Path) -> None:
    flags = ["--anchors.center-offset", 0, "--dtype", "float64", "-o", tmp_path / "other.npz"]
    run("trace", folder / "run", *images(folder), *flags)
    done = run_any("compare", folder / "detect.npz", tmp_path / "other.npz")
    assert done.returncode == 1, done.stderr
    assert "first departure: anchors.p2" in done.stdout
    assert "anchors.center_offset = 0.0 (here 0.5)" in done.stdout


def test_a_stage_with_weights_finds_them_where_they_were(folder: Path, tmp_path: Path) -> None:
    data = ["--annotations", folder / "data/val.json"]
    run("trace", folder / "run", *images(folder), *data, "--backbone.norm-epsilon", 1e-3, "-o", tmp_path / "other.npz")
    done = run_any("compare", folder / "train.npz", tmp_path / "other.npz")
    assert (done.returncode, done.stderr) == (1, "")
    assert "backbone.norm_epsilon = 0.001 (here 1e-05)" in done.stdout
    named = run_any("compare", folder / "train.npz", tmp_path / "other.npz", "--weights", folder / "w.pth")
    assert named.stdout == done.stdout


def test_another_program_writes_what_it_has_with_numpy(folder: Path, tmp_path: Path) -> None:
    tensors = npz_file.read(folder / "detect.npz")
    anchors = {name: a[:, [1, 0, 3, 2]] for name, a in tensors.items() if name.startswith("anchors.")}
    np.savez(tmp_path / "other.npz", allow_pickle=False, **anchors)
    done = run_any("compare", folder / "detect.npz", tmp_path / "other.npz")
    assert done.returncode == 1
    assert "boxes (y1, x1, y2, x2)" in done.stdout


def test_samples(folder: Path, tmp_path: Path) -> None:
    run("trace", folder / "run", *images(folder), "--sample", 1000, "--dtype", "float64", "-o", tmp_path / "small.npz")
    assert (tmp_path / "small.npz").stat().st_size < (folder / "detect.npz").stat().st_size / 4
    assert run("compare", folder / "detect.npz", tmp_path / "small.npz").returncode == 0


def test_mistakes_are_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    assert "expected one or more image files" in error_of("trace", folder / "run")
    assert "expected an .npz archive" in error_of("compare", folder / "w.pth", folder / "detect.npz")
    np.savez(tmp_path / "bare.npz", x=np.zeros(3))
    assert "without its metadata" in error_of("compare", tmp_path / "bare.npz", folder / "detect.npz")
    missing = error_of("compare", folder / "detect.npz", folder / "train.npz", "--weights", tmp_path / "none")
    assert "found no" in missing
    wrong = error_of("trace", folder / "run", folder / "run/config.toml")
    assert "config.toml" in wrong
    stranger = shutil.copytree(folder / "data/val", tmp_path / "val") / "stranger.png"
    shutil.copy(images(folder)[0], stranger)
    unknown = ["--annotations", folder / "data/val.json", "-o", tmp_path / "t.npz"]
    assert "expected an image called 'stranger.png'" in error_of("trace", folder / "run", stranger, *unknown)
