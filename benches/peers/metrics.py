"""How near end points are to the teacher's, and how alike their pictures. Knows no peer.

`distance`: mean Euclidean distance of the end points. `psnr`: of each picture to the teacher's from the same noise
in dB, pictures in -1..1, mean. `features`: an LPIPS-like distance (arXiv 1801.03924 without its learned weights):
activations of a classifier scaled to length 1 over the channels, mean square difference, summed over its layers.
`frechet_teacher`, `frechet_real`: Frechet distance (arXiv 1706.08500) in its last features to the teacher's pictures
and to real ones.
"""

import numpy as np
import torch

from .networks import statistics
from .trajectories import distance

# name -> (words, whether more is better, format)
METRICS = {
    "distance": ("mean distance to the teacher", False, "{:.4f}"),
    "psnr": ("paired PSNR to the teacher, dB", True, "{:.2f}"),
    "features": ("LPIPS-like distance to the teacher", False, "{:.4f}"),
    "frechet_teacher": ("Frechet distance to the teacher's pictures", False, "{:.3f}"),
    "frechet_real": ("Frechet distance to real pictures", False, "{:.3f}"),
}


def root(matrix):
    """Square root of a symmetric positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def frechet(one, other):
    """Frechet distance between (mean, covariance) and another."""
    (mean, covariance), (mean2, covariance2) = one, other
    half = root(covariance)
    cross = np.sqrt(np.linalg.eigvalsh(half @ covariance2 @ half).clip(0)).sum()
    both = np.trace(covariance) + np.trace(covariance2)
    return float(((mean - mean2) ** 2).sum() + both - 2 * cross)


def psnr(pictures, goal):
    error = (pictures.clamp(-1, 1) - goal.clamp(-1, 1)).square().flatten(1).mean(1)
    return (10 * torch.log10(4 / error.clamp(min=1e-10))).mean().item()


def unit(maps):
    return maps / maps.square().sum(1, keepdim=True).add(1e-10).sqrt()


def lpips(maps, goal):
    """Mean over the images of what the layers sum to."""
    layers = zip(maps, goal, strict=True)
    return sum((unit(a) - unit(b)).square().sum(1).mean().item() for a, b in layers)


@torch.no_grad()
def measured(net, ends, goal):
    """name -> figure for end points [N, ...] and the teacher's."""
    pictures, wanted = net.pictures(ends), net.pictures(goal)
    maps, maps_wanted = net.maps(pictures), net.maps(wanted)
    own, teachers = (statistics(m[-1].numpy()) for m in (maps, maps_wanted))
    return {
        "distance": distance(ends, goal).mean().item(),
        "psnr": psnr(pictures, wanted),
        "features": lpips(maps, maps_wanted),
        "frechet_teacher": frechet(own, teachers),
        "frechet_real": frechet(own, net.real),
    }
