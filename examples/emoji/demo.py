"""Distills few-step samplers for an emoji model, shows their pictures beside those of 100 calls and of
published samplers with as many calls, and measures all of them on prompts and noise that no fit has seen.

    python examples/emoji/demo.py --out out/demo

A few minutes on two cores. Ctrl-C keeps what was distilled so far, writes what it can, and exits with 130.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "digits"))  # which has a report.py too

import lmsd
import numpy as np
import report
from classifier import frechet
from common import FIELDS, INTERRUPTED, calls_needed, distilled_for_show, finished, in_words, teacher, which
from common import field as the_field
from emoji_data import GUIDANCE
from emoji_model import noise
from emoji_problem import problem
from judge import Judge, psnr
from lmsd import gain
from lmsd._interrupt import first_interrupt
from lmsd.cli.terminal import note, print_table
from lmsd.cli.values import nfe_range
from lmsd.guidance import of_call

# prompts of the pictures, which the models draw well, and the kind of emoji that each asks for
PROMPTS = {
    "red apple": "food-fruit",
    "grinning cat": "cat-face",
    "green heart": "heart",
    "hamburger": "food-prepared",
    "penguin": "animal-bird",
    "crying face": "face-concerned",
    "watermelon": "food-fruit",
    "pig face": "animal-mammal",
    "cocktail glass": "drink",
    "clown face": "face-costume",
}
SEEN = {
    "test": "prompts that neither the network nor the distillation has seen",
    "fit": "prompts of the distillation, with other noise",
}
BATCH = 4  # trajectories in a batch: for fits the cheapest
TOGETHER = 4  # batches in a call of a measurement; calls are made side by side, each on one thread
STRONGEST = {  # whether all of the field is measured -> what it is
    False: "the best as published, or the best of what the distillation ranked first of all their variants",
    True: "the best of published solvers and of all their variants",
}
MANY = 200  # schedules: so many are raced in one round more
BEYOND = (10, 12, 16)  # calls at which only the fields are measured


@dataclass
class Row:
    """What one number of calls gives. Keys of the dicts: "distilled" and the fields of published solvers."""

    nfe: int
    distance: dict = field(default_factory=dict)
    schedule: dict = field(default_factory=dict)
    calls: dict = field(default_factory=dict)  # with which a field is as near; None: more than were measured
    psnr: dict = field(default_factory=dict)
    lpips: dict = field(default_factory=dict)
    frechet: dict = field(default_factory=dict)
    pictures: dict = field(default_factory=dict)  # of PROMPTS
    recognised: dict = field(default_factory=dict)  # how many of these


def distill(args, hits):
    """The family of schedules, or None; an interrupt ends it with what there is."""
    fitted = problem(args.model, args.guidance, BATCH, args.seed)
    options = {
        name: getattr(args, name) for name in ("trajectories", "held_out", "max_calls", "fit_guidance")
    }
    return distilled_for_show(fitted, hits, nfe=args.nfe, **options)


class Contest:
    """Published and distilled schedules on the same test trajectories, of noise that no fit has seen."""

    def __init__(self, args):
        options = {"test": args.prompts == "test", "threads": 1}
        self.problem = problem(args.model, args.guidance, BATCH, args.seed + 1, **options)
        self.batches, self.finalists = range(args.test // BATCH), args.finalists
        self.pool = ThreadPoolExecutor(os.cpu_count())
        self.teacher = teacher(self.problem)
        self.end_points = {}  # of the schedules that were measured over all trajectories
        (self.wanted,) = self.ends([self.teacher], self.batches)

    def ends(self, schedules, batches):
        """End points [n, ...] of the trajectories of some batches, for each schedule."""
        starts = range(0, len(batches), TOGETHER)
        calls = [(schedule, batches[i : i + TOGETHER]) for schedule in schedules for i in starts]
        found = list(self.pool.map(self._some, *zip(*calls, strict=True)))
        return [np.concatenate(found[i : i + len(starts)]) for i in range(0, len(found), len(starts))]

    def _some(self, schedule, batches):
        own = copy(self.problem)
        begun = [(own.begin(index), own.words) for index in batches]
        x, own.words = map(np.concatenate, zip(*begun, strict=True))
        return lmsd.sample(schedule, x, own.model)

    def measure(self, schedules, batches=None):
        """Distance of each over the first trajectories, by default all."""
        chosen = self.batches[:batches]
        wanted = self.wanted[: len(chosen) * BATCH]
        found = self.ends(schedules, chosen)
        if batches is None:
            self.end_points |= zip(schedules, found, strict=True)
        differences = [ends - wanted for ends in found]
        return [float(np.linalg.norm(d.reshape(len(d), -1), axis=1).mean()) for d in differences]

    def best(self, nfe, name, only=None):
        """The finalists of a field with their distances, best first: all are tried on one batch, and of many
        the best quarter on two.

        `only`: solvers and grids, of which the field has more.
        """
        found = [s for s in the_field(self.problem, nfe, name) if only is None or which(s) in only]
        rounds = [1, None] if len(found) < MANY else [1, 2, None]
        ranked, _ = gain.race({nfe: found}, self.measure, rounds, self.finalists)
        return ranked[nfe]


def measured(contest, schedules, hits, whole):
    """(a Row for each distilled schedule, field -> NFE -> its finalists).

    The strongest are, of everything that tuning makes, those that the distillation ranked first at any NFE;
    if `whole`, all of it.
    """
    rows, fields = [], {name: {} for name in FIELDS}
    known = [in_words(row) for s in schedules.values() for row in s.made_by["handcrafted"]]
    only = {"published": None, "strongest": None if whole else set(known)}
    for nfe in [*schedules, *BEYOND]:
        if hits and (rows or nfe in BEYOND):
            break
        note(f"measuring {nfe} calls")
        for name, found in fields.items():
            found[nfe] = contest.best(nfe, name, only[name])
        both = fields["strongest"][nfe] + fields["published"][nfe][:1]
        fields["strongest"][nfe] = sorted(both, key=lambda pair: pair[1])
        if nfe == max(schedules):  # beyond, only those that are still good there
            only["published"] = {which(schedule) for schedule, _ in fields["published"][nfe]}
        if nfe in schedules:
            own, best = schedules[nfe], {name: found[nfe][0] for name, found in fields.items()}
            schedule = {"distilled": own, **{name: pair[0] for name, pair in best.items()}}
            distance = {
                "distilled": contest.measure([own])[0],
                **{name: pair[1] for name, pair in best.items()},
            }
            rows.append(Row(nfe, distance, schedule))
    for row in rows:
        for name, found in fields.items():
            curve = {nfe: ranked[0][1] for nfe, ranked in found.items()}
            row.calls[name] = calls_needed(curve, row.distance["distilled"])
    return rows, fields


def looked_at(contest, rows):
    """Fills in the pictures and what is measured on them; returns those of the teacher."""
    own, judge = contest.problem, Judge()
    words = own.emoji.words(list(PROMPTS))
    start = noise(own.emoji.shape, 0, len(PROMPTS), own.seed) * np.float32(own.sigma_max)

    def shown(schedule):
        def model(x, sigma, share=1.0):
            return own.emoji.denoise(x, sigma, words, of_call(own.guidance, share))

        return own.emoji.pictures(lmsd.sample(schedule, start, model))

    def recognised(pictures):
        return sum(a == b for a, b in zip(judge.kinds(pictures), PROMPTS.values(), strict=True))

    goal = contest.teacher
    wanted, pictures = own.emoji.pictures(contest.wanted), shown(goal)
    features = judge.features(wanted)
    for row in rows:
        for name, schedule in row.schedule.items():
            result = own.emoji.pictures(contest.end_points[schedule])
            row.psnr[name] = float(psnr(result, wanted).mean())
            row.lpips[name] = float(judge.difference(result, wanted).mean())
            row.frechet[name] = frechet(judge.features(result), features)
            row.pictures[name] = shown(schedule)
            row.recognised[name] = recognised(row.pictures[name])
    return {"calls": goal.nfe, "pictures": pictures, "recognised": recognised(pictures)}


def table(rows):
    """Rows of texts; the first is the head."""
    cells = [["NFE", "sampler", "distance", "PSNR, dB", "seen", "Frechet", "recognised", "best of the field"]]
    for row in rows:
        for name, schedule in row.schedule.items():
            cells.append(
                [
                    str(row.nfe),
                    gain.NAMES.get(name, name),
                    f"{row.distance[name]:.3f}",
                    f"{row.psnr[name]:.1f}",
                    f"{row.lpips[name]:.3f}",
                    f"{row.frechet[name]:.3f}",
                    f"{row.recognised[name]} of {len(PROMPTS)}",
                    f"{which(schedule)}; as good at {as_good(row.calls[name])}" if name in FIELDS else "",
                ]
            )
    return cells


def as_good(calls):
    """With how many calls a field is as good as the distilled schedule."""
    return "more calls than measured" if calls is None else f"{calls:.1f} calls"


def arguments():
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder (default %(default)s)")
    parser.add_argument(
        "--model", choices=("pixel", "flow", "latent"), default="pixel", help="(default %(default)s)"
    )
    parser.add_argument("--nfe", type=nfe_range, help="model calls, such as 5 or 3-8 (default 3-8)")
    parser.add_argument(
        "--guidance", type=float, default=GUIDANCE, help="guidance scale (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of noise and prompts (default %(default)s)")
    parser.add_argument("--trajectories", type=int, default=40, help="to fit to (default %(default)s)")
    parser.add_argument(
        "--held-out", type=int, default=16, help="that decide what is kept (default %(default)s)"
    )
    parser.add_argument(
        "--max-calls", type=int, default=8000, help="of the distillation, of a batch (default %(default)s)"
    )
    parser.add_argument(
        "--prompts",
        choices=SEEN,
        default="test",
        help="to measure on: of emoji that neither the network nor the fit has seen, or of the fit "
        "(default %(default)s)",
    )
    parser.add_argument("--test", type=int, default=32, help="test trajectories (default %(default)s)")
    parser.add_argument(
        "--finalists", type=int, default=3, help="of a field on all of them (default %(default)s)"
    )
    parser.add_argument(
        "--whole-field",
        action="store_true",
        help="measure all of the strongest field, not what the distillation ranked first: an hour more",
    )
    parser.add_argument(
        "--fit-guidance", action="store_true", help="each call gets a guidance of its own, fitted too"
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
        distilled = distill(args, hits)
        if distilled is None:
            return INTERRUPTED
        distilled.save(args.out)
        contest = Contest(args)
        rows, fields = measured(contest, distilled.schedules, hits, args.whole_field)
        goal = looked_at(contest, rows)
    cells = table(rows)
    print(f"\n{args.test} test trajectories, {SEEN[args.prompts]}.")
    print("Distance and PSNR to the teacher's result, Frechet distance to its results. Recognised: pictures")
    print(
        f"whose kind a classifier names, of which the teacher has {goal['recognised']} of {len(PROMPTS)}.\n"
    )
    print_table(cells)
    print(f"\nStrongest: {STRONGEST[args.whole_field]}.")
    how = {"args": args, "interrupted": bool(hits), "report": distilled.report, "prompts": list(PROMPTS)}
    how |= {"seen": SEEN[args.prompts], "strongest": STRONGEST[args.whole_field]}
    report.write(args.out, rows, fields, goal, cells, how)
    return finished(started, args.out, hits)


if __name__ == "__main__":
    sys.exit(main())
