"""The gradient to 3 x 3 weights by Winograd's algorithm against the specification, within a bound of its rounding.

To first order the error is at most K u times the algorithm run on absolute values with absolute matrices, where K counts
the roundings on the longest way from an input to the result (Higham 2002, section 3.5; Barabasz, Anderson, Soodhalter
and Gregg 2020, Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks).
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from refnet import ops
from refnet.kernels.cpu import blas
from refnet.kernels.cpu.conv import winograd_gradient
from refnet.kernels.cpu.conv.winograd import F2, F4, Minimal
from refnet.testing.strategies.drawing import seeds
from refnet.testing.strategies.geometry import pairs

UNIT = {np.float32: 2.0**-24, np.float64: 2.0**-53}
same_threads = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
minimals = st.sampled_from([F2, F4])
block_bytes = st.sampled_from([1, 4000, winograd_gradient.BLOCK_BYTES])  # from a row of tiles to all of them


@st.composite
def layers(draw, most_images: int = 3):
    """Shapes of x and of the output's gradient, and the padding: ((top, bottom), (left, right))."""
    padding = draw(pairs(0, 3)), draw(pairs(0, 3))
    height, width = (draw(st.integers(1, 12)) + max(0, 2 - sum(pads)) for pads in padding)
    images, (channels, outputs) = draw(st.integers(0, most_images)), draw(pairs(1, 5))
    size = (height + sum(padding[0]) - 2, width + sum(padding[1]) - 2)
    return (images, height, width, channels), (images, *size, outputs), padding


def run(x, g, padding, minimal: Minimal) -> np.ndarray:
    return winograd_gradient.grad_weight(x, g, minimal, (-padding[0][0], -padding[1][0]))


def specified(x, g, padding) -> np.ndarray:
    geometry = {"stride": (1, 1), "padding": padding, "dilation": (1, 1), "groups": 1}
    return ops.conv2d_grad_weight.specification(x, g, kernel_size=(3, 3), **geometry)


def of_absolute_values(x, g, padding, minimal: Minimal) -> np.ndarray:
    """The algorithm, written from its equation, on absolute values with absolute matrices in float64."""
    m, t = minimal.outputs, minimal.size
    down, right = (-size % m for size in g.shape[1:3])
    (top, bottom), (left, right_padding) = padding
    x = np.pad(abs(x).astype(np.float64), ((0, 0), (top, bottom + down), (left, right_padding + right), (0, 0)))
    g = np.pad(abs(g).astype(np.float64), ((0, 0), (0, down), (0, right), (0, 0)))
    tiles_x = sliding_window_view(x, (t, t), axis=(1, 2))[:, ::m, ::m]  # N I J C t t
    tiles_g = sliding_window_view(g, (m, m), axis=(1, 2))[:, ::m, ::m]  # N I J O m m
    b, a, taps = abs(minimal.data), abs(minimal.result).T, abs(minimal.taps)
    bracket = np.einsum("nijcpq,nijopq->pqco", b @ tiles_x @ b.T, a @ tiles_g @ a.T, optimize=True)
    return np.einsum("pa,pqco,qb->abco", taps, bracket, taps, optimize=True)


def bound(x, g, padding, minimal: Minimal) -> np.ndarray:
    unit = UNIT[x.dtype.type] + UNIT[np.float64]  # the reference is rounded, too
    return (
        winograd_gradient.roundings(len(g), g.shape[1:3], minimal) * unit * of_absolute_values(x, g, padding, minimal)
    )


@given(layer=layers(), minimal=minimals, size=block_bytes, dtype=st.sampled_from([np.float32, np.float64]), seed=seeds)
@same_threads
def test_within_the_bound_of_rounding(thread_count, layer, minimal: Minimal, size: int, dtype: type, seed: int):
    rng = np.random.default_rng(seed)
    x, g = (rng.standard_normal(shape).astype(dtype) for shape in layer[:2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd_gradient, "BLOCK_BYTES", size)
        grad = run(x, g, layer[2], minimal)
    assert grad.dtype == dtype
    reference = specified(x.astype(np.float64), g.astype(np.float64), layer[2])
    assert (abs(grad - reference) <= bound(x, g, layer[2], minimal)).all()


@given(layer=layers(), size=block_bytes, seed=seeds)
@same_threads
def test_two_outputs_a_tile_are_exact_on_integers(thread_count, layer, size: int, seed: int):
    """The numbers of F(2 x 2, 3 x 3) are halves: small integers are never rounded."""
    rng = np.random.default_rng(seed)
    x, g = (rng.integers(-3, 4, shape).astype(np.float32) for shape in layer[:2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd_gradient, "BLOCK_BYTES", size)
        np.testing.assert_array_equal(run(x, g, layer[2], F2), specified(x, g, layer[2]))


@pytest.mark.parametrize("minimal", [F2, F4], ids=lambda minimal: minimal.name)
def test_the_bound_finds_what_is_wrong(minimal: Minimal):
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal((2, 16, 15, channels)).astype(np.float32) for channels in (8, 4))
    padding = ((1, 1), (1, 1))
    reference, allowed = specified(x.astype(np.float64), g.astype(np.float64), padding), bound(x, g, padding, minimal)
    without_a_pixel = g.copy()
    without_a_pixel[1, 15, 14] = 0
    for wrong in (
        run(x, without_a_pixel, padding, minimal),
        run(x, g, ((0, 1), (1, 1)), minimal),
        run(x, g, padding, minimal).swapaxes(0, 1),
    ):
        assert (abs(wrong - reference) > allowed).any()


@pytest.mark.parametrize("minimal", [F2, F4], ids=lambda minimal: minimal.name)
def test_without_products_that_add(thread_count, minimal: Minimal, monkeypatch: pytest.MonkeyPatch):
    """NumPy may have a BLAS that can't be called by itself."""
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal((2, 24, 20, channels)).astype(np.float32) for channels in (8, 4))
    padding = ((1, 1), (1, 1))
    monkeypatch.setattr(winograd_gradient, "BLOCK_BYTES", 4000)
    monkeypatch.setattr(blas, "available", lambda: False)
    reference = specified(x.astype(np.float64), g.astype(np.float64), padding)
    assert (abs(run(x, g, padding, minimal) - reference) <= bound(x, g, padding, minimal)).all()


def test_inputs_need_not_be_contiguous_and_stay_as_they_are(thread_count):
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (3, 9, 8, 2)).astype(np.float32)[:, ::-1].transpose(0, 2, 1, 3)
    g = np.broadcast_to(np.float32(2), (3, 8, 9, 4))
    kept = x.copy()
    np.testing.assert_array_equal(run(x, g, ((1, 1), (1, 1)), F2), specified(x, g, ((1, 1), (1, 1))))
    np.testing.assert_array_equal(x, kept)


def test_the_same_inputs_give_the_same_bits(thread_count, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(winograd_gradient, "BLOCK_BYTES", 1 << 16)
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal((4, 20, 20, 16)).astype(np.float32) for _ in range(2))
    first = run(x, g, ((1, 1), (1, 1)), F4)
    for _ in range(5):
        np.testing.assert_array_equal(run(x, g, ((1, 1), (1, 1)), F4), first)
