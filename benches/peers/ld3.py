"""Time steps alone by gradients through the network (LD3, arXiv 2405.15506), with the weights of a published
solver: the noise levels of the states, and those that the model is told."""

import torch
from unknowns import Table

from . import gradients


def euler(_sigmas, _process, _n):
    return [1.0]


def dpmpp_2m(sigmas, process, n):
    """Weights of DPM-Solver++(2M) (arXiv 2211.01095), newest first; first order at both ends."""
    if n == 0 or n + 2 == len(sigmas):
        return [1.0]
    lam = -sigmas[n - 1 : n + 2].log()
    if process == "flow":
        lam = lam + (1 - sigmas[n - 1 : n + 2]).clamp(min=1e-9).log()
    before, now = lam[1] - lam[0], lam[2] - lam[1]
    part = now / before / 2
    return [1 + part, -part]


ADAMS = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12]]


def ipndm(order):
    """Adams-Bashforth with constant coefficients (iPNDM, arXiv 2204.13902) in the slopes (x - D) / sigma.

    First order in a step to 0."""

    def rows(sigmas):
        """[N, N]: weights by node."""
        count = len(sigmas) - 1
        unit = torch.eye(count, dtype=sigmas.dtype)
        x, slopes, found = torch.zeros(count, dtype=sigmas.dtype), [], []
        for n in range(count):  # x: the state's coefficients of the predictions
            slopes.insert(0, (x - unit[n]) / sigmas[n])
            parts = ADAMS[0 if sigmas[n + 1] == 0 else min(n, order - 1)]
            moved = x + (sigmas[n + 1] - sigmas[n]) * sum(p * s for p, s in zip(parts, slopes, strict=False))
            r = sigmas[n + 1] / sigmas[n]
            found.append((moved - r * x) / (1 - r))
            x = moved
        return found

    return rows


def by_row(function):
    """The same as `ipndm` for a solver that says its weights by node."""

    def rows(sigmas, process):
        count, found = len(sigmas) - 1, []
        for n in range(count):
            weights = [torch.as_tensor(w, dtype=sigmas.dtype) for w in function(sigmas, process, n)]
            row = [torch.zeros((), dtype=sigmas.dtype)] * count
            row[n::-1] = weights + row[: n + 1 - len(weights)]
            found.append(torch.stack(row))
        return found

    return rows


SOLVERS = {
    "euler": by_row(euler),
    "dpmpp_2m": by_row(dpmpp_2m),
    "ipndm_2": lambda sigmas, _process: ipndm(2)(sigmas),
    "ipndm_3": lambda sigmas, _process: ipndm(3)(sigmas),
}


class Steps(Table):
    """The unknowns are log sigma and log of the level that the model is told."""

    def __init__(self, net, schedule):
        super().__init__(net, schedule)
        self.rows = SOLVERS[schedule.made_by["solver"]]
        self.unknowns = [self.log_sigma, self.log_told]

    def weights(self):
        rows = self.rows(self.sigmas(), self.process)
        return [row[: n + 1].flip(0) for n, row in enumerate(rows)]


def fit(net, nfe, seed, settings):
    return gradients.fit(net, nfe, seed, settings, lambda start: Steps(net, start), solvers=SOLVERS)
