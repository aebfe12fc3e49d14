"""The emoji models in a running ComfyUI: words, the host's samplers, the pack's, and both their workflows."""

import json

import browser
import numpy as np
import pytest
from host import EMOJI, PACKS, Host
from test_digits_host import pixels
from test_workflows_browser import NOTES, named_links, overlapping
from workflows import node

MODELS = ("pixel", "flow", "latent")
WORKFLOWS = sorted((EMOJI / "example_workflows").glob("*.json"))
needs_browser = pytest.mark.skipif(browser.missing() is not None, reason=str(browser.missing()))


@pytest.fixture(scope="module")
def host(comfyui):
    with Host(comfyui, packs=PACKS | {"comfyui_emoji": EMOJI}) as running:
        yield running


def ksampler(model, prompt="red apple", batch=2, steps=3):
    """The ordinary workflow in API format."""
    return {
        "model": node("LoadEmojiModel", model=model),
        "positive": node("CLIPTextEncode", clip=("model", 1), text=prompt),
        "negative": node("CLIPTextEncode", clip=("model", 1), text=""),
        "latent": node("EmptyEmojiLatent", model=("model", 0), batch_size=batch),
        "sample": node(
            "KSampler", model=("model", 0), positive=("positive", 0), negative=("negative", 0),
            latent_image=("latent", 0), seed=1, steps=steps, cfg=4.0, sampler_name="dpmpp_2m",
            scheduler="simple" if model == "flow" else "karras", denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=("sample", 0), vae=("model", 2)),
        "save": node("SaveImage", images=("decode", 0), filename_prefix="emoji"),
    }  # fmt: skip


def pictures(host, nodes):
    """What it draws, [n, S, S, 3], and the run."""
    run = host.run(nodes)
    assert run.status == "success", run.error
    return np.stack([pixels(image) for image in host.images(run)]), run


@pytest.mark.parametrize("model", MODELS)
def test_words_and_the_hosts_sampler(host, model):
    apples, run = pictures(host, ksampler(model))
    size = 64 if model == "latent" else 32
    assert apples.shape[:3] == (2, size, size) and run.bar() == (3, 3)
    assert bool(run.previews) == (model != "latent")
    cats, _ = pictures(host, ksampler(model, "grinning cat"))
    assert abs(apples - cats).max() > 2  # of 255, the same seed
    same, _ = pictures(host, ksampler(model, "the qwertyuiop Red-apple"))
    assert (apples == same).all()


@pytest.mark.parametrize("model, size, wide", [("pixel", 32, 256), ("flow", 32, 256), ("latent", 64, 128)])
def test_the_hosts_empty_latent_fits(host, comfyui, model, size, wide):
    """The size of the picture; `wide` on older hosts, whose latents are an eighth of that in any model."""
    side = size if "downscale_ratio_spacial" in (comfyui / "nodes.py").read_text() else wide
    nodes = ksampler(model)
    theirs = {"latent": node("EmptyLatentImage", width=side, height=side, batch_size=2)}
    own, _ = pictures(host, nodes)
    again, _ = pictures(host, nodes | theirs)
    assert own.shape[1:3] == (size, size) and (own == again).all()


def test_image_to_image(host):
    """VAEEncode of what was drawn, and no noise: the same picture comes back."""
    nodes = ksampler("pixel")
    own, _ = pictures(host, nodes)
    nodes |= {
        "encode": node("VAEEncode", pixels=("decode", 0), vae=("model", 2)),
        "again": node("VAEDecode", samples=("encode", 0), vae=("model", 2)),
        "save": node("SaveImage", images=("again", 0), filename_prefix="emoji"),
    }
    again, _ = pictures(host, nodes)
    assert abs(own.astype(int) - again).max() <= 1


def sampling(model, schedule, batch=4):
    """The same with a batch of prompts, SamplerCustom and Distilled Sampler."""
    links = {"model": ("model", 0), "negative": ("negative", 0), "latent_image": ("latent", 0)}
    lines = "red apple\ngrinning cat\ntulip\nowl"
    return ksampler(model, batch=batch) | {
        "prompts": node("LmsdPrompts", clip=("model", 1), prompts=lines),
        "schedule": schedule,
        "sampler": node("LmsdSampler", schedule=("schedule", 0), denoise=1.0, model=("model", 0)),
        "sample": node(
            "SamplerCustom", positive=("prompts", 0), add_noise=True, noise_seed=5, cfg=4.0,
            sampler=("sampler", 0), sigmas=("sampler", 1), **links,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_a_published_solver_as_a_schedule(host, model):
    """Image i of a batch gets prompt i."""
    options = {"solver": "dpmpp_2m", "steps": 4, "grid": "auto", "rho": 7.0, "shift": 0.0}
    schedule = node("LmsdSolver", model=("model", 0), lower_order_final=True, **options)
    drawn, run = pictures(host, sampling(model, schedule, batch=8))
    assert len(drawn) == 8 and run.bar() == (4, 4)
    nodes = sampling(model, schedule, batch=8)
    nodes["prompts"]["inputs"]["prompts"] = "red apple\nsnowman\ntulip\nowl"
    other, _ = pictures(host, nodes)
    changed = [abs(a.astype(int) - b).max() > 2 for a, b in zip(drawn, other, strict=True)]
    assert changed == [False, True, False, False] * 2


def test_distill(host):
    """The flow model, as little as there is; the file says what it was made for."""
    schedule = node(
        "LmsdDistill", model=("model", 0), positive=("prompts", 0), negative=("negative", 0),
        latent_image=("latent", 0), cfg=4.0, first_seed=1, name="flow", nfe=3, nfe_from=0, trajectories=4,
        batch_size=4, minutes=3.0, compare=False,
    )  # fmt: skip
    drawn, run = pictures(host, sampling("flow", schedule))
    assert len(drawn) == 4 and run.bar() == (3, 3)
    file = json.loads((host.base / "models" / "lmsd_schedules" / "flow nfe03.json").read_text())
    about = file["made_for"]
    assert file["process"] == "flow" and about["shift"] == 3 and not about["snapped"]
    assert about["model"] == "EmojiFlow" and about["guidance_scale"] == 4
    assert about["latent_shape"] == [3, 32, 32]


# ---- in the page


@needs_browser
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_loads_whole_and_runs(host, path, tmp_path):
    workflow = json.loads(path.read_text())
    for item in workflow["nodes"]:
        if item["type"] == "LmsdDistill":  # as little as there is
            item["widgets_values"][2:8] = ["page", 3, 0, 4, 4, 3.0]
    seen = browser.look(host, workflow, queue=True, save=tmp_path / "saved.json")
    assert not seen.faults
    assert seen.run["status"] == "success", seen.run
    assert not [item for item in seen.nodes if item["unconnected"]] and not overlapping(seen.nodes)
    prompt = seen.report["prompt"]
    assert {prompt[i]["class_type"] for i in prompt} == {n["type"] for n in workflow["nodes"]} - NOTES
    saved = json.loads((tmp_path / "saved.json").read_text())
    assert named_links(saved) == named_links(workflow)
    for item in workflow["nodes"]:
        (shown,) = [n for n in seen.nodes if n["id"] == str(item["id"])]
        assert shown["size"] == item["size"], f"{item['type']} is made larger by the page"
    (drawn,) = [n["pictures"] for n in seen.report["after"] if n["type"] == "SaveImage"]
    assert drawn == [[128, 128]] * (9 if path.stem == "emoji" else 8)
