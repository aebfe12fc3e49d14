"""Parts of a run: SIGMAS cut in two or three, one sampler after another, one model or several."""

import gc
import weakref

import fake_comfy
import lmsd
import pytest
import torch
from fake_comfy import Model
from test_pack_sampling import noise_like, solved

SHAPE = (2, 4, 3, 2)
NFE = 5


def split(sigmas, *steps):
    """As SplitSigmas does, step after step; the parts."""
    at = [0, *steps, len(sigmas) - 1]
    return [sigmas[first : last + 1] for first, last in zip(at, at[1:], strict=False)]


def split_denoise(sigmas, denoise):
    """SplitSigmasDenoise."""
    steps = round((len(sigmas) - 1) * denoise)
    return sigmas[:-steps], sigmas[-(steps + 1) :]


def flipped(sigmas):
    """FlipSigmas."""
    sigmas = sigmas.flip(0)
    if sigmas[0] == 0:
        sigmas[0] = 0.0001
    return sigmas


def run(host, models, sampler, parts, latent=None, between=lambda latent: latent, **options):
    """SamplerCustomAdvanced for each part, the first with noise, the others with DisableNoise."""
    latent = torch.full(SHAPE, 0.6) if latent is None else latent
    noise = noise_like(latent)
    for number, (model, sigmas) in enumerate(zip(models, parts, strict=True)):
        latent = host.sample(host.guider(model), noise, latent, sampler, sigmas, **options)
        if number + 1 < len(parts):
            latent = between(latent)
        noise = torch.zeros_like(latent)
    return latent


def made(pack, model, solver="dpmpp_3m", steps=NFE):
    schedule = solved(pack, model, solver=solver, steps=steps)
    return schedule, *pack.run("LmsdSampler", schedule=schedule)


@pytest.mark.parametrize("solver", ["dpmpp_3m", "ipndm_4", "heun"])
@pytest.mark.parametrize("kind", ["eps", "edm", "flow"])
def test_two_halves_are_the_whole(pack, host, kind, solver):
    """To the last bit, wherever it is cut, a second call at one level included; no call more."""
    steps = 7 if solver == "heun" else NFE
    model = Model(kind)
    _, sampler, sigmas = made(pack, model, solver, steps)
    whole = run(host, [model], sampler, [sigmas])
    for at in range(1, steps):
        before = model.model.calls
        halves = run(host, [model] * 2, sampler, split(sigmas, at))
        assert torch.equal(halves, whole), f"cut at {at}"
        assert model.model.calls - before == steps
    thirds = run(host, [model] * 3, sampler, split(sigmas, 1, 3))
    assert torch.equal(thirds, whole)
    assert host.texts == []


def test_the_split_by_denoise(pack, host):
    model = Model("edm")
    _, sampler, sigmas = made(pack, model)
    whole = run(host, [model], sampler, [sigmas])
    for denoise in (0.2, 0.5, 0.8):
        assert torch.equal(run(host, [model] * 2, sampler, split_denoise(sigmas, denoise)), whole)


@pytest.mark.parametrize("kind", ["edm", "flow"])
def test_a_head_stops_at_its_level(pack, host, kind):
    model = Model(kind)
    schedule, sampler, sigmas = made(pack, model)
    latent, states = torch.zeros(SHAPE), []
    inner = sampler.sampler_function
    sampler.sampler_function = lambda *inputs, **named: states.append(inner(*inputs, **named)) or states[-1]
    host.sample(host.guider(model), noise_like(latent), latent, sampler, sigmas[:4])
    noise = noise_like(latent)
    x_T = noise if kind == "flow" else noise * (1 + schedule.sigma_start**2) ** 0.5
    steps = lmsd.Sampler(schedule, x_T)
    for x, sigma in steps:
        if steps.index == 3:
            break
        steps.step(model.model.apply_model(x, torch.full((len(x),), sigma), torch.zeros(len(x))))
    torch.testing.assert_close(states[0], x, rtol=1e-6, atol=1e-6)


def test_two_models_share_the_history(pack, host):
    """A base and a refiner, or the experts of Wan 2.2: the predictions of the first are the second's past."""
    first, second = Model("flow"), Model("flow")
    network = second.model.network
    second.model.network = lambda *inputs: 0.9 * network(*inputs)
    schedule, sampler, sigmas = made(pack, first)
    got = run(host, [first, second], sampler, split(sigmas, 2), torch.zeros(SHAPE))
    steps = lmsd.Sampler(schedule, noise_like(torch.zeros(SHAPE)))
    for x, sigma in steps:
        model = first if steps.index < 2 else second
        steps.step(model.model.apply_model(x, torch.full((len(x),), sigma), torch.zeros(len(x))))
    torch.testing.assert_close(got, steps.result / 0.5, rtol=1e-5, atol=1e-5)
    alone = run(host, [first], sampler, [sigmas], torch.zeros(SHAPE))
    assert (got - alone).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["edm", "flow"])
def test_a_tail_alone_starts_without_history(pack, host, kind):
    """By the rule of start_at; the node that runs says so."""
    model = Model(kind)
    schedule, sampler, sigmas = made(pack, model)
    latent = torch.full(SHAPE, 0.6)
    got = host.sample(host.guider(model), noise_like(latent), latent, sampler, sigmas[2:])
    level = float(schedule.sigmas[2])
    x = level * noise_like(latent) + (1 - level if kind == "flow" else 1) * latent * 0.5
    part = schedule.start_at(level)
    assert part.nfe == 3

    def denoised(x, sigma):
        return model.model.apply_model(x, torch.full((len(x),), sigma), torch.zeros(len(x)))

    torch.testing.assert_close(got, lmsd.sample(part, x, denoised) / 0.5, rtol=1e-5, atol=1e-5)
    ((node, text),) = host.texts
    assert node == "sample" and f"begins at sigma {level:.4g} without the steps before" in text


CHANGES = {
    "another latent": lambda latent: latent + 0.01,
    "one number": lambda latent: latent.index_put((torch.tensor([0]),), latent[0] * 1.001),
    "another shape": lambda latent: latent[:1],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_latent_is_not_gone_on_from(pack, host, change):
    """It is sampled as it is, not as the SAMPLER remembers it."""
    model = Model("edm")
    _, sampler, sigmas = made(pack, model)
    got = run(host, [model] * 2, sampler, split(sigmas, 2), between=change)
    head = run(host, [model], sampler, [sigmas[:3]])
    _, other, _ = made(pack, model)
    alone = host.sample(host.guider(model), torch.zeros_like(change(head)), change(head), other, sigmas[2:])
    assert torch.equal(got, alone) and len(host.texts) == 2


def test_another_sampler_does_not_have_the_history(pack, host):
    model = Model("edm")
    _, sampler, sigmas = made(pack, model)
    _, other, _ = made(pack, model)
    whole = run(host, [model], sampler, [sigmas])
    head = host.sample(host.guider(model), noise_like(whole), torch.full(SHAPE, 0.6), sampler, sigmas[:3])
    tail = host.sample(host.guider(model), torch.zeros(SHAPE), head, other, sigmas[2:])
    assert not torch.equal(tail, whole) and len(host.texts) == 1


def test_a_part_without_history_hands_on_what_it_has(pack, host):
    """The third sampler goes on from the second, which began without the first."""
    model = Model("edm")
    schedule, sampler, sigmas = made(pack, model)
    latent = torch.full(SHAPE, 0.6)
    guider, noise = host.guider(model), noise_like(latent)
    tail = host.sample(guider, noise, latent, sampler, sigmas[1:])
    middle = host.sample(guider, noise, latent, sampler, sigmas[1:3])
    end = host.sample(guider, torch.zeros(SHAPE), middle, sampler, sigmas[2:])
    assert torch.equal(end, tail)


def test_the_tail_may_run_again(pack, host):
    """As when only its settings changed, and the host still has the head's latent; in whatever order."""
    model = Model("edm")
    _, sampler, sigmas = made(pack, model)
    latents = [torch.full(SHAPE, value) for value in (0.2, 0.4, 0.6)]
    guider, none = host.guider(model), torch.zeros(SHAPE)
    heads = [host.sample(guider, noise_like(none), one, sampler, sigmas[:3]) for one in latents]
    for _ in range(2):
        for one, head in zip(latents, heads, strict=True):
            tail = host.sample(guider, none, head, sampler, sigmas[2:])
            assert torch.equal(tail, run(host, [model], sampler, [sigmas], one))
    assert host.texts == []


def test_little_is_kept_and_not_for_long(pack, host):
    """The last four heads, of each the state and what later rows need; all of it goes with the SAMPLER."""
    model = Model("edm")
    _, sampler, sigmas = made(pack, model, solver="dpmpp_2m")
    run(host, [model], sampler, [sigmas])
    kept = sampler.sampler_function.kept
    assert not kept
    for _ in range(9):
        run(host, [model], sampler, [sigmas[:4]])
    assert len(kept) == 4
    tensors = [one for one in kept[0][2].predictions if one is not None]
    assert len(tensors) == 1  # the row of the next node has two predictions, its own among them
    gone = weakref.ref(kept[0][2].x)
    del sampler, kept
    gc.collect()
    assert gone() is None


def test_steps_are_counted_in_each_part(pack, host):
    model, seen = Model("flow"), []
    _, sampler, sigmas = made(pack, model)
    run(host, [model] * 2, sampler, split(sigmas, 3), callback=lambda *step: seen.append((step[0], step[3])))
    assert seen == [(0, 3), (1, 3), (2, 3), (0, 2), (1, 2)]


def test_image_to_image_can_be_split_too(pack, host):
    model = Model("edm")
    schedule = solved(pack, model, steps=8)
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule, model=model, denoise=0.6)
    whole = run(host, [model], sampler, [sigmas])
    assert torch.equal(run(host, [model] * 2, sampler, split(sigmas, 2)), whole)


def test_sigmas_upwards_are_refused_in_a_sentence(pack, host):
    model = Model("edm")
    _, sampler, sigmas = made(pack, model)
    with pytest.raises(ValueError, match="FlipSigmas.*cannot be run backwards.*euler"):
        run(host, [model], sampler, [flipped(sigmas)])
    euler, latent, none = (
        fake_comfy.KSAMPLER(fake_comfy.sample_euler),
        torch.full(SHAPE, 0.6),
        torch.zeros(SHAPE),
    )
    up = host.sample(host.guider(model), none, latent, euler, flipped(sigmas))
    assert host.sample(host.guider(model), none, up, sampler, sigmas).isfinite().all()


def test_an_exception_in_a_part_comes_out_as_it_is(pack, host):
    model, error = Model("edm"), RuntimeError("a layer is missing")
    _, sampler, sigmas = made(pack, model)

    def fail(calls):
        raise error

    model.model.on_call = fail
    with pytest.raises(RuntimeError) as raised:
        run(host, [model], sampler, [sigmas[:3]])
    assert raised.value is error and not sampler.sampler_function.kept
