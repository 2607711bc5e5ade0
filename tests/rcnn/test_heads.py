"""The heads: shapes, the two kinds of box head, norms, initial weights, and batches without regions."""

import numpy as np
import pytest

from refnet.autograd import Tensor
from refnet.rcnn.config import BackboneConfig, BoxHeadConfig, KeypointHeadConfig, MaskHeadConfig
from refnet.rcnn.heads import BoxHead, KeypointHead, MaskHead

CLASSES, CHANNELS, POOL = 3, 5, 4


def box_head(dtype=np.float64, **fields) -> BoxHead:
    config = BoxHeadConfig(**{"channels": 6, **fields})
    backbone = BackboneConfig(norm_epsilon=0.0)
    return BoxHead(CHANNELS, POOL, CLASSES, config, backbone, rng=np.random.default_rng(0), dtype=dtype)


def mask_head(backbone=None, box=None, dtype=np.float64, **fields) -> MaskHead:
    config = MaskHeadConfig(**{"convolutions": 2, "channels": 6, **fields})
    return MaskHead(
        CHANNELS, CLASSES, config, box or BoxHeadConfig(), backbone or BackboneConfig(),
        rng=np.random.default_rng(0), dtype=dtype,
    )  # fmt: skip


def keypoint_head(dtype=np.float64, **fields) -> KeypointHead:
    config = KeypointHeadConfig(**{"convolutions": 2, "channels": 6, "num_keypoints": 7, **fields})
    return KeypointHead(CHANNELS, config, rng=np.random.default_rng(0), dtype=dtype)


def pooled(regions: int = 2, dtype=np.float64, requires_grad: bool = False) -> Tensor:
    values = np.random.default_rng(1).standard_normal((regions, POOL, POOL, CHANNELS)).astype(dtype)
    return Tensor(values, requires_grad=requires_grad)


@pytest.mark.convention("box_head.class_agnostic", "mask_head.class_agnostic", "box_head.background")
@pytest.mark.parametrize("kind", ["fc", "conv"])
@pytest.mark.parametrize(
    ("background", "agnostic", "boxes"),
    [("first", False, 4), ("last", False, 3), ("first", True, 1), ("last", True, 1)],
)
def test_outputs(kind, background, agnostic, boxes):
    head = box_head(kind=kind, background=background, class_agnostic=agnostic)
    output = head(pooled(), training=True)
    assert output.class_logits.shape == (2, CLASSES + 1)
    assert output.deltas.shape == (2, boxes, 4)
    masks = mask_head(box=BoxHeadConfig(background=background), class_agnostic=agnostic)(pooled(), training=True)
    assert masks.shape == (2, 2 * POOL, 2 * POOL, boxes)


@pytest.mark.convention("box_head.kind")
def test_a_convolution_over_the_whole_region_is_a_fully_connected_layer():
    full, convolutional = box_head(kind="fc"), box_head(kind="conv", norm="frozen")
    for layer, convolution in zip(full.hidden, convolutional.convolutions, strict=True):
        convolution.weight.data[...] = layer.weight.data.reshape(convolution.weight.shape)
        layer.bias.data[...] = convolution.bias.data[...] = np.linspace(-1, 1, 6)
    for name in ("classes", "deltas"):
        getattr(convolutional, name).weight.data[...] = getattr(full, name).weight.data
    for norm in convolutional.norms:  # then a batch norm, which here doubles and shifts
        norm.weight[...], norm.bias[...] = 2, 0.25
    x = pooled()
    hidden = x.data.reshape(2, -1)
    for layer in full.hidden:
        hidden = np.maximum(2 * (hidden @ layer.weight.data + layer.bias.data) + 0.25, 0)
    expected = hidden @ full.classes.weight.data
    np.testing.assert_allclose(convolutional(x, training=True).class_logits.data, expected, rtol=0, atol=1e-12)
    plain = x.data.reshape(2, -1)
    for layer in full.hidden:
        plain = np.maximum(plain @ layer.weight.data + layer.bias.data, 0)
    deltas = (plain @ full.deltas.weight.data).reshape(2, CLASSES + 1, 4)
    np.testing.assert_allclose(full(x, training=True).deltas.data, deltas, rtol=0, atol=1e-12)


def test_convolutions_before_the_fully_connected_layers():
    head = box_head(convolutions=2, conv_channels=8, conv_bias=False, norm="batch", layers=1)
    shapes = {name: array.shape for name, array in head.state().items()}
    assert shapes["convolutions.0.weight"] == (3, 3, CHANNELS, 8)
    assert shapes["convolutions.1.weight"] == (3, 3, 8, 8)
    assert shapes["hidden.0.weight"] == (POOL * POOL * 8, 6)
    assert not {"convolutions.0.bias", "hidden.1.weight"} & shapes.keys()
    for convolution in head.convolutions:  # copy the channels that there are; the second norm adds 1
        convolution.weight.data[...] = 0
        convolution.weight.data[1, 1] = np.eye(convolution.weight.shape[2], 8)
    head.norms[1].bias.data[...] = 1
    x = pooled()
    copied = np.concatenate([np.maximum(x.data, 0), np.zeros((2, POOL, POOL, 8 - CHANNELS))], axis=3) + 1
    hidden = np.maximum(copied.reshape(2, -1) @ head.hidden[0].weight.data, 0)
    np.testing.assert_allclose(
        head(x, training=False).class_logits.data, hidden @ head.classes.weight.data, rtol=0, atol=1e-12
    )


@pytest.mark.convention("box_head.conv_bias", "mask_head.conv_bias")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "make", [mask_head, lambda **f: box_head(kind="conv", **f), lambda **f: box_head(**f, convolutions=2)]
)
def test_convolutions_have_a_bias_or_not(make, bias):
    head = make(conv_bias=bias, norm="frozen")
    assert len(head.norms) == 2
    assert all((convolution.bias is not None) == bias for convolution in head.convolutions)


@pytest.mark.parametrize("convolutions", [0, 1, 3])
def test_as_many_convolutions_as_asked(convolutions):
    head = mask_head(convolutions=convolutions)
    assert len(head.convolutions) == convolutions
    assert head.upsample.weight.shape == (2, 2, 6 if convolutions else CHANNELS, 6)
    assert head(pooled(), training=True).shape == (2, 2 * POOL, 2 * POOL, CLASSES + 1)


@pytest.mark.convention("mask_head.norm")
@pytest.mark.parametrize("norm", ["batch", "frozen", "frozen_statistics"])
def test_the_mask_heads_norm_is_its_own(norm):
    head = mask_head(BackboneConfig(norm="frozen", norm_epsilon=0.125), norm=norm)
    assert len(head.norms) == 2
    assert {n.epsilon for n in head.norms} == {0.125}
    trained = [name for name in head.parameters() if name.startswith("norms.")]
    assert len(trained) == (0 if norm == "frozen" else 4)
    x = pooled(requires_grad=True)
    head(x, training=True).backward(np.ones((2, 2 * POOL, 2 * POOL, CLASSES + 1)))
    assert x.grad.any()
    assert all(p.grad is not None for p in head.parameters().values())


@pytest.mark.convention("box_head.norm", "mask_head.norm")
@pytest.mark.parametrize("norm", ["none", "batch", "frozen", "frozen_statistics"])
@pytest.mark.parametrize(
    "make", [mask_head, lambda **f: box_head(kind="conv", **f), lambda **f: box_head(**f, convolutions=2)]
)
def test_which_statistics_a_norm_takes(make, norm):
    """Those of the batch in training, its own throughout, or there is no norm; scale and shift may be trained."""
    head = make(norm=norm)
    trained = [name for name in head.parameters() if name.startswith("norms.")]
    assert len(trained) == (4 if norm in ("batch", "frozen_statistics") else 0)
    before = {name: array.copy() for name, array in head.buffers().items()}
    assert bool(before) == (norm != "none")
    inference, training = (
        output.data if isinstance(output, Tensor) else output.class_logits.data
        for output in (head(pooled(), training=flag) for flag in (False, True))
    )
    moved = {name for name, array in head.buffers().items() if not np.array_equal(array, before[name])}
    if norm == "batch":
        assert moved == {name for name in before if "running" in name}
        assert np.abs(training - inference).max() > 1e-6
    else:
        assert not moved
        np.testing.assert_array_equal(training, inference)


@pytest.mark.parametrize("convolutions", [0, 2])
@pytest.mark.parametrize("regions", [0, 2])
def test_keypoint_maps_have_four_times_the_resolution(regions, convolutions):
    head = keypoint_head(convolutions=convolutions)
    assert head.upsample.weight.shape == (4, 4, 6 if convolutions else CHANNELS, 7)
    x = pooled(regions, requires_grad=True)
    maps = head(x)
    assert maps.shape == (regions, KeypointHead.UPSCALE * POOL, KeypointHead.UPSCALE * POOL, 7)
    maps.backward(np.ones(maps.shape))
    assert x.grad.shape == x.shape
    assert all(p.grad is not None for p in head.parameters().values())


def test_keypoint_maps_move_with_the_features():
    """What a region sees a cell further right, its maps show four pixels further right, but for the borders."""
    head = keypoint_head(convolutions=1)
    wide = np.random.default_rng(2).standard_normal((1, 9, 10, CHANNELS))
    left, right = (head(Tensor(np.ascontiguousarray(wide[:, :, start : start + 9]))).data for start in (0, 1))
    inner = slice(8, -8)  # the convolutions see two cells beyond a pixel's own
    np.testing.assert_allclose(left[:, inner, 12:-8], right[:, inner, 8:-12], rtol=0, atol=1e-12)


def test_initial_deviations_of_the_keypoint_head():
    head = KeypointHead(30, KeypointHeadConfig(channels=100, convolutions=2), rng=np.random.default_rng(0))
    # torch's fan out: of a convolution that of its outputs, of a transposed one that of its inputs
    for layer, fan in ((head.convolutions[0], 900), (head.convolutions[1], 900), (head.upsample, 1600)):
        weight = layer.weight.data
        assert abs(weight.std() / np.sqrt(2 / fan) - 1) < 5 / np.sqrt(2 * weight.size)
        assert not layer.bias.data.any()


class TestRegionsOfWhichThereAreFew:
    """Batch norm has no statistics of nothing; training goes on by the running ones, which stay as they are."""

    @pytest.mark.parametrize("regions", [0, 1])
    @pytest.mark.parametrize("kind", ["fc", "conv"])
    def test_box_head(self, kind, regions):
        head = box_head(kind=kind, norm="batch" if kind == "conv" else "none")
        self.check(head, regions, lambda x: head(x, training=True).class_logits)

    def test_box_head_with_convolutions(self):
        head = box_head(convolutions=2, conv_channels=3, layers=1, norm="batch")
        self.check(head, 0, lambda x: head(x, training=True).class_logits)

    def test_mask_head(self):
        head = mask_head(norm="batch")
        self.check(head, 0, lambda x: head(x, training=True))

    def check(self, head, regions, run):
        before = {name: array.copy() for name, array in head.buffers().items()}
        x = pooled(regions, requires_grad=True)
        y = run(x)
        assert len(y) == regions
        assert np.isfinite(y.data).all()
        y.backward(np.ones(y.shape))
        assert x.grad.shape == x.shape
        for name, array in head.buffers().items():
            np.testing.assert_array_equal(array, before[name])

    def test_a_single_mask_has_statistics(self):
        head = mask_head(norm="batch")
        before = head.norms[0].running_mean.copy()
        head(pooled(1), training=True)
        assert (head.norms[0].running_mean != before).any()


@pytest.mark.convention("box_head.initialization")
@pytest.mark.parametrize(
    ("kind", "deviations"),
    [
        # of the hidden layer, with 500 inputs; of the classes and of the boxes, with 1000
        ("torchvision", (1 / np.sqrt(3 * 500), 1 / np.sqrt(3 * 1000), 1 / np.sqrt(3 * 1000))),
        ("detectron", (1 / np.sqrt(500), 0.01, 0.001)),
        ("glorot_uniform", (np.sqrt(2 / 1500), np.sqrt(2 / 1021), np.sqrt(2 / 1084))),
    ],
)
def test_initial_deviations(kind, deviations):
    config = BoxHeadConfig(channels=1000, initialization=kind)
    head = BoxHead(20, 5, 20, config, BackboneConfig(), rng=np.random.default_rng(0))
    for layer, deviation in zip((head.hidden[0], head.classes, head.deltas), deviations, strict=True):
        weight = layer.weight.data
        assert abs(weight.std() / deviation - 1) < 5 / np.sqrt(2 * weight.size)
        assert not layer.bias.data.any()


@pytest.mark.parametrize("regions", [0, 3])
def test_the_logits_of_one_class_are_those_among_all_and_so_are_their_gradients(regions):
    head, channel = mask_head(), np.array([2, 0, 2])[:regions]
    x = pooled(regions).data
    each, rng = np.arange(regions), np.random.default_rng(1)
    u = rng.standard_normal((regions, 8, 8))
    found = []
    for alone in (False, True):
        tensor = Tensor(x, requires_grad=True)
        head.zero_grad()
        if alone:
            y = head(tensor, training=True, channel=channel)
            assert y.shape == (regions, 8, 8, 1)
            own = y[:, :, :, 0]
        else:
            own = head(tensor, training=True)[each, :, :, channel]
        own.backward(u)
        found.append([own.data, tensor.grad, *(p.grad for p in head.parameters().values())])
    for expected, actual in zip(*found, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.convention("mask_head.initialization")
def test_initial_weights_of_the_mask_head():
    heads = [
        MaskHead(
            40, 50, MaskHeadConfig(channels=30, convolutions=1, initialization=kind), BoxHeadConfig(), BackboneConfig(),
            rng=np.random.default_rng(0),
        )
        for kind in ("kaiming_fan_out", "glorot_uniform")
    ]  # fmt: skip
    # fan in and fan out
    fans = {"convolutions.0": (9 * 40, 9 * 30), "upsample": (4 * 30, 4 * 30), "logits": (30, 51)}
    kaiming, glorot = ({name: head.state()[f"{name}.weight"] for name in fans} for head in heads)
    for name, (fan_in, fan_out) in fans.items():
        spread = 5 / np.sqrt(2 * kaiming[name].size)  # the deviation of n normal numbers is known to 1 / sqrt(2 n)
        assert abs(kaiming[name].std() / np.sqrt(2 / fan_out) - 1) < spread, name
        bound = np.sqrt(6 / (fan_in + fan_out))
        assert 0.98 * bound < np.abs(glorot[name]).max() <= bound * (1 + 1e-6), name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["fc", "conv"])
def test_precision(kind, dtype):
    output = box_head(kind=kind, dtype=dtype)(pooled(dtype=dtype), training=True)
    masks = mask_head(norm="batch", dtype=dtype)(pooled(dtype=dtype), training=True)
    maps = keypoint_head(dtype=dtype)(pooled(dtype=dtype))
    assert output.class_logits.dtype == output.deltas.dtype == masks.dtype == maps.dtype == dtype
