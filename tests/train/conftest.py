"""Set-up shared by the tests of training."""

import pytest

from tests.rcnn.conftest import disable_annotations

unannotated = pytest.fixture(disable_annotations)
