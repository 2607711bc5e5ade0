"""Set-up of the kernels' tests."""

from collections.abc import Iterator

import pytest

from refnet.kernels.cpu import threads


@pytest.fixture(params=[1, 3])
def thread_count(request: pytest.FixtureRequest) -> Iterator[int]:
    """How many threads the kernels use, whatever the machine and its environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFNET_NUM_THREADS", str(request.param))
        threads.reset()
        yield request.param
    threads.reset()
