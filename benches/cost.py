"""What a distillation costs, and how much it loses where the model is coarse or trajectories are few.

    python benches/cost.py

Distils 5 NFE at guidance 3 for the digits network, then the same for a model whose sigma is snapped to 1000
log-spaced steps (as Stable-Diffusion-type hosts do), for a model whose output is rounded to half precision,
and with 16 trajectories instead of 64. Each is measured on 1000 test trajectories, with the model that it was
distilled for: a snapped student against the snapped teacher, a half-precision one against the half-precision
teacher. Exits with 1 where a figure falls short of its bar.
"""

import argparse
import os
import sys
import time
from pathlib import Path

# the matrices are small: BLAS threads cost more than they save, above all on a busy machine
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))

import lmsd
from common import Claims, config, measure, print_table, write_json
from problem import problem

NFE, GUIDANCE, TEST = 5, 3.0, 1000
MOST_CALLS = 1500
# name: options of the problem, of the distillation, and the most that the distance may grow by
CASES = {
    "exact": ({}, {}, None),
    "sigma snapped to 1000 steps": ({"snapped": True}, {}, 0.05),
    "output rounded to half": ({"half": True}, {}, 0.15),
    "16 trajectories": ({"size": 16}, {"trajectories": 16}, 0.20),
}


def run(model, options):
    """Distils; returns the report, and the distances to the teacher of this model and of the exact one."""
    digits = problem(GUIDANCE, **model)
    options = {"nfe": NFE, "progress": sys.stderr.isatty(), **options, **config(digits)}
    distilled = lmsd.distill(digits.model, digits.begin, digits.like, **options)
    schedules = list(distilled.schedules.values())
    same = measure(problem(GUIDANCE, **{**model, "size": 125}), schedules, TEST)[0]
    exact = measure(problem(GUIDANCE, size=125), schedules, TEST)[0]
    return distilled.report, same, exact


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="out/cost.json", help="file (default %(default)s)")
    args = parser.parse_args()
    claims, rows, results = Claims(), [], {}
    started = time.perf_counter()
    for name, (model, options, _) in CASES.items():
        report, same, exact = run(model, options)
        results[name] = {"distance": same, "distance_exact_model": exact}
        for key in ("model_calls", "teacher_calls", "ranking_calls", "seconds"):
            results[name][key] = report[key]
        calls = [str(report[key]) for key in ("model_calls", "ranking_calls", "teacher_calls")]
        rows.append([*calls, f"{report['seconds']:.1f}", f"{same:.4f}", f"{exact:.4f}", name])
    print(f"{NFE} NFE at guidance {GUIDANCE:g}; mean distance on {TEST} test trajectories; lower is better")
    print("own: teacher and student with the model distilled for; exact: both with the exact model")
    print_table(["calls", "of these ranking", "teacher", "seconds", "own", "exact", "distilled for"], rows)
    wanted = results["exact"]
    what = "batch calls of 64 trajectories, starts and ranking included, teacher apart"
    claims.check(what, wanted["model_calls"], "<=", MOST_CALLS)
    for name, (_, _, loss) in CASES.items():
        if loss is not None:
            ratio = results[name]["distance"] / wanted["distance"]
            claims.check(f"{name}: distance / that of the exact run", ratio, "<=", 1 + loss)
    print(f"{time.perf_counter() - started:.0f} s")
    write_json(args.out, {"lmsd": lmsd.__version__, "runs": results, "claims": claims.results})
    return claims.finish()


if __name__ == "__main__":
    sys.exit(main())
