"""Batch normalisation, by the batch's statistics and frozen: literal cases, properties, gradients, PyTorch and Keras."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from refnet.autograd import Tensor
from refnet.errors import ArgumentError, ShapeError
from refnet.nn import BatchNorm2d
from refnet.ops import (
    affine_forward,
    affine_grad_input,
    affine_grad_parameters,
    batch_norm,
    frozen_batch_norm,
)
from refnet.testing import check_gradients
from refnet.testing.strategies.geometry import seeds
from tests.golden import matterport_rules

shapes = array_shapes(min_dims=2, max_dims=4, max_side=4)
epsilons = st.sampled_from([1e-5, 1e-3, 0.1])


def parameters(channels: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """gamma and beta."""
    return rng.uniform(0.5, 1.5, channels), rng.standard_normal(channels)


# literal cases


def test_values():
    """Channel 0 has mean 2 and variance 1, channel 1 mean 0 and variance 16; epsilon makes the latter 25."""
    x = Tensor(np.array([[1.0, -4], [3, 4]]))
    y, mean, variance = batch_norm(x, Tensor(np.array([1.0, 10])), Tensor(np.array([0.0, 1])), epsilon=9)
    np.testing.assert_array_equal(mean, [2, 0])
    np.testing.assert_array_equal(variance, [1, 16])
    np.testing.assert_allclose(y.data, [[-1 / np.sqrt(10), -7], [1 / np.sqrt(10), 9]], rtol=1e-15)


def test_frozen_values():
    x = Tensor(np.array([[1.0, 4]]))
    gamma, beta = Tensor(np.array([2.0, 3])), Tensor(np.array([0.5, 0]))
    y = frozen_batch_norm(x, gamma, beta, np.array([3.0, 1]), np.array([3.0, 8]), epsilon=1)
    np.testing.assert_array_equal(y.data, [[-1.5, 3]])


def test_affine():
    x, scale, shift = np.array([[1.0, 2], [3, 4]]), np.array([2.0, -1]), np.array([10.0, 0])
    np.testing.assert_array_equal(affine_forward(x, scale, shift), [[12, -2], [16, -4]])
    g = np.array([[1.0, 10], [100, 1000]])
    np.testing.assert_array_equal(affine_grad_input(g, scale), [[2, -10], [200, -1000]])
    grad_scale, grad_shift = affine_grad_parameters(g, x)
    np.testing.assert_array_equal(grad_scale, [301, 4020])
    np.testing.assert_array_equal(grad_shift, [101, 1010])


# properties


@given(shapes, seeds, epsilons)
def test_every_channel_has_mean_beta_and_a_variance_below_that_of_gamma(shape, seed, epsilon):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((5, *shape))
    gamma, beta = parameters(shape[-1], rng)
    y, mean, variance = batch_norm(Tensor(x), Tensor(gamma), Tensor(beta), epsilon=epsilon)
    axes = tuple(range(x.ndim - 1))
    np.testing.assert_allclose(mean, x.mean(axis=axes), atol=1e-14)
    np.testing.assert_allclose(variance, x.var(axis=axes), rtol=1e-12)
    np.testing.assert_allclose(y.data.mean(axis=axes), beta, atol=1e-12)
    np.testing.assert_allclose(y.data.var(axis=axes), gamma**2 * variance / (variance + epsilon), rtol=1e-10)


@given(shapes, seeds, epsilons)
def test_a_shift_of_the_input_changes_nothing(shape, seed, epsilon):
    rng = np.random.default_rng(seed)
    x, (gamma, beta) = rng.standard_normal(shape), parameters(shape[-1], rng)
    plain, shifted = (
        batch_norm(Tensor(values), Tensor(gamma), Tensor(beta), epsilon=epsilon)[0].data
        for values in (x, x + rng.standard_normal(shape[-1]))
    )
    np.testing.assert_allclose(shifted, plain, atol=1e-10)


@given(shapes, seeds, epsilons)
def test_frozen_by_its_own_statistics_is_the_same(shape, seed, epsilon):
    rng = np.random.default_rng(seed)
    x, (gamma, beta) = rng.standard_normal(shape), parameters(shape[-1], rng)
    y, mean, variance = batch_norm(Tensor(x), Tensor(gamma), Tensor(beta), epsilon=epsilon)
    frozen = frozen_batch_norm(Tensor(x), Tensor(gamma), Tensor(beta), mean, variance, epsilon=epsilon)
    np.testing.assert_allclose(frozen.data, y.data, atol=1e-10)


@given(shapes, seeds)
def test_the_gradient_of_x_is_blind_to_a_common_shift(shape, seed):
    """Since y doesn't change when x is shifted, the gradients of a channel sum to 0."""
    rng = np.random.default_rng(seed)
    x, (gamma, beta) = Tensor(rng.standard_normal(shape), requires_grad=True), parameters(shape[-1], rng)
    y, _, _ = batch_norm(x, Tensor(gamma), Tensor(beta), epsilon=0.1)
    y.backward(rng.standard_normal(shape))
    np.testing.assert_allclose(x.grad.sum(axis=tuple(range(x.ndim - 1))), 0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_type_of_the_input_is_kept(dtype):
    rng = np.random.default_rng(0)
    x, gamma, beta = (
        Tensor(rng.standard_normal(s).astype(dtype), requires_grad=True) for s in ((2, 3, 3, 4), (4,), (4,))
    )
    y, mean, variance = batch_norm(x, gamma, beta, epsilon=1e-5)
    assert {a.dtype for a in (y, mean, variance)} == {np.dtype(dtype)}
    z = frozen_batch_norm(y, gamma, beta, mean, variance, epsilon=1e-5)
    assert z.dtype == dtype
    z.backward(np.ones(z.shape, dtype))
    assert {t.grad.dtype for t in (x, gamma, beta)} == {np.dtype(dtype)}


# gradients


@given(shapes, seeds)
def test_gradients(shape, seed):
    rng = np.random.default_rng(seed)
    x, (gamma, beta) = rng.standard_normal(shape), parameters(shape[-1], rng)
    check_gradients(lambda *t: batch_norm(*t, epsilon=0.1)[0], x, gamma, beta, rng=rng)


@given(shapes, seeds, epsilons)
def test_gradients_of_frozen(shape, seed, epsilon):
    rng = np.random.default_rng(seed)
    x, (gamma, beta) = rng.standard_normal(shape), parameters(shape[-1], rng)
    mean, variance = rng.standard_normal(shape[-1]), rng.uniform(0.1, 2, shape[-1])
    check_gradients(lambda *t: frozen_batch_norm(*t, mean, variance, epsilon=epsilon), x, gamma, beta, rng=rng)


def test_frozen_needs_no_sums_when_only_x_is_differentiated():
    x, ones = Tensor(np.ones((2, 3)), requires_grad=True), np.ones(3)

    def forbidden(*args, **kwargs):
        raise AssertionError("nobody needs these gradients")

    y = frozen_batch_norm(x, Tensor(3 * ones), Tensor(ones), ones, ones, epsilon=0)
    with affine_grad_parameters.using(forbidden):
        y.backward(np.ones((2, 3)))
    np.testing.assert_array_equal(x.grad, np.full((2, 3), 3.0))


# other libraries


@given(shape=array_shapes(min_dims=3, max_dims=4, min_side=2, max_side=4), seed=seeds, epsilon=epsilons)
def test_equals_torch(torch, shape, seed, epsilon):
    rng = np.random.default_rng(seed)
    arrays = (rng.standard_normal(shape), *parameters(shape[-1], rng))
    mean, variance = rng.standard_normal(shape[-1]), rng.uniform(0.1, 2, shape[-1])
    for training in (True, False):
        x, gamma, beta = (Tensor(a, requires_grad=True) for a in arrays)
        tx, tg, tb = (torch.tensor(np.moveaxis(a, -1, 1) if a.ndim > 1 else a, requires_grad=True) for a in arrays)
        if training:
            y, _, _ = batch_norm(x, gamma, beta, epsilon=epsilon)
        else:
            y = frozen_batch_norm(x, gamma, beta, mean, variance, epsilon=epsilon)
        ty = torch.nn.functional.batch_norm(
            tx, torch.tensor(mean), torch.tensor(variance), tg, tb, training=training, eps=epsilon
        )
        u = rng.standard_normal(shape)
        y.backward(u)
        ty.backward(torch.tensor(np.moveaxis(u, -1, 1).copy()))
        np.testing.assert_allclose(y.data, np.moveaxis(ty.detach().numpy(), 1, -1), rtol=0, atol=1e-10)
        np.testing.assert_allclose(x.grad, np.moveaxis(tx.grad.numpy(), 1, -1), rtol=0, atol=1e-10)
        np.testing.assert_allclose(gamma.grad, tg.grad.numpy(), rtol=0, atol=1e-10)
        np.testing.assert_allclose(beta.grad, tb.grad.numpy(), rtol=0, atol=1e-10)


def test_equals_keras():
    """Keras computed in float32: 60 values a channel, so at most some 61 roundings of the largest value."""
    golden = matterport_rules.load("same_padding")
    epsilon = float(golden["bn.eps_momentum"][0])
    values = matterport_rules.normal("bn/x", (2, 5, 6, 4), scale=2, shift=1).astype(np.float64)
    x = Tensor(values, requires_grad=True)
    gamma = Tensor(matterport_rules.uniform("bn/gamma", (4,), 0.5, 1).astype(np.float64), requires_grad=True)
    beta = Tensor(matterport_rules.normal("bn/beta", (4,), scale=0.5).astype(np.float64), requires_grad=True)
    mean = matterport_rules.normal("bn/mean", (4,)).astype(np.float64)
    variance = matterport_rules.uniform("bn/var", (4,), 0.01, 1.5).astype(np.float64)

    def close(actual: np.ndarray, name: str) -> None:
        np.testing.assert_allclose(actual, golden[name], rtol=0, atol=61 * 2.0**-24 * abs(golden[name]).max())

    close(frozen_batch_norm(x, gamma, beta, mean, variance, epsilon=epsilon).data, "bn.infer")
    y, _, _ = batch_norm(x, gamma, beta, epsilon=epsilon)
    close(y.data, "bn.train")
    y.backward(matterport_rules.normal("bn/up", y.shape).astype(np.float64))
    close(x.grad, "bn.train_gx")
    close(gamma.grad, "bn.train_gg")
    close(beta.grad, "bn.train_gb")
    for rule, ending in (("biased", "_from_biased"), ("unbiased", "_from_unbiased"), ("unbiased", "")):
        layer = BatchNorm2d(4, epsilon=epsilon, momentum=0.01, variance=rule, dtype=np.float64)
        layer.running_mean[...], layer.running_variance[...] = mean, variance
        layer(Tensor(values), training=True)
        close(layer.running_mean, "bn.moving_mean_after")
        close(layer.running_variance, f"bn.moving_var_after{ending}")


# errors


@pytest.mark.parametrize(
    ("x", "gamma", "epsilon", "error", "message"),
    [
        ((3,), 3, 0.1, ShapeError, r"expected x \(..., C\), got \(3,\)"),
        ((2, 3), 2, 0.1, ShapeError, r"gamma must have shape \(3,\), got \(2,\)"),
        ((2, 3), 3, -1, ArgumentError, "epsilon must not be negative, got -1"),
    ],
)
def test_errors_say_what_was_expected(x, gamma, epsilon, error, message):
    with pytest.raises(error, match=message):
        batch_norm(Tensor(np.ones(x)), Tensor(np.ones(gamma)), Tensor(np.ones(3)), epsilon=epsilon)
    with pytest.raises(error, match=message):
        frozen_batch_norm(
            Tensor(np.ones(x)), Tensor(np.ones(gamma)), Tensor(np.ones(3)), np.ones(3), np.ones(3), epsilon=epsilon
        )


def test_an_empty_batch_has_no_statistics():
    gamma, beta = Tensor(np.ones(3)), Tensor(np.ones(3))
    with pytest.raises(ShapeError, match=r"at least one value a channel, got x of shape \(0, 3\)"):
        batch_norm(Tensor(np.ones((0, 3))), gamma, beta, epsilon=0.1)
    assert frozen_batch_norm(Tensor(np.ones((0, 3))), gamma, beta, np.ones(3), np.ones(3), epsilon=0.1).shape == (0, 3)


def test_statistics_must_have_an_entry_a_channel():
    x, ones = Tensor(np.ones((2, 3))), Tensor(np.ones(3))
    with pytest.raises(ShapeError, match=r"variance must have shape \(3,\), got \(4,\)"):
        frozen_batch_norm(x, ones, ones, np.ones(3), np.ones(4), epsilon=0.1)
