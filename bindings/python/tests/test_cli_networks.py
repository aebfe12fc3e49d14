"""The command line on TorchScript and ONNX files."""

import itertools
import signal
import sys
import time

import lmsd
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from network_files import GAUSSIAN, digits, gaussian_onnx, scripted  # noqa: E402
from program import run, start  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
SIGMAS = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_end": 0.002}
DIGITS = ["--classes", 10, "--guidance", 3]
KINDS = ["--torchscript", "--onnx"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The digits network: flag -> file."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return digits(tmp_path_factory.mktemp("models"))


def options(shape, **sigmas):
    found = ["--shape", ",".join(map(str, shape))]
    for name, value in (sigmas or SIGMAS).items():
        found += ["--" + name.replace("_", "-"), value]
    return found


class Noise:
    """The trajectories that the program draws, for the digits network in numpy at guidance 3."""

    def __init__(self, size=8, seed=0):
        from model import Digits

        self.size, self.seed, self.network = size, seed, Digits()
        self.like = np.empty((size, 1, 8, 8), np.float32)

    def begin(self, batch):
        first = next(base for base in (1 << 21, 1 << 20, 0) if batch >= base)
        first += (batch - first) * self.size
        noise, labels = [], []
        for number in range(first, first + self.size):
            generator = np.random.default_rng([self.seed, number])
            noise.append(generator.standard_normal((1, 8, 8), np.float32))
            labels.append(generator.integers(10))
        self.labels = np.array(labels)
        return 80 * np.stack(noise)

    def model(self, x, sigma):
        return self.network.denoise(x, sigma, self.labels, 3.0)


@pytest.fixture(scope="module")
def own():
    """The digits network distilled by lmsd.distill, in numpy; few steps, as last bits of the model grow."""
    noise = Noise()
    few = {"nfe": (3, 4), "trajectories": 16}
    return noise, lmsd.distill(noise.model, noise.begin, noise.like, **few, progress=False, **SIGMAS)


@pytest.mark.parametrize("kind", KINDS)
def test_the_digits_network_gives_the_library_s_figures(kind, files, own, tmp_path, lmsd_):
    noise, distilled = own
    model = [kind, files[kind], *options((1, 8, 8)), *DIGITS]
    said = lmsd_("distill", *model, "--nfe", "3-4", "--trajectories", 16, "--out", tmp_path, "--quiet")
    for nfe, want in distilled.schedules.items():
        got = lmsd.Schedule.load(tmp_path / f"nfe{nfe:02}.json")
        best, its_best = want.made_by["handcrafted"][0], got.made_by["handcrafted"][0]
        assert (best["solver"], best["grid"]) == (its_best["solver"], its_best["grid"])
        assert its_best["distance"] == pytest.approx(best["distance"], rel=1e-4)
        print(f"{nfe} NFE: {kind} {got.made_by['distance']:.6f}, library {want.made_by['distance']:.6f}")
        assert got.made_by["distance"] == pytest.approx(want.made_by["distance"], rel=0.01)
        assert got.made_by["improved"] and f"{got.made_by['distance']:.5g}" in said
        assert got.made_for["guidance_scale"] == 3 and got.made_for["model_hash"].startswith("sha256:")
        assert got.made_for["model"] == "digits" and got.made_for["latent_shape"] == [1, 8, 8]
    schedules = list(distilled.schedules.values())
    for schedule in schedules:
        schedule.save(tmp_path / f"python{schedule.nfe}.json")
    paths = [tmp_path / f"python{schedule.nfe}.json" for schedule in schedules]
    table = lmsd_("compare", *paths, *model, "--solvers", "", "--field", "none", "--held-out", 24)
    (line,) = [line for line in table.splitlines() if line.startswith(str(tmp_path))]
    wanted = lmsd.compare(schedules, noise.model, noise.begin, noise.like, held_out=24, **SIGMAS)
    for distance, want in zip(line.split()[1:], wanted, strict=True):
        assert float(distance) == pytest.approx(want, rel=1e-3)


def test_a_range_of_guidance_scales(files, tmp_path, lmsd_):
    model = ["--onnx", files["--onnx"], "--classes", 10]
    few = ["--nfe", 3, "--trajectories", 16, "--quiet"]
    out = tmp_path / "range.json"
    lmsd_("distill", *model, *options((1, 8, 8)), "--guidance", "2-6", *few, "--out", out)
    assert lmsd.Schedule.load(out).made_for["guidance_range"] == [2, 6]
    sample = ["sample", *model, "--schedule", out, "--out", tmp_path / "x.npy", "--count", 1]
    lmsd_(*sample, "--guidance", 5)
    assert "for guidance scales 2 to 6" in lmsd_(*sample, "--guidance", 7, code=1)
    assert "from 2 to 6: say --guidance" in lmsd_(*sample, code=1)
    assert "one scale is needed" in lmsd_(*sample, "--guidance", "2-6", code=1)


def nodes(path):
    return lmsd.Schedule.load(path).to_dict()["nodes"]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_run_resumes_to_the_same_result(files, tmp_path, end, lmsd_):
    """And --out may be a file."""
    common = ["distill", "--onnx", files["--onnx"], *options((1, 8, 8)), *DIGITS, "--nfe", 4, "--quiet"]
    common += ["--trajectories", 32]
    lmsd_(*common, "--out", tmp_path / "whole")
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
    assert checkpoint.exists() and "going on from" in lmsd_(*common, "--out", out)
    assert nodes(out) == nodes(tmp_path / "whole/nfe04.json")
    assert (tmp_path / "parts-report.json").exists() and not checkpoint.exists()


SMALL = ["--nfe", 3, *options((3, 5), sigma_min=0.01, sigma_max=20), "--quiet"]


def test_out_of_memory_halves_the_calls_and_changes_nothing(tmp_path, lmsd_):
    full = 'raise RuntimeError("CUDA out of memory. Tried")\n'
    small = scripted(tmp_path, f"if x.size(0) > 10:\n    {full}{GAUSSIAN}")
    whole = scripted(tmp_path, GAUSSIAN)
    common = [*SMALL, "--batch", 64]
    said = lmsd_("distill", "--torchscript", small, *common, "--out", tmp_path / "small.json")
    assert "with 64 trajectories in a call of the model; going on with 32" in said
    assert said.count("going on with") == 3 and "going on with 8" in said
    lmsd_("distill", "--torchscript", whole, *common, "--out", tmp_path / "whole.json")
    assert nodes(tmp_path / "small.json") == nodes(tmp_path / "whole.json")

    never = scripted(tmp_path, f"{full}return x")
    said = lmsd_("distill", "--torchscript", never, *common, "--out", tmp_path / "never.json", code=1)
    assert "going on with 1\n" in said and "out of memory" in said.splitlines()[-1]


def test_out_of_memory_is_heard_from_onnxruntime_too(tmp_path, lmsd_, monkeypatch):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    path, session = gaussian_onnx(tmp_path), onnxruntime.InferenceSession

    class Full(session):
        def run(self, names, feed):
            if len(feed["x"]) > 10:
                raise Exception("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer")
            return super().run(names, feed)

    lmsd_("distill", "--onnx", path, *SMALL, "--batch", 64, "--out", tmp_path / "whole.json")
    monkeypatch.setattr(onnxruntime, "InferenceSession", Full)
    said = lmsd_("distill", "--onnx", path, *SMALL, "--batch", 64, "--out", tmp_path / "small.json")
    assert said.count("going on with") == 3 and "going on with 8" in said
    assert nodes(tmp_path / "small.json") == nodes(tmp_path / "whole.json")


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is measured on Linux")
def test_a_memory_budget_sets_the_size_of_a_call(tmp_path, lmsd_):
    """In a process of its own: what is measured is the most that a process has ever had."""
    hungry = scripted(
        tmp_path, "much = torch.ones(x.size(0), 5000000)\nreturn x * much.mean() / (1 + sigma[0])"
    )
    common = ["distill", "--torchscript", hungry, "--shape", 4, "--sigma-min", 0.1, "--sigma-max", 9]
    common += ["--max-seconds", 1, "--batch", 64, "--out", tmp_path, "--quiet"]
    said = run(*common, "--memory", "1GiB", code=1)  # 20 MB a trajectory
    (line,) = [line for line in said.splitlines() if "fit into 1.00 GiB" in line]
    assert 4 <= int(line.split()[0]) <= 32
    said = lmsd_(*common, "--memory", "20MiB", code=1)
    assert "one trajectory takes this process to" in said


def test_half_precision_models_keep_float32_states(files, tmp_path, lmsd_):
    model = ["--torchscript", files["--torchscript"], *options((1, 8, 8)), *DIGITS, "--dtype", "bfloat16"]
    lmsd_("distill", *model, "--nfe", 4, "--trajectories", 32, "--out", tmp_path, "--quiet")
    made = lmsd.Schedule.load(tmp_path / "nfe04.json").made_by
    assert made["improved"] and made["distance"] < made["handcrafted"][0]["distance"] / 1.5
    assert "bfloat16" in made["seeds"]


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_those_of_the_library(kind, files, tmp_path, lmsd_):
    schedule = lmsd.solve("dpmpp_3m", nfe=6, **SIGMAS)
    schedule.save(tmp_path / "s.json")
    common = ["sample", kind, files[kind], *DIGITS, "--schedule", tmp_path / "s.json", "--shape", "1,8,8"]
    lmsd_(*common, "--count", 64, "--batch", 20, "--out", tmp_path / "x.npy", "--quiet")
    noise = Noise(64)
    want = lmsd.sample(schedule, noise.begin(0), noise.model)
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), want, atol=2e-4)

    lmsd_(*common, "--count", 10, "--class", 3, "--out", tmp_path / "x.png")
    image = pytest.importorskip("PIL.Image")
    with image.open(tmp_path / "x.png") as picture:
        assert picture.size == (32, 24) and picture.mode == "L"
        pixels = np.asarray(picture)
    assert pixels.std() > 30 and (pixels[16:, 16:] == 0).all()  # ten of twelve tiles
    lmsd_(*common, "--count", 10, "--class", 3, "--out", tmp_path / "x.npy", "--quiet")
    first = np.clip(np.rint((np.load(tmp_path / "x.npy")[0, 0] + 1) * 127.5), 0, 255)
    assert (pixels[:8, :8] == first).all()
    assert "must end in .npy or .png" in lmsd_(*common, "--out", tmp_path / "x.jpg", code=1)
    assert "--class must be 0 to --classes" in lmsd_(
        *common, "--class", 11, "--out", tmp_path / "x.npy", code=1
    )


def test_a_problem_is_sampled_too(tmp_path, lmsd_):
    """The batches that it begins, brought to the noise level that the schedule starts at."""
    from mixture import Mixture
    from program import HERE

    mixture = Mixture(size=8)
    schedule = lmsd.solve("dpmpp_2m", nfe=4, sigma_max=40, sigma_end=0.002)
    schedule.save(tmp_path / "s.json")
    problem = ["--problem", HERE / "mixture.py", "--set", "size=8"]
    common = ["sample", *problem, "--schedule", tmp_path / "s.json", "--count", 12, "--quiet"]
    lmsd_(*common, "--out", tmp_path / "x.npy")
    batches = [lmsd.sample(schedule, mixture.begin(b) / 2, mixture.model) for b in (0, 1)]
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), np.concatenate(batches)[:12], rtol=1e-5)
    assert "a picture needs 1 or 3 channels" in lmsd_(*common, "--out", tmp_path / "x.png", code=1)


def test_refusals_say_what_is_wrong(files, tmp_path, lmsd_):
    counted = itertools.count()
    gaussian = ["--torchscript", scripted(tmp_path, GAUSSIAN), *options((3, 5))]

    def refused(*arguments, code=1):
        out = tmp_path / str(next(counted))  # a run that fails leaves its checkpoint
        return lmsd_("distill", *arguments, "--out", out, "--quiet", code=code).strip().splitlines()[-1]

    (tmp_path / "text.pt").write_text("no model")
    for kind, name in (("--torchscript", "a TorchScript"), ("--onnx", "an ONNX")):
        assert "there is no model file" in refused(kind, tmp_path / "none.pt", *options((3, 5)))
        said = refused(kind, tmp_path / "text.pt", *options((3, 5)))
        assert f"text.pt cannot be loaded as {name} model" in said
    assert "needs a model that takes a class" in refused(*gaussian, "--guidance", 2)
    assert "takes 2 inputs, and would be given x, sigma, class; go without --classes" in refused(
        *gaussian, "--classes", 3
    )
    three = refused("--onnx", files["--onnx"], *options((1, 8, 8)))
    assert three.endswith("takes 3 inputs, and would be given x, sigma; say --classes")

    def script(body):
        return ["--torchscript", scripted(tmp_path, body), *options((3, 5))]

    assert "shape [8, 1, 5]; it must be [8, 3, 5]" in refused(*script("return x[:, :1]"))
    said = refused(*script("return x @ torch.ones(7, 7)"))
    assert said.startswith("lmsd: the model at sigma 80: ")
    assert "mat1 and mat2 shapes" in said or "size of tensor" in said
    assert "not finite" in refused(*script("return x / 0"))
    said = refused("--onnx", files["--onnx"], *options((1, 9, 9)), "--classes", 10)
    assert said.startswith("lmsd: the model at sigma 80: ") and "invalid dimensions" in said
    assert "does not say --shape, --sigma-max; the command line must" in refused(
        *gaussian[:2], "--sigma-min", 0.1
    )
    assert "CUDA device 7 is asked for" in refused(*gaussian, "--device", "cuda:7")
    assert "directml is for --onnx" in refused(*gaussian, "--device", "directml")
    assert "cpu, cuda, cuda:N or directml is needed" in refused(*gaussian, "--device", "gpu", code=2)
    onnx = ["--onnx", files["--onnx"], *options((1, 8, 8)), *DIGITS]
    said = refused(*onnx, "--device", "directml")
    assert "needs DmlExecutionProvider, and this onnxruntime has" in said
    assert said.endswith("pip install onnxruntime-directml")
    assert "--dtype is for --torchscript" in refused(*onnx, "--dtype", "float16")
    assert "--set is for --problem" in refused(*onnx, "--set", "size=3")
    other = lmsd.solve("euler", nfe=4, **SIGMAS).to_dict()
    other["made_for"] = {"guidance_scale": 7.5, "latent_shape": [1, 8, 8]}
    lmsd.Schedule.from_json(other).save(tmp_path / "other.json")
    model = ["--onnx", files["--onnx"], *DIGITS, "--schedule", tmp_path / "other.json"]
    said = lmsd_("sample", *model, "--out", tmp_path / "x.npy", code=1)
    assert "guidance" in said and "7.5" in said


@pytest.mark.parametrize(("flag", "package"), [("--torchscript", "torch"), ("--onnx", "onnxruntime")])
def test_what_is_not_installed_is_named(flag, package, tmp_path, lmsd_, monkeypatch):
    module = "lmsd.cli" + flag.replace("--", ".")
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "net").write_text("")
    said = lmsd_("distill", flag, tmp_path / "net", *options((3, 5)), "--out", tmp_path / "out", code=1)
    assert said.startswith(f"lmsd: {flag} needs {package}: pip install ")
