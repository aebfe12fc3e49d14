"""A checkout of ComfyUI as a library of this process: no server, CPU only."""

import importlib.util
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def enter(comfyui: Path) -> None:
    """Makes `comfy`, `nodes`, ... importable from the checkout. Once a process, before anything of it."""
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args  # does not parse this process's arguments

    args.cpu = True


def pack(folder: Path, name: str):
    """A pack's module, imported the way the host does it."""
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def digits():
    """The digits pack."""
    return pack(HERE / "digits_pack", "digits_pack")


def guider(digits, prediction="edm", text="0,1,2,3,4,5,6,7,8,9", cfg=3.0, video=False):
    """A CFGGuider of the digits model."""
    import comfy.samplers

    (model,) = digits.DigitsModel().load(prediction, video)
    (positive,), (negative,) = digits.DigitsPrompt().encode(text), digits.DigitsPrompt().encode("")
    made = comfy.samplers.CFGGuider(model)
    made.set_conds(positive, negative)
    made.set_cfg(cfg)
    return made


def sample(digits, guider, function, batch, sigmas=None, noise=None, seed=0, video=False, **options):
    """guider.sample() with a KSAMPLER of `function(model, x, extra_args, **known arguments it takes)`.

    `sigmas`: [sigma_max, 0] where nothing else is said; `noise`: standard normal, of `seed`.
    """
    import inspect

    import comfy.sample
    import comfy.samplers
    import torch

    (latent,) = digits.DigitsLatent().empty(batch, video)
    latent = latent["samples"]
    sampling = guider.model_patcher.get_model_object("model_sampling")
    if sigmas is None:
        sigmas = torch.tensor([float(sampling.sigma_max), 0.0])
    if noise is None:
        noise = comfy.sample.prepare_noise(latent, seed)

    def call(model, x, sigmas, extra_args=None, callback=None, disable=None, **others):
        known = {"model": model, "x": x, "sigmas": sigmas, "extra_args": extra_args, "callback": callback}
        taken = inspect.signature(function).parameters
        return function(**{name: value for name, value in known.items() if name in taken}, **others)

    sampler = comfy.samplers.KSAMPLER(call, options)
    return guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=seed)
