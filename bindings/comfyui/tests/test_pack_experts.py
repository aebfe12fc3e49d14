"""Two models that share one trajectory, of high and of low noise: distilled for and sampled together."""

import fake_comfy
import lmsd
import pytest
import torch
from fake_comfy import Model, RandomNoise, conditioning
from test_pack_distill import QUICK, distance, distill_guider, empty
from test_pack_parts import run
from test_pack_sampling import noise_like

BOUNDARIES = {"flow": 0.875, "edm": 6.0, "eps": 3.0}


def expert(kind="flow", moved=0.0, name="Toy", **levels):
    """A model whose images are moved along the label's direction; `heard`: the levels of its calls."""
    model = Model(kind, name, **levels)
    inner, model.heard = model.model.apply_model, []

    def apply_model(x, sigma, label):
        model.heard.append(float(sigma.max()))
        return inner(x, sigma, label + moved)

    model.model.apply_model = apply_model
    return model


def experts(kind="flow"):
    return expert(kind), expert(kind, moved=1.5)


def distill(pack, high, low, boundary, cfg=1.0, **options):
    return pack.run(
        "LmsdDistill",
        model=high,
        model_low_noise=low,
        boundary=boundary,
        positive=conditioning(0.0),
        negative=conditioning(-0.5),
        latent_image=empty(),
        cfg=cfg,
        first_seed=0,
        node_id="7",
        **{**QUICK, **options},
    )[0]


def two(pack, host, high, low, boundary, cfg=1.0, low_cfg=None):
    """Guider for Two Models."""
    guiders = [
        host.guider(model, scale, conditioning(0.0), conditioning(-0.5))
        for model, scale in ((high, cfg), (low, low_cfg or cfg))
    ]
    return pack.run("LmsdExperts", high_noise=guiders[0], low_noise=guiders[1], boundary=boundary)[0]


def check_sides(high, low, boundary):
    assert high.heard and low.heard
    assert min(high.heard) >= boundary * (1 - 1e-6) and max(low.heard) < boundary


@pytest.mark.parametrize("kind", BOUNDARIES)
def test_one_schedule_for_two_models(pack, host, kind):
    """Teacher and student alike call each model on its side, and it is nearer than published solvers."""
    (high, low), boundary = experts(kind), BOUNDARIES[kind]
    schedule = distill(pack, high, low, boundary, nfe=4, trajectories=84, batch_size=8)
    check_sides(high, low, boundary)
    assert schedule.made_by["improved"] and schedule.made_for["boundary"] == boundary

    guider = two(pack, host, high, low, boundary)
    noise = RandomNoise(1000).generate_noise(empty(64, 4, 2, 2))

    def end(schedule):
        sampler, sigmas = pack.run("LmsdSampler", schedule=schedule)
        return host.sample(guider, noise, torch.zeros_like(noise), sampler, sigmas)

    def solved(**options):
        return end(pack.run("LmsdSolver", model=high, **options)[0])

    many = solved(solver="dpmpp_2m", steps=200)
    high.heard.clear(), low.heard.clear()
    ours = end(schedule)
    check_sides(high, low, boundary)
    assert len(high.heard) + len(low.heard) == 4
    rivals = [
        distance(solved(solver=solver, steps=4, rho=rho), many)
        for solver in ("euler", "dpmpp_2m", "ipndm_3")
        for rho in (7.0, 4.0)
    ]
    assert distance(ours, many) < 0.6 * min(rivals)
    assert distance(many, host.sample(host.guider(high), noise, 0 * noise, *whole(pack, high))) > 1


def whole(pack, model):
    return pack.run("LmsdSampler", schedule=pack.run("LmsdSolver", model=model, steps=50)[0])


def table(pack, model, boundary, steps=5, **about):
    """A published solver with history, as a schedule for two models."""
    schedule = pack.run("LmsdSolver", model=model, steps=steps, solver="dpmpp_3m")[0]
    return lmsd.Schedule.from_json(schedule.to_dict() | {"made_for": {"boundary": boundary, **about}})


@pytest.mark.parametrize("kind", BOUNDARIES)
def test_two_samplers_are_one_with_both_models(pack, host, kind):
    """To the last bit: the second one has the history of the first."""
    (high, low), boundary = experts(kind), BOUNDARIES[kind]
    schedule = table(pack, high, boundary)
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule)
    head, tail = pack.run("LmsdSplit", schedule=schedule, sigmas=sigmas)
    assert 1 < len(head) < len(sigmas) and head[-1] == tail[0] and len(head) + len(tail) == len(sigmas) + 1
    halves = run(host, [high, low], sampler, [head, tail])
    check_sides(high, low, boundary)
    assert host.texts == []
    latent = torch.full((2, 4, 3, 2), 0.6)
    guider = pack.run(
        "LmsdExperts", high_noise=host.guider(high), low_noise=host.guider(low), boundary=boundary
    )[0]
    assert torch.equal(host.sample(guider, noise_like(latent), latent, sampler, sigmas), halves)
    assert host.texts == []
    without = run(host, [high, low], sampler, [head, tail], between=lambda latent: latent + 1e-3)
    assert distance(without, halves) > 0.01


def test_a_split_at_another_step_is_said(pack, host):
    """On the node: a part that has steps of both models."""
    high, low = experts()
    schedule = table(pack, high, 0.875)
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule)
    head, tail = pack.run("LmsdSplit", schedule=schedule, sigmas=sigmas)
    at = len(head) - 1
    for cut in range(1, 5):
        host.texts.clear()
        run(host, [high, low], sampler, [sigmas[: cut + 1], sigmas[cut:]])
        said = " ".join(text for _, text in host.texts)
        assert (f"split SIGMAS at step {at}" in said) == (cut != at)
    host.texts.clear()
    run(host, [high], sampler, [sigmas])
    assert "has steps of both" in host.texts[-1][1]
    host.texts.clear()
    run(host, [high, high, low], sampler, [sigmas[:2], sigmas[1 : at + 1], tail])  # cut once more
    assert host.texts == []


def test_another_boundary_or_scale_is_said(pack, host):
    high, low = experts()
    schedule = table(pack, high, 0.875, guidance_scale=4.0, guidance_scale_2=3.0)
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule)
    noise = noise_like(torch.empty(1, 4, 2, 2))

    def said(guider, sampler=sampler, sigmas=sigmas):
        host.texts.clear()
        host.sample(guider, noise, torch.zeros_like(noise), sampler, sigmas)
        return " ".join(text for _, text in host.texts)

    assert said(two(pack, host, high, low, 0.875, 4.0, 3.0)) == ""
    assert "boundary 0.875; this run has two models with the boundary 0.9" in said(
        two(pack, host, high, low, 0.9, 4.0, 3.0)
    )
    assert "scale 3 of the low-noise model; this run has 4" in said(two(pack, host, high, low, 0.875, 4.0))
    assert "guidance scale 4; this run has 3" in said(two(pack, host, high, low, 0.875, 3.0, 3.0))
    _, tail = pack.run("LmsdSplit", schedule=schedule, sigmas=sigmas)
    assert "guidance scale 3; this run has 4" in said(host.guider(low, 4.0), sigmas=tail)
    assert "guidance" not in said(host.guider(low, 3.0), sigmas=tail)
    other = pack.run("LmsdSolver", model=high)[0]
    assert "made for one model" in said(
        two(pack, host, high, low, 0.875), *pack.run("LmsdSampler", schedule=other)
    )


def test_each_model_has_its_own_scale_while_distilling(pack, host):
    """By either node; what was fitted to is recorded."""
    high, low = experts()
    first = distill(pack, high, low, 0.875, cfg=3.0, cfg_low_noise=1.0)
    assert first.made_for["guidance_scale"] == 3 and first.made_for["guidance_scale_2"] == 1
    second = distill_guider(pack, two(pack, host, high, low, 0.875, 3.0, 1.0), RandomNoise(0))
    same = distill(pack, high, low, 0.875, cfg=3.0)
    assert first.to_dict()["nodes"] == second.to_dict()["nodes"] != same.to_dict()["nodes"]
    assert "guidance_scale_2" not in same.made_for


def test_the_node_says_where_to_split(pack, host):
    high, low = experts()
    schedule = distill(pack, high, low, 0.875, nfe=4, trajectories=84, batch_size=8)
    _, sigmas = pack.run("LmsdSampler", schedule=schedule)
    at = len(pack.run("LmsdSplit", schedule=schedule, sigmas=sigmas)[0]) - 1
    assert 0 < at < 4
    assert f"split SIGMAS at step {at}" in host.texts[-1][1] and "boundary 0.875" in host.texts[-1][1]


def test_a_schedule_may_need_one_of_them_only(pack, host):
    """Its first call may be below the boundary; then there is nothing to split."""
    high, low = experts()
    schedule = table(pack, high, 0.9995)
    below = schedule.to_dict()
    below["nodes"][0]["scale"] = 0.9
    below = lmsd.Schedule.from_json(below)
    _, sigmas = pack.run("LmsdSampler", schedule=schedule)
    assert len(pack.run("LmsdSplit", schedule=schedule, sigmas=sigmas)[0]) == 2
    with pytest.raises(ValueError, match="sample with the low-noise model alone"):
        pack.run("LmsdSplit", schedule=below, sigmas=sigmas)
    words = pack.submodule("experts").words
    assert "low-noise model alone" in words(below) and "at step 1" in words(schedule)
    turns = table(pack, high, 0.8).to_dict()
    turns["nodes"][1]["scale"] = 0.8
    turns = lmsd.Schedule.from_json(turns)
    assert "more than once" in words(turns)
    with pytest.raises(ValueError, match="Guider for Two Models"):
        pack.run("LmsdSplit", schedule=turns, sigmas=sigmas)


def test_a_range_of_scales_is_for_both(pack, host):
    high, low = experts()
    schedule = distill(pack, high, low, 0.875, cfg=2.0, cfg_to=6.0)
    assert schedule.made_for["guidance_range"] == [2, 6]
    with pytest.raises(ValueError, match="same cfg for both"):
        distill(pack, high, low, 0.875, cfg=2.0, cfg_to=6.0, cfg_low_noise=1.0)
    guider = two(pack, host, high, low, 0.875, 2.0)
    distill_guider(pack, guider, RandomNoise(0), cfg_to=6.0)
    assert guider.high.cfg == guider.low.cfg == 2


def test_a_run_is_not_taken_for_one_with_another_second_model(pack, host):
    """Nor with another boundary: what was kept of a run is then of no use."""
    high, low = experts()
    options = {"nfe": 3, "minutes": 0.0}
    seeds = {
        distill(pack, high, second, boundary, **options).made_by["seeds"]
        for second, boundary in ((low, 0.875), (expert(moved=1.0), 0.875), (low, 0.8))
    }
    assert len(seeds) == 3


def test_what_cannot_share_a_trajectory_is_refused(pack, host):
    high, low = experts()
    refused = {
        "process is flow and ve": (expert("edm"), 0.875),
        "boundary is 1;": (low, 1.0),
        "boundary is 0;": (low, 0.0),
    }
    for words, (second, boundary) in refused.items():
        with pytest.raises(ValueError, match=words):
            distill(pack, high, second, boundary)
    assert high.heard == low.heard == []
    guider = host.guider(high)
    with pytest.raises(ValueError, match="both guiders are one"):
        pack.run("LmsdExperts", high_noise=guider, low_noise=guider, boundary=0.875)
    schedule = pack.run("LmsdSolver", model=high)[0]
    with pytest.raises(ValueError, match="for one model"):
        pack.run("LmsdSplit", schedule=schedule, sigmas=torch.linspace(1, 0, 6))


def test_models_of_two_families_and_shifts(pack, host):
    """A base and a refiner: neither is refused when it samples its part."""
    high, low = expert(name="Base", shift=8.0), expert(moved=1.5, name="Refiner", shift=5.0)
    schedule = distill(pack, high, low, 0.875, nfe=4, trajectories=84, batch_size=8)
    assert "model" not in schedule.made_for
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule)
    parts = pack.run("LmsdSplit", schedule=schedule, sigmas=sigmas)
    host.texts.clear()
    run(host, [high, low], sampler, parts, torch.zeros(2, 4, 2, 2))
    assert host.texts == []


def test_prompts_take_turns_with_both(pack, host):
    high, low = experts()
    labels = {"high": [], "low": []}
    for model, name in ((high, "high"), (low, "low")):
        inner = model.model.apply_model

        def apply_model(x, sigma, label, inner=inner, heard=labels[name]):
            heard.append(tuple(label.tolist()))
            return inner(x, sigma, label)

        model.model.apply_model = apply_model
    guider = pack.run(
        "LmsdExperts",
        high_noise=host.guider(high, 1.0, conditioning(0.0, 0.5, 1.0)),
        low_noise=host.guider(low, 1.0, conditioning(0.0, 0.5, 1.0)),
        boundary=0.875,
    )[0]
    schedule = distill_guider(pack, guider, RandomNoise(0), batch_size=2)
    assert set(labels["high"]) == set(labels["low"]) == {(0.0, 0.5), (1.0, 0.0), (0.5, 1.0)}
    assert "3 prompts in turn" in schedule.made_by["seeds"]


def test_a_mask_and_the_hosts_own_samplers(pack, host):
    high, low = experts()
    known, mask = noise_like(torch.empty(2, 4, 4, 4), 5), torch.zeros(2, 4, 4, 4)
    mask[..., 2:] = 1
    guider = two(pack, host, high, low, 0.875)
    own = host.modules["comfy.samplers"].sampler_object("euler")
    ours, sigmas = pack.run("LmsdSampler", schedule=table(pack, high, 0.875))
    for sampler in (own, ours):
        out = host.sample(guider, noise_like(known), known, sampler, sigmas, denoise_mask=mask)
        torch.testing.assert_close(out[..., :2], known[..., :2], rtol=0, atol=1e-5)
        check_sides(high, low, 0.875)


def test_caches_of_both_models(pack, host):
    """Off while distilling, on while sampling."""
    high, low = experts()
    for model in (high, low):
        model.model_options["transformer_options"] = {"easycache": fake_comfy.LazyCache(0.5)}
    plain = distill(pack, *experts(), 0.875)
    cached = distill(pack, high, low, 0.875, name="cached")
    assert cached.to_dict()["nodes"] == plain.to_dict()["nodes"]
    sampler, sigmas = pack.run("LmsdSampler", schedule=table(pack, high, 0.875, steps=12))
    high.heard.clear(), low.heard.clear()
    noise = noise_like(torch.empty(1, 4, 2, 2))
    host.sample(two(pack, host, high, low, 0.875), noise, 0 * noise, sampler, sigmas)
    assert 0 < len(high.heard) + len(low.heard) < 12


@pytest.mark.parametrize("host", [Exception, BaseException], indirect=True)
def test_an_interrupt_in_the_second_model(pack, host):
    high, low = experts()

    def pressed(calls):
        if calls == 2:
            host.interrupt()
            host.throw_if_interrupted()

    low.model.on_call = pressed
    sampler, sigmas = pack.run("LmsdSampler", schedule=table(pack, high, 0.875))
    noise = noise_like(torch.empty(1, 4, 2, 2))
    guider = two(pack, host, high, low, 0.875)
    with pytest.raises(host.Interrupt):
        host.sample(guider, noise, 0 * noise, sampler, sigmas)
    assert guider.told_low is None
    host.sample(guider, noise, 0 * noise, sampler, sigmas)  # and again
