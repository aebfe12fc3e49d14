"""A small convolutional classifier of the 8x8 digits in numpy, and the Frechet distance of its features.

It judges samples and is independent of the denoiser: another architecture, trained by `train_classifier.py`.
The distance is the Frechet inception distance (Heusel et al. 2017, arXiv 1706.08500) with this network's 32
penultimate features in place of Inception's; its values compare only with one another.
"""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

WEIGHTS = Path(__file__).with_name("classifier.safetensors")


def conv(x, weight, bias, stride=1):
    """3x3 convolution, zero padding of one pixel: x [B, C, H, W], weight [D, C, 3, 3] -> [B, D, H', W']."""
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3)
    )
    windows = windows[:, :, ::stride, ::stride]
    y = np.tensordot(windows, weight, axes=((1, 4, 5), (1, 2, 3)))
    return np.moveaxis(y + bias, 3, 1)


def silu(a):
    """a / (1 + exp(-a)), without overflow."""
    return 0.5 * a * (1 + np.tanh(0.5 * a))


class Classifier:
    """`reference` is (mean [32], covariance [32, 32]) of the features of the training images, float64."""

    def __init__(self, path=WEIGHTS):
        self.weights = {name: value.astype(np.float32) for name, value in load_file(path).items()}
        self.reference = tuple(self.weights.pop(name).astype(np.float64) for name in ("mean", "covariance"))

    def features(self, x):
        """Penultimate features [B, 32] of images x [B, 1, 8, 8] with pixels about in [-1, 1]."""
        w = self.weights
        a = np.asarray(x, np.float32) + 1  # paper is 0, like the padding
        a = silu(conv(a, w["conv1.weight"], w["conv1.bias"]))
        a = silu(conv(a, w["conv2.weight"], w["conv2.bias"], stride=2))
        return np.tanh(a.reshape(len(a), -1) @ w["hidden.weight"].T + w["hidden.bias"])

    def logits(self, x):
        """Class scores [B, 10]."""
        return self.features(x) @ self.weights["output.weight"].T + self.weights["output.bias"]

    def predict(self, x):
        """Most likely digit of each image, [B]."""
        return self.logits(x).argmax(1)


def statistics(features):
    """(mean [F], covariance [F, F]) of features [N, F], float64."""
    features = np.asarray(features, np.float64)
    return features.mean(0), np.cov(features, rowvar=False)


def root(matrix):
    """Square root of a symmetric positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def frechet(a, b):
    """Frechet distance |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)) between Gaussian fits of two feature sets.

    a, b: features [N, F], or their (mean, covariance). tr (A B)^(1/2) is the sum of the roots of the
    eigenvalues of the symmetric A^(1/2) B A^(1/2). Few samples bias the estimate upwards: compare at equal N.
    """
    mean_a, cov_a = a if isinstance(a, tuple) else statistics(a)
    mean_b, cov_b = b if isinstance(b, tuple) else statistics(b)
    half = root(cov_a)
    cross = np.sqrt(np.linalg.eigvalsh(half @ cov_b @ half).clip(0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)
