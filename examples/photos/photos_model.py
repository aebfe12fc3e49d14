"""A small convolutional denoiser of 32x32 photograph crops in torch: class-conditional, 0.55 M parameters.

D(x, sigma) = c_skip x + c_out F(c_in x, c_noise) with the EDM preconditioning (Karras et al. 2022,
arXiv 2206.00364, table 1), where F is a U-Net on 2x2 patches; `photos_train.py` trained it. Images are
[B, 3, 32, 32] with pixels in [-1, 1]; sigma is the standard deviation of the noise in the same unit. The
benchmarks use it where the digits are too small: a model that is a U-Net and can be differentiated.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
SIGMA_DATA = 0.62  # measured on the training crops
SHAPE = (3, 32, 32)
CLASSES = 3  # china, flower and "no label" (2)
NO_LABEL = 2
WEIGHTS = Path(__file__).with_name("photos.safetensors")
WIDTHS = (24, 48, 96)  # channels at 16x16, 8x8 and 4x4
EMBED = 96
FREQUENCIES = 8  # cos and sin of k * c_noise, k = 1..8: smooth in log(sigma)
GROUP = 12  # channels that are normalised together


class Block(nn.Module):
    """h -> h + conv(silu(conv(silu((1 + scale) * norm(h) + shift))))."""

    def __init__(self, width):
        super().__init__()
        self.groups = width // GROUP
        self.modulation = nn.Linear(EMBED, 2 * width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, h, emb, rows):
        return h + self.second(F.silu(self.first(modulated(h, self.groups, self.modulation(emb)[rows]))))


def modulated(h, groups, modulation):
    """Group norm of h [B, W, H, H], scaled and shifted by modulation [B, 2 W], through SiLU."""
    scale, shift = modulation[:, :, None, None].chunk(2, dim=1)
    return F.silu(torch.addcmul(shift, F.group_norm(h, groups, eps=1e-6), 1 + scale))


class Net(nn.Module):
    """F and its preconditioning; sizes halve by pixel unshuffling and double by pixel shuffling."""

    def __init__(self):
        super().__init__()
        w0, w1, w2 = WIDTHS
        self.sigma_embed = nn.Linear(2 * FREQUENCIES, EMBED)
        self.label_embed = nn.Embedding(CLASSES, EMBED)
        self.embed = nn.Linear(EMBED, EMBED)
        self.input = nn.Conv2d(12, w0, 3, padding=1)
        self.down1, self.down2 = nn.Conv2d(4 * w0, w1, 1), nn.Conv2d(4 * w1, w2, 1)
        self.up2, self.up1 = nn.Conv2d(w2, 4 * w1, 1), nn.Conv2d(w1, 4 * w0, 1)
        self.blocks = nn.ModuleList(Block(w) for w in (w1, w2, w2, w1, w0))
        self.modulation = nn.Linear(EMBED, 2 * w0)
        self.output = nn.Conv2d(w0, 12, 3, padding=1)
        nn.init.zeros_(self.output.weight)

    def embedding(self, sigma, labels):
        """sigma [B], labels [B] -> [B, EMBED]."""
        angle = sigma.log()[:, None] / 4 * torch.arange(1, FREQUENCIES + 1, dtype=sigma.dtype)
        emb = self.sigma_embed(torch.cat([angle.cos(), angle.sin()], dim=1)) + self.label_embed(labels)
        return F.silu(self.embed(F.silu(emb)))

    def features(self, h, emb, rows):
        """What the output map is applied to; image i has row rows[i] of emb."""
        b1, b2, b3, b4, b5 = self.blocks
        h0, h1 = h, b1(self.down1(F.pixel_unshuffle(h, 2)), emb, rows)
        h = self.down2(F.pixel_unshuffle(h1, 2))
        h = b3(b2(h, emb, rows), emb, rows)
        h = b4(h1 + F.pixel_shuffle(self.up2(h), 2), emb, rows)
        h = b5(h0 + F.pixel_shuffle(self.up1(h), 2), emb, rows)
        return modulated(h, b5.groups, self.modulation(emb)[rows])

    def patches(self, x, norm):
        """c_in x through the input map."""
        return self.input(F.pixel_unshuffle(x / norm, 2).contiguous(memory_format=torch.channels_last))

    def denoised(self, x, sigma, norm, features):
        f = F.pixel_shuffle(self.output(features), 2)
        return (SIGMA_DATA / norm) ** 2 * x + SIGMA_DATA * sigma / norm * f

    def forward(self, x, sigma, labels):
        """x [B, 3, 32, 32], sigma [B], labels [B] in 0..2 -> denoised images, for training."""
        emb, rows = self.embedding(sigma, labels), torch.arange(len(x))
        sigma = sigma[:, None, None, None]
        norm = (sigma**2 + SIGMA_DATA**2).sqrt()
        return self.denoised(x, sigma, norm, self.features(self.patches(x, norm), emb, rows))


class Photos:
    """The denoiser in float32 (the weights are stored in float16)."""

    def __init__(self, path=WEIGHTS):
        self.net = Net().eval().requires_grad_(False)
        self.net.load_state_dict({name: value.float() for name, value in load_file(path).items()})
        self.net.to(memory_format=torch.channels_last)
        self.parameters = sum(value.numel() for value in self.net.parameters())

    def denoise(self, x, sigma, labels, guidance=1.0):
        """The denoised images, D_uncond + guidance (D_cond - D_uncond); same shape as x.

        x: float32 [B, 3, 32, 32]; sigma: a number > 0 or a tensor of one, through which gradients flow as
        through x; labels: integers [B] in 0..2 (2: no label). At guidance exactly 1 only the conditional
        half is computed.
        """
        net = self.net
        sigma = torch.as_tensor(sigma, dtype=x.dtype).reshape(())
        norm = (sigma**2 + SIGMA_DATA**2).sqrt()
        emb = net.embedding(sigma.expand(CLASSES), torch.arange(CLASSES))
        rows = torch.as_tensor(labels)
        h = net.patches(x, norm)
        if guidance == 1:
            return net.denoised(x, sigma, norm, net.features(h, emb, rows))
        h = torch.cat([h, h])
        rows = torch.cat([rows, torch.full_like(rows, NO_LABEL)])
        cond, uncond = net.features(h, emb, rows).chunk(2)
        # the output map is linear: the two halves are combined before it
        return net.denoised(x, sigma, norm, torch.lerp(uncond, cond, guidance))


def batch(index, size=16, seed=0):
    """Start `index` of a sampler: (x_T float32 [size, 3, 32, 32] = SIGMA_MAX * normal, labels [size])."""
    rng = np.random.Generator(np.random.PCG64([seed, index]))  # torch's keeps 32 bits of a seed
    x = SIGMA_MAX * torch.from_numpy(rng.standard_normal((size, *SHAPE), dtype=np.float32))
    return x, torch.from_numpy(rng.integers(0, NO_LABEL, size))
