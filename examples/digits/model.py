"""The digits denoiser in numpy: class-conditional, with classifier-free guidance, about 1.3 M parameters.

D(x, sigma) = c_skip x + c_out F(c_in x, c_noise) with the EDM preconditioning (Karras et al. 2022,
arXiv 2206.00364, table 1), where F is a residual MLP; `train.py` trained it. Images are [B, 1, 8, 8] with
pixels in [-1, 1]; sigma is the standard deviation of the noise in the same unit.
"""

import math
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
SIGMA_DATA = 0.75
NO_LABEL = 10
WEIGHTS = Path(__file__).with_name("digits.safetensors")


def silu(a):
    """a / (1 + exp(-a)) in place, as (t + t tanh t) with t = a / 2: no overflow."""
    a *= 0.5
    t = np.tanh(a)
    t += 1
    a *= t
    return a


def modulated(h, scale, shift):
    """RMS norm of the rows of h [B, W], times scale [B, W], plus shift [B, W]; a new array."""
    rms = np.sqrt(np.einsum("bw,bw->b", h, h) / h.shape[1] + 1e-6)
    a = h / rms[:, None]
    a *= scale
    a += shift
    return a


class Digits:
    """The denoiser; `dtype` is the type of computation and result (the weights are stored in float16)."""

    def __init__(self, path=WEIGHTS, dtype=np.float32):
        self.dtype = np.dtype(dtype)
        weights = {name: value.astype(self.dtype) for name, value in load_file(path).items()}

        def linear(name):
            return np.ascontiguousarray(weights[name + ".weight"].T), weights[name + ".bias"]

        count = sum(name.endswith(".up.weight") for name in weights)
        blocks = [f"blocks.{i}" for i in range(count)]
        self.sigma_embed, self.embed = linear("sigma_embed"), linear("embed")
        self.label_embed = weights["label_embed.weight"]
        self.input, self.output = linear("input"), linear("output")
        self.blocks = [(*linear(b + ".up"), *linear(b + ".down")) for b in blocks]
        # the (scale, shift) maps of all blocks and of the output, side by side
        maps = [linear(b + ".modulation") for b in blocks] + [linear("modulation")]
        self.modulation = tuple(np.concatenate(parts, axis=-1) for parts in zip(*maps, strict=True))
        self.parameters = sum(value.size for value in weights.values())

    def table(self, sigma):
        """(scale, shift) of each block, then the output, per label at one sigma: [blocks + 1, 2, 11, W]."""
        (w0, b0), (w1, b1), (w2, b2) = self.sigma_embed, self.embed, self.modulation
        angle = math.log(sigma) / 4 * np.arange(1, len(w0) // 2 + 1)
        wave = np.concatenate([np.cos(angle), np.sin(angle)]).astype(self.dtype)
        emb = silu(self.label_embed + (wave @ w0 + b0))
        table = silu(emb @ w1 + b1) @ w2 + b2
        table = table.reshape(len(emb), len(self.blocks) + 1, 2, -1).transpose(1, 2, 0, 3)
        table[:, 0] += 1
        return table

    def denoise(self, x, sigma, labels, guidance=1.0, out=None):
        """The denoised images, D_uncond + guidance (D_cond - D_uncond); same shape as x.

        x: [B, 1, 8, 8]; sigma: a float > 0; labels: integers [B] in 0..10 (10: no label); out: where to
        write, may be x itself. At guidance exactly 1 only the conditional half is computed.
        """
        sigma, guided = float(sigma), guidance != 1
        flat = np.asarray(x, self.dtype).reshape(len(x), -1)
        labels = np.asarray(labels)
        variance = sigma**2 + SIGMA_DATA**2
        h = flat @ (self.input[0] * self.dtype.type(1 / math.sqrt(variance)))
        h += self.input[1]
        if guided:
            h = np.concatenate([h, h])
            labels = np.concatenate([labels, np.full_like(labels, NO_LABEL)])
        table = self.table(sigma)
        for (up, up_bias, down, down_bias), (scale, shift) in zip(self.blocks, table[:-1], strict=True):
            a = modulated(h, scale[labels], shift[labels]) @ up
            a += up_bias
            h += silu(a) @ down
            h += down_bias
        scale, shift = table[-1]
        a = silu(modulated(h, scale[labels], shift[labels]))
        if guided:  # the last map is linear: combine the two halves before it
            cond, uncond = a[: len(x)], a[len(x) :]
            cond -= uncond
            cond *= guidance
            cond += uncond
            a = cond
        f = a @ self.output[0]
        f += self.output[1]
        f *= sigma * SIGMA_DATA / math.sqrt(variance)
        f += (SIGMA_DATA**2 / variance) * flat
        if out is None:
            return f.reshape(x.shape)
        out[...] = f.reshape(x.shape)
        return out


def batch(index, size=64, seed=0):
    """Start `index` of a sampler: (x_T float32 [size, 1, 8, 8] = SIGMA_MAX * normal, labels int64 [size])."""
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    x = SIGMA_MAX * rng.standard_normal((size, 1, 8, 8), dtype=np.float32)
    return x, rng.integers(0, 10, size)
