"""Schedules in the KSampler drop-down: only for those who ask for it in the settings.

KSampler picks noise levels by itself and has no input for a schedule. The entry "lmsd" takes the newest file
in models/lmsd_schedules that was made for the model and has as many steps.
"""

import json
import logging
from pathlib import Path

import comfy.samplers
import folder_paths
import lmsd
from comfy.k_diffusion import sampling
from lmsd.k_diffusion import fitting, sample_lmsd

from . import display, host

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


def matching(about: dict, sigmas) -> lmsd.Schedule:
    """The newest schedule made for this model and as many steps. Raises ValueError where there is none."""
    reasons = []
    paths = map(host.schedule_path, host.schedule_names())
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            schedule = lmsd.Schedule.load(path)
            host.check(schedule, about)
            if fitting(schedule, sigmas).nfe <= len(sigmas) - 1:
                return schedule
            reasons.append(f"{path.name}: takes more steps")
        except lmsd.Error as error:
            reasons.append(f"{path.name}: {error}")
    raise ValueError(
        f"no file in models/{host.FOLDER} fits this model and {len(sigmas) - 1} steps. "
        + ("; ".join(reasons[:5]) or "There is none: distill one, or copy one there.")
    )


def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
    """The sampler function behind the entry."""
    if len(sigmas) < 2:
        return x
    schedule = matching(host.describe(host.base_model(model)), sigmas)
    logging.info("lmsd: %s", schedule)
    notes = host.differences(schedule, host.base_model(model), model.inner_model, x)
    display.log(notes)
    display.warn(notes)
    return sample_lmsd(model, x, sigmas, extra_args, callback, disable, schedule)
