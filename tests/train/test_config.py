"""Configurations: what they refuse, and that documents give them back."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from refnet.errors import ConfigError
from refnet.rcnn.presets import PRESETS
from refnet.train import CocoData, RunConfig, ShapesData, TrainConfig, as_toml, from_document, read_toml, to_document
from refnet.train.config_file import PARTS, differences, read_config, with_document, write_config
from tests.train.tiny import tiny_run


def coco_run() -> RunConfig:
    data = CocoData(
        images=Path('a "b"\\c'), annotations=Path("d.json"), val_images=Path("ü"), val_annotations=Path("f")
    )
    train = TrainConfig(schedule="multi_step", milestones=(5, 9), clip_norm=None, weights=Path("w.npz"), lr=1e-5)
    return RunConfig(model=PRESETS["matterport"](), data=data, train=train)


@pytest.mark.parametrize(
    "config", [RunConfig(), tiny_run(), coco_run(), *(RunConfig(model=preset()) for preset in PRESETS.values())]
)
def test_documents_give_back_the_configuration(tmp_path: Path, config: RunConfig) -> None:
    write_config(config, tmp_path)
    assert read_config(tmp_path) == config
    assert from_document(json.loads((tmp_path / "config.json").read_text()), source="JSON") == config
    assert read_toml(tmp_path / "config.toml").keys() == to_document(config).keys()


def test_the_parts_of_a_run_share_no_name() -> None:
    for data in (ShapesData(), coco_run().data):
        config = RunConfig(data=data)
        names = ["dataset", "preset", *(f.name for part in PARTS for f in fields(getattr(config, part)))]
        assert len(names) == len(set(names))


def test_a_document_changes_what_it_names_and_nothing_else() -> None:
    changed = with_document(RunConfig(), {"steps": 7, "rpn": {"nms_threshold": 1}, "lr": 1}, source="test")
    base = RunConfig()
    rpn = replace(base.model.rpn, nms_threshold=1.0)
    expected = replace(base, train=replace(base.train, steps=7, lr=1.0), model=replace(base.model, rpn=rpn))
    assert changed == expected
    assert type(changed.train.lr) is type(changed.model.rpn.nms_threshold) is float


def test_a_preset_gives_the_defaults_of_the_network() -> None:
    config = from_document({"preset": "matterport", "rpn": {"channels": 8}}, source="test")
    assert config.model == replace(PRESETS["matterport"](), rpn=replace(PRESETS["matterport"]().rpn, channels=8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stepps = 5", r"run\.toml: stepps: there is no such key.*did you mean 'steps'"),
        ("[rpn]\nnms_treshold = 0.5", r"run\.toml: rpn\.nms_treshold: there is no such key.*mean 'nms_threshold'"),
        ("[rpm]\nnms_threshold = 0.5", r"run\.toml: rpm: there is no such key.*did you mean 'rpn'"),
        ('steps = "5"', r"run\.toml: steps: expected a whole number, got '5'"),
        ("steps = 5.0", r"run\.toml: steps: expected a whole number, got 5\.0"),
        ("steps = true", r"run\.toml: steps: expected a whole number, got True"),
        ("nesterov = 1", r"run\.toml: nesterov: expected true or false, got 1"),
        ("lr = false", r"run\.toml: lr: expected a number, got False"),
        ("layers = 3", r"run\.toml: layers: expected text, got 3"),
        ("weights = 3", r"run\.toml: weights: expected a path, got 3"),
        ('clip_norm = "never"', r"run\.toml: clip_norm: expected a number, got 'never'"),
        ('optimizer = "lion"', r"run\.toml: optimizer: expected one of 'sgd', 'adamw', got 'lion'"),
        ("[backbone]\ndepth = 51", r"run\.toml: backbone\.depth: expected one of 11, .*, got 51"),
        ("rpn = 3", r"run\.toml: rpn: expected a table, got 3"),
        ("[rpn]\ndelta_std = [1, 2]", r"run\.toml: rpn\.delta_std: expected a list of 4, got \[1, 2\]"),
        ("[input]\nmean = 0.5", r"run\.toml: input\.mean: expected a list, got 0\.5"),
        ("[anchors]\nsizes = [[1], [2], [3], [4], ['x']]", r"run\.toml: anchors\.sizes\[4\]\[0\]: expected a number"),
        ("[shapes]\nclasses = ['square', 'blob']", r"run\.toml: shapes: classes must be .*'blob'"),
        ("[rpn]\nnms_threshold = 1.5", r"run\.toml: rpn\.nms_threshold must lie in \[0, 1\], got 1\.5"),
        ("steps = 0", r"run\.toml: steps must be at least 1, got 0"),
        ('dataset = "voc"', r"run\.toml: dataset: expected one of shapes, coco, got 'voc'"),
        ('dataset = "coco"', r"run\.toml: images: expected a path, got nothing"),
        ('preset = "yolo"', r"run\.toml: preset: expected one of torchvision, .*, got 'yolo'"),
        ("preset = 3", r"run\.toml: preset: expected one of torchvision, .*, got 3"),
        ("steps = ", r"run\.toml: can't be read as TOML: "),
        ("steps = 1\nsteps = 2", r"run\.toml: can't be read as TOML: "),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        from_document(read_toml(file), source=str(file))


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read as TOML"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="expected the folder of a run"):
        read_config(tmp_path)


def test_none_is_the_text_none_in_toml() -> None:
    text = as_toml(to_document(coco_run()))
    assert 'clip_norm = "none"' in text.splitlines()
    assert text.splitlines().count('delta_clamp = "none"') == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"lr": -1.0}, "lr must not be negative"),
        ({"flip": 1.5}, r"flip must lie in \[0, 1\]"),
        ({"seed": -1}, r"seed must lie in \[0, 2\^64\)"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"schedule": "multi_step"}, "milestones belong to schedule multi_step"),
        ({"milestones": (3,)}, "milestones belong to schedule multi_step"),
        ({"layers": "("}, r"layers must be a regular expression, got '\('"),
        ({"exclude": ("*",)}, r"exclude must be a regular expression"),
        ({"no_decay": "("}, r"no_decay must be a regular expression"),
        ({"optimizer": "adamw", "decay_norm": "mean"}, "decay_norm and decay_clipped belong to optimizer sgd"),
        ({"optimizer": "adamw", "decay_clipped": True}, "decay_norm and decay_clipped belong to optimizer sgd"),
    ],
)
def test_training_refuses_what_makes_no_sense(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**fields)


def test_data_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ConfigError, match="train_count must be at least 1"):
        ShapesData(train_count=0)
    with pytest.raises(ConfigError, match="val_images and val_annotations belong together"):
        CocoData(images=Path(), annotations=Path(), val_images=Path())
    with pytest.raises(ConfigError, match=r"input\.channels and shapes\.channels must be equal, got 1 and 3"):
        ShapesData().training(1)


def test_shapes_for_training_and_evaluation_differ() -> None:
    data = ShapesData(train_count=5, val_count=3)
    unseen = data.validation(3)
    assert unseen is not None
    assert (len(data.training(3)), len(unseen)) == (5, 3)
    assert (data.training(3)[0].image != unseen[0].image).any()
    assert ShapesData(val_count=0).validation(3) is None


def test_the_learning_rate_rises_and_falls() -> None:
    lr = TrainConfig(lr=0.5, steps=100, warmup_steps=10, warmup_start=0.1, schedule="constant").learning_rate()
    assert lr(0) == pytest.approx(0.05)
    assert lr(5) == pytest.approx(0.275)
    assert lr(10) == lr(99) == 0.5
    lr = TrainConfig(lr=1.0, steps=100, warmup_steps=0, schedule="cosine").learning_rate()
    assert [lr(step) for step in (0, 50, 100)] == pytest.approx([1.0, 0.5, 0.0])
    assert lr(25) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    settings = TrainConfig(lr=1.0, warmup_steps=0, schedule="multi_step", milestones=(2, 4), gamma=0.5)
    assert [settings.learning_rate()(step) for step in range(6)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_differences_are_named_by_their_path() -> None:
    assert differences({"a": 1, "t": {"x": 1, "y": 2}}, {"a": 1, "t": {"x": 3, "y": 2}, "b": None}) == {"t.x": (1, 3)}
    assert differences({"a": 1}, {}) == {"a": (1, None)}


@pytest.mark.parametrize(("field", "value"), [("optimizer", "lion"), ("schedule", "Cosine"), ("kernels", "fast")])
def test_a_misspelt_choice_is_refused(field: str, value: str) -> None:
    """Past the run-time type checks of the tests, which would refuse it first."""
    config = TrainConfig()
    object.__setattr__(config, field, value)
    with pytest.raises(ConfigError, match=f"{field} must be one of .*, got '{value}'"):
        config.__post_init__()
