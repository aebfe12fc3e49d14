"""Tests of the emoji models: the graphs against the torch modules, what they draw, and what is kept apart."""

import hashlib
from pathlib import Path

import emoji_model
import lmsd
import numpy as np
import pytest
from demo import PROMPTS
from emoji_data import HELD_OUT, NO_EMOJI, words_of
from emoji_model import SHAPES, Emoji, noise
from emoji_problem import problem, prompts
from judge import Judge, psnr

HERE = Path(__file__).parent
NAMES = 430  # emoji that are trained on, whose names stand first in prompts_fit.txt


@pytest.fixture(scope="module", params=SHAPES)
def emoji(request):
    return Emoji(request.param)


def levels(emoji):
    return (0.02, 0.4, 0.95, 1.0) if emoji.process == "flow" else (0.01, 0.5, 8.0, 80.0)


def test_the_graph_equals_the_torch_module(emoji):
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx")
    from export import denoiser

    net = denoiser(emoji.name)
    words = emoji.words(["red apple", "cat", ""])
    for sigma in levels(emoji):
        x = noise(emoji.shape, 0, 3, 0) * np.float32(np.hypot(sigma, 0.5))
        with torch.no_grad():
            want = net(torch.from_numpy(x), torch.full((3,), sigma), torch.from_numpy(words)).numpy()
        got = emoji.denoise(x, sigma, words)
        assert np.abs(got - want).max() < 1e-3 * max(1, np.abs(want).max())


def test_a_device_of_torch_gives_the_same(emoji, monkeypatch):
    """As LMSD_EMOJI_DEVICE has it."""
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    monkeypatch.setattr(emoji_model, "DEVICE", "cpu")
    there, words = Emoji(emoji.name), emoji.words(["red apple", "cat"])
    for sigma in levels(emoji):
        x = noise(emoji.shape, 0, 2, 0) * np.float32(np.hypot(sigma, 0.5))
        want = emoji.denoise(x, sigma, words, 3.0)
        np.testing.assert_allclose(there.denoise(x, sigma, words, 3.0), want, atol=3e-3 * np.abs(want).max())


def test_words_and_guidance_matter(emoji):
    x, sigma = noise(emoji.shape, 0, 2, 0), 0.9 if emoji.process == "flow" else 5.0
    x = x * np.float32(sigma)
    words = emoji.words(["hamburger", "blue heart"])
    told, untold = emoji.denoise(x, sigma, words), emoji.denoise(x, sigma, np.zeros_like(words))
    assert np.abs(told - untold).mean() > 0.02
    guided = emoji.denoise(x, sigma, words, 4.0)
    np.testing.assert_allclose(guided, untold + 4 * (told - untold), atol=2e-3)


def test_a_little_noise_leaves_the_picture(emoji):
    x = np.float32(0.3) * noise(emoji.shape, 1, 2, 0)
    sigma = emoji.sigma_min
    assert np.abs(emoji.denoise(x, sigma, emoji.words(["cat", "dog"])) - x).max() < 20 * sigma


def test_words():
    emoji = Emoji("pixel")
    assert words_of("The Red-apple, and 2 cats!") == ["red", "apple", "2", "cats"]
    assert emoji.unknown("red qwertyuiop apple") == ["qwertyuiop"]
    (row,) = emoji.words(["apple qwertyuiop red"])
    np.testing.assert_array_equal(row, emoji.words(["apple red"])[0])
    assert (row > 0).sum() == 2


def test_held_out_prompts_are_not_fitted_to():
    """Names of emoji are told apart by the rule of emoji_data.py, which training used too."""

    def held_out(name):
        return int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT == 0

    fitted, tested = prompts("fit"), prompts("test")
    names, mixed = fitted[:NAMES], fitted[NAMES:]
    assert not any(map(held_out, names)) and all(len(words_of(text)) == 2 for text in mixed)
    alike = {frozenset(words_of(text)) for text in tested}
    assert len(mixed) > 100 and not any(frozenset(words_of(text)) in alike for text in fitted)
    assert set(tested) >= set(NO_EMOJI) and all(held_out(name) for name in set(tested) - set(NO_EMOJI))
    assert len(set(tested)) == len(tested) > 50 and not set(tested) & set(fitted)
    a, b = problem("pixel", size=4), problem("pixel", size=4, test=True)
    a.begin(0), b.begin(0)
    assert not (a.words == b.words).all()


def test_the_teacher_draws_what_was_asked_for(emoji):
    """A classifier that was trained apart names the kind of at least 8 of the 10 prompts of the demo."""
    own = problem(emoji.name, 3.0, size=len(PROMPTS))
    process = {"process": own.process, "sigma_max": own.sigma_max, "sigma_min": own.sigma_min}
    schedule = lmsd.solve("dpmpp_2m", nfe=40, sigma_end=own.sigma_end, **process)
    words = emoji.words(list(PROMPTS))
    start = noise(emoji.shape, 0, len(PROMPTS), 1) * np.float32(own.sigma_max)
    drawn = lmsd.sample(schedule, start, lambda x, sigma: emoji.denoise(x, sigma, words, 3.0))
    kinds = Judge().kinds(emoji.pictures(drawn))
    assert sum(a == b for a, b in zip(kinds, PROMPTS.values(), strict=True)) >= 8


def test_the_judge():
    judge = Judge()
    x = np.clip(noise((3, 64, 64), 0, 4, 0), -1, 1)
    small = x.reshape(4, 3, 32, 2, 32, 2).mean((3, 5))
    np.testing.assert_allclose(judge.features(x), judge.features(small), atol=1e-4)
    assert np.abs(judge.difference(x, x)).max() == 0
    near, far = judge.difference(x, 0.98 * x), judge.difference(x, x[::-1])
    assert (near < far).all()
    assert psnr(x, x - 0.2) == pytest.approx(np.full(4, 20.0), abs=1e-3)


def test_all_weights_take_at_most_12_megabytes():
    files = [*HERE.glob("*.safetensors"), *HERE.glob("*.onnx")]
    assert len(files) == 10 and sum(file.stat().st_size for file in files) <= 12_000_000
