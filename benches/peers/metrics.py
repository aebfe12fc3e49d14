"""How near end points are to the teacher's, and how alike their pictures. Knows no peer.

`distance`: mean Euclidean distance of the end points. `psnr`: of each picture to the teacher's from the same
noise in dB, pictures in -1..1, mean. `features`: the root of an LPIPS-like distance (see Network.seen) in the
layers of a classifier that no fit sees, mean. `frechet_teacher`, `frechet_real`: Frechet distance (arXiv
1706.08500) in its last features to the teacher's pictures and to real ones.
"""

import torch
from classifier import frechet, statistics

from .trajectories import distance

# name -> (words, whether more is better, format)
METRICS = {
    "distance": ("mean distance to the teacher", False, "{:.4f}"),
    "psnr": ("paired PSNR to the teacher, dB", True, "{:.2f}"),
    "features": ("LPIPS-like distance to the teacher", False, "{:.4f}"),
    "frechet_teacher": ("Frechet distance to the teacher's pictures", False, "{:.3f}"),
    "frechet_real": ("Frechet distance to real pictures", False, "{:.3f}"),
}


def psnr(pictures, goal):
    error = (pictures.clamp(-1, 1) - goal.clamp(-1, 1)).square().flatten(1).mean(1)
    return (10 * torch.log10(4 / error.clamp(min=1e-10))).mean().item()


@torch.no_grad()
def measured(net, ends, goal):
    """name -> figure for end points [N, ...] and the teacher's."""
    pictures, wanted = net.pictures(ends), net.pictures(goal)
    (perceptual, features), (perceptual_wanted, features_wanted) = net.seen(pictures), net.seen(wanted)
    own, teachers = statistics(features.numpy()), statistics(features_wanted.numpy())
    return {
        "distance": distance(ends, goal).mean().item(),
        "psnr": psnr(pictures, wanted),
        "features": (perceptual - perceptual_wanted).norm(dim=1).mean().item(),
        "frechet_teacher": frechet(own, teachers),
        "frechet_real": None if net.real is None else frechet(own, net.real),
    }
