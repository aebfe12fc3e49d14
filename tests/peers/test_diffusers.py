"""Our tables against the schedulers of diffusers.

They keep their sigmas in float32 and cast samples to it. Here both are float64: `in_float64` turns the casts,
and the sigmas are replaced after `set_timesteps`, so that the formulas alone are compared.
"""

import numpy as np
import pytest
import torch
from conftest import FLOW_SIGMAS, VE_SIGMAS, assert_same, ours
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

pytestmark = [
    pytest.mark.usefixtures("in_float64"),
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),  # theirs, for numpy 2
]

LEVELS = {"ve": VE_SIGMAS, "flow": FLOW_SIGMAS}
BOTH = pytest.mark.parametrize("process", ["ve", "flow"])


def theirs(scheduler, problem, sigmas, stages=1, variance_preserving=False):
    """Their end point. The model gives noise, or a flow model's velocity: both are (x - D)/sigma.

    A variance-preserving scheduler keeps x / sqrt(1 + sigma^2).
    """
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.set_begin_index(0)
    levels = torch.tensor(sigmas)
    if stages == 2:
        levels = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
    assert scheduler.sigmas.shape == levels.shape
    scheduler.sigmas = levels
    scheduler.is_scale_input_called = True  # its scaling for the network is the model's business here

    def scale(sigma):
        return np.sqrt(1 + sigma**2) if variance_preserving else 1.0

    sample = torch.from_numpy(sigmas[0] * problem.noise / scale(sigmas[0]))
    for timestep, sigma in zip(scheduler.timesteps.double(), levels.tolist(), strict=False):
        x = sample.numpy() * scale(sigma)
        output = torch.from_numpy((x - problem(x, sigma)) / sigma)
        sample = scheduler.step(output, timestep, sample).prev_sample
        assert sample.dtype == torch.float64
    return sample.numpy() * scale(sigmas[-1])


def multistep(kind, problem, sigmas, order, **config):
    if problem.flow:
        config |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    scheduler = kind(solver_order=order, **config)
    return theirs(scheduler, problem, sigmas, variance_preserving=not problem.flow)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("end", [(), (0.0,)], ids=["above zero", "to zero"])
@BOTH
def test_dpmpp(request, process, end, lower, order):
    """lower_order_final counts below 15 steps only; a step to 0 is first-order in any case."""
    problem, sigmas = request.getfixturevalue(process), (*LEVELS[process], *end)
    config = {"lower_order_final": lower, "final_sigmas_type": "zero" if end else "sigma_min"}
    peer = multistep(DPMSolverMultistepScheduler, problem, sigmas, order, **config)
    solver = ["ddim", "dpmpp_2m", "dpmpp_3m"][order - 1]
    assert_same(ours(solver, problem, sigmas, lower_order_final=lower), peer)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("lower", [True, False])
@BOTH
def test_deis(request, process, lower, order):
    """Above 0 only: theirs is not defined at 0."""
    problem, sigmas = request.getfixturevalue(process), LEVELS[process]
    peer = multistep(DEISMultistepScheduler, problem, sigmas, order, lower_order_final=lower)
    assert_same(ours(f"deis_{order}", problem, sigmas, lower_order_final=lower), peer)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("bh", ["bh1", "bh2"])
@pytest.mark.parametrize("lower", [True, False])
@BOTH
def test_unipc(request, process, lower, bh, order):
    problem, sigmas = request.getfixturevalue(process), LEVELS[process]
    config = {"solver_type": bh, "lower_order_final": lower, "final_sigmas_type": "sigma_min"}
    peer = multistep(UniPCMultistepScheduler, problem, sigmas, order, **config)
    assert_same(ours(f"unipc_{bh}_{order}", problem, sigmas, lower_order_final=lower), peer)


@pytest.mark.parametrize("order", [1, 2, 3])
@BOTH
def test_unipc_to_zero(request, process, order):
    """bh2 only: in their last step bh1 multiplies an infinite B(h) by 0."""
    problem, sigmas = request.getfixturevalue(process), (*LEVELS[process], 0.0)
    peer = multistep(UniPCMultistepScheduler, problem, sigmas, order, solver_type="bh2")
    assert_same(ours(f"unipc_bh2_{order}", problem, sigmas), peer)


@BOTH
def test_euler(request, process):
    problem = request.getfixturevalue(process)
    sigmas = (*VE_SIGMAS, 0.0) if process == "ve" else (1.0, *FLOW_SIGMAS, 0.0)
    scheduler = EulerDiscreteScheduler() if process == "ve" else FlowMatchEulerDiscreteScheduler()
    assert_same(ours("euler", problem, sigmas), theirs(scheduler, problem, sigmas))


@BOTH
def test_heun(request, process):
    problem = request.getfixturevalue(process)
    sigmas = (*VE_SIGMAS, 0.0) if process == "ve" else (1.0, *FLOW_SIGMAS, 0.0)
    scheduler = HeunDiscreteScheduler() if process == "ve" else FlowMatchHeunDiscreteScheduler()
    nfe = 2 * (len(sigmas) - 1) - 1
    assert_same(ours("heun", problem, sigmas, nfe=nfe), theirs(scheduler, problem, sigmas, stages=2))
