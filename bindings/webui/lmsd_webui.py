"""Schedules in a web UI: the files, the choice among them, and sampling. Knows no host's modules.

A choice is a family of files that differ in the number of steps alone, such as "digits nfe*.json"; the steps
that the user sets pick one of them.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path

import lmsd
import numpy as np
import torch
from lmsd.guidance import suits, words
from lmsd.k_diffusion import SAME, host_sigmas, sample_lmsd

FOLDER = "lmsd_schedules"  # in the host's folder of models, as in ComfyUI
LABEL = "Distilled schedule"  # of the drop-down
NUMBER = re.compile(r"nfe\d+(?=\.json$)")

Family = Mapping[int, lmsd.Schedule]  # number of steps -> schedule


class Choice:
    """What the user has chosen last. `root`: the host's folder of models."""

    def __init__(self, root):
        self.folder = Path(root) / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        self.name = None

    def names(self) -> list[str]:
        """What there is to choose from, as paths in that folder; new files are there at once."""
        files = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*.json"))
        found = {NUMBER.sub("nfe*", name) for name in files if Path(name).name != "report.json"}
        return sorted(found)

    def family(self) -> Family:
        """The schedules of the choice. Raises lmsd.Error where there is none, or a file is damaged."""
        if not self.name:
            raise lmsd.Error(f"choose a schedule under {LABEL!r}; the files are those in {self.folder}")
        files = [
            path
            for path in sorted(self.folder.rglob("*.json"))
            if NUMBER.sub("nfe*", path.relative_to(self.folder).as_posix()) == self.name
        ]
        if not files:
            raise lmsd.Error(f"there is no schedule {self.name!r} in {self.folder}", lmsd.Status.IO)
        schedules = map(lmsd.Schedule.load, files)
        return {schedule.nfe: schedule for schedule in schedules}

    def levels(self, n, sigma_min, sigma_max, device="cpu"):
        """Noise levels for `n` steps, as hosts ask a scheduler for them: float32 [n + 1].

        Those of the schedule of `n` steps. Where there is none, levels between those of the nearest: for
        image to image, where hosts ask for more steps than they take, and for other samplers. Raises
        lmsd.Error where the schedule was made for other noise levels.
        """
        family = self.family()
        schedule = family[min(family, key=lambda nfe: abs(nfe - n))]
        schedule.check(process="flow" if sigma_max <= 1 else "ve", sigma_max=float(sigma_max))
        *own, end = host_sigmas(schedule).tolist()
        if n != schedule.nfe:
            at = np.linspace(0, len(own) - 1, n)
            own = np.exp(np.interp(at, range(len(own)), np.log(own))).tolist()
        return torch.tensor([*own, end], dtype=torch.float32, device=device)

    def sample(self, model, x, sigmas, extra_args=None, callback=None, disable=None):
        """A sampler function of k-diffusion."""
        if len(sigmas) < 2:
            return x
        schedule = fitting(self.family(), [float(sigma) for sigma in sigmas])
        return sample_lmsd(model, x, sigmas, extra_args, callback, disable, schedule)

    def remarks(self, steps: int, guidance: float) -> list[str]:
        """What differs from what the schedule was made for, though it runs."""
        made = self.family()[steps].made_for if steps in self.family() else {}
        if suits(made, guidance):
            return []
        return [f"the schedule was made for CFG scale {words(made)}; this run has {guidance:g}"]


@functools.cache
def choice_in(root) -> Choice:
    """The one choice of a host, which loads its scripts again when the page is."""
    return Choice(root)


def fitting(family: Family, sigmas: list[float]) -> lmsd.Schedule:
    """The schedule that a host with these levels wants: the one of which they are all, or the last ones.

    Else, from below its first level (image to image) the one that takes as many steps from there as the host
    does, or nearly; from its first level on the one of as many steps. Raises lmsd.Error where there is none.
    """
    steps = len(sigmas) - 1
    for schedule in family.values():
        own = host_sigmas(schedule).tolist()[-len(sigmas) :]
        if len(own) == len(sigmas) and all(map(same, own, sigmas)):
            return schedule
    parts = {
        nfe: schedule.start_at(sigmas[0]).nfe
        for nfe, schedule in family.items()
        if schedule.sigma_end < sigmas[0] < schedule.sigma_start * (1 - SAME)
    }
    if parts:
        return family[min(parts, key=lambda nfe: abs(parts[nfe] - steps))]
    if steps in family:
        return family[steps]
    there = ", ".join(map(str, sorted(family)))
    raise lmsd.Error(
        f"{steps} steps are set; of this schedule there are {there}: set the steps to one of these",
        lmsd.Status.MISMATCH,
    )


def same(a: float, b: float) -> bool:
    return abs(a - b) <= SAME * max(a, b)
