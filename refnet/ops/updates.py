"""What a training step does to all parameters at once: optimisers' updates, and the measuring and scaling of gradients.

These operations take lists of arrays, so that a device needs a few launches for a whole network. Updates write to the
values and their moments in place, block by block: a block of all arrays stays in cache through the passes over it.
Each array has its own rates; :mod:`refnet.nn.optim` says what they are made of.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float

from refnet.arrays import Array
from refnet.errors import ArgumentError, DTypeError, ShapeError
from refnet.kernel_op import kernel_op

BLOCK = 2**16  # values: the five arrays of a step in float32 fit a cache of 2 MiB


@kernel_op
def sgd_update(
    values: Sequence[Array],
    gradients: Sequence[Array],
    velocities: Sequence[Array],
    *,
    rates: Sequence[float],
    decays: Sequence[float],
    momentum: float,
    nesterov: bool,
    only_if: Bool[Array, ""] | None = None,
) -> None:
    """Move each array of `values` (w) along its gradient (g), with its velocity (v), rate eta and decay lambda.

    .. math::
        g \\leftarrow g + \\lambda w, \\qquad v \\leftarrow \\mu v + g, \\qquad
        w \\leftarrow w - \\eta\\, v \\qquad (\\text{Nesterov: } w - \\eta\\, (g + \\mu v))

    Args:
        velocities: one for each of the values; none without momentum mu, where v = g.
        only_if: what the host doesn't know yet: where it is false, nothing changes.

    Raises:
        ShapeError: the lists are of different lengths, or arrays that belong together of different shapes.
        DTypeError: such arrays are of different types.
        ArgumentError: values or velocities aren't contiguous.
    """
    check_update("sgd_update", [values, velocities] if momentum else [values], gradients, rates, decays)
    if only_if is not None and not only_if:
        return
    for index, (value, gradient) in enumerate(zip(values, gradients, strict=True)):
        moments = [velocities[index]] if momentum else []
        for w, g, *velocity, scratch in _blocks(value, gradient, *moments):
            if decays[index]:
                np.multiply(w, decays[index], out=scratch)
                g = np.add(scratch, g, out=scratch)
            if velocity:
                (v,) = velocity
                v *= momentum
                v += g
                g = g + momentum * v if nesterov else v
            np.multiply(g, rates[index], out=scratch)
            w -= scratch


@kernel_op
def adamw_update(
    values: Sequence[Array],
    gradients: Sequence[Array],
    first_moments: Sequence[Array],
    second_moments: Sequence[Array],
    *,
    keeps: Sequence[float],
    first_rates: Sequence[float],
    second_rates: Sequence[float],
    betas: tuple[float, float],
    epsilon: float,
    only_if: Bool[Array, ""] | None = None,
) -> None:
    """Move each array of `values` (w) by its moments (m, v), which its gradient (g) changes first.

    .. math::
        m \\leftarrow \\beta_1 m + (1 - \\beta_1) g, \\qquad v \\leftarrow \\beta_2 v + (1 - \\beta_2) g^2, \\qquad
        w \\leftarrow k w - r_1 \\frac{m}{\\sqrt{r_2 v} + \\epsilon}

    for its k of `keeps`, r_1 of `first_rates` and r_2 of `second_rates`.

    Args:
        only_if: what the host doesn't know yet: where it is false, nothing changes.

    Raises:
        ShapeError, DTypeError, ArgumentError: as for :func:`sgd_update`.
    """
    moments = [values, first_moments, second_moments]
    check_update("adamw_update", moments, gradients, keeps, first_rates, second_rates)
    if only_if is not None and not only_if:
        return
    beta_1, beta_2 = betas
    for arrays, keep, first_rate, second_rate in zip(
        zip(values, gradients, first_moments, second_moments, strict=True),
        keeps, first_rates, second_rates, strict=True,
    ):  # fmt: skip
        for w, g, m, v, scratch in _blocks(*arrays):
            if keep != 1:
                w *= keep
            m *= beta_1
            np.multiply(g, 1 - beta_1, out=scratch)
            m += scratch
            v *= beta_2
            np.multiply(g, g, out=scratch)
            scratch *= 1 - beta_2
            v += scratch
            np.multiply(v, second_rate, out=scratch)
            np.sqrt(scratch, out=scratch)
            scratch += epsilon
            np.divide(m, scratch, out=scratch)
            scratch *= first_rate
            w -= scratch


@kernel_op
def sums_of_squares(arrays: Sequence[Array]) -> Float[Array, " P"]:
    """The sum of squares of each array, in float64; an infinite one is no error.

    Pairwise within blocks (NumPy's own sum runs on one thread), in an order that depends on the shape alone.
    """
    totals = np.zeros(len(arrays))
    with np.errstate(over="ignore"):
        for index, array in enumerate(arrays):
            flat = array.reshape(-1)
            for start in range(0, flat.size, BLOCK):
                totals[index] += np.square(flat[start : start + BLOCK], dtype=np.float64).sum()
    return totals


@kernel_op
def scaled(arrays: Sequence[Array], factors: Float[Array, " P"]) -> list[Array]:
    """Each array times its factor, which is rounded to the array's type: new arrays.

    Raises:
        ShapeError: there aren't as many factors as arrays.
    """
    check_factors(arrays, factors)
    return [np.asarray(array * factor) for array, factor in zip(arrays, factors.tolist(), strict=True)]


def check_update(
    what: str, written: Sequence[Sequence[Array]], gradients: Sequence[Array], *numbers: Sequence[float]
) -> None:
    """Check the arguments of an update, for the specification and for kernels; `what` names the operation.

    Raises:
        ShapeError, DTypeError, ArgumentError: see :func:`sgd_update`.
    """
    lengths = [len(entries) for entries in (*written, gradients, *numbers)]
    if len(set(lengths)) > 1:
        raise ShapeError(f"{what}: expected lists of one length, got {lengths}")
    for index, gradient in enumerate(gradients):
        for array in (entries[index] for entries in written):
            if array.shape != gradient.shape:
                raise ShapeError(f"{what}: array {index}: expected {gradient.shape}, got {array.shape}")
            if array.dtype != gradient.dtype:
                raise DTypeError(f"{what}: array {index}: expected {gradient.dtype}, got {array.dtype}")
            if not array.flags.c_contiguous:
                raise ArgumentError(f"{what}: array {index}: expected values in C order, they change in place")


def check_factors(arrays: Sequence[Array], factors: Array) -> None:
    """Check the arguments of :func:`scaled`.

    Raises:
        ShapeError: there aren't as many factors as arrays.
    """
    if factors.shape != (len(arrays),):
        raise ShapeError(f"scaled: expected a factor for each of {len(arrays)} arrays, got {factors.shape}")


def _blocks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Arrays of one size, flat, block by block, and a block of scratch."""
    flat = [array.reshape(-1) for array in arrays]
    size = flat[0].size
    scratch = np.empty(min(size, BLOCK), flat[0].dtype)
    for start in range(0, size, BLOCK):
        stop = min(start + BLOCK, size)
        yield (*(array[start:stop] for array in flat), scratch[: stop - start])
