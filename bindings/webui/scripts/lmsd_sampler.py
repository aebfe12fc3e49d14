"""The sampler "Distilled" in A1111, Forge and SD.Next, its noise levels as a schedule type, and a drop-down.

A1111 and Forge have samplers of k-diffusion's kind; SD.Next has schedulers of diffusers. All that is known of
the hosts is here.
"""

import gradio
from modules import paths, scripts, sd_samplers, sd_samplers_common
from modules.ui_common import create_refresh_button

try:
    import lmsd  # noqa: F401
except ImportError as error:
    raise ImportError(f"lmsd is not installed in this web UI's Python, see the README: {error}") from error

from lmsd_webui import LABEL, choice_in

NAME = "Distilled"
ALIASES = ["distilled", "lmsd_distilled"]

choice = choice_in(paths.models_path)


def register_k_diffusion() -> None:
    """A1111 and Forge: a sampler, and a schedule type that goes with it when that is Automatic."""
    from modules import sd_schedulers
    from modules.sd_samplers_kdiffusion import KDiffusionSampler

    def sampler(model):
        return KDiffusionSampler(choice.sample, model)

    data = sd_samplers_common.SamplerData(NAME, sampler, ALIASES, {"scheduler": NAME.lower()})
    if hasattr(sd_samplers, "add_sampler"):  # newer versions of Forge
        sd_samplers.add_sampler(data)
    else:
        sd_samplers.all_samplers.append(data)
        sd_samplers.all_samplers_map[NAME] = data
        sd_samplers.set_samplers()
    levels = sd_schedulers.Scheduler(NAME.lower(), NAME, choice.levels)
    lists = [sd_schedulers.schedulers, getattr(sd_schedulers, "all_schedulers", sd_schedulers.schedulers)]
    for schedulers in {id(known): known for known in lists}.values():
        schedulers.append(levels)
    sd_schedulers.schedulers_map.update({levels.name: levels, levels.label: levels})


class Diffusers:
    """What SD.Next takes for a sampler: `sampler` is the scheduler of the pipeline."""

    def __init__(self, pipeline):
        from lmsd.diffusers import LmsdScheduler

        self.name, self.config, self.sampler = NAME, {}, None
        if pipeline is not None:
            like = getattr(pipeline, "default_scheduler", None) or pipeline.scheduler
            self.sampler = LmsdScheduler.from_schedule(list(choice.family().values()), like=like)
            self.sampler.name = NAME


def register_diffusers() -> None:
    """SD.Next: into the list that its own are made from, before the last, which is no sampler."""
    from modules import sd_samplers_diffusers

    data = sd_samplers_common.SamplerData(NAME, Diffusers, ALIASES, {})
    sd_samplers_diffusers.samplers_data_diffusers.insert(-1, data)
    sd_samplers.list_samplers()
    sd_samplers.set_samplers()


if NAME not in sd_samplers.all_samplers_map:  # scripts are loaded again when the page is
    (register_diffusers if hasattr(sd_samplers, "list_samplers") else register_k_diffusion)()


class DistilledSchedule(scripts.Script):
    """The drop-down, on both pages."""

    def title(self):
        return LABEL

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        names = choice.names()
        with gradio.Row():
            chosen = gradio.Dropdown(
                choices=names,
                value=names[0] if names else None,
                label=f"{LABEL} (for the sampler {NAME!r}; its files say with how many steps)",
                elem_id=self.elem_id("schedule"),
            )
            create_refresh_button(
                chosen, lambda: None, lambda: {"choices": choice.names()}, self.elem_id("refresh")
            )
        self.infotext_fields = [(chosen, LABEL)]
        self.paste_field_names = [LABEL]
        return [chosen]

    def process(self, p, name=None, *_):
        """Before an image is made: keeps what was chosen, and says what does not go with it."""
        choice.name = name
        if p.sampler_name != NAME or not name:
            return
        p.extra_generation_params[LABEL] = name
        for remark in choice.remarks(p.steps, p.cfg_scale):
            getattr(p, "comment", print)(f"{NAME}: {remark}")
