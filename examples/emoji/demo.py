"""Distills few-step samplers for an emoji model, shows their pictures beside those of 100 calls and of
published samplers with as many calls, and measures all of them on prompts and noise that no fit has seen.

    python examples/emoji/demo.py --out out/demo

A few minutes on two cores. Ctrl-C keeps what was distilled so far, writes what it can, and exits with 130.
"""

import argparse
import contextlib
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "digits"))

import lmsd
import numpy as np
import report
from classifier import frechet
from common import about, calls_needed, config, sigmas, teacher, which
from emoji_model import SHIFT, noise
from emoji_problem import problem
from judge import Judge, psnr
from lmsd import gain
from lmsd._interrupt import first_interrupt
from lmsd.cli.terminal import note, print_table
from lmsd.cli.values import nfe_range

# prompts of the pictures, and the kind of emoji that each asks for
PROMPTS = {
    "red apple": "food-fruit",
    "grinning cat": "cat-face",
    "crying face": "face-concerned",
    "fire engine": "transport-ground",
    "octopus": "animal-marine",
    "yellow heart": "heart",
    "snowman": "sky & weather",
    "hamburger": "food-prepared",
    "tulip": "plant-flower",
    "owl": "animal-bird",
}
INTERRUPTED = 130
BATCH = 4  # trajectories in a batch
BEYOND = (10, 12, 14, 16)  # calls at which only the best published samplers are measured


@dataclass
class Row:
    """What one number of calls gives. Keys of the dicts: "distilled" and the fields of published solvers."""

    nfe: int
    distance: dict = field(default_factory=dict)
    schedule: dict = field(default_factory=dict)
    calls: dict = field(default_factory=dict)  # with which a field is as near; None: more than were measured
    psnr: dict = field(default_factory=dict)
    frechet: dict = field(default_factory=dict)
    pictures: dict = field(default_factory=dict)  # of PROMPTS
    recognised: dict = field(default_factory=dict)  # how many of these


def distill(args, hits):
    """The family of schedules; an interrupt ends it with what there is."""
    fitted = problem(args.model, args.guidance, BATCH, args.seed)
    options = {"nfe": args.nfe, "trajectories": args.trajectories, "held_out": args.held_out, **about(fitted)}
    with lmsd.ProgressBar() if sys.stderr.isatty() else contextlib.nullcontext() as bar:

        def progress(told):
            if bar:
                bar(told)
            return bool(hits)

        return lmsd.distill(fitted.model, fitted.begin, fitted.like, progress=progress, **options)


class Contest:
    """Published and distilled schedules on the same test trajectories: held-out prompts, other noise."""

    def __init__(self, args):
        self.problem = problem(args.model, args.guidance, BATCH, args.seed + 1, test=True)
        self.test, self.finalists = args.test, args.finalists

    def measure(self, schedules, trajectories=None):
        """Distance of each over the first trajectories, by default all."""
        told = {**config(self.problem), "held_out": trajectories or self.test}
        own = self.problem
        return lmsd.compare(schedules, own.model, own.begin, own.like, **told)

    def best(self, nfe, schedules):
        """The finalists of some schedules and their distances, best first: all are tried on one batch."""
        ranked, _ = gain.race({nfe: schedules}, self.measure, [BATCH, self.test], self.finalists)
        return ranked[nfe]

    def published(self, nfe, only=None):
        """The best as published; `only`: of these solvers and grids, where a field has them."""
        found = lmsd.rivals(nfe, "published", process=self.problem.process, **self._levels())
        return self.best(nfe, [s for s in found if only is None or which(s) in only])

    def strongest(self, nfe, schedule):
        """The best of what the distillation found to be the strongest of everything that tuning makes."""
        known = {f"{row['solver']}, {row['grid']}" for row in schedule.made_by["handcrafted"]}
        found = lmsd.rivals(nfe, "strongest", process=self.problem.process, **self._levels())
        return self.best(nfe, [s for s in found if which(s) in known])

    def _levels(self):
        shift = {"shift": SHIFT} if self.problem.process == "flow" else {}
        return sigmas(self.problem) | shift


def measured(contest, schedules, hits):
    """(a Row for each distilled schedule, NFE -> finalists of the field as published)."""
    rows, published = [], {}
    for nfe, own in schedules.items():
        if hits and rows:
            break
        note(f"measuring {nfe} calls")
        published[nfe] = contest.published(nfe)
        strongest = sorted(contest.strongest(nfe, own) + published[nfe][:1], key=lambda pair: pair[1])
        row = Row(nfe)
        row.schedule = {"distilled": own, "published": published[nfe][0][0], "strongest": strongest[0][0]}
        (distance,) = contest.measure([own])
        row.distance = {
            "distilled": distance,
            "published": published[nfe][0][1],
            "strongest": strongest[0][1],
        }
        rows.append(row)
    for nfe in () if hits else BEYOND:
        note(f"measuring {nfe} calls, published")
        published[nfe] = contest.published(
            nfe, {which(schedule) for schedule, _ in published[max(schedules)]}
        )
    for row in rows:
        curve = {nfe: finalists[0][1] for nfe, finalists in published.items() if finalists}
        row.calls = {"published": calls_needed(curve, row.distance["distilled"])}
    return rows, published


def looked_at(contest, rows):
    """Fills in the pictures and what is measured on them; returns those of the teacher."""
    own, judge = contest.problem, Judge()
    words = own.emoji.words(list(PROMPTS))
    start = noise(own.emoji.shape, 0, len(PROMPTS), own.seed) * np.float32(own.sigma_max)

    def shown(schedule):
        def model(x, sigma):
            return own.emoji.denoise(x, sigma, words, own.guidance)

        return own.emoji.pictures(lmsd.sample(schedule, start, model))

    def tested(schedule):
        batches = range(1 << 21, (1 << 21) + contest.test // BATCH)
        return own.emoji.pictures(
            np.concatenate([lmsd.sample(schedule, own.begin(index), own.model) for index in batches])
        )

    def recognised(pictures):
        return sum(a == b for a, b in zip(judge.kinds(pictures), PROMPTS.values(), strict=True))

    goal = teacher(own)
    wanted, pictures = tested(goal), shown(goal)
    features = judge.features(wanted)
    for row in rows:
        for name, schedule in row.schedule.items():
            result = tested(schedule)
            row.psnr[name] = float(psnr(result, wanted).mean())
            row.frechet[name] = frechet(judge.features(result), features)
            row.pictures[name] = shown(schedule)
            row.recognised[name] = recognised(row.pictures[name])
    return {"calls": goal.nfe, "pictures": pictures, "recognised": recognised(pictures)}


def table(rows):
    """Rows of texts; the first is the head."""
    cells = [["NFE", "sampler", "distance", "PSNR, dB", "Frechet", "recognised", "its solver and grid"]]
    for row in rows:
        for name, schedule in row.schedule.items():
            cells.append(
                [
                    str(row.nfe),
                    gain.NAMES.get(name, name),
                    f"{row.distance[name]:.3f}",
                    f"{row.psnr[name]:.1f}",
                    f"{row.frechet[name]:.3f}",
                    f"{row.recognised[name]} of {len(PROMPTS)}",
                    which(schedule) if name in gain.NAMES else as_good(row),
                ]
            )
    return cells


def as_good(row):
    """With how many calls the field as published is as good as the distilled schedule."""
    calls = row.calls["published"]
    return "as good as " + (
        "more calls than measured" if calls is None else f"{calls:.1f} calls as published"
    )


def arguments():
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder (default %(default)s)")
    parser.add_argument(
        "--model", choices=("pixel", "flow", "latent"), default="pixel", help="(default %(default)s)"
    )
    parser.add_argument("--nfe", type=nfe_range, help="model calls, such as 5 or 3-8 (default 3-8)")
    parser.add_argument("--guidance", type=float, default=4.0, help="guidance scale (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of noise and prompts (default %(default)s)")
    parser.add_argument("--trajectories", type=int, default=40, help="to fit to (default %(default)s)")
    parser.add_argument(
        "--held-out", type=int, default=16, help="that decide what is kept (default %(default)s)"
    )
    parser.add_argument("--test", type=int, default=32, help="test trajectories (default %(default)s)")
    parser.add_argument(
        "--finalists", type=int, default=4, help="of a field on all of them (default %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="less of everything: 3 and 4 NFE, 8 trajectories"
    )
    args = parser.parse_args()
    args.nfe = args.nfe or ((3, 4) if args.quick else (3, 8))
    if args.quick:
        args.trajectories, args.held_out, args.test, args.finalists = 8, 8, 8, 2
    args.test = -(-args.test // BATCH) * BATCH
    return args


def main():
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    print(
        f"emoji {args.model} model, guidance {args.guidance:g}: distilling {args.nfe[0]} to {args.nfe[1]} NFE"
    )
    with first_interrupt(note) as hits:
        try:
            distilled = distill(args, hits)
        except lmsd.Error as error:
            if error.status != lmsd.Status.STOPPED:
                raise
            print("stopped before the first result: nothing to write", file=sys.stderr)
            return INTERRUPTED
        distilled.save(args.out)
        contest = Contest(args)
        rows, published = measured(contest, distilled.schedules, hits)
        goal = looked_at(contest, rows)
    cells = table(rows)
    print(
        f"\n{contest.test} test trajectories, prompts that neither the network nor the distillation has seen."
    )
    print("Distance and PSNR to the teacher's result, Frechet distance to its results. Recognised: pictures")
    print(
        f"whose kind a classifier names, of which the teacher has {goal['recognised']} of {len(PROMPTS)}.\n"
    )
    print_table(cells)
    how = {"args": args, "interrupted": bool(hits), "report": distilled.report, "prompts": list(PROMPTS)}
    report.write(args.out, rows, published, goal, cells, how)
    minutes, seconds = divmod(round(time.perf_counter() - started), 60)
    print(f"\n{minutes} min {seconds} s. Open {args.out / 'report.html'}")
    if hits:
        print(f"interrupted: {args.out} has what was ready", file=sys.stderr)
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
