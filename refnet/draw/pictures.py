"""Objects drawn into their image: translucent masks, boxes, keypoints, and labels with class and score."""

import colorsys
import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from refnet.arrays import Array
from refnet.errors import ArgumentError, DataError
from refnet.rcnn.structures import Detections, GroundTruth

Color: TypeAlias = tuple[int, int, int]
Rectangle: TypeAlias = tuple[float, float, float, float]

READABLE_SIDE = 384  # pixels; smaller images are enlarged to it, so that labels fit
OPACITY = 0.45  # of masks
GAP = 8  # pixels between two pictures side by side
CASING = (0, 0, 0)  # around the lines of a box
CAPTION_COLOR, CAPTION_GROUND = (235, 235, 235), (40, 44, 52)


def draw_detections(
    image: UInt8[Array, "H W C"],
    objects: Detections | GroundTruth,
    class_names: Sequence[str],
    *,
    scale: int | None = None,
    min_score: float = 0.5,
    color_by: Literal["instance", "class"] = "instance",
    skeleton: Sequence[tuple[int, int]] = (),
) -> UInt8[Array, "h w 3"]:
    """`image` with `objects` drawn into it, the best-scored in front.

    Args:
        image: gray, gray with alpha, or with red, green and blue first; further channels aren't shown.
        class_names: that of class k at position k - 1.
        scale: by how much to enlarge; by default so much that the longer side has at least 384 pixels.
        min_score: detections below it are left out. Objects of a ground truth have no score.
        color_by: whether every object has a colour of its own, or every class.
        skeleton: pairs of keypoints, from 0, that a line joins. Keypoints that aren't labelled aren't drawn.

    Raises:
        DataError: masks haven't the image's size, an object's class has no name, or the skeleton names a keypoint that
            isn't there.
        ArgumentError: the scale is below 1.
    """
    height, width = image.shape[:2]
    if scale is None:
        scale = max(1, math.ceil(READABLE_SIDE / max(height, width)))
    if scale < 1:
        raise ArgumentError(f"draw_detections: the scale must be at least 1, got {scale}")
    if objects.masks is not None and len(objects) and objects.masks.shape[1:] != (height, width):
        raise DataError(
            f"draw_detections: masks must have the image's size {(height, width)}, got {objects.masks.shape[1:]}"
        )
    if len(objects) and not 1 <= objects.classes.min() <= objects.classes.max() <= len(class_names):
        raise DataError(
            f"draw_detections: classes must be 1 to {len(class_names)}, got {objects.classes.min()} to {objects.classes.max()}"
        )

    points = objects.keypoints
    if points is not None and max((max(pair) for pair in skeleton), default=0) >= max(points.shape[1], 1):
        raise DataError(f"draw_detections: the skeleton must join keypoints 0 to {points.shape[1] - 1}, got {skeleton}")

    if isinstance(objects, Detections):
        order = np.argsort(objects.scores, kind="stable")
        order = order[objects.scores[order] >= min_score]
    else:
        order = np.arange(len(objects))
    colors = [_color(int(objects.classes[i]) - 1 if color_by == "class" else int(i)) for i in order]

    canvas = _enlarged(_as_rgb(image), scale)
    thickness = max(1, round(max(canvas.shape) / 200))
    if objects.masks is not None:
        for index, color in zip(order, colors, strict=True):
            _lay_mask(canvas, _enlarged(objects.masks[index] >= 0.5, scale), color, thickness)
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    corners = [tuple(float(v) * scale for v in objects.boxes[index]) for index in order]
    for (x1, y1, x2, y2), color in zip(corners, colors, strict=True):
        # a narrow box still needs its right and lower edge behind its left and upper one
        x2, y2 = max(x2 - 1, x1), max(y2 - 1, y1)
        pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=CASING, width=thickness + 2)  # seen on any ground
        pen.rectangle((x1, y1, x2, y2), outline=color, width=thickness)
    if points is not None:
        for index, color in zip(order, colors, strict=True):
            _draw_keypoints(pen, points[index], skeleton, color, scale, thickness)

    font = _font(max(11, round(max(canvas.shape) / 30)))
    placed: list[Rectangle] = []
    labels = [
        (_label(objects, int(i), class_names), c, color) for i, c, color in zip(order, corners, colors, strict=True)
    ]
    for text, box, color in reversed(labels):  # the best choose their places first
        placed.append(_place(pen, text, font, box, picture.size, placed))
        pen.rectangle(placed[-1], fill=color)
        pen.text((placed[-1][0] + 3, placed[-1][1] + 1), text, fill=_text_color(color), font=font)
    return np.asarray(picture).copy()


def draw_side_by_side(
    image: UInt8[Array, "H W C"],
    detections: Detections,
    truth: GroundTruth,
    class_names: Sequence[str],
    *,
    scale: int | None = None,
    min_score: float = 0.5,
    skeleton: Sequence[tuple[int, int]] = (),
) -> UInt8[Array, "h w 3"]:
    """What was found, beside what there is, with a caption above each; classes have colours.

    Raises:
        DataError, ArgumentError: as for :func:`draw_detections`.
    """
    panels = []
    for caption, objects in (("prediction", detections), ("ground truth", truth)):
        drawn = draw_detections(
            image, objects, class_names, scale=scale, min_score=min_score, color_by="class", skeleton=skeleton
        )
        size = max(12, round(max(drawn.shape) / 28))
        strip = Image.new("RGB", (drawn.shape[1], size + 10), CAPTION_GROUND)
        ImageDraw.Draw(strip).text((8, 4), caption, fill=CAPTION_COLOR, font=_font(size))
        panels.append(np.concatenate([np.asarray(strip), drawn]))
    gap = np.full((len(panels[0]), GAP, 3), CAPTION_GROUND, np.uint8)
    return np.concatenate([panels[0], gap, panels[1]], axis=1)


def _as_rgb(image: Array) -> Array:
    return image[:, :, :3] if image.shape[2] >= 3 else np.repeat(image[:, :, :1], 3, axis=2)


def _enlarged(array: Array, scale: int) -> Array:
    return array.repeat(scale, axis=0).repeat(scale, axis=1)


def _lay_mask(canvas: Array, mask: Bool[Array, "h w"], color: Color, thickness: int) -> None:
    """Tint the pixels of `mask` in `canvas`, and fully colour its rim, which is `thickness` pixels wide."""
    ink = np.array(color, np.float32)
    canvas[mask] = np.rint(canvas[mask] * np.float32(1 - OPACITY) + ink * np.float32(OPACITY)).astype(np.uint8)
    inside: Array = np.pad(mask, thickness)
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(inside, 2 * thickness + 1, axis=axis)
        inside = np.asarray(windows.all(axis=-1))
    canvas[mask & ~inside] = color


def _draw_keypoints(
    pen: ImageDraw.ImageDraw,
    points: Float[Array, "K 3"],
    skeleton: Sequence[tuple[int, int]],
    color: Color,
    scale: int,
    thickness: int,
) -> None:
    """A line for each pair of the skeleton of which both are labelled, and a dot for each labelled point."""
    places = [(float(x) * scale, float(y) * scale) for x, y, _ in points]
    labelled = points[:, 2] > 0
    for first, second in skeleton:
        if labelled[first] and labelled[second]:
            pen.line((*places[first], *places[second]), fill=CASING, width=thickness + 2)
            pen.line((*places[first], *places[second]), fill=color, width=thickness)
    for index in np.flatnonzero(labelled):
        x, y = places[index]
        for radius, ink in ((thickness + 2, CASING), (thickness + 1, color)):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)


def _color(number: int) -> Color:
    """Hues a golden section apart never come close soon; brightness alternates so that neighbours differ in two ways."""
    hue = (0.58 + number * 0.618033988749895) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 if number % 2 else 0.7, 0.8 if number % 2 else 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _text_color(ground: Color) -> Color:
    luminance = 0.299 * ground[0] + 0.587 * ground[1] + 0.114 * ground[2]
    return (0, 0, 0) if luminance > 140 else (255, 255, 255)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _label(objects: Detections | GroundTruth, index: int, class_names: Sequence[str]) -> str:
    name = class_names[int(objects.classes[index]) - 1]
    if isinstance(objects, Detections):
        return f"{name} {objects.scores[index]:.2f}"
    return f"{name} (crowd)" if objects.crowd[index] else name


def _place(
    pen: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    box: tuple[float, ...],
    size: tuple[int, int],
    taken: Sequence[Rectangle],
) -> Rectangle:
    """Where a label goes: above its box, inside at the top, inside at the bottom, below; the first place that is free.

    If none is, it goes where it covers least of the other labels.
    """
    width, height = math.ceil(pen.textlength(text, font=font)) + 6, math.ceil(font.getbbox("Ag")[3]) + 4
    x1, y1, _, y2 = box
    left = max(0.0, min(x1, size[0] - width))

    def at(top: float) -> Rectangle:
        top = max(0.0, min(top, size[1] - height))
        return left, top, left + width - 1, top + height - 1

    def covered(place: Rectangle) -> float:
        return sum(
            max(0.0, min(place[2], other[2]) - max(place[0], other[0]) + 1)
            * max(0.0, min(place[3], other[3]) - max(place[1], other[1]) + 1)
            for other in taken
        )

    return min((at(top) for top in (y1 - height, y1, y2 - height, y2)), key=covered)
