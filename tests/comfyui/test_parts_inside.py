"""Runs in parts, masks and core's patches in the host, through its own nodes, without a server."""

import inside
import pytest
from host import PACKS
from test_pack_inside import odd_schedule

BATCH, SEED = 6, 5
LABELS = "0,1,2,3,4,5"


@pytest.fixture(scope="module")
def pack(digits, tmp_path_factory):
    import folder_paths

    folder_paths.models_dir = str(tmp_path_factory.mktemp("models"))
    return inside.pack(PACKS["comfyui-lmsd"], "comfyui_lmsd_parts")


def core(name):
    """A module of the host's own nodes."""
    import importlib

    return importlib.import_module(f"comfy_extras.{name}")


def made(pack, guider, prediction, denoise=1.0):
    schedule = odd_schedule(guider.model_patcher.get_model_object("model_sampling"), prediction)
    node = pack.NODE_CLASS_MAPPINGS["LmsdSampler"]()
    return schedule, *node.make(schedule, denoise, guider.model_patcher)


def run(digits, guiders, sampler, parts, samples=None, mask=None):
    """SamplerCustomAdvanced, part after part; the first with RandomNoise, the others with DisableNoise."""
    import torch

    nodes = core("nodes_custom_sampler")
    (latent,) = digits.DigitsLatent().empty(BATCH, False)
    latent = latent if samples is None else {"samples": samples}
    latent |= {} if mask is None else {"noise_mask": mask}
    noise = nodes.Noise_RandomNoise(SEED)
    with torch.inference_mode():
        for guider, sigmas in zip(guiders, parts, strict=True):
            node = nodes.SamplerCustomAdvanced
            sample = node().sample if hasattr(node, "sample") else node.execute  # newer hosts
            found = sample(noise, guider, sampler, sigmas, latent)
            latent = getattr(found, "args", found)[0]
            noise = nodes.Noise_EmptyNoise()
    return latent["samples"]


@pytest.mark.parametrize("prediction", ["edm", "eps", "v_prediction", "flow"])
def test_two_parts_are_the_whole(digits, pack, prediction):
    """Wherever they are cut, to the last bit, through the host's scaling of latents and noise."""
    import torch

    guider = inside.guider(digits, prediction, LABELS)
    schedule, sampler, sigmas = made(pack, guider, prediction)
    whole = run(digits, [guider], sampler, [sigmas])
    for at in range(1, schedule.nfe):
        assert torch.equal(run(digits, [guider] * 2, sampler, [sigmas[: at + 1], sigmas[at:]]), whole)


def test_a_schedule_sets_the_cfg_of_each_step(digits, pack):
    """As a guider whose cfg is set by hand before each call; whole and in two parts, and cfg is put back."""
    import comfy.samplers
    import lmsd
    import torch

    guider = inside.guider(digits, "edm", LABELS, 3.0)
    file = odd_schedule(guider.model_patcher.get_model_object("model_sampling"), "edm").to_dict()
    shares = [0.4, 1.0, 1.3, 0.0, 0.6]
    for node, share in zip(file["nodes"], shares, strict=True):
        node["guidance"] = share
    schedule = lmsd.Schedule.from_json(file)
    sampler, sigmas = pack.NODE_CLASS_MAPPINGS["LmsdSampler"]().make(schedule, 1.0, guider.model_patcher)
    whole = run(digits, [guider], sampler, [sigmas])
    assert guider.cfg == 3.0
    for at in (1, 3):
        assert torch.equal(run(digits, [guider] * 2, sampler, [sigmas[: at + 1], sigmas[at:]]), whole)

    def by_hand(model, x, sigmas, extra_args=None, **_):
        def denoised(x, sigma, share):
            guider.set_cfg(1 + 2 * share)
            return model(x, x.new_full((len(x),), sigma), **extra_args)

        return lmsd.sample(schedule, x * (schedule.sigma_start / float(sigmas[0])), denoised)

    assert torch.equal(run(digits, [guider], comfy.samplers.KSAMPLER(by_hand), [sigmas]), whole)
    plain = lmsd.Schedule.from_json(file | {"nodes": [node | {"guidance": 1} for node in file["nodes"]]})
    sampler, _ = pack.NODE_CLASS_MAPPINGS["LmsdSampler"]().make(plain, 1.0, guider.model_patcher)
    guider.set_cfg(3.0)
    assert not torch.allclose(run(digits, [guider], sampler, [sigmas]), whole)


def test_two_models_share_the_history(digits, pack):
    """The second expert of a trajectory goes on with what the first predicted."""
    import comfy.sample
    import lmsd
    import torch

    first, second = inside.guider(digits, "edm", LABELS, 3.0), inside.guider(digits, "edm", LABELS, 1.0)
    schedule, sampler, sigmas = made(pack, first, "edm")
    got = run(digits, [first, second], sampler, [sigmas[:3], sigmas[2:]])
    (latent,) = digits.DigitsLatent().empty(BATCH, False)
    noise = comfy.sample.prepare_noise(latent["samples"], SEED)
    denoised = {}

    def asked(guider, x, sigma):
        def once(model, x, extra_args, at=x):
            denoised["x0"] = model(at, at.new_full((len(at),), sigma), **extra_args)
            return x

        inside.sample(digits, guider, once, BATCH, noise=noise, seed=SEED)
        return denoised["x0"]

    with torch.inference_mode():
        steps = lmsd.Sampler(schedule, noise * (1 + schedule.sigma_start**2) ** 0.5)
        for x, sigma in steps:
            steps.step(asked(first if steps.index < 2 else second, x, sigma))
    torch.testing.assert_close(got, steps.result, rtol=1e-5, atol=1e-5)


def test_a_mask_keeps_the_known_region(digits, pack):
    """Exactly; euler of the host does so but for rounding."""
    import comfy.samplers
    import torch

    guider = inside.guider(digits, "edm", LABELS)
    schedule, sampler, sigmas = made(pack, guider, "edm")
    assert abs(schedule.weights[-1].sum() - 1) > 0.02
    known = torch.rand(BATCH, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1
    euler = comfy.samplers.sampler_object("euler")
    theirs = run(digits, [guider], euler, [sigmas], known, mask)
    ours = run(digits, [guider], sampler, [sigmas], known, mask)
    torch.testing.assert_close(theirs[..., :4], known[..., :4], rtol=0, atol=1e-5)
    assert torch.equal(ours[..., :4], known[..., :4])
    assert (ours[..., 4:] - known[..., 4:]).abs().mean() > 0.1


def test_a_lora_is_told_from_another_checkpoint(digits, pack):
    """Before it is loaded and while the host samples with it; and after that the weights are the old ones."""
    import sys

    import torch

    weights = sys.modules[f"{pack.__name__}.weights"]
    guider, seen = inside.guider(digits, "edm", LABELS), []
    plain = weights.fingerprint(guider.model_patcher)
    network = guider.model_patcher.model.diffusion_model
    patched = guider.model_patcher.clone()
    names = [f"diffusion_model.{name}" for name, one in network.named_parameters() if one.ndim == 2]
    shapes = {name: patched.model.state_dict()[name].shape for name in names}
    patched.add_patches({name: ("diff", (torch.randn(shape),)) for name, shape in shapes.items()}, 0.5)

    def look(model, x):
        seen.append(weights.fingerprint(model.inner_model.model_patcher))
        return x

    seen.append(weights.fingerprint(patched))
    guider.model_patcher = patched
    before = {name: one.clone() for name, one in network.named_parameters()}
    with torch.inference_mode():
        inside.sample(digits, guider, look, BATCH)
    assert len(shapes) > 0 and len(set(seen)) == 1 and len(seen) == 2
    (said,) = weights.differences(plain, seen[0])
    assert "made without the LoRA or other patch" in said
    assert any(not torch.equal(before[name], one) for name, one in network.named_parameters())
    fresh = inside.guider(digits, "eps", LABELS).model_patcher
    assert weights.differences(plain, weights.fingerprint(fresh)) == []


WINDOWS = {"context_length": 4, "context_overlap": 1, "dim": 0}  # along the batch
PATCHES = {
    "EasyCache": ("nodes_easycache", "EasyCacheNode", {}),
    "LazyCache": ("nodes_easycache", "LazyCacheNode", {}),
    "context windows": ("nodes_context_windows", "ContextWindowsManualNode", WINDOWS),
}


def patch(node, model, **given):
    """What a node of core gives for a MODEL, with its own defaults for all that is not given."""
    inputs = [one for one in node.define_schema().inputs if one.id != "model"]
    first = {one.id: one.options[0] for one in inputs if getattr(one, "options", None)}
    rest = {one.id: one.default for one in inputs if one.default is not None}
    return node.execute(model=model, **(first | rest | given)).args[0]


@pytest.fixture(params=PATCHES)
def patched(request, digits, comfyui):
    """A guider of the digits model with one of core's patches."""
    module, name, options = PATCHES[request.param]
    if not (comfyui / "comfy_extras" / f"{module}.py").is_file():
        pytest.skip(f"this host has no {name}")
    guider = inside.guider(digits, "edm", LABELS)
    guider.model_patcher = patch(getattr(core(module), name), guider.model_patcher, **options)
    guider.model_options = guider.model_patcher.model_options
    return guider


def test_patches_of_core_sample(digits, pack, patched):
    """0.3.64 compares a list of levels with a batch of them, so both must be as long: 6."""
    _, sampler, sigmas = made(pack, patched, "edm")
    assert len(sigmas) == BATCH
    assert run(digits, [patched], sampler, [sigmas]).isfinite().all()


def test_patches_of_core_distill(digits, pack, patched):
    """With a cache to the very schedule of the plain model, since it is off."""
    import torch

    settings = {"nfe": 2, "nfe_from": 0, "trajectories": 8, "batch_size": 6, "minutes": 0.0, "compare": False}
    found = {}
    for name, guider in {"plain": inside.guider(digits, "edm", LABELS), "patched": patched}.items():
        with torch.inference_mode():
            node = pack.NODE_CLASS_MAPPINGS["LmsdDistillGuider"]()
            noise = core("nodes_custom_sampler").Noise_RandomNoise(1)
            (latent,) = digits.DigitsLatent().empty(1, False)
            (found[name],) = node.run(guider, noise, latent, name=name, **settings)
    assert found["patched"].made_by["improved"]
    if "easycache" in patched.model_options.get("transformer_options", {}):
        assert found["patched"].to_dict()["nodes"] == found["plain"].to_dict()["nodes"]


def test_a_full_disk_loses_no_schedule(digits, pack, monkeypatch, caplog):
    """It goes downstream, and the log says what could not be written, with its text."""
    import lmsd
    import torch

    def failing(self, path):
        raise lmsd.Error(f"{path}: No space left on device (os error 28)", lmsd.Status.IO)

    monkeypatch.setattr(lmsd.Schedule, "save", failing)
    settings = {"nfe": 2, "nfe_from": 0, "trajectories": 8, "batch_size": 6, "minutes": 0.0, "compare": False}
    guider = inside.guider(digits, "edm", LABELS)
    noise = core("nodes_custom_sampler").Noise_RandomNoise(1)
    (latent,) = digits.DigitsLatent().empty(1, False)
    with torch.inference_mode():
        node = pack.NODE_CLASS_MAPPINGS["LmsdDistillGuider"]()
        (schedule,) = node.run(guider, noise, latent, name="full", **settings)
        sampler, sigmas = pack.NODE_CLASS_MAPPINGS["LmsdSampler"]().make(schedule, 1.0)
    assert schedule.made_by["improved"]
    assert "No space left" in caplog.text and schedule.to_json() in caplog.text
    assert run(digits, [guider], sampler, [sigmas]).isfinite().all()
