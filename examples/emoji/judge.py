"""The classifier of kinds of emoji, which no fit sees, and what it says of pictures. Runs on onnxruntime.

It was trained apart from the denoisers (`train.py classifier`) and has another architecture.
"""

import numpy as np
from emoji_model import metadata, session


class Judge:
    """Pictures are [n, 3, 32, 32] or [n, 3, 64, 64], in -1..1."""

    def __init__(self, threads=0):
        self.session = session("classifier", threads)
        self.names = metadata("classifier")["kinds"]

    def _run(self, output, pictures):
        x = np.asarray(pictures, np.float32)
        if x.shape[-1] == 64:
            x = x.reshape(len(x), 3, 32, 2, 32, 2).mean((3, 5))
        return self.session.run([output], {"x": x})[0]

    def kinds(self, pictures):
        """The kind of each picture, such as "food-fruit"."""
        return [self.names[i] for i in self._run("scores", pictures).argmax(1)]

    def features(self, pictures):
        """[n, 96], for Frechet distances."""
        return self._run("features", pictures)

    def perceptual(self, pictures):
        """[n, K], whose Euclidean distances are like those of LPIPS (arXiv 1801.03924)."""
        return self._run("perceptual", pictures)

    def difference(self, pictures, others):
        """How differently people would see two pictures: [n]."""
        return np.linalg.norm(self.perceptual(pictures) - self.perceptual(others), axis=1)


def psnr(pictures, wanted):
    """Peak signal-to-noise ratio of each picture to the wanted one, dB, for pixels in -1..1: [n]."""
    error = np.square(np.asarray(pictures, np.float64) - wanted).mean((1, 2, 3))
    return 10 * np.log10(4 / error.clip(1e-12))
