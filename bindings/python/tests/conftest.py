import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: threads only wait here

import pytest  # noqa: E402
from lmsd import cli  # noqa: E402
from mixture import Mixture  # noqa: E402

# Ctrl-C is heard, by the tests and by the processes that they start, whoever started them: what runs in a
# shell's background inherits it ignored. A handler here is the default again in a child.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "pthread_sigmask"):  # not on Windows
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@pytest.fixture
def mixture():
    return Mixture()


@pytest.fixture
def lmsd_(capsys):
    """Runs the command line in this process: what it says, when it has ended with `code`."""

    def called(*arguments, code=0):
        try:
            ended = cli.main([str(argument) for argument in arguments])
        except SystemExit as error:  # of argparse
            ended = error.code
        said = capsys.readouterr()
        assert ended == code, said.out + said.err
        return said.out + said.err

    return called
