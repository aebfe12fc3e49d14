"""What the nodes know of ComfyUI: models, and the folder of schedules.

Everything here is told by the host or asked of it; there are no numerics.
"""

import contextlib
import hashlib
import os
import re
from pathlib import Path

import folder_paths
import lmsd
import lmsd.guidance
import torch

from . import weights

FOLDER = "lmsd_schedules"
FRESH = "lmsd_fresh"  # in transformer_options: no call may know of the one before


# ---- schedule files


def register_folder() -> None:
    """Makes models/lmsd_schedules known, beside the paths that extra_model_paths.yaml gave it."""
    own = Path(folder_paths.models_dir) / FOLDER
    paths, extensions = folder_paths.folder_names_and_paths.get(FOLDER, ([], set()))
    if str(own) not in paths:
        paths.append(str(own))
    folder_paths.folder_names_and_paths[FOLDER] = (paths, set(extensions) | {".json"})
    own.mkdir(parents=True, exist_ok=True)


def schedule_names() -> list[str]:
    """The files, relative to their folders. New ones are there at once."""
    return folder_paths.get_filename_list(FOLDER)


def schedule_path(name: str) -> Path:
    """Raises ValueError where there is no such file."""
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        there = ", ".join(schedule_names()) or "none at all"
        raise ValueError(f"there is no schedule file {name!r} in models/{FOLDER}; there are: {there}")
    return Path(path)


def new_files(name: str, nfes) -> dict[int, Path]:
    """NFE -> "NAME nfeNN.json" in models/lmsd_schedules; NAME gets a number if one is there already.

    Raises OSError where that folder cannot be written to.
    """
    folder, name = _place(name)
    stem, number = name, 1
    while True:
        files = {nfe: folder / f"{stem} nfe{nfe:02d}.json" for nfe in nfes}
        if not any(file.exists() for file in files.values()):
            return files
        number += 1
        stem = f"{name} ({number})"


def family(path: Path, schedule: lmsd.Schedule) -> str:
    """What all schedules of one distillation share: the name of their files, and a hash of what they saw."""
    seen = hashlib.sha256(schedule.made_by.get("seeds", "").encode()).hexdigest()[:8]
    return f"{path.stem.rpartition(' nfe')[0]}, {seen}"


def siblings(schedule: lmsd.Schedule) -> dict[str, lmsd.Schedule]:
    """File name -> schedule, of all files of the family of `schedule`, whatever they are called now."""
    found, name = {}, schedule.made_for.get("family")
    for file in schedule_names() if name else []:
        try:
            other = lmsd.Schedule.load(schedule_path(file))
        except (lmsd.Error, ValueError):
            continue
        if other.made_for.get("family") == name:
            found[file] = other
    return found


def checkpoint_file(name: str) -> Path:
    """Beside them, "NAME checkpoint.jsonl", without a number: a run of the same name goes on from it."""
    folder, name = _place(name)
    return folder / f"{name} checkpoint.jsonl"


def _place(name: str) -> tuple[Path, str]:
    """The folder to write to, and NAME as files have it."""
    folder = Path(folder_paths.get_folder_paths(FOLDER)[0])
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"schedules cannot be saved: {folder} is not writable")
    name = re.sub(r"[^\w.,+=@ -]+", "_", name).strip(" .")
    return folder, name.encode()[:100].decode(errors="ignore") or "schedule"  # file systems count bytes


# ---- models


def base_model(wrapped):
    """The model that knows its noise levels, inside whatever wraps it; None if there is none."""
    for _ in range(8):
        if hasattr(wrapped, "model_sampling"):
            return wrapped
        wrapped = getattr(wrapped, "inner_model", None)
    return None


def process(sampling) -> str:
    """ "ve" or "flow": how the model's noise is added, found by asking it.

    Raises ValueError where dx/dsigma = (x - denoised) / sigma, on which every schedule rests, does not hold.
    """
    kinds = [kind.__name__ for kind in type(sampling).__mro__]
    image, one = torch.ones(1, 1, 1, 1), torch.ones(())

    def scaled(sigma, noise, latent):
        out = sampling.noise_scaling(sigma * one, noise.clone(), latent.clone(), False)
        return float(out.flatten()[0])

    found = None
    if not any(kind.startswith("IMG_TO_IMG") for kind in kinds):
        noise = [scaled(sigma, image, 0 * image) / sigma for sigma in (0.25, 0.75)]
        kept = [scaled(sigma, 0 * image, image) for sigma in (0.25, 0.75)]
        if noise[0] > 0 and abs(noise[0] - noise[1]) < 1e-3 * noise[0]:
            if max(abs(kept[0] - 1), abs(kept[1] - 1)) < 1e-3:
                found = "ve"
            elif max(abs(kept[0] - 0.75), abs(kept[1] - 0.25)) < 1e-3:
                found = "flow"
    if found is None:
        names = ", ".join(kind for kind in kinds if kind not in ("ModelSampling", "Module", "object"))
        raise ValueError(
            f"this model ({names}) does not add noise as x0 + sigma n or "
            "(1 - sigma) x0 + sigma n; multistep schedules do not apply to it: use the sampler made for it"
        )
    return found


def snaps(sampling) -> bool:
    """Whether the network is told the nearest of its training steps instead of sigma itself."""
    between = torch.tensor([float(sampling.sigma_min) * 1.5 + float(sampling.sigma_max) * 1e-3])
    try:
        return not torch.is_floating_point(sampling.timestep(between))
    except Exception:
        return False


def prediction(sampling) -> str | None:
    """What the network predicts, found by asking: "eps", "v", "edm", "x0", "flow"; None for anything else."""
    one, sigma = torch.ones(1, 1, 1, 1), 0.75

    def denoised(output, x):
        return float(sampling.calculate_denoised(torch.full((1,), sigma), output, x).flatten()[0])

    try:
        of_x, of_output = denoised(0 * one, one), denoised(one, 0 * one)
        if process(sampling) == "flow" or abs(of_x - 1 / (1 + sigma)) < 1e-3:
            return "flow" if of_output < 0 else None
    except Exception:
        return None
    if abs(of_x - 1) < 1e-3:
        return "eps"
    if abs(of_x) < 1e-3:
        return "x0"
    return "v" if of_output < 0 else "edm"


def describe(model, sampling=None) -> dict:
    """What a schedule records of a model and checks again.

    `model`: a BaseModel; `sampling`: its model_sampling, where a MODEL has a patched one.
    """
    sampling = model.model_sampling if sampling is None else sampling
    about = {
        "process": process(sampling),
        "model": type(getattr(model, "model_config", None) or model).__name__,
        "sigma_min": rounded(sampling.sigma_min),
        "sigma_max": rounded(sampling.sigma_max),
    }
    if (predicts := prediction(sampling)) is not None:
        about["prediction"] = predicts
    shift = getattr(sampling, "shift", None)
    if about["process"] == "flow" and isinstance(shift, int | float):
        about["shift"] = rounded(shift)
    return about


def rounded(value) -> float:
    """Without the digits that float32 does not have: files and messages are for people."""
    return float(f"{float(value):.6g}")


def describe_patched(model) -> dict:
    """The same of a MODEL, with the noise levels that nodes such as ModelSamplingFlux gave it."""
    return describe(model.model, model.get_model_object("model_sampling"))


def guidance(guider) -> float | None:
    """The guidance scale: that of the guider, or at 1 the one that the conditioning carries (Flux)."""
    scale = getattr(guider, "cfg", None)
    if not isinstance(scale, int | float) or hasattr(guider, "cfg1"):
        return None
    conds = getattr(guider, "original_conds", None) or {}
    if float(scale) == 1.0:
        for cond in conds.get("positive") or []:
            if isinstance(cond, dict) and isinstance(cond.get("guidance"), int | float):
                return float(cond["guidance"])
    return float(scale)


def guidance_scales(guider, to: float) -> list[float]:
    """Scales that batches have, one each in turn: the guider's, or several from that to `to`, if above 0.

    Empty where the guider has none. Raises ValueError where it has no single one that can be set.
    """
    scale = guidance(guider)
    if to <= 0 or scale == to:
        return [] if scale is None else [scale]
    if scale is None or scale != getattr(guider, "cfg", None) or not 0 < scale < to:
        raise ValueError(
            f"cfg_to is {to:g}; it needs a guider with a cfg of its own, above 0 and below that, or else 0"
        )
    return lmsd.guidance.spread(scale, to)


def settable(guider) -> float | None:
    """The guidance scale of a guider that has one for all its calls, which can be set; else None."""
    scale = getattr(guider, "cfg", None)
    return None if scale != guidance(guider) or hasattr(guider, "low") else scale


@contextlib.contextmanager
def setting_guidance(schedule: lmsd.Schedule, guider):
    """For the time of a run, a function that gives calls a share of the guider's cfg; None if none is needed.

    Raises ValueError where the schedule has a guidance of its own for each call, and the guider has none.
    """
    if not schedule.is_guided:
        yield None
        return
    scale = settable(guider)
    if scale is None:
        raise ValueError(
            "this schedule sets the cfg of each step, and this guider has no single cfg: use CFGGuider or "
            "KSampler, or a schedule that was distilled without fit_guidance"
        )
    try:
        yield lambda share: setattr(guider, "cfg", lmsd.guidance.of_call(scale, share))
    finally:
        guider.cfg = scale


def fingerprint(guider) -> str | None:
    """Of the weights of a guider's model, or of both of a guider for two; None where they cannot be told."""
    guiders = [guider, getattr(guider, "low", None)]
    return weights.fingerprint(*(one.model_patcher for one in guiders if hasattr(one, "model_patcher")))


class Prompts:
    """The conditioning of a guider that samples, which may hold several prompts as one batch.

    The host gives prompt i to image i of a batch, and the first ones again where there are fewer. `count`: of
    the entry that has the most, 1 where none has more.
    """

    def __init__(self, guider):
        self.batched = []  # (model_conds of an entry, name, what it holds for each prompt)
        self.count = 1
        conds = getattr(guider, "conds", None) or {}
        for entry in (entry for entries in conds.values() for entry in entries or []):
            tokens = entry.get("cross_attn")
            count = len(tokens) if torch.is_tensor(tokens) else 1
            self.count = max(self.count, count)
            for name, held in entry.get("model_conds", {}).items():
                tensor = getattr(held, "cond", None)
                if count > 1 and torch.is_tensor(tensor) and tensor.ndim and len(tensor) == count:
                    self.batched.append((entry["model_conds"], name, held))

    def begin_with(self, first: int) -> None:
        """Image i gets prompt `first` + i."""
        for conds, name, held in self.batched:
            conds[name] = held._copy_with(held.cond.roll(-(first % len(held.cond)), 0))

    def tensors(self) -> list:
        """All that differs from prompt to prompt."""
        return [held.cond for _, _, held in self.batched]


def check(schedule: lmsd.Schedule, about: dict) -> None:
    """Raises ScheduleError where the model of `about` (see `describe`) is not one that a schedule is for.

    Shift and lowest noise level only say how a model spreads the levels of other samplers: with the
    schedule's own the result is the same, so they are among `differences`.
    """
    schedule.check(**{name: value for name, value in about.items() if name not in ("shift", "sigma_min")})


def differences(made: dict, model, guider, x) -> list[str]:
    """Sentences on what a schedule was made for and this run has not; with all of them it runs.

    `made`: its `made_for`; `model`: a BaseModel or None; `guider`: of the run, or None; `x`: its state.
    """
    found = []

    def differs(what, wanted, here):
        found.append(f"the schedule was made for {what} {wanted}; this run has {here}")

    scale = guidance(guider)
    if not lmsd.guidance.suits(made, scale):
        differs("guidance scale", lmsd.guidance.words(made), f"{scale:g}")
    if made.get("latent_shape") not in (None, list(x.shape[1:])):
        differs("latents of", made["latent_shape"], list(x.shape[1:]))
    if model is not None:
        about = describe(model)
        names = [name for name in ("shift", "sigma_min") if name in about and name in made]
        for name in names[:1]:  # the lowest level of a flow model follows from the shift
            if abs(about[name] - made[name]) > 1e-3 * max(about[name], made[name]):
                words = "shift" if name == "shift" else "a lowest noise level of"
                differs(words, f"{made[name]:g}", f"{about[name]:g}")
        here = about.get("prediction")
        if here is not None and made.get("prediction") not in (None, here):
            differs("a model that predicts", made["prediction"], f"one that predicts {here}")
        snapped = snaps(model.model_sampling)
        if made.get("snapped") not in (None, snapped):
            kinds = "any noise level", "the nearest of its training steps"
            differs("a model that is told", kinds[made["snapped"]], f"one that is told {kinds[snapped]}")
    return found + weights.differences(made.get("fingerprint"), fingerprint(guider))


# ---- what patches of a model are told


def with_levels(extra_args: dict | None, levels, x, caches_off_for=None) -> dict:
    """`extra_args` for a run whose model calls are at `levels`, the last of which is where it ends.

    Context windows, TeaCache and others look the level of a call up in `sample_sigmas`, which the host filled
    with SIGMAS; where it is not found some of them raise. `caches_off_for`: a model_sampling, where no call
    may know of the one before; EasyCache and LazyCache then get a fresh state, and what looks at the list
    finds itself at the first step of a run.
    """
    extra_args = dict(extra_args or {})
    if "model_options" not in extra_args:  # another caller than the host
        return extra_args
    model_options = dict(extra_args["model_options"] or {})
    told = dict(model_options.get("transformer_options") or {})
    if caches_off_for is not None and "context_handler" in model_options:
        levels = levels[:1]  # 0.3.64 compares the list with the levels of a whole batch
    told["sample_sigmas"] = torch.tensor([float(level) for level in levels], dtype=x.dtype, device=x.device)
    told |= {FRESH: True} if caches_off_for is not None else {}
    cache = told.get("easycache")
    if caches_off_for is not None and hasattr(cache, "prepare_timesteps"):
        told["easycache"] = cache.clone().prepare_timesteps(caches_off_for)
    return extra_args | {"model_options": model_options | {"transformer_options": told}}


# ---- inpainting


def keep_known(x, model, extra_args: dict | None, schedule: lmsd.Schedule):
    """The end point `x` of a run of `schedule`, with what a noise mask keeps exactly as it was.

    The host puts the known image into every prediction. The last row of a fit sums to nearly 1, so a little
    of that image is missing, or too much, wherever the mask is below 1.
    """
    extra_args = extra_args or {}
    mask, image = extra_args.get("denoise_mask"), getattr(model, "latent_image", None)
    if mask is None or image is None or schedule.sigma_end > 0:
        return x
    change = (extra_args.get("model_options") or {}).get("denoise_mask_function")
    if change is not None:  # such as Differential Diffusion's: as the last call had it
        sigma = x.new_full((len(x),), float(schedule.sigmas[-2] * schedule.scales[-1]))
        mask = change(sigma, mask, extra_options={"model": model.inner_model, "sigmas": model.sigmas})
    missing = 1.0 - float(schedule.weights[-1].sum())
    return torch.where(mask == 0, image, x + (1 - mask) * missing * image)
