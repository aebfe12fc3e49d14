"""The README's picture of a workflow and the pack's thumbnails, drawn by the emoji model in a running host.

    make pictures-comfyui COMFYUI_DIR=... [COMFYUI_PYTHON=...]

Runs examples/comfyui_emoji's workflow "distill then sample" in the page, which takes some minutes, and writes
docs/comfyui.jpg and bindings/comfyui/example_workflows/*.jpg. Look at them before they are committed.
"""

import argparse
import io
import json
import os
import sys
import tempfile
from pathlib import Path

import browser
import numpy as np
from host import EMOJI, PACKS, ROOT, Host
from PIL import Image
from workflows import node

WORKFLOW = EMOJI / "example_workflows" / "distill then sample.json"
THUMBNAILS = PACKS["comfyui-lmsd"] / "example_workflows"
DARK, LIGHT, BLUE, ORANGE, GREY = "#20232a", "#f2f4f8", "#58b0ff", "#ffa657", "#9aa4b2"
STEPS, MANY, NFES = 5, 50, range(3, 6)
DAY = 86400.0


def node_of(workflow, kind):
    """The first node of that type."""
    return next(item for item in workflow["nodes"] if item["type"] == kind)


def drawn(host, workflow, schedule, seed):
    """uint8 [prompts, 32, 32, 3] by a schedule, which is a node in API format."""
    prompts = node_of(workflow, "LmsdPrompts")["widgets_values"][0]
    cfg = node_of(workflow, "SamplerCustom")["widgets_values"][3]
    links = {"model": ("model", 0), "positive": ("positive", 0), "negative": ("negative", 0)}
    nodes = {
        "model": node("LoadEmojiModel", model="pixel"),
        "positive": node("LmsdPrompts", clip=("model", 1), prompts=prompts),
        "negative": node("CLIPTextEncode", clip=("model", 1), text=""),
        "latent": node("EmptyEmojiLatent", model=("model", 0), batch_size=len(prompts.splitlines())),
        "schedule": schedule,
        "sampler": node("LmsdSampler", schedule=("schedule", 0), denoise=1.0),
        "sample": node(
            "SamplerCustom", add_noise=True, noise_seed=seed, cfg=cfg,
            sampler=("sampler", 0), sigmas=("sampler", 1), latent_image=("latent", 0), **links,
        ),
        "decode": node("VAEDecode", samples=("sample", 0), vae=("model", 2)),
        "save": node("SaveImage", images=("decode", 0), filename_prefix="thumbnail"),
    }  # fmt: skip
    run = host.run(nodes, timeout=DAY)
    assert run.status == "success", run.error
    return np.stack([np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in host.images(run)])


def solver(steps):
    """The published solver of the comparison, a node in API format."""
    options = {"solver": "dpmpp_2m", "grid": "auto", "rho": 7.0, "shift": 0.0, "lower_order_final": True}
    return node("LmsdSolver", model=("model", 0), steps=steps, **options)


# ---- thumbnails, 400x400


def figure():
    from matplotlib.figure import Figure

    return Figure(figsize=(4, 4), dpi=100, facecolor=DARK)


def put(made, picture, left, top, size=64):
    """A picture at a place in pixels, enlarged without smoothing where its size divides `size`."""
    kind = Image.Resampling.BICUBIC if size % picture.shape[0] else Image.Resampling.NEAREST
    made.figimage(np.asarray(Image.fromarray(picture).resize((size, size), kind)), left, 400 - top - size)


def sample(pictures):
    """Sixteen pictures."""
    made = figure()
    for i, picture in enumerate(pictures[:16]):
        put(made, picture, 28 + 88 * (i % 4), 14 + 84 * (i // 4), 80)
    made.text(0.5, 0.055, f"{STEPS} steps, distilled", color=BLUE, size=17, weight="bold", ha="center")
    return made


def compare(rows):
    """Five pictures of each of three samplers; `rows`: name -> (colour, pictures)."""
    made = figure()
    for i, (name, (colour, pictures)) in enumerate(rows.items()):
        top = 36 + 122 * i
        made.text(0.06, 1 - (top - 4) / 400, name, color=colour, size=14, weight="bold", va="bottom")
        for k, picture in enumerate(pictures[:5]):
            put(made, picture, 24 + 72 * k, top)
    return made


def distill(schedule):
    """Distance against steps, of its record of comparisons."""
    lines = {}
    for row in schedule["made_by"]["compared"]:
        lines.setdefault(row["solver"], {})[row["nfe"]] = row["distance"]
    own, best = lines["distilled"], lines["best as published"]
    made = figure()
    axes = made.add_axes((0.15, 0.3, 0.8, 0.62), facecolor=DARK)
    for line, colour, name in ((best, ORANGE, "best as published"), (own, BLUE, "distilled")):
        steps = sorted(line)
        axes.plot(steps, [line[n] for n in steps], "o-", color=colour, lw=2.5, ms=6, label=name)
    axes.set_yscale("log")
    axes.set_xlabel("steps", color=GREY)
    axes.set_ylabel("distance", color=GREY)
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(which="both", colors=GREY)
    axes.grid(alpha=0.3, which="both")
    axes.legend(labelcolor="linecolor", frameon=False, prop={"weight": "bold", "size": 11})
    for side in axes.spines.values():
        side.set_visible(False)
    gain = f"{best[STEPS] / own[STEPS]:.1f}× nearer at {STEPS} steps"
    made.text(0.5, 0.11, gain, color=BLUE, size=17, weight="bold", ha="center")
    made.text(0.5, 0.05, "than the best sampler as published", color=LIGHT, size=11, ha="center")
    return made


def write(made, path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(made)
    canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).save(path, quality=88, dpi=(100, 100))


# ---- the picture of the page


def page(host, workflow, path):
    """The workflow after a run, as wide as the README."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "page.png"
        seen = browser.look(host, workflow, queue=True, screenshot=shot, scale=2)
        assert not seen.faults and seen.run["status"] == "success", (seen.faults, seen.run)
        picture = Image.open(shot).convert("RGB")
    x, y, width, height = seen.report["graph"]
    box = (x - 6, y - 6, x + width + 6, y + height + 6)
    picture = picture.crop([round(2 * edge) for edge in box])
    picture = picture.resize((1300, round(1300 * picture.height / picture.width)), Image.Resampling.LANCZOS)
    picture.save(path, quality=85)


def main():
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--out", type=Path, help="a folder for all of them, instead of their places")
    parser.add_argument(
        "--keep", type=Path, help="a folder for schedules; one that was stopped there goes on"
    )
    args = parser.parse_args()
    workflow = json.loads(WORKFLOW.read_text())
    values = node_of(workflow, "LmsdDistill")["widgets_values"]
    name, values[3:5], values[7] = values[2], [NFES[-1], NFES[0]], 0.0
    with Host(Path(os.environ["COMFYUI_DIR"]), packs=PACKS | {"comfyui_emoji": EMOJI}) as host:
        if args.keep:
            args.keep.mkdir(parents=True, exist_ok=True)
            (host.base / "models" / "lmsd_schedules").rmdir()
            (host.base / "models" / "lmsd_schedules").symlink_to(args.keep.resolve())
        prompt = browser.look(host, workflow).report["prompt"]
        run = host.run(prompt, timeout=DAY)  # so that the page finds the schedule in the cache
        assert run.status == "success", run.error
        print(*run.texts[-1:], sep="\n")
        node_of(workflow, "SamplerCustom")["widgets_values"][1] += 1  # sampling runs again, with previews
        page(host, workflow, (args.out or ROOT / "docs") / "comfyui.jpg")
        file = f"{name} nfe{STEPS:02d}.json"
        load = node("LmsdLoadSchedule", schedule=file)
        own, other = (drawn(host, workflow, load, seed) for seed in (42, 7))
        rows = {
            f"distilled, {STEPS} steps": (BLUE, own),
            f"dpmpp_2m, {STEPS} steps": (ORANGE, drawn(host, workflow, solver(STEPS), 42)),
            f"dpmpp_2m, {MANY} steps": (LIGHT, drawn(host, workflow, solver(MANY), 42)),
        }
        schedule = json.loads((host.base / "models" / "lmsd_schedules" / file).read_text())
    folder = args.out or THUMBNAILS
    write(sample(np.concatenate([own, other])), folder / "sample.jpg")
    write(compare(rows), folder / "compare side by side.jpg")
    write(distill(schedule), folder / "distill then sample.jpg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
