"""The SAMPLER of a schedule, which runs all of it or the part of it that its SIGMAS were cut to.

A part that follows another one needs the predictions of that one, which no LATENT carries. The SAMPLER keeps
them, in main memory, for the last few parts that stopped before the end: so a tail that gets the very latent
that a head gave goes on as if nothing had been cut, whichever models the two have. They go with the SAMPLER,
which the host drops when the workflow changes; they stay after use, since the host keeps the head's latent as
well and may run the tail again.
"""

import collections
import weakref

import comfy.samplers
import lmsd
import torch
from lmsd.k_diffusion import Stopped, host_sigmas, part_of, sample_lmsd, sample_part

from . import display, experts, host

KEPT = 4  # parts whose predictions are kept
ROUNDING = 1e-5  # of the largest number of a latent: what the host's scaling back and forth may change


class Sample:
    """A sampler function of ComfyUI that runs one schedule, or a part of it."""

    __name__ = "lmsd"

    def __init__(self, schedule: lmsd.Schedule):
        self.schedule = schedule
        self.sigmas = host_sigmas(schedule).tolist()
        self.logged = weakref.WeakSet()  # guiders of which the log has what is to be said
        self.kept = collections.deque(maxlen=KEPT)  # (where in `sigmas`, the schedule that ran, Stopped)

    def __call__(self, model, x, sigmas, extra_args=None, callback=None, disable=None):
        if len(sigmas) < 2:
            return x
        part = part_of(self.sigmas, sigmas)
        if part is None:
            raise ValueError(refusal([float(sigma) for sigma in sigmas], self.sigmas))
        base, guider = host.base_model(model), getattr(model, "inner_model", None)
        if base is not None:
            host.check(self.schedule, host.describe(base))
        first, last = part
        x = x * (self.sigmas[first] / float(sigmas[0]))  # the host's level may be a rounded one
        schedule, after = self.up_to(first, x) if first else (self.schedule, None)
        notes = experts.notes(self.schedule, first, last, guider)
        notes += host.differences(experts.made_for_part(self.schedule, first), base, guider, x)
        if first and after is None:
            notes.append(
                f"begins at sigma {self.sigmas[first]:.4g} without the steps before: their SAMPLER, or the "
                "latent that they gave, is another one"
            )
        self.say(notes, guider)
        stop = schedule.nfe - (self.schedule.nfe - last)
        at = slice(after.index if after else 0, stop)
        levels = [*(schedule.scales * schedule.sigmas[:-1])[at], schedule.sigmas[stop]]
        given = host.with_levels(extra_args, levels, x), callback, disable
        if stop <= at.start:  # of two calls at one level, the first without its history
            return x
        with host.setting_guidance(schedule, guider) as set_guidance:
            if part == (0, self.schedule.nfe):
                out = sample_lmsd(model, x, self.sigmas, *given, self.schedule, set_guidance)
                return host.keep_known(out, model, extra_args, self.schedule)
            stopped = sample_part(model, x, schedule, stop, *given, after, set_guidance)
        if last == self.schedule.nfe:
            return host.keep_known(stopped.x, model, extra_args, schedule)
        self.kept.append((last, schedule, stopped._replace(x=stopped.x.to("cpu", copy=True))))
        return stopped.x

    def up_to(self, first: int, x) -> tuple[lmsd.Schedule, Stopped | None]:
        """The schedule that a part from level `first` belongs to, and where it stands; None at its begin."""
        for last, schedule, stopped in reversed(self.kept):
            if last == first and same(stopped.x, x):
                return schedule, stopped
        return self.schedule.start_at(float(self.schedule.sigmas[first])), None

    def say(self, notes: list[str], guider) -> None:
        """On the node each time; in the log once for each guider."""
        if guider is None or guider not in self.logged:
            display.log(notes)
        display.warn(notes)
        if guider is not None and notes:
            self.logged.add(guider)


def same(kept, x) -> bool:
    """Whether `x` is the state that was kept, but for rounding."""
    return kept.shape == x.shape and bool((x.to(kept) - kept).abs().max() <= ROUNDING * kept.abs().max())


def refusal(given: list[float], own: list[float]) -> str:
    """What is wrong with SIGMAS that are no part of the schedule's."""
    if given[0] < given[-1]:
        return (
            "these SIGMAS run upwards, as those of FlipSigmas. A distilled schedule cannot be run backwards: "
            "its steps use earlier predictions, and its last one leaves nothing of the noise. Go up with "
            "another sampler, such as euler with 20 steps or more, and down again with this one"
        )
    return (
        f"these SIGMAS ({words(given)}) are neither those of the schedule ({words(own)}) nor a part of them: "
        "connect SIGMAS of the same Distilled Sampler, whole or split; others do not go with its weights"
    )


def words(sigmas) -> str:
    shown = [f"{sigma:.4g}" for sigma in sigmas]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:11], "...", shown[-1]])


def more_steps(schedule: lmsd.Schedule, start: float, denoise: float) -> list[str]:
    """A sentence on a file of the family with as many steps from level `start` as `schedule` has in all."""
    left = schedule.start_at(start).nfe
    if left == schedule.nfe:
        return []
    files = {
        file: other
        for file, other in host.siblings(schedule).items()
        if other.sigma_end < start <= other.sigma_start
    }
    fitting = [file for file, other in files.items() if other.start_at(start).nfe == schedule.nfe]
    if not fitting:
        return []
    return [
        f"denoise {denoise:g} leaves {left} of {schedule.nfe} steps; {fitting[0]} has {schedule.nfe} from "
        "there"
    ]


def sampler_and_sigmas(schedule: lmsd.Schedule, model=None, denoise: float = 1.0):
    """(SAMPLER, SIGMAS) of a schedule. `model`: a MODEL, or None where it is known only when sampling.

    `denoise` < 1 starts at the noise level that the model gives this part of its time range, as KSampler with
    the scheduler "simple" does, or above the first level with the whole schedule.
    """
    if model is not None:
        host.check(schedule, host.describe_patched(model))
    if denoise < 1 and denoise > 0 and model is None:
        raise ValueError(
            "denoise below 1 needs the MODEL connected to Distilled Sampler: it knows the noise levels"
        )
    sigmas = host_sigmas(schedule)
    if denoise < 1:
        start = 0.0
        if denoise > 0:
            sampling = model.get_model_object("model_sampling")
            start = min(float(sampling.percent_to_sigma(1.0 - denoise)), schedule.sigma_start)
        sigmas = torch.FloatTensor([])
        if start > schedule.sigma_end:
            display.warn(more_steps(schedule, start, denoise))
            schedule = schedule.start_at(start)
            sigmas = host_sigmas(schedule)
    return comfy.samplers.KSAMPLER(Sample(schedule)), sigmas
