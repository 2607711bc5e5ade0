"""Toy images: a few flat shapes on a flat ground, made as they are asked for.

After the "shapes" sample of Matterport's Mask_RCNN (``samples/shapes/shapes.py``): one to four squares, circles and
triangles of random colour, size and place, thinned out by non-maximum suppression, the later ones in front of
the earlier. Enough to train a detector with masks from scratch in minutes, and nothing to download.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from refnet.arrays import Array
from refnet.data.dataset import KeypointScheme, Sample, checked_index
from refnet.data.streams import stream
from refnet.errors import ConfigError
from refnet.rcnn.masks import tight_box
from refnet.rcnn.structures import GroundTruth

Silhouette: TypeAlias = Callable[[Array, Array], Array]
Box: TypeAlias = tuple[int, int, int, int]

_SLOPE = 1 / np.sin(np.pi / 3)  # half the base of an equilateral triangle of height 2

# Whether a point belongs to a shape of half-size 1 around the origin; x to the right, y down.
SILHOUETTES: dict[str, Silhouette] = {
    "square": lambda x, y: (abs(x) < 1) & (abs(y) < 1),
    "circle": lambda x, y: x * x + y * y < 1,
    "triangle": lambda x, y: (abs(x) < _SLOPE * (y + 1) / 2) & (y < 1),
    "diamond": lambda x, y: abs(x) + abs(y) < 1,
    "ring": lambda x, y: abs(x * x + y * y - 0.625) < 0.375,  # radii 1/2 to 1
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 1 / 3) & (np.maximum(abs(x), abs(y)) < 1),
    "ellipse": lambda x, y: x * x + 4 * y * y < 1,
}


# Where the four keypoints of a shape lie on the same scale: its uppermost point, the outermost ones, its lowest.
KEYPOINTS = KeypointScheme(names=("top", "left", "right", "bottom"), skeleton=((0, 1), (0, 2), (1, 3), (2, 3)))
_TIPS = ((0.0, -1.0), (-1.0, 0.0), (1.0, 0.0), (0.0, 1.0))
_OTHER_TIPS = {
    "triangle": ((0.0, -1.0), (-_SLOPE, 1.0), (_SLOPE, 1.0), (0.0, 1.0)),
    "ellipse": ((0.0, -0.5), (-1.0, 0.0), (1.0, 0.0), (0.0, 0.5)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapesConfig:
    """What the images look like; lengths in pixels. The defaults are Matterport's, except `min_contrast`.

    Raises:
        ConfigError: a field is out of its range.
    """

    image_size: int = 128
    """Height and width."""
    channels: int = 3
    """Of the image; 3 are red, green, blue."""
    classes: tuple[str, ...] = ("square", "circle", "triangle")
    """The shapes to draw, of square, circle, triangle, diamond, ring, cross and ellipse; the first is class 1."""
    min_count: int = 1
    """Least number of shapes drawn at random."""
    max_count: int = 4
    """Greatest number of them, before overlapping ones are removed."""
    min_half_size: int = 20
    """Least half of a shape's height."""
    max_half_size: int = 32
    """Greatest half of it; it is a whole number in between."""
    margin: int = 20
    """Least distance of a shape's centre from the image's edges; the shape itself may reach beyond them."""
    nms_threshold: float = 0.3
    """Of two shapes whose boxes have a greater intersection over union, the one in front stays."""
    min_visible: float = 0.25
    """A shape of which less than this share is visible is left out altogether."""
    min_contrast: int = 16
    """A shape's colour departs by at least this much of 255 from the ground's, in some channel."""
    noise: float = 0.0
    """Standard deviation of the noise added to every pixel, as a share of 255."""
    keypoints: bool = False
    """Whether the objects have keypoints: the top, left, right and bottom of the whole shape."""

    def __post_init__(self) -> None:
        for name, valid, expected in (
            ("image_size", self.image_size >= 1, "at least 1"),
            ("channels", self.channels >= 1, "at least 1"),
            ("min_count", 0 <= self.min_count <= self.max_count, f"0 to max_count ({self.max_count})"),
            (
                "min_half_size",
                2 <= self.min_half_size <= self.max_half_size,  # a flatter ellipse would hold no pixel's centre
                f"2 to max_half_size ({self.max_half_size})",
            ),
            (
                "margin",
                0 <= 2 * self.margin < self.image_size,
                f"0 to less than half of image_size ({self.image_size})",
            ),
            ("nms_threshold", 0 <= self.nms_threshold <= 1, "0 to 1"),
            ("min_visible", 0 < self.min_visible <= 1, "more than 0, at most 1"),
            ("min_contrast", 0 <= self.min_contrast <= 64, "0 to 64"),  # so that most colours stay allowed
            ("noise", 0 <= self.noise <= 1, "0 to 1"),
        ):
            if not valid:
                raise ConfigError(f"shapes: {name} must be {expected}, got {getattr(self, name)!r}")
        unknown = [name for name in self.classes if name not in SILHOUETTES]
        if unknown or not self.classes or len(set(self.classes)) != len(self.classes):
            raise ConfigError(
                f"shapes: classes must be one or more different ones of {', '.join(SILHOUETTES)}, got {self.classes}"
            )


class Shapes:
    """`count` images of shapes; image i depends on the configuration, the seed, the split and `first` + i alone.

    Args:
        config: what the images look like.
        count: number of images.
        seed: 0 to 2**64 - 1.
        split: up to 8 characters, such as "train" or "val"; splits of one seed share no random numbers.
        first: number of the first image, so that a part of a dataset can be made by itself.

    Raises:
        ConfigError: the count or `first` is negative.
        ArgumentError: the seed or the split is out of its range.
    """

    def __init__(
        self, config: ShapesConfig | None = None, *, count: int, seed: int, split: str = "train", first: int = 0
    ) -> None:
        if count < 0 or first < 0:
            raise ConfigError(f"shapes: count and first must be 0 or more, got {count} and {first}")
        stream(seed, split)  # an impossible seed or split should be known now, not at the first image
        self.config = config or ShapesConfig()
        self._count, self._seed, self._split, self._first = count, seed, split, first

    @property
    def class_names(self) -> tuple[str, ...]:
        """The shapes' names; class k is the one at position k - 1."""
        return self.config.classes

    @property
    def keypoints(self) -> KeypointScheme | None:
        """What the keypoints are called, if the shapes have some."""
        return KEYPOINTS if self.config.keypoints else None

    @property
    def category_ids(self) -> tuple[int, ...]:
        """1, 2, ...: a shape's COCO category is its class."""
        return tuple(range(1, len(self.config.classes) + 1))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        number = self._first + checked_index(index, self._count)
        image, truth = draw_shapes(self.config, stream(self._seed, self._split, number))
        return Sample(image=image, truth=truth, image_id=number, file_name=f"{number:06d}.png")


@dataclass(frozen=True, slots=True)
class _Shape:
    kind: int  # position in ShapesConfig.classes
    color: Array
    box: Box  # of the whole silhouette, cut at the image's edges
    window: Array  # the silhouette inside of `box`
    center: Array  # x, y
    half: int  # of its height


def draw_shapes(config: ShapesConfig, rng: np.random.Generator) -> tuple[Array, GroundTruth]:
    """An image (H, W, C) and its objects from back to front; boxes and masks are those of the visible parts.

    A pixel belongs to a shape if its centre does.

    Choice: a shape that the others nearly hide is not drawn, so that no pixel shows an object without a box.
    Matterport's sample gives every shape that survives suppression a mask, even an empty one.
    """
    size = config.image_size
    ground = rng.integers(0, 256, config.channels)
    count = int(rng.integers(config.min_count, config.max_count + 1))
    shapes = [_random_shape(config, ground, rng) for _ in range(count)]

    # From front to back, both decisions depend on the shapes in front alone.
    covered = np.zeros((size, size), bool)
    kept: list[tuple[_Shape, Array]] = []
    for shape in reversed(shapes):
        if any(_iou(shape.box, front.box) > config.nms_threshold for front, _ in kept):
            continue
        x1, y1, x2, y2 = shape.box
        visible = shape.window & ~covered[y1:y2, x1:x2]
        if np.count_nonzero(visible) < config.min_visible * np.count_nonzero(shape.window):
            continue
        covered[y1:y2, x1:x2] |= shape.window
        kept.append((shape, visible))
    kept.reverse()

    image = np.empty((size, size, config.channels), np.uint8)
    image[:] = ground
    masks = np.zeros((len(kept), size, size), bool)
    boxes = np.zeros((len(kept), 4), np.float32)
    for index, (shape, visible) in enumerate(kept):
        x1, y1, x2, y2 = shape.box
        image[y1:y2, x1:x2][visible] = shape.color
        masks[index, y1:y2, x1:x2] = visible
        boxes[index] = np.add(tight_box(visible), (x1, y1, x1, y1))
    if config.noise:
        noise = rng.standard_normal(image.shape, np.float32) * np.float32(255 * config.noise)
        image = np.rint(np.clip(image + noise, 0, 255)).astype(np.uint8)
    classes = np.array([shape.kind + 1 for shape, _ in kept], np.int64)
    points = None
    if config.keypoints:
        points = np.zeros((len(kept), len(KEYPOINTS), 3), np.float32)
        for row, (shape, _), mask in zip(points, kept, masks, strict=True):
            row[:] = _keypoints(shape, config, mask)
    return image, GroundTruth(
        boxes=boxes,
        classes=classes,
        masks=masks,
        crowd=np.zeros(len(kept), bool),
        keypoints=points,
    )


def _keypoints(shape: _Shape, config: ShapesConfig, mask: Array) -> Array:
    """The keypoints of a shape whose visible pixels are `mask`, (4, 3): not labelled outside of the image, and seen if
    the shape is seen a tenth of the way towards its centre."""
    tips = np.array(_OTHER_TIPS.get(config.classes[shape.kind], _TIPS))
    points = shape.center + shape.half * tips
    columns, rows = np.floor(shape.center + 0.9 * shape.half * tips).astype(np.int64).clip(0, config.image_size - 1).T
    inside = ((points >= 0) & (points <= config.image_size)).all(axis=1)
    visibility = np.where(mask[rows, columns], 2, 1)
    labelled = np.concatenate([points, visibility[:, None]], axis=1)
    return np.where(inside[:, None], labelled, 0).astype(np.float32)


def _random_shape(config: ShapesConfig, ground: Array, rng: np.random.Generator) -> _Shape:
    kind = int(rng.integers(len(config.classes)))
    cx, cy = (int(c) for c in rng.integers(config.margin, config.image_size - config.margin, 2))
    half = int(rng.integers(config.min_half_size, config.max_half_size + 1))
    color = rng.integers(0, 256, config.channels)
    while abs(color - ground).max() < config.min_contrast:
        color = rng.integers(0, 256, config.channels)

    reach = int(np.ceil(_SLOPE * half))  # no silhouette is wider
    x1, y1 = max(cx - reach, 0), max(cy - half, 0)
    x2, y2 = min(cx + reach, config.image_size), min(cy + half, config.image_size)
    x = ((np.arange(x1, x2) + 0.5 - cx) / half)[None, :]
    y = ((np.arange(y1, y2) + 0.5 - cy) / half)[:, None]
    window = SILHOUETTES[config.classes[kind]](x, y)
    left, top, right, bottom = tight_box(window)
    return _Shape(kind, color, (x1 + left, y1 + top, x1 + right, y1 + bottom), window[top:bottom, left:right],
        np.array([cx, cy], np.float64), half,
    )  # fmt: skip


def _iou(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)
