"""A distillation inside ComfyUI: the guider's own model, called forward only.

The host loads the model, applies guidance, conditioning, hooks and patches; a sampler function of ours is all
that is new to it, and it distills instead of sampling.
"""

import copy
import functools
import hashlib
import logging
import math
import time

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import lmsd
import lmsd.gain
import torch

from . import host

PREVIEW_EVERY = 1.0  # seconds
HELD_OUT = 24  # images that decide what is kept
COMPARED = {"field": "published", "finalists": 4}  # the strongest field has some 1,100 samplers at each NFE


class Interrupted(Exception):
    """The user's wish to stop, held back until what was earned is saved."""


class Teller:
    """Progress bar, preview and text on the node; hears the interrupt button."""

    def __init__(self, model, node_id):
        self.bar = comfy.utils.ProgressBar(1)
        self.node_id = node_id
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        self.student = None  # what the network made of a student's last state, unflattened latents only
        self.shown = 0.0
        self.calls = 0  # of the model, so far
        self.text = ""
        self.interrupt = None  # the exception that ends the run, to be raised when the best so far is saved

    def guarded(self, function, *arguments):
        """`function`, which may find that the user pressed the button; None then."""
        try:
            return function(*arguments)
        except comfy.model_management.InterruptProcessingException as interrupt:
            self.interrupt = interrupt
            return None

    def stop(self) -> bool:
        self.guarded(comfy.model_management.throw_exception_if_processing_interrupted)
        return self.interrupt is not None

    def say(self, text: str) -> None:
        """A line on the node, on hosts that show one."""
        if text == self.text:
            return
        self.text = text
        try:
            from server import PromptServer

            PromptServer.instance.send_progress_text(text, self.node_id)
        except (ImportError, AttributeError):
            logging.debug("lmsd: %s", text)

    def step(self, calls: int, expected: int) -> None:
        self.calls, preview, now = calls, None, time.monotonic()
        if self.student is not None and now - self.shown > PREVIEW_EVERY:
            self.shown = now
            preview = self.guarded(self.preview, self.student)
            self.student = None
        self.guarded(self.bar.update_absolute, calls, max(expected, calls, 1), preview)

    def preview(self, student):
        if self.previewer is None:
            return None
        try:
            return self.previewer.decode_latent_to_preview_image("JPEG", student)
        except comfy.model_management.InterruptProcessingException:
            raise
        except Exception as error:  # of latents that the previewer does not know
            logging.debug("lmsd: no preview: %s", error)
            self.previewer = None
            return None


def latents(guider, latent: dict, batch_size: int):
    """The LATENT's first image, as the model wants it, `batch_size` times."""
    samples = latent["samples"]
    if getattr(samples, "is_nested", False):
        parts = [comfy.utils.repeat_to_batch_size(part[:1], batch_size) for part in samples.unbind()]
        return type(samples)(parts)
    hints = [latent.get(f"downscale_ratio_{kind}") for kind in ("spacial", "temporal")]
    hints = hints if any(hint is not None for hint in hints) else []  # older hosts take none
    samples = comfy.sample.fix_empty_latent_channels(guider.model_patcher, samples, *hints)
    return comfy.utils.repeat_to_batch_size(samples[:1], batch_size)


def noise_of(noise, samples, batch: int, like):
    """The noise of batch number `batch`: that of the NOISE with another seed."""
    other = copy.copy(noise)
    other.seed = (int(noise.seed) + batch) % (1 << 64)
    made = other.generate_noise({"samples": samples})
    if getattr(made, "is_nested", False):
        made, _ = comfy.utils.pack_latents(made.unbind())
    return made.to(like.device, like.dtype)


def distill(
    guider,
    noise,
    latent: dict,
    *,
    name: str,
    nfe: int,
    nfe_from: int,
    trajectories: int,
    batch_size: int,
    minutes: float,
    compare: bool,
    node_id=None,
) -> lmsd.Schedule:
    """Distills for `guider`, saves the family under models/lmsd_schedules, returns the schedule of `nfe`.

    An interrupt ends it within one model call: the best so far is saved, then the host's exception goes on.
    A run of the same name goes on from where one was interrupted, failed, or was out of time. Where memory
    runs out before there is a result it starts again with half the `batch_size`.
    """
    if not hasattr(noise, "seed"):
        raise ValueError(
            "this NOISE has no seed; a distillation needs noise that another seed changes: use RandomNoise"
        )
    model = guider.model_patcher
    sampling = model.get_model_object("model_sampling")
    about = host.describe_patched(model)
    nfes = range(nfe_from if 0 < nfe_from < nfe else nfe, nfe + 1)
    files = host.new_files(name, nfes)  # before the work: what cannot be saved need not be made
    checkpoint = host.checkpoint_file(name)
    samples = latents(guider, latent, batch_size)
    teller = Teller(model, node_id)
    found, stopped = {}, None

    def run(wrapped, x, sigmas, extra_args=None, callback=None, disable=None):
        nonlocal stopped
        extra_args = {**(extra_args or {}), "denoise_mask": None}
        image = getattr(wrapped, "latent_image", None)
        image = torch.zeros_like(x) if image is None else image
        first, second = (noise_of(noise, samples, batch, x) for batch in (0, 1))
        if torch.equal(first, second):
            raise ValueError(
                "this NOISE is the same for every seed; a distillation needs noise that a seed changes"
            )
        made_for = {**about, "latent_shape": list(x.shape[1:]), "snapped": host.snaps(sampling)}
        made_for.pop("process")
        scale = host.guidance(guider)
        if scale is not None:
            made_for["guidance_scale"] = scale
        config = {
            "process": about["process"],
            "sigma_min": float(sampling.sigma_min),
            "sigma_max": float(sampling.sigma_max),
            "sigma_end": 0.0,
            "trajectories": trajectories,
            "held_out": HELD_OUT,
            "made_for": made_for,
        }
        previous = None  # noise level and result of the model call before this one
        comparison = calls_to_compare(nfes, config, batch_size) if compare else 0

        def begin(batch):
            drawn = noise_of(noise, samples, batch, x)
            return sampling.noise_scaling(sigmas[0], drawn, image, True)

        def denoised(state, sigma):
            nonlocal previous
            told = state.new_full((state.shape[0],), sigma)
            try:
                out = teller.guarded(lambda: wrapped(state, told, **extra_args))
            except Exception as error:  # such as no memory left
                out, teller.interrupt = None, error
            if out is None:
                return state  # not used: `progress` ends the run
            if previous is not None and sigma > previous[0]:  # another run, so that one was at its end
                teller.student = previous[1]
            previous = (sigma, out) if out.ndim >= 4 else None
            return out

        def progress(bar, told):
            nonlocal previous
            if told["phase"] == "plan":
                teller.say(plan(told))
                teller.guarded(bar, told)
                return teller.stop()
            if told["phase"] == "teacher":
                previous = None
                teller.say("finding the teacher's images")
            else:
                teller.say(line(told))
            teller.step(told["calls"], max(told["calls"], told["calls_expected"]) + comparison)
            bar(told)
            return teller.stop()

        # What the file cannot know, such as prompts, LoRAs and other weights, shows in the model's result.
        shown = denoised(begin(0), float(sampling.sigma_max))
        if teller.interrupt is not None:
            return x
        config["seeds"] = (
            f"{type(noise).__name__} from seed {noise.seed}, {batch_size} images a batch, "
            f"model and conditions {fingerprint(shown)}"
        )
        options = {"nfe": (nfe_from, nfe) if 0 < nfe_from < nfe else nfe, "checkpoint": checkpoint}
        if minutes > 0:
            options["max_seconds"] = 60.0 * minutes
        if checkpoint.exists():
            logging.info("lmsd: going on from %s", checkpoint)

        def attempt():
            with lmsd.ProgressBar() as bar:
                told = functools.partial(progress, bar)
                return lmsd.distill(denoised, begin, x, progress=told, **options, **config)

        try:
            try:
                distilled = attempt()
            except lmsd.Error as error:
                if error.status != lmsd.Status.MISMATCH or not checkpoint.exists():
                    raise
                logging.warning("lmsd: starting anew: %s is of another run, and is removed", checkpoint)
                teller.say(
                    "starting anew: what was kept of a run of this name is of another model or options"
                )
                checkpoint.unlink()
                distilled = attempt()
        except lmsd.Error as error:
            if error.status != lmsd.Status.STOPPED:
                raise
            if teller.interrupt is None:
                raise TimeoutError(too_short(minutes, teller.calls)) from None
            return x
        stopped = distilled.report["stopped"]
        found.update(save(distilled, files, name))
        for nfe_found, schedule in found.items():
            logging.info("lmsd: %s; saved %s", outcome(schedule), files[nfe_found])
        if compare and teller.interrupt is None and not stopped:
            teller.say("comparing with other samplers")
            compared = measured(distilled, denoised, begin, x, teller, config, comparison)
            if compared is not None:
                found.update(save(compared, files, name))
        return x

    start = torch.tensor([float(sampling.sigma_max), 0.0], dtype=torch.float32)
    sampler = comfy.samplers.KSAMPLER(run)
    guider.sample(
        noise.generate_noise({"samples": samples}),
        samples,
        sampler,
        start,
        disable_pbar=True,
        seed=noise.seed,
    )
    if teller.interrupt is not None:
        if found or batch_size == 1 or not lmsd.out_of_memory(teller.interrupt):
            raise teller.interrupt
        teller.interrupt = None  # it holds tensors
        comfy.model_management.soft_empty_cache()
        half = batch_size // 2
        logging.warning("lmsd: no memory left with batch_size %d; starting again with %d", batch_size, half)
        return distill(
            guider,
            noise,
            latent,
            name=name,
            nfe=nfe,
            nfe_from=nfe_from,
            trajectories=trajectories,
            batch_size=half,
            minutes=minutes,
            compare=compare,
            node_id=node_id,
        )
    more = ""
    if stopped:
        more = f"; {minutes:g} minutes were over: with more the same node goes on from there"
        logging.warning("lmsd%s; kept for that: %s", more.replace(";", ":", 1), checkpoint)
    else:
        checkpoint.unlink(missing_ok=True)
    teller.say(outcome(found[max(found)]) + more)
    return found[max(found)]


def calls_to_compare(nfes, config, batch_size: int) -> int:
    """How many model calls `measured` takes."""
    return lmsd.gain.calls(nfes, -(-config["held_out"] // batch_size), **COMPARED, **config)


def measured(distilled, model, begin, like, teller, config, expected):
    """`distilled` with its gains over the field of published samplers; None where the user interrupts."""
    calls, before = 0, teller.calls

    def counted(x, sigma):
        nonlocal calls
        calls += 1
        teller.step(before + calls, before + expected)
        out = model(x, sigma)
        if teller.stop():
            raise Interrupted
        return out

    try:
        return lmsd.gain.measure(distilled, counted, begin, like, **COMPARED, **config)
    except Interrupted:
        return None


def save(distilled, files: dict, name: str) -> dict:
    """Writes the family to `files`; NFE -> schedule, with names for people."""
    saved = {}
    for nfe, schedule in distilled.schedules.items():
        saved[nfe] = lmsd.Schedule.from_json(schedule.to_dict() | {"name": f"{name}: {schedule.name}"})
        saved[nfe].save(files[nfe])
    return saved


def too_short(minutes: float, calls: int) -> str:
    """What to do where the time was over before the first result."""
    return (
        f"{minutes:g} minutes were over before the first result: {calls} model calls took "
        f"{60 * minutes / max(calls, 1):.2g} s each. Give it more minutes, with which it goes on from there; "
        "or fewer trajectories, a larger batch_size if it fits, or a smaller latent"
    )


def outcome(schedule: lmsd.Schedule) -> str:
    """How well it went, in a sentence."""
    made = schedule.made_by
    best = made["handcrafted"][0]
    if not made["improved"]:
        return (
            f"{schedule.nfe} steps: no improvement over {best['solver']} ({best['grid']}), distance "
            f"{best['distance']:.4g}; the file holds that solver"
        )
    gain = best["distance"] / made["distance"]
    return (
        f"{schedule.nfe} steps: distance {made['distance']:.4g} on held-out seeds, {gain:.1f} times nearer "
        f"than {best['solver']} ({best['grid']}), the best known sampler ({best['distance']:.4g})"
    )


def plan(told: dict) -> str:
    """What the run will take and bring, before its long part."""
    calls, seconds = told["calls_expected"] * told["batch"], told["seconds_left"]
    known = 0 < seconds < math.inf  # no speed is known where all of it was read back
    time = f", {duration(seconds)} at this model's speed" if known else ""
    return (
        f"plan: {calls} image-calls{time}; similar runs ended {told['gain_expected']:.1f} times nearer "
        "than the strongest published field"
    )


def duration(seconds: float) -> str:
    """In words that change once a minute."""
    minutes = round(seconds / 60)
    return "less than a minute" if minutes < 1 else f"about {minutes} minute{'s' * (minutes > 1)}"


def fingerprint(tensor) -> str:
    """The same for the same numbers only."""
    numbers = tensor.detach().to("cpu", torch.float64).contiguous().numpy()
    return hashlib.sha256(numbers.tobytes()).hexdigest()[:8]


def line(told: dict) -> str:
    """Where a distillation stands, in a few words."""
    distance, best = told["distance"], told["handcrafted"]
    if distance == float("inf"):
        return f"{told['nfe']} steps: ranking samplers"
    gain = f", {best / distance:.1f}x nearer than the best known sampler" if 0 < distance < best else ""
    left = f", {duration(told['seconds_left'])} left" if told["seconds_left"] < math.inf else ""
    return f"{told['nfe']} steps: distance {distance:.4g}{gain}{left}"
