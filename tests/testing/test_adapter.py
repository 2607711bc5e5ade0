"""Adapters: kernels with other arrays, layouts, boxes and names."""

from typing import Any

import numpy as np
import pytest

from refnet import ops
from refnet.errors import ArgumentError
from refnet.testing import Adapter, Call, KernelMismatch, check_kernel
from refnet.testing.adapter import BOXES, Unsuited, from_axes, to_axes, to_boxes

BOX = np.array([[1.0, 2.0, 5.0, 4.0]])


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("xyxy", [1, 2, 5, 4]),
        ("yxyx", [2, 1, 4, 5]),
        ("yxyx_normalized", [2 / 8, 1 / 16, 4 / 8, 5 / 16]),
        ("xywh", [1, 2, 4, 2]),
        ("cxcywh", [3, 3, 4, 2]),
    ],
)
def test_boxes(form, expected):
    theirs = to_boxes(BOX, form, (8, 16))
    np.testing.assert_array_equal(theirs, [expected])
    np.testing.assert_array_equal(BOXES[form][1](theirs, np.array([8, 16, 8, 16])), BOX)


def test_boxes_that_another_form_rounds_are_passed_over():
    with pytest.raises(Unsuited):
        to_boxes(np.random.default_rng(0).uniform(0, 100, (50, 4)).astype(np.float32), "cxcywh")


@pytest.mark.parametrize(("layout", "shape"), [("NCHW", (2, 5, 3, 4)), ("HWCN", (3, 4, 5, 2)), ("NHWC", (2, 3, 4, 5))])
def test_axes(layout, shape):
    x = np.arange(120.0).reshape(2, 3, 4, 5)
    theirs = to_axes(x, layout)
    assert theirs.shape == shape
    assert theirs.flags.c_contiguous
    np.testing.assert_array_equal(from_axes(theirs, layout), x)


def greedy(boxes: Any, scores: Any, max_output_size: int, iou_threshold: float) -> Any:
    """TensorFlow's: (y1, x1, y2, x2), a limit that must be given, all by position."""
    plain = np.ascontiguousarray(boxes[:, [1, 0, 3, 2]])
    return ops.nms.specification(plain, scores, iou_threshold=iou_threshold, limit=max_output_size)


def of_detections(dets: Any, thresh: float) -> Any:
    """py-faster-rcnn's: boxes with their scores behind, all that are kept."""
    return ops.nms.specification(dets[:, :4], dets[:, 4], iou_threshold=thresh)


@pytest.mark.parametrize(
    ("kernel", "adapter"),
    [
        (greedy, Adapter(boxes="yxyx", limit="count", rename={"limit": "max_output_size"})),
        (of_detections, Adapter(boxes="dets", limit="cut", rename={"iou_threshold": "thresh"})),
    ],
)
def test_nms_of_other_libraries(kernel, adapter):
    assert check_kernel(ops.nms, kernel, adapter=adapter, refusals=False, max_examples=20).examples == 20
    with pytest.raises(KernelMismatch) as caught:
        check_kernel(ops.nms, kernel, adapter=Adapter(**{**vars_of(adapter), "boxes": "xywh"}), refusals=False)
    assert repr(Adapter(**{**vars_of(adapter), "boxes": "xywh"})) in caught.value.reproduction


def vars_of(adapter: Adapter) -> dict[str, Any]:
    return {"rename": adapter.rename, **adapter.conventions}


def test_regions_with_their_image_before_the_box():
    def roi_align(features: Any, rois: Any, output_size: Any, **sampling: Any) -> Any:
        """torchvision's: (N, C, H, W), and (R, 5) with the image first."""
        result = ops.roi_align_forward.specification(
            np.ascontiguousarray(features.transpose(0, 2, 3, 1)),
            np.ascontiguousarray(rois[:, 1:]),
            rois[:, 0].astype(np.int64),
            size=output_size,
            **sampling,
        )
        return np.ascontiguousarray(result.transpose(0, 3, 1, 2))

    adapter = Adapter(features="NCHW", boxes="rois", result="RCPQ", rename={"size": "output_size"})
    assert check_kernel(ops.roi_align_forward, roi_align, adapter=adapter, max_examples=10).examples == 10


def test_convolution_of_torch(torch):
    def conv2d(x: Any, w: Any, **geometry: Any) -> Any:
        return torch.nn.functional.conv2d(x, w, **geometry)

    adapter = Adapter(arrays="torch", x="NCHW", w="OIHW", result="NCHW", padding="symmetric")
    with_pixels = {"only": lambda x, **_: x.shape[0] > 0, "max_examples": 20}
    report = check_kernel(ops.conv2d_forward, conv2d, adapter=adapter, **with_pixels)
    assert report.examples == 20
    assert report.skipped > 0
    transposed = Adapter(arrays="torch", x="NCHW", w="OIWH", result="NCHW", padding="symmetric")
    with pytest.raises(KernelMismatch):
        check_kernel(ops.conv2d_forward, conv2d, adapter=transposed, **with_pixels)


def test_maximum_of_torch(torch):
    """PyTorch's indices are of the image, not of the window: a kernel of two lines tells them."""

    def pool(x: Any, *, kernel_size: Any, stride: Any, padding: Any) -> Any:
        y, where = torch.nn.functional.max_pool2d(x, kernel_size, stride, padding, return_indices=True)
        rows, columns = (torch.arange(n) * s - p for n, s, p in zip(y.shape[2:], stride, padding, strict=True))
        place = (where // x.shape[3] - rows[:, None]) * kernel_size[1] + where % x.shape[3] - columns
        return y, place.to(torch.int32)

    adapter = Adapter(arrays="torch", x="NCHW", result="NCHW", padding="symmetric")

    def takes(x: Any, kernel_size: Any, padding: Any, **_: Any) -> bool:
        """PyTorch pads by half a window at most."""
        return len(x) > 0 and all(2 * max(p) <= k for p, k in zip(padding, kernel_size, strict=True))

    assert check_kernel(ops.max_pool2d_forward, pool, adapter=adapter, only=takes, max_examples=20).examples == 20


def test_what_an_adapter_knows():
    with pytest.raises(ArgumentError, match=r"x: expected a layout or one of xyxy, .*, got 'NCHV'"):
        Adapter(x="NCHV")
    with pytest.raises(ArgumentError, match="yxyx_normalized needs image_size"):
        Adapter(boxes="yxyx_normalized")
    adapter = Adapter(boxes="xywh", result=("NCHW", None), rename={"a": "b"})
    assert repr(eval(repr(adapter))) == repr(adapter)


def test_a_call_that_suits():
    wrapped = Adapter(padding="symmetric").wrap(ops.conv2d_forward, ops.conv2d_forward.specification)
    call = Call.of({"x": np.ones((1, 2, 2, 1)), "w": np.ones((1, 1, 1, 1))}, {"padding": ((1, 1), (0, 0))})
    wrapped.suits(call)
    with pytest.raises(Unsuited):
        wrapped.suits(call.changed(padding=((1, 0), (0, 0))))
