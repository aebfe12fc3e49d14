"""Distils few-step samplers for the digits network, measures them against every handcrafted solver, and
writes schedules, pictures and a page to look at.

    python examples/digits/demo.py --out out/demo

A few minutes on two cores. Ctrl-C keeps what was distilled so far, writes what it can, and exits with 130.
"""

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

# the matrices are small: BLAS threads cost more than they save, above all on a busy machine
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import lmsd
import numpy as np
import report
from common import (
    Frechet,
    Handcrafted,
    calls_needed,
    config,
    end_points,
    handcrafted,
    measure,
    print_table,
    ranked,
    teacher,
)
from lmsd.cli import first_interrupt, nfe_range
from problem import problem
from tqdm import tqdm

RANKING = 64  # trajectories that choose the grid of each handcrafted solver
FEW_SOLVERS = ("euler", "dpmpp_2m", "dpmpp_3m", "ipndm_2", "deis_2", "unipc_bh2_3")
INTERRUPTED = 130


class Measured(NamedTuple):
    """Distances at one NFE over the test trajectories."""

    handcrafted: list[tuple[Handcrafted, float]]  # each solver on its best grid, best first
    distilled: float | None


def distil(digits, args, hits):
    """The family of schedules; an interrupt ends it with what there is."""
    options = {"nfe": args.nfe, "trajectories": args.trajectories, **config(digits)}
    if args.quick:
        options["iterations"] = 10
    with lmsd.ProgressBar() if sys.stderr.isatty() else contextlib.nullcontext() as bar:

        def progress(told):
            if bar:
                bar(told)
            return bool(hits)

        return lmsd.distill(digits.model, digits.begin, digits.like, progress=progress, **options)


def measure_all(digits, schedules, test, solvers, nfes, hits):
    """NFE -> Measured. An interrupt meanwhile ends it after the NFE in work."""
    found, before = {}, len(hits)
    for nfe in tqdm(nfes, desc="handcrafted solvers on all grids", unit="NFE", disable=None):
        best = {}
        for candidate in ranked(digits, handcrafted(digits, nfe, solvers), RANKING):
            best.setdefault(candidate.solver, candidate)
        field = list(best.values())
        own = [schedules[nfe]] if nfe in schedules else []
        distances = measure(digits, [c.schedule for c in field] + own, test)
        order = [i for i in np.argsort(distances[: len(field)]) if np.isfinite(distances[i])]
        found[nfe] = Measured([(field[i], distances[i]) for i in order], distances[-1] if own else None)
        if len(hits) > before:
            break
    return found


def compared(digits, schedules, measured, test):
    """What the table and the pictures show, a dict for each distilled NFE; and the teacher's end points."""
    frechet = Frechet()
    goal = teacher(digits)
    wanted, labels = end_points(digits, goal, test)
    best = {nfe: at.handcrafted[0][1] for nfe, at in measured.items()}
    rows = []
    for nfe, at in measured.items():
        if at.distilled is None:
            continue
        (winner, distance), *_ = at.handcrafted
        other, _ = end_points(digits, winner.schedule, test)
        own, _ = end_points(digits, schedules[nfe], test)
        rows.append(
            {
                "nfe": nfe,
                "solver": winner.solver,
                "setting": winner.setting,
                "handcrafted": distance,
                "distilled": at.distilled,
                "ratio": distance / at.distilled,
                "calls": calls_needed(best, at.distilled),
                "frechet_handcrafted": frechet(other),
                "frechet_distilled": frechet(own),
                "handcrafted_images": other,
                "distilled_images": own,
            }
        )
    return rows, {"calls": goal.nfe, "images": wanted, "labels": labels, "frechet": frechet(wanted)}


def print_results(rows, goal, test):
    """The table on the terminal."""
    print(f"\nMean distance to the teacher on {test} test trajectories, and Frechet distance to the training")
    print(f"images, of which the teacher has {goal['frechet']:.3f}. Lower is better for both.\n")
    head = ["NFE", "distilled", "best handcrafted", "ratio", "as good as"]
    head += ["Frechet distilled", "handcrafted", "best handcrafted solver"]
    cells = []
    for row in rows:
        calls = "more" if row["calls"] is None else f"{row['calls']:.1f}"
        cells.append(
            [
                str(row["nfe"]),
                f"{row['distilled']:.4f}",
                f"{row['handcrafted']:.4f}",
                f"{row['ratio']:.1f}x",
                f"{calls} calls",
                f"{row['frechet_distilled']:.3f}",
                f"{row['frechet_handcrafted']:.3f}",
                f"{row['solver']}, {row['setting']}",
            ]
        )
    print_table(head, cells)


def arguments():
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder (default %(default)s)")
    parser.add_argument("--nfe", type=nfe_range, help="model calls, such as 5 or 3-8 (default 3-8)")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of noise and labels (default %(default)s)")
    parser.add_argument("--trajectories", type=int, default=128, help="to fit to (default %(default)s)")
    parser.add_argument("--test", type=int, help="test trajectories, in batches of 64 (default 256)")
    parser.add_argument("--quick", action="store_true", help="less of everything: 3 to 5 NFE, few solvers")
    args = parser.parse_args()
    args.nfe = args.nfe or ((3, 5) if args.quick else (3, 8))
    args.test = -(-(args.test or (64 if args.quick else 256)) // 64) * 64
    return args


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    digits = problem(args.guidance, seed=args.seed)
    print(f"digits network, guidance {args.guidance:g}: distilling {args.nfe[0]} to {args.nfe[1]} NFE")
    with first_interrupt() as hits:
        try:
            distilled = distil(digits, args, hits)
        except lmsd.Error as error:
            if error.status != lmsd.Status.STOPPED:
                raise
            print("stopped before the first result: nothing to write", file=sys.stderr)
            return INTERRUPTED
        distilled.save(args.out)
        schedules = distilled.schedules
        nfes, solvers, test = list(schedules), None, args.test
        if args.quick or hits:
            solvers, test = FEW_SOLVERS, min(test, 64)
        if not hits:  # how many calls would handcrafted solvers need?
            nfes += range(max(nfes) + 2 - max(nfes) % 2, 2 * max(nfes) + 1, 2)
        measured = measure_all(digits, schedules, test, solvers, nfes, hits)
        rows, goal = compared(digits, schedules, measured, test)
        print_results(rows, goal, test)
        how = {
            "guidance": args.guidance,
            "test": test,
            "ranking": RANKING,
            "solvers": len(lmsd.solvers()) if solvers is None else len(solvers),
            "interrupted": bool(hits),
            "report": distilled.report,
        }
        report.write(args.out, schedules, measured, rows, goal, how)
    minutes, seconds = divmod(round(time.perf_counter() - started), 60)
    print(f"\n{minutes} min {seconds} s. Open {args.out / 'report.html'}")
    if hits:
        print(f"interrupted: {args.out} has what was ready", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
