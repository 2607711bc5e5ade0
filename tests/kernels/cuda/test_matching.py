"""Matching on a GPU, in the emulator: the specification's bits, few launches, and the host doesn't wait."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refnet.kernels.cuda import matching as kernel
from refnet.kernels.emulator import available, running, standin
from refnet.ops import match_boxes
from refnet.testing.strategies.drawing import seeds
from tests.kernels.test_matching import extreme_boxes, whole_boxes

pytestmark = pytest.mark.skipif(not available(), reason="the emulator compiles with g++, and there is none")

FORCES = ("none", "first", "ties")


def assert_equal_to_specification(boxes: np.ndarray, objects: np.ndarray, force: Any, seed: int = 0) -> None:
    with np.errstate(all="ignore"):
        expected = match_boxes.specification(boxes, objects, force=force)
    with running(mode="check", seed=seed):
        found = kernel.match_boxes(boxes, objects, force=force)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


@given(seeds, st.sampled_from(FORCES), st.booleans(), st.integers(0, 3))
@settings(max_examples=20)
def test_ties_over_blocks_and_over_what_shared_memory_holds(seed, force, shared, schedule) -> None:
    rng = np.random.default_rng(seed)
    images, rows, objects = rng.integers(1, 3), rng.integers(100, 300), rng.integers(0, 70)
    boxes = whole_boxes(rng, 1 if shared else images, rows)
    assert_equal_to_specification(boxes, whole_boxes(rng, images, objects), force, schedule)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("force", FORCES)
def test_extreme_boxes_are_compared_as_numpy_compares_them(dtype, force) -> None:
    boxes = extreme_boxes(dtype)
    assert_equal_to_specification(boxes[None], boxes[None], force)
    assert_equal_to_specification(boxes[None, ::-1], boxes[None], force)


@pytest.mark.parametrize(
    ("force", "launches"),
    [
        ("none", ["best_objects"]),
        ("ties", ["best_objects", "best_boxes"]),
        ("first", ["best_objects", "best_boxes", "force_first"]),
    ],
)
def test_few_launches_and_the_host_does_not_wait(force, launches) -> None:
    rng = np.random.default_rng(0)
    boxes, objects = (standin.asarray(whole_boxes(rng, 2, count)) for count in (200, 5))
    with standin.counting() as counts:
        kernel.match_boxes(boxes, objects, force=force)
    assert counts.synchronizations == 0
    assert {name.partition("<")[0]: count for name, count in counts.launches.items()} == dict.fromkeys(launches, 1)
