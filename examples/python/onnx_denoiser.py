"""An ONNX Runtime model as denoiser: the ten digits, as characters.

python examples/digits/export.py digits.onnx     # needs torch and onnx
python examples/python/onnx_denoiser.py digits.onnx [nfe05.json]
"""

import sys

import lmsd
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
labels = np.arange(10)


def model(x, sigma):
    """The prediction of x0. The network's sigma has one element for each image."""
    inputs = {"x": x, "sigma": np.full(len(x), sigma, np.float32), "class": labels}
    return session.run(["denoised"], inputs)[0]


schedule = sys.argv[2] if len(sys.argv) > 2 else lmsd.solve("dpmpp_2m", nfe=12, sigma_end=0.002)
x_t = 80 * np.random.default_rng(0).standard_normal((10, 1, 8, 8), np.float32)
x = lmsd.sample(schedule, x_t, model)
for row in np.concatenate(list(x[:, 0]), axis=1):  # 8 rows of 80 pixels in [-1, 1]
    print("".join(" .:-=+*#%@"[int(np.clip(5 + 5 * pixel, 0, 9))] for pixel in row))
