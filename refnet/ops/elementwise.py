"""Functions of one element, or of a pair of elements: exp, log, sqrt, power, absolute, maximum, minimum, clip."""

from refnet.arrays import Array, namespace
from refnet.autograd import Function, Gradients, Operand, Result, Tensor
from refnet.errors import ArgumentError


class Exp(Function):
    """exp x; the derivative is the value."""

    def forward(self, x: Array) -> Result:
        y: Array = namespace(x).exp(x)
        self.y = y
        return y

    def backward(self, grad_output: Array) -> Gradients:
        return (grad_output * self.y,)


class Log(Function):
    """Natural logarithm; the derivative is 1 / x."""

    def forward(self, x: Array) -> Result:
        self.x = x
        y: Array = namespace(x).log(x)
        return y

    def backward(self, grad_output: Array) -> Gradients:
        return (grad_output / self.x,)


class Sqrt(Function):
    """Square root; the derivative is 1 / (2 y)."""

    def forward(self, x: Array) -> Result:
        y: Array = namespace(x).sqrt(x)
        self.y = y
        return y

    def backward(self, grad_output: Array) -> Gradients:
        return (grad_output / (2 * self.y),)


class Absolute(Function):
    """abs x; the derivative is the sign, 0 at 0."""

    def forward(self, x: Array) -> Result:
        self.x = x
        return abs(x)

    def backward(self, grad_output: Array) -> Gradients:
        return (grad_output * namespace(self.x).sign(self.x),)


class Maximum(Function):
    """The larger of a and b."""

    def forward(self, a: Array, b: Array) -> Result:
        self.a, self.b = a, b
        y: Array = namespace(a, b).maximum(a, b)
        return y

    def backward(self, grad_output: Array) -> Gradients:
        return _to_the_larger(grad_output, self.a, self.b), _to_the_larger(grad_output, self.b, self.a)


class Minimum(Function):
    """The smaller of a and b."""

    def forward(self, a: Array, b: Array) -> Result:
        self.a, self.b = a, b
        y: Array = namespace(a, b).minimum(a, b)
        return y

    def backward(self, grad_output: Array) -> Gradients:
        return _to_the_larger(grad_output, self.b, self.a), _to_the_larger(grad_output, self.a, self.b)


def _to_the_larger(grad: Array, one: Array, other: Array) -> Result:
    """The share of `grad` that belongs to `one`: all where it is larger than `other`, half where they are equal."""
    xp = namespace(grad)
    share: Array = xp.where(one > other, grad, xp.where(one == other, grad / 2, 0))
    return share


class Clip(Function):
    """x moved into [low, high]; the derivative is 1 within, the limits included, and 0 outside."""

    def forward(self, x: Array, *, low: float, high: float) -> Result:
        self.within = (x >= low) & (x <= high)
        y: Array = x.clip(low, high)
        return y

    def backward(self, grad_output: Array) -> Gradients:
        return (grad_output * self.within,)


def exp(x: Tensor) -> Tensor:
    """e to the power of each element."""
    return Exp()(x)


def log(x: Tensor) -> Tensor:
    """The natural logarithm of each element."""
    return Log()(x)


def sqrt(x: Tensor) -> Tensor:
    """The square root of each element. At 0 the gradient is infinite."""
    return Sqrt()(x)


def power(x: Tensor, exponent: float) -> Tensor:
    """Each element to the power of a constant."""
    return x**exponent


def absolute(x: Tensor) -> Tensor:
    """The distance of each element from 0. The gradient at 0 is 0."""
    return Absolute()(x)


def maximum(a: Tensor, b: Operand) -> Tensor:
    """The larger of each pair of elements; shapes broadcast.

    Choice: where the two are equal each receives half of the gradient, as in PyTorch and JAX, so that the
    function stays symmetric; TensorFlow gives it all to `a`.
    """
    return Maximum()(a, b)


def minimum(a: Tensor, b: Operand) -> Tensor:
    """The smaller of each pair of elements; shapes broadcast.

    Choice: where the two are equal each receives half of the gradient; see :func:`maximum`.
    """
    return Minimum()(a, b)


def clip(x: Tensor, low: float, high: float) -> Tensor:
    """Each element moved into [low, high]. The gradient passes within and at the limits, and stops outside.

    Raises:
        ArgumentError: `low` is above `high`.
    """
    if low > high:
        raise ArgumentError(f"clip: low must not be above high, got {low} and {high}")
    return Clip()(x, low=low, high=high)
