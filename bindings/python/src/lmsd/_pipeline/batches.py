"""What a pipeline is called with for each batch of latents: its prompts, their number, a generator."""

import inspect
from collections.abc import Mapping, Sequence

import torch

from ..guidance import scales
from .timesteps import PASS_LENGTH, PassOver

DRIVEN = ("latents", "num_inference_steps", "sigmas", "timesteps")  # what a distillation decides by itself
# Arguments that make the network's output depend on the step, and the values at which they do not. A
# distillation goes back and forth between noise levels, so it has no steps that a pipeline could count.
STEPWISE = {
    "adapter_conditioning_factor": 1.0,
    "callback": None,
    "callback_on_step_end": None,
    "cfg_interval_end": 1.0,
    "cfg_interval_start": 0.0,
    "cfg_trunc_ratio": 1.0,
    "control_guidance_end": 1.0,
    "control_guidance_start": 0.0,
    "denoising_end": None,
    "denoising_start": None,
    "gligen_scheduled_sampling_beta": 1.0,
    "guidance_schedule": None,
    "skip_guidance_layers": None,
    "use_dynamic_cfg": False,
}


def conditions(prompts: Sequence | None, batch: int, size: int) -> dict:
    """The pipeline's arguments for the prompts of one batch: they cycle over its rows, then over batches."""
    if prompts is None:
        return {}
    rows = [prompts[(batch * size + row) % len(prompts)] for row in range(size)]
    if not isinstance(rows[0], Mapping):
        return {"prompt": rows if size > 1 else rows[0]}  # some pipelines take no lists
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: torch.stack(values) if isinstance(values[0], torch.Tensor) else values
        for name, values in columns.items()
    }


class PipelineCalls:
    """A pipeline with the arguments that are the same for every batch, and `size` latents in each.

    `options`: those that the pipeline does not take are left in `other_options`. `guidance`: the scales
    that batches will have, one each in turn; empty where the pipeline knows of none.
    """

    def __init__(self, pipeline, prompts, size: int, guidance_scale, options: Mapping):
        self.pipeline, self.size = pipeline, size
        self.prompts = [prompts] if isinstance(prompts, str | Mapping) else prompts
        if self.prompts is not None and len(self.prompts) == 0:
            raise ValueError("there are no prompts; for an unconditional pipeline prompts is None")
        self.parameters = inspect.signature(pipeline.__call__).parameters
        self._refuse(options)
        self.fixed = {name: value for name, value in options.items() if name in self.parameters}
        self.other_options = {name: value for name, value in options.items() if name not in self.parameters}
        self.given = guidance_scale is not None
        if self.given and "guidance_scale" not in self.parameters:
            raise ValueError(f"{type(pipeline).__name__} has no guidance_scale")
        if not self.given and "guidance_scale" in self.parameters:
            guidance_scale = self.parameters["guidance_scale"].default
            guidance_scale = guidance_scale if isinstance(guidance_scale, int | float) else None
        self.guidance = [] if guidance_scale is None else scales(guidance_scale)
        self.own_output = "output_type" in self.parameters and "output_type" not in options
        if self.own_output:
            self.fixed["output_type"] = "latent"
        if "strength" in self.parameters:
            self.fixed["strength"] = 1.0
        if (
            "num_inference_steps" in self.parameters
            and self.parameters["num_inference_steps"].default is None
        ):
            self.fixed["num_inference_steps"] = PASS_LENGTH

    def _refuse(self, options: Mapping) -> None:
        """Raises ValueError for arguments of the pipeline, given or its defaults, that cannot be honoured."""
        taken = [name for name in options if name in self.parameters]
        driven = [name for name in DRIVEN if name in taken]
        if driven:
            raise ValueError(f"a distillation has its own {', '.join(driven)}: leave them out")
        if "strength" in taken:
            raise ValueError("a distillation begins at noise: give strength where you sample")
        for name, neutral in STEPWISE.items():
            if name in self.parameters:
                value = options.get(name, self.parameters[name].default)
                values = value if isinstance(value, list | tuple) else [value]
                if any(one is not None and one != neutral for one in values):
                    raise ValueError(
                        f"{name} is {_short(value)}: what the network returns must not depend on the step;"
                        f" distill with {name}={neutral}, and sample with it if you like"
                    )

    @property
    def takes_latents(self) -> bool:
        return "latents" in self.parameters

    def __call__(self, batch: int, latents: torch.Tensor | None) -> None:
        """Runs the pipeline for batch number `batch`, from `latents` where they are given."""
        arguments = {**self.fixed, **conditions(self.prompts, batch, self.size)}
        if self.given:
            arguments["guidance_scale"] = self.guidance[batch % len(self.guidance)]
        if self.prompts is None and "batch_size" in self.parameters:
            arguments["batch_size"] = self.size
        if "generator" in self.parameters:
            arguments["generator"] = torch.Generator("cpu").manual_seed(batch)
        if latents is not None:
            arguments["latents"] = latents
        try:
            self.pipeline(**arguments)
        except PassOver:  # which left out what pipelines do at the end
            if hasattr(self.pipeline, "maybe_free_model_hooks"):
                self.pipeline.maybe_free_model_hooks()

    def gives_in(self, error: Exception) -> bool:
        """Whether a pipeline that refuses an argument of ours may now be called again, without it."""
        if not self.own_output or "output_type" not in str(error):
            return False
        self.own_output = False
        del self.fixed["output_type"]
        return True


def _short(value) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:50]}..."
