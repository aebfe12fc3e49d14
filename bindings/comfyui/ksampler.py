"""Schedules in the KSampler drop-down: only for those who ask for it in the settings.

KSampler picks noise levels by itself and has no input for a schedule. The entry "lmsd" takes the file in
models/lmsd_schedules that fits model, guidance scale and steps best, and says on the node which.
"""

import json
import logging
import math
from pathlib import Path
from typing import NamedTuple

import comfy.samplers
import folder_paths
import lmsd
import lmsd.guidance
from comfy.k_diffusion import sampling
from lmsd.k_diffusion import SAME, ended_at, fitting, sample_lmsd

from . import display, host, weights

NAME = "lmsd"
SETTING = "lmsd.KSampler"


def asked_for() -> bool:
    """The user's setting, as the page saved it."""
    path = Path(folder_paths.get_user_directory()) / "default" / "comfy.settings.json"
    try:
        return json.loads(path.read_text("utf-8")).get(SETTING) is True
    except (OSError, ValueError, AttributeError):
        return False


def offer() -> None:
    """Adds the entry if the user asked for it: to the lists as they are, once."""
    if not asked_for():
        return
    setattr(sampling, f"sample_{NAME}", sample)
    for names in (comfy.samplers.SAMPLER_NAMES, comfy.samplers.KSAMPLER_NAMES):
        if NAME not in names:
            names.append(NAME)


def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """The sampler function behind the entry."""
    if len(sigmas) < 2:
        return x
    base, guider, steps = host.base_model(model), model.inner_model, len(sigmas) - 1
    run = Run(host.describe(base), host.guidance(guider), list(x.shape[1:]), host.fingerprint(guider))
    path, whole, schedule = fittest(run, sigmas)
    of = f" of the {steps} asked for" * (schedule.nfe < steps)
    taken = f"{path.name}, {schedule.nfe} steps{of}"
    logging.info("lmsd: %s: %s", taken, whole)
    notes = host.differences(whole.made_for, base, guider, x)
    display.log(notes)
    display.shown("\n".join([taken, *notes]))

    def of_all(step):
        """The callback, with steps counted as the host's bar does, which may have more."""
        callback(step | {"i": (step["i"] + 1) * steps // schedule.nfe - 1})

    levels = [schedule.sigma_start, *schedule.sigmas[1:]]
    told = host.with_levels(extra_args, [*(schedule.scales * schedule.sigmas[:-1]), schedule.sigma_end], x)
    out = sample_lmsd(model, x, levels, told, callback and of_all, disable, schedule)
    return host.keep_known(out, model, extra_args, schedule)


class Run(NamedTuple):
    """What a file is to fit: see `host.describe`, `host.guidance`, `host.fingerprint`."""

    about: dict
    scale: float | None
    shape: list
    weights: str | None


def fittest(run: Run, sigmas) -> tuple[Path, lmsd.Schedule, lmsd.Schedule]:
    """Path, schedule and part of the file that fits best, of those for this kind of model and as many steps.

    First by what the network predicts and by its weights, then by guidance scale, then by the number of
    steps, which a part of a run may have fewer of; then by the size of the latent and the shift, and last by
    its age. Raises ValueError where there is none.
    """
    found, reasons = [], []
    for path in map(host.schedule_path, host.schedule_names()):
        try:
            whole = lmsd.Schedule.load(path)
            host.check(whole, run.about)
            schedule = part(whole, sigmas)
        except lmsd.Error as error:
            reasons.append(f"{path.name}: {error}")
            continue
        fewer, made = len(sigmas) - 1 - schedule.nfe, whole.made_for
        if fewer < 0:
            reasons.append(f"{path.name}: takes more steps")
            continue
        rank = (
            made.get("prediction") not in (None, run.about.get("prediction")),
            weights.rank(made.get("fingerprint"), run.weights),
            guidance_off(made, run.scale),
            fewer,
            made.get("latent_shape") not in (None, run.shape),
            made.get("shift") != run.about.get("shift"),
            -path.stat().st_mtime,
        )
        found.append((rank, path, whole, schedule))
    if found:
        return min(found, key=lambda one: one[0])[1:]
    raise ValueError(
        f"no file in models/{host.FOLDER} fits this model and {len(sigmas) - 1} steps. "
        + ("; ".join(reasons[:5]) or "There is none: distill one, or copy one there.")
    )


def part(schedule: lmsd.Schedule, sigmas) -> lmsd.Schedule:
    """What of a schedule goes from the first of the host's levels to the last; Error where it cannot.

    KSampler (Advanced) may end above 0, with noise left over.
    """
    last, end = float(sigmas[-1]), schedule.sigma_end
    if last > end + max(SAME * end, 1e-7 * schedule.sigma_start):
        schedule = ended_at(schedule, last)
        if abs(float(sigmas[0]) - schedule.sigma_start) <= SAME * schedule.sigma_start:
            return schedule  # in however many steps
    return fitting(schedule, sigmas)


def guidance_off(made_for: dict, scale: float | None) -> float:
    """How far a scale is from those that a schedule was made for: the logarithm of their quotient.

    Where either is not known as much as for 10 %.
    """
    ends = lmsd.guidance.stated(made_for)
    if None in (ends, scale):
        return 0.1
    if lmsd.guidance.suits(made_for, scale):
        return 0.0
    if min(*ends, scale) <= 0:
        return math.inf
    return min(abs(math.log(scale / end)) for end in ends)
