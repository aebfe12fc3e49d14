"""Situations that once went wrong, in a running ComfyUI. The table is in docs/comfyui-situations.md."""

import json

import numpy as np
import pytest
import workflows
from host import PACKS, Host
from test_digits_host import pixels
from test_pack_host import SCHEDULES, distilling, files, in_two, loading, shown
from workflows import node


def folder(host):
    return host.base / "models" / SCHEDULES


def made(host, name):
    """The schedule file of that name, as JSON."""
    return json.loads((folder(host) / name).read_text())


def published(host, name, nfe=4, **about):
    """A file with a published solver for the EDM digits model, made for `about`."""
    import lmsd

    levels = {"process": "ve", "sigma_min": 0.002, "sigma_max": 80.0, "sigma_end": 0.0}
    schedule = lmsd.solve("dpmpp_2m", nfe=nfe, grid={"kind": "karras", "rho": 7.0}, **levels).to_dict()
    schedule["made_for"] |= about
    (folder(host) / name).write_text(json.dumps(schedule))
    return name


def told(run):
    """All that was said on nodes, or in a corner of the page where the host shows no texts on nodes."""
    return run.texts + [event.data["text"] for event in run.events if event.kind == "lmsd.notice"]


def shows_texts(host):
    return tuple(map(int, host.version.split("."))) >= (0, 3, 40)


def done(host, nodes):
    run = host.run(nodes)
    assert run.status == "success", run.error
    return run


def with_settings(nodes, **settings):
    """The same with other inputs of the node that distills."""
    nodes["distill"]["inputs"] |= settings
    return nodes


# ---- a distillation that takes long


def values(run):
    """Of the progress bar while it distilled: model calls so far, those of former runs included."""
    return [step["value"] for step in run.progress if step["node"] == "distill"]


def test_a_plan_before_it_and_on_from_where_it_was_stopped(host):
    """To the very schedule of a run that was not interrupted, without the calls that were made."""
    settings = {"nfe": 4, "trajectories": 10}
    whole = done(host, distilling("whole", **settings))
    if shows_texts(host):
        plans = [i for i, text in enumerate(whole.texts) if text.startswith("plan: ")]
        fits = [i for i, text in enumerate(whole.texts) if "nearer than" in text and i not in plans]
        assert len(plans) == 1 and "image-calls" in whole.texts[plans[0]] and plans[0] < min(fits)
    prompt_id = host.queue(distilling("stopped", delay_ms=30, **settings))  # time to stop it in
    at = max(values(whole)) // 2
    host.until(lambda e: e.kind == "progress" and e.data["node"] == "distill" and e.data["value"] > at)
    host.interrupt()
    assert host.wait(prompt_id).status == "interrupted"
    assert (folder(host) / "stopped checkpoint.jsonl").is_file()
    before = set(files(host))  # with the best so far, where it was nearer than the field
    again = done(host, distilling("stopped", **settings))
    assert sum(value < 0.8 * at for value in values(again)) <= 1  # the bar begins at 0
    assert not (folder(host) / "stopped checkpoint.jsonl").exists()
    (last,) = set(files(host)) - before
    assert made(host, last)["nodes"] == made(host, "whole nfe04.json")["nodes"]


def test_minutes_that_are_over_lose_nothing(host):
    """A model too slow for its minutes: a result or a sentence, and with more of them it goes on."""
    slow = distilling("minutes", nfe=4, delay_ms=10, minutes=0.05)
    run = host.run(slow)
    if run.status == "success":
        assert made(host, "minutes nfe04.json")["made_by"]["distance"] > 0
    else:
        words = run.error["exception_message"]
        assert "0.05 minutes were over before the first result" in words and "it goes on from there" in words
        assert (folder(host) / "minutes checkpoint.jsonl").is_file()
    done(host, with_settings(slow, minutes=0.0))
    last = [name for name in files(host) if name.startswith("minutes")][-1]
    assert made(host, last)["made_by"]["improved"]


# ---- prompts


@pytest.mark.parametrize(
    ("batch_size", "some", "all_of_them"), [(4, "0,1,2,3", "0,1,2,3,4,5,6,7,8,9"), (1, "7", "7,1,4,3")]
)
def test_every_prompt_is_distilled_for(host, batch_size, some, all_of_them):
    """More of them than a call has images: another schedule than for the first ones alone."""
    found = []
    for text in (some, all_of_them):
        name = f"prompts {batch_size} of {text.replace(',', '')}"
        nodes = distilling(name, guider=False, nfe=2, text=text)
        run = done(host, with_settings(nodes, batch_size=batch_size))
        found.append(made(host, f"{name} nfe02.json"))
    assert found[0]["nodes"] != found[1]["nodes"]
    count = len(all_of_them.split(","))
    assert f"{count} prompts in turn" in found[1]["made_by"]["seeds"]
    if shows_texts(host):
        assert any(f"of {count} prompts {count} were fitted to, " in text for text in run.texts)


# ---- runs in parts


def test_sigmas_split_by_denoise_are_the_run(host):
    """Bit for bit, in two samplers."""
    file = published(host, "split.json")
    whole = done(host, loading(file, seed=43))
    nodes = in_two(loading(file, seed=43), 2)
    split = nodes | {"split": node("SplitSigmasDenoise", sigmas=("sampler", 1), denoise=0.5)}
    assert shown(host, done(host, split)) == shown(host, whole)


def test_sigmas_upwards_are_refused_in_a_sentence(host):
    nodes = loading(published(host, "upwards.json"))
    nodes["sample"]["inputs"]["sigmas"] = ["flip", 0]
    run = host.run(nodes | {"flip": node("FlipSigmas", sigmas=("sampler", 1))})
    assert run.status == "error" and "cannot be run backwards" in run.error["exception_message"]
    assert "euler" in run.error["exception_message"]  # what to take instead


# ---- another model, guidance scale or size than the file was made for


def shifted(nodes, kind, value):
    """The same with the model behind ModelSamplingSD3 at a shift, or ModelSamplingFlux at a size."""
    if kind == "SD3":
        patch = node("ModelSamplingSD3", model=("model", 0), shift=float(value))
    else:
        shifts = {"max_shift": 1.15, "base_shift": 0.5}
        patch = node("ModelSamplingFlux", model=("model", 0), width=value, height=value, **shifts)
    for one in nodes.values():
        for name, link in one["inputs"].items():
            if link == ["model", 0]:
                one["inputs"][name] = ["shifted", 0]
    return nodes | {"shifted": patch}


@pytest.mark.parametrize(
    ("kind", "prediction", "here", "there"), [("SD3", "flow", 1, 3), ("Flux", "flux", 1024, 768)]
)
def test_another_shift_samples_the_same_and_is_said(host, kind, prediction, here, there):
    file = f"shift {kind} nfe03.json"
    options = {"prediction": prediction, "seed": 9}
    done(host, shifted(distilling(f"shift {kind}", nfe=3, **options), kind, here))
    shift = made(host, file)["made_for"]["shift"]
    same, other = (done(host, shifted(loading(file, **options), kind, value)) for value in (here, there))
    assert shown(host, same) == shown(host, other)
    said = f"made for shift {shift:g}; this run has "
    assert any(said in text for text in told(other)) and not any(said in text for text in told(same))


def test_another_guidance_scale_or_resolution_is_said(host):
    file = published(host, "about.json", guidance_scale=3.0, latent_shape=[1, 16, 16])
    run = done(host, loading(file, cfg=7.0, seed=9))
    for words in (
        "made for guidance scale 3; this run has 7",
        "made for latents of [1, 16, 16]; this run has [1, 8, 8]",
    ):
        assert any(words in text for text in told(run)), words


# ---- the entry in KSampler's list


@pytest.fixture(scope="module")
def asked(comfyui):
    """A host whose user asked for the entry."""
    running = Host(comfyui, packs=PACKS)
    settings = running.base / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"lmsd.KSampler": true}')
    with running:
        yield running


@pytest.fixture
def family(asked):
    """Files of 3 to 12 steps made for guidance scale 3, and a newer one of 5 steps for scale 1."""
    for old in folder(asked).glob("*.json"):
        old.unlink()
    for nfe in range(3, 13):
        published(asked, f"three {nfe:02d}.json", nfe, guidance_scale=3.0)
    published(asked, "one 05.json", 5, guidance_scale=1.0)


def entry(**options):
    return workflows.ksampler(sampler="lmsd", scheduler="karras", **options)


def taken(host, run):
    """The name of the file that was taken, by the node or, on older hosts, the log."""
    lines = run.texts if shows_texts(host) else host.log().split("lmsd: ")
    return [line for line in lines if ".json, " in line][-1].split(".json")[0]


def test_the_entry_takes_the_file_that_fits(asked, family):
    """By guidance scale, not by age."""
    assert taken(asked, done(asked, entry(steps=5, cfg=3.0))) == "three 05"
    assert taken(asked, done(asked, entry(steps=5, cfg=1.0))) == "one 05"


def test_below_denoise_1_the_entry_keeps_the_steps_and_the_bar(asked, family):
    """From a file of more steps; with a bar that ends full, also where only a file of fewer is there."""
    run = done(asked, entry(steps=5, denoise=0.5))
    steps = [step["value"] for step in run.progress if step["node"] == "sample"]
    assert steps == sorted(set(steps)) and run.bar() == (5, 5) and taken(asked, run) > "three 05"
    for file in folder(asked).glob("three *.json"):
        file.unlink()
    run = done(asked, entry(steps=5, denoise=0.5, seed=2))
    assert run.bar() == (5, 5) and sum(step["node"] == "sample" for step in run.progress) < 5


def advanced(steps, first, last, noise, leftover, latent, sampler):
    links = {name: (name, 0) for name in ("model", "positive", "negative")}
    return node(
        "KSamplerAdvanced", add_noise=noise, noise_seed=1, steps=steps, cfg=3.0, sampler_name=sampler,
        scheduler="karras", latent_image=latent, start_at_step=first, end_at_step=last,
        return_with_leftover_noise=leftover, **links,
    )  # fmt: skip


@pytest.mark.parametrize("second", ["lmsd", "euler"])
def test_noise_left_over_for_another_sampler(asked, family, second):
    """KSampler (Advanced) to step 3 of 6, and on from there: nearer to one run than where it stopped."""
    nodes = entry() | {
        "sample": advanced(6, 0, 3, "enable", "enable", ("latent", 0), "lmsd"),
        "rest": advanced(6, 3, 10000, "disable", "disable", ("sample", 0), second),
    }
    head = done(asked, nodes)
    assert head.bar() == (3, 3)
    nodes["decode"]["inputs"]["samples"] = ["rest", 0]
    both = done(asked, nodes)
    runs = head, both, done(asked, entry(steps=6))
    stopped, went_on, whole = (np.stack([pixels(image) for image in asked.images(run)]) for run in runs)
    assert abs(went_on - whole).mean() < 0.6 * abs(stopped - whole).mean()
