"""Arrays that are neither numpy's nor torch's: the model, the callback and the caller see their own kind."""

import copy
import subprocess
import sys

import foreign_arrays
import lmsd
import network_files
import numpy as np
import pytest
import torch
from foreign_arrays import NoWayBack, OfModule, OfNamespace, OfTorch, OfType

SCHEDULE = lmsd.solve("dpmpp_3m", nfe=6, sigma_end=0.002)
OPTIONS = {"teacher_nfe": 40, "sigma_end": 0.002, "trajectories": 32, "held_out": 32}
KINDS = [OfModule, OfNamespace, OfType]


def model_of(kind, mixture):
    """The mixture for arrays of a kind alone; what it returned before is overwritten."""
    out = np.empty(mixture.like.shape)

    def model(x, sigma):
        assert type(x) is kind
        out[...] = mixture.model(x.data, sigma)
        return kind(out)

    return model


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_is_that_of_numpy(kind, mixture):
    start, seen, told = mixture.begin(0), [], []
    expected = lmsd.sample(SCHEDULE, start.copy(), mixture.model, told.append)
    x = kind(start)
    result = lmsd.sample(SCHEDULE, x, model_of(kind, mixture), seen.append)
    assert type(result) is kind and (result.data == expected).all() and (x.data == mixture.begin(0)).all()
    for step, own in zip(seen, told, strict=True):
        for name in ("x", "denoised"):
            assert type(step[name]) is kind and (step[name].data == own[name]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_of_the_caller_s_own(kind, mixture):
    start, model = mixture.begin(0), model_of(kind, mixture)
    one, other = lmsd.Sampler(SCHEDULE, start), lmsd.Sampler(SCHEDULE, kind(start.copy()))
    for (own, _), (x, sigma) in zip(one, other, strict=True):
        assert (x.data == own).all()
        one.step(mixture.model(own, sigma), own + 0.01)
        other.step(model(x, sigma), kind(own + 0.01))
    assert type(other.result) is kind and (other.result.data == one.result).all()
    assert (copy.copy(other).result.data == one.result).all()


@pytest.mark.parametrize("kind", KINDS)
def test_distillation_and_comparison_are_those_of_numpy(kind, mixture):
    def begin(batch):
        return kind(mixture.begin(batch))

    def halves(x):
        assert type(x) is kind
        return kind(x.data.reshape(len(x.data), -1) / 2)

    results = []
    for problem, features in (
        ((mixture.model, mixture.begin, mixture.like), lambda x: x.reshape(len(x), -1) / 2),
        ((model_of(kind, mixture), begin, begin(0)), halves),
    ):
        found = lmsd.distill(*problem, nfe=3, progress=False, features=features, **OPTIONS)
        results.append((found.schedules[3].weights, lmsd.compare([SCHEDULE], *problem, teacher_nfe=40)))
    assert str(results[0]) == str(results[1])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_type_of_its_elements_is_kept(dtype, mixture):
    start = mixture.begin(0).astype(dtype)
    expected = lmsd.sample(SCHEDULE, start, mixture.model)

    def model(x, sigma):
        assert x.data.dtype == dtype
        return OfModule(mixture.model(x.data, sigma))  # float64

    result = lmsd.sample(SCHEDULE, OfModule(start), model)
    assert result.data.dtype == dtype and (result.data == expected).all()


def test_bfloat16_goes_by_torch(mixture):
    start = torch.from_numpy(mixture.begin(0)).bfloat16()

    def model(x, sigma):
        assert x.data.dtype == torch.bfloat16
        return OfTorch(mixture.model(x.data, sigma))

    expected = lmsd.sample(SCHEDULE, start, mixture.model)
    result = lmsd.sample(SCHEDULE, OfTorch(start), model)
    assert type(result) is OfTorch and torch.equal(result.data, expected)


def test_a_model_in_bfloat16_with_a_state_that_is_not(mixture):
    start = torch.from_numpy(mixture.begin(0)).float()

    def model(x, sigma):
        return OfTorch(mixture.model(x.data, sigma).bfloat16())

    expected = lmsd.sample(SCHEDULE, start, lambda x, sigma: mixture.model(x, sigma).bfloat16().float())
    result = lmsd.sample(SCHEDULE, OfTorch(start), model)
    assert result.data.dtype == torch.float32
    torch.testing.assert_close(result.data, expected, rtol=1e-6, atol=1e-5)


def test_without_torch_bfloat16_is_refused(mixture, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    start = OfTorch(torch.from_numpy(mixture.begin(0)).bfloat16())
    with pytest.raises(
        lmsd.Error, match="^x is an array of a type .* that numpy has not.*torch must be installed"
    ):
        lmsd.sample(SCHEDULE, start, None)


class Elsewhere(OfModule):
    def __dlpack_device__(self):
        return (2, 1)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda x: [x], "the model returned list; it must be an array with __dlpack__"),
        (lambda x: None, "the model returned NoneType; it must be an array with __dlpack__"),
        (
            lambda x: OfModule(x.data[:, :1].copy()),
            r"the model returned a tensor of shape \[32, 1, 3\]; it must",
        ),
        (lambda x: Elsewhere(x.data), r"on DLPack's device \(2, 1\); it must be on \(1, 0\)"),
    ],
)
def test_what_a_model_may_not_return(returned, words, mixture):
    with pytest.raises(lmsd.Error, match=words) as raised:
        lmsd.sample(SCHEDULE, OfModule(mixture.begin(0)), lambda x, sigma: returned(x))
    assert raised.value.status == lmsd.Status.INVALID_TENSOR


def test_numpy_and_other_kinds_may_be_returned(mixture):
    expected = lmsd.sample(SCHEDULE, mixture.begin(0), mixture.model)
    for kind in (np.asarray, OfType, torch.from_numpy):

        def model(x, sigma, kind=kind):
            return kind(mixture.model(x.data, sigma))

        assert (lmsd.sample(SCHEDULE, OfModule(mixture.begin(0)), model).data == expected).all()


@pytest.mark.parametrize("x", [None, "noise", object(), {"x": 1}])
def test_what_is_no_array_is_named(x):
    with pytest.raises(
        lmsd.Error, match=f"is {type(x).__name__}; a numpy array, a torch tensor or|dtype str"
    ):
        lmsd.sample(SCHEDULE, x, None)


def test_a_library_without_from_dlpack_is_taken_as_numpy_takes_it(mixture):
    """As a list is: the model sees numpy arrays."""

    class Taken(NoWayBack):
        def __array__(self, *arguments, **options):
            return self.data

    Taken.__module__ = "nowhere"
    expected = lmsd.sample(SCHEDULE, mixture.begin(0), mixture.model)
    assert (lmsd.sample(SCHEDULE, Taken(mixture.begin(0)), mixture.model) == expected).all()
    assert (lmsd.sample(SCHEDULE, mixture.begin(0).tolist(), mixture.model) == expected).all()


# ---- real libraries, where they are installed


@pytest.fixture
def jax_mixture(mixture):
    numpy = pytest.importorskip("jax.numpy")
    centers = numpy.asarray(mixture.centers, "float32")

    def model(x, sigma):
        flat, variance = x.reshape(len(x), -1), 0.01 + sigma**2
        logits = -((flat[:, None] - centers) ** 2).sum(-1) / (2 * variance)
        share = numpy.exp(logits - logits.max(1, keepdims=True))
        mean = share / share.sum(1, keepdims=True) @ centers
        return (mean + 0.01 / variance * (flat - mean)).reshape(x.shape)

    return model


def test_jax(mixture, jax_mixture):
    """A compiled model, which is traced once, and not called with anything but arrays of JAX."""
    jax = pytest.importorskip("jax")
    traced = []

    @jax.jit
    def model(x, sigma):
        traced.append(x)
        return jax_mixture(x, sigma)

    start = mixture.begin(0).astype(np.float32)
    x = jax.numpy.asarray(start)
    result = lmsd.sample(SCHEDULE, x, model)
    assert isinstance(result, jax.Array) and result.dtype == np.float32 and len(traced) == 1
    expected = lmsd.sample(SCHEDULE, start, mixture.model)
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-4)
    assert (np.asarray(x) == start).all()

    def begin(batch):
        return jax.numpy.asarray(mixture.begin(batch), "float32")

    found = lmsd.distill(model, begin, begin(0), nfe=3, progress=False, **OPTIONS)
    made = found.schedules[3].made_by
    assert made["improved"] and made["distance"] < 0.7 * made["handcrafted"][0]["distance"]


def test_jax_in_bfloat16(mixture, jax_mixture):
    jax = pytest.importorskip("jax")
    x = jax.numpy.asarray(mixture.begin(0), "bfloat16")
    result = lmsd.sample(SCHEDULE, x, jax_mixture)
    assert isinstance(result, jax.Array) and result.dtype == "bfloat16"
    expected = lmsd.sample(SCHEDULE, mixture.begin(0), mixture.model)
    assert np.abs(np.asarray(result, np.float64) - expected).max() < 0.3


def test_mlx(mixture):
    mlx = pytest.importorskip("mlx.core")
    result = lmsd.sample(
        SCHEDULE,
        mlx.array(mixture.begin(0).astype(np.float32)),
        lambda x, sigma: 0.25 * x / (0.25 + sigma**2),
    )
    expected = lmsd.sample(
        SCHEDULE,
        mixture.begin(0).astype(np.float32),
        lambda x, sigma: 0.25 * x / np.float32(0.25 + sigma**2),
    )
    assert type(result) is mlx.array
    np.testing.assert_allclose(np.array(result), expected, rtol=1e-4, atol=1e-5)


def test_values_of_onnx_runtime(mixture):
    """An OrtValue stays where ONNX Runtime has it; the model here is one of two nodes."""
    runtime = pytest.importorskip("onnxruntime")
    helper = pytest.importorskip("onnx.helper")
    kinds = [helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", [32, 2, 3]), ("s", []))]
    nodes = [helper.make_node("Mul", ["x", "s"], ["y"])]
    graph = helper.make_graph(nodes, "scaled", kinds, [helper.make_tensor_value_info("y", 1, [32, 2, 3])])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = runtime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])

    def model(x, sigma):
        assert type(x) is runtime.OrtValue
        scale = runtime.OrtValue.ortvalue_from_numpy(np.array(1 / (1 + sigma**2), np.float32))
        return session.run_with_ort_values(["y"], {"x": x, "s": scale})[0]

    start = mixture.begin(0).astype(np.float32)
    result = lmsd.sample(SCHEDULE, runtime.OrtValue.ortvalue_from_numpy(start), model)
    expected = lmsd.sample(SCHEDULE, start, lambda x, sigma: x * np.float32(1 / (1 + sigma**2)))
    assert type(result) is runtime.OrtValue
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_kinds_here_offer_nothing_else():
    assert not {"shape", "dtype", "__add__"} & set(dir(foreign_arrays.Plain))


def test_the_example_of_onnx_runtime_draws_the_ten_digits(tmp_path):
    """On the exported digits network, with a published schedule and with one from a file."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    path = network_files.digits(tmp_path)["--onnx"]
    from classifier import Classifier

    lmsd.solve("deis_3", nfe=9, sigma_end=0.002).save(tmp_path / "nfe09.json")
    script = network_files.DIGITS.parent / "python" / "onnx_denoiser.py"
    drawn = []
    for schedule in ([], [tmp_path / "nfe09.json"]):
        command = [sys.executable, script, path, *schedule]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        drawn.append(said)
        pixels = np.array([[" .:-=+*#%@".index(character) for character in line] for line in said]) / 4.5 - 1
        digits = pixels.reshape(8, 10, 8).transpose(1, 0, 2)[:, None].astype(np.float32)
        assert (Classifier().predict(digits) == np.arange(10)).sum() >= 9
    assert drawn[0] != drawn[1]
