"""Distills few-step samplers for the digits network, measures them against the fields of published solvers
(as published, and the strongest: see lmsd.rivals), and writes schedules, pictures and a page to look at.

    python examples/digits/demo.py --out out/demo

A few minutes on two cores. Ctrl-C keeps what was distilled so far, writes what it can, and exits with 130.
"""

import argparse
import functools
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

# the matrices are small: BLAS threads cost more than they save, above all on a busy machine
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import lmsd
import report
from common import (
    FIELDS,
    INTERRUPTED,
    RANKING,
    Frechet,
    calls_needed,
    contest,
    distilled_for_show,
    end_points,
    field,
    finished,
    measure,
    teacher,
    which,
)
from lmsd._interrupt import first_interrupt
from lmsd.cli.terminal import note, print_table
from lmsd.cli.values import nfe_range
from problem import problem
from tqdm import tqdm

FEW_SOLVERS = ("euler", "dpmpp_2m", "dpmpp_3m", "ipndm_2", "deis_2", "unipc_bh2_3")
MEASURED = 64  # test trajectories in a batch


class Measured(NamedTuple):
    """Distances at one NFE over the test trajectories."""

    fields: dict[
        str, list[tuple[lmsd.Schedule, float]]
    ]  # "published": each solver on its best grid; best first
    distilled: float | None


def distill(args, hits):
    """The family of schedules, or None; an interrupt ends it with what there is."""
    few = problem(args.guidance, size=4, seed=args.seed)
    options = {"iterations": 10} if args.quick else {}
    return distilled_for_show(few, hits, nfe=args.nfe, trajectories=args.trajectories, **options)


def measure_one(guidance, seed, nfe, own, test, solvers):
    """Measured at one NFE; `own` is the distilled schedule or None. Runs in a process of its own."""
    make = functools.partial(problem, guidance, seed=seed)
    digits, groups = make(MEASURED), {}
    for schedule in field(digits, nfe, "published", solvers):
        groups.setdefault(schedule.made_by["solver"], []).append(schedule)
    best = contest(make, groups, digits, test, RANKING[1:], finalists=1).values()
    published = sorted((pair for pairs in best for pair in pairs), key=lambda pair: pair[1])
    everything = {"strongest": field(digits, nfe, "strongest", solvers)}
    strongest = contest(make, everything, digits, test)["strongest"] + published[:1]
    strongest.sort(key=lambda pair: pair[1])
    distilled = measure(digits, [own], test)[0] if own else None
    return Measured({"published": published, "strongest": strongest}, distilled)


def measure_all(args, schedules, test, solvers, nfes, hits):
    """NFE -> Measured. An interrupt meanwhile ends it after the NFEs in work."""
    before = bool(hits)
    ignore = functools.partial(signal.signal, signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for all
    spawn = multiprocessing.get_context("spawn")  # a fork would be without the library's threads
    with ProcessPoolExecutor(os.cpu_count(), spawn, initializer=ignore) as pool:
        work = {}
        for nfe in sorted(nfes, reverse=True):  # the longest first
            task = pool.submit(measure_one, args.guidance, args.seed, nfe, schedules.get(nfe), test, solvers)
            work[task] = nfe
        for _ in tqdm(
            as_completed(work), total=len(work), desc="published solvers", unit="NFE", disable=None
        ):
            if hits and not before:
                break
        found = {nfe: task.result() for task, nfe in work.items() if not task.cancel()}
    return dict(sorted(found.items()))


def compared(digits, schedules, measured, test):
    """What the table and the pictures show, a dict for each distilled NFE; and the teacher's end points."""
    frechet = Frechet()
    goal = teacher(digits)
    wanted, labels = end_points(digits, goal, test)
    best = {name: {nfe: at.fields[name][0][1] for nfe, at in measured.items()} for name in FIELDS}
    rows = []
    for nfe, at in measured.items():
        if at.distilled is None:
            continue
        own, _ = end_points(digits, schedules[nfe], test)
        row = {"nfe": nfe, "distance": at.distilled, "frechet": frechet(own), "images": own, "fields": {}}
        for name in FIELDS:
            winner, distance = at.fields[name][0]
            images, _ = end_points(digits, winner, test)
            row["fields"][name] = {
                "which": which(winner),
                "distance": distance,
                "ratio": distance / at.distilled,
                "calls": calls_needed(best[name], at.distilled),
                "frechet": frechet(images),
                "images": images,
            }
        rows.append(row)
    return rows, {"calls": goal.nfe, "images": wanted, "labels": labels, "frechet": frechet(wanted)}


def print_results(rows, goal, test):
    """The table on the terminal."""
    print(f"\nMean distance to the teacher on {test} test trajectories, and Frechet distance to the training")
    print(f"images, of which the teacher has {goal['frechet']:.3f}. Lower is better for both.\n")
    print_table(report.cells(rows))


def arguments():
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder (default %(default)s)")
    parser.add_argument("--nfe", type=nfe_range, help="model calls, such as 5 or 3-8 (default 3-8)")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of noise and labels (default %(default)s)")
    parser.add_argument("--trajectories", type=int, default=84, help="to fit to (default %(default)s)")
    parser.add_argument("--test", type=int, help=f"test trajectories, in batches of {MEASURED} (default 256)")
    parser.add_argument("--quick", action="store_true", help="less of everything: 3 to 5 NFE, few solvers")
    args = parser.parse_args()
    args.nfe = args.nfe or ((3, 5) if args.quick else (3, 8))
    args.test = -(-(args.test or (64 if args.quick else 256)) // MEASURED) * MEASURED
    return args


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    digits = problem(args.guidance, MEASURED, args.seed)
    print(f"digits network, guidance {args.guidance:g}: distilling {args.nfe[0]} to {args.nfe[1]} NFE")
    with first_interrupt(note) as hits:
        distilled = distill(args, hits)
        if distilled is None:
            return INTERRUPTED
        distilled.save(args.out)
        schedules = distilled.schedules
        nfes, solvers, test = list(schedules), None, args.test
        if args.quick or hits:
            solvers, test = FEW_SOLVERS, min(test, 64)
        if not hits:  # how many calls would published solvers need?
            nfes += range(max(nfes) + 2 - max(nfes) % 2, 2 * max(nfes) + 1, 2)
        measured = measure_all(args, schedules, test, solvers, nfes, hits)
        rows, goal = compared(digits, schedules, measured, test)
        print_results(rows, goal, test)
        how = {
            "guidance": args.guidance,
            "test": test,
            "ranking": RANKING,
            "solvers": sum(solver["competes"] for solver in lmsd.solvers())
            if solvers is None
            else len(solvers),
            "counts": {
                name: [len(field(digits, row["nfe"], name, solvers)) for row in rows] for name in FIELDS
            },
            "interrupted": bool(hits),
            "report": distilled.report,
        }
        report.write(args.out, schedules, measured, rows, goal, how)
    return finished(started, args.out, hits)


if __name__ == "__main__":
    sys.exit(main())
