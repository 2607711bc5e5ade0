"""check_kernel: right kernels pass, wrong ones are caught by the property that they break, and the reproduction runs."""

import contextlib
import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

from refnet import ops
from refnet.errors import ArgumentError
from refnet.kernels.cpu import KERNELS
from refnet.testing import KernelMismatch, check_kernel, contract_of
from refnet.testing.calls import Call

specified = ops.conv2d_forward.specification


def mismatch(operation: Any, kernel: Callable[..., Any], **settings: Any) -> KernelMismatch:
    """What is found in a wrong kernel."""
    with pytest.raises(KernelMismatch) as caught:
        check_kernel(operation, kernel, **settings)
    return caught.value


# a bug for each property


def off_by_a_bit(x, w, **geometry):
    return specified(x, w, **geometry) * np.float32(1 + 2**-18)


def other_type(x, w, **geometry):
    return specified(x, w, **geometry).astype(np.float64)


def flat(x, w, **geometry):
    return specified(x, w, **geometry)[..., 0]


def two_results(x, w, **geometry):
    return specified(x, w, **geometry), x


def spoils_its_argument(x, w, **geometry):
    y = specified(x, w, **geometry)
    x *= 2
    return y


def in_any_order(x, w, calls=[0], **geometry):  # noqa: B006 - the kernel remembers
    calls[0] += 1
    return specified(x, w, **geometry) * np.float64(1 + 2**-52 * (calls[0] % 2)).astype(x.dtype)


def reads_around(x, w, **geometry):
    return specified(x if x.base is None or not x.size else x.base[: len(x)], w, **geometry)


def gives_up(x, w, *, groups, **geometry):
    if groups > 1:
        raise NotImplementedError("groups")
    return specified(x, w, groups=groups, **geometry)


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (off_by_a_bit, "should be 1.0, got 1.0000038"),
        (other_type, "should be float32, got float64"),
        (flat, "should have shape"),
        (two_results, "expected 1 results, got 2"),
        (spoils_its_argument, "changed its argument x"),
        (reads_around, "should have shape|raised|should be"),
        (gives_up, "raised NotImplementedError: groups"),
    ],
)
def test_a_wrong_kernel_is_caught(kernel, words):
    found = mismatch(ops.conv2d_forward, kernel, max_examples=100)
    with pytest.raises(AssertionError, match=words):
        raise found
    assert found.numbers <= 300
    assert f"import {kernel.__name__} as kernel" in found.reproduction or "put" in found.reproduction


def test_bits_that_differ_from_call_to_call_are_caught():
    found = mismatch(ops.conv2d_forward, in_any_order, dtypes=["float64"])
    assert "the same call gave two results" in found.what or "should be" in found.what


def test_a_result_that_a_second_call_overwrites_is_caught():
    """The two calls have equal arguments, so only the memory tells."""
    for kernel in (negated_by_turns(), one_buffer):
        found = mismatch(ops.conv2d_forward, kernel, max_examples=20)
        assert "the results of two calls share memory" in found.what


def one_buffer(x, w, buffers={}, **geometry):  # noqa: B006 - the kernel remembers
    y = specified(x, w, **geometry)
    buffer = buffers.setdefault((y.shape, y.dtype), np.empty_like(y))
    buffer[...] = y
    return buffer


def in_place(x):
    """Gives back its argument where that is its own result."""
    return x if (x >= 0).all() else np.maximum(x, 0)


def test_a_result_in_the_memory_of_an_argument_is_caught():
    assert "a result shares memory with an argument" in mismatch(ops.relu_forward, in_place, max_examples=20).what


def negated_by_turns() -> Callable[..., Any]:
    kept: list[Any] = []

    def kernel(x, w, **geometry):
        for y in kept:
            y *= -1
        kept[:] = [specified(x, w, **geometry)]
        return kept[0]

    return kernel


def strict_neighbour(boxes, scores, *, iou_threshold, limit=None):
    """Suppresses at IoU = threshold: >= for >."""
    below = np.nextafter(boxes.dtype.type(iou_threshold), boxes.dtype.type(-1))
    return ops.nms.specification(boxes, scores, iou_threshold=max(float(below), 0.0), limit=limit)


def test_the_smallest_counterexample_is_found_and_its_reproduction_runs():
    found = mismatch(ops.nms, strict_neighbour)
    assert len(found.arrays["boxes"]) == 2
    assert [len(found.expected[0]), len(found.actual[0])] == [2, 1]
    printed = run(
        found.reproduction.replace("kernel = operation.specification", "from refnet.ops import nms as kernel")
    )
    assert printed.startswith("specification:\n[0 1]\nkernel:\n")


def run(program: str) -> str:
    """What a reproduction prints."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(program, {})
    return output.getvalue()


def careless(boxes, scores, *, iou_threshold, limit=None):
    return ops.nms.specification(boxes, scores, iou_threshold=min(iou_threshold, 1.0), limit=limit)


def test_bad_calls_must_be_refused():
    found = mismatch(ops.nms, careless)
    assert "a threshold above 1: expected the error ArgumentError, got a result" in found.what
    assert "the specification raises ArgumentError" in run(found.reproduction)
    assert check_kernel(ops.nms, careless, refusals=False, max_examples=5).refusals == 0


def test_a_call_may_have_no_results():
    """An update of no arrays leaves nothing to look at."""
    lists = dict.fromkeys(("values", "gradients", "velocities"), ())
    call = Call.of(lists, {"rates": [], "decays": [], "momentum": 0.9, "nesterov": False})
    contract = replace(contract_of(ops.sgd_update), inputs=st.just(call), edges={"no array": call}, refusals={})
    report = check_kernel(ops.sgd_update, KERNELS["sgd_update"], contract=contract, max_examples=1)
    assert (report.edges, report.examples) == (1, 1)


def test_float64_may_be_refused():
    from refnet.errors import DTypeError

    def single(x, w, **geometry):
        if x.dtype != np.float32:
            raise DTypeError(f"expected float32, got {x.dtype}")
        return specified(x, w, **geometry)

    report = check_kernel(ops.conv2d_forward, single, max_examples=10)
    assert report.notes == ["float64 is refused by a DTypeError"]


def test_a_kernel_may_be_made_for_some_calls_only():
    report = check_kernel(ops.conv2d_forward, gives_up, only=lambda groups, **_: groups == 1, max_examples=40)
    assert report.examples == 40
    assert report.skipped > 0
    with pytest.raises(ArgumentError, match="no call of conv2d_forward that was drawn suits"):
        check_kernel(ops.conv2d_forward, gives_up, only=lambda **_: False, max_examples=5)


def rounded_operands(x, w, **geometry):
    """As bf16 tensor cores do it: operands lose 16 bits, sums none."""
    keep = [
        (a.astype(np.float32).view(np.uint32) + 0x8000 & 0xFFFF0000).astype(np.uint32).view(np.float32) for a in (x, w)
    ]
    return specified(*keep, **geometry)


def test_rounded_operands_pass_only_as_such():
    settings = {"dtypes": ["float32"], "max_examples": 50}
    assert check_kernel(ops.conv2d_forward, rounded_operands, precision="bf16", **settings).worst <= 1
    assert "should be" in mismatch(ops.conv2d_forward, rounded_operands, precision="tf32", **settings).what


def test_the_report_says_what_was_checked():
    text = str(check_kernel(ops.nms, KERNELS["nms"], max_examples=7))
    assert text.startswith("nms: nms on the CPU keeps its contract")
    assert "random examples   7" in text
    assert "calls refused     6" in text


def test_equal_seeds_draw_equal_examples():
    calls: list[list[bytes]] = []
    for _ in range(2):
        seen: list[bytes] = []

        def kernel(boxes, scores, *, iou_threshold, limit=None, seen=seen):
            seen.append(boxes.tobytes())
            return ops.nms.specification(boxes, scores, iou_threshold=iou_threshold, limit=limit)

        check_kernel(ops.nms, kernel, seed=3, max_examples=10)
        calls.append(seen)
    assert calls[0] == calls[1]
