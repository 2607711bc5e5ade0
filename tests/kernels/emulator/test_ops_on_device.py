"""Every public operation on the stand-in for CuPy: what NumPy gives, and nothing makes the host wait.

The inputs are small integers, or chosen so that roots are integers, and so what kernels sum in another order is exact:
values and gradients must be equal. Exponentials and logarithms are compared by a bound.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from refnet import ops
from refnet.autograd import Tensor
from refnet.kernel_op import KernelOp, operations
from refnet.kernels.cuda import KERNELS
from refnet.kernels.emulator import available, standin

pytestmark = pytest.mark.skipif(not available(), reason="the emulator needs g++")


class Inputs:
    """Makes the inputs of a case in one of the two libraries, and remembers those that require gradients."""

    def __init__(self, xp: Any) -> None:
        self.xp, self.rng = xp, np.random.default_rng(0)
        self.tensors: list[Tensor] = []

    def tensor(self, *shape: int) -> Tensor:
        """Integers from -4 to 4."""
        return self.of(self.rng.integers(-4, 5, shape))

    def positive(self, *shape: int) -> Tensor:
        """Integers from 1 to 4."""
        return self.of(self.rng.integers(1, 5, shape))

    def of(self, values: Any) -> Tensor:
        """These values, as a tensor that requires gradients."""
        self.tensors.append(Tensor(self.array(values, np.float32), requires_grad=True))
        return self.tensors[-1]

    def constants(self, count: int, length: int) -> list[Tensor]:
        """Tensors of integers that don't require gradients."""
        return [Tensor(self.array(self.rng.integers(-4, 5, length), np.float32)) for _ in range(count)]

    def array(self, values: Any, dtype: Any = np.int64) -> Any:
        """These values, as a plain array."""
        return self.xp.asarray(np.asarray(values, dtype))


BOXES = [[0, 0, 2, 2], [1, 1, 5, 5], [2, 0, 6, 4]]
ONES_AND_MINUS_ONES = np.array([[1, -1, 1, -1]] * 4).T  # of mean 0 and variance 1

CASES: dict[str, Callable[[Inputs], Tensor]] = {
    "absolute": lambda i: ops.absolute(i.tensor(3, 4)),
    "avg_pool2d": lambda i: ops.avg_pool2d(i.tensor(1, 4, 6, 3), 2, padding=1),
    "batch_norm": lambda i: ops.batch_norm(i.of(ONES_AND_MINUS_ONES), i.tensor(4), i.tensor(4), epsilon=3)[0],
    "clip": lambda i: ops.clip(i.tensor(3, 4), -1, 2),
    "concatenate": lambda i: ops.concatenate([i.tensor(2, 3), i.tensor(2, 4)], axis=-1),
    "conv2d": lambda i: ops.conv2d(i.tensor(1, 5, 6, 3), i.tensor(3, 3, 3, 4), i.tensor(4), stride=2, padding=1),
    "conv2d_fused": lambda i: ops.conv2d_fused(
        i.tensor(1, 5, 6, 3), i.tensor(3, 3, 3, 4), *i.constants(2, 4), i.tensor(1, 3, 4, 4), relu=True
    ),
    "conv_transpose2d": lambda i: ops.conv_transpose2d(
        i.tensor(1, 3, 2, 4), i.tensor(2, 2, 4, 3), i.tensor(3), stride=2
    ),
    "crop_and_resize": lambda i: ops.crop_and_resize(
        i.tensor(1, 5, 5, 4), i.of(np.array(BOXES) / 4), i.array([0, 0, 0]), size=(3, 2)
    ),
    "dropout": lambda i: ops.dropout(i.tensor(4, 5), rate=0.5, rng=np.random.default_rng(1)),
    "frozen_batch_norm": lambda i: ops.frozen_batch_norm(
        i.tensor(2, 3, 4), i.tensor(4), i.tensor(4), *i.array([[1, 2, 3, 4], [1, 4, 16, 64]], np.float32), epsilon=0
    ),
    "leaky_relu": lambda i: ops.leaky_relu(i.tensor(3, 4), 0.25),
    "linear": lambda i: ops.linear(i.tensor(2, 3, 4), i.tensor(4, 5), i.tensor(5)),
    "matmul": lambda i: ops.matmul(i.tensor(2, 3, 4), i.tensor(4, 2)),
    "max": lambda i: ops.max(i.tensor(3, 4, 2), axis=(0, 2)),
    "max_pool2d": lambda i: ops.max_pool2d(i.tensor(1, 5, 5, 4), 3, stride=2, padding=1),
    "maximum": lambda i: ops.maximum(i.tensor(3, 4), i.tensor(4)),
    "mean": lambda i: ops.mean(i.tensor(3, 4), axis=1),
    "minimum": lambda i: ops.minimum(i.tensor(3, 4), 1.0),
    "pad": lambda i: ops.pad(i.tensor(2, 3), [(1, 0), (0, 2)], 7),
    "power": lambda i: ops.power(i.positive(3, 4), 2),
    "relu": lambda i: ops.relu(i.tensor(3, 5)),
    "interleave": lambda i: ops.interleave([i.tensor(2, 3), i.tensor(1, 3)], [np.array([2, 0]), np.array([1])]),
    "reshape": lambda i: ops.reshape(i.tensor(3, 4), (2, -1)),
    "resize_bicubic": lambda i: ops.resize_bicubic(i.tensor(1, 3, 2, 2), (6, 4)),
    "resize_bilinear": lambda i: ops.resize_bilinear(i.tensor(1, 3, 2, 4), (6, 4)),
    "resize_nearest": lambda i: ops.resize_nearest(i.tensor(1, 3, 2, 3), (5, 4)),
    "sqrt": lambda i: ops.sqrt(i.positive(3, 4)),
    "roi_align": lambda i: ops.roi_align(
        i.tensor(2, 5, 6, 4), i.of(BOXES), i.array([0, 1, 1]), size=2, spatial_scale=1, sampling_ratio=2, aligned=False
    ),
    "roi_pool": lambda i: ops.roi_pool(
        i.tensor(2, 5, 6, 4), i.array(BOXES, np.float32), i.array([0, 1, 1]), size=2, spatial_scale=1
    ),
    "stack": lambda i: ops.stack([i.tensor(2, 3), i.tensor(2, 3)], axis=1),
    "sum": lambda i: ops.sum(i.tensor(3, 4), keepdims=True),
    "take": lambda i: ops.take(i.tensor(5, 3), i.array([1, 4, 1]), axis=0),
    "transpose": lambda i: ops.transpose(i.tensor(2, 3, 4), (2, 0, 1)),
    "upsample_add": lambda i: ops.upsample_add(i.tensor(1, 2, 3, 4), i.tensor(1, 4, 5, 4)),
    "upsample_nearest": lambda i: ops.upsample_nearest(i.tensor(1, 2, 3, 4), 2),
    "arithmetic": lambda i: (2 - i.tensor(3, 4) * i.tensor(4)) / (i.positive(3, 1) + 1) - -(i.tensor(1) ** 2),
    "an index": lambda i: i.tensor(5, 3, 2)[1:4, :, 0],
    "an index of the host's": lambda i: i.tensor(5, 3)[np.array([0, 4, 4])],
    "an index of the device's": lambda i: i.tensor(5, 3)[i.array([0, 4, 4]), i.array([1, 2, 2])],
    "a mask of the host's": lambda i: i.tensor(5, 3)[np.array([True, False, True, True, False])],
}

EXPONENTIALS: dict[str, Callable[[Inputs], Tensor]] = {
    "binary_cross_entropy_with_logits": lambda i: ops.binary_cross_entropy_with_logits(
        i.tensor(3, 4), i.array(np.eye(3, 4), np.float32)
    ),
    "cross_entropy": lambda i: ops.cross_entropy(i.tensor(3, 4), i.array([0, 3, 1])),
    "smooth_l1": lambda i: ops.smooth_l1(i.tensor(3, 4), i.array(np.ones((3, 4)), np.float32), beta=0.5),
    "exp": lambda i: ops.exp(i.tensor(3, 4)),
    "log": lambda i: ops.log(i.positive(3, 4)),
    "log_softmax": lambda i: ops.log_softmax(i.tensor(3, 4)),
    "sigmoid": lambda i: ops.sigmoid(i.tensor(3, 4)),
    "softmax": lambda i: ops.softmax(i.tensor(3, 4), axis=0),
}


@pytest.fixture(autouse=True)
def _kernels_on_the_device() -> Iterator[None]:
    for name, kernel in KERNELS.items():
        operations()[name].register("cuda", kernel)
    yield
    for name in KERNELS:
        operations()[name].unregister("cuda")


def values_and_gradients(case: Callable[[Inputs], Tensor], xp: Any) -> list[Any]:
    """The result of `case`, and its gradients for a gradient of small integers."""
    inputs = Inputs(xp)
    result = case(inputs)
    gradient = np.random.default_rng(1).integers(-3, 4, result.shape)
    result.backward(inputs.array(gradient, np.float32))
    return [result.data, *(tensor.grad for tensor in inputs.tensors)]


def on_both(case: Callable[[Inputs], Tensor]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What `case` gives on the device and on the host, copied and in pairs; nothing made the host wait."""
    with standin.counting() as counts:
        found = values_and_gradients(case, standin)
    assert counts.places == []
    for actual, expected in zip(found, values_and_gradients(case, np), strict=True):
        assert isinstance(actual, standin.ndarray)
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        yield actual.get(), expected


@pytest.mark.parametrize("name", CASES)
def test_an_operation_gives_what_numpy_gives(name: str) -> None:
    for actual, expected in on_both(CASES[name]):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", EXPONENTIALS)
def test_what_takes_exponentials_gives_what_numpy_gives(name: str) -> None:
    """Twelve terms at most, each of a few roundings and of an exponential and a logarithm of at most 4 ulp.

    NumPy's own differ by where an array ends.
    """
    for actual, expected in on_both(EXPONENTIALS[name]):
        assert (abs(actual - expected) <= 64 * 2.0**-24 * (1 + abs(expected))).all()


def test_no_operation_is_left_out() -> None:
    functions = {name for name in ops.__all__ if not isinstance(getattr(ops, name), KernelOp)}
    assert functions == {name for name in (*CASES, *EXPONENTIALS) if name in ops.__all__}
