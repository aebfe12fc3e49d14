"""What both files of peers share: a problem in float64, and our own end point.

`lmsd` must be importable, with its library. The published packages are pinned in tests/requirements.txt and
tests/requirements-no-deps.txt.
"""

import lmsd
import numpy as np
import pytest
import torch

VE_SIGMAS = 14.6, 9.1, 5.2, 3.1, 1.9, 1.1, 0.6, 0.35, 0.17, 0.08, 0.03
FLOW_SIGMAS = 0.98, 0.91, 0.83, 0.74, 0.66, 0.55, 0.47, 0.35, 0.24, 0.13, 0.04


class Mixture:
    """E[x0 | x] of five Gaussians in eight dimensions, where x = alpha x0 + sigma n."""

    def __init__(self, flow: bool):
        random = np.random.default_rng(7)
        self.flow = flow
        self.means = random.normal(size=(5, 8))
        self.deviations = random.uniform(0.1, 0.6, size=5)
        self.noise = random.normal(size=(16, 8))

    def __call__(self, x: np.ndarray, sigma: float) -> np.ndarray:
        alpha = 1 - sigma if self.flow else 1.0
        away = x[:, None] - alpha * self.means
        variance = (alpha * self.deviations) ** 2 + sigma**2
        logits = -(away**2).sum(2) / (2 * variance) - x.shape[1] / 2 * np.log(variance)
        share = np.exp(logits - logits.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        shrink = alpha * self.deviations**2 / variance
        return (share[..., None] * (self.means + shrink[:, None] * away)).sum(1)


@pytest.fixture
def ve():
    return Mixture(flow=False)


@pytest.fixture
def flow():
    return Mixture(flow=True)


@pytest.fixture
def in_float64(monkeypatch):
    """Schedulers of diffusers name torch.float32 to "upcast" to; here that name means float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch, "float32", torch.float64)
    yield
    torch.set_default_dtype(before)


def ours(solver: str, problem: Mixture, sigmas, nfe: int | None = None, **spec) -> np.ndarray:
    """The end point of our table and our loop on these sigmas."""
    sigmas = [float(s) for s in sigmas]
    schedule = lmsd.solve(
        solver,
        grid={"kind": "list", "sigmas": sigmas},
        nfe=nfe or len(sigmas) - 1,
        process="flow" if problem.flow else "ve",
        **spec,
    )
    return lmsd.sample(schedule, sigmas[0] * problem.noise, problem)


def assert_same(ours: np.ndarray, theirs, tolerance: float = 1e-9):
    difference = np.abs(ours - np.asarray(theirs)).max() / np.abs(ours).max()
    print(f"relative difference {difference:.1e}")
    assert difference <= tolerance
