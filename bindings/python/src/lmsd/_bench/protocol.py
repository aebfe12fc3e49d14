"""The run: the teacher's pictures, then for each number of calls a fit, a choice of options, and the rows."""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

import lmsd
from lmsd import gain

from .._pipeline.batches import PipelineCalls
from .._pipeline.distillation import distill, first_pass
from .._pipeline.driver import Driver, standing_in
from .._pipeline.network import Network, settings
from . import measures, schedulers
from .prompts import Split
from .sampling import Sampler, Stopped
from .schedulers import Candidate
from .store import Store, read, write

DISTILLED, FIELD = "distilled", "lmsd's field of published solvers"
FINALISTS = 3  # of a family, that are measured on all prompts to choose by
FIRST_LOOK = 2  # prompts that all options are measured on
TEST_NOISE, RANK_NOISE = 0, 1 << 19  # numbers of the noise of the first pictures
FAILURES = (ValueError, IndexError, AssertionError, RuntimeError, TypeError, ZeroDivisionError, lmsd.Error)


@dataclass
class Plan:
    """What is asked for. `arguments`: of the pipeline's call; `fit`: options of `lmsd.distill`."""

    nfes: list[int]
    guidance: float
    teacher_steps: int
    batch: int
    seed: int
    image_calls: int
    rivals: str = "ranked"
    features: str = measures.RANDOM
    kept: int = 6
    quiet: bool = False
    arguments: dict = dataclasses.field(default_factory=dict)
    fit: dict = dataclasses.field(default_factory=dict)


class Run:
    """`stop()`: whether Ctrl-C was pressed; `say`: a line for people while it runs."""

    def __init__(self, pipe, prompts: Split, store: Store, plan: Plan, stop, say):
        self.pipe, self.prompts, self.store, self.plan = pipe, prompts, store, plan
        self.stop, self.say = stop, say
        arguments = {"guidance_scale": plan.guidance, **plan.arguments}
        self.sampler = Sampler(pipe, arguments, plan.batch, plan.seed, stop)
        self.guidance = self.sampler.arguments.get("guidance_scale")  # None where the pipeline takes none
        self.features, self.features_are = measures.features(plan.features)
        self.references: dict[str, np.ndarray] = {}

    def check(self) -> None:
        """One step: whether the pipeline runs the standard loop. Raises Error if it does not."""
        try:
            config = settings(self.pipe.scheduler)
            if config.get("timestep_type") == "continuous":
                raise ValueError(
                    "its timesteps are continuous, which the teacher of this protocol cannot have"
                )
            calls = PipelineCalls(self.pipe, self.prompts.fit, 1, self.guidance, self.plan.arguments)
            driver = Driver(self.pipe.scheduler, Network(config), calls.takes_latents)
            with standing_in(self.pipe, driver), torch.no_grad(), self.sampler.counting() as count:
                first_pass(driver, calls)
        except Exception as error:  # whatever a loop of another kind may stumble over
            if lmsd.out_of_memory(error):
                raise
            why = " ".join(str(error).split())
            raise lmsd.Error(f"{type(self.pipe).__name__} cannot be distilled: {why}") from error
        self.sampler.passes = max(1, count.calls)

    def speed(self) -> float:
        """Seconds for an image-call, guidance included, measured on two steps of one batch."""
        self.sampler.draw(
            self.pipe.scheduler, 2, self.prompts.fit[: self.plan.batch], RANK_NOISE - self.plan.batch
        )
        return self.sampler.seconds / max(1, self.sampler.calls)

    def expected(self) -> dict[str, int]:
        """Image-calls to come, at most, by what they are for."""
        store, prompts, plan = self.store, self.prompts, self.plan
        missing = [
            not store.picture(part, k).exists()
            for part in ("test", "rank")
            for k in range(len(getattr(prompts, part)))
        ]
        found = {"teacher": sum(missing) * plan.teacher_steps, "fits": 0, "choice": 0, "test": 0}
        for nfe in plan.nfes:
            groups = self.groups(nfe)
            left = [family for family in (*groups, DISTILLED, FIELD) if store.row(nfe, family) is None]
            found["test"] += nfe * len(left) * len(prompts.test)
            found["fits"] += 0 if store.schedule(nfe).exists() else plan.image_calls
            if str(nfe) not in store.facts.get("choice", {}):
                count = sum(map(len, groups.values()))
                looks = min(FIRST_LOOK, len(prompts.rank))
                many = sum(max(FINALISTS, -(-len(group) // 4)) for group in groups.values())
                found["choice"] += nfe * (count * looks + many * len(prompts.rank))
        return found

    def run(self) -> None:
        """All of it; what is measured is on disk. Raises Stopped after Ctrl-C."""
        for part, first in (("test", TEST_NOISE), ("rank", RANK_NOISE)):
            self.references[part] = self.teacher(part, first)
        self.reference_features = self.features(self.references["test"])
        for nfe in self.plan.nfes:
            schedule = self.fitted(nfe)
            self.measure(schedulers.of_schedule(self.pipe, DISTILLED, schedule))
            groups = self.groups(nfe)
            self.measure(groups.pop(schedulers.OWN)[0], may_fail=True)
            for family, candidate in self.chosen(nfe, {**groups, FIELD: self.field(nfe, schedule)}).items():
                if candidate is not None:
                    self.measure(candidate, may_fail=True)
                else:
                    self.say(f"{nfe} calls, {family}: none of its options ran")

    def teacher(self, part: str, first: int) -> np.ndarray:
        """Its pictures of a part of the prompts, from disk as far as they are there."""
        store, prompts = self.store, getattr(self.prompts, part)
        paths = [store.picture(part, k) for k in range(len(prompts))]
        there = next((k for k, path in enumerate(paths) if not path.exists()), len(paths))
        if there < len(paths) or "teacher_grid" not in store.facts:
            there = min(there, len(paths) - 1)
            scheduler, number = schedulers.teacher(self.pipe), there
            with self.bar(
                f"teacher, {self.plan.teacher_steps} calls", len(paths), there, "picture"
            ) as update:

                def done(pictures):
                    nonlocal number
                    for picture in pictures:
                        write(paths[number], picture)
                        number += 1
                        update()

                spent = self.sampler.image_calls
                try:
                    self.sampler.draw(
                        scheduler, self.plan.teacher_steps, prompts[there:], first + there, done
                    )
                finally:
                    store.spend(
                        "teacher",
                        max(self.sampler.image_calls - spent, (number - there) * self.plan.teacher_steps),
                    )
                    store.put()
            store.facts |= {
                "teacher_grid": [float(sigma) for sigma in scheduler.sigmas],
                "teacher_seconds": self.sampler.seconds,
                "teacher_evaluations": self.sampler.evaluations,
            }
            store.put()
        return np.stack([read(path) for path in paths])

    def fitted(self, nfe: int) -> lmsd.Schedule:
        """The distilled schedule, from disk if it is there. Its teacher is the one of the pictures."""
        plan, store, path = self.plan, self.store, self.store.schedule(nfe)
        if path.exists():
            return lmsd.Schedule.load(path)
        highest = Network(settings(self.pipe.scheduler)).sigma_max
        grid = [highest, *store.facts["teacher_grid"][1:]]  # whose first level differs by rounding
        with contextlib.ExitStack() as stack:
            show = (lambda told: None) if plan.quiet else stack.enter_context(lmsd.ProgressBar())

            def progress(told):
                show(told)
                return self.stop()

            try:
                found = distill(
                    self.pipe,
                    self.prompts.fit,
                    nfe=nfe,
                    guidance_scale=self.guidance,
                    batch_size=plan.batch,
                    seed=plan.seed,
                    teacher="dpmpp_2m",
                    teacher_nfe=plan.teacher_steps,
                    teacher_grid={"kind": "list", "sigmas": grid},
                    max_calls=plan.image_calls // plan.batch,
                    checkpoint=store.checkpoint(nfe).absolute(),
                    progress=progress,
                    **{**plan.arguments, **plan.fit},
                )
            except lmsd.Error as error:
                if error.status != lmsd.Status.STOPPED or not self.stop():
                    raise
                raise Stopped from None
        if found.report["stopped"] == "cancelled":
            raise Stopped
        schedule = found.schedules[nfe]
        schedule.save(path)
        store.checkpoint(nfe).unlink(missing_ok=True)
        store.spend("fits", found.report["image_calls"])
        store.put()
        return schedule

    def groups(self, nfe: int) -> dict[str, list[Candidate]]:
        """Family -> its options, with the pipeline's own scheduler first."""
        found = {schedulers.OWN: [schedulers.own(self.pipe, nfe)]}
        for candidate in schedulers.of_diffusers(self.pipe, nfe):
            found.setdefault(candidate.family, []).append(candidate)
        return found

    def field(self, nfe: int, schedule: lmsd.Schedule) -> list[Candidate]:
        """Published solvers as lmsd has them: those that the fit ranked highest, or a whole field."""
        name, made_for = self.plan.rivals, schedule.made_for
        if name == "none":
            return []
        levels = {key: made_for[key] for key in ("sigma_min", "sigma_max") if key in made_for}
        levels |= {
            "process": schedule.process,
            "sigma_end": schedule.sigma_end,
            "shift": made_for.get("shift"),
        }
        field = lmsd.rivals(nfe, "strongest" if name == "ranked" else name, **levels)
        named = {f"{s.made_by['solver']}, {s.made_by['grid']}": s for s in field}
        if name == "ranked":
            best = [f"{h['solver']}, {h['grid']}" for h in schedule.made_by.get("handcrafted", [])]
            named = {which: named[which] for which in best if which in named}
        return [schedulers.of_schedule(self.pipe, FIELD, s, which) for which, s in named.items()]

    def chosen(self, nfe: int, groups: dict[str, list[Candidate]]) -> dict[str, Candidate | None]:
        """The best options of each family on the prompts to choose by; None where none can be run."""
        kept = self.store.facts.setdefault("choice", {})
        if str(nfe) not in kept:
            prompts, reference = self.prompts.rank, self.references["rank"]
            first = min(FIRST_LOOK, len(prompts))
            spent = self.sampler.image_calls
            total = sum(map(len, groups.values()))
            with self.bar(f"options at {nfe} calls", total, 0, "option") as update:

                def distances(candidates, count):
                    update(0, total + (len(candidates) if count > first else 0))
                    return [self.error(c, prompts[:count], reference[:count], update) for c in candidates]

                rounds = sorted({first, len(prompts)})
                best, _ = gain.race(groups, distances, rounds, FINALISTS)
            kept[str(nfe)] = {
                family: ranked[0][0].which if ranked else None for family, ranked in best.items()
            }
            self.store.spend("choice", self.sampler.image_calls - spent)
            self.store.put()
        which = kept[str(nfe)]
        return {
            family: next((c for c in group if c.which == which.get(family)), None)
            for family, group in groups.items()
            if group
        }

    def error(self, candidate: Candidate, prompts, reference, update) -> float:
        """Mean squared error of pictures; infinite for options that do not run, or not in so many calls."""
        update()
        pictures = self.attempt(candidate, prompts, RANK_NOISE)
        if pictures is None or self.sampler.calls > candidate.nfe:
            return np.inf
        return float(np.square(pictures - reference).mean())

    def attempt(self, candidate: Candidate, prompts, first: int) -> np.ndarray | None:
        try:
            pictures = self.sampler.draw(candidate.make(), candidate.steps, prompts, first)
        except FAILURES as error:
            if lmsd.out_of_memory(error):
                raise
            return None  # not every mixture of options exists, or can be solved
        return pictures if np.isfinite(pictures).all() else None

    def measure(self, candidate: Candidate, may_fail: bool = False) -> None:
        """A row of the table, unless it is there."""
        nfe, family, store = candidate.nfe, candidate.family, self.store
        if store.row(nfe, family) is not None:
            return
        spent = self.sampler.image_calls
        if may_fail:
            pictures = self.attempt(candidate, self.prompts.test, TEST_NOISE)
        else:
            pictures = self.sampler.draw(candidate.make(), candidate.steps, self.prompts.test, TEST_NOISE)
        if pictures is None:
            self.say(f"{nfe} calls, {family}: does not run")
            return
        decibels = measures.psnr(pictures, self.references["test"])
        away = measures.relative_distance(self.features(pictures), self.reference_features)
        store.keep(nfe, family, pictures[: self.plan.kept])
        store.spend("test", self.sampler.image_calls - spent)
        store.add(
            {
                "nfe": nfe,
                "family": family,
                "which": candidate.which,
                "calls": self.sampler.calls,
                "evaluations": self.sampler.evaluations,
                "psnr": float(decibels.mean()),
                "psnr_interval": measures.interval(decibels),
                "features": float(away.mean()),
                "features_interval": measures.interval(away),
                "seconds": self.sampler.seconds,
                "psnr_each": decibels.round(4).tolist(),
            }
        )
        self.say(f"{nfe} calls, {family}: {decibels.mean():.2f} dB")

    @contextlib.contextmanager
    def bar(self, what: str, total: int, there: int, unit: str) -> Iterator:
        """A function to be called after each of `total` things."""
        if self.plan.quiet:
            yield lambda *_: None
            return
        from tqdm import tqdm

        with tqdm(total=total, initial=there, desc=what, unit=unit, dynamic_ncols=True) as bar:

            def update(count=1, total=None):
                bar.total = total or bar.total
                bar.update(count)

            yield update
