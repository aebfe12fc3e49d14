"""The commands that the texts give, run as they stand: afterwards the pack is in ComfyUI, with the package.

No index is reached: `lmsd` is on none. `make wheel` is a stand-in that builds the wheel from this checkout
without a compiler; that the Makefile has such a target is checked.
"""

import os
import re
import shutil
import site
import stat
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import lmsd
import pytest
from lmsd import _abi

PACK = Path(__file__).resolve().parents[1]
ROOT = PACK.parents[1]
TEXTS = {
    "the pack's README": (PACK / "README.md", "## Install"),
    "the guide": (ROOT / "docs" / "comfyui.md", "## Install"),
    "the README": (ROOT / "README.md", "## In ComfyUI"),
}
PLACEHOLDER = "/path/to/ComfyUI"
LOAD = """
import pathlib, sys
sys.path.insert(0, {tests!r})
import fake_comfy, lmsd
from importlib import util
patch = type("Patch", (), {{"setitem": staticmethod(lambda into, name, value: into.update({{name: value}}))}})
fake_comfy.install(patch, pathlib.Path({host!r}))
pack = pathlib.Path({pack!r})
spec = util.spec_from_file_location("pack", pack / "__init__.py", submodule_search_locations=[str(pack)])
sys.modules["pack"] = module = util.module_from_spec(spec)
spec.loader.exec_module(module)
print(lmsd.__file__, lmsd.__version__, *sorted(module.NODE_CLASS_MAPPINGS))
"""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the commands are a Unix shell's")


def commands(file: Path, heading: str) -> str:
    """The first block of shell commands below a heading."""
    below = file.read_text("utf-8").split(f"\n{heading}\n")[1]
    return re.search(r"```sh\n(.*?)```", below, re.DOTALL)[1]


def wheel(folder: Path) -> Path:
    """lmsd's wheel, as `make wheel` leaves it but for its tag, which fits this interpreter."""
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "bindings" / "python" / "pyproject.toml").read_text("utf-8"))["project"]
    tag = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")
    about = f"{project['name']}-{project['version']}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {project['version']}"]
    lines += [f"Requires-Dist: {one}" for one in project["dependencies"]]
    for extra, needed in project["optional-dependencies"].items():
        lines += [f"Provides-Extra: {extra}"]
        lines += [f'Requires-Dist: {one}; extra == "{extra}"' for one in needed]
    path = folder / f"{project['name']}-{project['version']}-{tag}.whl"
    package = Path(lmsd.__file__).parent
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(package.rglob("*.py")):
            archive.write(file, Path("lmsd", file.relative_to(package)))
        archive.write(_abi.lib._name, f"lmsd/{_abi.FILE_NAME}")
        archive.writestr(f"{about}/METADATA", "\n".join(lines) + "\n")
        archive.writestr(f"{about}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n")
        archive.writestr(f"{about}/RECORD", "")
    return path


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def python(tmp_path):
    """The folder of programs of ComfyUI's Python: it has pip, torch and the like, and no lmsd."""
    folder = tmp_path / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    script(folder / "venv" / "bin" / "pip", '#!/bin/sh\nexec python -m pip "$@"\n')
    others = folder / "others"
    others.mkdir()
    for place in dict.fromkeys([sysconfig.get_path("purelib"), *site.getsitepackages()]):
        for one in Path(place).iterdir() if Path(place).is_dir() else []:
            if not re.match(r"lmsd|_editable|__editable|.*\.pth$", one.name):
                link = others / one.name
                link.exists() or link.symlink_to(one)
    (packages,) = (folder / "venv").glob("lib/python3*/site-packages")
    (packages / "others.pth").write_text(str(others))
    return folder / "venv" / "bin"


@pytest.fixture
def shell(python, tmp_path):
    """Runs a command in a copy of this checkout, with ComfyUI's Python and no index."""
    checkout, programs = tmp_path / "lmsd", tmp_path / "programs"
    (checkout / "bindings" / "python").mkdir(parents=True)
    programs.mkdir()
    left_out = shutil.ignore_patterns("__pycache__", ".*", "tests")
    shutil.copytree(PACK, checkout / "bindings" / "comfyui", ignore=left_out)
    built = wheel(tmp_path)
    dist = checkout / "bindings" / "python" / "dist"
    script(programs / "make", f'#!/bin/sh\ntest "$*" = wheel && mkdir -p "{dist}" && cp "{built}" "{dist}"\n')
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LMSD_LIBRARY")}
    environment |= {"PATH": f"{programs}:{python}:{os.environ['PATH']}", "PIP_NO_INDEX": "1"}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def run(command, check=True):
        done = subprocess.run(
            ["sh", "-ec", command], cwd=checkout, env=environment, capture_output=True, text=True
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return run


def test_the_commands_install_it(shell, tmp_path):
    text = commands(*TEXTS["the pack's README"])
    assert PLACEHOLDER in text
    comfyui = tmp_path / "a folder" / "ComfyUI"
    (comfyui / "custom_nodes").mkdir(parents=True)
    before = shell("pip install -r bindings/comfyui/requirements.txt", check=False)
    assert before.returncode != 0 and "No matching distribution found for lmsd" in before.stderr
    shell(text.replace(PLACEHOLDER, f'"{comfyui}"'))
    (pack,) = (comfyui / "custom_nodes").iterdir()
    load = LOAD.format(tests=str(PACK / "tests"), host=str(tmp_path / "host"), pack=str(pack))
    (tmp_path / "load.py").write_text(load)
    place, version, *nodes = shell(f'python "{tmp_path}/load.py"').stdout.split()
    assert "site-packages" in place and version == lmsd.__version__
    assert len(nodes) >= 7 and all(node.startswith("Lmsd") for node in nodes)
    shell(f'pip install -r "{pack}/requirements.txt"')  # as managers of packs do


def test_the_makefile_builds_wheels_where_the_texts_look_for_them():
    text = (ROOT / "mk" / "wheels.mk").read_text("utf-8")
    assert re.search(r"^build_wheel = (.*\n)*?\t.*--wheel --outdir \$\(3\) bindings/python$", text, re.M)
    assert re.search(r"^wheel:.*\n\t\$\(call build_wheel,.*,bindings/python/dist\)$", text, re.M)


def test_all_texts_give_the_same_commands():
    """So that one of them is enough above."""
    found = {re.sub(r" *#.*", "", commands(*text)) for text in TEXTS.values()}
    assert len(found) == 1
