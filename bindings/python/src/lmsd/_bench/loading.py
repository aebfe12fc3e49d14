"""A diffusers pipeline from a folder."""

import inspect
import json
import warnings
from pathlib import Path

import diffusers
import torch

import lmsd

NEEDED = ("prompt", "num_inference_steps", "generator", "output_type")  # of the pipeline's call
INDEX = "model_index.json"


def load(folder: str, *, dtype: str, device: str, classes=None):
    """The pipeline saved in `folder`, quiet, without a safety checker, which would blacken pictures.

    `classes`: a module that has the pipeline's class, where diffusers has not.
    """
    for category in (DeprecationWarning, FutureWarning):  # theirs
        warnings.filterwarnings("ignore", category=category)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    kind = pipeline_class(folder, classes)
    try:
        pipe = kind.from_pretrained(folder, torch_dtype=getattr(torch, dtype), local_files_only=True).to(
            device
        )
    except (OSError, ValueError, AttributeError, ImportError, RuntimeError) as error:
        if lmsd.out_of_memory(error):
            raise
        raise lmsd.Error(f"{folder} cannot be loaded: {' '.join(str(error).split())}") from error
    if getattr(pipe, "safety_checker", None) is not None:
        pipe.safety_checker = None
    pipe.set_progress_bar_config(disable=True)
    check(pipe)
    return pipe


def pipeline_class(folder: str, classes):
    """The class that the folder's index names."""
    path = Path(folder)
    if not path.is_dir():
        raise lmsd.Error(f"there is no folder {folder}", lmsd.Status.IO)
    try:
        name = json.loads((path / INDEX).read_text())["_class_name"]
    except (OSError, ValueError, KeyError):
        raise lmsd.Error(f"{folder} holds no diffusers pipeline: it has no {INDEX} that names one") from None
    name = name[-1] if isinstance(name, list) else name
    found = getattr(classes, name, None) or getattr(diffusers, name, None)
    if found is None:
        raise lmsd.Error(
            f"{folder} is a {name}, which diffusers does not have: --pipeline names the file that does"
        )
    return found


def check(pipe) -> None:
    """Refuses a pipeline that cannot be distilled or sampled from prompts."""
    name = type(pipe).__name__
    if getattr(pipe, "scheduler", None) is None or denoiser(pipe) is None:
        raise lmsd.Error(
            f"{name} cannot be distilled: it has no scheduler, or neither a unet nor a transformer"
        )
    parameters = inspect.signature(pipe.__call__).parameters
    missing = [each for each in NEEDED if each not in parameters]
    if missing:
        raise lmsd.Error(f"{name} cannot be compared on prompts: its call takes no {', '.join(missing)}")


def denoiser(pipe):
    """The network that is called at every step."""
    return getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
