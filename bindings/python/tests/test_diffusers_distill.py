"""lmsd.diffusers.distill: pipelines as they are, and what their distilled schedules then do in them."""

import contextlib
import copy
import functools
import os
import signal
import threading
import time

import lmsd
import lmsd.diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers_models import LABELS, QUICK, SIZE, STOCK, betas, digits_pipeline, quiet, stock
from lmsd.diffusers import LmsdScheduler, distill

HELD_OUT = 1 << 20  # first batch of the held-out trajectories


class Counted:
    """Counts the calls of a network, and calls `at(number)` before each, from 1."""

    def __init__(self, pipe, at=lambda number: None):
        self.at, self.calls = at, 0
        pipe.unet.register_forward_pre_hook(self.hear)

    def hear(self, *_):
        self.calls += 1
        self.at(self.calls)


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    handler = signal.getsignal(signal.SIGINT)
    yield
    assert "lmsd.distill" not in [thread.name for thread in threading.enumerate()]
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.is_grad_enabled()


@contextlib.contextmanager
def unchanged(pipe):
    """The pipeline has its scheduler and its progress bar again, whatever happens."""
    scheduler, bar = pipe.scheduler, dict(pipe._progress_bar_config)
    config = dict(pipe.config)
    try:
        yield
    finally:
        assert pipe.scheduler is scheduler and pipe._progress_bar_config == bar
        assert dict(pipe.config) == config


def counted(at=lambda number: None):
    pipe = quiet(digits_pipeline())
    return pipe, Counted(pipe, at)


def teacher(schedule, report):
    """The schedule of its teacher."""
    solver, config = schedule.made_by["teacher"].split(",")[0], report["config"]
    names = ("process", "sigma_min", "sigma_max", "sigma_end")
    options = {name: config[name] for name in names} | {"grid": config["teacher_grid"]}
    return lmsd.solve(solver, nfe=report["teacher_nfe"], **options)


def measured(pipe, schedule, report, arguments, size, seed=0, start=lambda noise: {"latents": noise}):
    """Mean distance to the teacher over the held-out trajectories, both by LmsdScheduler in the pipeline.

    `start`: the arguments for the pipeline to begin with this noise.
    """
    own, ends = pipe.scheduler, []
    shape = [size, *schedule.made_for["latent_shape"]]
    noise = np.random.default_rng([seed, HELD_OUT]).standard_normal(shape, np.float32)
    try:
        for one in (schedule, teacher(schedule, report)):
            file = one.to_dict()
            file.pop("made_for", None)
            pipe.scheduler = LmsdScheduler.from_schedule(lmsd.Schedule.from_json(file), like=own)
            states, step = [], pipe.scheduler.step

            def recorded(*given, step=step, states=states, **options):
                states.append(step(*given, **options))
                return states[-1]

            pipe.scheduler.step = recorded
            pipe(**arguments, **start(torch.from_numpy(noise)), num_inference_steps=one.nfe)
            ends.append(states[-1][0][:size])
    finally:
        pipe.scheduler = own
    return float((ends[0] - ends[1]).flatten(1).norm(dim=1).mean())


def held_out_labels(size):
    return [(HELD_OUT * size + row) % 10 for row in range(size)]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_scheduler_samples_what_was_fitted(kind, guidance):
    pipe = quiet(digits_pipeline(kind, shift=2.0))
    with unchanged(pipe):
        options = QUICK | {"trajectories": 24}
        found = distill(pipe, LABELS, nfe=4, guidance_scale=guidance, progress=False, **options)
    schedule = found.schedules[4]
    assert schedule.made_by["distance"] < schedule.made_by["handcrafted"][0]["distance"]
    arguments = {"class_labels": held_out_labels(8), "guidance_scale": guidance}
    distance = measured(pipe, schedule, found.report, arguments, 8)
    assert distance == pytest.approx(schedule.made_by["distance"], rel=2e-3)
    made_for = schedule.made_for
    assert made_for["model"] == "DigitsModel" and made_for["guidance_scale"] == guidance
    assert made_for["latent_shape"] == [1, 8, 8] and made_for["snapped"] is False
    if kind == "flow_prediction":
        assert schedule.sigmas[0] == schedule.sigma_start == 1
        assert made_for["shift"] == 2 and made_for["sigma_min"] == pytest.approx(0.002 / 1.001)
    else:
        assert made_for["sigma_max"] == pytest.approx(80, rel=1e-5)
        assert made_for["sigma_min"] == pytest.approx(0.002, rel=2e-3)
    pipe.scheduler = LmsdScheduler.from_schedule(found, like=pipe.scheduler)  # passes its checks
    assert pipe.scheduler.schedule == schedule


def test_several_guidance_scales_take_turns():
    pipe = quiet(digits_pipeline())
    asked = []
    call = type(pipe).__call__

    class Told(type(pipe)):
        @functools.wraps(call)
        def __call__(self, *args, guidance_scale=1.0, **options):
            asked.append(guidance_scale)
            return call(self, *args, guidance_scale=guidance_scale, **options)

    pipe.__class__ = Told
    options = {**QUICK, "batch_size": 2}  # four batches, and three scales
    found = distill(pipe, LABELS, nfe=3, guidance_scale=[2, 6, 4], progress=False, **options)
    assert set(asked) == {2.0, 6.0, 4.0} and asked[0] == 2
    schedule = found.schedules[3]
    assert schedule.made_for["guidance_range"] == [2, 6] and "guidance_scale" not in schedule.made_for
    schedule.check(guidance_scale=5)


def test_it_gains_over_every_published_solver():
    pipe = quiet(digits_pipeline())
    options = {"teacher_nfe": 60, "batch_size": 32, "trajectories": 32, "held_out": 32, "progress": False}
    found = distill(pipe, LABELS, nfe=4, guidance_scale=3.0, **options)
    made = found.schedules[4].made_by
    assert made["improved"] and made["distance"] < 0.6 * made["handcrafted"][0]["distance"]
    unconditional = distill(pipe, nfe=4, **options)
    made = unconditional.schedules[4].made_by
    assert made["improved"] and made["distance"] < 0.6 * made["handcrafted"][0]["distance"]
    assert unconditional.schedules[4].made_for["guidance_scale"] == 1


def test_calls_are_those_of_the_distillation_and_one():
    pipe, network = counted()
    found = distill(pipe, LABELS, nfe=(2, 3), progress=False, **QUICK | {"batch_size": 4})
    report = found.report
    assert network.calls == report["model_calls"] + report["teacher_calls"] + 1
    assert list(found.schedules) == [2, 3] and report["teacher_calls"] >= 2 * (20 + 12) + 2 * 12


def test_batches_are_always_the_same():
    """x_T and labels, whoever asks and how often; prompts cycle over the rows, then over the batches."""
    pipe, starts = quiet(digits_pipeline()), {}
    predict = pipe.predict

    def spy(sample, t, labels, guidance):
        if t == 999 and len(sample) == 4:
            starts.setdefault(tuple(labels.tolist()), []).append(sample)
        return predict(sample, t, labels, guidance)

    pipe.predict = spy
    options = QUICK | {"batch_size": 4, "fit_start": False, "fit_scales": False}
    distill(pipe, LABELS[:7], nfe=2, seed=5, progress=False, **options)
    # Labels come again every seven batches, noise does not.
    batches = [*range(64), *range(HELD_OUT, HELD_OUT + 64)]
    known = {}
    for batch in batches:
        noise = np.random.default_rng([5, batch]).standard_normal((4, 1, 8, 8), np.float32)
        known.setdefault(tuple((batch * 4 + row) % 7 for row in range(4)), {})[batch] = torch.from_numpy(
            noise
        )
    assert set(starts) <= set(known)
    asked, others = [], 0
    for labels, samples in starts.items():
        for sample in samples:
            near = [b for b, x in known[labels].items() if torch.allclose(sample, x, rtol=1e-4, atol=1e-5)]
            assert len(near) <= 1
            others += not near
            asked += near
    assert (
        {0, 1, 2, HELD_OUT, HELD_OUT + 1} <= set(asked) and asked.count(0) > 2 and asked.count(HELD_OUT) > 2
    )


def test_a_pipeline_that_takes_no_latents_gives_the_same():
    (pipe, network), (other, other_network) = counted(), counted()
    kind = type(other)

    class NoLatents(kind):
        def __call__(self, class_labels=None, num_inference_steps=50, guidance_scale=1.0):
            labels = torch.tensor(class_labels)
            latents = torch.randn(len(labels), 1, 8, 8) * self.scheduler.init_noise_sigma
            self.scheduler.set_timesteps(num_inference_steps)
            for t in self.progress_bar(self.scheduler.timesteps):
                sample = self.scheduler.scale_model_input(latents, t)
                output = self.predict(sample, t, labels, guidance_scale)
                latents = self.scheduler.step(output, t, latents).prev_sample
            return latents

    other.__class__ = NoLatents
    found = [distill(p, LABELS, nfe=2, progress=False, **QUICK).schedules[2] for p in (pipe, other)]
    assert found[0].to_dict()["nodes"] == found[1].to_dict()["nodes"]
    assert network.calls < other_network.calls < 1.6 * network.calls


def test_half_precision_and_integer_timesteps():
    """The fit keeps its state in float32 and sees what the network makes of rounding."""
    pipe = quiet(digits_pipeline())
    pipe.unet.to(torch.float16)
    found = distill(
        pipe, LABELS, nfe=3, guidance_scale=3.0, integer_timesteps=True, progress=False, **QUICK
    ).schedules[3]
    assert found.made_for["snapped"] is True and found.made_by["improved"]
    scheduler = LmsdScheduler.from_schedule(found, like=pipe.scheduler)
    assert scheduler.timesteps.dtype == torch.int64


ERRORS = [ValueError("a"), KeyboardInterrupt(), SystemExit(3), StopIteration(2), lmsd.Error("own")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("number", [1, 2, 14, 40])
def test_an_exception_of_the_network_comes_out_as_itself(error, number):
    def at(call):
        if call == number:
            raise error

    pipe, network = counted(at)
    with unchanged(pipe), pytest.raises(type(error)) as raised:
        distill(pipe, LABELS, nfe=2, progress=False, **QUICK)
    assert raised.value is error and network.calls == number
    error.__traceback__ = error.__context__ = None


def test_where_memory_runs_out_the_batch_is_halved():
    def hungry(most):
        def hear(_network, arguments, *_):
            if len(arguments[0]) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        pipe = quiet(digits_pipeline())
        pipe.unet.register_forward_pre_hook(hear)
        return pipe

    options = {**QUICK, "nfe": 2, "progress": False}
    want = distill(quiet(digits_pipeline()), LABELS, **{**options, "batch_size": 4}).schedules[2]
    pipe = hungry(7)
    with unchanged(pipe):
        got = distill(pipe, LABELS, **{**options, "batch_size": 16}).schedules[2]
    assert got.made_by["seeds"] == want.made_by["seeds"] and "4 latents" in got.made_by["seeds"]
    assert (got.sigmas == want.sigmas).all() and (got.scales == want.scales).all()
    with pytest.raises(torch.OutOfMemoryError):
        distill(hungry(0), LABELS, **options)


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("number", [1, 30])
def test_an_exception_of_progress_comes_out_as_itself(error, number):
    heard, (pipe, _) = [], counted()

    def progress(report):
        assert threading.current_thread() is threading.main_thread()
        heard.append(report)
        if len(heard) == number:
            raise error

    with unchanged(pipe), pytest.raises(type(error)) as raised:
        distill(pipe, LABELS, nfe=2, progress=progress, **QUICK)
    assert raised.value is error and len(heard) == number
    error.__traceback__ = error.__context__ = None


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"nfe": 99}, lmsd.Error, "nfe is 99"),
        ({"fit_everything": True}, (lmsd.Error, TypeError), "fit_everything"),
        ({"teacher": "nobody"}, lmsd.Error, "nobody"),
        ({"guidance_scale": "a lot"}, ValueError, "could not convert string"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
        ({"batch_size": -1}, ValueError, "batch_size is -1"),
        ({"latents": torch.zeros(8, 1, 8, 8)}, ValueError, "its own latents"),
        ({"num_inference_steps": 8}, ValueError, "its own num_inference_steps"),
        ({"strength": 0.5}, ValueError, "begins at noise"),
        ({"height": 8}, (lmsd.Error, TypeError), "height"),
    ],
)
def test_what_lmsd_and_the_pipeline_refuse(options, kind, text):
    pipe = quiet(digits_pipeline())
    with unchanged(pipe), pytest.raises(kind, match=text):
        distill(pipe, LABELS, progress=False, **{**QUICK, **options})


class Stepwise(type(digits_pipeline())):
    """A pipeline with arguments that depend on the step."""

    def __call__(
        self,
        class_labels=None,
        control_guidance_start=0.0,
        control_guidance_end=1.0,
        callback_on_step_end=None,
        timesteps=None,
        **options,
    ):
        return super().__call__(class_labels, **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"control_guidance_end": 0.5}, "control_guidance_end is 0.5: .* must not depend on the step"),
        ({"control_guidance_end": [1.0, 0.5]}, r"control_guidance_end is \[1.0, 0.5\]"),
        ({"control_guidance_start": 0.1}, "distill with control_guidance_start=0.0"),
        ({"callback_on_step_end": print}, "callback_on_step_end is <built-in"),
        ({"timesteps": [999, 500]}, "its own timesteps"),
    ],
)
def test_arguments_that_depend_on_the_step_are_refused(options, text):
    pipe, network = counted()
    pipe.__class__ = Stepwise
    with unchanged(pipe), pytest.raises(ValueError, match=text):
        distill(pipe, LABELS, nfe=2, progress=False, **QUICK, **options)
    assert network.calls == 0
    neutral = {"control_guidance_start": [0.0, 0.0], "callback_on_step_end": None}
    assert distill(pipe, LABELS, nfe=2, progress=False, **QUICK, **neutral).schedules


def test_a_cache_across_steps_is_refused():
    pipe, network = counted()
    pipe.unet.is_cache_enabled = True
    with unchanged(pipe), pytest.raises(lmsd.Error, match=r"call pipe.unet.disable_cache\(\) to distill"):
        distill(pipe, LABELS, nfe=2, progress=False, **QUICK)
    assert network.calls == 0


def test_predictions_are_clipped_where_the_scheduler_does_so():
    made = {}
    for clipped in (True, False):
        pipe = quiet(digits_pipeline())
        pipe.scheduler = DDIMScheduler(trained_betas=betas(), clip_sample=clipped, clip_sample_range=0.5)
        with unchanged(pipe):
            found = distill(pipe, LABELS, nfe=3, guidance_scale=3.0, progress=False, **QUICK)
        schedule = made[clipped] = found.schedules[3]
        arguments = {"class_labels": held_out_labels(8), "guidance_scale": 3.0}
        distance = measured(pipe, schedule, found.report, arguments, 8)
        assert distance == pytest.approx(schedule.made_by["distance"], rel=2e-3)
    assert made[True].made_by["distance"] < 0.9 * made[False].made_by["distance"]


def test_prompts_are_texts_or_dicts_of_arguments():
    from lmsd._pipeline.batches import PipelineCalls, conditions

    assert conditions(["a", "b", "c"], 1, 4) == {"prompt": ["b", "c", "a", "b"]}
    assert conditions(["a", "b", "c"], 4, 1) == {"prompt": "b"}
    found = conditions([{"prompt": "a", "embeds": torch.zeros(3)}], 0, 2)
    assert found["prompt"] == ["a", "a"] and found["embeds"].shape == (2, 3)
    pipe = quiet(digits_pipeline())
    for one in (LABELS[0], [LABELS[0]]):
        assert PipelineCalls(pipe, one, 2, None, {}).prompts == [LABELS[0]]
    with pytest.raises(ValueError, match="no prompts"):
        distill(quiet(digits_pipeline()), [], progress=False)


def press(*calls):
    """Ctrl-C at these calls of the network."""

    def at(number):
        for _ in range(calls.count(number)):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)  # lets the handler run

    return at


def test_ctrl_c_keeps_the_best_so_far():
    pipe, network = counted(press(200))
    with unchanged(pipe):
        found = distill(pipe, LABELS, nfe=4, progress=False, **QUICK | {"iterations": 100})
    assert found.report["stopped"] == "cancelled" and network.calls == 200
    assert found.schedules[4].made_by["distance"] > 0


@pytest.mark.parametrize("calls", [(1,), (5,), (200, 200)])
def test_ctrl_c_before_the_first_result_and_the_second_one_are_interrupts(calls):
    pipe, network = counted(press(*calls))
    with unchanged(pipe), pytest.raises(KeyboardInterrupt):
        distill(pipe, LABELS, nfe=4, progress=False, **QUICK | {"iterations": 100})
    assert network.calls == calls[-1]


def test_progress_stops():
    heard, (pipe, _) = [], counted()
    found = distill(
        pipe, LABELS, nfe=3, progress=lambda report: heard.append(report) or len(heard) == 150, **QUICK
    )
    assert found.report["stopped"] == "cancelled" and len(heard) == 150
    assert heard[0]["phase"] == "teacher"
    assert heard[-1]["calls"] == 150 - sum(report["phase"] == "plan" for report in heard)


def test_it_works_in_another_thread():
    found = []
    pipe = quiet(digits_pipeline())
    thread = threading.Thread(
        target=lambda: found.append(distill(pipe, LABELS, nfe=2, progress=False, **QUICK))
    )
    thread.start()
    thread.join()
    assert found[0].schedules[2].nfe == 2


class Misfit(type(digits_pipeline())):
    """A pipeline whose loop is not the standard one, in one way."""

    way = ""

    def __call__(self, class_labels=None, num_inference_steps=50, latents=None):
        labels, scheduler = torch.tensor(class_labels), self.scheduler
        if latents is None:
            latents = torch.randn(len(labels) + (self.way == "size"), 1, 8, 8)
        scheduler.set_timesteps(num_inference_steps, sigmas=[1.0, 0.9, 0.1] if self.way == "levels" else None)
        for t in scheduler.timesteps:
            if self.way == "index":
                torch.arange(1000)[t]
            sample = latents if self.way == "scale" else scheduler.scale_model_input(latents, t)
            output = self.unet(sample, t, labels[0].repeat(len(latents)))
            if self.way == "step":
                continue
            if self.way == "return":
                return latents
            latents = scheduler.step(output, 7 if self.way == "time" else t, latents).prev_sample
            if self.way == "latents":
                latents = latents * 1.001
            if self.way == "sigmas":
                scheduler.sigmas[3]
            if self.way == "attribute":
                scheduler.alphas_cumprod.to(latents.device)
            if self.way == "copy":
                copy.deepcopy(scheduler)
        return latents


@pytest.mark.parametrize(
    ("way", "text"),
    [
        ("step", "went on without a call of scheduler.step"),
        ("return", "returned without a call of scheduler.step"),
        ("scale", "did not call scheduler.scale_model_input"),
        ("latents", "changes the latents between steps"),
        ("size", "9 latents a pass where batch_size is 8"),
        ("sigmas", "reads scheduler.sigmas of other steps"),
        ("attribute", "reads scheduler.alphas_cumprod"),
        ("copy", "copies its scheduler"),
        ("time", "takes a step at timestep 7 where it was given 999"),
        ("levels", "passes noise levels of its own"),
        ("index", "try integer_timesteps=True"),
    ],
)
def test_loops_that_are_not_standard_say_so(way, text):
    pipe = quiet(digits_pipeline())
    pipe.__class__ = Misfit
    pipe.way = way
    with unchanged(pipe), pytest.raises((lmsd.Error, ValueError), match=text):
        distill(pipe, LABELS, progress=False, **QUICK)


def test_a_pipeline_around_another_says_which_to_distill():
    pipe, network = counted()
    pipe.inner_pipe = digits_pipeline(scheduler=pipe.scheduler)
    with unchanged(pipe), pytest.raises(lmsd.Error, match="distill pipe.inner_pipe"):
        distill(pipe, LABELS, nfe=2, progress=False, **QUICK)
    pipe.scheduler = None
    with pytest.raises(lmsd.Error, match="has no scheduler"):
        distill(pipe, LABELS, nfe=2, progress=False, **QUICK)
    assert network.calls == 0


def test_a_pipeline_that_steps_a_part_of_its_latents():
    """As video pipelines whose first frame is given: latents that are handed in have another shape."""

    class Framed(type(digits_pipeline())):
        def __call__(self, class_labels=None, num_inference_steps=None, generator=None, latents=None):
            labels, scheduler = torch.tensor(class_labels), self.scheduler
            if latents is None:
                latents = torch.randn(len(labels), 2, 8, 8, generator=generator)
            count = latents.shape[1] - 1
            scheduler.set_timesteps(num_inference_steps)
            for t in scheduler.timesteps:
                part = latents[:, 1:]
                output = self.unet(scheduler.scale_model_input(part, t), t, labels)
                part = scheduler.step(output, t, part)[0]
                assert part.shape[1] == count
                latents = torch.cat([latents[:, :1], part], 1)
            return latents

    options = {"nfe": 2, "progress": False, **QUICK}
    pipe = quiet(digits_pipeline())
    expected = distill(pipe, LABELS, **options)
    pipe.__class__ = Framed
    found = distill(pipe, LABELS, **options)
    assert found.schedules[2].to_dict()["nodes"] == expected.schedules[2].to_dict()["nodes"]


@pytest.mark.parametrize("way", ["after", "counts", "level", "output"])
def test_loops_that_are_nearly_standard_are_distilled(way):
    """What comes after the loop does not matter, nor how the timesteps are gone through."""

    class Kindred(type(digits_pipeline())):
        def __call__(self, class_labels=None, num_inference_steps=50, latents=None, output_type="pil"):
            if way == "output" and output_type != "pil":
                raise ValueError("output_type must be pil")
            labels, scheduler = torch.tensor(class_labels), self.scheduler
            if latents is None:
                latents = torch.randn(len(labels), 1, 8, 8)
            scheduler.set_timesteps(num_inference_steps)
            times = scheduler.timesteps[0:].to("cpu")
            steps = range(len(times)) if way == "counts" else enumerate(times)
            for i in steps:
                i, t = i if isinstance(i, tuple) else (i, times[i])
                if way == "level":
                    assert scheduler.sigmas[i] == pytest.approx(scheduler.call.sigma)
                sample = scheduler.scale_model_input(latents, t)
                latents = scheduler.step(self.unet(sample, t, labels), t, latents)[0]
            raise ValueError("of what comes after the loop")

    options = {"nfe": 2, "progress": False, **QUICK}
    expected = distill(quiet(digits_pipeline()), LABELS, **options)
    pipe = quiet(digits_pipeline())
    pipe.__class__ = Kindred
    with unchanged(pipe):
        found = distill(pipe, LABELS, **options)
    assert found.schedules[2].to_dict()["nodes"] == expected.schedules[2].to_dict()["nodes"]


@pytest.mark.parametrize("name", STOCK)
def test_stock_pipelines(name):
    """The distance that the distillation states is the one that the pipeline then has."""
    pipe, one, _ = stock(name)
    prompts = [
        one,
        {key: -value for key, value in one.items()},
        {key: 2 * value for key, value in one.items()},
    ]
    size = SIZE.get(name, 8)
    options = {"height": size, "width": size, "guidance_scale": 4.0}
    quick = QUICK | {"batch_size": 4, "held_out": 4, "trajectories": 4}
    with unchanged(pipe):
        found = distill(pipe, prompts, nfe=3, progress=False, **options, **quick)
    schedule = found.schedules[3]
    assert schedule.made_for["model"] == type(getattr(pipe, "unet", None) or pipe.transformer).__name__
    assert schedule.made_by["distance"] <= schedule.made_by["handcrafted"][0]["distance"]
    rows = [prompts[(HELD_OUT * 4 + row) % 3] for row in range(4)]
    arguments = {key: torch.stack([row[key] for row in rows]) for key in one}
    arguments |= options | {"output_type": "latent"}

    def start(noise):
        return {"latents": noise.mT.reshape(4, 4, 4, 4) if name == "flux2" else noise}

    distance = measured(pipe, schedule, found.report, arguments, 4, start=start)
    assert distance == pytest.approx(schedule.made_by["distance"], rel=1e-2)
    assert distance > 0


FEW = QUICK | {"batch_size": 4, "held_out": 4, "trajectories": 4}


def test_doubled_latents(monkeypatch):
    """A pipeline that keeps each of its latents twice, scaled, and begins with noise of unit variance."""
    pipe, _, _ = stock("dit")
    prompts = [{"class_labels": label} for label in (3, 7, 11)]
    with unchanged(pipe):
        found = distill(pipe, prompts, nfe=3, guidance_scale=4.0, progress=False, **FEW)
    schedule = found.schedules[3]
    assert schedule.made_for["latent_shape"] == [4, 8, 8] and schedule.made_by["distance"] > 0

    def start(noise):
        monkeypatch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda shape, **_: noise)
        return {}

    labels = [prompts[(HELD_OUT * 4 + row) % 3]["class_labels"] for row in range(4)]
    distance = measured(
        pipe, schedule, found.report, {"class_labels": labels, "guidance_scale": 4.0}, 4, start=start
    )
    assert distance == pytest.approx(schedule.made_by["distance"], rel=1e-2)


def image_prompts(one):
    """Three prompts whose images differ, if they have any."""
    return [
        {key: value if "mask" in key else value * factor for key, value in one.items()}
        for factor in (1, 0.5, 0.7)
    ]


def test_an_image_that_the_network_sees():
    pipe, one, _ = stock("inpainting")
    prompts = image_prompts(one)
    with unchanged(pipe):
        found = distill(pipe, prompts, nfe=3, guidance_scale=4.0, progress=False, **FEW)
    schedule, rows = found.schedules[3], [prompts[(HELD_OUT * 4 + row) % 3] for row in range(4)]
    arguments = {key: torch.stack([row[key] for row in rows]) for key in one}
    arguments |= {"guidance_scale": 4.0, "output_type": "latent", "strength": 1.0}

    def start(noise):
        return {"latents": noise, "generator": torch.Generator().manual_seed(HELD_OUT)}

    distance = measured(pipe, schedule, found.report, arguments, 4, start=start)
    assert distance == pytest.approx(schedule.made_by["distance"], rel=1e-2) and distance > 0


def test_image_to_image_is_fitted_from_noise():
    pipe, one, _ = stock("image_to_image")
    text, _, _ = stock("stable_diffusion")
    text.unet.load_state_dict(pipe.unet.state_dict())
    prompts, options = image_prompts(one), {"nfe": 2, "guidance_scale": 4.0, "progress": False, **FEW}
    with unchanged(pipe):
        found = distill(pipe, prompts, **options)
    texts = [{key: value for key, value in prompt.items() if key != "image"} for prompt in prompts]
    expected = distill(text, texts, **options)
    assert found.schedules[2].to_dict()["nodes"] == expected.schedules[2].to_dict()["nodes"]


def test_inpainting_that_puts_the_known_part_back_is_refused_at_once():
    pipe, one, _ = stock("inpainting_by_blending")
    network = Counted(pipe)
    with unchanged(pipe), pytest.raises(lmsd.Error, match="puts the known part .* distill the text-to-image"):
        distill(pipe, [one], nfe=3, progress=False, **FEW)
    assert network.calls <= 3


def test_the_modules_agree():
    assert lmsd.diffusers.distill is distill
