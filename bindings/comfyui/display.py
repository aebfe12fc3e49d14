"""What a node shows while it distills: a progress bar, previews and sentences.

The host raises the user's interrupts out of its progress bar, previews and model; they are noted here.
"""

import logging
import math
import time

import comfy.model_management
import comfy.utils
import latent_preview
import lmsd

PREVIEW_EVERY = 1.0  # seconds
NO_SPACE = "What was measured is kept: with space on the disk the same node goes on from there"
UNWRITTEN = (
    "; the disk takes no more of the checkpoint: the run goes on, and what is missing there is tried again; "
    "if it were killed now, that would have to be measured again"
)
CACHES = (
    "Bypass nodes that reuse results of earlier steps (TeaCache, MagCache, First Block Cache) while you "
    "distill; you can sample with them"
)


class Display:
    """Of one node. `interrupt`: what ends the run early, to be raised when the best so far is saved."""

    def __init__(self, model, node_id):
        self.bar = comfy.utils.ProgressBar(1)
        self.node_id = node_id
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        self.previous = None  # noise level and result of the model call before, unflattened latents only
        self.student = None  # what the network made of a student's last state
        self.shown = 0.0  # when the last preview was
        self.calls = 0  # of the model, so far
        self.text = ""
        self.interrupt = lmsd.Interrupt()

    def guarded(self, function, *arguments):
        """`function(*arguments)`; None where the host raises an interrupt out of it, which is noted."""
        try:
            return function(*arguments)
        except comfy.model_management.InterruptProcessingException as interrupt:
            self.interrupt.note(interrupt)
            return None

    def interrupted(self) -> bool:
        """Whether the run is to end early; asks the host whether the user has pressed the button."""
        self.guarded(comfy.model_management.throw_exception_if_processing_interrupted)
        return bool(self.interrupt)

    def say(self, text: str) -> None:
        """A line on the node, on hosts that show one."""
        if text == self.text:
            return
        self.text = text
        if not shown(text, self.node_id):
            logging.debug("lmsd: %s", text)

    def saw(self, sigma: float, denoised) -> None:
        """Takes in a model call. Where the noise level rises, the call before was the last of its images."""
        if self.previous is not None and sigma > self.previous[0]:
            self.student = self.previous[1]
        self.previous = (sigma, denoised) if denoised.ndim >= 4 else None

    def forget(self) -> None:
        """The calls so far were the teacher's, whose images are not shown."""
        self.previous = None

    def step(self, calls: int, expected: int) -> None:
        """`calls` of the `expected` ones are made."""
        self.calls, preview, now = calls, None, time.monotonic()
        if self.student is not None and now - self.shown > PREVIEW_EVERY:
            self.shown = now
            preview = self.guarded(self.preview, self.student)
            self.student = None
        self.guarded(self.bar.update_absolute, calls, max(expected, calls, 1), preview)

    def preview(self, student):
        """The picture of latents; None where there is no previewer that knows them."""
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


def shown(text: str, node_id=None, toast: bool = False) -> bool:
    """Puts a text on a node, by default the one that is running; False where the host shows none.

    `toast`: older hosts, which have no texts on nodes, show it in a corner of the page instead.
    """
    try:
        from server import PromptServer

        server = PromptServer.instance
        node_id = server.last_node_id if node_id is None else node_id
        if hasattr(server, "send_progress_text"):
            server.send_progress_text(text, node_id)
        elif toast:
            server.send_sync("lmsd.notice", {"node": node_id, "text": text})
        return toast or hasattr(server, "send_progress_text")
    except (ImportError, AttributeError):
        return False


def warn(notes: list[str]) -> None:
    """Sentences on the node that is running."""
    if notes:
        shown("\n".join(notes), toast=True)


def log(notes: list[str]) -> None:
    """Sentences in the log."""
    for note in notes:
        logging.warning("lmsd: %s", note)


# ---- sentences; `progress` is the dict that `lmsd.distill` hands to its `progress`


def plan(progress: dict) -> str:
    """What the run will take and bring, before the fit."""
    calls, seconds = progress["calls_expected"] * progress["batch"], progress["seconds_left"]
    known = 0 < seconds < math.inf  # no speed is known where all of it was read back
    time = f", {duration(seconds)} at this model's speed" if known else ""
    return (
        f"plan: {calls} image-calls{time}; similar runs ended {progress['gain_expected']:.1f} times nearer "
        "than the strongest published field"
    )


def standing(progress: dict) -> str:
    """Where a distillation stands, in a few words; and whether its checkpoint can be written."""
    return stage(progress) + UNWRITTEN * (progress["unwritten"] > 0)


def stage(progress: dict) -> str:
    if progress["phase"] == "teacher":
        return "finding the teacher's images"
    steps, distance, best = progress["nfe"], progress["distance"], progress["handcrafted"]
    if distance == math.inf:
        return f"{steps} steps: ranking samplers"
    gain = f", {best / distance:.1f}x nearer than the best known sampler" if 0 < distance < best else ""
    left = f", {duration(progress['seconds_left'])} left" if progress["seconds_left"] < math.inf else ""
    return f"{steps} steps: distance {distance:.4g}{gain}{left}"


def duration(seconds: float) -> str:
    """In words that change once a minute."""
    minutes = round(seconds / 60)
    return "less than a minute" if minutes < 1 else f"about {minutes} minute{'s' * (minutes > 1)}"


def outcome(schedule: lmsd.Schedule) -> str:
    """How well it went, in a sentence."""
    made = schedule.made_by
    if not made.get("handcrafted"):
        gained = f"distance {made['distance']:.4g}; " if made["improved"] else ""
        return f"{schedule.nfe} steps: {gained}every known sampler diverges on held-out seeds"
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


def prompts(schedule: lmsd.Schedule, count: int) -> str:
    """How many of `count` prompts had a part in it: they take turns, trajectory after trajectory."""
    if count == 1:
        return ""
    fitted, decide = (min(count, schedule.made_by.get(name, 0)) for name in ("trajectories", "held_out"))
    return f"; of {count} prompts {fitted} were fitted to, {decide} decided"


def not_saved(unsaved: dict[str, str]) -> str:
    """Which files could not be written and why; the schedule is of use all the same."""
    reasons = "; ".join(dict.fromkeys(unsaved.values()))
    return (
        f"; NOT SAVED: {', '.join(unsaved)} ({reasons}). This workflow goes on with the schedule, and the "
        "log has its text"
    )


def not_kept(reason: str | None) -> str:
    """That the checkpoint lacks its end, which a run is to go on from; `reason`: None where it has it."""
    return f"; {reason}: what is missing there is measured again" if reason else ""


def hint(error: lmsd.Error) -> str:
    """What a user can do about what the library refuses; empty where its own words say it."""
    if error.status == lmsd.Status.IO and "os error" in str(error):
        return NO_SPACE
    return CACHES if "asked again" in str(error) else ""


def too_short(minutes: float, calls: int) -> str:
    """What to do where the time was over before the first result."""
    return (
        f"{minutes:g} minutes were over before the first result: {calls} model calls took "
        f"{60 * minutes / max(calls, 1):.2g} s each. Give it more minutes, with which it goes on from there; "
        "or fewer trajectories, a larger batch_size if it fits, or a smaller latent"
    )
