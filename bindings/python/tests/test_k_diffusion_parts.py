"""`lmsd.k_diffusion.sample_part`: a run in parts is the run."""

import lmsd
import pytest
import torch
from lmsd.k_diffusion import ended_at, host_sigmas, part_of, sample_lmsd, sample_part


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


def test_a_schedule_that_ends_earlier_is_the_head_of_it(schedule, mixture, model):
    """At its own levels; of two equal ones the first is meant."""
    x = torch.from_numpy(mixture.begin(0))
    for end in range(1, 7):
        if schedule.sigmas[end] == schedule.sigmas[end - 1]:
            continue
        short = ended_at(schedule, schedule.sigmas[end])
        assert (
            short.nfe == end and short.sigma_end == schedule.sigmas[end] and "distance" not in short.made_by
        )
        head = sample_part(model, x, schedule, end, disable=True).x
        torch.testing.assert_close(lmsd.sample(short, x, mixture.model), head)


@pytest.mark.parametrize("process", ["ve", "flow"])
def test_a_schedule_may_end_between_its_levels(process):
    start = {"ve": 80.0, "flow": 1.0}[process]
    made = lmsd.solve("dpmpp_2m", nfe=5, process=process, sigma_end=0.0).to_dict()
    made["nodes"][0] |= {"sigma": 0.9 * start, "scale": 1.1}
    made = lmsd.Schedule.from_json(made)
    levels = made.sigmas
    assert ended_at(made, 1.01 * levels[3]).nfe == 3 == ended_at(made, 0.99 * levels[3]).nfe
    assert ended_at(made, 1e-5).nfe == 4, "the last level above 0 is the nearest"
    early = ended_at(made, 0.95 * start)
    assert early.nfe == 1 and early.sigmas.tolist() == [start, 0.95 * start]
    assert early.scales[0] == (1.0 if process == "flow" else 1.1)
    for sigma in (0.0, start, 2 * start):
        with pytest.raises(lmsd.Error, match="can stop above 0 and below"):
            ended_at(made, sigma)
