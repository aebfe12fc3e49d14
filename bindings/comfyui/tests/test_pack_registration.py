"""What the host and its registry see of the pack: names, words, files, and an import that does no harm."""

import ast
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import lmsd
import pytest

PACK = Path(__file__).resolve().parents[1]
CODE = sorted(path for path in PACK.glob("*.py"))
# Inputs whose name says all: sockets, and what every ComfyUI node calls so.
OBVIOUS = {"model", "negative", "clip", "schedule", "cfg"}


def mappings(pack):
    return pack.module.NODE_CLASS_MAPPINGS


def test_every_node_has_a_name_for_people_and_a_description(pack):
    names = pack.module.NODE_DISPLAY_NAME_MAPPINGS
    assert set(names) == set(mappings(pack)) and len(set(names.values())) == len(names) == 9
    for node, cls in mappings(pack).items():
        assert node.startswith("Lmsd")  # of all packs' nodes, these
        assert len(cls.DESCRIPTION) > 30 and cls.DESCRIPTION.endswith(".")
        assert cls.CATEGORY == "sampling/lmsd"
        assert callable(getattr(cls, cls.FUNCTION)) and isinstance(cls.RETURN_TYPES, tuple)
        assert len(getattr(cls, "RETURN_NAMES", cls.RETURN_TYPES)) == len(cls.RETURN_TYPES)


def test_every_input_is_explained_and_its_default_allowed(pack, host):
    lmsd.solve().save(host.models / "lmsd_schedules" / "a.json")
    for node in mappings(pack):
        for name, (kind, options) in pack.inputs(node).items():
            assert name in OBVIOUS or len(options.get("tooltip", "")) > 10, f"{node}.{name} has no tooltip"
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= options["default"] <= options["max"], f"{node}.{name}"
            elif isinstance(kind, list):
                assert options.get("default", kind[0]) in kind, f"{node}.{name}"


LIBRARY = {
    ("LmsdDistill", "nfe"): ("distill", "nfe"),
    ("LmsdDistill", "trajectories"): ("distill", "trajectories"),
    ("LmsdDistillGuider", "trajectories"): ("distill", "trajectories"),
    ("LmsdSolver", "solver"): ("solve", "solver"),
    ("LmsdSolver", "steps"): ("solve", "nfe"),
    ("LmsdSolver", "lower_order_final"): ("solve", "lower_order_final"),
}


@pytest.mark.parametrize(("own", "option"), LIBRARY.items(), ids=lambda pair: ".".join(pair))
def test_options_of_the_library_have_its_defaults_ranges_and_words(pack, own, option):
    (item,) = [item for item in lmsd.options()[option[0]] if item["name"] == option[1]]
    kind, shown = pack.inputs(own[0])[own[1]]
    assert shown["default"] == item["default"]
    if isinstance(kind, str):
        assert shown["tooltip"].startswith(item["about"])
        assert item.get("min") == shown.get("min") and item.get("max", 0) >= shown.get("max", 0)


def test_inputs_are_what_the_functions_take(pack):
    for node, cls in mappings(pack).items():
        arguments = getattr(cls, cls.FUNCTION).__code__
        taken = set(arguments.co_varnames[1 : arguments.co_argcount])
        takes_more = bool(arguments.co_flags & 0x08)
        given = {*pack.inputs(node), *cls.INPUT_TYPES().get("hidden", {})}
        assert taken <= given and (takes_more or taken == given), node


def test_every_node_has_a_help_page_that_names_its_inputs(pack):
    """Found by the page as WEB_DIRECTORY/docs/NODE.md."""
    docs = PACK / pack.module.WEB_DIRECTORY / "docs"
    assert {path.stem for path in docs.glob("*.md")} == set(mappings(pack))
    for node in mappings(pack):
        text = (docs / f"{node}.md").read_text("utf-8")
        assert text.startswith(f"# {pack.module.NODE_DISPLAY_NAME_MAPPINGS[node]}\n")
        for name in pack.inputs(node):
            assert re.search(rf"\b{name}\b", text), f"{node}.md does not say what {name} is"


def test_the_setting_on_the_page_is_the_one_that_is_read(pack):
    script = (PACK / pack.module.WEB_DIRECTORY / "js" / "settings.js").read_text("utf-8")
    assert f'id: "{pack.submodule("ksampler").SETTING}"' in script and "defaultValue: false" in script


def test_workflows_hold_nodes_that_are_there(pack):
    """With as many values as the nodes have widgets."""
    workflows = sorted((PACK / "example_workflows").glob("*.json"))
    assert workflows
    for path in workflows:
        nodes = json.loads(path.read_text("utf-8"))["nodes"]
        ours = [node for node in nodes if node["type"].startswith("Lmsd")]
        assert ours, path.name
        for node in ours:
            inputs = pack.inputs(node["type"])
            widgets = [
                name
                for name, (kind, _) in inputs.items()
                if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN")
            ]
            assert len(node.get("widgets_values") or []) == len(widgets), f"{path.name}: {node['type']}"
            assert {slot["name"] for slot in node["inputs"]} <= set(inputs)


def test_the_registry_files(pack):
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((PACK / "pyproject.toml").read_text("utf-8"))
    comfy, name = project["tool"]["comfy"], project["project"]["name"]
    assert comfy["PublisherId"] and comfy["DisplayName"] and comfy["requires-comfyui"]
    assert re.fullmatch(r"[a-z]([._-]?[a-z0-9])*", name) and len(name) < 100 and "comfyui" not in name
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["project"]["version"]) and project["project"]["description"]
    assert (PACK / project["project"]["readme"]).is_file() and set(project["project"]["license"]) == {"text"}
    repository = project["project"]["urls"]["Repository"]
    assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", repository)
    raw = repository.replace("github.com", "raw.githubusercontent.com") + "/main/bindings/comfyui/"
    icon = comfy["Icon"].removeprefix(raw)
    assert icon.endswith((".svg", ".png", ".jpg", ".gif")) and (PACK / icon).is_file()  # of 400 x 400 at most
    assert 'width="400" height="400"' in (PACK / icon).read_text("utf-8")
    required = (PACK / "requirements.txt").read_text("utf-8").split()
    assert required == project["project"]["dependencies"]
    (only,) = required  # ComfyUI has its own torch; a pin would replace it
    needed = pack.module.NEEDED
    assert re.fullmatch(rf"lmsd(\[plots\])?>={re.escape(needed)}(\.\d+)?,<[\d.]+", only)
    assert lmsd.__version__.startswith(f"{needed}.")


FORBIDDEN = {"eval", "exec", "compile", "__import__", "system", "popen", "Popen"}


def test_nothing_is_run_or_installed():
    """Rules of the registry."""
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "id", getattr(node.func, "attr", None))
                assert called not in FORBIDDEN, f"{path.name}:{node.lineno}"
            imported = [alias.name for alias in getattr(node, "names", []) if hasattr(alias, "name")]
            imported.append(getattr(node, "module", None) or "")
            for name in imported:
                assert name.split(".")[0] not in {"subprocess", "pip", "importlib", "requests", "urllib"}


# ---- the import


def errors(caplog):
    return [record for record in caplog.records if record.levelno >= logging.ERROR]


def broken(pack, caplog):
    """Exactly one line, which says how to help it, and no nodes."""
    assert pack.module.NODE_CLASS_MAPPINGS == pack.module.NODE_DISPLAY_NAME_MAPPINGS == {}
    (record,) = errors(caplog)
    assert record.exc_info is None and "\n" not in record.getMessage()
    assert "pip install" in record.getMessage()
    return record.getMessage()


def test_without_lmsd_there_is_one_line_in_the_log(host, load_pack, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "lmsd", None)
    assert "lmsd" in broken(load_pack(), caplog)


def test_with_another_lmsd_there_is_one_line_in_the_log(host, load_pack, monkeypatch, caplog):
    for version in ("0.2.0", "1.0.0", "0.10.1"):
        caplog.clear()
        monkeypatch.setattr(lmsd, "__version__", version)
        assert version in broken(load_pack(), caplog)
    assert not (host.models / "lmsd_schedules").exists()


def test_a_patch_release_is_taken(load_pack, monkeypatch, caplog):
    monkeypatch.setattr(lmsd, "__version__", "0.1.99")
    assert len(load_pack().module.NODE_CLASS_MAPPINGS) == 9 and errors(caplog) == []


MEASURE = """
import logging, sys, time
import numpy, torch
sys.path.insert(0, {tests!r})
import fake_comfy, pathlib, tempfile
from importlib import util
patch = type("Patch", (), {{"setitem": staticmethod(lambda into, name, value: into.update({{name: value}}))}})
with tempfile.TemporaryDirectory() as folder:
    fake_comfy.install(patch, pathlib.Path(folder, "host"))
    before, start, host = set(sys.modules), time.perf_counter(), time.process_time()
    spec = util.spec_from_file_location("pack", {init!r}, submodule_search_locations=[{pack!r}])
    sys.modules["pack"] = module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    print(len(module.NODE_CLASS_MAPPINGS), time.perf_counter() - start, time.process_time() - host, host)
    print(*sorted(set(sys.modules) - before))
"""


def test_the_import_is_quick_and_light(capsys):
    """In a fresh process that has torch and numpy already, as ComfyUI: a tenth of their work at most."""
    script = MEASURE.format(tests=str(PACK / "tests"), init=str(PACK / "__init__.py"), pack=str(PACK))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    count, wall, busy, others = first.split()
    with capsys.disabled():
        print(f" [import: {float(wall):.3f} s, {float(busy):.3f} s of it work] ", end="")
    assert int(count) == 9 and float(busy) < 0.1 * float(others)
    loaded = set(second.split())
    assert "lmsd" in loaded and not loaded & {
        "matplotlib",
        "diffusers",
        "scipy",
        "pandas",
        "PIL",
        "tqdm.auto",
    }
