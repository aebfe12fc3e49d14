"""Sampling with a schedule in the host gives what the library gives, whatever the model and the latent."""

import functools
import logging
import math
import re
from pathlib import Path

import fake_comfy
import lmsd
import pytest
import torch
from fake_comfy import Model, RandomNoise, conditioning


def part_way(schedule):
    """The same with a first model call below the level of x_T, odd scales and weights: as fits are."""
    file = schedule.to_dict()
    file["nodes"][0]["sigma"] = math.sqrt(schedule.sigmas[0] * schedule.sigmas[1])
    for n, node in enumerate(file["nodes"]):
        node["scale"] = 0.97 - 0.01 * n
        node["weights"] = [weight * 1.03 for weight in node["weights"]]
    return lmsd.Schedule.from_json(file)


def solved(pack, model, steps=4, **options):
    return part_way(pack.run("LmsdSolver", model=model, steps=steps, **options)[0])


def noise_like(latent, seed=0):
    return torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))


def expected(schedule, model, x_T, label=0.0):
    """By the library alone, with the model called at float32 levels, as hosts do."""

    def denoised(x, sigma):
        return model.model.apply_model(
            x, torch.full((x.shape[0],), sigma), torch.full((x.shape[0],), float(label))
        )

    return lmsd.sample(schedule, x_T, denoised)


LATENTS = {"image": (3, 4, 4, 4), "video": (2, 4, 3, 2, 2), "packed": (2, 1, 20)}


@pytest.mark.parametrize("shape", LATENTS.values(), ids=LATENTS)
@pytest.mark.parametrize("kind", ["eps", "v", "edm", "x0", "cosmos", "flow"])
def test_the_host_gets_what_the_library_gives(pack, host, kind, shape):
    model = Model(kind)
    schedule = solved(pack, model)
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule)
    latent = torch.full(shape, 0.6)
    noise = noise_like(latent)
    got = host.sample(host.guider(model), noise, latent, sampler, sigmas)

    image, sigma = latent * 0.5, schedule.sigma_start  # the latent format's scale
    if kind == "flow":
        x_T = sigma * noise + (1 - sigma) * image
    else:
        x_T = (sigma if kind == "cosmos" else math.sqrt(1 + sigma**2)) * noise + image
    ours = expected(schedule, model, x_T) / 0.5
    assert got.dtype == torch.float32 and got.shape == shape
    torch.testing.assert_close(got, ours, rtol=1e-5, atol=2e-6 * sigma)
    assert (got - latent).abs().mean() > 0.1


def test_guidance_and_batches_of_prompts_are_the_hosts(pack, host):
    model = Model("edm")
    schedule = solved(pack, model)
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule)
    latent = torch.zeros(2, 4, 2, 2)
    noise = noise_like(latent)
    guider = host.guider(model, 3.0, conditioning(0.5, -0.5))
    got = host.sample(guider, noise, latent, sampler, sigmas)

    def denoised(x, sigma):
        sigma = torch.full((2,), sigma)
        without = model.model.apply_model(x, sigma, torch.tensor([-1.0, -1.0]))
        with_prompt = model.model.apply_model(x, sigma, torch.tensor([0.5, -0.5]))
        return without + 3 * (with_prompt - without)

    ours = lmsd.sample(schedule, noise * math.sqrt(1 + schedule.sigma_start**2), denoised) / 0.5
    torch.testing.assert_close(got, ours, rtol=1e-4, atol=1e-3)


def with_guidance(schedule, shares):
    file = schedule.to_dict()
    for node, share in zip(file["nodes"], shares, strict=True):
        node["guidance"] = share
    return lmsd.Schedule.from_json(file)


def test_a_schedule_may_set_the_cfg_of_each_step(pack, host):
    model, shares = Model("edm"), [0.5, 1.0, 1.5, 0.0]
    schedule = with_guidance(solved(pack, model), shares)
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule)
    latent = torch.zeros(2, 4, 2, 2)
    noise, guider = noise_like(latent), host.guider(model, 3.0, conditioning(0.5, -0.5))
    got = host.sample(guider, noise, latent, sampler, sigmas)
    assert guider.cfg == 3.0

    def denoised(x, sigma, share):
        sigma = torch.full((2,), sigma)
        without = model.model.apply_model(x, sigma, torch.tensor([-1.0, -1.0]))
        with_prompt = model.model.apply_model(x, sigma, torch.tensor([0.5, -0.5]))
        return without + (1 + 2 * share) * (with_prompt - without)

    ours = lmsd.sample(schedule, noise * math.sqrt(1 + schedule.sigma_start**2), denoised) / 0.5
    torch.testing.assert_close(got, ours, rtol=1e-4, atol=1e-3)

    head = host.sample(guider, noise, latent, sampler, sigmas[:3])
    tail = host.sample(guider, torch.zeros_like(noise), head, sampler, sigmas[2:])
    torch.testing.assert_close(tail, got, rtol=1e-4, atol=1e-3)
    assert guider.cfg == 3.0


def test_a_guider_without_a_cfg_of_its_own_cannot_have_it_set(pack, host):
    model = Model("edm")
    schedule = with_guidance(solved(pack, model), [0.5, 1.0, 1.0, 1.0])
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule)
    guider, latent = host.guider(model, 3.0), torch.zeros(1, 4, 2, 2)
    guider.cfg1 = guider.cfg2 = 3.0  # as DualCFGGuider has them
    with pytest.raises(ValueError, match="this guider has no single cfg"):
        host.sample(guider, noise_like(latent), latent, sampler, sigmas)


@pytest.mark.parametrize("kind", ["eps", "v", "edm", "x0", "cosmos"])
def test_the_first_sigma_keeps_the_hosts_own_branch(pack, host, kind):
    """At sigma_max within 1e-5 it scales noise by sqrt(1 + s^2); a schedule that begins below keeps that."""
    model = Model(kind)
    schedule = solved(pack, model)
    for made in (schedule, lmsd.Schedule.from_json(schedule.to_json())):
        _, sigmas = pack.run("LmsdSampler", schedule=made)
        assert sigmas.dtype == torch.float32 and len(sigmas) == schedule.nfe + 1
        assert sigmas[0] == model.model.model_sampling.sigma_max and sigmas[-1] == 0
        assert schedule.sigmas[0] < 0.75 * float(sigmas[0])


@pytest.mark.parametrize("sigmas", [[], [0.0], [80.0]])
def test_lists_without_a_step_are_survived(pack, host, sigmas):
    model = Model("edm")
    sampler, _ = pack.run("LmsdSampler", schedule=solved(pack, model))
    latent = torch.full((1, 4, 2, 2), 0.7)
    out = host.sample(host.guider(model), noise_like(latent), latent, sampler, torch.tensor(sigmas))
    assert out.shape == latent.shape and out.isfinite().all() and model.model.calls == 0


@pytest.mark.parametrize("part", [slice(None), slice(2, None)], ids=["whole", "tail"])
@pytest.mark.parametrize("kind", ["eps", "edm", "flow"])
def test_a_mask_keeps_the_known_region(pack, host, kind, part):
    """To the last bit, whatever the last row sums to."""
    model = Model(kind)
    schedule = solved(pack, model)
    assert abs(schedule.weights[-1].sum() - 1) > 0.02
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule)
    known = noise_like(torch.empty(2, 4, 4, 4), 5)
    mask = torch.zeros(2, 4, 4, 4)
    mask[..., 2:] = 1
    out = host.sample(host.guider(model), noise_like(known), known, sampler, sigmas[part], denoise_mask=mask)
    assert torch.equal(out[..., :2], known[..., :2])
    assert (out[..., 2:] - known[..., 2:]).abs().mean() > 0.1


def test_a_soft_mask_is_made_up_for_too(pack, host):
    """By as much of the known image as the last row's sum lacks: as far as if it summed to 1."""
    model = Model("edm")
    schedule = solved(pack, model)
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule)
    latent, mask = torch.full((2, 4, 4, 4), 0.7), torch.full((2, 4, 4, 4), 0.25)
    options = {"denoise_mask": mask}
    got = host.sample(host.guider(model), noise_like(latent), latent, sampler, sigmas, **options)
    inner = sampler.sampler_function
    sampler.sampler_function = lambda model, x, sigmas, extra_args, callback, disable: inner(
        lambda x, sigma, **named: model(x, sigma, **extra_args), x, sigmas, None, callback, disable
    )
    plain = host.sample(host.guider(model), noise_like(latent), latent, sampler, sigmas, **options)
    lacking = 1 - float(schedule.weights[-1].sum())
    torch.testing.assert_close(got - plain, 0.75 * lacking * latent, rtol=1e-3, atol=1e-5)


def test_a_mask_that_changes_with_the_noise(pack, host):
    """Differential Diffusion: the mask of the last call counts."""
    model = Model("edm")
    sampler, sigmas = pack.run("LmsdSampler", schedule=solved(pack, model))
    levels = []

    def change(sigma, mask, extra_options):
        levels.append(float(sigma[0]))
        assert set(extra_options) == {"model", "sigmas"}
        return (mask >= 0.5).to(mask.dtype)

    model.model_options["denoise_mask_function"] = change
    latent, mask = noise_like(torch.empty(1, 4, 4, 4), 5), torch.full((1, 4, 4, 4), 0.3)
    out = host.sample(host.guider(model), noise_like(latent), latent, sampler, sigmas, denoise_mask=mask)
    assert torch.equal(out, latent) and levels[-1] == pytest.approx(levels[-2])


def test_the_callback_hears_every_step(pack, host):
    """With tensors: newer hosts read their shapes. The steps' own states, before the model's call."""
    model = Model("flow")
    schedule = solved(pack, model, steps=5)
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule)
    heard = []
    inner = sampler.sampler_function

    def listening(model, x, sigmas, extra_args=None, callback=None, disable=None):
        def on_step(step):
            heard.append(step)
            callback(step)

        return inner(model, x, sigmas, extra_args, on_step, disable)

    sampler.sampler_function = listening
    displayed = []
    latent = torch.zeros(2, 4, 2, 2)
    arguments = noise_like(latent), latent, sampler, sigmas
    host.sample(host.guider(model), *arguments, callback=lambda *step: displayed.append(step))
    assert [step["i"] for step in heard] == list(range(5)) == [step[0] for step in displayed]
    assert all(step[3] == 5 for step in displayed)
    for name, values in (
        ("sigma", schedule.sigmas[:-1]),
        ("sigma_hat", schedule.sigmas[:-1] * schedule.scales),
    ):
        assert [float(step[name]) for step in heard] == pytest.approx(list(values), rel=1e-6)
        assert all(step[name].shape == () for step in heard)
    for step in heard:
        again = expected_at(model, step["x"], step["sigma_hat"])
        torch.testing.assert_close(step["denoised"], again, rtol=1e-5, atol=1e-5)


def expected_at(model, x, sigma):
    return model.model.apply_model(x, sigma.repeat(len(x)), torch.zeros(len(x)))


@pytest.mark.parametrize("host", [Exception, BaseException], indirect=True)
@pytest.mark.parametrize("where", ["callback", "model"])
def test_an_exception_comes_out_as_it_went_in(pack, host, where):
    model = Model("edm")
    sampler, sigmas = pack.run("LmsdSampler", schedule=solved(pack, model))
    latent = torch.zeros(1, 4, 2, 2)

    def raising(*step):
        if step[0] == 2:
            host.interrupt()
            host.throw_if_interrupted()

    options = {}
    if where == "callback":
        options["callback"] = raising
    else:
        model.model.on_call = raising
    with pytest.raises(host.Interrupt) as raised:
        host.sample(host.guider(model), noise_like(latent), latent, sampler, sigmas, **options)
    assert raised.value is host.raised[0]
    assert model.model.calls == (3 if where == "callback" else 2)


def test_x_is_never_written_to(pack, host):
    """Nor is what the model returns, which may be x itself."""
    model = Model("edm")
    schedule = solved(pack, model)
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule)
    x = noise_like(torch.empty(1, 4, 2, 2)) * 80
    seen = [(x, x.clone())]

    def identity(state, sigma):
        seen.append((state, state.clone()))
        return state

    with torch.inference_mode():
        out = sampler.sampler_function(identity, x, sigmas, disable=True)
    assert out is not x and len(seen) == 5
    assert all(torch.equal(state, before) for state, before in seen)


# ---- what does not belong together


def test_sigmas_of_something_else_are_refused(pack, host):
    model = Model("edm")
    sampler, sigmas = pack.run("LmsdSampler", schedule=solved(pack, model))
    _, others = pack.run("LmsdSampler", schedule=solved(pack, model, rho=5.0))
    latent = torch.zeros(1, 4, 2, 2)
    skipping = sigmas[[0, 2, 3, 4]]
    for wrong in (others, skipping, sigmas * 0.99, torch.cat([sigmas, torch.zeros(1)])):
        with pytest.raises(ValueError, match="neither those of the schedule .* nor a part of them") as raised:
            host.sample(host.guider(model), noise_like(latent), latent, sampler, wrong)
        shown = str(raised.value)
        assert f"{float(wrong[0]):.4g}" in shown and f"{float(sigmas[1]):.4g}" in shown
        assert "same Distilled Sampler" in shown
    assert model.model.calls == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_sigmas_in_other_digits_are_taken(pack, host, dtype):
    model = Model("edm")
    sampler, sigmas = pack.run("LmsdSampler", schedule=solved(pack, model))
    latent = torch.zeros(1, 4, 2, 2)
    given = (sigmas.double() * (1 + 1e-7)).to(dtype).double()
    host.sample(host.guider(model), noise_like(latent), latent, sampler, given)
    assert model.model.calls == 4


def made_for(schedule, **about):
    return lmsd.Schedule.from_json(schedule.to_dict() | {"made_for": about})


REFUSED = [
    ("family", Model("edm"), {"model": "SDXL"}, ("SDXL", "Toy")),
    ("sigma_max", Model("edm"), {"sigma_max": 60.0}, ("60", "80")),
    ("sigma_max, flow", Model("flow"), {"sigma_max": 0.9}, ("0.9", "1")),
]


@pytest.mark.parametrize(("model", "about", "words"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_a_schedule_for_another_model_is_refused(pack, host, model, about, words):
    """At load where the model is connected, else when it samples; both values are named."""
    schedule = made_for(solved(pack, model), **about)
    schedule.save(host.models / "lmsd_schedules" / "other.json")
    sampler, sigmas = pack.run("LmsdSampler", schedule=pack.run("LmsdLoadSchedule", schedule="other.json")[0])
    latent = torch.zeros(1, 4, 2, 2)
    attempts = [
        lambda: pack.run("LmsdLoadSchedule", schedule="other.json", model=model),
        lambda: pack.run("LmsdSampler", schedule=schedule, model=model),
        lambda: host.sample(host.guider(model), noise_like(latent), latent, sampler, sigmas),
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match="was made for") as raised:
            attempt()
        for word in words:
            assert word in str(raised.value)


@pytest.mark.parametrize(("made", "used"), [("edm", "flow"), ("flow", "edm")])
def test_a_schedule_of_the_other_process_is_refused(pack, host, made, used):
    schedule = solved(pack, Model(made))
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule)
    latent = torch.zeros(1, 4, 2, 2)
    for attempt in (
        lambda: pack.run("LmsdSampler", schedule=schedule, model=Model(used)),
        lambda: host.sample(host.guider(Model(used)), noise_like(latent), latent, sampler, sigmas),
    ):
        with pytest.raises(ValueError, match="process (ve|flow); this model has (ve|flow)"):
            attempt()


def test_the_patched_shift_counts(pack, host):
    """That of nodes such as ModelSamplingFlux, when it samples too: with it there is nothing to say."""
    model = Model("flow")
    schedule = made_for(solved(pack, model), shift=1.5)
    model.add_object_patch("model_sampling", fake_comfy.sampling_of("flow", shift=1.5))
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule, model=model)
    latent = torch.zeros(1, 4, 2, 2)
    host.sample(host.guider(model), noise_like(latent), latent, sampler, sigmas)
    assert model.model.calls == 4 and model.model.model_sampling.shift == 3.0 and host.texts == []


@pytest.mark.parametrize(("kind", "like"), [("image_to_image", "eps"), ("image_to_image_flow", "flow")])
def test_models_whose_derivative_is_another_are_refused(pack, host, kind, like):
    model, latent = Model(kind), torch.zeros(1, 4, 2, 2)
    schedule = solved(pack, Model(like))
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule)
    schedule.save(host.models / "lmsd_schedules" / "flow.json")
    for attempt in (
        lambda: pack.run("LmsdSolver", model=model),
        lambda: pack.run("LmsdSampler", schedule=schedule, model=model),
        lambda: pack.run("LmsdLoadSchedule", schedule="flow.json", model=model),
        lambda: host.sample(host.guider(model), noise_like(latent), latent, sampler, sigmas),
        lambda: pack.run(
            "LmsdDistill",
            model=model,
            positive=conditioning(0.0),
            negative=conditioning(0.0),
            latent_image={"samples": latent},
        ),
    ):
        with pytest.raises(ValueError, match="IMG_TO_IMG.*use the sampler made for it"):
            attempt()
    assert model.model.calls == 0


# ---- what is only said


def warnings_of(caplog, run):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        run()
    return [record.getMessage() for record in caplog.records]


def test_another_guidance_or_size_is_said_once(pack, host, caplog):
    model = Model("edm")
    schedule = made_for(solved(pack, model), guidance_scale=3.0, latent_shape=[4, 2, 2])
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule)

    def run(cfg, size, times=1):
        guider = host.guider(model, cfg)
        latent = torch.zeros(2, 4, size, size)
        for _ in range(times):
            host.sample(guider, noise_like(latent), latent, sampler, sigmas)

    assert warnings_of(caplog, lambda: run(3.0, 2)) == []
    said = warnings_of(caplog, lambda: run(7.5, 2, times=2))
    assert len(said) == 1 and "guidance scale 3;" in said[0] and "7.5" in said[0]
    said = warnings_of(caplog, lambda: run(3.0, 4, times=2))
    assert len(said) == 1 and "[4, 2, 2]" in said[0] and "[4, 4, 4]" in said[0]


DIFFERENCES = {
    "shift": ("flow", {"shift": 1.5, "sigma_min": 0.0015}, "made for shift 1.5; this run has 3"),
    "lowest level": ("edm", {"sigma_min": 0.01}, "made for a lowest noise level of 0.01; this run has 0.002"),
    "guidance": ("edm", {"guidance_scale": 3.0}, "made for guidance scale 3; this run has 1"),
    "size": (
        "edm",
        {"latent_shape": [4, 8, 8]},
        r"made for latents of \[4, 8, 8\]; this run has \[4, 2, 2\]",
    ),
    "levels told": (
        "eps",
        {"snapped": False},
        "told any noise level; this run has one that is told the nearest",
    ),
}


@pytest.mark.parametrize(("kind", "about", "words"), DIFFERENCES.values(), ids=DIFFERENCES)
def test_what_changes_no_result_is_said_on_the_node(pack, host, kind, about, words):
    """Each time, and the file samples as one that says nothing does; with the model connected too."""
    model = Model(kind)
    plain = solved(pack, model)
    latent = torch.zeros(1, 4, 2, 2)
    results = []
    for schedule in (plain, made_for(plain, **about)):
        schedule.save(host.models / "lmsd_schedules" / "it.json")
        schedule = pack.run("LmsdLoadSchedule", schedule="it.json", model=model)[0]
        sampler, sigmas = pack.run("LmsdSampler", schedule=schedule, model=model)
        for _ in range(2):
            results.append(host.sample(host.guider(model), noise_like(latent), latent, sampler, sigmas))
    assert all(torch.equal(one, results[0]) for one in results)
    assert [node for node, _ in host.texts] == ["sample"] * 2
    assert all(re.search(words, text) and text.count("made for") == 1 for _, text in host.texts)


def test_several_differences_are_several_lines(pack, host):
    model = Model("edm")
    schedule = made_for(solved(pack, model), guidance_scale=3.0, latent_shape=[4, 8, 8])
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule)
    latent = torch.zeros(1, 4, 2, 2)
    host.sample(host.guider(model), noise_like(latent), latent, sampler, sigmas[1:])
    ((_, text),) = host.texts
    assert len(text.split("\n")) == 3


def test_hosts_without_texts_on_nodes_show_a_toast(pack, host, monkeypatch, caplog):
    server, sent = host.modules["server"].PromptServer.instance, []
    monkeypatch.delattr(server, "send_progress_text")
    monkeypatch.setattr(server, "send_sync", lambda event, data: sent.append((event, data)), raising=False)
    model = Model("edm")
    sampler, sigmas = pack.run("LmsdSampler", schedule=made_for(solved(pack, model), guidance_scale=3.0))
    latent = torch.zeros(1, 4, 2, 2)
    host.sample(host.guider(model), noise_like(latent), latent, sampler, sigmas)
    ((event, data),) = sent
    assert event == "lmsd.notice" and data["node"] == "sample" and "guidance scale 3" in data["text"]
    assert "guidance scale 3" in caplog.text
    assert event in (Path(fake_comfy.__file__).parents[1] / "web" / "js" / "settings.js").read_text("utf-8")


def test_guidance_in_the_conditioning_counts_at_cfg_1(pack, host, caplog):
    """As Flux has it; at another cfg it is the guider's own that counts, and with two scales neither."""
    model = Model("flow")
    schedule = made_for(solved(pack, model), guidance_scale=3.5)
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule)
    latent = torch.zeros(1, 4, 2, 2)

    def run(cfg, guidance, **scales):
        guider = host.guider(model, cfg, conditioning(0.0, guidance=guidance))
        for name, scale in scales.items():
            setattr(guider, name, scale)
        host.sample(guider, noise_like(latent), latent, sampler, sigmas)

    assert warnings_of(caplog, lambda: run(1.0, 3.5)) == []
    assert "this run has 2.5" in warnings_of(caplog, lambda: run(1.0, 2.5))[0]
    assert "this run has 7" in warnings_of(caplog, lambda: run(7.0, 3.5))[0]
    assert warnings_of(caplog, lambda: run(7.0, 3.5, cfg1=7.0, cfg2=2.0)) == []


# ---- other packs and patches


@pytest.mark.parametrize("part", [slice(None), slice(0, 3), slice(2, None)], ids=["whole", "head", "tail"])
def test_patches_find_the_levels_of_the_calls(pack, host, part):
    """Context windows and TeaCache look each of them up in a list: those that the model is told."""
    model = Model("edm")
    model.model_options |= {"context_handler": "16 frames", "transformer_options": {"other": "kept"}}
    sampler, sigmas = pack.run("LmsdSampler", schedule=solved(pack, model))
    latent, seen = torch.zeros(1, 4, 2, 2), []
    inner = sampler.sampler_function

    def listening(model, x, sigmas, extra_args, callback, disable):
        def told(x, sigma, **named):
            options = named["model_options"]["transformer_options"]
            seen.append(
                ((options["sample_sigmas"] == sigma[0]).nonzero().item(), len(options["sample_sigmas"]))
            )
            assert options["other"] == "kept"
            return model(x, sigma, **named)

        out = inner(told, x, sigmas, extra_args, callback, disable)
        assert extra_args["model_options"]["transformer_options"]["sample_sigmas"] is sigmas, "the host's own"
        return out

    sampler.sampler_function = listening
    host.sample(host.guider(model), noise_like(latent), latent, sampler, sigmas[part])
    steps = len(sigmas[part]) - 1
    assert seen == [(i, steps + 1) for i in range(steps)]


def test_a_cache_between_steps_works_as_with_any_sampler(pack, host):
    model = Model("edm")
    model.model_options["transformer_options"] = {"easycache": fake_comfy.LazyCache(3.0)}
    sampler, sigmas = pack.run("LmsdSampler", schedule=solved(pack, model, steps=12))
    latent = torch.zeros(1, 4, 2, 2)
    out = host.sample(host.guider(model), noise_like(latent), latent, sampler, sigmas)
    assert out.isfinite().all() and model.model.calls < 12


# ---- denoise


def test_denoise_1_is_the_whole_schedule(pack, host):
    schedule = solved(pack, Model("edm"))
    _, sigmas = pack.run("LmsdSampler", schedule=schedule, denoise=1.0)
    assert sigmas.tolist() == pytest.approx([schedule.sigma_start, *schedule.sigmas[1:]])


def test_denoise_0_leaves_the_image(pack, host):
    model = Model("edm")
    sampler, sigmas = pack.run("LmsdSampler", schedule=solved(pack, model), denoise=0.0)
    latent = torch.full((1, 4, 2, 2), 0.7)
    assert sigmas.shape == (0,)
    assert torch.equal(host.sample(host.guider(model), noise_like(latent), latent, sampler, sigmas), latent)


def test_denoise_below_1_needs_the_model(pack, host):
    with pytest.raises(ValueError, match="denoise below 1 needs the MODEL"):
        pack.run("LmsdSampler", schedule=solved(pack, Model("edm")), denoise=0.5)


@pytest.mark.parametrize("denoise", [0.1, 0.3, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("kind", ["eps", "edm", "flow"])
def test_denoise_starts_where_ksampler_would(pack, host, kind, denoise):
    """And its SIGMAS are taken by its SAMPLER, in fewer steps or as many."""
    model = Model(kind)
    schedule = solved(pack, model, steps=8)
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule, model=model, denoise=denoise)
    sampling = model.get_model_object("model_sampling")
    assert float(sigmas[0]) == pytest.approx(sampling.percent_to_sigma(1 - denoise), rel=1e-6)
    theirs = fake_comfy.simple_sigmas(sampling, round(100 / denoise))[-101]
    assert float(sigmas[0]) == pytest.approx(float(theirs), rel=0.05)
    assert (sigmas.diff() < 0).all() and sigmas[-1] == 0
    assert 1 <= len(sigmas) - 1 <= 8
    latent = torch.zeros(1, 4, 2, 2)
    out = host.sample(host.guider(model), noise_like(latent), latent, sampler, sigmas)
    assert out.isfinite().all() and model.model.calls == len(sigmas) - 1


def test_lower_denoise_takes_fewer_steps(pack, host):
    model = Model("edm")
    schedule = solved(pack, model, steps=8)
    steps = [
        len(pack.run("LmsdSampler", schedule=schedule, model=model, denoise=denoise)[1]) - 1
        for denoise in (0.2, 0.5, 0.8, 1.0)
    ]
    assert steps == sorted(steps) and steps[0] < steps[1] < 8 == steps[-1]


@functools.cache
def fitted(kind):
    """A schedule of 5 steps, distilled by the library alone."""
    model = Model(kind)
    sampling = model.model.model_sampling

    def denoised(x, sigma):
        return model.model.apply_model(x, torch.full((len(x),), sigma), torch.zeros(len(x)))

    found = lmsd.distill(
        denoised,
        lambda batch: noise_like(torch.empty(16, 4, 2, 2), batch) * float(sampling.sigma_max),
        torch.empty(16, 4, 2, 2),
        nfe=5,
        progress=False,
        trajectories=16,
        held_out=16,
        process="flow" if kind == "flow" else "ve",
        sigma_min=float(sampling.sigma_min),
        sigma_max=float(sampling.sigma_max),
        sigma_end=0.0,
    )
    return found.schedules[5]


@pytest.mark.parametrize("kind", ["eps", "edm", "flow"])
@pytest.mark.parametrize("denoise", [0.5, 0.7, 0.9])
def test_image_to_image_ends_near_the_many_step_result(pack, host, kind, denoise):
    """Nearer than euler from the same level, with as many steps, on the scheduler "simple"."""
    model = Model(kind)
    sampling = model.get_model_object("model_sampling")
    latent = expected_at(model, noise_like(torch.empty(32, 4, 2, 2), 3), torch.tensor(0.5)) / 0.5
    noise = noise_like(latent, 4)

    def end(sampler, sigmas):
        return host.sample(host.guider(model), noise, latent, sampler, sigmas)

    ours, sigmas = pack.run("LmsdSampler", schedule=fitted(kind), model=model, denoise=denoise)
    euler, steps = fake_comfy.KSAMPLER(fake_comfy.sample_euler), len(sigmas) - 1
    simple = fake_comfy.simple_sigmas(sampling, int(steps / denoise))[-(steps + 1) :]
    simple[0] = sigmas[0]
    fine = torch.linspace(float(sigmas[0]) ** (1 / 7), float(sampling.sigma_min) ** (1 / 7), 400) ** 7
    many = end(euler, torch.cat([fine, torch.zeros(1)]))

    def distance(result):
        return float((result - many).flatten(1).norm(dim=1).mean())

    assert 2 <= steps <= 5
    assert distance(end(ours, sigmas)) < 0.7 * distance(end(euler, simple))


def test_random_noise_of_the_host(host):
    """The fake's own: the same seed, the same noise."""
    latent = {"samples": torch.zeros(2, 4, 2, 2)}
    a, b = (RandomNoise(seed).generate_noise(latent) for seed in (1, 2))
    assert torch.equal(a, RandomNoise(1).generate_noise(latent)) and not torch.equal(a, b)
