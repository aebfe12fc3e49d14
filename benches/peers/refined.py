"""What gradients through the network still make of a schedule of lmsd.distill: how much is left to gain."""

import math

from unknowns import Table

from . import gradients, ours
from .trajectories import VALIDATION, mean_distance, pool

RATE, CHECKS = 2e-3, 8


def fit(net, nfe, seed, settings):
    start, _ = ours.fit(net, nfe, seed, settings)
    trajectories = pool(net, settings.trajectories, seed + 100, settings.teacher)
    validation = pool(net, settings.validation, seed, settings.teacher, VALIDATION)
    one = gradients.Fit(net, Table(net, start), gradients.end_loss, RATE, trajectories, seed, settings)
    best = mean_distance(net, start, validation), start
    for check in range(1, CHECKS + 1):
        one.run(math.ceil(check * settings.steps / CHECKS))
        best = min([best, one.validated(validation)], key=lambda pair: pair[0])
    return best[1], f"rate {RATE:g}, {settings.steps} steps"
