"""One fit in a process of its own, for what the benchmark of cost kills, weighs or runs with an old library.

    python benches/fit.py '{"network": "mixture", "nfe": 5}'

Prints one line of JSON. Options: `network`, or `elements`, the size of a made-up model's latent; `size`,
`seed`; `kill`, the model call at which the process ends without a word; the rest is for lmsd.distill. Uses of
lmsd only what version 0.1.0 had.
"""

import json
import os
import sys
from pathlib import Path

import lmsd
import numpy as np
from networks import NETWORKS

KILLED = 9  # exit status


class Dummy:
    """Every element on its own is -1 or 1, with noise: large tensors for little time."""

    process = "ve"
    sigma_min, sigma_max, sigma_end = 0.002, 80.0, 0.002
    made_for, seeds = {"model": "dummy"}, "PCG64([seed, batch])"
    variance = 0.04

    def __init__(self, size, seed, elements):
        self.like, self.seed = np.empty((size, elements), np.float32), seed

    def begin(self, index):
        rng = np.random.Generator(np.random.PCG64([self.seed, index]))
        return np.float32(self.sigma_max) * rng.standard_normal(self.like.shape, dtype=np.float32)

    def model(self, x, sigma):
        variance = self.variance + sigma**2
        out = np.tanh(x / np.float32(variance))
        out *= np.float32(sigma**2 / variance)
        out += np.float32(self.variance / variance) * x
        return out


def peak():
    """MiB that this process has had resident at most."""
    # not getrusage, whose peak includes that of the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def main():
    options = json.loads(sys.argv[1])
    size, seed = options.pop("size", 4), options.pop("seed", 0)
    kill = options.pop("kill", None)
    if elements := options.pop("elements", None):
        problem = Dummy(size, seed, elements)
    else:
        problem = NETWORKS[options.pop("network")](size, seed)
    calls = 0

    def model(x, sigma):
        nonlocal calls
        calls += 1
        if calls == kill:
            os._exit(KILLED)
        return problem.model(x, sigma)

    model(problem.begin(0), 1.0)  # so that what the first call allocates is in `before`
    calls, before = 0, peak()
    names = ("process", "sigma_min", "sigma_max", "sigma_end", "made_for", "seeds")
    about = {name: getattr(problem, name) for name in names}
    found = lmsd.distill(model, problem.begin, problem.like, progress=False, **about, **options)
    files = {nfe: schedule.to_dict() for nfe, schedule in found.schedules.items()}
    result = {"calls": calls, "before": before, "peak": peak(), "report": found.report, "schedules": files}
    print(json.dumps({**result, "package": str(Path(lmsd.__file__).parent)}))


if __name__ == "__main__":
    main()
