"""The emoji models as problems of the command line.

lmsd distill --problem examples/emoji/emoji_problem.py --guidance 3 --nfe 3-8 --out schedules
lmsd sample --problem examples/emoji/emoji_problem.py --set prompt="red apple" ...
"""

from pathlib import Path

import numpy as np
from emoji_data import GUIDANCE, SHIFT
from emoji_model import Emoji, noise

HERE = Path(__file__).parent


class Problem:
    def __init__(self, name, guidance, size, seed, prompts, threads):
        self.emoji = Emoji(name, threads)
        self.process = self.emoji.process
        self.sigma_min, self.sigma_max = self.emoji.sigma_min, self.emoji.sigma_max
        self.sigma_end = self.emoji.sigma_end
        self.scales, self.size, self.seed, self.prompts = guidance, size, seed, prompts
        self.guidance = self.scales[0]
        self.like = np.empty((size, *self.emoji.shape), np.float32)
        self.made_for = {"model": f"emoji {name}", "latent_shape": list(self.emoji.shape)}
        low, high = min(guidance), max(guidance)
        self.made_for |= {"guidance_scale": low} if low == high else {"guidance_range": [low, high]}
        self.made_for |= {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max}
        if self.process == "flow":
            self.made_for["shift"] = SHIFT
        self.seeds = f"PCG64([{seed}, batch]), {size} images a batch"
        self.seeds += f", guidance {guidance} in turn" * (len(guidance) > 1)

    def begin(self, index):
        """Noise of batch `index`, and its prompts: taken from the list in an order of the seed's own."""
        self.guidance = self.scales[index % len(self.scales)]
        order = np.random.Generator(np.random.PCG64([self.seed, 1])).permutation(len(self.prompts))
        chosen = order[(index * self.size + np.arange(self.size)) % len(order)]
        self.words = self.emoji.words([self.prompts[i] for i in chosen])
        return noise(self.emoji.shape, index, self.size, self.seed) * np.float32(self.sigma_max)

    def model(self, x, sigma, share=1.0):
        return self.emoji.denoise(x, sigma, self.words, 1 + share * (self.guidance - 1))


def prompts(which):
    """The prompts to fit to ("fit": names of emoji trained on) or to measure on ("test": names of others)."""
    return (HERE / f"prompts_{which}.txt").read_text().splitlines()


def problem(model="pixel", guidance=GUIDANCE, size=4, seed=0, prompt="", test=False, threads=0):
    """Batches of `size` pictures with classifier-free guidance.

    `model`: pixel, flow or latent; `guidance`: a scale, or a list of them, of which batches take one each in
    turn; `prompt`: the same one for all pictures, else those of prompts_fit.txt, or with `test` those of
    prompts_test.txt, of emoji that the network has not seen; `threads`: of a call, 0 for all cores.
    """
    several = prompts("test" if test else "fit")
    scales = [float(scale) for scale in (guidance if isinstance(guidance, list | tuple) else [guidance])]
    return Problem(model, scales, size, seed, [prompt] if prompt else several, threads)
