"""How close distilled schedules come to the teacher, against the fields of published solvers.

    python benches/quality.py --out out/quality.json

For guidance 1 and 3 one run distills the family of 3 to 10 NFE for the digits network. Everything is measured
on 1000 trajectories that no distillation saw. At each NFE the distilled schedule has to beat the best solver
as published, and the strongest that tuning makes of all of them (`lmsd.rivals`): all are ranked on 8 other
trajectories, the best quarter on 64, and the best of the first eight on the test trajectories counts, so the
choice favours the field. Exits with 1 where a figure falls short of its bar.
"""

import argparse
import functools
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
    FIELDS,
    Claims,
    Frechet,
    about,
    calls_needed,
    contest,
    end_points,
    field,
    measure,
    teacher,
    which,
    write_json,
)
from lmsd.cli.terminal import print_table
from problem import problem

FAMILY = range(3, 11)
MEASURED = range(3, 17)  # NFEs of the fields
# field: NFE: its best / distilled
RATIOS = {"published": {3: 2, 4: 3, 5: 3.5, 6: 4.5, 8: 6}, "strongest": {3: 1, 4: 1, 5: 1, 6: 1, 8: 1}}
CALLS = {1.0: 1.75, 3.0: 2.0}  # guidance: n distilled calls do what so many times n do as published


def best_of_fields(guidance, test, count):
    """field -> NFE -> [(schedule, distance over `count` test trajectories)], best first."""
    make = functools.partial(problem, guidance)
    groups = {(name, nfe): field(test, nfe, name) for nfe in MEASURED for name in FIELDS}
    found = contest(make, groups, test, count)
    return {name: {nfe: found[name, nfe] for nfe in MEASURED} for name in FIELDS}


def run(guidance, trajectories, count):
    """One guidance scale: distils, and measures on `count` test trajectories."""
    started = time.perf_counter()
    digits = problem(guidance, size=4)
    options = {"nfe": (FAMILY[0], FAMILY[-1]), "trajectories": trajectories, **about(digits)}
    distilled = lmsd.distill(digits.model, digits.begin, digits.like, progress=False, **options)
    test = problem(guidance, size=125)
    schedules = distilled.schedules
    own = dict(zip(schedules, measure(test, list(schedules.values()), count), strict=True))
    frechet = Frechet()
    rows = []
    found = best_of_fields(guidance, test, count)
    best = {name: {nfe: ranked[0][1] for nfe, ranked in line.items()} for name, line in found.items()}
    for nfe in MEASURED:
        row = {"nfe": nfe}
        if nfe in own:
            row["distilled"] = own[nfe]
            row["frechet_distilled"] = frechet(end_points(test, schedules[nfe], count)[0])
        for name in FIELDS:
            winner, distance = found[name][nfe][0]
            row[name] = {"distance": distance, "which": which(winner)}
            row[name]["finalists"] = [[which(schedule), d] for schedule, d in found[name][nfe]]
            row[name]["frechet"] = frechet(end_points(test, winner, count)[0])
            if nfe in own:
                row[name]["ratio"] = distance / own[nfe]
                row[name]["calls"] = calls_needed(best[name], own[nfe])
        rows.append(row)
    made = distilled.report
    return {
        "guidance": guidance,
        "rows": rows,
        "frechet_teacher": frechet(end_points(test, teacher(test), count)[0]),
        "model_calls": made["model_calls"],
        "distillation_seconds": made["seconds"],
        "seconds": time.perf_counter() - started,
    }


def show(result, count, claims):
    """Prints the table of one guidance scale, and holds the figures against their bars."""
    guidance, rows = result["guidance"], result["rows"]
    calls, seconds = result["model_calls"], result["distillation_seconds"]
    print(f"\nguidance {guidance:g}: distilled in {seconds:.0f} s by {calls} calls of a batch of 64")
    print(f"mean distance to the teacher on {count} test trajectories; Frechet distance to the training")
    print(f"images, of which the teacher has {result['frechet_teacher']:.3f}; lower is better")
    head = ["NFE", "distilled", "field", "its best", "ratio", "as good as", "Frechet distilled", "field"]
    cells = []
    for row in rows:
        for name in FIELDS:
            best = row[name]
            calls = best.get("calls") or "more"
            figures = [row.get("distilled", ""), FIELDS[name], best["distance"], best.get("ratio", "")]
            figures += [
                calls if "distilled" in row else "",
                row.get("frechet_distilled", ""),
                best["frechet"],
            ]
            values = [value if isinstance(value, str) else f"{value:.4f}" for value in figures]
            cells.append([str(row["nfe"]), *values, best["which"]])
    print_table([[*head, "best solver of the field"], *cells])

    at = f"guidance {guidance:g}, "
    own = {row["nfe"]: row["distilled"] for row in rows if "distilled" in row}
    best = {name: {row["nfe"]: row[name]["distance"] for row in rows} for name in FIELDS}
    for name, bars in RATIOS.items():
        for nfe, bar in bars.items():
            claims.check(f"{at}{nfe} NFE: {FIELDS[name]} / distilled", best[name][nfe] / own[nfe], ">=", bar)
    for nfe in range(4, 9):
        more = int(CALLS[guidance] * nfe)
        claims.check(
            f"{at}distilled at {nfe}, at most best as published at {more}",
            own[nfe],
            "<=",
            best["published"][more],
        )
    for nfe in FAMILY[1:]:
        claims.check(f"{at}distilled at {nfe}, less than at {nfe - 1}", own[nfe], "<", own[nfe - 1])
    for name in FIELDS:
        for nfe in FAMILY:
            claims.check(f"{at}{nfe} NFE: distilled, at most {FIELDS[name]}", own[nfe], "<=", best[name][nfe])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="out/quality.json", help="file (default %(default)s)")
    parser.add_argument("--trajectories", type=int, default=200, help="to fit to (default %(default)s)")
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
