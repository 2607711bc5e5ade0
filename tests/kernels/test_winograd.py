"""Winograd's algorithms against plain correlation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet import ops
from refnet.kernels.cpu.conv import winograd

MINIMAL = pytest.mark.parametrize("minimal", [winograd.F2, winograd.F4], ids=lambda minimal: minimal.name)


def correlate(x: np.ndarray, w: np.ndarray, minimal: winograd.Minimal, pads, tiles: int) -> np.ndarray:
    (top, bottom), (left, right) = pads
    size = (x.shape[1] + top + bottom - 2, x.shape[2] + left + right - 2)
    y = np.full((len(x), *size, w.shape[3]), np.nan, x.dtype)
    transformed = winograd.transform_weights(w, minimal)
    blocks = winograd.blocks_of(len(x), size, minimal.outputs, tiles)
    seen = np.zeros(y.shape[:2], int)
    for images, rows in winograd.correlate_blocks(x, transformed, y, minimal, origin=(-top, -left), blocks=blocks):
        seen[images, rows] += 1
    assert (seen == 1).all()
    return y


@MINIMAL
@given(
    shape=st.tuples(*[st.integers(0, 3), st.integers(1, 11), st.integers(1, 11), st.integers(1, 5)]),
    outputs=st.integers(1, 5),
    pads=st.tuples(st.tuples(st.integers(0, 4), st.integers(2, 4)), st.tuples(st.integers(2, 4), st.integers(0, 4))),
    tiles=st.sampled_from([1, 3, 100]),
    seed=st.integers(0, 1000),
)
def test_equal_the_specification_but_for_rounding(minimal, shape, outputs, pads, tiles, seed):
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal(shape), rng.standard_normal((3, 3, shape[3], outputs))
    y = correlate(x, w, minimal, pads, tiles)
    expected = ops.conv2d_forward.specification(x, w, stride=(1, 1), padding=pads, dilation=(1, 1), groups=1)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-11)
