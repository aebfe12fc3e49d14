"""Caches that skip evaluations of the network: EasyCache (arXiv 2507.02860) and TeaCache (arXiv 2411.19108).

A published solver makes more steps than it may call the network. At a skipped step the network's output (the
noise, or the velocity of a flow: (x - D) / sigma) is what it was at the last evaluation, shifted by as much
as the scaled input has moved since ("offset", as published), or the same noise, or the same D. Each image
skips by itself where the change that is estimated since its last evaluation is below a threshold. The mean of
evaluations is brought to `nfe` by the threshold, on validation trajectories; so is everything else chosen.
"""

import itertools
from dataclasses import dataclass

import lmsd
import numpy as np
import torch

from .networks import subset
from .trajectories import VALIDATION, levels, mean_distance, pool

KINDS, REUSED = ("easycache", "teacache"), ("offset", "noise", "denoised")
HALVINGS, FINALISTS, FEW = 12, 6, 0.02  # of the threshold; combinations; evaluations


@dataclass
class Cached:
    """A schedule that is run with fewer evaluations than it has nodes."""

    schedule: lmsd.Schedule
    kind: str
    reused: str
    threshold: float
    curve: tuple = (1.0, 0.0)  # TeaCache: polynomial from change of input to change of output
    evaluations: float = 0.0  # mean of an image in the last run

    def run(self, net, x, conditions):
        """End points from x_T [N, ...]."""
        model = Skipping(self, net, conditions, len(x))
        with torch.no_grad():
            ends = lmsd.sample(self.schedule, x, model)
        self.evaluations = model.evaluations / len(x)
        return ends


def scaled(x, sigma, process):
    """The network's input as hosts have it: of unit variance for noise, as it is for a flow."""
    return x if process == "flow" else x / (1 + sigma**2) ** 0.5


def size(x):
    """Mean absolute value of each image, [N]."""
    return x.abs().flatten(1).mean(1)


class Skipping:
    """The model that lmsd.sample calls: evaluates the network for the images whose turn it is."""

    def __init__(self, cached, net, conditions, count):
        self.c, self.net, self.conditions = cached, net, conditions
        self.node, self.evaluations = 0, 0
        self.summed = torch.zeros(count)  # change since the last evaluation
        self.rate = torch.zeros(count)  # EasyCache: change of output by change of input
        self.changes = []  # (of the input, of the output) between steps, for TeaCache's curve

    def due(self, moved):
        """Which images are evaluated now."""
        last = self.node + 1 == self.c.schedule.nfe
        warm = self.node < (2 if self.c.kind == "easycache" else 1)  # a rate needs two evaluations
        if warm or last:
            return torch.ones_like(self.summed, dtype=torch.bool)
        if self.c.kind == "easycache":
            change = self.rate * size(moved) / size(self.noise).clamp(min=1e-12)
        else:
            relative = size(moved) / size(self.input).clamp(min=1e-12)
            change = torch.from_numpy(np.polyval(self.c.curve, relative.numpy())).clamp(min=0).float()
        self.summed += change
        return self.summed >= self.c.threshold

    def guess(self, x, now, sigma):
        """(noise, D) without the network."""
        if self.c.reused == "denoised":
            return (x - self.denoised_then) / sigma, self.denoised_then
        noise = self.noise_then
        if self.c.reused == "offset":
            noise = noise + now - self.input_then
        return noise, x - sigma * noise

    def __call__(self, x, sigma):
        now = scaled(x, sigma, self.c.schedule.process)
        moved = now - self.input if self.node else now
        due = self.due(moved)
        if self.node:
            noise, denoised = self.guess(x, now, sigma)
        else:
            noise, denoised = torch.empty_like(x), torch.empty_like(x)
            self.input_then, self.noise_then, self.denoised_then = (
                now.clone(),
                noise.clone(),
                denoised.clone(),
            )
        if due.any():
            rows = due.nonzero()[:, 0]
            fresh = self.net.denoise(x[rows], sigma, subset(self.conditions, rows))
            denoised[rows] = fresh
            noise[rows] = (x[rows] - fresh) / sigma
            self.evaluations += len(rows)
        if self.node:
            change = size(noise - self.noise)
            rate = change / size(moved).clamp(min=1e-12)
            self.rate = torch.where(due, rate, self.rate)
            self.changes.append((size(moved) / size(self.input), change / size(self.noise)))
        where = due.view(-1, *[1] * (x.dim() - 1))
        self.input_then = torch.where(where, now, self.input_then)
        self.noise_then = torch.where(where, noise, self.noise_then)
        self.denoised_then = torch.where(where, denoised, self.denoised_then)
        self.summed = torch.where(due, torch.zeros_like(self.summed), self.summed)
        self.input, self.noise = now.clone(), noise
        self.node += 1
        return denoised.clone()


def curve(net, schedule, trajectories):
    """TeaCache's polynomial of degree 4, fitted to full runs."""
    full = Cached(schedule, "teacache", "offset", 0.0)
    model = Skipping(full, net, trajectories.conditions, len(trajectories))
    with torch.no_grad():
        lmsd.sample(schedule, trajectories.x, model)
    given, seen = (torch.cat(part).numpy() for part in zip(*model.changes, strict=True))
    return tuple(np.polyfit(given, seen, 4 if len(given) > 16 else 1).tolist())


def tune(net, cached, nfe, trajectories):
    """Sets the threshold so that an image takes `nfe` evaluations in the mean; whether it can be done."""
    low, high = 0.0, 8.0
    for _ in range(HALVINGS):
        cached.threshold = (low + high) / 2
        try:
            cached.run(net, trajectories.x, trajectories.conditions)
        except lmsd.Error:
            return False
        if abs(cached.evaluations - nfe) < FEW:
            break
        low, high = (cached.threshold, high) if cached.evaluations > nfe else (low, cached.threshold)
    return abs(cached.evaluations - nfe) < 0.25


def fit(net, nfe, seed, settings):
    validation = pool(net, settings.validation, seed, settings.teacher, VALIDATION)
    few = validation.part(slice(settings.cache_tuning))
    found = []
    for solver, longer in itertools.product(settings.cache_solvers, settings.cache_longer):
        steps = round(longer * nfe)
        schedule = lmsd.solve(solver, nfe=steps, **levels(net))
        fitted = curve(net, schedule, few)
        for kind, reused in itertools.product(KINDS, REUSED):
            cached = Cached(schedule, kind, reused, 0.0, fitted)
            if tune(net, cached, nfe, few):
                found.append((mean_distance(net, cached, few), cached))
    found.sort(key=lambda pair: pair[0])
    finalists = [cached for _, cached in found[:FINALISTS]]
    for cached in finalists:
        tune(net, cached, nfe, validation)
    best = min(finalists, key=lambda cached: mean_distance(net, cached, validation))
    words = f"{best.kind}, {best.reused} kept, {best.schedule.made_by['solver']} of {best.schedule.nfe} steps"
    return best, words
