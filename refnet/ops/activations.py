"""Activations: relu, leaky_relu, sigmoid, and softmax with its logarithm."""

import numpy as np
from jaxtyping import Float

from refnet.arrays import Array, namespace
from refnet.autograd import Function, Gradients, Result, Tensor
from refnet.kernel_op import kernel_op


@kernel_op
def relu_forward(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """max(x, 0)."""
    return np.asarray(np.maximum(x, 0))


@kernel_op
def relu_grad(grad_output: Float[Array, "*B"], y: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """The adjoint of relu_forward, from its result: g where y > 0, else 0."""
    return np.asarray(grad_output * (y > 0))


class Relu(Function):
    """relu_forward and its gradient. The result says where x was positive, so x itself needn't be kept."""

    def forward(self, x: Array) -> Array:
        self.y = relu_forward(x)
        return self.y

    def backward(self, grad_output: Array) -> Gradients:
        return (relu_grad(grad_output, self.y),)


class LeakyRelu(Function):
    """x where x > 0, else slope · x."""

    def forward(self, x: Array, *, slope: float) -> Result:
        self.x, self.slope = x, slope
        y: Array = namespace(x).where(x > 0, x, slope * x)
        return y

    def backward(self, grad_output: Array) -> Gradients:
        return (namespace(self.x).where(self.x > 0, grad_output, self.slope * grad_output),)


class Sigmoid(Function):
    """1 / (1 + exp(-x)), written so that nothing overflows; the derivative is y (1 - y)."""

    def forward(self, x: Array) -> Result:
        xp = namespace(x)
        e = xp.exp(-abs(x))
        y: Array = xp.where(x >= 0, xp.ones_like(e), e) / (1 + e)
        self.y = y
        return y

    def backward(self, grad_output: Array) -> Gradients:
        return (grad_output * (self.y * (1 - self.y)),)


@kernel_op
def softmax_forward(x: Float[Array, "*B"], *, axis: int) -> Float[Array, "*B"]:
    """exp(x) / sum exp(x) along `axis`."""
    e = np.exp(x - x.max(axis=axis, keepdims=True))  # the largest exponent is 0: no overflow
    y: Array = e / e.sum(axis=axis, keepdims=True)
    return y


class Softmax(Function):
    """softmax_forward; the gradient is y (g - sum g y)."""

    def forward(self, x: Array, *, axis: int) -> Result:
        self.axis = axis
        self.y = softmax_forward(x, axis=axis)
        return self.y

    def backward(self, grad_output: Array) -> Gradients:
        along = (grad_output * self.y).sum(axis=self.axis, keepdims=True)
        return (self.y * (grad_output - along),)


class LogSoftmax(Function):
    """x - log sum exp(x) along an axis; the gradient is g - softmax(x) sum g."""

    def forward(self, x: Array, *, axis: int) -> Result:
        xp = namespace(x)
        self.axis = axis
        shifted = x - x.max(axis=axis, keepdims=True)
        y: Array = shifted - xp.log(xp.exp(shifted).sum(axis=axis, keepdims=True))
        self.y = y
        return y

    def backward(self, grad_output: Array) -> Gradients:
        softmax = namespace(self.y).exp(self.y)
        return (grad_output - softmax * grad_output.sum(axis=self.axis, keepdims=True),)


def relu(x: Tensor) -> Tensor:
    """max(x, 0) of each element. The gradient at 0 is 0."""
    return Relu()(x)


def leaky_relu(x: Tensor, slope: float) -> Tensor:
    """Each element where it is positive, else `slope` times it. The gradient at 0 is `slope`."""
    return LeakyRelu()(x, slope=slope)


def sigmoid(x: Tensor) -> Tensor:
    """The probability that belongs to a logit, 1 / (1 + exp(-x)); finite for every finite x."""
    return Sigmoid()(x)


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """The probabilities that belong to the logits along `axis`; finite for all finite x."""
    return Softmax()(x, axis=axis)


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """The logarithm of :func:`softmax`, which stays finite where a probability rounds to 0."""
    return LogSoftmax()(x, axis=axis)
