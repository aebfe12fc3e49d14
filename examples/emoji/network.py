"""The networks as torch modules; `emoji_model.py` runs the same without torch.

One U-Net, of about 1.8 million parameters, on a grid of 16x16: a picture of 32x32 comes as patches of 2x2
pixels, a latent of 16x16x4 as it is. It is told the noise level and the words of the prompt, whose learned
vectors are averaged. It is preconditioned as in EDM (Karras et al. 2022, arXiv 2206.00364). The flow model
predicts the velocity of a rectified flow (Liu et al. 2022, arXiv 2209.03003): with the same weights its
prediction of x_0 would be that of the EDM model at the same signal-to-noise ratio, where its training begins.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, DEEP, EMBED, WORD, HEADS, FREQUENCIES = 96, 128, 128, 64, 4, 8
SIGMA_DATA = 0.5
NOISIEST = 0.9995  # sigma that the flow model is told of where it is higher: it is not trained on pure noise


class Block(nn.Module):
    """h + conv(silu((1 + scale) norm(conv(silu(norm(h)))) + shift)); the embedding gives scale and shift."""

    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(16, width), nn.GroupNorm(16, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.modulation = nn.Linear(EMBED, 2 * width)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, h, emb):
        scale, shift = self.modulation(emb)[:, :, None, None].chunk(2, 1)
        a = self.conv1(F.silu(self.norm1(h)))
        return h + self.conv2(F.silu(self.norm2(a) * (1 + scale) + shift))


class Attention(nn.Module):
    """Self-attention between all positions."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.GroupNorm(16, width),
            nn.Conv2d(width, 3 * width, 1),
            nn.Conv2d(width, width, 1),
        )
        nn.init.zeros_(self.out.weight)

    def forward(self, h):
        batch, width, height, columns = h.shape
        q, k, v = self.qkv(self.norm(h)).reshape(batch, 3, HEADS, width // HEADS, height * columns).unbind(1)
        weights = (q.transpose(2, 3) @ k / math.sqrt(width // HEADS)).softmax(-1)
        return h + self.out((v @ weights.transpose(2, 3)).reshape(batch, width, height, columns))


def mean_of_words(table, words):
    """[B, WORD] from the vectors of `table`; `words` int64 [B, W], 0: no word."""
    said = (words > 0).to(table.weight.dtype)[:, :, None]
    return (table(words) * said).sum(1) / said.sum(1).clamp(min=1)


class Unet(nn.Module):
    """(x [B, channels, S, S], noise [B], words int64 [B, W], 0: no word) -> [B, channels, S, S].

    Instead of the words it takes their mean [B, WORD].
    """

    def __init__(self, words, channels, patch):
        super().__init__()
        self.patch, inside = patch, channels * patch * patch
        self.words = nn.Embedding(words, WORD)
        self.embed_words, self.embed_noise = nn.Linear(WORD, EMBED), nn.Linear(2 * FREQUENCIES, EMBED)
        self.embed = nn.Linear(EMBED, EMBED)
        self.input = nn.Conv2d(inside, WIDTH, 3, padding=1)
        self.down = nn.ModuleList(Block(WIDTH) for _ in range(2))
        self.shrink, self.grow = nn.Conv2d(4 * WIDTH, DEEP, 1), nn.Conv2d(DEEP, 4 * WIDTH, 1)
        self.middle = nn.ModuleList(Block(DEEP) for _ in range(2))
        self.attention = nn.ModuleList(Attention(DEEP) for _ in range(2))
        self.up = nn.ModuleList(Block(WIDTH) for _ in range(2))
        self.norm, self.output = nn.GroupNorm(16, WIDTH), nn.Conv2d(WIDTH, inside, 3, padding=1)
        nn.init.zeros_(self.output.weight)

    def embedding(self, noise, words):
        angle = noise[:, None] * torch.arange(1, FREQUENCIES + 1, device=noise.device)
        text = words if words.is_floating_point() else mean_of_words(self.words, words)
        emb = self.embed_words(text) + self.embed_noise(torch.cat([angle.cos(), angle.sin()], 1))
        return F.silu(self.embed(F.silu(emb)))

    def forward(self, x, noise, words):
        x, noise = x.to(self.input.weight.dtype), noise.to(self.input.weight.dtype)
        emb = self.embedding(noise, words)
        h = skip = self.input(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        for block in self.down:
            h = block(h, emb)
        deep = self.shrink(F.pixel_unshuffle(h, 2))
        for i, block in enumerate(self.middle):
            deep = block(deep, emb)
            if i < len(self.attention):
                deep = self.attention[i](deep)
        h = h + F.pixel_shuffle(self.grow(deep), 2)
        for block in self.up:
            h = block(h, emb)
        h = self.output(F.silu(self.norm(h + skip)))
        return F.pixel_shuffle(h, self.patch) if self.patch > 1 else h


class Denoiser(nn.Module):
    """(x, sigma [B], words [B, W]) -> denoised.

    x = x_0 + sigma noise or, if `flow`, (1 - sigma) x_0 + sigma noise.
    """

    def __init__(self, words, channels=3, patch=2, flow=False):
        super().__init__()
        self.unet, self.flow = Unet(words, channels, patch), flow

    def forward(self, x, sigma, words):
        s = sigma[:, None, None, None]
        if self.flow:
            return x - s * self.velocity(x, sigma, words)
        norm = (SIGMA_DATA**2 + s * s).sqrt()
        f = self.unet(x / norm, sigma.log() / 4, words)
        return SIGMA_DATA**2 / norm**2 * x + SIGMA_DATA * s / norm * f.to(x.dtype)

    def velocity(self, x, sigma, words):
        """Noise less x_0, of a flow model."""
        s, told = sigma[:, None, None, None], sigma.clamp(max=NOISIEST)
        norm = (((1 - s) * SIGMA_DATA) ** 2 + s * s).sqrt()
        f = self.unet(x / norm, (told / (1 - told)).log() / 4, words)
        return (s - SIGMA_DATA**2 * (1 - s)) / norm**2 * x - SIGMA_DATA / norm * f.to(x.dtype)


class Autoencoder(nn.Module):
    """Pictures [B, 3, 64, 64] <-> latents [B, 4, 16, 16] of standard deviation about SIGMA_DATA."""

    def __init__(self):
        super().__init__()

        def layers(*widths, last):
            convs = [nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, (*widths[1:], last), strict=True)]
            return nn.Sequential(*[part for conv in convs for part in (conv, nn.SiLU())][:-1])

        self.into = nn.Sequential(nn.PixelUnshuffle(4), layers(48, 64, 64, last=4))
        self.widen = layers(4, 64, 64, last=4 * 48)
        self.out = nn.Sequential(
            nn.PixelShuffle(2), nn.SiLU(), layers(48, 48, last=4 * 24), nn.PixelShuffle(2), nn.SiLU()
        )
        self.paint = layers(24, last=3)

    def encode(self, pictures):
        return self.into(pictures)

    def decode(self, latents):
        return self.paint(self.out(self.widen(latents)))


class Classifier(nn.Module):
    """Pictures [B, 3, 32, 32] in -1..1 -> scores of the kinds of emoji [B, kinds]."""

    WIDTHS = (16, 32, 64, 96)

    def __init__(self, kinds):
        super().__init__()
        widths = zip((3, *self.WIDTHS), self.WIDTHS, strict=False)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=1 + (i > 0), padding=1) for i, (a, b) in enumerate(widths)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in self.WIDTHS)
        self.last = nn.Conv2d(self.WIDTHS[-1], self.WIDTHS[-1], 3, padding=1)
        self.scores = nn.Linear(self.WIDTHS[-1], kinds)

    def layers(self, x):
        """The outputs of the layers [B, C, S, S], S = 32, 16, 8, 4."""
        found = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.silu(norm(conv(x)))
            found.append(x)
        return found

    def features(self, x):
        """[B, 96]: what the scores are computed from; for Frechet distances."""
        return F.silu(self.last(self.layers(x)[-1])).mean((2, 3))

    def forward(self, x):
        return self.scores(F.dropout(self.features(x), 0.3, self.training))

    def perceptual(self, x):
        """[B, K]: layers with channels normalised at each place, scaled so that distances are like LPIPS.

        The squared Euclidean distance of two is the sum over layers of the mean over places of the squared
        difference of unit vectors (Zhang et al. 2018, arXiv 1801.03924, with equal weights).
        """
        return torch.cat([(F.normalize(h, dim=1) / h.shape[-1]).flatten(1) for h in self.layers(x)], 1)
