"""`lmsd bench`, on the emoji pipeline with random weights and on stock pipelines of small random networks."""

import json

import pytest

pytest.importorskip("diffusers")

import lmsd  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from emoji_models import EMOJI, random_pipeline  # noqa: E402
from lmsd._bench import measures, prompts, protocol, published, schedulers  # noqa: E402
from lmsd._bench.sampling import Sampler, Stopped  # noqa: E402
from lmsd._bench.store import Store  # noqa: E402

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
LINES = [
    f"{colour} {thing}" for colour in ("red", "blue", "green") for thing in ("cat", "dog", "apple", "leaf")
]
FIT = {"trajectories": 2, "held_out": 2, "iterations": 1}
FEW = ("Euler", "DPM-Solver++ 2M", "UniPC 2", "PNDM (pseudo linear multistep)")


@pytest.fixture(autouse=True)
def few_options(monkeypatch):
    """Four families on two spacings, for speed; the whole list has a test of its own."""
    monkeypatch.setattr(schedulers, "FAMILIES", {name: schedulers.FAMILIES[name] for name in FEW})
    spacings = {name: schedulers.SPACINGS[name] for name in ("trailing", "karras")}
    monkeypatch.setattr(schedulers, "SPACINGS", spacings)
    monkeypatch.setattr(schedulers, "SHIFTS", (1.0,))


@pytest.fixture
def saved(tmp_path):
    """Arguments for a saved pipeline and a file of prompts."""

    def arguments(name="pixel"):
        folder = tmp_path / name
        random_pipeline(tmp_path, name).save_pretrained(folder)
        (tmp_path / "prompts.txt").write_text("\n".join(LINES))
        return [
            "--diffusers",
            folder,
            "--prompts",
            tmp_path / "prompts.txt",
            "--pipeline",
            EMOJI / "emoji_pipeline.py",
        ]

    return arguments


def short(out, *more):
    flags = {
        "nfe": 3,
        "teacher-steps": 8,
        "test": 4,
        "rank": 2,
        "batch": 2,
        "out": out,
        "sheet": 3,
        "image-calls": 600,
    }
    flags |= {"trajectories": 2, "held-out": 2, "iterations": 1}
    return [text for name, value in flags.items() for text in (f"--{name}", value)] + list(more)


def plan(**changes):
    options = {"nfes": [3], "guidance": 3.0, "teacher_steps": 8, "batch": 2, "seed": 0, "image_calls": 600}
    return protocol.Plan(**{**options, "quiet": True, "fit": FIT, **changes})


def test_the_three_parts_have_no_prompt_in_common():
    some = prompts.split(LINES, 4, 3, seed=0)
    assert sorted(some.test + some.rank + some.fit) == sorted(LINES)
    assert [len(part) for part in some] == [4, 3, 5]
    assert prompts.split(LINES, 4, 3, seed=0) == some != prompts.split(LINES, 4, 3, seed=1)


def test_repeated_prompts_count_once(tmp_path):
    (tmp_path / "p.txt").write_text("red  cat\n\n red cat \nblue dog\n")
    assert prompts.read(tmp_path / "p.txt") == ["red cat", "blue dog"]


def test_a_fit_sees_only_the_prompts_to_fit_to(tmp_path, monkeypatch):
    """Whatever the pipeline is asked for while a schedule is distilled is a prompt of that part."""
    pipe, split = random_pipeline(tmp_path), prompts.split(LINES, 4, 2, seed=0)
    seen, own = set(), type(pipe).encode_prompt

    def encode_prompt(self, texts):
        seen.update(texts)
        return own(self, texts)

    store = Store(tmp_path / "out", {})
    run = protocol.Run(pipe, split, store, plan(fit={**FIT, "trajectories": 4}), lambda: False, print)
    run.check()
    run.teacher("rank", protocol.RANK_NOISE)
    monkeypatch.setattr(type(pipe), "encode_prompt", encode_prompt)
    run.fitted(3)
    seen.discard("")  # of guidance
    assert len(seen) > 2 and seen <= set(split.fit)
    assert not seen & set(split.test + split.rank)


def test_a_whole_run_and_a_second_one(tmp_path, saved, lmsd_, monkeypatch):
    arguments, out = saved(), tmp_path / "out"
    said = lmsd_("bench", *arguments, *short(out))
    assert "4 prompts to measure on, 2 to choose options" in said and "plan: " in said
    assert "random convolutional network" in said and "published," not in said
    facts = json.loads((out / "bench.json").read_text())
    families = {row["family"] for row in facts["rows"]}
    assert families == {"distilled", schedulers.OWN, *FEW, protocol.FIELD}
    for row in facts["rows"]:
        assert row["calls"] == 3 and row["evaluations"] == 6
        assert 3 < row["psnr"] < 100 and len(row["psnr_each"]) == 4 and row["features"] > 0
    distilled, best = (
        max(row["psnr"] for row in facts["rows"] if (row["family"] == "distilled") == own)
        for own in (True, False)
    )
    assert distilled > best - 3
    assert facts["image_calls"]["teacher"] == 6 * 8 and facts["image_calls"]["fits"] > 100
    assert {file.name for file in out.iterdir()} >= {"bench.json", "sheet.png", "schedules", "teacher"}
    assert lmsd.Schedule.load(out / "schedules" / "nfe03.json").nfe == 3

    def refuse(*_, **__):
        raise AssertionError("drawn or fitted again")

    monkeypatch.setattr(Sampler, "draw", refuse)
    monkeypatch.setattr(protocol, "distill", refuse)
    again = lmsd_("bench", *arguments, *short(out, "--quiet"))
    table = again[again.index("calls  sampler") :]
    assert len(table.splitlines()) > len(facts["rows"]) and table in said
    other = lmsd_("bench", *arguments, *short(out, "--quiet", "--guidance", 4), code=1)
    assert "holds a run with another guidance (3.0; this one has 4.0)" in other


def test_what_was_stopped_goes_on(tmp_path):
    """Stopped after each number of polls, and started again until it is through: the rows of one run."""
    split = prompts.split(LINES, 4, 2, seed=0)
    pipe, whole = random_pipeline(tmp_path), Store(tmp_path / "whole", {})
    protocol.Run(pipe, split, whole, plan(rivals="none"), lambda: False, lambda text: None).run()
    for attempt in range(40):
        polls = 0

        def stop(limit=3 if attempt < 3 else 150):
            nonlocal polls
            polls += 1
            return polls > limit

        parts = Store(tmp_path / "parts", {})
        try:
            protocol.Run(pipe, split, parts, plan(rivals="none"), stop, lambda text: None).run()
            break
        except Stopped:
            parts.put()
    assert attempt > 3
    for one, other in zip(whole.facts["rows"], parts.facts["rows"], strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


@pytest.mark.parametrize("name", ["flow", "latent"])
def test_flow_and_latent_pipelines(tmp_path, saved, lmsd_, name):
    lmsd_("bench", *saved(name), *short(tmp_path / "out", "--quiet"))
    facts = json.loads((tmp_path / "out" / "bench.json").read_text())
    families = {row["family"] for row in facts["rows"]}
    assert {"distilled", "Euler", "DPM-Solver++ 2M", "UniPC 2"} <= families
    assert all(row["calls"] == 3 for row in facts["rows"])
    if name == "flow":
        assert max(facts["teacher_grid"]) <= 1


def test_noise_does_not_depend_on_the_batch(tmp_path):
    pipe = random_pipeline(tmp_path)

    def pictures(batch, first=0):
        sampler = Sampler(pipe, {"guidance_scale": 3.0}, batch, seed=1)
        return sampler.draw(pipe.scheduler, 2, LINES[first:4], first), sampler

    (all_at_once, sampler), (one_by_one, _), (last, _) = pictures(4), pictures(1), pictures(3, 2)
    assert np.allclose(all_at_once, one_by_one, atol=1e-4) and np.allclose(all_at_once[2:], last, atol=1e-4)
    assert (sampler.calls, sampler.evaluations, sampler.image_calls) == (2, 4, 8)


def test_memory_that_runs_out_halves_the_batch(tmp_path, monkeypatch):
    pipe = random_pipeline(tmp_path)
    sampler, own = Sampler(pipe, {}, 4, seed=1), Sampler._batch
    expected = sampler.draw(pipe.scheduler, 2, LINES[:4])

    def full(self, steps, texts, first):
        if len(texts) > 1:
            raise RuntimeError("out of memory")
        return own(self, steps, texts, first)

    monkeypatch.setattr(Sampler, "_batch", full)
    assert np.allclose(sampler.draw(pipe.scheduler, 2, LINES[:4]), expected, atol=1e-4) and sampler.batch == 1


def test_every_family_of_diffusers_runs_with_some_options(tmp_path, monkeypatch):
    monkeypatch.undo()
    for name in ("pixel", "flow"):
        pipe, split = random_pipeline(tmp_path, name), prompts.split(LINES, 2, 2, seed=0)
        run = protocol.Run(pipe, split, Store(tmp_path / f"out-{name}", {}), plan(), lambda: False, print)
        groups, ran = run.groups(4), {}
        for family, candidates in groups.items():
            drawn = (run.attempt(candidate, split.test[:1], 0) for candidate in candidates)
            ran[family] = any(pictures is not None and run.sampler.calls == 4 for pictures in drawn)
        assert all(ran.values()), ran
        expected = {schedulers.OWN, *schedulers.FAMILIES}
        assert set(groups) == (
            expected if name == "pixel" else expected - set(schedulers.VE_ONLY) | {"Euler"}
        )


def test_the_teacher_of_the_fit_is_that_of_the_pictures(tmp_path):
    """lmsd's dpmpp_2m on the grid of diffusers' scheduler makes the same pictures."""
    for name in ("pixel", "flow"):
        pipe = random_pipeline(tmp_path, name)
        sampler, scheduler = Sampler(pipe, {"guidance_scale": 3.0}, 2, seed=0), schedulers.teacher(pipe)
        pictures = sampler.draw(scheduler, 8, LINES[:2])
        grid = [float(sigma) for sigma in scheduler.sigmas]
        levels = {"sigma_max": grid[0]}
        if name == "flow":
            grid[0] = 1.0
            levels = {"process": "flow", "sigma_max": 1.0}
        schedule = lmsd.solve("dpmpp_2m", nfe=8, grid={"kind": "list", "sigmas": grid}, **levels)
        file = schedule.to_dict()
        del file["made_for"]
        candidate = schedulers.of_schedule(pipe, "teacher", lmsd.Schedule.from_json(file))
        own = sampler.draw(candidate.make(), 8, LINES[:2])
        assert measures.psnr(own, pictures).min() > 40


def test_psnr_and_feature_distance():
    rng = np.random.default_rng(0)
    pictures = rng.random((4, 32, 32, 3), np.float32)
    assert np.allclose(measures.psnr(pictures * 0 + 0.6, pictures * 0 + 0.5), 20)
    of, words = measures.features("random")
    near, far = (
        measures.relative_distance(of(other), of(pictures))
        for other in (pictures + 0.01, rng.random(pictures.shape, np.float32))
    )
    assert "random" in words and (near < far).all() and 0.5 < far.mean() < 2
    assert measures.relative_distance(of(pictures), of(pictures)).max() == 0


def test_a_torchscript_file_gives_features(tmp_path):
    module = torch.jit.trace(torch.nn.AvgPool2d(8), torch.zeros(1, 3, 32, 32))
    module.save(tmp_path / "pool.pt")
    of, words = measures.features(str(tmp_path / "pool.pt"))
    assert of(np.ones((2, 32, 32, 3), np.float32)).shape == (2, 48) and "pool.pt" in words
    with pytest.raises(lmsd.Error, match="neither random"):
        measures.features(str(tmp_path / "nothing"))


def test_published_points_only_where_the_settings_match():
    class StableDiffusionPipeline:
        class unet:
            config = {"cross_attention_dim": 768, "sample_size": 64}

        class scheduler:
            config = {"prediction_type": "epsilon"}

    size = (None, None)
    assert "20.6 dB at 5" in published.lines(StableDiffusionPipeline(), 3.0, 40, size)[0]
    assert published.lines(StableDiffusionPipeline(), 3.0, 40, (512, 512))
    for other in ((7.5, 40, size), (3.0, 50, size), (3.0, 40, (768, 512))):
        assert not published.lines(StableDiffusionPipeline(), *other)
    assert not published.lines(object(), 3.0, 40, size)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"--prompts": "none.txt"}, "there is no file of prompts none.txt"),
        ({"--prompts": "empty.txt"}, "empty.txt has no prompts"),
        ({"--prompts": "two.txt"}, "there are 2 different prompts, and 8 are needed"),
        ({"--diffusers": "none"}, "there is no folder none"),
        ({"--diffusers": "."}, "holds no diffusers pipeline"),
        ({"--diffusers": "strange"}, "is a StrangePipeline, which diffusers does not have: --pipeline"),
        ({"--pipeline": "none.py"}, "there is no file none.py"),
        ({"--teacher-steps": 5}, "--teacher-steps is 5; twice the most calls, 6, are needed"),
        ({"--features": "none"}, "neither random"),
    ],
)
def test_slips_are_refused_in_one_sentence(tmp_path, saved, lmsd_, monkeypatch, change, sentence):
    arguments = [*saved(), *short(tmp_path / "out", "--quiet")]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "two.txt").write_text("cat\ndog\ncat\n")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "model_index.json").write_text('{"_class_name": "StrangePipeline"}')
    for flag, value in change.items():
        if flag in arguments:
            arguments[arguments.index(flag) + 1] = value
        else:
            arguments += [flag, value]
    said = lmsd_("bench", *arguments, code=1).strip()
    assert said.startswith("lmsd: ") and sentence in said and "\n" not in said


def test_a_pipeline_of_another_loop_is_refused(tmp_path, monkeypatch):
    pipe, split = random_pipeline(tmp_path), prompts.split(LINES, 4, 2, seed=0)
    run = protocol.Run(pipe, split, Store(tmp_path / "out", {}), plan(), lambda: False, print)

    def call(self, prompt="", num_inference_steps=1, generator=None, output_type="np", latents=None):
        self.scheduler.timesteps[0]

    monkeypatch.setattr(type(pipe), "__call__", call)
    with pytest.raises(lmsd.Error, match="EmojiPipeline cannot be distilled: "):
        run.check()


def test_a_pipeline_without_prompts_is_refused(tmp_path, lmsd_):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        block_out_channels=(8,),
        sample_size=8,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    (tmp_path / "p.txt").write_text("\n".join(LINES))
    said = lmsd_(
        "bench",
        "--diffusers",
        tmp_path / "ddpm",
        "--prompts",
        tmp_path / "p.txt",
        "--test",
        4,
        "--rank",
        2,
        code=1,
    )
    assert "DDPMPipeline cannot be compared on prompts: its call takes no prompt" in said
