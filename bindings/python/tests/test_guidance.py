"""Schedules that set the guidance of each call, and fits of it."""

import lmsd
import numpy as np
import pytest
import torch
from lmsd import guidance
from lmsd.diffusers import LmsdScheduler
from lmsd.k_diffusion import host_sigmas, sample_lmsd, sample_part

SHARES = [0.5, 1.0, 1.25, 0.0]
SCALE = 3.0
LEVELS = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_end": 0.002}


@pytest.fixture
def schedule():
    file = lmsd.solve("dpmpp_2m", nfe=4, **LEVELS).to_dict()
    for node, share in zip(file["nodes"], SHARES, strict=True):
        node["guidance"] = share
    return lmsd.Schedule.from_json(file)


class Guided:
    """Guidance towards the first two of the Gaussians of a mixture; `asked`: the scales of the calls."""

    def __init__(self, mixture):
        self.all, self.asked = mixture, []
        self.few = type(mixture)(size=len(mixture.like))
        self.few.centers = mixture.centers[:2]
        self.begin, self.like = mixture.begin, mixture.like

    def model(self, x, sigma, share=1.0):
        self.asked.append(guidance.of_call(SCALE, share))
        given, without = self.few.model(x, sigma), self.all.model(x, sigma)
        return without + self.asked[-1] * (given - without)


@pytest.fixture
def guided(mixture):
    return Guided(mixture)


def test_the_model_is_told_the_guidance_of_each_call(schedule, guided):
    assert schedule.is_guided and schedule.guidance.tolist() == SHARES
    whole = lmsd.sample(schedule, guided.begin(0), guided.model)
    assert guided.asked == [2.0, 3.0, 3.5, 1.0]
    sampler = lmsd.Sampler(schedule, guided.begin(0))
    for x, sigma in sampler:
        sampler.step(guided.model(x, sigma, sampler.guidance))
    assert np.array_equal(sampler.result, whole) and guided.asked[4:] == guided.asked[:4]


def test_it_is_in_the_file_and_only_there_where_it_is_not_the_users(schedule):
    read = lmsd.Schedule.from_json(schedule.to_json())
    assert read.guidance.tolist() == SHARES
    assert ["guidance" in node for node in read.to_dict()["nodes"]] == [True, False, True, True]
    assert not lmsd.solve("dpmpp_2m", nfe=4).is_guided
    file = schedule.to_dict()
    for wrong in (-0.1, 10.5):
        file["nodes"][2]["guidance"] = wrong
        with pytest.raises(lmsd.ScheduleError, match=f"guidance of node 2 is {wrong}; it must be 0 to 10"):
            lmsd.Schedule.from_json(file)


def test_a_part_of_a_schedule_keeps_the_guidance_of_its_calls(schedule):
    assert schedule.start_at(float(schedule.sigmas[2])).guidance.tolist() == SHARES[2:]


def test_a_model_without_guidance_is_refused_before_it_is_called(schedule, mixture):
    def model(x, sigma):
        return mixture.model(x, sigma)

    for work in (
        lambda: lmsd.sample(schedule, mixture.begin(0), model),
        lambda: lmsd.compare([schedule], model, mixture.begin, mixture.like, **LEVELS),
        lambda: lmsd.distill(model, mixture.begin, mixture.like, fit_guidance=True, progress=False),
    ):
        with pytest.raises(lmsd.Error, match="must be model\\(x, sigma, guidance\\)"):
            work()
    assert mixture.calls == 0


def test_a_model_that_takes_no_notice_of_guidance_is_refused(mixture):
    def model(x, sigma, guidance):
        return mixture.model(x, sigma)

    with pytest.raises(lmsd.Error, match="the same result without guidance"):
        lmsd.distill(model, mixture.begin, mixture.like, fit_guidance=True, progress=False, **LEVELS)
    assert mixture.calls == 8


def test_a_fit_moves_guidance_and_is_not_worse_than_its_start(guided):
    options = {"nfe": 3, "trajectories": 32, "progress": False, **LEVELS}
    alone = {f"fit_{name}": False for name in ("sigmas", "scales", "weights")}
    found = lmsd.distill(guided.model, guided.begin, guided.like, fit_guidance=True, **alone, **options)
    fitted = found.schedules[3]
    assert fitted.is_guided and (fitted.guidance >= 0).all() and (fitted.guidance <= 4).all()
    made = fitted.made_by
    assert made["distance"] < made["start_distance"]
    plain = lmsd.Schedule.from_json(
        fitted.to_dict() | {"nodes": [node | {"guidance": 1.0} for node in fitted.to_dict()["nodes"]]}
    )
    own, without = lmsd.compare([fitted, plain], guided.model, guided.begin, guided.like, **LEVELS)
    assert own < without

    with pytest.raises(lmsd.Error, match="fit_guidance must be true"):
        lmsd.distill(guided.model, guided.begin, guided.like, starts=[fitted], **options)


def test_hosts_with_cond_scale(schedule, guided):
    x, scales = torch.from_numpy(guided.begin(0)), []

    def denoiser(x, sigma, cond_scale):
        scales.append(cond_scale)
        return guided.model(x, float(sigma[0]), (cond_scale - 1) / (SCALE - 1))

    sigmas, extra = host_sigmas(schedule), {"cond_scale": SCALE}
    out = sample_lmsd(denoiser, x, sigmas, extra, disable=True, schedule=schedule)
    assert scales == pytest.approx([2.0, 3.0, 3.5, 1.0])
    assert torch.allclose(out, lmsd.sample(schedule, x, guided.model))
    head = sample_part(denoiser, x, schedule, 2, extra, disable=True)
    tail = sample_part(denoiser, head.x, schedule, 4, extra, disable=True, after=head)
    assert torch.equal(tail.x, out) and scales[4:] == scales[:4]
    with pytest.raises(lmsd.Error, match="no cond_scale among extra_args"):
        sample_lmsd(denoiser, x, sigmas, disable=True, schedule=schedule)


def test_pipelines_refuse_it(schedule):
    with pytest.raises(lmsd.ScheduleError, match="which a pipeline cannot set"):
        LmsdScheduler.from_schedule(schedule)
