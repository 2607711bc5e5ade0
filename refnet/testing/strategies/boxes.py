"""Hypothesis strategies for boxes and scores on which every decision is exact: whole pixels, quarters, ties."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from refnet.testing.strategies.drawing import Draw, seeds

dyadic_thresholds = st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75, 1.0])


@dataclass(frozen=True, kw_only=True)
class ScoredBoxes:
    """Boxes (B, 4) with whole coordinates, scores (B,) in quarters, groups (B,)."""

    boxes: np.ndarray
    scores: np.ndarray
    groups: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


@st.composite
def scored_boxes(draw: Draw, most: int = 12, groups: int = 3, distinct_scores: bool = False) -> ScoredBoxes:
    """Few boxes on a small grid, so that they meet; some have no area, some are equal."""
    edges = st.lists(st.integers(0, 6), min_size=2, max_size=2).map(sorted)
    box = st.tuples(edges, edges).map(lambda e: [e[0][0], e[1][0], e[0][1], e[1][1]])
    boxes = draw(st.lists(box, max_size=most))
    count = len(boxes)
    if distinct_scores:
        quarters = draw(st.permutations(range(count)))
    else:
        quarters = draw(st.lists(st.integers(-4, 4), min_size=count, max_size=count))
    return ScoredBoxes(
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        scores=np.array(quarters, dtype=np.float64) / 4,
        groups=np.array(draw(st.lists(st.integers(0, groups - 1), min_size=count, max_size=count)), dtype=np.int64),
    )


@st.composite
def clustered_boxes(draw: Draw, most: int = 70) -> ScoredBoxes:
    """Boxes around a few objects, as a detector gives them, of any coordinates; scores with ties; 5 groups."""
    count, rng = draw(st.integers(0, most)), np.random.default_rng(draw(seeds))
    centres = rng.uniform(0, 400, (6, 2))[rng.integers(0, 6, count)] + rng.normal(0, 8, (count, 2))
    sides = abs(rng.normal(60, 20, (count, 2)))
    return ScoredBoxes(
        boxes=np.concatenate([centres - sides / 2, centres + sides / 2], axis=1),
        scores=np.round(rng.uniform(size=count), 2),
        groups=np.asarray(rng.integers(0, 5, count)),
    )
