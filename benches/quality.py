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


def run(guidance, args, claims):
    """One guidance scale: distils, measures, prints; returns what goes to the file."""
    started = time.perf_counter()
    digits = problem(guidance)
    family = (FAMILY[0], FAMILY[-1])
    options = {"nfe": family, "trajectories": args.trajectories, **config(digits)}
    progress = sys.stderr.isatty()
    distilled = lmsd.distill(digits.model, digits.begin, digits.like, progress=progress, **options)
    about = distilled.report
    print(f"\nguidance {guidance:g}: distilled in {about['seconds']:.0f} s by {about['model_calls']} calls")
    test = problem(guidance, size=125)
    schedules = distilled.schedules
    own = dict(zip(schedules, measure(test, list(schedules.values()), args.test), strict=True))
    best = best_handcrafted(guidance, test, range(3, 17), args.test)
    least = {nfe: field[0][1] for nfe, field in best.items()}

    frechet = Frechet()
    goal = frechet(end_points(test, teacher(test), args.test)[0])
    rows = []
    for nfe, field in best.items():
        winner, distance = field[0]
        row = {"nfe": nfe, "handcrafted": distance, "solver": winner.solver, "setting": winner.setting}
        row["field"] = [[c.solver, c.setting, d] for c, d in field]
        row["frechet_handcrafted"] = frechet(end_points(test, winner.schedule, args.test)[0])
        if nfe in own:
            row["distilled"], row["ratio"] = own[nfe], distance / own[nfe]
            row["frechet_distilled"] = frechet(end_points(test, schedules[nfe], args.test)[0])
        rows.append(row)
    print(f"mean distance to the teacher on {args.test} test trajectories; Frechet distance to the training")
    print(f"images, of which the teacher has {goal:.3f}; lower is better")
    head = ["NFE", "distilled", "best handcrafted", "ratio", "Frechet distilled", "handcrafted", "which"]
    cells = []
    for row in rows:
        name = f"{row['solver']}, {row['setting']}"
        values = [row.get("distilled"), row["handcrafted"], row.get("ratio"), row.get("frechet_distilled")]
        values.append(row["frechet_handcrafted"])
        cells.append([str(row["nfe"]), *("" if v is None else f"{v:.4f}" for v in values), name])
    print_table(head, cells)

    at = f"guidance {guidance:g}, "
    for nfe, bar in RATIOS.items():
        claims.check(f"{at}{nfe} NFE: best handcrafted / distilled", least[nfe] / own[nfe], ">=", bar)
    for nfe in range(4, 9):
        more = int(CALLS[guidance] * nfe)
        claims.check(
            f"{at}distilled at {nfe}, at most best handcrafted at {more}", own[nfe], "<=", least[more]
        )
    for nfe in FAMILY[1:]:
        claims.check(f"{at}distilled at {nfe}, less than at {nfe - 1}", own[nfe], "<", own[nfe - 1])
    for nfe in FAMILY:
        claims.check(f"{at}{nfe} NFE: distilled, at most best handcrafted", own[nfe], "<=", least[nfe])
    seconds = time.perf_counter() - started
    print(f"{seconds:.0f} s")
    return {
        "guidance": guidance,
        "rows": rows,
        "frechet_teacher": goal,
        "model_calls": about["model_calls"],
        "distillation_seconds": about["seconds"],
        "seconds": seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="out/quality.json", help="file (default %(default)s)")
    parser.add_argument("--trajectories", type=int, default=256, help="to fit to (default %(default)s)")
    parser.add_argument(
        "--test", type=int, default=1000, help="trajectories, in batches of 125 (default 1000)"
    )
    parser.add_argument("--guidance", type=float, choices=CALLS, help="only this one (default both)")
    args = parser.parse_args()
    claims = Claims()
    guidances = CALLS if args.guidance is None else [args.guidance]
    runs = [run(guidance, args, claims) for guidance in guidances]
    options = {"trajectories": args.trajectories, "test": args.test}
    write_json(args.out, {"lmsd": lmsd.__version__, **options, "runs": runs, "claims": claims.results})
    return claims.finish()


if __name__ == "__main__":
    sys.exit(main())
