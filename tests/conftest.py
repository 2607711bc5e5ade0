"""Set-up shared by all tests: run-time shape checks and the two sizes of the property tests."""

import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from jaxtyping import install_import_hook


def _modules_with_shapes() -> list[str]:
    """The modules of refnet that state the shapes of arrays; kernels/ is refnet.kernels."""
    root = Path(__file__).parents[1]
    return [
        ".".join((home, *path.relative_to(root).with_suffix("").parts)).lstrip(".")
        for home, folder in (("", "refnet"), ("refnet", "kernels"))
        for path in (root / folder).rglob("*.py")
        if "jaxtyping" in path.read_text()
    ]


# Every annotation such as Float[Array, "N H W C"] is executed while the tests run (an int is a float, as PEP 484 has it).
# Modules without shapes are left to mypy: what calls them most, autograd and the choice of kernels, would take longer to
# check than a step of a small network takes.
_hook = install_import_hook(
    _modules_with_shapes(), "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)

hypothesis.settings.register_profile("default", max_examples=50, deadline=None, derandomize=True)
hypothesis.settings.register_profile("long", max_examples=500, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def torch() -> Any:
    """PyTorch, for the tests that compare with it; they are skipped where it isn't installed."""
    return pytest.importorskip("torch", reason="PyTorch isn't installed, and is only compared with")
