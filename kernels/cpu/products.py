"""Products of two matrices, shared among threads: BLAS is limited to one where Python's threads work (:mod:`.threads`)."""

import numpy as np

from refnet.arrays import Array
from refnet.kernels.cpu.threads import count, runs, spread

LEAST = 1 << 21  # multiplications that are worth another thread


def matrix_product(a: Array, b: Array) -> Array:
    """See :func:`refnet.ops.matrix_product`. Threads take rows of the result, or columns if it has more of these."""
    (m, k), n = a.shape, b.shape[1]
    product = np.empty((m, n), a.dtype)
    parts = min(count(), max(1, m * n * k // LEAST), max(m, n))

    def multiply(some: slice) -> None:
        if m >= n:
            np.matmul(a[some], b, out=product[some])
        else:
            np.matmul(a, b[:, some], out=product[:, some])

    spread(multiply, runs(max(m, n), parts))
    return product
