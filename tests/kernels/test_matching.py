"""Matching on a CPU: the specification's bits whatever the size of a tile, and no array of all pairs."""

import tracemalloc
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet.kernels.cpu import KERNELS
from refnet.kernels.cpu import matching as kernel
from refnet.ops import match_boxes
from refnet.testing import check_kernel
from refnet.testing.strategies.drawing import seeds

forces = st.sampled_from(["none", "first", "ties"])


def assert_equal_to_specification(boxes: np.ndarray, objects: np.ndarray, force: str) -> None:
    with np.errstate(all="ignore"):
        expected = match_boxes.specification(boxes, objects, force=force)
    for ours, theirs in zip(kernel.match_boxes(boxes, objects, force=force), expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_the_contract_is_kept() -> None:
    check_kernel(match_boxes, kernel.match_boxes, device="cpu")


def whole_boxes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Boxes of whole coordinates, so that many tie; some have no area."""
    return np.sort(rng.integers(0, 7, (*shape, 2, 2)), axis=-2).reshape(*shape, 4).astype(np.float32)


@given(seeds, st.sampled_from([1, 5, 16, 64]), forces, st.booleans())
def test_tiles_of_any_size_give_the_same(seed, tile, force, shared) -> None:
    rng = np.random.default_rng(seed)
    images, rows, objects = rng.integers(1, 4), rng.integers(0, 40), rng.integers(0, 6)
    with patch.object(kernel, "TILE", tile):
        assert_equal_to_specification(
            whole_boxes(rng, 1 if shared else images, rows), whole_boxes(rng, images, objects), force
        )


@given(seeds, forces)
def test_rows_of_anchors(seed, force) -> None:
    """Boxes in the order of a grid, of which a tile meets few objects."""
    rng = np.random.default_rng(seed)
    y, x = np.divmod(np.arange(400), 20)
    corner = np.stack([x, y], axis=1).repeat(2, axis=0) * 8.0
    anchors = np.concatenate([corner, corner + np.tile([[16.0, 8], [9, 20]], (400, 1))], axis=1).astype(np.float32)
    low = rng.uniform(0, 140, (2, 5, 2))
    objects = np.concatenate([low, low + rng.uniform(1, 60, (2, 5, 2))], axis=2).astype(np.float32)
    with patch.object(kernel, "TILE", 64):
        assert_equal_to_specification(anchors[None], objects, force)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("force", ["none", "first", "ties"])
def test_extreme_boxes_are_compared_as_the_specification_compares_them(dtype, force) -> None:
    """Denormal, huge and infinite areas, corners in the wrong order, coordinates that aren't numbers."""
    boxes = extreme_boxes(dtype)
    for row in range(len(boxes)):
        assert_equal_to_specification(boxes[None], np.roll(boxes, row, axis=0)[None, :7], force)


def extreme_boxes(dtype: type) -> np.ndarray:
    tiny, huge = float(np.finfo(dtype).smallest_subnormal), float(np.finfo(dtype).max)
    side = float(np.sqrt(np.finfo(dtype).smallest_subnormal)) * 3
    corners = [
        [0, 0, 1, 1], [0, 0, tiny, 1], [0, 0, side, side], [0, 0, side, 2 * side], [0, 0, huge, 1], [0, 0, huge, huge],
        [0, 0, np.inf, 1], [-np.inf, 0, np.inf, 1], [2, 2, 1, 1], [2, 0, 1, 3], [0, 3, 3, 0], [np.nan, 0, 1, 1],
        [0, 0, 1, np.nan], [0, 0, 3, 3], [-0.0, -0.0, 1, 1], [1, 1, 1, 1], [0, 0, 1e-12, 1e-12], [0, 0, 2e-12, 1e-12],
    ]  # fmt: skip
    return np.array(corners, dtype)


@pytest.mark.parametrize("shared", [True, False])
def test_memory_is_that_of_a_few_tiles_and_the_results(shared) -> None:
    """And not of all pairs, of which there are 5 million."""
    rng = np.random.default_rng(0)
    images, rows, count = 2, 2**16, 40
    low = rng.uniform(0, 500, (1 if shared else images, rows, 2))
    boxes = np.concatenate([low, low + rng.uniform(8, 90, low.shape)], axis=2).astype(np.float32)
    objects = boxes[0, : images * count].reshape(images, count, 4)
    tracemalloc.start()
    results = kernel.match_boxes(boxes, objects, force="ties")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - sum(result.nbytes for result in results) < 16 * 4 * kernel.TILE < images * rows * count


def test_the_kernel_is_listed() -> None:
    assert KERNELS["match_boxes"] is kernel.match_boxes
