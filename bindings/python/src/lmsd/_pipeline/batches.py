"""What a pipeline is called with for each batch of latents: its prompts, their number, a generator."""

import inspect
from collections.abc import Mapping, Sequence

import torch

from ..guidance import scales
from .timesteps import PassOver

DRIVEN = ("latents", "num_inference_steps", "sigmas", "timesteps")  # what a distillation decides by itself


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


class PipelineCalls:
    """A pipeline with the arguments that are the same for every batch, and `size` latents in each.

    `options`: those that the pipeline does not take are left in `other_options`. `guidance`: the scales
    that batches will have, one each in turn; empty where the pipeline knows of none.
    """

    def __init__(self, pipeline, prompts, size: int, guidance_scale, options: Mapping):
        self.pipeline, self.size = pipeline, size
        self.prompts = [prompts] if isinstance(prompts, str) else prompts
        if self.prompts is not None and len(self.prompts) == 0:
            raise ValueError("there are no prompts; for an unconditional pipeline prompts is None")
        self.parameters = inspect.signature(pipeline.__call__).parameters
        self._refuse(options)
        self.fixed = {name: value for name, value in options.items() if name in self.parameters}
        self.other_options = {name: value for name, value in options.items() if name not in self.parameters}
        self.given = guidance_scale is not None
        if not self.given and "guidance_scale" in self.parameters:
            guidance_scale = self.parameters["guidance_scale"].default
            guidance_scale = guidance_scale if isinstance(guidance_scale, int | float) else None
        self.guidance = [] if guidance_scale is None else scales(guidance_scale)
        if "output_type" in self.parameters:
            self.fixed.setdefault("output_type", "latent")
        if "strength" in self.parameters:
            self.fixed["strength"] = 1.0

    def _refuse(self, options: Mapping) -> None:
        """Raises ValueError for arguments of the pipeline, given or its defaults, that cannot be honoured."""
        taken = [name for name in options if name in self.parameters]
        driven = [name for name in DRIVEN if name in taken]
        if driven:
            raise ValueError(f"a distillation has its own {', '.join(driven)}: leave them out")
        if "strength" in taken:
            raise ValueError("a distillation begins at noise: give strength where you sample")

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
