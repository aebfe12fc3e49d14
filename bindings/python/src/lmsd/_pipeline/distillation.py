"""The distillation of a pipeline: from its arguments and first pass to `lmsd.distill`, and back."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging

import lmsd
from lmsd import guidance

from .._abi import Error, Status
from .._interrupt import first_interrupt
from .._memory import halve_until_it_fits
from .batches import PipelineCalls
from .driver import Driver, ModelCall, standing_in
from .network import Network, settings, shift_of, shifted
from .thread import CallbackThread

logger = logging.get_logger("diffusers.lmsd")  # below diffusers' own logger: its verbosity holds

BATCH_SIZE = 8


class ProgressReport(NamedTuple):
    """What `lmsd.distill` hands to its `progress`."""

    progress: dict


def distill(
    pipeline,
    prompts: Sequence[str | Mapping] | None = None,
    *,
    nfe: int | tuple[int, int] | None = None,
    guidance_scale: float | Sequence[float] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    integer_timesteps: bool = False,
    progress: bool | Callable[[dict], Any] = True,
    **options,
) -> lmsd.Distilled:
    """Distills schedules for a diffusers pipeline as it is, by forward calls only.

        found = lmsd.diffusers.distill(pipe, prompts, nfe=5, guidance_scale=7.5, height=512, width=512)
        pipe.scheduler = LmsdScheduler.from_schedule(found, like=pipe.scheduler)

    `prompts`: texts, which cycle over the trajectories; or dicts of the pipeline's arguments for one image
    each, such as {"prompt": ..., "negative_prompt": ...} or {"prompt_embeds": ...} without the batch
    dimension, whose tensors are stacked; None for an unconditional pipeline. `guidance_scale`: None for the
    pipeline's default; several, such as `lmsd.guidance.spread(2, 7)`, make schedules for their range: batches
    take one each in turn. `batch_size`: latents in a pass [8, or `trajectories` if fewer]; 4 to 16 make the
    cheapest fit; halved, with a warning, until the first pass finds memory enough. `seed`: batch number b
    starts from the normal numbers of PCG64([seed, b]). `integer_timesteps`: as in LmsdScheduler. `options`:
    whatever the pipeline's call takes goes to it (height, width, ...); the rest goes to `lmsd.distill`, as do
    `nfe` and `progress`, with the defaults there. x_T, the noise levels, process, teacher_grid and made_for
    follow from the pipeline's scheduler.

    The pipeline must run the standard loop: for t in timesteps: [scale_model_input,] network, step. What the
    network returns may depend on nothing but state, noise level and prompt: no step-dependent guidance, no
    caches across steps. Trajectories begin at noise, whatever `strength` the pipeline knows. Predictions of
    x0 are clipped where its scheduler does so. Its scheduler is put back at the end, whatever happens. Ctrl-C
    keeps the best so far; before the first result, and the second time, it is a KeyboardInterrupt.

    Raises ValueError where `prompts` or `batch_size` are not what they must be, and for arguments that the
    distillation decides by itself (latents, num_inference_steps, sigmas, timesteps, strength) or that make
    the network depend on the step (callbacks, control_guidance_end below 1, ...); Error where the pipeline's
    loop is not the standard one, or its network caches.

    Two networks of which the pipeline calls one above `boundary_ratio` and `transformer_2` below it (Wan 2.2)
    get one schedule; `guidance_scale_2` counts.
    """
    size = batch_size
    if size is None:
        size = min(BATCH_SIZE, options.get("trajectories") or BATCH_SIZE)
    if size < 1:
        raise ValueError(f"batch_size is {batch_size}; 1 or more latents a pass are needed")
    if not hasattr(getattr(pipeline, "scheduler", None), "config"):
        raise Error(f"{type(pipeline).__name__} has no scheduler: distill the pipeline inside that has one")
    refuse_copies(pipeline)
    if options.get("fit_guidance"):
        raise Error(
            "a pipeline has the same guidance at every step; fit_guidance is for hosts that can set it"
        )
    calls = PipelineCalls(pipeline, prompts, size, guidance_scale, options)
    refuse_caches(pipeline)
    network = Network({**settings(pipeline.scheduler), "integer_timesteps": integer_timesteps})
    driver = Driver(pipeline.scheduler, network, calls.takes_latents)
    with torch.no_grad(), standing_in(pipeline, driver):
        first_pass(driver, calls)
        config = {"nfe": nfe, **described(driver, calls, seed), **calls.other_options}
        return drive(driver, calls, seed, config, progress)


def refuse_copies(pipeline) -> None:
    """Raises Error where a pipeline has given its scheduler to another one inside, which samples with it."""
    for name, inner in vars(pipeline).items():
        if isinstance(inner, DiffusionPipeline) and getattr(inner, "scheduler", None) is pipeline.scheduler:
            raise Error(
                f"{type(pipeline).__name__} samples with the pipeline inside: distill pipe.{name}, and give"
                f" its scheduler to pipe.{name}"
            )


def refuse_caches(pipeline) -> None:
    """Raises Error where a network of the pipeline keeps results from one step to the next."""
    for name in ("unet", "transformer", "transformer_2"):
        if getattr(getattr(pipeline, name, None), "is_cache_enabled", False):
            raise Error(f"{name} has a cache across steps: call pipe.{name}.disable_cache() to distill")


def first_pass(driver: Driver, calls: PipelineCalls) -> None:
    """Shows the driver the pipeline's latents, and finds how many of them there is memory for."""

    def attempt(size):
        calls.size = size
        driver.run(calls)

    def before_retry(size):
        torch.cuda.empty_cache()  # nothing where there is no GPU
        logger.warning(f"no memory left; going on with batches of {size} latents")

    try:
        halve_until_it_fits(attempt, calls.size, before_retry)
    except IndexError as error:
        if driver.network.integer:
            raise
        raise Error(f"the pipeline may need whole timesteps: try integer_timesteps=True ({error})") from error
    if len(driver.latents) == 2 * calls.size and torch.equal(*driver.latents.chunk(2)):
        driver.latents, driver.copies = driver.latents[: calls.size], 2  # once for each half of guidance
    if len(driver.latents) != calls.size:
        raise ValueError(
            f"the pipeline has {len(driver.latents)} latents a pass where batch_size is {calls.size}"
        )


def described(driver: Driver, calls: PipelineCalls, seed: int) -> dict:
    """The options of `lmsd.distill` that follow from a pipeline that a driver has seen one pass of."""
    network, made_for = driver.network, {"latent_shape": list(driver.latents.shape[1:])}
    own = {"process": network.process, "sigma_min": network.sigma_min, "sigma_max": network.sigma_max}
    if network.process == "flow":
        shift = network.shift
        if shift is None and driver.mu is not None:
            shift = shift_of(driver.mu, driver.config)
        if shift is not None:
            own["sigma_min"], made_for["shift"] = shifted(network.smallest, shift), shift
        own["teacher_grid"] = {"kind": "flow", "shift": shift or 1.0}
        own["fit_start"] = False  # a flow pipeline hands x_T to the network as it is
    made_for |= {"sigma_min": own["sigma_min"], "sigma_max": own["sigma_max"]}
    made_for |= {"model": network_name(calls.pipeline), "snapped": network.integer}
    made_for |= (second := second_network(network, calls))
    seeds = f"PCG64([{seed}, batch]), {calls.size} latents a batch"
    if calls.guidance:
        made_for |= guidance.made_for(calls.guidance)
    if len(calls.guidance) > 1:
        seeds += f", guidance {calls.guidance} in turn"
    if second:
        seeds += f", transformer_2 {second}"
    return {**own, "sigma_end": 0.0, "made_for": made_for, "seeds": seeds}


def second_network(network: Network, calls: PipelineCalls) -> dict:
    """What `made_for` says of a network for lower noise levels, as Wan 2.2 has; empty where there is none.

    `boundary`: the level below which the pipeline calls it; `guidance_scale_2`: its own, where it has one.
    """
    ratio = getattr(calls.pipeline.config, "boundary_ratio", None)
    if ratio is None:
        return {}
    found = {"boundary": network.sigma(ratio * network.steps)}
    scale = calls.fixed.get("guidance_scale_2")
    return found | ({} if scale is None or [scale] == calls.guidance else {"guidance_scale_2": float(scale)})


def network_name(pipeline) -> str:
    """Class name of the denoising network."""
    for name in ("unet", "transformer"):
        if getattr(pipeline, name, None) is not None:
            return type(getattr(pipeline, name)).__name__
    return type(pipeline).__name__


def drive(driver: Driver, calls: PipelineCalls, seed: int, config: dict, progress) -> lmsd.Distilled:
    """Runs the distillation in another thread and answers its model calls by passes through the pipeline."""

    def work(ask):
        start = driver.network.start(driver.network.sigma_max)
        return distill_by_asking(ask, driver.latents, start, seed, config)

    with contextlib.ExitStack() as stack:
        if progress is True:
            progress = stack.enter_context(lmsd.ProgressBar())
        interrupt = stack.enter_context(first_interrupt(logger.warning))
        thread = stack.enter_context(CallbackThread(work))

        def receive() -> ModelCall | None:
            while isinstance(request := thread.next(), ProgressReport):
                stop = progress(request.progress) if progress else False
                thread.answer(bool(stop or interrupt))
            return request

        driver.receive, driver.answer = receive, thread.answer
        driver.call = receive()
        driver.run(calls)
        try:
            return thread.result()
        except Error as error:
            if interrupt and error.status == Status.STOPPED:
                raise KeyboardInterrupt from None
            raise


def distill_by_asking(
    ask: Callable, latents: torch.Tensor, start: float, seed: int, config: dict
) -> lmsd.Distilled:
    """`lmsd.distill` whose model and progress are requests to another thread.

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
        return ask(ModelCall(current, x, sigma))

    def progress(report):
        return ask(ProgressReport(report))

    options = {name: value for name, value in config.items() if value is not None}
    return lmsd.distill(model, begin, like, progress=progress, **options)
