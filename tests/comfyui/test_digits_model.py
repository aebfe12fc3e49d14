"""The digits model inside the host against the one in numpy, in float64: equal to float32 rounding."""

import sys

import inside
import numpy as np
import pytest

SIGMAS = {
    "edm": (0.002, 0.05, 0.3, 1.0, 5.0, 14.0, 80.0),
    "eps": (0.03, 0.05, 0.3, 1.0, 5.0, 14.0, 14.6),
    "v_prediction": (0.03, 0.05, 0.3, 1.0, 5.0, 14.0, 14.6),
    "flow": (0.001, 0.01, 0.1, 0.5, 0.9, 0.98, 80 / 81, 0.995, 1.0),
}
GUIDANCE, PROMPTS, BATCH = 3.0, 5, 12


@pytest.fixture(scope="module")
def reference(digits):
    sys.path.insert(0, str(digits.DIGITS))
    from model import Digits

    return Digits(dtype=np.float64)


def expected(reference, prediction, table, x, sigma, labels):
    """What the host's arithmetic makes of the network, all in float64."""

    def network(x, sigma):
        return reference.denoise(x, sigma, labels, GUIDANCE)

    if prediction == "edm":
        return network(x, sigma)
    if prediction == "flow":  # x = (1 - sigma) x0 + sigma n; pure noise is told to be 80
        level = sigma / (1 - sigma) if sigma < 1 else np.inf
        return network(x * (1 + level), level) if level < 80 else network(x * (80 / sigma), 80.0)
    snapped = table[np.abs(np.log(table) - np.log(sigma)).argmin()]
    seen = x / np.sqrt(1 + sigma**2) * np.sqrt(1 + snapped**2)
    denoised = network(seen, snapped)
    if prediction == "eps":
        return x - sigma * (seen - denoised) / snapped
    v = (seen / (1 + snapped**2) - denoised) * np.sqrt(1 + snapped**2) / snapped
    return x / (1 + sigma**2) - v * sigma / np.sqrt(1 + sigma**2)


@pytest.mark.parametrize("video", [False, True], ids=["4-D", "5-D"])
@pytest.mark.parametrize("prediction", SIGMAS)
def test_denoised(digits, reference, prediction, video):
    import torch

    guider = inside.guider(digits, prediction, ",".join(map(str, range(PROMPTS))), GUIDANCE, video)
    table = guider.model_patcher.get_model_object("model_sampling").sigmas.double().numpy()
    labels = np.arange(BATCH) % PROMPTS
    random = torch.Generator().manual_seed(2)
    errors = []

    def check(model, x, extra_args):
        x0 = torch.sin(torch.arange(x.numel())).view_as(x)
        for sigma in map(np.float32, SIGMAS[prediction]):
            noise = torch.randn(x.shape, generator=random)
            noisy = ((1 - sigma) * x0 if prediction == "flow" else x0) + sigma * noise
            got = model(noisy, float(sigma) * x.new_ones([len(x)]), **extra_args)
            want = expected(
                reference,
                prediction,
                table,
                noisy.double().numpy().reshape(-1, 1, 8, 8),
                float(sigma),
                labels,
            )
            rounding = 1e-6 * max(1, np.abs(noisy.numpy()).max() if prediction == "eps" else 0)
            errors.append(np.abs(got.numpy().reshape(want.shape) - want).max() / rounding)
        return x

    inside.sample(digits, guider, check, batch=BATCH, video=video)
    print("errors in units of rounding:", *(f"{error:.2f}" for error in errors))
    assert len(errors) == len(SIGMAS[prediction]) and max(errors) < 5


def test_labels_repeat_over_the_batch(digits):
    """Image i of a batch gets label i mod prompts, whatever the size of the batch."""
    results = {}
    for text in ("0,1,2", "1"):
        guider = inside.guider(digits, "edm", text, GUIDANCE)

        def keep(model, x, extra_args, text=text):
            import torch

            noisy = 5 * torch.ones_like(x)
            results[text] = model(noisy, 5 * x.new_ones([len(x)]), **extra_args)
            return x

        inside.sample(digits, guider, keep, batch=7)
    for i in range(7):
        same = np.allclose(results["0,1,2"][i], results["1"][i], atol=1e-5)
        assert same == (i % 3 == 1)
