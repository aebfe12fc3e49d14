"""Two models that share one trajectory, as Wan 2.2 has them: one for high noise, one for low noise.

`Experts` is a guider of both, with which the host samples as with any other one. What a schedule for two
models says about them, and where its SIGMAS are to be split, is here too.
"""

import comfy.sampler_helpers
import comfy.samplers
import lmsd
import lmsd.guidance

from . import host

TURNS = "; the two models take turns more than once: sample with Guider for Two Models"
ALONE = "all steps are below the boundary: sample with the low-noise model alone"
SAME = 1e-6  # relative: by how much float32 may be off a boundary


class Experts:
    """A GUIDER: `high` predicts at noise levels from `boundary` on, `low` below it.

    Both are guiders, each with its own model, conditioning and guidance. Whatever else is asked of it, such
    as how noise is added, is the first one's; latents are scaled and masked once, by that one.
    """

    def __init__(self, high, low, boundary: float):
        self.high, self.low, self.boundary = high, low, boundary
        self.told_low = None  # what calls of the second model get beside x, while a run is on
        self.loaded = None
        if low is high:
            raise ValueError("both guiders are one: make one for each model")
        check(*(guider.model_patcher for guider in (high, low)), boundary)

    def __getattr__(self, name):
        if name in ("high", "low") or name.startswith("__"):  # asked for before there is any
            raise AttributeError(name)
        return getattr(self.high, name)

    @property
    def cfg(self) -> float:
        return self.high.cfg

    @cfg.setter
    def cfg(self, scale: float):
        self.high.cfg = self.low.cfg = scale

    @property
    def conds(self) -> dict:
        """Of both, while a run is on."""
        return self.high.conds | {f"{name}, low noise": conds for name, conds in self.low.conds.items()}

    def sample(self, noise, latent_image, sampler, sigmas, *, denoise_mask=None, seed=None, **shown):
        """The first model's run, inside one of the second, so that the host has made both ready.

        As the host calls its own guiders; `shown`: its callback and disable_pbar.
        """
        shared, out = {"denoise_mask": denoise_mask, "seed": seed}, latent_image

        def inside(model, x, levels, extra_args=None, **_):
            nonlocal out
            self.told_low = {name: extra_args[name] for name in ("model_options", "seed")}
            self.loaded = self.high
            out = self.high.sample(noise, latent_image, Switched(sampler, self), sigmas, **shared, **shown)
            return x

        outer = comfy.samplers.KSAMPLER(inside)
        try:
            self.low.sample(noise, latent_image, outer, sigmas, disable_pbar=True, **shared)
        finally:
            self.told_low = self.loaded = None
        return out

    def __call__(self, x, sigma, model_options=None, seed=None):
        """The prediction of x0 by the model whose side `sigma` is on."""
        if is_high(float(sigma.max()), self.boundary):
            self.load(self.high, x)
            return self.high(x, sigma, model_options=model_options, seed=seed)
        self.load(self.low, x)
        told = (model_options or {}).get("transformer_options", {})
        sampling = self.low.inner_model.model_sampling
        given = host.with_levels(
            self.told_low, told.get("sample_sigmas", []), x, sampling if told.get(host.FRESH) else None
        )
        return self.low(x, sigma, **given)

    def load(self, guider, x) -> None:
        """Has the host bring a guider's model, and what belongs to it, into the memory that it runs in.

        Where both fit they stay there.
        """
        if self.loaded is guider:
            return
        patcher = guider.model_patcher
        comfy.sampler_helpers.prepare_sampling(patcher, x.shape, guider.conds, guider.model_options)
        if hasattr(patcher.model, "current_patcher"):  # two patched versions of one model share it
            patcher.model.current_patcher = patcher
        self.loaded = guider


class Switched:
    """A SAMPLER that is handed a guider of both models in the place of the first one's."""

    def __init__(self, sampler, experts: Experts):
        self.sampler, self.experts = sampler, experts

    def __getattr__(self, name):
        if name in ("sampler", "experts") or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def sample(self, guider, *args, **named):
        return self.sampler.sample(self.experts, *args, **named)


def check(high, low, boundary: float) -> None:
    """Raises ValueError where two MODELs cannot share a trajectory, or the boundary is not within it."""
    one, other = map(host.describe_patched, (high, low))
    for what in ("process", "sigma_max"):
        if one[what] != other[what]:
            raise ValueError(
                f"these two models cannot share a trajectory: their {what} is {one[what]} and {other[what]}"
            )
    if not 0 < boundary < one["sigma_max"]:
        raise ValueError(f"boundary is {boundary:g}; it must be between 0 and {one['sigma_max']:g}")


def is_high(sigma: float, boundary: float) -> bool:
    """Whether the first model is called at noise level `sigma`."""
    return sigma >= boundary * (1 - SAME)


# ---- distilling


def check_range(guider, cfg_to: float) -> None:
    """Raises ValueError for a range of guidance scales where the two models have each its own."""
    if isinstance(guider, Experts) and cfg_to > 0 and host.guidance(guider) != host.guidance(guider.low):
        raise ValueError("cfg_to needs the same cfg for both models: leave cfg_low_noise at 0, or cfg_to")


def made_for(guider) -> dict:
    """What a schedule's `made_for` says of a second model; `guidance_scale_2` where that has another scale.

    Of the first model's facts, `model` is None where the second is of another kind.
    """
    if not isinstance(guider, Experts):
        return {}
    found = {"boundary": guider.boundary}
    if (scale := host.guidance(guider.low)) not in (None, host.guidance(guider)):
        found["guidance_scale_2"] = scale
    models = [host.describe_patched(one.model_patcher)["model"] for one in (guider.high, guider.low)]
    return found | ({} if models[0] == models[1] else {"model": None})


def levels(guider, sigma_max: float) -> list[float]:
    """Noise levels that between them have every model of a guider called."""
    return [sigma_max, guider.boundary / 2] if isinstance(guider, Experts) else [sigma_max]


# ---- schedules for two models


def sides(schedule: lmsd.Schedule) -> list[bool] | None:
    """For each step whether it is the first model's; None where the schedule is for one model."""
    boundary = schedule.made_for.get("boundary")
    if boundary is None:
        return None
    return [is_high(float(level), boundary) for level in schedule.scales * schedule.sigmas[:-1]]


def split_step(schedule: lmsd.Schedule) -> int:
    """How many steps the first model has: where SplitSigmas is to split. All of them, for one model."""
    found = sides(schedule)
    return schedule.nfe if found is None else sum(found)


def split(schedule: lmsd.Schedule, sigmas):
    """SIGMAS of a schedule, or of the rest of one, up to where the second model begins, and from there on.

    Raises ValueError where the schedule is for one model, begins with the second one, or has them take
    turns more than once.
    """
    if len(sigmas) and float(sigmas[0]) < schedule.sigma_start * (1 - SAME):
        schedule = schedule.start_at(float(sigmas[0]))
    found = sides(schedule)
    if found is None:
        raise ValueError("this schedule was made for one model: SplitSigmas splits it wherever you like")
    if found != sorted(found, reverse=True):
        raise ValueError(f"SIGMAS cannot be split once{TURNS}")
    if not any(found):
        raise ValueError(f"these SIGMAS need no splitting: {ALONE}")
    at = split_step(schedule)
    return sigmas[: at + 1], sigmas[at:]


def words(schedule: lmsd.Schedule) -> str:
    """Which steps are whose, for the node; empty for one model."""
    found, boundary = sides(schedule), schedule.made_for.get("boundary")
    if found is None:
        return ""
    if found != sorted(found, reverse=True):
        return TURNS
    if not any(found):
        return f"; {ALONE}"
    return (
        f"; {sum(found)} of the steps are the high-noise model's, {found.count(False)} the other's (boundary "
        f"{boundary:g}): split SIGMAS at step {sum(found)}"
    )


def made_for_part(schedule: lmsd.Schedule, first: int) -> dict:
    """What a schedule was made for, as far as it concerns the model that step `first` is of."""
    made = dict(schedule.made_for)
    scale = made.pop("guidance_scale_2", None)
    if first >= split_step(schedule):
        made.pop("shift", None)  # which says how other samplers spread the levels, from the first one on
        made.pop("sigma_min", None)
        made |= {} if scale is None else {"guidance_scale": scale}
    return made


def notes(schedule: lmsd.Schedule, first: int, last: int, guider) -> list[str]:
    """Sentences on a run of the steps `first` to `last` - 1, where its models are not the schedule's."""
    boundary, found = schedule.made_for.get("boundary"), sides(schedule)
    if not isinstance(guider, Experts):
        if found is None or len(set(found[first:last])) < 2:
            return []
        return [
            f"the schedule was made for two models with the boundary {boundary:g}, and this part of it, with "
            f"one model, has steps of both: split SIGMAS at step {sum(found)}, or use Guider for Two Models"
        ]
    here = f"this run has two models with the boundary {guider.boundary:g}"
    if boundary is None:
        return [f"the schedule was made for one model; {here}"]
    said = []
    if abs(boundary - guider.boundary) > 1e-3 * boundary:
        said.append(f"the schedule was made for the boundary {boundary:g}; {here}")
    made, scale = made_for_part(schedule, schedule.nfe), host.guidance(guider.low)
    if not lmsd.guidance.suits(made, scale):
        wanted = lmsd.guidance.words(made)
        said.append(
            f"the schedule was made for guidance scale {wanted} of the low-noise model; "
            f"this run has {scale:g}"
        )
    return said
