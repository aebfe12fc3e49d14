"""LmsdScheduler in diffusers pipelines: the trained digits, and stock ones where transformers is there."""

import copy
import json
import logging
import subprocess
import sys
from pathlib import Path

import lmsd
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers_models import (
    LABELS,
    SIZE,
    STOCK,
    betas,
    digits_pipeline,
    euler_of,
    quiet,
    seeded,
    stock,
    table,
)
from lmsd.diffusers import LmsdScheduler

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # theirs, for numpy 2
ROOT = Path(__file__).parents[3]
TEN = list(range(10))
RANGE = {"sigma_min": 0.002, "sigma_max": 80.0}
BENT = lmsd.Schedule.from_json(  # first node below x_T, time scaling factors, free sums
    table(nfe=3, **RANGE).to_dict()
    | {
        "nodes": [
            {"sigma": 9.0, "scale": 1.3, "weights": [1.1]},
            {"sigma": 1.0, "scale": 0.9, "weights": [1.4, -0.3]},
            {"sigma": 0.2, "scale": 0.8, "weights": [1.3, -0.5, 0.1]},
        ]
    }
)


@pytest.fixture(scope="module")
def pipe():
    return quiet(digits_pipeline())


@pytest.fixture
def use(pipe):
    """Puts schedules into the pipeline for one test."""
    own = pipe.scheduler

    def put(schedules, **options):
        pipe.scheduler = LmsdScheduler.from_schedule(schedules, like=own, **options)
        return pipe.scheduler

    yield put
    pipe.scheduler = own


def denoiser(pipe, labels, guidance):
    """The pipeline's network, guidance included, in lmsd's coordinates, in float64 outside of the network."""
    own = EulerDiscreteScheduler(trained_betas=betas())
    log_sigmas = own.sigmas[:-1].flip(0).double().log().numpy()

    def model(x, sigma):
        t = torch.tensor(np.interp(np.log(sigma), log_sigmas, np.arange(1000)), dtype=torch.float32)
        sample = (x / np.sqrt(1 + sigma**2)).repeat(2, 1, 1, 1)[: len(x) * (1 + (guidance > 1))]
        with torch.no_grad():
            return x - sigma * pipe.predict(sample, t, torch.tensor(labels), guidance)

    return model


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize(
    "schedule",
    [BENT, table(nfe=5, **RANGE), table("dpmpp_3m", nfe=6, **RANGE), table("heun", nfe=7, **RANGE)],
    ids=["bent", "euler", "dpmpp_3m", "heun"],
)
def test_the_pipeline_samples_what_lmsd_samples(pipe, use, schedule, guidance):
    use(schedule)
    latents = torch.randn(10, 1, 8, 8, generator=seeded())
    x_t = latents * (1 + schedule.sigma_start**2) ** 0.5
    expected = lmsd.sample(schedule, x_t, denoiser(pipe, TEN, guidance))
    found = pipe(TEN, guidance_scale=guidance, num_inference_steps=schedule.nfe, latents=latents)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)
    assert (
        found == pipe(TEN, guidance_scale=guidance, num_inference_steps=schedule.nfe, latents=latents)
    ).all()


def test_prediction_types_agree(use):
    """One network, written as epsilon, v, x0 and flow: x_flow = (1 - s) x, s = sigma / (1 + sigma)."""
    latents, results = torch.randn(10, 1, 8, 8, generator=seeded()), {}
    for kind in ("epsilon", "v_prediction", "sample"):
        pipe = quiet(digits_pipeline(kind))
        pipe.scheduler = LmsdScheduler.from_schedule(BENT, like=pipe.scheduler)
        assert pipe.scheduler.config.prediction_type == kind
        results[kind] = pipe(TEN, guidance_scale=3.0, num_inference_steps=3, latents=latents)
    for found in results.values():
        torch.testing.assert_close(found, results["sample"], rtol=0, atol=2e-4)

    ve = table("dpmpp_2m", nfe=6, **RANGE)
    file = ve.to_dict() | {"process": "flow", "sigma_start": 80 / 81}
    for node in file["nodes"]:
        node["sigma"] /= 1 + node["sigma"]
    epsilon, flow = quiet(digits_pipeline()), quiet(digits_pipeline("flow_prediction"))
    epsilon.scheduler = LmsdScheduler.from_schedule(ve, like=epsilon.scheduler)
    flow.scheduler = LmsdScheduler.from_schedule(lmsd.Schedule.from_json(file), like=flow.scheduler)
    expected = epsilon(TEN, num_inference_steps=6, latents=latents)
    found = flow(TEN, num_inference_steps=6, latents=latents * (6401**0.5 / 81))
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize("kind", ["epsilon", "flow_prediction"])
@pytest.mark.parametrize("strength", [0.3, 0.5, 0.8, 1.0])
def test_an_euler_table_is_their_euler_from_any_strength(kind, strength):
    """Their own scheduler in the same pipeline, from noise and from an image."""
    pipe = quiet(digits_pipeline(kind))
    if kind == "epsilon":  # the spacing whose x_T is sqrt(1 + sigma^2) n
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading")
    options = {"guidance_scale": 3.0, "num_inference_steps": 10}
    image = pipe(TEN, **options, generator=seeded(1))
    own, arguments = pipe.scheduler, {"image": image, "strength": strength, **options}
    expected = [pipe(TEN, **arguments, generator=seeded()), pipe(TEN, **options, generator=seeded())]
    pipe.scheduler = LmsdScheduler.from_schedule(euler_of(own), like=own)
    found = [pipe(TEN, **arguments, generator=seeded()), pipe(TEN, **options, generator=seeded())]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)
    assert strength == 1 or (found[0] - found[1]).abs().max() > 0.1


def test_strength_runs_the_rest_of_the_schedule(pipe, use):
    schedule = table("dpmpp_3m", nfe=6, **RANGE)
    use(schedule)
    image = torch.randn(10, 1, 8, 8, generator=seeded(1))
    noise = torch.randn(10, 1, 8, 8, generator=seeded())
    for steps in range(1, 7):
        sigma = schedule.sigma_start if steps == 6 else schedule.sigmas[6 - steps]
        rest = schedule.start_at(sigma)
        assert rest.nfe == steps
        expected = lmsd.sample(rest, image + noise * sigma, denoiser(pipe, TEN, 1.0))
        found = pipe(TEN, image=image, strength=steps / 6 + 1e-6, num_inference_steps=6, latents=noise)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)


def test_strength_that_leaves_no_step_says_so(pipe, use):
    use(table(nfe=4, **RANGE))
    image = torch.zeros(10, 1, 8, 8)
    with pytest.raises(ValueError, match="begin at step 4 of a schedule of 4 steps"):
        pipe(TEN, image=image, strength=0.1, num_inference_steps=4)
    with pytest.raises(ValueError, match="no schedule of 50 steps: num_inference_steps can be 4"):
        pipe(TEN, image=image, strength=0.5)  # the pipeline's 50
    use(table("heun", nfe=7, **RANGE))
    with pytest.raises(ValueError, match="between the two stages"):
        pipe(TEN, image=image, strength=1 - 1 / 7, num_inference_steps=7)


def test_results_do_not_depend_on_the_rest_of_the_batch(pipe, use):
    use(BENT)
    latents = torch.randn(10, 1, 8, 8, generator=seeded())
    together = pipe(TEN, num_inference_steps=3, latents=latents)
    alone = pipe([7], num_inference_steps=3, latents=latents[7:8])
    torch.testing.assert_close(together[7:8], alone, rtol=0, atol=1e-5)


def test_a_family_and_the_number_of_steps(pipe, use):
    family = [table(nfe=nfe, **RANGE) for nfe in (3, 5, 8)]
    scheduler = use(family)
    for schedule in family:
        scheduler.set_timesteps(schedule.nfe)
        assert scheduler.num_inference_steps == len(scheduler.timesteps) == schedule.nfe
        assert scheduler.schedule == schedule
    for steps in (1, 4, 20, 50):
        with pytest.raises(ValueError, match=f"no schedule of {steps} steps: .* can be 3, 5, 8"):
            scheduler.set_timesteps(steps)
    image = torch.zeros(10, 1, 8, 8)
    for start in ({}, {"image": image, "strength": 0.5}):  # the same, from noise and from an image
        with pytest.raises(ValueError, match="no schedule of 20 steps"):
            pipe(TEN, num_inference_steps=20, **start)
        assert pipe(TEN, num_inference_steps=8, **start).shape == (10, 1, 8, 8)


def test_from_files_and_folders(tmp_path):
    family = [table(nfe=nfe, sigma_max=10.0) for nfe in (3, 4)]
    for schedule in family:
        schedule.save(tmp_path / f"nfe{schedule.nfe:02d}.json")
    one, two = tmp_path / "nfe03.json", tmp_path / "nfe04.json"
    for given in (tmp_path, str(tmp_path), [one, two], family, iter([one, family[1]])):
        scheduler = LmsdScheduler.from_schedule(given, trained_betas=betas())
        assert [s["nfe"] for s in scheduler.config.schedules] == [3, 4]
    with pytest.raises(lmsd.Error, match="no schedules"):
        LmsdScheduler.from_schedule(
            tmp_path / "nothing" if (tmp_path / "nothing").mkdir() else tmp_path / "nothing"
        )


def test_config_round_trip(tmp_path, pipe, use):
    scheduler = use([BENT, table("dpmpp_2m", nfe=4, **RANGE)])
    latents = torch.randn(10, 1, 8, 8, generator=seeded())
    expected = pipe(TEN, num_inference_steps=3, latents=latents)
    scheduler.save_pretrained(tmp_path)
    for again in (
        LmsdScheduler.from_pretrained(tmp_path),
        LmsdScheduler.from_config(scheduler.config),
        LmsdScheduler.from_config(json.loads((tmp_path / "scheduler_config.json").read_text())),
    ):
        assert again.config.schedules == scheduler.config.schedules
        assert again.config.trained_betas == scheduler.config.trained_betas
        pipe.scheduler = again
        assert (pipe(TEN, num_inference_steps=3, latents=latents) == expected).all()
    # and on to diffusers' own again: the config keeps what the network is
    own = EulerDiscreteScheduler.from_config(scheduler.config)
    assert own.config.trained_betas == scheduler.config.trained_betas
    lmsd_again = LmsdScheduler.from_config(own.config, schedules=[BENT.to_dict()])
    assert lmsd_again.schedule == BENT


def test_like_takes_over_what_the_network_is():
    """Defaults of another scheduler class are its own, not ours."""
    scaled = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    schedule = table(nfe=3, sigma_max=14.6)
    for kind in (DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler):
        theirs = kind(**scaled, prediction_type="v_prediction")
        ours = LmsdScheduler.from_schedule(schedule, like=theirs)
        assert ours.config.prediction_type == "v_prediction"
        torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=0, atol=0)
    assert LmsdScheduler.from_schedule(schedule, "epsilon", like=theirs).config.prediction_type == "epsilon"

    flow = table(nfe=3, process="flow")
    for theirs in (
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    ):
        ours = LmsdScheduler.from_schedule(flow, like=theirs)
        assert (ours.config.prediction_type, ours.config.shift) == ("flow_prediction", 3.0)
        assert ours.timesteps[0] == 1000 and ours.init_noise_sigma == 1
    assert LmsdScheduler.from_schedule(flow).config.prediction_type == "flow_prediction"
    dynamic = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, max_shift=1.3, base_image_seq_len=100
    )
    config = LmsdScheduler.from_schedule(flow, like=dynamic).config
    assert config.get("use_dynamic_shifting") and config.get("max_shift") == 1.3
    assert config.get("base_image_seq_len") == 100

    video = EulerDiscreteScheduler(  # Stable Video Diffusion's: log(sigma) / 4
        prediction_type="v_prediction", timestep_type="continuous", sigma_min=0.002, sigma_max=700.0
    )
    ours = LmsdScheduler.from_schedule(table(nfe=2, sigma_max=700.0, sigma_min=0.002), like=video)
    torch.testing.assert_close(ours.timesteps, 0.25 * torch.tensor([700.0, 0.002]).log())


def test_timesteps_are_theirs_and_integers_on_request():
    theirs = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    theirs.set_timesteps(7)
    schedule = euler_of(theirs)
    ours = LmsdScheduler.from_schedule(schedule, like=theirs)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=0, atol=2e-2)
    assert ours.timesteps.dtype == torch.float32
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-6, atol=0)
    assert ours.init_noise_sigma == pytest.approx((1 + float(theirs.sigmas[0]) ** 2) ** 0.5)
    rounded = LmsdScheduler.from_schedule(schedule, like=theirs, integer_timesteps=True)
    assert rounded.timesteps.dtype == torch.int64
    assert rounded.timesteps.tolist() == ours.timesteps.round().tolist()
    snapped = lmsd.Schedule.from_json(schedule.to_dict() | {"made_for": {"snapped": True}})
    assert LmsdScheduler.from_schedule(snapped, like=theirs).config.integer_timesteps
    ours.set_timesteps(7, device="meta")
    assert ours.timesteps.device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_state_keeps_its_dtype_and_its_layout(dtype):
    schedule = table("dpmpp_3m", nfe=4, sigma_max=10.0)
    scheduler = LmsdScheduler.from_schedule(schedule, trained_betas=betas())
    x = (10 * torch.randn(2, 4, 3, 3, generator=seeded())).to(dtype, memory_format=torch.channels_last)
    for t in scheduler.timesteps:
        sample = scheduler.scale_model_input(x, t)
        out = scheduler.step(sample, t, x, generator=None, eta=0.0)
        x = out.prev_sample
        assert sample.dtype == x.dtype == out.pred_original_sample.dtype == dtype
        assert x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    assert x.isfinite().all()


def test_half_precision_is_near_the_exact_result():
    schedule, errors = table("dpmpp_3m", nfe=4, sigma_max=10.0), {}
    for dtype in (torch.float64, torch.float16):
        scheduler = LmsdScheduler.from_schedule(schedule, "sample", trained_betas=betas())
        x = noise = 10 * torch.randn(64, 4, generator=seeded(), dtype=torch.float64)
        x = x.to(dtype)
        for n, t in enumerate(scheduler.timesteps):
            scheduler.scale_model_input(x, t)
            x = scheduler.step(x / (1 + schedule.sigmas[n] ** 2), t, x, return_dict=False)[0]
        exact = lmsd.sample(schedule, noise, lambda x, sigma: x / (1 + sigma**2))
        errors[dtype] = (x.double() - exact).abs().max().item()
    assert errors[torch.float64] < 1e-12 and 0 < errors[torch.float16] < 5e-3


def test_a_state_that_the_pipeline_changes_between_steps_counts():
    """As inpainting does: what is added at one node is scaled by the step's ratio of noise levels."""
    schedule, results = BENT, []
    change = torch.randn(2, 4, generator=seeded(1))
    for added in (0, change):
        scheduler = LmsdScheduler.from_schedule(schedule, "sample", trained_betas=betas())
        x, predictions = torch.zeros(2, 4), torch.randn(3, 2, 4, generator=seeded())
        for n, t in enumerate(scheduler.timesteps):
            x = x + added * (n == 1)
            scheduler.scale_model_input(x, t)
            x = scheduler.step(predictions[n], t, x).prev_sample
            if n == 1:
                results.append(x)
    ratio = schedule.sigmas[2] / schedule.sigmas[1]
    torch.testing.assert_close(results[1] - results[0], change * ratio)


def test_a_copy_in_the_middle_of_a_run_goes_on_by_itself():
    """As pipelines of overlapping views keep one for each view."""
    scheduler = LmsdScheduler.from_schedule(BENT, "sample", trained_betas=betas())
    x, predictions = torch.zeros(2, 4), torch.randn(3, 2, 4, generator=seeded())
    kept = []
    for n, t in enumerate(scheduler.timesteps):
        kept.append((copy.deepcopy(scheduler.__dict__), x))
        scheduler.scale_model_input(x, t)
        x = scheduler.step(predictions[n], t, x).prev_sample
    state, again = kept[1]
    scheduler.__dict__.update(state)
    for n, t in list(enumerate(scheduler.timesteps))[1:]:
        scheduler.scale_model_input(again, t)
        again = scheduler.step(predictions[n], t, again).prev_sample
    assert (again == x).all()


def test_a_prediction_that_is_not_finite_says_where():
    scheduler = LmsdScheduler.from_schedule(BENT, "sample", trained_betas=betas())
    x, t = torch.zeros(2, 4), scheduler.timesteps[0]
    scheduler.scale_model_input(x, t)
    with pytest.raises(lmsd.Error, match="node 0"):
        scheduler.step(torch.full_like(x, float("nan")), t, x)


def test_add_noise(use):
    scheduler = use(BENT)
    image, noise = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
    scheduler.set_timesteps(3)
    found = scheduler.add_noise(image, noise, scheduler.timesteps)
    levels = torch.tensor([80.0, 1.0, 0.2]).view(-1, 1, 1, 1)
    torch.testing.assert_close(found, image + levels * noise)
    half = scheduler.add_noise(image, noise, scheduler.timesteps[1:2].half())  # as pipelines cast them
    torch.testing.assert_close(half, image + noise)
    assert scheduler.add_noise(image.half(), noise.half(), scheduler.timesteps).dtype == torch.float16
    scheduler.set_begin_index(1)
    torch.testing.assert_close(scheduler.add_noise(image, noise, scheduler.timesteps[:1]), image + noise)
    t = scheduler.timesteps[1]
    scheduler.step(scheduler.scale_model_input(image, t), t, image)
    torch.testing.assert_close(scheduler.add_noise(image, noise, t[None]), image + 0.2 * noise)
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="none of scheduler.timesteps"):
        scheduler.add_noise(image, noise, torch.tensor([500]))

    flow = LmsdScheduler.from_schedule(table(nfe=2, process="flow"))
    sigma = float(flow.sigmas[1])
    found = flow.scale_noise(image, flow.timesteps[1:], noise)
    torch.testing.assert_close(found, (1 - sigma) * image + sigma * noise)
    torch.testing.assert_close(flow.scale_noise(image, flow.timesteps[:1], noise), noise)


def test_steps_out_of_order_say_so(use):
    scheduler = use(BENT)
    x = torch.zeros(2, 1, 8, 8)
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="did not call scheduler.scale_model_input"):
        scheduler.step(x, scheduler.timesteps[0], x)
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="none of scheduler.timesteps"):
        scheduler.scale_model_input(x, 3)
    for t in scheduler.timesteps:
        scheduler.scale_model_input(x, t)
        scheduler.step(x, t, x)
    with pytest.raises(ValueError, match="set_timesteps begins a new run"):
        scheduler.scale_model_input(x, scheduler.timesteps[0])
    scheduler.set_timesteps(3)
    scheduler.scale_model_input(x, scheduler.timesteps[0])
    with pytest.raises(ValueError, match="one noise level for all"):
        scheduler.step(x, scheduler.timesteps[0], x, per_token_timesteps=torch.zeros(2, 4))
    for options in ({"timesteps": [1, 2]}, {"sigmas": [1.0, 0.5, 0.0]}):
        with pytest.raises(ValueError, match="num_inference_steps only"):
            scheduler.set_timesteps(**options)
    with pytest.raises(ValueError, match="needs num_inference_steps"):
        scheduler.set_timesteps()
    for steps in (0, -3):
        with pytest.raises(ValueError, match=f"num_inference_steps is {steps}; 1 or more"):
            scheduler.set_timesteps(steps)


def test_a_flow_schedule_that_scales_its_start_is_refused_where_it_cannot_be():
    file = table(nfe=2, process="flow").to_dict()
    file["nodes"][0]["sigma"] = 0.9
    pipe = quiet(digits_pipeline("flow_prediction"))
    pipe.scheduler = LmsdScheduler.from_schedule(lmsd.Schedule.from_json(file), like=pipe.scheduler)
    with pytest.raises(ValueError, match="scales x_T by 0.9 first; distill with fit_start=False"):
        pipe(TEN, num_inference_steps=2)


def test_shift_of_dynamic_pipelines_is_compared(caplog):
    file = table(nfe=2, process="flow").to_dict() | {"made_for": {"shift": 3.0}}
    scheduler = LmsdScheduler.from_schedule(lmsd.Schedule.from_json(file), use_dynamic_shifting=True)
    logging.getLogger("diffusers").addHandler(caplog.handler)
    try:
        scheduler.set_timesteps(sigmas=[1.0, 0.5], mu=float(np.log(3.0)))
        assert not caplog.records
        scheduler.set_timesteps(sigmas=[1.0, 0.5], mu=0.5)
        assert "made for shift 3; here it is 1.649" in caplog.text
    finally:
        logging.getLogger("diffusers").removeHandler(caplog.handler)


def ddim_table(theirs):
    """DDIM as Euler's method on x0 + sigma n, at the timesteps that a scheduler was set to."""
    alphas = theirs.alphas_cumprod[theirs.timesteps].double()
    grid = [*((1 - alphas) / alphas).sqrt().tolist(), 0.0]
    return table(nfe=len(grid) - 1, grid=grid, process="ve", sigma_end=0.0)


CLIPPED = {"use_clipped_model_output": True}  # else DDIM goes on with the noise that was not clipped


@pytest.mark.parametrize(
    ("kind", "config", "options"),
    [
        (DDIMScheduler, {"clip_sample_range": 0.7, "clip_sample": True}, CLIPPED),
        (DDIMScheduler, {"thresholding": True, "sample_max_value": 3.0, "clip_sample": False}, CLIPPED),
        (DPMSolverMultistepScheduler, {"thresholding": True, "solver_order": 1, "sample_max_value": 2.0}, {}),
    ],
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_predictions_are_clipped_as_the_config_says(kind, config, options, prediction):
    theirs = kind(**config, prediction_type=prediction)
    theirs.set_timesteps(4)
    noise, outputs = torch.randn(2, 4, 3, 3, generator=seeded()), torch.randn(4, 2, 4, 3, 3) * 2

    def run(scheduler, **options):
        x = noise * scheduler.init_noise_sigma
        for t, output in zip(scheduler.timesteps, outputs, strict=True):
            scheduler.scale_model_input(x, t)
            x = scheduler.step(output, t, x, **options).prev_sample
        return x

    expected = run(theirs, **options)
    ours = LmsdScheduler.from_schedule(ddim_table(theirs), like=theirs)
    torch.testing.assert_close(run(ours), expected, rtol=0, atol=2e-4)
    assert expected.abs().max() < 3.1
    free = LmsdScheduler.from_schedule(ddim_table(theirs), like=theirs, clip_sample=False, thresholding=False)
    assert (run(free) - expected).abs().max() > 0.1


def test_a_scheduler_that_does_not_clip_is_not_taken_for_one_that_does():
    theirs = EulerDiscreteScheduler.from_config(DDIMScheduler(clip_sample=True).config)
    assert not LmsdScheduler.from_schedule(table(nfe=2, sigma_max=100.0), like=theirs).config.clip_sample


def test_noise_levels_of_a_user_are_refused():
    """What flow pipelines pass by themselves counts by its length; a wish of somebody's is not dropped."""
    flow = table(nfe=4, process="flow")
    scheduler = LmsdScheduler.from_schedule(flow)
    even = np.linspace(1, 1 / 4, 4)
    for sigmas in (even, even.tolist(), torch.tensor(even), np.linspace(1, 0.001, 4), flow.sigmas[:-1]):
        scheduler.set_timesteps(sigmas=sigmas)
        assert scheduler.num_inference_steps == 4
    scheduler.set_timesteps(timesteps=1000 * even, sigmas=even)
    for wish in (
        [1.0, 0.9, 0.5, 0.1],
        np.linspace(0.8, 0.2, 4),
        np.linspace(1, 0.4, 4),
        [1.0, 0.75, 0.5, 0.3],
    ):
        with pytest.raises(ValueError, match="its own timesteps and sigmas"):
            scheduler.set_timesteps(sigmas=wish)
    with pytest.raises(ValueError, match="its own timesteps and sigmas"):
        scheduler.set_timesteps(4, timesteps=[999, 700, 300, 100])
    with pytest.raises(ValueError, match="not those of sigmas"):
        scheduler.set_timesteps(timesteps=[999, 700, 300, 100], sigmas=even)
    ve = LmsdScheduler.from_schedule(BENT, trained_betas=betas())
    with pytest.raises(ValueError, match="its own timesteps and sigmas"):
        ve.set_timesteps(sigmas=[10.0, 1.0, 0.1])
    ve.set_timesteps(sigmas=BENT.sigmas[:-1])


@pytest.mark.parametrize(
    ("name", "wish"),
    [
        ("flux", {"sigmas": [1.0, 0.9, 0.5, 0.1]}),
        ("cogview4", {"timesteps": [999, 700, 300, 100]}),
        ("stable_diffusion", {"timesteps": [999, 700, 300, 100]}),
    ],
)
def test_noise_levels_of_a_user_are_refused_in_stock_pipelines(name, wish):
    pipe, _, two = stock(name)
    like = pipe.scheduler
    process = "ve" if name == "stable_diffusion" else "flow"
    schedule = table(nfe=4, process=process, sigma_max=10.0 if process == "ve" else 1.0)
    pipe.scheduler = LmsdScheduler.from_schedule(schedule, like=like)
    size = SIZE.get(name, 8)
    with pytest.raises(ValueError, match="its own timesteps and sigmas"):
        pipe(**two, **wish, height=size, width=size, output_type="latent")


def test_a_callback_that_changes_the_guidance_is_heard():
    pipe, _, two = stock("stable_diffusion")
    theirs = pipe.scheduler

    def changed(pipe, step, timestep, tensors):
        pipe._guidance_scale = 2.0 + step
        return tensors

    options = {"output_type": "latent", "num_inference_steps": 4, **two}
    expected = pipe(**options, generator=seeded(), callback_on_step_end=changed).images
    pipe.scheduler = LmsdScheduler.from_schedule(euler_of(theirs), like=theirs)
    found = pipe(**options, generator=seeded(), callback_on_step_end=changed).images
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert not torch.allclose(found, pipe(**options, generator=seeded()).images, atol=1e-2)


def test_another_scheduler_warns_of_the_schedules_in_one_line(caplog):
    ours = LmsdScheduler.from_schedule([BENT, table(nfe=5, **RANGE)], trained_betas=betas())
    logging.getLogger("diffusers").addHandler(caplog.handler)
    try:
        EulerDiscreteScheduler.from_config(ours.config)
    finally:
        logging.getLogger("diffusers").removeHandler(caplog.handler)
    assert "<schedules of 3, 5 steps>" in caplog.text and len(caplog.text) < 600
    assert caplog.text.count("\n") == 1


def test_betas_of_other_kinds():
    from diffusers import HeunDiscreteScheduler

    theirs = HeunDiscreteScheduler(beta_schedule="exp")
    ours = LmsdScheduler.from_schedule(table(nfe=3, sigma_max=20.0), like=theirs)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=0, atol=0)


def test_a_flow_network_whose_time_goes_from_0_to_1():
    theirs = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1)
    ours = LmsdScheduler.from_schedule(table(nfe=4, process="flow"), like=theirs)
    assert ours.timesteps[0] == 1 and 0 < ours.timesteps[-1] < 1
    ours.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    with pytest.raises(ValueError, match="its own timesteps"):
        ours.set_timesteps(sigmas=[1.0, 0.9, 0.5, 0.25])


@pytest.mark.parametrize("kind", ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"])
@pytest.mark.parametrize("rescaled", [False, True])
def test_noise_levels_shifted_by_their_snr(kind, rescaled):
    import diffusers

    theirs = getattr(diffusers, kind)(
        snr_shift_scale=3.0, rescale_betas_zero_snr=rescaled, prediction_type="v_prediction"
    )
    ours = LmsdScheduler.from_schedule(table(nfe=3, sigma_max=20.0), like=theirs)
    alphas = theirs.alphas_cumprod.float()
    torch.testing.assert_close(ours.alphas_cumprod, alphas, rtol=1e-4, atol=1e-6)


def changed(schedule, **fields):
    return [schedule.to_dict() | fields]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({}, "no list of schedules"),
        ({"schedules": []}, "one schedule or more"),
        ({"schedules": "nfe05.json"}, "no list of schedules"),
        ({"schedules": [3]}, "no list of schedules"),
        ({"schedules": changed(BENT, nfe=4)}, "nfe is 4"),
        ({"schedules": changed(BENT, code="x")}, "unknown field"),
        ({"schedules": changed(BENT, sigma_start=-1.0)}, "sigma_start is -1"),
        ({"schedules": changed(BENT) * 2}, "two schedules of 3 NFE"),
        ({"schedules": changed(BENT) + changed(table(nfe=2, sigma_max=70.0))}, "same sigma_start"),
        ({"schedules": changed(BENT, made_for={"sigma_max": 14.6})}, "sigma_max 14.6; this model has 80"),
        ({"schedules": changed(BENT, made_for={"sigma_min": 0.03})}, "sigma_min 0.03; this model has 0.00"),
        ({"schedules": changed(table(nfe=2, sigma_max=90.0))}, "starts at sigma 90"),
        (
            {"schedules": changed(BENT), "prediction_type": "flow_prediction"},
            "process ve; this model has flow",
        ),
        (
            {
                "schedules": changed(table(nfe=2, process="flow"), made_for={"shift": 3.0}),
                "prediction_type": "flow_prediction",
            },
            "shift 3; this model has 1",
        ),
        ({"schedules": changed(BENT), "prediction_type": "noise"}, "prediction_type is 'noise'"),
    ],
)
def test_a_config_of_a_stranger_is_checked(config, text, tmp_path):
    file = {"_class_name": "LmsdScheduler", "trained_betas": betas(), **config}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(file))
    with pytest.raises(ValueError, match=text):
        LmsdScheduler.from_pretrained(tmp_path)


def test_networks_of_other_coordinates_are_refused():
    from diffusers import DDPMWuerstchenScheduler, EDMEulerScheduler, IPNDMScheduler

    strange = EulerDiscreteScheduler()
    strange.alphas_cumprod = strange.alphas_cumprod**2
    flow = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    for like in (EDMEulerScheduler(), flow, DDPMWuerstchenScheduler(), IPNDMScheduler(), strange):
        with pytest.raises(lmsd.Error, match="not supported"):
            LmsdScheduler.from_schedule(BENT, like=like)


def test_without_diffusers_there_is_one_sentence(tmp_path):
    (tmp_path / "diffusers.py").write_text("raise ModuleNotFoundError(\"No module named 'diffusers'\")")
    code = "import lmsd.diffusers"
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: lmsd.diffusers needs torch and diffusers: pip install")


@pytest.mark.skipif(not (ROOT / "examples/emoji/pixel.safetensors").exists(), reason="no trained network")
def test_the_example_runs(tmp_path):
    script = ROOT / "examples" / "diffusers" / "few_steps.py"
    run = subprocess.run(
        [sys.executable, script, "--quick"], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr
    decibels = [float(line.split()[-2]) for line in run.stdout.splitlines() if line.endswith("dB")]
    assert len(decibels) == 2 and decibels[1] > decibels[0]
    assert (tmp_path / "few_steps.png").is_file()


def test_unconditional_latent_diffusion():
    """A stock pipeline that asks for init_noise_sigma before set_timesteps, and passes no device."""
    from diffusers import LDMPipeline, UNet2DModel, VQModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=4,
    )
    vqvae = VQModel(block_out_channels=(8,), latent_channels=3, norm_num_groups=4)
    theirs = EulerDiscreteScheduler()
    pipe = quiet(LDMPipeline(vqvae=vqvae.eval(), unet=unet.eval(), scheduler=theirs))
    expected = pipe(2, seeded(), num_inference_steps=4, output_type="np").images
    pipe.scheduler = LmsdScheduler.from_schedule(euler_of(theirs), like=theirs)
    found = pipe(2, seeded(), num_inference_steps=4, output_type="np").images
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-3)  # timesteps are not all whole


@pytest.mark.parametrize("name", STOCK)
def test_an_euler_table_is_their_euler_in_stock_pipelines(name):
    pipe, _, two = stock(name)
    theirs = pipe.scheduler
    size = SIZE.get(name, 8)
    options = {"output_type": "latent", "num_inference_steps": 4, "height": size, "width": size, **two}
    expected = pipe(**options, generator=seeded()).images
    pipe.scheduler = LmsdScheduler.from_schedule(euler_of(theirs), like=theirs)
    found = pipe(**options, generator=seeded()).images
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert not torch.equal(found, pipe(**options, generator=seeded(1)).images)


def test_doubled_latents():
    """DDIM is Euler's method on x0 + sigma n; DiTPipeline scales no noise, and keeps what is scaled."""
    pipe, _, _ = stock("dit")
    theirs = pipe.scheduler
    options = {"class_labels": [3, 7], "num_inference_steps": 4, "guidance_scale": 4.0, "output_type": "pt"}
    expected = pipe(**options, generator=seeded()).images
    pipe.scheduler = LmsdScheduler.from_schedule(ddim_table(theirs), like=theirs)
    torch.testing.assert_close(pipe(**options, generator=seeded()).images, expected, rtol=0, atol=1e-4)


def image_to_image(name, pipe):
    from diffusers import FluxImg2ImgPipeline, StableDiffusion3Img2ImgPipeline, StableDiffusionImg2ImgPipeline

    kinds = (StableDiffusionImg2ImgPipeline, StableDiffusion3Img2ImgPipeline, FluxImg2ImgPipeline)
    components = {key: one for key, one in pipe.components.items() if key not in ("image_encoder",)}
    more = {"requires_safety_checker": False} if name == "stable_diffusion" else {}
    return quiet(kinds[STOCK.index(name)](**components, **more))


@pytest.mark.parametrize("name", STOCK[:3])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_image_to_image_in_stock_pipelines(name, strength):
    pipe, _, two = stock(name)
    theirs = pipe.scheduler
    pipe = image_to_image(name, pipe)
    image = torch.rand(2, 3, 8, 8, generator=seeded(2))
    options = {"image": image, "strength": strength, "output_type": "latent", "num_inference_steps": 4, **two}
    if name != "stable_diffusion":
        options |= {"height": 8, "width": 8}
    expected = pipe(**options, generator=seeded()).images
    pipe.scheduler = LmsdScheduler.from_schedule(euler_of(theirs), like=theirs)
    found = pipe(**options, generator=seeded()).images
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_saved_pipeline_comes_back_with_its_schedules(tmp_path):
    pipe, _, two = stock("stable_diffusion")
    pipe.scheduler.set_timesteps(4)
    pipe.scheduler = LmsdScheduler.from_schedule(euler_of(pipe.scheduler), like=pipe.scheduler)
    options = {"output_type": "latent", "num_inference_steps": 4, **two}
    expected = pipe(**options, generator=seeded()).images
    pipe.save_pretrained(tmp_path)
    missing = [name for name, one in pipe.components.items() if one is None]
    again = quiet(DiffusionPipeline.from_pretrained(tmp_path, **dict.fromkeys(missing)))
    assert isinstance(again.scheduler, LmsdScheduler)
    torch.testing.assert_close(again(**options, generator=seeded()).images, expected)


def test_labels_cover_the_network():
    assert [one["class_labels"] for one in LABELS] == TEN
