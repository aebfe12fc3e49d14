"""How close distilled schedules come to the teacher, against every handcrafted solver on its best grid.

    python benches/quality.py --out out/quality.json

For guidance 1 and 3 one run distils the family of 3 to 10 NFE for the digits network. Everything is measured
on 1000 trajectories that no distillation saw. At each NFE the handcrafted solvers, with all grids and
settings, are ranked on 128 others; the best of the first six on the test trajectories is what the distilled
schedule has to beat, so the choice favours the handcrafted ones. Exits with 1 where a figure falls short of
its bar.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

# the matrices are small: BLAS threads cost more than they save, above all on a busy machine
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))

import lmsd
from common import (
    Claims,
    Frechet,
    config,
    end_points,
    handcrafted,
    measure,
    print_table,
    ranked,
    teacher,
    unique,
    write_json,
)
from problem import problem

FAMILY = range(3, 11)
RATIOS = {3: 2, 4: 3, 5: 3.5, 6: 4.5, 8: 6}  # NFE: best handcrafted / distilled
CALLS = {1.0: 1.75, 3.0: 2.0}  # guidance: n distilled calls do what so many times n handcrafted ones do
RANKING = 128


def best_handcrafted(guidance, test, nfes, count):
    """NFE -> [(Handcrafted, distance over `count` test trajectories)], six that rank first, best first."""
    ranking = problem(guidance, size=RANKING)
    top = {nfe: unique(ranked(ranking, handcrafted(ranking, nfe), RANKING))[:6] for nfe in nfes}
    field = [candidate for candidates in top.values() for candidate in candidates]
    distances = iter(measure(test, [candidate.schedule for candidate in field], count))
    return {
        nfe: sorted(((c, next(distances)) for c in candidates), key=lambda pair: pair[1])
        for nfe, candidates in top.items()
    }


def run(guidance, trajectories, count):
    """One guidance scale: distils, and measures on `count` test trajectories."""
    started = time.perf_counter()
    digits = problem(guidance)
    options = {"nfe": (FAMILY[0], FAMILY[-1]), "trajectories": trajectories, **config(digits)}
    distilled = lmsd.distill(digits.model, digits.begin, digits.like, progress=False, **options)
    test = problem(guidance, size=125)
    schedules = distilled.schedules
    own = dict(zip(schedules, measure(test, list(schedules.values()), count), strict=True))
    frechet = Frechet()
    rows = []
    for nfe, field in best_handcrafted(guidance, test, range(3, 17), count).items():
        winner, distance = field[0]
        row = {"nfe": nfe, "handcrafted": distance, "solver": winner.solver, "setting": winner.setting}
        row["field"] = [[c.solver, c.setting, d] for c, d in field]
        row["frechet_handcrafted"] = frechet(end_points(test, winner.schedule, count)[0])
        if nfe in own:
            row["distilled"], row["ratio"] = own[nfe], distance / own[nfe]
            row["frechet_distilled"] = frechet(end_points(test, schedules[nfe], count)[0])
        rows.append(row)
    about = distilled.report
    return {
        "guidance": guidance,
        "rows": rows,
        "frechet_teacher": frechet(end_points(test, teacher(test), count)[0]),
        "model_calls": about["model_calls"],
        "distillation_seconds": about["seconds"],
        "seconds": time.perf_counter() - started,
    }


def show(result, count, claims):
    """Prints the table of one guidance scale, and holds the figures against their bars."""
    guidance, rows = result["guidance"], result["rows"]
    calls, seconds = result["model_calls"], result["distillation_seconds"]
    print(f"\nguidance {guidance:g}: distilled in {seconds:.0f} s by {calls} calls of a batch of 64")
    print(f"mean distance to the teacher on {count} test trajectories; Frechet distance to the training")
    print(f"images, of which the teacher has {result['frechet_teacher']:.3f}; lower is better")
    head = ["NFE", "distilled", "best handcrafted", "ratio", "Frechet distilled", "handcrafted"]
    keys = ("distilled", "handcrafted", "ratio", "frechet_distilled", "frechet_handcrafted")
    cells = []
    for row in rows:
        values = (f"{row[key]:.4f}" if key in row else "" for key in keys)
        cells.append([str(row["nfe"]), *values, f"{row['solver']}, {row['setting']}"])
    print_table([*head, "best handcrafted solver"], cells)

    at = f"guidance {guidance:g}, "
    own = {row["nfe"]: row["distilled"] for row in rows if "distilled" in row}
    best = {row["nfe"]: row["handcrafted"] for row in rows}
    for nfe, bar in RATIOS.items():
        claims.check(f"{at}{nfe} NFE: best handcrafted / distilled", best[nfe] / own[nfe], ">=", bar)
    for nfe in range(4, 9):
        more = int(CALLS[guidance] * nfe)
        claims.check(
            f"{at}distilled at {nfe}, at most best handcrafted at {more}", own[nfe], "<=", best[more]
        )
    for nfe in FAMILY[1:]:
        claims.check(f"{at}distilled at {nfe}, less than at {nfe - 1}", own[nfe], "<", own[nfe - 1])
    for nfe in FAMILY:
        claims.check(f"{at}{nfe} NFE: distilled, at most best handcrafted", own[nfe], "<=", best[nfe])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="out/quality.json", help="file (default %(default)s)")
    parser.add_argument("--trajectories", type=int, default=256, help="to fit to (default %(default)s)")
    parser.add_argument(
        "--test", type=int, default=1000, help="trajectories, in batches of 125 (default 1000)"
    )
    parser.add_argument("--guidance", type=float, choices=CALLS, help="only this one (default both)")
    args = parser.parse_args()
    started = time.perf_counter()
    claims, runs = Claims(), []
    guidances = sorted(CALLS if args.guidance is None else [args.guidance])
    options = {"trajectories": args.trajectories, "test": args.test}
    print(
        f"distilling {FAMILY[0]} to {FAMILY[-1]} NFE and measuring, a process for each guidance", flush=True
    )
    with ProcessPoolExecutor(len(guidances)) as pool:
        pending = [pool.submit(run, guidance, args.trajectories, args.test) for guidance in guidances]
        for result in pending:
            runs.append(result.result())
            show(runs[-1], args.test, claims)
    write_json(args.out, {"lmsd": lmsd.__version__, **options, "runs": runs, "claims": claims.results})
    print(f"{time.perf_counter() - started:.0f} s")
    return claims.finish()


if __name__ == "__main__":
    sys.exit(main())
