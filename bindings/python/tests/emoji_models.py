"""The emoji pipeline, narrower and with random weights, in the form in which the trained ones are kept."""

import json
import sys
from pathlib import Path

import torch

EMOJI = Path(__file__).parents[3] / "examples" / "emoji"
sys.path.insert(0, str(EMOJI))

import network  # noqa: E402
from emoji_pipeline import EmojiPipeline, emoji_pipeline  # noqa: E402, F401
from safetensors.torch import save_file  # noqa: E402

network.WIDTH, network.DEEP = 16, 16  # for speed
VOCABULARY = ["", "red", "apple", "blue", "cat", "dog", "green", "leaf", "heart"]


def write_random(folder, name):
    """NAME.safetensors: nothing in it is zero, so that everything depends on everything."""
    torch.manual_seed(0)
    if name == "autoencoder":
        module = network.Autoencoder()
    else:
        latent = name == "latent"
        module = network.Denoiser(
            len(VOCABULARY), 4 if latent else 3, 1 if latent else 2, flow=name == "flow"
        )
    for parameter in module.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    weights = {key: value.half() for key, value in module.state_dict().items()}
    save_file(weights, folder / f"{name}.safetensors", {"words": json.dumps(VOCABULARY)})


def random_pipeline(folder, name="pixel"):
    """The pipeline of a random network, whose weights are left in `folder`."""
    for file in [name, "autoencoder"][: 1 + (name == "latent")]:
        write_random(folder, file)
    pipe = emoji_pipeline(name, folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe
