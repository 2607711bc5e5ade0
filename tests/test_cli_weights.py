"""The command line on files of weights: convert, predict, evaluate and fine-tune, without a run and with another's."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refnet.cli import main
from refnet.data.coco_classes import COCO_CLASSES
from refnet.nn.init import Blank
from refnet.rcnn import MaskRCNN, ModelConfig
from refnet.rcnn.presets import detectron2, matterport, shapes, torchvision, torchvision_keypoints
from refnet.train import RunConfig, load_newest, open_source, read_config
from refnet.weights import read_tensors, save, write_tensors
from refnet.weights.save import to_tensors
from tests.rcnn.small import shrink, vary
from tests.test_cli import SHAPES, error_of, run

NETWORK = ("--preset", "shapes")  # what weights don't say


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step with its data, and its weights as torchvision would name them, in three formats."""
    folder = tmp_path_factory.mktemp("weights")
    small = ("--shapes.image-size", 64, "--shapes.min-half-size", 8, "--shapes.max-half-size", 12)
    run("data", "shapes", "--out", folder / "data", "--train", 2, "--val", 2, *small)
    run(*SHAPES, "--steps", 1, "--val-count", 0, "--out", folder / "run")
    for suffix in (".pth", ".safetensors", ".npz"):
        out = run("convert", folder / "run", folder / f"w{suffix}", "--to", "torchvision").stdout
        assert "names of refnet (refnet)" in out
        assert "written: " in out
        assert "input.resize is none, torchvision's own is shortest_edge" in out
        assert "rpn.nms_threshold" not in out
        assert "channels" not in out
    return folder


def test_all_formats_hold_the_same_weights(folder: Path) -> None:
    expected = to_tensors(open_source(folder / "run").model()[0], "torchvision")
    for suffix in (".pth", ".safetensors", ".npz"):
        tensors = read_tensors(folder / f"w{suffix}")
        assert tensors.keys() == expected.keys()
        assert all(np.array_equal(tensors[name], array) for name, array in expected.items())


def test_weights_become_a_checkpoint_with_the_same_bits(folder: Path, tmp_path: Path) -> None:
    done = run("convert", folder / "w.pth", tmp_path / "w.npz", *NETWORK, "--rpn.nms-threshold", 0.6)
    assert "by the names of refnet" in done.stdout
    assert "the network is taken from the file: Mask R-CNN, ResNet-18, 3 classes" in done.stdout
    trained, source = load_newest(folder / "run/checkpoints")[1], open_source(tmp_path / "w.npz")
    assert source.class_names == ("class 1", "class 2", "class 3")
    assert all(np.array_equal(array, source.tensors[name]) for name, array in trained.model.items())
    expected = read_config(folder / "run").model
    assert source.config == replace(expected, rpn=replace(expected.rpn, nms_threshold=0.6))


def test_a_run_and_its_weights_find_the_same_objects(folder: Path, tmp_path: Path) -> None:
    images = sorted((folder / "data/val").iterdir())
    flags = ["--detections.score-threshold", 0.01, "--out"]
    run("predict", folder / "run", *images, *flags, tmp_path / "run")
    done = run("predict", "--weights", folder / "w.pth", *NETWORK, *images, *flags, tmp_path / "weights")
    found = [json.loads((tmp_path / name / "detections.json").read_text()) for name in ("run", "weights")]
    assert found[0] == found[1] != []
    assert "loaded      " in done.stderr
    assert (tmp_path / "weights" / images[0].name).exists()
    assert "a run and image files, or --weights and image files" in error_of("predict", "--weights", folder / "w.pth")


def test_a_run_and_its_weights_are_evaluated_alike(folder: Path, tmp_path: Path) -> None:
    """The file doesn't name its classes; as many as the dataset's are taken to be these."""
    data = ["--images", folder / "data/val", "--annotations", folder / "data/val.json", "--out"]
    run("eval", folder / "run", *data, tmp_path / "run.json")
    run("eval", "--weights", folder / "w.safetensors", *NETWORK, *data, tmp_path / "weights.json")
    one, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("run", "weights"))
    assert one.pop("timing") != other.pop("timing")
    assert one == other
    assert "names no images" in error_of("eval", "--weights", folder / "w.pth", *NETWORK)
    assert "expected a run or --weights, got None and None" in error_of("eval")


def test_training_starts_from_weights_and_takes_the_network_from_them(folder: Path, tmp_path: Path) -> None:
    """The file's sizes are the defaults; the predictors of another number of classes have to be excluded."""
    data = ["--images", folder / "data/train", "--annotations", folder / "data/train.json"]
    few = ["train", "coco", *data, "--steps", 1, "--batch-size", 2, "--input.min-size", 64, "--input.max-size", 64]
    few += ["--rpn.pre-nms-train", 50, "--rpn.post-nms-train", 50, "--lr", 0]
    done = run(*few, "--weights", folder / "w.pth", "--out", tmp_path / "same")
    assert "names of torchvision's detection models" in done.stderr
    assert read_config(tmp_path / "same").model.backbone.width == 8
    trained = load_newest(tmp_path / "same/checkpoints")[1].model
    assert np.array_equal(trained["fpn.output.0.weight"], open_source(folder / "run").tensors["fpn.output.0.weight"])

    other = folder / "other.pth"
    model, _ = open_source(folder / "run").model()
    config = replace(model.config, num_classes=5, mask_head=replace(model.config.mask_head, enabled=False))
    save(MaskRCNN(config, rng=np.random.default_rng(0)), other)
    assert "box_head.classes.weight: expected shape (4, 32), got shape (6, 32)" in error_of(
        *few, "--weights", other, "--out", tmp_path / "other"
    )
    exclude = ["--exclude", r"box_head\.classes\..*", r"box_head\.deltas\..*"]
    done = run(*few, "--weights", other, *exclude, "--out", tmp_path / "other")
    assert "kept        4:" in done.stderr
    assert read_config(tmp_path / "other").train.exclude == tuple(exclude[1:])


def test_a_classifiers_weights_leave_the_preset_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RunConfig] = []
    monkeypatch.setattr("refnet.cli._train", lambda config, origin, name: seen.append(config) or 0)
    named = to_tensors(MaskRCNN(shrink(torchvision()), rng=Blank()), "torchvision")
    body = {k.removeprefix("backbone.body."): v for k, v in named.items() if k.startswith("backbone.body.")}
    for name, tensors in {"classifier": body, "detector": named}.items():
        write_tensors(tmp_path / f"{name}.npz", tensors)
        assert main(["train", "shapes", "--weights", str(tmp_path / f"{name}.npz")]) == 0
    assert [config.model.backbone.width for config in seen] == [shapes().backbone.width, 4]
    assert seen[0].model == shapes()


def test_what_is_no_file_of_weights_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    assert "weights" in error_of("predict", "--weights", tmp_path / "image.png", tmp_path / "image.png")
    assert "none.pth" in error_of("convert", tmp_path / "none.pth", tmp_path / "out.npz")
    write_tensors(tmp_path / "other.npz", {"what": np.zeros(1)})
    assert "expected names of one of the conventions" in error_of("convert", tmp_path / "other.npz", tmp_path / "o.pth")
    assert not (tmp_path / "o.pth").exists()


def weights_of(config: ModelConfig, classes: int, convention: str, path: Path) -> Path:
    model = MaskRCNN(vary(shrink(config), {"num_classes": classes}), rng=Blank())
    write_tensors(path, to_tensors(model, convention))
    return path


@pytest.mark.parametrize(
    ("config", "classes", "convention", "expected"),
    [
        (torchvision(), 90, "torchvision", {1: "person", 12: "unused 12", 90: "toothbrush"}),
        (matterport(), 80, "matterport", {1: "person", 13: "stop sign", 90: "toothbrush"}),
        (detectron2(), 80, "detectron2", {1: "person", 13: "stop sign", 90: "toothbrush"}),
        (torchvision_keypoints(), 1, "torchvision", {1: "person"}),
        (torchvision(), 20, "torchvision", {1: "class 1", 12: "class 12", 20: "class 20"}),
    ],
)
def test_classes_of_coco_are_known_by_their_number(tmp_path, config, classes, convention, expected):
    source = open_source(weights_of(config, classes, convention, tmp_path / "w.npz"))
    names = dict(zip(source.category_ids, source.class_names, strict=True))
    assert len(names) == classes == source.config.num_classes
    assert {k: names[k] for k in expected} == expected


def test_categories_are_matched_by_id(folder: Path, tmp_path: Path, monkeypatch, capsys):
    """A torchvision network's 90 classes on a dataset with three of COCO's categories."""
    weights = weights_of(torchvision(), 90, "torchvision", tmp_path / "w.npz")
    file = tmp_path / "val.json"
    document = json.loads((folder / "data/val.json").read_text())
    chosen = dict(zip((1, 2, 3), (1, 44, 90), strict=True))
    document["categories"] = [{"id": k, "name": COCO_CLASSES[k]} for k in chosen.values()]
    for annotation in document["annotations"]:
        annotation["category_id"] = chosen[annotation["category_id"]]
    file.write_text(json.dumps(document))
    seen = []
    monkeypatch.setattr(
        "refnet.cli._renumbered", lambda found, numbers: seen.append(numbers) or found.select(found.scores > 2)
    )
    monkeypatch.setattr("refnet.cli._set_up_process", lambda config: None)
    data = ["--images", str(folder / "data/val"), "--annotations", str(file), "--out", str(tmp_path / "out.json")]
    small = ["--input.min-size", "32", "--input.max-size", "32"]
    assert main(["eval", "--weights", str(weights), *small, *data]) == 0, capsys.readouterr().err
    numbers = seen[0]
    assert (numbers[1], numbers[44], numbers[90], numbers.sum()) == (1, 2, 3, 6)
    document["categories"][0]["name"] = "dog"
    file.write_text(json.dumps(document))
    assert main(["eval", "--weights", str(weights), *small, *data]) == 2
    assert "expected images of the classes ('person', " in capsys.readouterr().err
