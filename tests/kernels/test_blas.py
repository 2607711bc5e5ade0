"""Products that add to what is there, by NumPy's own BLAS."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refnet.kernels.cpu import blas

extents = st.integers(0, 9)
needs_openblas = pytest.mark.skipif(not blas.available(), reason=f"its cblas_sgemm: {blas.title()}")


def matrix(rng: np.random.Generator, rows: int, columns: int, transposed: bool, gap: int, dtype: type) -> np.ndarray:
    """Small integers, of which rows or columns lie `gap` elements apart in memory."""
    shape = (columns, rows) if transposed else (rows, columns)
    whole = rng.integers(-3, 4, (shape[0], shape[1] + gap)).astype(dtype)[:, : shape[1]]
    return whole.T if transposed else whole


@needs_openblas
@given(
    extents,
    extents,
    extents,
    st.tuples(st.booleans(), st.booleans()),
    st.tuples(extents, extents, extents),
    st.sampled_from([0.0, 1.0, -2.0]),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 1000),
)
def test_products_of_matrices_of_any_strides(m, k, n, transposed, gaps, beta, dtype, seed):
    rng = np.random.default_rng(seed)
    a = matrix(rng, m, k, transposed[0], gaps[0], dtype)
    b = matrix(rng, k, n, transposed[1], gaps[1], dtype)
    c = matrix(rng, m, n, False, gaps[2], dtype)
    around = c if c.base is None else c.base
    before = around.copy()
    expected = a @ b + beta * c
    blas.multiply(a, b, c, beta)
    np.testing.assert_array_equal(c, expected)
    np.testing.assert_array_equal(around[:, n:], before[:, n:])


@needs_openblas
def test_without_beta_what_was_there_does_not_matter():
    c = np.full((2, 2), np.nan, np.float32)
    blas.multiply(np.eye(2, dtype=np.float32), np.ones((2, 2), np.float32), c)
    np.testing.assert_array_equal(c, np.ones((2, 2)))
    c[:] = np.nan
    blas.multiply(np.ones((2, 0), np.float32), np.ones((0, 2), np.float32), c)
    np.testing.assert_array_equal(c, np.zeros((2, 2)))


def test_another_blas_offers_nothing(monkeypatch):
    blas._products.cache_clear()
    monkeypatch.setattr(np, "show_config", lambda mode: {"Build Dependencies": {"blas": {"name": "accelerate"}}})
    assert not blas.available()
    assert "isn't OpenBLAS" in blas.title()
    monkeypatch.undo()
    blas._products.cache_clear()


def test_a_library_without_the_names_offers_nothing(monkeypatch):
    blas._products.cache_clear()
    monkeypatch.setattr(blas, "NAMES", {})
    assert not blas.available()
    monkeypatch.undo()
    blas._products.cache_clear()
