"""How a run is interrupted, in every host alike.

The first interrupt ends the run after the model call that is under way, and what it has found is kept. The
second one is not held back.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

STOPPING = "stopping after this model call; Ctrl-C again ends it at once"


class Interrupt:
    """Whether a run has been interrupted: false at first. `progress` of `lmsd.distill` may return it.

    `cause`: the number of the signal, or whatever else a host interrupts with, such as its own exception.
    """

    def __init__(self) -> None:
        self.cause: Any = None

    def note(self, cause) -> None:
        """The run is interrupted. What was noted first stays."""
        if self.cause is None:
            self.cause = cause

    def __bool__(self) -> bool:
        return self.cause is not None


@contextlib.contextmanager
def first_interrupt(
    say: Callable[[str], Any],
    again: Callable | signal.Handlers | None = signal.default_int_handler,
    signals: Iterable[signal.Signals] = (signal.SIGINT,),
) -> Iterator[Interrupt]:
    """The `Interrupt` in which the first of `signals` is noted; `say` then gets a sentence for people.

    `again`: what the signal does from then on, by default KeyboardInterrupt; None: it is noted and nothing is
    said, for processes whose launcher repeats it. Without effect outside the main thread, and where a signal
    is ignored or has a handler of its own.
    """
    interrupt, taken = Interrupt(), {}

    def handler(number, _frame):
        interrupt.note(number)
        if again is not None:
            signal.signal(number, again)
            say(STOPPING)

    if threading.current_thread() is threading.main_thread():
        for number in signals:
            previous = signal.getsignal(number)
            if previous in (signal.SIG_DFL, signal.default_int_handler):
                taken[number] = previous
                signal.signal(number, handler)
    try:
        yield interrupt
    finally:
        for number, previous in taken.items():
            signal.signal(number, previous)
