"""The node pack in a running ComfyUI: distill, sample, interrupt, refuse, and leave everything else alone."""

import json
import os
import re
from pathlib import Path

import pytest
import workflows
from host import PACKS, ROOT, Host
from test_digits_host import pixels
from workflows import node

PACK = PACKS["comfyui-lmsd"]
NODES = [
    "LmsdDistill",
    "LmsdDistillGuider",
    "LmsdLoadSchedule",
    "LmsdPrompts",
    "LmsdReport",
    "LmsdSampler",
    "LmsdSolver",
]
SCHEDULES = "lmsd_schedules"


def files(host):
    return sorted(path.name for path in (host.base / "models" / SCHEDULES).glob("**/*.json"))


def distilling(name, *, guider=True, nfe=4, trajectories=20, compare=False, minutes=0.0, **options):
    """The digits workflow whose sampler is distilled first; a report is drawn too."""
    nodes = workflows.custom(batch=10, **options)
    settings = {"name": name, "nfe": nfe, "nfe_from": 0, "trajectories": trajectories, "batch_size": 10}
    settings |= {"minutes": minutes, "compare": compare}
    if guider:
        nodes["distill"] = node(
            "LmsdDistillGuider",
            guider=("guider", 0),
            noise=("noise", 0),
            latent_image=("latent", 0),
            **settings,
        )
    else:
        links = {"model": ("model", 0), "positive": ("positive", 0), "negative": ("negative", 0)}
        nodes["distill"] = node(
            "LmsdDistill", latent_image=("latent", 0), cfg=3.0, first_seed=1, **links, **settings
        )
    return sampling(nodes, ("distill", 0)) | {
        "report": node("LmsdReport", schedule=("distill", 0)),
        "save report": node("SaveImage", images=("report", 0), filename_prefix="report"),
    }


def sampling(nodes, schedule, denoise=1.0, model=("model", 0)):
    """The same with Distilled Sampler."""
    links = {} if model is None else {"model": model}
    made = node("LmsdSampler", schedule=schedule, denoise=denoise, **links)
    nodes = {name: value for name, value in nodes.items() if name != "sigmas"}
    nodes["sample"]["inputs"]["sigmas"] = ["sampler", 1]
    return nodes | {"sampler": made}


def loading(file, **options):
    """The digits workflow with a schedule from a file."""
    nodes = sampling(workflows.custom(**options), ("schedule", 0), model=None)
    return nodes | {"schedule": node("LmsdLoadSchedule", schedule=file)}


@pytest.fixture(scope="module")
def distilled(host):
    """The name of a file made for the EDM digits model at guidance 3, distilled by the host."""
    if "shared nfe04.json" not in files(host):
        run = host.run(distilling("shared"))
        assert run.status == "success", run.error
    return "shared nfe04.json"


# ---- it is there


def test_the_nodes_are_there_with_help_and_templates(host):
    info = host.object_info()
    for name in NODES:
        assert info[name]["category"].startswith("sampling/") and info[name]["description"]
        page = host.request(f"/extensions/comfyui-lmsd/docs/{name}.md").decode()
        assert page.startswith("# " + info[name]["display_name"])
    assert b"registerExtension" in host.request("/extensions/comfyui-lmsd/js/settings.js")
    assert any(path.endswith("/comfyui-lmsd/js/settings.js") for path in host.get("/extensions"))
    templates = host.get("/workflow_templates")["comfyui-lmsd"]
    assert sorted(templates) == ["compare side by side", "distill then sample", "sample"]


def test_it_imports_in_less_than_half_a_second(host):
    times = re.findall(r"([\d.]+) seconds: \S*comfyui-lmsd", host.log())
    assert times and float(times[0]) < 0.5


def test_nothing_is_written_into_the_packs_folder(host, distilled):
    """Bytecode aside, which Python writes for the host."""
    place = host.base / "custom_nodes" / "comfyui-lmsd"

    def listing(folder):
        paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        return sorted(str(path) for path in paths if "__pycache__" not in path.parts)

    assert listing(place) == listing(PACK)


# ---- distill and sample


@pytest.mark.parametrize("guider", [True, False], ids=["GUIDER and NOISE", "MODEL and conditioning"])
def test_distill_then_sample(host, guider):
    """One workflow through POST /prompt: progress, text, previews, a file, a report, and pictures."""
    name = f"digits {'guider' if guider else 'model'}"
    run = host.run(distilling(name, guider=guider, nfe=5, compare=True, delay_ms=1))
    assert run.status == "success", run.error
    assert f"{name} nfe05.json" in files(host)
    steps = [p for p in run.progress if p["node"] == "distill"]
    values = [p["value"] for p in steps]
    assert len(steps) > 20 and values == sorted(values) and all(p["value"] <= p["max"] for p in steps)
    assert len(run.previews) >= 2
    texts = [e.data for e in run.events if e.kind == "text"]
    if tuple(map(int, host.version.split("."))) >= (0, 3, 40):  # older ones show no text
        assert any("nearer than" in text for text in texts), texts[-3:]
    file = json.loads((host.base / "models" / SCHEDULES / f"{name} nfe05.json").read_text())
    assert file["made_by"]["improved"] and file["made_by"]["method"] == "distilled"
    assert {row["solver"] for row in file["made_by"]["compared"]} == {"distilled", "best as published"}
    assert file["made_for"]["guidance_scale"] == 3 and file["made_for"]["latent_shape"] == [1, 8, 8]
    images = host.images(run)
    digits = [pixels(image) for image in images if pixels(image).shape == (128, 128)]
    assert len(digits) == 10 and len(images) == 11
    assert all(image.min() < 40 and image.max() > 200 for image in digits)

    again = host.run(distilling(name, guider=guider, nfe=5, compare=True, delay_ms=1))
    assert "distill" in again.cached


@pytest.mark.parametrize("prediction", ["eps", "v_prediction", "flow"])
@pytest.mark.parametrize("video", [False, True], ids=["4-D", "5-D"])
def test_every_kind_of_model(host, prediction, video):
    run = host.run(distilling(f"{prediction} {video}", prediction=prediction, video=video, nfe=3))
    assert run.status == "success", run.error
    file = json.loads((host.base / "models" / SCHEDULES / f"{prediction} {video} nfe03.json").read_text())
    assert file["process"] == ("flow" if prediction == "flow" else "ve")
    assert file["made_for"]["snapped"] == (prediction in ("eps", "v_prediction"))
    assert file["made_by"]["improved"]


def test_a_file_from_the_list_samples_like_the_schedule_that_was_made(host, distilled):
    """New files are in the drop-down without a restart, and give the same pictures as the fresh schedule."""
    assert distilled in host.object_info("LmsdLoadSchedule")["input"]["required"]["schedule"][0]
    fresh = host.run(distilling("shared"))
    loaded = host.run(loading(distilled))
    assert loaded.status == "success", loaded.error
    digits = [image for image in map(pixels, host.images(fresh)) if image.shape == (128, 128)]
    for a, b in zip(digits, map(pixels, host.images(loaded)), strict=True):
        assert (a == b).all()
    steps = [p["value"] for p in loaded.progress if p["node"] == "sample"]
    assert steps == [1, 2, 3, 4]
    assert len(loaded.previews) >= 3


def test_sampler_custom_masks_and_denoise(host, distilled):
    """SamplerCustom; a noise mask that protects everything; image to image from half way."""
    nodes = workflows.base()
    nodes |= {
        "schedule": node("LmsdLoadSchedule", schedule=distilled, model=("model", 0)),
        "sampler": node("LmsdSampler", schedule=("schedule", 0), denoise=1.0),
        "sample": node(
            "SamplerCustom", add_noise=True, noise_seed=5, cfg=3.0,
            model=("model", 0), positive=("positive", 0), negative=("negative", 0),
            sampler=("sampler", 0), sigmas=("sampler", 1), latent_image=("latent", 0),
        ),
    }  # fmt: skip
    first = host.run(nodes)
    assert first.status == "success", first.error
    images = list(map(pixels, host.images(first)))

    links = dict(
        nodes["sample"]["inputs"], latent_image=["sample", 0], sampler=["half", 0], sigmas=["half", 1]
    )
    again = nodes | {
        "half": node("LmsdSampler", schedule=("schedule", 0), denoise=0.4, model=("model", 0)),
        "second": {"class_type": "SamplerCustom", "inputs": links},
        "decode": node("DigitsDecode", samples=("second", 0)),
    }
    second = host.run(again)
    assert second.status == "success", second.error
    assert 1 <= sum(p["node"] == "second" for p in second.progress) < 4
    changed = [abs(a - b).mean() for a, b in zip(images, map(pixels, host.images(second)), strict=True)]
    assert 1 < sum(changed) / len(changed) < 60

    links = dict(nodes["sample"]["inputs"], latent_image=["masked", 0], noise_seed=6)
    masked = nodes | {
        "mask": node("SolidMask", value=0.0, width=8, height=8),
        "masked": node("SetLatentNoiseMask", samples=("sample", 0), mask=("mask", 0)),
        "second": {"class_type": "SamplerCustom", "inputs": links},
        "decode": node("DigitsDecode", samples=("second", 0)),
    }
    third = host.run(masked)
    assert third.status == "success", third.error
    for a, b in zip(images, map(pixels, host.images(third)), strict=True):
        assert abs(a - b).max() <= 1  # of 255


def in_two(nodes, step, late="guider"):
    """The same with SplitSigmas and a second SamplerCustomAdvanced, whose guider is called `late`."""
    links = nodes["sample"]["inputs"]
    rest = {"guider": (late, 0), "sampler": tuple(links["sampler"]), "latent_image": ("sample", 0)}
    return nodes | {
        "split": node("SplitSigmas", sigmas=("sampler", 1), step=step),
        "sample": {"class_type": "SamplerCustomAdvanced", "inputs": links | {"sigmas": ["split", 0]}},
        "no noise": node("DisableNoise"),
        "rest": node("SamplerCustomAdvanced", noise=("no noise", 0), sigmas=("split", 1), **rest),
        "decode": node("DigitsDecode", samples=("rest", 0)),
    }


def shown(host, run):
    """The pictures of a run; the files also hold the workflow."""
    return [pixels(image).tolist() for image in host.images(run)]


def test_a_run_in_two_is_the_run(host, distilled):
    """Bit for bit; also when only the second half runs again, whose first half the host still has."""
    whole = host.run(loading(distilled, seed=41))
    halves = host.run(in_two(loading(distilled, seed=41), 2))
    assert halves.status == "success", halves.error
    wanted = shown(host, whole)
    assert shown(host, halves) == wanted
    assert [p["value"] for p in halves.progress if p["node"] == "rest"] == [1, 2]
    nodes = in_two(loading(distilled, seed=41), 2, "late")
    guider = nodes["guider"]["inputs"]
    other = host.run(nodes | {"late": {"class_type": "CFGGuider", "inputs": guider | {"cfg": 2.5}}})
    again = host.run(nodes | {"late": {"class_type": "CFGGuider", "inputs": dict(guider)}})
    assert "sample" in other.cached and "sample" in again.cached
    assert shown(host, again) == wanted != shown(host, other)
    assert not any("without the steps before" in text for text in other.texts + again.texts)


# ---- stop


def interrupted(host, prompt_id):
    """(the run, how many model calls it made after the host had answered the request)"""
    host.interrupt()
    first = len(host.events)
    run = host.wait(prompt_id)
    return run, sum(event.kind == "progress" for event in host.events[first:])


def test_interrupt_keeps_the_best_so_far(host):
    """Within a few calls, whatever it is at; what was found by then is on disk, and the host goes on."""
    slow = distilling("interrupted", nfe=5, delay_ms=4, trajectories=10)
    prompt_id = host.queue(slow)
    host.until(lambda e: e.kind == "progress" and e.data["node"] == "distill" and e.data["value"] > 450)
    run, calls = interrupted(host, prompt_id)
    assert run.status == "interrupted" and calls < 20
    assert "interrupted nfe05.json" in files(host)
    kept = json.loads((host.base / "models" / SCHEDULES / "interrupted nfe05.json").read_text())
    assert kept["made_by"]["distance"] <= kept["made_by"]["handcrafted"][0]["distance"]
    assert host.run(loading("interrupted nfe05.json", seed=77)).status == "success"


def test_interrupt_before_the_first_result(host):
    prompt_id = host.queue(distilling("too early", nfe=5, delay_ms=50))
    host.until(lambda e: e.kind == "progress" and e.data["node"] == "distill" and e.data["value"] >= 3)
    run, calls = interrupted(host, prompt_id)
    assert run.status == "interrupted" and calls < 20
    assert not any(file.startswith("too early") for file in files(host))


# ---- refuse


def test_another_model_is_refused_in_a_sentence(host, distilled):
    for options, words in (({"prediction": "flow"}, "process"), ({"prediction": "eps"}, "sigma_m")):
        run = host.run(loading(distilled, **options))
        assert run.status == "error" and words in run.error["exception_message"], run.error
    run = host.run(loading(distilled, cfg=5.0, seed=123))
    said = "made for guidance scale 3; this run has 5"
    assert run.status == "success" and said in host.log()
    if tuple(map(int, host.version.split("."))) >= (0, 3, 40):  # older ones show no text
        assert any(said in text for text in run.texts)
    upwards = loading(distilled)
    upwards["sample"]["inputs"]["sigmas"] = ["flip", 0]
    run = host.run(upwards | {"flip": node("FlipSigmas", sigmas=("sampler", 1))})
    assert run.status == "error" and "cannot be run backwards" in run.error["exception_message"]


def test_other_sigmas_are_refused_in_a_sentence(host, distilled):
    nodes = loading(distilled)
    scheduler = node("BasicScheduler", model=("model", 0), scheduler="karras", steps=4, denoise=1.0)
    nodes |= {"sigmas": scheduler}
    nodes["sample"]["inputs"]["sigmas"] = ["sigmas", 0]
    run = host.run(nodes)
    assert run.status == "error" and "connect SIGMAS of the same" in run.error["exception_message"]


def test_a_damaged_file_is_refused_in_a_sentence(host):
    (host.base / "models" / SCHEDULES / "damaged.json").write_text('{"format": 1, "nodes": "import os"}')
    run = host.run(loading("damaged.json"))
    assert run.status == "error" and "not a schedule" in run.error["exception_message"]


# ---- other packs, other installs


COPYING_PACK = """
import comfy.samplers

LIST = {list}


class Choose:
    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{"sampler_name": (LIST,)}}}}

    RETURN_TYPES = (LIST,)
    FUNCTION = "choose"
    CATEGORY = "test"

    def choose(self, sampler_name):
        return (sampler_name,)


NODE_CLASS_MAPPINGS = {{"{name}": Choose}}
"""


def packs_that_have_the_list(folder):
    """A pack that copied the sampler list before ours was imported, and one that shares it."""
    packs = {}
    for name, source in (
        ("a_copies", "list(comfy.samplers.KSampler.SAMPLERS)"),
        ("z_shares", "comfy.samplers.KSampler.SAMPLERS"),
    ):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(COPYING_PACK.format(list=source, name=name))
        packs[name] = folder / name
    return packs


def chosen_by(name, **options):
    nodes = workflows.ksampler(**options) | {"choose": node(name, sampler_name="euler")}
    nodes["sample"]["inputs"]["sampler_name"] = ["choose", 0]
    return nodes


def test_packs_that_copied_the_sampler_list_keep_working(comfyui, tmp_path):
    with Host(comfyui, packs=PACKS | packs_that_have_the_list(tmp_path)) as host:
        names = host.object_info("KSampler")["input"]["required"]["sampler_name"]
        assert "lmsd" not in json.dumps(names)
        for name in ("a_copies", "z_shares"):
            run = host.run(chosen_by(name, steps=3))
            assert run.status == "success", run.error


def test_the_ksampler_list_has_it_for_those_who_ask(comfyui, tmp_path, host, distilled):
    """After the setting is saved and the host restarted; packs that share the list still work."""
    packs = packs_that_have_the_list(tmp_path)
    with Host(comfyui, packs={**PACKS, "z_shares": packs["z_shares"]}) as other:
        (other.base / "user" / "default").mkdir(parents=True, exist_ok=True)
        (other.base / "user" / "default" / "comfy.settings.json").write_text('{"lmsd.KSampler": true}')
        file = host.base / "models" / SCHEDULES / distilled
        (other.base / "models" / SCHEDULES / distilled).write_text(file.read_text())
        other.restart()
        assert "lmsd" in json.dumps(other.object_info("KSampler")["input"]["required"]["sampler_name"])
        assert other.run(chosen_by("z_shares", steps=3)).status == "success"
        run = other.run(workflows.ksampler(sampler="lmsd", steps=4, seed=1))
        assert run.status == "success", run.error
        assert any(text.startswith(f"{distilled}, 4 steps") for text in run.texts)
        reference = host.run(loading(distilled, seed=1))
        for a, b in zip(other.images(run), host.images(reference), strict=True):
            assert abs(pixels(a) - pixels(b)).max() <= 1
        run = other.run(workflows.ksampler(sampler="lmsd", steps=7))
        assert run.status == "error" and "7 steps" in run.error["exception_message"]


@pytest.mark.parametrize("kind", ["missing", "of another version"])
def test_without_the_library_the_host_runs_and_the_log_says_why(comfyui, tmp_path, kind):
    """One sentence, no traceback, no nodes of ours."""
    (tmp_path / "lmsd").mkdir()
    text = "raise ImportError('No module named lmsd')" if kind == "missing" else "__version__ = '9.1.0'"
    (tmp_path / "lmsd" / "__init__.py").write_text(text + "\n")

    class Without(Host):
        def _environment(self):
            found = super()._environment()
            found["PYTHONPATH"] = os.pathsep.join([str(tmp_path), found["PYTHONPATH"]])
            return found

    with Without(comfyui) as host:
        said = [line for line in host.log().splitlines() if "lmsd nodes are not there" in line]
        assert len(said) == 1 and ("9.1.0" in said[0] or kind == "missing")
        assert "pip install" in said[0] and "Traceback" not in host.log()
        assert not any(name.startswith("Lmsd") for name in host.object_info())
        assert host.run(workflows.custom(steps=3)).status == "success"


def test_the_pack_does_not_name_torch():
    text = (PACK / "requirements.txt").read_text() + (PACK / "pyproject.toml").read_text()
    assert "torch" not in text and Path(ROOT / "bindings/comfyui/requirements.txt").read_text().startswith(
        "lmsd"
    )
