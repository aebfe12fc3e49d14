"""Image to image: schedules started part-way (`Schedule.start_at`), and published solvers with as many calls.

    make bench-start

Held-out digits are brought to several noise levels. From each, the rest of the distilled schedules of 5 and 8
NFE and published solvers with as many calls (the best of four on two grids) go to sigma_min; figures are mean
distances to the teacher from the same state.
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "digits"))

import lmsd
import numpy as np
from common import TEACHER_NFE, TEACHERS, Claims
from data import split
from lmsd.cli.terminal import print_table
from model import SIGMA_MIN
from problem import problem

GUIDANCE, IMAGES = 3.0, 256
STARTS = (30.0, 10.0, 5.0, 2.5, 1.5, 1.0, 0.6, 0.3)
SOLVERS, RHOS = ("euler", "dpmpp_2m", "ipndm_3", "deis_3"), (5, 7)


def main():
    digits = problem(guidance=GUIDANCE)
    levels = {name: getattr(digits, name) for name in ("sigma_min", "sigma_max", "sigma_end")}
    found = lmsd.distill(digits.model, digits.begin, digits.like, nfe=(4, 8), **levels)
    _, (images, labels) = split()
    images, labels = images[:IMAGES], labels[:IMAGES]
    noise = np.random.default_rng(5).standard_normal(images.shape).astype(np.float32)

    def model(x, sigma):
        return digits.digits.denoise(x, sigma, labels, GUIDANCE)

    rows, ratios = [], []
    for start in STARTS:
        x = images + np.float32(start) * noise

        def run(schedule, x=x):
            return lmsd.sample(schedule, x, model)

        def solved(solver, nfe, rho=7, start=start):
            grid = {"kind": "karras", "rho": rho}
            return lmsd.solve(solver, nfe=nfe, sigma_max=start, sigma_end=SIGMA_MIN, grid=grid)

        goal = run(solved(TEACHERS[digits.process], TEACHER_NFE))

        def distance(schedule, goal=goal, run=run):
            return float(np.linalg.norm((run(schedule) - goal).reshape(IMAGES, -1), axis=1).mean())

        for nfe in (5, 8):
            part = found.schedules[nfe].start_at(start)
            own = distance(part)
            best = min(distance(solved(name, part.nfe, rho)) for name in SOLVERS for rho in RHOS)
            ratios.append(own / best)
            rows.append(
                [f"{start:g}", str(nfe), str(part.nfe), f"{own:.3f}", f"{best:.3f}", f"{own / best:.2f}"]
            )
    print_table([["start", "schedule", "calls", "its rest", "handcrafted", "ratio"], *rows])
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    print(f"worse than handcrafted at {sum(ratio > 1 for ratio in ratios)} of {len(ratios)}")
    claims = Claims()
    claims.check("distance over that of the best handcrafted solver, geometric mean", mean, "<=", 0.6)
    return claims.finish()


if __name__ == "__main__":
    sys.exit(main())
