"""The command line, `lmsd COMMAND`, also as `python -m lmsd`.

`arguments` says what each takes; the module of its name runs it.
"""

import importlib
import os
import sys

import lmsd

INTERRUPTED = 130  # as shells count a program that Ctrl-C ended
CLOSED = 141  # and one whose reader has gone


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; the exit code."""
    from .arguments import parser

    args = parser().parse_args(arguments)
    try:
        code = importlib.import_module(f".{args.command}", __name__).run(args)
        sys.stdout.flush()
        return code
    except lmsd.Error as error:
        print(f"lmsd: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush when Python ends
        return CLOSED
