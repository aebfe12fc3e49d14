"""The command line: `lmsd solve | distill | show | compare | validate`, also as `python -m lmsd`.

`distill` and `compare` take a problem, a Python file or module with a function `problem(guidance=...,
**options)`. It returns an object with

    like                    a tensor of the shape, dtype and device of one batch (numpy or torch)
    begin(batch)            makes batch number `batch` current and returns its x_T, noise level sigma_max
    model(x, sigma)         the denoised tensor for the current batch, guidance included

and, where the defaults do not fit, process ("ve"), sigma_min (0.002), sigma_max (80), sigma_end (0), made_for
(a dict for the schedules to say: model, guidance_scale, ...) and seeds (a text that names its noise and
conditions).

Many GPUs: `torchrun --nproc-per-node N -m lmsd distill ...` shares the batches of one run among N processes,
each with a GPU of its own as torch's current one (`problem()` makes its tensors on "cuda"), to the same
schedules. --trajectories and --held-out should hold N batches or more.
"""

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import json
import math
import os
import signal
import sys
from pathlib import Path

import lmsd
from lmsd import gain

PROBLEM_OPTIONS = ("process", "sigma_min", "sigma_max", "sigma_end", "made_for", "seeds")
SOLVERS = ("euler", "dpmpp_2m", "dpmpp_3m", "ipndm_4", "unipc_bh2_3")
INTERRUPTED = 130


def nfe_range(text: str) -> tuple[int, int]:
    """ "5" or "3-8"."""
    first, dash, last = text.partition("-")
    found = (int(first), int(last) if dash else int(first))
    if not 1 <= found[0] <= found[1]:
        raise ValueError(text)
    return found


def assignment(text: str):
    """ "key=value"; the value is JSON, or else the text as it is."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise ValueError(text)
    with contextlib.suppress(json.JSONDecodeError):
        value = json.loads(value)
    return key, value


def load_problem(args):
    """The problem of the command line, and the options of a distillation that follow from it."""
    path, options = args.problem, dict(args.set)
    if path.endswith(".py"):
        file = Path(path).resolve()
        if not file.is_file():
            raise lmsd.Error(f"there is no problem file {path}", lmsd.Status.IO)
        sys.path.insert(0, str(file.parent))
        spec = importlib.util.spec_from_file_location(file.stem, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(path)
    if not callable(getattr(module, "problem", None)):
        raise lmsd.Error(f"{path} defines no function problem(); see lmsd distill --help")
    if args.guidance is not None:
        options["guidance"] = args.guidance
    try:
        inspect.signature(module.problem).bind(**options)
    except TypeError as error:
        raise lmsd.Error(f"problem() of {path} does not take these options: {error}") from None
    problem = module.problem(**options)
    missing = [name for name in ("like", "begin", "model") if not hasattr(problem, name)]
    if missing:
        raise lmsd.Error(
            f"what problem() of {path} returns has no {', '.join(missing)}; see lmsd distill --help"
        )
    config = {name: getattr(problem, name, None) for name in PROBLEM_OPTIONS}
    if args.guidance is not None:
        config["made_for"] = {"guidance_scale": args.guidance, **(config["made_for"] or {})}
    seeds = config["seeds"]
    if seeds is None:
        seeds = " ".join([Path(path).name, *(f"{k}={v}" for k, v in sorted(options.items()))])
    config["seeds"] = str(seeds)
    for name in ("trajectories", "held_out", "teacher_nfe"):
        config[name] = getattr(args, name)
    return problem, config


def print_table(rows) -> None:
    """Rows of texts; the first is the head. The first column is flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())


def plan_line(told: dict) -> str:
    """What a run will take and bring, before its long part."""
    calls, seconds, gain = told["calls_expected"], told["seconds_left"], told["gain_expected"]
    known = 0 < seconds < math.inf  # no speed is known where all of it was read back
    time = f", about {seconds / 60:.1f} minutes" if known else ""
    return (
        f"plan: {calls} calls, {calls * told['batch']} image-calls{time}; about {gain:.1f} times nearer than "
        "the best of the strongest published field, as similar runs were"
    )


def number(value) -> str:
    return "" if value is None else f"{value:.5g}"


def save_figure(figure, path: str) -> None:
    figure.savefig(path, dpi=150)
    print(f"picture: {path}")


def schedule_files(paths) -> list[Path]:
    """Files as they are; of a folder, its schedules nfe*.json."""
    files = []
    for path in map(Path, paths):
        found = sorted(path.glob("nfe*.json")) if path.is_dir() else [path]
        if not found:
            raise lmsd.Error(f"there are no schedules nfe*.json in the folder {path}", lmsd.Status.IO)
        files += found
    return files


def solve(args) -> int:
    if args.list:
        rows = [[s["name"], ", ".join(map(str, s["nfes"][:3]))] for s in lmsd.solvers()]
        print_table([["solver", "NFE it can have"], *rows])
        return 0
    grid = args.grid
    if args.sigmas:
        grid = args.sigmas
    elif args.rho is not None:
        grid = {"kind": "karras", "rho": args.rho}
    elif args.shift is not None:
        grid = {"kind": "flow", "shift": args.shift}
    sigmas = {name: getattr(args, name) for name in ("sigma_min", "sigma_max", "sigma_end", "sigma_start")}
    schedule = lmsd.solve(args.solver, nfe=args.nfe, grid=grid, process=args.process, **sigmas)
    if args.out:
        schedule.save(args.out)
        print(f"{args.out}: {schedule}")
    else:
        print(schedule.to_json(), end="")
    return 0


@contextlib.contextmanager
def launched(args):
    """What torchrun started this process with: `lmsd.distributed.Ranks`, else None. Rank 0 alone prints."""
    if "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield None
        return
    from .distributed import launch

    with contextlib.ExitStack() as stack:
        ranks = stack.enter_context(launch(args.timeout))
        if ranks.rank > 0:
            args.quiet = True
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        yield ranks


@contextlib.contextmanager
def first_interrupt(ranks=None):
    """A list that Ctrl-C puts something into, once: the second one kills.

    With torchrun none does, which hands a rank the signal that the terminal gave it already, and kills after
    half a minute.
    """
    hits = []
    if ranks:
        note = lambda number, _frame: hits.append(number)  # noqa: E731
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield hits
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        return

    def handler(number, _frame):
        hits.append(number)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print("\nstopping after this model call; Ctrl-C again to kill", file=sys.stderr)

    previous = signal.getsignal(signal.SIGINT)
    if previous != signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)
    try:
        yield hits
    finally:
        signal.signal(signal.SIGINT, previous)


def distill(args) -> int:
    with launched(args) as ranks:
        return distil_on(args, ranks)


def distil_on(args, ranks) -> int:
    problem, config = load_problem(args)
    writes = ranks is None or ranks.rank == 0
    config["weight_sums"] = args.sums
    for name in ("order", "difference_step", "iterations", "max_calls", "max_seconds"):
        config[name] = getattr(args, name)
    config["starts"] = [lmsd.Schedule.load(file) for file in args.starts]
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = Path(args.checkpoint or out / "checkpoint.jsonl")
    if checkpoint.exists():
        print(f"going on from {checkpoint}")
    with first_interrupt(ranks) as hits, contextlib.ExitStack() as stack:
        bar = None if args.quiet else stack.enter_context(lmsd.ProgressBar())

        def progress(told):
            if bar:
                bar(told)
                if told["phase"] == "plan":
                    bar.tqdm.write(plan_line(told), file=sys.stderr)
            return bool(hits)

        try:
            distilled = lmsd.distill(
                problem.model,
                problem.begin,
                problem.like,
                nfe=args.nfe,
                progress=progress,
                checkpoint=checkpoint.absolute(),
                ranks=ranks,
                **config,
            )
        except lmsd.Error as error:
            if error.status != lmsd.Status.STOPPED:
                raise
            if writes:
                how = "stopped" if hits else "the limit was reached"
                more = "the same command" + ("" if hits else " with a higher limit")
                print(
                    f"lmsd: {how} before the first result; {more} goes on from {checkpoint}", file=sys.stderr
                )
            return INTERRUPTED if hits else 1
    if not writes:
        return INTERRUPTED if distilled.report["stopped"] == "cancelled" else 0
    paths = distilled.save(out)
    rows = [["schedule", "NFE", "distance", "best handcrafted", "gain", "which"]]
    for path, schedule in zip(paths, distilled.schedules.values(), strict=True):
        made = schedule.made_by
        best = made["handcrafted"][0] if made.get("handcrafted") else {}
        gain = best["distance"] / made["distance"] if best and made.get("distance") else math.nan
        which = f"{best.get('solver', '')}, {best.get('grid', '')}"
        cells = [number(made.get("distance")), number(best.get("distance")), f"{gain:.1f}x", which]
        rows.append([str(path), str(schedule.nfe), *cells])
    print_table(rows)
    report = distilled.report
    calls = f"{report['model_calls']} calls of a batch and {report['teacher_calls']} of the teacher"
    print(f"{calls}, {report['seconds']:.1f} s")
    if report["stopped"] == "cancelled":
        print(f"lmsd: stopped; the same command goes on from {checkpoint}", file=sys.stderr)
        return INTERRUPTED
    if report["stopped"]:
        reached = "--max-calls" if report["stopped"] == "calls" else "--max-seconds"
        print(
            f"lmsd: stopped by {reached}; the same command with more goes on from {checkpoint}",
            file=sys.stderr,
        )
    elif args.max_calls is not None or args.max_seconds is not None:
        print(f"planned within a limit; the same command with a higher one goes on from {checkpoint}")
    else:
        checkpoint.unlink(missing_ok=True)
    return 0


def show(args) -> int:
    schedules = [lmsd.Schedule.load(file) for file in schedule_files(args.files)]
    for schedule in schedules:
        print(schedule)
        for what, about in (("made for", schedule.made_for), ("made by", schedule.made_by)):
            plain = {key: value for key, value in about.items() if key not in ("handcrafted", "compared")}
            if plain:
                print(f"{what}: " + ", ".join(f"{key} {value}" for key, value in plain.items()))
        for best in schedule.made_by.get("handcrafted", [])[:3]:
            print(f"handcrafted: {best['solver']}, {best['grid']}, distance {number(best['distance'])}")
        rows = [["node", "sigma", "scale", "weights, newest prediction first"]]
        for n, weights in enumerate(schedule.weights):
            text = " ".join(f"{weight:9.5f}" for weight in weights)
            rows.append([str(n), number(schedule.sigmas[n]), number(schedule.scales[n]), text])
        rows.append(["end", number(schedule.sigma_end), "", ""])
        width = max(len(row[3]) for row in rows)
        print_table([[*row[:3], row[3].ljust(width)] for row in rows])
        print()
    if args.png:
        from .plots import plot_schedule

        save_figure(plot_schedule(schedules), args.png)
    return 0


def compare(args) -> int:
    with launched(args) as ranks:
        return compare_on(args, ranks)


def compare_on(args, ranks) -> int:
    problem, config = load_problem(args)
    entries = {}  # (row, NFE) -> schedule; the files of one folder make a row
    for file in schedule_files(args.files):
        schedule = lmsd.Schedule.load(file)
        key = (str(file.parent), schedule.nfe)
        entries[(str(file), schedule.nfe) if key in entries else key] = schedule
    nfes = {nfe for _, nfe in entries}
    if args.nfe:
        nfes |= set(range(args.nfe[0], args.nfe[1] + 1))
    if not nfes:
        raise lmsd.Error("nothing to compare: give schedule files, or --nfe")
    process = config["process"] or "ve"
    sigmas = {name: config[name] for name in ("sigma_min", "sigma_max", "sigma_end")}
    above = "_above_zero" if config["sigma_end"] else ""
    possible = {solver["name"]: solver["nfes" + above] for solver in lmsd.solvers()}
    for solver in filter(None, args.solvers.split(",")):
        for grid in ["flow"] if process == "flow" else ["karras", "log"]:
            for nfe in sorted(nfes):
                if nfe in possible.get(solver, [nfe]):  # some take two calls a step
                    schedule = lmsd.solve(solver, nfe=nfe, grid=grid, process=process, **sigmas)
                    entries[f"{solver}, {grid}", nfe] = schedule
    fields = {}
    for name in () if args.field == "none" else gain.fields(args.field):
        shift = (config["made_for"] or {}).get("shift")
        for nfe in sorted(nfes):
            fields[name, nfe] = lmsd.rivals(nfe, name, process=process, shift=shift, **sigmas)
    size = len(problem.like)

    def distances(schedules, batches):
        heeded = {option["name"] for option in lmsd.options()["compare"]} & set(config)
        options = {name: config[name] for name in heeded} | {"held_out": batches * size}
        return lmsd.compare(schedules, problem.model, problem.begin, problem.like, ranks=ranks, **options)

    batches = -(-(config["held_out"] or 64) // size)
    rounds = gain.plan(batches) if fields else [batches]
    best, found = gain.race(fields, distances, rounds, own=list(entries.values()))
    table = {}
    for (name, nfe), distance in zip(entries, found, strict=True):
        table.setdefault(name, {})[nfe] = distance
    which = []
    for (name, nfe), ranked in best.items():
        for schedule, distance in ranked[:1]:
            table.setdefault(gain.NAMES[name], {})[nfe] = distance
            made, count = schedule.made_by, len(fields[name, nfe])
            which.append(f"{gain.NAMES[name]}, {nfe} NFE: {made['solver']}, {made['grid']} (of {count})")
    about = f"; field: {args.field}" if fields else ""
    rows = [[f"mean distance to the teacher{about}", *(f"{nfe} NFE" for nfe in sorted(nfes))]]
    rows += [[name, *(number(row.get(nfe)) for nfe in sorted(nfes))] for name, row in table.items()]
    print_table(rows)
    print("".join(f"{line}\n" for line in which), end="")
    if args.png and (ranks is None or ranks.rank == 0):
        from .plots import plot_distances

        save_figure(plot_distances(table), args.png)
    return 0


def validate(args) -> int:
    refused = 0
    for file in schedule_files(args.files):
        try:
            schedule = lmsd.Schedule.load(file)
        except lmsd.Error as error:
            refused += 1
            print(f"REFUSED  {error}")
        else:
            print(f"OK       {file}: {schedule.process}, {schedule.nfe} NFE")
    return 1 if refused else 0


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="lmsd", description=lmsd.__doc__.splitlines()[0])
    main.add_argument("--version", action="version", version=f"lmsd {lmsd.__version__}")
    commands = main.add_subparsers(dest="command", required=True, metavar="command")

    def command(function, text, **more):
        sub = commands.add_parser(
            function.__name__, help=text, description=text[0].upper() + text[1:] + ".", **more
        )
        sub.set_defaults(run=function)
        return sub

    raw = {"epilog": __doc__.split("\n\n", 1)[1], "formatter_class": argparse.RawDescriptionHelpFormatter}

    p = command(solve, "write the schedule of a published solver")
    p.add_argument("solver", nargs="?", default="dpmpp_2m", help="its name, see --list (default %(default)s)")
    p.add_argument("--list", action="store_true", help="list the solvers")
    p.add_argument("--nfe", type=int, default=8, help="number of model calls (default %(default)s)")
    grid = p.add_mutually_exclusive_group()
    grid.add_argument(
        "--grid", choices=["karras", "log", "linear", "flow"], help="how noise levels are spread"
    )
    grid.add_argument("--rho", type=float, help="the karras grid with this rho (7 is the default grid)")
    grid.add_argument("--shift", type=float, help="the flow grid with this time shift")
    grid.add_argument("--sigmas", type=float, nargs="+", help="the noise levels themselves, nfe + 1 of them")
    p.add_argument(
        "--process", choices=["ve", "flow"], default="ve", help="how noise is added (default %(default)s)"
    )
    p.add_argument("--sigma-min", type=float, help="last noise level before 0 (default 0.002)")
    p.add_argument("--sigma-max", type=float, help="first noise level (default 80, flow 1)")
    p.add_argument("--sigma-end", type=float, help="noise level of the result (default 0)")
    p.add_argument("--sigma-start", type=float, help="noise level of the x_T to come (default sigma-max)")
    p.add_argument("--out", help="the file to write (default: print it)")

    def problem_options(p, trajectories, held_out, teacher_nfe):
        p.add_argument(
            "--problem", required=True, help="file.py or module with a function problem(), see below"
        )
        p.add_argument("--guidance", type=float, help="guidance scale, handed to problem()")
        p.add_argument(
            "--set",
            type=assignment,
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="another option of problem()",
        )
        p.add_argument("--trajectories", type=int, help=trajectories)
        p.add_argument("--held-out", type=int, help=held_out)
        p.add_argument("--teacher-nfe", type=int, help=f"model calls of the teacher (default {teacher_nfe})")
        p.add_argument(
            "--timeout",
            type=float,
            default=1800,
            help="with torchrun, seconds that ranks wait for one another (default %(default)s)",
        )

    p = command(distill, "fit schedules to a model, by forward calls only", **raw)
    problem_options(
        p,
        "fresh trajectories to fit to, for each NFE (default 84)",
        "held-out trajectories that decide what is kept (default 24)",
        "as many as the fit needs, measured",
    )
    p.add_argument(
        "--nfe",
        type=nfe_range,
        default=(5, 5),
        help="model calls, such as 5, or 3-8 for a family (default 5)",
    )
    p.add_argument("--out", required=True, help="folder for nfe<NN>.json and report.json")
    p.add_argument(
        "--sums", choices=["free", "affine"], help="must the weights of a node sum to 1? (default free)"
    )
    p.add_argument("--order", type=int, help="most weights a node may have (default: all history)")
    p.add_argument("--difference-step", type=float, help="forward difference of the fit (default 0.02)")
    p.add_argument("--iterations", type=int, help="most linearisations for each NFE (default 40)")
    p.add_argument(
        "--starts",
        nargs="+",
        default=[],
        metavar="FILE",
        help="schedules that fits may start from beside the published ones",
    )
    p.add_argument(
        "--max-calls",
        type=int,
        help="plan for so many batch calls, all included, those of the teacher and of former runs too",
    )
    p.add_argument("--max-seconds", type=float, help="plan for so many seconds, those of former runs too")
    p.add_argument(
        "--checkpoint",
        help="file to resume from (default <out>/checkpoint.jsonl; removed when done without a limit)",
    )
    p.add_argument("--quiet", action="store_true", help="no progress bar, no plan")

    p = command(show, "print schedules")
    p.add_argument("files", nargs="+", help="schedule files, or folders of them")
    p.add_argument("--png", help="a picture to write (needs matplotlib)")

    p = command(
        compare, "measure schedules and published solvers on trajectories that no distillation sees", **raw
    )
    p.add_argument("files", nargs="*", help="schedule files, or folders of them")
    problem_options(p, "not used here", "trajectories to measure on (default 64)", "50")
    p.add_argument(
        "--nfe", type=nfe_range, help="NFEs of the published solvers besides those of the files, such as 3-8"
    )
    p.add_argument("--solvers", default=",".join(SOLVERS), help="published solvers (default %(default)s)")
    p.add_argument(
        "--field",
        choices=[*gain.NAMES, "none"],
        default="published",
        help="a field of published solvers, of which the best is told: as hosts have them (some 80 at each "
        "NFE), or the strongest too (some 1100: tuned grids, starts below, analytical first step), "
        "by successive halving (default %(default)s)",
    )
    p.add_argument("--png", help="a picture to write (needs matplotlib)")

    p = command(validate, "check schedule files; exit code 1 if any is refused")
    p.add_argument("files", nargs="+", help="schedule files, or folders of them")
    return main


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        return args.run(args)
    except lmsd.Error as error:
        print(f"lmsd: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
