"""The command line, end to end on tiny runs: what it writes, and what it says when something is wrong.

Commands run in processes of their own, as they do for users: they install kernels for the whole process.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

import refnet.errors
from refnet.cli import COMMANDS, FAILED, INTERRUPTED, Preset, main
from refnet.rcnn.presets import PRESETS
from refnet.train import RunConfig, load_newest, read_config, read_metrics, to_document
from refnet.train.metrics import TIMING
from tests.train.tiny import FLAGS, tiny_model

SHAPES = ["train", "shapes", *FLAGS]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """``refnet`` with `arguments`, which must succeed."""
    done = run_any(*arguments)
    assert done.returncode == 0, done.stderr
    return done


def run_any(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "refnet", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_every_preset_is_a_choice():
    assert get_args(Preset) == tuple(PRESETS)


def error_of(*arguments: object) -> str:
    """What ``refnet`` says with `arguments`, with which it must fail, in one line or an indented list below it."""
    done = run_any(*arguments)
    assert done.returncode == FAILED, (done.returncode, done.stderr)
    first, *more = done.stderr.splitlines()
    assert first.startswith("refnet: error: ")
    assert all(line.startswith("  ") for line in more)
    return done.stderr.removeprefix("refnet: error: ")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps, through the command line."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    run(*SHAPES, "--steps", 3, "--out", out, "--rpn.nms-threshold", 0.6)
    return out


def test_a_training_writes_everything(run_dir: Path) -> None:
    assert {path.name for path in run_dir.iterdir()} == {
        "checkpoints",
        "config.json",
        "config.toml",
        "metrics.jsonl",
        "report.html",
        "results.json",
    }
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-00000003.npz"]
    assert [line["step"] for line in read_metrics(run_dir / "metrics.jsonl")] == [1, 2, 3]
    results = json.loads((run_dir / "results.json").read_text())
    assert results["images"] == 3
    assert {"box", "mask", "timing", "machine"} <= results.keys()
    assert "<html" in (run_dir / "report.html").read_text()


def test_flags_of_every_part_arrive_in_the_configuration(run_dir: Path) -> None:
    config = json.loads((run_dir / "config.json").read_text())
    assert config["rpn"]["nms_threshold"] == 0.6
    assert config["shapes"]["image_size"] == 64
    assert (config["steps"], config["batch_size"], config["train_count"], config["num_classes"]) == (3, 2, 20, 3)
    assert config["backbone"]["width"] == tiny_model().backbone.width == 8


def test_the_written_configuration_repeats_the_run(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    run("train", "shapes", "--config", run_dir / "config.toml", "--out", out)
    assert read_config(out) == read_config(run_dir)
    assert (out / "checkpoints/step-00000003.npz").read_bytes() == load_newest(run_dir / "checkpoints")[0].read_bytes()
    for ours, theirs in zip(read_metrics(out / "metrics.jsonl"), read_metrics(run_dir / "metrics.jsonl"), strict=True):
        assert all(ours[key] == theirs[key] for key in ours if key not in TIMING)


def test_flags_override_the_file_and_the_file_overrides_the_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr("refnet.cli._train", lambda config, origin, name: seen.append(config) or 0)
    file = tmp_path / "f.toml"
    file.write_text('preset = "matterport"\nsteps = 7\n[rpn]\nchannels = 5\nnms_threshold = 0.5\n')
    assert main(["train", "shapes", "--config", str(file), "--rpn.nms-threshold", "0.25", "--lr", "3"]) == 0
    (config,) = seen
    assert (config.train.steps, config.train.lr) == (7, 3.0)
    assert (config.model.rpn.channels, config.model.rpn.nms_threshold, config.model.rpn.objectness) == (
        5,
        0.25,
        "softmax",
    )
    assert config.model.anchors.sizes == ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    assert main(["train", "shapes", "--preset", "paper", "--anchors.sizes.1", "1", "--rpn.delta-clamp", "None"]) == 0
    assert seen[1].model.input.channel_order == "bgr"
    assert seen[1].model.anchors.sizes[1] == (1.0,)
    assert seen[1].model.rpn.delta_clamp is None


def test_every_field_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "shapes", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for key, value in to_document(RunConfig()).items():
        names = [f"{key}.{name}" for name in value] if isinstance(value, dict) else [key]
        for name in names:
            assert f"--{name.replace('_', '-')}" in text or name == "dataset", name


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = [*SHAPES, "--schedule", "constant", "--steps", "100000", "--val-count", "0", "--out", str(out)]
    with subprocess.Popen([sys.executable, "-m", "refnet", *flags], stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (out / "metrics.jsonl").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED == 130, err
    assert "Traceback" not in err
    message = err.splitlines()[-1]
    steps = load_newest(out / "checkpoints")[1].step
    resume = f"refnet train shapes --out {out} --resume"
    assert message == f"refnet: stopped behind step {steps} of 100000; to continue: {resume}"
    assert steps == len(read_metrics(out / "metrics.jsonl"))
    run(*resume.split()[1:], "--steps", steps + 2)
    assert [line["step"] for line in read_metrics(out / "metrics.jsonl")] == list(range(1, steps + 3))
    assert (out / "report.html").exists()


def test_a_run_is_never_lost_by_accident(run_dir: Path) -> None:
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    message = error_of(*SHAPES, "--out", run_dir)
    assert "already holds a run: --resume continues it, --overwrite deletes it, --out names another folder" in message
    error_of(*SHAPES, "--out", run_dir, "--overwrite", "--num-classes", 7)
    error_of("train", "coco", "--images", "none", "--annotations", "none", "--out", run_dir, "--overwrite")
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_overwriting_deletes_the_run_and_nothing_else(run_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(run_dir, out)
    (out / "notes.txt").write_text("mine")
    run(*SHAPES, "--steps", 1, "--val-count", 0, "--seed", 1, "--out", out, "--overwrite")
    assert read_config(out).train.seed == 1
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000001.npz"]
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "results.json").exists()


def test_resume_refuses_other_flags_than_the_runs_own(run_dir: Path) -> None:
    resume = ("train", "shapes", "--resume", "--out")
    assert "seed: expected 0, got 4" in error_of(*resume, run_dir, "--seed", 4)
    assert "excludes --config and --overwrite" in error_of(*resume, run_dir, "--overwrite")
    assert "expected a run in nowhere, found none" in error_of(*resume, "nowhere")


def test_training_on_coco_files_takes_the_classes_from_them(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    small = ("--shapes.image-size", 64, "--shapes.min-half-size", 8, "--shapes.max-half-size", 12)
    run("data", "shapes", "--out", data, "--train", 4, "--val", 2, *small, "--shapes.classes", "circle", "cross")
    flags = ["train", "coco", "--preset", "shapes", *FLAGS[: FLAGS.index("--shapes.image-size")]]
    flags += ["--images", data / "train", "--annotations", data / "train.json"]
    flags += ["--val-images", data / "val", "--val-annotations", data / "val.json", "--batch-size", 2, "--steps", 1]
    run(*flags, "--out", out)
    assert read_config(out).model.num_classes == 2
    assert load_newest(out / "checkpoints")[1].class_names == ("circle", "cross")
    assert json.loads((out / "results.json").read_text())["images"] == 2
    run("eval", out)
    message = error_of(*flags, "--num-classes", 7, "--out", tmp_path / "other")
    assert "num_classes: the dataset has 2, so expected that or nothing, got 7" in message


def test_evaluation_is_repeated_by_eval(run_dir: Path, tmp_path: Path) -> None:
    def figures(file: Path) -> dict[str, object]:
        return {key: value for key, value in json.loads(file.read_text()).items() if key != "timing"}

    before = figures(run_dir / "results.json")
    run("eval", run_dir)
    assert figures(run_dir / "results.json") == before
    checkpoint, _ = load_newest(run_dir / "checkpoints")
    other = tmp_path / "results.json"
    run("eval", checkpoint, "--out", other, "--detections.score-threshold", 1)
    assert figures(other)["detections"] == 0
    assert "--images and --annotations belong together" in error_of("eval", run_dir, "--images", "x")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Images of every kind."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 4), np.uint8)
    Image.fromarray(pixels[..., :3]).save(folder / "rgb.png")
    Image.fromarray(pixels).save(folder / "rgba.png")
    Image.fromarray(pixels[..., 0]).save(folder / "gray.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) << 8).save(folder / "16bit.png")
    Image.fromarray(pixels[..., :3]).quantize(7).save(folder / "palette.gif")
    rotated = Image.Exif()
    rotated[0x0112] = 6  # the camera was held upright
    Image.fromarray(pixels[..., :3]).save(folder / "rotated.jpg", exif=rotated)
    (folder / "sub").mkdir()
    Image.fromarray(pixels[..., :3]).save(folder / "sub" / "gray.jpg")
    return folder


def test_predictions_are_drawn_and_written(run_dir: Path, pictures: Path, tmp_path: Path) -> None:
    files = ["rgb.png", "rgba.png", "gray.png", "palette.gif", "rotated.jpg", "sub/gray.jpg", "16bit.png"]
    paths = [str(pictures / name) for name in files]
    out = tmp_path / "out"
    done = run("predict", run_dir, *paths, "--out", out, "--detections.score-threshold", 0, "--min-score", 1)
    assert "objects, 0 with a score of 1.0 or more" in done.stdout
    assert {path.name for path in out.iterdir()} == {
        *(
            "rgb.png",
            "rgba.png",
            "gray-2.png",
            "palette.png",
            "rotated.png",
            "gray-5.png",
            "16bit.png",
            "detections.json",
        ),
    }
    for path in out.glob("*.png"):
        with Image.open(path) as drawing:
            width, height = drawing.size
        assert (width < height) == (path.stem == "rotated")
    found = json.loads((out / "detections.json").read_text())
    assert {entry["file_name"] for entry in found} == set(paths)
    gray, wide = ([{**e, "image_id": 0, "file_name": ""} for e in found if e["image_id"] == n] for n in (2, 6))
    assert gray == wide  # the upper 8 of 16 bits
    for entry in found:
        assert entry["category_id"] in (1, 2, 3)
        assert 0 <= entry["score"] <= 1
        x, y, width, height = entry["bbox"]
        upright = "rotated" in entry["file_name"]
        assert 0 <= x <= x + width <= (40 if upright else 56) + 1e-3
        assert 0 <= y <= y + height <= (56 if upright else 40) + 1e-3
        assert entry["segmentation"]["size"] == ([56, 40] if upright else [40, 56])


def test_what_is_no_image_is_named(run_dir: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    for file, reason in ((tmp_path / "none.png", "No such file"), (text, "cannot identify")):
        message = error_of("predict", run_dir, file, "--out", tmp_path / "out")
        assert str(file) in message
        assert reason in message
        assert not (tmp_path / "out").exists()
    assert "expected one or more image files" in error_of("predict", run_dir)


def test_a_damaged_checkpoint_is_named(run_dir: Path, tmp_path: Path) -> None:
    content = load_newest(run_dir / "checkpoints")[0].read_bytes()
    damaged = tmp_path / "step-00000003.npz"
    damaged.write_bytes(content[:1000] + b"?" + content[1001:])
    assert f"checkpoint {damaged}: the file is damaged" in error_of("eval", damaged)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in error_of("data", "shapes", "--out", tmp_path / "file" / "data")


def test_errors_show_a_traceback_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["tran", "shapes"]) == FAILED
    with pytest.raises(refnet.errors.ConfigError, match="expected one of the commands train shapes,"):
        main(["tran", "shapes", "--traceback"])
    monkeypatch.setenv("REFNET_DEBUG", "1")
    with pytest.raises(refnet.errors.ConfigError):
        main(["tran", "shapes"])


def test_wrong_flags_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, words in (
        (["--rpn.nms-treshold", "0.5"], ["--rpn.nms-treshold"]),
        (["--rpn.nms-threshold", "1.5"], ["rpn.nms_threshold must lie in [0, 1], got 1.5"]),
        (["--steps", "many"], ["--steps", "many"]),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["train", "shapes", *flags])
        assert ended.value.code == FAILED
        said = " ".join(capsys.readouterr().err.replace("│", "").split())
        for word in words:
            assert word in said


def test_a_file_for_another_dataset_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text('dataset = "coco"\n')
    message = error_of("train", "shapes", "--config", file)
    assert "dataset: expected 'shapes' for refnet train shapes, got 'coco'" in message


def test_usage_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in ([], ["--help"], ["train", "-h"]):
        assert main(flags) == 0
        text = capsys.readouterr().out
        assert all(f"refnet {name} " in text for name in COMMANDS)


def test_the_version_is_told() -> None:
    assert run("--version").stdout == f"refnet {refnet.__version__}\n"


def test_ctrl_c_outside_of_training_is_told_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("refnet.cli._train", interrupted)
    assert main(SHAPES) == INTERRUPTED
    assert capsys.readouterr().err == "refnet: interrupted\n"
