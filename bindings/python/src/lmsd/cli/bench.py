"""`lmsd bench`: distilled schedules against other schedulers in a diffusers pipeline, on unseen prompts."""

import hashlib
import signal
from pathlib import Path

import numpy as np

import lmsd
from lmsd._files import replacing
from lmsd._interrupt import first_interrupt

from . import INTERRUPTED, library_options, pictures, problem_file
from .arguments import DECIDED
from .terminal import note, print_table

PURPOSES = {"teacher": "teacher", "fits": "fits, at most", "choice": "choice of options", "test": "test"}


def run(args) -> int:
    try:
        import diffusers  # noqa: F401
        import PIL  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise lmsd.Error(
            f"lmsd bench needs torch and diffusers: pip install torch diffusers ({error})"
        ) from None
    from .._bench import loading, prompts, protocol
    from .._bench.store import Store

    nfes = sorted(set(args.nfe))
    if 2 * nfes[-1] > args.teacher_steps:
        raise lmsd.Error(
            f"--teacher-steps is {args.teacher_steps}; twice the most calls, {2 * nfes[-1]}, are needed"
        )
    lines = prompts.read(args.prompts)
    split = prompts.split(lines, args.test, args.rank, args.seed)
    classes = problem_file.imported(args.pipeline, "file") if args.pipeline else None
    pipe = loading.load(args.diffusers, dtype=args.dtype, device=device(args.device), classes=classes)
    plan = protocol.Plan(
        nfes=nfes,
        guidance=args.guidance,
        teacher_steps=args.teacher_steps,
        batch=args.batch,
        seed=args.seed,
        image_calls=args.image_calls,
        rivals=args.field,
        features=args.features,
        kept=min(args.sheet, args.test),
        quiet=args.quiet,
        arguments={name: getattr(args, name) for name in ("height", "width") if getattr(args, name)},
        fit={k: v for k, v in library_options.given(args, "distill").items() if k not in DECIDED},
    )
    store = Store(args.out, described(args, pipe, lines, plan))
    with first_interrupt(note, again=signal.SIG_DFL) as interrupt:
        bench = protocol.Run(
            pipe, split, store, plan, lambda: bool(interrupt), note if not args.quiet else quiet
        )
        return measured(bench, args, split)


def measured(bench, args, split) -> int:
    """The run, and what is said of it, however far it came."""
    from .._bench.sampling import Stopped

    code = 0
    try:
        bench.check()
        tell_plan(bench, split, args)
        bench.run()
    except Stopped:
        code = INTERRUPTED
    bench.store.put()
    finish(bench, args)
    if code:
        note(f"lmsd: stopped; the same command goes on from {args.out}")
    return code


def quiet(_text: str) -> None:
    pass


def device(asked) -> str:
    """As torch names it."""
    if asked is None:
        return "cpu"
    if asked.kind == "directml":
        raise lmsd.Error("--device is directml; a pipeline runs on cpu or cuda")
    return asked.kind if asked.index is None else f"{asked.kind}:{asked.index}"


def described(args, pipe, lines: list[str], plan) -> dict:
    """The settings that two runs in one folder must share."""
    return {
        "model": str(Path(args.diffusers).resolve()),
        "pipeline": type(pipe).__name__,
        "scheduler": type(pipe.scheduler).__name__,
        "prompts": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "guidance": args.guidance,
        "teacher_steps": args.teacher_steps,
        "test": args.test,
        "rank": args.rank,
        "seed": args.seed,
        "batch": args.batch,
        "image_calls": args.image_calls,
        "field": args.field,
        "features": args.features,
        "dtype": args.dtype,
        "size": plan.arguments,
        "fit": plan.fit,
    }


def tell_plan(bench, split, args) -> None:
    """Split, image-calls and time, before the long part."""
    print(
        f"{len(split.test)} prompts to measure on, {len(split.rank)} to choose options of other schedulers"
        f" by, {len(split.fit)} to fit to: no prompt is in two of them (seed {args.seed})"
    )
    if args.quiet:
        return
    speed, expected = bench.speed(), bench.expected()
    parts = ", ".join(f"{PURPOSES[name]} {count}" for name, count in expected.items())
    total = sum(expected.values())
    note(f"plan: {total} image-calls ({parts}), about {total * speed / 60:.1f} minutes at {speed:.3g} s each")


def finish(bench, args) -> None:
    """The table, the sheet, and what is published of the same protocol."""
    from .._bench import published, report

    store = bench.store
    if store.facts["rows"]:
        print_table(report.table(store))
        print("\n".join(report.sentences(store, bench.features_are)))
        page = report.sheet(store, bench.plan.kept, bench.plan.nfes)
        if page is not None:
            path = Path(args.out) / "sheet.png"
            with pictures.writing(path), replacing(path) as stream:
                stream.write(pictures.png(np.ascontiguousarray(page)))
            print(f"pictures: {path}")
    size = (args.height, args.width)
    for line in published.lines(bench.pipe, args.guidance, args.teacher_steps, size):
        print(line)
    print(f"all figures: {store.file}")
