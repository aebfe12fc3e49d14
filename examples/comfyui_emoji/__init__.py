"""The emoji models of examples/emoji in ComfyUI: MODEL, CLIP and VAE, as of a checkpoint. See README.md.

Link this folder into custom_nodes: the models lie beside it. LMSD_EMOJI tells a copy where they are.
"""

import importlib.util
import json
import os
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.supported_models_base
import torch
from safetensors import safe_open

EMOJI = Path(os.environ.get("LMSD_EMOJI") or Path(__file__).resolve().parents[1] / "emoji")
MULTIPLIER = 1000  # the flow model is told 1000 sigma, as those of Stable Diffusion 3 are


@lru_cache
def module(name):
    """NAME.py of the examples, under a name that nothing of a host has."""
    spec = importlib.util.spec_from_file_location(f"lmsd_emoji_{name}", EMOJI / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


WORDS, SHIFT = module("emoji_data").WORDS, module("emoji_data").SHIFT


def weights(name):
    """(weights of NAME.safetensors in single precision, number of each known word)"""
    path = EMOJI / f"{name}.safetensors"
    if not path.exists():
        raise ValueError(f"there is no {path}: link this folder into custom_nodes, or set LMSD_EMOJI")
    with safe_open(path, "pt") as file:
        known = json.loads((file.metadata() or {}).get("words", "[]"))
        return {key: file.get_tensor(key).float() for key in file.keys()}, {
            word: i for i, word in enumerate(known) if i
        }


# ---- MODEL


class Pixels(comfy.latent_formats.LatentFormat):
    """The pixels themselves, -1 to 1."""

    latent_channels, size = 3, 32
    spacial_downscale_ratio = 1
    latent_rgb_factors = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


class Latents(comfy.latent_formats.LatentFormat):
    """Those of the autoencoder."""

    latent_channels, size = 4, 16
    spacial_downscale_ratio = 4


class EmojiPixel(comfy.supported_models_base.BASE):
    latent_format = Pixels
    sampling_settings = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
    memory_usage_factor = 0.1
    model_type = comfy.model_base.ModelType.EDM
    patch = 2


class EmojiFlow(EmojiPixel):
    sampling_settings = {"shift": SHIFT, "multiplier": MULTIPLIER}
    model_type = comfy.model_base.ModelType.FLOW


class EmojiLatent(EmojiPixel):
    latent_format = Latents
    patch = 1


CONFIGS = {"pixel": EmojiPixel, "flow": EmojiFlow, "latent": EmojiLatent}


class Network(torch.nn.Module):
    """The network as the host calls it, which itself does the preconditioning of EDM."""

    dtype = torch.float32

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, timestep, context=None, **_):
        words = context[:, :, 0].round().long()
        if self.net.flow:
            return self.net.velocity(x, timestep / MULTIPLIER, words)
        return self.net.unet(x, timestep, words)


class Model(comfy.model_base.BaseModel):
    def __init__(self, config, net, device):
        super().__init__(config({"disable_unet_model_creation": True}), config.model_type, device)
        self.diffusion_model = Network(net).eval().requires_grad_(False).to(device)


def denoiser(name):
    """(MODEL, number of each known word)"""
    config = CONFIGS[name]
    state, vocabulary = weights(name)
    words = len(state["unet.words.weight"])
    channels = config.latent_format.latent_channels
    net = module("network").Denoiser(words, channels, config.patch, flow=name == "flow")
    net.load_state_dict(state)
    offload = comfy.model_management.unet_offload_device()
    model = Model(config, net, offload)
    load = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=load, offload_device=offload), vocabulary


# ---- CLIP


class Tokenizer:
    """Words of a prompt as numbers; those that are not known are left out, as are weights in parentheses."""

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary

    def tokenize_with_weights(self, text, return_word_ids=False, **_):
        said = [word for word in module("emoji_data").words_of(text) if word in self.vocabulary][:WORDS]
        numbers = [self.vocabulary[word] for word in said] + [0] * (WORDS - len(said))
        return {"words": [[(number, 1.0) for number in numbers]]}

    def state_dict(self):
        return {}


class TextEncoder(torch.nn.Module):
    """CONDITIONING [1, WORDS, 1]: the numbers of the words; the network itself has their vectors."""

    dtypes = (torch.float32,)

    def __init__(self, **_):
        super().__init__()

    def encode_token_weights(self, tokens):
        numbers = [[[float(number)] for number, *_ in section] for section in tokens["words"]]
        return torch.tensor(numbers, device=comfy.model_management.intermediate_device()), None

    def reset_clip_options(self):
        """There are none."""

    def set_clip_options(self, options):
        """There are none."""


def clip(vocabulary):
    def tokenizer(**_):
        return Tokenizer(vocabulary)

    return comfy.sd.CLIP(SimpleNamespace(params={}, clip=TextEncoder, tokenizer=tokenizer))


# ---- VAE


class Nothing(torch.nn.Module):
    """Pixels are pixels."""

    def encode(self, pictures):
        return pictures

    def decode(self, latents):
        return latents


class Vae(comfy.sd.VAE):
    def __init__(self, net, channels, ratio):
        super().__init__({})  # without weights: the defaults of everything else
        self.first_stage_model = net.eval().requires_grad_(False)
        self.device, self.vae_dtype = comfy.model_management.vae_device(), torch.float32
        self.output_device = comfy.model_management.intermediate_device()
        self.latent_channels, self.downscale_ratio, self.upscale_ratio = channels, ratio, ratio
        offload = comfy.model_management.vae_offload_device()
        self.patcher = comfy.model_patcher.ModelPatcher(net, load_device=self.device, offload_device=offload)


def vae(name):
    if name != "latent":
        return Vae(Nothing(), Pixels.latent_channels, Pixels.spacial_downscale_ratio)
    coder = module("network").Autoencoder()
    coder.load_state_dict(weights("autoencoder")[0])
    return Vae(coder, Latents.latent_channels, Latents.spacial_downscale_ratio)


# ---- nodes


class LoadEmojiModel:
    DESCRIPTION = "A small model that draws emoji from words: pixel (EDM), flow (with shift) or latent (EDM)."
    CATEGORY = "loaders"
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls):
        tip = "pixel and flow draw 32x32 pixels; latent draws 64x64 through its VAE"
        return {"required": {"model": (list(CONFIGS), {"tooltip": tip})}}

    def load(self, model):
        patcher, vocabulary = denoiser(model)
        return patcher, clip(vocabulary), vae(model)


class EmptyEmojiLatent:
    DESCRIPTION = "An empty latent of the size that the model draws: 32x32, or 16x16 for the latent model."
    CATEGORY = "latent"
    FUNCTION = "empty"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"model": ("MODEL",), "batch_size": ("INT", {"default": 4, "min": 1, "max": 4096})}
        }

    def empty(self, model, batch_size):
        kind = model.model.latent_format
        if not hasattr(kind, "size"):
            raise ValueError("this is no emoji model: use Empty Latent Image")
        device = comfy.model_management.intermediate_device()
        return (
            {"samples": torch.zeros(batch_size, kind.latent_channels, kind.size, kind.size, device=device)},
        )


NODE_CLASS_MAPPINGS = {"LoadEmojiModel": LoadEmojiModel, "EmptyEmojiLatent": EmptyEmojiLatent}
NODE_DISPLAY_NAME_MAPPINGS = {"LoadEmojiModel": "Load Emoji Model", "EmptyEmojiLatent": "Empty Emoji Latent"}
