"""A checkout of ComfyUI as a library of this process: no server, CPU only."""

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def enter(comfyui: Path) -> None:
    """Makes `comfy`, `nodes`, ... importable from the checkout. Once a process, before anything of it."""
    sys.path.insert(0, str(comfyui))
    import comfy.options  # noqa: F401  the arguments of this process are not the host's
    from comfy.cli_args import args

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


def comfyui() -> Path:
    """What COMFYUI_DIR says."""
    return Path(os.environ["COMFYUI_DIR"]).resolve()
