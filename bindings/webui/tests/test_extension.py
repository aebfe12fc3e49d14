"""The extension in stand-ins of A1111, Forge and SD.Next."""

import sys

import fake_webui
import lmsd
import pytest
import torch
from lmsd.k_diffusion import host_sigmas

SIGMA_MAX = 14.6146  # of Stable Diffusion 1.5
STEPS = (4, 5, 6)


class Model:
    """The mixture, as a model that knows its noise levels."""

    def __init__(self, mixture):
        self.mixture, self.told = mixture, []
        self.sigmas = torch.logspace(-1.5, 1, 1000) * SIGMA_MAX / 10

    def __call__(self, x, sigma):
        self.told.append(sigma)
        return self.mixture.model(x, sigma)


@pytest.fixture
def model(mixture):
    return Model(mixture)


@pytest.fixture
def noise(mixture):
    return torch.from_numpy(mixture.begin(0)).float() / 80


@pytest.fixture(params=["a1111", "forge"])
def host(monkeypatch, tmp_path, request):
    return fake_webui.install(monkeypatch, tmp_path, request.param)


def schedule(nfe, **options):
    """As a fit leaves it: rounded levels, the first call below the level of x_T, free sums."""
    made_for = {"sigma_max": 14.6, "guidance_scale": 3.0}
    file = lmsd.solve("dpmpp_2m", nfe=nfe, sigma_max=14.6, sigma_min=0.03, sigma_end=0.0, **options).to_dict()
    file["nodes"][0]["sigma"] = 12.0
    for node in file["nodes"]:
        node["weights"] = [1.02 * weight for weight in node["weights"]]
    return lmsd.Schedule.from_json({**file, "made_for": made_for})


@pytest.fixture
def family(host):
    folder = host.models / "lmsd_schedules" / "cats"
    folder.mkdir(parents=True)
    found = {nfe: schedule(nfe) for nfe in STEPS}
    for nfe, one in found.items():
        one.save(folder / f"nfe{nfe:02d}.json")
    (folder / "report.json").write_text("{}")
    return found


NAME = "cats/nfe*.json"


def image(host, model, noise, steps=5, name=NAME, **options):
    p = host.process(fake_webui.Processing("Distilled", steps, **options), name)
    return host.sampler("Distilled", model).sample(p, noise)


def close(out, expected):
    """Hosts have noise levels in float32."""
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


# ---- the lists


def test_it_is_in_the_lists_once(host):
    for _ in range(2):  # the page is loaded again
        host.load()
        samplers, schedulers = host.modules.sd_samplers, host.modules.sd_schedulers
        assert [data.name for data in samplers.all_samplers] == ["Euler", "Distilled"]
        assert samplers.samplers_map["distilled"] == samplers.samplers_map["lmsd_distilled"] == "Distilled"
        for known in (schedulers.schedulers, getattr(schedulers, "all_schedulers", schedulers.schedulers)):
            assert [scheduler.label for scheduler in known] == ["Karras", "Distilled"]
        assert schedulers.schedulers_map["distilled"] is schedulers.schedulers_map["Distilled"]


def test_the_page_may_be_loaded_again(host, family, model, noise):
    host.load()
    host.load()
    expected = lmsd.sample(family[5], noise * 14.6, model)
    close(image(host, model, noise), expected)


def test_without_lmsd_a_sentence(host, monkeypatch):
    monkeypatch.setitem(sys.modules, "lmsd", None)
    with pytest.raises(ImportError, match="lmsd is not installed in this web UI's Python, see the README"):
        host.load()
    assert len(host.modules.sd_samplers.all_samplers) == 1


# ---- the drop-down


def test_the_drop_down_has_families_and_new_files(host, family):
    (script,) = host.load().scripts
    folder = host.models / "lmsd_schedules"
    for tab in (False, True):
        (chosen,) = script.ui(tab)
        assert chosen.given["choices"] == [NAME] and chosen.given["value"] == NAME
    for name in ("dogs nfe05.json", "dogs nfe08.json", "one.json"):
        family[5].save(folder / name)
    component, refresh, arguments, _ = host.buttons[-1]
    refresh()
    assert component is chosen and arguments()["choices"] == [NAME, "dogs nfe*.json", "one.json"]
    assert script.infotext_fields == [(chosen, "Distilled schedule")]
    assert script.show(True) is script.show(False) is host.modules.scripts.AlwaysVisible


def test_no_files_are_no_error(host):
    (script,) = host.load().scripts
    (chosen,) = script.ui(False)
    assert chosen.given["choices"] == [] and chosen.given["value"] is None
    assert (host.models / "lmsd_schedules").is_dir()


def test_the_choice_is_kept_with_the_image(host, family):
    host.load()
    p = host.process(fake_webui.Processing("Distilled", 5), NAME)
    assert p.extra_generation_params == {"Distilled schedule": NAME} and p.comments == []
    assert host.process(fake_webui.Processing("Euler", 20), NAME).extra_generation_params == {}


@pytest.mark.parametrize("says", ["comment", "print"])
def test_another_guidance_scale_is_remarked(host, family, says, capsys):
    host.load()
    p = fake_webui.Processing("Distilled", 5, cfg_scale=7.0)
    if says == "comment":
        p.comment = p.comments.append
    host.process(p, NAME)
    text = "Distilled: the schedule was made for CFG scale 3; this run has 7"
    assert p.comments == [text] * (says == "comment")
    assert capsys.readouterr().out == f"{text}\n" * (says == "print")


# ---- images


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("kind", ["Automatic", "Distilled"])
def test_an_image_has_the_steps_that_are_set(host, family, model, noise, steps, kind):
    host.load()
    expected = lmsd.sample(family[steps], noise * 14.6, model)
    model.told.clear()
    close(image(host, model, noise, steps, scheduler=kind), expected)
    assert len(model.told) == steps and model.told[0] == pytest.approx(12, rel=1e-6)


def test_of_another_schedule_type_the_ends_and_the_steps_count(host, family, model, noise):
    """Its first level is the model's own, 14.6146; the schedule was made with 14.6."""
    host.load()
    assert float(model.sigmas[-1]) == pytest.approx(SIGMA_MAX, rel=1e-5)
    expected = lmsd.sample(family[5], noise * 14.6, model)
    close(image(host, model, noise, scheduler="Karras"), expected)


def test_image_to_image_starts_at_the_schedule_s_level(host, family, model, noise, mixture):
    host.load()
    p = host.process(fake_webui.Processing("Distilled", 5, denoising_strength=0.6), NAME)
    sampler, start = host.sampler("Distilled", model), 0.3 * noise
    out = sampler.sample_img2img(p, start, noise)
    level = float(host_sigmas(family[5])[1])  # 4 steps of 5
    rest = family[5].start_at(level)
    assert rest.nfe == 4 == len(sampler.heard)
    close(out, lmsd.sample(rest, start + noise * level, mixture.model))


@pytest.mark.parametrize("strength", [0.9, 0.5, 0.2, 0.05])
def test_hires_fix_asks_for_more_steps_than_it_takes(host, family, model, noise, strength):
    host.load()
    p = host.process(fake_webui.Processing("Distilled", 5, denoising_strength=strength), NAME)
    sampler = host.sampler("Distilled", model)
    out = sampler.sample_img2img(p, 0.3 * noise, noise, steps=5)
    assert out.isfinite().all() and 1 <= len(sampler.heard) <= 6
    assert model.told[0] < 14.6 * 0.99


def test_an_interrupt_gives_what_there_is(host, family, model, noise):
    host.load()
    p = host.process(fake_webui.Processing("Distilled", 5), NAME)
    sampler = host.sampler("Distilled", model)
    sampler.stop_at = 2
    out = sampler.sample(p, noise)
    assert sampler.heard == [0, 1, 2] and len(model.told) == 3
    assert out is sampler.last_latent


# ---- what cannot be


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"steps": 20},
            "20 steps are set; of this schedule there are 4, 5, 6: set the steps to one of these",
        ),
        ({"steps": 20, "scheduler": "Karras"}, "20 steps are set; of this schedule there are 4, 5, 6"),
        (
            {"name": None},
            "choose a schedule under 'Distilled schedule'; the files are those in .*lmsd_schedules",
        ),
        ({"name": "gone nfe*.json"}, "there is no schedule 'gone nfe.*json' in"),
        ({"name": "damaged.json"}, "damaged.json"),
        ({"name": "other.json"}, "made for sigma_max 80; this model has 14.6"),
        ({"name": "flow.json"}, "made for the process flow; this model has ve"),
    ],
)
def test_what_does_not_fit_is_said(host, family, model, noise, options, words):
    folder = host.models / "lmsd_schedules"
    (folder / "damaged.json").write_text("{")
    other = {**lmsd.solve(nfe=5).to_dict(), "made_for": {"sigma_max": 80.0}}
    lmsd.Schedule.from_json(other).save(folder / "other.json")
    lmsd.solve(nfe=5, process="flow").save(folder / "flow.json")
    host.load()
    if options.get("name") == "damaged.json":  # hosts print what `process` raises, and go on
        host.process(fake_webui.Processing("Euler", 5), "damaged.json")
        p = fake_webui.Processing("Distilled", 5)
        with pytest.raises(lmsd.Error, match=words):
            host.sampler("Distilled", model).sample(p, noise)
        return
    with pytest.raises(lmsd.Error, match=words):
        image(host, model, noise, **options)
    assert model.told == []


def test_a_list_without_a_step(host, family, noise):
    host.load()
    (script,) = host.scripts
    sample = host.modules.sd_schedulers.schedulers_map["Distilled"].function.__self__.sample
    assert sample(None, noise, torch.tensor([14.6])) is noise


# ---- SD.Next


@pytest.fixture
def sdnext(monkeypatch, tmp_path):
    return fake_webui.install(monkeypatch, tmp_path, "sdnext")


def test_sdnext_lists_it_before_the_last(sdnext):
    for _ in range(2):
        sdnext.load()
        names = [data.name for data in sdnext.modules.sd_samplers.all_samplers]
        assert names == ["Default", "Euler", "LMSD", "Distilled", "Same as primary"]


def test_sdnext_samples_with_the_scheduler_of_diffusers(sdnext):
    pytest.importorskip("diffusers")
    from diffusers_models import digits_pipeline, quiet, table
    from lmsd.diffusers import LmsdScheduler

    pipe, folder = quiet(digits_pipeline()), sdnext.models / "lmsd_schedules"
    folder.mkdir()
    own, found = pipe.scheduler, {nfe: table("dpmpp_2m", nfe=nfe) for nfe in STEPS}
    for nfe, one in found.items():
        one.save(folder / f"nfe{nfe:02d}.json")
    sdnext.load()
    with pytest.raises(lmsd.Error, match="choose a schedule"):
        sdnext.sampler("Distilled", pipe)
    assert sdnext.sampler("Distilled", None).sampler is None

    def images(scheduler):
        pipe.scheduler = scheduler
        generator = torch.Generator().manual_seed(0)
        found = pipe([3], num_inference_steps=5, generator=generator)
        return getattr(found, "images", found)

    expected = images(LmsdScheduler.from_schedule(list(found.values()), like=own))
    pipe.scheduler = pipe.default_scheduler = own
    sdnext.process(fake_webui.Processing("Distilled", 5), "nfe*.json")
    made = sdnext.sampler("Distilled", pipe)
    assert made.name == "Distilled" and made.sampler.config.prediction_type == own.config.prediction_type
    assert (images(made.sampler) == expected).all()
