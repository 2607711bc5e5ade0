"""The best of many scores, in order: which boxes are looked at first.

.. math:: s_{p_1} \\ge s_{p_2} \\ge \\dots, \\qquad p_i < p_{i+1} \\text{ where } s_{p_i} = s_{p_{i+1}}
"""

from jaxtyping import Float, Int

from refnet.arrays import Array, namespace
from refnet.errors import ArgumentError
from refnet.kernel_op import kernel_op


@kernel_op
def best_first(scores: Float[Array, "*N B"], *, limit: int) -> Int[Array, "*N _"]:
    """Positions of the `limit` highest scores of each row, best first; the lower position wins a tie.

    0 and -0 are one score. One that isn't a number comes behind all others. Where there are fewer, all are given.

    Raises:
        ArgumentError: `limit` is negative.
    """
    check_limit(limit)
    order: Array = namespace(scores).argsort(-scores, axis=-1, kind="stable")
    return order[..., :limit]


def check_limit(limit: int) -> None:
    """Check the arguments of :func:`best_first`.

    Raises:
        ArgumentError: `limit` is negative.
    """
    if limit < 0:
        raise ArgumentError(f"best_first: limit must not be negative, got {limit}")
