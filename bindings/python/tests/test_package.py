"""Loading the library, pictures, and the wheel."""

import json
import os
import re
import runpy
import struct
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import lmsd
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
REPOSITORY = ROOT.parents[1]


def python(code, **environment):
    environment = {**os.environ, "PYTHONPATH": str(Path(lmsd.__file__).parents[1]), **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout + done.stderr


def last_line(text):
    return text.strip().splitlines()[-1]


def test_a_missing_library_is_one_clear_sentence(tmp_path):
    code, text = python("import lmsd", LMSD_LIBRARY=str(tmp_path / "none.so"))
    assert code == 1
    assert last_line(text).startswith(f"ImportError: there is no lmsd library at {tmp_path / 'none.so'}")


def test_a_file_that_is_no_library_is_refused(tmp_path):
    (tmp_path / "text.so").write_text("no")
    code, text = python("import lmsd", LMSD_LIBRARY=str(tmp_path / "text.so"))
    assert code == 1 and "is not a library of lmsd" in last_line(text)


def test_another_abi_version_is_refused():
    code, text = python("import sys, lmsd._abi as a; a.ABI_VERSION = 3; a.load()")
    assert code == 1 and "has ABI version 2, this Python package needs 3" in last_line(text)


def test_torch_and_matplotlib_are_loaded_only_when_needed():
    code, text = python(
        "import sys, lmsd, lmsd.plots, lmsd.cli, numpy\n"
        "lmsd.sample(lmsd.solve(nfe=3), numpy.ones((2, 2)), lambda x, sigma: x)\n"
        "print([m for m in ('torch', 'matplotlib', 'tqdm') if m in sys.modules])"
    )
    assert code == 0 and last_line(text) == "[]"


@pytest.mark.parametrize("file", ["Cargo.toml", "bindings/torch/Cargo.toml", "fuzz/Cargo.toml"])
def test_the_crates_have_the_version_of_the_library(file):
    assert f'\nversion = "{lmsd.__version__}"\n' in (REPOSITORY / file).read_text()


@pytest.mark.parametrize("package", ["python", "torch", "comfyui"])
def test_the_packages_have_the_version_of_the_library(package):
    text = (ROOT.parent / package / "pyproject.toml").read_text()
    assert f'\nversion = "{lmsd.__version__}"\n' in text
    assert set(re.findall(r'"lmsd==([^",]*)', text)) <= {lmsd.__version__}


def test_every_function_of_the_header_has_the_right_number_of_arguments():
    from lmsd import _abi

    header = (ROOT.parents[1] / "include" / "lmsd.h").read_text()
    declared = {}
    functions = re.sub(r"/\*.*?\*/", "", header.split('extern "C" {')[1], flags=re.DOTALL)
    for code in functions.split(";"):
        if "(" in code:
            name = code.split("(")[0].split()[-1].lstrip("*")
            arguments = code.split("(", 1)[1].rsplit(")", 1)[0]
            declared[name] = 0 if arguments == "void" else arguments.count(",") + 1
    prototypes = {**_abi._STATUS, **{name: arguments for name, (_, *arguments) in _abi._PLAIN.items()}}
    assert {name: len(arguments) for name, arguments in prototypes.items()}.items() <= declared.items()
    assert f"#define LMSD_ABI_VERSION {_abi.ABI_VERSION}\n" in header
    assert set(declared) - set(prototypes) == {
        "lmsd_schedule_nfe",
        "lmsd_schedule_sigma_start",
        "lmsd_schedule_sigma_end",
        "lmsd_schedule_is_guided",
        "lmsd_schedule_node",  # read from the schedule's text instead
    }
    for kind in (_abi.Status, _abi.Purpose, _abi.Phase):
        listed = re.findall(rf"\bLMSD_{kind.__name__.upper()}_(\w+) = (\d+),", header)
        assert {name: value.value for name, value in kind.__members__.items()} == {
            name: int(value) for name, value in listed
        }


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    from lmsd import plots

    schedules = [lmsd.solve("dpmpp_3m", nfe=nfe) for nfe in (4, 8)]
    figure = plots.plot_schedule(schedules)
    assert [axes.get_ylabel() for axes in figure.axes] == ["sigma", "scale", "weight"]
    shown = figure.axes[0].get_lines()[0].get_ydata()
    np.testing.assert_array_equal(shown, schedules[0].sigmas[:-1])  # the end at 0 is not on a log axis
    plots.plot_schedule(schedules[0]).savefig(tmp_path / "a.png")
    figure = plots.plot_distances({"a": {4: 0.2, 3: 0.5}, "b": {3: 0.7}})
    assert figure.axes[0].get_lines()[0].get_xdata().tolist() == [3, 4]
    figure.savefig(tmp_path / "b.svg")


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_needs(library):
    """Refuses a library that asks for more than an old system has, or says where to look for it."""
    dynamic = run("readelf", "--dynamic", "--wide", library)
    needed = set(re.findall(r"\(NEEDED\).*\[(.+?)\]", dynamic))
    system = r"(libc|libm|libdl|libpthread|libgcc_s|ld-linux-x86-64|ld-linux-aarch64)\.so\.\d"
    assert needed and all(re.fullmatch(system, name) for name in needed), needed
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic
    asked = re.findall(r"GLIBC_(\d+)\.(\d+)", run("readelf", "--version-info", "--wide", library))
    assert asked and max((int(major), int(minor)) for major, minor in asked) <= (2, 28)
    segments = run("readelf", "--segments", "--wide", library)
    assert "BIND_NOW" in dynamic and "GNU_RELRO" in segments, "no full RELRO"
    assert re.search(r"GNU_STACK .* RW +0", segments) and "RWE" not in segments


def check_bill_of_materials(text):
    """Crates that the library is made of are in it, with licence and checksum; those that test it are not."""
    bill = json.loads(text)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["purl"] == f"pkg:cargo/lmsd@{lmsd.__version__}"
    crates = {crate["name"]: crate for crate in bill["components"]}
    assert set(crates) >= {"serde_json", "nalgebra", "rayon"}
    assert not set(crates) & {"proptest", "tch", "lmsd"}
    assert all(crate["hashes"] and crate["licenses"][0]["expression"] for crate in crates.values())
    refs = {each["ref"]: each["dependsOn"] for each in bill["dependencies"]}
    assert len(refs) == len(bill["components"]) + 1
    assert {need for needs in refs.values() for need in needs} < set(refs)


@pytest.mark.skipif(sys.platform != "linux", reason="ELF is Linux's")
def test_the_library_needs_no_more_than_an_old_system_has():
    check_needs(Path(os.environ.get("LMSD_LIBRARY") or Path(lmsd.__file__).with_name("liblmsd.so")))


def library_of(kind, machine, asks=b""):
    """The head of a library, as the build hook reads it: magic, machine, and the oldest system."""
    if kind == "ELF":
        return struct.pack("<4s14xH", b"\x7fELF", machine) + bytes(44) + b"\0GLIBC_2.4\0GLIBC_" + asks
    if kind == "PE":
        return struct.pack("<2s58xI4sH", b"MZ", 64, b"PE\0\0", machine)
    head = struct.pack("<8I", 0xFEEDFACF, machine, 0, 6, 2, 24 + 32, 0, 0) + struct.pack(
        "<6I", 2, 24, 0, 0, 0, 0
    )
    return head + struct.pack("<8I", 0x32, 32, 1, *asks, 0, 0, 0)


@pytest.mark.parametrize(
    ("library", "file", "platform"),
    [
        (library_of("ELF", 62, b"2.28\0"), "liblmsd.so", "manylinux_2_28_x86_64"),
        (library_of("ELF", 183, b"2.9\0"), "liblmsd.so", "manylinux_2_17_aarch64"),
        (library_of("PE", 0x8664), "lmsd.dll", "win_amd64"),
        (library_of("MACH-O", 0x0100000C, (11 << 16, 12 << 16)), "liblmsd.dylib", "macosx_11_0_arm64"),
        (
            library_of("MACH-O", 0x01000007, (10 << 16 | 12 << 8, 13 << 16)),
            "liblmsd.dylib",
            "macosx_10_12_x86_64",
        ),
    ],
)
def test_the_platform_of_a_wheel_is_its_librarys(tmp_path, library, file, platform):
    """Not that of the machine that builds it."""
    hook = types.ModuleType("hatchling.builders.hooks.plugin.interface")
    hook.BuildHookInterface = object
    parents = {".".join(hook.__name__.split(".")[:n]): types.ModuleType("") for n in range(1, 5)}
    with pytest.MonkeyPatch.context() as patch:  # hatchling need not be here
        for name, module in {**parents, hook.__name__: hook}.items():
            patch.setitem(sys.modules, name, module)
        build = runpy.run_path(str(ROOT / "hatch_build.py"))
    path = tmp_path / "library"
    path.write_bytes(library)
    assert build["file_and_platform"](path) == (file, platform)


@pytest.mark.slow
def test_the_wheel_works_in_a_fresh_environment(tmp_path):
    from lmsd import _abi

    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LMSD_LIBRARY")}
    built = {**environment, "LMSD_LIBRARY": _abi.lib._name}
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, ROOT, env=built)
    (wheel,) = tmp_path.glob("lmsd-*.whl")
    assert "-py3-none-" in wheel.name and not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        (bill,) = [name for name in archive.namelist() if name.endswith(".dist-info/sboms/lmsd.cdx.json")]
        check_bill_of_materials(archive.read(bill))
    if sys.platform == "linux":
        assert "manylinux_2_28" in wheel.name
        with zipfile.ZipFile(wheel) as archive:
            libraries = [name for name in archive.namelist() if ".so" in name]
            assert libraries == ["lmsd/liblmsd.so"]
            check_needs(archive.extract(libraries[0], tmp_path))
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    fresh = tmp_path / "venv" / "bin"
    run(fresh / "python", "-m", "pip", "install", "--quiet", wheel, env=environment)
    run(fresh / "lmsd", "solve", "--nfe", "4", "--out", tmp_path / "a.json", env=environment, cwd=tmp_path)
    code = "import lmsd, numpy as np; s = lmsd.Schedule.load('a.json')"
    code += "; print(lmsd.sample(s, np.ones((2, 3)), lambda x, sigma: x / (1 + sigma)))"
    assert "[[" in run(fresh / "python", "-c", code, env=environment, cwd=tmp_path)
