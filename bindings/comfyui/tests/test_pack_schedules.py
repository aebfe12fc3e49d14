"""Schedule files: found, listed, read again when they change, refused when they are not what they seem."""

import json
from pathlib import Path

import lmsd
import pytest
from fake_comfy import Model


@pytest.fixture
def schedule():
    return lmsd.solve("dpmpp_2m", nfe=4)


def folder(host):
    return host.models / "lmsd_schedules"


def listed(pack):
    return pack.inputs("LmsdLoadSchedule")["schedule"][0]


def test_new_files_are_listed_at_once(pack, host, schedule):
    assert listed(pack) == []
    schedule.save(folder(host) / "b.json")
    (folder(host) / "SD15").mkdir()
    schedule.save(folder(host) / "SD15" / "a.json")
    (folder(host) / "notes.txt").write_text("not a schedule")
    assert listed(pack) == [str(Path("SD15", "a.json")), "b.json"]
    for name in listed(pack):
        assert pack.run("LmsdLoadSchedule", schedule=name) == (schedule,)
    (folder(host) / "b.json").unlink()
    assert listed(pack) == [str(Path("SD15", "a.json"))]


def test_paths_of_extra_model_paths_are_kept(host, load_pack, schedule, tmp_path):
    """ComfyUI reads them before it imports packs, with its own extensions or none."""
    extra = tmp_path / "elsewhere"
    extra.mkdir()
    schedule.save(extra / "shared.json")
    known = host.modules["folder_paths"].folder_names_and_paths
    known["lmsd_schedules"] = ([str(extra)], {".safetensors"})
    pack = load_pack()
    assert known["lmsd_schedules"][0] == [str(extra), str(folder(host))]
    assert known["lmsd_schedules"][1] == {".json", ".safetensors"}
    schedule.save(folder(host) / "own.json")
    assert listed(pack) == ["own.json", "shared.json"]
    assert pack.run("LmsdLoadSchedule", schedule="shared.json") == (schedule,)
    load_pack()
    assert known["lmsd_schedules"][0] == [str(extra), str(folder(host))]


def test_a_file_that_is_gone_is_named_with_those_there(pack, host, schedule):
    schedule.save(folder(host) / "there.json")
    load = pack.module.NODE_CLASS_MAPPINGS["LmsdLoadSchedule"]().load
    with pytest.raises(ValueError, match=r"'gone.json' in models/lmsd_schedules; there are: there.json"):
        load("gone.json")
    (folder(host) / "there.json").unlink()
    with pytest.raises(ValueError, match="none at all"):
        load("there.json")


def test_the_host_reads_a_changed_file_again(pack, host, schedule):
    changed = pack.module.NODE_CLASS_MAPPINGS["LmsdLoadSchedule"].IS_CHANGED
    path = folder(host) / "a.json"
    schedule.save(path)
    before = changed("a.json"), changed("a.json", model=None)
    lmsd.solve("euler", nfe=4).save(path)
    after = changed("a.json")
    assert before[0] == before[1] != after
    schedule.save(path)
    assert changed("a.json") == before[0]
    path.unlink()
    assert changed("a.json") != changed("a.json")  # NaN: the host tries again, which says what is wrong


@pytest.mark.parametrize("name", ["../outside.json", "a/../../outside.json", "/outside.json", ".."])
def test_no_path_leads_out_of_the_folder(pack, host, schedule, name):
    schedule.save(host.models / "outside.json")
    load = pack.module.NODE_CLASS_MAPPINGS["LmsdLoadSchedule"]
    with pytest.raises(ValueError, match="there is no schedule file"):
        load().load(name)
    assert load.IS_CHANGED(name) != load.IS_CHANGED(name)


def with_file(**changes):
    return json.dumps(lmsd.solve("euler", nfe=3).to_dict() | changes).encode()


HOSTILE = {
    "empty": b"",
    "not json": b"\x80\x04\x95 pickle",
    "not utf-8": b'{"name": "\xff\xfe"}',
    "not an object": b"[1, 2, 3]",
    "deep": b"[" * 500_000,
    "large": b" " * (2 << 20),
    "of another kind": b'{"prompt": {"1": {"class_type": "KSampler"}}}',
    "an unknown field": with_file(code="import os"),
    "too few nodes": with_file(nodes=[]),
    "nodes of text": with_file(nodes="three"),
    "not finite": with_file(sigma_start=1e400).replace(b"Infinity", b"1e400"),
    "below zero": with_file(sigma_start=-1.0),
    "another version": with_file(version=999),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_bad_file_is_refused_with_a_sentence(pack, host, content):
    (folder(host) / "bad.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.json: .+") as raised:
        pack.run("LmsdLoadSchedule", schedule="bad.json")
    assert len(str(raised.value)) < 500 and "\n" not in str(raised.value)


SOLVERS = [solver["name"] for solver in lmsd.solvers()]
GRIDS = {
    "edm": {
        "auto": {"kind": "karras", "rho": 6.0},
        "karras": {"kind": "karras", "rho": 6.0},
        "log": {"kind": "log"},
        "linear": {"kind": "linear"},
    },
    "flow": {
        "auto": {"kind": "flow", "shift": 3.0},
        "flow": {"kind": "flow", "shift": 3.0},
        "linear": {"kind": "linear"},
    },
}


@pytest.mark.parametrize("kind", ["edm", "flow"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_solver_node_is_lmsd_solve(pack, host, kind, solver):
    """On every grid, on the model's own levels. Flow grids take the model's shift, or the one given."""
    model = Model(kind)
    levels = model.model.model_sampling
    for final in (True, False):
        for grid, described in GRIDS[kind].items():
            (got,) = pack.run(
                "LmsdSolver",
                model=model,
                solver=solver,
                steps=7,
                grid=grid,
                rho=6.0,
                lower_order_final=final,
            )
            assert got == lmsd.solve(
                solver,
                nfe=7,
                grid=described,
                process="flow" if kind == "flow" else "ve",
                sigma_min=float(levels.sigma_min),
                sigma_max=float(levels.sigma_max),
                sigma_end=0.0,
                lower_order_final=final,
            )
    _, sigmas = pack.run("LmsdSampler", schedule=got, model=model)
    assert len(sigmas) == 8


def test_the_solver_node_offers_all_and_says_what_is_wrong(pack, host):
    assert pack.inputs("LmsdSolver")["solver"][0] == SOLVERS
    tip = pack.inputs("LmsdSolver")["solver"][1]["tooltip"]
    assert all(solver["about"] in tip for solver in lmsd.solvers())
    (shifted,) = pack.run("LmsdSolver", model=Model("flow"), shift=5.0)
    assert shifted.sigmas[4] == pytest.approx(5 * 0.5 / (1 + 4 * 0.5))
    with pytest.raises(lmsd.Error, match="nfe cannot be 6"):
        pack.run("LmsdSolver", model=Model("edm"), solver="heun", steps=6)
    with pytest.raises(lmsd.Error, match="flow"):
        pack.run("LmsdSolver", model=Model("edm"), grid="flow")
