"""Few-step schedules for a diffusers pipeline, then the same script as ever with another scheduler line.

    python few_steps.py

The pipeline is the pixel model of examples/emoji; any other that takes a scheduler will do. Writes
few_steps.png: a row of 100 steps, one of 5 with the pipeline's own scheduler, one of 5 distilled steps.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from lmsd.diffusers import LmsdScheduler, distill
from PIL import Image

EMOJI = Path(__file__).resolve().parents[1] / "emoji"
sys.path.insert(0, str(EMOJI))
from emoji_pipeline import emoji_pipeline  # noqa: E402

PROMPTS = [
    "red apple",
    "grinning cat",
    "yellow sun face",
    "blue heart",
    "tropical fish",
    "green leaf",
    "fire",
    "dog",
]


def script(scheduler, steps):
    """Somebody's script: nothing in it but the scheduler is new."""
    pipe = emoji_pipeline("pixel", scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(2024)
    return pipe(
        PROMPTS, guidance_scale=4.0, num_inference_steps=steps, generator=generator, output_type="np"
    ).images


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--quick", action="store_true", help="a rough fit")
rough = {"iterations": 3, "teacher_nfe": 15, "trajectories": 4, "held_out": 2, "batch_size": 2}
options = rough if parser.parse_args().quick else {"batch_size": 4}

pipe = emoji_pipeline("pixel")
prompts = (EMOJI / "prompts_fit.txt").read_text().splitlines()
found = distill(pipe, prompts, nfe=5, guidance_scale=4.0, **options)
found.save("schedules")
few = LmsdScheduler.from_schedule("schedules", like=pipe.scheduler)

many_steps = script(scheduler=None, steps=100)
rows = [many_steps]
for name, scheduler in (("Euler, 5 steps", None), ("lmsd, 5 steps", few)):
    pictures = script(scheduler, 5)
    decibel = -10 * np.log10(((pictures - many_steps) ** 2).mean((1, 2, 3))).mean()
    print(f"{name}: PSNR to 100 steps {decibel:.1f} dB")
    rows.append(pictures)
sheet = np.concatenate([np.concatenate(list(row), 1) for row in rows])
Image.fromarray((255 * sheet).round().astype(np.uint8)).save("few_steps.png")
