"""Why two runs of a greedy selection differ: which decisions were so close that rounding may turn them."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from refnet.rcnn.boxes import pairwise_iou

Id = Hashable


@dataclass
class Selection:
    """One run: what it chose from.

    ``margins`` say by how much each candidate passes (0 or more) or fails (below 0) the first cut, in units of scores;
    ``kept`` are the survivors of suppression within each group and of the limit, best first.
    """

    margins: dict[Id, float] = field(default_factory=dict)
    scores: dict[Id, float] = field(default_factory=dict)
    boxes: dict[Id, np.ndarray] = field(default_factory=dict)
    groups: dict[Id, int] = field(default_factory=dict)
    kept: list[Id] = field(default_factory=list)

    def add(self, key: Id, *, margin: float, score: float, box: np.ndarray, group: int) -> None:
        self.margins[key], self.scores[key] = float(margin), float(score)
        self.boxes[key], self.groups[key] = np.asarray(box, np.float64), group

    def overlap(self, first: Id, second: Id) -> float:
        return float(pairwise_iou(self.boxes[first][None], self.boxes[second][None])[0, 0])

    def suppressor(self, key: Id, threshold: float) -> Id | None:
        """The best kept one of its group that overlaps `key` too much, if any."""
        for other in self.kept:
            if other == key or self.scores[other] < self.scores[key]:
                continue
            if self.groups[other] == self.groups[key] and self.overlap(other, key) > threshold:
                return other
        return None


def swapped(first: Selection, second: Selection) -> list[tuple[Id, Id]]:
    """Neighbours in the order of `first`, of those that both keep, that stand the other way round in `second`."""
    place = {key: index for index, key in enumerate(second.kept)}
    common = [key for key in first.kept if key in place]
    return [(a, b) for a, b in pairwise(common) if place[a] > place[b]]


def differing(first: Selection, second: Selection) -> list[Id]:
    """What only one of the two keeps, in the order of the scores."""
    return sorted(set(first.kept) ^ set(second.kept), key=lambda key: -first.scores[key])


def unexplained(
    first: Selection, second: Selection, *, iou_threshold: float, score_rounding: float, overlap_rounding: float
) -> list[str]:
    """The differences between two runs that no near-tie explains.

    A near-tie is a score as close to a cut, or to another score, as `score_rounding`, or an overlap as close to the
    threshold as `overlap_rounding`. What differs may also follow from a better one that differs, which then must have
    its own explanation.
    """
    problems = []
    for a, b in swapped(first, second):
        gap = abs(first.scores[a] - first.scores[b])
        if gap > score_rounding:
            problems.append(f"{a} and {b} change places, their scores are {gap:.2e} apart")
    different = set(differing(first, second))
    for key in differing(first, second):
        keeps, drops = (first, second) if key in first.kept else (second, first)
        if drops.margins[key] < 0:
            gap = keeps.margins[key] - drops.margins[key]
            if gap > score_rounding:
                problems.append(f"{key} fails the first cut of one run only, by {gap:.2e}")
            continue
        other = drops.suppressor(key, iou_threshold)
        if other is not None:
            if other in different:
                continue  # it follows from a better one
            near_order = abs(keeps.scores[other] - keeps.scores[key]) <= score_rounding
            gap = abs(keeps.overlap(other, key) - iou_threshold)
            if not near_order and gap > overlap_rounding:
                problems.append(f"{key} is suppressed by {other} in one run only, {gap:.2e} from the threshold")
            continue
        gap = drops.scores[drops.kept[-1]] - drops.scores[key]
        better = any(keeps.scores[k] > keeps.scores[key] for k in different - {key})
        if abs(gap) > score_rounding and not better:
            problems.append(f"{key} is beyond the limit in one run only, by {gap:.2e}")
    return problems
