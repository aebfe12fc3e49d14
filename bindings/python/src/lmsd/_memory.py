"""Where a model finds no memory left: how to tell, and how to go on with smaller batches."""

from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

WORDS = ("out of memory", "can't allocate memory", "not enough memory", "Failed to allocate memory")


def out_of_memory(error: BaseException) -> bool:
    """Whether a model failed for want of memory, by what torch, ONNX Runtime and Python raise then."""
    said = isinstance(error, RuntimeError) and any(words in str(error) for words in WORDS)
    return said or isinstance(error, MemoryError)


def halve_until_it_fits(
    attempt: Callable[[int], Result], batch_size: int, before_retry: Callable[[int], object]
) -> Result:
    """`attempt(batch_size)`; where it runs out of memory, the same with half as many, down to 1.

    `before_retry` gets the smaller batch size first, when nothing of the failed attempt is alive any more:
    the place to hand cached memory back and to tell the user. Raises whatever else `attempt` raises, and its
    out-of-memory error at a batch size of 1.
    """
    while True:
        try:
            return attempt(batch_size)
        except Exception as error:
            if batch_size == 1 or not out_of_memory(error):
                raise
        batch_size //= 2
        before_retry(batch_size)
