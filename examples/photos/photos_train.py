"""Train the denoiser of photograph crops and write `photos.safetensors`.

The data are 32x32 crops of the two photographs that scikit-learn ships, box-averaged by 2 to 6 and flipped;
the class is the photograph. Preconditioning and loss weight are those of EDM (Karras et al. 2022, arXiv
2206.00364, table 1); labels are dropped at random for classifier-free guidance. The seed fixes every draw,
the clock the number of steps: 9844 in 24 minutes of a shared core for the weights that are kept.
"""

import argparse
import copy
import math
import time
from pathlib import Path

import torch
from photos_model import NO_LABEL, SHAPE, SIGMA_DATA, SIGMA_MAX, SIGMA_MIN, WEIGHTS, Net
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import nn
from torch.nn import functional as F

SIDE = SHAPE[-1]
HELD_OUT = 128  # columns at the right of each photograph that no training crop touches
LEVELS = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 40.0)  # where losses are reported


class Crops:
    """Random crops of one part of the photographs: `held_out` or the rest."""

    def __init__(self, held_out=False):
        self.factors = (2, 3, 4) if held_out else (2, 3, 4, 5, 6)
        # the mean of every f x f box; a crop takes every f-th
        self.boxes = {}
        for label, photo in enumerate(load_sample_images().images):
            x = torch.from_numpy(photo.copy()).permute(2, 0, 1) / 127.5 - 1
            x = x[:, :, -HELD_OUT:] if held_out else x[:, :, :-HELD_OUT]
            for f in self.factors:
                self.boxes[label, f] = F.avg_pool2d(x, f, 1)

    def draw(self, n, generator):
        """(crops [n, 3, 32, 32], labels [n])."""
        x, labels = torch.empty(n, *SHAPE), torch.randint(0, NO_LABEL, (n,), generator=generator)
        where = torch.rand(n, 4, generator=generator).tolist()
        for i, (label, (a, b, c, flip)) in enumerate(zip(labels.tolist(), where, strict=True)):
            f = self.factors[int(a * len(self.factors))]
            box, span = self.boxes[label, f], f * (SIDE - 1) + 1
            top, left = int(b * (box.shape[1] - span + 1)), int(c * (box.shape[2] - span + 1))
            crop = box[:, top : top + span : f, left : left + span : f]
            x[i] = crop.flip(2) if flip < 0.5 else crop
        return x, labels


def draw_sigma(n, generator):
    """n noise levels: 85 % log-normal about 0.37, 15 % log-uniform on [SIGMA_MIN, SIGMA_MAX]."""
    low, high = math.log(SIGMA_MIN), math.log(SIGMA_MAX)
    uniform = low + (high - low) * torch.rand(n, generator=generator)
    normal = -1.0 + 1.4 * torch.randn(n, generator=generator)
    pick = torch.rand(n, generator=generator) < 0.15
    return torch.where(pick, uniform, normal).clamp(low, high).exp()


def loss_of(denoiser, x, labels, sigma, generator):
    """EDM loss per image [B]: mean squared error of the denoised image times the inverse of c_out^2."""
    noisy = x + sigma.view(-1, 1, 1, 1) * torch.randn(x.shape, generator=generator)
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    return weight * (denoiser(noisy, sigma, labels) - x).square().mean((1, 2, 3))


def trivial(x, sigma, _labels):
    """The best multiple of x for data of deviation SIGMA_DATA about 0."""
    return (SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)).view(-1, 1, 1, 1) * x


@torch.no_grad()
def losses(denoiser, crops, n=128):
    """Mean EDM loss at each of LEVELS over n crops, the same for every call."""
    generator = torch.Generator().manual_seed(1)
    x, labels = crops.draw(n, generator)
    return [loss_of(denoiser, x, labels, torch.full((n,), s), generator).mean().item() for s in LEVELS]


def report(name, values):
    print(
        f"{name:>9} " + "  ".join(f"{s:g}: {v:.4f}" for s, v in zip(LEVELS, values, strict=True)), flush=True
    )


def train(args, crops, held_out):
    """The network with averaged weights, after args.minutes."""
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    net = Net().to(memory_format=torch.channels_last)
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=args.weight_decay
    )
    start, step, progress, told = time.perf_counter(), 0, 0.0, 0.0
    while progress < 1:
        rate = args.lr * min(1, (step + 1) / 200) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        x, labels = crops.draw(args.batch, generator)
        labels[torch.rand(args.batch, generator=generator) < args.label_dropout] = NO_LABEL
        loss = loss_of(net, x, labels, draw_sigma(args.batch, generator), generator).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(args.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - decay)
        progress = (time.perf_counter() - start) / (60 * args.minutes)
        if progress >= min(told + 0.1, 1):
            told = progress
            print(f"step {step}, {60 * args.minutes * progress:.0f} s", flush=True)
            report("train", losses(ema, crops))
            report("held-out", losses(ema, held_out))
    return ema


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20, help="wall-clock time of the training")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate; warm-up, cosine decay")
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--label-dropout", type=float, default=0.1, help="share of crops without label")
    parser.add_argument("--ema", type=float, default=0.999, help="decay of the averaged weights per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    crops, held_out = Crops(), Crops(held_out=True)
    x, _ = crops.draw(4096, torch.Generator().manual_seed(2))
    print(f"training crops: mean {x.mean():.3f}, deviation {x.std():.3f} (SIGMA_DATA {SIGMA_DATA})")
    report("trivial", losses(trivial, held_out))
    state = train(args, crops, held_out).state_dict()
    save_file({name: value.half().contiguous() for name, value in state.items()}, args.out)
    print(f"{sum(value.numel() for value in state.values())} parameters, {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
