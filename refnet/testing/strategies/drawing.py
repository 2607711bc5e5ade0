"""What all strategies share."""

from collections.abc import Callable
from typing import Any, TypeAlias

from hypothesis import strategies as st

# st.DrawFn, as far as annotations can be checked while they run
Draw: TypeAlias = Callable[..., Any]

seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(["ones", "integers", "normal"])  # of Values, the simplest first


@st.composite
def shapes(draw: Draw, least_axes: int = 1, most_axes: int = 4) -> tuple[int, ...]:
    """Small extents, one of them 0 at times; the last one up to 40."""
    axes = draw(st.integers(least_axes, most_axes))
    extents = [draw(st.integers(1, 6)) for _ in range(axes - 1)] + [draw(st.integers(1, 40))] * (axes > 0)
    if axes > 1 and draw(st.integers(0, 9)) == 9:
        extents[0] = 0
    return tuple(extents)
