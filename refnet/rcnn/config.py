"""Every choice of the network, stage by stage, as frozen records.

Implementations of Mask R-CNN agree on the equations and differ in some thirty conventions, each of which silently
breaks a port. Here each convention is a named field with two or more values, and a preset
(:mod:`refnet.rcnn.presets`) is nothing but a setting of them. The comment behind a field says who uses what:
M is Matterport's Mask_RCNN 2.1, T torchvision, D Detectron2, C ChainerCV, PF py-faster-rcnn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeAlias, get_args, get_origin

from refnet.errors import ConfigError

Four: TypeAlias = tuple[float, float, float, float]


def check(condition: bool, message: str) -> None:
    """Raise a ConfigError that says `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def check_choices(stage: str, record: Any) -> None:
    """Every field whose type lists its values must hold one of them: a misspelt convention isn't another one."""
    for entry in fields(record):
        if get_origin(entry.type) is Literal:
            value, choices = getattr(record, entry.name), get_args(entry.type)
            check(value in choices, f"{stage}{entry.name} must be one of {choices}, got {value!r}")


def _check_fields_positive(stage: str, record: Any, *names: str) -> None:
    for name in names:
        _check_positive(f"{stage}{name}", getattr(record, name))


def _check_fraction(name: str, *values: float) -> None:
    for value in values:
        check(0.0 <= value <= 1.0, f"{name} must lie in [0, 1], got {value}")


def _check_positive(name: str, *values: float) -> None:
    for value in values:
        check(value > 0, f"{name} must be positive, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputConfig:
    """From an image file's pixels to the network's input."""

    channels: int = 3
    """Number of image channels; any number works."""
    resize: Literal["none", "shortest_edge", "square", "pad64", "crop"] = "shortest_edge"
    """none: as given. shortest_edge: the shorter side becomes min_size unless the longer one would exceed max_size
    (T, D). M's modes never shrink below min_size: square is enlarged to min_size at least, shrunk to max_size at
    most, and padded to max_size squared (its default); pad64 is only enlarged; crop is enlarged likewise, and a random
    square of min_size is cut out in training, nothing in detection."""
    min_size: int = 800
    """What resizing aims at for the shorter side. T 800, M 800, PF 600."""
    max_size: int = 1333
    """The limit of the longer side. T, D 1333, M 1024, PF 1000."""
    min_scale: float = 0.0
    """square, pad64 and crop enlarge by this factor at least; 0: no such limit (M's default)."""
    resampling: Literal["normalized", "bytes"] = "normalized"
    """How images are resized. normalized: after normalisation, and outside of the image its edge goes on (T). bytes:
    before it, everything outside counts as 0, no value leaves the range of the image's own, and those of images of
    integers lose their fractions (M)."""
    mask_resampling: Literal["nearest", "corner_aligned"] = "nearest"
    """How true masks are resized. nearest: row i is row floor(i H / h) (T). corner_aligned: the first and the last
    rows and columns lie on one another, row floor(i (H - 1) / (h - 1) + 1/2) (M)."""
    boxes: Literal["scaled", "masks"] = "scaled"
    """Where the true boxes come from. scaled: moved as their image was (T, D). masks: they are drawn around the resized
    masks, and objects of whose masks nothing is left are dropped (M); objects without masks have theirs scaled."""
    pad_divisor: int = 32
    """Height and width are padded to a multiple, but for square; M 64."""
    pad_position: Literal["end", "center"] = "end"
    """Where the image lies in the padding. end: padding below and to the right (T); center (M)."""
    pad_before_normalization: bool = False
    """False: padded pixels are 0 after normalisation (T). True: they are black, so -mean / std after it (M)."""
    value_scale: float = 1.0 / 255.0
    """Bytes are multiplied by this first: 1/255 (T), 1 (M, D)."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Subtracted from the scaled values; one number a channel, or one for all. T as here, M 123.7, 116.8, 103.9."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """One number a channel, or one for all. M: mean 123.7, 116.8, 103.9, std 1."""
    channel_order: Literal["rgb", "bgr"] = "rgb"
    """bgr reverses the channels (D, PF: weights that came from Caffe)."""

    def __post_init__(self) -> None:
        check_choices("input.", self)
        _check_fields_positive("input.", self, "channels", "min_size", "max_size", "pad_divisor")
        check(self.max_size >= self.min_size, f"input.max_size must be at least min_size, got {self.max_size}")
        check(self.min_scale >= 0, f"input.min_scale must not be negative, got {self.min_scale}")
        _check_positive("input.std", *self.std)
        for name, values in (("mean", self.mean), ("std", self.std)):
            check(
                len(values) in (1, self.channels),
                f"input.{name} must have 1 or {self.channels} entries for {self.channels} channels, got {len(values)}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig:
    """A residual network (He et al. 2016, table 1) or VGG (Simonyan and Zisserman 2015, table 1).

    VGG has no norm, no bottlenecks and one padding, so conv_bias, stride_in, padding, zero_init_residual and
    checkpoint say nothing about it, and the fields of the norm only what norms the pyramid and the heads have.
    """

    family: Literal["resnet", "vgg"] = "resnet"
    """resnet (T, M, D), vgg (PF, C, Fast and Faster R-CNN as published)."""
    depth: Literal[11, 13, 16, 18, 19, 34, 50, 101, 152] = 50
    """Layers of the classifier: 18, 34, 50, 101, 152 for resnet, whose blocks are bottlenecks from 50 on (T 50, M 101);
    11, 13, 16, 19 for vgg (PF 16)."""
    width: int = 64
    """Channels of the stem; stages have 1, 2, 4, 8 times as many (4 times that behind a bottleneck). For vgg, of the
    first of five stages, which have 1, 2, 4, 8, 8 times as many."""
    conv_bias: bool = False
    """Convolutions before a batch norm have a bias: False (T, D), True (M)."""
    stride_in: Literal["1x1", "3x3"] = "3x3"
    """Which convolution of a bottleneck strides: the first 1x1 (M, the paper, Caffe weights) or the 3x3 (T)."""
    padding: Literal["symmetric", "same"] = "symmetric"
    """same: the stem's max-pool and the 3x3 convolutions pad as TensorFlow, which for stride 2 on even sizes is only
    below and to the right (M)."""
    norm: Literal["batch", "frozen", "frozen_statistics"] = "frozen"
    """batch: statistics of the batch in training. frozen: fixed statistics, scale and shift (T, D).
    frozen_statistics: fixed statistics only, scale and shift are trained (M's TRAIN_BN = False)."""
    norm_epsilon: float = 1e-5
    """What is added to variances. T, D 1e-5 (0 for T's published COCO_V1 files), M 1e-3."""
    norm_momentum: float = 0.1
    """How much a batch moves the running statistics. T 0.1, M (Keras .99) 0.01."""
    norm_variance: Literal["unbiased", "biased", "keras"] = "unbiased"
    """Which variance of the batch moves the running one: of N values, unbiased is N / (N - 1) times the variance that
    normalises (T, TensorFlow's fused kernel), biased that itself, keras N / (N - 1 - norm_epsilon) times it (M with
    Keras 2.0 to 2.2)."""
    initialization: Literal["kaiming_fan_out", "glorot_uniform"] = "kaiming_fan_out"
    """kaiming_fan_out (T), glorot_uniform (M: the default of Keras)."""
    zero_init_residual: bool = False
    """The last batch norm of each block starts at scale 0, so that blocks start as the identity (Goyal et al. 2017)."""
    checkpoint: bool = False
    """Gradient checkpointing (Chen et al. 2016): training keeps only the inputs of each residual block, and computes
    what is inside again in the backward pass. Less memory and more time, the same gradients, bit for bit: no
    convention."""

    def __post_init__(self) -> None:
        check_choices("backbone.", self)
        depths = (11, 13, 16, 19) if self.family == "vgg" else (18, 34, 50, 101, 152)
        check(self.depth in depths, f"backbone.depth must be one of {depths} for {self.family}, got {self.depth}")
        _check_positive("backbone.width", self.width)
        check(self.norm_epsilon >= 0, f"backbone.norm_epsilon must not be negative, got {self.norm_epsilon}")
        _check_fraction("backbone.norm_momentum", self.norm_momentum)


@dataclass(frozen=True, slots=True, kw_only=True)
class FpnConfig:
    """The feature pyramid (Lin et al. 2017)."""

    channels: int = 256
    """Channels of P2 to P6."""
    norm: Literal["none", "batch", "frozen", "frozen_statistics"] = "none"
    """Batch norm behind each convolution, which then has no bias: none (T, D, M), batch (T's v2 models)."""
    initialization: Literal["kaiming_uniform", "glorot_uniform"] = "kaiming_uniform"
    """kaiming_uniform with a = 1 (T), glorot_uniform (M)."""

    def __post_init__(self) -> None:
        check_choices("fpn.", self)
        _check_positive("fpn.channels", self.channels)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorConfig:
    """Reference boxes at every position of every level (Ren et al. 2015, section 3.1.1)."""

    sizes: tuple[tuple[float, ...], ...] = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    """Square roots of the areas, in pixels, for P2 to P6."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Shapes of the anchors of each size; ratio_is says of what."""
    ratio_is: Literal["h/w", "w/h"] = "h/w"
    """h/w (T, D), w/h (M)."""
    center_offset: float = 0.0
    """Centre of the first anchor in strides: 0 (T, M, D), 0.5 (C)."""
    rounding: bool = True
    """Corners about the centre are rounded to whole pixels, half to even: True (T), False (M, D)."""
    order: Literal["ratio_major", "size_major"] = "ratio_major"
    """Order at one position: all sizes of the first ratio first (T), or all ratios of the first size (D)."""
    stride: Literal["nominal", "floor"] = "nominal"
    """nominal: 4, 8, 16, 32, 64. floor: size of the padded input // size of the feature map (T)."""
    step: int = 1
    """Anchors stand at every step-th position of each level, from the first on, and the RPN's first convolution has this
    stride, padded as TensorFlow does: 1 (T, D; M's default), other values by M's RPN_ANCHOR_STRIDE."""

    def __post_init__(self) -> None:
        check_choices("anchors.", self)
        check(len(self.sizes) == 5, f"anchors.sizes must have one entry for each of P2 to P6, got {len(self.sizes)}")
        check(len({len(s) for s in self.sizes}) == 1, "anchors.sizes must have equally many sizes on every level")
        check(bool(self.sizes[0]), "anchors.sizes must not be empty")
        check(bool(self.ratios), "anchors.ratios must not be empty")
        _check_positive("anchors.step", self.step)
        _check_positive("anchors.sizes", *(size for level in self.sizes for size in level))
        _check_positive("anchors.ratios", *self.ratios)

    @property
    def per_position(self) -> int:
        """Anchors at one position."""
        return len(self.ratios) * len(self.sizes[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class RpnConfig:
    """The region proposal network and what becomes of its output (Ren et al. 2015, section 3.1)."""

    convolutions: int = 1
    """Shared 3x3 convolutions: 1 (T, D, M, the paper), 2 (T's v2 models)."""
    channels: int = 256
    """Their width: 256 (T, D), 512 (M)."""
    objectness: Literal["sigmoid", "softmax"] = "sigmoid"
    """One logit (T, D) or two, background first (M, the paper)."""
    delta_std: Four = (1.0, 1.0, 1.0, 1.0)
    """What deltas are divided by as targets and multiplied by when decoded: 1 (T), .1 .1 .2 .2 (M)."""
    delta_clamp: float | None = 4.135166556742356
    """Largest dw, dh before the exponential, log(1000 / 16) (T, D); None: unlimited (M)."""
    initialization: Literal["normal", "glorot_uniform"] = "normal"
    """Normal with a deviation of 0.01 (T, the paper), or Glorot's uniform (M)."""

    scope: Literal["per_level", "global"] = "per_level"
    """Whether the best are taken, and suppress each other, on each level (T, D) or over all levels together (M)."""
    pre_nms_train: int = 2000
    """Proposals that enter NMS in training; T, D 2000 a level, M 6000 in all."""
    pre_nms_test: int = 1000
    """Proposals that enter NMS when detecting; T, D 1000 a level, M 6000 in all."""
    post_nms_train: int = 2000
    """Proposals that remain for an image in training: 2000 (T, M), 1000 (D)."""
    post_nms_test: int = 1000
    """Proposals that remain for an image when detecting."""
    nms_threshold: float = 0.7
    """Of two proposals that overlap by a greater IoU, the better one stays."""
    min_size: float = 1e-3
    """Proposals narrower or lower than this are dropped: 1e-3 (T), 0 (M, D), 16 (PF, C)."""
    clip: Literal["image", "padded"] = "image"
    """Proposals are cut off at the image's own border (T, D) or at that of the padding (M)."""
    padding: Literal["none", "zeros"] = "none"
    """zeros: where fewer than post_nms_test remain, boxes at the origin without extent fill up when detecting; the
    heads look at them as at all others, so that they may become detections (M)."""

    def __post_init__(self) -> None:
        check_choices("rpn.", self)
        counts = ("pre_nms_train", "pre_nms_test", "post_nms_train", "post_nms_test")
        _check_fields_positive("rpn.", self, "convolutions", "channels", *counts)
        _check_positive("rpn.delta_std", *self.delta_std)
        _check_fraction("rpn.nms_threshold", self.nms_threshold)
        check(self.min_size >= 0, f"rpn.min_size must not be negative, got {self.min_size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorTargetConfig:
    """Which anchors should say "object", and which take part in the loss (Ren et al. 2015, section 3.1.2)."""

    positive_iou: float = 0.7
    """From this IoU with an object on, an anchor says object."""
    negative_iou: float = 0.3
    """Below this IoU with every object, it says background; between the two it takes no part."""
    force_best: Literal["ties", "first"] = "ties"
    """Each object's best anchor is positive whatever its IoU: all that tie for it (T, D, M 2.1), or the first only."""
    forced_match: Literal["own_best", "forcing_object"] = "own_best"
    """What a forced anchor regresses to: the object that it itself overlaps most (T, D, M), or the one that
    forced it (the last, where several did), which is what the paper says."""
    border: Literal["keep", "ignore"] = "keep"
    """ignore: anchors that cross the image's border take no part (the paper, PF, C)."""
    crowd: Literal["drop", "avoid"] = "drop"
    """drop: crowds are treated as if they weren't there (T, D). avoid: an anchor or region that overlaps one by
    crowd_iou is not taken for background either (M)."""
    crowd_iou: float = 0.001
    """For crowd avoid: how much overlap is too much."""
    batch_size: int = 256
    """Anchors of an image that take part in the loss."""
    positive_fraction: float = 0.5
    """The share of them that may be positive at most."""

    def __post_init__(self) -> None:
        check_choices("anchor_targets.", self)
        _check_fraction("anchor_targets.positive_iou", self.positive_iou)
        _check_fraction("anchor_targets.negative_iou", self.negative_iou)
        check(
            self.negative_iou <= self.positive_iou,
            f"anchor_targets.negative_iou must be at most positive_iou, got {self.negative_iou}",
        )
        _check_fraction("anchor_targets.positive_fraction", self.positive_fraction)
        _check_positive("anchor_targets.batch_size", self.batch_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoiTargetConfig:
    """Which proposals train the heads, and towards what (Girshick 2015, section 2.3; He et al. 2017, section 3)."""

    append_ground_truth: bool = True
    """The true boxes join the proposals: True (T, D), False (M)."""
    positive_iou: float = 0.5
    """From this IoU with an object on, a region has its class."""
    negative_iou_low: float = 0.0
    """Background has an IoU in [negative_iou_low, positive_iou): 0 (T, D, M), 0.1 (PF)."""
    batch_size: int = 512
    """Regions of an image: 512 (T, D), 200 (M), 128 (PF)."""
    positive_fraction: float = 0.25
    """The share of them that may have an object at most. T, D .25; M .33."""
    negatives: Literal["fill", "ratio"] = "fill"
    """fill: background up to batch_size (T, D). ratio: int(positives / positive_fraction) - positives, so none
    where nothing is positive (M)."""
    crowd: Literal["drop", "avoid"] = "drop"
    """As in AnchorTargetConfig: drop (T, D), avoid (M)."""
    crowd_iou: float = 0.001
    """As in AnchorTargetConfig."""
    padding: Literal["none", "zeros"] = "none"
    """zeros: where fewer than batch_size are found, boxes at the origin without extent fill up, and are trained as
    background (M)."""
    detach: bool = True
    """True: box targets are constants (T, D). False: they depend on the region, the region on the RPN's deltas, and the
    box loss so trains the RPN too, away from regions that are hard to correct (M)."""
    mini_mask: tuple[int, int] | None = None
    """Rows and columns that true masks are cut out and resized to before regions sample them: 56, 56 (M, whose
    USE_MINI_MASK saves memory); None: they are sampled as they are (T, D). For crop_and_resize."""
    mask_sampling: Literal["roi_align", "crop_and_resize"] = "roi_align"
    """How the true mask is resampled inside a region: roi_align, adaptive, not aligned (T); crop_and_resize (M)."""
    mask_values: Literal["soft", "round", "threshold"] = "soft"
    """Targets are left as they are (T), rounded with 0.5 to 0 (M), or 1 from 0.5 on (D)."""

    def __post_init__(self) -> None:
        check_choices("roi_targets.", self)
        _check_fraction("roi_targets.positive_iou", self.positive_iou)
        _check_fraction("roi_targets.negative_iou_low", self.negative_iou_low)
        _check_fraction("roi_targets.positive_fraction", self.positive_fraction)
        check(
            self.negatives == "fill" or self.positive_fraction > 0,
            'roi_targets.positive_fraction must be positive for negatives "ratio", got 0',
        )
        _check_positive("roi_targets.batch_size", self.batch_size)
        if self.mini_mask is not None:
            _check_positive("roi_targets.mini_mask", *self.mini_mask)
            check(
                self.mask_sampling == "crop_and_resize",
                f'roi_targets.mini_mask must be None unless mask_sampling is "crop_and_resize", got {self.mini_mask}',
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoiPoolConfig:
    """From a region of any size to features of one size (He et al. 2017, section 3, RoIAlign)."""

    size: int = 7
    """Bins along each side of the pooled features: 7 for boxes, 14 for masks and keypoints."""
    method: Literal["roi_align", "crop_and_resize", "roi_pool"] = "roi_align"
    """roi_align (T, D), crop_and_resize (M), roi_pool (Fast R-CNN, PF)."""
    sampling_ratio: int = 2
    """Samples along each side of a bin; 0: as many as the bin has pixels. T 2, D 0. For roi_align."""
    aligned: bool = False
    """Shift by half a pixel, so that a pixel's centre is at +0.5: False (T), True (D's ROIAlignV2). For roi_align."""
    level_rounding: Literal["floor", "round"] = "floor"
    """The pyramid level of a box, eq. 1 of Lin et al. 2017: floor (the paper, T, D), round half to even (M)."""
    level_epsilon: float = 1e-6
    """Added before rounding, so that a side of exactly 224 doesn't fall a level by an ulp: 1e-6 (T), 1e-8 (D), 0 (M)."""
    canonical_size: float = 224.0
    """The side of a box, in pixels, that goes to canonical_level; 224: an image of ImageNet."""
    canonical_level: int = 4
    """A box of canonical_size squared goes to this level."""
    box_units: Literal["pixels", "normalized"] = "pixels"
    """In which units area is taken and crop_and_resize reads boxes: pixels; or (box - [0, 0, 1, 1]) divided by
    (width - 1, height - 1) of the padded input (M)."""

    def __post_init__(self) -> None:
        check_choices("pool ", self)
        _check_fields_positive("pool ", self, "size", "canonical_size")
        check(self.sampling_ratio >= 0, f"pool sampling_ratio must not be negative, got {self.sampling_ratio}")
        check(
            self.method != "crop_and_resize" or self.box_units == "normalized",
            'pool box_units must be "normalized" for crop_and_resize, which knows no other',
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxHeadConfig:
    """Class and box of a region (Lin et al. 2017, section 4.2)."""

    kind: Literal["fc", "conv"] = "fc"
    """fc: 3x3 convolutions, if any, then fully connected layers (T, D). conv: a 7x7 and a 1x1 convolution (M), which
    are two fully connected layers that can have a norm."""
    convolutions: int = 0
    """For fc: 3x3 convolutions before the fully connected layers. 0 (T, D), 4 (T's v2 models, D's 4conv1fc)."""
    conv_channels: int = 256
    """Width of those 3x3 convolutions."""
    conv_bias: bool = True
    """Convolutions of either kind have a bias: True (M), False (T's v2 models, D with a norm)."""
    norm: Literal["none", "batch", "frozen", "frozen_statistics"] = "none"
    """Batch norm behind each convolution: frozen_statistics (M; batch when TRAIN_BN is on), batch (T's v2 models)."""
    layers: int = 2
    """For fc: fully connected layers. 2 (T, D), 1 (T's v2 models)."""
    channels: int = 1024
    """Width of the fully connected layers, or, for conv, of the two convolutions."""
    class_agnostic: bool = False
    """One box for all classes instead of one for each."""
    delta_std: Four = (0.1, 0.1, 0.2, 0.2)
    """Deltas are divided by this as targets: the weights 10, 10, 5, 5 of T and D."""
    delta_clamp: float | None = 4.135166556742356
    """As in RpnConfig: log(1000 / 16) (T, D), None (M)."""
    background: Literal["first", "last"] = "first"
    """Where the background stands among the class logits: first (T, M), last (D)."""
    initialization: Literal["torchvision", "detectron", "glorot_uniform"] = "detectron"
    """torchvision: uniform of fan-in throughout (T); detectron: the predictors are normal with deviations .01 and
    .001 (D, the paper); glorot_uniform (M)."""

    def __post_init__(self) -> None:
        check_choices("box_head.", self)
        _check_fields_positive("box_head.", self, "channels", "conv_channels", "layers")
        check(self.convolutions >= 0, f"box_head.convolutions must not be negative, got {self.convolutions}")
        check(
            self.kind == "fc" or (self.convolutions == 0 and self.layers == 2),
            f'box_head.convolutions and layers must be 0 and 2 for kind "conv", which has two convolutions and nothing '
            f"else, got {self.convolutions} and {self.layers}",
        )
        check(
            self.kind == "conv" or self.convolutions > 0 or self.norm == "none",
            f'box_head.norm must be "none" where there are no convolutions, got {self.norm!r}',
        )
        _check_positive("box_head.delta_std", *self.delta_std)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskHeadConfig:
    """A mask for each class inside a region (He et al. 2017, figure 4 right)."""

    enabled: bool = True
    """False: Faster R-CNN."""
    convolutions: int = 4
    """3x3 convolutions before the transposed one."""
    channels: int = 256
    """Their width."""
    norm: Literal["none", "batch", "frozen", "frozen_statistics"] = "none"
    """Batch norm behind each convolution: none (T, D), frozen_statistics (M), batch (T's v2 models; M when TRAIN_BN is
    on)."""
    conv_bias: bool = True
    """The 3x3 convolutions have a bias: True (T, D; M in spite of its norm), False (T's v2 models)."""
    class_agnostic: bool = False
    """One mask for all classes instead of one for each."""
    initialization: Literal["kaiming_fan_out", "glorot_uniform"] = "kaiming_fan_out"
    """kaiming_fan_out (T, D), glorot_uniform (M)."""

    def __post_init__(self) -> None:
        check_choices("mask_head.", self)
        check(self.convolutions >= 0, f"mask_head.convolutions must not be negative, got {self.convolutions}")
        _check_positive("mask_head.channels", self.channels)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeypointHeadConfig:
    """Named points of an object, each a heat map inside of its region (He et al. 2017, section 5)."""

    enabled: bool = False
    """True: Keypoint R-CNN; mask_head.enabled says whether there are masks besides."""
    num_keypoints: int = 17
    """Points of an object; COCO's persons have 17."""
    convolutions: int = 8
    """3x3 convolutions before the transposed one."""
    channels: int = 512
    """Their width."""
    scores: Literal["logit", "probability"] = "logit"
    """How sure a point is: the heat map's logit there (T), or its softmax, 0 to 1, over the map before it is enlarged to
    the region (D), so that large regions don't have smaller probabilities."""

    def __post_init__(self) -> None:
        check_choices("keypoint_head.", self)
        check(self.convolutions >= 0, f"keypoint_head.convolutions must not be negative, got {self.convolutions}")
        _check_fields_positive("keypoint_head.", self, "num_keypoints", "channels")


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """What each loss is divided by, and how they add up (He et al. 2017, section 3: L = Lcls + Lbox + Lmask)."""

    rpn_beta: float = 1.0 / 9.0
    """Where smooth L1 turns from square to linear: 1/9 (T), 1 (M, the paper), 0 (D: plain L1)."""
    rpn_box_denominator: Literal["sampled", "positive_coordinates"] = "sampled"
    """sampled: anchors in the loss (T, D). positive_coordinates: 4 times the positive ones, a mean (M)."""
    box_beta: float = 1.0 / 9.0
    """As rpn_beta, for the box head: 1/9 (T), 1 (M, C), 0 (D)."""
    box_denominator: Literal["sampled", "positive_coordinates"] = "sampled"
    """As rpn_box_denominator, for the regions of the box head: sampled (T, D), positive_coordinates (M)."""
    active_classes: Literal["own_image", "first_image"] = "own_image"
    """For images of data sets with different classes: a region counts in the class loss if the class *predicted* for it
    is active in its own image, or in the first image of the batch (M, where no such region at all gives NaN)."""
    mask_cross_entropy: Literal["logits", "keras", "tf_keras"] = "logits"
    """Of logits (T, D); or of probabilities clipped to [1e-7, 1 - 1e-7], beyond which there is no gradient: keras takes
    their logits again (M with Keras 2.0 to 2.2), tf_keras adds 1e-7 once more inside the logarithm."""
    keypoint_denominator: Literal["visible", "fixed"] = "visible"
    """visible: the points that lie in their region and are visible, a mean (T, D). fixed: as many as there would be at
    most, images · roi_targets.batch_size · roi_targets.positive_fraction · keypoints, so that a point weighs the same
    however many there are (D without NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS)."""
    rpn_class_weight: float = 1.0
    """What the RPN's class loss is multiplied by in the sum."""
    rpn_box_weight: float = 1.0
    """What the RPN's box loss is multiplied by."""
    class_weight: float = 1.0
    """What the box head's class loss is multiplied by."""
    box_weight: float = 1.0
    """What the box head's box loss is multiplied by."""
    mask_weight: float = 1.0
    """What the mask loss is multiplied by."""
    keypoint_weight: float = 1.0
    """What the keypoint loss is multiplied by."""

    def __post_init__(self) -> None:
        check_choices("losses.", self)
        for name in ("rpn_beta", "box_beta"):
            check(getattr(self, name) >= 0, f"losses.{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionConfig:
    """From the heads' output to objects (Ren et al. 2015, section 3.2; He et al. 2017, section 3.1)."""

    classes: Literal["all", "argmax"] = "all"
    """Whether a region may become an object of every class above the threshold (T, D) or of its best only (M)."""
    score_threshold: float = 0.05
    """Less likely objects are dropped. T, D .05 (score > threshold); M .7 (score >= threshold)."""
    score_comparison: Literal[">", ">="] = ">"
    """Whether a score must exceed the threshold (T, D) or reach it (M)."""
    nms_threshold: float = 0.5
    """Of two objects of a class that overlap by a greater IoU, the likelier one stays. T, D .5; M .3."""
    limit: int = 100
    """Objects of an image."""
    min_size: float = 1e-2
    """Narrower or lower boxes are dropped: 1e-2 (T), 0 (M)."""
    round_boxes: bool = False
    """Boxes in the original image are rounded to whole pixels, half to even, and those that lose their area are
    dropped: False (T, D), True (M)."""
    paste: Literal["soft", "hard"] = "soft"
    """soft: the mask is expanded by a pixel and resampled into the image's integer box as probabilities (T).
    hard: resized to the box with rounded corners, and thresholded (M)."""
    mask_threshold: float | None = 0.5
    """A pasted mask is true from here on; None leaves probabilities (T returns those). M .5."""

    def __post_init__(self) -> None:
        check_choices("detections.", self)
        _check_fraction("detections.score_threshold", self.score_threshold)
        _check_fraction("detections.nms_threshold", self.nms_threshold)
        _check_positive("detections.limit", self.limit)
        check(self.min_size >= 0, f"detections.min_size must not be negative, got {self.min_size}")
        if self.mask_threshold is not None:
            _check_fraction("detections.mask_threshold", self.mask_threshold)
        check(
            self.paste == "soft" or self.mask_threshold is not None,
            'detections.mask_threshold must be a number for paste "hard", got None',
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """All stages of Mask R-CNN, in the order of the data flow."""

    num_classes: int = 80
    """Kinds of objects; the background isn't one."""
    box_extent: Literal["continuous", "inclusive", "normalized"] = "continuous"
    """How wide a box is where overlaps and offsets are computed. continuous: x2 - x1 (T, D). inclusive: x2 - x1 + 1, as
    if x2 were the last pixel (PF). normalized: x2 - x1 - 1, from (box - [0, 0, 1, 1]) / (size - 1) (M); anchors are
    given their targets in pixels nevertheless, as M does. normalized also holds when boxes return to the original
    image: centres of its outermost pixels lie on those of the resized one."""
    input: InputConfig = field(default_factory=InputConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    fpn: FpnConfig = field(default_factory=FpnConfig)
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    rpn: RpnConfig = field(default_factory=RpnConfig)
    anchor_targets: AnchorTargetConfig = field(default_factory=AnchorTargetConfig)
    roi_targets: RoiTargetConfig = field(default_factory=RoiTargetConfig)
    box_pool: RoiPoolConfig = field(default_factory=lambda: RoiPoolConfig(size=7))
    mask_pool: RoiPoolConfig = field(default_factory=lambda: RoiPoolConfig(size=14))
    keypoint_pool: RoiPoolConfig = field(default_factory=lambda: RoiPoolConfig(size=14))
    box_head: BoxHeadConfig = field(default_factory=BoxHeadConfig)
    mask_head: MaskHeadConfig = field(default_factory=MaskHeadConfig)
    keypoint_head: KeypointHeadConfig = field(default_factory=KeypointHeadConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    detections: DetectionConfig = field(default_factory=DetectionConfig)

    def __post_init__(self) -> None:
        check_choices("", self)
        _check_positive("num_classes", self.num_classes)


def broadcast(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """One number for all channels, or one for each, as one for each."""
    return tuple(values) * channels if len(values) == 1 else tuple(values)
