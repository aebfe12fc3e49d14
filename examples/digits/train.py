"""Train the class-conditional denoiser of the 8x8 digits and write `digits.safetensors`.

The preconditioning, the loss weight and the non-leaking augmentation are those of EDM (Karras et al. 2022,
arXiv 2206.00364, table 1 and appendix F.2); labels are dropped at random for classifier-free guidance
(Ho & Salimans 2022, arXiv 2207.12598). The network is a residual MLP on the 64 pixels whose blocks are
modulated (scale and shift after an RMS norm) by an embedding of (sigma, label). `model.py` runs it in numpy.
"""

import argparse
import copy
import math
import time
from pathlib import Path

import torch
from data import SIGMA_DATA, split
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

PIXELS, WIDTH, HIDDEN, EMBED, BLOCKS = 64, 256, 512, 96, 4
FREQUENCIES = 8  # cos and sin of k * c_noise, k = 1..8: smooth in log(sigma), period 3.1 or longer
CLASSES = 11  # ten digits and "no label" (10)
NO_LABEL = 10
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
AUGMENTS = 5  # numbers describing one augmentation


class Block(nn.Module):
    """h [B, WIDTH] -> h + W2 silu(W1 ((1 + scale) * rmsnorm(h) + shift))."""

    def __init__(self):
        super().__init__()
        self.modulation = nn.Linear(EMBED, 2 * WIDTH)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, h, emb, dropout=0.0):
        scale, shift = self.modulation(emb).chunk(2, dim=1)
        a = F.rms_norm(h, (WIDTH,), eps=1e-6) * (1 + scale) + shift
        a = F.dropout(F.silu(self.up(a)), dropout, self.training)
        return h + self.down(a)


class Net(nn.Module):
    """The denoiser D(x, sigma, label) as a torch module."""

    def __init__(self):
        super().__init__()
        self.sigma_embed = nn.Linear(2 * FREQUENCIES, EMBED)
        self.label_embed = nn.Embedding(CLASSES, EMBED)
        self.embed = nn.Linear(EMBED, EMBED)
        self.augment_embed = nn.Linear(
            AUGMENTS, EMBED, bias=False
        )  # training only: its input is 0 when sampling
        self.input = nn.Linear(PIXELS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.modulation = nn.Linear(EMBED, 2 * WIDTH)
        self.output = nn.Linear(WIDTH, PIXELS)
        nn.init.zeros_(self.output.weight)

    def forward(self, x, sigma, labels, augment=None, dropout=0.0):
        """x [B, 1, 8, 8], sigma [B], labels [B] in 0..10, augment [B, AUGMENTS] -> denoised [B, 1, 8, 8]."""
        sigma = sigma[:, None]
        norm = (sigma**2 + SIGMA_DATA**2).sqrt()
        angle = sigma.log() / 4 * torch.arange(1, FREQUENCIES + 1, dtype=x.dtype)
        emb = self.sigma_embed(torch.cat([angle.cos(), angle.sin()], dim=1)) + self.label_embed(labels)
        if augment is not None:
            emb = emb + self.augment_embed(augment)
        emb = F.silu(self.embed(F.silu(emb)))
        flat = x.flatten(1)
        h = self.input(flat / norm)
        for block in self.blocks:
            h = block(h, emb, dropout)
        scale, shift = self.modulation(emb).chunk(2, dim=1)
        f = self.output(F.silu(F.rms_norm(h, (WIDTH,), eps=1e-6) * (1 + scale) + shift))
        return ((SIGMA_DATA / norm) ** 2 * flat + SIGMA_DATA * sigma / norm * f).view_as(x)


def augmented(x, probability):
    """Small random affine maps of x [B, 1, 8, 8] -> (images, what was done [B, AUGMENTS], 0: nothing)."""
    z = torch.randn(len(x), AUGMENTS) * (torch.rand(len(x), 1) < probability)
    angle, log_scale, log_aspect, dx, dy = (z * torch.tensor([0.12, 0.06, 0.06, 0.08, 0.06])).unbind(1)
    sx, sy = (log_scale + log_aspect).exp(), (log_scale - log_aspect).exp()
    theta = torch.stack(
        [sx * angle.cos(), -sx * angle.sin(), dx, sy * angle.sin(), sy * angle.cos(), dy], dim=1
    ).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    moved = F.grid_sample(x + 1, grid, mode="bicubic", padding_mode="zeros", align_corners=False) - 1
    return torch.where((z == 0).all(1).view(-1, 1, 1, 1), x, moved.clamp(-1, 1)), z


def draw_sigma(n):
    """n noise levels: 85 % log-normal about 0.45, 15 % log-uniform on [SIGMA_MIN, SIGMA_MAX]."""
    low, high = math.log(SIGMA_MIN), math.log(SIGMA_MAX)
    log_sigma = torch.where(
        torch.rand(n) < 0.15, low + (high - low) * torch.rand(n), -0.8 + 1.3 * torch.randn(n)
    )
    return log_sigma.clamp(low, high).exp()


def loss_of(net, x, labels, sigma, augment=None, dropout=0.0):
    """EDM loss per image [B]: mean squared error of the denoised image times the inverse of c_out^2."""
    noisy = x + sigma.view(-1, 1, 1, 1) * torch.randn_like(x)
    weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
    return weight * (net(noisy, sigma, labels, augment, dropout) - x).square().mean((1, 2, 3))


@torch.no_grad()
def evaluate(net, x, labels, repeats=20):
    """Mean EDM loss over log-normal noise levels, the same for every call."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        x, labels = x.repeat(repeats, 1, 1, 1), labels.repeat(repeats)
        return loss_of(net, x, labels, (-0.8 + 1.3 * torch.randn(len(x))).exp()).mean().item()


def train(args):
    """The trained network with averaged weights."""
    torch.manual_seed(args.seed)
    (x_train, y_train), (x_held, y_held) = ((torch.from_numpy(x), torch.from_numpy(y)) for x, y in split())
    net = Net()
    ema = copy.deepcopy(net).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=args.weight_decay
    )
    bar = tqdm(range(args.steps), desc="digits", disable=args.quiet)
    for step in bar:
        progress = step / args.steps
        rate = args.lr * min(1, (step + 1) / 200) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        index = torch.randint(len(x_train), (args.batch,))
        x, augment = augmented(x_train[index], args.augment)
        labels = torch.where(torch.rand(args.batch) < args.label_dropout, NO_LABEL, y_train[index])
        loss = loss_of(net, x, labels, draw_sigma(args.batch), augment, args.dropout).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        decay = min(args.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - decay)
        if step % 500 == 499:
            held, seen = evaluate(ema, x_held, y_held), evaluate(ema, x_train, y_train, repeats=4)
            bar.set_postfix(train=f"{seen:.4f}", held_out=f"{held:.4f}")
            if args.quiet:
                print(f"step {step + 1}: train {seen:.4f}, held-out {held:.4f}", flush=True)
    return ema


def main():
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument(
        "--lr", type=float, default=2e-3, help="peak learning rate; linear warm-up, cosine decay"
    )
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--dropout", type=float, default=0.1, help="of the hidden activations of each block")
    parser.add_argument(
        "--augment", type=float, default=0.7, help="share of images moved by a small affine map"
    )
    parser.add_argument(
        "--label-dropout", type=float, default=0.15, help="share of images trained without label"
    )
    parser.add_argument("--ema", type=float, default=0.998, help="decay of the averaged weights per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--quiet", action="store_true", help="losses every 500 steps instead of a progress bar"
    )
    parser.add_argument("--out", type=Path, default=here / "digits.safetensors")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    start = time.perf_counter()
    state = train(args).state_dict()
    del state["augment_embed.weight"]
    save_file({name: value.half().contiguous() for name, value in state.items()}, args.out)
    count = sum(value.numel() for value in state.values())
    print(f"{count} parameters, {args.out.stat().st_size} bytes, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
