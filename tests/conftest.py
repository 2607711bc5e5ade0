"""Set-up shared by all tests: run-time shape checks and the two sizes of the property tests."""

import os
from typing import Any

import hypothesis
import pytest
from jaxtyping import install_import_hook

# every annotation such as Float[Array, "N H W C"] in refnet is executed while the tests run
# (an int is a float, as PEP 484 has it)
_hook = install_import_hook("refnet", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

hypothesis.settings.register_profile("default", max_examples=50, deadline=None, derandomize=True)
hypothesis.settings.register_profile("long", max_examples=500, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def torch() -> Any:
    """PyTorch, for the tests that compare with it; they are skipped where it isn't installed."""
    return pytest.importorskip("torch", reason="PyTorch isn't installed, and is only compared with")
