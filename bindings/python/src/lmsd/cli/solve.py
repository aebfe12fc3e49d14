"""`lmsd solve`: the schedule of a published solver."""

import lmsd

from . import library_options
from .terminal import print_table


def run(args) -> int:
    if args.list:
        rows = [["solver", "order", "what it is"]]
        rows += [[s["name"], str(s["order"]), f"{s['about']} (arXiv {s['arxiv']})"] for s in lmsd.solvers()]
        width = max(len(row[2]) for row in rows)
        print_table([[*row[:2], row[2].ljust(width)] for row in rows])
        return 0
    options = library_options.given(args, "solve")
    if args.sigmas:
        options["grid"] = {"kind": "list", "sigmas": args.sigmas}
    elif args.rho is not None:
        options["grid"] = {"kind": "karras", "rho": args.rho}
    elif args.shift is not None:
        options["grid"] = {"kind": "flow", "shift": args.shift}
    schedule = lmsd.solve(**options)
    if args.out:
        schedule.save(args.out)
        print(f"{args.out}: {schedule}")
    else:
        print(schedule.to_json(), end="")
    return 0
