"""One rank of a distillation, for test_distributed.py: prints what it found, or why it did not.

`fault`: what befalls rank 1 at its 100th call of the model. `meeting`: a file that the ranks find one another
by; with a port that was free a moment ago another process could come before them.
"""

import json
import os
import signal
import sys

import lmsd
import numpy as np
import torch
import torch.distributed as dist
from lmsd.distributed import Ranks
from mixture import Mixture

OPTIONS = {"sigma_end": 0.002, "nfe": (3, 4), "teacher_nfe": 40, "trajectories": 64, "held_out": 64}


def main(kind, fault, timeout, meeting, rank, count):
    problem, calls, ranks = Mixture(16), 0, None
    if fault != "alone":
        where = {"init_method": f"file://{meeting}", "rank": int(rank), "world_size": int(count)}
        dist.init_process_group("gloo", **where)
        ranks = Ranks(timeout=float(timeout))
    as_kind = torch.from_numpy if kind == "torch" else np.asarray

    def model(x, sigma):
        nonlocal calls
        calls += 1
        if calls == 100 and ranks and ranks.rank == 1:
            if fault == "raise":
                raise ValueError("the lamp of the model went out")
            if fault in ("SIGKILL", "SIGSTOP"):
                os.kill(os.getpid(), getattr(signal, fault))
        return problem.model(x, sigma)

    try:
        found = lmsd.distill(
            model,
            lambda batch: as_kind(problem.begin(batch)),
            as_kind(problem.like),
            progress=False,
            ranks=ranks,
            **OPTIONS,
        )
    except (lmsd.Error, ValueError) as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        os._exit(3)  # the process group may have lost a rank
    nodes = [
        [s.sigmas.tolist(), s.scales.tolist(), [w.tolist() for w in s.weights]]
        for s in found.schedules.values()
    ]
    distances = lmsd.compare(
        list(found.schedules.values()),
        model,
        lambda batch: as_kind(problem.begin(batch)),
        as_kind(problem.like),
        ranks=ranks,
        **{key: value for key, value in OPTIONS.items() if key not in ("nfe", "trajectories")},
    )
    counted = {key: found.report[key] for key in ("ranks", "model_calls", "teacher_calls")}
    print(json.dumps({"nodes": nodes, "distances": distances, "calls": calls, **counted}), flush=True)
    if ranks:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
