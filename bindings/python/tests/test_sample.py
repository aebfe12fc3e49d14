"""Sampling: against the same loop in numpy, in its three forms, with every kind of tensor."""

import copy
import ctypes
import gc
import weakref
from pathlib import Path

import lmsd
import numpy as np
import pytest
import torch
from lmsd import _abi
from lmsd._hosts import host_for

SCHEDULES = [
    lmsd.solve("euler", nfe=6),
    lmsd.solve("dpmpp_3m", nfe=7, sigma_end=0.002),
    lmsd.solve("heun", nfe=7),
    lmsd.solve("ipndm_4", nfe=8, grid="log", sigma_start=90.0),
    lmsd.Schedule.from_json(
        lmsd.solve("unipc_bh2_3", nfe=2).to_dict()
        | {
            "nodes": [
                {"sigma": 8, "scale": 0.9, "weights": [1.1]},
                {"sigma": 1, "scale": 1.1, "weights": [1.2, -0.3]},
            ]
        }
    ),
]


def loop(schedule, x, model, replace=lambda x, sigma: x):
    """The recurrence, as its definition reads; `replace` changes each state before it is used."""
    sigmas, history = schedule.sigmas, []
    x = sigmas[0] / schedule.sigma_start * x
    for n in range(schedule.nfe):
        x = replace(x, sigmas[n])
        history.insert(0, model(x, schedule.scales[n] * sigmas[n]))
        r = sigmas[n + 1] / sigmas[n]
        g = 1 - r if r != 1 else 1
        x = r * x + g * sum(w * d for w, d in zip(schedule.weights[n], history, strict=False))
    return x


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.made_by.get('solver')}-{s.nfe}")
def test_sample_is_the_plain_loop(schedule, mixture):
    x = mixture.begin(0)
    before, expected = x.copy(), loop(schedule, x, mixture.model)
    result = lmsd.sample(schedule, x, mixture.model)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)
    assert (x == before).all() and result.dtype == x.dtype and not np.shares_memory(result, x)

    sampler = lmsd.Sampler(schedule, x)
    for state, sigma in sampler:
        sampler.step(mixture.model(state, sigma))
    assert (sampler.result == result).all()

    of_torch = lmsd.sample(schedule, torch.from_numpy(x), mixture.model)
    np.testing.assert_allclose(of_torch.numpy(), result, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [str, Path])
def test_the_path_of_a_schedule_will_do(kind, mixture, tmp_path):
    x, path = mixture.begin(0), tmp_path / "a.json"
    SCHEDULES[0].save(path)
    expected = lmsd.sample(SCHEDULES[0], x, mixture.model)
    assert (lmsd.sample(kind(path), x, mixture.model) == expected).all()
    sampler = lmsd.Sampler(kind(path), x)
    assert sampler.schedule == SCHEDULES[0]
    for state, sigma in sampler:
        sampler.step(mixture.model(state, sigma))
    assert (sampler.result == expected).all()


@pytest.mark.parametrize(
    "given", [None, 5, {5: SCHEDULES[0]}, SCHEDULES[:1], lmsd.Distilled({}, {"family": []})]
)
def test_what_is_no_schedule_is_named(given, mixture):
    words = f"^schedule is {type(given).__name__}; a Schedule or the path of its file is needed$"
    for run in (
        lambda: lmsd.sample(given, mixture.begin(0), None),
        lambda: lmsd.Sampler(given, mixture.begin(0)),
    ):
        with pytest.raises(TypeError, match=words):
            run()
    with pytest.raises(lmsd.Error, match="none.json"):
        lmsd.sample("none.json", mixture.begin(0), None)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float16", 0.04), ("bfloat16", 0.3)])
def test_lower_precisions_of_numpy_and_torch_agree(dtype, tolerance, mixture):
    schedule = lmsd.solve(nfe=6, sigma_end=0.002)
    exact = lmsd.sample(schedule, mixture.begin(0), mixture.model)
    x = torch.from_numpy(mixture.begin(0)).to(getattr(torch, dtype))
    result = lmsd.sample(schedule, x, mixture.model)
    assert result.dtype == x.dtype and result.shape == x.shape
    assert np.abs(result.double().numpy() - exact).max() < tolerance
    if dtype == "bfloat16":
        numpy_dtype = pytest.importorskip("ml_dtypes").bfloat16
    else:
        numpy_dtype = dtype
    of_numpy = lmsd.sample(schedule, x.double().numpy().astype(numpy_dtype), mixture.model)
    assert of_numpy.dtype == numpy_dtype
    assert np.abs(of_numpy.astype(np.float64) - result.double().numpy()).max() < tolerance


def test_host_operations_of_torch_equal_those_of_the_library(mixture):
    rng = np.random.default_rng(0)
    for dtype, tolerance in [(np.float64, 1e-13), (np.float32, 1e-6), (np.float16, 1e-3)]:
        arrays = [rng.normal(size=(3, 5, 7)).astype(dtype) for _ in range(4)]
        factors = [0.3, -2.0, 0.0, 1e-3]
        arrays[2][:] = np.nan  # factor 0: counts as absent
        found, grams = [], []
        for kind in (lambda a: a, torch.from_numpy):
            terms = [kind(a) for a in arrays]
            host = host_for(terms[0])
            found.append(np.asarray(host.combine(factors, terms)))
            gram = (ctypes.c_double * (3 * 9))()
            host.inner_products([terms[0], terms[1], terms[3]], gram)
            grams.append(np.array(gram).reshape(3, 3, 3))
        assert found[0].dtype == found[1].dtype == dtype
        np.testing.assert_allclose(found[0], found[1], rtol=tolerance, atol=tolerance)
        flat = np.stack([arrays[0], arrays[1], arrays[3]], 1).reshape(3, 3, -1).astype(np.float64)
        np.testing.assert_allclose(grams[0], flat @ flat.transpose(0, 2, 1), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(grams[1], grams[0], rtol=1e-12, atol=1e-12)


def test_gram_matrices_of_torch_are_made_in_blocks(monkeypatch):
    from lmsd import _hosts

    columns = [torch.randn(2, 3, 11) for _ in range(3)]
    whole, blocks = (ctypes.c_double * 18)(), (ctypes.c_double * 18)()
    host_for(columns[0]).inner_products(columns, whole)
    monkeypatch.setattr(_hosts, "GRAM_BYTES", 8 * 2 * 3 * 4)
    host_for(columns[0]).inner_products(columns, blocks)
    np.testing.assert_allclose(blocks, whole, rtol=1e-12, atol=1e-12)


def test_the_built_in_backend_gives_the_same_bits(mixture):
    """lmsd_sample with no host at all, on the memory of numpy arrays."""
    schedule, x = SCHEDULES[1], mixture.begin(0)
    host, out, seen = host_for(x), np.empty_like(x), []

    def view(tensor):
        data = ctypes.cast(tensor, ctypes.POINTER(_abi.Tensor)).contents.data
        return np.ctypeslib.as_array(ctypes.cast(data, ctypes.POINTER(ctypes.c_double)), shape=x.shape)

    @_abi.MODEL
    def model(_user_data, call, state, denoised):
        call = call.contents
        view(denoised)[...] = mixture.model(view(state), call.sigma)
        seen.append((call.node, call.nfe, call.purpose, call.struct_size))
        return 0

    x_t, end = (host.operations.descriptor(array) for array in (x, out))
    tensors = ctypes.addressof(x_t), ctypes.addressof(end)
    observer = _abi.OBSERVER()
    _abi.check(_abi.lib.lmsd_sample(schedule._handle, None, tensors[0], model, observer, None, tensors[1]))
    assert (out == lmsd.sample(schedule, x, mixture.model)).all()
    assert seen == [(n, 7, _abi.Purpose.SAMPLE, ctypes.sizeof(_abi.Call)) for n in range(7)]


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_the_callback_sees_every_step(kind, mixture):
    schedule, start = SCHEDULES[4], kind(mixture.begin(0))
    seen, told = [], []

    def model(state, sigma):
        told.append((state, sigma))
        return mixture.model(state, sigma)

    result = lmsd.sample(schedule, start, model, seen.append)
    assert [sorted(step) for step in seen] == [["denoised", "i", "sigma", "sigma_hat", "x"]] * 2
    assert [step["i"] for step in seen] == [0, 1]
    assert [step["sigma"] for step in seen] == [8.0, 1.0]
    assert [step["sigma_hat"] for step in seen] == [sigma for _, sigma in told] == [7.2, 1.1]
    for step, (state, sigma) in zip(seen, told, strict=True):  # still what they were
        assert step["x"] is state and type(step["x"]) is type(start)
        assert (np.asarray(step["denoised"]) == np.asarray(mixture.model(state, sigma))).all()
    assert result is not seen[-1]["x"]


def test_torch_keeps_the_tensor_that_the_model_returned(mixture):
    returned, seen = [], []

    def model(x, sigma):
        returned.append(mixture.model(x, sigma))
        return returned[-1]

    lmsd.sample(
        SCHEDULES[0], torch.from_numpy(mixture.begin(0)), model, lambda step: seen.append(step["denoised"])
    )
    assert [d.data_ptr() for d in seen] == [d.data_ptr() for d in returned]


def test_a_numpy_model_may_write_to_one_array_again_and_again(mixture):
    schedule, x = SCHEDULES[1], mixture.begin(0)
    buffer = np.empty_like(x)

    def model(state, sigma):
        buffer[...] = mixture.model(state, sigma)
        return buffer

    assert (lmsd.sample(schedule, x, model) == lmsd.sample(schedule, x, mixture.model)).all()


def test_any_layout_is_taken(mixture):
    schedule = lmsd.solve(nfe=4)
    x = mixture.begin(0)
    expected = lmsd.sample(schedule, x, mixture.model)
    wide = np.repeat(x, 2, axis=2)[:, :, ::2]
    swapped = x.astype(x.dtype.newbyteorder())
    for layout in (np.asfortranarray(x), wide, swapped):
        assert (lmsd.sample(schedule, layout, mixture.model) == expected).all()
    turned = torch.from_numpy(np.asfortranarray(x))
    assert not turned.is_contiguous()
    np.testing.assert_allclose(lmsd.sample(schedule, turned, mixture.model).numpy(), expected, atol=1e-12)
    transposed = lmsd.sample(schedule, x, lambda a, sigma: np.asfortranarray(mixture.model(a, sigma)))
    assert (transposed == expected).all()


def test_works_under_inference_mode_and_records_no_gradient(mixture):
    schedule, x = lmsd.solve(nfe=4), torch.from_numpy(mixture.begin(0))
    factor = torch.ones((), dtype=x.dtype, requires_grad=True)
    result = lmsd.sample(schedule, x, lambda a, sigma: mixture.model(a, sigma) * factor)
    assert not result.requires_grad and not result.is_inference()
    with torch.inference_mode():
        assert (lmsd.sample(schedule, x * 1, mixture.model) == result).all()
        sampler = lmsd.Sampler(schedule, x * 1)
        for state, sigma in sampler:
            sampler.step(mixture.model(state, sigma))
        assert (sampler.result == result).all()


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((2, 3), int), "dtype int64"),
        (np.zeros((2, 3), complex), "dtype complex128"),
        (torch.zeros(2, 3, dtype=torch.int32), "dtype int32"),
        (np.float64(3), r"shape \[\]"),
        (torch.zeros(2, 0), r"shape \[2, 0\]"),
    ],
)
def test_tensors_that_cannot_be_sampled_are_refused(x, words):
    with pytest.raises(lmsd.Error, match=words) as raised:
        lmsd.sample(lmsd.solve(nfe=3), x, lambda x, sigma: x)
    assert raised.value.status == lmsd.Status.INVALID_TENSOR


@pytest.mark.parametrize(
    ("x", "model", "words"),
    [
        (
            np.ones((2, 3)),
            lambda x, sigma: x[:1],
            r"the model returned a tensor of shape \[1, 3\]; it must be \[2, 3\]",
        ),
        (torch.ones(2, 3), lambda x, sigma: x[:, :1], r"the model returned a tensor of shape \[2, 1\]"),
        (torch.ones(2, 3), lambda x, sigma: None, "the model returned NoneType"),
        (
            torch.ones(2, 3),
            lambda x, sigma: x.to("meta"),
            "the model returned a tensor on meta; it must be on cpu",
        ),
    ],
)
def test_what_the_model_returns_must_fit(x, model, words):
    with pytest.raises(lmsd.Error, match=words):
        lmsd.sample(lmsd.solve(nfe=3), x, model)
    sampler = lmsd.Sampler(lmsd.solve(nfe=3), x)
    with pytest.raises(lmsd.Error, match=words.replace("the model returned", "denoised is")):
        sampler.step(model(*sampler.next()))
    if (state := model(*sampler.next())) is not None:
        with pytest.raises(lmsd.Error, match=words.replace("the model returned", "x is")):
            sampler.step(x, state)
    assert sampler.index == 0


def test_a_prediction_that_is_not_finite_is_named(mixture):
    for kind in (np.asarray, torch.from_numpy):
        x = kind(mixture.begin(0))

        def model(x, sigma):
            d = mixture.model(x, sigma)
            if sigma < 1:
                d[3, 0, 1] = np.nan
            return d

        with pytest.raises(lmsd.Error, match="node 3 .*trajectory 3") as raised:
            lmsd.sample(lmsd.solve(nfe=5), x, model)
        assert raised.value.status == lmsd.Status.NON_FINITE


def test_step_form_by_hand(mixture):
    schedule, x = lmsd.solve(nfe=3), mixture.begin(0)
    sampler = lmsd.Sampler(schedule, x)
    assert sampler.index == 0 and (sampler.next()[0] == x).all() and sampler.next()[1] == 80
    with pytest.raises(lmsd.Error, match="not finite"):
        sampler.step(np.full_like(x, np.inf))
    assert sampler.index == 0  # still where it was
    for n in range(3):
        state, sigma = sampler.next()
        assert (state == sampler.result).all() and sampler.index == n
        sampler.step(mixture.model(state, sigma))
    assert (sampler.result == lmsd.sample(schedule, x, mixture.model)).all()
    for past in (sampler.next, lambda: sampler.step(x)):
        with pytest.raises(lmsd.Error, match="over") as raised:
            past()
        assert raised.value.status == lmsd.Status.WRONG_STATE
    assert list(sampler) == []


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_copy_goes_on_by_itself(kind, mixture):
    schedule, start = lmsd.solve("dpmpp_3m", nfe=6), kind(mixture.begin(0))
    expected = lmsd.sample(schedule, start, mixture.model)
    sampler = lmsd.Sampler(schedule, start)
    for x, sigma in sampler:
        if sampler.index == 3:
            twin = copy.deepcopy(sampler)
        sampler.step(mixture.model(x, sigma))
    assert (sampler.result == expected).all() and (twin.index, sampler.index) == (3, 6)
    del sampler
    gc.collect()
    for x, sigma in twin:
        twin.step(mixture.model(x, sigma))
    assert (twin.result == expected).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.made_by.get('solver')}-{s.nfe}")
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_the_caller_may_replace_the_state_between_steps(kind, schedule, mixture):
    """As inpainting does: half of every state is another one, and the recurrence goes on from there."""
    start, kept = mixture.begin(0), mixture.begin(1)[:2]
    replaced = []

    def painted(x, sigma):
        x = np.asarray(x).copy()
        x[:2] = 0.1 * sigma * kept
        return x

    sampler = lmsd.Sampler(schedule, kind(start))
    for state, sigma in sampler:
        own = kind(painted(state, schedule.sigmas[sampler.index]))
        replaced.append((own, np.asarray(own).copy()))
        sampler.step(mixture.model(own, sigma), own)
    expected = loop(schedule, start, mixture.model, painted)
    np.testing.assert_allclose(np.asarray(sampler.result), expected, rtol=0, atol=1e-12)
    assert all((np.asarray(own) == before).all() for own, before in replaced)
    with pytest.raises(lmsd.Error, match="over") as raised:
        sampler.step(kind(start), kind(start))
    assert raised.value.status == lmsd.Status.WRONG_STATE


def test_a_loop_without_steps_is_refused(mixture):
    with pytest.raises(lmsd.Error, match=r"step\(\) was not called"):
        for _ in lmsd.Sampler(lmsd.solve(nfe=3), mixture.begin(0)):
            pass


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_kept_alive(fails, mixture):
    """Without the garbage collector: no cycle holds a tensor, after success or after an exception."""
    gc.collect()
    gc.disable()
    try:
        alive = []

        def model(x, sigma):
            d = mixture.model(x, sigma)
            alive.extend(map(weakref.ref, (x, d)))
            if fails and len(alive) == 6:
                raise ValueError("stop")
            return d

        x = torch.from_numpy(mixture.begin(0))
        try:
            result = lmsd.sample(SCHEDULES[1], x, model, lambda step: None)
            sampler = lmsd.Sampler(SCHEDULES[1], x)
            for state, sigma in sampler:
                sampler.step(mixture.model(state, sigma))
            alive.append(weakref.ref(sampler))
            alive.append(weakref.ref(state))
            del result, sampler, state
        except ValueError:
            pass
        assert alive and not [a for a in alive if a() is not None]
    finally:
        gc.enable()
