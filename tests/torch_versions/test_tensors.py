"""The library of tensors for this very torch, through the C ABI: the caller's memory, refusals, no leak."""

import ctypes
from ctypes import byref, c_double, c_void_p
from pathlib import Path

import lmsd
import pytest
import torch
from lmsd import _abi, _hosts


@pytest.fixture(scope="module")
def tensors_of():
    found = _hosts.torch_table(torch.__version__)
    assert found, "make torch-library"
    return found


def describe(tensor, device=(1, 0)):
    code, bits = _hosts.DTYPES[str(tensor.dtype).removeprefix("torch.")]
    shape = (ctypes.c_int64 * tensor.dim())(*tensor.shape)
    strides = (ctypes.c_int64 * tensor.dim())(*tensor.stride())
    dtype = _abi.Dtype(code, bits, 1)
    return _abi.Tensor(tensor.data_ptr(), _abi.Device(*device), tensor.dim(), dtype, shape, strides, 0)


def lincomb(tensors_of, out, factors, terms):
    pointers = (c_void_p * len(terms))(*map(ctypes.addressof, terms))
    factors = (c_double * len(terms))(*factors)
    _abi.check(_abi.lib.lmsd_lincomb(tensors_of, len(terms), factors, pointers, byref(out)))


def test_any_strides_are_read_and_written_in_place(tensors_of):
    base = torch.randn(5, 3, 4, dtype=torch.float64)
    terms = [base.permute(2, 0, 1), torch.randn(4, 5, 1, dtype=torch.float64).expand(4, 5, 3)]
    whole = torch.zeros(4, 10, 3, dtype=torch.float64)
    out = whole[:, ::2]
    lincomb(tensors_of, describe(out), [2.0, -0.5], [describe(term) for term in terms])
    torch.testing.assert_close(out, 2 * terms[0] - 0.5 * terms[1])
    assert (whole[:, 1::2] == 0).all()


def test_refusals_say_which_tensor_and_why(tensors_of):
    x, wide, other = torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.float64), torch.zeros(3, 2)
    half = torch.zeros(2, 3, dtype=torch.int16)
    integer = _abi.Tensor(
        half.data_ptr(), _abi.Device(1, 0), 2, _abi.Dtype(0, 16, 1), describe(x).shape, None, 0
    )
    cases = [
        (describe(x), describe(wide), "float64"),
        (describe(x), describe(other), "term 0 has shape [3, 2] but the output [2, 3]"),
        (describe(x), describe(x), "term 0 overlaps the output"),
        (describe(x), describe(wide, (8, 0)), "term 0: the tensor is on device 0 of DLPack type 8"),
        (integer, describe(x), "out: "),
    ]
    if not torch.cuda.is_available():
        cases.append((describe(x, (2, 0)), describe(wide, (2, 0)), "CUDA device 0 is asked for"))
    for out, term, says in cases:
        with pytest.raises(lmsd.Error) as refused:
            lincomb(tensors_of, out, [1.0], [term])
        assert says in str(refused.value)
        assert refused.value.status in (lmsd.Status.INVALID_TENSOR, lmsd.Status.INVALID_ARGUMENT)


def test_the_tensors_of_a_run_lie_side_by_side(tensors_of):
    """In one buffer, so that a step is one matrix-vector product."""
    schedule, x = lmsd.solve("dpmpp_3m", nfe=6), torch.randn(2, 3, 256, 256)
    out, places = torch.empty_like(x), []

    @_abi.MODEL
    def model(_user_data, call, state, denoised):
        sigma = call.contents.sigma
        places.extend(_abi.Tensor.from_address(tensor).data for tensor in (state, denoised))
        factor, state = (c_double * 1)(1 / (1 + sigma**2)), (c_void_p * 1)(state)
        return _abi.lib.lmsd_lincomb(tensors_of, 1, factor, state, denoised)

    start, end = describe(x), describe(out)
    _abi.check(
        _abi.lib.lmsd_sample(
            schedule._handle, tensors_of, byref(start), model, _abi.OBSERVER(), None, byref(end)
        )
    )
    torch.testing.assert_close(out, lmsd.sample(schedule, x, lambda x, sigma: x / (1 + sigma**2)))
    distances = {(place - min(places)) / (4 * x.numel()) for place in places}
    assert distances <= set(range(5)) and len(distances) == 5, distances  # two states, three predictions


def test_memory_does_not_grow(tensors_of):
    """10,000 steps on tensors that the library allocates."""
    schedule, x = lmsd.solve("dpmpp_2m", nfe=10), torch.randn(2, 1000)
    out = torch.empty_like(x)
    start, end = describe(x), describe(out)

    @_abi.MODEL
    def model(_user_data, call, state, denoised):
        sigma = call.contents.sigma
        factor, state = (c_double * 1)(1 / (1 + sigma**2)), (c_void_p * 1)(state)
        return _abi.lib.lmsd_lincomb(tensors_of, 1, factor, state, denoised)

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def run(times):
        for _ in range(times):
            given = byref(start), model, _abi.OBSERVER(), None, byref(end)
            _abi.check(_abi.lib.lmsd_sample(schedule._handle, tensors_of, *given))

    run(100)
    want = lmsd.sample(schedule, x, lambda x, sigma: x / (1 + sigma**2))
    torch.testing.assert_close(out, want)
    before = resident()
    run(900)
    assert resident() - before < 4 << 20  # one tensor a step would be 80 MB
