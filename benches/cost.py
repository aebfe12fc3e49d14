"""What a fit costs: distances at given numbers of image-calls, all included.

    python benches/cost.py

An image-call is one trajectory through the model once; the teacher, the ranking of the published field and
the selection are counted. Distils for the digits network at guidance 1 and 3, the Gaussian mixture over the
digits and the photographs' network (32x32x3), with several seeds of the noise, and measures on test
trajectories against a teacher of 100 calls. `known` is the best distance known for that network (long runs,
see KNOWN). Exits with 1 where a median misses its bar.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

# the matrices are small: BLAS threads cost more than they save, above all on a busy machine
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "photos"))

import lmsd
from common import Claims, about, print_table, write_json
from mixture import mixture
from photos_problem import problem as photos
from problem import problem as digits

BATCH = 4  # trajectories in a call
# the best distance known: fits of 40,000 to 170,000 image-calls
KNOWN = {
    "digits, guidance 1": {5: 0.0863, 8: 0.0228},
    "digits, guidance 3": {5: 0.230, 8: 0.060},
    "mixture": {5: 0.165},
    "photos": {5: 4.80},
}
NETWORKS = {
    "digits, guidance 1": lambda size, seed: digits(1.0, size=size, seed=seed),
    "digits, guidance 3": lambda size, seed: digits(3.0, size=size, seed=seed),
    "mixture": lambda size, seed: mixture(size=size, seed=seed),
    "photos": lambda size, seed: photos(2.0, size=size, seed=seed),
}
# NFE, image-calls, trajectories to fit to, how much above the best known at most
ROWS = ((5, 10_000, 84, 1.10), (5, 20_000, 200, 1.03), (8, 25_000, 120, 1.10))
TEST = {"photos": 128}  # else 512


def run(name, nfe, calls, trajectories, seed):
    """One fit: its image-calls, its test distance, and that of the best of the strongest published field."""
    problem = NETWORKS[name](BATCH, seed)
    options = {"nfe": nfe, "trajectories": trajectories, "max_calls": calls // BATCH, **about(problem)}
    found = lmsd.distill(problem.model, problem.begin, problem.like, progress=False, **options)
    test = NETWORKS[name](64, 1000)
    measured = {"teacher": "deis_3", "teacher_nfe": 100, "held_out": TEST.get(name, 512)}
    distance = lmsd.compare(
        [found.schedules[nfe]], test.model, test.begin, test.like, **about(test) | measured
    )[0]
    made = found.schedules[nfe].made_by
    return found.report["image_calls"], distance, made["handcrafted"][0]["distance"] / made["distance"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="out/cost.json", help="file (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=5, help="fits of each row (default %(default)s)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    args = parser.parse_args()
    claims, rows, results = Claims(), [], []
    started = time.perf_counter()
    for name in args.networks:
        for nfe, calls, trajectories, bar in ROWS:
            known = KNOWN[name].get(nfe)
            fits = [run(name, nfe, calls, trajectories, seed) for seed in range(args.seeds)]
            distances = [distance for _, distance, _ in fits]
            middle, worst = statistics.median(distances), max(distances)
            most = max(used for used, _, _ in fits)
            ratio = statistics.median(gain for _, _, gain in fits)
            cells = [str(nfe), str(calls), str(most), f"{middle:.4f}", f"{worst:.4f}"]
            rows.append([*cells, f"{known:.4f}" if known else "", f"{ratio:.1f}x", name])
            results.append({"network": name, "nfe": nfe, "budget": calls, "fits": fits, "known": known})
            print("  ".join(rows[-1]), file=sys.stderr, flush=True)
            claims.check(f"{name}, {nfe} NFE: image-calls", most, "<=", calls)
            if known:
                claims.check(
                    f"{name}, {nfe} NFE, {calls} image-calls: / best known", middle / known, "<=", bar
                )
    print("ratio: best of the strongest published field / distilled, on the held-out trajectories, median")
    head = ["NFE", "budget", "most used", "median", "worst", "known", "ratio", "network"]
    print_table(head, rows)
    print(f"{time.perf_counter() - started:.0f} s")
    write_json(args.out, {"lmsd": lmsd.__version__, "rows": results, "claims": claims.results})
    return claims.finish()


if __name__ == "__main__":
    sys.exit(main())
