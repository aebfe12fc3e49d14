"""Tests of the digits example: the numpy denoiser against torch, the classifier and the mixture header."""

import re
from pathlib import Path

import numpy as np
import pytest
from classifier import Classifier, frechet, statistics
from model import NO_LABEL, SIGMA_DATA, SIGMA_MAX, SIGMA_MIN, Digits, batch

SIGMAS = (SIGMA_MIN, 0.05, 0.5, 3.0, SIGMA_MAX)


@pytest.fixture(scope="module")
def model():
    return Digits()


def heun(model, x, labels, guidance, steps=100, rho=7.0):
    """Heun's method on the probability-flow ODE over the sigmas of EDM (algorithm 1, no churn)."""
    ramp = np.linspace(SIGMA_MAX ** (1 / rho), SIGMA_MIN ** (1 / rho), steps)
    sigmas = np.append(ramp**rho, 0)
    for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
        slope = (x - model.denoise(x, sigma, labels, guidance)) / np.float32(sigma)
        moved = x + np.float32(following - sigma) * slope
        if following > 0:
            other = (moved - model.denoise(moved, following, labels, guidance)) / np.float32(following)
            moved = x + np.float32(following - sigma) * (slope + other) / 2
        x = moved
    return x


def noisy(sigma, size=32):
    """Unstructured inputs of the right magnitude at a noise level, with labels."""
    noise, labels = batch(3, size)
    return noise / np.float32(SIGMA_MAX) * np.float32(np.hypot(sigma, SIGMA_DATA)), labels


@pytest.mark.parametrize("sigma", SIGMAS)
def test_numpy_equals_torch(model, sigma):
    torch = pytest.importorskip("torch")
    from model import WEIGHTS
    from safetensors.torch import load_file
    from train import Net

    net = Net().double().eval()
    missing, unexpected = net.load_state_dict(load_file(WEIGHTS), strict=False)
    assert missing == ["augment_embed.weight"] and not unexpected
    x, labels = noisy(sigma)
    labels[0] = NO_LABEL
    with torch.no_grad():
        level = torch.full([len(x)], sigma, dtype=torch.float64)
        want = net(torch.from_numpy(x).double(), level, torch.from_numpy(labels)).numpy()
    got = model.denoise(x, sigma, labels)
    assert got.shape == x.shape and got.dtype == np.float32
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
    exact = Digits(dtype=np.float64).denoise(x, sigma, labels)
    assert exact.dtype == np.float64
    assert np.abs(exact - want).max() < 1e-10


@pytest.mark.parametrize("sigma", SIGMAS)
def test_guidance(model, sigma):
    x, labels = noisy(sigma)
    cond = model.denoise(x, sigma, labels)
    uncond = model.denoise(x, sigma, np.full_like(labels, 10))
    assert sigma < 0.1 or np.abs(cond - uncond).max() > 0.1  # the label matters
    for guidance in (0.0, 0.5, 3.0, 7.5):
        want = uncond + guidance * (cond - uncond)
        np.testing.assert_allclose(
            model.denoise(x, sigma, labels, guidance), want, atol=2e-5 * (1 + guidance)
        )


def test_rows_are_independent_and_out_may_be_x(model):
    x, labels = noisy(1.0)
    want = model.denoise(x, 1.0, labels, 3.0)
    np.testing.assert_allclose(model.denoise(x[5:7], 1.0, labels[5:7], 3.0), want[5:7], atol=1e-5)
    assert model.denoise(x, 1.0, labels, 3.0, out=x) is x
    np.testing.assert_array_equal(x, want)


def test_small_sigma_leaves_the_image(model):
    for shared in (-1.0, 0.0, 0.7):
        x = np.full((11, 1, 8, 8), shared, np.float32)
        assert np.abs(model.denoise(x, SIGMA_MIN, np.arange(11)) - x).max() < 5 * SIGMA_MIN


def test_batch_is_deterministic():
    x, labels = batch(7, 200)
    again, same = batch(7, 200)
    np.testing.assert_array_equal(x, again)
    np.testing.assert_array_equal(labels, same)
    assert x.dtype == np.float32 and x.shape == (200, 1, 8, 8) and set(labels) == set(range(10))
    assert abs(x.std() / SIGMA_MAX - 1) < 0.03 and abs(x.mean() / SIGMA_MAX) < 0.04
    assert np.abs(x - batch(8, 200)[0]).min() > 0 and np.abs(x - batch(7, 200, seed=1)[0]).min() > 0
    # the published starts: the stream must not change with numpy or with this code
    x, labels = batch(0)
    np.testing.assert_allclose(x[0, 0, 0, :2], (89.40976, -110.96999), rtol=1e-6)
    np.testing.assert_allclose(batch(2, 4, seed=1)[0][0, 0, 0, :2], (-105.21417, -69.77756), rtol=1e-6)
    assert x.shape == (64, 1, 8, 8) and 0 <= labels.min() and labels.max() == 9


@pytest.mark.parametrize(("guidance", "share"), [(1.0, 0.9), (3.0, 0.95)])
def test_samples_are_the_digits_asked_for(model, guidance, share):
    x, labels = batch(0, 200)
    samples = heun(model, x, labels, guidance)
    assert (Classifier().predict(samples) == labels).mean() > share
    assert np.abs(samples).max() < 2


def test_samples_are_distributed_like_the_digits(model):
    """The Frechet distance to the training images: small for samples, large once their variety is lost."""
    classifier = Classifier()
    samples = classifier.features(heun(model, *batch(1, 400), 1.0, steps=50))
    assert frechet(samples, classifier.reference) < 0.5
    assert frechet(0.7 * samples, classifier.reference) > 0.5


def test_frechet():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6))
    assert abs(frechet(a, a)) < 1e-9
    assert frechet(a, a + 2) == pytest.approx(6 * 4)
    assert frechet(a, 3 * a - 2 * a.mean(0)) == pytest.approx(
        4 * np.trace(statistics(a)[1])
    )  # commuting covariances
    linalg = pytest.importorskip("scipy.linalg")
    b = rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6)) + 1
    (mean_a, cov_a), (mean_b, cov_b) = statistics(a), statistics(b)
    want = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * linalg.sqrtm(cov_a @ cov_b).real)
    assert frechet(a, (mean_b, cov_b)) == pytest.approx(want)


def test_classifier_on_held_out_digits():
    pytest.importorskip("sklearn")
    from data import HELD_OUT, split

    (x_train, y_train), (x, labels) = split()
    assert len(x) == HELD_OUT and len(x_train) + len(x) == 1797
    assert not {tuple(row) for row in x.reshape(len(x), -1)} & {
        tuple(row) for row in x_train.reshape(1500, -1)
    }
    classifier = Classifier()
    assert (classifier.predict(x) == labels).mean() >= 0.97
    reference = frechet(classifier.features(x_train), classifier.reference)
    assert reference < 1e-3 < frechet(classifier.features(x), classifier.reference) < 0.5


def test_denoiser_on_held_out_digits(model):
    """At moderate noise it beats the best linear (Wiener) denoiser of the training images by far."""
    pytest.importorskip("sklearn")
    from data import split

    (x_train, _), (x, labels) = split()
    noise = batch(4, len(x))[0] / np.float32(SIGMA_MAX)
    flat = x_train.reshape(len(x_train), -1)
    mean, cov = flat.mean(0), np.cov(flat, rowvar=False)
    for sigma in (0.3, 0.6, 1.2):
        given = x + np.float32(sigma) * noise
        wiener = (given.reshape(len(x), -1) - mean) @ np.linalg.solve(cov + sigma**2 * np.eye(64), cov) + mean
        linear = ((wiener - x.reshape(len(x), -1)) ** 2).mean()
        assert ((model.denoise(given, sigma, labels) - x) ** 2).mean() < 0.8 * linear


def test_mixture_header():
    pytest.importorskip("sklearn")
    from data import split

    text = (Path(__file__).parents[1] / "c" / "digits_gmm.h").read_text()
    define = {name: float(value) for name, value in re.findall(r"#define DIGITS_GMM_(\w+) ([\d.]+)", text)}
    arrays = {
        name: np.array(re.findall(r"-?\d+", body), float)
        for name, body in re.findall(r"digits_gmm_(\w+)\[[^=]*= \{(.*?)\n\};", text, re.DOTALL)
    }
    weights = arrays["count"] / define["IMAGES"]
    means = arrays["mean"].reshape(int(define["COMPONENTS"]), -1) / define["SCALE"]
    x = split()[0][0].reshape(1500, -1)
    assert weights.sum() == pytest.approx(1) and means.shape[1] == define["PIXELS"] == 64
    np.testing.assert_allclose(weights @ means, x.mean(0), atol=0.005)
    # law of total variance, summed over the pixels
    spread = weights @ ((means - weights @ means) ** 2).sum(1)
    assert spread + 64 * define["STD"] ** 2 == pytest.approx(x.var(0).sum(), rel=0.01)


def test_a_fit_to_sigma_0_spends_no_call_at_sigma_min():
    """Hosts end at 0. Starts that held a node at sigma_min there ended at 0.40, not at 0.25."""
    import lmsd
    from problem import problem

    digits = problem(guidance=3.0, size=64)
    levels = {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX, "sigma_end": 0.0}
    found = lmsd.distill(digits.model, digits.begin, digits.like, nfe=5, progress=False, **levels)
    assert found.report["family"][0]["distance"] < 0.3
