"""match_boxes: decisions, equal bit for bit.

The order of operations within an IoU is part of the specification, so any boxes will do. On whole coordinates ties are
common, and of the largest IoU of an object, of boxes with several objects, and of objects with several boxes.
"""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from refnet.arrays import Array
from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.ops import match_boxes
from refnet.testing.calls import Call
from refnet.testing.contract import Contract, Refusal
from refnet.testing.strategies.drawing import Draw, seeds

SQUARE = [0.0, 0, 4, 4]
FORCES = ("none", "first", "ties")


def _call(boxes: Any, objects: Any, force: str = "ties") -> Call:
    return Call.of(
        {"boxes": np.asarray(boxes, np.float64), "objects": np.asarray(objects, np.float64)}, {"force": force}
    )


@st.composite
def _calls(draw: Draw) -> Call:
    images, rows, objects = draw(st.integers(0, 3)), draw(st.integers(0, 24)), draw(st.integers(0, 5))
    rng, whole = np.random.default_rng(draw(seeds)), draw(st.booleans())

    def some(*shape: int) -> Array:
        corners = rng.integers(0, 7, (*shape, 2, 2)).astype(np.float64) if whole else rng.uniform(0, 9, (*shape, 2, 2))
        found = np.sort(corners, axis=-2).reshape(*shape, 4)
        found[rng.random(shape) < 0.1] = 0  # filled up
        return np.asarray(np.where(rng.random((*shape, 1)) < draw(st.sampled_from([0, 0.1])), np.nan, found))

    shared = draw(st.booleans())
    return _call(some(1 if shared else images, rows), some(images, objects), draw(st.sampled_from(FORCES)))


def _row(count: int) -> Array:
    """Squares side by side, each overlapping its neighbours."""
    left = np.arange(count) * 2.0
    return np.stack([left, np.zeros(count), left + 4, np.full(count, 4.0)], axis=1)


def _edges() -> dict[str, Call]:
    half, far = [0.0, 0, 4, 2], [90.0, 90, 99, 99]
    strange = [
        SQUARE, [0, 0, 0, 0], [1, 1, 1, 3], [4, 4, 0, 0], [4, 0, 0, 4], [np.nan, 0, 4, 4], [0, 0, 4, np.nan],
        [-4, -4, 2, 2], [0, 0, 2.0**40, 2.0**40],
        [0, 0, 2.0**-60, 2.0**-60],
    ]  # fmt: skip
    edges = {
        "no image": _call(np.zeros((1, 3, 4)), np.zeros((0, 2, 4))),
        "no box": _call(np.zeros((2, 0, 4)), [[SQUARE], [half]]),
        "no object": _call([[SQUARE, half]], np.zeros((2, 0, 4))),
        "one box of one object": _call([[SQUARE]], [[half]]),
        "images have the same boxes": _call([[SQUARE, half, far]], [[half, far], [SQUARE, SQUARE], [far, half]]),
        "images have boxes of their own": _call([[SQUARE, half], [far, half]], [[half, far], [SQUARE, half]]),
        "a box is the best of several objects": _call(
            [[half, SQUARE, half]], [[[0, 0, 4, 3], [0, 1, 4, 4], far, half]]
        ),
        "objects that fill up": _call([[SQUARE, half]], [[half, [0] * 4, [np.nan] * 4, SQUARE, [0] * 4]]),
        "boxes that touch": _call([[SQUARE]], [[[4, 0, 8, 4], [0, 4, 4, 8], [4, 4, 8, 8]]]),
        "huge coordinates": _call(np.array([[SQUARE, half]]) * 2.0**18, np.array([[half, SQUARE]]) * 2.0**18),
    }
    for force in FORCES:
        edges[f"equal boxes and equal objects, {force}"] = _call([[SQUARE] * 5], [[SQUARE] * 3], force)
        edges[f"strange boxes, {force}"] = _call([strange], [strange], force)
        edges[f"the best box far behind, {force}"] = _call([_row(300)], [[_row(300)[280] - 0.5, far]], force)
        edges[f"ties far apart, {force}"] = _call([[half, *_row(300), half]], [[half, half], [far, SQUARE]], force)
    for count in (31, 32, 33, 127, 128, 129):
        edges[f"{count} boxes"] = _call(
            _row(count)[None], [[[count, 0, count + 3, 4], [2 * count - 1, 0, 2 * count, 1]]]
        )
    for count in (63, 64, 65, 130):
        for force in ("none", "first"):
            edges[f"{count} objects, {force}"] = _call([_row(5)], _row(count)[None, ::-1], force)
    return edges


def _refusals() -> dict[str, Refusal]:
    good = _call([[SQUARE, SQUARE]], [[SQUARE], [SQUARE]])
    return {
        "boxes without an axis of images": Refusal(call=good.changed(boxes=np.ones((2, 4))), error=ShapeError),
        "boxes that aren't (N, B, 4)": Refusal(call=good.changed(boxes=np.ones((1, 2, 5))), error=ShapeError),
        "boxes of another number of images": Refusal(call=good.changed(boxes=np.ones((3, 2, 4))), error=ShapeError),
        "objects that aren't (N, G, 4)": Refusal(call=good.changed(objects=np.ones((2, 4))), error=ShapeError),
        "boxes of integers": Refusal(call=good.changed(boxes=np.ones((1, 2, 4), np.int64)), error=DTypeError),
        "two types": Refusal(call=good.changed(objects=np.ones((2, 1, 4), np.float16)), error=DTypeError),
        "another rule": Refusal(call=good.changed(force="last"), error=ArgumentError),
    }


CONTRACTS = (
    Contract(
        operation=match_boxes,
        inputs=_calls(),
        edges=_edges(),
        refusals=_refusals(),
        why="decisions: the order of operations is part of the specification, so every bit must be equal",
    ),
)
