"""Timesteps and noise levels of a scheduler that says from call to call what the next one is."""

from collections.abc import Callable, Iterator

import torch

PASS_LENGTH = 1000  # steps of one pass through a pipeline, at most; another pass then goes on


class PassOver(BaseException):
    """Ends a pass of a pipeline that counts its steps itself, instead of going through the timesteps."""


class NotGiven(AttributeError):
    """The pipeline reads something of its scheduler that a distillation has not."""

    def __init__(self, name):
        super().__init__(f"the pipeline reads scheduler.{name}, which a distillation has not")


class Levels:
    """Noise levels of which there is the one of the present step only, as `levels[step]`.

    `here`: returns that step and its noise level.
    """

    def __init__(self, here: Callable[[], tuple[int, torch.Tensor]]):
        self._here = here

    def __getitem__(self, index):
        step, sigma = self._here()
        if index != step:
            raise NotGiven("sigmas of other steps")
        return sigma

    def __getattr__(self, name):
        raise NotGiven(f"sigmas.{name}")


class Timesteps(torch.Tensor):
    """PASS_LENGTH timesteps, as far as the pipeline can tell, all of them the one that is next.

    Going through them ends where `steps` ends, and so does indexing, with PassOver. Slices, and copies on
    another device, are of the same kind.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def of(
        cls, steps: Callable[[], Iterator], over: Callable[[], bool], next_one: torch.Tensor
    ) -> "Timesteps":
        """`steps`: goes through the timesteps to come; `over`: whether there is none."""
        return cls._like(next_one.repeat(PASS_LENGTH), steps, over)

    @classmethod
    def _like(cls, tensor, steps, over):
        found = tensor.as_subclass(cls)
        found.steps, found.over = steps, over
        return found

    def __iter__(self):
        return self.steps()

    def __getitem__(self, index):
        found = super().__getitem__(index)
        if found.ndim:
            return self._like(found, self.steps, self.over)
        if self.over():
            raise PassOver
        return found.clone()

    def to(self, *args, **options):
        return self._like(super().to(*args, **options), self.steps, self.over)

    def __deepcopy__(self, memo):
        return self
