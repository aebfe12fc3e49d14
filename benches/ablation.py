"""What each part of a distillation is worth, beside the ablation of DLMS (ICLR 2025, OpenReview vkOFOUDLTn).

    python benches/ablation.py --out out/ablation.json
    python benches/ablation.py --networks "emoji, latent" --nfe 3 4 5 --rows pyramid picture

Fits at 4 and 5 NFE, each with one thing changed, all measured alike on the same test trajectories that no fit
saw: mean distance to the teacher's end points, the same in features of a classifier that no fit but the one
named saw, and the Frechet distance in such features: for the digits to the training images, for the emoji to
the teacher's pictures. Means over seeds
of the noise that is fitted to. DLMS's figures are FID on CIFAR-10 at 4 NFE, with gradients through the
network. Exits with 1 where taking an unknown away makes the distance smaller.
"""

import argparse
import math
import os
import sys
import time
from pathlib import Path

# the matrices are small: BLAS threads cost more than they save, above all on a busy machine
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))

import lmsd
import numpy as np
from classifier import Classifier, frechet
from common import TEST_BATCHES, Claims, Frechet, about, teacher, write_json
from lmsd.cli.terminal import print_table
from networks import NETWORKS, TEST_SEED, TEST_SIZE

NFES = (4, 5)
LOWERED = {"objective": "trajectory", "weight_sums": "affine"}
# name -> (what is changed, DLMS's FID with the same change)
ROWS = {
    "all of it": ({}, None),
    "time steps fixed": ({"fit_sigmas": False}, 10.41),
    "no time scales": ({"fit_scales": False}, 7.75),
    "no low start": ({"fit_start": False}, 6.48),
    "weights sum to 1": ({"weight_sums": "affine"}, None),
    "mixed with a blur pyramid": ({"features": "pyramid", "feature_weight": 0.5}, None),
    "mixed with the decoded picture": ({"features": "picture", "feature_weight": 0.5}, None),
    "the decoded picture alone": ({"features": "picture"}, None),
    "mixed with the classifier": ({"features": "classifier", "feature_weight": 0.5}, None),
    "trajectories": ({"objective": "trajectory"}, None),
    "trajectories, sums 1": (LOWERED, 6.67),
    "trajectories, sums 1, classifier": (LOWERED | {"features": "classifier", "feature_weight": 0.5}, 4.52),
}
UNKNOWNS = ("time steps fixed", "no time scales", "no low start")


def feature_functions(network, problem):
    """Name -> function, of those that this network has to fit to."""
    found = {"pyramid": lmsd.features.blur_pyramid(3)}
    if network.startswith("digits"):
        found["classifier"] = Classifier().features
    if network == "emoji, latent":
        found["picture"] = lmsd.features.decoded(problem.emoji.pictures, 2)
    return found


class Judge:
    """Figures of one network on its test trajectories."""

    def __init__(self, network, count):
        self.problem, self.count = NETWORKS[network](TEST_SIZE, TEST_SEED), count
        self.fitted_to = feature_functions(network, self.problem)
        self.features = {"distance": lambda x: x, **self.fitted_to}
        self.goal = self.ends(teacher(self.problem))
        self.frechet = Frechet() if "classifier" in self.features else None
        if network.startswith("emoji"):
            self.judge_emoji()

    def judge_emoji(self):
        """By the classifier of kinds, which no fit sees."""
        from judge import Judge as Kinds

        kinds, pictures = Kinds(), self.problem.emoji.pictures
        goal = kinds.features(pictures(self.goal))
        self.features["classifier"] = lambda x: kinds.perceptual(pictures(x))
        self.frechet = lambda x: frechet(kinds.features(pictures(x)), goal)

    def ends(self, schedule):
        p = self.problem
        starts = (p.begin(TEST_BATCHES + index) for index in range(-(-self.count // p.size)))
        return np.concatenate([lmsd.sample(schedule, x, p.model) for x in starts])[: self.count]

    def __call__(self, schedule):
        ends = self.ends(schedule)
        found = {}
        for name, features in self.features.items():
            away = features(ends) - features(self.goal)
            found[name] = float(np.linalg.norm(away.reshape(len(away), -1), axis=1).mean())
        if self.frechet:
            found["frechet"] = self.frechet(ends)
        return found


def fit(network, nfe, seed, changed, trajectories):
    """(schedule, image-calls) of one fit."""
    problem = NETWORKS[network](4, seed)
    changed = dict(changed)
    features = feature_functions(network, problem).get(changed.pop("features", None))
    options = {"nfe": nfe, "trajectories": trajectories, **about(problem), **changed}
    p = problem
    found = lmsd.distill(p.model, p.begin, p.like, progress=False, features=features, **options)
    return found.schedules[nfe], found.report["image_calls"]


def measure(network, nfes, seeds, count, trajectories, wanted):
    """One line for each row and NFE: means over the seeds, and the standard error of the distance.

    `wanted`: parts of the names of rows, beside "all of it"; all rows if empty.
    """
    judge, lines = Judge(network, count), []
    for nfe in nfes:
        for name, (changed, _) in ROWS.items():
            asked = not wanted or name == "all of it" or any(part in name for part in wanted)
            if not asked or changed.get("features", "pyramid") not in judge.fitted_to:
                continue
            figures, calls = [], []
            for seed in range(seeds):
                schedule, taken = fit(network, nfe, seed, changed, trajectories)
                figures.append(judge(schedule))
                calls.append(taken)
            line = {"network": network, "nfe": nfe, "row": name, "image_calls": float(np.mean(calls))}
            line |= {key: float(np.mean([f[key] for f in figures])) for key in figures[0]}
            of = [f["distance"] for f in figures]
            line["error"] = float(np.std(of, ddof=1) / math.sqrt(seeds)) if seeds > 1 else None
            lines.append(line)
            told = ", ".join(f"{key} {line[key]:.4g}" for key in (*figures[0], "image_calls"))
            print(f"{network}, {nfe} NFE, {name}: {told}", flush=True)
    return lines


def show(network, lines):
    """Prints the table of one network."""
    known = [key for key in ("distance", "pyramid", "picture", "classifier", "frechet") if key in lines[0]]
    names = {
        "pyramid": "in a blur pyramid",
        "picture": "in the picture",
        "classifier": "in the classifier",
        "frechet": "Frechet",
    }
    head = ["NFE", "what is fitted", *(names.get(key, key) for key in known), "times all of it", "DLMS, FID"]
    cells, whole = [], {line["nfe"]: line for line in lines if line["row"] == "all of it"}
    for line in lines:
        fid = ROWS[line["row"]][1]
        ratio = line["distance"] / whole[line["nfe"]]["distance"]
        figures = [f"{line[key]:.4g}" for key in known]
        paper = f"{fid:.2f}" if fid and line["nfe"] == 4 else ""
        cells.append([str(line["nfe"]), line["row"], *figures, f"{ratio:.2f}", paper])
    print(f"\n{network}; lower is better")
    print_table([head, *cells])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="out/ablation.json", help="file (default %(default)s)")
    parser.add_argument("--networks", nargs="+", default=["digits, guidance 3"], choices=list(NETWORKS))
    parser.add_argument("--nfe", type=int, nargs="+", default=NFES, help="model calls (default 4 5)")
    parser.add_argument("--rows", nargs="+", default=[], help="parts of their names (default all rows)")
    parser.add_argument("--seeds", type=int, default=3, help="fits of each (default %(default)s)")
    parser.add_argument("--test", type=int, default=512, help="test trajectories (default %(default)s)")
    parser.add_argument("--trajectories", type=int, default=64, help="of each fit (default %(default)s)")
    args = parser.parse_args()
    started, claims, lines = time.perf_counter(), Claims(), []
    for network in args.networks:
        found = measure(network, args.nfe, args.seeds, args.test, args.trajectories, args.rows)
        show(network, found)
        lines += found
        distance = {(line["nfe"], line["row"]): line["distance"] for line in found}
        for nfe in args.nfe:
            for name in [row for row in UNKNOWNS if (nfe, row) in distance]:
                ratio = distance[nfe, name] / distance[nfe, "all of it"]
                claims.check(f"{network}, {nfe} NFE: {name} / all of it", ratio, ">=", 1.0)
    told = {"test_batches": TEST_BATCHES, "test": args.test, "seeds": args.seeds}
    write_json(args.out, {"lmsd": lmsd.__version__, **told, "lines": lines, "claims": claims.results})
    print(f"{time.perf_counter() - started:.0f} s")
    return claims.finish()


if __name__ == "__main__":
    sys.exit(main())
