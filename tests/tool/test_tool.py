"""The program `lmsd` (LMSD_TOOL) on TorchScript models, as a process. Python makes the models and is what its
figures are compared with.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lmsd
import numpy as np
import pytest
import torch

DIGITS = Path(__file__).resolve().parents[2] / "examples/digits"
sys.path.insert(0, str(DIGITS))

import torchscript  # noqa: E402
from model import Digits  # noqa: E402

TOOL = os.environ.get("LMSD_TOOL", "")
LIBRARIES = os.environ.get("LMSD_TOOL_LIBTORCH", str(Path(torch.__file__).parent / "lib"))
ENVIRONMENT = {**os.environ, "LD_LIBRARY_PATH": LIBRARIES, "OMP_NUM_THREADS": "1"}
SIGMAS = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_end": 0.002}
pytestmark = pytest.mark.skipif(not TOOL, reason="LMSD_TOOL does not say where the program is")


def start(*arguments):
    command = [TOOL, *map(str, arguments)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(*arguments, code=0):
    process = start(*arguments)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    return out + err


def options(model, shape, **sigmas):
    found = ["--model", model, "--shape", ",".join(map(str, shape))]
    for name, value in (sigmas or SIGMAS).items():
        found += ["--" + name.replace("_", "-"), value]
    return found


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "digits.pt"
    torchscript.export(path)
    return [*options(path, (1, 8, 8)), "--classes", 10, "--guidance", 3]


def scripted(tmp_path, body, arguments="x, sigma"):
    """A model of its own, whose forward is `body`."""
    name = f"Model{abs(hash(body))}"
    file = tmp_path / f"{name.lower()}.py"
    head = "import torch\nfrom torch import Tensor\n\n\n"
    signature = ", ".join(f"{a}: Tensor" for a in arguments.split(", "))
    lines = "\n".join("        " + line for line in body.splitlines())
    file.write_text(
        f"{head}class {name}(torch.nn.Module):\n    def forward(self, {signature}) -> Tensor:\n{lines}\n"
    )
    sys.path.insert(0, str(tmp_path))
    module = __import__(file.stem)
    sys.path.pop(0)
    path = tmp_path / f"{name.lower()}.pt"
    torch.jit.script(getattr(module, name)()).save(str(path))
    return path


GAUSSIAN = (
    "s = sigma.to(x.dtype).view(-1, 1, 1)\nreturn x * 0.25 / (0.25 + s * s) + 0.1 * torch.tanh(x) / (1 + s)"
)


class Noise:
    """The trajectories that the program draws, for the digits network in numpy at guidance 3."""

    def __init__(self, size=8, seed=0):
        self.size, self.seed, self.network = size, seed, Digits()
        self.like = np.empty((size, 1, 8, 8), np.float32)

    def begin(self, batch):
        first = next(base for base in (1 << 21, 1 << 20, 0) if batch >= base)
        first += (batch - first) * self.size
        noise, labels = [], []
        for number in range(first, first + self.size):
            generator = torch.Generator().manual_seed((self.seed << 32) + number)
            noise.append(torch.randn(1, 8, 8, generator=generator))
            labels.append(torch.randint(10, (), generator=generator))
        self.labels = torch.stack(labels).numpy()
        return 80 * torch.stack(noise).numpy()

    def model(self, x, sigma):
        return self.network.denoise(x, sigma, self.labels, 3.0)


def test_the_digits_network_gives_the_core_s_figures(digits, tmp_path):
    # few steps: last bits of the model grow with each one
    few = {"nfe": (4, 5), "trajectories": 16}
    said = run("distill", *digits, "--nfe", "4-5", "--trajectories", 16, "--out", tmp_path, "--quiet")
    noise = Noise()
    own = lmsd.distill(noise.model, noise.begin, noise.like, **few, progress=False, **SIGMAS)
    for nfe, want in own.schedules.items():
        got = lmsd.Schedule.load(tmp_path / f"nfe{nfe:02}.json")
        best, its_best = want.made_by["handcrafted"][0], got.made_by["handcrafted"][0]
        assert (best["solver"], best["grid"]) == (its_best["solver"], its_best["grid"])
        assert its_best["distance"] == pytest.approx(best["distance"], rel=1e-4)
        print(f"{nfe} NFE: tool {got.made_by['distance']:.6f}, core {want.made_by['distance']:.6f}")
        assert got.made_by["distance"] == pytest.approx(want.made_by["distance"], rel=0.01)
        assert got.made_by["improved"] and f"{got.made_by['distance']:.5f}" in said
        assert got.made_for["guidance_scale"] == 3 and got.made_for["model_hash"].startswith("sha256:")
    schedules = list(own.schedules.values())
    for schedule in schedules:
        schedule.save(tmp_path / f"python{schedule.nfe}.json")
    files = [tmp_path / f"python{schedule.nfe}.json" for schedule in schedules]
    table = run("compare", *files, *digits, "--quiet")
    wanted = lmsd.compare(schedules, noise.model, noise.begin, noise.like, **SIGMAS)
    for file, distance in zip(files, wanted, strict=True):
        (line,) = [line for line in table.splitlines() if str(file) in line]
        assert float(line.split()[-1]) == pytest.approx(distance, rel=1e-3)


def nodes(path):
    return json.loads(path.read_text())["nodes"]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_resumes_to_the_same_result(digits, tmp_path, end):
    common = ["distill", *digits, "--nfe", 4, "--quiet"]
    run(*common, "--out", tmp_path / "whole")
    out, checkpoint = tmp_path / "parts.json", tmp_path / "parts-checkpoint.jsonl"
    process = start(*common, "--out", out)
    while not (checkpoint.exists() and checkpoint.read_text().count('"trial"') > 9):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(end)
    said = "".join(process.communicate(timeout=60))
    if end == signal.SIGINT:
        assert process.returncode == 130 and "the same command goes on from" in said
        assert lmsd.Schedule.load(out).made_by["distance"] > 0  # the best so far
    else:
        assert not out.exists()
    assert checkpoint.exists() and "going on from" in run(*common, "--out", out)
    assert nodes(out) == nodes(tmp_path / "whole/nfe04.json")
    assert not checkpoint.exists()


def test_out_of_memory_halves_the_calls_and_changes_nothing(tmp_path):
    small = scripted(
        tmp_path, 'if x.size(0) > 10:\n    raise RuntimeError("CUDA out of memory. Tried")\n' + GAUSSIAN
    )
    whole = scripted(tmp_path, GAUSSIAN)
    common = ["--nfe", 3, "--sigma-min", 0.01, "--sigma-max", 20, "--shape", "3,5", "--quiet", "--batch", 64]
    said = run("distill", "--model", small, *common, "--out", tmp_path / "small.json")
    assert "with 64 trajectories in a call of the model; going on with 32" in said
    assert said.count("going on with") == 3 and "going on with 8" in said
    run("distill", "--model", whole, *common, "--out", tmp_path / "whole.json")
    assert nodes(tmp_path / "small.json") == nodes(tmp_path / "whole.json")

    never = scripted(tmp_path, 'raise RuntimeError("CUDA out of memory. Tried")\nreturn x')
    said = run("distill", "--model", never, *common, "--out", tmp_path / "never.json", code=1)
    assert "going on with 1\n" in said and "out of memory" in said.splitlines()[-1]


def test_a_memory_budget_sets_the_size_of_a_call(tmp_path):
    hungry = scripted(
        tmp_path, "much = torch.ones(x.size(0), 5000000)\nreturn x * much.mean() / (1 + sigma[0])"
    )
    common = [
        "distill",
        "--model",
        hungry,
        "--sigma-min",
        0.1,
        "--sigma-max",
        9,
        "--shape",
        4,
        "--max-seconds",
        1,
        "--batch",
        64,
    ]
    said = run(*common, "--memory", "1GiB", "--out", tmp_path, "--quiet", code=1)  # 20 MB a trajectory
    (line,) = [line for line in said.splitlines() if "fit into 1.00 GiB" in line]
    assert 4 <= int(line.split()[0]) <= 32
    said = run(*common, "--memory", "20MiB", "--out", tmp_path, "--quiet", code=1)
    assert "one trajectory takes this process to" in said


def test_half_precision_models_keep_float32_states(digits, tmp_path):
    run("distill", *digits, "--nfe", 4, "--dtype", "bfloat16", "--out", tmp_path, "--quiet")
    made = lmsd.Schedule.load(tmp_path / "nfe04.json").made_by
    assert made["improved"] and made["distance"] < made["handcrafted"][0]["distance"] / 1.5


def test_samples_are_those_of_the_library(digits, tmp_path):
    schedule = lmsd.solve("dpmpp_3m", nfe=6, **SIGMAS)
    schedule.save(tmp_path / "s.json")
    model = [*digits[:2], *digits[-4:]]
    common = ["sample", *model, "--schedule", tmp_path / "s.json", "--shape", "1,8,8", "--quiet"]
    run(*common, "--count", 64, "--batch", 20, "--out", tmp_path / "x.npy")
    noise = Noise(64)
    want = lmsd.sample(schedule, noise.begin(0), noise.model)
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), want, atol=2e-4)

    run(*common, "--count", 10, "--class", 3, "--out", tmp_path / "x.png")
    from PIL import Image

    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size == (32, 24) and picture.mode == "L" and np.asarray(picture).std() > 30
    assert "must end in .npy or .png" in run(*common, "--out", tmp_path / "x.jpg", code=1)
    assert "--class must be 0 to --classes" in run(
        *common, "--class", 11, "--out", tmp_path / "x.npy", code=1
    )


def test_refusals_say_what_is_wrong(digits, tmp_path):
    counted = itertools.count()
    gaussian = options(scripted(tmp_path, GAUSSIAN), (3, 5))

    def refused(*arguments, code=1):
        out = tmp_path / str(next(counted))  # a run that fails leaves its checkpoint
        return run("distill", *arguments, "--out", out, "--quiet", code=code).strip().splitlines()[-1]

    assert "there is no model file" in refused(*options(tmp_path / "none.pt", (3, 5)))
    (tmp_path / "text.pt").write_text("no model")
    assert "cannot be loaded as a TorchScript model" in refused(*options(tmp_path / "text.pt", (3, 5)))
    assert "needs a model that takes a class" in refused(*gaussian, "--guidance", 2)
    assert "the model at sigma 80: libtorch: Expected at most" in refused(*gaussian, "--classes", 3)
    wrong = scripted(tmp_path, "return x[:, :1]")
    assert "returned shape [8, 1, 5]; it must be that of x, [8, 3, 5]" in refused(*options(wrong, (3, 5)))
    thrown = scripted(tmp_path, "return x @ torch.ones(7, 7)")
    said = refused(*options(thrown, (3, 5)))
    assert "mat1 and mat2 shapes" in said or "size of tensor" in said
    assert "not finite" in refused(*options(scripted(tmp_path, "return x / 0"), (3, 5)))
    assert "CUDA device 7 is asked for" in refused(*gaussian, "--device", "cuda:7")
    assert "cpu, cuda or cuda:N" in run("distill", *gaussian, "--out", tmp_path, "--device", "gpu", code=2)
    other = lmsd.solve("euler", nfe=4, **SIGMAS).to_dict()
    other["made_for"] = {"guidance_scale": 7.5, "latent_shape": [1, 8, 8]}
    lmsd.Schedule.from_json(other).save(tmp_path / "other.json")
    model = [*digits[:2], *digits[-4:]]
    said = run("sample", *model, "--schedule", tmp_path / "other.json", "--out", tmp_path / "x.npy", code=1)
    assert "guidance" in said and "7.5" in said
    assert "4-8" in run("distill", "--help") and "forward(x, sigma" in run("--help")
