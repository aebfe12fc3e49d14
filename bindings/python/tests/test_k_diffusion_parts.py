"""`lmsd.k_diffusion.sample_part`: a run in parts is the run."""

import lmsd
import pytest
import torch
from lmsd.k_diffusion import host_sigmas, part_of, sample_lmsd, sample_part


@pytest.fixture(params=["dpmpp_3m", "heun"])
def schedule(request):
    return lmsd.solve(request.param, nfe=7, sigma_max=80.0, sigma_end=0.0)


@pytest.fixture
def model(mixture):
    return lambda x, sigma: mixture.model(x, float(sigma[0]))


def test_parts_are_the_whole(schedule, mixture, model):
    x, heard = torch.from_numpy(mixture.begin(0)), []
    whole = sample_lmsd(model, x, host_sigmas(schedule), disable=True, schedule=schedule)
    for at in range(1, 7):
        first = sample_part(model, x, schedule, at, disable=True)
        assert first.index == at and len(first.predictions) == at
        last = sample_part(model, x, schedule, 7, None, heard.append, True, first)
        assert torch.equal(last.x, whole) and last.predictions == [None] * 7
    assert [step["i"] for step in heard] == [i for at in range(1, 7) for i in range(7 - at)]
    assert float(heard[0]["sigma"]) == pytest.approx(schedule.sigmas[1])


def test_only_what_later_rows_need_is_kept(mixture, model):
    schedule = lmsd.solve("dpmpp_2m", nfe=6, sigma_max=80.0, sigma_end=0.0)
    x = torch.from_numpy(mixture.begin(0))
    stopped = sample_part(model, x, schedule, 4, disable=True)
    assert [one is not None for one in stopped.predictions] == [False, False, False, True]


def test_where_sigmas_stand_in_a_list():
    levels = [80.0, 10.0, 10.0, 1.0, 0.0]
    assert part_of(levels, levels) == (0, 4)
    assert part_of(levels, [80.0, 10.0]) == (0, 1)
    assert part_of(levels, [10.0, 10.0, 1.0]) == (1, 3)
    assert part_of(levels, [10.0, 1.0, 0.0]) == (2, 4)
    assert part_of(levels, torch.tensor([10.00001, 1.0, 0.0])) == (2, 4)
    for other in ([80.0, 1.0], [10.0, 80.0], [80.0, 10.0, 10.0, 1.0, 0.0, 0.0], [10.0, 1.0, 0.01]):
        assert part_of(levels, other) is None
