"""Few-step schedules for a diffusers pipeline, then the same script as ever with another scheduler line.

    python few_steps.py

The pipeline is the digits network of this repository; any other that takes a scheduler will do.
"""

import argparse

import torch
from digits_pipeline import digits_pipeline
from lmsd.diffusers import LmsdScheduler, distill


def script(scheduler, steps):
    """Somebody's script: nothing in it but the scheduler is new."""
    pipe = digits_pipeline(scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(2024)
    labels = list(range(10)) * 8
    return pipe(labels, guidance_scale=3.0, num_inference_steps=steps, generator=generator)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--quick", action="store_true", help="a rough fit")
rough = {"iterations": 5, "teacher_nfe": 40} if parser.parse_args().quick else {}

pipe = digits_pipeline()
prompts = [{"class_labels": label} for label in range(10)]
found = distill(pipe, prompts, nfe=5, guidance_scale=3.0, batch_size=64, **rough)
found.save("schedules")
few = LmsdScheduler.from_schedule("schedules", like=pipe.scheduler)

many_steps = script(scheduler=None, steps=200)
for name, scheduler in (("Euler, 5 steps", None), ("lmsd, 5 steps", few)):
    distance = (script(scheduler, 5) - many_steps).flatten(1).norm(dim=1).mean()
    print(f"{name}: distance to 200 steps {distance:.3f}")
