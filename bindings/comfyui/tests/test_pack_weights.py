"""What files say of the weights and of what a network predicts, and what nodes say where a run has others."""

import collections

import lmsd
import pytest
import torch
from fake_comfy import Model, RandomNoise
from test_pack_distill import distill
from test_pack_ksampler import asked, run, saved, taken  # noqa: F401

OTHER = "the schedule was made for another checkpoint"
NEAR = "the schedule was made for weights near these"
Kept = collections.namedtuple("Kept", ["weight", "inplace_update"])  # the host's backup of a weight


def network(seed, width=32):
    torch.manual_seed(seed)
    layers = [torch.nn.Conv2d(4, width, 3), torch.nn.GroupNorm(4, width)]
    layers += [torch.nn.Linear(width, width) for _ in range(6)]
    made = torch.nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return made


def model(seed, kind="edm", dtype=torch.float32, **options):
    made = Model(kind, **options)
    made.model.diffusion_model = network(seed).to(dtype)
    return made


@pytest.fixture
def weights(pack):
    return pack.submodule("weights")


def compared(weights, one, other):
    return weights.differences(weights.fingerprint(one), weights.fingerprint(other))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("made", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_a_checkpoint_is_the_same_in_any_precision(weights, seed, made, dtype):
    assert compared(weights, model(seed, dtype=made), model(seed, dtype=dtype)) == []


@pytest.mark.parametrize("seed", range(5))
def test_what_is_near_is_called_near(weights, seed):
    """Eight bits, or a finetune; not another training."""
    plain, tuned, other = model(seed), model(seed), model(seed + 100)
    with torch.no_grad():
        for parameter in tuned.model.diffusion_model.parameters():
            parameter += 0.03 * parameter.std() * torch.randn_like(parameter)
    eight = model(seed, dtype=torch.float8_e4m3fn)
    for one, words in ((tuned, NEAR), (eight, NEAR), (other, OTHER)):
        (said,) = compared(weights, plain, one)
        assert said.startswith(words)
    ranks = [
        weights.rank(weights.fingerprint(plain), weights.fingerprint(one)) for one in (plain, tuned, other)
    ]
    assert (
        ranks == sorted(set(ranks)) and ranks[1] < weights.rank(None, weights.fingerprint(plain)) < ranks[2]
    )


def test_what_cannot_be_read_is_left_out(weights):
    """Packed integers, weights that are not there yet, tensors that raise; of the rest the same is read."""
    plain, packed = model(1), model(1)

    class Odd(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function in (torch.Tensor.select, torch.Tensor.to):
                raise NotImplementedError("no such kernel")
            return super().__torch_function__(function, types, args, kwargs or {})

    for at, layer in enumerate(packed.model.diffusion_model[2:6]):
        with torch.no_grad():
            packed_weight = torch.zeros(32, 16, dtype=torch.uint8)
            odd = torch.nn.Parameter(layer.weight.detach().as_subclass(Odd), requires_grad=False)
            layer.weight = torch.nn.Parameter(packed_weight, requires_grad=False) if at % 2 else odd
    text = weights.fingerprint(packed)
    assert 0 < len(text) < len(weights.fingerprint(plain)) < 300
    assert compared(weights, plain, packed) == compared(weights, packed, plain) == []
    assert compared(weights, model(2), packed) != []
    with torch.device("meta"):
        nothing = torch.nn.Linear(4, 4)
    plain.model.diffusion_model = nothing
    assert weights.fingerprint(plain) is None and weights.fingerprint(Model("edm")) is None
    for garbage in ("", "x", "1234=zz", "=,=+|", None):
        assert weights.differences(garbage, text) in ([], [OTHER])


def test_little_is_read(weights):
    """Four numbers of a parameter, whatever its size: no copy of it."""
    read = []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            out = super().__torch_function__(function, types, args, kwargs or {})
            if torch.is_tensor(out) and function not in (torch.Tensor.select, torch.Tensor.detach):
                read.append(out.numel())
            return out

    one = model(1)
    for layer in one.model.diffusion_model:
        layer.weight = torch.nn.Parameter(layer.weight.detach().as_subclass(Watched), requires_grad=False)
    read.clear()
    weights.fingerprint(one)
    assert read and max(read) <= 8


def lora(one, strength=0.8, seed=0, loaded=False):
    """Patches as the host keeps them; `loaded`: the weights have them, and it has a copy of those before."""
    torch.manual_seed(seed)
    for name, parameter in one.model.diffusion_model.named_parameters():
        if parameter.ndim == 2:
            up, down = torch.randn(32, 2), torch.randn(2, 32)
            key = f"diffusion_model.{name}"
            one.patches[key] = [(strength, ("lora", (up, down, 1.0, None)), 1.0, None, None)]
            if loaded:
                one.backup[key] = Kept(parameter.detach().clone(), False)
                with torch.no_grad():
                    parameter += strength * up @ down
    return one


def test_a_lora_is_called_that(weights):
    """Whether the host has loaded it or not; the checkpoint below it is the same."""
    plain = model(1)
    for loaded in (False, True):
        (said,) = compared(weights, plain, lora(model(1), loaded=loaded))
        assert "made without the LoRA or other patch" in said
        assert compared(weights, lora(model(1)), lora(model(1), loaded=loaded)) == []
    (said,) = compared(weights, lora(model(1)), plain)
    assert "made with a LoRA or other patch of the weights; this run has none" in said
    for changed in ({"strength": 0.7}, {"seed": 5}):
        (said,) = compared(weights, lora(model(1)), lora(model(1), **changed))
        assert "another LoRA, or another strength" in said
    assert compared(weights, lora(model(1)), model(2)) == [OTHER]


def test_two_models_of_one_schedule(weights):
    """A file for both fits each of them, and both."""
    made = weights.fingerprint(model(1), model(2))
    for models in ([model(1)], [model(2)], [model(1), model(2)]):
        assert weights.differences(made, weights.fingerprint(*models)) == []
    for models in ([model(3)], [model(1), model(3)]):
        assert weights.differences(made, weights.fingerprint(*models)) == [OTHER]


# ---- through the nodes


def sampled(pack, host, one, schedule):
    """What the node says while it samples."""
    host.texts.clear()
    sampler, sigmas = pack.run("LmsdSampler", schedule=schedule, model=one)
    latent = torch.zeros(1, 4, 2, 2)
    noise = RandomNoise(3).generate_noise({"samples": latent})
    assert host.sample(host.guider(one), noise, latent, sampler, sigmas).isfinite().all()
    return [text for _, text in host.texts]


def test_the_node_says_that_it_is_another_checkpoint(pack, host):
    """And samples with it. Files without a fingerprint say nothing, nor do models without weights."""
    schedule = distill(pack, model(1))
    assert sampled(pack, host, model(1), schedule) == []
    assert sampled(pack, host, model(2), schedule) == [OTHER]
    (said,) = sampled(pack, host, lora(model(1)), schedule)
    assert "LoRA" in said
    assert sampled(pack, host, Model("edm"), schedule) == []
    old = schedule.to_dict()
    for name in ("fingerprint", "prediction"):
        assert old["made_for"].pop(name)
    assert sampled(pack, host, model(2), lmsd.Schedule.from_json(old)) == []


def test_the_files_of_a_family_know_each_other(pack, host):
    """Under any name; no others. Below denoise 1 the node names the file with as many steps."""
    distill(pack, model(1), nfe=4, nfe_from=2)
    distill(pack, model(1), nfe=4, seed=1)
    folder = host.models / "lmsd_schedules"
    (folder / "toy nfe04.json").rename(folder / "renamed.json")
    (folder / "broken.json").write_text("{")
    families = {path.name: lmsd.Schedule.load(path).made_for["family"] for path in folder.glob("*nfe*.json")}
    assert families["toy nfe02.json"] == families["toy nfe03.json"] != families["toy (2) nfe04.json"]
    two = pack.run("LmsdLoadSchedule", schedule="toy nfe02.json")[0]
    siblings = pack.submodule("host").siblings(two)
    assert {file: one.nfe for file, one in siblings.items()} == {
        "toy nfe02.json": 2,
        "toy nfe03.json": 3,
        "renamed.json": 4,
    }
    said = {}
    for denoise in (0.3, 0.5, 0.7, 1.0):
        host.texts.clear()
        _, sigmas = pack.run("LmsdSampler", schedule=two, model=model(1), denoise=denoise)
        start = float(sigmas[0])
        file = next((file for file, one in siblings.items() if one.start_at(start).nfe == 2), None)
        assert len(host.texts) == (denoise < 1 and len(sigmas) == 2 and file is not None)
        for node, text in host.texts:
            assert (node, text) == (
                "sample",
                f"denoise {denoise:g} leaves 1 of 2 steps; {file} has 2 from there",
            )
            said[denoise] = file
    assert said


def test_the_load_node_says_so_at_once(pack, host):
    distill(pack, model(1))
    for seed, said in ((1, []), (2, [("sample", OTHER)])):
        host.texts.clear()
        pack.run("LmsdLoadSchedule", schedule="toy nfe02.json", model=model(seed))
        assert host.texts == said


@pytest.mark.parametrize(
    ("kind", "predicts"),
    [("eps", "eps"), ("v", "v"), ("edm", "edm"), ("x0", "x0"), ("flow", "flow"), ("cosmos", "flow")],
)
def test_what_the_network_predicts_is_in_the_file(pack, host, kind, predicts):
    assert distill(pack, Model(kind)).made_for["prediction"] == predicts


def test_eps_against_v(pack, host):
    """Of the same family and the same noise levels: taken, with a sentence."""
    schedule = distill(pack, Model("eps"))
    (said,) = sampled(pack, host, Model("v"), schedule)
    assert said == "the schedule was made for a model that predicts eps; this run has one that predicts v"


def test_a_latent_that_is_told_other_steps(pack, host):
    """`snapped`, at last: a model whose levels are not rounded to training steps."""
    schedule = lmsd.Schedule.from_json(
        (old := distill(pack, Model("edm")).to_dict()) | {"made_for": old["made_for"] | {"snapped": True}}
    )
    (said,) = sampled(pack, host, Model("edm"), schedule)
    assert "a model that is told the nearest of its training steps; this run has one that is told any" in said


def test_the_ksampler_entry_takes_the_file_of_the_checkpoint(asked, host):  # noqa: F811
    """Before guidance scale and age; one of unknown weights before one of others."""
    prints = {seed: asked.submodule("weights").fingerprint(model(seed)) for seed in (1, 2)}
    one = {"model": model(1), "steps": 4}
    about = {"guidance_scale": 1.0}
    saved(asked, host, "other", 1000, about | {"fingerprint": prints[2]}, **one)
    saved(asked, host, "other prediction", 10, about | {"fingerprint": prints[1], "prediction": "v"}, **one)
    run(host, model(1), 4)
    assert taken(host) == "other" and OTHER in host.texts[-1][1]
    saved(asked, host, "unknown", 2000, about, **one)
    run(host, model(1), 4)
    assert taken(host) == "unknown"
    saved(asked, host, "own", 3000, {"guidance_scale": 3.0, "fingerprint": prints[1]}, **one)
    run(host, model(1), 4)
    assert taken(host) == "own" and "guidance scale 3; this run has 1" in host.texts[-1][1]
