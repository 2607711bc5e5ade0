"""The engine: arithmetic and its adjoints, the walk over the graph, what it frees, what it refuses."""

import gc
import sys
import threading
import types
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import (
    array_shapes,
    basic_indices,
    integer_array_indices,
    mutually_broadcastable_shapes,
)

from refnet import autograd
from refnet.autograd import Function, Tensor, backward, no_grad
from refnet.errors import DeviceError, DTypeError, GraphError, ShapeError
from refnet.ops import reshape
from refnet.testing import check_gradients
from refnet.testing.strategies.geometry import off_zero, seeds


def leaf(*values: float) -> Tensor:
    return Tensor(np.array(values), requires_grad=True)


def number(value: float) -> Tensor:
    return Tensor(np.array(value), requires_grad=True)


# arithmetic

shapes = mutually_broadcastable_shapes(num_shapes=2, max_dims=4, min_side=0, max_side=3)


@given(shapes, seeds)
def test_gradients_of_operators_that_broadcast(broadcastable, seed):
    rng = np.random.default_rng(seed)
    a, b = (off_zero(shape, rng) for shape in broadcastable.input_shapes)
    for function in (
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: a * b,
        lambda a, b: a / b,
        lambda a, b: -a * b + a / b - 2 * b,
    ):
        check_gradients(function, a, b, rng=rng)


@given(array_shapes(min_dims=0, max_dims=3), seeds)
def test_gradients_of_operators_with_numbers(shape, seed):
    rng = np.random.default_rng(seed)
    x = off_zero(shape, rng)
    for function in (
        lambda x: x + 2,
        lambda x: 2 + x,
        lambda x: x - 2,
        lambda x: 2 - x,
        lambda x: x * 3,
        lambda x: 3 * x,
        lambda x: x / 4,
        lambda x: 4 / x,
        lambda x: x**3,
        lambda x: -x,
    ):
        check_gradients(function, x, rng=rng)


def test_numbers_and_arrays_stand_on_either_side():
    x = leaf(1.0, 2)
    np.testing.assert_array_equal((np.array([10.0, 20]) - x).data, [9, 18])
    np.testing.assert_array_equal((x - np.array([10.0, 20])).data, [-9, -18])
    np.testing.assert_array_equal((6 / x).data, [6, 3])
    np.testing.assert_array_equal((np.ones((1, 2)) @ Tensor(np.ones((2, 1)))).data, [[2]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_take_the_type_of_the_tensor(dtype):
    x = Tensor(np.ones(3, dtype), requires_grad=True)
    y = 2 / (1.5 * x + 0.1 - x**2) - 1
    y.backward(np.ones(3, dtype))
    assert y.dtype == dtype
    assert x.grad.dtype == dtype


def test_sums_of_numbers_are_still_arrays():
    x, y = number(2.0), number(3.0)
    total = x * y + x
    total.backward()
    for array in (total.data, x.grad, y.grad):
        assert isinstance(array, np.ndarray)
    assert (float(x.grad), float(y.grad)) == (4, 2)


def test_a_power_of_0_has_no_slope_at_0():
    x = leaf(0.0, 1)
    (x**0).backward(np.ones(2))
    np.testing.assert_array_equal(x.grad, [0, 0])


# indices


@given(st.data(), array_shapes(max_dims=3, max_side=4), seeds)
def test_gradients_of_slices(data, shape, seed):
    rng = np.random.default_rng(seed)
    index = data.draw(basic_indices(shape, allow_newaxis=True))
    check_gradients(lambda x: x[index], rng.standard_normal(shape), rng=rng)


@given(st.data(), array_shapes(max_dims=3, max_side=4), seeds)
def test_gradients_of_integer_arrays(data, shape, seed):
    """Integer arrays repeat elements, and count from the end, as they are drawn."""
    rng = np.random.default_rng(seed)
    index = data.draw(integer_array_indices(shape, result_shape=array_shapes(max_dims=2, max_side=4)))
    check_gradients(lambda x: x[index], rng.standard_normal(shape), rng=rng)


@given(array_shapes(max_dims=3, max_side=4), seeds)
def test_gradients_of_boolean_masks(shape, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < 0.5
    check_gradients(lambda x: x[mask], rng.standard_normal(shape), rng=rng)
    check_gradients(lambda x: x[mask.any(axis=tuple(range(1, len(shape))))], rng.standard_normal(shape), rng=rng)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (np.array([1, 1, 0]), [1000, 11, 0]),
        ([2, -1, 0], [1000, 0, 11]),
        (Tensor(np.array([0, 0, 2])), [11, 0, 1000]),
        ((np.array([0, 1, 1]),), [1, 1010, 0]),
        (slice(None, None, -1), [1000, 10, 1]),
    ],
)
def test_a_repeated_element_adds_up_its_gradients(index, expected):
    x = leaf(7.0, 8, 9)
    x[index].backward(np.array([1.0, 10, 1000]))
    np.testing.assert_array_equal(x.grad, expected)


# the walk


def test_a_chain_may_be_long():
    x = number(1.0)
    y = x
    for _ in range(5000):
        y = y * 1.0
    y.backward()
    assert float(x.grad) == 1


def test_a_long_chain_may_be_dropped():
    y = number(1.0)
    for _ in range(5000):
        y = y * 1.0
    alive = weakref.ref(y)
    del y
    assert alive() is None


def test_paths_that_meet_add_up():
    """y = (x + x²)(x - x²), of which the derivative is 2 x - 4 x³."""
    x = number(3.0)
    square = x * x
    ((x + square) * (x - square)).backward()
    assert float(x.grad) == 2 * 3 - 4 * 27


def test_the_way_back_is_the_reverse_of_the_way_there():
    there, back = [], []

    class Named(Function):
        def forward(self, *arrays, name):
            self.name = name
            there.append(name)
            return sum(arrays)

        def backward(self, grad_output):
            back.append(self.name)
            return (grad_output,) * len(self.needs_grad)

    x = leaf(1.0)
    a = Named()(x, name="a")
    b = Named()(a, name="b")
    c = Named()(Named()(a, name="first of c"), Named()(x, name="second of c"), name="c")
    Named()(b, c, name="end").backward()
    assert back == there[::-1]
    np.testing.assert_array_equal(x.grad, [3])


def test_a_diamond_of_diamonds_is_walked_once():
    """2^200 paths lead to x; each of its 200 users must run once."""
    x = number(1.0)
    y = x
    for _ in range(200):
        y = y + y
    y.backward()
    assert float(x.grad) == 2.0**200


def test_gradients_of_two_passes_add_up():
    x = leaf(1.0, 2)
    (x * 3).backward(np.ones(2))
    first = x.grad
    (x * 4).backward(np.ones(2))
    np.testing.assert_array_equal(x.grad, [7, 7])
    np.testing.assert_array_equal(first, [3, 3])  # the earlier array wasn't written into


def test_inputs_that_share_a_gradient_do_not_disturb_one_another():
    a, b = leaf(1.0, 2), leaf(3.0, 4)
    (a + b).backward(np.ones(2))
    (a * 2).backward(np.ones(2))
    np.testing.assert_array_equal(a.grad, [3, 3])
    np.testing.assert_array_equal(b.grad, [1, 1])


class _Handed(Function):
    """x, whose gradient is always the one array that it was given at first, as a function may keep what it returns."""

    def forward(self, x, *, grad):
        self.grad = grad
        return x + 0

    def backward(self, grad_output):
        return (self.grad,)


@pytest.mark.parametrize("users", [2, 3, 4])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_gradients_add_up_without_writing_into_what_functions_gave(users, shape):
    given = [np.full(shape, 10.0**k) for k in range(users)]
    x = Tensor(np.zeros(shape), requires_grad=True)
    middle = x * 1.0
    total = number(0.0)
    for grad in given:
        total = total + _Handed()(middle, grad=grad)
    total.backward(np.ones(total.shape))
    np.testing.assert_array_equal(x.grad, np.full(shape, sum(10.0**k for k in range(users))))
    for k, grad in enumerate(given):
        np.testing.assert_array_equal(grad, np.full(shape, 10.0**k))


def test_many_gradients_add_up_in_one_array(monkeypatch):
    """The first sum is new, and all later ones are made in it."""
    x = leaf(0.0, 0, 0)
    middle = x * 1.0
    sums = []
    add = autograd._Gradients.add

    def watched(self, node, contribution):
        add(self, node, contribution)
        if node is middle.creator:
            sums.append(self._received[id(node)])

    monkeypatch.setattr(autograd._Gradients, "add", watched)
    total = middle * 1.0
    for factor in (2.0, 3.0, 4.0):
        total = total + middle * factor
    total.backward(np.ones(3))
    np.testing.assert_array_equal(x.grad, [10, 10, 10])
    first, second, *later = sums
    assert second is not first
    assert len(later) == 2
    assert all(array is second for array in later)


def test_only_leaves_that_ask_keep_a_gradient():
    x, constant = leaf(1.0), Tensor(np.array([2.0]))
    middle = x * constant
    (middle * middle).backward()
    np.testing.assert_array_equal(x.grad, [8])
    assert middle.grad is None
    assert constant.grad is None


def test_a_detached_tensor_stops_the_gradient():
    x = number(3.0)
    (x.detach() * x).backward()
    assert float(x.grad) == 3


def test_a_leaf_is_its_own_loss():
    x = number(3.0)
    backward(x)
    assert float(x.grad) == 1


# what is freed


def test_backward_frees_the_graph():
    x = leaf(1.0, 2)
    middle = x * 2
    y = middle * middle
    alive = weakref.ref(middle.data)  # which the product keeps
    del middle
    assert alive() is not None
    gc.disable()
    try:
        y.backward(np.ones(2))
        assert alive() is None  # by counting references: nothing waits for the collector of cycles
    finally:
        gc.enable()


def test_an_activation_that_no_function_keeps_dies_at_once():
    x = leaf(1.0, 2)
    middle = x * 2
    y = middle + 1
    alive = weakref.ref(middle.data)
    del middle
    assert alive() is None
    y.backward(np.ones(2))
    np.testing.assert_array_equal(x.grad, [2, 2])


def test_an_activation_dies_as_soon_as_its_gradient_is_known():
    activations: list[weakref.ref] = []

    class Watch(Function):
        def forward(self, x):
            return x

        def backward(self, grad_output):
            assert activations[0]() is None
            return (grad_output,)

    x = leaf(1.0)
    late = Watch()(x) * 2
    activations.append(weakref.ref(late.data))
    y = late * leaf(3.0)  # whose gradient needs it
    del late
    y.backward()
    np.testing.assert_array_equal(x.grad, [6])


def test_what_a_function_kept_and_was_given_dies_before_the_next_one_runs():
    alive = []

    class Keeping(Function):
        def forward(self, x):
            self.kept = x * 2
            return x + 1

        def backward(self, grad_output):
            alive.append([reference() is not None for reference in references])
            references.extend([weakref.ref(self.kept), weakref.ref(grad_output)])
            return (grad_output + 0,)

    references: list[weakref.ref] = []
    y = leaf(1.0, 2)
    for _ in range(3):
        y = Keeping()(y)
    (y * 1.0).backward(np.ones(2))  # the caller holds the first gradient
    assert alive == [[], [False, False], [False] * 4]


def test_without_gradients_nothing_is_recorded():
    x = leaf(1.0)
    with no_grad():
        y = x * 2
    assert not y.requires_grad
    assert y.creator is None
    assert (x * 2).requires_grad
    assert Tensor(np.ones(1)).creator is None


def test_no_grad_ends_with_an_error():
    x = leaf(1.0)
    with pytest.raises(ZeroDivisionError), no_grad():
        _ = 1 / 0
    assert (x * 2).requires_grad


def test_no_grad_holds_in_one_thread_only():
    x = leaf(1.0)
    entered, checked = threading.Event(), threading.Event()
    inside: list[bool] = []

    def silent() -> None:
        with no_grad():
            entered.set()
            assert checked.wait(10)
            inside.append((x * 2).requires_grad)

    thread = threading.Thread(target=silent)
    thread.start()
    assert entered.wait(10)
    outside = (x * 2).requires_grad
    checked.set()
    thread.join()
    assert outside
    assert inside == [False]


# checkpoints


def a_part(weight: Tensor, seen: list[weakref.ref], again: list[bool]):
    """(w x)² x, with a note of each run and of its activation."""

    def run(x):
        inner = x * weight
        seen.append(weakref.ref(inner))
        again.append(autograd.is_recomputing())
        return inner * inner * x

    return run


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_a_checkpoint_gives_the_same_gradients(wanted):
    found = []
    for checkpointed in (False, True):
        x, w = (Tensor(np.array(v), requires_grad=r) for v, r in zip(([1.5, -2], [0.3, 7]), wanted, strict=True))
        run = a_part(w, [], [])
        middle = x * 1.1
        y = autograd.checkpoint(run, middle, [w]) if checkpointed else run(reshape(middle, (2,)))
        (y * np.array([3.0, 5]) + middle * w).backward(np.ones(2))
        found.append([y.data, x.grad, w.grad])
    for plain, recomputed in zip(*found, strict=True):
        np.testing.assert_array_equal(recomputed, plain)


def test_a_checkpoint_keeps_no_activation_and_runs_again_when_it_is_needed():
    w, seen, again = leaf(0.3, 7), [], []
    y = autograd.checkpoint(a_part(w, seen, again), leaf(1.0, 2), [w])
    assert [reference() for reference in seen] == [None]
    y.backward(np.ones(2))
    assert [reference() for reference in seen] == [None, None]
    assert again == [False, True]
    assert not autograd.is_recomputing()


def test_a_checkpoint_that_needs_no_gradient_runs_once():
    w, again = leaf(0.3, 7), []
    with no_grad():
        y = autograd.checkpoint(a_part(w, [], again), leaf(1.0, 2), [w])
    assert not y.requires_grad
    assert again == [False]


def test_checkpoints_may_lie_in_one_another():
    w, x, again = leaf(0.3, 7), leaf(1.0, 2), []
    run = a_part(w, [], again)
    autograd.checkpoint(lambda x: autograd.checkpoint(run, x * 2.0, [w]) + x, x, [w]).backward(np.ones(2))
    grads = x.grad, w.grad
    x.grad = w.grad = None
    (run(x * 2.0) + x).backward(np.ones(2))
    np.testing.assert_array_equal(grads, (x.grad, w.grad))
    assert again == [False, True, True, False]


# what is refused


def test_a_graph_is_consumed_once():
    x = leaf(1.0)
    middle = x * 2
    y = middle * 3
    y.backward()
    with pytest.raises(GraphError, match="consumed by an earlier backward"):
        y.backward()
    with pytest.raises(GraphError, match="consumed by an earlier backward"):
        (middle * 2).backward()
    np.testing.assert_array_equal(x.grad, [6])


def test_a_loss_is_a_scalar_or_has_a_gradient():
    y = leaf(1.0, 2) * 2
    with pytest.raises(GraphError, match=r"isn't a scalar, got shape \(2,\)"):
        y.backward()
    with pytest.raises(ShapeError, match=r"expected \(2,\), got \(1,\)"):
        y.backward(np.ones(1))


def test_a_constant_has_no_gradient():
    with pytest.raises(GraphError, match="depends on nothing that requires gradients"):
        backward(Tensor(np.ones(1)))


@pytest.mark.parametrize("data", [np.array([1, 2]), np.array([True]), [1, 2]])
def test_only_floating_point_requires_gradients(data):
    with pytest.raises(DTypeError, match="only floating point can require gradients"):
        Tensor(data, requires_grad=True)


def test_precisions_do_not_mix():
    single, double = Tensor(np.ones(2, np.float32)), Tensor(np.ones(2))
    with pytest.raises(DTypeError, match="Add: inputs must have one floating-point type, got float32 and float64"):
        single + double
    with pytest.raises(DTypeError, match="got float64 and float32"):
        double * np.ones(2, np.float32)


def test_devices_do_not_mix(monkeypatch):
    elsewhere = type("ndarray", (), {"__module__": "cupy", "dtype": np.dtype(np.float64), "shape": (2,)})()
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace())
    for pair in ((np.ones(2), elsewhere), (elsewhere, np.ones(2))):
        with pytest.raises(DeviceError, match="Add: all arrays must live on one device, got"):
            Tensor(pair[0]) + Tensor(pair[1])


def test_a_missing_gradient_is_found():
    class Forgetful(Function):
        def forward(self, x):
            return x

        def backward(self, grad_output):
            return (None,)

    with pytest.raises(AssertionError, match=r"Forgetful\.backward returned no gradient"):
        Forgetful()(leaf(1.0)).backward()


def test_a_gradient_of_another_precision_is_found():
    class Careless(Function):
        def forward(self, x):
            return x

        def backward(self, grad_output):
            return (grad_output.astype(np.float64),)

    with pytest.raises(AssertionError, match="Careless"):
        Careless()(Tensor(np.ones(1, np.float32), requires_grad=True)).backward()


# the rest of Tensor


def test_a_tensor_describes_itself():
    x = Tensor(np.array([[1.5, 2]]), requires_grad=True)
    assert (x.shape, x.ndim, x.size, len(x), x.dtype) == ((1, 2), 2, 2, 1, np.float64)
    assert repr(x) == "Tensor(array([[1.5, 2. ]]), requires_grad=True)"
    assert repr(x.detach()) == "Tensor(array([[1.5, 2. ]]))"
    assert number(2.5).item() == 2.5
    assert bool(number(1.0))
    assert not bool(number(0.0))
