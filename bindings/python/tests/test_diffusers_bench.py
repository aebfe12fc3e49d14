"""The claim of benches/diffusers_hosts.py at a small size, and that it can fail."""

import sys
from pathlib import Path

import pytest
import torch
from diffusers_models import table

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # theirs, for numpy 2
BENCHES = Path(__file__).parents[3] / "benches"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(BENCHES)
    import diffusers_hosts

    monkeypatch.setattr(diffusers_hosts, "RANKING", 16)
    monkeypatch.setattr(diffusers_hosts, "FINE", 200)
    yield diffusers_hosts
    sys.modules.pop("diffusers_hosts")


def test_five_distilled_steps_are_nearer_than_ten_of_diffusers(bench):
    names = [
        "EulerDiscrete",
        "HeunDiscrete",
        "DDIM",
        "PNDM",
        "DPMSolverMultistep, 2M",
        "UniPCMultistep, order 2",
    ]
    result, claims = bench.run(64, 64, schedulers=names)
    away = {row[0]: row[2] for row in result["rows"] if row[1] == bench.MANY}
    assert len(away) == len(names) and claims.finish() == 0
    assert all(result["distilled"] < distance for distance in away.values())


def test_the_claim_fails_where_the_schedule_is_no_better(bench):
    euler = table(nfe=5, sigma_min=0.002, sigma_max=80.0)
    _, claims = bench.run(16, 0, schedulers=["EulerDiscrete"], schedule=euler)
    assert claims.finish() == 1
