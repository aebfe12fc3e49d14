"""A scheduler whose steps answer the model calls of a distillation, and its place in the pipeline."""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from .._abi import Error, Status
from .network import Network, settings

PASS_LENGTH = 1000  # steps of one pass through a pipeline that a Driver drives; it then starts another


class ModelCall(NamedTuple):
    """A call of the model that a distillation asks for: batch number `batch`, noise level `sigma`.

    `x`: the state in float32 or float64; None in the first pass, which only shows what the latents look like.
    """

    batch: int
    x: torch.Tensor | None
    sigma: float


class Driver(SchedulerMixin, ConfigMixin):
    """A scheduler whose steps answer the model calls of a distillation. It keeps the config of `like`.

    A pass through the pipeline serves calls of one batch: `timesteps` yields the network's timestep of
    each, `step` hands in the prediction and returns the state of the next one. It ends where another batch
    is asked for. `takes_latents`: whether the pipeline is handed its first state, or else makes up one, which
    costs one network call a pass.
    """

    config_name = "scheduler_config.json"
    order = 1
    init_noise_sigma = 1.0

    def __init__(self, like, network: Network, takes_latents: bool):
        self.register_to_config(**settings(like))
        self.network, self.takes_latents = network, takes_latents
        self.call = ModelCall(0, None, network.sigma_max)
        self.receive: Callable[[], ModelCall | None] = lambda: None
        self.answer: Callable[[torch.Tensor], None] = lambda denoised: None
        self.latents: torch.Tensor | None = None  # such as the pipeline's own: shape, dtype, device
        self.mu, self.device = None, None
        self._handed, self._scaled, self._count = None, False, 0

    def run(self, pipeline: Callable) -> None:
        """Runs `pipeline(batch, latents)` for as long as there are model calls to answer."""
        while self.call is not None:
            call, count = self.call, self._count
            self._handed = None
            if self.takes_latents and call.x is not None:
                self._hand(call.x)
            pipeline(call.batch, self._handed)
            if self._count == count:
                raise Error("the pipeline returned without a call of scheduler.step()", Status.WRONG_STATE)

    def set_timesteps(self, num_inference_steps=None, device=None, timesteps=None, sigmas=None, mu=None):
        self.mu, self.device = mu, device

    def set_begin_index(self, begin_index=0):
        pass

    @property
    def timesteps(self) -> "Driver":
        return self

    def __len__(self) -> int:
        return PASS_LENGTH

    def __iter__(self) -> Iterator[torch.Tensor]:
        batch = self.call.batch
        for _ in range(PASS_LENGTH):
            if self.call is None or self.call.batch != batch:
                return
            count = self._count
            time = self.network.timestep(self.call.sigma)
            yield torch.tensor(time, dtype=self.network.timestep_dtype, device=self.device)
            if self._count == count:
                raise Error("the pipeline went on without a call of scheduler.step()", Status.WRONG_STATE)

    def scale_model_input(self, sample, timestep=None):
        self._scaled = True
        return sample * self.network.input_scale(self.call.sigma)

    def step(self, model_output, timestep, sample, generator=None, return_dict=True, **_):
        self._count += 1
        if self.network.process == "ve" and not self._scaled:
            raise Error("the pipeline did not call scheduler.scale_model_input()", Status.WRONG_STATE)
        self._scaled = False
        call, out = self.call, sample
        if call.x is None:  # the first pass: all it is for is to see the latents
            self.latents, self.call = sample, None
        elif self._handed is None:
            out = self._hand(call.x)
        else:
            if not torch.allclose(sample, self._handed, rtol=0, atol=0, equal_nan=True):
                raise Error("the pipeline changes the latents between steps", Status.WRONG_STATE)
            self.answer(self.network.denoised(model_output.to(call.x.dtype), call.x, call.sigma))
            self.call = self.receive()
            if self.call is not None and self.call.batch == call.batch:
                out = self._hand(self.call.x)
        return SchedulerOutput(prev_sample=out) if return_dict else (out,)

    def _hand(self, x):
        self._handed = x.to(self.latents.dtype, copy=True)
        return self._handed


@contextlib.contextmanager
def standing_in(pipeline, driver: Driver):
    """`driver` in the place of the pipeline's scheduler, and no progress bar for each pass."""
    scheduler, bar = pipeline.scheduler, getattr(pipeline, "_progress_bar_config", None)
    pipeline.scheduler = driver
    pipeline._progress_bar_config = {**(bar or {}), "disable": True}
    try:
        yield
    finally:
        pipeline.scheduler = scheduler
        if bar is None:
            del pipeline._progress_bar_config
        else:
            pipeline._progress_bar_config = bar
