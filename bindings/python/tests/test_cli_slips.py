"""Slips on the command line: one sentence on stderr and an exit code, no traceback."""

import argparse
import json
import sys

import lmsd
import pytest
from lmsd.cli import library_options, values
from lmsd.cli.arguments import parser
from program import HERE, start

MIXTURE = ["--problem", HERE / "mixture.py"]


@pytest.fixture
def said(lmsd_):
    """The one sentence in which a command is refused, without the usage that argparse prints before."""

    def sentence(*arguments, code=1):
        lines = lmsd_(*arguments, code=code).strip().splitlines()
        if code == 1:
            assert len(lines) == 1 and lines[0].startswith("lmsd: "), lines
        return lines[-1]

    return sentence


def problem_file(folder, text):
    path = folder / f"problem{abs(hash(text))}.py"
    path.write_text(text)
    return ["--problem", path, "--out", folder / "out"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "defines no function problem()"),
        ("problem = 3", "defines no function problem()"),
        (
            "def problem(): return object()",
            "returned an object of type object, which has no like, begin, model",
        ),
        (
            "def problem(): return {'like': 1}",
            "returned an object of type dict, which has no like, begin, model; an object with attributes is "
            "needed: types.SimpleNamespace(**it)",
        ),
        ("def problem(): pass", "returned None, which has no like, begin, model"),
        (
            "class P: like, begin, model = [1], 1, 1\nproblem = P",
            "is a list; a numpy array or a torch tensor",
        ),
        ("def problem()\n    pass", "line 1: expected ':'"),
        ("x = 1\n  y = 2", "line 2: unexpected indent"),
        ("x = '\0'", "source code string cannot contain null bytes"),
    ],
)
def test_what_a_problem_file_lacks(text, sentence, tmp_path, said):
    assert sentence in said("distill", *problem_file(tmp_path, text))


def test_what_is_not_there(tmp_path, said):
    out = ["--out", tmp_path / "out"]
    assert "there is no problem file" in said("distill", "--problem", tmp_path / "none.py", *out)
    assert "there is no module no_such_module" in said("distill", "--problem", "no_such_module", *out)
    assert "there is no module json.none" in said("distill", "--problem", "json.none", *out)
    assert "is no module" in said("distill", "--problem", "", *out)
    assert "json defines no function problem()" in said("distill", "--problem", "json", *out)
    for command in ("show", "validate"):
        assert f"there are no schedules nfe*.json in the folder {tmp_path}" in said(command, tmp_path)
    assert "No such file" in said("show", tmp_path / "none.json")
    assert "no folder" in said("compare", *MIXTURE, "--nfe", 3, "--png", tmp_path / "none" / "x.png")
    assert "No such file" in said("distill", *MIXTURE, *out, "--starts", tmp_path / "none.json")
    assert "none" in said("solve", "--out", tmp_path / "none" / "x.json")
    assert "no solver" in said("compare", *MIXTURE, "--nfe", 3, "--solvers", "none")
    assert "give schedule files, or --nfe" in said("compare", *MIXTURE)


def test_what_cannot_be_read_or_written(tmp_path, said):
    (tmp_path / "nfe03.json").write_text("{")
    assert "nfe03.json" in said("show", tmp_path)
    (tmp_path / "file").write_text("")
    assert "cannot be written: " in said("distill", *MIXTURE, "--out", tmp_path / "file")
    assert "cannot be written: " in said("distill", *MIXTURE, "--out", tmp_path / "file" / "more")
    lmsd.solve().save(tmp_path / "a.json")
    assert "must end in .png" in said("show", tmp_path / "a.json", "--png", tmp_path / "x.foo")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--nfe", "8-3"], "'8-3' is no number of model calls; one is needed, such as 5, or"),
        (["--nfe", "0"], "'0' is no number of model calls"),
        (["--nfe", "-3"], "--nfe: "),
        (["--nfe", "3-"], "'3-' is no number of model calls"),
        (["--set", "size"], "'size' is not of the form KEY=VALUE"),
        (["--set", "a b=1"], "'a b=1' is not of the form KEY=VALUE"),
        (["--teacher-grid", "{"], "'{' is not JSON"),
        (["--teacher-grid", "[1]"], "'[1]' is no JSON object"),
        (["--made-for", "3"], "'3' is no JSON object"),
        (["--process", "vp"], "invalid choice: 'vp'"),
        (["--iterations", "x"], "invalid int value: 'x'"),
        (["--shape", "4,,3"], "'4,,3' is no shape"),
        (["--memory", "8 parsec"], "'8 parsec' is no size of memory"),
        (["--device", "tpu"], "'tpu' is no device"),
        (["--batch", "0"], "'0' is no whole number of 1 or more"),
        (["--held", "3"], "unrecognized arguments: --held 3"),
        (["--onnx", "x.onnx"], "not allowed with argument"),
    ],
)
def test_values_that_are_none(arguments, sentence, said):
    assert sentence in said("distill", *MIXTURE, "--out", "out", *arguments, code=2)


def test_values_that_the_library_refuses(tmp_path, said):
    common = ["distill", *MIXTURE, "--out", tmp_path / "out"]
    own = problem_file(tmp_path, "def problem(size=8): pass")
    refused = said("distill", *own, "--set", "colour=3")
    assert "does not take these options: got an unexpected keyword argument 'colour'" in refused
    assert "iterations is 0; it must be 1 to 10000" in said(*common, "--iterations", 0)
    assert "sigma_min" in said(*common, "--sigma-min", -1)
    assert "--checkpoint is an empty path" in said(*common, "--checkpoint", "")
    assert "nfe" in said(*common, "--nfe", 100)
    assert "there is no solver" in said(*common, "--teacher", "none")
    assert "--shape is for --torchscript and --onnx" in said(*common, "--shape", "4,4")
    assert "--batch is for --torchscript and --onnx" in said(*common, "--batch", 4)
    assert "required" in said("distill", "--out", tmp_path / "out", code=2)


def test_pictures_without_matplotlib(tmp_path, said, monkeypatch):
    """Said before the work, not after it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    lmsd.solve().save(tmp_path / "a.json")
    png = ["--png", tmp_path / "x.png"]
    for command in (["show", tmp_path / "a.json"], ["compare", *MIXTURE, "--nfe", 3]):
        assert said(*command, *png) == "lmsd: --png needs matplotlib: pip install matplotlib"


@pytest.mark.parametrize(
    "text",
    [
        "raise KeyError('own')",
        "import json\ndef problem(): raise KeyError('own')",
        "import numpy\nclass P:\n    like = numpy.zeros((2, 2))\n"
        "    def begin(self, b): return 80 * numpy.random.default_rng(b).normal(size=(2, 2))\n"
        "    def model(self, x, sigma): raise KeyError('own')\nproblem = P",
    ],
)
def test_what_the_user_s_own_code_raises_is_shown_whole(text, tmp_path, lmsd_):
    """It passes through `main`, and Python prints its traceback."""
    with pytest.raises(KeyError, match="own"):
        lmsd_("distill", *problem_file(tmp_path, text), "--quiet")


def test_a_module_that_a_problem_asks_for_in_vain_is_its_own_affair(tmp_path, lmsd_):
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        lmsd_("distill", *problem_file(tmp_path, "import no_such_module"))


def test_a_reader_may_go_away(tmp_path):
    lmsd.solve(nfe=50).save(tmp_path / "a.json")
    process = start("show", *[tmp_path / "a.json"] * 40)
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(60) == 141 and process.stderr.read() == ""


def one_line(text):
    return " ".join(text.split())


@pytest.mark.parametrize("command", ["solve", "distill", "compare"])
def test_help_shows_every_option_of_the_library_with_its_default(command, lmsd_, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100000")
    text = one_line(lmsd_(command, "--help"))
    for option in lmsd.options()[command]:
        name = option["name"]
        if name in ("solver", "nfe_from"):  # a word of its own; --nfe 3-8
            continue
        assert f"--{name.replace('_', '-')}" in text, name
        assert one_line(option["about"]) in text, name
        assert option["range"] in text and option["unit"] in text, name
    for option in lmsd.options()["distill"]:
        if command == "distill" and option["name"] not in ("nfe_from", "checkpoint", "made_for", "seeds"):
            assert one_line(library_options.help_text(option)) in text, option["name"]


def test_no_default_is_the_command_line_s_own():
    args = parser().parse_args(["distill", "--problem", "x.py", "--out", "out"])
    assert library_options.given(args, "distill") == {}
    assert library_options.given(parser().parse_args(["solve"]), "solve") == {}


def test_every_option_reaches_the_library(tmp_path):
    lmsd.solve().save(tmp_path / "a.json")
    samples = {
        "integer": (["7"], 7),
        "number": (["0.5"], 0.5),
        "path": (["x"], "x"),
        "object": (['{"model": "m"}'], {"model": "m"}),
        "grid": (['{"kind": "karras", "rho": 5}'], {"kind": "karras", "rho": 5}),
        "schedules": ([str(tmp_path / "a.json")], [lmsd.solve()]),
    }
    command, wanted = ["distill", "--problem", "x.py", "--out", "out", "--nfe", "3-4"], {"nfe": (3, 4)}
    for option in lmsd.options()["distill"]:
        name, flag = option["name"], option["name"].replace("_", "-")
        if name in ("nfe", "nfe_from"):
            continue
        if option["type"] == "boolean":
            command.append(f"--no-{flag}")
            wanted[name] = False
        else:
            word = option["values"][-1] if "values" in option else "word"
            texts, wanted[name] = samples.get(option["type"], ([word], word))
            command += [f"--{flag}", *texts]
    assert library_options.given(parser().parse_args(command), "distill") == wanted


def test_a_grid_may_be_a_word():
    assert values.grid("log") == {"kind": "log"}
    grid = {"kind": "flow", "shift": 3}
    assert values.grid(json.dumps(grid)) == grid
    assert values.memory("1.5GiB") == 3 << 29 and values.memory("500M") == 500 << 20
    assert values.device("cuda:1") == ("cuda", 1) and values.device("directml") == ("directml", None)
    for wrong in ("cpu:1", "cuda:", "cuda:x"):
        with pytest.raises(argparse.ArgumentTypeError):
            values.device(wrong)
