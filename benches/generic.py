"""Makes src/distill/generic.json: schedules distilled for exact models, from which fits may start.

    python benches/generic.py

A denoiser is known exactly where the data are a mixture of Gaussians. Each model here has clusters whose
spectrum falls like that of pictures, classes with guidance, and a share of the variance within a cluster;
none is a network or data set of the benchmarks. A table says at which noise levels the model is called and
what each state is made of; a fit to another model scales the levels to its data and starts from there.
Every table is the best of several fits, on trajectories that none has seen.

Not more turns: tables that are nearer to these models, with larger coefficients, are worse starts for others
(digits, guidance 3, 8 NFE: 0.094 from those of 7 turns, 0.077 from those of 5).
"""

import argparse
import concurrent.futures
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import lmsd
import numpy as np

FILE = Path(__file__).parents[1] / "src" / "distill" / "generic.json"
MODELS = {
    "loose clusters": {"within": 0.4},
    "tight clusters": {"within": 0.15},
    "tight clusters, guidance 3": {"within": 0.15, "guidance": 3.0},
    "loose clusters, guidance 5": {"within": 0.4, "guidance": 5.0},
    "pictures, guidance 2": {"within": 0.15, "guidance": 2.0, "size": 768, "slope": 1.8},
}
NFES = range(3, 11)
LEVELS = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_end": 0.0}
DEVIATION = 0.5  # of the data
CLASSES, CLUSTERS = 8, 8  # clusters in each class
BATCH = 4
TEST = 256  # trajectories


class Mixture:
    """Clusters of Gaussians with one diagonal covariance, `within` of the variance; principal component n has
    n^-slope of it."""

    def __init__(self, seed, within, guidance=1.0, size=64, slope=1.2, batch=BATCH):
        rng = np.random.default_rng(1)
        variance = np.arange(1, size + 1.0) ** -slope
        variance *= DEVIATION**2 / variance.mean()
        self.variance = within * variance
        self.means = rng.standard_normal((CLASSES * CLUSTERS, size)) * np.sqrt((1 - within) * variance)
        self.classes = np.repeat(np.arange(CLASSES), CLUSTERS)
        self.guidance, self.seed = guidance, seed
        self.like = np.empty((batch, size), np.float32)

    def begin(self, index):
        rng = np.random.Generator(np.random.PCG64([self.seed, index]))
        self.label = rng.integers(CLASSES, size=len(self.like))
        return np.float32(LEVELS["sigma_max"]) * rng.standard_normal(self.like.shape, dtype=np.float32)

    def model(self, x, sigma):
        x = x.astype(np.float64)
        variance = self.variance + sigma**2
        scaled = self.means / variance
        score = x @ scaled.T - 0.5 * (scaled * self.means).sum(1)
        own = np.where(self.classes == self.label[:, None], score, -np.inf)
        guided = self.mean(own, x, variance)
        if self.guidance != 1:
            free = self.mean(score, x, variance)
            guided = free + self.guidance * (guided - free)
        return guided.astype(np.float32)

    def mean(self, score, x, variance):
        weight = np.exp(score - score.max(1, keepdims=True))
        near = weight / weight.sum(1, keepdims=True) @ self.means
        return near + self.variance / variance * (x - near)


def fitted(options, nfe, seed, starts, trajectories):
    """A fit, and its distance on the test trajectories; `starts` are asked beside the published ones."""
    problem = Mixture(seed, **options)
    found = lmsd.distill(
        problem.model,
        problem.begin,
        problem.like,
        nfe=nfe,
        trajectories=trajectories,
        held_out=96,
        progress=False,
        **({"starts": starts} if starts else {}),
        **LEVELS,
    )
    schedule = found.schedules[nfe]
    test = Mixture(1000, **options, batch=64)
    (distance,) = lmsd.compare([schedule], test.model, test.begin, test.like, held_out=TEST, **LEVELS)
    return distance, schedule.to_dict()


def table(model, schedule):
    """The levels, and each state over the predictions so far: those of a run from 0 whose predictions are
    the unit vectors."""
    nfe = len(schedule["nodes"])
    levels, states = [], []

    def unit(x, sigma):
        states.append(x[0].copy())
        levels.append(sigma)
        return np.eye(nfe)[len(levels) - 1 : len(levels)]

    states.append(lmsd.sample(lmsd.Schedule.from_json(schedule), np.zeros((1, nfe)), unit)[0])
    return {
        "model": model,
        "nfe": nfe,
        "sigmas": short(node["sigma"] for node in schedule["nodes"]),
        "model_sigmas": short(levels),
        "states": [short(state[: n + 1]) for n, state in enumerate(states[1:])],
    }


def short(values):
    return [float(f"{value:.5g}") for value in values]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=FILE, type=Path, help="file (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default %(default)s)")
    parser.add_argument("--trajectories", type=int, default=320, help="of each fit (default %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="fits of each table (default %(default)s)")
    args = parser.parse_args()
    started = time.perf_counter()
    best = {}  # (model, NFE): (distance, schedule)
    with concurrent.futures.ProcessPoolExecutor(args.jobs) as pool:
        for turn in range(args.turns):
            runs = {}
            for name, options in MODELS.items():
                for nfe in NFES:
                    others = [best[other, nfe][1] for other in MODELS if (other, nfe) in best]
                    # from the published field first, then from what the others have come to
                    starts = others if turn > 1 else []
                    runs[name, nfe] = pool.submit(fitted, options, nfe, turn, starts, args.trajectories)
            for key, run in runs.items():
                found = run.result()
                if key not in best or found[0] < best[key][0]:
                    best[key] = found
                print(f"{turn} {key[1]} NFE {found[0]:.4f}, best {best[key][0]:.4f}: {key[0]}", flush=True)
            tables = [table(name, best[name, nfe][1]) for nfe in NFES for name in MODELS]
            lines = ",\n".join(json.dumps(one) for one in tables)
            args.out.write_text(f"[\n{lines}\n]\n")
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
