"""The plans of convolutions: what is chosen, and that each keeps its own bound of error."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet import ops
from refnet.errors import ArgumentError
from refnet.kernels.cpu import KERNELS, blas
from refnet.kernels.cpu.conv import explain, plan, shifted, using_plan
from refnet.kernels.cpu.conv.plan import WINOGRAD, _plan, winograd_error
from refnet.kernels.cpu.precision import precision, present_precision, set_precision
from refnet.testing import KernelMismatch, check_kernel
from refnet.testing.bounds import Rounding
from refnet.testing.calls import Call
from refnet.testing.contracts import CONTRACTS
from refnet.testing.strategies.geometry import Convolution, convolutions
from refnet.testing.winograd import ALGORITHMS, absolute_sums, error_factor
from tests.same_threads import same_threads

ALGORITHM = pytest.mark.parametrize("algorithm", sorted(WINOGRAD))
forward, fused = KERNELS["conv2d_forward"], KERNELS["conv2d_fused_forward"]


def geometry(kernel: int = 3, stride: int = 1, dilation: int = 1, groups: int = 1) -> dict[str, Any]:
    pad = (kernel // 2 * dilation,) * 2
    return {"stride": (stride,) * 2, "padding": (pad, pad), "dilation": (dilation,) * 2, "groups": groups}


PLAIN = geometry()
PLAIN_SUMS = ("patches", "shifted")


def chosen(x_shape: tuple[int, ...], w_shape: tuple[int, ...], **settings: Any) -> str:
    known = {"dtype", "precision"}
    return plan(
        "conv2d_forward",
        x_shape,
        w_shape,
        **geometry(w_shape[0], **{name: value for name, value in settings.items() if name not in known}),
        **{name: value for name, value in settings.items() if name in known},
    ).algorithm


# what is chosen


def test_the_shape_decides():
    assert chosen((1, 128, 128, 64), (1, 1, 64, 256)) == "product"
    assert chosen((1, 128, 128, 256), (1, 1, 256, 512), stride=2) == "patches"
    assert chosen((1, 512, 512, 3), (7, 7, 3, 64), stride=2) == "patches"
    assert chosen((1, 128, 128, 256), (3, 3, 256, 256)) == "winograd_f4"
    assert chosen((100, 14, 14, 256), (3, 3, 256, 256)) == "winograd_f4"
    assert chosen((1, 16, 16, 512), (3, 3, 512, 512)) == "winograd_f2"
    assert chosen((1, 64, 64, 256), (5, 5, 256, 256)) == "shifted"
    assert (
        chosen((1, 64, 64, 8), (5, 5, 8, 64)) == "patches"
    )  # sums of many outputs would be read more often than pixels
    assert chosen((1, 8, 8, 256), (3, 3, 256, 256)) == "patches"  # the weights would take longer than the image


@pytest.mark.parametrize("changes", [{"stride": 2}, {"dilation": 2}, {"groups": 2}, {"dtype": np.float64}])
def test_winograd_is_for_plain_windows_of_float32(changes):
    shape = (1, 64, 64, 128), (3, 3, 128 // changes.get("groups", 1), 128)
    assert chosen(shape[0], (3, 3, 128, 128)).startswith("winograd")
    assert chosen(*shape, **changes) in PLAIN_SUMS
    with using_plan("winograd_f4"):
        assert chosen(*shape, **changes) in PLAIN_SUMS


def test_precision_keeps_plain_sums():
    shape = (1, 64, 64, 128), (3, 3, 128, 128)
    assert chosen(*shape, precision="exact-order") in PLAIN_SUMS
    with precision("exact-order"):
        assert chosen(*shape) in PLAIN_SUMS
        with precision("float32"):
            assert chosen(*shape) == "winograd_f4"
        with using_plan("winograd_f4"):
            assert chosen(*shape) in PLAIN_SUMS
    try:
        set_precision("exact-order")
        assert present_precision() == "exact-order"
        assert chosen(*shape) in PLAIN_SUMS
    finally:
        set_precision("float32")
    with pytest.raises(ArgumentError, match="float32, exact-order, got 'tf32'"):
        set_precision("tf32")


def test_many_channels_are_too_rough_for_tiles_of_16_outputs():
    found = plan("conv2d_forward", (1, 256, 256, 1024), (3, 3, 1024, 1024), **PLAIN)
    assert found.algorithm == "winograd_f2"
    assert "winograd_f4 (error up to 4.0e-03)" in str(found)


def test_a_plan_can_be_asked_for(monkeypatch):
    shape = (1, 64, 64, 128), (3, 3, 128, 128)
    with using_plan("winograd_f2"):
        assert chosen(*shape) == "winograd_f2"
        with using_plan("patches"):
            assert chosen(*shape) == "patches"
        assert chosen((1, 4, 4, 8), (1, 1, 8, 8)) == "product"
    monkeypatch.setenv("REFNET_CONV_PLAN", "winograd_f2")
    assert chosen(*shape) == "winograd_f2"
    monkeypatch.setenv("REFNET_CONV_PLAN", "fft")
    with pytest.raises(ArgumentError, match=r"expected one of .* got 'fft'"):
        chosen(*shape)
    with pytest.raises(ArgumentError, match=r"expected one of .* got 'fft'"), using_plan("fft"):
        pass


def test_a_plan_says_why():
    line = explain("conv2d_forward", (2, 64, 64, 128), (3, 3, 128, 128), **PLAIN)
    assert line.startswith("conv2d_forward 2 x 64x64x128 -> 128, 3x3: winograd_f4, tile 256, about ")
    assert "the quickest; alternatives: patches " in line
    assert "error at most 6.0e-04 of the sum of absolute products" in line
    line = explain("conv2d_forward", (1, 9, 9, 8), (1, 1, 4, 6), **geometry(1, stride=2, groups=2))
    assert "1 x 9x9x8 -> 6, 1x1 / 2x2, 2 groups: patches" in line
    assert line.endswith("nothing else can serve; alternatives: none")
    line = explain("conv2d_forward", (1, 9, 9, 8), (3, 3, 8, 8), **PLAIN, precision="exact-order")
    assert "winograd_f2 (not in exact order)" in line


def test_without_openblas_nothing_is_added_to_what_is_there(monkeypatch):
    shape = (1, 64, 64, 256), (5, 5, 256, 256)
    assert chosen(*shape) == "shifted"
    monkeypatch.setattr(blas, "available", lambda: False)
    _plan.cache_clear()
    assert "patches" in explain("conv2d_forward", *shape, **geometry(5))
    assert "shifted (needs OpenBLAS)" in explain("conv2d_forward", *shape, **geometry(5))
    with using_plan("shifted"):
        assert chosen(*shape) == "patches"
    _plan.cache_clear()


# sums of taps, one after the other


@given(case=convolutions(least_images=0), tile=st.sampled_from([1, 500, 1 << 20]), transposed=st.booleans())
@same_threads
def test_shifted_taps_equal_the_specification_on_integers(thread_count, case: Convolution, tile: int, transposed: bool):
    x, w = (case.rng.integers(-3, 4, shape).astype(np.float32) for shape in (case.x_shape, case.w_shape))
    if transposed:
        w = np.ascontiguousarray(w.swapaxes(2, 3)).swapaxes(2, 3)
    parameters = {**case.parameters, "stride": (1, 1)}
    with pytest.MonkeyPatch.context() as patch, using_plan("shifted"):
        patch.setattr(shifted, "TILE_BYTES", tile)
        _plan.cache_clear()
        y = forward(x, w, **parameters)
        _plan.cache_clear()
    np.testing.assert_array_equal(y, ops.conv2d_forward.specification(x, w, **parameters))


# the algorithms' matrices


@ALGORITHM
def test_the_matrices_are_those_of_the_bound(algorithm):
    ours, theirs = WINOGRAD[algorithm], ALGORITHMS[algorithm]
    for name in ("data", "taps", "result"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-15, atol=0)


@ALGORITHM
def test_the_matrices_are_exact(algorithm):
    """A^T [(G w) (B^T x)] is the correlation of x and w, for all pairs of unit vectors, in fractions."""
    matrices = ALGORITHMS[algorithm]
    data, taps, result = (
        [[Fraction(float(v)).limit_denominator(10**6) for v in row] for row in m]
        for m in (matrices.data, matrices.taps, matrices.result)
    )
    for pixel in range(len(data)):
        for tap in range(3):
            outputs = [sum(row[p] * taps[p][tap] * data[p][pixel] for p in range(len(data))) for row in result]
            assert outputs == [int(output + tap == pixel) for output in range(len(result))]


@ALGORITHM
def test_the_error_of_a_plan_is_the_bound_of_equal_numbers(algorithm):
    outputs = ALGORITHMS[algorithm].outputs
    x, w = np.ones((1, outputs + 2, outputs + 2, 7)), np.ones((3, 3, 7, 1))
    size = absolute_sums(x, w, ((0, 0), (0, 0)), algorithm).max() / (9 * 7)
    assert winograd_error(WINOGRAD[algorithm], 7) == pytest.approx(
        size * error_factor(algorithm, 7, Rounding.of(np.float32)), rel=1e-6
    )


# bounds


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """Convolutions that Winograd can serve: thin images, wide paddings, numbers of very different size."""
    n, h, w = draw(st.integers(1, 3)), draw(st.integers(1, 13)), draw(st.integers(1, 13))
    c, o = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    pads = tuple((draw(st.integers(0, 4)), draw(st.integers(2, 4))) for _ in range(2))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    sizes = draw(st.sampled_from([(0, 0), (3, 0), (0, 3), (30, -30), (36, 0), (-30, -6)]))
    arrays = [
        rng.standard_normal(shape) * 10.0 ** (size + rng.uniform(-spread, spread, shape))
        for shape, size, spread in zip(
            ((n, h, w, c), (3, 3, c, o)), sizes, draw(st.tuples(*[st.sampled_from([0, 2])] * 2)), strict=True
        )
    ]
    return Call.of({"x": arrays[0], "w": arrays[1]}, {**PLAIN, "padding": pads}, exact=False)


def departure(call: Call, algorithm: Any) -> float:
    """The largest error in units of the bound of `algorithm`."""
    rounding = Rounding(2.0**-24, algorithm=algorithm)
    (expected,) = CONTRACTS["conv2d_forward"].bound(ops.conv2d_forward.specification, call, rounding)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        error = abs(call.apply(forward) - expected.value)
        share = np.where(expected.allowed == np.inf, 0, error / expected.allowed)
    return float(np.where((error == 0) & (expected.allowed == 0), 0, share).max())


@ALGORITHM
@same_threads
@given(calls())
def test_winograd_keeps_its_bound(thread_count, algorithm, call):
    call = call.astype(np.float32)
    with using_plan(algorithm), np.errstate(invalid="ignore", over="ignore"):
        assert call.apply(forward.algorithm) == algorithm
        assert departure(call, algorithm) <= 1


@given(calls())
def test_exact_order_keeps_the_plain_bound(call):
    call = call.astype(np.float32)
    with precision("exact-order"), np.errstate(invalid="ignore", over="ignore"):
        assert call.apply(forward.algorithm) == "plain"
        assert departure(call, "plain") <= 1


@ALGORITHM
def test_winograd_does_not_keep_the_plain_bound_so_the_bounds_differ(algorithm):
    rng = np.random.default_rng(0)
    x = rng.uniform(0.5, 1, (1, 40, 40, 1))
    w = np.zeros((3, 3, 1, 1))
    w[0, 0] = 1
    call = Call.of({"x": x * 10.0 ** rng.uniform(-6, 6, x.shape), "w": w}, PLAIN).astype(np.float32)
    with using_plan(algorithm):
        assert departure(call, "plain") > 1
        assert departure(call, algorithm) <= 1


@ALGORITHM
@pytest.mark.parametrize("name", ["conv2d_forward", "conv2d_fused_forward"])
def test_forced_plans_keep_the_contract(thread_count, algorithm, name):
    with using_plan(algorithm):
        report = check_kernel(getattr(ops, name), KERNELS[name], max_examples=60)
    assert report.worst <= 1


def test_a_kernel_that_does_not_say_so_is_held_to_the_plain_bound():
    def silent(x, w, **settings):
        return forward(x, w, **settings)

    def only(x, w, stride, dilation, groups, **_: Any) -> bool:
        return (*w.shape[:2], *stride, *dilation, groups) == (3, 3, 1, 1, 1, 1, 1)

    with using_plan("winograd_f4"), pytest.raises(KernelMismatch):
        check_kernel(ops.conv2d_forward, silent, only=only, max_examples=20, dtypes=["float32"], shrink=False)
    with using_plan("winograd_f4"):
        check_kernel(
            ops.conv2d_forward, silent, only=only, algorithm=forward.algorithm, max_examples=20, dtypes=["float32"]
        )


def test_a_wrong_entry_of_a_matrix_is_caught(monkeypatch):
    wrong = WINOGRAD["winograd_f4"].data.copy()
    wrong[0, 0] += 1e-3
    monkeypatch.setitem(
        WINOGRAD,
        "winograd_f4",
        type(WINOGRAD["winograd_f4"])(
            name="wrong",
            outputs=4,
            data=wrong,
            taps=WINOGRAD["winograd_f4"].taps,
            result=WINOGRAD["winograd_f4"].result,
        ),
    )
    rng = np.random.default_rng(0)
    call = Call.of({"x": rng.standard_normal((1, 9, 9, 4)), "w": rng.standard_normal((3, 3, 4, 4))}, PLAIN)
    with using_plan("winograd_f4"):
        assert departure(call.astype(np.float32), "winograd_f4") > 1


# what isn't finite


@ALGORITHM
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@given(
    place=st.tuples(st.integers(0, 1), st.integers(0, 10), st.integers(0, 8)),
    pads=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_what_is_not_finite_stays_within_the_tiles_that_read_it(algorithm, value, place, pads):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 11, 9, 3)).astype(np.float32)
    w = rng.standard_normal((3, 3, 3, 2)).astype(np.float32)
    spoilt = x.copy()
    spoilt[(*place, 1)] = value
    settings = {**PLAIN, "padding": ((pads[0],) * 2, (pads[1],) * 2)}
    with using_plan(algorithm), np.errstate(invalid="ignore", over="ignore"):
        clean, y = forward(x, w, **settings), forward(spoilt, w, **settings)
        expected = ops.conv2d_forward.specification(spoilt, w, **settings)
    m = ALGORITHMS[algorithm].outputs
    reached = np.zeros(y.shape, bool)
    image, row, column = place
    for i in range(0, y.shape[1], m):
        for j in range(0, y.shape[2], m):
            if i <= row + pads[0] < i + m + 2 and j <= column + pads[1] < j + m + 2:
                reached[image, i : i + m, j : j + m] = True
    np.testing.assert_array_equal(y[~reached], clean[~reached])
    assert not np.isfinite(y[~np.isfinite(expected)]).any()


@pytest.mark.parametrize("algorithm", PLAIN_SUMS)
def test_in_exact_order_what_is_not_finite_stays_within_its_windows(algorithm):
    x, w = np.ones((1, 9, 9, 3), np.float32), np.ones((3, 3, 3, 2), np.float32)
    x[0, 4, 4, 1] = np.inf
    with precision("exact-order"), using_plan(algorithm), np.errstate(invalid="ignore"):
        y = forward(x, w, **PLAIN)
    assert np.isinf(y).sum() == 9 * 2
    assert np.isinf(y[0, 3:6, 3:6]).all()


# threads


@ALGORITHM
@pytest.mark.parametrize("shape", [(1, 30, 21, 5), (7, 9, 9, 5)])
def test_the_same_inputs_give_the_same_bits(thread_count, algorithm, shape):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    w = rng.standard_normal((3, 3, 5, 6)).astype(np.float32)
    scale, shift = rng.standard_normal((2, 6)).astype(np.float32)
    residual = rng.standard_normal((*shape[:3], 6)).astype(np.float32)
    with using_plan(algorithm):
        first = fused(x, w, scale, shift, residual, relu=True, **PLAIN)
        assert (first >= 0).all()
        for _ in range(4):
            np.testing.assert_array_equal(fused(x, w, scale, shift, residual, relu=True, **PLAIN), first)
    expected = ops.conv2d_fused_forward.specification(x, w, scale, shift, residual, relu=True, **PLAIN)
    np.testing.assert_allclose(first, expected, rtol=0, atol=1e-3)
