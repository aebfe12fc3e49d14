"""Batches of training pictures with their prompts, as described in `emoji_data.py`."""

import math

import torch
from emoji_data import WORDS, emojis, pictures, vocabulary
from torch.nn import functional as F


class Stickers:
    """Draws the emoji that are trained on, or those held out."""

    def __init__(self, held_out=False):
        every = emojis()
        self.vocabulary = vocabulary(every)
        self.emojis = [emoji for emoji in every if emoji.held_out == held_out]
        images, starts = pictures(self.emojis)
        self.images, starts = torch.from_numpy(images), torch.from_numpy(starts)
        self.first, self.count = starts[:-1], starts.diff()
        self.mirrors = torch.tensor([emoji.mirrors for emoji in self.emojis])
        index = {word: i for i, word in enumerate(self.vocabulary) if i}
        self.name_words = [[index[w] for w in emoji.words if w in index] for emoji in self.emojis]
        self.kind_words = [[index[w] for w in emoji.kind_words if w in index] for emoji in self.emojis]
        self.kinds = sorted({emoji.kind for emoji in every})
        self.kind = torch.tensor([self.kinds.index(emoji.kind) for emoji in self.emojis])

    def draw(self, n):
        """n numbers of emoji."""
        return torch.randint(len(self.emojis), (n,))

    def picture(self, which, size=64):
        """[n, 3, size, size] in -1..1 of the emoji `which` [n]; size 64 or 32."""
        n = len(which)
        variant = (torch.rand(n) * self.count[which]).long() * (torch.rand(n) < 0.6)
        rgba = self.images[self.first[which] + variant].float() / 255
        opacity = rgba[:, 3:]
        seen = F.grid_sample(
            torch.cat([rgba[:, :3] * opacity, opacity], 1), self._pose(which), align_corners=False
        )
        seen = seen[:, :3] + (1 - seen[:, 3:]) * _ground(n)
        return (F.avg_pool2d(seen, 64 // size) if size < 64 else seen) * 2 - 1

    def _pose(self, which):
        n = len(which)
        angle = (torch.rand(n) * 2 - 1) * math.radians(8)
        scale = 1 / (0.85 + 0.15 * torch.rand(n))
        mirror = 1 - 2.0 * ((torch.rand(n) < 0.5) & self.mirrors[which])
        cos, sin = scale * angle.cos(), scale * angle.sin()
        dx, dy = (torch.rand(2, n) * 2 - 1) * 0.0625
        theta = torch.stack([cos * mirror, -sin, dx, sin * mirror, cos, dy], 1).view(n, 2, 3)
        return F.affine_grid(theta, [n, 4, 64, 64], align_corners=False)

    def prompt(self, which):
        """Word numbers [n, WORDS] (0: none): of the name, sometimes of the kind, one in ten empty."""
        rows = []
        for i in which.tolist():
            r = torch.rand(()).item()
            name = _some(self.name_words[i], 0.8) if r > 0.25 else []
            kind = _some(self.kind_words[i], 0.8 if r < 0.25 else 0.25)
            words = (name + kind if r > 0.1 else [])[:WORDS]
            rows.append(words + [0] * (WORDS - len(words)))
        return torch.tensor(rows)


def _some(words, share):
    """About `share` of the words in any order; one at least."""
    order = torch.randperm(len(words)).tolist()
    count = max(1, int((torch.rand(len(words)) < share).sum())) if words else 0
    return [words[i] for i in order[:count]]


def _ground(n):
    """Pale grounds [n, 3, 64, 64]: half are white, the others of one colour or shading into a second."""
    hue = torch.rand(2, n, 1) + torch.tensor([0.0, 1 / 3, 2 / 3])
    strength = 0.3 * torch.rand(2, n, 1) * (torch.rand(n, 1) > 0.5)
    one, two = 1 - strength * (0.5 + 0.5 * (2 * math.pi * hue).cos())
    two = torch.where(torch.rand(n, 1) < 0.5, one, two)
    angle = 2 * math.pi * torch.rand(n, 1, 1)
    line = torch.linspace(-0.5, 0.5, 64)
    mix = (0.5 + 0.7 * (angle.cos() * line[None, :, None] + angle.sin() * line)).clamp(0, 1)[:, None]
    return one[:, :, None, None] * (1 - mix) + two[:, :, None, None] * mix
