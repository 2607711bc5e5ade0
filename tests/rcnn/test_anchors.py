"""Anchors: literal cases of every switch, and Matterport's golden vectors. torchvision's are in test_torchvision.py."""

import numpy as np
import pytest

from refnet.autograd import Tensor, no_grad
from refnet.nn.init import Blank
from refnet.rcnn import MaskRCNN
from refnet.rcnn.anchors import cell_anchors, make_anchors
from refnet.rcnn.boxes import from_yxyx, to_normalized
from refnet.rcnn.config import AnchorConfig
from refnet.rcnn.presets import matterport
from refnet.rcnn.structures import STRIDES
from tests.golden.matterport_rules import checks, load
from tests.rcnn.small import shrink, vary

ONE_SIZE = ((8.0,), (16.0,), (32.0,), (64.0,), (128.0,))
SHAPES = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]  # of an image of 32 x 48, with P4 and P5 rounded up


@pytest.mark.convention("anchors.rounding")
def test_torchvisions_cell_anchors():
    config = AnchorConfig()
    np.testing.assert_array_equal(
        cell_anchors([32.0], config), [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    )
    np.testing.assert_array_equal(
        cell_anchors([512.0], config), [[-362, -181, 362, 181], [-256, -256, 256, 256], [-181, -362, 181, 362]]
    )


@pytest.mark.convention("anchors.rounding")
def test_rounding_goes_to_the_even_pixel():
    config = AnchorConfig(ratios=(1.0,))
    np.testing.assert_array_equal(cell_anchors([5.0], config), [[-2, -2, 2, 2]])
    np.testing.assert_array_equal(cell_anchors([7.0], config), [[-4, -4, 4, 4]])
    exact = AnchorConfig(ratios=(1.0,), rounding=False)
    np.testing.assert_array_equal(cell_anchors([5.0], exact), [[-2.5, -2.5, 2.5, 2.5]])


@pytest.mark.convention("anchors.ratio_is")
@pytest.mark.parametrize(("ratio_is", "height", "width"), [("h/w", 40, 10), ("w/h", 10, 40)])
def test_ratio(ratio_is, height, width):
    config = AnchorConfig(ratios=(4.0,), ratio_is=ratio_is)
    x1, y1, x2, y2 = cell_anchors([20.0], config)[0]
    assert (y2 - y1, x2 - x1) == (height, width)


@pytest.mark.convention("anchors.order")
@pytest.mark.parametrize(
    ("order", "areas_and_heights"),
    [
        ("ratio_major", [(256, 8), (4096, 32), (256, 32), (4096, 128)]),
        ("size_major", [(256, 8), (256, 32), (4096, 32), (4096, 128)]),
    ],
)
def test_order_at_one_position(order, areas_and_heights):
    config = AnchorConfig(sizes=((16.0, 64.0),) * 5, ratios=(0.25, 4.0), order=order)
    assert config.per_position == 4
    cells = cell_anchors(config.sizes[0], config)
    heights, widths = cells[:, 3] - cells[:, 1], cells[:, 2] - cells[:, 0]
    assert list(zip(heights * widths, heights, strict=True)) == areas_and_heights


@pytest.mark.convention("anchors.center_offset")
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_positions_go_row_by_row_with_all_anchors_of_one_together(offset):
    config = AnchorConfig(sizes=ONE_SIZE, ratios=(0.25, 4.0), center_offset=offset)
    levels = make_anchors(SHAPES, (32, 48), config, np.float64)
    assert [len(level) for level in levels] == [h * w * 2 for h, w in SHAPES]
    for level, (height, width), stride, size in zip(levels, SHAPES, STRIDES, ONE_SIZE, strict=True):
        grid = level.reshape(height, width, 2, 4)
        cells = cell_anchors(size, config)
        for row, column in np.ndindex(height, width):
            center = np.array([column, row] * 2) * stride + offset * stride
            np.testing.assert_array_equal(grid[row, column], cells + center)


@pytest.mark.convention("anchors.stride")
def test_stride_of_a_padded_image_that_isnt_a_multiple():
    shapes = [(25, 38), (13, 19), (7, 10), (4, 5), (2, 3)]  # of an image of 100 x 150
    nominal = make_anchors(shapes, (100, 150), AnchorConfig(stride="nominal"), np.float64)
    floor = make_anchors(shapes, (100, 150), AnchorConfig(stride="floor"), np.float64)
    steps = [(4, 3), (7, 7), (14, 15), (25, 30), (50, 50)]  # 100 // 25, 150 // 38, ...
    for level, (height, width) in enumerate(shapes):
        for anchors, (dy, dx) in ((nominal[level], (STRIDES[level],) * 2), (floor[level], steps[level])):
            grid = anchors.reshape(height, width, 3, 4)
            np.testing.assert_array_equal(grid[-1, 0] - grid[0, 0], np.full((3, 4), [0, dy, 0, dy]) * (height - 1))
            np.testing.assert_array_equal(grid[0, -1] - grid[0, 0], np.full((3, 4), [dx, 0, dx, 0]) * (width - 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_precision(dtype):
    assert {level.dtype for level in make_anchors(SHAPES, (32, 48), AnchorConfig(), dtype)} == {np.dtype(dtype)}


@pytest.mark.convention("anchors.ratio_is", "anchors.rounding", "anchors.order", "anchors.step")
@pytest.mark.parametrize("name", ["a128", "a256", "a128x192", "a1024", "a100x150", "astride2"])
def test_matterports_anchors(name):
    golden = load("anchors")
    size = tuple(int(v) for v in golden[f"{name}.image_shape"][:2])
    preset = matterport().anchors
    config = AnchorConfig(
        sizes=tuple((float(scale),) for scale in golden[f"{name}.scales"]),
        ratios=tuple(golden[f"{name}.ratios"].tolist()),
        ratio_is=preset.ratio_is,
        rounding=preset.rounding,
        center_offset=preset.center_offset,
        order=preset.order,
        stride=preset.stride,
        step=int(golden[f"{name}.anchor_stride"]),
    )
    np.testing.assert_array_equal(golden[f"{name}.strides"], STRIDES)
    shapes = [(int(h), int(w)) for h, w in golden[f"{name}.backbone_shapes"]]
    anchors = np.concatenate(make_anchors(shapes, size, config, np.float64))
    assert len(anchors) == golden[f"{name}.count"]
    # both are float64, but the order of square roots and divisions differs: a few units in the last place of 2000
    pixels = from_yxyx(anchors)
    np.testing.assert_allclose(pixels[:12], golden[f"{name}.first12"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(pixels[-12:], golden[f"{name}.last12"], rtol=0, atol=1e-12)
    for key, values in (("pixel", pixels), ("norm", from_yxyx(to_normalized(anchors, size)))):
        if f"{name}.{key}" in golden:
            stored, sample = golden[f"{name}.{key}"], values
        else:
            np.testing.assert_array_equal(values.shape, golden[f"{name}.{key}.shape"])
            stored, sample = golden[f"{name}.{key}.s"], values.ravel()[:: int(golden[f"{name}.{key}.step"])]
        np.testing.assert_allclose(sample, stored, rtol=2.0**-24, atol=1e-12)
        sums, found = golden[f"{name}.{key}.chk"], checks(values)  # of float32, rounded each by half a unit
        np.testing.assert_allclose(found[:3], sums[:3], rtol=0, atol=2.0**-23 * max(sums[1:3]))
        np.testing.assert_allclose(found[3:], sums[3:], rtol=0, atol=2.0**-23 * sums[1])


def test_matterports_anchors_of_one_level():
    levels = make_anchors([(3, 4)] * 5, (32, 32), vary(matterport().anchors, {"sizes": ((32.0,),) * 5}), np.float64)
    np.testing.assert_allclose(from_yxyx(levels[1]), load("anchors")["single.32_r3_3x4_s8"], rtol=0, atol=1e-14)


def test_matterports_shapes_of_the_levels():
    """Of an image of any size: its strides, rounded up."""
    config = vary(shrink(matterport()), {"backbone.depth": 18, "backbone.width": 1, "fpn.channels": 1})
    model = MaskRCNN(config, rng=Blank())
    golden = load("anchors")
    for (height, width, _), shapes in zip(golden["bshape.in"].tolist(), golden["bshape.out"], strict=True):
        with no_grad():
            pixels = Tensor(np.zeros((1, height, width, 3), np.float32))
            pyramid = model.fpn(model.backbone(pixels, training=False), training=False)
        np.testing.assert_array_equal([level.shape[1:3] for level in pyramid], shapes)
