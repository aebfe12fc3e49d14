"""A classifier of the photograph crops, to judge pictures by: from which part of which photograph is this
crop?

Its classes are the two photographs times 4 x 4 places. The seed fixes it; it is trained where it is not yet
in out/peers (half a minute). Nothing is fitted to it.
"""

import os

import torch
from classifier import statistics
from torch import nn
from torch.nn import functional as F

from .networks import ROOT

FILE = ROOT / "out" / "peers" / "photos_classifier.pt"
PLACES, FEATURES = 4, 32
STEPS, BATCH, RATE, NOISE = 600, 64, 2e-3, 0.05


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        widths = (3, 24, 32, 48)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, stride=2) for a, b in zip(widths, widths[1:], strict=False)
        )
        self.hidden = nn.Linear(48 * 16, FEATURES)
        self.output = nn.Linear(FEATURES, 2 * PLACES**2)

    def layers(self, x):
        """The layers, then the features [B, FEATURES]."""
        found = []
        for conv in self.convs:
            x = F.silu(conv(x))
            found.append(x)
        return [*found, torch.tanh(self.hidden(x.flatten(1)))]

    def forward(self, x):
        return self.output(self.layers(x)[-1])


def draw(crops, n, generator):
    """(crops [n, 3, 32, 32], their places [n]), like Crops.draw, which does not tell the place."""
    from photos_train import SIDE

    x, places = [], []
    for a, b, c, d, flip in torch.rand(n, 5, generator=generator).tolist():
        label, f = int(2 * d), crops.factors[int(a * len(crops.factors))]
        box, span = crops.boxes[label, f], f * (SIDE - 1) + 1
        top, left = int(b * (box.shape[1] - span + 1)), int(c * (box.shape[2] - span + 1))
        crop = box[:, top : top + span : f, left : left + span : f]
        x.append(crop.flip(2) if flip < 0.5 else crop)
        places.append((label * PLACES + int(b * PLACES)) * PLACES + int(c * PLACES))
    return torch.stack(x), torch.tensor(places)


def train():
    from photos_train import Crops

    generator, crops = torch.Generator().manual_seed(0), Crops()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Classifier()
    adam = torch.optim.AdamW(net.parameters(), RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
    with torch.enable_grad():
        for _ in range(STEPS):
            x, places = draw(crops, BATCH, generator)
            loss = F.cross_entropy(net(x + NOISE * torch.randn(x.shape, generator=generator)), places)
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
    x, places = draw(crops, 1024, generator)
    with torch.no_grad():
        right = (net(x).argmax(1) == places).float().mean().item()
        real = net.layers(crops.draw(4096, generator)[0])[-1]
    return net, statistics(real.numpy()), right


def classifier():
    """(the classifier, (mean, covariance) of its features of training crops)."""
    if not FILE.exists():
        net, (mean, covariance), right = train()
        FILE.parent.mkdir(parents=True, exist_ok=True)
        kept = {"state": net.state_dict(), "mean": mean, "covariance": covariance, "accuracy": right}
        part = FILE.with_suffix(f".{os.getpid()}")
        torch.save(kept, part)
        part.replace(FILE)
    kept = torch.load(FILE, weights_only=False)
    net = Classifier().eval().requires_grad_(False)
    net.load_state_dict(kept["state"])
    return net, (kept["mean"], kept["covariance"])
