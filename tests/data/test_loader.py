import threading
from itertools import islice

import numpy as np
import pytest

from refnet.data import Shapes, ShapesConfig, batches
from refnet.data.loader import batch_indices, flipped
from refnet.errors import ArgumentError, DataError

SMALL = ShapesConfig(image_size=48, margin=10, min_half_size=6, max_half_size=10, min_count=0)


def take(count, **options):
    dataset = Shapes(SMALL, count=5, seed=1)
    iterator = batches(dataset, **({"batch_size": 2, "seed": 3, "flip_probability": 0.5} | options))
    result = list(islice(iterator, count))
    iterator.close()
    return result


def test_a_resumed_run_goes_on_as_if_never_stopped():
    whole = take(9)
    for (step, expected), (resumed_step, got) in zip(whole[4:], take(5, start_step=4), strict=True):
        assert step == resumed_step
        for a, b in zip(expected, got, strict=True):
            assert a.image_id == b.image_id
            np.testing.assert_array_equal(a.image, b.image)
            np.testing.assert_array_equal(a.truth.boxes, b.truth.boxes)


def test_what_is_loaded_does_not_depend_on_how_far_ahead():
    near, far = take(6, prefetch=1), take(6, prefetch=5)
    assert [[s.image.tobytes() for s in batch] for _, batch in near] == [
        [s.image.tobytes() for s in batch] for _, batch in far
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 7])
def test_every_epoch_visits_each_image_once(batch_size):
    places = [i for step in range(35) for i in batch_indices(step, batch_size, 5, seed=0)]
    epochs = [tuple(places[k : k + 5]) for k in range(0, 35, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len(set(epochs)) > 1
    assert places != [i for step in range(35) for i in batch_indices(step, batch_size, 5, seed=1)]


def test_mirroring_moves_boxes_and_masks_along():
    sample = next(s for s in Shapes(SMALL, count=9, seed=0) if len(s.truth) > 1)
    mirrored = flipped(sample)
    np.testing.assert_array_equal(mirrored.image, sample.image[:, ::-1])
    for box, mask in zip(mirrored.truth.boxes, mirrored.truth.masks, strict=True):
        columns = np.flatnonzero(mask.any(axis=0))
        assert box[0] == columns[0]
        assert box[2] == columns[-1] + 1
    twice = flipped(mirrored)
    np.testing.assert_array_equal(twice.image, sample.image)
    np.testing.assert_array_equal(twice.truth.boxes, sample.truth.boxes)


def test_share_of_mirrored_images():
    def mirrored(probability):
        originals = Shapes(SMALL, count=5, seed=1)
        return sum(
            not np.array_equal(s.image, originals[s.image_id].image)
            for _, batch in take(40, flip_probability=probability)
            for s in batch
            if len(s.truth)
        )

    full = mirrored(1.0)
    assert mirrored(0.0) == 0
    assert 0.3 * full < mirrored(0.5) < 0.7 * full


def test_the_thread_ends_with_the_iterator():
    def loaders():
        return [t for t in threading.enumerate() if t.name.startswith("refnet-loader")]

    iterator = batches(Shapes(SMALL, count=5, seed=1), batch_size=2, seed=0)
    assert not loaders()
    next(iterator)
    assert len(loaders()) == 1
    iterator.close()
    assert not loaders()


class Broken(Shapes):
    def __getitem__(self, index):
        if index == 3:
            raise DataError("image 3 is broken")
        return super().__getitem__(index)


def test_an_error_shows_at_the_batch_that_it_belongs_to():
    bad = next(step for step in range(5) if batch_indices(step, 1, 5, seed=0) == [3])
    iterator = batches(Broken(SMALL, count=5, seed=1), batch_size=1, seed=0)
    assert len(list(islice(iterator, bad))) == bad
    with pytest.raises(DataError, match="image 3 is broken"):
        next(iterator)
    assert not [t for t in threading.enumerate() if t.name.startswith("refnet-loader")]


@pytest.mark.parametrize("option", [
    {"batch_size": 0}, {"start_step": -1}, {"prefetch": 0}, {"flip_probability": 1.5}, {"seed": -1},
])  # fmt: skip
def test_impossible_arguments_are_rejected_at_once(option):
    with pytest.raises(ArgumentError):
        batches(Shapes(SMALL, count=5, seed=1), **({"batch_size": 2, "seed": 3} | option))


def test_an_empty_dataset_is_rejected():
    with pytest.raises(DataError, match="no images"):
        batches(Shapes(SMALL, count=0, seed=1), batch_size=2, seed=0)
