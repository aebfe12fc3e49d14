"""What A1111, Forge and SD.Next have for an extension, as far as this one relies on it; no code of theirs.

    host = install(monkeypatch, tmp_path, "forge")   # `from modules import sd_samplers` finds these modules
    host.load()                                      # as they load the scripts of an extension
    p = host.process(Processing("Distilled", steps=5), "cats/nfe*.json")
    host.sampler("Distilled", model).sample(p, noise)

What is faithful: where samplers and schedulers are listed and how they are called, levels that image to image
cuts off, more steps asked for than taken where these are to be exact, interrupts out of the callback.
"""

import dataclasses
import importlib.util
import sys
import types
from collections import namedtuple
from pathlib import Path

import torch

EXTENSION = Path(__file__).resolve().parents[1]
HOSTS = ("a1111", "forge", "sdnext")

SamplerData = namedtuple("SamplerData", ["name", "constructor", "aliases", "options"])


class InterruptedException(BaseException):
    pass


@dataclasses.dataclass
class Scheduler:
    name: str
    label: str
    function: object
    default_rho: float = -1
    need_inner_model: bool = False
    aliases: list = None


class Processing:
    """What scripts and samplers get to know of an image."""

    def __init__(self, sampler_name, steps, scheduler="Automatic", cfg_scale=3.0, denoising_strength=1.0):
        self.sampler_name, self.steps, self.scheduler = sampler_name, steps, scheduler
        self.cfg_scale, self.denoising_strength = cfg_scale, denoising_strength
        self.extra_generation_params, self.comments = {}, []


class KDiffusionSampler:
    """`function`: of k-diffusion's kind. `model`: (x, sigma) -> denoised, with `sigmas`, smallest first."""

    host = None

    def __init__(self, function, model, options=None):
        self.function, self.model, self.config = function, model, None
        self.stop_at = None
        self.last_latent, self.heard = None, []

    def denoiser(self, x, sigma, cond, uncond, cond_scale, s_min_uncond, image_cond):
        assert sigma.shape == (len(x),)
        return self.model(x, float(sigma[0]))

    def levels(self, p, steps):
        name = self.config.options.get("scheduler") if p.scheduler == "Automatic" else p.scheduler
        scheduler = self.host.modules.sd_schedulers.schedulers_map[name]
        low, high = self.model.sigmas[0].item(), self.model.sigmas[-1].item()
        return scheduler.function(n=steps, sigma_min=low, sigma_max=high, device="cpu")

    def heard_step(self, step):
        self.heard.append(step["i"])
        if self.stop_at is not None and step["i"] >= self.stop_at:
            raise InterruptedException
        self.last_latent = step["denoised"]

    def run(self, p, x, sigmas):
        arguments = {
            "cond": "a",
            "uncond": "b",
            "cond_scale": p.cfg_scale,
            "s_min_uncond": 0,
            "image_cond": None,
        }
        try:
            return self.function(
                self.denoiser,
                x,
                extra_args=arguments,
                disable=False,
                callback=self.heard_step,
                sigmas=sigmas,
            )
        except InterruptedException:
            return self.last_latent

    def sample(self, p, noise):
        sigmas = self.levels(p, p.steps)
        return self.run(p, noise * sigmas[0], sigmas)

    def sample_img2img(self, p, image, noise, steps=None):
        """`steps`: as many are taken, as in hires. fix; else the strength's part of p.steps."""
        strength = min(p.denoising_strength, 0.999)
        asked, taken = p.steps, int(strength * p.steps) + 1
        if steps is not None:
            asked, taken = int(steps / strength), steps
        sigmas = self.levels(p, asked)[asked - taken :]
        return self.run(p, image + noise * sigmas[0], sigmas)


class Component:
    """Of gradio: what a script made."""

    def __init__(self, **given):
        self.given = given


class Row:
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Script:
    def elem_id(self, name):
        return f"script_{name}"


class Host:
    """`kind`: one of HOSTS. `modules`: their package. `scripts`: of what `load` has loaded."""

    def __init__(self, kind, folder, monkeypatch):
        self.kind, self.monkeypatch, self.scripts = kind, monkeypatch, []
        self.modules = types.ModuleType("modules")
        self.modules.__path__ = []
        names = ["paths", "scripts", "sd_samplers", "sd_samplers_common", "ui_common"]
        names += (
            ["sd_samplers_diffusers"] if kind == "sdnext" else ["sd_samplers_kdiffusion", "sd_schedulers"]
        )
        for name in names:
            module = types.ModuleType(f"modules.{name}")
            setattr(self.modules, name, module)
            monkeypatch.setitem(sys.modules, module.__name__, module)
        for name in ("lmsd_webui", "modules", "gradio"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        gradio = types.ModuleType("gradio")
        gradio.Row, gradio.Dropdown = Row, Component
        monkeypatch.setitem(sys.modules, "modules", self.modules)
        monkeypatch.setitem(sys.modules, "gradio", gradio)
        (folder / "models").mkdir(parents=True)
        self.models = folder / "models"
        self.modules.paths.models_path = str(self.models)
        self.modules.scripts.Script, self.modules.scripts.AlwaysVisible = Script, object()
        self.modules.sd_samplers_common.SamplerData = SamplerData
        self.buttons = []
        self.modules.ui_common.create_refresh_button = lambda *arguments: self.buttons.append(arguments)
        (self.lists_of_diffusers if kind == "sdnext" else self.lists_of_k_diffusion)()

    def lists_of_k_diffusion(self):
        samplers, schedulers = self.modules.sd_samplers, self.modules.sd_schedulers
        self.modules.sd_samplers_kdiffusion.KDiffusionSampler = type(
            "KDiffusionSampler", (KDiffusionSampler,), {"host": self}
        )
        samplers.all_samplers = [SamplerData("Euler", None, ["k_euler"], {})]
        samplers.all_samplers_map = {data.name: data for data in samplers.all_samplers}
        samplers.samplers_map = {}

        def set_samplers():
            for data in samplers.all_samplers:
                for name in (data.name, *data.aliases):
                    samplers.samplers_map[name.lower()] = data.name

        def add_sampler(data):
            samplers.all_samplers.append(data)
            samplers.all_samplers_map = {data.name: data for data in samplers.all_samplers}
            set_samplers()

        def karras(n, sigma_min, sigma_max, device):
            ends = sigma_max ** (1 / 7), sigma_min ** (1 / 7)
            return torch.cat([torch.linspace(*ends, n) ** 7, torch.zeros(1)]).to(device)

        samplers.set_samplers = set_samplers
        schedulers.Scheduler = Scheduler
        schedulers.schedulers = [Scheduler("karras", "Karras", karras)]
        schedulers.schedulers_map = dict.fromkeys(("karras", "Karras"), schedulers.schedulers[0])
        if self.kind == "forge":
            samplers.add_sampler = add_sampler
            schedulers.all_schedulers = list(schedulers.schedulers)
        set_samplers()

    def lists_of_diffusers(self):
        samplers, own = self.modules.sd_samplers, self.modules.sd_samplers_diffusers
        names = ("Default", "Euler", "LMSD", "Same as primary")
        own.samplers_data_diffusers = [SamplerData(name, None, [], {}) for name in names]

        def list_samplers():
            samplers.all_samplers = list(own.samplers_data_diffusers)
            samplers.all_samplers_map = {data.name: data for data in samplers.all_samplers}

        samplers.list_samplers, samplers.set_samplers = list_samplers, lambda: None
        list_samplers()

    def load(self):
        """As at the start, and again when the page is loaded anew."""
        with self.monkeypatch.context() as patch:
            patch.syspath_prepend(str(EXTENSION))
            for path in sorted((EXTENSION / "scripts").glob("*.py")):
                spec = importlib.util.spec_from_file_location(path.name, path)
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                kinds = [kind for kind in vars(module).values() if isinstance(kind, type)]
                found = [kind for kind in kinds if issubclass(kind, Script) and kind is not Script]
                self.scripts = [kind() for kind in found]
        return self

    def sampler(self, name, model):
        data = self.modules.sd_samplers.all_samplers_map[name]
        made = data.constructor(model)
        made.config = data
        return made

    def process(self, p, *arguments):
        for script in self.scripts:
            script.process(p, *arguments)
        return p


def install(monkeypatch, folder, kind) -> Host:
    return Host(kind, folder, monkeypatch)
