"""ComfyUI's contract with a sampler and a node pack, as far as this pack relies on it; no code of ComfyUI's.

    host = install(monkeypatch, tmp_path)     # import comfy.samplers, folder_paths, ... find these modules
    model = Model("eps")                      # a MODEL with a closed-form denoiser
    host.sample(host.guider(model), noise, latent, sampler, sigmas)

What is faithful: noise and inverse noise scaling of each kind of model with the branch at sigma_max, the 1000
steps to which discrete models snap, guidance, batches of prompts, noise masks, packed nested latents, patched
model samplings, tensors in callbacks, where interrupts come from, inference mode.
"""

import functools
import math
import os
import sys
import types
from pathlib import Path

import torch

# ---- kinds of prediction and ranges of noise


def column(sigma, like):
    """Sigma of shape [B] or [], to be multiplied with a latent."""
    return sigma.reshape(()) if sigma.numel() == 1 else sigma.reshape(-1, *[1] * (like.ndim - 1))


def level(sigma) -> float:
    """Of shape [B] or []; samplers tell every image the same."""
    values = sigma.flatten().tolist()
    assert values.count(values[0]) == len(values)
    return values[0]


class Kind:
    """A kind of prediction. `coefficients`: factors of the network's input, of x and of its output."""

    def calculate_input(self, sigma, x):
        return x * self.coefficients(level(sigma))[0]

    def calculate_denoised(self, sigma, output, x):
        _, skip, out = self.coefficients(level(sigma))
        return skip * x + out * output

    def inverse_noise_scaling(self, sigma, latent):
        return latent


class EPS(Kind):
    def coefficients(self, sigma):
        return 1 / math.hypot(sigma, 1), 1.0, -sigma

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        sigma = column(sigma, noise)
        return latent_image + noise * ((1 + sigma**2) ** 0.5 if max_denoise else sigma)


class V_PREDICTION(EPS):
    def coefficients(self, sigma):
        return 1 / math.hypot(sigma, 1), 1 / (sigma**2 + 1), -sigma / math.hypot(sigma, 1)


class EDM(V_PREDICTION):
    def coefficients(self, sigma):
        scale, skip, out = super().coefficients(sigma)
        return scale, skip, -out


class X0(EPS):
    def coefficients(self, sigma):
        return 1 / math.hypot(sigma, 1), 0.0, 1.0


class CONST(Kind):
    def coefficients(self, sigma):
        return 1.0, 1.0, -sigma

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        sigma = column(sigma, noise)
        return sigma * noise + (1 - sigma) * latent_image

    def inverse_noise_scaling(self, sigma, latent):
        return latent / (1 - column(sigma, latent))


class COSMOS_RFLOW(Kind):
    def coefficients(self, sigma):
        return 1 / (1 + sigma), 1 / (1 + sigma), -sigma / (1 + sigma)

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return latent_image + noise * column(sigma, noise)


class IMG_TO_IMG(X0):
    """Predicts an image from another one in the same steps; its noise looks like that of EPS."""


class IMG_TO_IMG_FLOW(CONST):
    """From an image to an image: no noise is added, and (x - denoised) / sigma is no derivative."""

    def coefficients(self, sigma):
        return 1.0, 0.0, 1.0

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return latent_image

    def inverse_noise_scaling(self, sigma, latent):
        return 1 - latent


class Levels:
    """`level_of_call(timestep)`: the level that a network takes a time step for."""

    @property
    def sigma_min(self):
        return self.sigmas[0]

    @property
    def sigma_max(self):
        return self.sigmas[-1]


class Discrete(Levels):
    """Stable Diffusion's 1000 training steps; the network is told the nearest one."""

    def __init__(self):
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        alphas = (1 - betas).cumprod(0)
        self.sigmas = ((1 - alphas) / alphas).sqrt().float()

    def timestep(self, sigma):
        step = (self.sigmas.log() - math.log(level(sigma))).abs().argmin()
        return step.expand(sigma.shape)

    def sigma(self, timestep):
        low, logs = timestep.floor().long(), self.sigmas.log()
        high = (low + 1).clamp(max=999)
        return torch.lerp(logs[low], logs[high], timestep - low).exp()

    level_of_call = sigma

    def percent_to_sigma(self, percent):
        if not 0 < percent < 1:
            return 999999999.9 if percent <= 0 else 0.0
        return self.sigma(torch.tensor(999 * (1 - percent))).item()


class Continuous(Levels):
    def __init__(self, low=0.002, high=80.0):
        self.sigmas = torch.linspace(math.log(low), math.log(high), 1000).exp()

    def timestep(self, sigma):
        return sigma.log() / 4

    def sigma(self, timestep):
        return (4 * timestep).exp()

    level_of_call = sigma

    def percent_to_sigma(self, percent):
        if not 0 < percent < 1:
            return 999999999.9 if percent <= 0 else 0.0
        low, high = float(self.sigmas[0]), float(self.sigmas[-1])
        return high ** (1 - percent) * low**percent


class Flow(Levels):
    def __init__(self, shift=3.0):
        self.shift = shift
        self.sigmas = self.sigma(torch.arange(1, 1001, dtype=torch.float32))

    def timestep(self, sigma):
        return 1000 * sigma

    def sigma(self, timestep):
        t = timestep / 1000
        return self.shift * t / (1 + (self.shift - 1) * t)

    def level_of_call(self, timestep):
        return timestep / 1000

    def percent_to_sigma(self, percent):
        return float(self.sigma(1000 * (1 - min(max(percent, 0.0), 1.0))))


KINDS = {
    "eps": (Discrete, EPS),
    "v": (Discrete, V_PREDICTION),
    "edm": (Continuous, EDM),
    "x0": (Continuous, X0),
    "cosmos": (Continuous, COSMOS_RFLOW),
    "flow": (Flow, CONST),
    "image_to_image": (Discrete, IMG_TO_IMG),
    "image_to_image_flow": (Flow, IMG_TO_IMG_FLOW),
}


def sampling_of(kind, **levels):
    """A model_sampling: like ComfyUI's, a class ModelSampling made of two."""
    return type("ModelSampling", KINDS[kind], {})(**levels)


# ---- models


class LatentFormat:
    latent_channels = 4
    latent_dimensions = 2
    scale_factor = 0.5


class Family:
    """A model_config; its class says what family of models it is."""


def family(name):
    return type(name, (Family,), {})()


WIDTH = 0.3
PATTERNS = {}


def pattern(size):
    """Centers [5, size] of the images, and the direction [size] in which a label moves them."""
    if size not in PATTERNS:
        generator = torch.Generator().manual_seed(size)
        PATTERNS[size] = (
            torch.randn(5, size, generator=generator),
            torch.randn(size, generator=generator) / 2,
        )
    return PATTERNS[size]


def expected_image(x, sigma, label, flow):
    """E[x0 | x] where x0 is one of five Gaussians, which the label moves. `sigma`, `label`: [B]."""
    centers, direction = (values.to(x.dtype) for values in pattern(x[0].numel()))
    alpha = 1 - sigma if flow else torch.ones_like(sigma)
    variance = (alpha * WIDTH) ** 2 + sigma**2
    means = centers + label[:, None, None] * direction
    away = x.flatten(1)[:, None] - alpha[:, None, None] * means
    share = (-(away**2).sum(2) / (2 * variance[:, None])).softmax(1)
    shrunk = (alpha * WIDTH**2 / variance)[:, None, None] * away
    return ((means + shrunk) * share[:, :, None]).sum(1).reshape(x.shape)


class BaseModel:
    def __init__(self, kind, name, levels):
        self.model_config = family(name)
        self.latent_format = LatentFormat()
        self.model_sampling = sampling_of(kind, **levels)
        self.calls = 0
        self.on_call = lambda calls: None

    def process_latent_in(self, latent):
        return latent * self.latent_format.scale_factor

    def process_latent_out(self, latent):
        return latent / self.latent_format.scale_factor

    def scale_latent_inpaint(self, sigma, noise, latent_image, **_):
        return self.model_sampling.noise_scaling(sigma, noise, latent_image)

    def apply_model(self, x, sigma, label):
        """What the model predicts of x0: the network's output, put together by the sampling."""
        sampling = self.model_sampling
        timestep = sampling.timestep(sigma).float()
        output = self.network(sampling.calculate_input(sigma, x), timestep, label)
        return sampling.calculate_denoised(sigma, output, x)

    def network(self, scaled, timestep, label):
        """The output that makes the prediction exact at the level that the network was told."""
        self.calls += 1
        self.on_call(self.calls)
        sampling = self.model_sampling
        sigma = sampling.level_of_call(timestep)
        scale, skip, out = sampling.coefficients(level(sigma))
        x = scaled / scale
        return (expected_image(x, sigma, label, isinstance(sampling, CONST)) - skip * x) / out


class Model:
    """A MODEL (ModelPatcher). `levels`: of the range of noise, such as shift."""

    load_device = torch.device("cpu")

    def __init__(self, kind="edm", name="Toy", **levels):
        self.model = BaseModel(kind, name, levels)
        self.model_options = {}
        self.patches, self.object_patches, self.backup = {}, {}, {}  # of weights; of objects

    def add_object_patch(self, name, value):
        self.object_patches[name] = value

    def get_model_object(self, name):
        return self.object_patches[name] if name in self.object_patches else getattr(self.model, name)


def conditioning(*labels, **about):
    """CONDITIONING of one prompt or, with several labels, of a batch of them; the label is the mean token."""
    return [[torch.tensor(labels, dtype=torch.float32).reshape(-1, 1, 1).repeat(1, 3, 2), about]]


class NestedTensor:
    """Latents of several modalities."""

    is_nested = True

    def __init__(self, tensors):
        self.tensors = list(tensors)

    def unbind(self):
        return self.tensors

    @property
    def shape(self):
        return self.tensors[0].shape


# ---- comfy.utils and comfy.sample


IN_MEMORY = []  # the model that is loaded: the host has room for one


def prepare_sampling(model, noise_shape, conds, model_options=None):
    IN_MEMORY[:] = [model.model]
    return model.model, conds, []


def repeat_to_batch_size(tensor, batch_size, dim=0):
    times = -(-batch_size // tensor.shape[dim])
    return torch.cat([tensor] * times, dim).narrow(dim, 0, batch_size)


def pack_latents(latents):
    packed = torch.cat([latent.reshape(latent.shape[0], 1, -1) for latent in latents], -1)
    return packed, [latent.shape for latent in latents]


def unpack_latents(packed, shapes):
    split = packed.split([math.prod(shape[1:]) for shape in shapes], -1)
    return [rows.reshape(-1, *shape[1:]) for rows, shape in zip(split, shapes, strict=True)]


def prepare_noise(latent_image, seed, noise_inds=None):
    generator = torch.Generator().manual_seed(seed)
    if latent_image.is_nested:
        return NestedTensor([torch.randn(one.shape, generator=generator) for one in latent_image.unbind()])
    return torch.randn(latent_image.shape, generator=generator)


def fix_empty_latent_channels(model, latent_image, *hints):
    latent_format = model.get_model_object("latent_format")
    if not latent_image.count_nonzero() and latent_image.shape[1] != latent_format.latent_channels:
        latent_image = repeat_to_batch_size(latent_image, latent_format.latent_channels, 1)
    if latent_format.latent_dimensions == 3 and latent_image.ndim == 4:
        latent_image = latent_image.unsqueeze(2)
    return latent_image


class RandomNoise:
    """NOISE, as the node of that name makes it."""

    def __init__(self, seed):
        self.seed = seed

    def generate_noise(self, latent):
        return prepare_noise(latent["samples"], self.seed, latent.get("batch_index"))


# ---- comfy.samplers


class KSamplerX0Inpaint:
    """What a sampler function calls as its model."""

    def __init__(self, model, sigmas):
        self.inner_model, self.sigmas = model, sigmas

    def __call__(self, x, sigma, denoise_mask, model_options=None, seed=None):
        if denoise_mask is not None:
            change = (model_options or {}).get("denoise_mask_function")
            if change:
                options = {"model": self.inner_model, "sigmas": self.sigmas}
                denoise_mask = change(sigma, denoise_mask, extra_options=options)
            known = self.inner_model.inner_model.scale_latent_inpaint(
                x=x, sigma=sigma, noise=self.noise, latent_image=self.latent_image
            )
            x = torch.lerp(known, x, denoise_mask)
        out = self.inner_model(x, sigma, model_options=model_options, seed=seed)
        return out if denoise_mask is None else torch.lerp(self.latent_image, out, denoise_mask)


class KSAMPLER:
    def __init__(self, sampler_function, extra_options=None, inpaint_options=None):
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def max_denoise(self, guider, sigmas):
        highest, first = float(guider.inner_model.model_sampling.sigma_max), float(sigmas[0])
        return math.isclose(highest, first, rel_tol=1e-5) or first > highest

    def sample(
        self, guider, sigmas, extra_args, callback, noise, latent_image, denoise_mask=None, disable_pbar=False
    ):
        extra_args["denoise_mask"] = denoise_mask
        model = KSamplerX0Inpaint(guider, sigmas)
        model.latent_image, model.noise = latent_image, noise
        sampling = guider.inner_model.model_sampling
        x = sampling.noise_scaling(sigmas[0], noise, latent_image, self.max_denoise(guider, sigmas))
        steps = len(sigmas) - 1

        def on_step(step):
            assert all(torch.is_tensor(step[name]) for name in ("x", "denoised", "sigma", "sigma_hat"))
            assert step["x"].shape == step["denoised"].shape == x.shape
            if callback is not None:
                callback(step["i"], step["denoised"], step["x"], steps)

        options = {"extra_args": extra_args, "callback": on_step, "disable": disable_pbar}
        x = self.sampler_function(model, x, sigmas, **options, **self.extra_options)
        return sampling.inverse_noise_scaling(sigmas[-1], x)


class LazyCache:
    """A patch that skips calls of which it expects little; its state is of one run of falling levels."""

    def __init__(self, threshold):
        self.threshold, self.skipped = threshold, 0
        self.previous = self.rate = None
        self.total = 0.0

    def clone(self):
        return type(self)(self.threshold)

    def prepare_timesteps(self, sampling):
        self.start = sampling.percent_to_sigma(0.15)
        return self

    def __call__(self, x, sigma, compute):
        change = None
        if sigma <= self.start and self.previous is not None:
            before, out = self.previous
            change = (x - before).abs().mean()
            if self.rate is not None:
                self.total += float(self.rate * change / out.abs().mean())
                if self.total < self.threshold:
                    self.skipped += 1
                    return x + (out - before)
                self.total = 0.0
        made = compute()
        if self.previous is not None:
            if self.rate is not None:
                self.rate * change  # the host's own fault where the levels rise: it is None
            if change is not None:
                self.rate = (made - self.previous[1]).abs().mean() / change
        self.previous = x, made
        return made


class CONDRegular:
    """What a model is told beside x, for each image of a batch."""

    def __init__(self, cond):
        self.cond = cond

    def _copy_with(self, cond):
        return type(self)(cond)

    def process_cond(self, batch_size):
        return self._copy_with(repeat_to_batch_size(self.cond, batch_size))


class CFGGuider:
    def __init__(self, model_patcher):
        self.model_patcher = model_patcher
        self.model_options = model_patcher.model_options
        self.original_conds = {}
        self.cfg = 1.0

    def set_conds(self, positive, negative):
        for name, conds in (("positive", positive), ("negative", negative)):
            self.original_conds[name] = [{**about, "cross_attn": tokens} for tokens, about in conds]

    def set_cfg(self, cfg):
        self.cfg = cfg

    def __call__(self, *arguments, **options):
        return self.predict_noise(*arguments, **options)

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        told = (model_options or {}).get("transformer_options", {})
        windows = "context_handler" in (model_options or {})
        if windows and not torch.isclose(told["sample_sigmas"], timestep).any():  # of one image, or one level
            raise Exception("No sample_sigmas matched current timestep; something went wrong.")
        guided = functools.partial(self.guided, x, timestep)
        return told["easycache"](x, level(timestep), guided) if "easycache" in told else guided()

    def guided(self, x, timestep):
        def predicted(name):
            tokens = self.conds[name][0]["model_conds"]["c_crossattn"].process_cond(x.shape[0])
            assert IN_MEMORY == [self.inner_model]
            return self.inner_model.apply_model(x, timestep, tokens.cond.mean((1, 2)))

        positive = predicted("positive")
        return positive if self.cfg == 1 else torch.lerp(predicted("negative"), positive, self.cfg)

    def sample(
        self,
        noise,
        latent_image,
        sampler,
        sigmas,
        denoise_mask=None,
        callback=None,
        disable_pbar=False,
        seed=None,
    ):
        if len(sigmas) == 0:
            return latent_image
        shapes = None
        if latent_image.is_nested:
            latent_image, shapes = pack_latents(latent_image.unbind())
            noise, _ = pack_latents(noise.unbind())
        self.conds = {
            name: [dict(cond, model_conds={"c_crossattn": CONDRegular(cond["cross_attn"])}) for cond in conds]
            for name, conds in self.original_conds.items()
        }
        self.inner_model, self.conds, _ = prepare_sampling(self.model_patcher, noise.shape, self.conds)
        unpatched = self.inner_model.__dict__.copy()
        self.inner_model.__dict__.update(self.model_patcher.object_patches)
        try:
            if latent_image.count_nonzero():
                latent_image = self.inner_model.process_latent_in(latent_image)
            told = {**self.model_options.get("transformer_options", {}), "sample_sigmas": sigmas}
            if "easycache" in told:
                told["easycache"] = (
                    told["easycache"].clone().prepare_timesteps(self.inner_model.model_sampling)
                )
            extra_args = {"model_options": {**self.model_options, "transformer_options": told}, "seed": seed}
            out = sampler.sample(
                self, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar
            )
            out = self.inner_model.process_latent_out(out.float())
        finally:
            self.inner_model.__dict__.update(
                {name: unpatched[name] for name in self.model_patcher.object_patches}
            )
            del self.inner_model, self.conds
        return out if shapes is None else NestedTensor(unpack_latents(out, shapes))


def sample_euler(model, x, sigmas, extra_args=None, callback=None, disable=None):
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * x.new_ones(x.shape[0]), **(extra_args or {}))
        if callback is not None:
            callback({"i": i, "x": x, "denoised": denoised, "sigma": sigmas[i], "sigma_hat": sigmas[i]})
        x = torch.lerp(denoised, x, sigmas[i + 1] / sigmas[i])
    return x


def simple_sigmas(sampling, steps):
    """The scheduler "simple": levels at equal distances in the model's own list, then 0."""
    every = len(sampling.sigmas) / steps
    return torch.tensor([float(sampling.sigmas[-(1 + int(i * every))]) for i in range(steps)] + [0.0])


# ---- the modules


class Previewer:
    """Knows latents of an image or a video."""

    def __init__(self):
        self.latents = []

    def decode_latent_to_preview_image(self, preview_format, x0):
        if x0.ndim not in (4, 5):
            raise ValueError(f"not a latent: {tuple(x0.shape)}")
        self.latents.append(x0)
        return preview_format, x0[0], 512


class Host:
    """The modules, and what they were given: `updates` of progress bars, `texts` on nodes."""

    def __init__(self, root: Path, interrupt=Exception):
        self.models, self.user = root / "models", root / "user"
        self.models.mkdir(parents=True)
        self.updates, self.texts = [], []
        self.previewer = Previewer()
        self.interrupted = False
        self.raised = []  # interrupts, in order
        self.Interrupt = type("InterruptProcessingException", (interrupt,), {})
        self.modules = self.make()

    def interrupt(self):
        """The user presses the button."""
        self.interrupted = True

    def throw_if_interrupted(self):
        if self.interrupted:
            self.interrupted = False
            self.raised.append(self.Interrupt())
            raise self.raised[-1]

    def guider(self, model, cfg=1.0, positive=None, negative=None):
        guider = CFGGuider(model)
        guider.set_conds(positive or conditioning(0.0), negative or conditioning(-1.0))
        guider.set_cfg(cfg)
        return guider

    def sample(self, guider, noise, latent, sampler, sigmas, **options):
        """SamplerCustomAdvanced: `noise` a tensor, `latent` the image that it is added to."""
        with torch.inference_mode():
            return guider.sample(noise, latent, sampler, sigmas, **options)

    def ksampler(self, guider, noise, latent, name, steps, denoise=1.0, cut=slice(None), **options):
        """The KSampler node with the scheduler "simple"; `cut`: of its levels, as the advanced one does."""
        sampling = guider.model_patcher.get_model_object("model_sampling")
        sigmas = simple_sigmas(sampling, int(steps / denoise))[-(steps + 1) :][cut]
        sampler = self.modules["comfy.samplers"].sampler_object(name)
        return self.sample(guider, noise, latent, sampler, sigmas, **options)

    def make(self):
        host = self
        module = types.ModuleType

        management = module("comfy.model_management")
        management.InterruptProcessingException = self.Interrupt
        management.throw_exception_if_processing_interrupted = self.throw_if_interrupted
        management.processing_interrupted = lambda: self.interrupted
        management.soft_empty_cache = lambda: None

        class ProgressBar:
            def __init__(self, total, node_id=None):
                self.total, self.current = total, 0

            def update_absolute(self, value, total=None, preview=None):
                self.total = self.total if total is None else total
                self.current = min(value, self.total)
                host.throw_if_interrupted()
                host.updates.append((value, self.total, preview))

        utils = module("comfy.utils")
        utils.ProgressBar = ProgressBar
        for function in (repeat_to_batch_size, pack_latents, unpack_latents):
            setattr(utils, function.__name__, function)

        helpers = module("comfy.sampler_helpers")
        helpers.prepare_sampling = prepare_sampling

        sample = module("comfy.sample")
        sample.prepare_noise, sample.fix_empty_latent_channels = prepare_noise, fix_empty_latent_channels

        diffusion, sampling = module("comfy.k_diffusion"), module("comfy.k_diffusion.sampling")
        sampling.sample_euler = sample_euler
        diffusion.sampling = sampling

        samplers = module("comfy.samplers")
        samplers.KSAMPLER, samplers.CFGGuider = KSAMPLER, CFGGuider
        samplers.KSAMPLER_NAMES = ["euler"]
        samplers.SAMPLER_NAMES = [*samplers.KSAMPLER_NAMES, "ddim"]
        samplers.KSampler = type("KSampler", (), {"SAMPLERS": samplers.SAMPLER_NAMES})
        samplers.sampler_object = lambda name: KSAMPLER(getattr(sampling, f"sample_{name}"))

        nested = module("comfy.nested_tensor")
        nested.NestedTensor = NestedTensor

        preview = module("latent_preview")
        preview.get_previewer = lambda device, latent_format: self.previewer

        server = module("server")
        instance = types.SimpleNamespace(
            send_progress_text=lambda text, node_id, sid=None: self.texts.append((node_id, text)),
            last_node_id="sample",  # the node that is running
        )
        server.PromptServer = types.SimpleNamespace(instance=instance)

        comfy = module("comfy")
        comfy.__path__ = []
        submodules = [management, utils, helpers, sample, samplers, diffusion, nested]
        for submodule in submodules:
            setattr(comfy, submodule.__name__.rpartition(".")[2], submodule)
        everything = [comfy, *submodules, sampling, preview, server, self.folder_paths()]
        return {one.__name__: one for one in everything}

    def folder_paths(self):
        paths = types.ModuleType("folder_paths")
        known = paths.folder_names_and_paths = {}
        paths.models_dir = str(self.models)
        paths.get_user_directory = lambda: str(self.user)
        paths.get_folder_paths = lambda name: list(known[name][0])

        def get_filename_list(name):
            folders, extensions = known[name]
            found = set()
            for folder in map(Path, folders):
                files = (path for path in folder.rglob("*") if path.is_file())
                found |= {
                    str(path.relative_to(folder)) for path in files if path.suffix.lower() in extensions
                }
            return sorted(found)

        def get_full_path(name, file):
            inside = os.path.normpath("/" + file).lstrip("/")  # ".." ends at the root
            found = (Path(folder) / inside for folder in known[name][0])
            return next((str(path) for path in found if path.is_file()), None)

        paths.get_filename_list, paths.get_full_path = get_filename_list, get_full_path
        return paths


def install(monkeypatch, root: Path, interrupt=Exception) -> Host:
    """`interrupt`: what the host's interrupt is a kind of, Exception or, in newer hosts, BaseException."""
    host = Host(root, interrupt)
    for name, module in host.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return host
