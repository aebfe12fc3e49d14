"""The command line, as a subprocess."""

import argparse
import json
import resource
import signal
import time

import lmsd
import numpy as np
import pytest
from lmsd import gain
from lmsd.cli import distill, values
from program import HERE, run, start

PROBLEM = str(HERE / "mixture.py")
MEASURED = ["--problem", PROBLEM, "--teacher-nfe", "40", "--held-out", "32"]
SMALL = [*MEASURED, "--trajectories", "32", "--quiet"]


def test_help_explains_every_command():
    assert all(name in run("--help") for name in ("solve", "distill", "show", "compare", "validate"))
    text = run("distill", "--help")
    assert "begin(batch)" in text and "--checkpoint" in text
    assert run("--version").strip() == f"lmsd {lmsd.__version__}"
    assert "required" in run("distill", code=2)


def test_solve_show_validate(tmp_path):
    file = tmp_path / "a.json"
    run("solve", "dpmpp_3m", "--nfe", 6, "--rho", 5, "--sigma-end", 0.002, "--out", file)
    expected = lmsd.solve("dpmpp_3m", nfe=6, grid={"kind": "karras", "rho": 5}, sigma_end=0.002)
    assert lmsd.Schedule.load(file) == expected
    assert lmsd.Schedule.from_json(
        run("solve", "euler", "--sigmas", 4, 2, 0, "--nfe", 2)
    ).sigmas.tolist() == [4, 2, 0]
    assert "unipc_bh2_3" in run("solve", "--list")
    assert "no solver" in run("solve", "none", code=1)

    text = run("show", file, "--png", tmp_path / "a.png")
    assert "dpmpp_3m" in text and "weights" in text and f"{expected.sigmas[3]:.5g}" in text
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")

    assert run("validate", file).startswith("OK")
    bad = tmp_path / "bad.json"
    bad.write_text(file.read_text().replace('"nfe": 6', '"nfe": 7'))
    text = run("validate", bad, file, tmp_path / "none.json", code=1)
    assert f"REFUSED  {bad}: nfe is 7" in text and f"OK       {file}" in text and "none.json" in text


def bad_files(folder):
    good = lmsd.solve(nfe=5).to_dict()
    node = good["nodes"][0]
    texts = {
        "empty": "",
        "deep": "[" * 900_000,
        "deep_node": json.dumps(good).replace('"weights": [', '"weights": ' + "[" * 400_000, 1),
        "long_number": json.dumps(good).replace("80.0", "8" + "0" * 900_000, 1),
        "huge": "{" + " " * (1 << 21),
        "many_nodes": json.dumps(good | {"nfe": 20_000, "nodes": [node] * 20_000})[: 1 << 20],
        "nan": json.dumps(good).replace("80.0", "NaN"),
        "infinite": json.dumps(good).replace("80.0", "1e999"),
        "twice": json.dumps(good)[:-1] + ', "nfe": 5}',
        "negative": json.dumps(good | {"sigma_start": -1.0}),
        "binary": bytes(range(256)) * 1000,
    }
    for name, text in texts.items():
        path = folder / f"{name}.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        yield path


def test_bad_files_are_refused_at_once_and_in_little_memory(tmp_path):
    """A few milliseconds of work for each; what is not linear in a file's length takes minutes."""
    files = list(bad_files(tmp_path))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for file in files:
        begun = time.thread_time()
        with pytest.raises(lmsd.Error):
            lmsd.Schedule.load(file)
        assert time.thread_time() - begun < 1, file.name
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
    text = run("validate", *files, code=1)
    assert text.count("REFUSED") == len(files) == len(text.strip().splitlines())


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3.0), ("1.5,3", [1.5, 3.0]), ("2-8", [2.0, 8.0, 4.0, 2.828, 5.657])],
)
def test_guidance_is_a_scale_or_several(text, value):
    assert values.guidance(text) == value


@pytest.mark.parametrize("text", ["", "a", "7-2", "3-", "1,,2", "nan"])
def test_other_guidance_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="2-7"):
        values.guidance(text)


def test_distill_show_and_compare(tmp_path):
    out = tmp_path / "out"
    text = run("distill", *SMALL, "--nfe", "3-4", "--guidance", 2, "--set", "size=16", "--out", out)
    assert "nfe04.json" in text and "gain" not in run("show", out)
    assert sorted(path.name for path in out.iterdir()) == ["nfe03.json", "nfe04.json", "report.json"]
    schedule = lmsd.Schedule.load(out / "nfe04.json")
    assert schedule.made_for["guidance_scale"] == 2 and schedule.made_by["improved"]
    assert schedule.made_by["seeds"] == "mixture.py guidance=2.0 size=16"
    assert run("validate", out).count("OK") == 2

    problem = [*MEASURED, "--solvers", "heun,dpmpp_2m", "--png", tmp_path / "d.png"]
    lines = [line.split("  ") for line in run("compare", *problem, out, "--nfe", "3-5").splitlines()]
    rows = {line[0]: [cell for cell in line[1:] if cell] for line in lines}
    assert list(rows)[:2] == ["mean distance to the teacher; field: published", str(out)]
    assert len(rows["dpmpp_2m, karras"]) == 3 > len(rows["heun, karras"]) > 0
    assert float(rows[str(out)][1]) < float(rows["dpmpp_2m, karras"][1])
    best = [float(distance) for distance in rows["best as published"]]
    assert len(best) == 3 and best[1] <= float(rows["dpmpp_2m, karras"][1])
    assert (tmp_path / "d.png").exists()


@pytest.mark.parametrize("field", ["none", "published", "strongest"])
def test_a_field_is_compared_by_its_best(field):
    """Everything on the first batch of eight, a few on all four; the table says which field it is."""
    options = [*MEASURED, "--solvers", "euler", "--nfe", "3-4", "--field", field, "--set", "size=8"]
    head, *lines = run("compare", *options).splitlines()
    assert head.split("  ")[0] == "mean distance to the teacher" + f"; field: {field}" * (field != "none")
    labels = [] if field == "none" else [gain.NAMES[name] for name in gain.fields(field)]
    table, which = lines[: 2 + len(labels)], lines[2 + len(labels) :]
    assert [line.split("  ")[0] for line in table] == ["euler, karras", "euler, log", *labels]
    ends = [float(line.split()[-1]) for line in table[1:]]
    assert ends == sorted(ends, reverse=True)  # one log grid, all as published, all
    assert [line.split(": ")[0] for line in which] == [
        f"{label}, {n} NFE" for label in labels for n in (3, 4)
    ]
    if field == "strongest":
        assert which[-1].endswith(f" (of {len(lmsd.rivals(4, sigma_end=0.002))})")


def test_the_digits_are_a_problem():
    pytest.importorskip("safetensors")
    digits = HERE.parents[2] / "examples" / "digits" / "problem.py"
    short = ["--nfe", "3-4", "--solvers", "dpmpp_2m", "--held-out", 8, "--teacher-nfe", 20, "--set", "size=8"]
    short += ["--field", "none"]
    plain = run("compare", "--problem", digits, "--guidance", 3, *short)
    for option in ("snapped", "half", "seed"):
        other = run("compare", "--problem", digits, "--guidance", 3, *short, "--set", f"{option}=true")
        assert other != plain
        for a, b in zip(plain.splitlines()[1:], other.splitlines()[1:], strict=True):
            assert a.split()[:2] == b.split()[:2]
            if option != "seed":
                assert [float(v) for v in a.split()[2:]] == pytest.approx(
                    [float(v) for v in b.split()[2:]], rel=0.05
                )


def test_what_is_wrong_with_a_problem_is_said(tmp_path):
    (tmp_path / "empty_problem.py").write_text("")
    (tmp_path / "poor_problem.py").write_text("def problem(): return object()")
    out = ["--out", tmp_path / "out"]
    assert "no problem file" in run("distill", "--problem", tmp_path / "none.py", *out, code=1)
    assert "no function problem()" in run("distill", "--problem", tmp_path / "empty_problem.py", *out, code=1)
    assert "has no like, begin, model" in run(
        "distill", "--problem", tmp_path / "poor_problem.py", *out, code=1
    )
    assert "unexpected keyword" in run("distill", *SMALL, "--set", "colour=3", *out, code=1)


FAMILY = [*SMALL, "--set", "seeds=1", "--nfe", "3-4"]


def signalled(number, at, out):
    """The process of a distillation that sends itself a signal at a model call."""
    process = start("distill", *FAMILY, "--set", f"signal={number}", "--set", f"signal_at={at}", "--out", out)
    text = "".join(process.communicate(timeout=300))
    return process.returncode, text


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    run("distill", *FAMILY, "--out", out)
    return {nfe: lmsd.Schedule.load(out / f"nfe{nfe:02d}.json") for nfe in (3, 4)}


def assert_same(folder, undisturbed):
    for nfe, expected in undisturbed.items():
        found = lmsd.Schedule.load(folder / f"nfe{nfe:02d}.json")
        np.testing.assert_allclose(found.sigmas, expected.sigmas, rtol=1e-12)
        np.testing.assert_allclose(found.scales, expected.scales, rtol=1e-12)
        for a, b in zip(found.weights, expected.weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_ctrl_c_saves_the_best_so_far_and_the_command_goes_on(share, tmp_path, undisturbed):
    made = undisturbed[4].made_by
    code, text = signalled(
        signal.SIGINT, int(share * (made["model_calls"] + made["teacher_calls"])), tmp_path
    )
    assert code == 130 and "stopped; the same command goes on" in text
    saved = [lmsd.Schedule.load(path) for path in sorted(tmp_path.glob("nfe*.json"))]
    assert saved and saved[0].nfe == 3
    assert saved[0].made_by["distance"] <= saved[0].made_by["handcrafted"][0]["distance"]
    assert json.loads((tmp_path / "report.json").read_text())["stopped"] == "cancelled"
    assert "going on from" in run("distill", *FAMILY, "--out", tmp_path)
    assert not (tmp_path / "checkpoint.jsonl").exists()
    assert_same(tmp_path, undisturbed)


def test_ctrl_c_before_the_first_result(tmp_path):
    code, text = signalled(signal.SIGINT, 20, tmp_path)
    assert code == 130 and "before the first result" in text


def test_the_second_ctrl_c_kills(tmp_path):
    """Both in the middle of one call of the model."""
    process = start("distill", *SMALL, "--set", "delay=600", "--set", "tells=true", "--out", tmp_path)
    try:
        assert process.stdout.readline() == "call 1\n"
        process.send_signal(signal.SIGINT)
        assert any("Ctrl-C again ends it at once" in line for line in process.stderr)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGINT and out == ""
    finally:
        process.kill()


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.95])
def test_a_run_that_was_killed_resumes_to_the_same_schedules(share, tmp_path, undisturbed):
    made = undisturbed[4].made_by
    calls = made["model_calls"] + made["teacher_calls"]
    code, _ = signalled(signal.SIGKILL, int(share * calls), tmp_path)
    assert code == -signal.SIGKILL and not list(tmp_path.glob("nfe*.json"))
    # killed again, if it needed more than the teacher's end points, what was missing, and one measurement
    most = made["teacher_calls"] + int((1.1 - share) * calls)
    again = ["--set", "signal=9", "--set", f"signal_at={most}"]
    assert "going on from" in run("distill", *FAMILY, *again, "--out", tmp_path)
    assert_same(tmp_path, undisturbed)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    signalled(signal.SIGKILL, 300, tmp_path)
    for other in (["--guidance", 3], ["--set", "seeds=2"], ["--iterations", 3]):
        text = run("distill", *FAMILY, *other, "--out", tmp_path, code=1)
        assert "checkpoint" in text and "Traceback" not in text


@pytest.mark.parametrize("share", [0.35, 0.7])
def test_with_a_higher_limit_the_command_goes_on(share, tmp_path, undisturbed):
    """What a limit ends, and what is planned within one, keeps its checkpoint; without one it goes on."""
    made = undisturbed[4].made_by
    calls = made["model_calls"] + made["teacher_calls"]
    text = run("distill", *FAMILY, "--max-calls", int(share * calls), "--out", tmp_path)
    assert "goes on from" in text and (tmp_path / "checkpoint.jsonl").exists()
    assert lmsd.Schedule.load(tmp_path / "nfe04.json") != undisturbed[4]
    text = run("distill", *FAMILY, "--set", "signal=9", "--set", f"signal_at={calls}", "--out", tmp_path)
    assert "going on from" in text and not (tmp_path / "checkpoint.jsonl").exists()
    assert_same(tmp_path, undisturbed)


def test_a_limit_before_the_first_result(tmp_path):
    text = run("distill", *SMALL, "--max-calls", 20, "--out", tmp_path, code=1)
    assert "limit was reached before the first result; the same command with a higher limit goes on" in text


def test_the_plan_is_one_line():
    told = {"calls_expected": 2000, "batch": 4, "seconds_left": 90.0, "gain_expected": 1.8}
    line = distill.plan_line(told)
    assert line.startswith(
        "plan: 2000 calls, 8000 image-calls, about 1.5 minutes; about 1.8 times nearer than"
    )
    for unknown in (0.0, float("inf")):
        assert "minutes" not in distill.plan_line({**told, "seconds_left": unknown})


def test_the_plan_is_printed_once(tmp_path):
    process = start("distill", *SMALL[:-1], "--nfe", 3, "--out", tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and "plan:" not in out
    assert err.count("plan: ") == 1 and "times nearer than the best of the strongest published field" in err
    assert "plan:" not in run("distill", *SMALL, "--nfe", 3, "--out", tmp_path)
