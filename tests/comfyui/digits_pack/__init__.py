"""Test-only nodes: the digits network of examples/digits as a real MODEL of ComfyUI, without a checkpoint.

The examples are found beside the repository's tests, or where LMSD_DIGITS says. Labels 0 to 9 and 10 (no
label) travel as CONDITIONING [prompts, 1, 1], which the host repeats over the batch: image i gets label
i mod prompts.
"""

import importlib
import os
import sys
import time
from pathlib import Path

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import comfy.supported_models_base
import torch
from safetensors.torch import load_file

DIGITS = Path(os.environ.get("LMSD_DIGITS") or Path(__file__).resolve().parents[3] / "examples" / "digits")
SIGMA_MIN, SIGMA_MAX, SIGMA_DATA, NO_LABEL = 0.002, 80.0, 0.75, 10
PREDICTIONS = {"edm": "EDM", "eps": "EPS", "v_prediction": "V_PREDICTION", "flow": "FLOW", "flux": "FLUX"}


def network():
    """The trained torch network of train.py, which nothing of a host may shadow."""
    sys.path.insert(0, str(DIGITS))
    try:
        net = importlib.import_module("train").Net()
    finally:
        sys.path.remove(str(DIGITS))
    missing = net.load_state_dict(load_file(DIGITS / "digits.safetensors"), strict=False).missing_keys
    assert missing == ["augment_embed.weight"], missing
    return net.float().eval().requires_grad_(False)


class Latent8(comfy.latent_formats.LatentFormat):
    """One channel, the pixels themselves; previews are grey."""

    latent_channels = 1
    latent_dimensions = 2
    spacial_downscale_ratio = 1
    latent_rgb_factors = [[1.0, 1.0, 1.0]]


class Latent8Video(Latent8):
    """The same with a frame axis: [B, 1, 1, 8, 8]."""

    latent_dimensions = 3


class Config(comfy.supported_models_base.BASE):
    latent_format = Latent8
    sampling_settings = {
        "sigma_min": SIGMA_MIN,
        "sigma_max": SIGMA_MAX,
        "sigma_data": SIGMA_DATA,
        "shift": 1.0,
    }
    memory_usage_factor = 0.01


class VideoConfig(Config):
    latent_format = Latent8Video


class Parametrised(torch.nn.Module):
    """The network behind one of the host's parametrisations: what it is given and what it returns.

    It knows the noise level only from the timestep, so eps and v see one of the 1000 levels of the table.
    """

    dtype = torch.float32

    def __init__(self, prediction, table, delay):
        super().__init__()
        self.net, self.prediction, self.delay = network(), prediction, delay
        self.register_buffer("table", table.clone())
        self.calls = 0

    def forward(self, x, timestep, context=None, transformer_options=None, **_):
        """Inside the wrappers of patches such as EasyCache, as in the host's own networks."""
        extension, told = comfy.patcher_extension, transformer_options or {}
        wrappers = extension.get_all_wrappers(extension.WrappersMP.DIFFUSION_MODEL, told)
        executor = extension.WrapperExecutor.new_class_executor(self.predict, self, wrappers)
        return executor.execute(x, timestep, context, told)

    def predict(self, x, timestep, context, _):
        self.calls += 1
        time.sleep(self.delay)
        labels = context[:, 0, 0].round().long()
        shape = (-1,) + (1,) * (x.ndim - 1)
        if self.prediction in ("flow", "flux"):
            flow = timestep / 1000 if self.prediction == "flow" else timestep
            sigma = (flow / (1 - flow)).clamp(max=SIGMA_MAX)  # 80 at pure noise
            level = flow.view(shape)
            scale = torch.where(flow / (1 - flow) > SIGMA_MAX, SIGMA_MAX / flow, 1 + sigma).view(shape)
            return (x - self.denoised(x * scale, sigma, labels)) / level
        sigma = (4 * timestep).exp() if self.prediction == "edm" else self.table[timestep.long()]
        data = SIGMA_DATA if self.prediction == "edm" else 1.0
        level = sigma.view(shape)
        norm = (level**2 + data**2).sqrt()
        x = x * norm
        denoised = self.denoised(x, sigma, labels)
        if self.prediction == "eps":
            return (x - denoised) / level
        v = ((data / norm) ** 2 * x - denoised) * norm / (data * level)
        return v if self.prediction == "v_prediction" else -v

    def denoised(self, x, sigma, labels):
        return self.net(x, sigma, labels)


class Digits(comfy.model_base.BaseModel):
    def __init__(self, prediction, video, delay, device):
        model_type = comfy.model_base.ModelType[PREDICTIONS[prediction]]
        config = (VideoConfig if video else Config)({"disable_unet_model_creation": True})
        super().__init__(config, model_type, device)
        self.diffusion_model = Parametrised(prediction, self.model_sampling.sigmas, delay).to(device)


class DigitsModel:
    """The trained digits network as a MODEL, guided by DigitsPrompt."""

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "prediction": (list(PREDICTIONS), {"tooltip": "what the host believes the network predicts"}),
                "video": ("BOOLEAN", {"default": False, "tooltip": "latents [B, 1, 1, 8, 8]"}),
                "delay_ms": ("INT", {"default": 0, "min": 0, "max": 10000, "tooltip": "added to each call"}),
            }
        }

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"
    CATEGORY = "digits"

    def load(self, prediction="edm", video=False, delay_ms=0):
        offload = comfy.model_management.unet_offload_device()
        model = Digits(prediction, video, delay_ms / 1000, offload)
        load = comfy.model_management.get_torch_device()
        return (comfy.model_patcher.ModelPatcher(model, load_device=load, offload_device=offload),)


class DigitsPrompt:
    """Labels: "3", or "1, 4, 4" for a batch; empty: no label (the negative)."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {"default": "0,1,2,3,4,5,6,7,8,9"})}}

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "digits"

    def encode(self, text):
        labels = [int(part) for part in text.split(",") if part.strip()] or [NO_LABEL]
        if not all(0 <= label <= NO_LABEL for label in labels):
            raise ValueError(f"labels are 0 to 9 (10: none), not {text!r}")
        cond = torch.tensor(labels, dtype=torch.float32).view(-1, 1, 1)
        return ([[cond, {"pooled_output": cond[:, 0]}]],)


class DigitsLatent:
    """An empty latent."""

    @classmethod
    def INPUT_TYPES(cls):
        batch = ("INT", {"default": 10, "min": 1, "max": 4096})
        return {"required": {"batch": batch, "video": ("BOOLEAN", {"default": False})}}

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "empty"
    CATEGORY = "digits"

    def empty(self, batch, video=False):
        return ({"samples": torch.zeros((batch, 1, 1, 8, 8) if video else (batch, 1, 8, 8))},)


class DigitsDecode:
    """Pixels -1 to 1 as black to white, 16 times as large."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",)}}

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "decode"
    CATEGORY = "digits"

    def decode(self, samples):
        grey = ((samples["samples"].float().reshape(-1, 8, 8) + 1) / 2).clamp(0, 1)
        grey = grey.repeat_interleave(16, 1).repeat_interleave(16, 2)
        return (grey[..., None].expand(-1, -1, -1, 3).contiguous(),)


NODE_CLASS_MAPPINGS = {
    node.__name__: node for node in (DigitsModel, DigitsPrompt, DigitsLatent, DigitsDecode)
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "DigitsModel": "Digits model",
    "DigitsPrompt": "Digits prompt",
    "DigitsLatent": "Digits latent",
    "DigitsDecode": "Digits decode",
}
