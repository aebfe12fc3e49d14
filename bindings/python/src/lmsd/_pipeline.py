"""Distillation inside an unmodified diffusers pipeline, and what its network is in lmsd's coordinates.

A pipeline owns its denoising loop, and so does `lmsd.distill`. So the latter runs in a second thread, and a
`Driver` stands in for the pipeline's scheduler: each step of the pipeline's loop answers one model call of
the distillation, at the state and the noise level that it asks for.
"""

import contextlib
import inspect
import math
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import ConfigMixin, EulerDiscreteScheduler, SchedulerMixin
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils import logging

from . import _core
from ._abi import Error, Status
from ._hosts import out_of_memory

logger = logging.get_logger("diffusers.lmsd")  # below diffusers' own logger: its verbosity holds

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")
BETAS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)
PASS_LENGTH = 1000  # steps of one pass through a pipeline that a Driver drives; it then starts another


def settings(scheduler) -> dict:
    """The config of a pipeline's scheduler, in which `prediction_type` and `shift` are always to be found.

    Raises Error for networks whose coordinates are not those of `Network`.
    """
    config = {name: value for name, value in dict(scheduler.config).items() if name != "_use_default_values"}
    if "sigma_data" in config or config.get("invert_sigmas"):
        raise Error(f"{type(scheduler).__name__}: networks of this kind are not supported")
    if config.get("use_flow_sigmas"):
        config |= {"prediction_type": "flow_prediction", "shift": config.get("flow_shift", 1.0)}
    elif "shift" in config and "prediction_type" not in config:  # FlowMatchEulerDiscreteScheduler and kin
        config["prediction_type"] = "flow_prediction"
    return config


class Network:
    """What a network of diffusers is told and returns, from its scheduler's config.

    epsilon, v_prediction and sample: process "ve", x = x0 + sigma n as in EulerDiscreteScheduler; the network
    is given x / sqrt(1 + sigma^2). flow_prediction: process "flow"; the network is given x itself.
    `sigma_min`, `sigma_max`: the range of its training; `betas`: of the former, else None.
    """

    def __init__(self, config: Mapping):
        self.prediction_type = config.get("prediction_type", "epsilon")
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type is {self.prediction_type!r}; {', '.join(PREDICTION_TYPES)} are supported"
            )
        self.process = "flow" if self.prediction_type == "flow_prediction" else "ve"
        self.steps = config.get("num_train_timesteps", 1000)
        self.integer = bool(config.get("integer_timesteps"))
        self.log_time = False  # as EulerDiscreteScheduler's continuous timesteps: log(sigma) / 4
        self.betas, self.shift = None, None
        if self.process == "flow":
            if not config.get("use_dynamic_shifting"):
                self.shift = float(config.get("shift", 1.0))
            self.sigma_max = 1.0
            self.sigma_min = shifted(1 / self.steps, self.shift or 1.0)
            return
        euler = EulerDiscreteScheduler(**{name: config[name] for name in BETAS if name in config})
        self.betas, self.alphas_cumprod = euler.betas, euler.alphas_cumprod
        sigmas = ((1 - euler.alphas_cumprod) / euler.alphas_cumprod).double().sqrt().numpy()
        self.log_sigmas = np.log(sigmas)
        self.sigma_min, self.sigma_max = float(sigmas[0]), float(sigmas[-1])
        if config.get("timestep_type") == "continuous" and self.prediction_type == "v_prediction":
            self.log_time = True
            self.sigma_min = config.get("sigma_min") or self.sigma_min
            self.sigma_max = config.get("sigma_max") or self.sigma_max

    def timestep(self, sigma: float) -> float:
        """What the network is told for `sigma`: between training steps by log sigma, clipped to their range.

        Flow: num_train_timesteps * sigma.
        """
        if self.process == "flow":
            time = self.steps * sigma
        elif self.log_time:
            return 0.25 * math.log(sigma)
        else:
            time = float(np.interp(math.log(sigma), self.log_sigmas, np.arange(self.steps)))
        return round(time) if self.integer else time

    @property
    def timestep_dtype(self) -> torch.dtype:
        return torch.int64 if self.integer and not self.log_time else torch.float32

    def input_scale(self, sigma: float) -> float:
        """Factor from a state to the network's input at `sigma`."""
        return 1.0 if self.process == "flow" else 1 / math.sqrt(1 + sigma**2)

    def start(self, sigma: float) -> float:
        """Standard deviation of the x_T that stands for noise level `sigma`.

        sqrt(1 + sigma^2): the network's input has unit variance, as it has in DDIMScheduler and whatever else
        keeps x / sqrt(1 + sigma^2). Flow: 1, as no flow pipeline scales its noise.
        """
        return 1.0 if self.process == "flow" else math.sqrt(1 + sigma**2)

    def denoised(self, output: torch.Tensor, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """The prediction of x0 from the network's output (guidance included) at x."""
        if self.prediction_type == "sample":
            return output
        if self.prediction_type == "v_prediction":
            return x / (1 + sigma**2) - output * (sigma / math.sqrt(1 + sigma**2))
        return x - sigma * output  # epsilon; flow: the velocity n - x0


def shifted(sigma: float, shift: float) -> float:
    """The noise level of a flow model's time `sigma` under `shift` (arXiv 2403.03206, equation 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


class Request(NamedTuple):
    """One model call of a distillation: x (float32) of batch number `batch`, to be told `sigma`."""

    batch: int
    x: torch.Tensor | None
    sigma: float


class Told(NamedTuple):
    """What a distillation says of its progress."""

    progress: dict


class Abandoned(BaseException):
    """Raised in the distillation's thread where nobody waits for it any more."""


class Questions:
    """Runs `function(ask)` in another thread: `ask(question)` there returns what is answered here.

    A context; leaving it ends the thread. Only the functions of this thread, such as a pipeline, run torch
    code of the caller's, so its devices, contexts and Ctrl-C are as ever.
    """

    def __init__(self, function: Callable):
        self._questions, self._answers = queue.SimpleQueue(), queue.SimpleQueue()
        self._result, self._error = None, None
        self._thread = threading.Thread(target=self._run, args=(function,), daemon=True, name="lmsd.distill")

    def _run(self, function):
        try:
            self._result = function(self._ask)
        except BaseException as error:
            self._error = error
        self._questions.put(None)

    def _ask(self, question):
        self._questions.put(question)
        answer = self._answers.get()
        if answer is Abandoned:
            raise Abandoned
        return answer

    def next(self):
        """The next question; None when the function has returned or raised."""
        return self._questions.get()

    def answer(self, value) -> None:
        self._answers.put(value)

    def result(self):
        """What the function returned; raises what it raised."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return self._result
        finally:
            del error  # its traceback holds this frame

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._answers.put(Abandoned)
        self._thread.join()


class Driver(SchedulerMixin, ConfigMixin):
    """A scheduler whose steps answer the model calls of a distillation. It keeps the config of `like`.

    A pass through the pipeline serves calls of one batch: `timesteps` yields what the network is told for
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
        self.request = Request(0, None, network.sigma_max)
        self.receive: Callable[[], Request | None] = lambda: None
        self.answer: Callable[[torch.Tensor], None] = lambda denoised: None
        self.latents: torch.Tensor | None = None  # such as the pipeline's own: shape, dtype, device
        self.mu, self.device = None, None
        self._handed, self._scaled, self._count = None, False, 0

    def run(self, pipeline: Callable) -> None:
        """Calls `pipeline(request)` for as long as there are requests."""
        while self.request is not None:
            request, count = self.request, self._count
            self._handed = None
            if self.takes_latents and request.x is not None:
                self._hand(request.x)
            pipeline(request, self._handed)
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
        batch = self.request.batch
        for _ in range(PASS_LENGTH):
            if self.request is None or self.request.batch != batch:
                return
            count = self._count
            time = self.network.timestep(self.request.sigma)
            yield torch.tensor(time, dtype=self.network.timestep_dtype, device=self.device)
            if self._count == count:
                raise Error("the pipeline went on without a call of scheduler.step()", Status.WRONG_STATE)

    def scale_model_input(self, sample, timestep=None):
        self._scaled = True
        return sample * self.network.input_scale(self.request.sigma)

    def step(self, model_output, timestep, sample, generator=None, return_dict=True, **_):
        self._count += 1
        if self.network.process == "ve" and not self._scaled:
            raise Error("the pipeline did not call scheduler.scale_model_input()", Status.WRONG_STATE)
        self._scaled = False
        request, out = self.request, sample
        if request.x is None:  # the first pass: all it is for is to see the latents
            self.latents, self.request = sample, None
        elif self._handed is None:
            out = self._hand(request.x)
        else:
            if not torch.allclose(sample, self._handed, rtol=0, atol=0, equal_nan=True):
                raise Error("the pipeline changes the latents between steps", Status.WRONG_STATE)
            self.answer(self.network.denoised(model_output.to(request.x.dtype), request.x, request.sigma))
            self.request = self.receive()
            if self.request is not None and self.request.batch == request.batch:
                out = self._hand(self.request.x)
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


@contextlib.contextmanager
def first_interrupt():
    """A list that the first Ctrl-C puts something into; the second one is a KeyboardInterrupt again."""
    hits = []

    def handler(number, _frame):
        hits.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        logger.warning("stopping after this model call; Ctrl-C again to leave at once")

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield hits
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield hits
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def conditions(prompts: Sequence | None, batch: int, size: int) -> dict:
    """The pipeline's arguments for the prompts of one batch: they cycle over its rows, then over batches."""
    if prompts is None:
        return {}
    rows = [prompts[(batch * size + row) % len(prompts)] for row in range(size)]
    if not isinstance(rows[0], Mapping):
        return {"prompt": rows}
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: torch.stack(values) if isinstance(values[0], torch.Tensor) else values
        for name, values in columns.items()
    }


def network_name(pipeline) -> str:
    """Class name of the denoising network."""
    for name in ("unet", "transformer"):
        if getattr(pipeline, name, None) is not None:
            return type(getattr(pipeline, name)).__name__
    return type(pipeline).__name__


def distill(
    pipeline,
    prompts: Sequence[str | Mapping] | None = None,
    *,
    nfe: int | tuple[int, int] = 5,
    guidance_scale: float | None = None,
    batch_size: int | None = None,
    trajectories: int = 84,
    held_out: int = 64,
    seed: int = 0,
    integer_timesteps: bool = False,
    progress: bool | Callable[[dict], Any] = True,
    **options,
) -> _core.Distilled:
    """Distills schedules for a diffusers pipeline as it is, by forward calls only.

        found = lmsd.diffusers.distill(pipe, prompts, nfe=5, guidance_scale=7.5, height=512, width=512)
        pipe.scheduler = LmsdScheduler.from_schedule(found, like=pipe.scheduler)

    `prompts`: texts, which cycle over the trajectories; or dicts of the pipeline's arguments for one image
    each, such as {"prompt": ..., "negative_prompt": ...} or {"prompt_embeds": ...} without the batch
    dimension, whose tensors are stacked; None for an unconditional pipeline. `guidance_scale`: None for the
    pipeline's default. `trajectories`: fresh ones for each fit; `held_out`: others, which decide what is
    kept. `batch_size`: latents in a pass [8, or `trajectories` if fewer]; 4 to 16 make the cheapest fit;
    halved, with a warning, until the first pass finds memory enough. `seed`: batch number b starts from the
    normal numbers of PCG64([seed, b]). `integer_timesteps`: as in LmsdScheduler. `options`: whatever
    the pipeline's call takes goes to it (height, width, ...); the rest goes to `lmsd.distill`, as do `nfe`,
    `trajectories`, `held_out` and `progress`, with the defaults there: a teacher of as many calls as the fit
    needs, no limit, and no checkpoint. x_T, the noise levels, process, teacher_grid and made_for
    follow from the pipeline's scheduler.

    The pipeline must run the standard loop: for t in timesteps: [scale_model_input,] network, step. What the
    network returns may depend on nothing but state, noise level and prompt: no step-dependent guidance, no
    caches across steps. Its scheduler is put back at the end, whatever happens. Ctrl-C keeps the best so far;
    before the first result, and the second time, it is a KeyboardInterrupt.
    """
    parameters = inspect.signature(pipeline.__call__).parameters
    network = Network({**settings(pipeline.scheduler), "integer_timesteps": integer_timesteps})
    size = batch_size or min(8, trajectories)
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if prompts is not None and len(prompts) == 0:
        raise ValueError("there are no prompts; for an unconditional pipeline prompts is None")
    fixed = {name: value for name, value in options.items() if name in parameters}
    config = {name: value for name, value in options.items() if name not in parameters}
    if guidance_scale is not None:
        fixed["guidance_scale"] = guidance_scale
    elif "guidance_scale" in parameters:
        guidance_scale = parameters["guidance_scale"].default
    if "output_type" in parameters:
        fixed.setdefault("output_type", "latent")
    driver = Driver(pipeline.scheduler, network, "latents" in parameters)

    def run_pipeline(request, latents):
        arguments = {**fixed, **conditions(prompts, request.batch, size)}
        if prompts is None and "batch_size" in parameters:
            arguments["batch_size"] = size
        if "generator" in parameters:
            arguments["generator"] = torch.Generator("cpu").manual_seed(request.batch)
        if latents is not None:
            arguments["latents"] = latents
        pipeline(**arguments)

    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(standing_in(pipeline, driver))
        while not fits(driver, run_pipeline, size):
            size //= 2
            logger.warning(f"no memory left; going on with batches of {size} latents")
        if len(driver.latents) != size:
            raise ValueError(
                f"the pipeline has {len(driver.latents)} latents a pass where batch_size is {size}"
            )
        own = {"nfe": nfe, "trajectories": trajectories, "held_out": held_out, **problem(driver)}
        own["made_for"] |= {"model": network_name(pipeline), "snapped": integer_timesteps}
        if isinstance(guidance_scale, int | float):
            own["made_for"]["guidance_scale"] = guidance_scale
        own["seeds"] = f"PCG64([{seed}, batch]), {size} latents a batch"
        if progress is True:
            progress = stack.enter_context(_core.ProgressBar())
        hits = stack.enter_context(first_interrupt())

        def work(ask):
            return in_turn(ask, driver.latents, network.start(network.sigma_max), seed, {**own, **config})

        questions = stack.enter_context(Questions(work))

        def receive():
            while isinstance(question := questions.next(), Told):
                stop = progress(question.progress) if progress else False
                questions.answer(bool(stop or hits))
            return question

        driver.receive, driver.answer = receive, questions.answer
        driver.request = receive()
        driver.run(run_pipeline)
        try:
            return questions.result()
        except Error as error:
            if hits and error.status == Status.STOPPED:
                raise KeyboardInterrupt from None
            raise


def fits(driver: Driver, run_pipeline: Callable, size: int) -> bool:
    """Makes the first pass, which shows the latents; False where memory is too short for batches above 1."""
    try:
        driver.run(run_pipeline)
        return True
    except Exception as error:
        if size == 1 or not out_of_memory(error):
            raise
    torch.cuda.empty_cache()  # nothing where there is no GPU
    return False


def problem(driver: Driver) -> dict:
    """What lmsd.distill is told of the pipeline that a driver has seen one pass of."""
    network, made_for = driver.network, {"latent_shape": list(driver.latents.shape[1:])}
    own = {"process": network.process, "sigma_min": network.sigma_min, "sigma_max": network.sigma_max}
    if network.process == "flow":
        shift = network.shift
        if shift is None and driver.mu is not None:
            shift = shift_of(driver.mu, driver.config)
        if shift is not None:
            own["sigma_min"], made_for["shift"] = shifted(1 / network.steps, shift), shift
        own["teacher_grid"] = {"kind": "flow", "shift": shift or 1.0}
        own["fit_start"] = False  # a flow pipeline hands x_T to the network as it is
    made_for |= {"sigma_min": own["sigma_min"], "sigma_max": own["sigma_max"]}
    return {**own, "sigma_end": 0.0, "made_for": made_for}


def in_turn(ask: Callable, latents: torch.Tensor, start: float, seed: int, config: dict) -> _core.Distilled:
    """lmsd.distill, whose model and progress are questions to another thread.

    `latents`: a batch such as the pipeline's; the state is kept in float32 or better. `start`: standard
    deviation of x_T.
    """
    dtype = torch.promote_types(latents.dtype, torch.float32)
    like = torch.empty(latents.shape, dtype=dtype, device=latents.device)
    current = 0

    def begin(batch):
        nonlocal current
        current = batch
        noise = np.random.default_rng([seed, batch]).standard_normal(like.shape, np.float32)
        return torch.from_numpy(noise).to(like) * start

    def model(x, sigma):
        return ask(Request(current, x, sigma))

    return _core.distill(model, begin, like, progress=lambda told: ask(Told(told)), **config)


def shift_of(mu: float, config: Mapping) -> float:
    """The shift that a dynamically shifted flow pipeline's `mu` stands for."""
    return float(mu) if config.get("time_shift_type") == "linear" else math.exp(mu)
