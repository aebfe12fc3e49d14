"""Every peer in one run on the same test trajectories; writes docs/results.md.

    python -m benches.peers
    python -m benches.peers --quick
    python -m benches.peers --networks "emoji pixel" --nfe 5 --seeds 1 --jobs 1

Cells (network, peer, NFE, seed) that benches/peers/cells has with the same settings are kept, so that a run
that was stopped goes on, and further networks, NFEs and seeds can be added.
"""

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from . import report, run
from .networks import NETWORKS, ROOT
from .table import PEERS

NFES, SEEDS, LONG = (3, 4, 5, 6, 8), 3, (10, 12, 16)  # LONG: of the fields, to find where they are as good
QUICK_NFES = (4,)
PAGE = ROOT / "docs" / "results.md"


def first_things_first(cell):
    """5 evaluations and the first seed first, so that a run that is stopped has something to say."""
    _, nfe, seed = cell
    return (seed, nfe in LONG, abs(nfe - 5) if nfe < 100 else 0)


def numbers(text):
    return tuple(int(part) for part in text.split(","))


def arguments():
    parser = argparse.ArgumentParser(prog="python -m benches.peers", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--networks", default="digits,photos", help="of " + ", ".join(NETWORKS) + " (default %(default)s)"
    )
    parser.add_argument("--nfe", type=numbers, help="evaluations, such as 4,5 (default 3,4,5,6,8)")
    parser.add_argument("--seeds", type=int, help="of the noise that fits see (default 3)")
    parser.add_argument("--peers", default=",".join(PEERS), help="(default all: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default %(default)s)")
    parser.add_argument(
        "--quick", action="store_true", help="tiny settings: whether everything runs, not how well"
    )
    parser.add_argument("--no-long", action="store_true", help="the fields at the same evaluations only")
    parser.add_argument("--report", action="store_true", help="only the page, from the cells that there are")
    parser.add_argument("--out", type=Path, help="folder of the cells (default benches/peers/cells)")
    parser.add_argument(
        "--page", type=Path, help="(default docs/results.md; with --quick in the folder of the figures)"
    )
    args = parser.parse_args()
    args.out = args.out or (ROOT / "out" / "peers-quick" if args.quick else run.CELLS)
    args.page = args.page or (args.out / "results.md" if args.quick else PAGE)
    args.nfe = args.nfe or (QUICK_NFES if args.quick else NFES)
    args.seeds = args.seeds or (1 if args.quick else SEEDS)
    return args


def fill(name, args):
    """Makes all cells of one network, in processes that have no other network's modules."""
    long = () if args.quick or args.no_long else LONG
    wanted = list(run.cells(name, args.nfe, range(args.seeds), args.peers.split(","), long))
    wanted.sort(key=first_things_first)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, spawn) as pool:
        work = {pool.submit(run.cell, name, *cell, args.quick, args.out): cell for cell in wanted}
        for task in as_completed(work):
            peer, nfe, seed = work[task]
            found = task.result()
            distance, cost = found["metrics"]["distance"], found["cost"]["image_calls"]
            line = f"{name}  {nfe:3d}  {peer:12s}  seed {seed}  {distance:.4f}  {cost:8d}  {found['words']}"
            print(line, flush=True)


def main():
    args, began = arguments(), time.perf_counter()
    if not args.report:
        for name in args.networks.split(","):
            fill(name, args)
    report.write(args.out, args.page)
    print(f"{args.page}, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
