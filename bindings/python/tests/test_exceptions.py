"""Exceptions cross the library unharmed: the very object comes back, wherever it was raised."""

import _thread
import contextlib
import os
import resource
import signal
import statistics
import threading
import time
import traceback
from itertools import pairwise
from pathlib import Path

import lmsd
import numpy as np
import pytest
import torch
from lmsd import _hosts

SCHEDULE = lmsd.solve("dpmpp_3m", nfe=6)


class Interrupted(BaseException):
    pass


def at_call(number, function, error):
    """`function`, raising `error` at call `number`, from 0."""
    count = 0

    def wrapped(*arguments):
        nonlocal count
        count += 1
        if count == number + 1:
            raise error
        return function(*arguments)

    return wrapped


def resident():
    """Resident memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def growth(work):
    """MiB by which `work` grows the process each time: what is left behind does so in every round, what an
    allocator or a thread keeps for itself does not.
    """
    work()
    sizes = [resident()]
    for _ in range(5):
        work()
        sizes.append(resident())
    print("MiB:", *(f"{size:.2f}" for size in sizes))
    return statistics.median(after - before for before, after in pairwise(sizes))


ERRORS = [
    ValueError("a"),
    KeyboardInterrupt(),
    Interrupted(),
    StopIteration(3),
    SystemExit(2),
    lmsd.Error("own"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_sample_raises_the_same_object_at_any_call(error, kind, mixture):
    x = kind(mixture.begin(0))
    expected = lmsd.sample(SCHEDULE, x, mixture.model)
    for number in range(SCHEDULE.nfe):
        for model, callback in (
            (at_call(number, mixture.model, error), None),
            (mixture.model, at_call(number, lambda step: None, error)),
        ):
            with pytest.raises(type(error)) as raised:
                lmsd.sample(SCHEDULE, x, model, callback)
            assert raised.value is error and error.__context__ is None
            assert "wrapped" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]
            error.__traceback__ = None
    assert (lmsd.sample(SCHEDULE, x, mixture.model) == expected).all()


@pytest.mark.parametrize("error", ERRORS[:4], ids=lambda e: type(e).__name__)
def test_distill_raises_the_same_object_at_any_call(error, mixture):
    options = {"like": mixture.like, "nfe": 2, "teacher_nfe": 8, "iterations": 2, "sigma_end": 0.002}
    whole = lmsd.distill(mixture.model, mixture.begin, progress=False, **options)
    calls = mixture.calls
    for number in [*range(12), *range(12, calls, 25), calls - 1]:
        with pytest.raises(type(error)) as raised:
            lmsd.distill(at_call(number, mixture.model, error), mixture.begin, progress=False, **options)
        assert raised.value is error
        with pytest.raises(type(error)) as raised:
            lmsd.distill(
                mixture.model, mixture.begin, progress=at_call(number, lambda told: None, error), **options
            )
        assert raised.value is error
        error.__traceback__ = None
    for number in range(3):
        with pytest.raises(type(error)) as raised:
            lmsd.distill(mixture.model, at_call(number, mixture.begin, error), progress=False, **options)
        assert raised.value is error
        with pytest.raises(type(error)) as raised:
            lmsd.compare([SCHEDULE], at_call(number, mixture.model, error), mixture.begin, mixture.like)
        assert raised.value is error
    again = lmsd.distill(mixture.model, mixture.begin, progress=False, **options)
    assert (again.schedules[2].sigmas == whole.schedules[2].sigmas).all()


@pytest.mark.parametrize("function", ["combine", "first_not_finite"])
def test_an_exception_of_a_tensor_operation_comes_back(function, mixture, monkeypatch):
    """Such as torch being out of memory."""
    error = MemoryError("out of memory")
    x = torch.from_numpy(mixture.begin(0))
    kind = type(_hosts.host_for(x))
    for number in range(4):
        own = getattr(kind, function)
        monkeypatch.setattr(kind, function, at_call(number, own, error))
        with pytest.raises(MemoryError) as raised:
            lmsd.sample(SCHEDULE, x, mixture.model)
        assert raised.value is error
        monkeypatch.setattr(kind, function, at_call(number, own, error))
        with pytest.raises(MemoryError) as raised:
            sampler = lmsd.Sampler(SCHEDULE, x)
            for state, sigma in sampler:
                sampler.step(mixture.model(state, sigma))
        assert raised.value is error
        monkeypatch.undo()


def test_a_sampler_goes_on_after_an_exception(mixture, monkeypatch):
    x = torch.from_numpy(mixture.begin(0))
    sampler = lmsd.Sampler(SCHEDULE, x)
    for number, (state, sigma) in enumerate(sampler):
        denoised = mixture.model(state, sigma)
        if number == 2:
            kind = type(_hosts.host_for(x))
            monkeypatch.setattr(kind, "combine", at_call(0, kind.combine, MemoryError("once")))
            with pytest.raises(MemoryError, match="once"):
                sampler.step(denoised)
            monkeypatch.undo()
            assert sampler.index == 2
        sampler.step(denoised)
    assert (sampler.result == lmsd.sample(SCHEDULE, x, mixture.model)).all()


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_memory_is_flat_over_1000_exceptions(kind):
    x = kind(np.ones((1, 1 << 17)))  # 1 MiB, 6 or so in a run

    def model(x, sigma):
        if sigma < limit:
            raise ValueError
        return x / (1 + sigma)

    def raising_calls():
        nonlocal limit
        for number in range(240):
            limit = (100, 20, 4, 1, 0.1, 0.01)[number % 6]
            with contextlib.suppress(ValueError):  # pytest.raises makes cycles of its own
                lmsd.sample(SCHEDULE, x, model)

    limit = 0
    assert growth(raising_calls) < 1  # one tensor left in 120 calls would be 2


def test_memory_is_flat_over_1000_samples_samplers_and_schedules(mixture):
    def use():
        for _ in range(240):
            schedule = lmsd.Schedule.from_json(SCHEDULE.to_json())
            x = mixture.begin(0)
            lmsd.sample(schedule, x, mixture.model)
            sampler = lmsd.Sampler(schedule, x)
            sampler.step(mixture.model(*sampler.next()))

    assert growth(use) < 0.25  # a tensor left by each would be 0.35


def test_calls_nest(mixture):
    """A model that samples itself, as a teacher's would; exceptions pass both calls."""
    x, error = mixture.begin(0), Interrupted()

    def outer(x, sigma):
        return lmsd.sample(lmsd.solve(nfe=2, sigma_max=2 * sigma), x, mixture.model)

    assert np.isfinite(lmsd.sample(SCHEDULE, x, outer)).all()

    def failing(x, sigma):
        return lmsd.sample(SCHEDULE, x, at_call(2, mixture.model, error))

    with pytest.raises(Interrupted) as raised:
        lmsd.sample(SCHEDULE, x, failing)
    assert raised.value is error


def test_threads_do_not_meet(mixture):
    x, results = mixture.begin(0), []
    expected = lmsd.sample(SCHEDULE, x, mixture.model)

    def work(number):
        error = ValueError(number)
        for _ in range(20):
            try:
                lmsd.sample(SCHEDULE, x, at_call(number % 6, mixture.model, error))
            except ValueError as raised:
                results.append(raised is error)
            results.append((lmsd.sample(SCHEDULE, x, mixture.model) == expected).all())

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 160 and all(results)


def test_ctrl_c_is_never_lost(mixture):
    """A signal can arrive anywhere: in the model, in the library, at the door of a callback."""
    x = np.ones((64, 1 << 12), np.float32)
    for attempt in range(60):
        timer = threading.Timer(0.001 + 0.0005 * attempt, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            until = time.monotonic() + 20
            while time.monotonic() < until:
                lmsd.sample(SCHEDULE, x, lambda x, sigma: x / (1 + sigma))
        timer.join()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_pending_at_the_end_are_delivered(mixture, monkeypatch):
    own = _hosts.Numpy.lincomb

    def lincomb(self, *arguments):
        _thread.interrupt_main()
        return own(self, *arguments)

    monkeypatch.setattr(_hosts.Numpy, "lincomb", lincomb)
    sampler = None
    with pytest.raises(KeyboardInterrupt):
        sampler = lmsd.Sampler(SCHEDULE, mixture.begin(0))
    assert sampler is None and signal.getsignal(signal.SIGINT) is signal.default_int_handler
