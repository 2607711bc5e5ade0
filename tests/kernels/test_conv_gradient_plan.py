"""The plans of a convolution's two gradients: what is chosen, and that each keeps its own bound of error."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet import ops
from refnet.kernels.cpu import KERNELS, blas
from refnet.kernels.cpu.conv import explain, plan, using_plan, winograd_gradient
from refnet.kernels.cpu.conv.plan import WINOGRAD
from refnet.kernels.cpu.precision import precision
from refnet.testing import check_kernel
from refnet.testing.bounds import Rounding
from refnet.testing.calls import Call
from refnet.testing.contracts import CONTRACTS
from refnet.testing.strategies.drawing import seeds
from refnet.testing.winograd import ALGORITHMS, absolute_gradient_sums, gradient_error_factor
from tests.same_threads import same_threads

ALGORITHM = pytest.mark.parametrize("algorithm", sorted(WINOGRAD))
NAMES = ("conv2d_grad_input", "conv2d_grad_weight")
NAME = pytest.mark.parametrize("name", NAMES)


def geometry(padding: int = 1, stride: int = 1, dilation: int = 1, groups: int = 1) -> dict[str, Any]:
    return {
        "stride": (stride,) * 2,
        "padding": ((padding,) * 2,) * 2,
        "dilation": (dilation,) * 2,
        "groups": groups,
    }


PLAIN = geometry()


PLAIN_SUMS = ("patches", "shifted")


def chosen(name: str, x_shape: tuple[int, ...], w_shape: tuple[int, ...], **parameters: Any) -> str:
    return plan(name, x_shape, w_shape, **{**geometry(w_shape[0] // 2), **parameters}).algorithm


# what is chosen


@NAME
def test_the_shape_decides(name):
    assert chosen(name, (1, 128, 128, 64), (1, 1, 64, 256)) == "product"
    assert chosen(name, (1, 128, 128, 256), (3, 3, 256, 256)) == "winograd_f4"
    assert chosen(name, (1, 128, 128, 64), (3, 3, 64, 64)) == "winograd_f4"
    assert chosen(name, (64, 14, 14, 256), (3, 3, 256, 256)) == "winograd_f4"
    assert chosen(name, (1, 8, 8, 256), (3, 3, 256, 256)) == "patches"  # the weights would take longer than the image
    assert chosen(name, (1, 64, 64, 64), (5, 5, 64, 64)) in PLAIN_SUMS


@NAME
def test_precision_and_type_keep_plain_sums(name):
    shape = (1, 64, 64, 128), (3, 3, 128, 128)
    assert chosen(name, *shape) == "winograd_f4"
    for exact in ({"precision": "exact-order"}, {"dtype": np.float64}):
        with using_plan("winograd_f4"):
            assert chosen(name, *shape, **exact) in PLAIN_SUMS


@NAME
@pytest.mark.parametrize("parameters", [{"stride": (2, 2)}, {"dilation": (2, 2)}, {"groups": 2}])
def test_winograd_is_for_plain_windows(name, parameters):
    shape = (1, 64, 64, 128), (3, 3, 128 // parameters.get("groups", 1), 128)
    with using_plan("winograd_f4"):
        assert chosen(name, *shape, **parameters) in (*PLAIN_SUMS, "residues")


def test_gradients_to_the_input_that_are_no_convolution_have_one_plan_each():
    def of(size: int, kernel: int, stride: int, padding: int, **parameters: Any) -> str:
        shape = (1, size, size, 8), (kernel, kernel, 8 // parameters.get("groups", 1), 8)
        return plan("conv2d_grad_input", *shape, **geometry(padding, stride, **parameters)).algorithm

    assert of(28, 2, 2, 0) == "side_by_side"
    assert of(29, 2, 2, 0) == "residues"  # the last row is in no window
    assert of(28, 2, 2, 1) == "residues"
    assert of(28, 2, 2, 0, groups=2) == "residues"
    assert of(28, 2, 2, 0, dilation=2) == "residues"
    assert of(28, 3, 2, 1) == of(28, 1, 2, 0) == "residues"
    assert of(7, 6, 1, 0) == "taps"  # few windows, so far more pixels than outputs
    assert of(7, 7, 1, 0) == "side_by_side"  # a fully connected layer as a convolution


def test_a_plan_says_why():
    line = explain("conv2d_grad_weight", (2, 64, 64, 128), (3, 3, 128, 64), **PLAIN)
    assert line.startswith("conv2d_grad_weight 2 x 64x64x128 -> 64, 3x3: winograd_f4, tile ")
    assert "the quickest; alternatives: patches " in line
    line = explain("conv2d_grad_input", (2, 64, 62, 128), (3, 3, 128, 64), **geometry(0), precision="exact-order")
    assert line.startswith("conv2d_grad_input 2 x 62x60x64 -> 128, 3x3: patches")  # of the output's gradient
    assert "winograd_f2 (not in exact order)" in line


@ALGORITHM
def test_the_error_of_a_plan_is_the_bound_of_equal_numbers(algorithm):
    m = ALGORITHMS[algorithm].outputs
    x, g = np.ones((3, m + 2, m + 2, 1)), np.ones((3, m, m, 1))  # three images of a tile each
    size = absolute_gradient_sums(x, g, ((0, 0), (0, 0)), algorithm).max() / g.size
    factor = gradient_error_factor(algorithm, g.shape, Rounding.of(np.float32))
    assert winograd_gradient.error(WINOGRAD[algorithm], [3]) == pytest.approx(size * factor, rel=1e-6)


def test_sums_of_many_tiles_are_no_rougher_than_those_of_a_block():
    for size in (512, 1024):
        assert chosen("conv2d_grad_weight", (2, size, size, 256), (3, 3, 256, 256)) == "winograd_f4"
    assert winograd_gradient.error(WINOGRAD["winograd_f4"], [256] * 10) < 2e-3


# bounds


# images, rows and columns, channels and outputs, the paddings, and for the two arrays the magnitude and its spread
extents = st.integers(1, 13)
pads = st.tuples(st.integers(0, 4), st.integers(2, 4))
magnitudes = st.sampled_from([(0, 0), (3, 0), (0, 3), (30, -30), (36, 0), (-30, -6)])
cases = st.fixed_dictionaries(
    {
        "images": st.integers(1, 3),
        "size": st.tuples(extents, extents),
        "channels": st.integers(1, 9),
        "outputs": st.integers(1, 5),
        "padding": st.tuples(pads, pads),
        "magnitudes": magnitudes,
        "spreads": st.tuples(*[st.sampled_from([0, 2])] * 2),
        "seed": seeds,
    }
)


def made(name: str, case: dict[str, Any]) -> Call:
    """What Winograd can serve: thin images, wide paddings, numbers of very different size."""
    n, (h, w), c, o, padding = (case[key] for key in ("images", "size", "channels", "outputs", "padding"))
    shapes = {
        "x": (n, h, w, c),
        "grad_output": (n, h + sum(padding[0]) - 2, w + sum(padding[1]) - 2, o),
        "w": (3, 3, c, o),
    }
    of_input, rng = name == "conv2d_grad_input", np.random.default_rng(case["seed"])
    arrays = {
        key: rng.standard_normal(shapes[key]) * 10.0 ** (size + rng.uniform(-spread, spread, shapes[key]))
        for key, size, spread in zip(
            ("grad_output", "w") if of_input else ("x", "grad_output"),
            case["magnitudes"],
            case["spreads"],
            strict=True,
        )
    }
    extra = {"input_size": (h, w)} if of_input else {"kernel_size": (3, 3)}
    return Call.of(arrays, {**extra, **PLAIN, "padding": padding}, exact=False).astype(np.float32)


def departure(name: str, call: Call, algorithm: Any, result: np.ndarray | None = None) -> float:
    """The largest error, of the kernel's or another result, in units of the bound of `algorithm`."""
    rounding = Rounding(2.0**-24, algorithm=algorithm)
    (expected,) = CONTRACTS[name].bound(getattr(ops, name).specification, call, rounding)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        error = abs((call.apply(KERNELS[name]) if result is None else result) - expected.value)
        share = np.where(expected.allowed == np.inf, 0, error / expected.allowed)
    return float(np.where((error == 0) & (expected.allowed == 0), 0, share).max())


@ALGORITHM
@given(case=cases, name=st.sampled_from(NAMES), block_bytes=st.sampled_from([1, 4000, 6 << 20]), cached=st.booleans())
@same_threads
def test_winograd_keeps_its_bound(thread_count, algorithm, case, name, block_bytes, cached):
    call = made(name, case)
    with (
        pytest.MonkeyPatch.context() as patch,
        using_plan(algorithm),
        np.errstate(invalid="ignore", over="ignore"),
    ):
        patch.setattr(winograd_gradient, "BLOCK_BYTES", block_bytes)  # from a row of tiles to all of them
        patch.setattr(winograd_gradient, "CACHED_BYTES", winograd_gradient.CACHED_BYTES if cached else 0)
        assert call.apply(KERNELS[name].algorithm) == algorithm
        assert departure(name, call, algorithm) <= 1


@NAME
@given(cases)
def test_exact_order_keeps_the_plain_bound(name, case):
    call = made(name, {**case, "magnitudes": (0, 0)})  # others may overflow
    with precision("exact-order"), np.errstate(invalid="ignore", over="ignore"):
        assert call.apply(KERNELS[name].algorithm) == "plain"
        assert departure(name, call, "plain") <= 1


@ALGORITHM
@NAME
def test_forced_plans_keep_the_contract(algorithm, name):
    with using_plan(algorithm):
        report = check_kernel(getattr(ops, name), KERNELS[name], max_examples=60)
    assert report.worst <= 1


def layer(name: str, seed: int = 0) -> Call:
    rng = np.random.default_rng(seed)
    x, g, w = (rng.standard_normal(shape) for shape in ((2, 16, 15, 8), (2, 16, 15, 4), (3, 3, 8, 4)))
    if name == "conv2d_grad_input":
        call = Call.of({"grad_output": g, "w": w}, {"input_size": (16, 15), **PLAIN}, exact=False)
    else:
        call = Call.of({"x": x, "grad_output": g}, {"kernel_size": (3, 3), **PLAIN}, exact=False)
    return call.astype(np.float32)


@ALGORITHM
@NAME
def test_the_bound_finds_what_is_wrong(algorithm, name):
    call = layer(name)
    without_a_pixel = call["grad_output"].copy()
    without_a_pixel[1, 15, 14] = 0
    with using_plan(algorithm):
        right = call.apply(KERNELS[name])
        assert departure(name, call, algorithm, right) <= 1
        wrongs = [
            call.changed(grad_output=without_a_pixel).apply(KERNELS[name]),
            right.swapaxes(0, 1) if name == "conv2d_grad_weight" else np.roll(right, 1, axis=2),
            right + np.float32(0.01) * abs(right).max(),
        ]
    assert all(departure(name, call, algorithm, wrong) > 1 for wrong in wrongs)


@same_threads
@given(case=cases, name=st.sampled_from(NAMES))
def test_two_outputs_a_tile_are_exact_on_integers(thread_count, case, name):
    """The numbers of F(2 x 2, 3 x 3) are halves: small integers are never rounded."""
    call, rng = made(name, case), np.random.default_rng(case["seed"])
    call = call.changed(**{k: rng.integers(-3, 4, v.shape).astype(np.float32) for k, v in call.arrays.items()})
    with using_plan("winograd_f2"):
        np.testing.assert_array_equal(call.apply(KERNELS[name]), call.apply(getattr(ops, name).specification))


@ALGORITHM
def test_without_products_that_add(thread_count, algorithm, monkeypatch: pytest.MonkeyPatch):
    """NumPy may have a BLAS that can't be called by itself."""
    call = layer("conv2d_grad_weight")
    monkeypatch.setattr(winograd_gradient, "BLOCK_BYTES", 1)
    monkeypatch.setattr(winograd_gradient, "CACHED_BYTES", 0)
    monkeypatch.setattr(blas, "available", lambda: False)
    monkeypatch.setattr(blas, "multiply", None)
    with using_plan(algorithm):
        assert departure("conv2d_grad_weight", call, algorithm) <= 1


@ALGORITHM
@NAME
def test_inputs_need_not_be_contiguous_and_stay_as_they_are(thread_count, algorithm, name):
    call = layer(name)
    views = call.changed(**{k: np.repeat(v, 2, axis=-1)[..., ::2] for k, v in call.arrays.items()})
    with using_plan(algorithm):
        np.testing.assert_array_equal(views.apply(KERNELS[name]), call.apply(KERNELS[name]))
    for key, array in layer(name).arrays.items():
        np.testing.assert_array_equal(call[key], array)


@ALGORITHM
@NAME
def test_the_same_inputs_give_the_same_bits(thread_count, algorithm, name):
    call = layer(name)
    with using_plan(algorithm):
        first = call.apply(KERNELS[name])
        for _ in range(5):
            np.testing.assert_array_equal(call.apply(KERNELS[name]), first)
