"""Distilled schedules in diffusers pipelines: a scheduler, and distillation inside a pipeline.

    found = lmsd.diffusers.distill(pipe, prompts, nfe=5, guidance_scale=7.5)
    pipe.scheduler = lmsd.diffusers.LmsdScheduler.from_schedule(found, like=pipe.scheduler)
    image = pipe(prompt, num_inference_steps=5, guidance_scale=7.5).images[0]

Needs torch and diffusers.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ._abi import ScheduleError, Status
from ._core import Distilled, Sampler, Schedule

try:
    import torch
    from diffusers import ConfigMixin, SchedulerMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
    from diffusers.utils import BaseOutput
except ImportError as error:
    raise ImportError(f"lmsd.diffusers needs torch and diffusers: pip install torch diffusers ({error})")

from ._files import schedule_files
from ._pipeline.distillation import distill, logger
from ._pipeline.network import OWN_LEVELS, Network, settings, shift_of

__all__ = ["LmsdScheduler", "LmsdSchedulerOutput", "distill"]


NOT_OURS = (
    "a schedule has its own timesteps and sigmas: leave them out and pass num_inference_steps only"
    f" (or else {OWN_LEVELS}, and cannot sample with a schedule)"
)


class _Schedules(list):
    """The schedules in a config, which diffusers shows in warnings: one line is enough."""

    def __repr__(self):
        return f"<schedules of {', '.join(str(schedule['nfe']) for schedule in self)} steps>"


@dataclass
class LmsdSchedulerOutput(BaseOutput):
    """`prev_sample`: the next state; `pred_original_sample`: the prediction of x0 at this one."""

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class LmsdScheduler(SchedulerMixin, ConfigMixin):
    """Samples with lmsd schedules, one for each number of steps, in any pipeline that takes a scheduler.

    Make one with `from_schedule`. Deterministic; one network call a step. A state is x = x0 + sigma n, for
    flow_prediction (1 - sigma) x0 + sigma n; x_T is sqrt(1 + sigma_start^2) n, for flow n, which is also what
    `lmsd.diffusers.distill` fits to. Timesteps are the numbers that the network gets: floats between its
    training steps by log sigma, clipped to their range.

    `schedules`: dicts of the schedule file, all of one process and sigma_start, each of its own NFE.
    `prediction_type`: epsilon, v_prediction, sample, or flow_prediction. `integer_timesteps`: rounds the
    timesteps, for networks that take nothing else. `clip_sample`, `thresholding` and what they need: as in
    DDIMScheduler, for predictions of x0. The others say what the network was trained with, as in
    EulerDiscreteScheduler, CogVideoXDDIMScheduler and FlowMatchEulerDiscreteScheduler.

    Raises ScheduleError where a schedule is damaged, or was made for another process, range of noise levels
    or shift.
    """

    _compatibles = [*(e.name for e in KarrasDiffusionSchedulers), "FlowMatchEulerDiscreteScheduler"]
    order = 1

    @register_to_config
    def __init__(
        self,
        schedules: list[dict] | None = None,
        prediction_type: str = "epsilon",
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        timestep_type: str = "discrete",
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        integer_timesteps: bool = False,
        snr_shift_scale: float = 1.0,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
    ):
        self._network = Network(self.config)
        if self._network.betas is not None:
            self.betas, self.alphas_cumprod = self._network.betas, self._network.alphas_cumprod
            self.alphas = 1 - self.betas
        self._family = self._checked(schedules)
        self.register_to_config(schedules=_Schedules(schedules))
        self._warned = set()
        self.set_timesteps(max(self._family))

    @classmethod
    def from_schedule(
        cls,
        schedules: Schedule | Distilled | str | os.PathLike | Iterable,
        prediction_type: str | None = None,
        like: SchedulerMixin | None = None,
        **config,
    ) -> "LmsdScheduler":
        """From a schedule, what `distill` returned, a schedule file, a folder of them, or several of these.

        `like`: the pipeline's present scheduler, whose config says what network it is; `prediction_type` and
        `config` (the constructor's arguments) go before it. Without: epsilon, or flow_prediction if the
        schedules are for flow. Schedules that were fitted to a network that snaps round their timesteps.
        """
        found = list(_schedules(schedules))
        config = {**(settings(like) if like is not None else {}), **config}
        if prediction_type is not None:
            config["prediction_type"] = prediction_type
        flow = bool(found) and found[0].process == "flow"
        config.setdefault("prediction_type", "flow_prediction" if flow else "epsilon")
        config.setdefault("integer_timesteps", any(s.made_for.get("snapped") for s in found))
        return cls.from_config({**config, "schedules": [schedule.to_dict() for schedule in found]})

    def _checked(self, schedules) -> dict[int, Schedule]:
        """NFE -> Schedule, after lmsd's own checks and against this network."""
        network, family = self._network, {}
        if not isinstance(schedules, Sequence) or not all(isinstance(s, Mapping) for s in schedules):
            raise ScheduleError("the config has no list of schedules; LmsdScheduler.from_schedule makes one")
        host = {"process": network.process, "sigma_max": network.sigma_max, "shift": network.shift}
        if network.process == "ve":
            host["sigma_min"] = network.sigma_min
        for schedule in map(Schedule.from_json, schedules):
            if schedule.is_guided:
                raise ScheduleError(
                    "the schedule has a guidance of its own for each call, which a pipeline cannot set: "
                    "distill without fit_guidance",
                    Status.MISMATCH,
                )
            schedule.check(**host)
            if schedule.sigma_start > 1.001 * network.sigma_max:
                raise ScheduleError(
                    f"the schedule starts at sigma {schedule.sigma_start}; this network knows no noise level"
                    f" above {network.sigma_max}",
                    Status.MISMATCH,
                )
            if schedule.nfe in family:
                raise ScheduleError(f"there are two schedules of {schedule.nfe} NFE")
            family[schedule.nfe] = schedule
        if len({schedule.sigma_start for schedule in family.values()}) != 1:
            raise ScheduleError("one schedule or more is needed, all with the same sigma_start")
        return family

    def __len__(self):
        return self.config.num_train_timesteps

    @property
    def schedule(self) -> Schedule:
        """The schedule that `set_timesteps` chose."""
        return self._schedule

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of x_T: sqrt(1 + sigma_start^2), for flow 1."""
        return self._network.start(self._schedule.sigma_start)

    @property
    def step_index(self) -> int | None:
        """The step to come, from 0; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The first step, where `set_begin_index` said so."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Sampling will begin at this step, with a state of its noise level (image-to-image)."""
        if not 0 <= begin_index < self._schedule.nfe:
            raise ValueError(
                f"sampling cannot begin at step {begin_index} of a schedule of {self._schedule.nfe} steps;"
                f" give num_inference_steps={self._schedule.nfe} and a strength that leaves one step or more"
            )
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        **others,
    ) -> None:
        """Takes the schedule of `num_inference_steps` and readies a new run.

        `sigmas` are what flow pipelines pass by themselves, evenly spaced, and count by their length only; or
        the schedule's own. Where `timesteps` come with them, which are then the same, the network is told the
        time before the shift. `mu` is compared with the shift that the schedule was made for. Raises
        ValueError where there is no schedule of so many steps, and for noise levels that somebody chose: the
        schedule has its own.
        """
        if others:
            raise ValueError(
                f"a schedule has no {', '.join(others)}: the pipeline is for schedulers that have"
            )
        if sigmas is None and timesteps is not None:
            raise ValueError(NOT_OURS)
        nfe = self._nfe(num_inference_steps if sigmas is None else len(sigmas))
        self._schedule = schedule = self._family[nfe]
        if sigmas is not None and not self._expected(sigmas):
            raise ValueError(NOT_OURS)
        self._network.hear(timesteps, sigmas, mu, self.config)
        made_for = schedule.made_for.get("shift")
        if mu is not None and made_for and self.config.use_dynamic_shifting:
            shift = shift_of(mu, self.config)
            if abs(shift - made_for) > 1e-3 * made_for:
                self._warn(f"the schedule was made for shift {made_for:.4g}; here it is {shift:.4g}")

        self.num_inference_steps = nfe
        times = [self._network.timestep(sigma) for sigma in schedule.scales * schedule.sigmas[:-1]]
        self.timesteps = torch.tensor(times, dtype=self._network.timestep_dtype, device=device)
        # noise level of the pipeline's latents before each step, and of the result
        self.sigmas = torch.tensor([schedule.sigma_start, *schedule.sigmas[1:].tolist()])
        self._step_index, self._begin_index = None, None
        self._run, self._sampler, self._scaled = None, None, None

    def _nfe(self, steps: int | None) -> int:
        """The number of steps asked for. Raises ValueError where there is no schedule of so many."""
        if steps is None:
            raise ValueError("set_timesteps needs num_inference_steps")
        if steps < 1:
            raise ValueError(f"num_inference_steps is {steps}; 1 or more are needed")
        if steps not in self._family:
            known = ", ".join(map(str, sorted(self._family)))
            raise ValueError(f"there is no schedule of {steps} steps: num_inference_steps can be {known}")
        return int(steps)

    def _expected(self, sigmas: Sequence[float]) -> bool:
        """Whether these are a flow pipeline's own noise levels, evenly spaced, or those of the schedule."""
        given = [float(sigma) for sigma in sigmas]
        return np.allclose(given, self._schedule.sigmas[:-1], 1e-3, 1e-6) or self._network.expects(given)

    def _warn(self, text):
        if text not in self._warned:
            self._warned.add(text)
            logger.warning(text)

    def index_for_timestep(self, timestep, schedule_timesteps: torch.Tensor | None = None) -> int:
        """The step whose timestep this is."""
        own = self.timesteps if schedule_timesteps is None else schedule_timesteps
        timestep = torch.as_tensor(timestep, device=own.device)
        if timestep.is_floating_point():
            own = own.to(timestep.dtype)
        found = (own == timestep).nonzero()
        if len(found) == 0:
            raise ValueError(f"{timestep.item()} is none of scheduler.timesteps, {own.tolist()}")
        return found[0].item()

    def _begin(self, timestep) -> None:
        """The run from the first step on: the whole schedule, or what `Schedule.start_at` leaves of it."""
        index = self._begin_index
        if index is None:
            index = self.index_for_timestep(timestep)
        whole = self._schedule
        run = whole if index == 0 else whole.start_at(float(whole.sigmas[index]))
        if run.nfe != whole.nfe - index:
            raise ValueError(f"sampling cannot begin at step {index}, between the two stages of a solver")
        self._run, self._step_index = run, index
        # what the library makes of an x_T of 1: the factor from the pipeline's latents to its first state
        self._start = float(Sampler(run, np.ones(1)).next()[0][0])
        self._lift = 1.0
        self._sampler, self._scaled = None, None

    def _here(self, timestep) -> tuple[float, float]:
        """(factor from the pipeline's latents to the state, noise level that the network is called at)."""
        if self._step_index is None:
            self._begin(timestep)
        run = self._run
        n = self._step_index - (self._schedule.nfe - run.nfe)
        if n == run.nfe:
            raise ValueError("the last step was taken; set_timesteps begins a new run")
        return self._start if n == 0 else 1.0, float(run.scales[n] * run.sigmas[n])

    def scale_model_input(self, sample: torch.Tensor, timestep=None) -> torch.Tensor:
        """The network's input: the state, for ve divided by sqrt(1 + sigma^2) of the noise level of the call.

        At the first step the state is sigma[0] / sigma_start times `sample`, and `init_noise_sigma` times
        that where the pipeline begins with noise of unit variance.
        """
        factor, sigma = self._here(timestep)
        self._lift = self._unit_noise(sample) if self._step_index == 0 else 1.0
        scaled = sample * (factor * self._lift * self._network.input_scale(sigma))
        self._scaled = (scaled, sample)
        return scaled

    def _unit_noise(self, sample: torch.Tensor) -> float:
        """What x_T is yet to be multiplied by: 1, or `init_noise_sigma` where the pipeline did not do it.

        DiTPipeline does not. Where it was done, x_T has about that size, from noise or from an image; else 1.
        """
        start = self.init_noise_sigma
        size = float(sample.float().square().mean().sqrt()) if start > 4 else start
        return start if size < math.sqrt(start) else 1.0

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        **ignored,
    ) -> LmsdSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """The state after this step, in the dtype and layout of `sample`; sums are in float32 or better.

        `sample` is the pipeline's own state at this step, which it may have changed since the last one, or
        what `scale_model_input` made of it. `timestep` is looked at before the first step only. `generator`
        and what other schedulers take besides change nothing; no gradients are recorded. Raises ValueError
        after the last step, where the pipeline should have called `scale_model_input` but did not, and for a
        noise level for each token; lmsd.Error where the network's output is not finite.
        """
        if ignored.get("per_token_timesteps") is not None:
            raise ValueError("a schedule has one noise level for all of a sample, not one for each token")
        factor, sigma = self._here(timestep)
        sample = self._unscaled(sample, factor)
        wide = sample.to(torch.promote_types(sample.dtype, torch.float32))
        if self._sampler is None:
            self._sampler = Sampler(self._run, wide * self._lift)
            x = self._sampler.next()[0]
        else:
            x = wide
        denoised = self._network.denoised(model_output.to(x.dtype), x, sigma)
        self._sampler.step(denoised, x)
        x = torch.empty_like(sample).copy_(self._sampler.result)  # in the dtype and the strides of `sample`
        denoised = denoised.to(sample.dtype)
        self._step_index += 1
        if self._step_index == self._schedule.nfe:
            self._sampler = None
        return LmsdSchedulerOutput(x, denoised) if return_dict else (x, denoised)

    def _unscaled(self, sample: torch.Tensor, factor: float) -> torch.Tensor:
        """The state; some pipelines keep what `scale_model_input` returned in its place.

        Raises ValueError where `scale_model_input` was needed since the last step, and was not called.
        """
        if self._scaled is None:
            if factor == 1 and self._network.process == "flow":
                return sample
            reason = "this network takes scaled latents"
            if self._network.process == "flow":
                reason = f"the schedule scales x_T by {factor:.6g} first; distill with fit_start=False"
            raise ValueError(f"the pipeline did not call scheduler.scale_model_input(): {reason}")
        scaled, given = self._scaled
        self._scaled = None
        return given if sample is scaled else sample

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """`original_samples` at the noise levels of `timesteps`, one for each or one for all.

        Those of the latents before these steps; while a run is on, before the step to come.
        """
        if self._begin_index is None:
            steps = [self.index_for_timestep(timestep) for timestep in timesteps]
        elif self._step_index is None:
            steps = [self._begin_index] * len(timesteps)
        else:
            steps = [self._step_index] * len(timesteps)
        return self._network.noisy(original_samples, noise, self.sigmas[steps].to(original_samples))

    def scale_noise(
        self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """`add_noise` as flow pipelines call it."""
        return self.add_noise(sample, noise, timestep)


def _schedules(given) -> Iterable[Schedule]:
    """Schedules, whatever holds them."""
    if isinstance(given, Schedule):
        yield given
    elif isinstance(given, Distilled):
        yield from given.schedules.values()
    elif isinstance(given, str | os.PathLike):
        yield from map(Schedule.load, schedule_files([given]))
    else:
        for one in given:
            yield from _schedules(one)
