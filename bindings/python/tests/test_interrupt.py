"""The first interrupt ends a run and keeps what it has; the second one is not held back."""

import signal
import threading

import pytest
from lmsd._interrupt import STOPPING, Interrupt, first_interrupt

INT = signal.SIGINT


def test_the_first_is_noted_and_the_second_raises():
    said = []
    with pytest.raises(KeyboardInterrupt), first_interrupt(said.append) as interrupt:
        assert not interrupt and interrupt.cause is None
        signal.raise_signal(INT)
        assert interrupt and interrupt.cause == INT and said == [STOPPING]
        signal.raise_signal(INT)
    assert said == [STOPPING] and signal.getsignal(INT) is signal.default_int_handler


def test_the_second_may_be_another_s():
    heard = []
    with first_interrupt(lambda _: None, again=lambda number, _: heard.append(number)) as interrupt:
        signal.raise_signal(INT)
        signal.raise_signal(INT)
        assert interrupt and heard == [INT]


def test_processes_of_a_launcher_only_note():
    said, both = [], (INT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in both]
    with first_interrupt(said.append, again=None, signals=both) as interrupt:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(INT)
        signal.raise_signal(INT)
        assert interrupt.cause == signal.SIGTERM and said == []
    assert [signal.getsignal(number) for number in both] == before


def ignored(_number, _frame):
    pass


@pytest.mark.parametrize("handler", [signal.SIG_IGN, ignored])
def test_a_host_s_own_handling_stays(handler):
    previous = signal.signal(INT, handler)
    try:
        with first_interrupt(lambda _: None) as interrupt:
            assert signal.getsignal(INT) is handler
            signal.raise_signal(INT)
        assert not interrupt and signal.getsignal(INT) is handler
    finally:
        signal.signal(INT, previous)


def test_other_threads_have_none():
    found = []

    def work():
        with first_interrupt(lambda _: None) as interrupt:
            found.append((bool(interrupt), signal.getsignal(INT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, signal.default_int_handler)]


def test_a_host_may_note_its_own_cause():
    interrupt, error = Interrupt(), RuntimeError("stop")
    interrupt.note(error)
    interrupt.note(INT)
    assert interrupt and interrupt.cause is error
