"""Distilled Sampler in the host against the library called directly: equal to float32 rounding."""

import sys

import inside
import numpy as np
import pytest
from host import PACKS

BATCH, SEED = 6, 5
RANGES = {"edm": (0.002, 80.0), "eps": (0.03, 14.6146), "v_prediction": (0.03, 14.6146), "flow": (0.001, 1.0)}


@pytest.fixture(scope="module")
def pack(digits, tmp_path_factory):
    import folder_paths

    folder_paths.models_dir = str(tmp_path_factory.mktemp("models"))
    return inside.pack(PACKS["comfyui-lmsd"], "comfyui_lmsd_inside")


def odd_schedule(sampling, prediction):
    """Whatever a fit may leave: a first sigma below that of x_T, scales and sums other than 1."""
    import lmsd

    start = float(sampling.sigma_max)
    process = "flow" if prediction == "flow" else "ve"
    first = 0.9 if process == "flow" else 0.2 * start
    levels = {"sigma_max": first, "sigma_start": start, "sigma_min": 0.05, "jump_to_zero": True}
    made = lmsd.solve("dpmpp_3m", nfe=5, process=process, grid="log", **levels).to_dict()
    for i, node in enumerate(made["nodes"]):
        node["scale"] = 1.0 + 0.02 * (-1) ** i
        node["weights"][0] += 0.05
    return lmsd.Schedule.from_json({key: value for key, value in made.items() if key != "made_for"})


@pytest.mark.parametrize("video", [False, True], ids=["4-D", "5-D"])
@pytest.mark.parametrize("prediction", RANGES)
def test_sampler_node_is_the_library(digits, pack, prediction, video):
    import comfy.sample
    import lmsd
    import torch

    guider = inside.guider(digits, prediction, video=video)
    sampling = guider.model_patcher.get_model_object("model_sampling")
    schedule = odd_schedule(sampling, prediction)
    latent = digits.DigitsLatent().empty(BATCH, video)[0]["samples"]
    noise = comfy.sample.prepare_noise(latent, SEED)
    with torch.inference_mode():
        node = pack.NODE_CLASS_MAPPINGS["LmsdSampler"]()
        sampler, sigmas = node.make(schedule, 1.0, guider.model_patcher)
        ours = guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=SEED)

        def direct(model, x, extra_args):
            return lmsd.sample(
                schedule, x, lambda x, sigma: model(x, x.new_full((len(x),), sigma), **extra_args)
            )

        theirs = inside.sample(digits, guider, direct, BATCH, noise=noise, seed=SEED, video=video)
    assert torch.equal(ours, theirs)


def test_sampler_node_is_the_library_on_the_numpy_network(digits, pack):
    """Nothing of the host in the reference: numpy, float64, x_T written out."""
    import comfy.sample
    import lmsd
    import torch

    sys.path.insert(0, str(digits.DIGITS))
    from model import Digits

    guider = inside.guider(digits, "edm")
    schedule = odd_schedule(guider.model_patcher.get_model_object("model_sampling"), "edm")
    latent = digits.DigitsLatent().empty(BATCH, False)[0]["samples"]
    noise = comfy.sample.prepare_noise(latent, SEED)
    with torch.inference_mode():
        sampler, sigmas = pack.NODE_CLASS_MAPPINGS["LmsdSampler"]().make(schedule, 1.0)
        ours = guider.sample(noise, latent, sampler, sigmas, disable_pbar=True, seed=SEED)
    network = Digits(dtype=np.float64)
    x_t = noise.double().numpy() * np.sqrt(1 + 80.0**2)
    labels = np.arange(BATCH) % 10
    theirs = lmsd.sample(schedule, x_t, lambda x, sigma: network.denoise(x, sigma, labels, 3.0))
    assert np.abs(ours.numpy() - theirs).max() < 2e-5
