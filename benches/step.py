"""What one step costs beside the network: lmsd's forms and the samplers that hosts have, paired in one run.

    python benches/step.py [--sizes 1x4x64x64 ...] [--seconds 20]

The network costs nothing here (it returns a tensor that it made before), so what is left is the sampler. Each
round runs every candidate once, in an order of its own; the figure is the median over rounds of a run's time
over the number of its steps, and of its ratio to k-diffusion's dpmpp_2m in the same round. CPU, float32.
`lmsd.sample`: the run form; `Sampler`: the step form; `LmsdScheduler`: diffusers' way.
"""

import argparse
import functools
import importlib.util
import math
import random
import statistics
import sys
import time
import types

import lmsd
import torch
from diffusers import DPMSolverMultistepScheduler
from lmsd.diffusers import LmsdScheduler

STEPS = 8
STABLE_DIFFUSION = {"sigma_min": 0.02916753, "sigma_max": 14.6146412}
SIZES = ("1x4x64x64", "1x16x128x128", "4x4x128x128", "1x16x21x60x104")


@functools.cache
def dpmpp_2m():
    """k-diffusion's, without the package's __init__, which needs a dozen packages for training."""
    package = types.ModuleType("k_diffusion")
    package.__path__ = importlib.util.find_spec("k_diffusion").submodule_search_locations
    sys.modules["k_diffusion"] = package
    sys.modules.setdefault("k_diffusion.utils", types.ModuleType("k_diffusion.utils"))
    from k_diffusion.sampling import sample_dpmpp_2m

    return sample_dpmpp_2m


def candidates(shape: tuple[int, ...]) -> dict:
    """Functions that run STEPS steps from the same noise; dpmpp_2m is the first."""
    schedule = lmsd.solve("dpmpp_2m", nfe=STEPS, **STABLE_DIFFUSION, sigma_end=0)
    generator = torch.Generator().manual_seed(0)
    noise, prediction = (torch.randn(shape, generator=generator) for _ in range(2))
    x = schedule.sigma_start * noise
    sigmas = torch.tensor(schedule.sigmas, dtype=torch.float32)

    def network(x, *_, **__):
        return prediction

    sample_dpmpp_2m = dpmpp_2m()

    def k_diffusion():
        return sample_dpmpp_2m(network, x, sigmas, disable=True)

    def run_form():
        return lmsd.sample(schedule, x, network)

    def step_form():
        sampler = lmsd.Sampler(schedule, x)
        for state, sigma in sampler:
            sampler.step(network(state, sigma))
        return sampler.result

    def through(scheduler):
        def run():
            scheduler.set_timesteps(STEPS)
            state = noise * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                out = network(scheduler.scale_model_input(state, t), t)
                state = scheduler.step(out, t, state).prev_sample
            return state

        return run

    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    multistep = DPMSolverMultistepScheduler(**config)
    own = LmsdScheduler.from_schedule(schedule, like=multistep)
    return {
        "k-diffusion dpmpp_2m": k_diffusion,
        "lmsd.sample": run_form,
        "lmsd.Sampler": step_form,
        "diffusers DPMSolverMultistep": through(multistep),
        "LmsdScheduler": through(own),
    }


def measured(functions: dict, seconds: float) -> dict[str, list[float]]:
    """Seconds a step of each, by round; at least 5 rounds."""
    found = {name: [] for name in functions}
    for function in functions.values():
        function()
    order, end, rounds = list(functions), time.perf_counter() + seconds, 0
    while rounds < 5 or time.perf_counter() < end:
        random.Random(rounds).shuffle(order)
        rounds += 1
        for name in order:
            start = time.perf_counter()
            functions[name]()
            found[name].append((time.perf_counter() - start) / STEPS)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--sizes", nargs="+", default=SIZES, help="shapes of the state (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=10, help="for each size (default: %(default)s)")
    arguments = parser.parse_args()
    for size in arguments.sizes:
        shape = tuple(map(int, size.split("x")))
        found = measured(candidates(shape), arguments.seconds)
        first = next(iter(found.values()))
        print(f"{size} ({math.prod(shape) * 4 / 2**20:.2f} MiB), {len(first)} rounds")
        for name, times in found.items():
            ratio = statistics.median(a / b for a, b in zip(times, first, strict=True))
            print(f"  {name:30} {1e6 * statistics.median(times):9.0f} us a step, {ratio:5.2f} of dpmpp_2m")


if __name__ == "__main__":
    main()
