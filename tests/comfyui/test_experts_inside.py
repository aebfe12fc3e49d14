"""Two models that share a trajectory, in the host: two of them, and two versions of one that patches make."""

import inside
import pytest
from host import PACKS
from test_parts_inside import BATCH, LABELS, core, run

BOUNDARIES = {"edm": 2.0, "eps": 2.0, "flow": 0.8}


@pytest.fixture(scope="module")
def pack(digits, tmp_path_factory):
    import folder_paths

    folder_paths.models_dir = str(tmp_path_factory.mktemp("models"))
    return inside.pack(PACKS["comfyui-lmsd"], "comfyui_lmsd_experts")


def node(pack, name, method, *inputs):
    return getattr(pack.NODE_CLASS_MAPPINGS[name](), method)(*inputs)


def patched(guider, strength=0.1):
    """A guider of the same weights as they are with a LoRA: the host has to patch them, and undo it."""
    import comfy.samplers
    import torch

    clone = guider.model_patcher.clone()
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: weight
        for name, weight in clone.model.state_dict().items()
        if name.startswith("diffusion_model.net") and name.endswith("weight") and weight.ndim > 1
    }
    noise = {
        name: (torch.randn(weight.shape, generator=generator) * weight.std(),)
        for name, weight in weights.items()
    }
    assert len(clone.add_patches(noise, strength)) == len(weights) > 3
    made = comfy.samplers.CFGGuider(clone)
    made.original_conds, made.cfg = guider.original_conds, 2.0
    return made


def experts(digits, prediction, one_base):
    high = inside.guider(digits, prediction, LABELS, 3.0)
    return high, patched(high if one_base else inside.guider(digits, prediction, LABELS))


def table(guider, prediction):
    """A published solver with history on levels to both sides of the boundary."""
    import lmsd

    sampling = guider.model_patcher.get_model_object("model_sampling")
    process = "flow" if prediction == "flow" else "ve"
    levels = {"sigma_max": float(sampling.sigma_max), "sigma_min": 0.05, "jump_to_zero": True}
    made = lmsd.solve("dpmpp_3m", nfe=6, process=process, grid="log", **levels).to_dict()
    return lmsd.Schedule.from_json(made | {"made_for": {"boundary": BOUNDARIES[prediction]}})


@pytest.mark.parametrize("one_base", [False, True], ids=["two models", "one with patches"])
@pytest.mark.parametrize("prediction", BOUNDARIES)
def test_one_sampler_with_both_is_two_samplers(digits, pack, prediction, one_base):
    """To the last bit; and not what either of them would do alone."""
    import torch

    high, low = experts(digits, prediction, one_base)
    schedule = table(high, prediction)
    sampler, sigmas = node(pack, "LmsdSampler", "make", schedule, 1.0)
    parts = node(pack, "LmsdSplit", "split", schedule, sigmas)
    assert 1 < len(parts[0]) < len(sigmas)
    both = node(pack, "LmsdExperts", "make", high, low, BOUNDARIES[prediction])[0]
    halves = run(digits, [high, low], sampler, parts)
    assert torch.equal(run(digits, [both], sampler, [sigmas]), halves)
    for guider in (high, low):
        alone = run(digits, [guider], sampler, [sigmas])
        assert (alone - halves).flatten(1).norm(dim=1).mean() > 0.05
    assert torch.equal(run(digits, [high, low], sampler, parts), halves)  # every patch was undone


@pytest.mark.parametrize("one_base", [False, True], ids=["two models", "one with patches"])
def test_distilling_for_two(digits, pack, one_base):
    """Each is called on its side; the file, on unseen noise, is nearer than solvers of as many steps."""
    import comfy.samplers
    import torch

    high, low = experts(digits, "edm", one_base)
    both = node(pack, "LmsdExperts", "make", high, low, BOUNDARIES["edm"])[0]
    heard = {"high": [], "low": []}
    for guider, name in ((high, "high"), (low, "low")):
        inner = guider.predict_noise

        def predict_noise(x, timestep, *args, inner=inner, heard=heard[name], **named):
            heard.append(float(timestep.max()))
            return inner(x, timestep, *args, **named)

        guider.predict_noise = predict_noise
    (latent,) = digits.DigitsLatent().empty(1, False)
    (schedule,) = node_distill(pack, both, latent)
    assert min(heard["high"]) >= 2.0 > max(heard["low"])
    assert schedule.made_by["improved"] and schedule.made_for["boundary"] == 2.0
    assert schedule.made_for["guidance_scale"] == 3.0 and schedule.made_for["guidance_scale_2"] == 2.0

    def end(made):
        sampler, sigmas = node(pack, "LmsdSampler", "make", made, 1.0)
        return run(digits, [both], sampler, [sigmas])

    def solved(solver, steps, rho=7.0):
        inputs = high.model_patcher, solver, steps, "karras", rho, 0.0, True
        return end(node(pack, "LmsdSolver", "solve", *inputs)[0])

    def distance(images):
        return float((images - many).flatten(1).norm(dim=1).mean())

    many = solved("dpmpp_2m", 200)
    rivals = [solved(solver, 4, rho) for solver in ("euler", "dpmpp_2m", "ipndm_3") for rho in (5.0, 7.0)]
    assert distance(end(schedule)) < 0.7 * min(map(distance, rivals))
    own = comfy.samplers.sampler_object("euler")
    sigmas = torch.tensor([80.0, 20.0, 5.0, 1.0, 0.2, 0.0])
    assert run(digits, [both], own, [sigmas]).isfinite().all()


def node_distill(pack, guider, latent):
    import torch

    noise = core("nodes_custom_sampler").Noise_RandomNoise(0)
    options = {"name": "two", "nfe": 4, "nfe_from": 0, "trajectories": 32, "batch_size": BATCH}
    with torch.inference_mode():
        return pack.NODE_CLASS_MAPPINGS["LmsdDistillGuider"]().run(
            guider, noise, latent, **options, minutes=0.0, compare=False
        )
