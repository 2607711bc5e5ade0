"""The feature pyramid, with weights for which every output can be said by hand."""

import numpy as np
import pytest

from refnet.autograd import Tensor
from refnet.rcnn.config import BackboneConfig, FpnConfig
from refnet.rcnn.fpn import FPN

SIZES = [(8, 12), (4, 6), (2, 3), (1, 2)]


def transparent() -> FPN:
    """Lateral convolutions that copy their one channel, output convolutions that copy their centre."""
    fpn = FPN([1, 1, 1, 1], FpnConfig(channels=1), BackboneConfig(), rng=np.random.default_rng(0), dtype=np.float64)
    for layer in (*fpn.lateral, *fpn.output):
        layer.weight.data[...] = 0
        layer.weight.data[layer.weight.shape[0] // 2, layer.weight.shape[1] // 2] = 1
    return fpn


def features(sizes) -> list[Tensor]:
    rng = np.random.default_rng(1)
    return [Tensor(rng.integers(0, 100, (2, *size, 1)).astype(np.float64)) for size in sizes]


@pytest.mark.convention("fpn.norm")
def test_every_level_adds_the_coarser_ones():
    c2, c3, c4, c5 = (c.data for c in features(SIZES))
    p2, p3, p4, p5, p6 = (p.data for p in transparent()(features(SIZES), training=False))

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
    p4 = transparent()(features(sizes), training=False)[2].data
    for row, source_row in enumerate([0, 0, 1]):  # floor(i 2 / 3)
        for column, source_column in enumerate([0, 0, 1]):
            np.testing.assert_array_equal(p4[:, row, column], c4[:, row, column] + c5[:, source_row, source_column])


def test_p6_is_taken_from_the_finished_p5():
    fpn = transparent()
    fpn.output[3].weight.data *= 3
    fpn.output[3].bias.data += 1
    c5 = features(SIZES)[3].data
    *_, p5, p6 = fpn(features(SIZES), training=False)
    np.testing.assert_array_equal(p5.data, 3 * c5 + 1)
    np.testing.assert_array_equal(p6.data, (3 * c5 + 1)[:, ::2, ::2])


def test_gradients_of_coarse_features_come_from_all_finer_levels():
    inputs = [Tensor(c.data, requires_grad=True) for c in features(SIZES)]
    pyramid = transparent()(inputs, training=False)
    pyramid[0].backward(np.ones(pyramid[0].shape))
    # each pixel of C_l was copied to 4^(l-2) pixels of P2; C5, of 1 x 2, to 8 rows and to 8 or 4 of 12 columns
    for level, c in enumerate(inputs[:3]):
        np.testing.assert_array_equal(c.grad, np.full(c.shape, 4.0**level))
    np.testing.assert_array_equal(inputs[3].grad[0, 0, :, 0], [64.0, 32.0])


@pytest.mark.convention("fpn.initialization")
@pytest.mark.parametrize(("kind", "bound"), [("kaiming_uniform", np.sqrt(3 / 48)), ("glorot_uniform", np.sqrt(6 / 80))])
def test_initialization(kind, bound):
    fpn = FPN([48] * 4, FpnConfig(channels=32, initialization=kind), BackboneConfig(), rng=np.random.default_rng(0))
    for layer in fpn.lateral:
        largest = float(np.abs(layer.weight.data).max())
        assert 0.99 * bound < largest <= bound * (1 + 1e-6)
        assert not layer.bias.data.any()


def test_widths():
    fpn = FPN([3, 5, 7, 9], FpnConfig(channels=4), BackboneConfig(), rng=np.random.default_rng(0))
    assert [layer.weight.shape for layer in fpn.lateral] == [(1, 1, c, 4) for c in (3, 5, 7, 9)]
    assert [layer.weight.shape for layer in fpn.output] == [(3, 3, 4, 4)] * 4


@pytest.mark.convention("fpn.norm")
@pytest.mark.parametrize("norm", ["batch", "frozen", "frozen_statistics"])
def test_norms_stand_behind_both_convolutions_of_a_level_and_replace_the_bias(norm):
    fpn = FPN(
        [1] * 4, FpnConfig(channels=1, norm=norm), BackboneConfig(norm_epsilon=0.125), rng=np.random.default_rng(0)
    )
    plain = transparent()
    for name in ("lateral", "output"):
        for layer, own, other in zip(
            getattr(fpn, f"{name}_norms"), getattr(fpn, name), getattr(plain, name), strict=True
        ):
            assert own.bias is None
            assert layer.epsilon == 0.125
            own.weight.data[...] = other.weight.data
    assert len(fpn.parameters()) == 8 + (0 if norm == "frozen" else 16)
    # the running variance of 1 - 0.125 makes the denominator 1; one norm adds, the other doubles
    for layer in (*fpn.lateral_norms, *fpn.output_norms):
        layer.running_variance[...] = 0.875
    fpn.lateral_norms[3].running_mean[...] = -5
    fpn.output_norms[3].running_mean[...] = 1
    expected = [p.data for p in plain([*features(SIZES)[:3], features(SIZES)[3] + 5.0], training=False)]
    pyramid = fpn([Tensor(c.data.astype(np.float32)) for c in features(SIZES)], training=False)
    for level in range(3):
        np.testing.assert_array_equal(pyramid[level].data, expected[level])
    np.testing.assert_array_equal(pyramid[3].data, expected[3] - 1)
    np.testing.assert_array_equal(pyramid[4].data, (expected[3] - 1)[:, ::2, ::2])


@pytest.mark.convention("fpn.norm")
def test_norms_of_the_batch_are_used_in_training():
    fpn = FPN([1] * 4, FpnConfig(channels=3, norm="batch"), BackboneConfig(), rng=np.random.default_rng(0))
    pyramid = fpn([Tensor(c.data.astype(np.float32)) for c in features(SIZES)], training=True)
    for p in pyramid[:4]:
        np.testing.assert_allclose(p.data.mean(axis=(0, 1, 2)), 0, atol=1e-5)
        np.testing.assert_allclose(p.data.var(axis=(0, 1, 2)), 1, atol=1e-3)
    assert all(norm.running_mean.any() for norm in (*fpn.lateral_norms, *fpn.output_norms))
