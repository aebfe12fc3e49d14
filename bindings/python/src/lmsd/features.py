"""Features of end points, in which the distance to the teacher can be measured instead of pixel by pixel.

    lmsd.distill(model, begin, like, features=lmsd.features.blur_pyramid())
    lmsd.distill(model, begin, like, features=lmsd.features.decoded(vae_decode, factor=4), feature_weight=0.5)

Each function here returns one that can be handed in as `features`: of a tensor [trajectories, ...], numpy or
torch, it makes another of the same kind, with as many trajectories. What is judged by such features is best
fitted to others.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ._hosts import is_torch

__all__ = ["blur_pyramid", "decoded", "module"]


def blur_pyramid(levels: int = 3, weights: Sequence[float] | None = None) -> Callable[[Any], Any]:
    """Features of images or latents [trajectories, channels, height, width]: [trajectories, values].

    Level 0 is the tensor itself, each further one that before it with blocks of 2 x 2 averaged; there are
    `levels` of them [3], 1 or more, or as many as height and width (each at least 1) allow. `weights`: what
    the levels are multiplied by [1, 2, 4, ...: every level then has the length that the first one has where a
    picture is smooth, so coarse differences count in every level and fine ones in the first alone].

    Raises ValueError where `levels` is below 1, where `weights` are not as many, and for tensors of another
    number of dimensions than 4.
    """
    if levels < 1:
        raise ValueError(f"levels is {levels}; it must be 1 or more")
    if weights is None:
        weights = [2.0**level for level in range(levels)]
    if len(weights) != levels:
        raise ValueError(f"there are {len(weights)} weights for {levels} levels; one each is needed")

    def features(x):
        _check_images(x)
        parts = []
        for level, weight in enumerate(weights):
            if level > 0:
                if min(x.shape[2:]) < 2:
                    break
                x = _averaged(x, 2)
            parts.append(weight * x.reshape(len(x), -1))
        return _joined(parts)

    return features


def decoded(decode: Callable[[Any], Any], factor: int = 1) -> Callable[[Any], Any]:
    """Features of latents: the pictures that `decode(x)` returns, with blocks of `factor` pixels averaged.

    `decode` takes x as it comes, such as torch latents [trajectories, ...] whose scaling it must undo, and
    returns pictures [trajectories, channels, height, width]. `factor`: 1 or more; rows and columns beyond a
    multiple of it are left out.

    Raises ValueError where `factor` is not an integer from 1 to the height and width of the pictures, and
    where these have another number of dimensions than 4.
    """
    if factor != int(factor) or factor < 1:
        raise ValueError(f"factor is {factor}; it must be an integer, 1 or more")

    def features(x):
        pictures = decode(x)
        _check_images(pictures)
        if min(pictures.shape[2:]) < factor:
            size = "x".join(map(str, pictures.shape[2:]))
            raise ValueError(
                f"factor is {factor}; for pictures of {size} it must be 1 to {min(pictures.shape[2:])}"
            )
        return _averaged(pictures, factor)

    return features


def module(module: Callable[[Any], Any], scale: float = 1.0) -> Callable[[Any], Any]:
    """Features of a torch module, such as the trunk of a classifier: `scale * module(x)`.

    The module gets x, [trajectories, ...], on the device and in the dtype of its parameters; it is set to
    evaluation mode here. What it returns is flattened to [trajectories, values], and a list or tuple of
    tensors is put side by side. numpy arrays become torch tensors on the way, and numpy arrays again. `scale`
    [1]: what the result is multiplied by, above 0.

    Raises ValueError where `scale` is not above 0 and finite.
    """
    import torch

    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; it must be above 0 and finite")
    if isinstance(module, torch.nn.Module):
        module.eval()

    def features(x):
        own = next(module.parameters(), None) if isinstance(module, torch.nn.Module) else None
        given = x if is_torch(x) else torch.from_numpy(np.ascontiguousarray(x))
        with torch.no_grad():
            found = module(given if own is None else given.to(own.device, own.dtype))
        found = list(found) if isinstance(found, (list, tuple)) else [found]
        joined = scale * torch.cat([part.reshape(len(part), -1).to(given.dtype) for part in found], 1)
        return joined.to(given.device) if is_torch(x) else joined.cpu().numpy()

    return features


def _check_images(x) -> None:
    if len(x.shape) != 4:
        raise ValueError(
            f"a tensor of shape {list(x.shape)}; [trajectories, channels, height, width] is needed here"
        )


def _averaged(x, factor: int):
    """Blocks of `factor` times `factor` averaged."""
    count, channels, height, width = x.shape
    height, width = height // factor, width // factor
    x = x[:, :, : height * factor, : width * factor]
    return x.reshape(count, channels, height, factor, width, factor).mean(5).mean(3)


def _joined(parts):
    if is_torch(parts[0]):
        import torch

        return torch.cat(parts, 1)
    return np.concatenate(parts, 1)
