"""Configurations: what makes no sense is refused, and the message names the field."""

import dataclasses
import inspect
from typing import Literal, get_origin

import pytest

from refnet.errors import ConfigError
from refnet.rcnn import config
from refnet.rcnn.config import (
    AnchorConfig,
    AnchorTargetConfig,
    BackboneConfig,
    BoxHeadConfig,
    DetectionConfig,
    FpnConfig,
    InputConfig,
    KeypointHeadConfig,
    LossConfig,
    MaskHeadConfig,
    ModelConfig,
    RoiPoolConfig,
    RoiTargetConfig,
    RpnConfig,
    broadcast,
)
from refnet.rcnn.presets import PRESETS

RECORDS = [c for _, c in inspect.getmembers(config, dataclasses.is_dataclass)]
CHOICES = [(c, f.name) for c in RECORDS for f in dataclasses.fields(c) if get_origin(f.type) is Literal]

pytestmark = pytest.mark.usefixtures("unannotated")


@pytest.mark.parametrize(("record", "name"), CHOICES, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_a_misspelt_choice_is_refused(record, name):
    with pytest.raises(ConfigError, match=rf"{name} must be one of .*, got 'mispelt'"):
        record(**{name: "mispelt"})


def test_the_choices_are_found():
    assert {(RpnConfig, "objectness"), (BackboneConfig, "depth"), (ModelConfig, "box_extent")} <= set(CHOICES)


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (InputConfig, {"channels": 0}),
        (InputConfig, {"min_size": 0}),
        (InputConfig, {"max_size": 700, "min_size": 800}),
        (InputConfig, {"min_scale": -1.0}),
        (InputConfig, {"pad_divisor": 0}),
        (InputConfig, {"std": (1.0, 0.0, 1.0)}),
        (InputConfig, {"std": (1.0, 1.0)}),
        (InputConfig, {"mean": (1.0, 1.0, 1.0), "channels": 4, "std": (1.0,)}),
        (InputConfig, {"mean": ()}),
        (BackboneConfig, {"width": 0}),
        (BackboneConfig, {"norm_epsilon": -1e-5}),
        (BackboneConfig, {"norm_momentum": 1.5}),
        (BackboneConfig, {"depth": 51}),
        (FpnConfig, {"channels": -1}),
        (AnchorConfig, {"sizes": ((32.0,),) * 4}),
        (AnchorConfig, {"sizes": ((8.0,), (8.0, 16.0), (8.0,), (8.0,), (8.0,))}),
        (AnchorConfig, {"sizes": ((),) * 5}),
        (AnchorConfig, {"sizes": ((8.0,), (8.0,), (0.0,), (8.0,), (8.0,))}),
        (AnchorConfig, {"ratios": ()}),
        (AnchorConfig, {"ratios": (1.0, -1.0)}),
        (RpnConfig, {"convolutions": 0}),
        (RpnConfig, {"channels": 0}),
        (RpnConfig, {"delta_std": (0.1, 0.1, 0.0, 0.2)}),
        (RpnConfig, {"pre_nms_train": 0}),
        (RpnConfig, {"pre_nms_test": 0}),
        (RpnConfig, {"post_nms_train": 0}),
        (RpnConfig, {"post_nms_test": -5}),
        (RpnConfig, {"nms_threshold": 1.1}),
        (RpnConfig, {"min_size": -1.0}),
        (AnchorTargetConfig, {"positive_iou": 1.5}),
        (AnchorTargetConfig, {"negative_iou": -0.1}),
        (AnchorTargetConfig, {"negative_iou": 0.8}),
        (AnchorTargetConfig, {"positive_fraction": 2.0}),
        (AnchorTargetConfig, {"batch_size": 0}),
        (RoiTargetConfig, {"positive_iou": -0.5}),
        (RoiTargetConfig, {"negative_iou_low": 1.01}),
        (RoiTargetConfig, {"positive_fraction": -0.1}),
        (RoiTargetConfig, {"positive_fraction": 0.0, "negatives": "ratio"}),
        (RoiTargetConfig, {"batch_size": 0}),
        (RoiPoolConfig, {"size": 0}),
        (RoiPoolConfig, {"canonical_size": 0.0}),
        (RoiPoolConfig, {"sampling_ratio": -1}),
        (RoiPoolConfig, {"box_units": "pixels", "method": "crop_and_resize"}),
        (BoxHeadConfig, {"channels": 0}),
        (BoxHeadConfig, {"conv_channels": 0}),
        (BoxHeadConfig, {"convolutions": -1}),
        (BoxHeadConfig, {"convolutions": 4, "kind": "conv"}),
        (BoxHeadConfig, {"layers": 0}),
        (BoxHeadConfig, {"layers": 1, "kind": "conv"}),
        (BoxHeadConfig, {"norm": "batch", "convolutions": 0}),
        (BoxHeadConfig, {"delta_std": (0.1, -0.1, 0.2, 0.2)}),
        (MaskHeadConfig, {"convolutions": -1}),
        (MaskHeadConfig, {"channels": 0}),
        (KeypointHeadConfig, {"convolutions": -1}),
        (KeypointHeadConfig, {"channels": 0}),
        (KeypointHeadConfig, {"num_keypoints": 0}),
        (LossConfig, {"rpn_beta": -1.0}),
        (LossConfig, {"box_beta": float("nan")}),
        (DetectionConfig, {"score_threshold": 1.5}),
        (DetectionConfig, {"nms_threshold": -0.5}),
        (DetectionConfig, {"limit": 0}),
        (DetectionConfig, {"min_size": -1.0}),
        (DetectionConfig, {"mask_threshold": 2.0}),
        (DetectionConfig, {"mask_threshold": None, "paste": "hard"}),
        (ModelConfig, {"num_classes": 0}),
    ],
    ids=lambda v: v.__name__ if inspect.isclass(v) else "-".join(v),
)
def test_a_value_out_of_range_is_refused(record, fields):
    with pytest.raises(ConfigError) as caught:
        record(**fields)
    assert next(iter(fields)) in str(caught.value)


def test_zero_is_allowed_where_it_says_something():
    LossConfig(rpn_beta=0.0, box_beta=0.0)
    BackboneConfig(norm_epsilon=0.0)
    RoiPoolConfig(sampling_ratio=0, level_epsilon=0.0)
    RpnConfig(min_size=0.0, delta_clamp=None)
    MaskHeadConfig(convolutions=0)
    RoiTargetConfig(positive_fraction=0.0)


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().num_classes = 5


@pytest.mark.parametrize("name", PRESETS)
def test_presets_take_the_number_of_classes(name):
    assert PRESETS[name](7).num_classes == 7


def test_one_number_serves_all_channels():
    assert broadcast((0.5,), 3) == (0.5, 0.5, 0.5)
    assert broadcast((0.5, 0.25), 2) == (0.5, 0.25)
