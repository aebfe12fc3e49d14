"""Our tables against samplers of ComfyUI, which is on no package index: their formulas, written out.

ipndm and res_multistep with eta 0, on the noise levels and predictions of k-diffusion.
"""

from itertools import pairwise

import numpy as np
import pytest
from conftest import FLOW_SIGMAS, VE_SIGMAS, assert_same, ours

ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def ipndm(model, x, sigmas, order):
    slopes = []
    for sigma, following in pairwise(sigmas):
        denoised = model(x, sigma)
        slopes.insert(0, (x - denoised) / sigma)
        if following == 0:
            return denoised
        weights = ADAMS_BASHFORTH[min(order, len(slopes))]
        x = x + (following - sigma) * sum(w * d for w, d in zip(weights, slopes, strict=False))
    return x


def res_multistep(model, x, sigmas):
    last = None
    for n, (sigma, following) in enumerate(pairwise(sigmas)):
        denoised = model(x, sigma)
        if following == 0:
            return denoised
        h = np.log(sigma / following)
        phi_1 = -np.expm1(-h) / h
        phi_2 = (1 - phi_1) / h
        slope = 0 if last is None else (denoised - last) / np.log(sigmas[n - 1] / sigma)
        x = np.exp(-h) * x + h * (phi_1 * denoised + h * phi_2 * slope)
        last = denoised
    return x


def each_way(test):
    ends = pytest.mark.parametrize("end", [(), (0.0,)], ids=["above zero", "to zero"])
    return ends(pytest.mark.parametrize("process", ["ve", "flow"])(test))


def case(request, process, end):
    """For flow models from 1, where log-SNR is infinite and -log sigma is not."""
    sigmas = VE_SIGMAS if process == "ve" else (1.0, *FLOW_SIGMAS)
    problem = request.getfixturevalue(process)
    return problem, sigmas[0] * problem.noise, (*sigmas, *end)


@each_way
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm(request, process, end, order):
    problem, x, sigmas = case(request, process, end)
    assert_same(ours(f"ipndm_{order}", problem, sigmas), ipndm(problem, x, sigmas, order), 1e-12)


@each_way
def test_res_multistep(request, process, end):
    problem, x, sigmas = case(request, process, end)
    end = ours("res_multistep", problem, sigmas, lower_order_final=False)
    assert_same(end, res_multistep(problem, x, sigmas), 1e-12)
