"""examples/comfyui_emoji in the host against the networks alone: equal to float32 rounding."""

import inside
import numpy as np
import pytest
from host import EMOJI

SIGMAS = {"pixel": (0.002, 0.05, 0.5, 5.0, 80.0), "latent": (0.002, 0.5, 80.0), "flow": (0.01, 0.3, 0.9, 1.0)}
PROMPTS = ("red apple", "Grinning cat!", "")
GUIDANCE = 3.0


@pytest.fixture(scope="module")
def pack(digits):
    return inside.pack(EMOJI, "comfyui_emoji_inside")


def guider_of(pack, name):
    """(a CFGGuider with PROMPTS and the empty one, VAE), by what CLIPTextEncode and the pack's node do."""
    import comfy.samplers
    import torch

    model, clip, vae = pack.LoadEmojiModel().load(name)
    conds = [clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in (*PROMPTS, "")]
    positive = [[torch.cat([cond[0][0] for cond in conds[:-1]]), conds[0][0][1]]]
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, conds[-1])
    guider.set_cfg(GUIDANCE)
    return guider, vae


@pytest.mark.parametrize("name", SIGMAS)
def test_denoised(pack, name):
    import comfy.samplers
    import torch

    guider, _ = guider_of(pack, name)
    state, vocabulary = pack.weights(name)
    config = pack.CONFIGS[name]
    channels = config.latent_format.latent_channels
    net = pack.module("network").Denoiser(
        len(state["unet.words.weight"]), channels, config.patch, name == "flow"
    )
    net.load_state_dict(state)
    words = [
        [vocabulary.get(word, 0) for word in text.split()] for text in ("red apple", "grinning cat", "- -")
    ]
    assert min(words[0] + words[1]) > 0
    latent = pack.EmptyEmojiLatent().empty(guider.model_patcher, len(PROMPTS))[0]["samples"]
    random, worst = torch.Generator().manual_seed(0), []

    def check(model, x, sigmas, extra_args=None, **_):
        for sigma in SIGMAS[name]:
            signal = 1 - sigma if name == "flow" else 1
            noisy = 0.5 * signal * torch.sin(torch.arange(x.numel())).view_as(x)
            noisy = noisy + sigma * torch.randn(x.shape, generator=random)
            level = x.new_full([len(x)], sigma)
            got = model(noisy, level, **extra_args)
            told, untold = net(noisy, level, torch.tensor(words)), net(noisy, level, torch.zeros(3, 2).long())
            want = untold + GUIDANCE * (told - untold)
            assert (told - untold)[:2].abs().max() > 1e-4
            worst.append(float((got - want).abs().max() / max(1, want.abs().max())))
        return x

    start = guider.model_patcher.get_model_object("model_sampling").sigma_max
    levels = torch.tensor([float(start), 0.0])
    with torch.inference_mode():
        guider.sample(
            torch.zeros_like(latent), latent, comfy.samplers.KSAMPLER(check), levels, disable_pbar=True
        )
    assert len(worst) == len(SIGMAS[name]) and max(worst) < 1e-4


@pytest.mark.parametrize("name", SIGMAS)
def test_vae(pack, name):
    """Pictures of 0 to 1; pixels come back as they were, and those of the latent model nearly."""
    import torch

    _, vae = guider_of(pack, name)
    size = 64 if name == "latent" else 32
    line = torch.linspace(0, 1, size)
    picture = torch.stack(
        [line.expand(size, size), line[:, None].expand(size, size), 0 * line.expand(size, size)], -1
    )
    latent = vae.encode(picture[None])
    assert latent.shape == ((1, 4, 16, 16) if name == "latent" else (1, 3, 32, 32))
    again = vae.decode(latent)
    assert again.shape == (1, size, size, 3)
    error = float((again[0] - picture).abs().mean())
    assert error < (0.1 if name == "latent" else 1e-6)


def test_words(pack, monkeypatch):
    """As the demo's own model reads them: unknown words are passed over, eight at most."""
    pytest.importorskip("onnxruntime")
    monkeypatch.syspath_prepend(str(pack.EMOJI))
    import emoji_data
    import emoji_model as demo

    _, vocabulary = pack.weights("pixel")
    tokenizer = pack.Tokenizer(vocabulary)
    known = list(vocabulary)
    for prompt in ("red apple", "", "qwertyuiop Red-apple, the cat", " ".join(known[:12])):
        (numbers,) = tokenizer.tokenize_with_weights(prompt)["words"]
        reader = demo.Emoji.__new__(demo.Emoji)
        reader.vocabulary = vocabulary
        np.testing.assert_array_equal([n for n, _ in numbers], reader.words([prompt])[0])
    assert pack.WORDS == demo.WORDS and pack.SHIFT == emoji_data.SHIFT
