"""Run-length encodings and polygons against pycocotools, and every way in which they can be malformed."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from refnet.data import rle
from refnet.data.write import trace
from refnet.errors import DataError

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=24))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with NumPy 2
@given(masks)
def test_decodes_what_pycocotools_encodes(mask):
    encoded = rle.encode(mask)
    np.testing.assert_array_equal(rle.decode_counts(rle.run_lengths(encoded, *mask.shape), *mask.shape), mask)
    np.testing.assert_array_equal(coco_mask.decode(encoded), mask)


@given(st.lists(st.integers(0, 40_000), min_size=1, max_size=30))
def test_uncompressed_counts_are_those_of_the_compressed_string(counts):
    # runs this long take strings of several characters a number, and differences of either sign
    height, width = 1, sum(counts)
    plain = {"size": [height, width], "counts": counts}
    packed = coco_mask.frPyObjects(plain, height, width)
    packed = {"size": [height, width], "counts": packed["counts"].decode()}
    assert rle.run_lengths(packed, height, width).tolist() == rle.run_lengths(plain, height, width).tolist() == counts


def test_decodes_column_by_column():
    mask = rle.decode_counts(rle.run_lengths({"size": [2, 3], "counts": [1, 2, 3]}, 2, 3), 2, 3)
    assert mask.astype(int).tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("value", [
    "abc", {"counts": [6]}, {"size": [2, 3]},                       # no run-length encoding at all
    {"size": [3, 2], "counts": [6]}, {"size": "23", "counts": [6]},  # another size
    {"size": [2, 3], "counts": [5]}, {"size": [2, 3], "counts": [7]}, {"size": [2, 3], "counts": []},
    {"size": [2, 3], "counts": [8, -2]}, {"size": [2, 3], "counts": [6.0]}, {"size": [2, 3], "counts": [True] * 6},
    {"size": [2, 3], "counts": [10**30]}, {"size": [2, 3], "counts": None},
    {"size": [2, 3], "counts": ""}, {"size": [2, 3], "counts": "7"},      # sums 0 and 7
    {"size": [2, 3], "counts": "6P"},                                 # ends within a number
    {"size": [2, 3], "counts": "6/"}, {"size": [2, 3], "counts": "6p"}, {"size": [2, 3], "counts": "6é"},
    {"size": [2, 3], "counts": "O"}, {"size": [2, 3], "counts": "PPPPPPPP0"},  # negative; longer than any image
    {"size": [2, 3], "counts": "0033O"},                                # the last run is negative
])  # fmt: skip
def test_malformed_run_lengths_are_rejected(value):
    with pytest.raises(DataError, match=r"expected|end in the middle"):
        rle.run_lengths(value, 2, 3)


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12))
def test_any_string_is_decoded_or_rejected(text):
    try:
        counts = rle.run_lengths({"size": [8, 9], "counts": text}, 8, 9)
    except DataError:
        return
    assert counts.sum() == 72
    assert (counts >= 0).all()


@pytest.mark.parametrize("value", [
    [], "[[0, 0]]", [3.0], [[]], [[0, 0, 1, 1]], [[0, 0, 1, 1, 2, 2, 3]], [[0, 0, 1, 1, 2, None]],
    [[0, 0, 1, 1, 2, float("nan")]], [[0, 0, 1, 1, 2, float("inf")]], [[0, 0, 1, 1, 2, "2"]], [[0, 0, 1, 1, 2, 10**400]],
    [[0, 0, 1e9, 0, 1, 1]], [[0, 0, 1e308, -1e308, 1, 1]], [[0, 0, 900_000, 0, 1, 1]],
])  # fmt: skip
def test_malformed_polygons_are_rejected(value):
    with pytest.raises(DataError, match="expected"):
        rle.polygons(value)


def test_a_polygon_may_reach_beyond_the_image():
    outlines = rle.polygons([[-5, -5, 3, -5, 3, 50, -5, 50], [4.0, 0.0, 5.0, 0.0, 5.0, 1.0, 4.0, 1.0]])
    mask = rle.rasterize(outlines, 4, 6)
    assert mask.sum() == 13
    assert mask[:, :3].all()
    assert mask[0, 4]


@given(masks)
def test_traced_outlines_enclose_the_mask(mask):
    area, corners = 0.0, 0
    for outline in trace(mask):
        x, y = outline.T
        area += (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2  # holes count negative
        steps = np.roll(outline, -1, axis=0) - outline
        assert ((steps == 0).sum(axis=1) == 1).all()  # along the pixels' edges
        corners += len(outline)
    assert area == mask.sum()
    assert corners == _corner_count(mask)


def _corner_count(mask):
    """Where four pixels meet there's a corner if one or three of them are set, two if two in a diagonal are."""
    padded = np.pad(mask, 1).astype(int)
    around = padded[1:, 1:] + padded[:-1, 1:] + padded[1:, :-1] + padded[:-1, :-1]
    diagonal = (padded[1:, 1:] == padded[:-1, :-1]) & (padded[1:, 1:] != padded[:-1, 1:]) & (around == 2)
    return (around % 2).sum() + 2 * diagonal.sum()


@pytest.mark.parametrize("count", [0, 1, 7, 450])
def test_a_stack_is_encoded_like_each_of_its_masks(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    soft = np.random.default_rng(count).random((count, 5, 3)).astype(np.float32)
    expected = [rle.encode(mask >= 0.5) for mask in soft]
    assert rle.encode_each(soft, threshold=0.5) == expected
    assert rle.encode_each(soft >= 0.5, threshold=0.5) == expected
    monkeypatch.setattr(rle, "PIECE_BYTES", 40)  # two masks at a time
    assert rle.encode_each(soft, threshold=0.5) == expected
