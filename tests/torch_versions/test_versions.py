"""One liblmsd beside torch of the version that its library of tensors is made for, and beside another one.

The other version is played by this very torch, whose libtorch is made to report 2.13. Where
LMSD_OTHER_PYTHON names an interpreter with the real torch 2.13, it is tested too: `make test-torch-versions`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "bindings/python/src/lmsd/liblmsd_torch_2_11.so"
ORDERS = [("torch", "lmsd"), ("lmsd", "torch")]
BOUNDS = {"float64": 1e-12, "float32": 1e-5, "float16": 5e-3, "bfloat16": 5e-2}

REPORTS_2_13 = """
#include <stdint.h>
uint64_t aoti_torch_abi_version(void) { return (uint64_t)2 << 56 | (uint64_t)13 << 48; }
"""


def beside(python, order, **environment):
    """What beside.py prints when it imports the modules in this order."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "bindings/python/src"), **environment}
    command = [python, Path(__file__).with_name("beside.py"), *order]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert all(found["errors"][name] <= bound for name, bound in BOUNDS.items()), found["errors"]
    assert len(found["log"]) == 1  # once for a process
    return found


@pytest.fixture(scope="module")
def other_version(tmp_path_factory):
    """A library for LD_PRELOAD that makes the libtorch of this interpreter's torch report version 2.13.

    It has libtorch's own name, so torch is linked with it. It is itself linked with the real libtorch, by its
    path, so all but the version comes from there.
    """
    import torch

    folder = tmp_path_factory.mktemp("libtorch")
    real = Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"

    def compile(name, source, soname, *others):
        (folder / "source.c").write_text(source)
        out = folder / name
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{soname},--no-as-needed", "-o", out]
        subprocess.run([*command, folder / "source.c", *others], check=True)
        return out

    path_of_real = compile("path.so", "", real)
    return str(compile("libtorch_cpu.so", REPORTS_2_13, "libtorch_cpu.so", path_of_real))


def assert_torch_combines(found):
    """The library for 2.11 was not opened beside 2.13, and the log says why."""
    (line,) = found["log"]
    assert "by torch itself" in line and "libtorch 2.13" in line and "liblmsd_torch_2_11" in line


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


@pytest.mark.parametrize("named", [{}, {"LMSD_TORCH_LIBRARY": str(LIBRARY)}], ids=["found", "named"])
@pytest.mark.parametrize("order", ORDERS)
def test_beside_a_libtorch_that_reports_another_version_torch_combines(order, named, other_version):
    assert_torch_combines(beside(sys.executable, order, LD_PRELOAD=other_version, **named))


@pytest.mark.parametrize("order", ORDERS)
def test_beside_another_torch_it_combines(order):
    python = os.environ.get("LMSD_OTHER_PYTHON")
    if not python:
        pytest.skip("LMSD_OTHER_PYTHON names no interpreter with torch 2.13: make test-torch-versions")
    for named in ({}, {"LMSD_TORCH_LIBRARY": str(LIBRARY)}):
        found = beside(python, order, **named)
        assert found["torch"].startswith("2.13.")
        assert_torch_combines(found)
