"""Geometry of boxes: literal cases, properties, an oracle that counts pixels, and Matterport's golden vectors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet.rcnn.boxes import (
    areas,
    clip,
    clip_widened,
    decode,
    encode,
    from_normalized,
    from_xywh,
    from_yxyx,
    is_at_least,
    narrow,
    pairwise_coverage,
    pairwise_intersection,
    pairwise_iou,
    to_normalized,
    to_xywh,
    widen,
)
from tests.golden.matterport_rules import load

ONES, MATTERPORT = (1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)
coordinates = st.floats(-500, 500, allow_subnormal=False)
extents = st.floats(0.1, 500)
whole_boxes = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 6), st.integers(0, 6)).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)


@st.composite
def boxes_of_some_size(draw: st.DrawFn) -> list[float]:
    x, y = draw(coordinates), draw(coordinates)
    return [x, y, x + draw(extents), y + draw(extents)]


def array(*boxes: list[float]) -> np.ndarray:
    return np.array(boxes, np.float64).reshape(-1, 4)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7),
        ([0, 0, 2, 2], [0, 0, 2, 2], 1.0),
        ([0, 0, 2, 2], [0, 0, 2, 1], 0.5),
        ([0, 0, 2, 2], [2, 0, 4, 2], 0.0),  # they touch
        ([0, 0, 2, 2], [5, 5, 6, 6], 0.0),
        ([0, 0, 2, 2], [1, 1, 1, 1], 0.0),  # without area, inside
        ([1, 1, 1, 1], [1, 1, 1, 1], 0.0),  # 0 / 0
        ([0, 0, 10, 10], [0, 0, 10, 7], 0.7),
    ],
)
def test_iou_of_two_boxes(a, b, expected):
    assert pairwise_iou(array(a), array(b)) == expected


@pytest.mark.convention("box_extent")
@pytest.mark.parametrize(
    ("a", "b", "continuous", "inclusive"),
    [
        ([0, 0, 1, 1], [1, 1, 2, 2], 0.0, 1 / 7),  # 2x2 pixels each, of which they share one
        ([3, 3, 3, 3], [3, 3, 3, 3], 0.0, 1.0),  # one pixel
        ([0, 0, 9, 9], [0, 0, 9, 4], 36 / 81, 0.5),
    ],
)
def test_an_inclusive_box_covers_its_last_pixel(a, b, continuous, inclusive):
    a, b = array(a), array(b)
    assert pairwise_iou(widen(a, "continuous"), widen(b, "continuous")) == continuous
    assert pairwise_iou(widen(a, "inclusive"), widen(b, "inclusive")) == inclusive
    np.testing.assert_array_equal(narrow(widen(a, "inclusive"), "inclusive"), a)
    assert narrow(a, "continuous") is a


@given(st.lists(whole_boxes, max_size=4), st.lists(whole_boxes, max_size=4))
def test_overlap_counts_pixels(a, b):
    def pixels(box):
        image = np.zeros((16, 16), bool)
        image[box[1] : box[3], box[0] : box[2]] = True
        return image

    common = np.array([[(pixels(p) & pixels(q)).sum() for q in b] for p in a], float).reshape(len(a), len(b))
    union = np.array([[(pixels(p) | pixels(q)).sum() for q in b] for p in a], float).reshape(len(a), len(b))
    own = np.array([pixels(p).sum() for p in a], float)
    np.testing.assert_array_equal(areas(array(*a)), own)
    np.testing.assert_array_equal(pairwise_intersection(array(*a), array(*b)), common)
    np.testing.assert_array_equal(pairwise_iou(array(*a), array(*b)), common / np.maximum(union, 1))
    np.testing.assert_array_equal(pairwise_coverage(array(*a), array(*b)), common / np.maximum(own, 1)[:, None])


def test_encode_by_hand():
    anchor, box = array([0, 0, 10, 20]), array([5, 5, 25, 15])
    np.testing.assert_allclose(encode(box, anchor, ONES), [[1.0, 0.0, np.log(2), np.log(0.5)]])
    np.testing.assert_allclose(encode(box, anchor, MATTERPORT), [[10.0, 0.0, 5 * np.log(2), -5 * np.log(2)]])


@given(boxes_of_some_size(), boxes_of_some_size(), st.sampled_from([ONES, MATTERPORT]))
def test_decode_inverts_encode(box, anchor, std):
    box, anchor = array(box), array(anchor)
    # a few roundings, each of the largest number involved: coordinates up to 1000, and the extents' logarithms
    np.testing.assert_allclose(decode(encode(box, anchor, std), anchor, std, None), box, rtol=0, atol=1e-11)


@given(boxes_of_some_size(), st.lists(st.floats(-4, 4), min_size=4, max_size=4))
def test_encode_inverts_decode(anchor, deltas):
    anchor, deltas = array(anchor), array(deltas)
    # extents are at least 0.1 / e^4 = 0.0018, of coordinates up to 2500, which are known to 5e-13
    np.testing.assert_allclose(encode(decode(deltas, anchor, ONES, None), anchor, ONES), deltas, rtol=0, atol=1e-9)


def test_clamp_limits_growth_only():
    anchor = array([0, 0, 16, 16])
    clamp = float(np.log(1000 / 16))
    grown = decode(array([0, 0, 50, 50]), anchor, ONES, clamp)
    np.testing.assert_allclose(grown, [[-492, -492, 508, 508]])
    np.testing.assert_allclose(
        decode(array([0, 0, -50, 1]), anchor, ONES, clamp), decode(array([0, 0, -50, 1]), anchor, ONES, None)
    )
    # the clamp applies to the logarithm itself, after multiplication by the deviation
    np.testing.assert_allclose(
        decode(array([0, 0, 50, 50]), anchor, (1.0, 1.0, 0.01, 0.01), clamp),
        [[8 - 8 * np.e**0.5, 8 - 8 * np.e**0.5, 8 + 8 * np.e**0.5, 8 + 8 * np.e**0.5]],
    )
    with np.errstate(over="ignore", invalid="ignore"):
        assert not np.isfinite(decode(array([0, 0, 5000, 0]), anchor, ONES, None)).all()


def test_clip_and_size():
    boxes = array([-5, -5, 5, 5], [3, 4, 50, 60], [20, 20, 30, 30])
    window = np.array([1.0, 2.0, 10.0, 20.0])
    np.testing.assert_array_equal(clip(boxes, window), [[1, 2, 5, 5], [3, 4, 10, 20], [10, 20, 10, 20]])
    np.testing.assert_array_equal(is_at_least(clip(boxes, window), 3.0), [True, True, False])
    assert is_at_least(array([0, 0, 4, 9]), 4.0)
    assert not is_at_least(array([0, 0, 4, 9]), np.nextafter(4.0, 5))


def test_conversions_of_other_orders():
    boxes = np.array([[1, 2, 13, 24]])
    np.testing.assert_array_equal(from_yxyx(boxes), [[2, 1, 24, 13]])
    np.testing.assert_array_equal(from_yxyx(from_yxyx(boxes)), boxes)
    np.testing.assert_array_equal(to_xywh(boxes), [[1, 2, 12, 22]])
    np.testing.assert_array_equal(from_xywh(to_xywh(boxes)), boxes)


@given(boxes_of_some_size(), st.integers(2, 2000), st.integers(2, 2000))
def test_normalized_coordinates_and_back(box, height, width):
    box = array(box)
    np.testing.assert_allclose(
        from_normalized(to_normalized(box, (height, width)), (height, width)), box, rtol=0, atol=1e-12 * 2000
    )


def test_normalized_means_centres_of_pixels():
    whole = array([0, 0, 101, 51])
    np.testing.assert_array_equal(to_normalized(whole, (51, 101)), [[0, 0, 1, 1]])
    first_pixel = array([0, 0, 1, 1])
    np.testing.assert_array_equal(to_normalized(first_pixel, (51, 101)), [[0, 0, 0, 0]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_precision_is_kept(dtype):
    box, other = np.array([[1, 2, 30, 40]], dtype), np.array([[3, 5, 20, 60]], dtype)
    results = [
        areas(box), pairwise_iou(box, other), pairwise_coverage(box, other), encode(box, other, MATTERPORT),
        decode(box / 100, other, MATTERPORT, 4.135), clip(box, np.array([0, 0, 9, 9])), widen(box, "inclusive"),
        narrow(box, "inclusive"), to_normalized(box, (9, 9)), from_normalized(box, (9, 9)), to_xywh(box),
    ]  # fmt: skip
    assert {result.dtype for result in results} == {np.dtype(dtype)}


class TestMatterport:
    golden = load("boxes")

    def test_overlaps(self):
        a, b = from_yxyx(self.golden["b1"]), from_yxyx(self.golden["b2"])
        np.testing.assert_allclose(pairwise_iou(a, b), self.golden["compute_overlaps"], rtol=1e-14)
        np.testing.assert_allclose(pairwise_iou(b[:1], a)[0], self.golden["compute_iou_0"], rtol=1e-14)

    def test_decoding(self):
        decoded = decode(from_yxyx(self.golden["deltas"]), from_yxyx(self.golden["b1"]), ONES, None)
        stored = from_yxyx(self.golden["apply_box_deltas"])  # computed in float32
        np.testing.assert_allclose(decoded, stored, rtol=0, atol=8 * 2.0**-24 * np.abs(stored).max())

    def test_encoding(self):
        encoded = encode(from_yxyx(self.golden["gt"]), from_yxyx(self.golden["b1"]), ONES)
        stored = from_yxyx(self.golden["box_refinement"])
        np.testing.assert_allclose(encoded, stored, rtol=0, atol=16 * 2.0**-24 * max(1, np.abs(stored).max()))

    @pytest.mark.parametrize("name", ["128x128", "100x150", "1024x800"])
    def test_normalization(self, name):
        size = tuple(int(v) for v in name.split("x"))
        normalized = to_normalized(from_yxyx(self.golden["b1"]), size)
        np.testing.assert_allclose(normalized, from_yxyx(self.golden[f"norm.{name}"]), rtol=0, atol=1e-6)
        # Matterport also rounds to whole pixels, half to even
        pixels = np.round(from_normalized(from_yxyx(self.golden[f"denorm_in.{name}"]).astype(np.float64), size))
        np.testing.assert_array_equal(pixels, from_yxyx(self.golden[f"denorm_out.{name}"]))


@pytest.mark.convention("box_extent")
def test_widths_under_each_extent():
    box = np.array([[2.0, 3.0, 7.0, 5.0]])
    widths = {extent: np.diff(widen(box, extent)[0, [0, 2]])[0] for extent in ("continuous", "inclusive", "normalized")}
    assert widths == {"continuous": 5, "inclusive": 6, "normalized": 4}
    # in Matterport's coordinates, the width times the extent of the image's pixel centres is the same 4
    assert (np.diff(to_normalized(box, (9, 11))[0, [0, 2]]) * 10).item() == pytest.approx(4)
    for extent in ("continuous", "inclusive", "normalized"):
        np.testing.assert_array_equal(narrow(widen(box, extent), extent), box)


def test_widened_boxes_end_at_the_window():
    far, window = np.array([[-5.0, -5.0, 99.0, 99.0]]), np.array([0.0, 0.0, 16.0, 8.0])
    ends = {
        extent: narrow(clip_widened(widen(far, extent), window, extent), extent)[0].tolist()
        for extent in ("continuous", "inclusive", "normalized")
    }
    assert ends == {"continuous": [0, 0, 16, 8], "inclusive": [0, 0, 15, 7], "normalized": [0, 0, 16, 8]}
