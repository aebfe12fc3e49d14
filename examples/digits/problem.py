"""The digits model as a problem of the command line.

lmsd distill --problem examples/digits/problem.py --guidance 3 --nfe 3-8 --out schedules
"""

import numpy as np
from model import SIGMA_MAX, SIGMA_MIN, Digits, batch

STEPS = 1000  # training steps of a host that snaps


class Problem:
    process = "ve"
    sigma_min, sigma_max, sigma_end = SIGMA_MIN, SIGMA_MAX, SIGMA_MIN

    def __init__(self, guidance, size, seed, snapped, half):
        self.digits = Digits()
        self.scales, self.size, self.seed, self.snapped, self.half = guidance, size, seed, snapped, half
        self.guidance = self.scales[0]
        self.like = np.empty((size, 1, 8, 8), np.float32)
        self.made_for = {"model": "digits", "latent_shape": [1, 8, 8]}
        self.made_for |= {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX, "snapped": snapped}
        self.made_for |= guided(guidance)
        self.seeds = f"PCG64([{seed}, batch]), {size} images a batch" + ", half precision" * half
        self.seeds += f", guidance {guidance} in turn" * (len(guidance) > 1)

    def begin(self, index):
        self.guidance = self.scales[index % len(self.scales)]
        x, self.labels = batch(index, self.size, self.seed)
        return x

    def model(self, x, sigma, share=1.0):
        """`share`: how much of the guidance this call has, where that is fitted."""
        scale = 1 + share * (self.guidance - 1)
        denoised = self.digits.denoise(x, snap(sigma) if self.snapped else sigma, self.labels, scale)
        return denoised.astype(np.float16) if self.half else denoised


def guided(scales):
    """What schedules say of the guidance scales that they were fitted to."""
    low, high = min(scales), max(scales)
    return {"guidance_scale": low} if low == high else {"guidance_range": [low, high]}


def snap(sigma):
    """The nearest, in log sigma, of STEPS noise levels from SIGMA_MIN to SIGMA_MAX."""
    low, high = np.log(SIGMA_MIN), np.log(SIGMA_MAX)
    step = np.clip(np.rint((np.log(sigma) - low) / (high - low) * (STEPS - 1)), 0, STEPS - 1)
    return float(np.exp(low + step / (STEPS - 1) * (high - low)))


def problem(guidance=1.0, size=8, seed=0, snapped=False, half=False):
    """Batches of `size` images with classifier-free guidance; in small ones a fit is cheapest.

    `guidance`: a scale, or a list of them, of which batches take one each in turn.

    `snapped`: the model knows 1000 noise levels only, as Stable-Diffusion-type hosts do; `half`: what it
    returns is rounded to float16.
    """
    scales = [float(scale) for scale in (guidance if isinstance(guidance, list | tuple) else [guidance])]
    return Problem(scales, size, seed, snapped, half)
