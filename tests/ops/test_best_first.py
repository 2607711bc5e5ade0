"""best_first: an order with a rule for ties."""

import numpy as np
import pytest

from refnet.errors import ArgumentError
from refnet.ops import best_first


def test_the_lower_position_wins_a_tie():
    assert best_first(np.array([1.0, 3.0, 3.0, 2.0]), limit=3).tolist() == [1, 2, 3]


def test_rows_are_ordered_each_by_itself():
    assert best_first(np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]]), limit=2).tolist() == [[2, 1], [0, 2]]


def test_zeros_are_equal_and_what_is_no_number_is_last():
    assert best_first(np.array([np.nan, -np.inf, -0.0, 0.0, np.inf]), limit=9).tolist() == [4, 2, 3, 1, 0]


def test_nothing_to_order():
    assert best_first(np.zeros(0), limit=3).tolist() == []
    assert best_first(np.zeros((2, 3)), limit=0).shape == (2, 0)


def test_a_negative_limit_is_refused():
    with pytest.raises(ArgumentError, match="best_first: limit must not be negative, got -1"):
        best_first(np.zeros(3), limit=-1)
