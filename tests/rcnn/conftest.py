"""Set-up shared by the tests of the network."""

from collections.abc import Iterator

import jaxtyping
import pytest


def disable_annotations() -> Iterator[None]:
    """Annotations aren't executed, as for users of refnet, so that its own errors are met, and sooner."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


unannotated = pytest.fixture(disable_annotations)
unannotated_module = pytest.fixture(disable_annotations, scope="module")
