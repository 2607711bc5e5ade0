"""What all strategies share."""

from collections.abc import Callable
from typing import Any, TypeAlias

from hypothesis import strategies as st

# st.DrawFn, as far as annotations can be checked while they run
Draw: TypeAlias = Callable[..., Any]

seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(["ones", "integers", "normal"])  # of Values, the simplest first
