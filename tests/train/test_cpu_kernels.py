"""The whole network with every kernel of the CPU, held against the specification alone: see :mod:`tests.train.passes`."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache

import numpy as np
import pytest

import refnet.kernels
from refnet.kernels.cpu.conv import using_plan
from refnet.kernels.cpu.precision import Precision, precision
from tests.train.passes import JITTERS, NETWORKS, Pass, Values, check_detections, detect, within_rounding

pytestmark = pytest.mark.usefixtures("unannotated")

# of convolutions the plan and the precision that it needs, and by how much its sums multiply roundings
# (refnet/testing/winograd.py)
PLANS: dict[str, tuple[str | None, Precision, int]] = {
    "plain sums": (None, "exact-order", 1),
    "F(2x2,3x3)": ("winograd_f2", "float32", 7),
    "F(4x4,3x3)": ("winograd_f4", "float32", 63),
}


@contextmanager
def kernels(plan: str) -> Iterator[int]:
    """Within the block all kernels are installed and convolutions planned so; the units of its rounding."""
    algorithm, exactness, units = PLANS[plan]
    refnet.kernels.install()
    try:
        with precision(exactness), nullcontext() if algorithm is None else using_plan(algorithm):
            yield units
    finally:
        refnet.kernels.uninstall()


@cache
def specified(name: str) -> tuple[Pass, Pass]:
    """The specification's step in float64 and in float32."""
    with pytest.MonkeyPatch.context() as patch:
        return Pass(patch, name, dtype=np.float64), Pass(patch, name)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_is_the_specifications(monkeypatch: pytest.MonkeyPatch, name: str, plan: str) -> None:
    with kernels(plan) as units:
        found = Pass(monkeypatch, name)
    exact, plain = specified(name)
    for field in ("images", "classes", "sources", "foreground", "keypoints"):
        np.testing.assert_array_equal(getattr(found.rois, field), getattr(plain.rois, field), err_msg=field)
    rounded = [plain, *(Pass(monkeypatch, name, dtype=np.float64, jitter=k, units=units) for k in range(JITTERS))]
    within_rounding(found.losses, exact.losses, [other.losses for other in rounded])
    for what in ("gradients", "parameters"):
        values = [getattr(taken, what) for taken in (found, exact, *rounded)]
        if units > 1:
            values = [joined(entry) for entry in values]
        within_rounding(values[0], values[1], values[2:])


def joined(values: Values) -> Values:
    """All arrays in one row.

    Larger roundings turn the sign of some ReLU's input in some passes and not in others. That changes small gradients by
    more than a few passes show, but no large one.
    """
    return {"all": np.concatenate([array.ravel() for array in values.values()])}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", NETWORKS)
def test_detections_are_the_specifications(name: str, plan: str) -> None:
    with kernels(plan) as units:
        found = detect(name)
    exact = detect(name, dtype=np.float64)
    rounded = [detect(name), *(detect(name, dtype=np.float64, jitter=k, units=units) for k in range(JITTERS))]
    check_detections(found, exact, rounded)
