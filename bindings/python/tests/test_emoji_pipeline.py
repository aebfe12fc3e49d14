"""The emoji models as a diffusers pipeline."""

import pytest

diffusers = pytest.importorskip("diffusers")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from emoji_models import EmojiPipeline, random_pipeline  # noqa: E402
from emoji_pipeline import read  # noqa: E402
from lmsd.diffusers import LmsdScheduler, distill  # noqa: E402
from network import Denoiser  # noqa: E402

torch.set_num_threads(1)
NAMES = ("pixel", "flow", "latent")
PROMPTS = ["red apple", "blue cat"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_words_of_a_prompt(tmp_path):
    text = random_pipeline(tmp_path).text_encoder
    rows = text.tokenize(["A Red apple!", "purple", "cat " * 20])
    assert rows.shape == (3, 8) and rows[0, :3].tolist() == [1, 2, 0]
    assert not rows[1].any() and (rows[2] == 4).all()
    both = text(text.tokenize(["red apple", "red", "apple", ""]))
    assert torch.allclose(both[0], (both[1] + both[2]) / 2) and not both[3].any()


@pytest.mark.parametrize("name", NAMES)
def test_the_unet_is_the_trained_network_in_diffusers_coordinates(tmp_path, name):
    from lmsd._pipeline.network import Network, settings

    pipe = random_pipeline(tmp_path, name)
    weights, vocabulary = read(tmp_path / f"{name}.safetensors")
    flow, latent = name == "flow", name == "latent"
    trained = Denoiser(len(vocabulary), 4 if latent else 3, 1 if latent else 2, flow)
    trained.load_state_dict(weights)
    network = Network(settings(pipe.scheduler))
    numbers = pipe.text_encoder.tokenize(PROMPTS)
    for sigma in (1.0, 0.7, 0.01) if flow else (80.0, 3.0, 0.01):
        x = torch.randn(2, *((4, 16, 16) if latent else (3, 32, 32)), generator=seeded()) * max(1, sigma)
        time = torch.tensor(network.timestep(sigma))
        output = pipe.unet(x * network.input_scale(sigma), time, pipe.encode_prompt(PROMPTS))
        denoised = network.denoised(output, x, sigma)
        with torch.no_grad():
            expected = trained(x, torch.full((2,), sigma), numbers)
        assert torch.allclose(denoised, expected, atol=1e-3 * float(expected.std()))


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_folder_gives_the_same_pictures(tmp_path, name):
    pipe = random_pipeline(tmp_path, name)
    pipe.save_pretrained(tmp_path / "saved")
    loaded = EmojiPipeline.from_pretrained(tmp_path / "saved")
    loaded.set_progress_bar_config(disable=True)
    first, second = (
        p(PROMPTS, num_inference_steps=3, generator=seeded(), output_type="np").images for p in (pipe, loaded)
    )
    assert first.shape == ((2, 64, 64, 3) if name == "latent" else (2, 32, 32, 3))
    assert np.array_equal(first, second)


def test_prompts_guidance_and_seeds_make_a_difference(tmp_path):
    pipe = random_pipeline(tmp_path)

    def picture(prompt="red apple", seed=0, **options):
        return pipe(
            prompt, num_inference_steps=2, generator=seeded(seed), output_type="latent", **options
        ).images

    plain = picture()
    assert torch.equal(plain, picture())
    for other in (picture("cat"), picture(seed=1), picture(guidance_scale=1), picture(negative_prompt="dog")):
        assert not torch.allclose(plain, other)
    assert torch.equal(picture(guidance_scale=1), picture(guidance_scale=1, negative_prompt="dog"))
    assert pipe("cat", num_inference_steps=1, generator=seeded()).images[0].size == (32, 32)


@pytest.mark.parametrize("name", NAMES)
def test_distilled_and_sampled_unchanged(tmp_path, name):
    pipe = random_pipeline(tmp_path, name)
    options = {"teacher_nfe": 6, "iterations": 1, "trajectories": 2, "held_out": 2, "batch_size": 2}
    found = distill(pipe, PROMPTS, nfe=3, guidance_scale=3.0, progress=False, **options)
    assert found.schedules[3].process == ("flow" if name == "flow" else "ve")
    pipe.scheduler = LmsdScheduler.from_schedule(found, like=pipe.scheduler)
    pictures = pipe("cat", num_inference_steps=3, guidance_scale=3.0, output_type="np").images
    assert np.isfinite(pictures).all()
