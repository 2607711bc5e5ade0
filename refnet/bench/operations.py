"""Single operations: suppression, pooling of regions, and what stands between convolutions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from refnet.arrays import Array
from refnet.bench import bars, workloads
from refnet.bench.contest import Contest, Part, Subject, WrongResult
from refnet.bench.contestants import CHANNELS_LAST, CPU, SPECIFICATION, TORCH, TORCHVISION, Field, by_specification
from refnet.bench.work import Work, part
from refnet.ops import batch_norm_forward, max_pool2d_forward, sgd_update
from refnet.testing import Call

BOXES = {"uniform": workloads.uniform, "clustered": workloads.clustered}


def subjects(*, quick: bool) -> Iterator[Subject]:
    """All of them."""
    for count, kind in itertools.product((50,) if quick else (2000, 6000, 12000), BOXES):
        yield _subject(f"nms {count} {kind}", partial(nms, count, kind), {TORCHVISION: bars.NMS})
    for size, count, both in itertools.product((7, 14), (5,) if quick else (512, 1000), (False, True)):
        name = f"roi_align {size}x{size}, {count} ROIs, forward{' + backward' if both else ''}"
        bar = bars.ROI_ALIGN_BOTH if both else bars.ROI_ALIGN_FORWARD
        make = partial(roi_align, size, count, (32, 8) if quick else (512, 256), both)
        yield _subject(name, make, {TORCHVISION: bar})
    side = 16 if quick else 128
    dense: dict[str, bars.Bar | None] = {TORCH: None, CHANNELS_LAST: None}
    yield _subject(f"max_pool 3x3/2, {2 * side}x{2 * side}x64", partial(max_pool, 2 * side), dense)
    yield _subject(f"upsample_add, {side}x{side}x256", partial(upsample_add, side), dense)
    yield _subject(f"batch_norm, {side}x{side}x64, forward", partial(batch_norm, side, False), dense)
    yield _subject(f"batch_norm, {side}x{side}x64, backward", partial(batch_norm, side, True), dense)
    yield _subject(f"relu, {side}x{side}x256", partial(relu, side), dense)
    yield _subject(f"resize_bilinear to {4 * side}x{4 * side}x3", partial(resize, side), dense)
    yield _subject("cross_entropy, 512x91", cross_entropy, {TORCH: None})
    size = 10**4 if quick else 4 * 10**6
    name = f"sgd_update, {size:,} parameters"
    yield Subject(
        name=name, parts=((1, Part(name=name, prepare=partial(prepare_sgd, size=size))),), against=_and({TORCH: None})
    )


def _subject(name: str, make: Callable[[np.random.Generator], Work], against: dict[str, bars.Bar | None]) -> Subject:
    return Subject(name=name, parts=((1, part(name, make)),), against=_and(against))


def _and(against: dict[str, bars.Bar | None]) -> dict[str, bars.Bar | None]:
    return {**against, SPECIFICATION: None}


def nms(count: int, kind: str, rng: np.random.Generator) -> Work:
    """Suppression of so many boxes at an IoU of 0.7, as in an RPN."""
    return [("nms", Call(arrays=dict(BOXES[kind](count, rng)), parameters={"iou_threshold": 0.7}))]


def roi_align(size: int, count: int, extents: tuple[int, int], both: bool, rng: np.random.Generator) -> Work:
    """Regions of an image of some side on its second level, with so many channels; both ways or forward only."""
    side, channels = extents
    shape = (1, side // 4, side // 4, channels)
    parameters: dict[str, Any] = {"spatial_scale": 0.25, "sampling_ratio": 2, "aligned": False}
    indices = {"boxes": workloads.regions(count, side, side, rng), "image_index": np.zeros(count, np.int64)}
    features = {"features": rng.standard_normal(shape, np.float32), **indices}
    work = [("roi_align_forward", Call(arrays=features, parameters={"size": (size, size), **parameters}))]
    if both:
        grad = {"grad_output": rng.standard_normal((count, size, size, channels), np.float32), **indices}
        work.append(("roi_align_grad_features", Call(arrays=grad, parameters={"input_shape": shape, **parameters})))
    return work


def max_pool(side: int, rng: np.random.Generator) -> Work:
    """The stem's pooling, forward and backward."""
    window: dict[str, Any] = {"kernel_size": (3, 3), "stride": (2, 2), "padding": ((1, 1), (1, 1))}
    x = rng.standard_normal((1, side, side, 64), np.float32)
    y, place = max_pool2d_forward(x, **window)
    grad = {"grad_output": rng.standard_normal(y.shape, np.float32), "place": place}
    return [
        ("max_pool2d_forward", Call(arrays={"x": x}, parameters=window)),
        ("max_pool2d_grad", Call(arrays=grad, parameters={"input_size": (side, side), **window})),
    ]


def upsample_add(side: int, rng: np.random.Generator) -> Work:
    """A pyramid's level: its own map and the coarser one."""
    coarse, fine = (rng.standard_normal((1, extent, extent, 256), np.float32) for extent in (side // 2, side))
    return [("upsample_add_forward", Call(arrays={"coarse": coarse, "fine": fine}, parameters={}))]


def batch_norm(side: int, backward: bool, rng: np.random.Generator) -> Work:
    """A batch norm in training, of one map."""
    x = rng.standard_normal((1, side, side, 64), np.float32)
    gamma, beta = rng.uniform(0.5, 1.5, (2, 64)).astype(np.float32)
    epsilon = {"epsilon": 1e-5}
    if not backward:
        return [("batch_norm_forward", Call(arrays={"x": x, "gamma": gamma, "beta": beta}, parameters=epsilon))]
    _, mean, variance = batch_norm_forward(x, gamma, beta, epsilon=1e-5)
    grad = rng.standard_normal(x.shape, np.float32)
    arrays = {"grad_output": grad, "x": x, "gamma": gamma, "mean": mean, "variance": variance}
    return [("batch_norm_grad", Call(arrays=arrays, parameters=epsilon))]


def relu(side: int, rng: np.random.Generator) -> Work:
    """One map's."""
    return [("relu_forward", Call(arrays={"x": rng.standard_normal((1, side, side, 256), np.float32)}, parameters={}))]


def resize(side: int, rng: np.random.Generator) -> Work:
    """An image enlarged four times."""
    x = rng.standard_normal((1, side, side, 3), np.float32)
    parameters = {"size": (4 * side, 4 * side), "align_corners": False}
    return [("resize_bilinear_forward", Call(arrays={"x": x}, parameters=parameters))]


def cross_entropy(rng: np.random.Generator) -> Work:
    """The classes of 512 regions, with the derivative."""
    arrays = {"logits": rng.standard_normal((512, 91), np.float32), "classes": rng.integers(0, 91, 512)}
    return [("cross_entropy_forward", Call(arrays=arrays, parameters={}))]


def prepare_sgd(field: Field, *, size: int) -> Contest:
    """An update of many parameters in arrays as a network has them: a few large ones and many small ones."""
    rng = np.random.default_rng(0)
    shapes = [(size // 4,)] * 3 + [(size // 400,)] * 99
    start = [rng.standard_normal(shape, np.float32) for shape in shapes]
    gradients = [rng.standard_normal(shape, np.float32) for shape in shapes]
    lr, momentum, decay = 1e-3, 0.9, 1e-4

    def ours() -> Callable[[], list[Array]]:
        values, velocities = [array.copy() for array in start], [np.zeros_like(array) for array in start]
        count = len(values)

        def step() -> list[Array]:
            sgd_update(
                values, gradients, velocities,
                rates=[lr] * count, decays=[decay] * count, momentum=momentum, nesterov=True,
            )  # fmt: skip
            return values

        return step

    runs: dict[str, Callable[[], Any]] = {CPU: ours(), SPECIFICATION: by_specification(ours())}
    if field.torch is not None:
        parameters = [field.torch.nn.Parameter(field.torch.from_numpy(array.copy())) for array in start]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = field.torch.from_numpy(gradient)
        optimizer = field.torch.optim.SGD(parameters, lr, momentum, weight_decay=decay, nesterov=True)

        def theirs() -> list[Array]:
            optimizer.step()
            return [parameter.detach().numpy() for parameter in parameters]

        runs[TORCH] = theirs
    return Contest(runs=runs, check=_check_updates)


def _check_updates(results: Mapping[str, Sequence[Array]]) -> str:
    """That all have the same values after a step but for a few units in the last place."""
    for name, values in results.items():
        for value, expected in zip(values, results[SPECIFICATION], strict=True):
            if not np.allclose(value, expected, rtol=1e-5, atol=1e-6):
                raise WrongResult(f"{name}: an update departs by {abs(value - expected).max():.2g}")
    return "the same values after a step"
