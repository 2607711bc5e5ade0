"""kernels/cpu/products.py: the contract, and that threads share what is large."""

import numpy as np
import pytest

from refnet.kernels.cpu import products, threads
from refnet.ops import matrix_product
from refnet.testing import check_kernel


@pytest.mark.parametrize("number", ["1", "3"])
def test_keeps_its_contract_on_threads(number, monkeypatch):
    monkeypatch.setenv("REFNET_NUM_THREADS", number)
    threads.reset()
    try:
        check_kernel(matrix_product, products.matrix_product, device="cpu")
    finally:
        monkeypatch.undo()
        threads.reset()


@pytest.mark.parametrize(("m", "n"), [(700, 60), (60, 700)])
def test_large_products_are_shared_and_small_ones_are_not(m, n, monkeypatch):
    asked = []

    def spread(work, pieces):
        asked.append(len(pieces))
        return [work(piece) for piece in pieces]

    monkeypatch.setattr(products, "count", lambda: 2)
    monkeypatch.setattr(products, "spread", spread)
    rng = np.random.default_rng(0)
    for k in (400, 4):
        a, b = rng.standard_normal((m, k)), rng.standard_normal((k, n))
        np.testing.assert_allclose(products.matrix_product(a, b), a @ b, rtol=1e-12, atol=1e-12)
    assert asked == [2, 1]
