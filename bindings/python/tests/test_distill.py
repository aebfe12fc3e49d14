"""Distillation through the binding: it gains, reports, stops when told, and both kinds of tensor agree."""

import json

import lmsd
import numpy as np
import pytest
import torch

OPTIONS = {"teacher_nfe": 40, "sigma_end": 0.002, "trajectories": 32, "held_out": 32}


def test_a_family_gains_and_says_how_it_was_made(mixture, tmp_path):
    found = lmsd.distill(
        mixture.model,
        mixture.begin,
        mixture.like,
        nfe=(3, 4),
        progress=False,
        made_for={"model": "mixture", "guidance_scale": 1.0},
        seeds="1, batch",
        **OPTIONS,
    )
    assert list(found.schedules) == [3, 4]
    assert [family["nfe"] for family in found.report["family"]] == [3, 4]
    assert found.report["stopped"] is None
    assert "3 NFE" in repr(found)
    for nfe, schedule in found.schedules.items():
        made = schedule.made_by
        assert made["method"] == "distilled" and made["improved"] and made["seeds"] == "1, batch"
        assert made["distance"] < 0.7 * made["handcrafted"][0]["distance"]
        assert schedule.made_for["model"] == "mixture" and schedule.nfe == nfe
    paths = found.save(tmp_path / "out")
    assert [path.name for path in paths] == ["nfe03.json", "nfe04.json"]
    assert lmsd.Schedule.load(paths[1]) == found.schedules[4]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == found.report

    handcrafted = lmsd.solve(nfe=4, sigma_end=0.002)
    distances = lmsd.compare(
        [found.schedules[4], handcrafted], mixture.model, mixture.begin, mixture.like, **OPTIONS
    )
    assert distances[0] < 0.7 * distances[1]
    ends, teacher = [], lmsd.solve("deis_3", nfe=40, sigma_end=0.002)
    for schedule in (teacher, handcrafted):
        ends.append(lmsd.sample(schedule, mixture.begin(2**21), mixture.model))
    norms = np.linalg.norm((ends[0] - ends[1]).reshape(32, -1), axis=1)
    assert distances[1] == pytest.approx(norms.mean(), rel=1e-9)


def test_torch_agrees_with_numpy(mixture):
    by_numpy = lmsd.distill(mixture.model, mixture.begin, mixture.like, nfe=3, progress=False, **OPTIONS)
    of_torch = {
        "begin": lambda batch: torch.from_numpy(mixture.begin(batch)),
        "like": torch.from_numpy(mixture.like),
    }
    by_torch = lmsd.distill(mixture.model, **of_torch, nfe=3, progress=False, **OPTIONS)
    a, b = by_numpy.schedules[3], by_torch.schedules[3]
    assert a.made_by["distance"] == pytest.approx(b.made_by["distance"], rel=1e-3)
    distances = lmsd.compare([a, b], mixture.model, **of_torch, **OPTIONS)
    assert distances == pytest.approx(
        lmsd.compare([a, b], mixture.model, mixture.begin, mixture.like, **OPTIONS)
    )


def test_progress_is_told_and_may_stop(mixture):
    told = []

    def progress(p):
        told.append(p)
        return p["phase"] == "fit" and np.isfinite(p["distance"]) and p["calls"] % 50 == 0

    found = lmsd.distill(mixture.model, mixture.begin, mixture.like, nfe=3, progress=progress, **OPTIONS)
    assert found.report["stopped"] == "cancelled" and found.schedules[3].nfe == 3
    assert {p["phase"] for p in told} >= {"teacher", "rank", "fit"}
    names = ["phase", "nfe", "calls", "calls_expected", "distance", "handcrafted", "seconds_left"]
    assert sorted(told[0]) == sorted([*names, "batch", "gain_expected"])
    (plan,) = [p for p in told if p["phase"] == "plan"]
    assert plan["batch"] == len(mixture.like) and plan["gain_expected"] > 1
    assert all(p["calls"] > plan["calls"] for p in told if p["phase"] == "fit")
    told.remove(plan)
    assert [p["calls"] for p in told] == list(range(1, len(told) + 1)) and mixture.calls == len(told)
    assert all(p["calls_expected"] >= p["calls"] for p in told)


def test_stopping_before_the_first_result_is_an_error(mixture):
    with pytest.raises(lmsd.Error) as raised:
        lmsd.distill(mixture.model, mixture.begin, mixture.like, progress=lambda p: True, **OPTIONS)
    assert raised.value.status == lmsd.Status.STOPPED


def test_the_bar_shows_distance_and_gain(mixture, capsys):
    lmsd.distill(mixture.model, mixture.begin, mixture.like, nfe=3, **OPTIONS)
    shown = capsys.readouterr().err
    assert "3 NFE" in shown and "calls" in shown and "distance" in shown and "handcrafted" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nfe": 0}, "nfe is 0"),
        ({"nfe": (5, 3)}, "nfe_from is 5"),
        ({"sigma_end": 1.0}, "sigma_end is 1"),
        ({"surprise": 1}, "surprise"),
        ({"made_for": {"sampler": 1}}, "sampler"),
    ],
)
def test_options_out_of_range_are_refused(options, words, mixture):
    with pytest.raises(lmsd.Error, match=words) as raised:
        lmsd.distill(mixture.model, mixture.begin, mixture.like, progress=False, **options)
    assert raised.value.status == lmsd.Status.INVALID_ARGUMENT and mixture.calls == 0


def test_x_t_must_fit(mixture):
    with pytest.raises(lmsd.Error, match=r"begin returned shape \[1, 2, 3\]; it must be \[32, 2, 3\]"):
        lmsd.distill(mixture.model, lambda batch: np.zeros((1, 2, 3)), mixture.like, progress=False)
