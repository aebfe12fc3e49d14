"""The digits network of this repository in diffusers pipelines: class-conditional, with guidance.

`DigitsPipeline` runs it as Stable Diffusion runs its UNet, `DigitsFlowPipeline` as flow pipelines run their
transformer. "Prompts" are class labels 0 to 9; images are [B, 1, 8, 8] with pixels in [-1, 1].
"""

import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    ConfigMixin,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
)
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from safetensors.torch import load_file

DIGITS = Path(__file__).resolve().parents[1] / "digits"
sys.path.insert(0, str(DIGITS))
from train import NO_LABEL, SIGMA_MAX, SIGMA_MIN, Net  # noqa: E402

STEPS = 1000  # training timesteps


def betas() -> list[float]:
    """Betas whose noise levels are spread evenly in log sigma over all that the network was trained on."""
    alphas_cumprod = 1 / (1 + np.geomspace(SIGMA_MIN, SIGMA_MAX, STEPS) ** 2)
    return (1 - alphas_cumprod / np.concatenate([[1.0], alphas_cumprod[:-1]])).tolist()


class DigitsModel(ModelMixin, ConfigMixin):
    """The network as diffusers has it: (sample, timestep, class_labels) -> output [B, 1, 8, 8].

    `prediction_type`: what the output is. For "flow_prediction" the sample is (1 - s) x0 + s n and the
    timestep 1000 s; otherwise the sample is (x0 + sigma n) / sqrt(1 + sigma^2), and timesteps, integers or
    floats, count the betas.
    """

    @register_to_config
    def __init__(self, prediction_type: str = "epsilon"):
        super().__init__()
        self.net = Net()
        sigmas = EulerDiscreteScheduler(trained_betas=betas()).sigmas[:-1].flip(0)
        self.log_sigmas = sigmas.double().log()

    @classmethod
    def trained(cls, prediction_type: str = "epsilon") -> "DigitsModel":
        model = cls(prediction_type)
        model.net.load_state_dict(load_file(DIGITS / "digits.safetensors"), strict=False)
        torch.nn.init.zeros_(model.net.augment_embed.weight)  # of training only
        return model.eval().requires_grad_(False)

    def forward(self, sample, timestep, class_labels):
        times = torch.as_tensor(timestep, dtype=torch.float64, device=sample.device).reshape(-1, 1, 1, 1)
        x, kind = sample.double(), self.config.prediction_type
        if kind == "flow_prediction":
            level = times / STEPS
            sigma = (level / (1 - level)).clamp(max=SIGMA_MAX)
            scale = sigma / level
        else:
            low, table = times.floor().clamp(0, STEPS - 2).long(), self.log_sigmas.to(times.device)
            sigma = table[low].lerp(table[low + 1], times - low).exp()
            scale = (1 + sigma**2).sqrt()
        x = x * scale
        levels = sigma.flatten().expand(len(x))
        denoised = self.net(x.to(self.dtype), levels.to(self.dtype), class_labels).double()
        if kind == "sample":
            out = denoised
        elif kind == "v_prediction":
            out = (x / scale - denoised * scale) / sigma
        elif kind == "epsilon":
            out = (x - denoised) / sigma
        else:
            out = (sample - denoised) / level
        return out.to(sample.dtype)


class DigitsPipeline(DiffusionPipeline):
    """Text-to-image and image-to-image, with labels for texts."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def labels(self, class_labels, batch_size):
        """Labels of the batch; NO_LABEL where there are none."""
        if class_labels is None:
            class_labels = [NO_LABEL] * batch_size
        return torch.tensor(class_labels, device=self.device)

    def predict(self, sample, t, labels, guidance_scale):
        """The network's output at a sample that holds each image once, or twice if guided."""
        if guidance_scale <= 1:
            return self.unet(sample, t, labels)
        output = self.unet(sample, t, torch.cat([torch.full_like(labels, NO_LABEL), labels]))
        unconditional, conditional = output.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    @torch.no_grad()
    def __call__(
        self,
        class_labels=None,
        batch_size=1,
        image=None,
        strength=0.8,
        num_inference_steps=50,
        guidance_scale=1.0,
        generator=None,
        latents=None,
    ):
        """Images [B, 1, 8, 8]; from `image`, if given, with noise of that `strength`, 0 to 1."""
        labels = self.labels(class_labels, batch_size)
        self.set_timesteps(num_inference_steps)
        timesteps = self.scheduler.timesteps
        if latents is None:
            shape = (len(labels), 1, 8, 8)
            latents = randn_tensor(shape, generator=generator, device=self.device, dtype=self.unet.dtype)
        if image is None:
            latents = latents * self.initial_scale()
        else:
            start = self.first_step(num_inference_steps, strength)
            timesteps = timesteps[start:]
            self.scheduler.set_begin_index(start)
            latents = self.noised(image, latents, timesteps[:1].repeat(len(labels)))
        for t in self.progress_bar(timesteps):
            sample = torch.cat([latents] * 2) if guidance_scale > 1 else latents
            output = self.predict(self.model_input(sample, t), t, labels, guidance_scale)
            latents = self.scheduler.step(output, t, latents, return_dict=False)[0]
        return latents

    # What differs with flow models.

    def set_timesteps(self, steps):
        self.scheduler.set_timesteps(steps, device=self.device)

    def initial_scale(self):
        return self.scheduler.init_noise_sigma

    def first_step(self, steps, strength):
        return (steps - min(int(steps * strength), steps)) * self.scheduler.order

    def noised(self, image, noise, times):
        return self.scheduler.add_noise(image, noise, times)

    def model_input(self, sample, t):
        return self.scheduler.scale_model_input(sample, t)


class DigitsFlowPipeline(DigitsPipeline):
    """The same with a flow model: noise is not scaled, nor is what the network is given."""

    def set_timesteps(self, steps):
        self.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=self.device)

    def initial_scale(self):
        return 1.0

    def first_step(self, steps, strength):
        return int(max(steps * (1 - strength), 0))

    def noised(self, image, noise, times):
        return self.scheduler.scale_noise(image, times, noise)

    def model_input(self, sample, t):
        return sample


def digits_pipeline(prediction_type="epsilon", scheduler=None, shift=1.0):
    """A pipeline of the trained network, with Euler's scheduler unless another is given."""
    model = DigitsModel.trained(prediction_type)
    if prediction_type == "flow_prediction":
        scheduler = scheduler or FlowMatchEulerDiscreteScheduler(shift=shift)
        return DigitsFlowPipeline(model, scheduler)
    euler = EulerDiscreteScheduler(trained_betas=betas(), prediction_type=prediction_type)
    return DigitsPipeline(model, scheduler or euler)
