"""The scheme of the paper (DLMS, ICLR 2025) as a static table: weights that sum to 1, time steps and scales,
by gradients of the distances of all states to the teacher's trajectory at the same noise levels.

The teacher's states between its own noise levels are interpolated by cubics (Hermite, from its states and
slopes). DLMS's small network, which adapts the numbers to the state, is left out.
"""

import torch
from unknowns import Table

from . import gradients


def between(trajectories, sigma):
    """The teacher's states at noise level `sigma` (a tensor of one), differentiable in it."""
    grid = trajectories.sigmas
    i = int((grid > sigma).sum().clamp(1, len(grid) - 1)) - 1
    states, slopes = trajectories.states, trajectories.slopes
    if i + 1 == len(slopes):  # no slope at the end: a straight line from the last node
        return states[i] + (sigma - grid[i]).to(states.dtype) * slopes[i]
    h = grid[i + 1] - grid[i]
    t = (sigma - grid[i]) / h
    parts = [2 * t**3 - 3 * t**2 + 1, -2 * t**3 + 3 * t**2, h * (t**3 - 2 * t**2 + t), h * (t**3 - t**2)]
    values = [states[i], states[i + 1], slopes[i], slopes[i + 1]]
    return sum(p.to(v.dtype) * v for p, v in zip(parts, values, strict=True))


def trajectory_loss(unknowns, net, part):
    """Mean over the nodes after the first, and over the trajectories."""
    states, sigmas = unknowns.states(net.denoise, part.x, part.conditions), unknowns.sigmas()
    goals = [between(part, sigma) for sigma in sigmas[1:-1]] + [part.ends]
    far = [(x - goal).flatten(1).norm(dim=1).mean() for x, goal in zip(states[1:], goals, strict=True)]
    return torch.stack(far).mean()


def fit(net, nfe, seed, settings):
    def make(start):
        return Table(net, start, affine=True)

    return gradients.fit(net, nfe, seed, settings, make, trajectory_loss, states=True)
