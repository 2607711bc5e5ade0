"""The CUDA convolution in the emulator, against its specification: every path of the plan, over any geometry.

A sum of K products in precision u, in any order, obeys |y - y*| <= (K + 1) u sum |x| |w|; on small integers nothing is
rounded, and every order gives the same bits.
"""

import math
import shutil
from collections.abc import Callable, Container
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refnet import ops
from refnet.errors import ArgumentError, DTypeError, KernelFault, LaunchError, ShapeError
from refnet.kernels.cuda import KERNELS, conv2d
from refnet.kernels.cuda.program import FOLDER, sources_in
from refnet.kernels.emulator import available, running
from refnet.testing.strategies.geometry import Convolution, convolutions

pytestmark = pytest.mark.skipif(not available(), reason="the emulator needs g++")

UNIT = {np.float32: 2.0**-24, np.float64: 2.0**-53}
PLAIN = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}
seeds = st.integers(0, 3)
precisions = st.sampled_from(["float32", "tf32", "bf16"])
OPERATIONS: tuple[conv2d.Operation, ...] = ("forward", "grad_input", "grad_weight")


def cases(case: Convolution, x: np.ndarray, w: np.ndarray, u: np.ndarray) -> list[tuple[str, int, tuple, dict]]:
    """The three operations: name, products in a sum, arrays, parameters."""
    taps, sizes = math.prod(case.w_shape[:2]), case.parameters
    return [
        ("conv2d_forward", taps * w.shape[2], (x, w), sizes),
        ("conv2d_grad_input", taps * w.shape[3] // case.groups, (u, w), {"input_size": x.shape[1:3], **sizes}),
        ("conv2d_grad_weight", u[..., 0].size, (x, u), {"kernel_size": w.shape[:2], **sizes}),
    ]


def draw(case: Convolution, sample: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]) -> list[np.ndarray]:
    rng = case.rng
    return [sample(rng, shape) for shape in (case.x_shape, case.w_shape, case.y_shape)]


def integers(dtype: type = np.float32) -> Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]:
    return lambda rng, shape: rng.integers(-3, 4, shape).astype(dtype)


def assert_equal_the_specification(
    case: Convolution, dtype: type = np.float32, operations: Container[str] = OPERATIONS
) -> None:
    for name, _, inputs, parameters in cases(case, *draw(case, integers(dtype))):
        if name[7:] not in operations:
            continue
        y = KERNELS[name](*inputs, **parameters)
        assert y.dtype == dtype
        np.testing.assert_array_equal(y, getattr(ops, name).specification(*inputs, **parameters), err_msg=name)


def layer(x_shape, w_shape, stride=1, padding=0, dilation=1, groups=1) -> Convolution:
    return Convolution(
        x_shape=x_shape,
        w_shape=w_shape,
        stride=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dilation=(dilation, dilation),
        groups=groups,
        seed=0,
    )


def widened(case: Convolution, times: int) -> Convolution:
    """The convolution with `times` as many channels on both sides."""
    (*extent, channels), (*kernel, each, outputs) = case.x_shape, case.w_shape
    return replace(case, x_shape=(*extent, times * channels), w_shape=(*kernel, times * each, times * outputs))


@given(
    case=convolutions(least_images=0),
    seed=seeds,
    splits=st.sampled_from([None, 2, 3]),
    precision=precisions,
    times=st.sampled_from([1, 4, 8]),
)
@settings(max_examples=40)
def test_any_geometry(case: Convolution, seed: int, splits: int | None, precision: conv2d.Precision, times: int):
    """In any precision, since TF32 and bfloat16 hold small integers."""
    with running(mode="check", seed=seed), conv2d.forcing(splits=splits), conv2d.precision(precision):
        assert_equal_the_specification(widened(case, times))


@given(case=convolutions(), times=st.sampled_from([1, 4]), dtype=st.sampled_from([np.float32, np.float64]))
@settings(max_examples=20)
def test_are_within_the_bound_of_rounding(case: Convolution, times: int, dtype: type):
    assert_within_the_bound(widened(case, times), dtype, 0)


@pytest.mark.parametrize(("precision", "unit"), [("tf32", 2.0**-10), ("bf16", 2.0**-8)])
def test_rounded_operands_are_within_their_bound(precision: conv2d.Precision, unit: float):
    """Each operand departs by a unit at most: by half, where it is rounded and not cut off."""
    for case in (layer((1, 6, 5, 16), (3, 3, 16, 24), padding=1), layer((2, 7, 7, 8), (3, 3, 8, 8), stride=2)):
        with conv2d.precision(precision):
            assert_within_the_bound(case, np.float32, 2 * unit + unit**2)
        x, w, _ = draw(case, lambda rng, shape: rng.standard_normal(shape).astype(np.float32))
        exact = KERNELS["conv2d_forward"](x, w, **case.parameters)
        with conv2d.precision(precision):
            assert not np.array_equal(KERNELS["conv2d_forward"](x, w, **case.parameters), exact)


def assert_within_the_bound(
    case: Convolution, dtype: type, of_operands: float, operations: Container[str] = OPERATIONS
) -> None:
    """|y - y*| <= (K + 1) u sum |x| |w|, and `of_operands` times that sum for what operands lose."""
    arrays = draw(case, lambda rng, shape: rng.standard_normal(shape).astype(dtype))
    with running(mode="check"):
        for name, products, inputs, parameters in cases(case, *arrays):
            if name[7:] not in operations:
                continue
            y = KERNELS[name](*inputs, **parameters)
            specification = getattr(ops, name).specification
            reference = specification(*(a.astype(np.float64) for a in inputs), **parameters)
            size = specification(*(abs(a).astype(np.float64) for a in inputs), **parameters)
            bound = (products + 1) * (UNIT[dtype] + UNIT[np.float64]) * size  # the reference is rounded, too
            assert (abs(y - reference) <= (1 + of_operands) * bound + of_operands * size).all(), name


HOPPER = pytest.mark.parametrize("tile", [conv2d.HOPPER_TF32, conv2d.HOPPER_BF16], ids=lambda tile: tile.atom)


@HOPPER
def test_hoppers_operands_are_within_their_bound(tile: conv2d.Tile):
    """TF32 is cut off, by a unit at most. The last slice of the reduction is only partly there."""
    unit = {"WgmmaTf32": 2.0**-10, "WgmmaBf16": 2.0**-8}[tile.atom]
    for case in (layer((1, 6, 5, 16), (3, 3, 16, 24), padding=1), layer((2, 7, 7, 8), (3, 3, 8, 8), stride=2)):
        with conv2d.forcing(tile=tile):
            assert_within_the_bound(case, np.float32, 2 * unit + unit**2, tile.operations)


@HOPPER
@given(
    case=convolutions(least_images=0),
    seed=seeds,
    splits=st.sampled_from([1, 3]),
    extras=st.lists(st.booleans(), min_size=4, max_size=4),
)
@settings(max_examples=15)
def test_any_geometry_on_hopper(tile: conv2d.Tile, case: Convolution, seed: int, splits: int, extras: list[bool]):
    case = widened(case, 8)
    with running(mode="check", seed=seed), conv2d.forcing(tile=tile, splits=splits):
        assert_equal_the_specification(case, operations=tile.operations)
        assert_fused_equals_the_specification(case, extras)


@HOPPER
def test_hopper_has_its_own_tile_where_it_pays(tile: conv2d.Tile):
    with conv2d.precision("tf32" if tile.atom == "WgmmaTf32" else "bf16"):
        for x_shape, w_shape in (((8, 50, 68, 256), (3, 3, 256, 256)), ((8, 100, 136, 512), (1, 1, 512, 128))):
            shape = conv2d.shape_of("test", x_shape, w_shape, **PLAIN)
            plans = {c: [conv2d.plan(op, shape, "float32", c).tile for op in OPERATIONS] for c in (0, 80, 90, 100)}
            assert plans[90][:2] == [tile, tile]
            assert plans[90][2].atom == tile.atom[5:]
            assert plans[0] == plans[80] == plans[100]
            assert all(not other.only for other in plans[80])
        few = conv2d.shape_of("test", (1, 8, 8, 6), (3, 3, 6, 6), **PLAIN)
        assert not conv2d.plan("forward", few, "float32", 90).tile.only


def test_hoppers_tile_is_refused_elsewhere_and_for_the_gradient_to_weights():
    shape = conv2d.shape_of("test", (1, 8, 8, 16), (3, 3, 16, 16), **PLAIN)
    with conv2d.forcing(tile=conv2d.HOPPER_BF16):
        assert conv2d.plan("forward", shape, "float32", 90).tile is conv2d.HOPPER_BF16
        for operation, capability in (("forward", 100), ("grad_weight", 90)):
            with pytest.raises(ArgumentError, match="no plan"):
                conv2d.plan(operation, shape, "float32", capability)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("right", "wrong", "found"),
    [
        ("      fence_proxy_async();\n", "", "without a fence.proxy.async"),
        ("      atom.finish();\n", "", "wgmma"),
        ("position / CHUNK ^ line % 8", "position / CHUNK", "not equal"),
    ],
    ids=["no fence", "tiles overwritten", "no swizzle"],
)
def test_a_mistake_with_hoppers_tile_is_found(right: str, wrong: str, found: str, tmp_path: Path):
    folder = tmp_path / "cuda"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    source = folder / "conv2d.cu"
    assert source.read_text().count(right) == 1
    source.write_text(source.read_text().replace(right, wrong))
    tile = conv2d.HOPPER_TF32
    case = layer((1, 9, 9, 32), (3, 3, 32, 40))
    with (
        sources_in(folder),
        running(mode="check", seed=1),
        conv2d.forcing(tile=tile, splits=1),
        pytest.raises((KernelFault, AssertionError), match=found),
    ):
        assert_equal_the_specification(case, operations=tile.operations)


def test_the_precision_is_float32_unless_a_block_or_the_program_says_otherwise():
    assert conv2d.present_precision() == "float32"
    with conv2d.precision("tf32"):
        with conv2d.precision("bf16"):
            assert conv2d.present_precision() == "bf16"
        assert conv2d.present_precision() == "tf32"
    try:
        conv2d.set_precision("bf16")
        assert conv2d.present_precision() == "bf16"
        shape = conv2d.shape_of("test", (1, 8, 8, 16), (3, 3, 16, 16), **PLAIN)
        assert conv2d.plan("forward", shape, "float32").tile.atom == "Bf16"
        assert conv2d.plan("forward", shape, "float64").tile.atom == "Simt"
    finally:
        conv2d.set_precision("float32")
    with pytest.raises(ArgumentError, match="float32, tf32, bf16, got 'float16'"):
        conv2d.set_precision("float16")


def test_channels_that_are_not_whole_vectors_are_tf32_and_not_bfloat16():
    shape = conv2d.shape_of("test", (1, 8, 8, 12), (3, 3, 12, 16), **PLAIN)
    with conv2d.precision("bf16"):
        atoms = [conv2d.plan(operation, shape, "float32").tile.atom for operation in OPERATIONS]
    assert atoms == ["Tf32", "Bf16", "Tf32"]


@pytest.mark.parametrize("tile", conv2d.ALL_TILES, ids=lambda tile: f"{tile.atom}-{tile.dtype}-{tile.rows}")
@pytest.mark.parametrize("splits", [1, 3])
def test_each_tile_hanging_over_on_both_sides(tile: conv2d.Tile, splits: int):
    channels, outputs = 3 * tile.vector, tile.columns + tile.vector
    case = layer((2, 9, tile.rows // 16 + 1, channels), (3, 2, channels, outputs), padding=1)
    with running(mode="check", seed=5), conv2d.forcing(tile=tile, splits=splits):
        assert_equal_the_specification(case, np.dtype(tile.dtype).type, tile.operations)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "stride", "padding", "dilation", "groups"),
    [
        ((2, 11, 9, 3), (7, 7, 3, 8), 2, 3, 1, 1),  # a stem
        ((1, 7, 7, 16), (1, 1, 16, 20), 2, 0, 1, 1),  # a shortcut: most pixels of the input have no gradient
        ((1, 7, 6, 8), (3, 3, 8, 6), 1, 2, 2, 1),  # weights whose rows aren't whole vectors
        ((1, 6, 6, 16), (3, 3, 4, 16), 2, 1, 1, 4),
        ((1, 5, 5, 4), (2, 2, 4, 4), 3, 0, 2, 1),  # a stride that some taps never meet
        ((2, 1, 1, 8), (3, 3, 8, 4), 1, 1, 1, 1),  # mostly padding
    ],
)
def test_layers(x_shape, w_shape, stride, padding, dilation, groups):
    with running(mode="check", seed=1):
        assert_equal_the_specification(layer(x_shape, w_shape, stride, padding, dilation, groups))


@given(
    case=convolutions(least_images=0),
    given=st.lists(st.booleans(), min_size=4, max_size=4),
    splits=st.sampled_from([None, 2]),
    quadruple=st.booleans(),
)
@settings(max_examples=20)
def test_the_epilogue(case: Convolution, given: list[bool], splits: int | None, quadruple: bool):
    case = replace(case, w_shape=(*case.w_shape[:3], 4 * case.w_shape[3])) if quadruple else case
    with running(mode="check"), conv2d.forcing(splits=splits):
        assert_fused_equals_the_specification(case, given)


def assert_fused_equals_the_specification(case: Convolution, given: list[bool]) -> None:
    """With those of scale, shift, residual and ReLU that are given."""
    rng = case.rng
    shapes = (case.x_shape, case.w_shape, case.w_shape[3:], case.w_shape[3:], case.y_shape)
    x, w, *extras = (rng.integers(-3, 4, shape).astype(np.float32) for shape in shapes)
    extras = [array if wanted else None for array, wanted in zip(extras, given, strict=False)]
    parameters = {"relu": given[3], **case.parameters}
    y = KERNELS["conv2d_fused_forward"](x, w, *extras, **parameters)
    np.testing.assert_array_equal(y, ops.conv2d_fused_forward.specification(x, w, *extras, **parameters))


def test_relu_keeps_a_nan():
    x = np.array([np.nan, -1, 1, np.inf], np.float32).reshape(1, 4, 1, 1)
    with running(mode="check"):
        y = KERNELS["conv2d_fused_forward"](x, np.ones((1, 1, 1, 1), np.float32), None, None, None, relu=True, **PLAIN)
    np.testing.assert_array_equal(y.ravel(), [np.nan, 0, 1, np.inf])


@pytest.mark.parametrize("name", ["scale", "shift", "residual"])
def test_an_epilogue_of_another_shape(name: str):
    extras = {"scale": None, "shift": None, "residual": None, name: np.ones(3, np.float32)}
    x, w = np.ones((1, 2, 2, 1), np.float32), np.ones((1, 1, 1, 2), np.float32)
    with pytest.raises(ShapeError, match=name):
        KERNELS["conv2d_fused_forward"](x, w, *extras.values(), relu=False, **PLAIN)


@pytest.mark.parametrize("tile", [conv2d.SMALL, conv2d.SMALL_TF32, None], ids=["Simt", "Tf32", "as planned"])
def test_groups_of_few_channels(tile: conv2d.Tile | None):
    for x_shape, w_shape, stride, dilation in (
        ((2, 7, 6, 40), (3, 3, 1, 40), 1, 1),
        ((1, 9, 7, 6), (3, 2, 2, 9), 2, 1),
        ((1, 9, 7, 6), (2, 2, 2, 6), 3, 2),
    ):
        groups = x_shape[3] // w_shape[2]
        case = layer(x_shape, w_shape, stride=stride, padding=1, dilation=dilation, groups=groups)
        shape = conv2d.shape_of("test", x_shape, w_shape, **case.parameters)
        with running(mode="check", seed=2), conv2d.forcing(tile=tile):
            atoms = {conv2d.plan(operation, shape, "float32").tile.atom for operation in OPERATIONS}
            assert_equal_the_specification(case)
        assert atoms == {"Direct" if tile is None else tile.atom}


def test_a_large_layer_split_as_planned():
    case = layer((1, 32, 32, 64), (3, 3, 64, 64), padding=1)
    shape = conv2d.shape_of("test", case.x_shape, case.w_shape, **case.parameters)
    for operation in OPERATIONS:
        assert conv2d.plan(operation, shape, "float32").splits > 1, operation
    assert_equal_the_specification(case)


def test_inputs_need_not_be_contiguous_or_aligned():
    rng = np.random.default_rng(0)
    x = rng.integers(-3, 4, (1, 9, 8, 4)).astype(np.float32)[:, ::-1].transpose(0, 2, 1, 3)
    w = rng.integers(-3, 4, 1 + 9 * 4 * 8).astype(np.float32)[1:].reshape(3, 3, 4, 8)
    u = np.broadcast_to(np.float32(2), (1, 6, 7, 8))
    case = layer(x.shape, w.shape)
    with running(mode="check"):
        for name, _, inputs, parameters in cases(case, x, w, u):
            expected = getattr(ops, name).specification(*inputs, **parameters)
            np.testing.assert_array_equal(KERNELS[name](*inputs, **parameters), expected, err_msg=name)


@pytest.mark.parametrize("splits", [None, 3])
def test_the_same_inputs_give_the_same_bits_in_any_order_of_blocks(splits: int | None):
    case = layer((2, 9, 9, 8), (3, 3, 8, 8), padding=1)
    arrays = draw(case, lambda rng, shape: rng.standard_normal(shape).astype(np.float32))
    for name, _, inputs, parameters in cases(case, *arrays):
        results = []
        for seed in range(4):
            with running(seed=seed), conv2d.forcing(splits=splits):
                results.append(KERNELS[name](*inputs, **parameters))
        for other in results[1:]:
            np.testing.assert_array_equal(other, results[0], err_msg=name)


def test_a_nan_reaches_the_pixels_that_see_it_and_no_others():
    x = np.ones((1, 8, 8, 4), np.float32)
    x[0, 3, 4, 1] = np.nan
    with running(mode="check"):
        y = KERNELS["conv2d_forward"](x, np.ones((3, 3, 4, 4), np.float32), **PLAIN | {"padding": ((1, 1), (1, 1))})
    expected = np.zeros((8, 8), bool)
    expected[2:5, 3:6] = True
    assert (np.isnan(y[0]) == expected[..., None]).all()


def test_workspace_is_what_is_taken(monkeypatch: pytest.MonkeyPatch):
    case = layer((1, 6, 6, 8), (3, 3, 8, 8), stride=2, padding=1)
    taken = []
    empty = np.empty

    def counted(shape, dtype=float):
        array = empty(shape, dtype)
        taken.append(array.nbytes)
        return array

    for name, _, inputs, parameters in cases(case, *draw(case, integers())):
        for splits, precision, tile in (
            (1, "float32", None),
            (3, "float32", None),
            (3, "bf16", None),
            (3, "float32", conv2d.HOPPER_TF32),
            (1, "float32", conv2d.HOPPER_BF16),
        ):
            if tile and name[7:] not in tile.operations:
                continue
            with (
                conv2d.forcing(tile=tile, splits=splits),
                conv2d.precision(precision),
                pytest.MonkeyPatch.context() as patch,
            ):
                patch.setattr(np, "empty", counted)
                y = KERNELS[name](*inputs, **parameters)
                size = conv2d.workspace_size(name[7:], case.x_shape, case.w_shape, **case.parameters)  # type: ignore[arg-type]
            assert sum(taken) - y.nbytes == size, name
            assert size > 0 or (splits == 1 and name != "conv2d_grad_input")
            taken.clear()


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "changes", "error"),
    [
        ((1, 4, 4, 3), (3, 3, 2, 4), {}, ShapeError),
        ((1, 4, 4, 3), (5, 3, 3, 4), {}, ShapeError),
        ((1, 4, 4, 4), (1, 1, 2, 3), {"groups": 2}, ShapeError),
        ((4, 4, 3), (1, 1, 3, 3), {}, ShapeError),
    ],
)
def test_shapes_that_do_not_fit(x_shape, w_shape, changes, error):
    with pytest.raises(error):
        KERNELS["conv2d_forward"](np.ones(x_shape, np.float32), np.ones(w_shape, np.float32), **PLAIN | changes)


def test_types_that_it_does_not_take():
    x, w = np.ones((1, 4, 4, 2)), np.ones((1, 1, 2, 2))
    for a, b in ((x.astype(np.float16), w.astype(np.float16)), (x.astype(np.float32), w)):
        with pytest.raises(DTypeError, match="float32"):
            KERNELS["conv2d_forward"](a, b, **PLAIN)


def test_a_gradient_of_another_shape():
    w, g = np.ones((3, 3, 2, 4), np.float32), np.ones((1, 5, 4, 4), np.float32)
    with pytest.raises(ShapeError, match="grad_output"):
        KERNELS["conv2d_grad_input"](g, w, input_size=(6, 6), **PLAIN)
    with pytest.raises(ShapeError, match="grad_output"):
        KERNELS["conv2d_grad_weight"](np.ones((1, 6, 6, 2), np.float32), g, kernel_size=(3, 3), **PLAIN)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "changes"),
    [
        ((2, 2**15, 2**15, 1), (1, 1, 1, 1), {}),  # 2**31 pixels of x
        ((2**17, 1, 1, 1), (1, 1, 1, 1), {"padding": ((64, 64), (64, 64))}),  # and of y
        ((1, 1, 1, 2**16), (1, 1, 2**16, 2**15), {}),
        ((1, 1, 1, 2**16), (1, 1, 1, 2**16), {"groups": 2**16}),
        ((1, 2**9, 2**9, 1), (1, 1, 1, 1), {"stride": (2**9, 2**9)}),
    ],
)
def test_extents_beyond_an_index_or_a_grid_are_refused(x_shape, w_shape, changes):
    """Nothing of these sizes is allocated: the array's elements are one number."""
    x, w = (np.broadcast_to(np.float32(1), shape) for shape in (x_shape, w_shape))
    with pytest.raises(LaunchError, match="at most"):
        KERNELS["conv2d_forward"](x, w, **PLAIN | changes)


def test_offsets_of_elements_pass_32_bits():
    """A tensor of more than 2**31 elements is within the limits, and the plan doesn't split its reduction."""
    shape = conv2d.shape_of("test", (2, 2048, 2048, 512), (1, 1, 512, 512), **PLAIN)
    for operation in ("forward", "grad_input"):
        assert shape.result_size(operation) == 2**32
        assert conv2d.plan(operation, shape, "float32").splits == 1
