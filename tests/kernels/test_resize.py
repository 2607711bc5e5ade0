"""The CPU kernels of resizing: their contracts in small tiles and on several threads, and images of several tiles."""

import numpy as np
import pytest

from refnet import ops
from refnet.kernels.cpu import KERNELS, resize
from refnet.testing import check_kernel

NAMES = [
    "resize_bilinear_forward",
    "resize_bilinear_grad",
    "resize_nearest_forward",
    "resize_nearest_grad",
    "upsample_add_forward",
]


@pytest.mark.parametrize("name", NAMES)
def test_contracts_in_tiles_and_threads(name, thread_count, monkeypatch):
    monkeypatch.setattr(resize, "TILE", 3)
    monkeypatch.setattr(resize, "LEAST", 0)
    check_kernel(getattr(ops, name), KERNELS[name], device="cpu", max_examples=40)


@pytest.mark.parametrize("channels", [1, 3, resize.FEW + 1])
@pytest.mark.parametrize("corners", [False, True])
def test_images_of_several_tiles(channels, corners, thread_count):
    """The weights of twice as many pixels, or of 2 L - 1 with corners on corners, are quarters: nothing is rounded."""
    rng = np.random.default_rng(channels)
    source = (resize.TILE + 9, 2 * resize.TILE + 1)
    size = tuple(2 * extent - corners for extent in source)
    x = rng.integers(-8, 8, (2, *source, channels)).astype(np.float32)
    u = rng.integers(-8, 8, (2, *size, channels)).astype(np.float32)
    forward, grad = (getattr(ops, name).specification for name in NAMES[:2])
    np.testing.assert_array_equal(
        resize.resize_bilinear_forward(x, size=size, align_corners=corners),
        forward(x.astype(np.float64), size=size, align_corners=corners),
    )
    np.testing.assert_array_equal(
        resize.resize_bilinear_grad(u, source=source, align_corners=corners),
        grad(u.astype(np.float64), source=source, align_corners=corners),
    )


@pytest.mark.parametrize("size", [(33, 40), (64, 128), (100, 90), (320, 224)])
def test_copies_of_large_images(size, thread_count):
    rng = np.random.default_rng(0)
    x = rng.integers(-8, 8, (2, 64, 32, 24)).astype(np.float32)
    u = rng.integers(-8, 8, (2, *size, 24)).astype(np.float32)
    for name, arguments, parameters in (
        ("resize_nearest_forward", (x,), {"size": size}),
        ("resize_nearest_grad", (u,), {"source": (64, 32)}),
        ("upsample_add_forward", (x, u), {}),
    ):
        expected = getattr(ops, name).specification(*arguments, **parameters)
        np.testing.assert_array_equal(KERNELS[name](*arguments, **parameters), expected, err_msg=name)


def test_bands_hold_every_weight():
    matrix = resize._hats(300, 170, False, np.float64)
    for part in (matrix, matrix.T):
        outside = part != 0
        for tile, pixels in resize._bands(part):
            assert pixels.stop - pixels.start < 2 * resize.TILE
            outside[tile, pixels] = False
        assert not outside.any()
