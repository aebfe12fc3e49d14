"""Distilled at 5 calls against ComfyUI's own samplers at 10: the digits network, guidance 3, inside ComfyUI.

    COMFYUI_DIR=ComfyUI python benches/comfyui_hosts.py --out out/comfyui.json

Every sampler of the host that is deterministic, with one call a step and the guidance it is told, runs on
every scheduler of the host at 5 and 10 steps. Figures are mean Euclidean distances, in pixels of [-1, 1], to
two converged results from the same noise and labels: the best that the host itself makes of 100 calls (the
one nearest to its Heun at 400 steps), and the teacher of lmsd at 100 calls. The schedule is distilled inside
the host by the node Distill Schedule (Guider), from other seeds, and sampled by Distilled Sampler. Exits with
1 where the distilled schedule at 5 calls is not nearer, to either of the two, than euler, dpmpp_2m, ipndm,
uni_pc and res_multistep at 10 on their best schedulers.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

# the matrices are small: more threads cost more than they save
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "digits"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "comfyui"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bindings" / "python" / "src"))

import inside
import lmsd
import torch
from common import Claims, write_json
from lmsd.cli.terminal import print_table

ROOT = Path(__file__).resolve().parents[1]
GUIDANCE, SIGMA_MIN = 3.0, 0.002
CLAIMED = ("euler", "dpmpp_2m", "ipndm", "uni_pc", "res_multistep")
NFE, AGAINST, CONVERGED, ARBITER = 5, 10, 100, ("heun", "karras", 400)
TEST_SEED, TRAIN_SEED = 1_000_000, 0  # + the number of the batch
LABELS = "0,1,2,3,4,5,6,7,8,9"
TEACHER = {"teacher": "unipc_bh2_3", "teacher_nfe": 100}


class Bench:
    """Samples `images` test images with any sampler of the host, or any sampler function."""

    def __init__(self, digits, pack, images):
        import comfy.sample
        import comfy.samplers

        class Counting(comfy.samplers.CFGGuider):
            calls = 0

            def predict_noise(self, *args, **kwargs):
                self.calls += 1
                return super().predict_noise(*args, **kwargs)

        self.samplers, self.nodes = comfy.samplers, pack.NODE_CLASS_MAPPINGS
        self.model = inside.guider(digits, "edm").model_patcher
        (positive,), (negative,) = digits.DigitsPrompt().encode(LABELS), digits.DigitsPrompt().encode("")
        self.guider = Counting(self.model)
        self.guider.set_conds(positive, negative)
        self.guider.set_cfg(GUIDANCE)
        self.sampling = self.model.get_model_object("model_sampling")
        self.latent = digits.DigitsLatent().empty(images)[0]["samples"]
        self.noise = comfy.sample.prepare_noise(self.latent, TEST_SEED)

    def sample(self, sampler, sigmas, noise=None, seed=0):
        """(end points, guided calls) of a KSAMPLER."""
        self.guider.calls = 0
        noise = self.noise if noise is None else noise
        latent = torch.zeros_like(noise)
        with torch.inference_mode():
            x = self.guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=seed)
        return x, self.guider.calls

    def row(self, name, scheduler, steps, own, teacher):
        """How far a sampler of the host ends from its own converged result and from the teacher's."""
        x, calls = self.own(name, scheduler, steps)
        row = {"sampler": name, "steps": steps, "scheduler": scheduler, "calls": calls}
        return row | {"to_host": distance(x, own), "to_teacher": distance(x, teacher)}

    def own(self, name, scheduler, steps, images=None, seed=0):
        """The same with a sampler and a scheduler of the host, as its KSampler combines them."""
        device = self.model.load_device
        sigmas = self.samplers.KSampler(self.model, steps, device, name, scheduler).sigmas
        noise = self.noise if images is None else self.noise[:images]
        return self.sample(self.samplers.sampler_object(name), sigmas, noise, seed)

    def ours(self, schedule):
        """The same with a schedule, by the node."""
        sampler, sigmas = self.nodes["LmsdSampler"]().make(schedule, 1.0, self.model)
        return self.sample(sampler, sigmas)

    def fair_samplers(self):
        """(deterministic ones with one call a step and plain guidance, {name: why not} of the others)."""
        fair, refused = [], {}
        for name in self.samplers.SAMPLER_NAMES:
            if "cfg_pp" in name:
                refused[name] = "another guidance"
                continue
            (a, calls), (b, _) = (self.own(name, "karras", 5, 16, seed) for seed in (1, 2))
            if not torch.equal(a, b):
                refused[name] = "adds noise"
            elif calls != 5:
                refused[name] = f"{calls} calls for 5 steps"
            else:
                fair.append(name)
        return fair, refused


def distill(bench, nfe, batch=64):
    """(schedule, calls) of the node, from a batch to fit to and another to select by."""
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise

    bench.guider.calls = 0
    options = {"name": "digits", "nfe": nfe, "nfe_from": 0, "trajectories": batch, "batch_size": batch}
    options |= {"minutes": 0.0, "compare": False}
    latent = {"samples": bench.latent[:1]}
    with torch.inference_mode():
        node = bench.nodes["LmsdDistillGuider"]()
        (schedule,) = node.run(bench.guider, Noise_RandomNoise(TRAIN_SEED), latent, **options)
    return schedule, bench.guider.calls


def distance(a, b):
    return (a - b).flatten(1).norm(dim=1).mean().item()


def converged(bench, names, schedulers):
    """(host's own end points at 100 steps, which, teacher's, all distances between them and the arbiter)."""
    arbiter, _ = bench.own(*ARBITER)
    found = []
    for name in names:
        for scheduler in schedulers:
            x, calls = bench.own(name, scheduler, CONVERGED)
            if calls <= CONVERGED:
                found.append((distance(x, arbiter), f"{name} {scheduler}", x))
    near, which, own = min(found, key=lambda entry: entry[0])
    options = {"sigma_min": SIGMA_MIN, "sigma_max": float(bench.sampling.sigma_max), "sigma_end": 0.0}
    teacher, _ = bench.ours(lmsd.solve(TEACHER["teacher"], nfe=TEACHER["teacher_nfe"], **options))
    apart = {"host, arbiter": near, "teacher, arbiter": distance(teacher, arbiter)}
    return own, which, teacher, apart | {"host, teacher": distance(own, teacher)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_DIR"), help="a checkout")
    parser.add_argument("--images", type=int, default=320, help="test images, with labels 0 to 9 in turn")
    parser.add_argument("--out", type=Path, help="all figures, as JSON")
    args = parser.parse_args()
    if not args.comfyui:
        parser.error("--comfyui or COMFYUI_DIR must say where a checkout of ComfyUI is")
    started = time.perf_counter()
    inside.enter(args.comfyui.resolve())
    import comfyui_version
    import folder_paths

    folder_paths.models_dir = tempfile.mkdtemp(prefix="lmsd-bench-")
    pack = inside.pack(ROOT / "bindings" / "comfyui", "comfyui_lmsd_bench")
    bench = Bench(inside.digits(), pack, args.images)

    schedulers = bench.samplers.SCHEDULER_NAMES
    print(f"ComfyUI {comfyui_version.__version__}, {args.images} test images, guidance {GUIDANCE:g}")
    names, refused = bench.fair_samplers()
    print("left out:", "; ".join(f"{name}: {why}" for name, why in refused.items()))
    own, which, teacher, apart = converged(bench, CLAIMED, schedulers)
    print(f"the host's own result at {CONVERGED} calls: {which}; the teacher's: {TEACHER['teacher']}")
    print("apart:", ", ".join(f"{pair} {value:.4f}" for pair, value in apart.items()))

    rows = [
        bench.row(name, scheduler, steps, own, teacher)
        for name in names
        for steps in (NFE, AGAINST)
        for scheduler in schedulers
    ]
    schedule, calls = distill(bench, NFE)
    x, used = bench.ours(schedule)
    ours = {"sampler": "lmsd, distilled", "steps": NFE, "scheduler": "its own", "calls": used}
    ours |= {"to_host": distance(x, own), "to_teacher": distance(x, teacher)}

    best = {}
    for row in rows:
        for to in ("to_host", "to_teacher"):
            key = row["sampler"], row["steps"], to
            best[key] = min(best.get(key, row), row, key=lambda row, to=to: row[to])
    shown = sorted(
        (row for (_, _, to), row in best.items() if to == "to_host"), key=lambda row: row["to_host"]
    )
    head = ("sampler", "steps", "calls", "to host's 100", "to teacher's 100", "best scheduler")
    print_table([head, *map(cells, sorted([*shown, ours], key=lambda row: row["to_host"]))])
    print(f"distilled with {calls} calls of 64 images, in {schedule.made_by['seconds']:.0f} s")

    claims = Claims()
    for name in CLAIMED:
        for to, what in (("to_host", "the host's 100"), ("to_teacher", "the teacher's 100")):
            bar = best[name, AGAINST, to]
            on = f"{name} at {AGAINST} on {bar['scheduler']}"
            claims.check(f"distilled at {NFE} nearer to {what} than {on}", ours[to], "<", bar[to])
    print(f"{time.perf_counter() - started:.0f} s")
    if args.out:
        about = {"comfyui": comfyui_version.__version__, "images": args.images, "apart": apart}
        about |= {"left_out": refused, "rows": [ours, *rows], "schedule": schedule.to_dict()}
        write_json(args.out, about | {"claims": claims.results})
    return claims.finish()


def cells(row):
    distances = (f"{row[to]:.3f}" for to in ("to_host", "to_teacher"))
    return (row["sampler"], str(row["steps"]), str(row["calls"]), *distances, row["scheduler"])


if __name__ == "__main__":
    sys.exit(main())
