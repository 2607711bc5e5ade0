"""How the inputs of the golden vectors under matterport/ are drawn: each from its own name, so only results are stored.

The results were computed by TensorFlow 2.15.1 and Keras 2.15 on a CPU. Weights too follow from the names that they
have in Keras, "conv1/kernel"; here are refnet's parameters by those names, independent of :mod:`refnet.weights`.
"""

import ast
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from refnet.nn import Module
from refnet.rcnn import ModelConfig
from refnet.rcnn.matterport import ImageMeta
from refnet.rcnn.presets import matterport
from refnet.rcnn.trace import Trace
from tests.rcnn.small import vary

FOLDER = Path(__file__).parent / "matterport"


def rng(key: str) -> np.random.Generator:
    """The generator that belongs to a name."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))


def normal(key: str, shape: tuple[int, ...], scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    """Normal numbers, rounded to float32."""
    return (rng(key).standard_normal(shape) * scale + shift).astype(np.float32)


def uniform(key: str, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Uniform numbers, rounded to float32."""
    return rng(key).uniform(low, high, shape).astype(np.float32)


def load(name: str) -> dict[str, np.ndarray]:
    """All arrays of one file of results."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return dict(arrays)


def image(key: str, height: int, width: int) -> np.ndarray:
    """An image of bytes: a mosaic of 8 x 8 pixels with noise."""
    draw = rng("image/" + key)
    tiles = draw.integers(0, 256, (-(-height // 8), -(-width // 8), 3))
    noise = draw.integers(-20, 21, (height, width, 3))
    mosaic = tiles.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    return np.clip(mosaic + noise, 0, 255).astype(np.uint8)


class Unshuffled(np.random.Generator):
    """Chooses the first candidates, as Matterport's layers did where shuffling was switched off."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def choice(self, candidates, count, *, replace):
        return candidates[:count]


class LeavingOut(Unshuffled):
    """Draws by NumPy's old generator, once with each seed, as Matterport does: the candidates to leave out.

    Without seeds left it chooses the first candidates.
    """

    def __init__(self, seeds: Iterable[int]) -> None:
        super().__init__()
        self.seeds = iter(seeds)

    def choice(self, candidates, count, *, replace):
        seed = next(self.seeds, None)
        if seed is None:
            return super().choice(candidates, count, replace=replace)
        left_out = np.random.RandomState(seed).choice(candidates, len(candidates) - count, replace=False)
        return np.setdiff1d(candidates, left_out)


def shape_masks(specs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The masks (G, H, W) of several shapes, each row of `specs` as :func:`shape_mask` takes it."""
    return np.stack([shape_mask(size, *spec) for spec in specs.tolist()])


def unpack(bits: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A boolean array from its packed bits."""
    return np.unpackbits(bits)[: int(np.prod(shape))].reshape(shape).astype(bool)


def assert_stored(golden: dict[str, np.ndarray], name: str, values: np.ndarray, atol: float = 0.0) -> None:
    """`values` are those stored under `name`: all of a small array; of a large one every step-th and its sums."""
    if name in golden:
        np.testing.assert_allclose(values, golden[name], rtol=0, atol=atol)
    else:
        np.testing.assert_array_equal(values.shape, golden[f"{name}.shape"])
        sample = values.reshape(-1)[:: int(golden[f"{name}.step"])]
        np.testing.assert_allclose(sample, golden[f"{name}.s"], rtol=0, atol=atol)
    if f"{name}.chk" in golden:
        allowed = np.full(6, atol * values.size)
        allowed[2] *= 2 * max(1.0, *map(abs, golden[f"{name}.chk"][3:5]))  # of squares, their derivative times as much
        deviations = abs(checks(values) - golden[f"{name}.chk"])
        assert (deviations <= allowed + 1e-12 * abs(golden[f"{name}.chk"])).all(), (name, deviations, allowed)


def traced_meta(trace: Trace, index: int, shape: tuple[int, ...], active: np.ndarray) -> ImageMeta:
    """Matterport's meta data of image `index` of a traced pass, whose own shape was `shape`; its number is 0."""
    height, width, channels = shape
    x1, y1, x2, y2 = map(int, trace["input.windows"][index])
    return ImageMeta(
        image_id=0,
        original_shape=(height, width, channels),
        shape=trace["input.pixels"].shape[1:],
        window=(x1, y1, x2, y2),
        scale=float(trace["input.scales"][index].max()),
        active_classes=active,
    )


def checks(values: np.ndarray) -> np.ndarray:
    """Sum, sum of absolute values and of squares, least, greatest, and a sum weighted by position."""
    flat = np.asarray(values, np.float64).reshape(-1)
    if not flat.size:
        return np.zeros(6)
    weights = (np.arange(flat.size) * 40503) % 65536 / 65536
    return np.array([flat.sum(), abs(flat).sum(), (flat * flat).sum(), flat.min(), flat.max(), (flat * weights).sum()])


def shape_mask(size: tuple[int, int], kind: int, cy: int, cx: int, ry: int, rx: int) -> np.ndarray:
    """The mask of a shape of radii ry, rx about (cy, cx), border included; `kind` is the code of a letter.

    e is an ellipse, r a rectangle, d a diamond, t a triangle that stands on its base.
    """
    y, x = np.ogrid[: size[0], : size[1]]
    y, x = y - cy, x - cx
    return {
        "e": (y * rx) ** 2 + (x * ry) ** 2 <= (rx * ry) ** 2,
        "r": (abs(y) <= ry) & (abs(x) <= rx),
        "d": abs(y) * rx + abs(x) * ry <= rx * ry,
        "t": (abs(y) <= ry) & (2 * ry * abs(x) <= rx * (y + ry)),
    }[chr(kind)]


KERNEL_SCALE = {
    "conv1": 1 / 64,
    "fpn_p2": 0.25,
    "fpn_p3": 0.3125,
    "fpn_p4": 0.5,
    "rpn_class_raw": 0.5,
    "rpn_bbox_pred": 0.375,
    "mrcnn_class_logits": 1.5,
    "mrcnn_bbox_fc": 0.375,
    "mrcnn_mask": 6.0,
}


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of Keras' weight `name`, "layer/kind", in the shape that Keras gives it."""
    layer, kind = name.split("/")
    draw = rng(name)
    if kind == "kernel":
        scale = np.sqrt(2 / np.prod(shape[:-1])) * KERNEL_SCALE.get(layer, 1)
        values = draw.standard_normal(shape) * scale
    elif kind == "gamma":
        values = draw.uniform(0.5, 1, shape) * (0.2 if layer.endswith("_branch2c") else 1)
    elif kind == "moving_variance":
        values = draw.uniform(0.5, 1.5, shape)
    else:
        values = draw.standard_normal(shape) * 0.05
    return values.astype(np.float32)


_LAYERS = {
    r"backbone\.stem\.conv": "conv1",
    r"backbone\.stem\.norm": "bn_conv1",
    r"fpn\.lateral\.(\d)": lambda m: f"fpn_c{int(m[1]) + 2}p{int(m[1]) + 2}",
    r"fpn\.output\.(\d)": lambda m: f"fpn_p{int(m[1]) + 2}",
    r"rpn\.conv(olutions\.0)?": "rpn_conv_shared",
    r"rpn\.objectness": "rpn_class_raw",
    r"rpn\.deltas": "rpn_bbox_pred",
    r"box_head\.convolutions\.(\d)": lambda m: f"mrcnn_class_conv{int(m[1]) + 1}",
    r"box_head\.norms\.(\d)": lambda m: f"mrcnn_class_bn{int(m[1]) + 1}",
    r"box_head\.classes": "mrcnn_class_logits",
    r"box_head\.deltas": "mrcnn_bbox_fc",
    r"mask_head\.convolutions\.(\d)": lambda m: f"mrcnn_mask_conv{int(m[1]) + 1}",
    r"mask_head\.norms\.(\d)": lambda m: f"mrcnn_mask_bn{int(m[1]) + 1}",
    r"mask_head\.upsample": "mrcnn_mask_deconv",
    r"mask_head\.logits": "mrcnn_mask",
}
_KINDS = {"running_mean": "moving_mean", "running_variance": "moving_variance"}


def keras_name(name: str) -> str:
    """ "layer/kind" of refnet's parameter or buffer `name`."""
    layer, leaf = name.rsplit(".", 1)
    block = re.fullmatch(r"backbone\.stages\.(\d)\.(\d+)\.(?:branch\.(\d)|shortcut)\.(conv|norm)", layer)
    if block:
        stage, position, branch, part = block.groups()
        end = "1" if branch is None else "2" + "abc"[int(branch)]
        prefix = "res" if part == "conv" else "bn"
        keras = f"{prefix}{int(stage) + 2}{chr(ord('a') + int(position))}_branch{end}"
        is_norm = part == "norm"
    else:
        keras = next(
            to if isinstance(to, str) else to(match)
            for pattern, to in _LAYERS.items()
            if (match := re.fullmatch(pattern, layer))
        )
        is_norm = ".norm" in layer
    kinds = {"weight": "gamma", "bias": "beta"} if is_norm else {"weight": "kernel", "bias": "bias"}
    return f"{keras}/{(kinds | _KINDS)[leaf]}"


def to_keras(name: str, array: np.ndarray) -> np.ndarray:
    """refnet's `array`, a weight or its gradient, as Keras lays it out; it is its own inverse but for the 7x7 kernel.

    Deltas are ordered (y, x, h, w) there, so the predictors' outputs are swapped in pairs; the transposed convolution
    has its channels the other way round.
    """
    if name.startswith(("rpn.deltas", "box_head.deltas")):
        return array.reshape(*array.shape[:-1], -1, 4)[..., [1, 0, 3, 2]].reshape(array.shape)
    return array.swapaxes(2, 3) if name == "mask_head.upsample.weight" else array


def fill(model: Module) -> None:
    """Give `model` the weights of the rule."""
    arrays: Mapping[str, np.ndarray] = model.state()
    for name, array in arrays.items():
        array[...] = to_keras(name, weight(keras_name(name), to_keras(name, array).shape))


def settings(golden: Mapping[str, np.ndarray]) -> ModelConfig:
    """The network of a file of a whole model, by Matterport's names of what differs from its defaults.

    Three classes; the mask loss is that of the Keras that computed the files.
    """
    theirs = ast.literal_eval(str(golden["config"]))
    ours = {
        "BACKBONE": ("backbone.depth", lambda name: int(name.removeprefix("resnet"))),
        "IMAGE_RESIZE_MODE": ("input.resize", str),
        "IMAGE_MIN_DIM": ("input.min_size", int),
        "IMAGE_MAX_DIM": ("input.max_size", int),
        "POST_NMS_ROIS_INFERENCE": ("rpn.post_nms_test", int),
        "POST_NMS_ROIS_TRAINING": ("rpn.post_nms_train", int),
        "RPN_NMS_THRESHOLD": ("rpn.nms_threshold", float),
        "RPN_TRAIN_ANCHORS_PER_IMAGE": ("anchor_targets.batch_size", int),
        "TRAIN_ROIS_PER_IMAGE": ("roi_targets.batch_size", int),
        "ROI_POSITIVE_RATIO": ("roi_targets.positive_fraction", float),
        "USE_MINI_MASK": ("roi_targets.mini_mask", lambda used: (56, 56) if used else None),
        "DETECTION_MIN_CONFIDENCE": ("detections.score_threshold", float),
        "DETECTION_MAX_INSTANCES": ("detections.limit", int),
    }
    changes = {name: convert(theirs[key]) for key, (name, convert) in ours.items() if key in theirs}
    sizes = ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,))
    changes |= {"anchors.sizes": sizes, "losses.mask_cross_entropy": "tf_keras"}
    return vary(matterport(3, faithful=True), {"input.min_size": 128, "input.max_size": 128, **changes})
