"""Set-up shared by the tests of the network."""

from collections.abc import Iterator

import jaxtyping
import pytest


@pytest.fixture
def unannotated() -> Iterator[None]:
    """Annotations aren't executed, as for users of refnet, so that its own errors are met."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
