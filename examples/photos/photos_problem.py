"""The photograph crops as a problem of the command line.

lmsd distill --problem examples/photos/photos_problem.py --guidance 2 --nfe 3-8 --out schedules
"""

from photos_model import SHAPE, SIGMA_MAX, SIGMA_MIN, Photos, batch


class Problem:
    process = "ve"
    sigma_min, sigma_max, sigma_end = SIGMA_MIN, SIGMA_MAX, SIGMA_MIN

    def __init__(self, guidance, size, seed):
        self.photos = Photos()
        self.guidance, self.size, self.seed = guidance, size, seed
        self.like, _ = batch(0, size, seed)
        self.made_for = {"model": "photos", "guidance_scale": guidance, "latent_shape": list(SHAPE)}
        self.made_for |= {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX}
        self.seeds = f"PCG64([{seed}, batch]), {size} images a batch"

    def begin(self, index):
        x, self.labels = batch(index, self.size, self.seed)
        return x

    def model(self, x, sigma):
        return self.photos.denoise(x, sigma, self.labels, self.guidance)


def problem(guidance=2.0, size=16, seed=0):
    """Batches of `size` images with classifier-free guidance."""
    return Problem(float(guidance), size, seed)
