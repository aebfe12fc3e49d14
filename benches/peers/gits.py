"""Time steps by dynamic programming over a cost matrix (GITS, arXiv 2405.11326), then a published solver on
them.

The cost of a step from one noise level of the teacher's grid to another is the distance of one Euler step
from the teacher's state to the teacher's state there. A path's cost counts each later step `coefficient`
times more; the coefficient, the solver and the analytical first step are chosen on validation trajectories.
"""

import lmsd
import numpy as np

from .trajectories import VALIDATION, levels, pool, ranked

COEFFICIENTS = (0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3)
SOLVERS = (
    "euler",
    "ipndm_2",
    "ipndm_3",
    "ipndm_4",
    "dpmpp_2m",
    "dpmpp_3m",
    "deis_2",
    "deis_3",
    "unipc_bh2_2",
)


def costs(trajectories):
    """[T + 1, T + 1]: mean distance after one Euler step from level i to level j; infinite for j <= i."""
    sigmas, states, slopes = trajectories.sigmas, trajectories.states, trajectories.slopes
    count = len(sigmas)
    matrix = np.full((count, count), np.inf)
    for i in range(count - 1):
        for j in range(i + 1, count):
            reached = states[i] + (sigmas[j] - sigmas[i]).to(states.dtype) * slopes[i]
            matrix[i, j] = (reached - states[j]).flatten(1).norm(dim=1).mean()
    return matrix


def path_cost(matrix, path, coefficient):
    """What the program minimises."""
    steps = zip(path, path[1:], strict=False)
    return sum(coefficient**k * matrix[i, j] for k, (i, j) in enumerate(steps))


def path(matrix, steps, coefficient):
    """The cheapest way from the first level to the last in that many steps, as indices."""
    last = len(matrix) - 1
    best, following = {last: 0.0}, []
    for _ in range(steps):
        now, where = {}, {}
        for i in range(last):
            reached = {j: matrix[i, j] + coefficient * cost for j, cost in best.items() if j > i}
            if reached:
                where[i] = min(reached, key=reached.get)
                now[i] = reached[where[i]]
        best = now
        following.append(where)
    found = [0]
    for where in reversed(following):
        found.append(where[found[-1]])
    return found


def candidates(net, nfe, matrix, sigmas):
    """schedule -> words, for each coefficient and solver, with the analytical first step and without."""
    found = {}
    for coefficient in COEFFICIENTS:
        for afs in (False, True):
            grid = sigmas[path(matrix, nfe + afs, coefficient)]
            for solver in SOLVERS:
                try:
                    schedule = lmsd.solve(solver, nfe=nfe, grid=grid, afs=afs, **levels(net))
                except lmsd.Error:
                    continue  # a solver that cannot have so few calls
                found.setdefault(schedule, f"{solver}, coefficient {coefficient}" + ", AFS" * afs)
    return found


def fit(net, nfe, seed, settings):
    trajectories = pool(net, settings.trajectories // 4, seed, settings.teacher, states=True)
    validation = pool(net, settings.validation, seed, settings.teacher, VALIDATION)
    found = candidates(net, nfe, costs(trajectories), trajectories.sigmas.numpy())
    first = ranked(net, found, validation.part(slice(8)))
    _, schedule = ranked(net, [schedule for _, schedule in first[:12]], validation)[0]
    return schedule, found[schedule]
