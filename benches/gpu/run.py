"""What lmsd does on a GPU, on a machine without network: needs torch 2.11 and this folder, packed by
`make bench-gpu-pack` (built elsewhere; all of it uses the torch of the Python that runs this).

    python3 run.py [--device cuda] [--seconds 120] [--out results]

1. The tests of torch's tensors on a GPU, where there is pytest.
2. The tensors of libtorch against the built-in ones, their bandwidth against a copy, and distillations of
   latents [16, 4, 64, 64] and [16, 16, 128, 128] against their model calls alone (the program `torch`).
3. A U-Net is trained here on pictures drawn here, saved as TorchScript, distilled by the program `lmsd`,
   compared with published solvers, and sampled.

Writes bench-gpu.json, bench-gpu.md (with the device's name) and samples.png.
"""

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
SIGMA_DATA = 0.5
BARS = {"bandwidth": 0.8, "outside": 0.03, "whole run": 0.05}


class Block(nn.Module):
    """Two convolutions and what the noise level says to them."""

    def __init__(self, width: int, embedding: int):
        super().__init__()
        self.one, self.two = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.GroupNorm(8, width)
        self.told = nn.Linear(embedding, 2 * width)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.told(emb)[:, :, None, None].chunk(2, 1)
        h = self.one(nn.functional.silu(self.norm(x))) * (1 + scale) + shift
        return x + self.two(nn.functional.silu(h))


class UNet(nn.Module):
    """forward(x [B, 3, S, S], sigma [B]) -> denoised, with the preconditioning of EDM (arXiv 2206.00364)."""

    def __init__(self, width: int):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(32, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU())
        self.input, self.output = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.fine_in, self.fine_out = Block(width, 128), Block(width, 128)
        self.down = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.coarse = nn.ModuleList(Block(2 * width, 128) for _ in range(3))
        self.up = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)
        self.sigma_data: float = SIGMA_DATA

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.float()[:, None, None, None]
        variance = s * s + self.sigma_data**2
        waves = torch.arange(1, 17, device=x.device)
        angle = sigma.float()[:, None].log() / 4 * waves
        emb = self.embed(torch.cat([angle.cos(), angle.sin()], 1).to(self.input.weight.dtype))
        h = self.fine_in(self.input((x.float() * variance.rsqrt()).to(self.input.weight.dtype)), emb)
        c = self.down(h)
        for block in self.coarse:
            c = block(c, emb)
        f = self.output(self.fine_out(h + self.up(c), emb)).float()
        skip = self.sigma_data**2 / variance
        return skip * x.float() + s * self.sigma_data * variance.rsqrt() * f


def pictures(count, size, device, generator):
    """Two soft discs of random colours on a random ground, [count, 3, size, size] in [-1, 1]."""
    grid = torch.linspace(-1, 1, size, device=device)
    y, x = torch.meshgrid(grid, grid, indexing="ij")

    def uniform(*shape):
        return torch.rand(*shape, device=device, generator=generator) * 2 - 1

    image = 0.5 * uniform(count, 3, 1, 1).expand(count, 3, size, size)
    for _ in range(2):
        at, radius = uniform(count, 2, 1, 1), 0.3 + 0.2 * uniform(count, 1, 1).abs()
        disc = torch.sigmoid((radius - ((x - at[:, 0]) ** 2 + (y - at[:, 1]) ** 2).sqrt()) * 12)
        image = torch.lerp(image, uniform(count, 3, 1, 1), disc[:, None])
    return image


def train(args, path):
    torch.manual_seed(0)
    generator = torch.Generator(args.device).manual_seed(1)
    network = UNet(args.width).to(args.device)
    average = UNet(args.width).to(args.device)
    average.load_state_dict(network.state_dict())
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3)
    start, steps, loss = time.perf_counter(), 0, torch.zeros(())
    while time.perf_counter() - start < args.seconds:
        clean = pictures(args.batch, args.size, args.device, generator)
        normal = torch.randn(clean.shape, device=args.device, generator=generator)
        sigma = (torch.randn(len(clean), device=args.device, generator=generator) * 1.4 - 0.6).exp()
        error = network(clean + sigma[:, None, None, None] * normal, sigma) - clean
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        loss = (weight[:, None, None, None] * error**2).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            for kept, new in zip(average.parameters(), network.parameters(), strict=True):
                kept.lerp_(new, max(0.005, 1 / (steps + 1)))
        steps += 1
        if steps % 50 == 0 and sys.stdout.isatty():
            seconds = time.perf_counter() - start
            print(f"\rtraining: {steps} steps, loss {loss.item():.4f}, {seconds:.0f} s", end="", flush=True)
    print(f"\rtraining: {steps} steps, loss {loss.item():.4f}, {args.seconds:.0f} s")
    torch.jit.script(average.eval().requires_grad_(False)).save(str(path))
    return {"steps": steps, "loss": loss.item(), "seconds": time.perf_counter() - start}


def lmsd(*arguments):
    """Runs the program lmsd of the pack."""
    return run(sys.executable, "-m", "lmsd", *arguments)


def run(*command):
    """Runs a program with this Python's libtorch and the pack's package; its output is shown and returned."""
    folders = [Path(torch.__file__).parent / "lib"]
    folders += sorted(Path(torch.__file__).parents[1].glob("nvidia/*/lib"))
    paths = [str(folder) for folder in folders] + os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    environment = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths))}
    packages = [str(HERE), os.environ.get("PYTHONPATH", "")]
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, packages)), "LMSD_LIBRARY": ""}
    print("+", *command, flush=True)
    process = subprocess.Popen([*map(str, command)], env=environment, stdout=subprocess.PIPE, text=True)
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    if process.wait() != 0:
        raise SystemExit(f"{command[0]} ended with code {process.returncode}")
    return "".join(lines)


def distill(args, model):
    common = [
        "--torchscript",
        model,
        "--shape",
        f"3,{args.size},{args.size}",
        "--sigma-min",
        0.02,
        "--sigma-max",
        80,
    ]
    common += ["--sigma-end", 0.02, "--device", args.device, "--batch", args.batch]
    out = args.out / "schedules"
    lmsd("distill", *common, "--nfe", args.nfe, "--out", out, "--quiet")
    compared = lmsd("compare", out, *common, "--field", "none")
    report = json.loads((out / "report.json").read_text())
    schedule = sorted(out.glob("nfe*.json"))[-1]
    sample = ["--torchscript", model, "--device", args.device, "--schedule", schedule, "--count", 64]
    lmsd("sample", *sample, "--out", args.out / "samples.png", "--quiet")
    found = {}
    for file in sorted(out.glob("nfe*.json")):
        made = json.loads(file.read_text())["made_by"]
        found[file.stem] = {name: made[name] for name in ("distance", "improved", "seconds", "model_calls")}
        found[file.stem]["handcrafted"] = made["handcrafted"][0]
    return {"schedules": found, "seconds": report["seconds"], "compared": compared}


def table(results, gpu):
    """Figures as Markdown. Bars are for a GPU: the memory of a CPU is as slow for a copy as for a network."""
    rows = [("what", "figure", "bar of a GPU", ""), ("---", "---", "---", "---")]

    def row(what, value, bar=None, met=None, form="{:.2f}"):
        verdict = "" if met is None or not gpu else "met" if met else "MISSED"
        rows.append((what, form.format(value), "" if bar is None else bar, verdict))

    speed = results["tensors"]
    for name, value in speed["differences"].items():
        row(f"{name}, largest difference from the built-in tensors", value, form="{:.1e}")
    for i, entry in enumerate(speed["bandwidth"]):
        what = f"5 x {entry['bytes'] / 2**20:g} MiB {entry['dtype']}, bandwidth over a copy's"
        first = (f">= {BARS['bandwidth']}", entry["ratio"] >= BARS["bandwidth"]) if i == 0 else ()
        row(what, entry["ratio"], *first)
        row(f"{what}, separate inputs", entry["ratio_separate"])
    for entry in speed["distillation"]:
        what = f"{entry['shape']}, {entry['call_ms']:.1f} ms a call"
        bars = f"<= {BARS['outside']}", entry["outside"] <= BARS["outside"]
        row(f"{what}, time outside the model", entry["outside"], *bars, form="{:.3f}")
        bars = f"<= {BARS['whole run']}", entry["whole_run"] <= BARS["whole run"]
        row(f"{what}, a whole run beyond its model calls alone", entry["whole_run"], *bars, form="{:.3f}")
    for name, entry in results["unet"]["schedules"].items():
        best = entry["handcrafted"]
        row(f"U-Net {name}, held-out distance", entry["distance"], form="{:.4f}")
        row(f"best handcrafted ({best['solver']}, {best['grid']})", best["distance"], form="{:.4f}")
    row("U-Net, seconds of the distillation", results["unet"]["seconds"], form="{:.0f}")
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows) + "\n"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--seconds", type=float, default=120, help="of training (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("bench-gpu"), help="folder (default %(default)s)")
    args = parser.parse_args()
    if not torch.__version__.startswith("2.11."):
        raise SystemExit(f"this is torch {torch.__version__}; what is here is built for torch 2.11")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU; --device cpu runs the same on the CPU, smaller")
    gpu = args.device == "cuda"
    args.size, args.width, args.batch, args.nfe = (32, 64, 64, "4-6") if gpu else (16, 16, 32, "4")
    args.out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if gpu else f"CPU, {os.cpu_count()} cores, {platform.machine()}"
    print(f"{name}, torch {torch.__version__}")

    if importlib.util.find_spec("pytest"):
        run(sys.executable, "-m", "pytest", "-q", "-rs", HERE / "tests")
    run(HERE / "torch", "--device", args.device, "--json", args.out / "tensors.json")
    tensors = json.loads((args.out / "tensors.json").read_text())
    training = train(args, args.out / "unet.pt")
    results = {"device": name, "torch": torch.__version__, "tensors": tensors, "training": training}
    results["unet"] = distill(args, args.out / "unet.pt")
    (args.out / "bench-gpu.json").write_text(json.dumps(results, indent=1))
    text = f"{name}, torch {torch.__version__}\n\n{table(results, gpu)}"
    (args.out / "bench-gpu.md").write_text(text)
    print("\n" + text)
    return 1 if "MISSED" in text else 0


if __name__ == "__main__":
    sys.exit(main())
