"""Tests in a real ComfyUI: COMFYUI_DIR is a checkout, COMFYUI_PYTHON the interpreter that can run it.

Run pytest with that interpreter too. Without COMFYUI_DIR all of them are skipped.
"""

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
WHY = "COMFYUI_DIR does not say where a checkout of ComfyUI is"

sys.path[:0] = [str(HERE), str(HERE.parents[1] / "bindings" / "python" / "src")]
collect_ignore = ["digits_pack"]


def pytest_collection_modifyitems(items):
    if not os.environ.get("COMFYUI_DIR"):
        for item in items:
            if item.path.is_relative_to(HERE):
                item.add_marker(pytest.mark.skip(reason=WHY))


def pytest_report_header():
    if os.environ.get("COMFYUI_DIR"):
        return f"ComfyUI: {os.environ['COMFYUI_DIR']}"
    return None


@pytest.fixture(scope="session")
def comfyui():
    """The checkout."""
    folder = Path(os.environ["COMFYUI_DIR"]).resolve()
    assert (folder / "main.py").is_file(), f"{folder} is no checkout of ComfyUI"
    return folder


@pytest.fixture(scope="session")
def host(comfyui):
    """One running server for all tests."""
    from host import Host

    with Host(comfyui) as running:
        yield running


@pytest.fixture(scope="session")
def digits(comfyui):
    """The digits pack in this process, with the host's modules importable."""
    import inside

    inside.enter(comfyui)
    return inside.digits()
