"""Tests of the denoiser of photograph crops: shapes, guidance, gradients, losses on held-out crops."""

import pytest
import torch
from photos_model import NO_LABEL, SHAPE, SIGMA_DATA, SIGMA_MAX, SIGMA_MIN, Photos, batch
from photos_problem import problem
from photos_train import LEVELS, Crops, losses, trivial


@pytest.fixture(scope="module")
def model():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Photos()
    torch.set_num_threads(threads)


def noisy(sigma, size=4):
    """Unstructured inputs of the right magnitude at a noise level, with labels."""
    noise, labels = batch(3, size)
    return noise / SIGMA_MAX * (sigma**2 + SIGMA_DATA**2) ** 0.5, labels


@pytest.mark.parametrize("sigma", [SIGMA_MIN, 0.5, SIGMA_MAX])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_shape_and_type(model, sigma, guidance):
    x, labels = noisy(sigma)
    denoised = model.denoise(x, sigma, labels, guidance)
    assert denoised.shape == x.shape and denoised.dtype == torch.float32
    assert denoised.isfinite().all() and not denoised.requires_grad


def test_little_noise_is_left_alone(model):
    x, _ = Crops(held_out=True).draw(8, torch.Generator().manual_seed(0))
    labels = torch.full((8,), NO_LABEL)
    assert (model.denoise(x, SIGMA_MIN, labels, 2.0) - x).abs().max() < 10 * SIGMA_MIN


@pytest.mark.parametrize("sigma", [0.1, 10.0])
def test_guidance(model, sigma):
    x, labels = noisy(sigma)
    cond = model.denoise(x, sigma, labels, 1.0)
    uncond = model.denoise(x, sigma, torch.full_like(labels, NO_LABEL), 1.0)
    assert (cond - uncond).abs().max() > 1e-3
    torch.testing.assert_close(model.denoise(x, sigma, labels, 1 + 1e-7), cond, rtol=0, atol=1e-4)
    expected = uncond + 2.5 * (cond - uncond)
    torch.testing.assert_close(model.denoise(x, sigma, labels, 2.5), expected, rtol=0, atol=1e-4)


def test_same_as_in_training(model):
    sigmas = torch.tensor([0.02, 0.3, 2.0, 60.0])
    x, labels = noisy(1.0)
    together = model.net(x, sigmas, labels)
    for i, sigma in enumerate(sigmas.tolist()):
        alone = model.denoise(x[i : i + 1], sigma, labels[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("level", [0.05, 0.5, 20.0])
def test_gradients(model, level):
    x, labels = noisy(level, 2)
    x.requires_grad_()
    sigma = torch.tensor(level, dtype=torch.float64, requires_grad=True)
    weight = noisy(1.0, 2)[0].flip(0)

    def f(x, sigma):
        return (weight * model.denoise(x, sigma, labels, 2.0)).double().sum()

    by_x, by_sigma = torch.autograd.grad(f(x, sigma), (x, sigma))
    with torch.no_grad():
        step = 0.01 * level
        difference = (f(x, level + step) - f(x, level - step)) / (2 * step)
        assert by_sigma.item() == pytest.approx(difference.item(), rel=0.05, abs=0.1)
        along = by_x / by_x.norm()
        difference = (f(x + step * along, level) - f(x - step * along, level)) / (2 * step)
        assert by_x.norm().item() == pytest.approx(difference.item(), rel=0.05)


@pytest.mark.parametrize("held_out", [False, True])
def test_loss_is_below_the_trivial(model, held_out):
    crops = Crops(held_out)
    with torch.no_grad():
        model_losses, baseline = losses(model.net, crops), losses(trivial, crops)
    for sigma, loss, bar in zip(LEVELS, model_losses, baseline, strict=True):
        assert loss < bar, sigma


def test_begin():
    photos = problem(size=64, seed=1)
    x, labels = photos.begin(5), photos.labels
    assert x.shape == photos.like.shape == (64, *SHAPE) and x.dtype == photos.like.dtype == torch.float32
    assert x.std().item() == pytest.approx(SIGMA_MAX, rel=0.02) and set(labels.tolist()) == {0, 1}
    other = photos.begin(6)
    assert not torch.equal(x, other) and not torch.equal(x, problem(size=64, seed=2).begin(5))
    assert torch.equal(x, photos.begin(5)) and torch.equal(labels, photos.labels)
    assert photos.model(x, SIGMA_MAX).isfinite().all()
