"""A scheduler whose steps answer the model calls of a distillation, and its place in the pipeline."""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

from .._abi import Error, Status
from .batches import PipelineCalls
from .network import OWN_LEVELS, Network, settings
from .timesteps import PASS_LENGTH, Levels, NotGiven, PassOver, Timesteps


class ModelCall(NamedTuple):
    """A call of the model that a distillation asks for: batch number `batch`, noise level `sigma`.

    `x`: the state in float32 or float64; None in the first pass, which only shows what the latents look like.
    """

    batch: int
    x: torch.Tensor | None
    sigma: float


class Driver(SchedulerMixin, ConfigMixin):
    """A scheduler whose steps answer the model calls of a distillation. It keeps the config of `like`.

    A pass through the pipeline serves calls of one batch: `timesteps` are the network's timesteps of each,
    `step` hands in the prediction and returns the state of the next one. It ends where another batch is asked
    for. `takes_latents`: whether the pipeline is handed its first state, or else makes up one, which costs
    one network call a pass; also found to be false where a pipeline that is handed one begins with another.
    """

    config_name = "scheduler_config.json"
    order = 1
    init_noise_sigma = 1.0
    begin_index = step_index = None

    def __init__(self, like, network: Network, takes_latents: bool):
        self.register_to_config(**settings(like))
        self.network, self.takes_latents = network, takes_latents
        self.call = ModelCall(0, None, network.sigma_max)
        self.receive: Callable[[], ModelCall | None] = lambda: None
        self.answer: Callable[[torch.Tensor], None] = lambda denoised: None
        self.latents: torch.Tensor | None = None  # such as the pipeline's own: shape, dtype, device
        self.copies = 1  # of each latent in the pipeline's state; two where it doubles them for guidance
        self.mu, self.device = None, None
        self._proven = False  # that the pipeline begins with the latents that it is handed
        self._batch, self._handed, self._scaled, self._times = 0, None, None, None
        self._count, self._begun = 0, 0  # steps so far, and at the beginning of this pass

    def run(self, pipeline: PipelineCalls) -> None:
        """Runs `pipeline(batch, latents)` for as long as there are model calls to answer."""
        while self.call is not None:
            call, count = self.call, self._count
            self._batch, self._begun, self._handed, self._scaled = call.batch, count, None, None
            if self.takes_latents and call.x is not None:
                self._hand(call.x)
            try:
                pipeline(call.batch, self._handed)
            except Exception as error:
                if self.over and self._count != count:
                    pass  # after its loop: what it then does with the latents is not wanted
                elif isinstance(error, NotGiven):
                    raise Error(str(error), Status.WRONG_STATE) from error
                elif self._count == count and pipeline.gives_in(error):
                    continue
                elif self._handed is None or self._proven or self._count != count:
                    raise
                else:
                    self.takes_latents = False  # another shape may be wanted: packed later, for example
                    continue
            if self._count == count:
                raise Error("the pipeline returned without a call of scheduler.step()", Status.WRONG_STATE)

    def set_timesteps(
        self, num_inference_steps=None, device=None, timesteps=None, sigmas=None, mu=None, **others
    ):
        if others:
            raise Error(
                f"the pipeline gives {', '.join(others)} to scheduler.set_timesteps()", Status.WRONG_STATE
            )
        if sigmas is not None and not self.network.expects(sigmas):
            raise Error(f"{OWN_LEVELS}, and cannot sample with a schedule", Status.WRONG_STATE)
        self.network.hear(timesteps, sigmas, mu, self.config)
        self.mu, self.device, self._times = mu, device, None

    def set_begin_index(self, begin_index=0):
        pass

    @property
    def timesteps(self) -> Timesteps:
        if self._times is None:
            self._times = Timesteps.of(self._steps, lambda: self.over, self._time())
        return self._times

    @property
    def sigmas(self) -> Levels:
        return Levels(lambda: (self._count - self._begun, torch.tensor(self.call.sigma)))

    @property
    def over(self) -> bool:
        """Whether all calls of this pass are answered."""
        return self.call is None or self.call.batch != self._batch

    def _time(self) -> torch.Tensor:
        time = self.network.timestep(self.call.sigma)
        return torch.tensor(time, dtype=self.network.timestep_dtype, device=self.device)

    def _steps(self) -> Iterator[torch.Tensor]:
        for _ in range(PASS_LENGTH):
            if self.over:
                return
            count = self._count
            yield self._time()
            if self._count == count:
                raise Error("the pipeline went on without a call of scheduler.step()", Status.WRONG_STATE)

    def scale_model_input(self, sample, timestep=None):
        if self.over:
            raise PassOver
        handed = self._handed
        if handed is not None and sample.shape[1:] == handed.shape[1:]:
            self._proven = self._proven or torch.equal(sample[: len(handed)], handed)
        scaled = sample * self.network.input_scale(self.call.sigma)
        self._scaled = (scaled, sample)
        return scaled

    def step(self, model_output, timestep, sample, generator=None, return_dict=True, **others):
        if self.over:
            raise PassOver
        self._count += 1
        call, out = self.call, self._unscaled(sample)
        self._check_step(timestep, others)
        if call.x is None:  # the first pass: all it is for is to see the latents
            self.latents, self.call = out, None
        elif not self._begun_as_handed(out):
            out = self._hand(call.x)
        else:
            output = model_output[: len(call.x)] if self.copies > 1 else model_output
            self.answer(self.network.denoised(output.to(call.x.dtype), call.x, call.sigma))
            self.call = self.receive()
            out = self._handed if self.over else self._hand(self.call.x)
        if not self.over and self._times is not None:
            self._times.fill_(self.network.timestep(self.call.sigma))
        return DDIMSchedulerOutput(out, out) if return_dict else (out, out)

    def _unscaled(self, sample):
        """The state; some pipelines keep what `scale_model_input` returned in its place."""
        if self._scaled is None:
            if self.network.process == "ve":
                raise Error("the pipeline did not call scheduler.scale_model_input()", Status.WRONG_STATE)
            return sample
        scaled, given = self._scaled
        self._scaled = None
        return given if sample is scaled else sample

    def _check_step(self, timestep, others):
        if others.get("per_token_timesteps") is not None:
            raise Error("the pipeline has a noise level for each token", Status.WRONG_STATE)
        time, taken = self.network.timestep(self.call.sigma), float(torch.as_tensor(timestep).reshape(-1)[0])
        if not abs(taken - time) <= 0.01 * max(1, abs(time)):  # half precision is enough
            raise Error(
                f"the pipeline takes a step at timestep {taken:.6g} where it was given {time:.6g}",
                Status.WRONG_STATE,
            )

    def _begun_as_handed(self, sample) -> bool:
        """Whether the pipeline is at the state that it was handed; if not, whether that is in order."""
        handed = self._handed
        if handed is None:
            return False
        same = sample.shape == handed.shape and torch.allclose(sample, handed, rtol=0, atol=0, equal_nan=True)
        if not same and self._proven:
            raise Error(
                "the pipeline changes the latents between steps, as it does where it puts the known part of"
                " an image back: distill the text-to-image pipeline of the model, and sample with this one",
                Status.WRONG_STATE,
            )
        if same:
            self._proven = True
            return True
        self.takes_latents = False
        if sample.shape != handed.shape:
            raise PassOver  # the pipeline has built what follows for another shape
        return False

    def _hand(self, x):
        self._handed = torch.cat([x.to(self.latents.dtype)] * self.copies)
        self._proven = self._proven or not self.takes_latents
        return self._handed

    def add_noise(self, original_samples, noise, timesteps):
        """At the noise level of any timestep. Where a pipeline begins with it, it is replaced by a state."""
        times = torch.as_tensor(timesteps).reshape(-1).tolist()
        sigma = torch.tensor([self.network.sigma(time) for time in times]).to(original_samples)
        return self.network.noisy(original_samples, noise, sigma)

    def scale_noise(self, sample, timestep, noise=None):
        return self.add_noise(sample, noise, timestep)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise NotGiven(name) from None

    def __deepcopy__(self, memo):
        raise Error(
            "the pipeline copies its scheduler for another part of its state: one schedule cannot be fitted"
            " to both",
            Status.WRONG_STATE,
        )


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
