"""Distances between pictures, float32 [n, H, W, 3] in 0..1."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

import lmsd

RANDOM = "random"


def psnr(pictures: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each picture, in dB; at most 100."""
    error = np.square(pictures - reference, dtype=np.float64).mean((1, 2, 3))
    return -10 * np.log10(np.maximum(error, 1e-10))


def interval(values: np.ndarray) -> float:
    """Half the width of the normal 95 % interval of the mean."""
    return float(1.96 * np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def features(name: str) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """(function from pictures to features [n, F], what they are in words).

    "random": of a fixed random network; "torchvision:NAME": of a classifier of torchvision; a folder: of a
    CLIP vision model of transformers; a file: of a TorchScript module that takes [n, 3, H, W] in 0..1.
    """
    if name == RANDOM:
        return on_tensors(random_features), "a fixed random convolutional network, no trained one"
    if name.startswith("torchvision:"):
        return on_tensors(torchvision_features(name.partition(":")[2])), name
    if Path(name).is_dir():
        return on_tensors(clip_features(name)), f"the CLIP model {name}"
    if not Path(name).is_file():
        raise lmsd.Error(
            f"--features is {name}, which is neither random, torchvision:NAME, a file nor a folder"
        )
    try:
        module = torch.jit.load(name, map_location="cpu").eval()
    except RuntimeError as error:
        raise lmsd.Error(f"--features: {name} is no TorchScript file") from error
    return on_tensors(module), f"the module {name}"


def on_tensors(function):
    def of(pictures: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            parts = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().split(8)
            return torch.cat([function(part).flatten(1).float() for part in parts]).numpy()

    return of


def random_features(pictures: torch.Tensor) -> torch.Tensor:
    """Of three layers with weights of seed 0: each normalised, and averaged over a grid of 8x8."""
    noise, x, found = torch.Generator().manual_seed(0), pictures * 2 - 1, []
    for width in (32, 64, 128):
        weight = torch.randn(width, x.shape[1], 3, 3, generator=noise) / (9 * x.shape[1] / 2) ** 0.5
        x = F.relu(F.conv2d(x, weight, stride=2, padding=1))
        unit = x / x.square().mean(1, keepdim=True).sqrt().clamp(min=1e-3)
        found.append(F.adaptive_avg_pool2d(unit, 8).flatten(1) / width**0.5)
    return torch.cat(found, 1)


def torchvision_features(name: str):
    try:
        from torchvision import models
    except ImportError:
        raise lmsd.Error("--features torchvision: needs torchvision: pip install torchvision") from None
    try:
        weights = models.get_model_weights(name).DEFAULT
    except ValueError:
        raise lmsd.Error(f"torchvision has no model {name}") from None
    network, prepare = models.get_model(name, weights=weights).eval(), weights.transforms()
    return lambda pictures: network(prepare(pictures))


def clip_features(folder: str):
    try:
        from transformers import CLIPVisionModelWithProjection

        network = CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True).eval()
    except (ImportError, OSError, ValueError) as error:
        raise lmsd.Error(f"--features: {folder} is no CLIP vision model: {error}") from error
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    size = network.config.image_size

    def of(pictures):
        small = F.interpolate(pictures, (size, size), mode="bicubic", antialias=True)
        return network(pixel_values=(small - mean) / std).image_embeds

    return of


def relative_distance(found: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Of each picture's features to the teacher's, over the mean between two of the teacher's pictures."""
    away = np.linalg.norm(found - reference, axis=1)
    shift = max(1, len(reference) // 2)
    between = np.linalg.norm(reference - np.roll(reference, shift, 0), axis=1).mean()
    return away / between if between > 0 else np.full(len(away), np.nan)
