"""Gradient descent through the network: what Adam makes of a distilled schedule.

    python benches/adam.py --network mixture --nfe 5

The unknowns are those of lmsd: log sigma, log of the noise level that the model is told, and the weights.
Each step takes 64 fresh trajectories; the loss is the mean Euclidean distance of the end points to those of a
teacher of 50 calls. The best on 256 validation trajectories is kept, the start among them. This needs the
gradients of the model, which lmsd does without.
"""

import argparse
import math
import os
import sys
from pathlib import Path

# the matrices are small: BLAS threads cost more than they save, above all on a busy machine
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "photos"))

import lmsd
import numpy as np
import torch
from common import about, measure, teacher
from model import NO_LABEL, SIGMA_DATA
from networks import NETWORKS, test_count, test_problem
from unknowns import Table

TEACHER_NFE = 50
SEED = 2000  # of its noise
STEPS, RATE, EVERY = 300, 2e-3, 25
VALIDATION, FIRST_VALIDATION = 256, 1 << 20
BATCH = 64


class TorchDigits:
    """examples/digits/model.py in torch: gradients flow to x and sigma."""

    def __init__(self, problem):
        net, to = problem.digits, torch.from_numpy
        self.guidance, self.label_embed = problem.guidance, to(net.label_embed)
        parts = (net.sigma_embed, net.embed, net.modulation, net.input, net.output)
        self.sigma_embed, self.embed, self.modulation, self.input, self.output = (
            tuple(map(to, part)) for part in parts
        )
        self.blocks = [tuple(map(to, block)) for block in net.blocks]

    def __call__(self, x, sigma, labels):
        silu = torch.nn.functional.silu
        flat, sigma, labels = x.reshape(len(x), -1).float(), sigma.float(), torch.as_tensor(labels)
        norm = (sigma**2 + SIGMA_DATA**2).sqrt()
        (w0, b0), (w1, b1), (w2, b2) = self.sigma_embed, self.embed, self.modulation
        angle = sigma.log() / 4 * torch.arange(1, len(w0) // 2 + 1)
        emb = silu(self.label_embed + torch.cat([angle.cos(), angle.sin()]) @ w0 + b0)
        table = (silu(emb @ w1 + b1) @ w2 + b2).reshape(len(emb), len(self.blocks) + 1, 2, -1)

        def modulated(h, at):
            h = h / (h.square().mean(1, keepdim=True) + 1e-6).sqrt()
            return h * (1 + table[rows, at, 0]) + table[rows, at, 1]

        guided, rows = self.guidance != 1, labels
        h = flat / norm @ self.input[0] + self.input[1]
        if guided:
            h, rows = torch.cat([h, h]), torch.cat([labels, torch.full_like(labels, NO_LABEL)])
        for at, (up, up_bias, down, down_bias) in enumerate(self.blocks):
            h = h + silu(modulated(h, at) @ up + up_bias) @ down + down_bias
        a = silu(modulated(h, len(self.blocks)))
        if guided:
            cond, uncond = a.chunk(2)
            a = uncond + self.guidance * (cond - uncond)
        f = a @ self.output[0] + self.output[1]
        return (sigma * SIGMA_DATA / norm * f + (SIGMA_DATA / norm) ** 2 * flat).reshape(x.shape).double()


class TorchMixture:
    """mixture.py in torch."""

    def __init__(self, problem):
        self.means, self.logs = torch.from_numpy(problem.means), torch.from_numpy(problem.logs)
        self.variance = problem.variance

    def __call__(self, x, sigma, _):
        variance = self.variance + sigma**2
        far = x.square().sum(1)[:, None] - 2 * x @ self.means.T + self.means.square().sum(1)
        mean = torch.softmax(self.logs - far / (2 * variance), 1) @ self.means
        return mean + self.variance / variance * (x - mean)


class TorchPhotos:
    def __init__(self, problem):
        self.photos, self.guidance = problem.photos, problem.guidance

    def __call__(self, x, sigma, labels):
        return self.photos.denoise(x.float(), sigma.float(), labels, self.guidance).double()


def differentiable(name, problem):
    """The network as a function of (x, sigma, labels), float64 tensors."""
    kinds = {"mixture": TorchMixture, "photos": TorchPhotos}
    return kinds.get(name, TorchDigits)(problem)


def batch(problem, truth, index):
    """(x_T, labels, the teacher's end points) of batch `index`."""
    x = problem.begin(index)
    goal = lmsd.sample(truth, x, problem.model)
    return *map(as_double, (x, goal)), getattr(problem, "labels", None)


def as_double(x):
    return torch.as_tensor(np.asarray(x)).double()


def refine(name, schedule, steps=STEPS, rate=RATE):
    """What Adam makes of `schedule`, by its distance on validation trajectories."""
    torch.set_num_threads(1)
    problem = NETWORKS[name](BATCH, SEED)
    model, truth = differentiable(name, problem), teacher(problem, TEACHER_NFE)
    validation = [batch(problem, truth, FIRST_VALIDATION + index) for index in range(VALIDATION // BATCH)]
    unknowns = Table(problem, schedule)
    adam = torch.optim.Adam(unknowns.unknowns, lr=rate)

    def loss(x, goal, labels):
        return (unknowns.states(model, x, labels)[-1] - goal).flatten(1).norm(dim=1).mean()

    best, least = schedule, math.inf
    for step in range(steps + 1):
        if step % EVERY == 0 or step == steps:
            with torch.no_grad():
                distance = sum(loss(*part).item() for part in validation) / len(validation)
            found = unknowns.schedule() if step else schedule
            if distance < least and found:
                best, least = found, distance
        if step == steps:
            return best
        for group in adam.param_groups:
            group["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
        adam.zero_grad()
        loss(*batch(problem, truth, step)).backward()
        adam.step()
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=NETWORKS, default="mixture")
    parser.add_argument("--nfe", type=int, default=5)
    parser.add_argument("--trajectories", type=int, default=200)
    args = parser.parse_args()
    problem = NETWORKS[args.network](4, 0)
    options = {"nfe": args.nfe, "trajectories": args.trajectories, **about(problem)}
    found = lmsd.distill(problem.model, problem.begin, problem.like, progress=False, **options)
    ours = found.schedules[args.nfe]
    pair = [ours, refine(args.network, ours)]
    own, adams = measure(test_problem(args.network), pair, test_count(args.network))
    print(f"{args.network}, {args.nfe} NFE: ours {own:.4f}, after Adam {adams:.4f}, ratio {own / adams:.3f}")


if __name__ == "__main__":
    sys.exit(main())
