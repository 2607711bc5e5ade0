"""The feature pyramid, with weights for which every output can be said by hand."""

import numpy as np
import pytest

from refnet.autograd import Tensor
from refnet.rcnn.config import FpnConfig
from refnet.rcnn.fpn import FPN

SIZES = [(8, 12), (4, 6), (2, 3), (1, 2)]


def transparent() -> FPN:
    """Lateral convolutions that copy their one channel, output convolutions that copy their centre."""
    fpn = FPN([1, 1, 1, 1], FpnConfig(channels=1), rng=np.random.default_rng(0), dtype=np.float64)
    for layer in (*fpn.lateral, *fpn.output):
        layer.weight.data[...] = 0
        layer.weight.data[layer.weight.shape[0] // 2, layer.weight.shape[1] // 2] = 1
    return fpn


def features(sizes) -> list[Tensor]:
    rng = np.random.default_rng(1)
    return [Tensor(rng.integers(0, 100, (2, *size, 1)).astype(np.float64)) for size in sizes]


def test_every_level_adds_the_coarser_ones():
    c2, c3, c4, c5 = (c.data for c in features(SIZES))
    p2, p3, p4, p5, p6 = (p.data for p in transparent()(features(SIZES)))

    def up(x, size):
        rows, columns = (np.arange(t) * s // t for s, t in zip(x.shape[1:3], size, strict=True))
        return x[:, rows[:, None], columns]

    m4 = c4 + up(c5, (2, 3))
    m3 = c3 + up(m4, (4, 6))
    np.testing.assert_array_equal(p5, c5)
    np.testing.assert_array_equal(p4, m4)
    np.testing.assert_array_equal(p3, m3)
    np.testing.assert_array_equal(p2, c2 + up(m3, (8, 12)))
    np.testing.assert_array_equal(p6, c5[:, ::2, ::2])


def test_upsampling_to_sizes_that_arent_doubled():
    sizes = [(9, 10), (5, 5), (3, 3), (2, 2)]
    c4, c5 = (c.data for c in features(sizes)[2:])
    p4 = transparent()(features(sizes))[2].data
    for row, source_row in enumerate([0, 0, 1]):  # floor(i 2 / 3)
        for column, source_column in enumerate([0, 0, 1]):
            np.testing.assert_array_equal(p4[:, row, column], c4[:, row, column] + c5[:, source_row, source_column])


def test_p6_is_taken_from_the_finished_p5():
    fpn = transparent()
    fpn.output[3].weight.data *= 3
    fpn.output[3].bias.data += 1
    c5 = features(SIZES)[3].data
    *_, p5, p6 = fpn(features(SIZES))
    np.testing.assert_array_equal(p5.data, 3 * c5 + 1)
    np.testing.assert_array_equal(p6.data, (3 * c5 + 1)[:, ::2, ::2])


def test_gradients_of_coarse_features_come_from_all_finer_levels():
    inputs = [Tensor(c.data, requires_grad=True) for c in features(SIZES)]
    pyramid = transparent()(inputs)
    pyramid[0].backward(np.ones(pyramid[0].shape))
    # each pixel of C_l was copied to 4^(l-2) pixels of P2; C5, of 1 x 2, to 8 rows and to 8 or 4 of 12 columns
    for level, c in enumerate(inputs[:3]):
        np.testing.assert_array_equal(c.grad, np.full(c.shape, 4.0**level))
    np.testing.assert_array_equal(inputs[3].grad[0, 0, :, 0], [64.0, 32.0])


@pytest.mark.parametrize(("kind", "bound"), [("kaiming_uniform", np.sqrt(3 / 48)), ("glorot_uniform", np.sqrt(6 / 80))])
def test_initialization(kind, bound):
    fpn = FPN([48] * 4, FpnConfig(channels=32, initialization=kind), rng=np.random.default_rng(0))
    for layer in fpn.lateral:
        largest = float(np.abs(layer.weight.data).max())
        assert 0.99 * bound < largest <= bound * (1 + 1e-6)
        assert not layer.bias.data.any()


def test_widths():
    fpn = FPN([3, 5, 7, 9], FpnConfig(channels=4), rng=np.random.default_rng(0))
    assert [layer.weight.shape for layer in fpn.lateral] == [(1, 1, c, 4) for c in (3, 5, 7, 9)]
    assert [layer.weight.shape for layer in fpn.output] == [(3, 3, 4, 4)] * 4
