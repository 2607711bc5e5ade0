"""Optimisers: steps by hand, twenty steps against PyTorch's, resumption bit for bit; gradient clipping."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refnet.arrays import Array
from refnet.errors import ArgumentError, CheckpointError, DTypeError
from refnet.nn import (
    SGD,
    AdamW,
    NonFiniteError,
    Optimizer,
    Parameter,
    add_weight_decay,
    clip_gradients,
    find_nonfinite,
)
from refnet.ops.updates import BLOCK

SHAPES = {"conv.weight": (3, 3, 4, 5), "conv.bias": (5,), "fc.weight": (7, BLOCK // 4 + 1), "scale": ()}


def make_parameters(seed: int = 0, dtype: type[np.floating] = np.float64) -> dict[str, Parameter]:
    rng = np.random.default_rng(seed)
    return {name: Parameter(rng.standard_normal(shape).astype(dtype)) for name, shape in SHAPES.items()}


def gradients(step: int, dtype: type[np.floating] = np.float64) -> dict[str, Array | None]:
    """What step `step` of a test trains on; every third step leaves one parameter without."""
    rng = np.random.default_rng(1000 + step)
    found: dict[str, Array | None] = {name: rng.standard_normal(s).astype(dtype) for name, s in SHAPES.items()}
    if step % 3 == 0:
        found["conv.weight"] = None
    return found


def train(optimizer: Optimizer, steps: range, dtype: type[np.floating] = np.float64) -> None:
    for step in steps:
        for name, grad in gradients(step, dtype).items():
            optimizer.parameters[name].grad = grad
        optimizer.step(0.05 / (1 + step))


def one(values: list[float], grad: list[float]) -> dict[str, Parameter]:
    parameter = Parameter(np.array(values))
    parameter.grad = np.array(grad)
    return {"w": parameter}


@pytest.mark.parametrize(
    ("options", "expected"),
    [  # w = 1, gradient 1/2 twice, rate 1/8
        ({}, [1 - 1 / 16, 1 - 2 / 16]),
        ({"momentum": 0.5}, [1 - 1 / 16, 1 - 1 / 16 - 3 / 32]),  # v = 1/2, 3/4
        ({"momentum": 0.5, "nesterov": True}, [1 - 3 / 32, 1 - 3 / 32 - 7 / 64]),  # g + v / 2 = 3/4, 7/8
        ({"weight_decay": 0.25}, [1 - 3 / 32, 1 - 3 / 32 - (1 / 2 + 29 / 128) / 8]),
        ({"weight_decay": 0.25, "decay_norm": "mean"}, [1 - 1 / 8, 1 - 1 / 8 - (1 / 2 + 7 / 16) / 8]),
    ],
)
def test_sgd_by_hand(options: dict[str, Any], expected: list[float]) -> None:
    parameters = one([1.0], [0.5])
    optimizer = SGD(parameters, lr=0.125, **options)
    for value in expected:
        optimizer.step()
        np.testing.assert_array_equal(parameters["w"].data, [value])


def test_decay_by_the_mean_is_the_gradient_of_matterports_term() -> None:
    values = np.random.default_rng(0).standard_normal(6)
    parameters = one(list(values), [0.0] * 6)
    SGD(parameters, lr=1.0, weight_decay=0.3, decay_norm="mean").step()
    step, gradient = 1e-6, np.empty(6)
    for i, e in enumerate(np.eye(6) * step):
        gradient[i] = 0.3 * (np.mean((values + e) ** 2) - np.mean((values - e) ** 2)) / (2 * step)
    np.testing.assert_allclose(values - parameters["w"].data, gradient, rtol=1e-8)


@pytest.mark.parametrize("decay_norm", ["half_sum", "mean"])
def test_decay_before_clipping(decay_norm: Any) -> None:
    """Unclipped it's SGD's own; the term is what its gradient says, and clipping takes both together."""
    values, grads = [3.0, 4.0, 0.0], [0.5, 0.0, 1.0]
    expected = one(values, grads) | {"still": Parameter(np.ones(2)), "free": Parameter(np.ones(2))}
    parameters = one(values, grads) | {"still": Parameter(np.ones(2)), "free": Parameter(np.ones(2))}
    for group in (expected, parameters):
        group["free"].grad = np.zeros(2)
    SGD(expected, lr=1.0, weight_decay=0.3, decay_norm=decay_norm, no_decay=["free"]).step()
    gradient = parameters["w"].grad
    term = add_weight_decay(parameters, weight_decay=0.3, decay_norm=decay_norm, no_decay=["free"])
    np.testing.assert_allclose(term, 0.3 * 25 / (2 if decay_norm == "half_sum" else 3), rtol=1e-15)
    assert gradient.tolist() == grads  # not written to
    norm = clip_gradients(parameters, max_norm=10.0)
    SGD(parameters, lr=1.0).step()
    for name in expected:
        np.testing.assert_allclose(parameters[name].data, expected[name].data, rtol=1e-15)
    share = 0.3 if decay_norm == "half_sum" else 0.2
    np.testing.assert_allclose(norm, np.hypot(np.hypot(0.5 + 3 * share, 4 * share), 1), rtol=1e-15)


def test_adamw_moves_by_the_rate_and_the_sign_at_first() -> None:
    parameters = one([1.0, 1.0], [3.0, -0.001])
    AdamW(parameters, lr=0.125, epsilon=0.0, weight_decay=0.5).step()
    np.testing.assert_allclose(parameters["w"].data, [1 - 1 / 16 - 1 / 8, 1 - 1 / 16 + 1 / 8], rtol=1e-14)


TORCH_CASES: dict[str, tuple[type[Optimizer], dict[str, Any], dict[str, Any]]] = {
    "plain": (SGD, {}, {}),
    "momentum": (SGD, {"momentum": 0.9}, {"momentum": 0.9}),
    "nesterov": (SGD, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "nesterov": True}),
    "decay": (SGD, {"weight_decay": 0.1}, {"weight_decay": 0.1}),
    "momentum and decay": (SGD, {"momentum": 0.8, "weight_decay": 0.1}, {"momentum": 0.8, "weight_decay": 0.1}),
    "nesterov and decay": (
        SGD,
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    ),
    "adamw": (AdamW, {}, {}),
    "adamw, all set": (
        AdamW,
        {"betas": (0.8, 0.95), "epsilon": 1e-3, "weight_decay": 0.2},
        {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.2},
    ),
}


@pytest.mark.parametrize("case", TORCH_CASES)
def test_twenty_steps_are_pytorchs(case: str) -> None:
    torch = pytest.importorskip("torch", reason="optimisers are compared with PyTorch's")
    kind, options, their_options = TORCH_CASES[case]
    parameters = make_parameters()
    theirs = {name: torch.tensor(p.data, requires_grad=True) for name, p in parameters.items()}
    # biases don't decay, and the scale learns three times as fast
    optimizer = kind(parameters, lr=0.05, no_decay=(r".*\.bias",), lr_scale={"scale": 3.0, "s.*": 0.0}, **options)
    groups = [
        {"params": [theirs["conv.weight"], theirs["fc.weight"]], "scale": 1.0},
        {"params": [theirs["conv.bias"]], "weight_decay": 0.0, "scale": 1.0},
        {"params": [theirs["scale"]], "scale": 3.0},
    ]
    reference = getattr(torch.optim, kind.__name__)(groups, lr=0.05, **their_options)
    for step in range(20):
        train(optimizer, range(step, step + 1))
        for group in reference.param_groups:
            group["lr"] = 0.05 / (1 + step) * group["scale"]
        for name, grad in gradients(step).items():
            theirs[name].grad = None if grad is None else torch.tensor(grad)
        reference.step()
    for name, parameter in parameters.items():
        np.testing.assert_allclose(parameter.data, theirs[name].detach().numpy(), rtol=1e-10, atol=1e-10)


def make_sgd(parameters: dict[str, Parameter]) -> Optimizer:
    return SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3)


def make_adamw(parameters: dict[str, Parameter]) -> Optimizer:
    return AdamW(parameters, lr=0.1)


@pytest.mark.parametrize("make", [make_sgd, make_adamw])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_training_resumes_bit_for_bit(
    make: Callable[[dict[str, Parameter]], Optimizer], dtype: type[np.floating]
) -> None:
    straight = make(make_parameters(dtype=dtype))
    train(straight, range(8), dtype)

    first = make(make_parameters(dtype=dtype))
    train(first, range(4), dtype)
    state = {name: array.copy() for name, array in first.state().items()}
    resumed, forgetful = (
        make({name: Parameter(p.data.copy()) for name, p in first.parameters.items()}) for _ in range(2)
    )
    resumed.load_state(state)
    train(resumed, range(4, 8), dtype)
    train(forgetful, range(4, 8), dtype)

    for name, parameter in straight.parameters.items():
        assert parameter.dtype == dtype
        np.testing.assert_array_equal(resumed.parameters[name].data, parameter.data)
        assert not np.array_equal(forgetful.parameters[name].data, parameter.data)  # the state mattered
    for name, array in straight.state().items():
        np.testing.assert_array_equal(resumed.state()[name], array)


def test_the_state_has_a_name_for_every_moment() -> None:
    parameters = one([1.0], [1.0])
    assert list(SGD(parameters, lr=0.1).state()) == []
    assert list(SGD(parameters, lr=0.1, momentum=0.9).state()) == ["w.velocity"]
    assert list(AdamW(parameters, lr=0.1).state()) == ["w.first_moment", "w.second_moment", "w.steps"]


def test_a_state_of_another_optimizer_is_refused_and_changes_nothing() -> None:
    parameters = one([1.0], [1.0])
    optimizer = SGD(parameters, lr=0.1, momentum=0.9)
    with pytest.raises(CheckpointError, match=r"(?s)w.velocity: expected float64 \(1,\), got float32.*u: unexpected"):
        optimizer.load_state({"w.velocity": np.ones(1, np.float32), "u": np.ones(1)})
    with pytest.raises(CheckpointError, match=r"w.velocity: missing"):
        optimizer.load_state({})
    np.testing.assert_array_equal(optimizer.state()["w.velocity"], 0)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda p: SGD(p, lr=0.1, weight_decay=0.1),
        make_adamw,
    ],
)
def test_a_step_changes_values_in_place_and_leaves_gradients_alone(
    make: Callable[[dict[str, Parameter]], Optimizer],
) -> None:
    parameters = make_parameters(dtype=np.float32)
    arrays = {name: p.data for name, p in parameters.items()}
    grads = {name: np.ones_like(p.data) for name, p in parameters.items()}
    grads["conv.bias"] = np.broadcast_to(np.float32(1), (5,))  # read only, as a gradient may be
    for name, parameter in parameters.items():
        parameter.grad = grads[name]
    before = {name: array.copy() for name, array in arrays.items()}
    make(parameters).step()
    for name, parameter in parameters.items():
        assert parameter.data is arrays[name]
        assert parameter.grad is grads[name]
        assert (parameter.data != before[name]).all()
        np.testing.assert_array_equal(grads[name], 1)


def test_the_first_pattern_that_matches_says_the_rate() -> None:
    parameters = {name: one([1.0], [1.0])["w"] for name in ("a.x", "a.y", "b")}
    SGD(parameters, lr=0.25, lr_scale={r"a\.x": 2.0, r"a\..": 0.0}).step()
    assert {name: p.data.item() for name, p in parameters.items()} == {"a.x": 0.5, "a.y": 1.0, "b": 0.75}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: SGD(p, lr=-0.1), "lr must be finite and not negative, got -0.1"),
        (lambda p: SGD(p, lr=0.1, momentum=1.0), "momentum"),
        (lambda p: SGD(p, lr=0.1, nesterov=True), "nesterov needs a momentum"),
        (lambda p: SGD(p, lr=0.1, weight_decay=float("nan")), "weight_decay"),
        (lambda p: SGD(p, lr=0.1, no_decay=("bias",)), "no_decay: the pattern 'bias' matches the whole of none"),
        (lambda p: SGD(p, lr=0.1, lr_scale={"w": -1.0}), "lr_scale"),
        (lambda p: SGD(p, lr=0.1, lr_scale={"x": 1.0}), "lr_scale: the pattern 'x'"),
        (lambda p: AdamW(p, lr=0.1, betas=(0.9, 1.0)), "beta_2"),
        (lambda p: AdamW(p, lr=0.1, epsilon=-1.0), "epsilon"),
        (lambda p: SGD(p, lr=0.1).step(float("inf")), "lr must be finite"),
        (lambda p: add_weight_decay(p, weight_decay=-1.0), "weight decay: weight_decay must be finite"),
        (lambda p: add_weight_decay(p, weight_decay=0.1, no_decay=("bias",)), "no_decay: the pattern 'bias'"),
    ],
)
def test_optimizers_reject(make: Callable[[dict[str, Parameter]], object], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make(one([1.0], [1.0]))


def test_values_that_are_converted_or_laid_out_anew_are_refused() -> None:
    parameters = one([1.0], [1.0])
    optimizer = SGD(parameters, lr=0.1, momentum=0.9)
    parameters["w"].data = parameters["w"].data.astype(np.float32)
    with pytest.raises(DTypeError, match="make the optimiser after astype"):
        optimizer.step()
    parameters["w"].data, parameters["w"].grad = np.ones((2, 3)).T, np.ones((3, 2))
    with pytest.raises(ArgumentError, match="contiguous"):
        SGD(parameters, lr=0.1).step()


def with_gradients(dtype: type[np.floating] = np.float64) -> dict[str, Parameter]:
    parameters = make_parameters(dtype=dtype)
    for name, grad in gradients(0, dtype).items():  # step 0: conv.weight has none
        parameters[name].grad = grad
    return parameters


@pytest.mark.parametrize("mode", ["global", "each"])
@pytest.mark.parametrize("max_norm", [0.5, 2.5, 1e4])
def test_clipping_is_pytorchs(mode: str, max_norm: float) -> None:
    torch = pytest.importorskip("torch", reason="clipping is compared with PyTorch's")
    parameters = with_gradients()
    theirs = {}
    for name, parameter in parameters.items():
        theirs[name] = torch.tensor(parameter.data, requires_grad=True)
        theirs[name].grad = None if parameter.grad is None else torch.tensor(parameter.grad)
    groups = [list(theirs.values())] if mode == "global" else [[t] for t in theirs.values()]
    expected_norm = torch.nn.utils.get_total_norm([t.grad for t in theirs.values() if t.grad is not None]).item()
    norms = [torch.nn.utils.clip_grad_norm_(group, max_norm).item() for group in groups]

    norm = clip_gradients(parameters, max_norm=max_norm, mode=mode)
    np.testing.assert_allclose(norm, expected_norm, rtol=1e-13)
    for name, parameter in parameters.items():
        if parameter.grad is None:
            assert theirs[name].grad is None
            continue
        length = norms[0] if mode == "global" else norms[list(theirs).index(name)]
        by_torch = theirs[name].grad.numpy()
        if length > max_norm:
            by_torch = by_torch * (length + 1e-6) / length  # PyTorch adds 1e-6 to the norm
        np.testing.assert_allclose(parameter.grad, by_torch, rtol=1e-13)


def test_clipping_by_hand() -> None:
    def pair() -> dict[str, Parameter]:
        return {"a": one([0.0, 0.0], [3.0, 0.0])["w"], "b": one([0.0], [4.0])["w"]}

    parameters = pair()
    assert clip_gradients(parameters, max_norm=2.5) == 5.0
    np.testing.assert_array_equal(parameters["a"].grad, [1.5, 0])
    np.testing.assert_array_equal(parameters["b"].grad, [2])
    parameters = pair()
    assert clip_gradients(parameters, max_norm=3.5, mode="each") == 5.0
    np.testing.assert_array_equal(parameters["a"].grad, [3, 0])
    np.testing.assert_array_equal(parameters["b"].grad, [3.5])
    parameters = pair()
    before = parameters["a"].grad
    assert clip_gradients(parameters, max_norm=5.0) == 5.0  # not longer than the limit
    assert parameters["a"].grad is before
    assert clip_gradients({}, max_norm=1.0) == 0.0


def test_clipping_scales_a_gradient_that_two_parameters_hold_once_for_each() -> None:
    shared = np.array([3.0, 4.0])
    parameters = {"a": Parameter(np.zeros(2)), "b": Parameter(np.zeros(2))}
    for parameter in parameters.values():
        parameter.grad = shared
    clip_gradients(parameters, max_norm=2.5, mode="each")
    for parameter in parameters.values():
        np.testing.assert_array_equal(parameter.grad, [1.5, 2.0])
    np.testing.assert_array_equal(shared, [3.0, 4.0])


def test_clipping_sums_in_float64_and_keeps_float32() -> None:
    parameter = Parameter(np.zeros(2 * BLOCK + 3, np.float32))
    parameter.grad = np.full(parameter.shape, 1e30, np.float32)  # its square overflows float32
    norm = clip_gradients({"w": parameter}, max_norm=1.0)
    np.testing.assert_allclose(norm, float(np.float32(1e30)) * np.sqrt(parameter.size), rtol=1e-14)
    assert parameter.grad.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(parameter.grad.astype(np.float64)), 1, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e200])
def test_a_gradient_that_is_not_finite_is_named_and_nothing_changes(value: float) -> None:
    parameters = with_gradients()
    parameters["fc.weight"].grad[-1, -1] = value
    before = parameters["conv.bias"].grad
    with pytest.raises(NonFiniteError, match=r"fc\.weight"):
        clip_gradients(parameters, max_norm=1e-3)
    assert parameters["conv.bias"].grad is before
    if not np.isfinite(value):
        assert find_nonfinite(parameters) == ["fc.weight"]


def test_find_nonfinite_looks_at_values_and_gradients() -> None:
    parameters = with_gradients(np.float32)
    assert find_nonfinite(parameters) == []
    parameters["conv.weight"].data[0, 0, 0, 0] = np.inf
    parameters["scale"].grad[...] = np.nan
    assert find_nonfinite(parameters) == ["conv.weight", "scale"]


def test_clipping_rejects() -> None:
    with pytest.raises(ArgumentError, match="max_norm"):
        clip_gradients(one([1.0], [1.0]), max_norm=0.0)
