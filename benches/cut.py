"""Cut runs and runs upwards: what is lost where a run is cut in two and its second part lacks the history.

    python benches/cut.py [--schedule FILE]

Digits at guidance 3, 5 NFE: a schedule that is distilled first, or one from a file. Two tables:

- cut: mean distance to the teacher of unseen trajectories where the second part begins by
  `Schedule.start_at` with the state of the first and no more, for every place of the cut; to be compared with
  the whole run, which a second part with history is to the last bit, and with the best published sampler as
  it was published, at as many calls;
- up and down: held-out digits are brought to sigma_max by Euler steps upwards (what FlipSigmas and a host's
  euler do), and down again; the mean of the error over the length of the digit.

Exits with 1 where a cut run is farther than that sampler.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "digits"))

import lmsd
import numpy as np
from common import TEST_BATCHES, Claims, contest, field, teacher
from data import split
from lmsd.cli.terminal import print_table
from model import SIGMA_MAX, SIGMA_MIN
from problem import problem

GUIDANCE, NFE, SIZE, IMAGES = 3.0, 5, 64, 256


def mean_length(difference):
    return float(np.linalg.norm(difference.reshape(len(difference), -1), axis=1).mean())


def cut_run(schedule, at, x, model):
    """The first `at` nodes, then the rest from the state that they leave alone."""
    head = lmsd.Sampler(schedule, x)
    while head.index < at:
        head.step(model(*head.next()))
    return lmsd.sample(schedule.start_at(schedule.sigmas[at]), head.result, model)


def cuts(schedule, digits):
    """Distances of the whole run and of one cut after 1, 2, ... nodes."""
    totals = np.zeros(schedule.nfe)
    for index in range(IMAGES // SIZE):
        x = digits.begin(TEST_BATCHES + index)
        goal = lmsd.sample(teacher(digits), x, digits.model)
        totals[0] += mean_length(lmsd.sample(schedule, x, digits.model) - goal)
        for at in range(1, schedule.nfe):
            totals[at] += mean_length(cut_run(schedule, at, x, digits.model) - goal)
    return totals / (IMAGES // SIZE)


def upwards(x, levels, model):
    """Euler steps from the last of `levels` to the first."""
    levels = [max(level, 1e-4) for level in levels[::-1]]  # as FlipSigmas
    for low, high in zip(levels, levels[1:], strict=False):
        denoised = model(x, low)
        x = denoised + (high / low) * (x - denoised)
    return x.astype(np.float32)


def round_trips(schedule, digits):
    """Rows of (way up, way down, error over length, with what the model makes of it)."""
    _, (images, labels) = split()
    images, labels = images[:SIZE].astype(np.float32), labels[:SIZE]

    def karras(steps):
        return lmsd.solve("euler", nfe=steps, sigma_max=SIGMA_MAX, sigma_end=SIGMA_MIN)

    rows = []
    for guidance in (1.0, GUIDANCE):

        def model(x, sigma, guidance=guidance):
            return digits.digits.denoise(x, sigma, labels, guidance)

        ways = {"its levels": schedule.sigmas, "euler 20": karras(20).sigmas, "euler 100": karras(100).sigmas}
        for name, levels in ways.items():
            levels = np.concatenate([[SIGMA_MAX], levels[1:]])
            x_t = upwards(images, levels, model)
            for down, other in (("distilled", schedule), ("euler 20", karras(20))):
                error = mean_length(lmsd.sample(other, x_t, model) - images) / mean_length(images)
                rows.append([f"{guidance:g}", name, down, f"{100 * error:.1f} %"])
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schedule", help="a schedule file of the digits model, instead of distilling one")
    options = parser.parse_args()
    train, test = problem(GUIDANCE), problem(GUIDANCE, SIZE)
    levels = {name: getattr(train, name) for name in ("sigma_min", "sigma_max", "sigma_end")}
    if options.schedule:
        schedule = lmsd.Schedule.load(options.schedule)
    else:
        schedule = lmsd.distill(train.model, train.begin, train.like, nfe=NFE, **levels).schedules[NFE]
    whole, *cut = cuts(schedule, test)
    groups = {"published": field(test, schedule.nfe, "published")}
    best = contest(lambda size: problem(GUIDANCE, size), groups, test, IMAGES)["published"][0][1]
    rows = [
        [str(at), f"{schedule.sigmas[at]:.4g}", f"{d:.3f}", f"{d / whole:.2f}"] for at, d in enumerate(cut, 1)
    ]
    print(f"{schedule.nfe} calls: whole {whole:.3f}, best as published {best:.3f}")
    print_table([["cut after", "at sigma", "without history", "over the whole"], *rows])
    print_table([["guidance", "up", "down", "error"], *round_trips(schedule, test)])
    claims = Claims()
    claims.check("farthest of the cut runs over the best as published", max(cut) / best, "<=", 1.0)
    return claims.finish()


if __name__ == "__main__":
    sys.exit(main())
