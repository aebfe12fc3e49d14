"""A distillation inside ComfyUI: the guider's own model, called forward only.

The host loads the model, applies guidance, conditioning, hooks and patches; a sampler function of ours is all
that is new to it, and it distills instead of sampling.
"""

import copy
import hashlib
import logging
from dataclasses import dataclass

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import lmsd
import lmsd.gain
import lmsd.guidance
import torch

from . import display, experts, host
from .inputs import default

COMPARED = {"field": "published", "finalists": 4}  # the strongest field has some 1,100 samplers at each NFE


@dataclass(frozen=True)
class Settings:
    """The inputs of the node that every distillation has; `nodes` explains them."""

    name: str
    nfe: int
    nfe_from: int
    trajectories: int
    batch_size: int
    minutes: float
    compare: bool
    cfg_to: float = 0.0
    fit_guidance: bool = False

    @property
    def nfes(self) -> range:
        """Numbers of steps, from the smallest of the family."""
        return range(self.nfe_from if 0 < self.nfe_from < self.nfe else self.nfe, self.nfe + 1)


def distill(guider, noise, latent: dict, *, batch_size: int, node_id=None, **inputs) -> lmsd.Schedule:
    """Distills for `guider`, saves the family under models/lmsd_schedules, returns the schedule of `nfe`.

    `inputs`: those of `Settings`. An interrupt ends it within one model call: the best so far is saved, then
    the host's exception goes on. A run of the same name goes on from where one was interrupted, failed, or
    was out of time. Where memory runs out before there is a result it starts again with half as many images
    in a call.
    """

    def attempt(size):
        settings = Settings(batch_size=size, **inputs)
        run = Distillation(guider, noise, latent, settings, display.Display(guider.model_patcher, node_id))
        run.run()
        return run

    def before_retry(size):
        comfy.model_management.soft_empty_cache()
        logging.warning("lmsd: no memory left; starting again with %d images in a call", size)

    return lmsd.halve_until_it_fits(attempt, batch_size, before_retry).finish()


class Interrupted(Exception):
    """Ends a comparison early."""


class Distillation:
    """One run, with one batch size: `run` it, then `finish`. `found`: the saved schedules, by their NFE."""

    def __init__(self, guider, noise, latent: dict, settings: Settings, shown: display.Display):
        if not hasattr(noise, "seed"):
            raise ValueError(
                "this NOISE has no seed; a distillation needs noise that another seed changes: "
                "use RandomNoise"
            )
        self.guider, self.noise, self.settings, self.display = guider, noise, settings, shown
        self.sampling = guider.model_patcher.get_model_object("model_sampling")
        self.about = host.describe_patched(guider.model_patcher)
        # before the work: what cannot be saved need not be made
        self.files = host.new_files(settings.name, settings.nfes)
        self.checkpoint = host.checkpoint_file(settings.name)
        experts.check_range(guider, settings.cfg_to)
        if settings.fit_guidance and host.settable(guider) in (None, 1):
            raise ValueError("fit_guidance needs one model, and a guider with a cfg other than 1")
        self.scales = host.guidance_scales(guider, settings.cfg_to)
        self.samples = latents(guider, latent, settings.batch_size)
        self.found, self.out_of_time = {}, False
        self.unsaved = {}  # names of files that could not be written, with the reason
        self.not_kept = None  # why the end of the checkpoint could not be written

    def run(self) -> None:
        """Has the host sample, which distills. Raises what ended it before there was a result."""
        scale = getattr(self.guider, "cfg", None)
        try:
            self.guider.sample(
                self.noise.generate_noise({"samples": self.samples}),
                self.samples,
                comfy.samplers.KSAMPLER(self.sample),
                torch.tensor([float(self.sampling.sigma_max), 0.0], dtype=torch.float32),
                disable_pbar=True,
                seed=self.noise.seed,
            )
        finally:
            if len(self.scales) > 1:
                self.guider.cfg = scale
        if not self.found:
            self.raise_interrupt()

    def finish(self) -> lmsd.Schedule:
        """Raises what ended the run; else says how it went and returns the schedule of the most steps."""
        self.raise_interrupt()
        best, more = self.found[max(self.found)], ""
        if self.out_of_time:
            minutes = f"{self.settings.minutes:g} minutes were over"
            more = f"; {minutes}: with more the same node goes on from there{display.not_kept(self.not_kept)}"
            logging.warning("lmsd: %s; kept for a run with more: %s", minutes, self.checkpoint)
        elif not self.unsaved:
            self.checkpoint.unlink(missing_ok=True)
        if self.unsaved:
            more += display.not_saved(self.unsaved)
        self.display.say(
            display.outcome(best) + display.prompts(best, self.prompts.count) + experts.words(best) + more
        )
        return best

    def raise_interrupt(self) -> None:
        """Raises the interrupt of the user or the error of the model, if there was one, and lets go of it."""
        interrupt, self.display.interrupt = self.display.interrupt.cause, lmsd.Interrupt()
        try:
            if interrupt is not None:
                raise interrupt
        finally:
            del interrupt  # its traceback holds this frame, and tensors

    # ---- what the host calls

    def sample(self, wrapped, x, sigmas, extra_args=None, callback=None, disable=None):
        """A sampler function of ComfyUI, which distills for the model it gets; `x` comes back as it is."""
        self.wrapped, self.like, self.start = wrapped, x, sigmas[0]
        self.extra_args = {**(extra_args or {}), "denoise_mask": None}
        image = getattr(wrapped, "latent_image", None)
        self.image = torch.zeros_like(x) if image is None else image
        if torch.equal(self.noise_of(0), self.noise_of(1)):
            raise ValueError(
                "this NOISE is the same for every seed; a distillation needs noise that a seed changes"
            )
        self.prompts = host.Prompts(self.guider)
        # What the file cannot know, such as prompts, LoRAs and other weights, shows in the model's result.
        highest, x_T = float(self.sampling.sigma_max), self.begin(0)
        predicted = [self.denoised(x_T, level) for level in experts.levels(self.guider, highest)]
        if not self.display.interrupt:
            config = self.configured(fingerprint(*predicted, *self.prompts.tensors()))
            comparison = self.calls_to_compare(config) if self.settings.compare else 0
            distilled = self.fit(config, comparison)
            if distilled is not None:
                self.keep(distilled)
                if comparison and not self.display.interrupt and not self.out_of_time:
                    self.compare(distilled, config, comparison)
        return x

    # ---- what the library is given

    def configured(self, conditions: str) -> dict:
        """The options of the library that this model and these inputs give; `conditions`: a fingerprint."""
        noise, size = self.noise, self.settings.batch_size
        made_for = {name: value for name, value in self.about.items() if name != "process"}
        made_for |= {"latent_shape": list(self.like.shape[1:]), "snapped": host.snaps(self.sampling)}
        if weights := host.fingerprint(self.guider):
            made_for["fingerprint"] = weights
        if self.scales:
            made_for |= lmsd.guidance.made_for(self.scales)
        made_for |= experts.made_for(self.guider)
        return {
            "process": self.about["process"],
            "sigma_min": float(self.sampling.sigma_min),
            "sigma_max": float(self.sampling.sigma_max),
            "sigma_end": 0.0,
            "trajectories": self.settings.trajectories,
            "held_out": default("distill", "held_out"),
            "fit_guidance": self.settings.fit_guidance,
            "made_for": made_for,
            "seeds": f"{type(noise).__name__} from seed {noise.seed}, {size} images a batch, "
            f"model and conditions {conditions}"
            + f", another model below {made_for.get('boundary')}" * ("boundary" in made_for)
            + f", {self.prompts.count} prompts in turn" * (self.prompts.count > 1)
            + f", cfg {self.scales} in turn" * (len(self.scales) > 1),
        }

    def noise_of(self, batch: int):
        """The noise of batch number `batch`: that of the NOISE with another seed."""
        other = copy.copy(self.noise)
        other.seed = (int(self.noise.seed) + batch) % (1 << 64)
        made = other.generate_noise({"samples": self.samples})
        if getattr(made, "is_nested", False):
            made, _ = comfy.utils.pack_latents(made.unbind())
        return made.to(self.like.device, self.like.dtype)

    def begin(self, batch: int):
        """x_T of batch number `batch`, whose prompts and guidance scale become the guider's."""
        self.prompts.begin_with(batch * self.settings.batch_size)
        if len(self.scales) > 1:
            self.guider.cfg = self.scales[batch % len(self.scales)]
        return self.sampling.noise_scaling(self.start, self.noise_of(batch), self.image, True)

    def denoised(self, x, sigma: float, share: float = 1.0):
        """The host's prediction of x0, with this share of the guidance.

        Where it fails `x` comes back, and `progress` ends the run.
        """
        levels = x.new_full((x.shape[0],), sigma)
        extra_args = host.with_levels(self.extra_args, [sigma, 0.0], x, caches_off_for=self.sampling)
        scale = getattr(self.guider, "cfg", None)
        try:
            if share != 1:
                self.guider.cfg = lmsd.guidance.of_call(scale, share)
            out = self.display.guarded(lambda: self.wrapped(x, levels, **extra_args))
        except Exception as error:  # such as no memory left
            self.display.interrupt.note(error)
            out = None
        finally:
            if share != 1:
                self.guider.cfg = scale
        if out is None:
            return x
        self.display.saw(sigma, out)
        return out

    # ---- the run

    def fit(self, config: dict, comparison: int):
        """`lmsd.Distilled`, with `comparison` calls to come after it; None where it ended before a result."""
        settings = self.settings
        options = {"nfe": (settings.nfes[0], settings.nfe), "checkpoint": self.checkpoint, **config}
        if settings.minutes > 0:
            options["max_seconds"] = 60.0 * settings.minutes
        try:
            distilled = self.fit_from_checkpoint(options, comparison)
        except lmsd.Error as error:
            if hint := display.hint(error):
                raise lmsd.Error(f"{error}. {hint}", error.status) from None
            if error.status != lmsd.Status.STOPPED:
                raise
            if not self.display.interrupt:
                raise TimeoutError(display.too_short(settings.minutes, self.display.calls)) from None
            return None
        self.not_kept = distilled.report["checkpoint_error"]
        self.out_of_time = bool(distilled.report["stopped"]) and not self.display.interrupt
        return distilled

    def fit_from_checkpoint(self, options: dict, comparison: int):
        """Goes on from the checkpoint, or without it where it is of another run."""

        def attempt():
            with lmsd.ProgressBar() as bar:
                return lmsd.distill(
                    self.denoised, self.begin, self.like, progress=self.progress(bar, comparison), **options
                )

        if self.checkpoint.exists():
            logging.info("lmsd: going on from %s", self.checkpoint)
        try:
            return attempt()
        except lmsd.Error as error:
            if error.status != lmsd.Status.MISMATCH or not self.checkpoint.exists():
                raise
        logging.warning("lmsd: starting anew: %s is of another run, and is removed", self.checkpoint)
        self.display.say("starting anew: what was kept of a run of this name is of another model or options")
        self.checkpoint.unlink()
        return attempt()

    def progress(self, bar, comparison: int):
        """The function that `lmsd.distill` calls with its progress; it shows that, and ends the run."""

        def heard(progress):
            if progress["phase"] == "plan":
                self.display.say(display.plan(progress))
                self.display.guarded(bar, progress)
                return self.display.interrupted()
            if progress["phase"] == "teacher":
                self.display.forget()
            self.display.say(display.standing(progress))
            calls = progress["calls"]
            self.display.step(calls, max(calls, progress["calls_expected"]) + comparison)
            bar(progress)
            return self.display.interrupted()

        return heard

    def keep(self, distilled) -> None:
        """Saves the family, with names for people."""
        for nfe, schedule in distilled.schedules.items():
            about = schedule.to_dict() | {"name": f"{self.settings.name}: {schedule.name}"}
            about["made_for"]["family"] = host.family(self.files[nfe], schedule)
            self.found[nfe] = lmsd.Schedule.from_json(about)
            self.save(self.found[nfe], self.files[nfe])

    def save(self, schedule: lmsd.Schedule, path) -> None:
        """Where it cannot be written, as on a full disk, the log gets its text and `unsaved` the reason."""
        words = display.outcome(schedule)
        try:
            schedule.save(path)
        except (lmsd.Error, OSError) as error:
            self.unsaved[path.name] = str(error)
            logging.error("lmsd: %s; not saved: %s. The file would be:\n%s", words, error, schedule.to_json())
        else:
            self.unsaved.pop(path.name, None)
            logging.info("lmsd: %s; saved %s", words, path)

    def calls_to_compare(self, config: dict) -> int:
        """How many model calls `compare` takes."""
        batches = -(-config["held_out"] // self.settings.batch_size)
        return lmsd.gain.calls(self.settings.nfes, batches, **COMPARED, **config)

    def compare(self, distilled, config: dict, expected: int) -> None:
        """Saves the family again, with its gains over the field of published samplers, unless interrupted."""
        self.display.say("comparing with other samplers")
        calls, before = 0, self.display.calls

        def counted(x, *told):
            nonlocal calls
            calls += 1
            self.display.step(before + calls, before + expected)
            out = self.denoised(x, *told)
            if self.display.interrupted():
                raise Interrupted
            return out

        try:
            self.keep(lmsd.gain.measure(distilled, counted, self.begin, self.like, **COMPARED, **config))
        except Interrupted:
            return


def latents(guider, latent: dict, batch_size: int):
    """The LATENT's first image, as the model wants it, `batch_size` times."""
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        repeated = [comfy.utils.repeat_to_batch_size(one[:1], batch_size) for one in samples.unbind()]
        return type(samples)(repeated)
    hints = [latent.get(f"downscale_ratio_{kind}") for kind in ("spacial", "temporal")]
    hints = hints if any(hint is not None for hint in hints) else []  # older hosts take none
    samples = comfy.sample.fix_empty_latent_channels(guider.model_patcher, samples, *hints)
    return comfy.utils.repeat_to_batch_size(samples[:1], batch_size)


def fingerprint(*tensors) -> str:
    """The same for the same numbers only."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().to("cpu", torch.float64).contiguous().numpy().tobytes())
    return found.hexdigest()[:8]
