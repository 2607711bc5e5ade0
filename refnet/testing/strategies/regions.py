"""Hypothesis strategies for what the operations on regions are given: feature maps, boxes, bins, samples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from refnet.testing.strategies.drawing import Draw, seeds

small_extents = st.integers(1, 9)
few_bins = st.integers(1, 4)


@dataclass(frozen=True, kw_only=True)
class Regions:
    """Regions of feature maps.

    Attributes:
        features_shape: (N, H, W, C).
        boxes: (R, 4), float64, in pixels of the input. On the feature map they lie at quarters of a pixel, so that
            samples fall exactly on pixel centres and on the border.
        image_index: (R,).
        size: bins.
    """

    features_shape: tuple[int, int, int, int]
    boxes: np.ndarray
    image_index: np.ndarray
    size: tuple[int, int]
    spatial_scale: float
    sampling_ratio: int
    aligned: bool
    seed: int

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)

    @property
    def sampling(self) -> dict[str, Any]:
        """What ROIAlign is told about samples."""
        return {
            "spatial_scale": self.spatial_scale,
            "sampling_ratio": self.sampling_ratio,
            "aligned": self.aligned,
        }

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return (len(self.boxes), *self.size, self.features_shape[3])

    @property
    def normalized_boxes(self) -> np.ndarray:
        """The boxes in the coordinates of crop_and_resize."""
        _, h, w, _ = self.features_shape
        return self.boxes * self.spatial_scale / np.maximum([w - 1, h - 1, w - 1, h - 1], 1)


@st.composite
def regions(
    draw: Draw,
    least_boxes: int = 0,
    extents: st.SearchStrategy[int] = small_extents,
    bins: st.SearchStrategy[int] = few_bins,
) -> Regions:
    """Any regions of small maps; boxes reach up to two pixels beyond, and can have no area."""
    n, h, w, c = draw(st.integers(1, 3)), draw(extents), draw(extents), draw(st.integers(1, 3))
    scale = draw(st.sampled_from([1.0, 0.5, 0.25]))

    def edges(extent: int) -> st.SearchStrategy[list[int]]:
        quarters = st.integers(-8, 4 * extent + 8)
        return st.lists(quarters, min_size=2, max_size=2).map(sorted)

    quarters = draw(st.lists(st.tuples(edges(w), edges(h)), min_size=least_boxes, max_size=5))
    boxes = np.array([[x1, y1, x2, y2] for (x1, x2), (y1, y2) in quarters], dtype=np.float64).reshape(-1, 4)
    indices = draw(st.lists(st.integers(0, n - 1), min_size=len(boxes), max_size=len(boxes)))
    return Regions(
        features_shape=(n, h, w, c),
        boxes=boxes / 4 / scale,
        image_index=np.array(indices, dtype=np.int64),
        size=(draw(bins), draw(bins)),
        spatial_scale=scale,
        sampling_ratio=draw(st.integers(0, 3)),
        aligned=draw(st.booleans()),
        seed=draw(seeds),
    )


def boxes_away_from_kinks(case: Regions, kinks: Callable[[np.ndarray], list[np.ndarray]], gap: float) -> np.ndarray:
    """As many boxes as `case` has, in pixels of the feature map, drawn anew until they are smooth.

    `kinks` maps (1, 4) to numbers that must all be further than `gap` from an integer.
    """
    rng = np.random.default_rng([case.seed, 1])
    _, h, w, _ = case.features_shape
    boxes: list[np.ndarray] = []
    while len(boxes) < len(case.boxes):
        low = rng.uniform([-1.0, -1.0], [w, h])
        box = np.concatenate([low, low + rng.uniform(0.3, [w + 1, h + 1])])[None]
        numbers = np.concatenate([np.ravel(numbers) for numbers in kinks(box)])
        if (abs(numbers - np.round(numbers)) > gap).all():
            boxes.append(box)
    return np.concatenate(boxes)
