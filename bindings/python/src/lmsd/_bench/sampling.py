"""Pictures of a pipeline with any scheduler, each from noise of its own, and what they cost."""

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from .._memory import halve_until_it_fits
from .loading import denoiser


class Stopped(Exception):
    """Ctrl-C: what is not finished is dropped."""


class Count:
    """Of a network: how often it was called, and how many rows it was given in all."""

    def __init__(self):
        self.calls = self.rows = 0

    def __call__(self, _module, given, named):
        self.calls += 1
        self.rows += len(given[0] if given else named.get("hidden_states", named.get("sample")))


class Sampler:
    """Draws pictures; counts what was spent since it was made.

    Of the last drawing, for each picture: `calls`, guidance included; `evaluations`, the rows that the
    network was given, twice as many where guidance takes a second one; `seconds`. `image_calls`: calls times
    pictures, of all drawings. `passes`: how often a step calls the network. `stop()` true ends a drawing
    after the batch.
    """

    def __init__(
        self, pipe, arguments: dict, batch: int, seed: int, stop: Callable[[], bool] = lambda: False
    ):
        known = inspect.signature(pipe.__call__).parameters
        self.pipe, self.batch, self.seed, self.stop = pipe, batch, seed, stop
        self.arguments = {name: value for name, value in arguments.items() if name in known}
        self.calls = self.evaluations = self.image_calls = 0
        self.seconds, self.passes = 0.0, 1

    @contextlib.contextmanager
    def counting(self) -> Iterator[Count]:
        count = Count()
        hook = denoiser(self.pipe).register_forward_pre_hook(count, with_kwargs=True)
        try:
            yield count
        finally:
            hook.remove()

    def draw(self, scheduler, steps: int, prompts: Sequence[str], first: int = 0, done=lambda pictures: None):
        """float32 [n, H, W, 3] in 0..1; picture k has the noise of number `first + k`, whatever the batch.

        `done` gets the pictures of each batch as they come.
        """
        own, pictures, batches, started = self.pipe.scheduler, [], 0, time.perf_counter()
        self.pipe.scheduler = scheduler
        try:
            with self.counting() as count:
                while len(pictures) < len(prompts):
                    if self.stop():
                        raise Stopped
                    found = self._next(steps, prompts[len(pictures) :], first + len(pictures))
                    pictures.extend(found)
                    batches += 1
                    done(found)
        finally:
            self.pipe.scheduler = own
        self.calls, self.evaluations = count.calls / batches / self.passes, count.rows / len(pictures)
        self.seconds = (time.perf_counter() - started) / len(pictures)
        self.image_calls += round(self.calls * len(pictures))
        return np.stack(pictures)

    def _next(self, steps, prompts, first):
        """Pictures of the first of the prompts, as many as there is memory for."""

        def attempt(size):
            return self._batch(steps, prompts[:size], first)

        return halve_until_it_fits(attempt, self.batch, self._smaller)

    def _batch(self, steps, prompts, first):
        noise = [
            torch.Generator("cpu").manual_seed(self.seed * 2**20 + first + k) for k in range(len(prompts))
        ]
        with torch.no_grad():
            images = self.pipe(
                prompt=list(prompts),
                num_inference_steps=steps,
                generator=noise,
                output_type="np",
                **self.arguments,
            ).images
        return np.asarray(images, np.float32)

    def _smaller(self, size):
        torch.cuda.empty_cache()
        self.batch = size
