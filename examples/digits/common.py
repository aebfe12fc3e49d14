"""What the demo and the benchmarks share: the fields of published solvers, and measurements on trajectories
that no distillation sees.

Distances are means over trajectories of the Euclidean distance, in pixels of [-1, 1], between the end point
of a schedule and that of the teacher from the same noise and the same label.
"""

import contextlib
import json
import math
import sys
import time
from pathlib import Path

import lmsd
import numpy as np
from classifier import Classifier, frechet
from lmsd import gain

TEACHERS = {"ve": "deis_3", "flow": "unipc_bh2_3"}  # of what is measured; lmsd.distill finds its own
TEACHER_NFE = 100
TEST_BATCHES = 1 << 21  # the first batch that lmsd.compare asks for; distillation stays below
RANKING_BATCHES = 1 << 20  # added to that: the batches that only rank published solvers
INTERRUPTED = 130  # exit code
RANKING = (8, 64)  # trajectories of the first two rounds of a contest
FIELDS = gain.NAMES  # of published solvers: name -> words


def about(problem):
    """What lmsd.distill is told about a problem."""
    names = ("process", "sigma_min", "sigma_max", "sigma_end", "made_for", "seeds")
    return {name: getattr(problem, name) for name in names}


def config(problem):
    """What lmsd.compare is told about a problem."""
    told = about(problem) | {"teacher": TEACHERS[problem.process], "teacher_nfe": TEACHER_NFE}
    del told["seeds"]
    return told


def sigmas(problem):
    """The noise levels that lmsd.solve is told."""
    return {name: getattr(problem, name) for name in ("sigma_min", "sigma_max", "sigma_end")}


def teacher(problem, nfe=TEACHER_NFE):
    """The teacher's schedule."""
    return lmsd.solve(TEACHERS[problem.process], nfe=nfe, process=problem.process, **sigmas(problem))


def field(problem, nfe, name, solvers=None):
    """The schedules of a field of published solvers, or those of `solvers` in it."""
    shift = problem.made_for.get("shift")  # of flow models
    found = lmsd.rivals(nfe, name, process=problem.process, shift=shift, **sigmas(problem))
    return [schedule for schedule in found if not solvers or schedule.made_by["solver"] in solvers]


def in_words(told):
    """The solver and grid of a record, such as one of `made_by["handcrafted"]`."""
    return f"{told['solver']}, {told['grid']}"


def which(schedule):
    """A published solver and its grid, in words."""
    return in_words(schedule.made_by)


def contest(make, groups, test, count, rounds=RANKING, finalists=gain.FINALISTS):
    """The best of each group over `count` test trajectories: name -> [(schedule, distance)], best first.

    All take part on the first of `rounds` of ranking trajectories, the best quarter on the second, the best
    `finalists` on those of the problem `test`. `make(size)` makes the problem with batches of that size.
    """

    def distances(schedules, trajectories):
        if trajectories is None:
            return measure(test, schedules, count)
        return measure(make(trajectories), schedules, trajectories, RANKING_BATCHES)

    best, _ = gain.race(groups, distances, [*rounds, None], finalists)
    return best


def measure(problem, schedules, trajectories, first=0):
    """Distance of each schedule over test trajectories, a whole number of batches, from batch `first` on."""

    def begin(index):
        return problem.begin(index + first)

    options = {**config(problem), "held_out": trajectories}
    return lmsd.compare(schedules, problem.model, begin, problem.like, **options)


def end_points(problem, schedule, trajectories):
    """(end points [trajectories, 1, 8, 8], labels [trajectories]) of the test trajectories."""
    images, labels = [], []
    for index in range(math.ceil(trajectories / problem.size)):
        x = problem.begin(TEST_BATCHES + index)
        images.append(lmsd.sample(schedule, x, problem.model))
        labels.append(problem.labels)
    return np.concatenate(images)[:trajectories], np.concatenate(labels)[:trajectories]


def distilled_for_show(problem, hits, **options):
    """A distillation with a progress bar; an interrupt in `hits` ends it with what there is, or None."""
    with lmsd.ProgressBar() if sys.stderr.isatty() else contextlib.nullcontext() as bar:

        def progress(told):
            if bar:
                bar(told)
            return bool(hits)

        try:
            return lmsd.distill(
                problem.model, problem.begin, problem.like, progress=progress, **options, **about(problem)
            )
        except lmsd.Error as error:
            if error.status != lmsd.Status.STOPPED:
                raise
            print("stopped before the first result: nothing to write", file=sys.stderr)
            return None


def finished(started, out, hits):
    """Says how long a demo took since perf_counter was `started`, and where its page is; the exit code."""
    minutes, seconds = divmod(round(time.perf_counter() - started), 60)
    print(f"\n{minutes} min {seconds} s. Open {out / 'report.html'}")
    if not hits:
        return 0
    print(f"interrupted: {out} has what was ready", file=sys.stderr)
    return INTERRUPTED


class Frechet:
    """Frechet distance of images to the training images, in the features of the digit classifier."""

    def __init__(self):
        self.classifier = Classifier()

    def __call__(self, images):
        return frechet(self.classifier.features(images), self.classifier.reference)


def calls_needed(best, distance):
    """NFE at which a field reaches `distance`; `best` maps NFE to the distance of the best in it.

    Between measured NFEs by interpolation of the logarithm; None where the last of them is still worse.
    """
    nfes = sorted(best)
    for low, high in zip(nfes, nfes[1:], strict=False):
        if best[high] <= distance < best[low]:
            part = math.log(best[low] / distance) / math.log(best[low] / best[high])
            return low + part * (high - low)
    return float(nfes[0]) if best[nfes[0]] <= distance else None


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
