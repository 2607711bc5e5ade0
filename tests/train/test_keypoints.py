"""A small network learns the keypoints of shapes, and the command line takes them from files to predictions."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refnet.data import KEYPOINT_OFFSET, CocoDataset, ShapesConfig, write_shapes
from refnet.data.shapes import KEYPOINTS
from refnet.errors import ConfigError
from refnet.rcnn import MaskRCNN
from refnet.rcnn.config import KeypointHeadConfig
from refnet.train import CocoData, RunConfig, load_newest, read_config
from refnet.train.step import make_optimizer, train_step
from tests.test_cli import error_of, run
from tests.train.tiny import FLAGS, tiny_model, tiny_run

SHAPES = ShapesConfig(image_size=64, min_half_size=8, max_half_size=16, keypoints=True)
HEAD = KeypointHeadConfig(enabled=True, num_keypoints=4, convolutions=1, channels=16)


@pytest.mark.usefixtures("unannotated")
def test_the_keypoint_loss_falls():
    """One batch over and over: from the logarithm of the number of places to much less."""
    config = tiny_run(optimizer="adamw", lr=3e-3, flip=0.0)
    model_config = tiny_model()
    model_config = replace(model_config, keypoint_head=HEAD, keypoint_pool=replace(model_config.keypoint_pool, size=7))
    model = MaskRCNN(model_config, rng=np.random.default_rng(0))
    dataset = replace(config.data, shapes=SHAPES).training(3)
    samples = [dataset[index] for index in range(2)]
    optimizer = make_optimizer(model.parameters(), config.train)
    losses = [
        train_step(model, optimizer, samples, config.train, step=step, lr=3e-3)["keypoint_loss"] for step in range(40)
    ]
    places = (4 * model_config.keypoint_pool.size) ** 2
    assert abs(losses[0] - np.log(places)) < 0.5 * np.log(places)
    assert np.mean(losses[-5:]) < 0.6 * losses[0], losses


def test_from_files_to_predictions(tmp_path: Path) -> None:
    files = write_shapes(SHAPES, tmp_path, train=6, val=2)
    out, predicted = tmp_path / "run", tmp_path / "predicted"
    data = ["--images", tmp_path / "train", "--annotations", files["train"]]
    data += ["--val-images", tmp_path / "val", "--val-annotations", files["val"], "--min-keypoints", 1]
    head = ["--keypoint-head.channels", 16, "--keypoint-head.convolutions", 1, "--detections.score-threshold", 0.0]
    flags = ["train", "coco", "--preset", "shapes", *FLAGS[: FLAGS.index("--shapes.image-size")], *head, *data]
    flags += ["--batch-size", 2, "--steps", 2, "--oks-sigmas", 0.1, 0.1, 0.1, 0.1]
    run(*flags, "--keypoint-head.enabled", "--out", out)
    assert read_config(out).model.keypoint_head.num_keypoints == 4
    assert load_newest(out / "checkpoints")[1].keypoints == KEYPOINTS
    results = json.loads((out / "results.json").read_text())
    assert results["keypoints"]["ap"] is not None
    assert "keypoints" in (out / "report.html").read_text()
    run("eval", out)
    assert json.loads((out / "results.json").read_text())["keypoints"] == results["keypoints"]

    run("predict", out, tmp_path / "val/000000.png", "--out", predicted)
    found = json.loads((predicted / "detections.json").read_text())
    assert found
    for entry in found:
        points = np.array(entry["keypoints"]).reshape(4, 3)
        x, y, width, height = entry["bbox"]
        inside = (points[:, :2] >= [x - 1, y - 1]).all() and (points[:, :2] <= [x + width + 1, y + height + 1]).all()
        assert inside
        assert (points[:, 2] == 1).all()
    assert (predicted / "000000.png").is_file()

    message = error_of(*flags, "--keypoint-head.enabled", "--keypoint-head.num-keypoints", 9, "--out", tmp_path / "b")
    assert "keypoint_head.num_keypoints: the dataset has 4, so expected that or nothing, got 9" in message
    message = error_of("train", "shapes", *FLAGS, "--keypoint-head.enabled", "--out", tmp_path / "c")
    assert "the objects of the dataset have no keypoints to learn from" in message


def test_the_offset_is_that_of_the_data(tmp_path: Path) -> None:
    files = write_shapes(SHAPES, tmp_path, train=1, val=0)
    shifted = RunConfig(data=CocoData(images=tmp_path / "train", annotations=files["train"], keypoint_offset=0.0))
    assert shifted.keypoint_offset == 0
    assert RunConfig().keypoint_offset == KEYPOINT_OFFSET
    plain = CocoDataset(tmp_path / "train", files["train"])[0].truth.keypoints
    moved = shifted.data.training(3)[0].truth.keypoints
    np.testing.assert_array_equal(moved[..., :2], plain[..., :2] - KEYPOINT_OFFSET * (plain[..., 2:] > 0))


@pytest.mark.parametrize("changes", [{"oks_sigmas": (0.1, 0.0)}])
def test_sigmas_out_of_range(changes):
    with pytest.raises(ConfigError, match="oks_sigmas"):
        tiny_run(**changes)


def test_a_least_number_of_keypoints_is_not_negative():
    with pytest.raises(ConfigError, match="min_keypoints"):
        CocoData(images=Path(), annotations=Path(), min_keypoints=-1)
