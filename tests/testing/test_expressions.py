"""Arithmetic in text: what it computes, and that it does nothing else."""

import numpy as np
import pytest

from refnet import ops
from refnet.errors import ArgumentError
from refnet.testing.expressions import evaluate, sizes

NAMES = {"N": 2, "stride": (2, 3), "padding": ((0, 1), (2, 3)), "limit": None, "x": np.zeros((4, 5)), "t": 0.5}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("N", 2),
        ("-N + 3 * (N - 1) // 2", -1),
        ("cdiv(N * 5, 4)", 3),
        ("stride[0] * padding[1][1]", 6),
        ("x.shape[1] % 3 + x.size + x.ndim", 24),
        ("t / 2", 0.25),
        ("N, max(N, 7), 1", (2, 7, 1)),
        ("stride[0] == N and not limit == 3", True),
        ("1 < N <= 2 or N > 100", True),
        ("limit == None", True),
        ("min(abs(-3), 4) - 1.5", 1.5),
    ],
)
def test_values(text, value):
    assert evaluate(text, NAMES) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("N +", "expected an expression"),
        ("M", "expected one of the names N, limit, .*, got 'M'"),
        ("x.T", "expected arithmetic"),
        ("x.__class__", "expected arithmetic"),
        ("().__class__", "expected arithmetic"),
        ("__import__('os')", "expected arithmetic"),
        ("open('file')", "expected arithmetic"),
        ("[N for N in stride]", "expected arithmetic"),
        ("(lambda: 1)()", "expected arithmetic"),
        ("'text'", "expected arithmetic"),
        ("2 ** 1000", "expected arithmetic"),
        ("min(N, key=x)", "expected arithmetic"),
        ("stride[5]", "out of range"),
        ("N // 0", "division"),
        ("N[0]", "subscriptable"),
    ],
)
def test_anything_else_is_refused(text, words):
    with pytest.raises(ArgumentError, match=words):
        evaluate(text, NAMES)


def test_sizes_are_those_of_the_annotations():
    arrays = {"x": np.zeros((2, 5, 6, 3)), "w": np.zeros((3, 2, 3, 4))}
    expected = {"N": 2, "H": 5, "W": 6, "C": 3, "kh": 3, "kw": 2, "Cg": 3, "O": 4, "Ho": 3, "Wo": 5}
    assert sizes(ops.conv2d_forward, arrays, [np.zeros((2, 3, 5, 4))]) == expected
    assert sizes(ops.affine_forward, {"x": np.zeros((2, 3, 7)), "scale": np.zeros(7)}) == {"B": 6, "C": 7}
    assert sizes(ops.max_pool2d_forward, {}, [np.zeros((2, 3, 5, 4))] * 2) == {"N": 2, "Ho": 3, "Wo": 5, "C": 4}
    assert sizes(ops.nms, {"boxes": np.zeros((3, 4))}) == {}
