"""Fits by gradients through the network: Adam with several starts.

Adam tries every rate on each of the best starts for an eighth of its steps, and goes on with the best of
them, its rate falling as a cosine. The best on validation trajectories is kept, the starts among them. A step
through the network is counted as three forward calls.
"""

import itertools
import math

import lmsd
import torch

from .trajectories import VALIDATION, levels, mean_distance, pool, ranked

CHECKS = 16  # validations in a fit
# solver, grid, part of sigma_max at the first node (None: analytical first step): as lmsd has, and plain ones
STARTS = {
    "ve": [
        ("lms_4", {"kind": "karras", "rho": 5}, 0.05),
        ("lms_4", {"kind": "karras", "rho": 7}, 0.1),
        ("euler", {"kind": "karras", "rho": 5}, 0.1),
        ("dpmpp_2m", {"kind": "karras", "rho": 7}, 0.25),
        ("ipndm_2", {"kind": "karras", "rho": 7}, 0.25),
        ("ipndm_3", {"kind": "karras", "rho": 7}, None),
        ("dpmpp_2m", {"kind": "log"}, 1.0),
        ("ipndm_3", {"kind": "karras", "rho": 7}, 1.0),
    ],
    "flow": [
        (solver, {"kind": "flow", "shift": shift}, part)
        for solver in ("euler", "ipndm_2", "dpmpp_2m")
        for shift, part in ((1, 1.0), (3, 1.0), (2, 0.93))
    ],
}


def starts(net, nfe, solvers=None):
    """Published schedules, from a low first noise level too."""
    found = []
    for solver, grid, part in STARTS[net.process]:
        if solvers and solver not in solvers:
            continue
        first = {"sigma_max": (part or 1) * net.sigma_max, "sigma_start": net.sigma_max}
        options = {**levels(net), **first, "grid": grid, "afs": part is None}
        found.append(lmsd.solve(solver, nfe=nfe, **options))
    return found


def end_loss(unknowns, net, part):
    """Mean distance of the end points to the teacher's."""
    ends = unknowns.states(net.denoise, part.x, part.conditions)[-1]
    return (ends - part.ends).flatten(1).norm(dim=1).mean()


class Fit:
    """One run of Adam from one start, which can be stopped and go on."""

    def __init__(self, net, unknowns, loss, rate, trajectories, seed, settings):
        self.net, self.unknowns, self.loss, self.rate = net, unknowns, loss, rate
        self.trajectories, self.settings = trajectories, settings
        self.adam = torch.optim.Adam(unknowns.unknowns, lr=rate)
        self.generator = torch.Generator().manual_seed(seed)
        self.step = 0

    def run(self, until):
        """On to that step; of `settings.steps`."""
        while self.step < until:
            for group in self.adam.param_groups:
                group["lr"] = self.rate * (1 + math.cos(math.pi * self.step / self.settings.steps)) / 2
            rows = torch.randperm(len(self.trajectories), generator=self.generator)[: self.settings.batch]
            self.adam.zero_grad()
            with torch.enable_grad():
                loss = self.loss(self.unknowns, self.net, self.trajectories.part(rows))
                loss.backward()
            for unknown in self.unknowns.unknowns:
                if unknown.grad is not None:
                    unknown.grad.nan_to_num_(0, 0, 0)
            self.adam.step()
            self.step += 1

    def validated(self, validation):
        """(distance, schedule) as it stands; the distance is infinite where it is no schedule."""
        schedule = self.unknowns.schedule()
        return (mean_distance(self.net, schedule, validation) if schedule else math.inf), schedule


def fit(net, nfe, seed, settings, make, loss=end_loss, *, solvers=None, states=False):
    """(the best schedule on validation trajectories, words); `make(start)` gives the unknowns of a start."""
    trajectories = pool(net, settings.trajectories, seed, settings.teacher, states=states)
    validation = pool(net, settings.validation, seed, settings.teacher, VALIDATION)
    begun = ranked(net, starts(net, nfe, solvers), validation.part(slice(16)))[: settings.starts]
    trial, fits = settings.steps // 8, []
    for (_, start), rate in itertools.product(begun, settings.rates):
        fits.append(Fit(net, make(start), loss, rate, trajectories, seed, settings))
        fits[-1].run(trial)
    tried = [one.validated(validation)[0] for one in fits]
    winner = fits[tried.index(min(tried))]
    best = min(
        [(mean_distance(net, begun[0][1], validation), begun[0][1]), winner.validated(validation)],
        key=lambda pair: pair[0],
    )
    for check in range(1, CHECKS + 1):
        winner.run(trial + check * (settings.steps - trial) // CHECKS)
        best = min([best, winner.validated(validation)], key=lambda pair: pair[0])
    number = tried.index(min(tried))
    start = begun[number // len(settings.rates)][1]
    words = (
        f"from {start.made_by['solver']}, {start.made_by['grid']}, rate {winner.rate:g}, {winner.step} steps"
    )
    return best[1], words
