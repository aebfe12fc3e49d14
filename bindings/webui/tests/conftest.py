import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: threads only wait here
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python" / "tests"))  # mixture, diffusers_models

import pytest  # noqa: E402
import torch  # noqa: E402
from mixture import Mixture  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture
def mixture():
    return Mixture()
