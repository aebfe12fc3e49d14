"""The Gaussian mixture over the digits, examples/c/digits_gmm.h, as a problem: its denoiser is exact."""

import re
from pathlib import Path

import numpy as np

HEADER = Path(__file__).parents[1] / "examples" / "c" / "digits_gmm.h"


def numbers(text, name):
    """The integers of the array whose definition starts with `name`."""
    body = text[text.index(name) :].split("=", 1)[1].split(";")[0]
    return np.array(re.findall(r"-?\d+", body), float)


class Mixture:
    process = "ve"
    sigma_min, sigma_max, sigma_end = 0.002, 80.0, 0.002

    def __init__(self, size, seed):
        text = HEADER.read_text()
        counts = numbers(text, "short digits_gmm_count[")
        self.means = numbers(text, "char digits_gmm_mean[").reshape(len(counts), -1) / 100
        self.logs = np.log(counts / counts.sum())
        self.variance = float(re.search(r"DIGITS_GMM_STD ([0-9.]+)", text)[1]) ** 2
        self.size, self.seed = size, seed
        self.like = np.empty((size, 64), np.float32)
        self.made_for = {"model": "digits_gmm"}
        self.seeds = f"PCG64([{seed}, batch]), {size} images a batch"

    def begin(self, index):
        rng = np.random.Generator(np.random.PCG64([self.seed, index]))
        return self.sigma_max * rng.standard_normal((self.size, 64), dtype=np.float32)

    def model(self, x, sigma):
        x = np.asarray(x, np.float64)
        variance = self.variance + sigma**2
        far = (x**2).sum(1)[:, None] - 2 * x @ self.means.T + (self.means**2).sum(1)
        log = self.logs - far / (2 * variance)
        part = np.exp(log - log.max(1, keepdims=True))
        mean = part @ self.means / part.sum(1, keepdims=True)
        return (mean + self.variance / variance * (x - mean)).astype(np.float32)


def mixture(size=4, seed=0):
    """Batches of `size` images of 64 pixels."""
    return Mixture(size, seed)
