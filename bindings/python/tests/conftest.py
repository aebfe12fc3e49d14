import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: threads only wait here

import pytest  # noqa: E402
from mixture import Mixture  # noqa: E402


@pytest.fixture
def mixture():
    return Mixture()
