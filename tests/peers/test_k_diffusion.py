"""Our tables against k-diffusion's samplers, which run in float64 from start to end."""

import importlib.util
import sys
import types

import lmsd
import pytest
import torch
from conftest import VE_SIGMAS, assert_same, ours


def load():
    """k_diffusion.sampling without the package's __init__, which needs a dozen packages for training."""
    package = types.ModuleType("k_diffusion")
    package.__path__ = importlib.util.find_spec("k_diffusion").submodule_search_locations
    sys.modules["k_diffusion"] = package
    if importlib.util.find_spec("torchvision") is None:  # its utils turn images into tensors; not used here
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            sys.modules[name] = types.ModuleType(name)
        sys.modules["torchvision.transforms"].functional = sys.modules["torchvision.transforms.functional"]
    import k_diffusion.sampling

    return k_diffusion.sampling


k = load()
TO_ZERO = (*VE_SIGMAS, 0.0)


def theirs(sampler, problem, sigmas, **options):
    """Their end point and how often they called the model."""
    told = []

    def model(x, sigma):
        told.append(float(sigma[0]))
        return torch.from_numpy(problem(x.numpy(), told[-1]))

    x = torch.from_numpy(sigmas[0] * problem.noise)
    end = sampler(model, x, torch.tensor(sigmas, dtype=torch.float64), disable=True, **options)
    return end, len(told)


CASES = [
    ("euler", k.sample_euler, {}),
    ("heun", k.sample_heun, {}),
    ("dpm_2", k.sample_dpm_2, {}),
    ("dpmpp_2s", k.sample_dpmpp_2s_ancestral, {"eta": 0.0}),
    ("dpmpp_2m", k.sample_dpmpp_2m, {}),
    *[(f"lms_{order}", k.sample_lms, {"order": order}) for order in (1, 2, 3, 4)],
]


@pytest.mark.parametrize(("solver", "sampler", "options"), CASES, ids=[case[0] for case in CASES])
def test_to_zero(ve, solver, sampler, options):
    end, calls = theirs(sampler, ve, TO_ZERO, **options)
    assert_same(ours(solver, ve, TO_ZERO, nfe=calls), end)


# Above 0 their heun corrects the last step too, which takes one model call more.
UNFINISHED = [case for case in CASES if case[0] != "heun"]


@pytest.mark.parametrize(("solver", "sampler", "options"), UNFINISHED, ids=[case[0] for case in UNFINISHED])
def test_to_a_level_above_zero(ve, solver, sampler, options):
    """lower_order_final off: k-diffusion lowers no order but for a step to 0."""
    end, calls = theirs(sampler, ve, VE_SIGMAS, **options)
    assert_same(ours(solver, ve, VE_SIGMAS, nfe=calls, lower_order_final=False), end)


def test_grids(in_float64):
    low, high = 0.0291675, 14.614642
    for grid, sigmas in [
        ({"kind": "karras"}, k.get_sigmas_karras(9, low, high)),
        ({"kind": "karras", "rho": 3.5}, k.get_sigmas_karras(9, low, high, rho=3.5)),
        ({"kind": "log"}, k.get_sigmas_exponential(9, low, high)),
        ({"kind": "log"}, k.get_sigmas_polyexponential(9, low, high, rho=1.0)),
    ]:
        schedule = lmsd.solve("euler", grid=grid, nfe=9, sigma_min=low, sigma_max=high)
        assert_same(schedule.sigmas, sigmas, 1e-14)
