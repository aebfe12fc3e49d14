"""A pipeline of two networks, of high and of low noise, as Wan 2.2 is: distilled for and sampled as it is."""

from types import SimpleNamespace

import lmsd
import pytest
import torch
from diffusers_models import quiet, seeded, wan
from lmsd._pipeline.distillation import second_network
from lmsd._pipeline.network import Network
from lmsd.diffusers import LmsdScheduler, distill

BOUNDARY = 0.875
SMALL = {"height": 16, "width": 16, "num_frames": 1}
QUICK = {  # a pass of two networks with guidance takes four calls of them
    "teacher_nfe": 8,
    "iterations": 1,
    "trajectories": 2,
    "held_out": 2,
    "batch_size": 2,
    "progress": False,
    **SMALL,
}


@pytest.fixture
def pipe():
    torch.manual_seed(0)
    pipeline, pipeline.one = wan(BOUNDARY)
    return quiet(pipeline)


class Heard:
    """Noise levels at which each network was called, passes without a prompt included."""

    def __init__(self, pipe):
        self.high, self.low = [], []
        for network, levels in ((pipe.transformer, self.high), (pipe.transformer_2, self.low)):
            network.register_forward_pre_hook(self.hook(levels), with_kwargs=True)

    @staticmethod
    def hook(levels):
        def hear(module, args, named):
            time = named["timestep"] if "timestep" in named else args[1]
            levels.append(float(time.max()) / 1000)

        return hear

    def check(self):
        assert self.high and self.low
        assert min(self.high) >= BOUNDARY > max(self.low)

    def clear(self):
        self.high.clear(), self.low.clear()


def sampled(pipe, schedule, **options):
    """Latents of seed 1, by a schedule."""
    own, pipe.scheduler = pipe.scheduler, LmsdScheduler.from_schedule(schedule, like=pipe.scheduler)
    one = {name: value[None] for name, value in pipe.one.items()}
    options = {"guidance_scale": 4.0, "output_type": "latent", "generator": seeded(1), **options}
    try:
        return pipe(**one, **SMALL, num_inference_steps=schedule.nfe, **options).frames
    finally:
        pipe.scheduler = own


def table(steps=6):
    return lmsd.solve(
        "dpmpp_3m", nfe=steps, grid={"kind": "flow", "shift": 5.0}, process="flow", sigma_max=1.0
    )


def test_one_schedule_for_two_networks(pipe):
    """Teacher and student alike call each on its side, for which both have to be called."""
    heard = Heard(pipe)
    found = distill(pipe, [pipe.one], nfe=2, guidance_scale=4.0, **QUICK)
    heard.check()
    schedule = found.schedules[2]
    assert schedule.made_for["boundary"] == pytest.approx(BOUNDARY)
    assert schedule.made_for["guidance_scale"] == 4 and "guidance_scale_2" not in schedule.made_for

    heard.clear()
    sampled(pipe, schedule)
    levels = [level for level in schedule.scales * schedule.sigmas[:-1] for _ in ("prompt", "none")]
    assert heard.high == pytest.approx([level for level in levels if level >= BOUNDARY], rel=1e-5)
    assert heard.low == pytest.approx([level for level in levels if level < BOUNDARY], rel=1e-5)


def test_it_is_the_pipelines_own_trajectory(pipe):
    """What the pipeline makes of a schedule is what the library makes of it with the two networks."""
    schedule = table()
    noise = torch.randn(1, 4, 1, 2, 2, generator=seeded(2))
    one = {name: value[None] for name, value in pipe.one.items()}

    @torch.no_grad()
    def model(x, sigma):
        first = sigma >= BOUNDARY
        network, scale = (pipe.transformer, 4.0) if first else (pipe.transformer_2, 3.0)
        time = torch.tensor([1000 * sigma], dtype=torch.float32)
        made = [network(x, time, one[name]).sample for name in ("prompt_embeds", "negative_prompt_embeds")]
        return x - sigma * (made[1] + scale * (made[0] - made[1]))

    want = lmsd.sample(schedule, noise, model)
    got = sampled(pipe, schedule, latents=noise, guidance_scale_2=3.0)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_both_guidance_scales_take_effect(pipe):
    """While sampling and while distilling; the second is recorded where it differs from the first."""
    outs = [
        sampled(pipe, table(), guidance_scale=first, guidance_scale_2=second)
        for first, second in ((4.0, 3.0), (4.0, 1.5), (2.0, 3.0))
    ]
    for n, out in enumerate(outs):
        assert not torch.allclose(out, outs[n - 1], atol=1e-4)

    def fit(**scales):
        return distill(pipe, [pipe.one], nfe=1, guidance_scale=4.0, **QUICK, **scales).schedules[1]

    same, other = fit(), fit(guidance_scale_2=1.5)
    assert other.made_for["guidance_scale_2"] == 1.5 and "guidance_scale_2" not in same.made_for
    assert other.made_by["distance"] != same.made_by["distance"]  # the teacher is another one
    assert other.made_by["seeds"] != same.made_by["seeds"]


@pytest.mark.parametrize(
    ("ratio", "scale", "said"),
    [
        (None, None, {}),
        (0.9, None, {"boundary": pytest.approx(0.9)}),
        (0.9, 4.0, {"boundary": pytest.approx(0.9)}),  # what it would have anyway
        (0.9, 3, {"boundary": pytest.approx(0.9), "guidance_scale_2": 3.0}),
    ],
)
def test_what_a_schedule_says_of_a_second_network(ratio, scale, said):
    pipeline = SimpleNamespace(config=SimpleNamespace(boundary_ratio=ratio))
    fixed = {} if scale is None else {"guidance_scale_2": scale}
    calls = SimpleNamespace(pipeline=pipeline, fixed=fixed, guidance=[4.0])
    network = Network({"prediction_type": "flow_prediction", "shift": 5.0, "num_train_timesteps": 1000})
    assert second_network(network, calls) == said
