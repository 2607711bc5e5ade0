"""Endless batches for training, loaded ahead in the background, the same at every run and after every resume."""

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from jaxtyping import Int

from refnet.arrays import Array
from refnet.data.dataset import Dataset, KeypointScheme, Sample, keypoint_scheme
from refnet.data.streams import stream
from refnet.errors import ArgumentError, DataError

Batch: TypeAlias = tuple[int, list[Sample]]


def batches(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    flip_probability: float = 0.0,
    prefetch: int = 2,
) -> Iterator[Batch]:
    """Pairs (step, samples) from `start_step` on, without end.

    Each epoch visits all images in an order of its own; a batch at an epoch's end goes on with the next. What
    a step holds depends on the seed and the step alone, so a run that is resumed goes on as if never stopped.
    `prefetch` batches are loaded ahead in one background thread, which ends when the iterator is closed or
    collected. An error while loading a batch is raised where that batch is asked for.

    Args:
        flip_probability: how often an image is mirrored, left to right, with its boxes, masks and keypoints.

    Raises:
        ArgumentError: a parameter is out of its range.
        DataError: the dataset is empty.
    """
    if batch_size < 1 or start_step < 0 or prefetch < 1:
        raise ArgumentError(
            "batches: batch_size and prefetch must be at least 1 and start_step at least 0, "
            f"got {batch_size}, {prefetch} and {start_step}"
        )
    if not 0 <= flip_probability <= 1:
        raise ArgumentError(f"batches: flip_probability must be 0 to 1, got {flip_probability}")
    stream(seed, "order")  # an impossible seed should be known now, not in the background
    if not len(dataset):
        raise DataError("batches: the dataset has no images")
    return _batches(dataset, batch_size, seed, start_step, flip_probability, prefetch)


def _batches(
    dataset: Dataset, batch_size: int, seed: int, start_step: int, flip_probability: float, prefetch: int
) -> Iterator[Batch]:
    scheme = keypoint_scheme(dataset)

    def load(step: int) -> Batch:
        samples = [dataset[index] for index in batch_indices(step, batch_size, len(dataset), seed)]
        return step, [
            flipped(s, scheme) if stream(seed, "flip", step, s.image_id).random() < flip_probability else s
            for s in samples
        ]

    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="refnet-loader")
    try:
        pending: deque[Future[Batch]] = deque()
        for step in itertools.count(start_step):
            pending.append(executor.submit(load, step))
            if len(pending) > prefetch:
                yield pending.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


def batch_indices(step: int, batch_size: int, count: int, seed: int) -> list[int]:
    """Which of `count` images make up the batch of `step`."""
    places = range(step * batch_size, (step + 1) * batch_size)  # in the endless row of shuffled epochs
    epochs = range(places[0] // count, places[-1] // count + 1)
    orders = {epoch: _order(seed, epoch, count) for epoch in epochs}
    return [int(orders[place // count][place % count]) for place in places]


@lru_cache(maxsize=2)  # a batch lies in one epoch or in two that follow each other
def _order(seed: int, epoch: int, count: int) -> Int[Array, " count"]:
    return stream(seed, "order", epoch).permutation(count)


def flipped(sample: Sample, scheme: KeypointScheme | None = None) -> Sample:
    """The mirror image, left to right: x becomes W - x, so a box's right edge becomes its left one.

    A left wrist becomes a right one: keypoints change places as the names in `scheme` say, or stay without a scheme.
    """
    width, truth = sample.image.shape[1], sample.truth
    boxes = truth.boxes.copy()
    boxes[:, [0, 2]] = width - truth.boxes[:, [2, 0]]
    masks = None if truth.masks is None else np.ascontiguousarray(truth.masks[:, :, ::-1])
    image = np.ascontiguousarray(sample.image[:, ::-1])
    points = truth.keypoints
    if points is not None:
        points = points[:, scheme.mirrored()] if scheme is not None else points.copy()
        labelled = points[..., 2] > 0
        points[..., 0] = np.where(labelled, width - points[..., 0], points[..., 0])
    return replace(sample, image=image, truth=replace(truth, boxes=boxes, masks=masks, keypoints=points))
