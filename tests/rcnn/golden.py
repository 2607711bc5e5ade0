"""Files of golden vectors that torchvision computed in float64, and comparison with what they keep of an array."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from refnet.bench.rule import image
from refnet.nn import Module
from refnet.rcnn import GroundTruth, MaskRCNN, ModelConfig
from refnet.rcnn.presets import torchvision, torchvision_keypoints, torchvision_v2
from tests.golden.torchvision_rule import Naming, fill, to_torch, torchvision_name, torchvision_v2_name

GOLDEN = Path(__file__).parents[1] / "golden"
MASKS = ("maskrcnn", "maskrcnn_v2")
PRESETS = {"keypointrcnn": torchvision_keypoints, "maskrcnn_v2": torchvision_v2}
NAMES = {"maskrcnn_v2": torchvision_v2_name}


class Golden:
    """A file of vectors: compares a whole array with what the file keeps of it."""

    def __init__(self, name: str) -> None:
        self.file = np.load(GOLDEN / name)
        self.largest = {"float64": (0.0, ""), "float32": (0.0, "")}  # deviations so far, by what the file holds

    def check(self, name: str, actual: np.ndarray) -> None:
        """`actual` in torchvision's layout; 1e-9 where the file holds float64, 1e-6 where float32, of the maximum."""
        stored = self.file[name]
        if f"{name}.shape" in self.file:
            assert actual.shape == tuple(self.file[f"{name}.shape"]), name
            bound = 1e-9 * self.file[f"{name}.abs_sum"]
            np.testing.assert_allclose(actual.sum(), self.file[f"{name}.sum"], rtol=0, atol=bound)
            np.testing.assert_allclose(np.abs(actual).sum(), self.file[f"{name}.abs_sum"], rtol=0, atol=bound)
        if f"{name}.channel_stride" in self.file:
            step = int(self.file[f"{name}.channel_stride"])
            actual = actual[:, ::step] if actual.ndim == 4 else actual[::step]
        if f"{name}.spatial_stride" in self.file:
            step = int(self.file[f"{name}.spatial_stride"])
            actual = actual[..., ::step, ::step]
        assert actual.shape == stored.shape, (name, actual.shape, stored.shape)
        scale = max(np.abs(stored).max(), 1e-3)
        deviation = float(np.abs(actual - stored).max() / scale)
        kind = "float64" if stored.dtype == np.float64 else "float32"
        self.largest[kind] = max(self.largest[kind], (deviation, name))
        assert deviation <= {"float64": 1e-9, "float32": 1e-6}[kind], (name, deviation)

    def check_summary(self, name: str, actual: np.ndarray) -> float:
        """A parameter's array in torchvision's layout, of which the file keeps sums and a few entries; the deviation.

        1e-8 of each number, and of the sum of absolute values, which bounds how far rounding goes.
        """
        flat, stored = actual.ravel(), self.file[name]
        sums = flat.sum(), np.abs(flat).sum(), np.linalg.norm(flat)
        summary = np.array([*sums, *flat[:: max(1, flat.size // 8)][:8]])
        deviation = float((np.abs(summary - stored) / (np.abs(stored) + stored[1])).max())
        assert deviation <= 1e-8, (name, deviation)
        return deviation

    def check_gradients(
        self, model: Module, naming: Naming, prefix: str = "grad.", vanishing: Mapping[str, float] | None = None
    ) -> float:
        """The gradient of every parameter, by torchvision's names behind `prefix`; the largest deviation.

        `vanishing` names parameters whose gradient is 0 but for rounding, with the bound of each entry's rounding.
        """
        parameters = model.parameters()
        stored = {key.removeprefix(prefix) for key in self.file.files if key.startswith(prefix)}
        assert {naming(name) for name in parameters} == stored
        vanishing = vanishing or {}
        for name, bound in vanishing.items():
            grad, kept = parameters[name].grad, self.file[prefix + naming(name)]
            assert np.abs(grad).max() <= bound, (name, grad)
            assert np.abs(kept).max() <= bound * grad.size, (name, kept)
        return max(
            self.check_summary(prefix + naming(n), to_torch(n, p.grad))
            for n, p in parameters.items()
            if n not in vanishing
        )


def nchw(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 3, 1, 2)


def golden_images() -> list[np.ndarray]:
    """The two images that the files were computed from."""
    return [image("0", 96, 128), image("1", 120, 100)]


def case_of(golden: Golden) -> str:
    return str(json.loads(str(golden.file["config"]))["case"])


def configure(golden: Golden) -> ModelConfig:
    """The configuration that a file was computed with."""
    settings = json.loads(str(golden.file["config"]))
    model = settings["model"]
    classes = settings["classes"] - 1
    case = case_of(golden)
    config = PRESETS.get(case, torchvision)(classes)
    return dataclasses.replace(
        config,
        mask_head=dataclasses.replace(config.mask_head, enabled=case in MASKS),
        input=dataclasses.replace(config.input, min_size=model["min_size"], max_size=model["max_size"]),
        rpn=dataclasses.replace(
            config.rpn,
            pre_nms_train=model["rpn_pre_nms_top_n_train"],
            pre_nms_test=model["rpn_pre_nms_top_n_test"],
            post_nms_train=model["rpn_post_nms_top_n_train"],
            post_nms_test=model["rpn_post_nms_top_n_test"],
        ),
        anchor_targets=dataclasses.replace(config.anchor_targets, batch_size=model["rpn_batch_size_per_image"]),
        roi_targets=dataclasses.replace(
            config.roi_targets,
            batch_size=model["box_batch_size_per_image"],
            positive_fraction=model["box_positive_fraction"],
        ),
        detections=dataclasses.replace(
            config.detections,
            limit=model["box_detections_per_img"],
            score_threshold=model["box_score_thresh"],
        ),
    )


def build(golden: Golden, dtype: type = np.float64) -> MaskRCNN:
    """The network that a file was computed with."""
    model = MaskRCNN(configure(golden), rng=np.random.default_rng(0), dtype=dtype)
    fill(model, NAMES.get(case_of(golden), torchvision_name))
    return model


def truth_of(golden: Golden) -> list[GroundTruth]:
    """The objects that a file was computed with."""
    entries = []
    for index in range(2):
        own = {key: golden.file.get(f"target{index}.{key}") for key in ("boxes", "labels", "masks", "keypoints")}
        entries.append(
            GroundTruth(
                boxes=own["boxes"],
                classes=own["labels"],
                masks=None if own["masks"] is None else own["masks"].astype(bool),
                crowd=np.zeros(len(own["boxes"]), bool),
                keypoints=own["keypoints"],
            )
        )
    return entries
