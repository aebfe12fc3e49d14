"""Trajectories of the teacher, and how samplers run on them. Every peer is sampled here, by lmsd.sample."""

import functools
import math
from dataclasses import dataclass

import lmsd
import torch
from common import teacher

from .networks import subset

VALIDATION, TEST = 1 << 20, 1 << 21  # first batches; fits count theirs from 0
TEST_SEED, TEST_TEACHER = 1000, 100  # of the noise; model calls
SIZE = 64  # trajectories in a batch


def levels(net):
    """The noise levels that lmsd.solve is told."""
    names = ("process", "sigma_min", "sigma_max", "sigma_end")
    return {name: getattr(net, name) for name in names}


@dataclass
class Pool:
    """Trajectories: x_T [N, ...], conditions, end points of the teacher, and if asked for its states on the
    way.

    `sigmas` [T + 1], `states` [T + 1, N, ...], `slopes` [T, N, ...] (dx / dsigma).
    """

    x: torch.Tensor
    conditions: torch.Tensor | None
    ends: torch.Tensor
    sigmas: torch.Tensor | None = None
    states: torch.Tensor | None = None
    slopes: torch.Tensor | None = None

    def __len__(self):
        return len(self.x)

    def part(self, rows):
        """Some of the trajectories."""
        state = None if self.states is None else self.states[:, rows]
        slope = None if self.slopes is None else self.slopes[:, rows]
        return Pool(self.x[rows], subset(self.conditions, rows), self.ends[rows], self.sigmas, state, slope)

    def batches(self, size=SIZE):
        return [self.part(slice(i, i + size)) for i in range(0, len(self), size)]


def run(net, sampler, x, conditions, callback=None):
    """End points; `sampler` is a Schedule, or a cache, which has the same as a method."""
    if not isinstance(sampler, lmsd.Schedule):
        return sampler.run(net, x, conditions)
    with torch.no_grad():
        return lmsd.sample(sampler, x, lambda x, sigma: net.denoise(x, sigma, conditions), callback)


def recorded(net, schedule, x, conditions):
    """(end points, states at the nodes, slopes there) of a schedule."""
    states, slopes = [], []

    def look(step):
        states.append(step["x"].clone())
        slopes.append((step["x"] - step["denoised"]) / step["sigma"])

    return run(net, schedule, x, conditions, look), states, slopes


def pool(net, count, seed, nfe, first=0, *, states=False, test=False):
    """`count` trajectories of the teacher with `nfe` calls, from batch `first` on."""
    schedule, made = teacher(net, nfe), []
    for index in range(math.ceil(count / SIZE)):
        size = min(SIZE, count - index * SIZE)
        x, conditions = net.batch(first + index, size, seed, test)
        if states:
            ends, on_the_way, slopes = recorded(net, schedule, x, conditions)
            part = Pool(x, conditions, ends, None, torch.stack([*on_the_way, ends]), torch.stack(slopes))
        else:
            part = Pool(x, conditions, run(net, schedule, x, conditions))
        made.append(part)
    whole = Pool(
        torch.cat([part.x for part in made]),
        None if made[0].conditions is None else torch.cat([part.conditions for part in made]),
        torch.cat([part.ends for part in made]),
    )
    if states:
        whole.sigmas = torch.from_numpy(schedule.sigmas)
        whole.states = torch.cat([part.states for part in made], 1)
        whole.slopes = torch.cat([part.slopes for part in made], 1)
    return whole


@functools.lru_cache(4)
def test_pool(net, count):
    """The test trajectories, which no fit sees."""
    return pool(net, count, TEST_SEED, TEST_TEACHER, TEST, test=True)


def distance(ends, goal):
    """Euclidean distance of each trajectory, [N]."""
    return (ends - goal).flatten(1).norm(dim=1)


def mean_distance(net, sampler, trajectories):
    """Mean Euclidean distance of end points to the teacher's; infinite where they are not finite."""
    total = 0.0
    for part in trajectories.batches():
        try:
            ends = run(net, sampler, part.x, part.conditions)
        except lmsd.Error:
            return math.inf
        total += distance(ends, part.ends).sum().item()
    return total / len(trajectories)


def ranked(net, samplers, trajectories):
    """[(distance, sampler)], best first."""
    found = [(mean_distance(net, sampler, trajectories), sampler) for sampler in samplers]
    return sorted(found, key=lambda pair: pair[0])
