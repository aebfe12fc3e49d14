"""What a command works on, and what is known of it."""

from typing import Any, NamedTuple

import lmsd


class Task(NamedTuple):
    """`problem` has like, begin and model; `config`: the options of the library that are known."""

    problem: Any
    config: dict


def refuse(args, names, why: str) -> None:
    """Refuses the flags that do not go with the others."""
    for name in names:
        if getattr(args, name, None) not in (None, []):
            flag = {"only": "class"}.get(name, name)
            raise lmsd.Error(f"--{flag} {why}")
