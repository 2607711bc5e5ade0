"""Operations side by side: what the network has, what is checked, and who computes the same."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from refnet import ops
from refnet.bench import layers, operations, torch_peers, work
from refnet.bench.contest import WrongResult
from refnet.bench.contestants import CHANNELS_LAST, CPU, SPECIFICATION, TORCH, Field
from refnet.bench.workloads import Layer, clustered, mask_head, resnet50_fpn, uniform
from refnet.kernel_op import operations as all_operations
from refnet.testing import Call

NOBODY = Field()


def products(layer: Layer) -> int:
    rows, columns = (layer.height - 1) // layer.stride + 1, (layer.width - 1) // layer.stride + 1
    return layer.count * rows * columns * layer.window**2 * layer.channels * layer.outputs


def test_the_convolutions_of_the_network() -> None:
    """53 in ResNet-50 and its shortcuts, 4 + 4 in the pyramid, 3 on each of 5 levels in the RPN."""
    found = resnet50_fpn(512, 512, rpn=True)
    assert sum(layer.count for layer in found) == 53 + 8 + 15
    assert [layer.title for layer in found if layer.is_first] == ["stem 7x7/2 3->64 @512x512"]
    trunk = [layer for layer in resnet50_fpn(224, 224) if not layer.title.startswith("fpn")]
    # 4.09e9 in torchvision's documentation; the pyramid's lateral layer of C4 has the numbers of a layer of the trunk
    assert 4.05e9 < sum(map(products, trunk)) < 4.2e9
    assert sum(layer.count for layer in mask_head()) == 5


def test_an_image_has_no_gradient() -> None:
    first, other = resnet50_fpn(32, 32, 16)[:2]
    counts = [len(layers.layer_part(x, 1, backward=True).prepare(NOBODY).runs[CPU]()) for x in (first, other)]
    assert counts == [1, 2]


def test_boxes_are_reproducible_and_have_extent() -> None:
    for kind in (uniform, clustered):
        one, two = (kind(100, np.random.default_rng(3)) for _ in range(2))
        np.testing.assert_array_equal(one["boxes"], two["boxes"])
        assert (one["boxes"][:, 2:] > one["boxes"][:, :2]).all()
    scores = np.linspace(1, 0, 2000, dtype=np.float32)
    kept = [
        len(ops.nms(kind(2000, np.random.default_rng(0))["boxes"], scores, iou_threshold=0.7))
        for kind in (uniform, clustered)
    ]
    assert kept[0] > 1.2 * kept[1]


SUBJECTS = [*layers.subjects(quick=True), *operations.subjects(quick=True)]


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_kernels_are_right_and_others_compute_the_same(subject: Any, torch: Any) -> None:
    """The check of the bench itself, with PyTorch where it is, which has all operations but torchvision's."""
    field = dataclasses.replace(NOBODY, torch=torch)
    for _, part in subject.parts:
        contest = part.prepare(field)
        assert {CPU, SPECIFICATION} <= contest.runs.keys()
        if not subject.name.startswith(("nms", "roi_align")):
            assert TORCH in contest.runs
        contest.check({name: run() for name, run in contest.runs.items()})


def test_what_departs_is_a_failure() -> None:
    call = Call(arrays={"x": np.linspace(-1, 1, 7, dtype=np.float32)}, parameters={})
    contest = work.part("relu", lambda _: [("relu_forward", call)]).prepare(NOBODY)
    y = ops.relu_forward.specification(call["x"])
    assert contest.check({CPU: [y]}) == "error at most 0 of what rounding allows"
    for bad in (y + 1e-6, y[1:], np.full_like(y, np.nan)):
        with pytest.raises(WrongResult, match="kernels/cpu, relu_forward"):
            contest.check({CPU: [bad]})


def test_a_peer_that_computes_something_else_is_a_failure(torch: Any) -> None:
    call = Call(arrays={"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(1, 2, 2, 2)}, parameters={})
    contest = work.part("relu", lambda _: [("relu_forward", call)]).prepare(Field(torch=torch))
    results = {name: run() for name, run in contest.runs.items()}
    contest.check(results)
    with pytest.raises(WrongResult, match="torch channels last, relu_forward"):
        contest.check({**results, CHANNELS_LAST: [results[CHANNELS_LAST][0] + 0.001]})


def test_the_specification_runs_only_where_it_is_asked_to() -> None:
    seen = []

    def kernel(x: np.ndarray) -> np.ndarray:
        seen.append(x)
        return ops.relu_forward.specification(x)

    x = np.ones(3, np.float32)
    with ops.relu_forward.using(kernel):
        work.by_specification(lambda: ops.relu_forward(x))()
        assert not seen
        ops.relu_forward(x)
    assert len(seen) == 1


def test_peers_are_of_operations_that_exist() -> None:
    assert torch_peers.LAYOUTS.keys() <= all_operations().keys()


def test_updates_are_compared() -> None:
    contest = operations.prepare_sgd(NOBODY, size=1000)
    results = {name: run() for name, run in contest.runs.items()}
    assert contest.check(results) == "the same values after a step"
    with pytest.raises(WrongResult, match="kernels/cpu: an update departs by 1"):
        contest.check({**results, CPU: [value + 1 for value in results[CPU]]})
