"""The entry in KSampler's list: only for those who ask, in place, once; it finds a file or says why not."""

import json
import os
import re
from pathlib import Path

import lmsd
import pytest
import torch
from fake_comfy import KSAMPLER, Model, RandomNoise, sample_euler

PACK = Path(__file__).resolve().parents[1]


def lists(host):
    samplers = host.modules["comfy.samplers"]
    return samplers.KSAMPLER_NAMES, samplers.SAMPLER_NAMES, samplers.KSampler.SAMPLERS


def settings(host, text):
    path = host.user / "default" / "comfy.settings.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "null",
        "[]",
        "{}",
        '{"lmsd.KSampler": false}',
        '{"lmsd.KSampler": "true"}',
        '{"lmsd.KSampler": 1}',
    ],
)
def test_lists_are_untouched_unless_asked_for(host, load_pack, text):
    """So packs whose nodes return a copy of the list stay connectable: the host compares types."""
    if text is not None:
        settings(host, text)
    others_copies = [list(names) for names in lists(host)]
    objects = [id(names) for names in lists(host)]
    load_pack()
    assert [list(names) for names in lists(host)] == others_copies
    assert [id(names) for names in lists(host)] == objects
    assert not hasattr(host.modules["comfy.k_diffusion.sampling"], "sample_lmsd")


@pytest.fixture
def asked(host, load_pack):
    settings(host, json.dumps({"Comfy.Other": 3, "lmsd.KSampler": True}))
    return load_pack()


def test_it_is_added_in_place_and_once(host, load_pack):
    """Into the very lists that nodes and other packs hold; importing again adds nothing."""
    held = lists(host)
    before = [list(names) for names in held]
    settings(host, '{"lmsd.KSampler": true}')
    for _ in range(2):
        load_pack()
        assert all(a is b for a, b in zip(held, lists(host), strict=True))
        assert [list(names) for names in held] == [[*names, "lmsd"] for names in before]


def saved(pack, host, name, age, about=None, **options):
    """A handcrafted schedule as a file that is `age` seconds old, made for `about`."""
    schedule = pack.run("LmsdSolver", **options)[0]
    made = options["model"].model
    about = {"model": type(made.model_config).__name__} | (about or {})
    schedule = lmsd.Schedule.from_json(schedule.to_dict() | {"made_for": about, "name": name})
    path = host.models / "lmsd_schedules" / f"{name}.json"
    schedule.save(path)
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))
    return schedule


def run(host, model, steps, cfg=1.0, latent=None, add_noise=True, **options):
    latent = torch.zeros(2, 4, 2, 2) if latent is None else latent
    noise = RandomNoise(1).generate_noise({"samples": latent}) * add_noise
    return host.ksampler(host.guider(model, cfg), noise, latent, "lmsd", steps, **options)


def taken(host):
    """The file that the node named last."""
    node, text = host.texts[-1]
    assert node == "sample"
    return text.split(".json, ")[0]


def by_node(pack, host, model, schedule):
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule)
    latent = torch.zeros(2, 4, 2, 2)
    noise = RandomNoise(1).generate_noise({"samples": latent})
    return host.sample(host.guider(model), noise, latent, sampler, sigmas)


def test_of_files_that_fit_alike_the_newest_is_taken(asked, host):
    model, other = Model("edm"), Model("edm", name="SDXL")
    newest = saved(asked, host, "newest", 10_000, model=model, steps=4, rho=5.0)
    saved(asked, host, "older", 20_000, model=model, steps=4)
    saved(asked, host, "more steps", 5_000, model=model, steps=6)
    saved(asked, host, "other family", 0, model=other, steps=4)
    saved(asked, host, "other process", 0, model=Model("flow"), steps=4)
    (host.models / "lmsd_schedules" / "broken.json").write_text("{")
    torch.testing.assert_close(run(host, model, 4), by_node(asked, host, model, newest))
    assert model.model.calls == 8
    saved(asked, host, "newer", 1_000, model=model, steps=4, solver="euler")
    assert not torch.equal(run(host, model, 4), by_node(asked, host, model, newest))


def test_the_callback_counts_the_hosts_steps(asked, host):
    model, seen = Model("flow"), []
    saved(asked, host, "four", 0, model=model, steps=4)
    run(host, model, 4, callback=lambda *step: seen.append((step[0], step[3])))
    assert seen == [(i, 4) for i in range(4)]


SCALES = {
    "3 of 1, 3 and 8": (3.0, "made for 3"),
    "1 of 1, 3 and 8": (1.0, "made for 1"),
    "2.9 is nearest to 3": (2.9, "made for 3"),
    "6 is in a range": (6.0, "made for 5 to 7"),
}


@pytest.mark.parametrize(("scale", "file"), SCALES.values(), ids=SCALES)
def test_the_guidance_scale_decides_before_age(asked, host, scale, file):
    """The node names the file, and what differs all the same."""
    model = Model("edm")
    ages = {"made for 8": 1, "made for 1": 2, "unknown": 3, "made for 3": 4}
    for name, age in ages.items():
        about = {"guidance_scale": float(name[-1])} if "for" in name else {}
        saved(asked, host, name, 1000 * age, about, model=model, steps=4)
    saved(asked, host, "made for 5 to 7", 9000, {"guidance_range": [5.0, 7.0]}, model=model, steps=4)
    run(host, model, 4, scale)
    assert taken(host) == file
    assert ("made for guidance scale 3; this run has 2.9" in host.texts[-1][1]) == (scale == 2.9)


def test_then_size_and_shift_decide(asked, host):
    model = Model("flow")
    saved(asked, host, "size", 3000, {"latent_shape": [4, 2, 2], "shift": 3.0}, model=model, steps=4)
    saved(asked, host, "other size", 2000, {"latent_shape": [4, 9, 9], "shift": 3.0}, model=model, steps=4)
    saved(asked, host, "other shift", 1000, {"latent_shape": [4, 2, 2], "shift": 1.0}, model=model, steps=4)
    run(host, model, 4)
    assert taken(host) == "size"


@pytest.mark.parametrize("kind", ["eps", "edm", "flow"])
@pytest.mark.parametrize("denoise", [0.3, 0.5, 0.8])
def test_below_denoise_1_a_family_has_the_steps_asked_for(asked, host, kind, denoise):
    model = Model(kind)
    for steps in range(3, 25):
        saved(asked, host, f"{steps:02d}", 100 * steps, model=model, steps=steps, grid="auto")
    run(host, model, 5, denoise=denoise)
    assert model.model.calls == 5 and int(taken(host)) > 5


def test_the_bar_ends_full_where_there_are_fewer_steps(asked, host):
    model, seen = Model("edm"), []
    saved(asked, host, "five", 0, model=model, steps=5)
    run(host, model, 5, denoise=0.5, callback=lambda *step: seen.append((step[0], step[3])))
    assert 1 < len(seen) == model.model.calls < 5
    assert host.texts[-1][1].startswith(f"five.json, {len(seen)} steps of the 5 asked for")
    assert seen[-1] == (4, 5) and seen == sorted(set(seen))


@pytest.mark.parametrize("kind", ["eps", "edm", "flow"])
def test_noise_left_over_for_another_sampler(asked, host, kind):
    """KSampler (Advanced) to step 4 and from step 4 of 8: as near as one run, in as many steps at most."""
    model = Model(kind)
    for steps in range(2, 17):
        saved(asked, host, f"{steps:02d}", steps, model=model, steps=steps, solver="dpmpp_2m")
    whole = run(host, model, 8)
    assert model.model.calls == 8
    head = run(host, model, 8, cut=slice(0, 5))
    assert 8 < model.model.calls <= 12
    tail = run(host, model, 8, cut=slice(4, None), latent=head, add_noise=False)
    assert 12 < model.model.calls <= 16
    many = by_node(asked, host, model, asked.run("LmsdSolver", model=model, solver="dpmpp_3m", steps=100)[0])
    assert (tail - many).norm() < 1.3 * (whole - many).norm()
    assert (tail - many).norm() < 0.6 * (head - many).norm()


@pytest.mark.parametrize("kind", ["eps", "edm", "flow"])
def test_denoise_below_1(asked, host, kind):
    """From the host's own level, in the host's steps at most."""
    model = Model(kind)
    saved(asked, host, "eight", 0, model=model, steps=8)
    heard = []
    run(host, model, 6, denoise=0.6, callback=lambda *step: heard.append(step[2]))
    assert 2 <= len(heard) == model.model.calls <= 6


def test_a_mask_keeps_the_known_region(asked, host):
    model = Model("edm")
    saved(asked, host, "four", 0, model=model, steps=4, lower_order_final=False)
    file = lmsd.Schedule.load(host.models / "lmsd_schedules" / "four.json").to_dict()
    file["nodes"][-1]["weights"] = [1.5, -0.47]
    lmsd.Schedule.from_json(file).save(host.models / "lmsd_schedules" / "four.json")
    known, mask = torch.full((2, 4, 2, 2), 0.7), torch.zeros(2, 4, 2, 2)
    mask[..., 1:] = 1
    out = run(host, model, 4, latent=known, denoise_mask=mask)
    assert torch.equal(out[..., :1], known[..., :1]) and not torch.equal(out, known)


def test_patches_find_the_levels_of_the_calls(asked, host):
    model = Model("edm")
    saved(asked, host, "four", 0, model=model, steps=4)
    model.model_options["context_handler"] = "16 frames"
    assert run(host, model, 4, latent=torch.zeros(1, 4, 2, 2)).isfinite().all() and model.model.calls == 4


def test_without_a_file_it_says_why(asked, host):
    model = Model("edm")
    with pytest.raises(ValueError, match="no file in models/lmsd_schedules .* 4 steps. There is none"):
        run(host, model, 4)
    saved(asked, host, "six", 0, model=model, steps=6)
    saved(asked, host, "xl", 0, model=Model("edm", name="SDXL"), steps=4)
    (host.models / "lmsd_schedules" / "broken.json").write_text("{")
    with pytest.raises(
        ValueError, match="no file in models/lmsd_schedules fits this model and 4 steps"
    ) as raised:
        run(host, model, 4)
    for words in ("six.json: the host is set to 4 steps", "xl.json: .*SDXL", "broken.json: "):
        assert raised.match(words)
    assert model.model.calls == 0


def test_a_part_that_takes_more_steps_is_no_fit(asked, host):
    model = Model("edm")
    saved(asked, host, "many", 0, model=model, steps=20)
    with pytest.raises(ValueError, match="many.json: takes more steps"):
        run(host, model, 2, denoise=0.5)


def test_lists_without_a_step_are_survived(asked, host):
    sampler = host.modules["comfy.samplers"].sampler_object("lmsd")
    latent = torch.full((1, 4, 2, 2), 0.7)
    for sigmas in ([0.0], [80.0]):
        out = host.sample(host.guider(Model("edm")), latent, latent, sampler, torch.tensor(sigmas))
        assert out.isfinite().all()


def test_the_guidance_is_watched(asked, host, caplog):
    model = Model("edm")
    schedule = saved(asked, host, "four", 0, model=model, steps=4)
    file = schedule.to_dict() | {"made_for": {"guidance_scale": 5.0}}
    lmsd.Schedule.from_json(file).save(host.models / "lmsd_schedules" / "four.json")
    run(host, model, 4)
    assert "guidance scale 5; this run has 1" in caplog.text


def test_the_hosts_own_samplers_still_work(asked, host):
    latent = torch.zeros(1, 4, 2, 2)
    out = host.ksampler(host.guider(Model("edm")), torch.ones(1, 4, 2, 2), latent, "euler", 4)
    assert out.isfinite().all() and isinstance(
        host.modules["comfy.samplers"].sampler_object("euler"), KSAMPLER
    )
    assert host.modules["comfy.k_diffusion.sampling"].sample_euler is sample_euler


def snippets():
    """The JSON that the README gives for other programs."""
    text = (PACK / "README.md").read_text("utf-8").split("## In Krita AI Diffusion and SwarmUI")[1]
    krita, swarm = map(json.loads, re.findall(r"```json\n(.*?)```", text, re.DOTALL))
    (preset,) = krita.values()
    return {"Krita": (preset, preset["cfg"]), "SwarmUI": (swarm, swarm["cfgscale"])}


@pytest.mark.parametrize("program", ["Krita", "SwarmUI"])
def test_what_the_readme_gives_for_other_programs(asked, host, program):
    """A sampler that is in the list then, and the steps of a file; the file for their guidance is taken."""
    sent, cfg = snippets()[program]
    assert sent["sampler"] in host.modules["comfy.samplers"].KSAMPLER_NAMES and sent["scheduler"] == "simple"
    model = Model("eps")
    for scale in (1.0, cfg):
        about = {"guidance_scale": scale}
        saved(asked, host, f"cfg {scale:g}", scale, about, model=model, steps=sent["steps"])
    run(host, model, sent["steps"], cfg)
    assert taken(host) == f"cfg {cfg:g}" and model.model.calls == 2 * sent["steps"]
