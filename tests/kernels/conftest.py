"""Set-up of the kernels' tests."""

from collections.abc import Iterator

import pytest

from refnet.kernels.cpu import threads


@pytest.fixture(params=[1, 3])
def thread_count(request: pytest.FixtureRequest) -> Iterator[int]:
    """How many threads the kernels use, whatever the machine and its environment, for work however small."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "WORTHWHILE", 0.0)
        patch.setenv("REFNET_NUM_THREADS", str(request.param))
        threads.reset()
        yield request.param
    threads.reset()
