"""Fine-tuning by the pattern of names."""

from typing import Any

import numpy as np
import pytest

from refnet.autograd import Tensor
from refnet.errors import ArgumentError
from refnet.nn import SGD, Conv2d, Linear, Module, match_names, set_trainable
from refnet.ops import conv2d_grad_input, conv2d_grad_weight


class Net(Module):
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.stem = Conv2d(3, 4, 3, rng=rng)
        self.layers = [Conv2d(4, 4, 3, rng=rng), Conv2d(4, 4, 1, rng=rng)]
        self.head = Linear(4, 2, rng=rng)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def trainable(net: Net) -> list[str]:
    return [name for name, parameter in net.parameters().items() if parameter.requires_grad]


def backward(net: Net) -> None:
    y = net(Tensor(np.ones((1, 6, 6, 3), np.float32)))
    y.backward(np.ones(y.shape, np.float32))


def test_a_pattern_matches_whole_names() -> None:
    net = Net()
    assert set_trainable(net, r"head\..*") == trainable(net) == ["head.weight", "head.bias"]
    assert (
        set_trainable(net, ".*bias") == trainable(net) == ["stem.bias", "layers.0.bias", "layers.1.bias", "head.bias"]
    )
    assert set_trainable(net, [r"head\.weight", r"layers\.1\..*"]) == [
        "layers.1.weight",
        "layers.1.bias",
        "head.weight",
    ]
    assert set_trainable(net, ".*") == list(net.parameters())


@pytest.mark.parametrize("patterns", ["bias", [".*bias", "heads.*"], "("])
def test_a_pattern_that_matches_nothing_is_an_error_and_changes_nothing(patterns: Any) -> None:
    net = Net()
    set_trainable(net, "head.*")
    with pytest.raises(ArgumentError, match="set_trainable: "):
        set_trainable(net, patterns)
    assert trainable(net) == ["head.weight", "head.bias"]


def test_what_is_frozen_gets_no_gradient_and_costs_no_backward_work() -> None:
    def unexpected(*args: Any, **kwargs: Any) -> np.ndarray:
        raise AssertionError("a frozen convolution was differentiated")

    net = Net()
    set_trainable(net, "head.*")
    with conv2d_grad_weight.using(unexpected), conv2d_grad_input.using(unexpected):
        backward(net)
    assert [name for name, p in net.parameters().items() if p.grad is not None] == ["head.weight", "head.bias"]

    set_trainable(net, r"(layers\.1|head).*")
    net.zero_grad()
    with conv2d_grad_input.using(unexpected):  # the lowest layer trained needs none to its input
        backward(net)
    assert [name for name, p in net.parameters().items() if p.grad is not None] == trainable(net)


def test_freezing_forgets_the_gradient_so_that_an_optimizer_passes_over() -> None:
    net = Net()
    backward(net)
    before = net.stem.weight.data.copy()
    set_trainable(net, "head.*")
    optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    optimizer.step()
    np.testing.assert_array_equal(net.stem.weight.data, before)
    assert np.any(optimizer.state()["head.weight.velocity"] != 0)


def test_match_names_keeps_the_order_of_the_names() -> None:
    assert match_names(["b", "a", "c"], ["c", "b"], what="test") == ["b", "c"]
    assert match_names(["b"], [], what="test") == []
    with pytest.raises(
        ArgumentError, match=r"test: the pattern 'd' matches the whole of none of 4 names \(a, b, c, ...\)"
    ):
        match_names(["a", "b", "c", "x"], "d", what="test")
