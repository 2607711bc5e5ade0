"""Makes the golden vectors of torchvision's v2 detector and of its backbones; needs torch and torchvision.

``python -m tests.golden.make_torchvision`` in the project's root writes torchvision_maskrcnn_v2.{eval,train}.npz and
torchvision_backbones.npz beside this file. Everything is computed in float64 with the weights of
:mod:`refnet.bench.rule`. Of a large array the files keep every so many channels, and sums of the whole.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torchvision.models import resnet, vgg
from torchvision.models.detection import maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d

from refnet.bench.rule import generator, image, weight

HERE = Path(__file__).parent
CLASSES = 5
SIZES = ((96, 128), (120, 100))
SETTINGS = {
    "min_size": 128,
    "max_size": 192,
    "rpn_pre_nms_top_n_test": 200,
    "rpn_post_nms_top_n_test": 60,
    "rpn_pre_nms_top_n_train": 200,
    "rpn_post_nms_top_n_train": 60,
    "rpn_batch_size_per_image": 1000000,
    "box_batch_size_per_image": 1000000,
    "rpn_positive_fraction": 0.5,
    "box_positive_fraction": 0.5,
    "box_detections_per_img": 60,
    "box_score_thresh": 0.05,
}
"""Arguments of the constructor: small images, few proposals, and samplers that take everything."""
ENTRIES = 8


class Vectors(dict[str, Any]):
    """What a file will hold."""

    def keep(self, name: str, value: torch.Tensor, *, most: int = 6000) -> None:
        """`value`, or of a map (N, C, H, W) above `most` values every so many channels and rows; large ones rounded."""
        array = value.detach().numpy()
        kept = array
        if array.ndim == 4 and array.size > most:
            self[f"{name}.shape"] = np.array(array.shape)
            self[f"{name}.sum"], self[f"{name}.abs_sum"] = array.sum(), np.abs(array).sum()
            channels = {3: 1, 12: 5}.get(array.shape[1], 64)
            spatial = 3 if array[:, ::channels].size > most else 1
            self[f"{name}.channel_stride"], self[f"{name}.spatial_stride"] = channels, spatial
            kept = array[:, ::channels, ::spatial, ::spatial]
        self[name] = kept.astype(np.float32) if kept.size > 4000 else kept.copy()

    def summarise(self, name: str, value: torch.Tensor) -> None:
        """Sum, absolute sum, norm and eight entries of a parameter's array."""
        flat = value.detach().numpy().ravel()
        sums = [flat.sum(), np.abs(flat).sum(), np.linalg.norm(flat)]
        self[name] = np.array([*sums, *flat[:: max(1, flat.size // ENTRIES)][:ENTRIES]])

    def write(self, name: str) -> None:
        path = HERE / name
        np.savez_compressed(path, **self)
        print(f"{name}: {path.stat().st_size:,} bytes")


def fill(module: torch.nn.Module, prefix: str = "") -> None:
    """Give `module` the values that the rule draws for its names behind `prefix`, in float64."""
    module.double()
    with torch.no_grad():
        for name, array in module.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                array.copy_(torch.from_numpy(weight(prefix + name, tuple(array.shape))))


def pixels(name: str, size: tuple[int, int]) -> torch.Tensor:
    return torch.from_numpy(image(name, *size) / 255.0).permute(2, 0, 1).contiguous()


def ground_truth(size: tuple[int, int], index: int) -> dict[str, torch.Tensor]:
    """Three boxes of quarter pixels with elliptic masks."""
    rng = generator(f"target/{index}")
    height, width = size
    corner = rng.uniform(0, 0.5, (3, 2)) * (width, height)
    extent = rng.uniform(0.3, 0.5, (3, 2)) * (width, height)
    boxes = np.round(np.concatenate([corner, corner + extent], axis=1) * 4) / 4
    y, x = np.mgrid[0:height, 0:width] + 0.5
    middle, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    (cx, cy), (rx, ry) = middle.T[..., None, None], radius.T[..., None, None]
    masks = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1
    return {
        "boxes": torch.from_numpy(boxes),
        "labels": torch.from_numpy(rng.integers(1, CLASSES, 3)),
        "masks": torch.from_numpy(masks.astype(np.uint8)),
    }


def on(module: torch.nn.Module, keep: Callable[[Any], None]) -> None:
    """Show `keep` what `module` returns, from now on."""

    def hook(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
        keep(output)

    module.register_forward_hook(hook)


def levels(vectors: Vectors, prefix: str, output: dict[str, torch.Tensor], *, most: int = 6000) -> None:
    for name, value in output.items():
        vectors.keep(f"{prefix}.{name}", value, most=most)


def observe(model: torch.nn.Module, vectors: Vectors) -> None:
    """Keep what passes between the stages of `model`."""

    def transformed(output: Any) -> None:
        vectors.keep("transform.tensors", output[0].tensors)
        vectors["transform.image_sizes"] = np.array(output[0].image_sizes)

    def rpn(output: Any) -> None:
        for name, values in zip(("objectness", "deltas"), output, strict=True):
            for level, value in enumerate(values):
                vectors.keep(f"rpn.{name}{level}", value)

    def anchors(output: Any) -> None:
        own = output[0].numpy()
        vectors["anchors.count"], vectors["anchors.sum"] = len(own), own.sum(axis=0)
        vectors["anchors.every97"] = own[::97]

    def proposals(output: Any) -> None:
        for index, boxes in enumerate(output[0]):
            vectors.keep(f"rpn.proposals{index}", boxes)

    def box(output: Any) -> None:
        for name, value in zip(("class_logits", "box_regression"), output, strict=True):
            vectors.keep(name, value)

    def masks(output: torch.Tensor) -> None:
        every = 2 if model.training else 13
        vectors["mask_logits.every"] = every
        vectors["mask_logits"] = output[::every].detach().numpy().astype(np.float32)

    on(model.transform, transformed)
    on(model.backbone.body, partial(levels, vectors, "body"))
    on(model.backbone, partial(levels, vectors, "fpn"))
    on(model.rpn.head, rpn)
    on(model.rpn.anchor_generator, anchors)
    on(model.rpn, proposals)
    on(model.roi_heads.box_roi_pool, partial(vectors.keep, "box_roi_pool"))
    if not model.training:  # where looking at the hidden layer again would move the statistics again
        on(model.roi_heads.box_head, lambda output: vectors.keep("box_head", output[:, ::16]))
    on(model.roi_heads.box_predictor, box)
    on(model.roi_heads.mask_roi_pool, partial(vectors.keep, "mask_roi_pool"))
    on(model.roi_heads.mask_predictor, masks)


def observe_targets(model: torch.nn.Module, vectors: Vectors) -> None:
    """Keep what anchors and sampled regions should say."""
    assign, select = model.rpn.assign_targets_to_anchors, model.roi_heads.select_training_samples

    def assigned(*args: Any) -> Any:
        labels, boxes = assign(*args)
        for index, own in enumerate(labels):
            vectors[f"rpn.labels{index}"] = own.numpy().astype(np.int8)
        return labels, boxes

    def selected(*args: Any) -> Any:
        result = select(*args)
        for name, values in zip(("proposals", "matched", "labels", "regression_targets"), result, strict=True):
            for index, own in enumerate(values):
                vectors[f"samples.{name}{index}"] = own.detach().numpy()
        return result

    model.rpn.assign_targets_to_anchors, model.roi_heads.select_training_samples = assigned, selected


def make_detector(*, train: bool) -> None:
    """maskrcnn_resnet50_fpn_v2 on two images; in training also every gradient, and the statistics after the step."""
    model = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=CLASSES, **SETTINGS)
    fill(model)
    model.train(train)
    images = [pixels(str(index), size) for index, size in enumerate(SIZES)]
    vectors = Vectors()
    settings = {
        "case": "maskrcnn_v2", "classes": CLASSES, "train": train, "model": SETTINGS,
        "torch": torch.__version__, "torchvision": torchvision.__version__,
    }  # fmt: skip
    vectors["config"] = json.dumps(settings)
    observe(model, vectors)
    if train:
        truth = [ground_truth(size, index) for index, size in enumerate(SIZES)]
        for index, entry in enumerate(truth):
            vectors.update({f"target{index}.{name}": value.numpy() for name, value in entry.items()})
        observe_targets(model, vectors)
        losses = model(images, truth)
        total = sum(losses.values())
        total.backward()
        vectors.update({f"loss.{name}": value.detach().numpy() for name, value in losses.items()})
        vectors["loss.total"] = total.detach().numpy()
        for name, parameter in model.named_parameters():
            vectors.summarise(f"grad.{name}", parameter.grad)
        for name, buffer in model.named_buffers():
            if "running" in name:
                vectors.summarise(f"state.{name}", buffer)
    else:
        with torch.no_grad():
            found = model(images)
        for index, entry in enumerate(found):
            for name in ("boxes", "labels", "scores"):
                vectors[f"final{index}.{name}"] = entry[name].numpy()
            vectors.keep(f"final{index}.masks", entry["masks"][::16], most=10**6)
    vectors.write(f"torchvision_maskrcnn_v2.{'train' if train else 'eval'}.npz")


def last_of_blocks(features: torch.nn.Sequential) -> dict[str, str]:
    """Where in ``features`` the third to the fifth block end, and where the fifth's pooling stands."""
    pools = [index for index, layer in enumerate(features) if isinstance(layer, torch.nn.MaxPool2d)]
    ends = [*(index - 1 for index in pools[2:]), pools[-1]]
    return {str(end): str(level) for level, end in enumerate(ends)}


def backbone(name: str, epsilon: float) -> tuple[BackboneWithFPN, str]:
    """A classifier's features under a pyramid, and the prefix of their names there, by which they are filled."""
    if name.startswith("vgg"):
        prefix, body = "features.", getattr(vgg, name)(weights=None, init_weights=False).features
        returned, channels = last_of_blocks(body), [256, 512, 512, 512]
    else:
        prefix, body = "", getattr(resnet, name)(weights=None, norm_layer=partial(FrozenBatchNorm2d, eps=epsilon))
        returned = {f"layer{level + 1}": str(level) for level in range(4)}
        channels = [body.inplanes // 8 * 2**level for level in range(4)]
    fill(body, prefix)
    model = BackboneWithFPN(body, returned, channels, 256)
    fill(model.fpn, "fpn.")
    return model, prefix


def make_backbones() -> None:
    """C2 to C5 and P2 to P6 of an image, and the gradient of the pyramid's inner product with arrays of the rule."""
    vectors = Vectors()
    cases = [
        (name, 1e-5) for name in ("resnet18", "resnet34", "resnet101", "resnet152", "vgg11", "vgg13", "vgg16", "vgg19")
    ]
    for name, epsilon in [*cases, ("resnet18", 0.0)]:
        case = name if epsilon else f"{name}.epsilon0"
        model, prefix = backbone(name, epsilon)
        on(model.body, partial(levels, vectors, f"{case}.body", most=600))
        pyramid = model(pixels(name, (64, 96))[None])
        total = torch.zeros((), dtype=torch.float64)
        levels(vectors, f"{case}.fpn", pyramid, most=600)
        for level, value in pyramid.items():
            total = total + (value * torch.from_numpy(weight(f"cotangent.{level}", tuple(value.shape)))).sum()
        total.backward()
        for parameter_name, parameter in model.named_parameters():
            name_there = parameter_name.replace("body.", prefix)
            vectors.summarise(f"{case}.grad.{name_there}", parameter.grad)
    vectors.write("torchvision_backbones.npz")


if __name__ == "__main__":
    make_detector(train=False)
    make_detector(train=True)
    make_backbones()
