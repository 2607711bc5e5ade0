"""What other programs call refnet's parameters, and what else distinguishes their files.

A convention is one table, from refnet's layers to the names there; reading and writing both go through it. The tables
were made from the published names; a :class:`Convention` adds the layout of the arrays, the order of box coordinates
and anchors, and where the background stands. :mod:`refnet.weights.layouts` does the arithmetic that follows from these.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from refnet.errors import WeightsError
from refnet.rcnn.config import ModelConfig
from refnet.rcnn.vgg import CONVOLUTIONS

Layer: TypeAlias = tuple[Any, ...]  # refnet's name of a layer, split at the dots, numbers as int
Names: TypeAlias = tuple[str, ...]  # of the layer over there: the one that is written, then others that are read

LEAVES = ("weight", "bias", "running_mean", "running_variance")
TORCH = {leaf: f".{leaf}" for leaf in LEAVES} | {"running_variance": ".running_var"}
KERAS = {"weight": "/kernel", "bias": "/bias"}
KERAS_NORM = {
    "weight": "/gamma",
    "bias": "/beta",
    "running_mean": "/moving_mean",
    "running_variance": "/moving_variance",
}
CAFFE2 = {"weight": "_w", "bias": "_b"}
CAFFE2_NORM = {"weight": "_s", "bias": "_b", "running_mean": "_rm", "running_variance": "_riv"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """What the names of a few layers depend on beyond their place.

    Attributes:
        box_convolutions: convolutions of the box head before its first fully connected layer; torchvision numbers on.
        vgg_blocks: convolutions of each block of a VGG; torchvision numbers them, ReLUs and pools in one row.
    """

    box_convolutions: int = 0
    vgg_blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """How one program names, lays out and orders weights.

    Attributes:
        name: what it is called here and on the command line.
        about: whose files these are.
        mark: matches a name that such a file has, and no file of another convention.
        names: the names over there of one of refnet's layers; none if such a network has no such layer.
        leaves, norm_leaves: how the names of a layer's arrays end.
        arrays: torch: convolutions (out, in, kh, kw), transposed ones (in, out, kh, kw), fully connected (out, in), and
            features flattened as (C, P, P). keras: (kh, kw, in, out), (kh, kw, out, in), (in, out). refnet: as here.
        boxes: the order of coordinates, and so of deltas (dx, dy, dw, dh) or (dy, dx, dh, dw).
        background: where it stands among classes. Where it is last, no box and no mask is predicted for it.
        ratio_is, order: which anchor is which channel, as in :class:`~refnet.rcnn.config.AnchorConfig`.
        backbone_only: the file holds a classifier's weights, of which the backbone is taken.
        affine_norms: batch norms have no statistics; mean 0 and variance 1 - epsilon leave scale and shift alone.
        ignored: patterns of names that are passed over, with the reason.
    """

    name: str
    about: str
    mark: str
    names: Callable[[Layer, Structure], Names]
    leaves: Mapping[str, str]
    norm_leaves: Mapping[str, str]
    arrays: Literal["torch", "keras", "refnet"] = "torch"
    boxes: Literal["xyxy", "yxyx"] = "xyxy"
    background: Literal["first", "last"] | None = "first"
    ratio_is: Literal["h/w", "w/h"] | None = "h/w"
    order: Literal["ratio_major", "size_major"] | None = "ratio_major"
    backbone_only: bool = False
    affine_norms: bool = False
    ignored: tuple[tuple[str, str], ...] = ()

    def entries(self, name: str, structure: Structure) -> Names:
        """The names over there of one of refnet's parameters or buffers, the one that is written first."""
        layer, _, leaf = name.rpartition(".")
        return self.arrays_of(layer, structure).get(leaf, ())

    def arrays_of(self, layer: str, structure: Structure) -> dict[str, Names]:
        """The same for all arrays that one of refnet's layers may have, by what they are called in it."""
        path = tuple(int(part) if part.isdigit() else part for part in layer.split("."))
        if self.backbone_only and path[0] != "backbone":
            return {}
        is_norm = str(path[-2] if isinstance(path[-1], int) else path[-1]).endswith(("norm", "norms"))
        names = self.names(path, structure)
        leaves = self.norm_leaves if is_norm else self.leaves
        return {leaf: tuple(f"{there}{ending}" for there in names) for leaf, ending in leaves.items()}


def _torchvision_resnet(layer: Layer, prefix: str) -> Names:
    match layer:
        case ("backbone", "stem", "conv"):
            return (f"{prefix}conv1",)
        case ("backbone", "stem", "norm"):
            return (f"{prefix}bn1",)
        case ("backbone", "stages", stage, block, "branch", i, "conv"):
            return (f"{prefix}layer{stage + 1}.{block}.conv{i + 1}",)
        case ("backbone", "stages", stage, block, "branch", i, "norm"):
            return (f"{prefix}layer{stage + 1}.{block}.bn{i + 1}",)
        case ("backbone", "stages", stage, block, "shortcut", "conv"):
            return (f"{prefix}layer{stage + 1}.{block}.downsample.0",)
        case ("backbone", "stages", stage, block, "shortcut", "norm"):
            return (f"{prefix}layer{stage + 1}.{block}.downsample.1",)
    return ()


def _vgg_places(blocks: tuple[int, ...]) -> list[int]:
    """Where the convolutions stand: each is followed by a ReLU, and each block by a pool."""
    return [2 * (sum(blocks[:stage]) + i) + stage for stage, count in enumerate(blocks) for i in range(count)]


def _torchvision_vgg(layer: Layer, blocks: tuple[int, ...], prefix: str) -> Names:
    match layer:
        case ("backbone", "stages", stage, i) if stage < len(blocks) and i < blocks[stage]:
            return (f"{prefix}{_vgg_places(blocks)[sum(blocks[:stage]) + i]}",)
    return ()


def _torchvision(layer: Layer, structure: Structure) -> Names:
    match layer:
        case ("backbone", "stages", _, _) if structure.vgg_blocks:
            return _torchvision_vgg(layer, structure.vgg_blocks, "backbone.body.")
        case ("backbone", *_):
            return _torchvision_resnet(layer, "backbone.body.")
        case ("fpn", "lateral", i):
            return f"backbone.fpn.inner_blocks.{i}.0", f"backbone.fpn.inner_blocks.{i}"
        case ("fpn", "lateral_norms", i):
            return (f"backbone.fpn.inner_blocks.{i}.1",)
        case ("fpn", "output", i):
            return f"backbone.fpn.layer_blocks.{i}.0", f"backbone.fpn.layer_blocks.{i}"
        case ("fpn", "output_norms", i):
            return (f"backbone.fpn.layer_blocks.{i}.1",)
        case ("rpn", "convolutions", 0):
            return "rpn.head.conv.0.0", "rpn.head.conv"
        case ("rpn", "convolutions", i):
            return (f"rpn.head.conv.{i}.0",)
        case ("rpn", "objectness"):
            return ("rpn.head.cls_logits",)
        case ("rpn", "deltas"):
            return ("rpn.head.bbox_pred",)
        case ("box_head", "convolutions", i):
            return (f"roi_heads.box_head.{i}.0",)
        case ("box_head", "norms", i):
            return (f"roi_heads.box_head.{i}.1",)
        case ("box_head", "hidden", i) if structure.box_convolutions:  # behind them stand a flattening and ReLUs
            return (f"roi_heads.box_head.{structure.box_convolutions + 1 + 2 * i}",)
        case ("box_head", "hidden", i):
            return (f"roi_heads.box_head.fc{i + 6}",)
        case ("box_head", "classes"):
            return ("roi_heads.box_predictor.cls_score",)
        case ("box_head", "deltas"):
            return ("roi_heads.box_predictor.bbox_pred",)
        case ("mask_head", "convolutions", i):
            return f"roi_heads.mask_head.{i}.0", f"roi_heads.mask_head.mask_fcn{i + 1}"
        case ("mask_head", "norms", i):
            return (f"roi_heads.mask_head.{i}.1",)
        case ("mask_head", "upsample"):
            return ("roi_heads.mask_predictor.conv5_mask",)
        case ("mask_head", "logits"):
            return ("roi_heads.mask_predictor.mask_fcn_logits",)
        case ("keypoint_head", "convolutions", i):
            return (f"roi_heads.keypoint_head.{2 * i}",)
        case ("keypoint_head", "upsample"):
            return ("roi_heads.keypoint_predictor.kps_score_lowres",)
    return ()


def _keras_resnet(layer: Layer) -> Names:
    match layer:
        case ("backbone", "stem", "conv"):
            return ("conv1",)
        case ("backbone", "stem", "norm"):
            return ("bn_conv1",)
        case ("backbone", "stages", stage, block, "branch", i, kind) if i < 3:
            return (f"{_KERAS_KIND[kind]}{stage + 2}{_letter(block)}_branch2{'abc'[i]}",)
        case ("backbone", "stages", stage, block, "shortcut", kind):
            return (f"{_KERAS_KIND[kind]}{stage + 2}{_letter(block)}_branch1",)
    return ()


_KERAS_KIND = {"conv": "res", "norm": "bn"}


def _letter(number: int) -> str:
    """0 is a. Blocks of ResNet-152 go beyond z, and Matterport has none."""
    return chr(ord("a") + number)


def _matterport(layer: Layer, structure: Structure) -> Names:
    match layer:
        case ("backbone", *_):
            return _keras_resnet(layer)
        case ("fpn", "lateral", i):
            return (f"fpn_c{i + 2}p{i + 2}",)
        case ("fpn", "output", i):
            return (f"fpn_p{i + 2}",)
        case ("rpn", "convolutions", 0):
            return ("rpn_conv_shared",)
        case ("rpn", "objectness"):
            return ("rpn_class_raw",)
        case ("rpn", "deltas"):
            return ("rpn_bbox_pred",)
        case ("box_head", "convolutions", i):
            return (f"mrcnn_class_conv{i + 1}",)
        case ("box_head", "norms", i):
            return (f"mrcnn_class_bn{i + 1}",)
        case ("box_head", "classes"):
            return ("mrcnn_class_logits",)
        case ("box_head", "deltas"):
            return ("mrcnn_bbox_fc",)
        case ("mask_head", "convolutions", i):
            return (f"mrcnn_mask_conv{i + 1}",)
        case ("mask_head", "norms", i):
            return (f"mrcnn_mask_bn{i + 1}",)
        case ("mask_head", "upsample"):
            return ("mrcnn_mask_deconv",)
        case ("mask_head", "logits"):
            return ("mrcnn_mask",)
    return ()


def _multimodallearning(layer: Layer, structure: Structure) -> Names:
    match layer:
        case ("backbone", "stem", "conv"):
            return ("fpn.C1.0",)
        case ("backbone", "stem", "norm"):
            return ("fpn.C1.1",)
        case ("backbone", "stages", stage, *rest):
            (name,) = _torchvision_resnet(("backbone", "stages", 0, *rest), "") or ("",)
            return (name.replace("layer1", f"fpn.C{stage + 2}", 1),) if name else ()
        case ("fpn", "lateral", i):
            return (f"fpn.P{i + 2}_conv1",)
        case ("fpn", "output", i):
            return (f"fpn.P{i + 2}_conv2.1",)
        case ("rpn", "convolutions", 0):
            return ("rpn.conv_shared",)
        case ("rpn", "objectness"):
            return ("rpn.conv_class",)
        case ("rpn", "deltas"):
            return ("rpn.conv_bbox",)
        case ("box_head", "convolutions", i):
            return (f"classifier.conv{i + 1}",)
        case ("box_head", "norms", i):
            return (f"classifier.bn{i + 1}",)
        case ("box_head", "classes"):
            return ("classifier.linear_class",)
        case ("box_head", "deltas"):
            return ("classifier.linear_bbox",)
        case ("mask_head", "convolutions", i) if i < 4:  # the fifth are the logits
            return (f"mask.conv{i + 1}",)
        case ("mask_head", "norms", i):
            return (f"mask.bn{i + 1}",)
        case ("mask_head", "upsample"):
            return ("mask.deconv",)
        case ("mask_head", "logits"):
            return ("mask.conv5",)
    return ()


def _detectron2_resnet(layer: Layer, prefix: str) -> Names:
    match layer:
        case ("backbone", "stem", kind):
            return (f"{prefix}stem.conv1{_D2_KIND[kind]}",)
        case ("backbone", "stages", stage, block, "branch", i, kind):
            return (f"{prefix}res{stage + 2}.{block}.conv{i + 1}{_D2_KIND[kind]}",)
        case ("backbone", "stages", stage, block, "shortcut", kind):
            return (f"{prefix}res{stage + 2}.{block}.shortcut{_D2_KIND[kind]}",)
    return ()


_D2_KIND = {"conv": "", "norm": ".norm"}


def _detectron2(layer: Layer, structure: Structure) -> Names:
    match layer:
        case ("backbone", *_):
            return _detectron2_resnet(layer, "backbone.bottom_up.")
        case ("fpn", "lateral", i):
            return (f"backbone.fpn_lateral{i + 2}",)
        case ("fpn", "lateral_norms", i):
            return (f"backbone.fpn_lateral{i + 2}.norm",)
        case ("fpn", "output", i):
            return (f"backbone.fpn_output{i + 2}",)
        case ("fpn", "output_norms", i):
            return (f"backbone.fpn_output{i + 2}.norm",)
        case ("rpn", "convolutions", 0):
            return "proposal_generator.rpn_head.conv", "proposal_generator.rpn_head.conv.conv0"
        case ("rpn", "convolutions", i):
            return (f"proposal_generator.rpn_head.conv.conv{i}",)
        case ("rpn", "objectness"):
            return ("proposal_generator.rpn_head.objectness_logits",)
        case ("rpn", "deltas"):
            return ("proposal_generator.rpn_head.anchor_deltas",)
        case ("box_head", "convolutions", i):
            return (f"roi_heads.box_head.conv{i + 1}",)
        case ("box_head", "norms", i):
            return (f"roi_heads.box_head.conv{i + 1}.norm",)
        case ("box_head", "hidden", i):
            return (f"roi_heads.box_head.fc{i + 1}",)
        case ("box_head", "classes"):
            return ("roi_heads.box_predictor.cls_score",)
        case ("box_head", "deltas"):
            return ("roi_heads.box_predictor.bbox_pred",)
        case ("mask_head", "convolutions", i):
            return (f"roi_heads.mask_head.mask_fcn{i + 1}",)
        case ("mask_head", "norms", i):
            return (f"roi_heads.mask_head.mask_fcn{i + 1}.norm",)
        case ("mask_head", "upsample"):
            return ("roi_heads.mask_head.deconv",)
        case ("mask_head", "logits"):
            return ("roi_heads.mask_head.predictor",)
        case ("keypoint_head", "convolutions", i):
            return (f"roi_heads.keypoint_head.conv_fcn{i + 1}",)
        case ("keypoint_head", "upsample"):
            return ("roi_heads.keypoint_head.score_lowres",)
    return ()


def _maskrcnn_benchmark(layer: Layer, structure: Structure) -> Names:
    match layer:
        case ("backbone", "stem", _):
            return _torchvision_resnet(layer, "backbone.body.stem.")
        case ("backbone", *_):
            return _torchvision_resnet(layer, "backbone.body.")
        case ("fpn", "lateral", i):
            return (f"backbone.fpn.fpn_inner{i + 1}",)
        case ("fpn", "output", i):
            return (f"backbone.fpn.fpn_layer{i + 1}",)
        case ("rpn", "convolutions", 0):
            return ("rpn.head.conv",)
        case ("rpn", "objectness"):
            return ("rpn.head.cls_logits",)
        case ("rpn", "deltas"):
            return ("rpn.head.bbox_pred",)
        case ("box_head", "hidden", i):
            return (f"roi_heads.box.feature_extractor.fc{i + 6}",)
        case ("box_head", "classes"):
            return ("roi_heads.box.predictor.cls_score",)
        case ("box_head", "deltas"):
            return ("roi_heads.box.predictor.bbox_pred",)
        case ("mask_head", "convolutions", i):
            return (f"roi_heads.mask.feature_extractor.mask_fcn{i + 1}",)
        case ("mask_head", "upsample"):
            return ("roi_heads.mask.predictor.conv5_mask",)
        case ("mask_head", "logits"):
            return ("roi_heads.mask.predictor.mask_fcn_logits",)
        case ("keypoint_head", "convolutions", i):
            return (f"roi_heads.keypoint.feature_extractor.conv_fcn{i + 1}",)
        case ("keypoint_head", "upsample"):
            return ("roi_heads.keypoint.predictor.kps_score_lowres",)
    return ()


def _caffe2_resnet(layer: Layer, structure: Structure) -> Names:
    match layer:
        case ("backbone", "stem", "conv"):
            return ("conv1",)
        case ("backbone", "stem", "norm"):
            return ("res_conv1_bn",)
        case ("backbone", "stages", stage, block, "branch", i, kind) if i < 3:
            return (f"res{stage + 2}_{block}_branch2{'abc'[i]}{_C2_KIND[kind]}",)
        case ("backbone", "stages", stage, block, "shortcut", kind):
            return (f"res{stage + 2}_{block}_branch1{_C2_KIND[kind]}",)
    return ()


_C2_KIND = {"conv": "", "norm": "_bn"}


def _refnet(layer: Layer, structure: Structure) -> Names:
    name = ".".join(map(str, layer))
    return name, f"model/{name}"  # a checkpoint holds them under model/


COUNTER = (r".*\.num_batches_tracked", "a counter that inference does not need")
CLASSIFIER = "the classifier of another task"

CONVENTIONS: dict[str, Convention] = {
    convention.name: convention
    for convention in (
        Convention(
            name="torchvision",
            about="torchvision's detection models, of both generations of names",
            mark=r"backbone\.body\.(conv1|0)\.weight",
            names=_torchvision,
            leaves=TORCH,
            norm_leaves=TORCH,
            ignored=(COUNTER,),
        ),
        Convention(
            name="matterport",
            about="Matterport's Mask_RCNN, Keras",
            mark=r"rpn_conv_shared/kernel",
            names=_matterport,
            leaves=KERAS,
            norm_leaves=KERAS_NORM,
            arrays="keras",
            boxes="yxyx",
            ratio_is="w/h",
            order="size_major",
        ),
        Convention(
            name="detectron2",
            about="Detectron2's R-CNN models",
            mark=r"backbone\.bottom_up\.stem\.conv1\.weight",
            names=_detectron2,
            leaves=TORCH,
            norm_leaves=TORCH,
            background="last",
            order="size_major",
            ignored=(
                COUNTER,
                (r"pixel_(mean|std)", "the configuration says how pixels are normalised"),
                (r".*\.anchor_generator\.cell_anchors\.\d+", "the configuration says what anchors there are"),
            ),
        ),
        Convention(
            name="maskrcnn-benchmark",
            about="maskrcnn-benchmark's models",
            mark=r"backbone\.body\.stem\.conv1\.weight",
            names=_maskrcnn_benchmark,
            leaves=TORCH,
            norm_leaves=TORCH,
            order="ratio_major",
            ignored=((r"rpn\.anchor_generator\.cell_anchors\.\d+", "the configuration says what anchors there are"),),
        ),
        Convention(
            name="multimodallearning",
            about="multimodallearning's pytorch-mask-rcnn",
            mark=r"fpn\.C1\.0\.weight",
            names=_multimodallearning,
            leaves=TORCH,
            norm_leaves=TORCH,
            boxes="yxyx",
            ratio_is="w/h",
            order="size_major",
            ignored=(COUNTER,),
        ),
        Convention(
            name="refnet",
            about="refnet",
            mark=r"(model/)?backbone\.(stem\.conv|stages\.0\.0)\.weight",
            names=_refnet,
            leaves=TORCH | {"running_variance": ".running_variance"},
            norm_leaves=TORCH | {"running_variance": ".running_variance"},
            arrays="refnet",
            background=None,
            ratio_is=None,
            order=None,
            ignored=((r"optimizer/.*|metadata|sha256", "the state of a training"),),
        ),
        Convention(
            name="torchvision-resnet",
            about="torchvision's ResNet classifiers",
            mark=r"layer1\.0\.conv1\.weight",
            names=lambda layer, _: _torchvision_resnet(layer, ""),
            leaves=TORCH,
            norm_leaves=TORCH,
            backbone_only=True,
            ignored=(COUNTER, (r"fc\.(weight|bias)", CLASSIFIER)),
        ),
        Convention(
            name="torchvision-vgg",
            about="torchvision's VGG classifiers",
            mark=r"features\.0\.weight",
            names=lambda layer, structure: _torchvision_vgg(layer, structure.vgg_blocks, "features."),
            leaves=TORCH,
            norm_leaves=TORCH,
            backbone_only=True,
            ignored=((r"classifier\.\d+\.(weight|bias)", CLASSIFIER),),
        ),
        Convention(
            name="keras-resnet",
            about="Keras's ResNet-50 as Matterport names it",
            mark=r"res2a_branch2a/kernel",
            names=lambda layer, _: _keras_resnet(layer),
            leaves=KERAS,
            norm_leaves=KERAS_NORM,
            arrays="keras",
            backbone_only=True,
            ignored=((r"fc1000/(kernel|bias)", CLASSIFIER),),
        ),
        Convention(
            name="detectron2-resnet",
            about="Detectron2's ResNet classifiers",
            mark=r"stem\.conv1\.weight",
            names=lambda layer, _: _detectron2_resnet(layer, ""),
            leaves=TORCH,
            norm_leaves=TORCH,
            backbone_only=True,
            ignored=(COUNTER, (r"(stem\.)?(fc|linear)\.(weight|bias)", CLASSIFIER)),
        ),
        Convention(
            name="caffe2-resnet",
            about="Caffe2's ResNet classifiers, which Detectron and Detectron2 start from",
            mark=r"conv1_w",
            names=_caffe2_resnet,
            leaves=CAFFE2,
            norm_leaves=CAFFE2_NORM,
            backbone_only=True,
            affine_norms=True,
            ignored=(
                (r"(fc1000|pred)_[wb]", CLASSIFIER),
                (r"conv1_b", "Detectron's first convolution has no bias"),
                (r".*_momentum", "the state of a training"),
            ),
        ),
    )
}
"""Every convention, in the order in which a file is tried for it."""


def detect_convention(names: Collection[str]) -> Convention:
    """The convention of a file whose arrays have these names.

    Raises:
        WeightsError: none of the conventions has such names.
    """
    for convention in CONVENTIONS.values():
        if any(re.fullmatch(convention.mark, name) for name in names):
            return convention
    some = ", ".join(sorted(names)[:3]) or "none"
    raise WeightsError(
        f"weights: expected names of one of the conventions {', '.join(CONVENTIONS)}, got {len(names)} names: {some}"
    )


def structure_of(config: ModelConfig) -> Structure:
    """What the names of the layers of a network of `config` depend on."""
    convolutions = config.box_head.convolutions if config.box_head.kind == "fc" else 0
    vgg = CONVOLUTIONS[config.backbone.depth] if config.backbone.family == "vgg" else ()
    return Structure(box_convolutions=convolutions, vgg_blocks=vgg)


def structure_in(names: Collection[str]) -> Structure:
    """The same for the network that a file with arrays of these names is of; the VGG is the one that has most of them."""
    convolutions = sum(bool(re.fullmatch(r"roi_heads\.box_head\.\d+\.0\.weight", name)) for name in names)
    row = [re.fullmatch(r"(?:features|backbone\.body)\.(\d+)\.weight", name) for name in names]
    places = {int(match[1]) for match in row if match}
    vgg = min(CONVOLUTIONS.values(), key=lambda blocks: len(places ^ set(_vgg_places(blocks)))) if places else ()
    return Structure(box_convolutions=convolutions, vgg_blocks=vgg)


def all_layers() -> Iterator[str]:
    """More layers than any of refnet's networks has, so that those of a file are understood that a network lacks."""
    for kind in ("conv", "norm"):
        yield f"backbone.stem.{kind}"
        for stage in range(4):
            for block in range(36):
                yield from (f"backbone.stages.{stage}.{block}.branch.{i}.{kind}" for i in range(3))
                yield f"backbone.stages.{stage}.{block}.shortcut.{kind}"
    yield from (f"backbone.stages.{stage}.{i}" for stage in range(5) for i in range(4))
    for kind in ("lateral", "output", "lateral_norms", "output_norms"):
        yield from (f"fpn.{kind}.{i}" for i in range(4))
    for head in ("rpn", "box_head", "mask_head", "keypoint_head"):
        yield from (f"{head}.{kind}.{i}" for kind in ("convolutions", "norms", "hidden") for i in range(8))
        yield from (f"{head}.{name}" for name in ("objectness", "deltas", "classes", "upsample", "logits"))
