"""Guidance: one schedule for a range of scales, what of a schedule transfers, and a guidance of each call.

    python benches/guidance.py --networks digits photos
    python benches/guidance.py --networks emoji
    python benches/guidance.py --networks emoji-flow --parts calls

Tables for each network, of mean distances to the teacher on trajectories that no fit saw, at 5 calls:

- range: a schedule fitted at one guidance scale, and one fitted to scales from 1.5 to 7.5 that batches take
  in turn, with equal budgets, against the strongest published field at each of five scales, at its best on
  the same trajectories;
- transfer: a schedule at other guidance scales, for other labels or prompts, at another resolution and with
  changed weights, against the field there and against a new fit there;
- calls: with 4, 5 and 6 calls, a schedule whose calls have the guidance that was set, and one whose guidance
  is fitted call by call (`fit_guidance`), with equal budgets.

Exits with 1 where the schedule of the range is farther than the field at some scale.
"""

import argparse
import functools
import sys
from typing import NamedTuple

import lmsd
import networks  # finds the examples, and sets the threads of BLAS
import numpy as np
from common import Claims, about, contest, field, measure, write_json
from lmsd.cli.terminal import print_table
from lmsd.guidance import spread

NFE = 5
TESTED = (1.5, 2.0, 3.0, 5.0, 7.5)
RANGE = spread(1.5, 7.5)
TRAJECTORIES, BATCH, TEST_BATCH = 200, 4, 32
WORTH = 1.1  # a new fit is worth it where it is so many times nearer


class Network(NamedTuple):
    make: object  # (guidance scale or several, trajectories in a batch, seed) -> problem
    scale: float
    labels: int
    what: str  # these are
    calls: int  # of a fit, of a batch
    tested: int  # trajectories
    ranked: tuple  # those of the rounds in which published solvers are ranked


NETWORKS = {
    "digits": Network(networks.digits, 3.0, 10, "labels", 5000, 256, (8, 32)),
    "photos": Network(networks.photos, 2.0, 2, "labels", 4000, 128, (4, 16)),
    "emoji": Network(functools.partial(networks.emoji, "pixel"), 3.0, 430, "prompts", 2500, 64, (4, 16)),
}
for _model in ("flow", "latent"):
    NETWORKS[f"emoji-{_model}"] = NETWORKS["emoji"]._replace(make=functools.partial(networks.emoji, _model))
PARTS = ("range", "transfer", "calls")


def unchanged(problem):
    pass


class Bench:
    def __init__(self, name, seed, claims):
        self.name, self.seed, self.claims = name, seed, claims
        self.network, self.results = NETWORKS[name], {}

    def fit(self, guidance, change=unchanged, nfe=NFE, **options):
        """A schedule for `guidance`, one scale or several, and a problem that `change` was called with."""
        problem = self.network.make(guidance, BATCH, self.seed)
        change(problem)
        budget = {"trajectories": TRAJECTORIES, "max_calls": self.network.calls, "progress": False}
        options |= {**about(problem), **budget}
        found = lmsd.distill(problem.model, problem.begin, problem.like, nfe=nfe, **options)
        return found.schedules[nfe]

    def measured(self, schedules, scale, change=unchanged, nfe=NFE):
        """The distances of `schedules` at a guidance scale, then that of the strongest field."""

        def make(size):
            problem = self.network.make(scale, size, networks.TEST_SEED)
            change(problem)
            return problem

        test, group = make(TEST_BATCH), {}
        group["field"] = field(test, nfe, "strongest")
        best = contest(make, group, test, self.network.tested, self.network.ranked, finalists=4)
        return [*measure(test, schedules, self.network.tested), best["field"][0][1]]

    def put(self, part, head, rows):
        print(f"\n{self.name}, {part}")
        print_table([head, *rows])
        sys.stdout.flush()
        self.results[part] = [dict(zip(head, row, strict=True)) for row in rows]

    def range(self):
        fits = [self.fit(guidance) for guidance in (self.network.scale, RANGE)]
        rows = []
        for scale in TESTED:
            single, several, best = self.measured(fits, scale)
            figures = (best, single, best / single, several, best / several, several / single)
            rows.append([f"{scale:g}", *(f"{value:.3f}" for value in figures)])
            what = f"{self.name}, guidance {scale:g}: strongest field / fitted to the range"
            self.claims.check(what, best / several, ">=", 1)
        one = f"fitted at {self.network.scale:g}"
        names = ["guidance", "field", one, "gain", "fitted to the range", "its gain", "range / single"]
        self.put("range", names, rows)

    def transfer(self):
        """Each row: a schedule made elsewhere, used where one could be fitted anew."""
        base, half, rows = self.network.scale, self.network.labels // 2, []
        own = self.fit(base)
        cases = [(f"guidance {scale:g}", own, scale, unchanged) for scale in TESTED if scale != base]
        below = self.fit(base, lambda problem: confine(problem, 0, half))
        others = f"the other half of the {self.network.what}"
        cases.append((others, below, base, lambda problem: confine(problem, half, half)))
        if self.name == "emoji":
            cases.append(("pictures of 48x48 instead of 32x32", own, base, enlarge))
        for part in (0.05, 0.1, 0.2, 0.4):
            change = functools.partial(perturb, part=part)
            cases.append((f"weights changed by {part:.0%}", own, base, change))
        for what, old, scale, change in cases:
            was, fresh, best = self.measured([old, self.fit(scale, change)], scale, change)
            worth = "yes" if was > WORTH * fresh else "no"
            figures = (best, was, best / was, fresh, was / fresh)
            rows.append([what, *(f"{value:.3f}" for value in figures), worth])
        names = ["transfer to", "field", "as it is", "gain", "new fit", "new fit gains", "worth it"]
        self.put("transfer", names, rows)

    def calls(self):
        rows, base = [], self.network.scale
        for nfe in (4, 5, 6):
            fits = [self.fit(base, nfe=nfe, fit_guidance=own) for own in (False, True)]
            whole, own, best = self.measured(fits, base, nfe=nfe)
            figures = (best, whole, best / whole, own, best / own, whole / own)
            shares = " ".join(f"{share:.2f}" for share in fits[1].guidance)
            rows.append([str(nfe), *(f"{value:.3f}" for value in figures), shares])
        names = ["calls", "field", "as set", "gain", "of each call", "its gain", "as set / of each", "shares"]
        self.put("calls", names, rows)


def confine(problem, first, count):
    """Has the problem use labels, or prompts that were fitted to, first to first + count - 1 only."""
    if hasattr(problem, "emoji"):
        from emoji_problem import prompts

        problem.prompts = prompts("fit")[first : first + count]
        return
    begin = problem.begin

    def confined(index):
        x = begin(index)
        problem.labels = problem.labels % count + first
        return x

    problem.begin = confined


def in_torch(problem, net):
    """Has an emoji problem ask the torch module `net`."""
    import torch

    def run(x, sigma, words):
        with torch.no_grad():
            told = torch.full((len(x),), sigma)
            return net(torch.from_numpy(np.float32(x)), told, torch.from_numpy(words)).numpy()

    torch.set_num_threads(1)
    problem.emoji._run = run


def enlarge(problem, side=48):
    """Has an emoji problem, whose network is made of convolutions and attention, draw larger pictures."""
    from export import denoiser

    problem.emoji.shape = (3, side, side)
    problem.like = np.empty((problem.size, *problem.emoji.shape), np.float32)
    in_torch(problem, denoiser("pixel"))


def perturb(problem, part):
    """Adds to each matrix of the network one of rank 4, random, and `part` times as large: a finetune."""
    rng = np.random.default_rng(0)

    def changed(matrix):
        flat = matrix.reshape(len(matrix), -1)
        low = rng.standard_normal((flat.shape[0], 4)) @ rng.standard_normal((4, flat.shape[1]))
        low *= part * np.linalg.norm(flat) / max(np.linalg.norm(low), 1e-30)
        return (flat + low).reshape(matrix.shape).astype(np.float32)

    if hasattr(problem, "digits"):
        net = problem.digits
        net.blocks = [
            (changed(up), up_bias, changed(down), down_bias) for up, up_bias, down, down_bias in net.blocks
        ]
        net.input = (changed(net.input[0]), net.input[1])
        return
    import torch

    if hasattr(problem, "emoji"):
        from export import denoiser

        net = denoiser("pixel")
        in_torch(problem, net)
    else:
        net = problem.photos.net
    for parameter in net.parameters():
        if parameter.ndim > 1:
            parameter.data.copy_(torch.from_numpy(changed(parameter.detach().numpy())))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="out/guidance.json", help="file (default %(default)s)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["digits", "photos", "emoji"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seed", type=int, default=0, help="of the noise of the fits (default %(default)s)")
    args = parser.parse_args()
    claims, results = Claims(), {}
    for name in args.networks:
        bench = Bench(name, args.seed, claims)
        for part in args.parts:
            getattr(bench, part)()
        results[name] = bench.results
    write_json(args.out, {"lmsd": lmsd.__version__, **results, "claims": claims.results})
    return claims.finish()


if __name__ == "__main__":
    sys.exit(main())
