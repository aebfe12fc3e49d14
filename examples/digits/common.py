"""What the demo and the benchmarks share: handcrafted solvers on every grid, and measurements on trajectories
that no distillation sees.

Distances are means over trajectories of the Euclidean distance, in pixels of [-1, 1], between the end point
of a schedule and that of the teacher from the same noise and the same label.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import lmsd
import numpy as np
from classifier import Classifier, frechet

TEACHER = {"teacher": "unipc_bh2_3", "teacher_nfe": 100}  # what lmsd.distill uses by default
TEST_BATCHES = 1 << 21  # the first batch that lmsd.compare asks for; distillation stays below
RANKING_BATCHES = 1 << 20  # added to that: the batches that only rank handcrafted solvers
OTHER_NAMES = ("ddim", "deis_1", "lms_1", "ipndm_1")  # of euler
GRIDS = [{"kind": "karras", "rho": rho} for rho in (3, 5, 7, 10)] + [{"kind": "log"}]


class Handcrafted(NamedTuple):
    """A published solver on a grid."""

    solver: str
    setting: str
    schedule: lmsd.Schedule


def config(problem):
    """What lmsd.distill and lmsd.compare are told about a problem."""
    names = ("process", "sigma_min", "sigma_max", "sigma_end", "made_for", "seeds")
    return {name: getattr(problem, name) for name in names} | TEACHER


def sigmas(problem):
    """The noise levels that lmsd.solve is told."""
    return {name: getattr(problem, name) for name in ("sigma_min", "sigma_max", "sigma_end")}


def teacher(problem):
    """The teacher's schedule."""
    return lmsd.solve(TEACHER["teacher"], nfe=TEACHER["teacher_nfe"], **sigmas(problem))


def handcrafted(problem, nfe, solvers=None):
    """Every published solver (or those of `solvers`) on every grid, with and without lower order at the end.

    One table for each solver, grid and order; solvers may share tables.
    """
    found = {}
    for solver in solvers or [solver["name"] for solver in lmsd.solvers()]:
        for grid in GRIDS if solver not in OTHER_NAMES else ():
            for lower in (True, False):
                options = {"grid": grid, "lower_order_final": lower, **sigmas(problem)}
                try:
                    schedule = lmsd.solve(solver, nfe=nfe, **options)
                except lmsd.Error:  # two calls a step: not every NFE
                    continue
                setting = grid["kind"] + (f" rho {grid['rho']}" if "rho" in grid else "")
                setting += "" if lower else ", full order to the end"
                found.setdefault((solver, table(schedule)), Handcrafted(solver, setting, schedule))
    return list(found.values())


def table(schedule):
    """All that sampling sees of a schedule."""
    return json.dumps(schedule.to_dict()["nodes"])


def unique(candidates):
    """Without those whose table another one before them has."""
    found = {}
    for candidate in candidates:
        found.setdefault(table(candidate.schedule), candidate)
    return list(found.values())


def measure(problem, schedules, trajectories, first=0):
    """Distance of each schedule over test trajectories, a whole number of batches, from batch `first` on."""

    def begin(index):
        return problem.begin(index + first)

    tables = {table(schedule): schedule for schedule in schedules}
    options = {**config(problem), "held_out": trajectories}
    distances = lmsd.compare(list(tables.values()), problem.model, begin, problem.like, **options)
    found = dict(zip(tables, distances, strict=True))
    return [found[table(schedule)] for schedule in schedules]


def ranked(problem, candidates, trajectories):
    """`candidates` (Handcrafted), best first, by trajectories that nothing else uses."""
    schedules = [candidate.schedule for candidate in candidates]
    distances = measure(problem, schedules, trajectories, RANKING_BATCHES)
    return [candidates[i] for i in np.argsort(distances, kind="stable")]


def end_points(problem, schedule, trajectories):
    """(end points [trajectories, 1, 8, 8], labels [trajectories]) of the test trajectories."""
    images, labels = [], []
    for index in range(math.ceil(trajectories / problem.size)):
        x = problem.begin(TEST_BATCHES + index)
        images.append(lmsd.sample(schedule, x, problem.model))
        labels.append(problem.labels)
    return np.concatenate(images)[:trajectories], np.concatenate(labels)[:trajectories]


class Frechet:
    """Frechet distance of images to the training images, in the features of the digit classifier."""

    def __init__(self):
        self.classifier = Classifier()

    def __call__(self, images):
        return frechet(self.classifier.features(images), self.classifier.reference)


def calls_needed(best, distance):
    """NFE at which handcrafted solvers reach `distance`; `best` maps NFE to the distance of the best of them.

    Between measured NFEs by interpolation of the logarithm; None where the last of them is still worse.
    """
    nfes = sorted(best)
    for low, high in zip(nfes, nfes[1:], strict=False):
        if best[high] <= distance < best[low]:
            part = math.log(best[low] / distance) / math.log(best[low] / best[high])
            return low + part * (high - low)
    return float(nfes[0]) if best[nfes[0]] <= distance else None


def print_table(head, rows):
    """Columns of text; the last is flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)][:-1]
    for *cells, last in [head, *rows]:
        print("  ".join([*(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)), last]))


class Claims:
    """Figures against their bars: one line each, PASS or FAIL."""

    def __init__(self):
        self.results = []

    def check(self, what, figure, relation, bar):
        """`relation` is ">=", "<=" or "<"."""
        good = {">=": figure >= bar, "<=": figure <= bar, "<": figure < bar}[relation]
        result = {"claim": what, "figure": figure, "relation": relation, "bar": bar, "pass": bool(good)}
        self.results.append(result)
        print(f"{'PASS' if good else 'FAIL'}  {what}: {figure:.4g} (bar {relation} {bar:.4g})", flush=True)

    def finish(self):
        """Prints how many hold; returns the exit code."""
        good = sum(result["pass"] for result in self.results)
        print(f"{good} of {len(self.results)} claims hold")
        return 0 if good == len(self.results) else 1


def write_json(path, value):
    """Writes a file of JSON, and its folder if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")
