"""Smaller batches where memory runs out."""

import gc
import weakref

import lmsd
import pytest


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer"), True),
        (MemoryError(), True),
        (RuntimeError("a layer of the model is missing"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_the_words_of_full_memory(error, is_memory):
    assert lmsd.out_of_memory(error) == is_memory


def test_the_batch_is_halved_until_it_fits():
    tried, retried = [], []

    def attempt(size):
        tried.append(size)
        if size > 5:
            raise MemoryError
        return f"{size} fit"

    assert lmsd.halve_until_it_fits(attempt, 19, retried.append) == "4 fit"
    assert tried == [19, 9, 4] and retried == [9, 4]
    assert lmsd.halve_until_it_fits(attempt, 3, retried.append) == "3 fit" and retried == [9, 4]


def test_other_errors_and_a_batch_of_one_end_it():
    retried, errors = [], {1: MemoryError("none at all"), 8: ValueError("wrong")}

    def attempt(size):
        raise errors.get(size, MemoryError())

    for size in (8, 4):
        with pytest.raises(type(errors[8 if size == 8 else 1])):
            lmsd.halve_until_it_fits(attempt, size, retried.append)
    assert retried == [2, 1]


def test_what_a_failed_attempt_held_is_gone_before_the_next():
    class Big:
        pass

    held = []

    def attempt(size):
        big = Big()
        held.append(weakref.ref(big))
        if size > 1:
            raise MemoryError(big)

    gc.disable()
    try:
        lmsd.halve_until_it_fits(attempt, 2, lambda size: held.append(held[0]() is None))
    finally:
        gc.enable()
    assert held[1] is True
