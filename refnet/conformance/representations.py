"""The same numbers written down otherwise: orders of coordinates, units of boxes, places of axes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from refnet.arrays import Array
from refnet.rcnn.boxes import from_yxyx, to_normalized, to_xywh


@dataclass(frozen=True, slots=True, kw_only=True)
class Representation:
    """Another way to write a tensor down.

    Attributes:
        name: what is told of it.
        convert: refnet's tensor as it would stand there; `size` is the height and width of the padded input.
    """

    name: str
    convert: Callable[[Array, tuple[int, int]], Array]


def _centered(boxes: Array) -> Array:
    return np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], axis=-1)


def _relative(boxes: Array, size: tuple[int, int]) -> Array:
    scaled: Array = boxes / np.asarray([size[1], size[0]] * 2, boxes.dtype)
    return scaled


def _inclusive(boxes: Array) -> Array:
    last: Array = boxes - np.asarray([0, 0, 1, 1], boxes.dtype)
    return last


BOX_UNITS: Mapping[str, Callable[[Array, tuple[int, int]], Array]] = {
    "": lambda b, size: b,
    "normalised, (box - [0, 0, 1, 1]) / (size - 1)": to_normalized,
    "relative, box / size": _relative,
    "x2, y2 the last pixel, one less": lambda b, size: _inclusive(b),
}
BOX_ORDERS: Mapping[str, Callable[[Array], Array]] = {
    "": lambda b: b,
    "(y1, x1, y2, x2)": from_yxyx,
    "(x, y, width, height)": to_xywh,
    "(center x, center y, width, height)": _centered,
}


def representations(name: str, array: Array) -> Iterator[Representation]:
    """The other ways in which the tensor called `name` is written down by somebody."""
    if array.ndim == 4:
        yield Representation(name="axes (N, C, H, W)", convert=lambda a, _: np.moveaxis(a, -1, 1))
    if name == "input.pixels":
        yield Representation(name="channels in reverse order", convert=lambda a, _: a[..., ::-1])
        yield Representation(
            name="axes (N, C, H, W), channels in reverse order", convert=lambda a, _: np.moveaxis(a[..., ::-1], -1, 1)
        )
    if array.shape[-1:] == (4,) and "deltas" in name:
        yield Representation(name="deltas (dy, dx, dh, dw)", convert=lambda a, _: a[..., [1, 0, 3, 2]])
    if name.endswith("boxes") or name.startswith("anchors.") or name == "input.windows":
        for order, reorder in BOX_ORDERS.items():
            for units, rescale in BOX_UNITS.items():
                if order or units:
                    yield _boxes(" ".join(filter(None, ("boxes", order, units))), reorder, rescale)
    if name.endswith("classes"):
        yield Representation(name="classes counted from 0", convert=lambda a, _: a - 1)
    if name.endswith("class_logits"):
        yield Representation(name="background last", convert=lambda a, _: np.roll(a, -1, axis=-1))
        yield Representation(name="background first", convert=lambda a, _: np.roll(a, 1, axis=-1))


def _boxes(
    name: str, reorder: Callable[[Array], Array], rescale: Callable[[Array, tuple[int, int]], Array]
) -> Representation:
    return Representation(name=name, convert=lambda boxes, size: reorder(rescale(boxes, size)))
