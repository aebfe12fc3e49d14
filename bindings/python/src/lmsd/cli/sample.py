"""`lmsd sample`: samples of a schedule, as numbers or a picture."""

import contextlib
import signal

import numpy as np

import lmsd
from lmsd._interrupt import Interrupt, first_interrupt

from . import INTERRUPTED, library_options, model, pictures
from .terminal import note


class Stopped(Exception):
    """Ctrl-C: what is not finished is dropped."""


def run(args) -> int:
    schedule = lmsd.Schedule.load(args.schedule)
    if isinstance(args.guidance, list):
        raise lmsd.Error("--guidance: to sample, one scale is needed, such as 3")
    task = model.load_for(args, schedule)
    process = task.config.get("process", schedule.process)
    known = ("model", "model_hash", "guidance_scale", "latent_shape")
    made_for = task.config.get("made_for", {})
    schedule.check(process=process, **{name: made_for[name] for name in known if name in made_for})
    pictures.check(args.out, tuple(task.problem.like.shape[1:]))
    with first_interrupt(note, again=signal.SIG_DFL) as interrupt:
        images = drawn(task, schedule, args, interrupt)
    if len(images) == 0:
        return INTERRUPTED
    pictures.write(args.out, images)
    print(f"{args.out}: {len(images)} of shape {list(images.shape[1:])}")
    return INTERRUPTED if interrupt else 0


def drawn(task, schedule: lmsd.Schedule, args, interrupt: Interrupt) -> np.ndarray:
    """float32 [count, ...], or the batches that were finished before an interrupt."""
    size = len(task.problem.like)
    batches = -(-args.count // size)
    own = schedule.sigma_start
    if (
        args.problem is not None
    ):  # its x_T has the largest noise level that its model knows; the schedule may start lower
        own = task.config.get("sigma_max", library_options.described("distill")["sigma_max"]["default"])
    images = []
    with progress_bar(batches * schedule.nfe, args.quiet) as update:

        def call(x, *told):
            if interrupt:
                raise Stopped
            denoised = task.problem.model(x, *told)
            update()
            return denoised

        with contextlib.suppress(Stopped):
            for batch in range(batches):
                x_t = task.problem.begin(batch)
                if own != schedule.sigma_start:
                    x_t = x_t * (schedule.sigma_start / own)
                images.append(plain(lmsd.sample(schedule, x_t, call)))
    return np.concatenate(images)[: args.count] if images else np.empty(0, np.float32)


def plain(x) -> np.ndarray:
    """A batch of numpy or torch as float32 in main memory."""
    return np.asarray(x.detach().float().cpu() if hasattr(x, "detach") else x, np.float32)


@contextlib.contextmanager
def progress_bar(calls: int, quiet: bool):
    """A function that is to be called after each of `calls` calls of a batch."""
    if quiet:
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=calls, unit="call", dynamic_ncols=True) as bar:
        yield bar.update
