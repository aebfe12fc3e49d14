"""One core beside torch of its own version and of another one, in either order of imports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ORDERS = [("torch", "lmsd"), ("lmsd", "torch")]
BOUNDS = {"float64": 1e-12, "float32": 1e-5, "float16": 5e-3, "bfloat16": 5e-2}


def beside(python, order, **environment):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "bindings/python/src"), **environment}
    command = [python, Path(__file__).with_name("beside.py"), *order]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert all(found["errors"][name] <= bound for name, bound in BOUNDS.items()), found["errors"]
    assert len(found["log"]) == 1  # once for a process
    return found


@pytest.mark.parametrize("order", ORDERS)
def test_beside_its_own_torch_the_library_of_tensors_is_taken(order):
    found = beside(sys.executable, order)
    assert found["torch"].startswith("2.11.")
    assert "are combined by lmsd's library for this torch" in found["log"][0]


def test_without_that_library_torch_combines():
    (line,) = beside(sys.executable, ORDERS[0], LMSD_TORCH_LIBRARY="")["log"]
    assert "by torch itself, for LMSD_TORCH_LIBRARY is empty" in line
    (line,) = beside(sys.executable, ORDERS[0], LMSD_TORCH_LIBRARY="/nowhere/liblmsd_torch_2_11.so")["log"]
    assert "by torch itself" in line and "/nowhere/liblmsd_torch_2_11.so" in line


@pytest.mark.parametrize("order", ORDERS)
def test_beside_another_torch_it_is_left_alone_and_the_log_says_why(order):
    python = os.environ.get("LMSD_OTHER_PYTHON")
    if not python:
        pytest.skip("LMSD_OTHER_PYTHON names no interpreter with torch 2.13")
    for named in ({}, {"LMSD_TORCH_LIBRARY": str(ROOT / "bindings/python/src/lmsd/liblmsd_torch_2_11.so")}):
        found = beside(python, order, **named)
        assert found["torch"].startswith("2.13.")
        (line,) = found["log"]
        assert "by torch itself" in line and "libtorch 2.13" in line and "liblmsd_torch_2_11" in line
