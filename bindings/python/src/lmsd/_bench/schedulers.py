"""The schedulers of diffusers with the options that fit a pipeline, and schedules of lmsd beside them."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import diffusers

import lmsd

from .._pipeline.network import BETAS, settings
from ..diffusers import LmsdScheduler

SPACINGS = {
    "linspace": {"timestep_spacing": "linspace"},
    "leading": {"timestep_spacing": "leading", "steps_offset": 1},
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "lu": {"use_lu_lambdas": True},
}
SHIFTS = (1.0, 2.0, 3.0, 5.0)  # of flow models, beside their own
ENDS = {"": {"final_sigmas_type": "zero"}, ", to sigma_min": {"final_sigmas_type": "sigma_min"}}
OWN = "the pipeline's own"
VE_ONLY = ("Euler", "DPM-Solver 2", "DPM-Solver 3", "PNDM (pseudo linear multistep)", "LMS")
# name -> (class, its options, steps besides the first that cost no call of their own)
FAMILIES = {
    "Euler": ("EulerDiscreteScheduler", {}, 0),
    "DPM-Solver++ 2M": ("DPMSolverMultistepScheduler", {"solver_order": 2}, 0),
    "DPM-Solver++ 3M": ("DPMSolverMultistepScheduler", {"solver_order": 3}, 0),
    "DPM-Solver 2": ("DPMSolverMultistepScheduler", {"solver_order": 2, "algorithm_type": "dpmsolver"}, 0),
    "DPM-Solver 3": ("DPMSolverMultistepScheduler", {"solver_order": 3, "algorithm_type": "dpmsolver"}, 0),
    "UniPC 2": ("UniPCMultistepScheduler", {"solver_order": 2}, 0),
    "UniPC 3": ("UniPCMultistepScheduler", {"solver_order": 3}, 0),
    "DEIS 2": ("DEISMultistepScheduler", {"solver_order": 2}, 0),
    "DEIS 3": ("DEISMultistepScheduler", {"solver_order": 3}, 0),
    "LMS": ("LMSDiscreteScheduler", {}, 0),
    "PNDM (pseudo linear multistep)": ("PNDMScheduler", {"skip_prk_steps": True}, 1),
}
NOT_THERE = "IPNDMScheduler takes no betas and no prediction type: it serves another kind of network"


@dataclass(frozen=True, eq=False)
class Candidate:
    """Something to sample with in `nfe` calls. `family`: its name in the table; `which`: its options."""

    family: str
    which: str
    nfe: int
    make: Callable[[], Any]
    steps: int  # that the pipeline is asked for


def own(pipe, nfe: int) -> Candidate:
    """The scheduler that the pipeline came with."""
    scheduler = pipe.scheduler
    name = type(scheduler).__name__
    return Candidate(OWN, name, nfe, lambda: type(scheduler).from_config(scheduler.config), nfe)


def teacher(pipe):
    """Multistep DPM-Solver++ of order 2 on the pipeline's own spacing, from the largest noise level on."""
    kind = diffusers.DPMSolverMultistepScheduler
    if is_flow(pipe):
        return kind(**flow_settings(pipe), solver_order=2)
    spacing = pipe.scheduler.config.get("timestep_spacing")
    whole = {"timestep_spacing": "linspace"} if spacing == "leading" else {}
    config = {"solver_order": 2, "algorithm_type": "dpmsolver++", "final_sigmas_type": "zero", **whole}
    return kind.from_config(pipe.scheduler.config, **config)


def is_flow(pipe) -> bool:
    return settings(pipe.scheduler).get("prediction_type") == "flow_prediction"


def flow_settings(pipe) -> dict:
    """What the solvers of diffusers are told of a flow pipeline."""
    config = settings(pipe.scheduler)
    told = {
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": config.get("shift", 1.0),
        "num_train_timesteps": config.get("num_train_timesteps", 1000),
    }
    if config.get("use_dynamic_shifting"):
        told |= {
            "use_dynamic_shifting": True,
            "time_shift_type": config.get("time_shift_type", "exponential"),
        }
    return told


def of_diffusers(pipe, nfe: int) -> Iterator[Candidate]:
    """Every family on every grid that it can have. Some mixtures of options cannot be run."""
    flow = is_flow(pipe)
    if flow:
        yield from flow_euler(pipe, nfe)
    for name, (kind, fixed, free) in FAMILIES.items():
        cls = getattr(diffusers, kind)
        known = inspect.signature(cls.__init__).parameters
        if nfe > free and not (flow and (name in VE_ONLY or "use_flow_sigmas" not in known)):
            for which, options in (flow_grids if flow else ve_grids)(pipe, known):
                yield Candidate(name, which, nfe, maker(cls, {**options, **fixed}), nfe - free)


def maker(cls, options):
    return lambda: cls(**options)


def ve_grids(pipe, known) -> Iterator[tuple[str, dict]]:
    """(name, options) of every spacing, with each end."""
    config = settings(pipe.scheduler)
    network = {name: config[name] for name in (*BETAS, "prediction_type") if name in config and name in known}
    for spacing, options in SPACINGS.items():
        for end, final in ENDS.items():
            asked = {**options, **final}
            if set(options) <= set(known) and (not end or set(final) <= set(known)):
                yield spacing + end, network | {key: value for key, value in asked.items() if key in known}


def flow_grids(pipe, known) -> Iterator[tuple[str, dict]]:
    """(name, options) of every shift; of a pipeline that shifts by the size of pictures only that."""
    told = flow_settings(pipe)
    if "use_dynamic_shifting" in told:
        yield "shift by size", {key: value for key, value in told.items() if key in known}
        return
    for shift in dict.fromkeys([told["flow_shift"], *SHIFTS]):
        yield f"shift {shift:g}", told | {"flow_shift": shift}


def flow_euler(pipe, nfe: int) -> Iterator[Candidate]:
    """Euler of flow models, at its spacings and shifts."""
    config = dict(pipe.scheduler.config)
    kind = diffusers.FlowMatchEulerDiscreteScheduler
    shifts = (
        [None] if config.get("use_dynamic_shifting") else dict.fromkeys([config.get("shift", 1.0), *SHIFTS])
    )
    for shift in shifts:
        for which in ("", "karras", "exponential", "beta"):
            options = {f"use_{which}_sigmas": True} if which else {}
            options |= {} if shift is None else {"shift": shift}
            text = ", ".join(filter(None, ["shift by size" if shift is None else f"shift {shift:g}", which]))
            make = lambda options=options: kind.from_config(config, **options)  # noqa: E731
            yield Candidate("Euler", text, nfe, make, nfe)


def of_schedule(pipe, family: str, schedule: lmsd.Schedule, which: str = "") -> Candidate:
    """A schedule of lmsd."""
    like = pipe.scheduler

    def make():
        return LmsdScheduler.from_schedule(schedule, like=like)

    return Candidate(family, which, schedule.nfe, make, schedule.nfe)
