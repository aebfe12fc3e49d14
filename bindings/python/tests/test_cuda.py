"""Tensors on a GPU, as torch has them: `make bench-gpu` runs these where there is one."""

import lmsd
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lmsd import features  # noqa: E402
from lmsd.k_diffusion import host_sigmas, sample_lmsd  # noqa: E402

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
DTYPES = {"float64": 1e-9, "float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}
FIT = {"nfe": 4, "trajectories": 16, "held_out": 8, "max_calls": 900, "progress": False, "sigma_end": 0.002}


@pytest.fixture
def model(mixture):
    """The mixture in torch, on whatever device x is; x [B, 2, 3]."""
    kept = torch.from_numpy(mixture.centers)

    def denoised(x, sigma):
        centers = kept.to(x.device)
        flat, variance = x.double().flatten(1), 0.01 + sigma**2
        share = (-(torch.cdist(flat, centers) ** 2) / (2 * variance)).softmax(1)
        mean = share @ centers
        return (mean + 0.01 / variance * (flat - mean)).reshape(x.shape).to(x.dtype)

    return denoised


@pytest.fixture
def begin(mixture):
    return lambda index: torch.from_numpy(mixture.begin(index)).float().cuda()


@pytest.mark.parametrize("name", DTYPES)
def test_a_schedule_samples_there_as_on_the_cpu(mixture, model, name):
    schedule, start = lmsd.solve("ipndm_3", nfe=6), mixture.begin(0)
    x = torch.from_numpy(start).to(getattr(torch, name)).cuda()
    kept = x.clone()
    found = lmsd.sample(schedule, x, model)
    assert found.device == x.device and found.dtype == x.dtype and torch.equal(x, kept)
    exact = lmsd.sample(schedule, x.cpu().double().numpy(), mixture.model)
    assert np.abs(found.cpu().double().numpy() - exact).max() <= DTYPES[name] * np.abs(exact).max()


def test_memory_that_is_not_contiguous(mixture, model):
    start = torch.from_numpy(mixture.begin(0)).cuda()
    crossed = start.transpose(1, 2).contiguous().transpose(1, 2)
    schedule = lmsd.solve("dpmpp_2m", nfe=5)
    found, expected = lmsd.sample(schedule, crossed, model), lmsd.sample(schedule, start, model)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_a_fit_there_beats_what_a_fit_on_the_cpu_must_beat(model, begin):
    there = lmsd.distill(model, begin, begin(0), **FIT)
    here = lmsd.distill(model, lambda index: begin(index).cpu(), begin(0).cpu(), **FIT)
    one, two = there.schedules[4].made_by, here.schedules[4].made_by
    assert one["improved"] and two["improved"]
    assert one["handcrafted"][0]["distance"] == pytest.approx(two["handcrafted"][0]["distance"], rel=1e-3)


def test_a_fit_to_features_there(model, begin):
    layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 4)).cuda().requires_grad_(False)
    found = lmsd.distill(model, begin, begin(0), features=features.module(layers), **FIT)
    assert found.schedules[4].made_by["improved"]


def test_a_stream_of_the_callers(model, begin):
    schedule, x = lmsd.solve("ipndm_2", nfe=6), begin(0)
    expected = lmsd.sample(schedule, x, model)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = lmsd.sample(schedule, x, model)
    torch.cuda.synchronize()
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_k_diffusions_sampler_there(model, begin):
    x = begin(0)
    schedule = lmsd.solve("dpmpp_2m", nfe=6, sigma_max=80.0, sigma_end=0.0)

    def denoised(x, sigma):
        assert sigma.device == x.device
        return model(x, float(sigma[0]))

    found = sample_lmsd(denoised, x, host_sigmas(schedule).cuda(), disable=True, schedule=schedule)
    assert torch.allclose(found, lmsd.sample(schedule, x, model), rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused(model, begin):
    with pytest.raises(RuntimeError, match="device"):
        lmsd.sample(lmsd.solve("euler", nfe=4), begin(0), lambda x, sigma: x + torch.ones(3))
    with pytest.raises((lmsd.Error, ValueError, TypeError), match="cpu"):
        lmsd.sample(lmsd.solve("euler", nfe=4), begin(0), lambda x, sigma: x.cpu())


def test_a_graph_of_cuda_as_the_model(model, begin):
    """Its output is one and the same memory at each call."""
    schedule, x = lmsd.solve("ipndm_3", nfe=5), begin(0)
    layer = torch.nn.Linear(3, 3).cuda().requires_grad_(False)

    def plain(x, sigma):
        return layer(x / (1 + sigma))

    there = torch.zeros_like(x)
    plain(there, 1.0)
    graph, level = torch.cuda.CUDAGraph(), torch.ones((), device="cuda")
    with torch.cuda.graph(graph):
        out = plain(there, level)

    def captured(x, sigma):
        there.copy_(x)
        level.fill_(sigma)
        graph.replay()
        return out

    found, expected = lmsd.sample(schedule, x, captured), lmsd.sample(schedule, x, plain)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
