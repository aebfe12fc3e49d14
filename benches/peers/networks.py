"""The networks that the peers are compared on. A network is one entry of NETWORKS; the rest sees this class
only.

Each network is imported when it is asked for. The examples have modules of the same names, so that one
process can have the digits and the photographs, or an emoji model, but not both.
"""

import functools
import os
import sys
from pathlib import Path

# the matrices are small: BLAS threads cost more than they save, above all on a busy machine
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch
from classifier import statistics

ROOT = Path(__file__).parents[2]


class Network:
    """A denoiser in torch with what it was trained on, and features to judge its pictures by.

    `evaluations`: of the network in a call with guidance, for one image; `real`: (mean, covariance) of the
    features of real pictures.
    """

    process, sigma_min, sigma_max, sigma_end = "ve", 0.002, 80.0, 0.002
    shift = None
    batch_size = 64  # in which test trajectories are sampled
    words = ""  # what the features are

    def __init__(self, name, guidance):
        self.name, self.guidance = name, guidance
        self.evaluations = 1 if guidance == 1 else 2

    def batch(self, index, size, seed, test=False):
        """(x_T float32 [size, ...], conditions) of batch `index`; `test`: of conditions that no fit sees."""
        raise NotImplementedError

    def denoise(self, x, sigma, conditions):
        """The prediction of x_0, guidance included; differentiable in x and sigma (a number or a tensor)."""
        raise NotImplementedError

    def pictures(self, x):
        """Pictures in -1..1 of end points."""
        return x

    def layers(self, pictures):
        """The layers [B, C, H, W] of a classifier that no fit sees, then its features [B, F]."""
        raise NotImplementedError

    def seen(self, pictures):
        """(perceptual [B, K], features [B, F]).

        The squared Euclidean distance of two rows of the first is LPIPS (arXiv 1801.03924) with equal
        weights: the sum over layers of the mean over places of the squared difference of vectors of length 1
        over the channels.
        """
        *layers, features = self.layers(pictures)
        unit = [torch.nn.functional.normalize(h, dim=1) / (h[0, 0].numel() ** 0.5) for h in layers]
        return torch.cat([h.flatten(1) for h in unit], 1), features


class Digits(Network):
    words = "the digit classifier (examples/digits/classifier.py)"

    def __init__(self, name, guidance):
        super().__init__(name, guidance)
        from adam import TorchDigits
        from classifier import Classifier
        from model import batch
        from problem import problem

        self.net, self._batch = TorchDigits(problem(guidance, size=1)), batch
        classifier = Classifier()
        self.weights = {name: torch.from_numpy(value) for name, value in classifier.weights.items()}
        self.real = classifier.reference

    def batch(self, index, size, seed, test=False):
        return tuple(map(torch.from_numpy, self._batch(index, size, seed)))

    def denoise(self, x, sigma, conditions):
        return self.net(x, torch.as_tensor(sigma, dtype=torch.float32), conditions).to(x.dtype)

    def layers(self, pictures):
        w, silu, conv = self.weights, torch.nn.functional.silu, torch.nn.functional.conv2d
        first = silu(conv(pictures + 1, w["conv1.weight"], w["conv1.bias"], padding=1))
        second = silu(conv(first, w["conv2.weight"], w["conv2.bias"], padding=1, stride=2))
        return [first, second, torch.tanh(second.flatten(1) @ w["hidden.weight"].T + w["hidden.bias"])]


class Photos(Network):
    batch_size = 32
    words = "a classifier of where in the two photographs a crop is from, trained for this benchmark"

    def __init__(self, name, guidance):
        super().__init__(name, guidance)
        sys.path[:0] = [str(ROOT / "examples" / "photos")]
        from photos_model import Photos, batch

        from .photos_classifier import classifier

        self.net, self._batch = Photos(), batch
        self.classifier, self.real = classifier()

    def batch(self, index, size, seed, test=False):
        return self._batch(index, size, seed)

    def denoise(self, x, sigma, conditions):
        return self.net.denoise(x, sigma, conditions, self.guidance)

    def layers(self, pictures):
        return self.classifier.layers(pictures)


class Emoji(Network):
    """One of the three emoji models. Conditions are words of prompts; the test has others than the fits."""

    batch_size = 16
    words = "the classifier of kinds of emoji (examples/emoji/judge.py)"

    def __init__(self, name, guidance):
        super().__init__(name, guidance)
        sys.path[:0] = [str(ROOT / "examples" / "emoji")]
        from emoji_data import SHIFT
        from emoji_model import noise
        from emoji_problem import problem, prompts
        from export import denoiser

        self.kind, self.noise = name.split()[1], noise
        emoji = problem(self.kind, guidance).emoji
        self.process, self.shape = emoji.process, emoji.shape
        self.sigma_min, self.sigma_max, self.sigma_end = emoji.sigma_min, emoji.sigma_max, emoji.sigma_end
        self.shift = SHIFT if self.process == "flow" else None
        self.net = denoiser(self.kind).to(memory_format=torch.channels_last)
        self.prompts = [torch.from_numpy(emoji.words(prompts(which))) for which in ("fit", "test")]
        self.judge, self.real = self._judge()

    def _judge(self):
        """(the classifier, statistics of real pictures or None where they have not been fetched)."""
        from emoji_data import FOLDER
        from export import classifier
        from stickers import Stickers

        judge = classifier()
        if not (FOLDER / "package").exists():
            return judge, None
        torch.manual_seed(0)
        stickers = Stickers()
        real = stickers.picture(stickers.draw(1024), 32).float()
        return judge, statistics(torch.cat([judge.features(part) for part in real.split(64)]).numpy())

    def batch(self, index, size, seed, test=False):
        x = torch.from_numpy(self.noise(self.shape, index, size, seed)) * self.sigma_max
        prompts, rng = self.prompts[test], np.random.Generator(np.random.PCG64([seed, index, 1]))
        return x, prompts[torch.from_numpy(rng.integers(0, len(prompts), size))]

    def denoise(self, x, sigma, conditions):
        sigma = torch.as_tensor(sigma, dtype=x.dtype)
        both = torch.cat([conditions, torch.zeros_like(conditions)])
        told, untold = self.net(torch.cat([x, x]), sigma.expand(2 * len(x)), both).chunk(2)
        return untold + self.guidance * (told - untold)

    def pictures(self, x):
        if self.kind != "latent":
            return x
        from export import autoencoder

        return autoencoder().decode(x)

    def seen(self, pictures):
        if pictures.shape[-1] == 64:
            pictures = torch.nn.functional.avg_pool2d(pictures, 2)
        return self.judge.perceptual(pictures), self.judge.features(pictures)


# name -> (class, guidance)
NETWORKS = {
    "digits": (Digits, 3.0),
    "photos": (Photos, 2.0),
    "emoji pixel": (Emoji, 3.0),
    "emoji flow": (Emoji, 3.0),
    "emoji latent": (Emoji, 3.0),
}


@functools.cache
def network(name):
    """The network of that name; at most one set of examples in a process."""
    torch.set_num_threads(1)
    kind, guidance = NETWORKS[name]
    return kind(name, guidance)


class Counted:
    """A network whose calls are counted: image-calls with gradients and without."""

    def __init__(self, net):
        self.net, self.forward, self.gradient = net, 0, 0

    def __getattr__(self, name):
        return getattr(self.net, name)

    def denoise(self, x, sigma, conditions):
        if torch.is_grad_enabled():
            self.gradient += len(x)
        else:
            self.forward += len(x)
        return self.net.denoise(x, sigma, conditions)


def subset(conditions, rows):
    """The conditions of some images; None for a network without."""
    return None if conditions is None else conditions[rows]
