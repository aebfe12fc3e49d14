"""`lmsd.k_diffusion`: a sampler function for hosts with k-diffusion's conventions, and k-diffusion itself."""

import importlib.util
import math
import sys
import types

import lmsd
import pytest
import torch
from lmsd import _core, _hosts
from lmsd.k_diffusion import fitting, host_sigmas, sample_lmsd

LEVELS = {"sigma_max": 80.0, "sigma_end": 0.0}


@pytest.fixture
def schedule():
    """As a fit leaves it: the first call below the level of x_T, scales that are not 1, free sums."""
    file = lmsd.solve("dpmpp_2m", nfe=6, **LEVELS).to_dict()
    file["nodes"][0]["sigma"] = 60.0
    for n, node in enumerate(file["nodes"]):
        node["scale"] = 0.98 - 0.01 * n
        node["weights"] = [1.05 * weight for weight in node["weights"]]
    return lmsd.Schedule.from_json(file)


@pytest.fixture
def x(mixture):
    return torch.from_numpy(mixture.begin(0))


@pytest.fixture
def model(mixture):
    """As hosts have it: one level for each image."""

    def denoised(x, sigma):
        assert sigma.shape == (x.shape[0],) and sigma.dtype == x.dtype and sigma.device == x.device
        assert (sigma == sigma[0]).all()
        return mixture.model(x, float(sigma[0]))

    return denoised


def test_it_is_lmsd_sample(schedule, mixture, model, x):
    ours = sample_lmsd(model, x, host_sigmas(schedule), disable=True, schedule=schedule)
    assert torch.equal(ours, lmsd.sample(schedule, x, mixture.model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_keeps_its_type_and_shape(schedule, mixture, dtype):
    """Any number of dimensions; the level that the model is called at is of the same type."""
    x = torch.from_numpy(mixture.begin(0)).to(dtype).reshape(-1, 1, 2, 1, 3)
    seen = []

    def denoised(x, sigma):
        seen.append((sigma.dtype, sigma.shape))
        return mixture.model(x.reshape(-1, 2, 3), float(sigma[0])).reshape(x.shape)

    with torch.inference_mode():
        out = sample_lmsd(denoised, x, host_sigmas(schedule), disable=True, schedule=schedule)
    assert out.shape == x.shape and out.dtype == dtype
    assert seen == [(dtype, (32,))] * 6


@pytest.mark.parametrize("kernels", ["torch", "library"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("shape", "kept"),
    [
        ((4, 3, 6, 5), torch.contiguous_format),
        ((4, 3, 6, 5), torch.channels_last),
        ((4, 3, 2, 6, 5), torch.channels_last_3d),
    ],
)
def test_the_memory_format_is_kept(schedule, shape, kept, dtype, kernels, monkeypatch):
    """By the state that the model sees and the result; a model may return either, to the same numbers."""
    hosts = {
        "torch": lambda x: _hosts.Torch(x, torch),
        "library": lambda x: _hosts.TorchByLibrary(x, torch, None),  # the built-in operations
    }
    monkeypatch.setattr(_core, "host_for", hosts[kernels])
    plain = (80 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    seen, heard = [], []

    def denoised(x, sigma):
        seen.append(x)
        out = x.float() / (1 + sigma[0].float() ** 2) + 0.1
        return (out.contiguous() if len(seen) % 2 else out).to(dtype)

    def run(x, callback=None):
        return sample_lmsd(denoised, x, host_sigmas(schedule), None, callback, True, schedule)

    expected, _ = run(plain), seen.clear()
    out = run(plain.contiguous(memory_format=kept), heard.append)
    told = [tensor for step in heard for tensor in (step["x"], step["denoised"])]
    assert all(tensor.is_contiguous(memory_format=kept) for tensor in (*seen, *told, out))
    assert len(seen) == 6 and (plain.stride() == out.stride()) == (kept == torch.contiguous_format)
    assert torch.equal(out, expected)


def test_x_stays_as_it_is(schedule, model, x):
    before = x.clone()
    out = sample_lmsd(model, x, host_sigmas(schedule), disable=True, schedule=schedule)
    assert torch.equal(x, before) and out is not x


def test_extra_args_reach_the_model(schedule, x):
    passed = []

    def denoised(x, sigma, cond, cfg):
        passed.append((cond, cfg))
        return x * 0

    arguments = {"cond": "a cat", "cfg": 7.0}
    sample_lmsd(denoised, x, host_sigmas(schedule), arguments, disable=True, schedule=schedule)
    assert passed == [("a cat", 7.0)] * 6


def test_the_callback_hears_every_step(schedule, mixture, model, x):
    """What lmsd.sample tells, with levels as tensors."""
    heard, plain = [], []
    sample_lmsd(model, x, host_sigmas(schedule), None, heard.append, True, schedule)
    lmsd.sample(schedule, x, mixture.model, plain.append)
    assert [step["i"] for step in heard] == list(range(6))
    for step, own in zip(heard, plain, strict=True):
        assert set(step) >= {"i", "x", "denoised", "sigma", "sigma_hat"}
        for name in ("sigma", "sigma_hat"):
            assert step[name].shape == () and step[name].dtype == x.dtype
            assert float(step[name]) == own[name]
        assert torch.equal(step["x"], own["x"]) and torch.equal(step["denoised"], own["denoised"])
    assert heard[0]["sigma"] == 60 and heard[0]["sigma_hat"] == pytest.approx(0.98 * 60)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["model", "callback"])
def test_exceptions_come_out_as_they_are(schedule, model, x, kind, where):
    error = kind("stop")

    def fail(*_):
        raise error

    arguments = (fail, None) if where == "model" else (model, fail)
    with pytest.raises(kind) as raised:
        sample_lmsd(arguments[0], x, host_sigmas(schedule), None, arguments[1], True, schedule)
    assert raised.value is error


@pytest.mark.parametrize(("disable", "shows"), [(None, False), (False, True), (True, False)])
def test_the_bar(schedule, model, x, disable, shows, capsys):
    """None is tqdm's: none without a terminal."""
    sample_lmsd(model, x, host_sigmas(schedule), disable=disable, schedule=schedule)
    shown = capsys.readouterr().err
    assert "6/6" in shown if shows else shown == ""


def test_a_path_or_a_dict_of_schedules(schedule, model, x, tmp_path):
    path = tmp_path / "a.json"
    schedule.save(path)
    expected = sample_lmsd(model, x, host_sigmas(schedule), disable=True, schedule=schedule)
    four = lmsd.solve("euler", nfe=4, **LEVELS)
    for given in (path, str(path), {4: four, 6: schedule}, {4: four, 6: path}, {6: str(path)}):
        out = sample_lmsd(model, x, host_sigmas(schedule), disable=True, schedule=given)
        assert torch.equal(out, expected)
    with pytest.raises(lmsd.Error, match="set to 6 steps; there are schedules of 4, 5") as raised:
        sample_lmsd(model, x, host_sigmas(schedule), disable=True, schedule={5: path, 4: four})
    assert raised.value.status == lmsd.Status.MISMATCH


@pytest.mark.parametrize("given", [None, 6, b"a.json"])
def test_something_else_as_schedule(schedule, model, x, given):
    with pytest.raises(TypeError, match=type(given).__name__):
        sample_lmsd(model, x, host_sigmas(schedule), disable=True, schedule=given)


@pytest.mark.parametrize("sigmas", [[], [80.0]])
def test_lists_without_a_step(x, sigmas):
    assert sample_lmsd(None, x, torch.tensor(sigmas), schedule=None) is x


# ---- what the host's list must be


def test_only_the_ends_and_the_number_of_steps_are_taken(schedule, model, x):
    expected = sample_lmsd(model, x, host_sigmas(schedule), disable=True, schedule=schedule)
    for between in (torch.linspace(70, 1, 5), torch.logspace(1.5, -2, 5)):
        sigmas = torch.tensor([80.0, *between, 0.0])
        assert torch.equal(sample_lmsd(model, x, sigmas, disable=True, schedule=schedule), expected)


def test_host_sigmas_start_at_the_level_of_x_T(schedule):
    sigmas = host_sigmas(schedule)
    assert sigmas.dtype == torch.float32 and sigmas.shape == (7,)
    assert sigmas[0] == 80 > schedule.sigmas[0]
    assert sigmas[1:].tolist() == pytest.approx(schedule.sigmas[1:].tolist(), rel=1e-6)
    assert fitting(schedule, sigmas) is schedule


@pytest.mark.parametrize(
    ("sigmas", "words"),
    [
        ([80.0, 40.0, 20.0, 10.0, 0.0], "set to 4 steps; this schedule takes 6"),
        ([80.0, *[1.0] * 6, 0.0], "set to 7 steps; this schedule takes 6"),
        ([80.8, 40.0, 20.0, 10.0, 5.0, 2.0, 0.0], "start at 80.8; this schedule starts at 80, or below"),
        ([80.0, 40.0, 20.0, 10.0, 5.0, 2.0, 0.02], "end at 0.02; this schedule ends at 0"),
        ([0.0, 0.0], "sigma is 0"),
    ],
)
def test_what_does_not_fit_is_refused(schedule, model, x, sigmas, words):
    with pytest.raises(lmsd.Error, match=words):
        sample_lmsd(model, x, torch.tensor(sigmas), disable=True, schedule=schedule)


@pytest.mark.parametrize("end", [0.01, 0.5])
def test_an_end_above_0_must_be_the_hosts(model, x, end):
    schedule = lmsd.solve("euler", nfe=3, sigma_end=end)
    sigmas = host_sigmas(schedule)
    assert sample_lmsd(model, x, sigmas, disable=True, schedule=schedule).isfinite().all()
    for wrong in (0.0, end * 1.01):
        sigmas[-1] = wrong
        with pytest.raises(lmsd.Error, match=f"this schedule ends at {end:g}"):
            sample_lmsd(model, x, sigmas, disable=True, schedule=schedule)


@pytest.mark.parametrize("made", [14.6, 14.6146])
@pytest.mark.parametrize("host", [14.6, 14.6146, 14.67, 14.55])
def test_levels_as_people_round_them(made, host, mixture, model):
    """Where host and schedule round a level differently the result is the same: the state is scaled."""
    noise, sigmas = torch.from_numpy(mixture.begin(0)) / 80, [host, 9.0, 5.0, 2.0, 1.0, 0.5, 0.0]
    schedule = lmsd.solve("dpmpp_2m", nfe=6, sigma_max=made, sigma_end=0.0)
    assert fitting(schedule, sigmas) is schedule
    expected = lmsd.sample(schedule, noise * made, mixture.model)
    out = sample_lmsd(model, noise * host, sigmas, disable=True, schedule=schedule)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


def half_unit(start):
    """Three digits."""
    return float(f"{start:.2e}")


@pytest.mark.parametrize(
    "rounded",
    [
        half_unit,
        *(
            lambda start, dtype=dtype: torch.tensor(start).to(dtype)
            for dtype in (torch.float32, torch.float16, torch.bfloat16)
        ),
    ],
    ids=["three digits", "float32", "float16", "bfloat16"],
)
def test_its_own_levels_in_fewer_digits(rounded):
    for n in range(200):
        start, end = 100 * 0.97**n, 0.01 * 0.97**n if n % 2 else 0.0
        schedule = lmsd.solve("euler", nfe=3, sigma_max=start, sigma_min=start / 100, sigma_end=end)
        sigmas = [rounded(float(sigma)) for sigma in host_sigmas(schedule)]
        assert fitting(schedule, sigmas) is schedule


def test_a_host_that_starts_elsewhere_is_not_taken_for_the_same(schedule):
    assert fitting(schedule, [80 * 0.99, *[1.0] * 5, 0.0]).sigma_start == pytest.approx(79.2)
    with pytest.raises(lmsd.Error, match="start at 80.8"):
        fitting(schedule, [80 * 1.01, *[1.0] * 5, 0.0])


@pytest.mark.parametrize("first", [70.0, 30.0, 5.0, 0.5, 0.01])
@pytest.mark.parametrize("steps", [3, 6, 10])
def test_from_below_the_rest_of_the_schedule_is_taken(schedule, mixture, model, x, first, steps):
    """Image to image, in whatever number of steps the host has."""
    x = x / 80 * first
    sigmas = torch.tensor([first, *[first / 2] * (steps - 1), 0.0])
    rest, heard = schedule.start_at(float(sigmas[0])), []
    out = sample_lmsd(model, x, sigmas, None, heard.append, True, schedule)
    assert torch.equal(out, lmsd.sample(rest, x, mixture.model))
    assert len(heard) == rest.nfe <= 6
    assert heard[0]["sigma"] == pytest.approx(min(first, 60), rel=1e-6)
    by_steps = sample_lmsd(model, x, sigmas, disable=True, schedule={steps: schedule})
    assert torch.equal(by_steps, out)


# ---- k-diffusion


def load():
    """Its `external` and `sampling` without the package's __init__, which needs a dozen others."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        return None
    package = types.ModuleType("k_diffusion")
    package.__path__ = spec.submodule_search_locations
    stubs = {"k_diffusion": package}
    if importlib.util.find_spec("torchvision") is None:  # turns images into tensors; not used here
        names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
        stubs |= {name: types.ModuleType(name) for name in names}
        stubs[names[1]].functional = stubs[names[2]]
    before = dict(sys.modules)
    sys.modules.update(stubs)
    try:
        return importlib.import_module("k_diffusion.external"), importlib.import_module(
            "k_diffusion.sampling"
        )
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] in ("k_diffusion", "torchvision")]:
            if name not in before:
                del sys.modules[name]


THEIRS = load()
needs_k_diffusion = pytest.mark.skipif(THEIRS is None, reason="k-diffusion is not installed")


class Network(torch.nn.Module):
    """eps of the mixture, at the level of the time step that it gets: a DDPM of 1000 steps."""

    def __init__(self, mixture, sigmas):
        super().__init__()
        self.mixture, self.sigmas, self.times = mixture, sigmas, []

    def forward(self, x, t):
        self.times.append(float(t[0]))
        low = int(self.times[-1])
        high, between = min(low + 1, 999), self.times[-1] - low
        sigma = math.exp((1 - between) * math.log(self.sigmas[low]) + between * math.log(self.sigmas[high]))
        x = x * math.sqrt(1 + sigma**2)
        return (x - self.mixture.model(x, sigma)) / sigma


@pytest.fixture(params=[False, True], ids=["continuous", "quantized"])
def wrapped(mixture, request):
    alphas = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    network = Network(mixture, ((1 - alphas) / alphas).sqrt().tolist())
    return THEIRS[0].DiscreteEpsDDPMDenoiser(network, alphas, quantize=request.param)


@needs_k_diffusion
@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
def test_handcrafted_schedules_are_k_diffusions_samplers(wrapped, mixture, solver):
    """The same wrapped network, the same levels, the same end, whether or not levels snap to its steps."""
    sigmas = THEIRS[1].get_sigmas_karras(8, float(wrapped.sigma_min), float(wrapped.sigma_max)).double()
    schedule = lmsd.solve(solver, nfe=8, grid=sigmas.tolist())
    x = torch.from_numpy(mixture.begin(0)) / 80 * sigmas[0]
    ours = sample_lmsd(wrapped, x, sigmas, disable=True, schedule=schedule)
    times, wrapped.inner_model.times = wrapped.inner_model.times, []
    theirs = getattr(THEIRS[1], f"sample_{solver}")(wrapped, x, sigmas, disable=True)
    assert times == wrapped.inner_model.times and len(times) == 8
    assert all(t == int(t) for t in times) == wrapped.quantize
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@needs_k_diffusion
def test_a_schedule_distilled_for_a_wrapped_network(wrapped, mixture):
    """Through k-diffusion's own wrapper, snapping included: better than its samplers at as many steps."""
    high, low = float(wrapped.sigma_max), float(wrapped.sigma_min)

    def denoised(x, sigma):
        return wrapped(x, x.new_full((x.shape[0],), sigma))

    def begin(batch):
        return torch.from_numpy(mixture.begin(batch)) / 80 * high

    found = lmsd.distill(
        denoised,
        begin,
        begin(0),
        nfe=3,
        progress=False,
        trajectories=32,
        held_out=32,
        sigma_max=high,
        sigma_min=low,
        made_for={"snapped": wrapped.quantize},
    )
    x = begin(12345)
    fine = THEIRS[1].get_sigmas_karras(100, low, high).double()
    many = THEIRS[1].sample_dpmpp_2m(wrapped, x, fine, disable=True)
    few = THEIRS[1].get_sigmas_karras(3, low, high).double()
    schedule = found.schedules[3]
    ours = sample_lmsd(wrapped, x, host_sigmas(schedule), disable=True, schedule=found.schedules)

    def distance(end):
        return float((end - many).flatten(1).norm(dim=1).mean())

    for name in ("euler", "dpmpp_2m"):
        theirs = getattr(THEIRS[1], f"sample_{name}")(wrapped, x, few, disable=True)
        assert distance(ours) < 0.5 * distance(theirs)
