"""`lmsd distill`: schedules fitted to a model."""

import contextlib
import math
import signal
import sys
from pathlib import Path

import lmsd
from lmsd._interrupt import first_interrupt

from . import INTERRUPTED, model
from .files import Results
from .ranks import launched
from .terminal import note, number, print_table


def plan_line(told: dict) -> str:
    """What a run will take and bring, before its long part."""
    calls, seconds, gain = told["calls_expected"], told["seconds_left"], told["gain_expected"]
    known = 0 < seconds < math.inf  # no speed is known where all of it was read back
    time = f", about {seconds / 60:.1f} minutes" if known else ""
    return (
        f"plan: {calls} calls, {calls * told['batch']} image-calls{time}; about {gain:.1f} times nearer than "
        "the best of the strongest published field, as similar runs were"
    )


def run(args) -> int:
    with launched(args) as ranks:
        return distill(args, ranks)


def distill(args, ranks) -> int:
    task = model.load(args, "distill")
    results = Results(args.out, args.nfe is not None and args.nfe[0] < args.nfe[1])
    results.make_folder()
    given = task.config.pop("checkpoint", results.checkpoint)
    if not str(given):
        raise lmsd.Error("--checkpoint is an empty path; name a file, or leave it out")
    checkpoint = Path(given)
    if checkpoint.exists():
        print(f"going on from {checkpoint}")
    writes = ranks is None or ranks.rank == 0
    # torchrun hands a rank the signal that the terminal gave it already, and kills after half a minute
    rule = {"again": None, "signals": (signal.SIGINT, signal.SIGTERM)} if ranks else {"again": signal.SIG_DFL}
    with first_interrupt(note, **rule) as interrupt:
        try:
            distilled = fitted(task, args, interrupt, checkpoint, ranks)
        except lmsd.Error as error:
            if error.status != lmsd.Status.STOPPED:
                raise
            if writes:
                how = "stopped" if interrupt else "the limit was reached"
                more = "the same command" + ("" if interrupt else " with a higher limit")
                note(f"lmsd: {how} before the first result; {more} goes on from {checkpoint}")
            return INTERRUPTED if interrupt else 1
    stopped = distilled.report["stopped"]
    if writes:
        print_results(results.save(distilled), distilled)
        if stopped and distilled.report["checkpoint_error"]:
            note(f"lmsd: {distilled.report['checkpoint_error']}; what it lacks is measured again")
        finish(stopped, task.config, checkpoint)
    return INTERRUPTED if stopped == "cancelled" else 0


def fitted(task, args, interrupt, checkpoint: Path, ranks) -> lmsd.Distilled:
    """The long part, with a bar and a plan."""
    bar = None
    with contextlib.ExitStack() as stack:

        def progress(told):
            nonlocal bar
            if not args.quiet:
                bar = bar or stack.enter_context(lmsd.ProgressBar())  # not before there is something to tell
                bar(told)
                if told["phase"] == "plan":
                    bar.tqdm.write(plan_line(told), file=sys.stderr)
            return interrupt

        return lmsd.distill(
            task.problem.model,
            task.problem.begin,
            task.problem.like,
            progress=progress,
            checkpoint=checkpoint.absolute(),
            ranks=ranks,
            features=getattr(task.problem, "features", None),
            **task.config,
        )


def print_results(paths: list[Path], distilled: lmsd.Distilled) -> None:
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


def finish(stopped: str | None, config: dict, checkpoint: Path) -> None:
    """What is to be said of the checkpoint, which goes when the run is done without a limit."""
    if stopped == "cancelled":
        note(f"lmsd: stopped; the same command goes on from {checkpoint}")
    elif stopped:
        reached = "--max-calls" if stopped == "calls" else "--max-seconds"
        note(f"lmsd: stopped by {reached}; the same command with more goes on from {checkpoint}")
    elif "max_calls" in config or "max_seconds" in config:
        print(f"planned within a limit; the same command with a higher one goes on from {checkpoint}")
    else:
        checkpoint.unlink(missing_ok=True)
