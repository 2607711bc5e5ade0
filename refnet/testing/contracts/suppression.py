"""best_first, nms, batched_nms and batched_nms_padded: decisions, equal bit for bit.

The order of operations within an IoU is part of the specification, so any boxes will do. On whole coordinates and
dyadic thresholds nothing is rounded at all, and IoUs that equal the threshold are common; these calls are exact, for
kernels that take the operations in another order.
"""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from refnet.arrays import Array
from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.ops import batched_nms, batched_nms_padded, best_first, nms
from refnet.testing.calls import Call, Values
from refnet.testing.contract import Contract, Refusal
from refnet.testing.strategies.boxes import clustered_boxes, dyadic_thresholds, scored_boxes
from refnet.testing.strategies.drawing import Draw, kinds, seeds, shapes

WARP_AND_BLOCK = (31, 32, 33, 63, 64, 65)
limits = st.one_of(st.none(), st.integers(0, 20))


def _call(
    boxes: Any, scores: Any, threshold: float, limit: int | None = None, *, groups: Any = None, exact: bool = True
) -> Call:
    arrays = {"boxes": np.array(boxes, np.float64).reshape(-1, 4), "scores": np.array(scores, np.float64)}
    if groups is not None:
        arrays["groups"] = np.asarray(groups)
    return Call.of(arrays, {"iou_threshold": threshold, "limit": limit}, exact=exact)


@st.composite
def _calls(draw: Draw, grouped: bool) -> Call:
    if draw(st.booleans()):
        case, exact = draw(clustered_boxes()), False
        threshold = draw(st.sampled_from([0.3, 0.5, 0.7]))
    else:
        case, exact = draw(scored_boxes(most=20)), True
        threshold = draw(dyadic_thresholds)
    groups = case.groups.astype(draw(st.sampled_from([np.int64, np.int32]))) if grouped else None
    return _call(case.boxes, case.scores, threshold, draw(limits), groups=groups, exact=exact)


def _row(count: int, step: float, width: float) -> Array:
    """Boxes side by side, `step` apart."""
    left = np.arange(count) * step
    return np.stack([left, np.zeros(count), left + width, np.full(count, 4.0)], axis=1)


def _edges(grouped: bool) -> dict[str, Call]:
    square, half = [0, 0, 4, 4], [0, 0, 2, 4]  # IoU 1/2
    cases: dict[str, tuple[Any, Any, float, int | None]] = {
        "no box": ([], [], 0.5, None),
        "one box": ([square], [0.5], 0.5, None),
        "an IoU that equals the threshold": ([square, half], [1, 0.5], 0.5, None),
        "an IoU of 3/10 and a threshold of 0.3": ([[0, 0, 10, 1], [0, 0, 3, 1]], [1, 0.5], 0.3, None),
        "equal boxes": ([square] * 5, [0, 1, 0.5, 1, 0.25], 0.5, None),
        "equal boxes and a threshold of 1": ([square] * 5, [0, 1, 0.5, 1, 0.25], 1.0, None),
        "boxes that touch and a threshold of 0": (_row(6, 4, 4), np.arange(6) / 8, 0.0, None),
        "boxes without area": ([[1, 1, 1, 1], [1, 1, 1, 1], [0, 1, 4, 1], square], [1, 0.5, 0.75, 0.25], 0.0, None),
        "a limit of 0": ([square, [9, 9, 12, 12]], [1, 0.5], 0.5, 0),
        "a limit of 1": ([square, [9, 9, 12, 12]], [0.5, 1], 0.5, 1),
        "a limit above the number of boxes": ([square, [9, 9, 12, 12]], [1, 0.5], 0.5, 100),
        "negative coordinates and scores": ([[-4, -4, 0, 0], [-4, -4, -2, 0], square], [-1, -0.5, -2], 0.25, None),
        "0 and -0 are one score": ([square, [9, 9, 12, 12], [20, 0, 24, 4]], [-0.0, 0.0, -0.0], 0.5, None),
        "infinite scores": ([square, half, [9, 9, 12, 12]], [-np.inf, np.inf, 0], 0.25, None),
        "huge coordinates": (np.array([square, half, [1, 0, 4, 4]]) * 2.0**18, [1, 0.5, 0.25], 0.5, None),
        "a crossing with no area in common": ([[0, 0, 2, 2], [3, 3, 5, 5]], [1, 0.5], 0.0, None),
    }
    places = np.outer(np.arange(130) % 4, [10, 0, 10, 0]) + np.array([0, 0, 4, 4])
    for count in WARP_AND_BLOCK:
        cases[f"{count} boxes, each overlapping its neighbours"] = (_row(count, 1, 2), -np.arange(count), 0.25, None)
        cases[f"{count} boxes of one score, every other kept"] = (_row(count, 2, 3), np.ones(count), 0.125, None)
    cases["130 boxes, apart, the last the best"] = (_row(130, 4, 4), np.arange(130), 0.5, None)
    cases["130 boxes in four places"] = (places, -np.arange(130), 0.5, None)
    cases["130 boxes and a limit of 65"] = (_row(130, 1, 2), -np.arange(130), 0.25, 65)
    calls = {}
    for name, (boxes, scores, threshold, limit) in cases.items():
        groups = np.arange(len(scores)) % 2 * 7 - 3 if grouped else None
        calls[name] = _call(boxes, scores, threshold, limit, groups=groups)
    if grouped:
        calls["equal boxes of as many groups"] = _call([square] * 4, [0, 1, 2, 3], 0.0, groups=[5, -1, 2**30, 0])
    return calls


def _refusals(grouped: bool) -> dict[str, Refusal]:
    boxes, scores = np.ones((3, 4)), np.ones(3)
    groups = np.zeros(3, np.int64) if grouped else None

    def refused(
        error: type, boxes: Any = boxes, scores: Any = scores, numbers: bool = False, **changes: Any
    ) -> Refusal:
        arrays = {"boxes": boxes, "scores": scores}
        if grouped:
            arrays["groups"] = changes.pop("groups", groups)
        call = Call.of(arrays, {"iou_threshold": 0.5, "limit": None, **changes})
        return Refusal(call=call, error=error, reads_numbers=numbers)

    refusals = {
        "boxes that aren't (B, 4)": refused(ShapeError, boxes=np.ones((3, 5))),
        "another number of scores": refused(ShapeError, scores=np.ones(2)),
        "boxes of integers": refused(DTypeError, boxes=np.ones((3, 4), np.int64)),
        "a score that isn't a number": refused(ArgumentError, scores=np.array([1, np.nan, 0]), numbers=True),
        "a threshold above 1": refused(ArgumentError, iou_threshold=1.5),
        "a negative limit": refused(ArgumentError, limit=-1),
    }
    if grouped:
        refusals["groups of floating point"] = refused(DTypeError, groups=np.ones(3))
        refusals["another number of groups"] = refused(ShapeError, groups=np.zeros(2, np.int64))
    return refusals


@st.composite
def _padded_calls(draw: Draw) -> Call:
    images = [draw(_calls(True)) for _ in range(draw(st.integers(0, 3)))]
    parameters = {"iou_threshold": draw(dyadic_thresholds), "limit": draw(st.integers(0, 20))}
    return _padded(images, parameters, extra=draw(st.integers(0, 3)), shuffled=draw(seeds))


def _padded(images: list[Call], parameters: dict[str, Any], *, extra: int = 1, shuffled: int = 0) -> Call:
    """Images of one size: the rows of each, in any places, and between them rows that aren't valid."""
    most = max((len(image["boxes"]) for image in images), default=0) + extra
    boxes, scores = np.full((len(images), most, 4), 3.0), np.full((len(images), most), np.nan)
    groups, valid = np.zeros((len(images), most), np.int64), np.zeros((len(images), most), bool)
    rng = np.random.default_rng(shuffled)
    for n, image in enumerate(images):
        rows = np.sort(rng.permutation(most)[: len(image["boxes"])])
        boxes[n, rows], scores[n, rows], groups[n, rows] = image["boxes"], image["scores"], image["groups"]
        valid[n, rows] = True
    arrays = {"boxes": boxes, "scores": scores, "groups": groups, "valid": valid}
    return Call.of(arrays, parameters, exact=all(image.exact for image in images))


def _padded_edges() -> dict[str, Call]:
    singles = _edges(True)
    edges = {}
    for name, call in singles.items():
        if name[:2] in ("31", "32", "63", "64"):
            continue
        limit = len(call["boxes"]) + 2 if call["limit"] is None else call["limit"]
        edges[name] = _padded([call], {"iou_threshold": call["iou_threshold"], "limit": limit})
    mixed = [
        singles[name] for name in ("no box", "65 boxes, each overlapping its neighbours", "equal boxes", "one box")
    ]
    edges["images of several sizes"] = _padded(mixed, {"iou_threshold": 0.25, "limit": 40}, shuffled=1)
    edges["no image"] = _padded([], {"iou_threshold": 0.5, "limit": 3})
    edges["no row"] = _padded([singles["no box"]], {"iou_threshold": 0.5, "limit": 3}, extra=0)
    flat = _padded([singles["equal boxes"]], {"iou_threshold": 0.5, "limit": 3})
    edges["one image without an axis of images"] = flat.map(lambda _, a: a[0])
    return edges


def _padded_refusals() -> dict[str, Refusal]:
    good = _padded([_edges(True)["equal boxes"]], {"iou_threshold": 0.5, "limit": 3})
    return {
        "boxes that aren't (..., 4)": Refusal(call=good.changed(boxes=np.ones((1, 6, 5))), error=ShapeError),
        "another number of scores": Refusal(call=good.changed(scores=np.ones((1, 5))), error=ShapeError),
        "another number of valid rows": Refusal(call=good.changed(valid=np.ones((1, 5), bool)), error=ShapeError),
        "boxes of integers": Refusal(call=good.changed(boxes=np.ones((1, 6, 4), np.int64)), error=DTypeError),
        "groups of floating point": Refusal(call=good.changed(groups=np.ones((1, 6))), error=DTypeError),
        "valid rows in numbers": Refusal(call=good.changed(valid=np.ones((1, 6))), error=DTypeError),
        "a threshold below 0": Refusal(call=good.changed(iou_threshold=-0.5), error=ArgumentError),
        "a negative limit": Refusal(call=good.changed(limit=-1), error=ArgumentError),
    }


@st.composite
def _score_calls(draw: Draw) -> Call:
    """Scores of a few rows, with many ties or none."""
    shape = (*draw(shapes(least_axes=0))[:1], draw(st.integers(0, 70)))
    values = Values(shape, draw(kinds), draw(seeds)).array()
    return Call.of({"scores": values}, {"limit": draw(st.integers(0, 80))})


def _score_edges() -> dict[str, Call]:
    special = [0.0, np.nan, -0.0, np.inf, -np.inf, 0.0, -np.nan, 1.0, -np.inf, 2.0**-140, -(2.0**-140), np.inf]
    rows = Values((3, 300), "integers", 5).array()
    scores = {
        "no score": np.zeros(0),
        "no row": np.zeros((0, 5)),
        "rows of no score": np.zeros((2, 0)),
        "one score": np.ones(1),
        "equal scores": np.ones((2, 5)),
        "what isn't a number is last": np.array(special),
        "ties over the end": rows,
    }
    calls = {
        f"{name}, {limit} of them": Call.of({"scores": array}, {"limit": limit})
        for name, array in scores.items()
        for limit in (0, 1, 4, 300)
    }
    calls["three axes"] = Call.of({"scores": Values((2, 3, 40), "integers", 6).array()}, {"limit": 7})
    return calls


WHY = "decisions: the order of operations is part of the specification, so every bit must be equal"

CONTRACTS = (
    Contract(operation=nms, inputs=_calls(False), edges=_edges(False), refusals=_refusals(False), why=WHY),
    Contract(
        operation=best_first,
        inputs=_score_calls(),
        edges=_score_edges(),
        refusals={
            "a negative limit": Refusal(call=Call.of({"scores": np.ones(3)}, {"limit": -1}), error=ArgumentError)
        },
        why="an order, with a rule for ties",
    ),
    Contract(operation=batched_nms, inputs=_calls(True), edges=_edges(True), refusals=_refusals(True), why=WHY),
    Contract(
        operation=batched_nms_padded,
        inputs=_padded_calls(),
        edges=_padded_edges(),
        refusals=_padded_refusals(),
        why=WHY,
    ),
)
