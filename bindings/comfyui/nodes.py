"""The nodes. What they do is in `sampling` and `distill`; here are their inputs, outputs and words."""

import hashlib
import math

import comfy.sample
import comfy.samplers
import lmsd
import torch

from . import display, host, weights
from .distill import distill
from .experts import Experts, split
from .inputs import choice, default, flag, number, option, socket, text
from .sampling import sampler_and_sigmas

CATEGORY = "sampling/lmsd"
SCHEDULE = "LMSD_SCHEDULE"
HELP = "models/lmsd_schedules"
MOST_REPEATED = 8  # times the tokens of the longest prompt, to make a batch of prompts

host.register_folder()


class Seeded:
    """NOISE from a seed, for the node that has none as input."""

    def __init__(self, seed):
        self.seed = seed

    def generate_noise(self, latent):
        return comfy.sample.prepare_noise(latent["samples"], self.seed, latent.get("batch_index"))


class LoadDistilledSchedule:
    DESCRIPTION = f"Loads a schedule file from {HELP}. A file made for another kind of model is refused."
    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = (SCHEDULE,)
    RETURN_NAMES = ("SCHEDULE",)

    @classmethod
    def INPUT_TYPES(cls):
        tip = f"A file from {HELP}. New files are there after a refresh (R)."
        return {
            "required": {"schedule": (host.schedule_names(), {"tooltip": tip})},
            "optional": {"model": socket("MODEL", "Checks the file at once. Sampling checks it anyway.")},
        }

    @classmethod
    def IS_CHANGED(cls, schedule, model=None):
        try:
            with host.schedule_path(schedule).open("rb") as file:
                return hashlib.sha256(file.read(2 << 20)).hexdigest()
        except (OSError, ValueError):
            return math.nan

    def load(self, schedule, model=None):
        loaded = lmsd.Schedule.load(host.schedule_path(schedule))
        if model is not None:
            host.check(loaded, host.describe_patched(model))
            display.warn(weights.differences(loaded.made_for.get("fingerprint"), weights.fingerprint(model)))
        return (loaded,)


class HandcraftedSolver:
    DESCRIPTION = "A published solver on a grid of noise levels, as a schedule."
    CATEGORY = CATEGORY
    FUNCTION = "solve"
    RETURN_TYPES = (SCHEDULE,)
    RETURN_NAMES = ("SCHEDULE",)

    @classmethod
    def INPUT_TYPES(cls):
        names = [solver["name"] for solver in lmsd.solvers()]
        about = "; ".join(f"{solver['name']}: {solver['about']}" for solver in lmsd.solvers())
        spread = "How the noise levels are spread. auto: karras, or flow for flow models."
        return {
            "required": {
                "model": socket("MODEL", "Gives the range of noise levels."),
                "solver": choice(names, default("solve", "solver"), about),
                "steps": option("solve", "nfe"),
                "grid": choice(["auto", "karras", "log", "linear", "flow"], "auto", spread),
                "rho": number(7.0, 0.1, 100.0, "Of the karras grid.", step=0.1),
                "shift": number(0.0, 0.0, 100.0, "Of the flow grid. 0: the model's own.", step=0.01),
                "lower_order_final": option("solve", "lower_order_final"),
            }
        }

    def solve(self, model, solver, steps, grid, rho, shift, lower_order_final):
        about = host.describe_patched(model)
        flow = about["process"] == "flow"
        kind = ("flow" if flow else "karras") if grid == "auto" else grid
        if kind == "flow":
            described = {"kind": kind, "shift": shift or about.get("shift", 1.0)}
        else:
            described = {"kind": kind, "rho": rho} if kind == "karras" else {"kind": kind}
        sampling = model.get_model_object("model_sampling")
        schedule = lmsd.solve(
            solver,
            nfe=steps,
            grid=described,
            process=about["process"],
            sigma_min=float(sampling.sigma_min),
            sigma_max=float(sampling.sigma_max),
            sigma_end=0.0,
            lower_order_final=lower_order_final,
        )
        return (schedule,)


class DistilledSampler:
    DESCRIPTION = (
        "Makes SAMPLER and SIGMAS of a schedule, for SamplerCustom and SamplerCustomAdvanced. Connect both: "
        "the noise levels and the weights of a schedule belong together."
    )
    CATEGORY = CATEGORY
    FUNCTION = "make"
    RETURN_TYPES = ("SAMPLER", "SIGMAS")

    @classmethod
    def INPUT_TYPES(cls):
        start = (
            "Below 1, for image to image: starts at the noise level that KSampler with 'simple' would, with "
            "the rest of the schedule: fewer steps. Needs the model."
        )
        check = "Needed for denoise below 1; else it checks the schedule at once."
        return {
            "required": {"schedule": socket(SCHEDULE), "denoise": number(1.0, 0.0, 1.0, start, step=0.01)},
            "optional": {"model": socket("MODEL", check)},
        }

    def make(self, schedule, denoise, model=None):
        return sampler_and_sigmas(schedule, model, denoise)


def distill_inputs() -> dict:
    """Inputs that both distilling nodes have."""
    family = "Above 0: one schedule for every number of steps from this to nfe."
    planned = (
        "The work is planned to be done in this time, former runs that it goes on from included. 0: no limit."
    )
    measured = "Also measures every published sampler on its usual grids, for Schedule Report."
    return {
        "latent_image": socket("LATENT", "An empty latent of the resolution to fit to."),
        "name": text("my model", f"Of the files in {HELP}: NAME nfe05.json"),
        "nfe": option("distill", "nfe"),
        "nfe_from": option("distill", "nfe_from", family, default=0, min=0),
        "trajectories": option(
            "distill", "trajectories", "A trajectory is an image. Fewer is faster.", max=4096
        ),
        "batch_size": number(4, 1, 4096, "Images in a model call; 4 to 16 make the cheapest fit."),
        "minutes": number(30.0, 0.0, 1440.0, planned, step=0.5),
        "compare": flag(True, measured),
    }


def optional_distill_inputs(more: dict | None = None) -> dict:
    """Those that workflows of before do not have, in the order in which they came; `more` after the first."""
    cfg_to = "Above 0: one schedule for all scales from cfg to this; at a single scale it is less near."
    own = "Each step gets a cfg of its own, fitted too. For one model and cfg above 1."
    return {
        "cfg_to": number(0.0, 0.0, 100.0, cfg_to, step=0.1, round=0.01),
        **(more or {}),
        "fit_guidance": flag(False, own),
    }


BOUNDARY = (
    "The noise level below which the low-noise model is called, at it and above the other: 0.875 and 0.9 are "
    "those of Wan 2.2, text and image to video."
)


def boundary_input() -> tuple:
    return number(0.875, 0.0, 1000.0, BOUNDARY, step=0.001, round=0.0001)


def two_models_inputs() -> dict:
    """Those of a second model."""
    low = "Of low noise, where the first one is of high noise, as in Wan 2.2: one schedule for both."
    scale = "Of the low-noise model. 0: the same cfg."
    return {
        "model_low_noise": socket("MODEL", low),
        "boundary": boundary_input(),
        "cfg_low_noise": number(0.0, 0.0, 100.0, scale, step=0.1, round=0.01),
    }


class DistillSchedule:
    DESCRIPTION = (
        "Fits a schedule to this model, guidance scale and resolution, by forward calls only, and saves it "
        f"in {HELP}. Takes minutes; an interrupt keeps the best so far. More prompts: Prompts for Distilling."
    )
    CATEGORY = CATEGORY
    FUNCTION = "run"
    OUTPUT_NODE = True
    RETURN_TYPES = (SCHEDULE,)
    RETURN_NAMES = ("SCHEDULE",)

    @classmethod
    def INPUT_TYPES(cls):
        prompts = "One prompt, or several as a batch, which take turns: every one is used."
        seed = "Noise of the first batch; each batch takes the next seed."
        return {
            "required": {
                "model": socket("MODEL"),
                "positive": socket("CONDITIONING", prompts),
                "negative": socket("CONDITIONING"),
                "cfg": number(7.0, 0.0, 100.0, step=0.1, round=0.01),
                # not "noise_seed", which the page would change after every run, and so distill again
                "first_seed": number(0, 0, 0xFFFFFFFFFFFFFFFF, seed),
                **distill_inputs(),
            },
            "optional": optional_distill_inputs(two_models_inputs()),
            "hidden": {"node_id": "UNIQUE_ID"},
        }

    def run(
        self,
        model,
        positive,
        negative,
        latent_image,
        cfg,
        first_seed,
        node_id=None,
        model_low_noise=None,
        boundary=0.875,
        cfg_low_noise=0.0,
        **options,
    ):
        def guided(model, scale):
            guider = comfy.samplers.CFGGuider(model)
            guider.set_conds(positive, negative)
            guider.set_cfg(scale)
            return guider

        guider = guided(model, cfg)
        if model_low_noise is not None:
            guider = Experts(guider, guided(model_low_noise, cfg_low_noise or cfg), boundary)
        return (distill(guider, Seeded(first_seed), latent_image, node_id=node_id, **options),)


class DistillScheduleGuider(DistillSchedule):
    DESCRIPTION = DistillSchedule.DESCRIPTION + " For SamplerCustomAdvanced: takes any GUIDER and NOISE."

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "guider": socket("GUIDER", "Model, conditioning and guidance, as the sampler gets them."),
                "noise": socket("NOISE", "RandomNoise; each batch takes the next seed."),
                **distill_inputs(),
            },
            "optional": optional_distill_inputs(),
            "hidden": {"node_id": "UNIQUE_ID"},
        }

    def run(self, guider, noise, latent_image, node_id=None, **options):
        return (distill(guider, noise, latent_image, node_id=node_id, **options),)


class GuiderForTwoModels:
    DESCRIPTION = (
        "One GUIDER of two that share a trajectory, such as the high-noise and the low-noise model of Wan "
        "2.2. With SamplerCustomAdvanced it takes the place of two samplers; Distill Schedule (Guider) takes "
        "it too."
    )
    CATEGORY = CATEGORY
    FUNCTION = "make"
    RETURN_TYPES = ("GUIDER",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "high_noise": socket("GUIDER", "Called at the boundary and above it."),
                "low_noise": socket("GUIDER", "Called below it."),
                "boundary": boundary_input(),
            }
        }

    def make(self, high_noise, low_noise, boundary):
        return (Experts(high_noise, low_noise, boundary),)


class SplitForTwoModels:
    DESCRIPTION = (
        "Splits SIGMAS of a schedule for two models where the second one begins, for two samplers one after "
        "the other: both with the same SAMPLER, the second with DisableNoise."
    )
    CATEGORY = CATEGORY
    FUNCTION = "split"
    RETURN_TYPES = ("SIGMAS", "SIGMAS")
    RETURN_NAMES = ("high_sigmas", "low_sigmas")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "schedule": socket(SCHEDULE, "Distilled for two models; it knows the boundary."),
                "sigmas": socket("SIGMAS", "Of the Distilled Sampler with this schedule."),
            }
        }

    def split(self, schedule, sigmas):
        return split(schedule, sigmas)


class PromptsForDistilling:
    DESCRIPTION = (
        "One prompt a line as a batch of CONDITIONING, which take turns while a schedule is distilled. Take "
        "prompts of the kind that the schedule is for, any number of them."
    )
    CATEGORY = CATEGORY
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        lines = "One prompt a line; empty lines are left out."
        return {"required": {"clip": socket("CLIP"), "prompts": text("", lines, multiline=True)}}

    def encode(self, clip, prompts):
        lines = [line.strip() for line in prompts.splitlines() if line.strip()] or [""]
        encoded = [clip.encode_from_tokens_scheduled(clip.tokenize(line)) for line in lines]
        if any(len(conditioning) != 1 for conditioning in encoded):
            raise ValueError(
                "prompts with a schedule of their own (hooks over time) cannot be put into one batch"
            )
        tensors = [conditioning[0][0] for conditioning in encoded]
        # repeating tokens up to a common length changes no cross attention; the host does the same
        lengths = [tensor.shape[1] for tensor in tensors]
        length = math.lcm(*lengths)
        if length > MOST_REPEATED * max(lengths):
            raise ValueError(
                f"these prompts have {', '.join(map(str, sorted(set(lengths))))} tokens, which do not go "
                "into one batch: take prompts of the same number of tokens, or a single one"
            )
        about = dict(encoded[0][0][1])
        for name, value in about.items():
            if not torch.is_tensor(value) or value.ndim == 0:
                continue
            values = [conditioning[0][1][name] for conditioning in encoded]
            if name == "attention_mask":
                values = [mask.repeat(1, length // own) for mask, own in zip(values, lengths, strict=True)]
            if len({other.shape[1:] for other in values}) > 1:
                raise ValueError(
                    f"what the text encoder says of these prompts ({name}) does not go into one batch"
                )
            about[name] = torch.cat(values)
        tensors = [tensor.repeat(1, length // own, 1) for tensor, own in zip(tensors, lengths, strict=True)]
        return ([[torch.cat(tensors), about]],)


class ScheduleReport:
    DESCRIPTION = (
        "A picture of a schedule: distance to the many-step result against steps, gain over the best sampler "
        "as published, of all of them, at as many and at twice as many steps, noise levels and weights."
    )
    CATEGORY = CATEGORY
    FUNCTION = "draw"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"schedule": socket(SCHEDULE)}}

    def draw(self, schedule):
        from lmsd.plots import plot_report
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        canvas = FigureCanvasAgg(plot_report(schedule))
        canvas.draw()
        pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
        width, height = canvas.get_width_height()
        return (pixels.reshape(1, height, width, 4)[..., :3].to(torch.float32) / 255,)


NODE_CLASS_MAPPINGS = {
    "LmsdLoadSchedule": LoadDistilledSchedule,
    "LmsdSampler": DistilledSampler,
    "LmsdSolver": HandcraftedSolver,
    "LmsdDistill": DistillSchedule,
    "LmsdDistillGuider": DistillScheduleGuider,
    "LmsdExperts": GuiderForTwoModels,
    "LmsdSplit": SplitForTwoModels,
    "LmsdPrompts": PromptsForDistilling,
    "LmsdReport": ScheduleReport,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LmsdLoadSchedule": "Load Distilled Schedule",
    "LmsdSampler": "Distilled Sampler",
    "LmsdSolver": "Handcrafted Solver",
    "LmsdDistill": "Distill Schedule",
    "LmsdDistillGuider": "Distill Schedule (Guider)",
    "LmsdExperts": "Guider for Two Models",
    "LmsdSplit": "Split for Two Models",
    "LmsdPrompts": "Prompts for Distilling",
    "LmsdReport": "Schedule Report",
}
