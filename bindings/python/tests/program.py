"""The program `lmsd` as a process."""

import os
import subprocess
import sys
from pathlib import Path

import lmsd

HERE = Path(__file__).parent
EVERYWHERE = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(lmsd.__file__).parents[1]), str(HERE)])}
if "PYTHONPATH" in os.environ:
    EVERYWHERE["PYTHONPATH"] += os.pathsep + os.environ["PYTHONPATH"]


def start(*arguments, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": EVERYWHERE}
    return subprocess.Popen([sys.executable, "-m", "lmsd", *map(str, arguments)], **{**pipes, **options})


def run(*arguments, code=0, **options):
    """What it says, when it has ended with `code`."""
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    return out + err
