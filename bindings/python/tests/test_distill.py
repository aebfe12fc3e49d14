"""Distillation through the binding: it gains, reports, stops when told, and both kinds of tensor agree."""

import contextlib
import json

import lmsd
import numpy as np
import pytest
import torch
from full_disk import files_end_at, on_linux
from mixture import Mixture

OPTIONS = {"teacher_nfe": 40, "sigma_end": 0.002, "trajectories": 32, "held_out": 32}
COMPARED = {name: value for name, value in OPTIONS.items() if name != "trajectories"}


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
    found.report["family"][0]["distance"] = None  # as where every candidate diverges
    assert "3 NFE diverges" in repr(found)
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
        [found.schedules[4], handcrafted], mixture.model, mixture.begin, mixture.like, **COMPARED
    )
    assert distances[0] < 0.7 * distances[1]
    ends, teacher = [], lmsd.solve("deis_3", nfe=40, sigma_end=0.002)
    for schedule in (teacher, handcrafted):
        ends.append(lmsd.sample(schedule, mixture.begin(2**21), mixture.model))
    norms = np.linalg.norm((ends[0] - ends[1]).reshape(32, -1), axis=1)
    assert distances[1] == pytest.approx(norms.mean(), rel=1e-9)


@pytest.mark.parametrize("nfe", [np.int64(3), np.array([3, 3]), [3, 3]])
def test_numbers_of_calls_may_be_of_any_kind(nfe, mixture):
    found = lmsd.distill(mixture.model, mixture.begin, mixture.like, nfe=nfe, progress=False, **OPTIONS)
    assert list(found.schedules) == [3]


@pytest.mark.parametrize("nfe", [[3, 5, 8], [3], "5", "3-8", 3.0, None, {3: 5}])
def test_what_is_no_number_of_calls(nfe, mixture):
    words = r"^nfe is .*; it must be a number of model calls, or \(from, to\) for a family$"
    with pytest.raises(lmsd.Error, match=words):
        lmsd.distill(mixture.model, mixture.begin, mixture.like, nfe=nfe, progress=False, **OPTIONS)
    assert mixture.calls == 0


def test_noise_without_a_seed_is_refused(mixture):
    noise = np.random.default_rng()

    def begin(batch):
        return 80 * noise.normal(size=mixture.like.shape)

    with pytest.raises(lmsd.Error, match="gives another x_T for batch 0 when it is asked again"):
        lmsd.distill(mixture.model, begin, mixture.like, nfe=3, progress=False, **OPTIONS)
    assert mixture.calls <= 2


def test_schedules_may_be_the_paths_of_their_files(mixture, tmp_path):
    schedule = lmsd.solve(nfe=3, sigma_end=0.002)
    schedule.save(tmp_path / "a.json")
    problem = mixture.model, mixture.begin, mixture.like
    one, other = lmsd.compare([schedule, tmp_path / "a.json"], *problem, **COMPARED)
    assert one == other
    for given in ([schedule], [str(tmp_path / "a.json")]):
        found = lmsd.distill(*problem, nfe=3, progress=False, starts=given, **OPTIONS)
        assert one > found.schedules[3].made_by["distance"]
    for given, words in (
        (schedule, "is Schedule; a list of Schedules"),
        (tmp_path / "a.json", "Path; a list of Schedules"),
        ([schedule, 3], "is int; a Schedule or the path"),
    ):
        with pytest.raises(TypeError, match=f"schedules.*{words}"):
            lmsd.compare(given, *problem, **COMPARED)
        with pytest.raises(TypeError, match=f"starts.*{words}"):
            lmsd.distill(*problem, nfe=3, progress=False, starts=given, **OPTIONS)


def test_torch_agrees_with_numpy(mixture):
    by_numpy = lmsd.distill(mixture.model, mixture.begin, mixture.like, nfe=3, progress=False, **OPTIONS)
    of_torch = {
        "begin": lambda batch: torch.from_numpy(mixture.begin(batch)),
        "like": torch.from_numpy(mixture.like),
    }
    by_torch = lmsd.distill(mixture.model, **of_torch, nfe=3, progress=False, **OPTIONS)
    a, b = by_numpy.schedules[3], by_torch.schedules[3]
    assert a.made_by["distance"] == pytest.approx(b.made_by["distance"], rel=1e-3)
    distances = lmsd.compare([a, b], mixture.model, **of_torch, **COMPARED)
    assert distances == pytest.approx(
        lmsd.compare([a, b], mixture.model, mixture.begin, mixture.like, **COMPARED)
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
    assert sorted(told[0]) == sorted([*names, "batch", "gain_expected", "unwritten"])
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
        ({"made_for": {"sampler": 1}}, "sampler"),
    ],
)
def test_options_out_of_range_are_refused(options, words, mixture):
    with pytest.raises(lmsd.Error, match=words) as raised:
        lmsd.distill(mixture.model, mixture.begin, mixture.like, progress=False, **options)
    assert raised.value.status == lmsd.Status.INVALID_ARGUMENT and mixture.calls == 0


def test_x_t_must_fit(mixture):
    for shape in ((1, 2, 3), (32, 0, 3), ()):
        with pytest.raises(
            lmsd.Error, match=r"begin returned a tensor of shape \[.*; it must be \[32, ...\]"
        ):
            lmsd.distill(
                mixture.model, lambda batch, shape=shape: np.zeros(shape), mixture.like, progress=False
            )


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_batches_may_differ_in_shape(kind, mixture):
    """Numbers and results are those of batches of one shape."""
    seen = set()

    def begin(batch):
        return kind(mixture.begin(batch).reshape((-1, 6) if batch % 2 else (-1, 2, 3)))

    def model(x, sigma):
        seen.add(tuple(x.shape))
        return mixture.model(x.reshape(-1, 2, 3), sigma).reshape(x.shape)

    options = {"nfe": 3, "trajectories": 64, "held_out": 64, "sigma_max": 80, "progress": False}
    same = lmsd.distill(
        mixture.model, lambda batch: kind(mixture.begin(batch)), kind(mixture.like), **options
    )
    found = lmsd.distill(model, begin, kind(mixture.like), **options)
    assert len(seen) == 2
    assert found.schedules[3].to_dict()["nodes"] == same.schedules[3].to_dict()["nodes"]
    with pytest.raises(lmsd.Error, match="the model returned a tensor of shape"):
        lmsd.distill(
            lambda x, sigma: mixture.model(x.reshape(-1, 2, 3), sigma), begin, mixture.like, progress=False
        )


def level_one(mixture):
    return lambda batch: mixture.begin(batch) / 80


def unseeded(mixture):
    generator = np.random.default_rng(0)
    return lambda batch: 80 * generator.normal(size=mixture.like.shape)


def constant(mixture):
    return lambda batch: mixture.begin(0)


@pytest.mark.parametrize(
    ("begin", "words"),
    [
        (unseeded, "another x_T for batch 0 when it is asked again"),
        (constant, "the same x_T for batches 0 and 1"),
        (level_one, r"standard deviation of [01]\.\d+; it must be near sigma_max, 80"),
    ],
)
def test_noise_that_is_not_what_it_should_be_is_refused(begin, words, mixture):
    """Before any call of the model. The level of x_T is known of numpy arrays and of torch tensors."""
    makes = begin(mixture)
    with pytest.raises(lmsd.Error, match=words) as raised:
        lmsd.distill(mixture.model, makes, mixture.like, progress=False)
    assert raised.value.status == lmsd.Status.INVALID_ARGUMENT and mixture.calls == 0
    makes = begin(mixture)
    with pytest.raises(lmsd.Error, match=words):
        lmsd.distill(
            mixture.model,
            lambda batch: torch.from_numpy(makes(batch)),
            torch.from_numpy(mixture.like),
            progress=False,
        )


def every_second(model):
    """Computes at every second call, and else takes what it has."""
    found = []

    def call(x, sigma):
        found.append(found[-1] if len(found) % 2 else model(x, sigma))
        return found[-1]

    return call


def near_sigma(model):
    """Takes what it has for a noise level within a tenth of its own."""
    last = (np.inf, None)

    def call(x, sigma):
        nonlocal last
        if abs(np.log(sigma / last[0])) > 0.1:
            last = (sigma, model(x, sigma))
        return last[1]

    return call


def cached(model):
    """Computes at every third call, and else takes what it has."""
    found = []

    def call(x, sigma):
        found.append(found[-1] if len(found) % 3 else model(x, sigma))
        return found[-1]

    return call


def drifting(model):
    """Another result at every call."""
    calls = 0

    def call(x, sigma):
        nonlocal calls
        calls += 1
        return model(x, sigma) + 0.2 * calls

    return call


@pytest.mark.parametrize("host", [every_second, near_sigma, cached, drifting])
def test_a_model_that_depends_on_the_call_before_is_refused(host, mixture):
    with pytest.raises(
        lmsd.Error, match="gives another result for the same x.*caches between calls"
    ) as raised:
        lmsd.distill(host(mixture.model), mixture.begin, mixture.like, progress=False)
    assert raised.value.status == lmsd.Status.INVALID_ARGUMENT and mixture.calls <= 7


def calls_of(found):
    return found.report["model_calls"] + found.report["teacher_calls"]


@pytest.fixture
def small_batches():
    return Mixture(size=4)


@pytest.mark.parametrize("nfe", [4, (3, 5)])
def test_the_plan_is_told_once_before_the_fit(nfe, small_batches):
    told = []
    options = {"trajectories": 16, "held_out": 8, "sigma_end": 0.002, "progress": told.append}
    found = lmsd.distill(small_batches.model, small_batches.begin, small_batches.like, nfe=nfe, **options)
    phases = [p["phase"] for p in told]
    assert phases.count("plan") == 1 and phases.index("plan") < phases.index("fit")
    plan = told[phases.index("plan")]
    assert plan["batch"] == 4 and plan["nfe"] == max(found.schedules) and 1 < plan["gain_expected"] < 10
    assert plan["calls"] < plan["calls_expected"] and calls_of(found) < 1.3 * plan["calls_expected"]


@pytest.mark.parametrize("nfe", [3, 5, (4, 6), 8])
def test_a_small_budget_still_gives_a_result(nfe, small_batches):
    """1,500 image-calls: whether they suffice for something better or not."""
    found = lmsd.distill(
        small_batches.model,
        small_batches.begin,
        small_batches.like,
        nfe=nfe,
        sigma_end=0.002,
        progress=False,
        max_calls=1500 // 4,
    )
    assert small_batches.calls == calls_of(found) <= 1500 // 4
    assert found.report["image_calls"] == 4 * calls_of(found) and found.report["batch"] == 4
    assert found.schedules and max(found.schedules) == np.max(nfe)
    for schedule in found.schedules.values():
        assert schedule.made_by["improved"] in (True, False)
        best = schedule.made_by["handcrafted"][0]["distance"]
        assert (schedule.made_by["distance"] < best) == schedule.made_by["improved"]


def test_more_calls_go_on_from_the_checkpoint_to_what_one_run_finds(tmp_path):
    def run(**options):
        mixture = Mixture(size=4)
        options = {"nfe": 4, "sigma_end": 0.002, "progress": False, **options}
        found = lmsd.distill(mixture.model, mixture.begin, mixture.like, **options)
        return found, mixture.calls

    fresh, calls = run()
    checkpoint = tmp_path / "checkpoint"
    limited, first = run(checkpoint=checkpoint, max_calls=calls // 2)
    assert first <= calls // 2 and limited.schedules[4] != fresh.schedules[4]
    found, second = run(checkpoint=checkpoint)
    assert second < calls - 0.5 * first
    assert found.schedules[4].to_dict()["nodes"] == fresh.schedules[4].to_dict()["nodes"]
    assert found.schedules[4].made_by["distance"] == fresh.schedules[4].made_by["distance"]
    again, third = run(checkpoint=checkpoint)
    assert third == 0 and again.schedules[4].to_dict()["nodes"] == found.schedules[4].to_dict()["nodes"]


@on_linux
@pytest.mark.parametrize("ends", [False, True], ids=["to the end", "for a while"])
def test_a_disk_that_is_full_does_not_end_a_run(tmp_path, ends):
    """It says so all the time; what was written is whole, and once there is space all of it is."""
    mixture, checkpoint, unwritten = Mixture(size=4), tmp_path / "checkpoint", []
    options = {"nfe": 3, "sigma_end": 0.002, "seeds": "so that " + 4000 * "."}

    def progress(p):
        unwritten.append(p["unwritten"])
        if ends and len(unwritten) == 300:
            space.close()

    with contextlib.ExitStack() as space:
        space.enter_context(files_end_at(6000))
        inputs = mixture.model, mixture.begin, mixture.like
        found = lmsd.distill(*inputs, checkpoint=checkpoint, progress=progress, **options)
    assert found.schedules[3].made_by["improved"] and 0 < max(unwritten) < len(unwritten)
    error = found.report["checkpoint_error"]
    assert error is None and unwritten[-1] == 0 if ends else str(checkpoint) in error and unwritten[-1] > 1
    calls = mixture.calls
    assert checkpoint.read_text().endswith("}\n") and (checkpoint.stat().st_size > 6000) == ends
    again = lmsd.distill(*inputs, checkpoint=checkpoint, progress=False, **options)
    assert again.schedules[3].to_dict()["nodes"] == found.schedules[3].to_dict()["nodes"]
    assert mixture.calls - calls < calls and (mixture.calls == calls) == ends


def test_a_schedule_of_the_callers_is_a_start_and_no_worse_for_a_few_calls(small_batches):
    options = {"nfe": 4, "sigma_end": 0.002, "progress": False}
    network = small_batches
    whole = lmsd.distill(network.model, network.begin, network.like, **options, trajectories=96)
    own = whole.schedules[4]
    # the ranking and the held-out part, and no fit
    few = {**options, "iterations": 1, "trajectories": 4, "starts": [own, lmsd.solve(solver="euler", nfe=7)]}
    found = lmsd.distill(network.model, network.begin, network.like, **{**few, "starts": [own]})
    assert found.report["image_calls"] < whole.report["image_calls"] / 2
    own_distance = own.made_by["distance"]
    assert found.schedules[4].made_by["distance"] <= own_distance * (1 + 1e-9)
    with pytest.raises(lmsd.Error, match="schedule 1 of starts: its process and noise levels"):
        lmsd.distill(network.model, network.begin, network.like, **few)
    for wrong, words in [({"nodes": []}, "schedule 0 of starts"), ("x", "schedule 0 of starts")]:
        with pytest.raises(lmsd.Error, match=words):
            lmsd.distill(network.model, network.begin, network.like, **{**few, "starts": [wrong]})
    with pytest.raises(lmsd.Error, match="the number of starts is 65; it must be 0 to 64"):
        lmsd.distill(network.model, network.begin, network.like, **{**few, "starts": [own] * 65})
