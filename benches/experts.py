"""Two networks that share a trajectory, as Wan 2.2 has them: one schedule against published solvers.

    python benches/experts.py [--trajectories N] [--test N] [--nfe N ...]

The digits, with 3 to 8 NFE. From noise level 1 on, and above it, the network is the one of all the other
benchmarks, at guidance 3. Below it is a stand-in for a second expert: the same network with normal noise of
5 % of their standard deviation added to its matrices, at guidance 1.5. It was not trained for anything; what
counts is that prediction and guidance jump at the boundary. The teacher is many steps with the same two.

Distances to that teacher are means over test trajectories that no distillation saw. The fields are the
published solvers with tuning ("strongest") and without, the best of which is chosen to its own advantage, on
the test trajectories; all of them call each network on its side, as the schedule does. Exits with 1 where the
strongest solver at 8 is nearer than the distilled schedule at 5, or is nearer at as many calls.
"""

import argparse
import os
import sys
from pathlib import Path

# the matrices are small: BLAS threads cost more than they save, above all on a busy machine
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))

import lmsd
import numpy as np
from common import FIELDS, TEST_BATCHES, Claims, about, contest, field, measure, teacher, which
from lmsd.cli.terminal import print_table
from model import Digits
from problem import Problem

FAMILY, BOUNDARY = range(3, 9), 1.0
HIGH, LOW = 3.0, 1.5  # guidance of the two networks
PERTURBED = 0.05  # standard deviation of what is added to the second one's matrices, over their own
SHOWN, MEASURED = 5, 8  # the claim of the issue: distilled at 5 against the strongest at 8
BATCH = 64  # test trajectories of a batch


def second_network(seed=7):
    """A copy of the digits network with noise on its matrices."""
    rng = np.random.default_rng(seed)

    def noisy(a):
        if a.ndim < 2:
            return a
        return a + (PERTURBED * a.std() * rng.standard_normal(a.shape)).astype(a.dtype)

    network = Digits()
    for name in ("sigma_embed", "embed", "input", "output", "modulation"):
        setattr(network, name, tuple(map(noisy, getattr(network, name))))
    network.blocks = [tuple(map(noisy, block)) for block in network.blocks]
    network.label_embed = noisy(network.label_embed)
    return network


class Experts(Problem):
    """The digits problem with another network and guidance below BOUNDARY; `calls`: of each, image-calls."""

    def __init__(self, size=4, seed=0):
        super().__init__([HIGH], size, seed, False, False)
        self.second, self.calls = second_network(), {"high": 0, "low": 0}
        self.made_for |= {"boundary": BOUNDARY, "guidance_scale_2": LOW}
        self.seeds += f", a second network below {BOUNDARY:g}"

    def model(self, x, sigma):
        high = sigma >= BOUNDARY
        self.calls["high" if high else "low"] += len(x)
        if high:
            return self.digits.denoise(x, sigma, self.labels, HIGH)
        return self.second.denoise(x, sigma, self.labels, LOW)


def jump(test):
    """How far the two predictions at the boundary are apart, over their own distance from the state."""
    x = test.begin(TEST_BATCHES)
    run = lmsd.Sampler(teacher(test), x)
    for state, sigma in run:
        if sigma < BOUNDARY:
            break
        run.step(test.model(state, sigma))
    high = test.digits.denoise(state, BOUNDARY, test.labels, HIGH)
    low = test.second.denoise(state, BOUNDARY, test.labels, LOW)
    apart, step = (np.linalg.norm(d.reshape(len(d), -1), axis=1).mean() for d in (high - low, high - state))
    return apart / step


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trajectories", type=int, default=200, help="to fit to (default %(default)s)")
    parser.add_argument("--test", type=int, default=512, help="test trajectories, in batches of 64 (512)")
    parser.add_argument("--nfe", type=int, nargs="+", default=[*FAMILY], help="of the fields (3 to 8)")
    args = parser.parse_args()
    train, test = Experts(), Experts(BATCH)
    print(
        f"the two predictions at the boundary differ by {100 * jump(test):.0f} % of a step to x0", flush=True
    )
    options = {"nfe": (FAMILY[0], FAMILY[-1]), "trajectories": args.trajectories, **about(train)}
    schedules = lmsd.distill(train.model, train.begin, train.like, progress=False, **options).schedules
    print(f"distilled with {train.calls['high']} + {train.calls['low']} image-calls", flush=True)
    own = dict(zip(schedules, measure(test, list(schedules.values()), args.test), strict=True))
    claims, rows, best = Claims(), {}, {}
    for nfe in args.nfe:
        groups = {name: field(test, nfe, name) for name in FIELDS}
        best[nfe] = {name: found[0] for name, found in contest(Experts, groups, test, args.test).items()}
        levels = schedules[nfe].scales * schedules[nfe].sigmas[:-1]
        row = [str(nfe), str(int((levels >= BOUNDARY).sum())), f"{own[nfe]:.4f}"]
        for name in FIELDS:
            winner, distance = best[nfe][name]
            row += [f"{distance:.4f}", f"{distance / own[nfe]:.1f}", which(winner)]
        rows[nfe] = row
        print(*row, flush=True)
    heads = [head for name in FIELDS for head in (FIELDS[name], "ratio", "its best")]
    print_table([["NFE", "of them high", "distilled", *heads], *rows.values()])
    strongest = {nfe: best[nfe]["strongest"][1] for nfe in args.nfe}
    if MEASURED in strongest:
        what = f"distilled at {SHOWN}, at most the strongest at {MEASURED}"
        claims.check(what, own[SHOWN], "<=", strongest[MEASURED])
    for nfe in args.nfe:
        claims.check(f"{nfe} NFE: distilled, at most the strongest", own[nfe], "<=", strongest[nfe])
    return claims.finish()


if __name__ == "__main__":
    sys.exit(main())
