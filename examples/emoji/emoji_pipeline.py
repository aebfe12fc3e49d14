"""The emoji models as a diffusers pipeline, with a prompt.

    pipe = emoji_pipeline("pixel")
    pipe("red apple", guidance_scale=3, num_inference_steps=50).images[0].save("apple.png")

    python emoji_pipeline.py latent FOLDER    saves it; EmojiPipeline.from_pretrained(FOLDER) loads it again

The EDM networks are v-prediction networks here, as diffusers has them: 1000 timesteps, spread evenly in log
sigma over 0.002 to 80. The flow network predicts the velocity, at shift 3.
"""

import argparse
import json
import math
import sys
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    ConfigMixin,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    ImagePipelineOutput,
    ModelMixin,
)
from diffusers.configuration_utils import register_to_config
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from safetensors import safe_open
from torch import nn

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.append(str(HERE))
from emoji_data import GUIDANCE, words_of  # noqa: E402
from network import WORD, Autoencoder, Denoiser, mean_of_words  # noqa: E402

WORDS = 8  # of a prompt that the network sees
STEPS = 1000  # training timesteps
SIGMA_MIN, SIGMA_MAX, SHIFT = 0.002, 80.0, 3.0


def betas() -> list[float]:
    """Betas whose noise levels are spread evenly in log sigma over all that the networks were trained on."""
    alphas_cumprod = 1 / (1 + np.geomspace(SIGMA_MIN, SIGMA_MAX, STEPS) ** 2)
    return (1 - alphas_cumprod / np.concatenate([[1.0], alphas_cumprod[:-1]])).tolist()


class EmojiText(ModelMixin, ConfigMixin):
    """A tokenizer and text encoder in one: the mean of the learned vectors of a prompt's first words.

    `vocabulary`: the words, of which number 0 is none. A prompt without a known word is the empty prompt.
    """

    @register_to_config
    def __init__(self, vocabulary: list[str]):
        super().__init__()
        self.words = nn.Embedding(len(vocabulary), WORD)

    @cached_property
    def numbers(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(self.config.vocabulary) if i}

    def tokenize(self, prompts: list[str]) -> torch.Tensor:
        """int64 [B, WORDS] on the CPU; 0 for no word."""
        rows = torch.zeros(len(prompts), WORDS, dtype=torch.int64)
        for row, prompt in zip(rows, prompts, strict=True):
            known = [self.numbers[word] for word in words_of(prompt) if word in self.numbers][:WORDS]
            row[: len(known)] = torch.tensor(known)
        return rows

    def forward(self, numbers):
        """[B, WORDS] -> [B, WORD]"""
        return mean_of_words(self.words, numbers)


class EmojiUnet(ModelMixin, ConfigMixin):
    """The network as diffusers has it: (sample, timestep, encoder_hidden_states [B, WORD]) -> output.

    "v_prediction": the sample is (x0 + sigma n) / sqrt(1 + sigma^2), and timesteps, integers or floats, count
    the betas. "flow_prediction": the sample is (1 - s) x0 + s n, the timestep 1000 s, the output n - x0.
    """

    @register_to_config
    def __init__(
        self, size: int = 32, channels: int = 3, patch: int = 2, prediction_type: str = "v_prediction"
    ):
        super().__init__()
        self.net = Denoiser(1, channels, patch, flow=prediction_type == "flow_prediction")
        self.net.unet.words = None  # they are in EmojiText

    @cached_property
    def log_sigmas(self) -> np.ndarray:
        """[STEPS], as the schedulers of diffusers have them after the rounding of the betas."""
        return np.log(EulerDiscreteScheduler(trained_betas=betas()).sigmas[:-1].flip(0).double().numpy())

    def forward(self, sample, timestep, encoder_hidden_states):
        x, rows = sample.float(), len(sample)
        time = float(torch.as_tensor(timestep).flatten()[0])
        if self.net.flow:
            level = x.new_full((rows,), time / STEPS)
            return self.net.velocity(x, level, encoder_hidden_states).to(sample.dtype)
        sigma = math.exp(np.interp(time, np.arange(STEPS), self.log_sigmas))
        scale = math.sqrt(1 + sigma**2)
        denoised = self.net(x * scale, x.new_full((rows,), sigma), encoder_hidden_states)
        return ((x - denoised * scale) / sigma).to(sample.dtype)


class EmojiAutoencoder(ModelMixin, ConfigMixin):
    """Pictures [B, 3, 64, 64] in -1..1 <-> latents [B, 4, 16, 16]; their scale is right as it is."""

    @register_to_config
    def __init__(self, scaling_factor: float = 1.0):
        super().__init__()
        self.net = Autoencoder()

    def encode(self, pictures):
        return self.net.encode(pictures)

    def decode(self, latents):
        return self.net.decode(latents)


class EmojiPipeline(DiffusionPipeline):
    """Text to image. `vae`: of the latent model; None for the others, whose latents are pictures."""

    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["vae"]  # noqa: RUF012

    def __init__(self, text_encoder, unet, scheduler, vae=None):
        super().__init__()
        self.register_modules(text_encoder=text_encoder, unet=unet, scheduler=scheduler, vae=vae)
        self.pictures = VaeImageProcessor(vae_scale_factor=1)

    def encode_prompt(self, prompts: list[str]) -> torch.Tensor:
        return self.text_encoder(self.text_encoder.tokenize(prompts).to(self.device))

    def embeddings(self, prompt, negative_prompt, guided):
        """[B, WORD]; if guided [2 B, WORD], those of the negative prompts first."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negative = [negative_prompt or ""] if isinstance(negative_prompt, str | None) else negative_prompt
        negative = list(negative) * (len(prompts) if len(negative) == 1 else 1)
        return self.encode_prompt([*negative, *prompts] if guided else prompts)

    @torch.no_grad()
    def __call__(
        self,
        prompt="",
        negative_prompt=None,
        num_inference_steps=50,
        guidance_scale=GUIDANCE,
        generator=None,
        latents=None,
        output_type="pil",
        return_dict=True,
    ):
        """One picture for each prompt; `output_type`: pil, np, pt or latent."""
        guided = guidance_scale > 1
        embeddings = self.embeddings(prompt, negative_prompt, guided)
        rows, size = len(embeddings) // (1 + guided), self.unet.config.size
        if latents is None:
            shape = (rows, self.unet.config.channels, size, size)
            latents = randn_tensor(shape, generator, self.device, self.unet.dtype)
        self.scheduler.set_timesteps(num_inference_steps, device=self.device)
        latents = latents.to(self.device) * getattr(self.scheduler, "init_noise_sigma", 1.0)
        for t in self.progress_bar(self.scheduler.timesteps):
            sample = torch.cat([latents] * 2) if guided else latents
            if hasattr(self.scheduler, "scale_model_input"):  # those of flow models have none
                sample = self.scheduler.scale_model_input(sample, t)
            output = self.unet(sample, t, embeddings)
            if guided:
                untold, told = output.chunk(2)
                output = untold + guidance_scale * (told - untold)
            latents = self.scheduler.step(output, t, latents, return_dict=False)[0]
        images = latents
        if output_type != "latent":
            images = latents if self.vae is None else self.vae.decode(latents.to(self.vae.dtype))
            images = self.pictures.postprocess(images.float(), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images) if return_dict else (images,)


def own_scheduler(flow: bool):
    """Euler's of the process."""
    if flow:
        return FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    return EulerDiscreteScheduler(
        trained_betas=betas(), prediction_type="v_prediction", use_karras_sigmas=True
    )


def emoji_pipeline(name="pixel", folder=HERE, scheduler=None, dtype=torch.float32):
    """The pipeline of `pixel`, `flow` or `latent`, with its weights from `folder`."""
    weights, vocabulary = read(folder / f"{name}.safetensors")
    flow, latent = name == "flow", name == "latent"
    text = EmojiText(vocabulary)
    text.words.weight.data = weights.pop("unet.words.weight")
    shape = {"size": 16, "channels": 4, "patch": 1} if latent else {}
    unet = EmojiUnet(**shape, prediction_type="flow_prediction" if flow else "v_prediction")
    unet.net.load_state_dict(weights)
    vae = None
    if latent:
        vae = EmojiAutoencoder()
        vae.net.load_state_dict(read(folder / "autoencoder.safetensors")[0])
    for module in filter(None, (text, unet, vae)):
        nn.Module.to(module.eval().requires_grad_(False), dtype)
    return EmojiPipeline(text, unet, scheduler or own_scheduler(flow), vae)


def read(path):
    """(float32 weights by name, vocabulary) of a file of `train.py`."""
    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        return weights, json.loads((file.metadata() or {}).get("words", "[]"))


def main():
    parser = argparse.ArgumentParser(description="Save an emoji model as a diffusers pipeline.")
    parser.add_argument("name", choices=["pixel", "flow", "latent"])
    parser.add_argument("folder")
    args = parser.parse_args()
    emoji_pipeline(args.name).save_pretrained(args.folder)


if __name__ == "__main__":
    import emoji_pipeline  # under its own name, which the saved folder mentions

    emoji_pipeline.main()
