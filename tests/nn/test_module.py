"""Modules: the names of their values, state, and conversion."""

import numpy as np
import pytest

from refnet.arrays import Array
from refnet.autograd import Tensor
from refnet.errors import ArgumentError, CheckpointError, DTypeError
from refnet.nn import Module, Parameter


class Leaf(Module):
    def __init__(self, start: float, dtype: type[np.floating] = np.float32) -> None:
        self.weight = Parameter(np.arange(start, start + 6, dtype=dtype).reshape(2, 3))
        self.running = np.full(3, start, dtype)
        self.bias = None
        self.size = (2, 3)


class Tree(Module):
    def __init__(self) -> None:
        self.first = Leaf(0)
        self.scale = Parameter(np.ones((), np.float32))
        self.levels = [Leaf(10), (Leaf(20), Parameter(np.zeros(1, np.float32)))]
        self.heads = {"box": Leaf(30), 2: Leaf(40)}
        self.counts = np.arange(4)
        self.not_a_parameter = Tensor(np.zeros(2), requires_grad=True)


def test_names_follow_attributes_in_the_order_of_definition() -> None:
    assert list(Tree().parameters()) == [
        "first.weight",
        "scale",
        "levels.0.weight",
        "levels.1.0.weight",
        "levels.1.1",
        "heads.box.weight",
        "heads.2.weight",
    ]
    assert list(Tree().buffers()) == [
        "first.running",
        "levels.0.running",
        "levels.1.0.running",
        "heads.box.running",
        "heads.2.running",
        "counts",
    ]


def test_state_holds_parameters_and_buffers_themselves_in_one_order() -> None:
    tree = Tree()
    state = tree.state()
    assert set(state) == {*tree.parameters(), *tree.buffers()}
    assert list(state)[:4] == ["first.weight", "first.running", "scale", "levels.0.weight"]
    assert state["first.weight"] is tree.first.weight.data
    assert state["counts"] is tree.counts


def test_what_is_reached_twice_counts_once_by_its_first_name() -> None:
    class Shared(Module):
        def __init__(self) -> None:
            self.a = Leaf(0)
            self.again = self.a
            self.tied = self.a.weight
            self.loop = [self]

    assert list(Shared().state()) == ["a.weight", "a.running"]
    assert Shared().count() == 6


def test_keys_that_make_one_name_of_two_parameters_are_an_error() -> None:
    module = Module()
    module.parts = {1: Leaf(0), "1": Leaf(1)}
    with pytest.raises(ArgumentError, match=r"parts\.1\.weight"):
        module.parameters()


def test_count_is_of_parameters_only() -> None:
    assert Tree().count() == 5 * 6 + 1 + 1


def copies(module: Module) -> dict[str, Array]:
    return {name: array.copy() for name, array in module.state().items()}


def test_load_state_copies_in_place() -> None:
    source, target = Tree(), Tree()
    for array in source.state().values():
        array[...] = array + 7
    before = target.state()
    assert target.load_state(source.state()) == []
    for name, array in target.state().items():
        assert array is before[name]
        assert array is not source.state()[name]
        np.testing.assert_array_equal(array, source.state()[name])


def test_load_state_lists_every_disagreement_and_changes_nothing() -> None:
    tree = Tree()
    before = copies(tree)
    state = {name: array + 1 for name, array in before.items()}
    del state["scale"]
    state["first.weight"] = np.zeros((3, 2), np.float32)
    state["first.running"] = np.zeros(3)
    state["other"] = np.zeros(1)
    with pytest.raises(CheckpointError) as error:
        tree.load_state(state)
    message = str(error.value)
    assert "first.weight: expected float32 (2, 3), got float32 (3, 2)" in message
    assert "first.running: expected float32 (3,), got float64 (3,)" in message
    assert "scale: missing" in message
    assert "other: unexpected" in message
    assert "4 values" in message
    for name, array in tree.state().items():
        np.testing.assert_array_equal(array, before[name])


def test_load_state_that_is_not_strict_takes_what_both_know_and_says_what_it_lacked() -> None:
    tree = Tree()
    state = {"first.weight": np.full((2, 3), 9, np.float32), "other": np.zeros(1)}
    kept = tree.load_state(state, strict=False)
    assert kept == [name for name in tree.state() if name != "first.weight"]
    np.testing.assert_array_equal(tree.first.weight.data, 9)
    np.testing.assert_array_equal(tree.levels[0].running, 10)
    with pytest.raises(CheckpointError, match=r"first\.weight: expected"):
        tree.load_state({"first.weight": np.zeros(6, np.float32)}, strict=False)


def test_astype_converts_what_is_floating_point_and_forgets_gradients() -> None:
    tree = Tree()
    tree.scale.grad = np.ones((), np.float32)
    parameters = tree.parameters()
    tree.astype(np.float64)
    assert {name: str(array.dtype) for name, array in tree.state().items() if array.dtype != np.float64} == {
        "counts": str(np.arange(4).dtype)
    }
    assert tree.scale.grad is None
    assert all(tree.parameters()[name] is parameter for name, parameter in parameters.items())
    np.testing.assert_array_equal(tree.levels[1][0].running, 20.0)
    with pytest.raises(DTypeError, match="float16"):
        tree.astype(np.float16)


def test_zero_grad_forgets_every_gradient() -> None:
    tree = Tree()
    for parameter in tree.parameters().values():
        parameter.grad = np.ones_like(parameter.data)
    tree.zero_grad()
    assert all(parameter.grad is None for parameter in tree.parameters().values())


def test_a_parameter_requires_gradients_floating_point_and_is_contiguous() -> None:
    parameter = Parameter(np.arange(6.0).reshape(2, 3).T)
    assert parameter.requires_grad
    assert parameter.data.flags.c_contiguous
    np.testing.assert_array_equal(parameter.data, [[0, 3], [1, 4], [2, 5]])
    assert Parameter(np.ones(())).shape == ()
    assert repr(Parameter(np.ones(1))).startswith("Parameter(array([1.])")
    with pytest.raises(DTypeError, match="int"):
        Parameter(np.arange(3), requires_grad=False)
