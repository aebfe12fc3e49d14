"""Distilled at 5 steps against the schedulers of diffusers at 10, all inside one diffusers pipeline.

    python benches/diffusers_hosts.py --out out/diffusers_hosts.json

The digits network at guidance 3 as an epsilon model of 1000 timesteps. `lmsd.diffusers.distill` fits 5 steps
in the pipeline. Of the other schedulers all options are ranked, at each number of steps, on 64 images; the
best of the first six on the images that are measured counts, so the choice favours them. Distances are means
over images of the Euclidean distance, in pixels of [-1, 1], to the reference from the same noise and label.
Exits with 1 where a scheduler at 10 steps is as near as the distilled one at 5.
"""

import argparse
import inspect
import itertools
import os
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "digits"))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "diffusers"))

import diffusers
import lmsd
import numpy as np
import torch
from common import Claims, write_json
from digits_pipeline import betas, digits_pipeline
from lmsd.cli.terminal import print_table
from lmsd.diffusers import LmsdScheduler, distill

GUIDANCE = 3.0
FEW, MANY = 5, 10
FIT_SEED, TEST_SEED, RANKING_SEED = 0, 1, 2
RANKING = 64  # images
FINE = 1000  # steps that tell which reference has converged
SPACINGS = ("leading", "linspace", "trailing")
SIGMAS = ({}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True})
LU = ({"use_lu_lambdas": True},)
LOWER = {"lower_order_final": (True, False)}
MULTISTEP = {"solver_type": ("midpoint", "heun"), "euler_at_final": (False, True), **LOWER}


def multistep(order, algorithm="dpmsolver++"):
    return "DPMSolverMultistepScheduler", {
        "solver_order": (order,),
        "algorithm_type": (algorithm,),
        **MULTISTEP,
    }


def unipc(order):
    return "UniPCMultistepScheduler", {"solver_order": (order,), "solver_type": ("bh1", "bh2"), **LOWER}


# scheduler -> (class, what may be chosen besides spacing, sigmas and final_sigmas_type)
SCHEDULERS = {
    "EulerDiscrete": ("EulerDiscreteScheduler", {"interpolation_type": ("linear", "log_linear")}),
    "HeunDiscrete": ("HeunDiscreteScheduler", {}),
    "DDIM": ("DDIMScheduler", {"set_alpha_to_one": (True, False)}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": (True,), "set_alpha_to_one": (True, False)}),
    "LMSDiscrete": ("LMSDiscreteScheduler", {}),
    "KDPM2Discrete": ("KDPM2DiscreteScheduler", {}),
    "DEISMultistep, order 2": ("DEISMultistepScheduler", {"solver_order": (2,), **LOWER}),
    "DEISMultistep, order 3": ("DEISMultistepScheduler", {"solver_order": (3,), **LOWER}),
    "DPMSolverMultistep, 2M": multistep(2),
    "DPMSolverMultistep, 3M": multistep(3),
    "DPMSolverMultistep, dpmsolver, order 2": multistep(2, "dpmsolver"),
    "DPMSolverMultistep, dpmsolver, order 3": multistep(3, "dpmsolver"),
    "DPMSolverSinglestep": ("DPMSolverSinglestepScheduler", {"solver_order": (2, 3), **LOWER}),
    "UniPCMultistep, order 2": unipc(2),
    "UniPCMultistep, order 3": unipc(3),
}
NOT_THERE = {"IPNDMScheduler": "takes no betas and no prediction type: it serves another kind of network"}


def options(name):
    """Every setting of one of SCHEDULERS, as dicts."""
    kind, choices = SCHEDULERS[name]
    known = inspect.signature(getattr(diffusers, kind).__init__).parameters
    axes = [
        [{"timestep_spacing": spacing, "steps_offset": int(spacing == "leading")} for spacing in SPACINGS]
    ]
    axes.append([sigmas for sigmas in SIGMAS + LU if set(sigmas) <= set(known)])
    if "final_sigmas_type" in known:
        axes.append([{"final_sigmas_type": kind} for kind in ("zero", "sigma_min")])
    axes += [[{key: value} for value in values] for key, values in choices.items()]
    for parts in itertools.product(*axes):
        yield {key: value for part in parts for key, value in part.items() if key in known}


class Images:
    """Test images: a pipeline and start noise and labels that no distillation saw."""

    def __init__(self, pipe, count, seed):
        rng = np.random.default_rng([seed, count])
        self.pipe, self.own = pipe, pipe.scheduler
        self.latents = torch.from_numpy(rng.standard_normal((count, 1, 8, 8), np.float32))
        self.labels = [k % 10 for k in range(count)]

    def __call__(self, scheduler, steps):
        """End points [count, 1, 8, 8]; leaves in `calls` how many network calls they took."""
        self.calls = 0

        def count(*_):
            self.calls += 1

        hook = self.pipe.unet.register_forward_pre_hook(count)
        self.pipe.scheduler = scheduler
        arguments = {"guidance_scale": GUIDANCE, "num_inference_steps": steps, "latents": self.latents}
        try:
            return self.pipe(self.labels, **arguments)
        finally:
            self.pipe.scheduler = self.own
            hook.remove()


def distance(images, reference):
    return float((images - reference).flatten(1).norm(dim=1).mean())


CONVERGED = {
    "HeunDiscrete, karras": ("HeunDiscreteScheduler", {}),
    "DPMSolverMultistep, order 2, karras": ("DPMSolverMultistepScheduler", {}),
    "DPMSolverMultistep, order 3, karras": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "UniPCMultistep, order 3, karras": ("UniPCMultistepScheduler", {"solver_order": 3}),
}


def converged(images, name, steps=100):
    """End points of one of CONVERGED."""
    kind, setting = CONVERGED[name]
    return images(getattr(diffusers, kind)(trained_betas=betas(), use_karras_sigmas=True, **setting), steps)


def find_reference(images):
    """(name, end points, text) of the one of CONVERGED that is nearest to a much finer result."""
    fine = converged(images, "DPMSolverMultistep, order 3, karras", FINE)
    ends = {name: converged(images, name) for name in CONVERGED}
    away = {name: distance(end, fine) for name, end in ends.items()}
    name = min(away, key=away.get)
    return name, ends[name], f"{name}, 100 steps; {away[name]:.4f} from {FINE} steps of order 3"


def best(images, ranking, name, steps):
    """(distance, options, network calls) of the best setting at a number of steps.

    `images` and `ranking`: (Images, reference) to measure on and to rank on.
    """
    kind = getattr(diffusers, SCHEDULERS[name][0])

    def measured(settings, on, reference):
        for setting in settings:
            try:
                end = on(kind(trained_betas=betas(), **setting), steps)
            except (ValueError, IndexError, AssertionError, RuntimeError):
                continue  # not every mixture of options exists, or can be solved
            if end.isfinite().all():
                yield distance(end, reference), setting, on.calls

    def order(row):
        return row[0]

    ranked = sorted(measured(options(name), *ranking), key=order)
    return min(measured([setting for _, setting, _ in ranked[:6]], *images), key=order)


def in_words(setting):
    """The options that say something."""
    texts = []
    for key, value in setting.items():
        if key.startswith("use_"):
            texts.append(key.removeprefix("use_"))
        elif key not in ("steps_offset", "skip_prk_steps", "solver_order", "algorithm_type"):
            texts.append(str(value) if isinstance(value, str) else f"{key}={value}")
    return ", ".join(texts)


def distilled(pipe, trajectories, **fit):
    """The schedule of FEW steps, fitted in the pipeline."""
    started = time.perf_counter()
    prompts = [{"class_labels": label} for label in range(10)]
    arguments = {"nfe": FEW, "guidance_scale": GUIDANCE, "batch_size": 64, "seed": FIT_SEED, **fit}
    found = distill(pipe, prompts, trajectories=trajectories, progress=False, **arguments)
    calls = found.report["model_calls"] + found.report["teacher_calls"]
    print(f"distilled in {time.perf_counter() - started:.0f} s, {calls} calls of a batch of 64", flush=True)
    return found.schedules[FEW]


def run(count, trajectories, schedulers=tuple(SCHEDULERS), schedule=None):
    """(result, claims) on `count` test images; `schedule` instead of a distilled one, if given."""
    pipe = digits_pipeline()
    pipe.set_progress_bar_config(disable=True)
    schedule = schedule or distilled(pipe, trajectories)
    images, other = Images(pipe, count, TEST_SEED), Images(pipe, RANKING, RANKING_SEED)
    name, reference, text = find_reference(images)
    test, ranking = (images, reference), (other, converged(other, name))
    print(f"reference: {text}\n{count} images, guidance {GUIDANCE:g}\n", flush=True)
    own = distance(images(LmsdScheduler.from_schedule(schedule, like=images.own), FEW), reference)
    rows, claims = [["lmsd", FEW, own, images.calls, "distilled"]], Claims()
    for name in schedulers:
        for steps in (FEW, MANY):
            away, setting, calls = best(test, ranking, name, steps)
            rows.append([name, steps, away, calls, in_words(setting)])
    head = ["scheduler", "steps", "calls", "distance", "best option"]
    cells = [[n, str(steps), str(calls), f"{away:.4f}", t] for n, steps, away, calls, t in rows]
    print_table([head, *cells])
    for name, why in NOT_THERE.items():
        print(f"{name} is not there: it {why}")
    print()
    for name, steps, away, calls, _ in rows:
        if steps == MANY:
            what = f"distilled at {FEW} steps, nearer than {name} at {steps} ({calls} calls)"
            claims.check(what, own, "<", away)
    result = {"images": count, "reference": text, "distilled": own, "rows": rows, "claims": claims.results}
    return {"lmsd": lmsd.__version__, "diffusers": diffusers.__version__, **result}, claims


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="out/diffusers_hosts.json", help="file (default %(default)s)")
    parser.add_argument("--images", type=int, default=512, help="test images (default %(default)s)")
    parser.add_argument("--trajectories", type=int, default=256, help="to fit to (default %(default)s)")
    args = parser.parse_args()
    for category in (DeprecationWarning, FutureWarning):  # theirs
        warnings.filterwarnings("ignore", category=category)
    diffusers.utils.logging.set_verbosity_error()
    started = time.perf_counter()
    result, claims = run(args.images, args.trajectories)
    write_json(args.out, result)
    print(f"{time.perf_counter() - started:.0f} s")
    return claims.finish()


if __name__ == "__main__":
    sys.exit(main())
