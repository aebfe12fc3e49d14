"""The 8x8 digits of scikit-learn (UCI "Optical Recognition of Handwritten Digits"), scaled and split.

Only training and the evaluation need this file; `model.py` and `classifier.py` do not import scikit-learn.
"""

import numpy as np

HELD_OUT = 297  # images never trained on
SIGMA_DATA = 0.75  # standard deviation of all scaled pixels (0.752), dimensionless; fixed, not re-estimated


def load():
    """All 1797 images: (x float32 [1797, 1, 8, 8] in [-1, 1], labels int64 [1797] in 0..9)."""
    from sklearn.datasets import load_digits

    raw = load_digits()  # grey levels are the integers 0..16
    x = (raw.images / 8 - 1).astype(np.float32)[:, None]
    return x, raw.target.astype(np.int64)


def split(seed=0):
    """((x, labels) of 1500 training images, (x, labels) of 297 held-out ones); a seeded permutation."""
    x, labels = load()
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(x))
    held, train = order[:HELD_OUT], order[HELD_OUT:]
    return (x[train], labels[train]), (x[held], labels[held])
