"""The CUDA kernels that sample regions, in the emulator, against their specifications."""

from dataclasses import replace
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refnet.ops as ops
from refnet.errors import DTypeError, ShapeError
from refnet.kernels.cuda import KERNELS, roi
from refnet.kernels.emulator import available, running, standin
from refnet.rcnn.config import RoiTargetConfig
from refnet.rcnn.structures import GroundTruth
from refnet.rcnn.targets import mask_targets, object_masks
from refnet.testing.strategies.regions import Regions, regions
from tests.sampled_regions import CHECKS, UNIT, rough

pytestmark = pytest.mark.skipif(not available(), reason="no g++: CUDA kernels aren't emulated")

types = st.sampled_from([np.float32, np.float64])
channels = st.sampled_from([1, 3, 4, 12])  # both widths
schedules = st.integers(0, 2**16)
GRADIENTS = ("crop_and_resize_grad_images", "roi_align_grad_features")
KERNELS_TO_CHECK = [*((name, True) for name in CHECKS), *((name, False) for name in GRADIENTS)]
SAMPLING = {"spatial_scale": 0.5, "sampling_ratio": 2, "aligned": True}


def checked(name: str, schedule: int, gathers: bool, *args: Any, **kwargs: Any) -> Any:
    """What the kernel makes of the arguments, with the checker watching; a warp takes one bin, or as many as it may."""
    with pytest.MonkeyPatch.context() as patch, running(mode="check", seed=schedule), roi.deterministic(gathers):
        patch.setattr(roi, "ENOUGH", 1 if schedule % 2 else roi.ENOUGH)
        return KERNELS[name](*args, **kwargs)


@pytest.mark.parametrize(("name", "gathers"), KERNELS_TO_CHECK)
@given(regions(), types, st.booleans(), channels, schedules)
def test_the_specifications_values(
    name: str, gathers: bool, case: Regions, dtype: Any, whole: bool, channels: int, schedule: int
) -> None:
    case = replace(case, features_shape=(*case.features_shape[:3], channels))
    CHECKS[name](partial(checked, name, schedule, gathers), case, dtype, whole)


@given(regions(least_boxes=1), types, st.booleans(), st.booleans(), st.sampled_from(["roi_align", "crop_and_resize"]))
def test_weights_of_rows_and_columns_have_the_specifications_bits(
    case: Regions, dtype: Any, whole: bool, by_rows: bool, operation: str
) -> None:
    """Of a line of pixels, each with a channel of its own, the result is the matrix Y, or X, itself."""
    length = case.features_shape[1]
    lines = np.eye(length, dtype=dtype).reshape((1, length, 1, length) if by_rows else (1, 1, length, length))
    boxes = rough(case.boxes if operation == "roi_align" else case.normalized_boxes, case, whole).astype(dtype)
    boxes[:, [0, 2] if by_rows else [1, 3]] = 0  # the other axis has one pixel, with weight 1
    index = np.zeros(len(boxes), np.int64)
    arguments: dict[str, Any] = {"size": (case.size[0], 1) if by_rows else (1, case.size[0])}
    arguments |= {"extrapolation_value": 0.0} if operation == "crop_and_resize" else case.sampling
    name = f"{operation}_forward"
    np.testing.assert_array_equal(
        checked(name, 0, True, lines, boxes, index, **arguments),
        getattr(ops, name).specification(lines, boxes, index, **arguments),
    )


@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 7, 11])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_many_samples_on_a_long_line(dtype: Any, sampling_ratio: int, by_rows: bool) -> None:
    """More samples than are searched one by one, more pixels than lanes, boxes far beyond the line and backwards."""
    rng = np.random.default_rng(sampling_ratio)
    edges = np.concatenate([rng.uniform(-30, 130, (20, 2)), rng.uniform(-3000, 3000, (6, 2))])
    boxes = np.zeros((26, 4), dtype)
    boxes[:, [1, 3] if by_rows else [0, 2]] = edges
    line = np.eye(100, dtype=dtype).reshape((1, 100, 1, 100) if by_rows else (1, 1, 100, 100))
    index = np.zeros(26, np.int64)
    # aligned, a box without width has no samples if their number is adaptive; then it is given some
    rules = {"spatial_scale": 0.9, "sampling_ratio": sampling_ratio, "aligned": sampling_ratio > 0}
    arguments = {"size": (3, 1) if by_rows else (1, 3), **rules}
    expected = ops.roi_align_forward.specification(line, boxes, index, **arguments)
    np.testing.assert_array_equal(checked("roi_align_forward", 1, True, line, boxes, index, **arguments), expected)
    assert (expected > 0).any()


def test_a_box_too_large_for_its_samples_to_be_counted() -> None:
    far = np.float32(1e30)
    boxes = np.array([[-far, -far, far, far], [0, 0, far, 4]], np.float32)
    features, index = np.ones((1, 4, 4, 4), np.float32), np.zeros(2, np.int64)
    rules = {"spatial_scale": 1.0, "sampling_ratio": 0, "aligned": False}
    pooled = checked("roi_align_forward", 0, True, features, boxes, index, size=(2, 2), **rules)
    assert (abs(pooled) <= 1).all()
    grad = checked("roi_align_grad_features", 0, True, pooled, boxes, index, input_shape=features.shape, **rules)
    assert np.isfinite(grad).all()


LITERAL = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)


@pytest.mark.parametrize(
    ("aligned", "expected"), [(True, [[2.5, 4.5], [10.5, 12.5]]), (False, [[5.0, 6.75], [12.0, 13.75]])]
)
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_a_ramp_pooled_to_two_by_two(aligned: bool, expected: list[list[float]], sampling_ratio: int) -> None:
    """Without alignment the samples lie at 0.5, 1.5, 2.5 and 3.5, of which the last moves to pixel 3."""
    rules = {"spatial_scale": 0.5, "sampling_ratio": sampling_ratio, "aligned": aligned}
    boxes, index = np.array([[0, 0, 8, 8]], np.float32), np.zeros(1, np.int64)
    actual = checked("roi_align_forward", 0, True, LITERAL, boxes, index, size=(2, 2), **rules)
    np.testing.assert_array_equal(actual[0, ..., 0], expected)


def test_a_crop_that_is_mirrored_and_one_that_reaches_out() -> None:
    boxes = np.array([[1, 0, 0, 1], [0, 0, 2, 0]], np.float32)
    index = np.zeros(2, np.int32)
    actual = checked("crop_and_resize_forward", 0, True, LITERAL, boxes, index, size=(2, 3), extrapolation_value=-1.0)
    np.testing.assert_array_equal(actual[..., 0], [[[3, 1.5, 0], [15, 13.5, 12]], [[0, 3, -1], [0, 3, -1]]])


# ---- more than one of everything -----------------------------------------------------------------------------------


def large(count: int, dtype: Any = np.float32, regions: int = 40) -> dict[str, Any]:
    """Arguments for boxes of many sizes on two maps of 19 x 21 pixels and `count` channels."""
    rng = np.random.default_rng(count)
    low = rng.uniform(-4, 36, (regions, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 30, (regions, 2))], axis=1).astype(dtype)
    return {
        "features": rng.integers(-9, 10, (2, 19, 21, count)).astype(dtype),
        "boxes": boxes,
        "image_index": rng.integers(0, 2, regions),
        "grad_output": rng.integers(-9, 10, (regions, 3, 5, count)).astype(dtype),
    }


def run_all(features: Any, boxes: Any, image_index: Any, grad_output: Any, gathers: bool = True) -> dict[str, Any]:
    """What all six kernels make of the arguments."""
    normalized, shape, size = boxes / 40, {"input_shape": features.shape}, {"size": grad_output.shape[1:3]}
    with roi.deterministic(gathers):
        return {
            "roi_align_forward": roi.roi_align_forward(features, boxes, image_index, **size, **SAMPLING),
            "roi_align_grad_features": roi.roi_align_grad_features(
                grad_output, boxes, image_index, **shape, **SAMPLING
            ),
            "roi_align_grad_boxes": roi.roi_align_grad_boxes(grad_output, features, boxes, image_index, **SAMPLING),
            "crop_and_resize_forward": roi.crop_and_resize_forward(
                features, normalized, image_index, **size, extrapolation_value=2.0
            ),
            "crop_and_resize_grad_images": roi.crop_and_resize_grad_images(
                grad_output, normalized, image_index, **shape
            ),
            "crop_and_resize_grad_boxes": roi.crop_and_resize_grad_boxes(
                grad_output, features, normalized, image_index
            ),
        }


@pytest.mark.parametrize("channels", [260, 65])  # in vectors, and one by one
@pytest.mark.parametrize(("name", "gathers"), KERNELS_TO_CHECK)
def test_more_channels_than_a_warp_holds(name: str, gathers: bool, channels: int) -> None:
    case = Regions(
        features_shape=(2, 9, 11, channels),
        boxes=np.array([[-2.0, 3.0, 9.0, 16.0], [5.0, 5.0, 25.0, 6.5], [1.0, 2.0, 18.0, 19.0]]),
        image_index=np.array([1, 0, 1]),
        size=(2, 3),
        spatial_scale=0.5,
        sampling_ratio=2,
        aligned=True,
        seed=channels,
    )
    CHECKS[name](partial(checked, name, 5, gathers), case, np.float32, False)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_regions_by_the_hundred(dtype: Any) -> None:
    """More regions than are looked at, or staged, at a time."""
    arguments = large(4, dtype, regions=700)
    shape = arguments["features"].shape
    given = arguments["grad_output"], arguments["boxes"], arguments["image_index"]
    specified = ops.roi_align_grad_features.specification
    sizes = specified(abs(given[0]), *given[1:], input_shape=shape, **SAMPLING)
    actual = checked("roi_align_grad_features", 7, True, *given, input_shape=shape, **SAMPLING)
    bound = 2 * (700 * 15 + 16) * UNIT[dtype] * sizes
    assert (abs(actual - specified(*given, input_shape=shape, **SAMPLING)) <= bound).all()


def test_more_bins_than_lanes() -> None:
    boxes, index = np.array([[-1.0, 1.5, 9.5, 7.0], [3.0, 3.0, 4.0, 9.0]], np.float32), np.zeros(2, np.int64)
    u = np.random.default_rng(0).standard_normal((2, 70, 35, 1)).astype(np.float32)
    given = u, boxes, index
    specified = ops.roi_align_grad_features.specification
    sizes = specified(abs(u), boxes, index, input_shape=(1, 11, 12, 1), **SAMPLING)
    actual = checked("roi_align_grad_features", 0, True, *given, input_shape=(1, 11, 12, 1), **SAMPLING)
    expected = specified(*given, input_shape=(1, 11, 12, 1), **SAMPLING)
    assert (abs(actual - expected) <= 2 * (u.size + 13) * UNIT[np.float32] * sizes).all()


def test_a_box_of_one_pixel_that_is_not_aligned_moves_as_a_whole() -> None:
    """At an extent of exactly 1 it doesn't follow the box, as below; above, it does."""
    features = np.random.default_rng(0).standard_normal((1, 6, 6, 4)).astype(np.float32)
    boxes, index = np.array([[1.25, 1.25, 2.25, 2.5], [1.25, 1.25, 2.5, 2.25]], np.float32), np.zeros(2, np.int64)
    rules = {"spatial_scale": 1.0, "sampling_ratio": 2, "aligned": False}
    u = np.ones((2, 2, 2, 4), np.float32)
    grad = checked("roi_align_grad_boxes", 0, True, u, features, boxes, index, **rules)
    np.testing.assert_array_equal(grad[:, 2:] != 0, [[False, True], [True, False]])
    assert (grad[:, :2] != 0).all()


@given(regions(), st.booleans(), st.booleans())
def test_gradients_are_adjoint(case: Regions, whole: bool, gathers: bool) -> None:
    """<K v, u> = <v, K' u>, up to roundings of sums over |u| K |v|."""
    rng = case.rng
    v, u = rng.standard_normal(case.features_shape), rng.standard_normal(case.output_shape)
    boxes = rough(case.boxes, case, whole)
    forward = partial(checked, "roi_align_forward", 0, gathers, boxes=boxes, image_index=case.image_index)
    pooled, sizes = (forward(features, size=case.size, **case.sampling) for features in (v, abs(v)))
    sent = checked(
        "roi_align_grad_features", 0, gathers, u, boxes, case.image_index, input_shape=v.shape, **case.sampling
    )
    count = v.size * max(u.size, 1) + 100
    assert abs((pooled * u).sum() - (v * sent).sum()) <= count * UNIT[np.float64] * (sizes * abs(u)).sum()


@pytest.mark.parametrize("sampling", ["roi_align", "crop_and_resize"])
def test_mask_targets_are_decided_alike(sampling: Any) -> None:
    """Whole boxes of 4 to 32 pixels, so that many values are exactly the half at which a mask begins."""
    rng = np.random.default_rng(3)
    masks = rng.random((3, 33, 33)) < 0.5
    corners, sides = rng.integers(-2, 18, (30, 2)), 2 ** rng.integers(2, 6, (30, 2))
    boxes = np.concatenate([corners, corners + sides + (sampling == "crop_and_resize")], axis=1).astype(np.float32)
    objects = GroundTruth(
        boxes=np.array([[0, 0, 33, 33]] * 3, np.float32),
        classes=np.ones(3, np.int64),
        masks=masks,
        crowd=np.zeros(3, bool),
    )
    config = RoiTargetConfig(mask_sampling=sampling, mask_values="threshold")
    size = 4 if sampling == "roi_align" else 5
    matched = rng.integers(0, 3, 30)
    masks = object_masks([objects], (33, 33), config, boxes)
    given = boxes, masks, objects.boxes[matched], matched, (33, 33), size, config
    expected = mask_targets(*given)
    name = f"{sampling}_forward"
    with getattr(ops, name).using(partial(checked, name, 1, True)):
        np.testing.assert_array_equal(mask_targets(*given), expected)


# ---- the same bits -------------------------------------------------------------------------------------------------


def test_gathered_gradients_have_the_same_bits_whatever_the_schedule() -> None:
    """And scattered ones don't: sums of numbers of many sizes, so that an order shows."""
    arguments = large(4)
    arguments["grad_output"] *= 10.0 ** np.random.default_rng(1).integers(-3, 4, (40, 1, 1, 1)).astype(np.float32)
    for gathers in (True, False):
        found: dict[str, set[bytes]] = {name: set() for name in KERNELS if "roi_pool" not in name}
        for schedule in range(5):
            with running(mode="check", seed=schedule):
                for name, result in run_all(**arguments, gathers=gathers).items():
                    found[name].add(result.tobytes())
        varies = {name for name, results in found.items() if len(results) > 1}
        assert varies == (set() if gathers else set(GRADIENTS))


def test_gathering_is_the_default() -> None:
    assert roi._deterministic.get()
    with roi.deterministic(False):
        assert not roi._deterministic.get()
        with roi.deterministic(True):
            assert roi._deterministic.get()
    assert roi._deterministic.get()


@pytest.mark.parametrize("layout", ["Fortran", "reversed", "misaligned"])
def test_the_same_inputs_give_the_same_bits_whatever_their_layout(layout: str) -> None:
    def laid_out(array: Any) -> Any:
        if layout == "Fortran":
            return np.asfortranarray(array)
        if layout == "reversed":
            return array[::-1].copy()[::-1]
        room = np.empty(array.nbytes + array.itemsize, np.uint8)
        moved = room[array.itemsize :].view(array.dtype).reshape(array.shape)
        moved[...] = array
        return moved

    arguments = large(8)
    with running(mode="check", seed=2):
        expected = run_all(**arguments)
        actual = run_all(**{key: laid_out(array) for key, array in arguments.items()})
    for name, result in actual.items():
        if layout == "misaligned" and name.endswith("grad_boxes"):  # other lanes sum the channels
            np.testing.assert_allclose(result, expected[name], rtol=0, atol=1e-5 * abs(expected[name]).max())
        else:
            np.testing.assert_array_equal(result, expected[name], err_msg=name)


# ---- at the borders ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gathers", [True, False])
@pytest.mark.parametrize(
    ("features", "pooled"), [((2, 3, 3, 4), (0, 2, 2, 4)), ((0, 3, 3, 4), (0, 2, 2, 4)), ((1, 3, 3, 0), (2, 2, 2, 0))]
)
def test_nothing_to_do(features: tuple[int, ...], pooled: tuple[int, ...], gathers: bool) -> None:
    with running(mode="check"):
        results = run_all(
            np.ones(features, np.float32),
            np.ones((pooled[0], 4), np.float32),
            np.zeros(pooled[0], np.int64),
            np.ones(pooled, np.float32),
            gathers,
        )
    assert {name: result.shape for name, result in results.items() if name.endswith("forward")} == {
        "roi_align_forward": pooled,
        "crop_and_resize_forward": pooled,
    }
    for name, result in results.items():
        if not name.endswith("forward"):
            assert not result.any()
            assert result.shape == ((pooled[0], 4) if name.endswith("boxes") else features)


@pytest.mark.parametrize("gathers", [True, False])
@pytest.mark.parametrize("image", [-1, 2, 2**40])
def test_an_image_that_is_not_there_gives_nan(image: int, gathers: bool) -> None:
    arguments = large(4, regions=3)
    arguments["image_index"] = np.array([0, image, 1])
    without = {key: array[[0, 2]] if len(array) == 3 else array for key, array in arguments.items()}
    with running(mode="check"):
        results, expected = run_all(**arguments, gathers=gathers), run_all(**without, gathers=gathers)
    for name, result in results.items():
        if name in GRADIENTS:
            np.testing.assert_array_equal(result, expected[name])
        else:
            assert np.isnan(result[1]).all()
            np.testing.assert_array_equal(result[[0, 2]], expected[name])


def test_what_kernels_are_not_written_for_is_refused() -> None:
    features, boxes, index = np.ones((1, 3, 3, 2), np.float32), np.ones((2, 4), np.float32), np.zeros(2, np.int64)
    forward = partial(roi.roi_align_forward, size=(2, 2), **SAMPLING)
    with pytest.raises(DTypeError, match="float16"):
        forward(features.astype(np.float16), boxes.astype(np.float16), index)
    with pytest.raises(DTypeError, match="float64"):
        forward(features, boxes.astype(np.float64), index)
    with pytest.raises(ShapeError, match="one pixel"):
        forward(features[:, :0], boxes, index)
    grad_output = np.ones((2, 2, 2, 3), np.float32)
    with pytest.raises(ShapeError, match="grad_output"):
        roi.roi_align_grad_features(grad_output, boxes, index, input_shape=features.shape, **SAMPLING)


def test_on_a_device_the_host_never_waits() -> None:
    arguments = large(4)
    with running(mode="check"):
        with standin.counting() as counts:
            actual = run_all(**{key: standin.asarray(array) for key, array in arguments.items()})
        assert counts.synchronizations == counts.downloads == 0
        for name, expected in run_all(**arguments).items():
            np.testing.assert_array_equal(actual[name].get(), expected, err_msg=name)


@pytest.mark.parametrize("name", CHECKS)
def test_kernels_have_the_signature_of_their_specification(name: str) -> None:
    assert KERNELS[name] is getattr(roi, name)
    specified = signature(getattr(ops, name).specification).parameters.values()
    actual = signature(KERNELS[name]).parameters.values()
    assert [(p.name, p.kind, p.default) for p in actual] == [(p.name, p.kind, p.default) for p in specified]
