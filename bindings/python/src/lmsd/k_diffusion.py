"""Sampling in hosts with k-diffusion's conventions: k-diffusion, Forge, A1111, SD.Next, ComfyUI.

Such a host calls `sampler(model, x, sigmas, extra_args, callback, disable)` with a torch state `x` at noise
level `sigmas[0]` and `model(x, sigma, **extra_args) -> denoised`, sigma of shape [B]. It picks the noise
levels by itself; a schedule's levels and weights are one thing, so all that is taken from the host's list are
where it starts, where it ends and how many steps it has.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _core, guidance
from ._abi import Error, Status

if TYPE_CHECKING:
    from torch import Tensor

# Relative: noise levels that differ by less are the same, in all hosts. These round them to three digits, as
# in 14.6, or to bfloat16. A state that is off by as much ends 0.5 % further away with a digits schedule of 5
# NFE, and 13 % with one of 8; so `sample_lmsd` brings it to the schedule's level, which costs nothing.
SAME = 5e-3


def host_sigmas(schedule: _core.Schedule) -> "Tensor":
    """The noise levels to give the host: float32 tensor [nfe + 1], from `sigma_start` on.

    The first is that of x_T, which need not be that of the first model call.
    """
    import torch

    return torch.tensor([schedule.sigma_start, *schedule.sigmas[1:]], dtype=torch.float32)


def fitting(schedule: _core.Schedule, sigmas: "Tensor | Sequence[float]") -> _core.Schedule:
    """The schedule for a run from `sigmas[0]` to `sigmas[-1]`, at least two of them.

    From `schedule.sigma_start` the whole of it, for which the host must be set to `schedule.nfe` steps; from
    below (image to image) the rest that starts there, see `Schedule.start_at`. Levels may be rounded, see
    `SAME`. Raises Error otherwise.
    """
    first, last, steps = float(sigmas[0]), float(sigmas[-1]), len(sigmas) - 1
    start, end = schedule.sigma_start, schedule.sigma_end
    if abs(last - end) > max(SAME * end, 1e-7 * start):
        raise Error(f"the host's sigmas end at {last:g}; this schedule ends at {end:g}", Status.MISMATCH)
    if first > start * (1 + SAME):
        raise Error(
            f"the host's sigmas start at {first:g}; this schedule starts at {start:g}, or below",
            Status.MISMATCH,
        )
    if first < start * (1 - SAME):
        return schedule.start_at(first)
    if steps != schedule.nfe:
        raise Error(f"the host is set to {steps} steps; this schedule takes {schedule.nfe}", Status.MISMATCH)
    return schedule


def sample_lmsd(
    model: Callable[..., "Tensor"],
    x: "Tensor",
    sigmas: "Tensor | Sequence[float]",
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    disable: bool | None = None,
    schedule: _core.AnySchedule | Mapping[int, _core.AnySchedule] | None = None,
    set_guidance: Callable[[float], Any] | None = None,
) -> "Tensor":
    """Samples by `schedule`: a Schedule, the path of its file, or a dict from NFE to schedules.

    Of a dict the one with as many steps as the host has is taken. `x`: torch, [B, ...], on any device; it
    stays as it is. `callback` hears every step as a dict of "i", "x", "denoised", "sigma" (level of the
    state) and "sigma_hat" (the one that the model was called at), the last two tensors of shape [].
    `disable`: no progress bar. Where calls have a guidance of their own (see `Schedule.guidance`),
    `set_guidance` gets the share before each; without it the `cond_scale` of `extra_args` changes.
    Raises Error where there is neither, and where `sigmas` do not fit the schedule, see `fitting`.
    """
    from tqdm.auto import tqdm

    if len(sigmas) < 2:
        return x
    if isinstance(schedule, Mapping):
        steps = len(sigmas) - 1
        if steps not in schedule:
            there = ", ".join(map(str, sorted(schedule)))
            raise Error(f"the host is set to {steps} steps; there are schedules of {there}", Status.MISMATCH)
        schedule = schedule[steps]
    schedule = fitting(_core.as_schedule(schedule), sigmas)
    x = x * (schedule.sigma_start / float(sigmas[0]))  # noise of the host's level, which may be a rounded one
    arguments = guided(schedule, extra_args, set_guidance)

    def denoised(x, sigma, share=1.0):
        return model(x, x.new_full((x.shape[0],), sigma), **arguments(share))

    with tqdm(total=schedule.nfe, disable=disable) as bar:

        def on_step(step):
            if callback is not None:
                levels = {name: x.new_tensor(step[name]) for name in ("sigma", "sigma_hat")}
                callback(step | levels)
            bar.update()

        return _core.sample(schedule, x, denoised, on_step)


def guided(
    schedule: _core.Schedule,
    extra_args: Mapping[str, Any] | None,
    set_guidance: Callable[[float], Any] | None = None,
) -> Callable[[float], Mapping[str, Any]]:
    """A function from the share of the guidance that a call has to the model's further arguments."""
    extra_args = extra_args or {}
    if not schedule.is_guided:
        return lambda share: extra_args
    if set_guidance is not None:
        return lambda share: (set_guidance(share), extra_args)[1]
    if not isinstance(extra_args.get("cond_scale"), int | float):
        raise Error(
            "the schedule has a guidance of its own for each call, and there is no cond_scale among "
            "extra_args to set it by: use a schedule that was distilled without fit_guidance",
            Status.MISMATCH,
        )
    return lambda share: {**extra_args, "cond_scale": guidance.of_call(extra_args["cond_scale"], share)}


# ---- parts of a run


class Stopped(NamedTuple):
    """Where a run stopped before its end: all that the rest of it needs."""

    index: int  # the node that comes next
    x: "Tensor"  # the state there
    predictions: list  # D_0, D_1, ... before it, in main memory; None where no later row needs one


def part_of(levels: Sequence[float], sigmas: "Tensor | Sequence[float]") -> tuple[int, int] | None:
    """Where `sigmas` (two or more) stand in the list `levels`: its first and last index; None if nowhere."""
    given = [float(sigma) for sigma in sigmas]
    for first in range(len(levels) - len(given) + 1):
        own = levels[first : first + len(given)]
        if all(abs(a - b) <= SAME * max(a, b) for a, b in zip(given, own, strict=True)):
            return first, first + len(given) - 1
    return None


def ended_at(schedule: _core.Schedule, sigma: float) -> _core.Schedule:
    """The schedule that stops at noise level `sigma`, between its ends; cf. `Schedule.start_at`.

    The state nearest to `sigma` in log sigma moves there, and the nodes from it on are dropped; a first node
    that is not above `sigma` moves to `sigma_start`. The record of distances goes: it is about the whole.
    """
    if not schedule.sigma_end < sigma < schedule.sigma_start:
        ends = f"above {schedule.sigma_end:g} and below {schedule.sigma_start:g}"
        raise Error(f"sigma is {sigma:g}; this schedule can stop {ends}", Status.MISMATCH)
    file = schedule.to_dict()
    nodes, levels = file["nodes"], schedule.sigmas
    if levels[0] <= sigma:
        levels[0] = nodes[0]["sigma"] = schedule.sigma_start
        if schedule.process == "flow":
            nodes[0]["scale"] = min(nodes[0]["scale"], 1 / schedule.sigma_start)

    def far(end):
        return abs(math.log(levels[end] / sigma)) if levels[end] > 0 else math.inf

    end = min((end for end in range(1, schedule.nfe + 1) if levels[end - 1] > sigma), key=far)
    file |= {"nodes": nodes[:end], "nfe": end, "sigma_end": sigma}
    if "made_by" in file:
        file["made_by"] = {"method": schedule.made_by["method"]} if "method" in schedule.made_by else {}
    return _core.Schedule.from_json(file)


def sample_part(
    model: Callable[..., "Tensor"],
    x: "Tensor",
    schedule: _core.Schedule,
    stop: int,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], Any] | None = None,
    disable: bool | None = None,
    after: Stopped | None = None,
    set_guidance: Callable[[float], Any] | None = None,
) -> Stopped:
    """Runs the nodes of `schedule` before `stop` and says where it stands; `stop`: 1 to `schedule.nfe`.

    It begins with the first node, at the level `schedule.sigma_start`; or, with `after`, where a run stopped
    before, and `x` then only says what tensors are like. Two parts give what one run gives, to the last bit.
    The rest as for `sample_lmsd`; steps are counted from 0 in each part.
    """
    import torch
    from tqdm.auto import tqdm

    arguments = guided(schedule, extra_args, set_guidance)
    run, predictions, state = _core.Sampler(schedule, x), [], None
    if after is not None:
        for own in after.predictions:
            predictions.append(x if own is None else own.to(x))
            run.step(predictions[-1])
        state = after.x.to(x)
    start = run.index
    with torch.no_grad(), tqdm(total=stop - start, disable=disable) as bar:
        for n in range(start, stop):
            reached, sigma = run.next()
            at = reached if state is None else state
            predictions.append(model(at, at.new_full((len(x),), sigma), **arguments(run.guidance)))
            if callback is not None:
                levels = {"sigma": schedule.sigmas[n], "sigma_hat": sigma}
                levels = {name: x.new_tensor(float(level)) for name, level in levels.items()}
                callback({"i": n - start, "x": at, "denoised": predictions[-1], **levels})
            run.step(predictions[-1], state)
            state = None
            bar.update()
    rows = enumerate(schedule.weights)
    oldest = min((m + 1 - len(row) for m, row in rows if m >= stop), default=stop)
    kept = [own.to("cpu", copy=True) if n >= oldest else None for n, own in enumerate(predictions)]
    return Stopped(stop, run.result, kept)
