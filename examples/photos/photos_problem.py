"""The photograph crops as a problem of the command line.

lmsd distill --problem examples/photos/photos_problem.py --guidance 2 --nfe 3-8 --out schedules
"""

from photos_model import SHAPE, SIGMA_MAX, SIGMA_MIN, Photos, batch


class Problem:
    process = "ve"
    sigma_min, sigma_max, sigma_end = SIGMA_MIN, SIGMA_MAX, SIGMA_MIN

    def __init__(self, guidance, size, seed):
        self.photos = Photos()
        self.scales, self.size, self.seed = guidance, size, seed
        self.guidance = self.scales[0]
        self.like, _ = batch(0, size, seed)
        self.made_for = {"model": "photos", "latent_shape": list(SHAPE)}
        self.made_for |= {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX}
        low, high = min(guidance), max(guidance)
        self.made_for |= {"guidance_scale": low} if low == high else {"guidance_range": [low, high]}
        self.seeds = f"PCG64([{seed}, batch]), {size} images a batch"
        self.seeds += f", guidance {guidance} in turn" * (len(guidance) > 1)

    def begin(self, index):
        self.guidance = self.scales[index % len(self.scales)]
        x, self.labels = batch(index, self.size, self.seed)
        return x

    def model(self, x, sigma, share=1.0):
        return self.photos.denoise(x, sigma, self.labels, 1 + share * (self.guidance - 1))


def problem(guidance=2.0, size=16, seed=0):
    """Batches of `size` images with classifier-free guidance.

    `guidance`: a scale, or a list of them, of which batches take one each in turn.
    """
    scales = [float(scale) for scale in (guidance if isinstance(guidance, list | tuple) else [guidance])]
    return Problem(scales, size, seed)
