"""Distilling in the host: what it gains, what it leaves, what it shows, and how it stops."""

import contextlib
import logging
import re
import time
from pathlib import Path

import fake_comfy
import lmsd
import pytest
import torch
from fake_comfy import Model, RandomNoise, conditioning
from full_disk import files_end_at, on_linux

PACK = Path(__file__).resolve().parents[1]
QUICK = {"nfe": 2, "trajectories": 16, "batch_size": 16, "compare": False, "name": "toy"}


def empty(*shape):
    return {"samples": torch.zeros(shape or (1, 4, 2, 2))}


def folder(host):
    return host.models / "lmsd_schedules"


def files(host):
    """The schedules."""
    return sorted(path.name for path in folder(host).iterdir() if path.suffix == ".json")


def left(host):
    """What is there besides."""
    return sorted(path.name for path in folder(host).iterdir() if path.suffix != ".json")


def distill(pack, model, prompt=None, latent=None, cfg=1.0, seed=0, **options):
    """The node of MODEL and conditioning."""
    return pack.run(
        "LmsdDistill",
        model=model,
        positive=prompt or conditioning(0.0),
        negative=conditioning(-0.5),
        latent_image=latent or empty(),
        cfg=cfg,
        first_seed=seed,
        node_id="7",
        **{**QUICK, **options},
    )[0]


def distill_guider(pack, guider, noise, latent=None, **options):
    """The node of GUIDER and NOISE."""
    inputs = {"guider": guider, "noise": noise, "latent_image": latent or empty(), "node_id": "7"}
    return pack.run("LmsdDistillGuider", **inputs, **{**QUICK, **options})[0]


def end(pack, host, model, schedule, cfg=1.0, prompt=None, shape=(32, 4, 2, 2), seed=1000):
    """Images of seeds that no distillation saw."""
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule, model=model)
    latent = torch.zeros(shape)
    noise = RandomNoise(seed).generate_noise({"samples": latent})
    guider = host.guider(model, cfg, prompt, conditioning(-0.5))
    return host.sample(guider, noise, latent, sampler, sigmas)


def distance(a, b):
    return float((a - b).flatten(1).norm(dim=1).mean())


# ---- what comes out


@pytest.mark.parametrize("cfg", [1.0, 2.0])
@pytest.mark.parametrize("kind", ["eps", "v", "edm", "flow"])
def test_it_beats_published_solvers_on_seeds_it_has_not_seen(pack, host, kind, cfg, caplog):
    """And sampling with it, through the host, says nothing against it."""
    model = Model(kind)
    with caplog.at_level(logging.WARNING):
        schedule = distill(pack, model, cfg=cfg, nfe=3, trajectories=84, batch_size=8)
        ours = end(pack, host, model, schedule, cfg, shape=(64, 4, 2, 2))
    assert caplog.records == []
    assert schedule.nfe == 3 and schedule.made_by["improved"]

    def handcrafted(**options):
        solved = pack.run("LmsdSolver", model=model, **options)[0]
        return end(pack, host, model, solved, cfg, shape=(64, 4, 2, 2))

    many = handcrafted(solver="dpmpp_3m", steps=100)
    rivals = [
        distance(handcrafted(solver=solver, steps=3, rho=rho), many)
        for solver in ("euler", "dpmpp_2m", "ipndm_3")
        for rho in (7.0, 4.0)
    ]
    assert distance(ours, many) < 0.6 * min(rivals)


def test_both_nodes_do_the_same(pack, host):
    model = Model("edm")
    guider = host.guider(model, 2.0, conditioning(0.0), conditioning(-0.5))
    by_guider = distill_guider(pack, guider, RandomNoise(5))
    by_model = distill(pack, model, cfg=2.0, seed=5)
    assert by_guider.to_dict()["nodes"] == by_model.to_dict()["nodes"]
    assert files(host) == ["toy (2) nfe02.json", "toy nfe02.json"]


def test_the_seed_decides(pack, host):
    first, again, other = (distill(pack, Model("edm"), seed=seed) for seed in (4, 4, 5))
    assert first.to_dict()["nodes"] == again.to_dict()["nodes"] != other.to_dict()["nodes"]
    assert first.made_by["distance"] == again.made_by["distance"]
    assert first.made_by["seeds"].startswith("Seeded from seed 4, 16 images a batch, model and conditions ")
    assert first.made_by["seeds"] == again.made_by["seeds"]


def test_the_largest_seed_wraps_around(pack, host):
    assert distill(pack, Model("edm"), seed=0xFFFFFFFFFFFFFFFF).made_by["improved"]


@pytest.mark.parametrize(
    ("kind", "about"),
    [
        ("eps", {"snapped": True, "sigma_max": pytest.approx(14.6146, rel=1e-4)}),
        ("edm", {"snapped": False, "sigma_min": pytest.approx(0.002), "sigma_max": pytest.approx(80)}),
        ("flow", {"snapped": False, "shift": 3.0, "sigma_max": 1.0}),
    ],
)
def test_the_file_says_what_it_was_made_for(pack, host, kind, about):
    made = distill(pack, Model(kind, name="SD15"), cfg=2.5, nfe=3).made_for
    assert made["model"] == "SD15" and made["guidance_scale"] == 2.5 and made["latent_shape"] == [4, 2, 2]
    assert {name: made[name] for name in about} == about
    assert ("shift" in made) == (kind == "flow")


def test_a_range_of_guidance_scales(pack, host):
    guider = host.guider(Model("eps"), 2.0)
    schedule = distill_guider(pack, guider, RandomNoise(0), cfg_to=6.0)
    assert schedule.made_for["guidance_range"] == [2, 6] and "cfg [2.0, 6.0, " in schedule.made_by["seeds"]
    assert guider.cfg == 2
    with pytest.raises(ValueError, match="cfg_to is 1"):
        distill_guider(pack, guider, RandomNoise(0), cfg_to=1.0)


def test_the_cfg_of_each_step_may_be_fitted(pack, host):
    model = Model("edm")
    schedule = distill(pack, model, cfg=4.0, fit_guidance=True, compare=True, trajectories=32)
    assert schedule.is_guided and schedule.made_for["guidance_scale"] == 4
    guider = host.guider(model, 4.0)
    distill_guider(pack, guider, RandomNoise(0), fit_guidance=True)
    assert guider.cfg == 4
    for guider in (host.guider(model, 1.0), host.guider(model, 4.0)):
        if guider.cfg != 1:
            guider.cfg1 = 4.0  # as DualCFGGuider has
        with pytest.raises(ValueError, match="fit_guidance needs one model, and a guider with a cfg"):
            distill_guider(pack, guider, RandomNoise(0), fit_guidance=True)


def test_guidance_in_the_conditioning_is_recorded(pack, host):
    """Flux's, at cfg 1; with two scales none is."""
    model = Model("flow")
    assert distill(pack, model, conditioning(0.0, guidance=3.5)).made_for["guidance_scale"] == 3.5
    guider = host.guider(model, 2.0)
    guider.cfg1 = 4.0
    assert "guidance_scale" not in distill_guider(pack, guider, RandomNoise(0)).made_for


def test_the_patched_shift_is_fitted_and_recorded(pack, host):
    model = Model("flow")
    plain = distill(pack, model)
    model.add_object_patch("model_sampling", fake_comfy.sampling_of("flow", shift=1.5))
    assert distill(pack, model).made_for["shift"] == 1.5 and plain.made_for["shift"] == 3.0
    host.texts.clear()
    end(pack, host, model, plain, cfg=1.0, shape=(1, 4, 2, 2))
    assert host.texts == [("sample", "the schedule was made for shift 3; this run has 1.5")]


def test_a_family_and_its_files(pack, host):
    """One for each number of steps, under the name given and nowhere else; numbered if already there."""

    def there():
        """But for what Python, pytest and ruff keep beside it, of other processes too."""
        paths = [path.relative_to(PACK) for path in PACK.rglob("*")]
        return {path for path in paths if not any(name.startswith((".", "__")) for name in path.parts[:-1])}

    before = there()
    schedule = distill(pack, Model("edm"), nfe=3, nfe_from=1, name="a/b: my model")
    assert schedule.nfe == 3
    assert files(host) == [f"a_b_ my model nfe0{nfe}.json" for nfe in (1, 2, 3)]
    for nfe, name in zip((1, 2, 3), files(host), strict=True):
        loaded = pack.run("LmsdLoadSchedule", schedule=name)[0]
        assert loaded.nfe == nfe and loaded.name.startswith("a/b: my model: ")
        assert nfe < 3 or loaded == schedule
    assert distill(pack, Model("edm"), nfe=3, name="a/b: my model").nfe == 3
    assert files(host)[0] == "a_b_ my model (2) nfe03.json" and len(files(host)) == 4 and left(host) == []
    assert before == there()
    assert not [path for path in host.models.parent.rglob("*.json") if path.parent != folder(host)]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("../../escape", "_.._escape nfe03.json"),
        ("..", "schedule nfe03.json"),
        ("", "schedule nfe03.json"),
        ("a\0b\nc", "a_b_c nfe03.json"),
        ("SDXL, cfg 7.5 @ 1024", "SDXL, cfg 7.5 @ 1024 nfe03.json"),
    ],
)
def test_any_name_is_the_name_of_a_file_in_the_folder(pack, host, name, file):
    assert pack.submodule("host").new_files(name, [3]) == {3: folder(host) / file}


def test_names_of_many_bytes(pack, host):
    """File systems count bytes, at most 255; these letters take three each."""
    schedule = distill(pack, Model("edm"), name="\u50cf\u7d20" * 60)
    (only,) = files(host)
    assert pack.run("LmsdLoadSchedule", schedule=only) == (schedule,)


def test_a_folder_that_cannot_be_written_is_found_at_the_start(pack, host):
    """Not after half an hour."""
    model = Model("edm")
    folder(host).rmdir()
    folder(host).write_text("in the way")
    with pytest.raises(OSError):
        distill(pack, model)
    assert model.model.calls == 0


def full_disk(monkeypatch, full=lambda path: True):
    """Saving fails as it does there; the library's own words."""
    save = lmsd.Schedule.save

    def failing(self, path):
        if full(path):
            raise lmsd.Error(f"{path}: No space left on device (os error 28)", lmsd.Status.IO)
        save(self, path)

    monkeypatch.setattr(lmsd.Schedule, "save", failing)


@pytest.mark.parametrize("compare", [False, True])
def test_a_full_disk_loses_no_schedule(pack, host, monkeypatch, caplog, compare):
    """It goes downstream, the node says what could not be written, and the log has its text."""
    full_disk(monkeypatch)
    schedule = distill(pack, Model("edm"), compare=compare)
    assert schedule.made_by["improved"] and files(host) == [] and left(host) == ["toy checkpoint.jsonl"]
    last = host.texts[-1][1]
    assert "NOT SAVED: toy nfe02.json" in last and "No space left" in last and "times nearer" in last
    assert schedule.to_json() in caplog.text
    assert end(pack, host, Model("edm"), schedule).isfinite().all()


@on_linux
def test_a_disk_that_fills_while_it_distills(pack, host):
    """Neither the fit ends nor anything is lost; the node says so as long as it is so."""
    model, want = Model("edm"), distill(pack, Model("edm"), name="whole", **FIT)
    host.texts.clear()
    with files_end_at(8000):
        schedule = distill(pack, model, **FIT)
    words = [text for _, text in host.texts]
    told = ["the disk takes no more" in text for text in words[:-1] if not text.startswith("plan")]
    assert not told[0] and told[-1] and told == sorted(told)
    assert any(AT["fit"](text) and "the disk takes no more" in text for text in words)
    assert "the disk takes no more" not in words[-1] and "times nearer" in words[-1]
    assert schedule.to_dict()["nodes"] == want.to_dict()["nodes"] and left(host) == []


@on_linux
def test_a_disk_that_is_full_for_a_while_keeps_a_checkpoint(pack, host):
    """An interrupt after that is gone on from as ever."""
    model = Model("edm")
    want = distill(pack, model, name="whole", **FIT)
    calls = model.model.calls
    model, space, said = Model("edm"), contextlib.ExitStack(), []

    def on_call(calls):
        said.extend(["the disk takes no more" in host.texts[-1][1]] if host.texts else [])
        if said.count(True) == 500:
            space.close()
        if said.count(True) > 500 and not any(said[-30:]):
            host.interrupt()

    model.model.on_call = on_call
    host.texts.clear()
    with space, pytest.raises(host.Interrupt):
        space.enter_context(files_end_at(8000))
        distill(pack, model, **FIT)
    model.model.on_call, first = lambda calls: None, model.model.calls
    got = distill(pack, model, **FIT)
    assert got.to_dict()["nodes"] == want.to_dict()["nodes"]
    assert model.model.calls - first < calls - 0.5 * first


@on_linux
def test_a_disk_that_is_full_at_the_start_is_found_there(pack, host):
    """Before the work; with the words that the same node goes on when there is space."""
    model = Model("edm")
    with files_end_at(100), pytest.raises(lmsd.Error, match="with space on the disk the same node goes on"):
        distill(pack, model)
    assert model.model.calls == 1  # which tells what model it is
    assert distill(pack, model).made_by["improved"]


def test_what_fits_on_the_disk_is_saved(pack, host, monkeypatch):
    full_disk(monkeypatch, lambda path: "nfe01" in path.name)
    schedule = distill(pack, Model("edm"), nfe_from=1)
    assert files(host) == ["toy nfe02.json"] and schedule.nfe == 2
    assert "NOT SAVED: toy nfe01.json (" in host.texts[-1][1]


def test_an_interrupt_on_a_full_disk_leaves_the_text_in_the_log(pack, host, monkeypatch, caplog):
    full_disk(monkeypatch)
    model = Model("edm")
    model.model.on_call = lambda calls: any(AT["fit"](text) for _, text in host.texts) and host.interrupt()
    with pytest.raises(host.Interrupt):
        distill(pack, model)
    assert '"nodes"' in caplog.text and files(host) == [] and left(host) == ["toy checkpoint.jsonl"]


LATENTS = {"video": (1, 4, 2, 2, 2), "of 2 channels": (1, 2, 2, 2), "a batch of 3": (3, 4, 2, 2)}


@pytest.mark.parametrize("shape", LATENTS.values(), ids=LATENTS)
def test_latents_of_any_shape(pack, host, shape):
    """Empty ones get the model's channels; of a batch the first counts."""
    schedule = distill(pack, Model("edm"), latent=empty(*shape), trajectories=84, batch_size=4)
    assert schedule.made_for["latent_shape"] == [4, *shape[2:]] and schedule.made_by["improved"]


@pytest.mark.parametrize("node", [distill, distill_guider])
def test_nested_latents(pack, host, node):
    """Video and audio: one flat row for the sampler."""
    latent = {"samples": fake_comfy.NestedTensor([torch.zeros(1, 4, 2, 2, 2), torch.zeros(1, 2, 5)])}
    model = Model("flow")
    if node is distill:
        schedule = distill(pack, model, latent=latent)
    else:
        schedule = distill_guider(pack, host.guider(model), RandomNoise(0), latent)
    assert schedule.made_for["latent_shape"] == [1, 42] and schedule.made_by["improved"]
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule, model=model)
    noise = RandomNoise(9).generate_noise(latent)
    out = host.sample(host.guider(model), noise, latent["samples"], sampler, sigmas)
    assert [one.shape for one in out.unbind()] == [(1, 4, 2, 2, 2), (1, 2, 5)]


def labels_heard(model):
    """The prompts of every call of the network, as it is made."""
    seen, network = [], model.model.network

    def listening(scaled, timestep, label):
        seen.append([round(one, 3) for one in label.tolist()])
        return network(scaled, timestep, label)

    model.model.network = listening
    return seen


def test_image_i_of_a_batch_gets_prompt_i_and_the_next_batch_goes_on(pack, host):
    model = Model("edm")
    seen = labels_heard(model)
    schedule = distill(pack, model, conditioning(0.5, -0.5, 0.25), batch_size=4, trajectories=8)
    turns = [[0.5, -0.5, 0.25, 0.5], [-0.5, 0.25, 0.5, -0.5], [0.25, 0.5, -0.5, 0.25]]
    assert seen[0] == turns[0] and {tuple(labels) for labels in seen} == set(map(tuple, turns))
    assert schedule.made_by["improved"] and "3 prompts in turn" in schedule.made_by["seeds"]


@pytest.mark.parametrize(("batch_size", "memory"), [(4, 99), (1, 99), (16, 5)], ids=["4", "1", "16, halved"])
def test_every_prompt_is_used(pack, host, batch_size, memory):
    """However few images go into a call; the node says how many were fitted to and how many decided."""
    model = hungry(memory)
    seen = labels_heard(model)
    labels = [round(0.1 * i, 3) for i in range(10)]
    schedule = distill(pack, model, conditioning(*labels), batch_size=batch_size, trajectories=12)
    assert {label for call in seen for label in call} == set(labels)
    made = schedule.made_by
    assert f"of 10 prompts {min(10, made['trajectories'])} were fitted to, 10 decided" in host.texts[-1][1]
    assert made["trajectories"] >= 10 and made["held_out"] >= 10


def test_prompts_that_had_no_part_are_not_counted(pack, host):
    labels = [0.01 * i for i in range(60)]
    schedule = distill(pack, Model("edm"), conditioning(*labels), batch_size=4, trajectories=12)
    made = schedule.made_by
    words = f"of 60 prompts {made['trajectories']} were fitted to, {made['held_out']} decided"
    assert words in host.texts[-1][1] and made["held_out"] < 60


def test_one_prompt_is_no_news(pack, host):
    assert "prompt" not in distill(pack, Model("edm")).made_by["seeds"]
    assert "prompt" not in host.texts[-1][1]


def test_a_prompt_beyond_the_first_batch_makes_another_run(pack, host):
    """A checkpoint is not gone on from where any of them changed."""
    first, other = (
        distill(pack, Model("edm"), conditioning(0.0, 0.1, last), batch_size=2, trajectories=4)
        for last in (0.2, 0.3)
    )
    assert first.made_by["seeds"] != other.made_by["seeds"]


def test_the_image_below_the_noise_is_the_hosts(pack, host):
    """Not only empty latents: x_T = noise + the first latent given, in the model's scale."""
    model = Model("edm")
    latent = {"samples": torch.tensor([100.0, 900.0]).reshape(2, 1, 1, 1).repeat(1, 4, 2, 2)}
    seen = []
    apply = model.model.apply_model
    model.model.apply_model = lambda x, sigma, label: seen.append((x, sigma)) or apply(x, sigma, label)
    distill(pack, model, latent=latent, seed=3)
    x, sigma = seen[0]
    noise = torch.randn(16, 4, 2, 2, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(x, noise * (1 + 80.0**2) ** 0.5 + 50.0, rtol=1e-5, atol=1e-3)
    assert sigma.tolist() == pytest.approx([80.0] * 16)


# ---- what is refused


def test_noise_that_no_seed_changes_is_refused(pack, host):
    class Seedless:
        def generate_noise(self, latent):
            return torch.ones_like(latent["samples"])

    class Same(Seedless):
        seed = 0

    model = Model("edm")
    for noise, words in ((Seedless(), "has no seed"), (Same(), "the same for every seed")):
        with pytest.raises(ValueError, match=words):
            distill_guider(pack, host.guider(model), noise)
    assert model.model.calls == 0 and files(host) == []


PATCHES = {
    "context windows": {"context_handler": "16 frames"},
    "a cache": {"transformer_options": {"easycache": fake_comfy.LazyCache(0.5)}},
}


@pytest.mark.parametrize("node", ["model", "guider"])
@pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES)
def test_patches_that_know_of_steps(pack, host, patch, node):
    """Core's context windows and caches: they distill as the plain model, and no call is left out."""

    def run(model):
        if node == "model":
            return distill(pack, model)
        return distill_guider(pack, host.guider(model, 1.0, None, conditioning(-0.5)), RandomNoise(0))

    want = run(Model("edm"))
    model = Model("edm")
    model.model_options |= patch
    got = run(model)
    assert got.to_dict()["nodes"] == want.to_dict()["nodes"]


def test_a_cache_that_cannot_be_reset_is_named(pack, host):
    """As of packs that keep their state in the model."""
    model, kept = Model("edm"), []
    network = model.model.network

    def cached(scaled, timestep, label):
        kept.append(network(scaled, timestep, label))
        return kept[-1 if len(kept) % 3 else -2]

    model.model.network = cached
    with pytest.raises(lmsd.Error, match="asked again.*Bypass nodes that reuse .*TeaCache"):
        distill(pack, model)
    assert files(host) == []


def test_an_error_of_the_model_comes_out_as_it_is(pack, host):
    model, error = Model("edm"), RuntimeError("a layer of the model is missing")

    def fail(calls):
        if calls == 40:
            raise error

    model.model.on_call = fail
    with pytest.raises(RuntimeError) as raised:
        distill(pack, model)
    assert raised.value is error and files(host) == []


# ---- what is shown


def test_progress_grows_and_previews_and_words_are_shown(pack, host, monkeypatch):
    monkeypatch.setattr(pack.submodule("display"), "PREVIEW_EVERY", 0.0)
    schedule = distill(pack, Model("edm"), nfe=2, nfe_from=1, compare=True)
    values = [value for value, _, _ in host.updates]
    assert values == sorted(values) and values[0] == 1
    assert all(0 < value <= total for value, total, _ in host.updates)
    assert host.updates[-1][0] > 0.9 * host.updates[-1][1]

    words = [text for node, text in host.texts]
    assert {node for node, _ in host.texts} == {"7"}
    assert words[0] == "finding the teacher's images"
    assert any(re.fullmatch(r"2 steps: distance [\d.]+, [\d.]+x nearer than .*", text) for text in words)
    assert "comparing with other samplers" in words
    assert words[-1].startswith("2 steps: distance ") and "times nearer than" in words[-1]
    assert f"{schedule.made_by['distance']:.4g}" in words[-1]
    assert all(a != b for a, b in zip(words, words[1:], strict=False))


def test_previews_show_the_students_image_all_along(pack, host, monkeypatch):
    """In the model's scale, of the last step; none of the teacher's."""
    monkeypatch.setattr(pack.submodule("display"), "PREVIEW_EVERY", 0.0)
    shown = {}

    def decode(preview_format, latent):
        assert preview_format == "JPEG" and latent.shape == (16, 4, 2, 2)
        shown[len(host.updates)] = float(latent[0].norm())
        return "JPEG", latent[0], 512

    host.previewer.decode_latent_to_preview_image = decode
    distill(pack, Model("edm"))
    assert [preview is not None for *_, preview in host.updates].count(True) == len(shown) > 20
    first, last, total = min(shown), max(shown), len(host.updates)
    assert first > 30 and last > 0.9 * total
    middle = [at for at in shown if 0.4 * total < at < 0.9 * total]
    assert len(middle) > 5, "no previews while it fits"


def test_no_preview_is_no_fault(pack, host, monkeypatch):
    """Of packed latents, of a previewer that fails, or without one."""
    monkeypatch.setattr(pack.submodule("display"), "PREVIEW_EVERY", 0.0)

    def fail(*_):
        raise RuntimeError("unknown latent")

    host.previewer.decode_latent_to_preview_image = fail
    assert distill(pack, Model("edm"), trajectories=4, batch_size=4).nfe == 2
    host.previewer = None
    assert distill(pack, Model("edm"), trajectories=4, batch_size=4).nfe == 2
    assert not any(preview for *_, preview in host.updates)


def test_the_plan_is_shown_once_before_the_fit(pack, host):
    schedule = distill(pack, Model("edm"), nfe=3, nfe_from=2, trajectories=16, batch_size=4)
    words = [text for _, text in host.texts]
    (at,) = [number for number, text in enumerate(words) if text.startswith("plan: ")]
    found = re.fullmatch(
        r"plan: (\d+) image-calls(, (about \d+ minutes?|less than a minute) at this model's speed)?; "
        r"similar runs ended ([\d.]+) times nearer than the strongest published field",
        words[at],
    )
    made = schedule.made_by
    assert 4 * (made["model_calls"] + made["teacher_calls"]) < 1.3 * int(found[1]) and float(found[4]) > 1
    assert not any(AT["fit"](text) for text in words[:at]) and any(AT["fit"](text) for text in words[at:])
    assert all(text.endswith("left") for text in words if AT["fit"](text) and text != words[-1])


def test_words_for_times(pack):
    words = pack.submodule("display")
    assert [words.duration(seconds) for seconds in (0, 20, 61, 600)] == [
        "less than a minute",
        "less than a minute",
        "about 1 minute",
        "about 10 minutes",
    ]
    progress = {"calls_expected": 2500, "batch": 4, "seconds_left": 600.0, "gain_expected": 1.8}
    assert words.plan(progress).startswith(
        "plan: 10000 image-calls, about 10 minutes at this model's speed; similar"
    )
    assert words.plan({**progress, "seconds_left": float("inf")}).startswith(
        "plan: 10000 image-calls; similar"
    )


def test_hosts_without_words_on_nodes(pack, host, monkeypatch):
    monkeypatch.delattr(host.modules["server"].PromptServer.instance, "send_progress_text")
    assert distill(pack, Model("edm"), trajectories=4, batch_size=4).nfe == 2


def test_comparisons_are_in_every_file(pack, host):
    schedule = distill(pack, Model("flow"), nfe=3, nfe_from=2, compare=True)
    for name in files(host):
        loaded = pack.run("LmsdLoadSchedule", schedule=name)[0]
        rows = {(row["solver"], row["nfe"]): row["distance"] for row in loaded.made_by["compared"]}
        assert {("best as published", nfe) for nfe in (2, 3, 4, 6)} < set(rows)
        assert rows["distilled", loaded.nfe] < 0.9 * rows["best as published", loaded.nfe]
    assert loaded == schedule


# ---- how it ends early


def test_time_is_kept(pack, host):
    """More than this machine needs for a first result, after which the model gets slow."""
    model, begun, seconds = Model("edm"), [], 0.0

    def on_call(calls):
        begun.append(time.monotonic())
        if not any(AT["fit"](text) for _, text in host.texts):
            return
        if seconds:
            time.sleep(seconds / 10)
        else:
            host.interrupt()

    model.model.on_call = on_call
    with pytest.raises(host.Interrupt):
        distill(pack, model, name="first")
    seconds = 1 + 4 * (begun[-1] - begun[0])
    host.texts.clear()
    begun.clear()
    before = time.monotonic()
    schedule = distill(pack, model, minutes=seconds / 60)
    assert time.monotonic() - before >= seconds
    assert sum(start > begun[0] + seconds for start in begun) <= 1  # the call in which the time was over
    assert schedule.nfe == 2 and files(host) == ["first nfe02.json", "toy nfe02.json"]


FIT = {"trajectories": 84, "batch_size": 4}  # several linearisations


def interrupted_in_the_fit(pack, host, model, after=60, **options):
    """So many calls into it; the number of calls made."""
    there = []

    def on_call(calls):
        there.extend([calls] * any(AT["fit"](text) for _, text in host.texts))
        if len(there) == after:
            host.interrupt()

    host.texts.clear()
    model.model.on_call = on_call
    with pytest.raises(host.Interrupt):
        distill(pack, model, **FIT, **options)
    assert files(host)[0] == "toy nfe02.json"
    model.model.on_call = lambda calls: None
    host.texts.clear()
    return model.model.calls


def test_running_again_goes_on(pack, host):
    """To the very schedule of a run that was not disturbed, with fewer calls than that."""
    model = Model("edm")
    want = distill(pack, model, name="whole", **FIT)
    calls = model.model.calls
    model = Model("edm")
    first = interrupted_in_the_fit(pack, host, model)
    assert left(host) == ["toy checkpoint.jsonl"] and first < calls
    assert not any("checkpoint" in name for name in pack.inputs("LmsdLoadSchedule")["schedule"][0])
    got = distill(pack, model, **FIT)
    assert got.to_dict()["nodes"] == want.to_dict()["nodes"]
    assert got.made_by["distance"] == want.made_by["distance"]
    assert model.model.calls - first < calls - 0.5 * first
    assert left(host) == [] and files(host) == ["toy (2) nfe02.json", "toy nfe02.json", "whole nfe02.json"]


@pytest.mark.parametrize("change", ["prompt", "cfg", "seed", "batch_size", "nfe", "weights"])
def test_a_checkpoint_of_another_run_is_not_gone_on_from(pack, host, change, caplog):
    """Neither of other options, nor of a model or prompts that the file says nothing of; the log says so."""
    other = {
        "prompt": {"prompt": conditioning(0.25)},
        "cfg": {"cfg": 2.0},
        "seed": {"seed": 1},
        "batch_size": {"batch_size": 8},
        "nfe": {"nfe": 3},
        "weights": {},
    }[change]

    def make():
        model = Model("edm")
        if change == "weights":
            network = model.model.network
            model.model.network = lambda *inputs: 1.01 * network(*inputs)
        return model

    want = distill(pack, make(), name="whole", **{**FIT, **other})
    interrupted_in_the_fit(pack, host, Model("edm"))
    got = distill(pack, make(), **{**FIT, **other})
    assert got.to_dict()["nodes"] == want.to_dict()["nodes"]
    assert "starting anew" in caplog.text and any("starting anew" in text for _, text in host.texts)
    assert left(host) == []


def test_a_result_where_all_diverges_is_told_of(pack):
    """No handcrafted solver is in the file, and no distance where the best of them diverges as well."""
    display, about = pack.submodule("display"), lmsd.solve("euler", nfe=3).to_dict()
    about["made_by"]["improved"] = False
    assert "every known sampler diverges" in display.outcome(lmsd.Schedule.from_json(about))
    about["made_by"] |= {"improved": True, "distance": 0.5}
    assert "distance 0.5; every known sampler" in display.outcome(lmsd.Schedule.from_json(about))


def test_only_what_the_system_refuses_is_about_space(pack):
    display = pack.submodule("display")
    for text, about_space in (("No space left on device (os error 28)", True), ("is in use by a run", False)):
        assert bool(display.hint(lmsd.Error(text, lmsd.Status.IO))) == about_space


def test_with_more_minutes_it_goes_on(pack, host):
    """After the time was over in the fit, and before the first result."""
    model = Model("edm")
    want = distill(pack, model, name="whole", **FIT)
    calls = model.model.calls
    model = Model("edm")
    slow = []

    def on_call(calls):
        if any(AT["fit"](text) for _, text in host.texts):
            slow.append(calls)
            time.sleep(0.1 if len(slow) > 40 else 0)

    model.model.on_call = on_call
    host.texts.clear()
    distill(pack, model, minutes=6 / 60, **FIT)
    assert left(host) == ["toy checkpoint.jsonl"]
    assert "minutes were over: with more the same node goes on" in host.texts[-1][1]
    model.model.on_call, first = lambda calls: None, model.model.calls
    got = distill(pack, model, minutes=60, **FIT)
    assert got.to_dict()["nodes"] == want.to_dict()["nodes"] and left(host) == []
    assert model.model.calls - first < calls - 0.5 * first


def test_too_little_time_is_an_error_that_says_so(pack, host):
    model = Model("edm")
    model.model.on_call = lambda calls: time.sleep(0.01)
    with pytest.raises(TimeoutError, match="before the first result: .* Give it more minutes"):
        distill(pack, model, minutes=0.1 / 60)
    assert files(host) == []


def hungry(most):
    """A model that has memory for so many images in a call."""
    model = Model("edm")
    network = model.model.network

    def limited(scaled, timestep, label):
        if len(scaled) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return network(scaled, timestep, label)

    model.model.network = limited
    return model


def test_where_memory_runs_out_the_batch_is_halved(pack, host, caplog):
    want = distill(pack, Model("edm"), batch_size=4, name="small")
    got = distill(pack, hungry(5), batch_size=16)
    assert got.made_by["seeds"] == want.made_by["seeds"] and "4 images a batch" in got.made_by["seeds"]
    assert (got.sigmas == want.sigmas).all() and (got.scales == want.scales).all()
    assert caplog.text.count("starting again with") == 2 and "starting again with 4" in caplog.text
    assert files(host) == ["small nfe02.json", "toy nfe02.json"]
    with pytest.raises(torch.OutOfMemoryError):
        distill(pack, hungry(0), name="none")
    assert "starting again with 1" in caplog.text and len(files(host)) == 2


def test_a_failing_model_keeps_the_best_so_far(pack, host):
    """Out of memory in the middle of the fit: the very exception, and a file."""

    def on_call(calls):
        if host.texts and "steps: distance" in host.texts[-1][1]:
            raise MemoryError("no memory left")

    model = Model("edm")
    model.model.on_call = on_call
    with pytest.raises(MemoryError, match="no memory left"):
        distill(pack, model)
    assert files(host)
    model.model.on_call = lambda calls: 1 / 0
    with pytest.raises(ZeroDivisionError):
        distill(pack, model, name="at once")


AT = {
    "teacher": lambda text: text.startswith("finding"),
    "ranking": lambda text: text.endswith("ranking samplers"),
    "fit": lambda text: "steps: distance" in text,
    "comparison": lambda text: text.startswith("comparing"),
}


@pytest.mark.parametrize("host", [Exception, BaseException], indirect=True)
@pytest.mark.parametrize(
    ("moment", "source"),
    [
        (moment, source)
        for moment in AT
        for source in ("bar", "flag", "model", "preview")
        if (moment, source) != ("teacher", "preview")  # none is made then
    ],
)
def test_an_interrupt_ends_it_at_once_and_keeps_the_best(pack, host, moment, source, monkeypatch):
    """Wherever it is raised. The host gets its own exception, and a file is there if there was a result."""
    model = Model("edm")
    monkeypatch.setattr(pack.submodule("display"), "PREVIEW_EVERY", 0.0)
    pressed = []

    def due():
        here = [text for _, text in host.texts if AT[moment](text)]
        return here and not pressed

    def press():
        pressed.append(model.model.calls)
        host.interrupt()

    def on_call(calls):
        if source != "preview" and due():
            press()
            if source == "model":
                host.throw_if_interrupted()

    def decode(preview_format, latent):
        if due():
            press()
            host.throw_if_interrupted()

    model.model.on_call = on_call
    if source == "preview":
        host.previewer.decode_latent_to_preview_image = decode
    if source == "flag":
        host.modules["comfy.utils"].ProgressBar.update_absolute = lambda *_: None  # as newer ones: not always
    with pytest.raises(host.Interrupt) as raised:
        distill(pack, model, compare=True)
    assert raised.value is host.raised[0] and len(host.raised) == 1 and not host.interrupted
    assert model.model.calls <= pressed[0] + 1
    has_result = moment in ("fit", "comparison")
    assert files(host) == (["toy nfe02.json"] if has_result else [])
    if has_result:
        schedule = pack.run("LmsdLoadSchedule", schedule="toy nfe02.json", model=model)[0]
        assert end(pack, host, model, schedule).isfinite().all()
        assert schedule.made_by["distance"] <= schedule.made_by["handcrafted"][0]["distance"]


def test_an_interrupted_family_keeps_what_is_finished(pack, host):
    model = Model("edm")

    def on_call(calls):
        if any(text.startswith("2 steps: distance") for _, text in host.texts):
            host.interrupt()

    model.model.on_call = on_call
    with pytest.raises(host.Interrupt):
        distill(pack, model, nfe=3, nfe_from=1)
    assert set(files(host)) >= {"toy nfe01.json"}
    # What was not fitted yet is the best published solver or a start that is nearer, and says which.
    largest = pack.run("LmsdLoadSchedule", schedule="toy nfe03.json", model=Model("edm"))[0]
    by = largest.made_by
    assert by["improved"] == (by["solver"] == "generic") == (by["method"] == "distilled")
    assert by["improved"] == (by["distance"] < by["handcrafted"][0]["distance"])
